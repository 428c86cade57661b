"""The course's plots: white background; marker, line style and colour; readable in grey."""

from collections.abc import Sequence
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from helpers.reporting.significance import estimate

# Okabe & Ito's colours, which colour-blind people can tell apart; never the only difference
STYLES = [
    ("#0072B2", "o", "-"),
    ("#D55E00", "s", "--"),
    ("#009E73", "^", "-."),
    ("#CC79A7", "D", ":"),
    ("#E69F00", "v", "-"),
    ("#56B4E9", "P", "--"),
    ("#000000", "X", "-."),
]


def style_axes(axes: Axes) -> Axes:
    """Give axes the course's look, and return them."""
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def new_axes(width: float = 6.4, height: float = 3.6) -> Axes:
    """Return the axes of a new figure, in inches, that is also readable in a dark JupyterLab."""
    _, axes = plt.subplots(figsize=(width, height), facecolor="white", layout="constrained")
    return style_axes(axes)


def plot_hit_curve(ranks: dict[str, np.ndarray], max_k: int = 100) -> Axes:
    """Draw Hit@K against K (log scale) with 95% bands; `ranks` maps a system to first hits, [Q] or [S, Q]."""
    axes, marked = new_axes(6.8, 4.2), [k for k in (1, 2, 5, 10, 20, 50, 100) if k <= max_k]
    for (name, values), (colour, marker, line) in zip(ranks.items(), cycle(STYLES), strict=False):
        hits, lows, highs = 100 * np.array([estimate(values <= k)[:3] for k in marked]).T
        axes.plot(marked, hits, color=colour, marker=marker, linestyle=line, label=_plain(name))
        axes.fill_between(marked, lows, highs, color=colour, alpha=0.12, linewidth=0)
    axes.set_xscale("log")
    axes.set_xticks(marked, [str(k) for k in marked])
    axes.minorticks_off()
    axes.set_ylim(0, 101)
    axes.set(xlabel="K, passages retrieved (log scale)", ylabel="Hit@K, % of questions")
    axes.legend(loc="lower right")
    return axes


def plot_differences(gains: dict[str, dict[int | str, tuple[float, float, float]]], baseline: str) -> Axes:
    """Draw bars of differences in points; `gains` maps system -> K, or a data set -> (difference, low, high)."""
    cutoffs = list(next(iter(gains.values())))
    axes = new_axes(6.8, 1.2 + 0.3 * len(gains) * len(cutoffs))
    for number, (k, (colour, marker, _)) in enumerate(zip(cutoffs, cycle(STYLES), strict=False)):
        places = [system + 0.8 * (number + 0.5) / len(cutoffs) - 0.4 for system in range(len(gains))]
        values, lows, highs = np.array([own[k] for own in gains.values()]).T
        label = f"Hit@{k}" if isinstance(k, int) else _plain(k)
        axes.barh(places, values, 0.7 / len(cutoffs), color=colour, alpha=0.35)
        errors = np.maximum(0, [values - lows, highs - values])
        axes.errorbar(values, places, xerr=errors, fmt=marker, color=colour, capsize=3, label=label)
    axes.axvline(0, color="black", linewidth=1)
    axes.set_yticks(range(len(gains)), [_plain(name) for name in gains])
    axes.invert_yaxis()
    axes.set_xlabel(f"points above {_plain(baseline)}, with 95% interval")
    axes.legend()
    return axes


def plot_first_hits(ranks: dict[str, np.ndarray], ends: Sequence[int]) -> Axes:
    """Draw, for every system, the share of questions whose first hit is between each two of the ranks `ends`."""
    axes, names = new_axes(7.6, 1.2 + 0.45 * len(ranks)), [_plain(name) for name in ranks]
    axes.set_axisbelow(True)
    left, starts = np.zeros(len(ranks)), [1, *(end + 1 for end in ends)]
    for number, (start, end) in enumerate(zip(starts, [*ends, np.inf], strict=True)):
        inside = [(values >= start) & ((values <= end) | np.isinf(end)) for values in ranks.values()]
        shares = np.array([100 * hits.mean() for hits in inside])
        label = f"over {ends[-1]}" if np.isinf(end) else f"{end}" if start == end else f"{start}-{end}"
        shade = number / len(starts)
        bars = axes.barh(names, shares, left=left, color=plt.cm.cividis(shade), edgecolor="white", label=label)
        texts, colour = [f"{s:.0f}" if s >= 4 else "" for s in shares], "black" if shade > 0.5 else "white"
        axes.bar_label(bars, texts, label_type="center", fontsize=8, color=colour)
        left += shares
    axes.invert_yaxis()
    axes.set(xlabel="% of questions", xlim=(0, 100))
    axes.legend(title="rank of the first hit", loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    return axes


def _plain(name: str) -> str:
    """Return a name in which matplotlib sees no formula."""
    return name.replace("$", r"\$")


def plot_training(histories: dict[str, Sequence[dict]]) -> tuple[Axes, Axes]:
    """Draw loss (smoothed) and dev Hit@10 against steps, side by side, with one line per run."""
    _figure, panels = plt.subplots(1, 2, figsize=(9.6, 3.6), facecolor="white", layout="constrained")
    left, right = map(style_axes, panels)
    for (name, history), (colour, marker, line) in zip(histories.items(), STYLES, strict=False):
        losses = np.array([entry["loss"] for entry in history if "loss" in entry])
        width = max(1, len(losses) // 20)
        smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
        left.plot(np.arange(width, len(losses) + 1), smooth, color=colour, linestyle=line, label=name)
        dev = [(entry["step"], 100 * entry["dev"]) for entry in history if "dev" in entry]
        right.plot(*zip(*dev, strict=True), color=colour, marker=marker, linestyle=line, label=name)
    left.set(xlabel="step", ylabel="loss (moving average)", title="Training loss")
    right.set(xlabel="step", ylabel="dev Hit@10, %", title="Dev Hit@10")
    right.legend()
    return left, right
