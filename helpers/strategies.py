"""Ways to rank candidates for hard negatives: random, those given, BM25, dense (ANCE), ReSa2, and mixtures of them.

A strategy is a function from (question ids, depth) to a `Ranked`; `helpers.negatives.mine_pool` does the rest.
"""

import math
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from helpers.base.errors import SettingError, shorten
from helpers.dataset import PassageIndex, RetrievalData, positive_rows
from helpers.encoder import Encoder
from helpers.retrieval import BM25, DenseIndex

NAMES = ("random", "given", "bm25", "dense", "resa2", "mixed")


class Ranked(NamedTuple):
    """Candidates of each question, best first: lists of arrays, one array per question.

    `positives` holds, beside each candidate's score, the lowest score of the question's positives by the same
    measure, or NaN where the strategy does not score positives.
    """

    rows: Sequence[np.ndarray]
    scores: Sequence[np.ndarray]
    positives: Sequence[np.ndarray]


Strategy = Callable[[Sequence[str], int], Ranked]


def random_strategy(passages: PassageIndex, seed: int) -> Strategy:
    """Return the baseline of all others: passages at random."""

    def rank(qids: Sequence[str], depth: int) -> Ranked:
        count = min(depth, len(passages))
        rows = [np.array(random.Random(f"{seed} {qid}").sample(range(len(passages)), count)) for qid in qids]
        return Ranked(rows, [np.zeros(count)] * len(rows), [np.full(count, np.nan)] * len(rows))

    return rank


def given_strategy(data: RetrievalData, passages: PassageIndex) -> Strategy:
    """Return the strategy that takes the negatives that came with each question, in their order, and no others."""
    if not data.candidates:
        raise SettingError("strategy='given': the data set has no candidates/train.tsv; use another strategy")

    def rank(qids: Sequence[str], depth: int) -> Ranked:
        here = ([row for pid in data.candidates.get(qid, ()) if (row := passages.row.find(pid)) >= 0] for qid in qids)
        rows = [np.array(own[:depth], dtype=int) for own in here]
        return Ranked(rows, [np.zeros(len(own)) for own in rows], [np.full(len(own), np.nan) for own in rows])

    return rank


def bm25_strategy(data: RetrievalData, passages: PassageIndex) -> Strategy:
    """Return the strategy that ranks passages by shared words."""
    index = BM25(passages.texts)

    def rank(qids: Sequence[str], depth: int) -> Ranked:
        rows, scores = index.search([data.queries[qid].text for qid in qids], depth)
        return Ranked(rows, scores, [np.full(len(found), np.nan) for found in rows])

    return rank


def dense_strategy(data: RetrievalData, passages: PassageIndex, index: Encoder | DenseIndex) -> Strategy:
    """Return the strategy that ranks passages by the encoder itself; several strategies may share one `DenseIndex`.

    With the weights that are being trained this is ANCE (Xiong et al. 2021, https://arxiv.org/abs/2007.00808). An index
    over shards (`helpers.topics.indexes`) will do where the vectors do not fit into memory.
    """
    index = _index_of(index, passages)

    def rank(qids: Sequence[str], depth: int) -> Ranked:
        query_vecs = index.encoder.search_vectors([data.queries[qid].text for qid in qids], "query")
        rows, scores = index.search_vectors(query_vecs, depth)
        vectors = index.vectors
        own = [vectors[positive_rows(data, passages, qid)] for qid in qids]
        questions = torch.from_numpy(query_vecs).to(vectors.device)
        lowest = [min((part @ vec).tolist(), default=np.nan) for part, vec in zip(own, questions, strict=True)]
        levels = [np.full(len(found), value) for found, value in zip(rows, lowest, strict=True)]
        return Ranked(list(rows), list(scores), levels)

    return rank


def resa2_strategy(
    data: RetrievalData,
    passages: PassageIndex,
    index: Encoder | DenseIndex,
    seed: int,
    candidates: int = 200,
    temperature: float = 0.05,
) -> Strategy:
    """Return ReSa2 (Li et al., ACML 2025, https://proceedings.mlr.press/v304/li25d.html).

    Stage 1 retrieves `candidates` passages with the question's vector; stage 2 scores them by similarity to the
    positive's vector; then they are drawn without replacement, with probability ∝ exp(similarity / temperature).
    The weights are this course's choice, the paper's abstract leaves them open. Scores stay the question's.
    """
    index = _index_of(index, passages)
    dense = dense_strategy(data, passages, index)

    def rank(qids: Sequence[str], depth: int) -> Ranked:
        stage1, vectors, drawn = dense(qids, max(candidates, depth)), index.vectors, Ranked([], [], [])
        for qid, *columns in zip(qids, *stage1, strict=True):
            found, own = columns[0], positive_rows(data, passages, qid)
            similarity = (vectors[found] @ vectors[own].T).amax(1).cpu().numpy() if own else columns[1]
            noise = np.random.default_rng([seed, *qid.encode()]).gumbel(size=len(found))
            order = np.argsort(-(similarity / temperature + noise), kind="stable")  # Gumbel: draws by softmax weight
            for column, values in zip(drawn, columns, strict=True):
                column.append(values[order])
        return drawn

    return rank


def _index_of(index: Encoder | DenseIndex, passages: PassageIndex) -> DenseIndex:
    if not hasattr(index, "check"):  # it is an encoder
        index = DenseIndex(index, passages.texts, "mining")
    index.check(passages)
    return index


def mixed_strategy(strategies: Mapping[str, Strategy], weights: Mapping[str, float], seed: int) -> Strategy:
    """Return the strategy that draws each next candidate from one of `strategies`, by `weights`."""
    names = [name for name, weight in weights.items() if weight > 0]

    def rank(qids: Sequence[str], depth: int) -> Ranked:
        parts = {name: strategies[name](qids, depth) for name in names}
        mixed = Ranked([], [], [])
        for number, qid in enumerate(qids):
            rng, taken = random.Random(f"{seed} mixed {qid}"), {}
            queues = {name: deque(zip(*(column[number] for column in parts[name]), strict=True)) for name in names}
            while len(taken) < depth and any(queues.values()):
                left = [name for name in names if queues[name]]
                (name,) = rng.choices(left, [weights[name] for name in left])
                row, *values = queues[name].popleft()
                taken.setdefault(row, values)
            mixed.rows.append(np.array(list(taken), dtype=int))
            scores = np.array(list(taken.values()), dtype=float).reshape(-1, 2)
            mixed.scores.append(scores[:, 0])
            mixed.positives.append(scores[:, 1])
        return mixed

    return rank


def make_strategy(
    name: str,
    data: RetrievalData,
    passages: PassageIndex,
    seed: int = 0,
    encoder: Encoder | DenseIndex | None = None,
    weights: Mapping[str, float] | None = None,
) -> Strategy:
    """Return the strategy called `name`, one of `NAMES`; "dense" and "resa2" need an encoder, "mixed" weights.

    Raises
    ------
    SettingError : unknown name, or what it needs is missing
    """
    if name not in NAMES:
        raise SettingError(f"strategy={shorten(name)}: use one of {', '.join(NAMES)}")
    names = _weighted(weights) if name == "mixed" else [name]
    if encoder is not None:
        encoder = _index_of(encoder, passages)  # one for all parts of a mixture
    elif needy := [part for part in names if part in ("dense", "resa2")]:
        raise SettingError(f"strategy={needy[0]!r} ranks with an encoder; none was given")
    makers = {
        "random": lambda: random_strategy(passages, seed),
        "given": lambda: given_strategy(data, passages),
        "bm25": lambda: bm25_strategy(data, passages),
        "dense": lambda: dense_strategy(data, passages, encoder),
        "resa2": lambda: resa2_strategy(data, passages, encoder, seed),
    }
    parts = {part: makers[part]() for part in names}
    return mixed_strategy(parts, weights, seed) if name == "mixed" else parts[name]


def _weighted(weights: Mapping[str, float] | None) -> list[str]:
    """Return the names with a weight above 0."""
    numbers = list(weights.values()) if isinstance(weights, Mapping) and {*weights} <= {*NAMES[:-1]} else []
    if not (all(isinstance(number, int | float) and 0 <= number < math.inf for number in numbers) and any(numbers)):
        raise SettingError(f"weights={shorten(weights)}: give a number for some of {', '.join(NAMES[:-1])}")
    return [name for name, weight in weights.items() if weight]
