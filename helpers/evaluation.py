"""Hit@K: the share of questions with an answer, or a judged passage, among the first K retrieved."""

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import regex

from helpers.answers import Normalized, holds, normalize_all
from helpers.base.errors import DataError, shorten
from helpers.dataset import PassageIndex, RetrievalData
from helpers.retrieval import DenseIndex, Run, search_run


def first_hits(
    rankings: Sequence[Sequence[int]],
    answers: Sequence[Sequence[str]],
    normalized_passages: Sequence[Normalized],
    strict_dpr: bool = False,
) -> np.ndarray:
    """Return, for each query, the rank (from 1) of its first passage that holds an answer, [Q]; inf if none.

    Parameters
    ----------
    rankings : for each query the row numbers of its passages, best first
    normalized_passages : every passage of the corpus through `normalize`, with the same `strict_dpr`
    """
    pairs = zip(rankings, (_shortest(normalize_all(own, strict_dpr)) for own in answers), strict=True)
    return np.array([_first_hit(ranking, needles, normalized_passages) for ranking, needles in pairs], dtype=float)


def _shortest(needles: Iterable[str | regex.Pattern]) -> list[str | regex.Pattern]:
    """Return `needles` without those that contain another one: where they match, it matches too."""
    texts = {one for one in needles if isinstance(one, str)}
    return [one for one in dict.fromkeys(needles) if one not in texts or not any(t in one for t in texts - {one})]


def _first_hit(ranking: Sequence[int], needles: list[str | regex.Pattern], passages: Sequence[Normalized]) -> float:
    ranking = np.asarray(ranking).tolist()  # Python's integers are the faster keys
    if not all(isinstance(needle, str) for needle in needles):
        found = (rank for rank, row in enumerate(ranking, start=1) if holds(needles, passages[row]))
        return next(found, math.inf)
    pairs = [(needle[:-1], needle) for needle in needles]
    for rank, row in enumerate(ranking, start=1):
        passage = passages[row]
        for begin, needle in pairs:  # faster than `any`; and a text that ends in a letter is found faster
            if begin in passage and needle in passage:
                return rank
    return math.inf


def first_relevant(rankings: Sequence[Sequence[int]], relevant: Sequence[set[int]]) -> np.ndarray:
    """Return, for each query, the rank (from 1) of its first judged passage, [Q]; inf if none."""
    ranks = []
    for ranking, wanted in zip(rankings, relevant, strict=True):
        ranks.append(next((rank for rank, row in enumerate(ranking, start=1) if row in wanted), math.inf))
    return np.array(ranks, dtype=float)


def own_rows(data: RetrievalData, passages: PassageIndex) -> dict[str, set[int]]:
    """Return question id -> rows of the passages that are the question itself, where there are any."""
    return {qid: passages.rows_of(pids) for qid, pids in data.copies.items()}


def hit_ranks(run: Run, data: RetrievalData, passages: PassageIndex, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the rank of each question's first hit by answer match and by qrels, [Q] each.

    A question without an answer is never hit by answer match, one that the split does not judge never by qrels;
    `helpers.reporting.diagnosis.diagnose_run` says how many there are. A passage that is the question itself is no hit
    and takes no rank.

    Parameters
    ----------
    passages : what the run ranks; says whether answers may stand in titles, and how strictly they are matched
    split : whose qrels count

    Raises a DataError if a question is not one of the data set.
    """
    if unknown := [qid for qid in run.qids if qid not in data.queries]:
        raise DataError(f"{run.name}: queries.jsonl has no question {shorten(unknown[0])}; the run is of other data")
    run = run.without(own_rows(data, passages))
    relevant = [passages.rows_of(data.qrels[split].get(qid, ())) for qid in run.qids]
    answers = [data.queries[qid].answers for qid in run.qids]
    by_answer = first_hits(run.rankings, answers, passages.normalized, passages.strict_dpr)
    return by_answer, first_relevant(run.rankings, relevant)


def hit_at_k(ranks: np.ndarray, k: int) -> float:
    """Return Hit@K: the share of queries whose first hit is among the first `k` passages.

    >>> hit_at_k(np.array([1, 7, np.inf, 2]), k=2)
    0.5
    """
    return float(np.mean(ranks <= k)) if len(ranks) else math.nan


def dev_scorer(data: RetrievalData, passages: PassageIndex, qids: Sequence[str]) -> Callable:
    """Return the function from an encoder to its scores on the dev questions `qids`, searched over all of `passages`.

    "dev" is Hit@10, by which the checkpoint is chosen, and Hit@1 and Hit@100 stand beside it. They go by answer match,
    or by qrels if none of the questions has an answer; see notebook 03.
    """
    queries = {qid: data.queries[qid].text for qid in qids}
    answered, own = any(data.queries[qid].answers for qid in qids), own_rows(data, passages)

    def score(encoder) -> dict[str, float]:
        run = search_run("dev", DenseIndex(encoder, passages.texts), queries, left_out=own)
        ranks = hit_ranks(run, data, passages, "dev")[0 if answered else 1]
        return {"dev": hit_at_k(ranks, 10), "Hit@1": hit_at_k(ranks, 1), "Hit@100": hit_at_k(ranks, 100)}

    return score
