"""What decides a training run besides model and rows, checked when it is made."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from helpers.batches import MASKS
from helpers.errors import SettingError, shorten


@dataclass(frozen=True)
class TrainingSettings:
    """Everything that decides a training run besides model and rows.

    Attributes
    ----------
    batch_size : questions whose passages are each other's negatives, on each device
    max_steps : stop after that many steps; 0: after `epochs`
    warmup_ratio : share of the steps over which the learning rate rises from 0
    clip_norm : largest allowed norm of the gradient
    eval_every : steps between two dev evaluations; 0: at the end of every epoch
    precision : "fp32", "bf16" or "fp16" (mixed; fp16 needs CUDA)
    in_batch : count the other rows' passages as negatives too
    masks : which kinds of false negative are masked, see `helpers.batches.candidate_mask`
    micro_batch : texts encoded at a time, see `helpers.gradients.add_gradient`; 0: all. Same gradient, less memory
    accumulate : batches whose gradients are averaged for one step. They do not share negatives
    patience : stop after that many evaluations without a better dev score; 0: never
    checkpoint_every : steps between two checkpoints; 0: at every evaluation
    keep_checkpoints : how many of the last checkpoints stay on disk
    workers : processes that make batches beside the training one
    """

    epochs: int = 5
    batch_size: int = 16
    max_steps: int = 0
    learning_rate: float = 2e-5
    weight_decay: float = 0.01
    warmup_ratio: float = 0.1
    clip_norm: float = 1.0
    temperature: float = 0.05
    eval_every: int = 0
    precision: str = "fp32"
    in_batch: bool = True
    masks: Sequence[str] = MASKS
    seed: int = 0
    micro_batch: int = 0
    accumulate: int = 1
    patience: int = 0
    checkpoint_every: int = 0
    keep_checkpoints: int = 2
    workers: int = 0

    def __post_init__(self):
        for name in ("epochs", "batch_size", "learning_rate", "clip_norm", "temperature", "accumulate",
                     "keep_checkpoints"):  # fmt: skip
            if getattr(self, name) <= 0:
                raise SettingError(f"{name}={getattr(self, name)}: a number above 0 is needed")
        for name in ("max_steps", "weight_decay", "warmup_ratio", "eval_every", "micro_batch", "patience",
                     "checkpoint_every", "workers"):  # fmt: skip
            if getattr(self, name) < 0:
                raise SettingError(f"{name}={getattr(self, name)}: it cannot be negative")
        if not (math.isfinite(self.learning_rate) and self.warmup_ratio <= 1):
            raise SettingError(f"learning_rate={self.learning_rate}, warmup_ratio={self.warmup_ratio}: the first must "
                               "be finite, the second a share between 0 and 1")  # fmt: skip
        if isinstance(self.masks, str) or not set(self.masks) <= set(MASKS):
            raise SettingError(f"masks={shorten(self.masks)}: use a list of some of {MASKS}")
        if self.precision not in ("fp32", "bf16", "fp16"):
            raise SettingError(f"precision={shorten(self.precision)}: use 'fp32', 'bf16' or 'fp16'")
        if self.precision == "fp16" and not torch.cuda.is_available():
            raise SettingError("precision='fp16' needs CUDA; use 'bf16' or 'fp32' here")
