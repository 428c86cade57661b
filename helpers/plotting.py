"""The course's plots: white background, marker + line style + colour, values readable in grey."""

from collections.abc import Sequence
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from helpers.evaluation import bootstrap_interval, hit_at_k

# Okabe & Ito's colours, which colour-blind people can tell apart; never the only difference
STYLES = [("#0072B2", "o", "-"), ("#D55E00", "s", "--"), ("#009E73", "^", "-."), ("#CC79A7", "D", ":"),
          ("#E69F00", "v", "-"), ("#56B4E9", "P", "--"), ("#000000", "X", "-.")]  # fmt: skip


def new_axes(width: float = 6.4, height: float = 3.6) -> Axes:
    """Return the axes of a new figure, in inches, that reads well in a dark JupyterLab too."""
    _, axes = plt.subplots(figsize=(width, height), facecolor="white", layout="constrained")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def plot_hit_curve(ranks: dict[str, np.ndarray], axes: Axes | None = None, max_k: int = 100) -> Axes:
    """Draw Hit@K against K (log scale) with 95% bootstrap bands; `ranks` maps a system to first hits, [Q]."""
    axes = axes or new_axes(6.8, 4.2)
    marked = [k for k in (1, 2, 5, 10, 20, 50, 100) if k <= max_k]
    for (name, values), (colour, marker, line) in zip(ranks.items(), cycle(STYLES), strict=False):
        hits = [100 * hit_at_k(values, k) for k in marked]
        bands = np.array([bootstrap_interval(values <= k) for k in marked]) * 100
        axes.plot(marked, hits, color=colour, marker=marker, linestyle=line, label=name.replace("$", r"\$"))
        axes.fill_between(marked, bands[:, 0], bands[:, 1], color=colour, alpha=0.12, linewidth=0)
    axes.set_xscale("log")
    axes.set_xticks(marked, [str(k) for k in marked])
    axes.minorticks_off()
    axes.set_ylim(0, 101)
    axes.set(xlabel="K, passages retrieved (log scale)", ylabel="Hit@K, % of questions")
    axes.legend(loc="lower right")
    return axes


def plot_training(histories: dict[str, Sequence[dict]]) -> tuple[Axes, Axes]:
    """Draw loss (smoothed) and dev Hit@10 against steps, side by side, one line a run."""
    _figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.6), facecolor="white", layout="constrained")
    for (name, history), (colour, marker, line) in zip(histories.items(), STYLES, strict=False):
        losses = np.array([entry["loss"] for entry in history if "loss" in entry])
        width = max(1, len(losses) // 20)
        smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
        left.plot(np.arange(width, len(losses) + 1), smooth, color=colour, linestyle=line, label=name)
        dev = [(entry["step"], 100 * entry["dev"]) for entry in history if "dev" in entry]
        right.plot(*zip(*dev, strict=True), color=colour, marker=marker, linestyle=line, label=name)
    left.set(xlabel="step", ylabel="loss (moving average)", title="Training loss")
    right.set(xlabel="step", ylabel="dev Hit@10, %", title="Dev Hit@10 over the whole corpus")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    right.legend()
    return left, right


def plot_signals(history: Sequence[dict], clip_norm: float) -> Sequence[Axes]:
    """Draw similarity of positives and hardest negatives, accuracy in the batch, and gradient norm against steps."""
    _figure, panels = plt.subplots(1, 3, figsize=(11, 3.2), facecolor="white", layout="constrained")
    entries = [entry for entry in history if "loss" in entry]
    steps = [entry["step"] for entry in entries]
    lines = [(0, "positive", "positive"), (0, "hardest", "hardest negative"), (1, "accuracy", "accuracy"),
             (2, "gradient_norm", "norm")]  # fmt: skip
    for (panel, name, label), (colour, _, line) in zip(lines, STYLES, strict=False):
        scale = 100 if name == "accuracy" else 1
        values = [scale * entry[name] for entry in entries]
        panels[panel].plot(steps, values, color=colour, linestyle=line, label=label)
    panels[0].set(ylabel="mean cosine", title="Similarity to the question")
    panels[0].legend()
    panels[1].set(ylabel="% of the batch", ylim=(0, 101), title="Positive ranks first in the batch")
    panels[2].axhline(clip_norm, color="black", linestyle="--", linewidth=1)
    panels[2].set(ylabel="norm", ylim=(0, None), title="Gradient before clipping")
    for axes in panels:
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return panels
