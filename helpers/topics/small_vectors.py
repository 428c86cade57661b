"""Smaller vectors. Matryoshka: trained so that the first numbers of a vector are a vector of their own.

Kusupati et al. 2022, https://arxiv.org/abs/2205.13147. Search with fewer numbers by `dimensions` of `load_encoder`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.base.errors import SettingError, shorten
from helpers.batches import Batch
from helpers.encoder import Encoder
from helpers.gradients import Loss


class MatryoshkaEncoder(Encoder):
    """An encoder whose vectors are compared at several lengths at once; it is saved and loads as a plain `Encoder`."""

    cuts: tuple[int, ...] = ()

    def set_cuts(self, cuts: Sequence[int]) -> None:
        """Train for vectors of these lengths besides the encoder's own.

        Raises a SettingError if a length is not a whole number below the encoder's own, or stands twice.
        """
        whole = all(isinstance(size, int) and 0 < size < self.dimension for size in cuts)
        if not whole or len(set(cuts)) < len(cuts):
            raise SettingError(
                f"matryoshka={shorten(cuts)}: give different whole numbers below the vectors' own {self.dimension}"
            )
        self.cuts = tuple(cuts)

    def similarity(self, q_vec: Tensor, passage_vecs: Tensor) -> Tensor:
        """Return the scores by all numbers of the vectors and by the first of each of `cuts`, [1 + cuts, B, P]."""
        return torch.stack(
            [
                super(MatryoshkaEncoder, self).similarity(self._cut(q_vec, size), self._cut(passage_vecs, size))
                for size in (self.dimension, *self.cuts)
            ]
        )

    def _cut(self, vectors: Tensor, size: int) -> Tensor:
        return vectors[:, :size] if self.profile.similarity == "dot" else F.normalize(vectors[:, :size], dim=-1)


def matryoshka_loss(loss: Loss) -> Loss:
    """Return the sum of a loss over the scores at every length, [1 + cuts, B, P]; encoding is not repeated."""

    def total(scores: Tensor, batch: Batch) -> Tensor:
        return torch.stack([loss(part, batch) for part in scores]).sum()

    return total
