"""Answer match, Hit@K and its uncertainty.

`has_answer` follows DPR (Karpukhin et al. 2020, https://arxiv.org/abs/2004.04906): both sides are NFD-normalised,
cut into tokens and lower-cased; an answer matches if its tokens stand side by side in the passage. Differences
from DPR's code, both deliberate: an empty answer matches everything there and nothing here (a data set that has
one is rejected when it is loaded), and a curly apostrophe equals a straight one.
"""

import math
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np
import regex

TOKENS = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")
CURLY = "‘’ʼ"
APOSTROPHES = str.maketrans(dict.fromkeys(CURLY, "'"))


def normalize(text: str, strict_dpr: bool = False) -> str:
    """Return `text` as lower-case tokens, each between two spaces, ready for `has_answer`.

    No token holds a space, so a run of tokens is a substring exactly if it is a contiguous sub-list.

    >>> normalize("Café au lait?") == normalize("CAFE\\u0301 au lait ?")
    True
    """
    text = unicodedata.normalize("NFD", text)
    for curly in "" if strict_dpr else CURLY:  # on text that is not ASCII, str.translate takes many times as long
        text = text.replace(curly, "'")
    return f" {' '.join(TOKENS.findall(text))} ".lower()


def has_answer(answers: Iterable[str], normalized_passage: str) -> bool:
    """Return whether any of `answers` (raw) stands in a passage that went through `normalize`.

    >>> has_answer(["U.S."], normalize("The U.S. Navy")), has_answer(["US"], normalize("The U.S. Navy"))
    (True, False)
    """
    return any(answer in normalized_passage for answer in normalize_all(answers))


def normalize_all(answers: Iterable[str]) -> list[str]:
    """Return `answers` through `normalize`, without those that hold no token and would match everything."""
    return [text for text in map(normalize, answers) if text.strip()]


def first_hits(
    rankings: Sequence[Sequence[int]], answers: Sequence[Sequence[str]], normalized_passages: Sequence[str]
) -> np.ndarray:
    """Return, for each query, the rank (from 1) of its first passage that holds an answer, [Q]; inf if none.

    Parameters
    ----------
    rankings : for each query the indices of its passages, best first
    answers : for each query its answers
    normalized_passages : every passage of the corpus through `normalize`
    """
    pairs = zip(rankings, map(_shortest, answers), strict=True)
    return np.array([_first_hit(ranking, needles, normalized_passages) for ranking, needles in pairs], dtype=float)


def _shortest(answers: Iterable[str]) -> list[str]:
    """Return `answers` through `normalize`, less those that hold another one: where they stand, it stands too."""
    needles = set(normalize_all(answers))
    return [one for one in needles if not any(other in one for other in needles - {one})]


def _first_hit(ranking: Sequence[int], needles: list[str], normalized_passages: Sequence[str]) -> float:
    pairs = [(needle[:-1], needle) for needle in needles]
    for rank, index in enumerate(ranking, start=1):
        passage = normalized_passages[index]
        for begin, needle in pairs:  # a plain loop is faster than `any`; a search for a letter, than for a last space
            if begin in passage and needle in passage:
                return rank
    return math.inf


def first_relevant(rankings: Sequence[Sequence[int]], relevant: Sequence[set[int]]) -> np.ndarray:
    """Return, for each query, the rank (from 1) of its first judged passage, [Q]; inf if none."""
    ranks = np.full(len(rankings), np.inf)
    for number, (ranking, wanted) in enumerate(zip(rankings, relevant, strict=True)):
        ranks[number] = next((rank for rank, i in enumerate(ranking, start=1) if i in wanted), np.inf)
    return ranks


def hit_ranks(run, data, passages, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the rank of each question's first hit by answer match and by qrels, [Q] each.

    Parameters
    ----------
    run : a helpers.retrieval.Run over `passages`, a PassageIndex
    data, split : the RetrievalData and the split that hold the answers and the qrels
    """
    relevant = [{passages.row[p] for p in data.qrels[split][q] if p in passages.row} for q in run.qids]
    answers = [data.queries[qid].answers for qid in run.qids]
    return first_hits(run.rankings, answers, passages.normalized), first_relevant(run.rankings, relevant)


def hit_at_k(ranks: np.ndarray, k: int) -> float:
    """Return Hit@K: the share of queries whose first hit is among the first `k` passages.

    >>> hit_at_k(np.array([1, 7, np.inf, 2]), k=2)
    0.5
    """
    return float(np.mean(ranks <= k)) if len(ranks) else math.nan


def bootstrap_interval(
    values: np.ndarray, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean of `values`, [Q], over the queries.

    For one system `values` are its hits (0 or 1); for two, the difference of their hits on the same queries,
    which makes the interval a paired one. No query at all gives (nan, nan). Efron & Tibshirani 1993, chapter 13.
    """
    values = np.asarray(values, dtype=float)
    if not len(values):
        return math.nan, math.nan
    distinct, counts = np.unique(values, return_counts=True)  # few distinct values: draw counts, not rows
    drawn = np.random.default_rng(seed).multinomial(len(values), counts / len(values), size=draws)
    low, high = np.quantile(drawn @ distinct / len(values), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
