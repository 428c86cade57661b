"""What looks wrong with training rows before the first step: questions and positives that repeat one another."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from helpers.answers import holds, normalize
from helpers.base.columns import LazyTexts
from helpers.base.errors import shorten
from helpers.base.shingles import jaccard, shingles, signatures
from helpers.batches import TrainingRows


def diagnose_rows(rows: TrainingRows, near: float = 0.8) -> list[str]:
    """Return a sentence for each way in which training rows repeat one another, with an example; none if all is well.

    Questions, and the passages that are positives, are compared with all others, as answer match reads them: without
    case, and however their tokens are spaced. In one batch, the positive of a question is a negative for its copy,
    unless the qrels name it for both or a mask finds it, as all masks of `helpers.batches.candidate_mask` together
    would; how many pairs are left is told. Copies in other splits are found by `helpers.importing.leakage.find_leaks`.

    Parameters
    ----------
    near : least Jaccard similarity of two texts that are nearly the same, by pairs of words of questions and triples of
        words of passages
    """
    passages, askers = rows.passages, defaultdict(set)
    for row in rows.rows:
        askers[row.positive].add(row.qid)
    qids, columns = list(dict.fromkeys(row.qid for row in rows.rows)), sorted(askers)
    asked = [rows.queries[qid].text for qid in qids]
    whole, body = (LazyTexts(texts.__getitem__, columns) for texts in (passages.texts, passages.normalized))
    tokens = LazyTexts(lambda text: normalize(text, passages.strict_dpr), asked)
    found = []
    for what, size, texts, normal, sides in (
        ("question", 2, asked, tokens, [({qid}, rows.positives[qid]) for qid in qids]),
        ("positive", 3, whole, body, [(askers[column], {column}) for column in columns]),
    ):
        for kind, twins in zip(("the same", "nearly the same"), _twins(normal, size, near), strict=True):
            if twins:
                clashes = [pair for pair in twins if _clash(rows, *(sides[number] for number in pair))]
                later, earlier = (shorten(texts[number], 80) for number in (clashes or twins)[0])
                found.append(
                    f"{len(twins):,} of {len(texts):,} training {what}s are {kind} as an earlier one, e.g. {later} and "
                    f"{earlier}: {_advice(what, len(clashes))}; find_leaks says whether dev or test hold copies too"
                )
    return found


def _advice(what: str, clashes: int) -> str:
    """Return what to change about copies, of which `clashes` are negatives of each other."""
    if not clashes:
        return "none is a negative of its copy, but what stands twice counts twice; keep one of each"
    return (
        f"with {clashes:,} of them, a batch that draws both {what}s takes for a negative what is probably right, and "
        "no mask finds it; keep one of each, or name the positives of both for both in qrels/train.tsv"
    )


def _clash(rows: TrainingRows, one: tuple[set[str], set[int]], other: tuple[set[str], set[int]]) -> bool:
    """Return whether a positive of one side is a negative for a question of the other; a side is (questions, rows)."""
    return any(
        _negative(rows, qid, column)
        for (qids, _), (_, columns) in ((one, other), (other, one))
        for qid in qids
        for column in columns
    )


def _negative(rows: TrainingRows, qid: str, column: int) -> bool:
    """Return whether a passage is a negative for a question: not a positive of it, and not found by any mask."""
    text, positives = rows.passages.normalized[column], rows.positives[qid]
    if column in positives or any(text == rows.passages.normalized[positive] for positive in positives):
        return False
    return not holds(rows.passages.needles(rows.queries[qid].answers), text)


def _twins(texts: Sequence[str], size: int, near: float) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return (number, earlier number) of texts that are the same as an earlier one, and of those nearly the same.

    Texts that are not the same are compared with the first one that shares a band of their signature, so that a
    phrase which stands everywhere costs no square.
    """
    texts = LazyTexts(str.strip, texts)
    hashes = signatures(texts, size)
    same = _firsts(np.arange(len(texts)), hashes[:, 0])
    distinct = np.setdiff1d(np.arange(len(texts)), [number for number, _ in same])
    candidates = {pair for band in hashes[distinct, 1:].T for pair in _firsts(distinct, band)}
    nearly: dict[int, int] = {}
    for number, earlier in sorted(candidates):
        if number not in nearly and jaccard(*(shingles(texts[n], size) for n in (number, earlier))) >= near:
            nearly[number] = earlier
    return same, list(nearly.items())


def _firsts(numbers: np.ndarray, keys: np.ndarray) -> list[tuple[int, int]]:
    """Return (number, number of the first that has the same key) of all that are not the first, by number."""
    _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    places = np.flatnonzero(first[group] != np.arange(len(keys)))
    return list(zip(numbers[places].tolist(), numbers[first[group[places]]].tolist(), strict=True))
