"""Several data sets in one training: every batch holds one of them, and each gets a share of the batches.

Batches of one data set keep the in-batch negatives hard: passages of another task or language are told apart at a
glance. GTE was trained so, with shares by size to the power of 0.5: Li et al. 2023, https://arxiv.org/abs/2308.03281.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate

import torch

from helpers.base.errors import SettingError
from helpers.batches import Batch, Row, TrainingRows
from helpers.encoder import Encoder


class MixedRows(torch.utils.data.Dataset):
    """The training rows of several data sets, for `helpers.training.Task` in place of those of one.

    Parameters
    ----------
    parts : name of a data set -> its rows
    power : a data set gets a share of the batches in proportion to its rows to this power. 1: every row is seen equally
        often; 0: every data set is. An epoch has as many batches as the data sets have together

    Raises
    ------
    SettingError : there is no data set, or power is not between 0 and 1
    """

    def __init__(self, parts: Mapping[str, TrainingRows], power: float = 1.0):
        if not parts or not 0 <= power <= 1:
            raise SettingError(f"{len(parts)} data sets, power={power}: give one or more, and a power from 0 to 1")
        self.parts, self.power, self.names = dict(parts), power, list(parts)
        self.starts = [0, *accumulate(len(rows) for rows in self.parts.values())]  # of the numbers of their rows

    @property
    def epoch(self) -> int:
        """The pass over the data, from which each row's negatives follow."""
        return next(iter(self.parts.values())).epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        for rows in self.parts.values():
            rows.epoch = epoch

    @property
    def hard_negatives(self) -> list[int]:
        """How many hard negatives a row of each data set samples."""
        return [rows.hard_negatives for rows in self.parts.values()]

    @property
    def pool(self) -> None:
        """There is none to exchange while training goes on."""
        raise SettingError("the pools of several data sets cannot be refreshed; train on one of them at a time")

    def fingerprint(self) -> str:
        """Return a short sha256 of all rows and of how they are mixed."""
        made_from = self.power, [(name, rows.fingerprint()) for name, rows in self.parts.items()]
        return hashlib.sha256(repr(made_from).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, number: int) -> tuple[str, Row]:
        """Return the data set of row `number`, and the row with the negatives sampled for this epoch."""
        place = bisect_right(self.starts, number) - 1
        name = self.names[place]
        return name, self.parts[name][number - self.starts[place]]

    def batches(self, size: int, generator: torch.Generator) -> list[list[int]]:
        """Return the batches of an epoch, each of one data set, in a random order.

        A data set whose share is above its rows comes again, in another order; of one whose share is below, a random
        part comes. Raises a SettingError if a data set does not fill a batch.
        """
        for name, rows in self.parts.items():
            if len(rows) < size:
                raise SettingError(
                    f"{name} has {len(rows)} training rows, a batch holds {size}; lower batch_size, or leave it out"
                )
        drawn = []
        for rows, count, start in zip(self.parts.values(), self.counts(size), self.starts, strict=False):
            own: list[list[int]] = []
            while len(own) < count:
                own += rows.batches(size, generator)
            drawn += [[start + number for number in batch] for batch in own[:count]]
        return [drawn[number] for number in torch.randperm(len(drawn), generator=generator).tolist()]

    def counts(self, size: int) -> list[int]:
        """Return how many batches of an epoch each data set gets, at least one; remainders go to the largest ones."""
        rows = [len(part) for part in self.parts.values()]
        total = sum(count // size for count in rows)
        weights = [count**self.power for count in rows]
        wanted = [total * weight / sum(weights) for weight in weights]
        counts = [max(1, int(share)) for share in wanted]
        behind = sorted(range(len(rows)), key=lambda place: counts[place] - wanted[place])
        for place in behind[: max(0, total - sum(counts))]:
            counts[place] += 1
        return counts

    def collate(self, rows: Sequence[tuple[str, Row]], encoder: Encoder, in_batch: bool, masks: Sequence[str]) -> Batch:
        """Return the tensors of rows of one data set; see `helpers.batches.make_batch`."""
        (name,) = {name for name, _ in rows}
        return self.parts[name].collate([row for _, row in rows], encoder, in_batch, masks)


def mixed_scorer(scorers: Mapping[str, Callable[[Encoder], Mapping[str, float]]]) -> Callable:
    """Return the function from an encoder to its mean "dev" over several data sets, and to the dev of each.

    `scorers` are those of `helpers.evaluation.dev_scorer`, by the name of their data set.
    """

    def score(encoder: Encoder) -> dict[str, float]:
        found = {name: own(encoder)["dev"] for name, own in scorers.items()}
        return {"dev": sum(found.values()) / len(found)} | {f"dev {name}": value for name, value in found.items()}

    return score
