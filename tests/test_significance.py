"""The paired test against counting every outcome and scipy; the correction against its step-by-step definition."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.significance import holm, mcnemar


def hits(wins, losses, both=0, neither=0):
    """Return the hits of two systems that share and divide questions like this, [Q] of bool each."""
    one = [True] * wins + [False] * losses + [True] * both + [False] * neither
    other = [False] * wins + [True] * losses + [True] * both + [False] * neither
    return np.array(one, dtype=bool), np.array(other, dtype=bool)


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (3, 3), (5, 0), (2, 9), (10, 1), (6, 5)])
def test_the_p_value_is_the_share_of_all_outcomes_at_least_as_lopsided(wins, losses):
    outcomes = [abs(sum(tosses)) for tosses in itertools.product((1, -1), repeat=wins + losses)]
    expected = np.mean([outcome >= abs(wins - losses) for outcome in outcomes])
    assert mcnemar(*hits(wins, losses)) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(("wins", "losses"), [(130, 101), (1500, 1433), (40, 900), (20_000, 19_500)])
def test_the_p_value_is_that_of_scipys_binomial_test(wins, losses):
    binomtest = pytest.importorskip("scipy.stats").binomtest
    expected = binomtest(wins, wins + losses).pvalue
    assert mcnemar(*hits(wins, losses, both=50)) == pytest.approx(expected, rel=1e-9)


def test_only_questions_that_tell_the_systems_apart_count_and_sides_do_not():
    assert mcnemar(*hits(9, 1, both=300, neither=77)) == mcnemar(*hits(9, 1)) == mcnemar(*hits(1, 9))
    assert mcnemar(*hits(0, 0, both=5)) == mcnemar([], []) == 1


def test_hits_on_different_questions_are_an_error():
    with pytest.raises(ValueError, match="same questions"):
        mcnemar(np.array([True]), np.array([True, False]))


def stepwise(p_values, level):
    """Return which hypotheses Holm's procedure rejects, one after the other from the smallest p-value."""
    rejected = [False] * len(p_values)
    for step, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[place] * (len(p_values) - step) > level:
            break
        rejected[place] = True
    return rejected


@given(st.lists(st.floats(0, 1), max_size=12), st.sampled_from([0.01, 0.05, 0.2]))
def test_the_correction_rejects_what_holms_procedure_rejects(p_values, level):
    corrected = holm(p_values)
    assert (corrected <= level).tolist() == stepwise(p_values, level)
    assert all(raw <= value <= 1 for raw, value in zip(p_values, corrected, strict=True))


def test_one_test_alone_needs_no_correction():
    assert holm([0.03]).tolist() == [0.03]
    assert holm([]).tolist() == []


def test_equal_systems_are_rarely_told_apart_and_a_better_one_mostly():
    random = np.random.default_rng(0)
    false_alarms = found = 0
    for _ in range(300):
        base = random.random(200) < 0.4
        rivals = [np.where(random.random(200) < 0.5, base, random.random(200) < 0.4) for _ in range(9)]
        false_alarms += holm([mcnemar(rival, base) for rival in rivals]).min() <= 0.05
        rivals[0] = base | (random.random(200) < 0.3)
        found += holm([mcnemar(rival, base) for rival in rivals])[0] <= 0.05
    assert false_alarms <= 0.08 * 300  # 5%, and room for the luck of 300 draws
    assert found >= 0.95 * 300
