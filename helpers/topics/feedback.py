"""Pseudo-relevance feedback: trust the first passages of a first search, and ask again with what they say."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from helpers.dataset import PassageIndex
from helpers.encoder import Encoder
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
    bm25 = BM25(passages.texts)
    if bm25.index is None:  # not one word in the corpus
        return Run(name, list(queries), *bm25.search(list(queries.values()), k))
    found = []
    for counts in word_counts(bm25, list(queries.values())):
        rows, scores = _best(word_scores(bm25, counts), feedback_passages)
        feedback: Counter[int] = Counter()
        for score, words in zip(scores, word_counts(bm25, [passages.texts[row] for row in rows]), strict=True):
            feedback.update({word: score * count / words.total() for word, count in words.items()})
        best = sorted(feedback.items(), key=lambda pair: (-pair[1], pair[0]))[:feedback_terms]
        total = sum(weight for _, weight in best)
        mixed = Counter({word: original * count / counts.total() for word, count in counts.items()})
        mixed.update({word: (1 - original) * weight / total for word, weight in best})
        found.append(_best(word_scores(bm25, mixed), k))
    return Run(name, list(queries), [rows for rows, _ in found], [scores for _, scores in found])


def word_counts(bm25: BM25, texts: Sequence[str]) -> list[Counter[int]]:
    """Return, for each text, the numbers of those of its words that the index knows, and how often it has them."""
    if bm25.index is None:  # not one word in the corpus
        return [Counter() for _ in texts]
    tokens = bm25.tokens(texts)  # as the index was made
    known = {number: bm25.index.vocab_dict.get(word) for word, number in tokens.vocab.items()}
    return [Counter(known[number] for number in ids if known[number] is not None) for ids in tokens.ids]


def word_scores(bm25: BM25, weights: Mapping[int, float]) -> np.ndarray:
    """Return BM25's score of every passage, [P], for words that count by their weight; 1 for each is BM25 itself."""
    total = np.zeros(bm25.size, dtype=np.float32)
    stored = bm25.index.scores if bm25.index else {}  # without an index no word is known
    for word, weight in weights.items():
        column = slice(*stored["indptr"][word : word + 2])  # the score of this word in each passage that has it
        total[stored["indices"][column]] += weight * stored["data"][column]
    return total


def _best(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    rows = np.flatnonzero(scores > 0)
    rows = rows[np.lexsort((rows, -scores[rows]))][:k]
    return rows, scores[rows]


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
    return (moved / np.linalg.norm(moved, axis=1, keepdims=True)).astype(query_vecs.dtype)


def mean_vectors(encoder: Encoder, questions: Sequence[str], texts: Sequence[Sequence[str]]) -> np.ndarray:
    """Return the mean of each question's vector and its texts' vectors, scaled to length 1, [Q, D].

    A hypothetical passage should land where real passages lie, so it is encoded as one, passage prefix and all. A
    question without a text keeps its own vector.
    """
    vectors = encoder.encode(questions, "query")
    owners = np.repeat(np.arange(len(questions)), [len(own) for own in texts])
    if len(owners):
        np.add.at(vectors, owners, encoder.encode([text for own in texts for text in own], "passage"))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
