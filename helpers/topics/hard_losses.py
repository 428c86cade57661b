"""Losses that look at how hard a negative is: a guide model hides the false ones, weights prefer the hard ones.

GISTEmbed, Solatorio 2024, https://arxiv.org/abs/2402.16829; hard-negative weights, Robinson et al. 2021,
https://arxiv.org/abs/2010.04592. Both take the place of InfoNCE in a `helpers.training.Task`.
"""

import math

from torch import Tensor

from helpers.base.errors import SettingError
from helpers.batches import Batch
from helpers.gradients import Loss
from helpers.loss import score_loss
from helpers.topics.distillation import Teacher


def guided_mask(guide: Tensor, positive: Tensor, allowed: Tensor) -> Tensor:
    """Return `allowed` without the passages that a guide takes for positives, [B, P] of bool.

    A negative is hidden from a question if the guide scores it above the positive. Where the guide knows nothing (NaN),
    nothing is hidden; the positive itself never is.

    Parameters
    ----------
    guide : the guide's similarities of all pairs of the batch, [B, P]
    positive : column of each question's positive, [B]

    >>> import torch
    >>> guide = torch.tensor([[0.7, 0.8, 0.2]])
    >>> guided_mask(guide, torch.tensor([0]), torch.tensor([[True, True, True]])).tolist()
    [[True, False, True]]
    """
    limit = guide.gather(1, positive[:, None])  # [B, 1]
    return allowed & ~(guide > limit)


def guided_loss(guide: Teacher, temperature: float = 0.05) -> Loss:
    """Return InfoNCE over the negatives that a guide does not take for positives; see `guided_mask`.

    Parameters
    ----------
    guide : asked for its similarities of all pairs of a batch, such as `dense_teacher(…, temperature=1.0)`
    """

    def loss(scores: Tensor, batch: Batch) -> Tensor:
        known = guide(batch.qids, batch.columns).to(scores.device)
        allowed = guided_mask(known, batch.positive, batch.allowed)
        return score_loss(scores, batch.positive, allowed, temperature)

    return loss


def hardness_weighted_loss(beta: float = 1.0, temperature: float = 0.05) -> Loss:
    """Return InfoNCE whose N negatives weigh N · exp(β s/τ) / Σ exp(β s/τ) in the sum of its denominator.

    The harder a negative is for the model of the moment, the more it weighs; the weights sum to N and are constants to
    the gradient. β = 0 is InfoNCE.

    Raises a SettingError unless `beta` is a number that is not negative.
    """
    if not 0 <= beta < math.inf:
        raise SettingError(f"beta={beta}: use 0, which weighs all negatives alike, or more")

    def loss(scores: Tensor, batch: Batch) -> Tensor:
        negative = batch.allowed.scatter(1, batch.positive[:, None], False)
        hard = (beta / temperature * scores.detach()).masked_fill(~negative, float("-inf"))
        log_weight = hard - hard.logsumexp(1, keepdim=True) + negative.sum(1, keepdim=True).log()
        weighted = scores + temperature * log_weight.masked_fill(~negative, 0.0)
        return score_loss(weighted, batch.positive, batch.allowed, temperature)

    return loss
