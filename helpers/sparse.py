"""Learned sparse retrieval: a text becomes weights of words, most of them 0, and an inverted index finds them."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.sparse import csr_array, vstack
from torch import Tensor
from transformers import AutoModelForMaskedLM

from helpers.encoder import Encoder

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
