"""Could the difference between two systems be luck? A paired test, and its correction when many are made at once.

Both systems answered the same questions, so the test looks at each question twice instead of at two averages.
"""

from collections.abc import Sequence

import numpy as np


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
    ValueError : they are not equally many

    Source: McNemar 1947, https://doi.org/10.1007/BF02295996, with the binomial distribution in place of chi-squared;
    advised for comparing two models on one test set by Dietterich 1998, https://doi.org/10.1162/089976698300017197.

    >>> mcnemar(np.array([1, 1, 1, 1, 1, 0]) > 0, np.array([0, 0, 0, 0, 0, 0]) > 0)  # five wins of five: 2 / 2**5
    0.0625
    """
    one, other = np.asarray(one, dtype=bool), np.asarray(other, dtype=bool)
    if one.shape != other.shape:
        raise ValueError(f"{one.shape} and {other.shape} hits: a paired test needs both systems on the same questions")
    wins, losses = int((one & ~other).sum()), int((other & ~one).sum())
    tosses = wins + losses
    ways = total = 1  # how many sequences of tosses have 0, 1, 2, ... wins: whole numbers, so nothing is rounded
    for number in range(min(wins, losses)):
        ways = ways * (tosses - number) // (number + 1)
        total += ways
    return min(1.0, 2 * total / 2**tosses)


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
