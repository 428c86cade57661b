"""What two splits share: questions, passages and articles, word for word or nearly, so that a test tells less.

Near duplicates are found by MinHash over word shingles (Broder 1997), in bands, and then checked exactly.
"""

import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from helpers.dataset import PassageIndex, RetrievalData
from helpers.evaluation import normalize
from helpers.validation import SPLITS

BANDS, ROWS = 16, 4  # a pair of Jaccard 0.8 shares a band with probability 1 - (1 - 0.8^4)^16 > 0.999
CHUNK = 20_000  # texts hashed at a time


@dataclass(frozen=True)
class Leak:
    """How many items of the split `later` have a twin in the split `earlier`, and (text, twin) of the first ones."""

    what: str
    earlier: str
    later: str
    count: int
    examples: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        text, twin = self.examples[0]
        return f"{self.what} in {self.earlier} and {self.later}: {self.count:,}, e.g. {text[:80]!r} and {twin[:80]!r}"


def find_leaks(data: RetrievalData, near: float = 0.8, shown: int = 3) -> list[Leak]:
    """Return what splits share, for questions, passages and article titles; an empty list if nothing.

    A passage is of a split if its field `split` says so or a question of the split has it as a positive.
    `near` is the least Jaccard similarity of the word shingles that makes two texts near duplicates.
    """
    index, of_split = PassageIndex(data.corpus), data.corpus["split"]
    places: dict[int, set[str]] = defaultdict(set)
    for row, split in enumerate(of_split):
        if split:
            places[row].add(split)
    for split, qrels in data.qrels.items():
        for row in {index.row[pid] for pids in qrels.values() for pid in pids}:
            places[row].add(split)
    questions = [(split, data.queries[qid].text) for split, qrels in data.qrels.items() for qid in qrels]
    passages = [(split, data.corpus[row]["text"]) for row, splits in places.items() for split in sorted(splits)]
    titles = sorted(
        {(split, data.corpus[row]["title"]) for row, splits in places.items() for split in splits} - {("", "")}
    )
    leaks = []
    for what, items, size in (("question", questions, 2), ("passage", passages, 3)):
        texts = [normalize(text).strip() for _, text in items]
        same = _exact(items, texts)
        leaks += _leaks(f"the same {what}", items, same, shown)
        twins = {number for number, _ in same}
        nearly = [(a, b) for a, b in near_duplicates([s for s, _ in items], texts, size, near) if a not in twins]
        leaks += _leaks(f"nearly the same {what}", items, nearly, shown)
    titled = [(split, title) for split, title in titles if title]
    return leaks + _leaks("the same article", titled, _exact(titled, [title for _, title in titled]), shown)


def _exact(items: Sequence[tuple[str, str]], keys: Sequence[str]) -> list[tuple[int, int]]:
    """Return (number, number of its twin in an earlier split) of every item that has one."""
    first: dict[str, dict[str, int]] = defaultdict(dict)
    for number, ((split, _), key) in enumerate(zip(items, keys, strict=True)):
        first[key].setdefault(split, number)
    return [
        (number, twin)
        for number, ((split, _), key) in enumerate(zip(items, keys, strict=True))
        for other, twin in first[key].items()
        if SPLITS.index(other) < SPLITS.index(split)
    ]


def _leaks(what: str, items: Sequence[tuple[str, str]], pairs: Sequence[tuple[int, int]], shown: int) -> list[Leak]:
    found: dict[tuple[str, str], dict[int, int]] = defaultdict(dict)
    for number, twin in pairs:
        found[items[twin][0], items[number][0]].setdefault(number, twin)
    return [
        Leak(what, *splits, len(twins), tuple((items[a][1], items[b][1]) for a, b in list(twins.items())[:shown]))
        for splits, twins in found.items()
    ]


def near_duplicates(splits: Sequence[str], texts: Sequence[str], size: int, near: float) -> list[tuple[int, int]]:
    """Return (number, twin in an earlier split) of texts whose shingles of `size` words have a Jaccard of `near`.

    Of the texts that share a band, each is compared with the first of every earlier split, so that a boilerplate that
    stands everywhere costs no square.
    """
    order = np.array([SPLITS.index(split) for split in splits])
    if len(set(splits)) < 2:
        return []
    bands = np.concatenate([_bands(texts[start : start + CHUNK], size) for start in range(0, len(texts), CHUNK)])
    candidates = set()
    for band in bands.T:  # equal keys side by side, and of those the earlier splits first
        by_key = np.lexsort((order, band))
        begins = np.flatnonzero(np.r_[True, np.diff(band[by_key]) != 0])
        for begin, end in zip(begins, np.r_[begins[1:], len(by_key)], strict=True):
            group = by_key[begin:end]
            if order[group[0]] < order[group[-1]]:
                firsts = {order[number]: int(number) for number in group[::-1]}
                candidates |= {(int(n), twin) for n in group for split, twin in firsts.items() if split < order[n]}
    return [
        (number, twin) for number, twin in sorted(candidates)
        if jaccard(shingles(texts[number], size), shingles(texts[twin], size)) >= near
    ]  # fmt: skip


def shingles(text: str, size: int) -> set[int]:
    """Return the hashes of every `size` words in a row of a normalised text; of a shorter one, of all it has."""
    words = text.split(" ")
    return {zlib.crc32(" ".join(words[at : at + size]).encode()) for at in range(max(1, len(words) - size + 1))}


def jaccard(one: set, other: set) -> float:
    """Return the share of both sets' elements that both have.

    >>> jaccard({1, 2, 3}, {2, 3, 4})
    0.5
    """
    return len(one & other) / max(1, len(one | other))


def _bands(texts: Sequence[str], size: int) -> np.ndarray:
    """Return the MinHash signature of each text as one number a band, [N, BANDS]."""
    sets = [np.fromiter(found, np.uint64, len(found)) for found in (shingles(text, size) for text in texts)]
    starts, hashes = np.cumsum([0, *map(len, sets)])[:-1], np.concatenate(sets)
    rng, keys = np.random.default_rng(0), np.zeros((len(texts), BANDS), np.uint64)
    with np.errstate(over="ignore"):
        for number in range(BANDS * ROWS):
            odd, plus = (int(n) for n in rng.integers(2**63, size=2))
            mixed = (hashes * np.uint64(odd | 1) + np.uint64(plus)) >> np.uint64(32)  # multiply and shift
            lowest = np.minimum.reduceat(mixed, starts)
            keys[:, number % BANDS] = keys[:, number % BANDS] * np.uint64(0x9E3779B97F4A7C15) + lowest
    return keys
