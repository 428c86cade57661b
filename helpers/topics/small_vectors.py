"""Smaller vectors: fewer numbers, trained for that (Matryoshka), or a byte or a bit for each number.

Matryoshka: Kusupati et al. 2022, https://arxiv.org/abs/2205.13147; search with fewer numbers by `dimensions` of
`load_encoder`. Bits, and candidates scored again: Yamada et al. 2021, https://arxiv.org/abs/2106.00882.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.base.errors import SettingError, shorten
from helpers.base.nearest import best_k
from helpers.batches import Batch
from helpers.encoder import Encoder
from helpers.gradients import Loss

KINDS = ("int8", "binary")
MAX_SCORES = 2**25  # scores that are in memory at the same time, 128 MiB
BLOCK = 2**14  # passages whose int8 vectors become floats at a time


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


def to_int8(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Return vectors [N, D] as int8 and the factor of each, [N, 1] of float16, largest number 127 · factor."""
    scales = (vectors.abs().amax(1, keepdim=True) / 127).half()
    scales = scales.clamp(min=torch.finfo(torch.float16).smallest_normal)  # of a vector that is all but zero
    return (vectors / scales.float()).round().clamp(-127, 127).to(torch.int8), scales


def to_bits(vectors: np.ndarray) -> np.ndarray:
    """Return the signs of vectors [N, D] as bits, 1 above 0: uint64 [N, D / 64], or uint8 [N, ⌈D / 8⌉]."""
    bits = np.packbits(vectors > 0, axis=1)
    return bits.view(np.uint64) if bits.shape[1] % 8 == 0 else bits


class SmallIndex:
    """Vectors of a byte or a bit a number, searched by the vectors of questions.

    Parameters
    ----------
    vectors : of the passages, [P, D], as `Encoder.search_vectors` makes them. With `rescore="whole"` they are kept, and
        only candidates are read: a memory map (`np.load(…, mmap_mode="r")`) stays on disk
    kind : "int8": numbers as multiples of 1/127 of the largest in their vector. "binary": their signs, compared with
        those of the question by how many are equal
    candidates : how many passages are scored again; 0: none
    rescore : by what: "stored", the question's whole vector with the small ones, or "whole", with the passages' own

    Raises a SettingError if an argument is none of these.
    """

    def __init__(self, vectors: np.ndarray, kind: str = "int8", candidates: int = 0, rescore: str = "whole"):
        if kind not in KINDS or rescore not in ("stored", "whole") or candidates < 0:
            given = f"kind={shorten(kind)}, rescore={shorten(rescore)}, candidates={shorten(candidates)}"
            raise SettingError(
                f"{given}: kind is 'int8' or 'binary', rescore 'stored' or 'whole', candidates 0 or more"
            )
        self.kind, self.candidates, self.dimension = kind, candidates, vectors.shape[1]
        self.whole = vectors if candidates and rescore == "whole" else None
        if kind == "int8":
            self.values, self.scales = to_int8(torch.from_numpy(np.asarray(vectors)))
        else:
            self.values, self.scales = to_bits(vectors), None

    @property
    def nbytes(self) -> int:
        """Bytes that must lie in memory; whole vectors, read for candidates alone, are not among them."""
        return self.values.nbytes + (self.scales.nbytes if self.scales is not None else 0)

    def search_vectors(self, query_vecs: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return rows and scores of the `k` best passages for questions [Q, D], [Q, k] each; ties in corpus order.

        Scores are dot products where passages were scored again or are int8, else the share of equal signs.
        """
        together = max(1, MAX_SCORES // max(1, len(self.values)))
        found = []
        for start in range(0, len(query_vecs), together):
            part = query_vecs[start : start + together]
            rows, scores = (tensor.numpy() for tensor in best_k(self._scores(part), max(k, self.candidates)))
            again = (self._again(query, own, k) for query, own in zip(part, rows, strict=True))
            found += again if self.candidates else zip(rows, scores, strict=True)
        return tuple(np.stack(column) for column in zip(*found, strict=True))

    def _scores(self, query_vecs: np.ndarray) -> Tensor:
        """Return the scores of all passages by their small vectors, [Q, P]."""
        if self.kind == "int8":
            starts = range(0, len(self.values), BLOCK)
            blocks = [query_vecs @ self._floats(slice(start, start + BLOCK)).T for start in starts]
            return torch.from_numpy(np.concatenate(blocks, axis=1))
        different = [np.bitwise_count(self.values ^ bits).sum(1, dtype=np.int32) for bits in to_bits(query_vecs)]
        return 1 - torch.from_numpy(np.stack(different)) / self.dimension

    def _again(self, query: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the best `k` of a question's candidates, and their scores."""
        rows = np.sort(rows)  # so that ties are in corpus order
        vectors = self._floats(rows) if self.whole is None else self.whole[rows]
        order, scores = best_k(torch.from_numpy(vectors @ query)[None], k)
        return rows[order[0].numpy()], scores[0].numpy()

    def _floats(self, rows: slice | np.ndarray) -> np.ndarray:
        """Return stored vectors as float32, [N, D]: multiples of their factors, or +1 and −1."""
        if self.kind == "int8":
            return (self.values[rows].float() * self.scales[rows]).numpy()
        bits = np.unpackbits(self.values[rows].view(np.uint8), axis=1, count=self.dimension)
        return bits.astype(np.float32) * 2 - 1
