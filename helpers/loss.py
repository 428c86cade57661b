"""InfoNCE: pull a question towards its positive, push it from its negatives.

van den Oord et al. 2018, https://arxiv.org/abs/1807.03748; for retrieval with in-batch negatives Karpukhin et
al. 2020, https://arxiv.org/abs/2004.04906.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def contrastive_loss_with_hard_negatives(
    q_vec: Tensor, pos_vec: Tensor, neg_vec_list: Sequence[Tensor], temperature: float = 0.05
) -> Tensor:
    """Return the mean cross-entropy of picking the positive among `[pos, neg_1, …]`; scalar.

    Parameters
    ----------
    q_vec, pos_vec : question and positive vectors, [B, D], normalised if similarity is to be the cosine
    neg_vec_list : N tensors [B, D]; row i of each is a negative of question i alone
    temperature : divides the similarities; small values sharpen the softmax

    >>> q = torch.eye(2)
    >>> round(contrastive_loss_with_hard_negatives(q, q, [q.flip(0)], temperature=1.0).item(), 4)  # ln(1 + 1/e)
    0.3133
    """
    candidates = torch.stack([pos_vec, *neg_vec_list], dim=1)  # [B, 1 + N, D]
    scores = torch.einsum("bd,bnd->bn", q_vec, candidates) / temperature
    return F.cross_entropy(scores, torch.zeros(len(q_vec), dtype=torch.long, device=scores.device))


def in_batch_loss(
    q_vec: Tensor,
    passage_vecs: Tensor,
    positive: Tensor,
    allowed: Tensor | None = None,
    temperature: float = 0.05,
) -> Tensor:
    """Return the mean cross-entropy of picking each question's positive among the batch's passages; scalar.

    Parameters
    ----------
    q_vec : [B, D]
    passage_vecs : every distinct passage of the batch, [P, D]
    positive : column of each question's positive, [B]
    allowed : [B, P], True where a passage is the positive or a true negative of the question; None: all
    temperature : divides the similarities

    Raises
    ------
    ValueError : a positive is masked out

    >>> q = torch.eye(2)
    >>> round(in_batch_loss(q, q, torch.tensor([0, 1]), temperature=1.0).item(), 4)  # the same two candidates
    0.3133
    """
    if allowed is not None and not allowed.gather(1, positive[:, None]).all():
        raise ValueError("allowed masks out the positive of a question: its loss would be infinite")
    return score_loss(q_vec.float() @ passage_vecs.float().T, positive, allowed, temperature)


def infonce(temperature: float = 0.05) -> Callable:
    """Return the loss that `helpers.training.train` minimises by default, from (similarities, batch) to a scalar."""
    return lambda scores, batch: score_loss(scores, batch.positive, batch.allowed, temperature)


def score_loss(scores: Tensor, positive: Tensor, allowed: Tensor | None = None, temperature: float = 0.05) -> Tensor:
    """Return the loss of `in_batch_loss` from the similarities themselves, [B, P], however they were computed.

    Nothing is checked, since a check would wait for the GPU: with a positive masked out the loss is infinite.
    """
    scores = scores / temperature
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    return F.cross_entropy(scores, positive)
