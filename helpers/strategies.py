"""Ways to rank candidates for hard negatives: random, BM25, dense (ANCE), ReSa2, and mixtures of them.

A strategy is a function from (question ids, depth) to a `Ranked`; `helpers.negatives.mine_pool` does the rest.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from helpers.base.errors import SettingError, shorten
from helpers.dataset import PassageIndex, RetrievalData, positive_rows
from helpers.encoder import Encoder
from helpers.retrieval import BM25, dense_search

NAMES = ("random", "bm25", "dense", "resa2", "mixed")


class Ranked(NamedTuple):
    """Candidates of each question, best first, one array a question.

    `positives` holds, beside each candidate's score, the lowest score of the question's positives by the same
    measure, or NaN where the strategy does not score positives.
    """

    rows: Sequence[np.ndarray]
    scores: Sequence[np.ndarray]
    positives: Sequence[np.ndarray]


Strategy = Callable[[Sequence[str], int], Ranked]


def random_strategy(passages: PassageIndex, seed: int) -> Strategy:
    """Return the plain version that others are compared with: passages at random."""

    def rank(qids: Sequence[str], depth: int) -> Ranked:
        count = min(depth, len(passages))
        rows = [np.array(random.Random(f"{seed} {qid}").sample(range(len(passages)), count)) for qid in qids]
        return Ranked(rows, [np.zeros(count)] * len(rows), [np.full(count, np.nan)] * len(rows))

    return rank


def bm25_strategy(data: RetrievalData, passages: PassageIndex, k1: float = 1.5, b: float = 0.75) -> Strategy:
    """Return the strategy that ranks passages by shared words."""
    index = BM25(passages.texts, k1, b)

    def rank(qids: Sequence[str], depth: int) -> Ranked:
        rows, scores = index.search([data.queries[qid].text for qid in qids], depth)
        return Ranked(rows, scores, [np.full(len(found), np.nan) for found in rows])

    return rank


class PassageVectors:
    """The vectors of a corpus under an encoder, made anew whenever the encoder's weights have changed."""

    def __init__(self, encoder: Encoder, passages: PassageIndex):
        self.encoder, self.passages, self.made_with, self.vectors = encoder, passages, "", np.empty(0)

    def current(self) -> np.ndarray:
        """Return the vectors, [P, D]; never those of older weights."""
        weights = self.encoder.fingerprint()
        if weights != self.made_with:
            self.vectors = self.encoder.encode(self.passages.texts, "passage", progress="passages")
            self.made_with = weights
        return self.vectors


def dense_strategy(data: RetrievalData, passages: PassageIndex, encoder: Encoder | PassageVectors) -> Strategy:
    """Return the strategy that ranks passages by the encoder itself; strategies may share one `PassageVectors`.

    With the weights that are being trained this is ANCE (Xiong et al. 2021, https://arxiv.org/abs/2007.00808).
    """
    table = encoder if isinstance(encoder, PassageVectors) else PassageVectors(encoder, passages)

    def rank(qids: Sequence[str], depth: int) -> Ranked:
        vectors = table.current()
        query_vecs = table.encoder.encode([data.queries[qid].text for qid in qids], "query")
        rows, scores = dense_search(query_vecs, vectors, depth, device=table.encoder.device.type)
        lowest = [
            min((vectors[row] @ vec for row in positive_rows(data, passages, qid)), default=np.nan)
            for qid, vec in zip(qids, query_vecs, strict=True)
        ]
        return Ranked(list(rows), list(scores), [np.full(rows.shape[1], value) for value in lowest])

    rank.vectors = table  # for resa2, which ranks the same candidates once more
    return rank


def resa2_strategy(
    data: RetrievalData,
    passages: PassageIndex,
    encoder: Encoder | PassageVectors,
    seed: int,
    candidates: int = 200,
    temperature: float = 0.05,
) -> Strategy:
    """Return ReSa2 (Li et al., ACML 2025, https://proceedings.mlr.press/v304/li25d.html).

    Stage 1 retrieves `candidates` passages with the question's vector; stage 2 scores them by similarity to the
    positive's vector; then they are drawn without replacement, with probability ∝ exp(similarity / temperature).
    The weights are this course's choice, the paper's abstract leaves them open. Scores stay the question's.
    """
    dense = dense_strategy(data, passages, encoder)

    def rank(qids: Sequence[str], depth: int) -> Ranked:
        stage1, vectors = dense(qids, max(candidates, depth)), dense.vectors.current()
        rows, scores, positives = [], [], []
        for qid, found, values, lowest in zip(qids, *stage1, strict=True):
            own = positive_rows(data, passages, qid)
            similarity = (vectors[found] @ vectors[own].T).max(1) if own else values
            noise = np.random.default_rng([seed, *qid.encode()]).gumbel(size=len(found))
            order = np.argsort(-(similarity / temperature + noise), kind="stable")  # Gumbel: draws by softmax weight
            for column, part in zip((rows, scores, positives), (found, values, lowest), strict=True):
                column.append(part[order])
        return Ranked(rows, scores, positives)

    return rank


def mixed_strategy(strategies: Mapping[str, Strategy], weights: Mapping[str, float], seed: int) -> Strategy:
    """Return the strategy that draws each next candidate from one of `strategies`, by `weights`."""
    names = [name for name, weight in weights.items() if weight > 0]

    def rank(qids: Sequence[str], depth: int) -> Ranked:
        parts = {name: strategies[name](qids, depth) for name in names}
        mixed = Ranked([], [], [])
        for number, qid in enumerate(qids):
            rng, seen, taken = random.Random(f"{seed} mixed {qid}"), set(), []
            queues = {name: list(zip(*(column[number] for column in parts[name]), strict=True))[::-1] for name in names}
            while len(taken) < depth and (open_ := [name for name in names if queues[name]]):
                candidate = queues[rng.choices(open_, [weights[name] for name in open_])[0]].pop()
                if candidate[0] not in seen:
                    seen.add(candidate[0])
                    taken.append(candidate)
            columns = zip(*taken, strict=True) if taken else ((), (), ())
            for column, values in zip(mixed, columns, strict=True):
                column.append(np.array(values, dtype=int if column is mixed.rows else float))
        return mixed

    return rank


def make_strategy(
    name: str,
    data: RetrievalData,
    passages: PassageIndex,
    seed: int = 0,
    encoder: Encoder | PassageVectors | None = None,
    weights: Mapping[str, float] | None = None,
) -> Strategy:
    """Return the strategy called `name`, one of `NAMES`; "dense" and "resa2" need an encoder, "mixed" weights.

    Raises
    ------
    SettingError : unknown name, or what it needs is missing
    """
    if name not in NAMES:
        raise SettingError(f"strategy={shorten(name)}: use one of {', '.join(NAMES)}")
    if encoder is not None and not isinstance(encoder, PassageVectors):
        encoder = PassageVectors(encoder, passages)  # one table for all parts of a mixture
    if encoder is not None and encoder.passages is not passages:
        raise SettingError("the PassageVectors belong to other passages; make them for the ones that are mined")
    if name == "mixed":
        if not (isinstance(weights, Mapping) and all(map(_is_weight, weights.items())) and any(weights.values())):
            raise SettingError(f"weights={shorten(weights)}: give a number for some of {', '.join(NAMES[:-1])}")
        parts = {key: make_strategy(key, data, passages, seed, encoder) for key in weights if weights[key]}
        return mixed_strategy(parts, weights, seed)
    if name in ("dense", "resa2") and encoder is None:
        raise SettingError(f"strategy={name!r} ranks with an encoder; none was given")
    makers = {
        "random": lambda: random_strategy(passages, seed),
        "bm25": lambda: bm25_strategy(data, passages),
        "dense": lambda: dense_strategy(data, passages, encoder),
        "resa2": lambda: resa2_strategy(data, passages, encoder, seed),
    }
    return makers[name]()


def _is_weight(item: tuple[object, object]) -> bool:
    name, weight = item
    return name in NAMES[:-1] and isinstance(weight, int | float) and math.isfinite(weight) and weight >= 0
