"""Hybrid retrieval: several rankings become one, by rank or by score; and SPLADE, a learned sparse retriever."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.sparse import csr_array, vstack
from torch import Tensor
from transformers import AutoModelForMaskedLM

from helpers.base.errors import DataError, SettingError, shorten
from helpers.base.nearest import best_k
from helpers.encoder import Encoder
from helpers.retrieval import Run

WINDOW = 512  # texts whose weights are in memory with all their zeros
BATCH_TOKENS = 1024  # tokens encoded together: each has a logit for every word
MAX_SCORES = 2**24  # scores that are in memory at the same time


def min_max(scores: np.ndarray) -> np.ndarray:
    """Return one question's scores scaled to 0 … 1, [N]; all 0 if they are equal, for then they prefer no passage.

    >>> min_max(np.array([12.0, 9.0, 4.0])).tolist()
    [1.0, 0.625, 0.0]
    """
    spread = scores.max() - scores.min() if len(scores) else 0
    return (scores - scores.min()) / spread if spread > 0 else np.zeros(len(scores))


def fuse(name: str, runs: Sequence[Run], weights: Sequence[float], value: Callable, k: int = 100) -> Run:
    """Return the run that ranks passages by the weighted sum of their values; equal sums in corpus order.

    Parameters
    ----------
    runs : rankings of the same questions, in the same order, over the same passages
    weights : one per run
    value : function from the scores of a ranking, best first, [N], to the values of its passages, [N]; a passage that
        is missing from a run has the value 0 there

    Raises a DataError if the questions are not the same, or if a score is NaN or infinite.
    """
    if len(weights) != len(runs):
        raise SettingError(f"{len(weights)} weights for {len(runs)} runs; give one weight per run")
    for run in runs:
        run.check()
        if run.qids != runs[0].qids:
            alone = shorten(sorted(set(run.qids) ^ set(runs[0].qids))[:3])
            what = f"{run.name} and {runs[0].name} rank different questions, or in another order"
            raise DataError(f"{what} (only one has {alone}); make both for the same split")
    fused = Run(name, list(runs[0].qids), [], [])
    for number in range(len(fused.qids)):
        rows, place = np.unique(np.concatenate([run.rankings[number] for run in runs]), return_inverse=True)
        values = [weight * value(run.scores[number]) for run, weight in zip(runs, weights, strict=True)]
        total = np.bincount(place, np.concatenate(values), minlength=len(rows))
        best = np.argsort(-total, kind="stable")[:k]
        fused.rankings.append(rows[best].astype(int))
        fused.scores.append(total[best])
    return fused


def rrf(name: str, runs: Sequence[Run], k: int = 100, constant: int = 60) -> Run:
    """Return the runs fused by reciprocal ranks: Σ 1 / (constant + rank), ranks from 1. No scores are needed.

    Cormack et al. 2009, https://doi.org/10.1145/1571941.1572114, who chose 60.
    """
    return fuse(name, runs, [1.0] * len(runs), lambda scores: 1 / (constant + np.arange(1, len(scores) + 1)), k)


def weighted(name: str, dense: Run, sparse: Run, alpha: float, k: int = 100) -> Run:
    """Return alpha · dense + (1 − alpha) · sparse, after each question's scores are scaled to 0 … 1 by `min_max`.

    A passage missing from one list counts there like that list's last. Tune `alpha` on dev.
    """
    if not 0 <= alpha <= 1:
        raise SettingError(f"alpha={alpha}: a number from 0 (sparse alone) to 1 (dense alone) is needed")
    return fuse(name, [dense, sparse], [alpha, 1 - alpha], min_max, k)


class SpladeEncoder(Encoder):
    """A masked language model that gives each word of its vocabulary a weight, also words that the text lacks.

    SPLADE, Formal et al. 2021, https://arxiv.org/abs/2109.10086: max over the tokens of log(1 + ReLU(logit)).
    """

    kind = "splade"
    auto_class = AutoModelForMaskedLM

    @property
    def dimension(self) -> int:
        """How many words the vocabulary has, V."""
        return self.model.config.vocab_size

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the weights of each text, [B, V]."""
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask).logits  # [B, L, V]
        highest = (logits * attention_mask[:, :, None]).amax(1)  # ReLU and log only grow: the maximum may come first
        return highest.relu().log1p()

    def export(self, folder, metadata) -> None:
        """Write nothing more: with sentence-transformers' files it would load there as a dense model."""


def encode_sparse(encoder: SpladeEncoder, texts: Sequence[str], kind: str) -> csr_array:
    """Return the weights of `texts` without their zeros, [N, V]."""
    parts = encoder.encode_windows(texts, kind, WINDOW, BATCH_TOKENS, f"words ({kind})")
    return vstack([csr_array(part) for part in parts], "csr")


def sparse_search(query_weights: csr_array, index: csr_array, k: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return row numbers and scores (Σ of the products of weights) of the best `k` passages above 0, per question.

    `query_weights` are [Q, V]; `index` is the inverted index [V, P], `passage_weights.T.tocsr()`: for each word, the
    passages that have it. Only the lists of a question's words are read.
    """
    rankings, scores = [], []
    chunk = max(1, MAX_SCORES // index.shape[1])
    for start in range(0, query_weights.shape[0], chunk):
        values = torch.from_numpy((query_weights[start : start + chunk] @ index).toarray())
        columns, best = best_k(values, k)
        for rows, found in zip(columns.numpy(), best.numpy(), strict=True):
            rankings.append(rows[found > 0])
            scores.append(found[found > 0])
    return rankings, scores
