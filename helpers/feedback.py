"""Pseudo-relevance feedback: trust the first passages of a first search, and ask again with what they say."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from helpers.dataset import PassageIndex
from helpers.retrieval import BM25, Run


def rm3_run(
    name: str,
    queries: Mapping[str, str],
    passages: PassageIndex,
    k: int = 100,
    feedback_passages: int = 10,
    feedback_terms: int = 10,
    original: float = 0.5,
) -> Run:
    """Return BM25's run after RM3: the question's words, and those that its first passages have in common.

    A word weighs `original` × its share of the question + (1 − `original`) × its share of the best `feedback_terms`
    words of the first `feedback_passages`, where each passage counts by its BM25 score. With `original` = 1 it is BM25.

    Parameters
    ----------
    queries : question id -> text

    Sources: Lavrenko & Croft 2001, https://doi.org/10.1145/383952.383972 (the relevance model); Abdul-Jaleel et al.
    2004, UMass at TREC 2004 (its mixture with the question). The defaults are Anserini's.
    """
    bm25, texts = BM25(passages.texts), list(queries.values())
    rankings, scores = bm25.search(texts, feedback_passages)
    if bm25.index is None:  # not one word in the corpus
        return Run(name, list(queries), rankings, scores)
    needed = sorted({int(row) for ranking in rankings for row in ranking})
    shares = dict(zip(needed, word_shares(bm25, [passages.texts[row] for row in needed]), strict=True))
    found = []
    for asked, ranking, weights in zip(word_shares(bm25, texts), rankings, scores, strict=True):
        feedback: Counter[int] = Counter()
        for row, weight in zip(ranking, weights, strict=True):
            feedback.update({word: weight * share for word, share in shares[int(row)].items()})
        best = sorted(feedback.items(), key=lambda pair: (-pair[1], pair[0]))[:feedback_terms]
        total = sum(weight for _, weight in best)
        mixed = Counter({word: original * share for word, share in asked.items()})
        mixed.update({word: (1 - original) * weight / total for word, weight in best})
        found.append(weighted_search(bm25, mixed, k))
    return Run(name, list(queries), [rows for rows, _ in found], [scores for _, scores in found])


def word_shares(bm25: BM25, texts: Sequence[str]) -> list[dict[int, float]]:
    """Return, for each text, word number -> its share of the text's words that the index knows."""
    tokens = bm25._tokens(texts)
    words = {number: word for word, number in tokens.vocab.items()}
    counts = [Counter(bm25.index.vocab_dict.get(words[n], -1) for n in ids) for ids in tokens.ids]
    return [{word: count / max(1, c.total() - c[-1]) for word, count in c.items() if word >= 0} for c in counts]


def weighted_search(bm25: BM25, weights: Mapping[int, float], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return row numbers and scores of the first `k` passages for words that count by their weight."""
    stored, total = bm25.index.scores, np.zeros(bm25.size)  # a column a word: its score in each passage that has it
    for word, weight in weights.items():
        column = slice(*stored["indptr"][word : word + 2])
        total[stored["indices"][column]] += weight * stored["data"][column]
    rows = np.flatnonzero(total > 0)
    rows = rows[np.lexsort((rows, -total[rows]))][:k]
    return rows, total[rows]


def rocchio(
    query_vecs: np.ndarray,
    passage_vecs: np.ndarray,
    rankings: Sequence[Sequence[int]],
    feedback_passages: int = 3,
    original: float = 0.5,
) -> np.ndarray:
    """Return the question vectors moved towards the mean of their first passages, scaled to length 1, [Q, D].

    Rocchio 1971, without negative feedback; for dense retrievers Li et al. 2021, https://arxiv.org/abs/2108.11044.

    Parameters
    ----------
    query_vecs, passage_vecs : [Q, D] and [P, D]
    rankings : row numbers of each question's first passages, best first
    original : share of the question's own vector; 1: nothing moves
    """
    means = [passage_vecs[np.asarray(ranking[:feedback_passages], dtype=int)].mean(0) for ranking in rankings]
    moved = original * query_vecs + (1 - original) * np.array(means)
    return moved / np.linalg.norm(moved, axis=1, keepdims=True)
