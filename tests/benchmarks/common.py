"""What the measurement scripts have in common."""

import itertools
import json
import os
import statistics
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from helpers.encoder import Encoder

CUTOFFS = (1, 10, 100)


def keep_last_weights() -> Callable[[Encoder], float]:
    """Return a dev score that grows with every call, so that no choice of a checkpoint blurs a comparison."""
    number = itertools.count()
    return lambda _encoder: float(next(number))


def without_attention_dropout(encoder: Encoder) -> Encoder:
    """Turn off dropout on attention, in place: on a CPU it prevents the fast kernel and halves the speed."""
    for name, module in encoder.named_modules():
        if name.endswith("attention.self.dropout"):
            module.p = 0.0
    return encoder


def finite_ranks(ranks: np.ndarray) -> list[int]:
    """Return the ranks of first hits as JSON holds them: 0 means that there was none."""
    return [int(rank) if np.isfinite(rank) else 0 for rank in ranks]


def read_ranks(path: Path) -> np.ndarray:
    """Return the ranks that `finite_ranks` made and a file holds in its field "ranks", [Q]."""
    return np.array([rank or np.inf for rank in json.loads(path.read_text(encoding="utf-8"))["ranks"]])


def slug(name: str) -> str:
    """Return a name as part of a file's name."""
    return name.replace(",", "").replace(" = ", "").replace(" ", "-")


def last_loss(history: list[dict]) -> float:
    """Return the mean loss of the last 20 steps."""
    return float(np.mean([entry["loss"] for entry in history[-20:] if "loss" in entry]))


def settings_of(options: Namespace, *without: str) -> dict:
    """Return the options of a script as they belong into its results."""
    return {name: value for name, value in vars(options).items() if name not in without}


def spread(rival: list[float], own: list[float]) -> dict[str, float]:
    """Return the median, least and largest ratio of two lists of times; above 1: ours is faster."""
    ratios = [other / mine for other, mine in zip(rival, own, strict=True)]
    return {"ratio_median": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios)}


def machine() -> str:
    """Return on what a measurement ran."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} of {os.cpu_count()} CPU cores, no GPU"
