"""How much data do I need? Hit@K against the number of training questions, drawn on to numbers not yet tried.

Train on a quarter, a half and all of your questions, each with several seeds. A curve through these points says what
four times as many would gain, and an interval says how far that can be trusted.

A curve has two parameters, as three sizes cannot hold a third one to account. There are three shapes, see `SHAPES`:
Hit@K goes on rising with every doubling, the misses shrink by the same factor with every doubling, or Hit@K levels
off. Three sizes cannot tell which is right either. So each is fitted by least squares and predicts with Student's t,
and the interval is that of the three together, at equal weights. A curve that turns upwards is none of them. Tried
before and dropped: the log-odds of Hit@K instead of the shape that levels off. It covered a curve with a ceiling in
105 of 200 simulations.

Sources: power laws of the error, Hestness et al. 2017, https://arxiv.org/abs/1712.00409; predicting from a few small
sizes, Figueroa et al. 2012, https://doi.org/10.1186/1472-6947-12-8; the interval of a prediction by least squares,
Draper & Smith 1998, Applied Regression Analysis, on the straight line.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from scipy.optimize import brentq
from scipy.special import ndtri, stdtr

from helpers.base.errors import DataError, SettingError, shorten
from helpers.reporting.plots import STYLES, new_axes


class Shape(NamedTuple):
    """A curve that is a straight line once the size and Hit@K are replaced by functions of them."""

    place: Callable[[np.ndarray], np.ndarray]  # of the size; it rises
    value: Callable[[np.ndarray], np.ndarray]  # of Hit@K; it rises
    back: Callable[[np.ndarray], np.ndarray]  # its inverse


def _same(values: np.ndarray) -> np.ndarray:
    return values


SHAPES = {
    "steady": Shape(np.log, _same, _same),  # as many points more with every doubling
    "misses by a power": Shape(np.log, lambda hit: -np.log1p(-hit), lambda value: -np.expm1(-value)),
    "levels off": Shape(lambda size: -(np.asarray(size, dtype=float) ** -0.5), _same, _same),  # a ceiling less a / √n
}
EDGE = 1e-9  # how near to 0 and 1 Hit@K is looked for


class Prediction(NamedTuple):
    """A gain in Hit@K over the model before training, as a share, with its interval."""

    gain: float
    low: float
    high: float


@dataclass(frozen=True)
class LearningCurve:
    """Hit@K of trained models against the number of training questions.

    Attributes
    ----------
    hits : number of training questions -> Hit@K of each run with another seed, as shares above 0 and below 1. All runs
        have the same test questions and as many passes over their training questions
    before : Hit@K of the model before training

    Raises
    ------
    DataError : fewer than three sizes or, for a size, two runs; a size or share that is none; runs that are all alike
    """

    hits: Mapping[int, Sequence[float]]
    before: float

    def __post_init__(self):
        if len(self.hits) < 3:
            raise DataError(f"sizes {sorted(self.hits)}: a curve needs three, such as a quarter, a half and all")
        for size, own in self.hits.items():
            _check_size(size, DataError)
            if len(own) < 2:
                raise DataError(f"{size} questions: {len(own)} run; train with two or more seeds")
            for hit in own:
                _check_hit(f"{size} questions", hit)
        _check_hit("before training", self.before)
        if min(line.noise for line in self._lines.values()) < EDGE:
            raise DataError(f"{shorten(dict(self.hits))}: no run differs from the curve; do all runs have one seed?")

    @cached_property
    def _sizes(self) -> np.ndarray:
        """The size of each run, [N], N runs in all."""
        return np.array([size for size, own in self.hits.items() for _ in own], dtype=float)

    @cached_property
    def _lines(self) -> dict[str, "_Line"]:
        """The fitted line of each shape."""
        hits = np.array([hit for own in self.hits.values() for hit in own], dtype=float)
        return {name: _Line(shape.place(self._sizes), shape.value(hits)) for name, shape in SHAPES.items()}

    def gains(self, size: float) -> dict[str, float]:
        """Return the gain that each shape expects of `size` training questions."""
        pairs = ((name, shape, self._lines[name]) for name, shape in SHAPES.items())
        return {name: float(shape.back(line.at(shape.place(size)))) - self.before for name, shape, line in pairs}

    def predict(self, size: float, runs: int = 1, level: float = 0.95, variance: float = 0.0) -> Prediction:
        """Return the gain of `size` training questions, the median and the interval over the three shapes together.

        Parameters
        ----------
        runs : the mean of how many runs is predicted
        level : the share of such means that should lie inside the interval
        variance : what is added for other test questions, see `question_variance`; 0: the test questions are the same

        Raises
        ------
        SettingError : a size, a number of runs, a level or a variance that is none
        """
        _check_size(size, SettingError)
        if runs < 1 or not 0 < level < 1 or not 0 <= variance < math.inf:
            raise SettingError(f"runs={runs}, level={level}, variance={variance}: use 1 or more, a share, 0 or more")
        freedom, fitted = len(self._sizes) - 2, []
        for name, shape in SHAPES.items():
            line, place = self._lines[name], shape.place(size)
            fitted.append((shape.value, line.at(place), line.error(place, runs)))

        def below(hit: float) -> float:
            return float(stdtr(freedom, [(value(hit) - at) / error for value, at, error in fitted]).mean())

        middle, low, high = (_quantile(below, share) for share in (0.5, (1 - level) / 2, (1 + level) / 2))
        more = variance * ndtri((1 + level) / 2) ** 2
        low, high = middle - math.hypot(middle - low, more**0.5), middle + math.hypot(high - middle, more**0.5)
        return Prediction(middle - self.before, max(low, 0.0) - self.before, min(high, 1.0) - self.before)

    def weights(self, size: float) -> dict[int, float]:
        """Return how much the mean Hit@K at each size counts in the steady shape's prediction; they sum to 1."""
        places, own = np.log(self._sizes), np.log(list(self.hits))
        counts, middle = np.array([len(runs) for runs in self.hits.values()]), places.mean()
        slopes = (own - middle) * (math.log(size) - middle) / ((places - middle) @ (places - middle))
        return dict(zip(self.hits, (counts * (1 / len(places) + slopes)).tolist(), strict=True))


class _Line:
    """A straight line by least squares through values [N] at places [N]."""

    def __init__(self, places: np.ndarray, values: np.ndarray):
        self.mean, self.height, self.count = places.mean(), values.mean(), len(places)
        centred = places - self.mean
        self.spread = centred @ centred
        self.slope = centred @ values / self.spread
        rest = values - self.height - self.slope * centred
        self.noise = float(rest @ rest / (self.count - 2)) ** 0.5  # what one run is off by, the shape's fault included

    def at(self, place: float) -> float:
        """Return the line's value."""
        return self.height + self.slope * (place - self.mean)

    def error(self, place: float, runs: int) -> float:
        """Return the standard error of a prediction for the mean of `runs` runs."""
        return self.noise * (1 / runs + 1 / self.count + (place - self.mean) ** 2 / self.spread) ** 0.5


def question_variance(
    curve: LearningCurve, hits: Mapping[int, np.ndarray], before: np.ndarray, size: float, others: float = math.inf
) -> float:
    """Return the variance that the choice of test questions adds to a predicted gain.

    The gain of each question is predicted by the steady shape through its own hits, and what counts is the variance of
    these gains over the questions. What runs of other seeds differ by on one question is taken off, because the
    curve's own error has it already.

    Parameters
    ----------
    hits : number of training questions -> hits of each run, [S, Q] of bool
    before : hits before training, [Q] of bool
    size : how many training questions the prediction is for
    others : on how many other questions it will be checked; infinite: it is meant for all questions of the kind

    Raises
    ------
    DataError : the sizes are not the curve's, or the test questions differ in number
    SettingError : no number of other questions
    """
    if not others > 0:
        raise SettingError(f"others={shorten(others)}: a number of questions is needed, or leave it out")
    before, runs = np.asarray(before, dtype=float), {own: np.asarray(one, dtype=float) for own, one in hits.items()}
    if set(runs) != set(curve.hits):
        raise DataError(f"hits of sizes {sorted(runs)}: the curve has {sorted(curve.hits)}")
    if wrong := [one.shape for one in runs.values() if one.ndim != 2 or one.shape[1:] != before.shape]:
        raise DataError(f"hits {wrong[0]}: runs × {len(before)} questions are needed, as many as before training")
    weights = curve.weights(size)
    gains = sum(weights[own] * one.mean(0) for own, one in runs.items()) - before
    luck = sum(weights[own] ** 2 * one.var(0, ddof=1).mean() / len(one) for own, one in runs.items())
    return max(0.0, float(gains.var(ddof=1) - luck)) * (1 / len(before) + 1 / others)


def plot_curve(curve: LearningCurve, until: int, held_back: Mapping[int, Sequence[float]] | None = None) -> Axes:
    """Draw the runs, the curve and its 95% band up to `until` training questions, and runs that were held back."""
    axes, ((colour, marker, line), (other, cross, _)) = new_axes(6.8, 3.8), STYLES[:2]
    sizes = np.geomspace(min(curve.hits), until, 60)
    gains, lows, highs = 100 * np.array([curve.predict(size) for size in sizes]).T
    axes.plot(sizes, gains, color=colour, linestyle=line, label="predicted")
    axes.fill_between(sizes, lows, highs, color=colour, alpha=0.12, linewidth=0, label="95% interval for one run")
    kinds = (curve.hits, colour, marker, "fitted to"), (held_back or {}, other, cross, "held back")
    for found, tone, shape, label in kinds:
        points = [(size, 100 * (hit - curve.before)) for size, own in found.items() for hit in own]
        if points:
            axes.plot(*zip(*points, strict=True), color=tone, marker=shape, linestyle="", label=label)
    ticks = sorted({*curve.hits, *(held_back or {}), until})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{size:,}" for size in ticks])
    axes.minorticks_off()
    axes.set(xlabel="training questions (log scale)", ylabel="gain in Hit@K, points")
    axes.legend(loc="upper left")
    return axes


def _quantile(below: Callable[[float], float], share: float) -> float:
    """Return the Hit@K below which `share` of the probability lies; 0 or 1 if it lies outside."""
    if below(EDGE) >= share:
        return 0.0
    return 1.0 if below(1 - EDGE) <= share else float(brentq(lambda hit: below(hit) - share, EDGE, 1 - EDGE))


def _check_size(size: float, error: type) -> None:
    if not isinstance(size, int | float | np.number) or not 1 <= size < math.inf:
        raise error(f"size {shorten(size)}: a number of training questions is needed")


def _check_hit(where: str, hit: float) -> None:
    if not isinstance(hit, int | float | np.number) or not 0 < hit < 1:
        raise DataError(f"{where}: Hit@K of {shorten(hit)}; a share above 0 and below 1 is needed, or another K")
