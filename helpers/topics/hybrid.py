"""Hybrid retrieval: several rankings of the same passages become one; and SPLADE, which learns weights of words."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.sparse import csr_array, vstack
from torch import Tensor
from transformers import AutoModelForMaskedLM

from helpers.base.errors import DataError, SettingError, shorten
from helpers.encoder import Encoder
from helpers.retrieval import Run


def min_max(scores: np.ndarray) -> np.ndarray:
    """Return one question's scores scaled to 0 … 1, [N]; all 0 if they are equal, for they prefer no passage.

    >>> min_max(np.array([12.0, 9.0, 4.0])).tolist()
    [1.0, 0.625, 0.0]
    """
    spread = scores.max() - scores.min() if len(scores) else 0
    return (scores - scores.min()) / spread if spread > 0 else np.zeros(len(scores))


def fuse(name: str, runs: Sequence[Run], weights: Sequence[float], value: Callable, k: int = 100) -> Run:
    """Return the run of the weighted sums of what passages are worth, 0 where a run lacks one; ties in corpus order.

    Parameters
    ----------
    runs : rankings of the same questions, in the same order, over the same passages
    weights : one a run
    value : from the scores of a ranking, best first, [N], to what its passages are worth, [N]

    Raises
    ------
    DataError : the runs do not rank the same questions
    SettingError : there are not as many weights as runs
    """
    if len(weights) != len(runs):
        raise SettingError(f"{len(weights)} weights for {len(runs)} runs; give each run one")
    for run in runs[1:]:
        if run.qids != runs[0].qids:
            others = sorted(set(run.qids) ^ set(runs[0].qids))
            raise DataError(f"{run.name} and {runs[0].name} rank different questions, or in another order "
                            f"(only one has {shorten(others[:3])}); make both for the same split")  # fmt: skip
    rankings, totals = [], []
    for number in range(len(runs[0].qids)):
        rows, place = np.unique(np.concatenate([run.rankings[number] for run in runs]), return_inverse=True)
        worth = [weight * value(run.scores[number]) for run, weight in zip(runs, weights, strict=True)]
        total = np.bincount(place, np.concatenate(worth), minlength=len(rows))
        best = np.argsort(-total, kind="stable")[:k]
        rankings.append(rows[best].astype(int))
        totals.append(total[best])
    return Run(name, list(runs[0].qids), rankings, totals)


def rrf(name: str, runs: Sequence[Run], k: int = 100, constant: int = 60) -> Run:
    """Return the runs fused by reciprocal ranks: Σ 1 / (constant + rank), ranks from 1. No scores are needed.

    Cormack et al. 2009, https://doi.org/10.1145/1571941.1572114; they chose 60, and so does everybody since.
    """
    return fuse(name, runs, [1.0] * len(runs), lambda scores: 1 / (constant + np.arange(1, len(scores) + 1)), k)


def weighted(name: str, dense: Run, sparse: Run, alpha: float, k: int = 100) -> Run:
    """Return alpha · dense + (1 − alpha) · sparse, each question's scores scaled to 0 … 1 by `min_max` before.

    A passage missing from one list counts there like that list's last. Tune `alpha` on dev.

    Raises
    ------
    SettingError : `alpha` is not between 0 and 1
    """
    if not 0 <= alpha <= 1:
        raise SettingError(f"alpha={alpha}: a number from 0 (sparse alone) to 1 (dense alone) is needed")
    return fuse(name, [dense, sparse], [alpha, 1 - alpha], min_max, k)


WINDOW = 512  # texts whose weights lie in memory with all their zeros
BATCH_TOKENS = 1024  # that are encoded together: each has a logit for every word
MAX_SCORES = 2**24  # scores that do, in a search


class SpladeEncoder(Encoder):
    """A masked language model that gives each word of its vocabulary a weight, words that the text lacks included.

    SPLADE, Formal et al. 2021, https://arxiv.org/abs/2109.10086: max over the tokens of log(1 + ReLU(logit)).
    """

    kind = "splade"
    auto_class = AutoModelForMaskedLM

    @property
    def shape(self) -> tuple[int, ...]:
        """Words of the vocabulary."""
        return (self.model.config.vocab_size,)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the weights of each text, [B, V]."""
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask).logits  # [B, L, V]
        return (
            (logits * attention_mask[:, :, None]).amax(1).relu().log1p()
        )  # both only grow: the maximum may come first

    def export(self, folder, metadata) -> None:
        """Write nothing more: in sentence-transformers' files it would be a dense model, which it is not."""


def encode_sparse(encoder: SpladeEncoder, texts: Sequence[str], kind: str) -> csr_array:
    """Return the weights of `texts` without their zeros, [N, V]."""
    parts = encoder.encode_windows(texts, kind, WINDOW, BATCH_TOKENS, f"words ({kind})")
    return vstack(list(map(csr_array, parts)), "csr")


def sparse_search(query_weights: csr_array, index: csr_array, k: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return row numbers and scores (Σ of the products of weights) of the best `k` passages above 0, per question.

    Parameters
    ----------
    query_weights : [Q, V]
    index : the inverted index [V, P], `passage_weights.T.tocsr()`: for each word, the passages that have it. Only the
        lists of a question's words are read
    """
    rankings, scores = [], []
    chunk = max(1, MAX_SCORES // index.shape[1])
    for start in range(0, query_weights.shape[0], chunk):
        best = torch.from_numpy((query_weights[start : start + chunk] @ index).toarray()).topk(min(k, index.shape[1]))
        for values, rows in zip(best.values.numpy(), best.indices.numpy(), strict=True):
            rankings.append(rows[values > 0])
            scores.append(values[values > 0])
    return rankings, scores
