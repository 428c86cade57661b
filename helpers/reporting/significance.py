"""Could it be luck? Intervals over questions and seeds, a paired test, and its correction for many comparisons.

Both systems answered the same questions, so a test looks at each question twice instead of at two averages.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtri, stdtrit
from scipy.stats import binomtest

from helpers.base.errors import SettingError, shorten


def bootstrap_interval(
    values: np.ndarray, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean of `values`, [Q], over the queries.

    For one system `values` are its hits (0 or 1); for two, the difference of their hits on the same queries,
    which makes the interval a paired one. Without a query it is (nan, nan). Efron & Tibshirani 1993, chapter 13.
    """
    values = np.asarray(values, dtype=float)
    if not len(values):
        return math.nan, math.nan
    distinct, counts = np.unique(values, return_counts=True)  # few distinct values: draw counts, not rows
    drawn = np.random.default_rng(seed).multinomial(len(values), counts / len(values), size=draws)
    low, high = np.quantile(drawn @ distinct / len(values), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


class Estimate(NamedTuple):
    """A share, or the difference of two, with its interval; `p` is nan for a share."""

    mean: float
    low: float
    high: float
    p: float


def estimate(hits: np.ndarray, other: np.ndarray | None = None, level: float = 0.95) -> Estimate:
    """Return the share of hits, or its difference from that of `other` on the same questions, with an interval.

    With one run per system it is the bootstrap interval over questions, and McNemar's test. With several seeds the
    interval covers questions and seeds, see `_over_seeds`. A share of 0 or 1 gets the interval of Clopper and Pearson,
    as if of one run, because a bootstrap never sees what did not happen.

    Parameters
    ----------
    hits, other : [Q] or [S, Q] of bool, one row per run with another seed; S may differ between the two

    Raises
    ------
    ValueError : the two have different numbers of questions
    """
    runs = [np.atleast_2d(np.asarray(one, dtype=bool)) for one in (hits, other) if one is not None]
    if len({one.shape[1] for one in runs}) > 1:
        raise ValueError(f"{runs[0].shape} and {runs[1].shape} hits: a paired test needs the same questions")
    gain = runs[0].mean(0) - (runs[1].mean(0) if len(runs) > 1 else 0)  # [Q]
    mean = float(gain.mean()) if len(gain) else np.nan
    if len(runs) == 1 and len(gain) and mean in (0, 1):
        least = ((1 - level) / 2) ** (1 / len(gain))
        return Estimate(mean, *((0.0, 1 - least) if mean == 0 else (least, 1.0)), np.nan)
    if len(gain) < 2 or all(len(one) == 1 for one in runs):
        p = mcnemar(runs[0][0], runs[1][0]) if len(runs) > 1 else np.nan
        return Estimate(mean, *bootstrap_interval(gain, level), p)
    return _over_seeds(runs, gain, level)


def _over_seeds(runs: list[np.ndarray], gain: np.ndarray, level: float) -> Estimate:
    """Return the mean of `gain`, [Q], with an interval over questions and seeds.

    Its half-width is √(z²b + t²a). Questions add b, the variance of their means over the runs / Q. Seeds add a, the
    variance of the runs' means / S less the part that is due to questions, with Student's t for S - 1 degrees of
    freedom, because three seeds say little about their variance. The p-value is that of the widest interval without 0.
    A system of one run says nothing about its seeds, so for it the interval covers questions alone.

    Source: the two-way random-effects layout, Searle, Casella & McCulloch 1992, Variance Components, combined as in
    Howe 1974, Approximate Confidence Limits on the Mean of X + Y, JASA 69. The tests count how often it covers.
    """
    mean, several = float(gain.mean()), [one for one in runs if len(one) > 1]
    freedom = np.array([np.inf, *(len(one) - 1 for one in several)])
    variances = np.array([gain.var(ddof=1) / len(gain), *map(_of_seeds, several)])

    def half(p: float) -> float:
        return float(stdtrit(freedom, 1 - p / 2) ** 2 @ variances) ** 0.5

    width, p = half(1 - level), np.nan
    if len(runs) > 1:
        p = brentq(lambda p: half(p) - abs(mean), 1e-12, 1) if half(1e-12) > abs(mean) else float(mean == 0)
    return Estimate(mean, max(1.0 - len(runs), mean - width), min(1, mean + width), p)


def _of_seeds(hits: np.ndarray) -> float:
    """Return what seeds add to the variance of the mean of `hits`, [S, Q]; never below 0."""
    seeds, questions = hits.shape
    rest = hits - hits.mean(1, keepdims=True) - hits.mean(0) + hits.mean()
    noise = (rest**2).sum() / ((seeds - 1) * (questions - 1)) / questions
    return max(0.0, hits.mean(1).var(ddof=1) - noise) / seeds


def mcnemar(one: np.ndarray, other: np.ndarray) -> float:
    """Return the two-sided p-value of McNemar's exact test, between 0 and 1.

    Questions that both systems hit, or both miss, say nothing about which is better. Each of the others is won by one
    of the two; if neither is better, that is the toss of a fair coin. The p-value is the probability that as many
    tosses come out at least as lopsided as the wins did. Without such a question it is 1.

    Parameters
    ----------
    one, other : hits of the two systems on the same questions, [Q] of bool each

    Raises
    ------
    ValueError : they have different numbers of questions

    Source: McNemar 1947, https://doi.org/10.1007/BF02295996, with the binomial distribution in place of chi-squared;
    advised for comparing two models on one test set by Dietterich 1998, https://doi.org/10.1162/089976698300017197.

    >>> mcnemar(np.array([1, 1, 1, 1, 1, 0]) > 0, np.array([0, 0, 0, 0, 0, 0]) > 0)  # five wins of five: 2 / 2**5
    0.0625
    """
    one, other = np.asarray(one, dtype=bool), np.asarray(other, dtype=bool)
    if one.shape != other.shape:
        raise ValueError(f"{one.shape} and {other.shape} hits: a paired test needs both systems on the same questions")
    wins, tosses = int((one & ~other).sum()), int((one != other).sum())
    return float(binomtest(wins, tosses).pvalue) if tosses else 1.0


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Return the p-values corrected for their number, [M], in the order given.

    Among twenty comparisons of equally good systems, one is expected to have a p-value up to 5%. Calling significant
    only what stays at or below 5% here makes the probability of even one such mistake at most 5%, whether or not the
    tests depend on each other. The smallest p-value is multiplied by M, the next one by M - 1, and so on; none may
    fall below the one before it, or rise above 1.

    Source: Holm 1979, A Simple Sequentially Rejective Multiple Test Procedure, https://www.jstor.org/stable/4615733.

    >>> holm([0.01, 0.04, 0.03]).round(3).tolist()
    [0.03, 0.06, 0.06]
    """
    raw = np.asarray(p_values, dtype=float)
    order = np.argsort(raw, kind="stable")
    corrected = np.empty_like(raw)
    corrected[order] = np.minimum(1, np.maximum.accumulate(raw[order] * np.arange(len(raw), 0, -1)))
    return corrected


def smallest_difference(questions: int, changed: float = 0.1, power: float = 0.8, level: float = 0.05) -> float:
    """Return the smallest true difference of two shares of hits that a paired test over `questions` questions shows.

    It is (z(1 - level / 2) + z(power)) √(changed / questions), where z are quantiles of the normal distribution:
    2.8 standard errors of a difference, as defaults have it. A test of two equally good systems calls them different
    with probability `level`, and one of two that differ by this much with probability `power`. A difference is never
    more than `changed`; where that allows none to be shown, all changes go one way, changed = difference, and the
    formula becomes (z + z)² / questions. Above 1 means that so few questions show nothing.

    Parameters
    ----------
    changed : share of the questions that one of the two systems hits and the other does not. From 6% to 15% of the
        sample's dev questions change between neighbouring checkpoints of BERT-tiny; two different systems have more
    power : probability with which the difference is found
    level : two-sided level of the test

    Raises
    ------
    SettingError : a value that is no count, or no share

    Source: the sample size of McNemar's test, (z(1 - level / 2) √changed + z(power) √(changed - difference²))² /
    difference² (Connor 1987, Biometrics 43, pages 207-211), without difference², which is small beside `changed`.
    The exact test of `mcnemar` is a little more careful than the normal one: with these defaults, its power is 75% to
    80% from 141 questions up.

    >>> round(smallest_difference(141), 3), round(smallest_difference(5173), 3)
    (0.075, 0.012)
    """
    if isinstance(questions, bool) or not isinstance(questions, int | np.integer) or questions < 1:
        raise SettingError(f"questions={shorten(questions)}: a whole number from 1 up is needed")
    for name, value in (("changed", changed), ("power", power), ("level", level)):
        if isinstance(value, bool) or not isinstance(value, float | int) or not 0 < value <= 1:
            raise SettingError(f"{name}={shorten(value)}: a share above 0, up to 1, is needed")
    if not level < power < 1:
        raise SettingError(f"power={power}, level={level}: power must lie between level and 1")
    quantiles = float(ndtri(1 - level / 2) + ndtri(power))
    return max(quantiles * math.sqrt(changed / questions), quantiles**2 / questions)
