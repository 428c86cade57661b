"""What two splits share: questions, passages and articles, word for word or nearly. A shared test means little.

Near duplicates are found by MinHash over word shingles (Broder 1997), in bands, and then checked exactly.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from helpers.answers import normalize
from helpers.base.checks import SPLITS
from helpers.base.columns import ArrowColumn, LazyTexts
from helpers.base.shingles import hash_each, jaccard, shingles, signatures
from helpers.dataset import PassageIndex, RetrievalData


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
    Passages are hashed in chunks, and only those that may have a twin are read again.
    """
    asked = [split for split, qrels in data.qrels.items() for _ in qrels]
    questions = [data.queries[qid].text for qrels in data.qrels.values() for qid in qrels]
    splits, rows = _split_rows(data)
    title, text = (ArrowColumn(data.corpus, name) for name in ("title", "text"))
    passages = LazyTexts(lambda row: text[int(row)], rows)
    leaks = []
    for what, of, texts, size in (("question", asked, questions, 2), ("passage", splits, passages, 3)):
        if len(set(of)) < 2:
            continue
        normal = LazyTexts(lambda text: normalize(text).strip(), texts)
        hashes = signatures(normal, size)
        same = sorted(_twins(of, hashes[:, 0]))
        leaks += _leaks(f"the same {what}", of, texts, same, shown)
        twins = {number for number, _ in same}
        nearly = [pair for pair in near_duplicates(of, normal, size, near, hashes) if pair[0] not in twins]
        leaks += _leaks(f"nearly the same {what}", of, texts, nearly, shown)
    titled = sorted({(split, title[int(row)]) for split, row in zip(splits, rows, strict=True)})
    of, titles = [split for split, name in titled if name], [name for _, name in titled if name]
    return leaks + _leaks("the same article", of, titles, sorted(_twins(of, hash_each(titles))), shown)


def _split_rows(data: RetrievalData) -> tuple[list[str], np.ndarray]:
    """Return the split and the row of every passage that has a split, by row; one of two splits comes twice."""
    names, row_of = sorted(SPLITS), PassageIndex(data.corpus).row
    member = np.zeros((len(data.corpus), len(names)), bool)
    for row, split in enumerate(LazyTexts(str, ArrowColumn(data.corpus, "split"))):
        if split:
            member[row, names.index(split)] = True
    for split, qrels in data.qrels.items():
        for pid in chain(*qrels.values()):
            member[row_of[pid], names.index(split)] = True
    rows, columns = np.nonzero(member)
    return [names[column] for column in columns], rows


def _leaks(
    what: str, splits: Sequence[str], texts: Sequence[str], pairs: Sequence[tuple[int, int]], shown: int
) -> list[Leak]:
    found: dict[tuple[str, str], dict[int, int]] = defaultdict(dict)
    for number, twin in pairs:
        found[splits[twin], splits[number]].setdefault(number, twin)
    return [
        Leak(what, *between, len(twins), tuple((texts[a], texts[b]) for a, b in list(twins.items())[:shown]))
        for between, twins in found.items()
    ]


def _twins(splits: Sequence[str], keys: np.ndarray) -> set[tuple[int, int]]:
    """Return (number, number of the first of an earlier split that has the same key) of every item that has one."""
    order = np.array([SPLITS.index(split) for split in splits])
    by_key = np.lexsort((order, keys))  # equal keys side by side, and of those the earlier splits first
    begins = np.flatnonzero(np.r_[len(keys) > 0, np.diff(keys[by_key]) != 0])
    ends = np.r_[begins[1:], len(keys)][: len(begins)]
    mixed = order[by_key[begins]] < order[by_key[ends - 1]]
    found = set()
    for begin, end in zip(begins[mixed], ends[mixed], strict=True):
        group = by_key[begin:end]
        firsts = {order[number]: int(number) for number in group[::-1]}
        found |= {(int(n), twin) for n in group for split, twin in firsts.items() if split < order[n]}
    return found


def near_duplicates(
    splits: Sequence[str], texts: Sequence[str], size: int, near: float, hashes: np.ndarray | None = None
) -> list[tuple[int, int]]:
    """Return (number, twin in an earlier split) of texts whose shingles of `size` words have a Jaccard of `near`.

    Of the texts that share a band, each is compared with the first of every earlier split, so that a boilerplate that
    stands everywhere costs no square. `hashes` are those of the texts, if they are known.
    """
    bands = (signatures(texts, size) if hashes is None else hashes)[:, 1:]
    candidates = set().union(*(_twins(splits, band) for band in bands.T))

    def alike(number: int, twin: int) -> bool:
        return jaccard(shingles(texts[number], size), shingles(texts[twin], size)) >= near

    return [pair for pair in sorted(candidates) if alike(*pair)]
