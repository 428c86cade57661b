"""Pseudo-relevance feedback: trust the first passages of a search, and search again with what they say."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from helpers.dataset import PassageIndex
from helpers.encoder import Encoder
from helpers.retrieval import BM25, Run


@dataclass(frozen=True)
class Feedback:
    """How RM3 uses the first search: the words of its first `passages`, the best `terms` of them.

    The question keeps the share `original`; 1 means no feedback. The defaults are Anserini's.
    """

    passages: int = 10
    terms: int = 10
    original: float = 0.5


def rm3_run(
    name: str, queries: Mapping[str, str], passages: PassageIndex, k: int = 100, feedback: Feedback | None = None
) -> Run:
    """Return BM25's run after RM3: the question's words, and those that its first passages have in common.

    A word weighs `original` × its share of the question + (1 − `original`) × its share of the best words of the first
    passages, where each passage counts by its BM25 score. `queries` maps question id to text. Lavrenko & Croft 2001,
    https://doi.org/10.1145/383952.383972 (the relevance model); Abdul-Jaleel et al. 2004, UMass at TREC 2004 (its
    mixture with the question).
    """
    feedback, bm25 = feedback or Feedback(), BM25(passages.texts)
    run = Run(name, list(queries), [], [])
    for counts in word_counts(bm25, list(queries.values())):
        rows, scores = _best(word_scores(bm25, counts), feedback.passages)
        found: Counter[int] = Counter()
        for score, words in zip(scores, word_counts(bm25, [passages.texts[row] for row in rows]), strict=True):
            found.update({word: score * count / words.total() for word, count in words.items()})
        best = sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))[: feedback.terms]
        total = sum(weight for _, weight in best)
        mixed = Counter({word: feedback.original * count / counts.total() for word, count in counts.items()})
        mixed.update({word: (1 - feedback.original) * weight / total for word, weight in best})
        rows, scores = _best(word_scores(bm25, mixed), k)
        run.rankings.append(rows)
        run.scores.append(scores)
    return run


def word_counts(bm25: BM25, texts: Sequence[str]) -> list[Counter[int]]:
    """Return, for each text, the numbers of those of its words that the index knows, and how often it has them."""
    tokens = bm25.tokens(texts)  # by the same rules as the index
    words = bm25.index.vocab_dict if bm25.index else {}  # there is no index if the corpus has no word
    known = {number: words.get(word) for word, number in tokens.vocab.items()}
    return [Counter(known[number] for number in ids if known[number] is not None) for ids in tokens.ids]


def word_scores(bm25: BM25, weights: Mapping[int, float]) -> np.ndarray:
    """Return BM25's score of every passage, [P], for words that count by their weight; a weight of 1 is BM25 itself."""
    total = np.zeros(bm25.size, dtype=np.float32)
    stored = bm25.index.scores if bm25.index else {}
    for word, weight in weights.items():
        column = slice(*stored["indptr"][word : word + 2])  # the score of this word in each passage that has it
        total[stored["indices"][column]] += weight * stored["data"][column]
    return total


def _best(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    rows = np.argsort(-scores, kind="stable")[:k]
    rows = rows[scores[rows] > 0]
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
    Vectors are [Q, D] and [P, D], `rankings` the rows of each question's first passages, best first, and `original` is
    the share of the question's own vector.
    """
    means = [passage_vecs[np.asarray(ranking[:feedback_passages], dtype=int)].mean(0) for ranking in rankings]
    moved = original * query_vecs + (1 - original) * np.array(means)
    return (moved / np.linalg.norm(moved, axis=1, keepdims=True)).astype(query_vecs.dtype)


def mean_vectors(encoder: Encoder, questions: Sequence[str], texts: Sequence[Sequence[str]]) -> np.ndarray:
    """Return the mean of each question's vector and its texts' vectors, scaled to length 1, [Q, D].

    A hypothetical passage should land where real passages are, so it is encoded as one, with the passage prefix. A
    question without a text keeps its own vector.
    """
    vectors = encoder.search_vectors(questions, "query")
    owners = np.repeat(np.arange(len(questions)), [len(own) for own in texts])
    if len(owners):
        np.add.at(vectors, owners, encoder.search_vectors([text for own in texts for text in own], "passage"))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
