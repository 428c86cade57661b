"""The paired test against counting every outcome and scipy; the correction against its step-by-step definition."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.base.errors import SettingError
from helpers.reporting.significance import bootstrap_interval, estimate, holm, mcnemar, smallest_difference


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


def logistic(random, ease, seeds, deviation, shift=0.0):
    """Return the hits, [S, Q], of runs that find questions as easy as `ease`, some seeds better ones than others."""
    luck = random.normal(0, deviation, size=(seeds, 1))
    return random.random((seeds, len(ease))) < 1 / (1 + np.exp(-(ease + shift + luck)))


@pytest.mark.parametrize(("seeds", "deviation"), [(3, 0.0), (3, 0.06), (3, 0.2), (5, 0.06)])  # 0.06: 0.7 points
def test_the_interval_over_seeds_and_questions_covers_the_truth(seeds, deviation):
    random, draws = np.random.default_rng(0), 1000
    crowd = random.normal(-0.3, 3, size=10**6) + random.normal(0, deviation, size=10**6)
    truth, better = (np.mean(1 / (1 + np.exp(-crowd - shift))) for shift in (0.0, 0.3))
    covered, paired, alarms = 0, 0, 0
    for _ in range(draws):
        ease = random.normal(-0.3, 3, size=400)
        one, other, twin = (logistic(random, ease, seeds, deviation, shift) for shift in (0.0, 0.3, 0.0))
        covered += estimate(one).low <= truth <= estimate(one).high
        difference = estimate(other, one)
        paired += difference.low <= better - truth <= difference.high
        alarms += estimate(twin, one).p <= 0.05
    assert 0.93 * draws <= covered <= 0.98 * draws
    assert 0.93 * draws <= paired <= 0.985 * draws  # a little too careful, where seeds hardly differ
    assert alarms <= 0.06 * draws


def test_questions_alone_would_be_too_sure():
    random, covered, truth = np.random.default_rng(0), 0, 0.5
    for _ in range(300):
        run = logistic(random, random.normal(0, 3, size=2000), 1, 0.3)
        low, high = estimate(run).low, estimate(run).high
        covered += low <= truth <= high
    assert covered < 0.7 * 300  # why one run cannot tell about a method


def test_one_run_has_the_bootstrap_interval_and_mcnemars_test():
    one, other = hits(9, 2, both=30, neither=19)
    assert estimate(one)[:3] == (one.mean(), *bootstrap_interval(one))
    assert estimate(one, other)[1:] == (*bootstrap_interval(one * 1.0 - other), mcnemar(one, other))
    assert estimate(one[None], other[None]) == estimate(one, other)
    assert np.isnan(estimate(one).p)


def test_the_p_value_is_that_of_the_widest_interval_without_zero():
    random = np.random.default_rng(3)
    ease = random.normal(0, 3, size=300)
    one, other = logistic(random, ease, 3, 0.05, 0.5), logistic(random, ease, 4, 0.05)
    p = estimate(one, other).p
    assert 0.001 < p < 0.2
    assert estimate(one, other, level=1 - p).low == pytest.approx(0, abs=1e-6)
    assert estimate(other, one).p == pytest.approx(p)


def test_equal_runs_have_no_uncertainty_in_their_difference():
    ones = np.ones((3, 5), dtype=bool)
    assert estimate(ones, ~ones[:2]) == (1, 1, 1, 0)
    assert estimate(ones, ones[:2]) == (0, 0, 0, 1)
    with pytest.raises(ValueError, match="same questions"):
        estimate(ones, np.ones((2, 6), dtype=bool))


@pytest.mark.parametrize("questions", [1, 5, 300])
@pytest.mark.parametrize("seeds", [1, 3])
def test_a_share_of_nothing_or_everything_has_the_exact_interval(questions, seeds):
    beta = pytest.importorskip("scipy.stats").beta
    none, every = (estimate(np.full((seeds, questions), value)) for value in (False, True))
    assert none[:3] == pytest.approx((0, 0, beta.ppf(0.975, 1, questions)))
    assert every[:3] == pytest.approx((1, beta.ppf(0.025, questions, 1), 1))


@pytest.mark.parametrize("changed", [0.1, 0.3])
@pytest.mark.parametrize("power", [0.5, 0.8])
@pytest.mark.parametrize("questions", [300, 2000])
def test_the_smallest_difference_is_found_as_often_as_asked(questions, power, changed):
    random, draws = np.random.default_rng(0), 600
    difference = smallest_difference(questions, changed, power)
    shares = [(changed + difference) / 2, (changed - difference) / 2, 1 - changed]
    found = sum(mcnemar(*hits(*counts)) <= 0.05 for counts in random.multinomial(questions, shares, size=draws))
    assert power - 0.08 <= found / draws <= power + 0.04  # the exact test is a little too careful


def test_the_smallest_difference_solves_connors_formula():
    z_level, z_power, changed = 1.959964, 0.841621, 0.1
    for questions in (500, 5000):
        difference = smallest_difference(questions, changed)
        needed = ((z_level * changed**0.5 + z_power * (changed - difference**2) ** 0.5) / difference) ** 2
        assert questions == pytest.approx(needed, rel=0.02)


def test_more_questions_show_less_and_more_changes_hide_more():
    assert smallest_difference(4 * 500) == pytest.approx(smallest_difference(500) / 2)
    assert smallest_difference(500, changed=0.4) == pytest.approx(2 * smallest_difference(500, changed=0.1))
    assert smallest_difference(500, power=0.9) > smallest_difference(500) > smallest_difference(500, level=0.1)


def test_a_difference_is_never_more_than_what_changed():
    for changed in (0.01, 0.1):  # all changes must go one way, and there must be more of them
        assert smallest_difference(50, changed) == pytest.approx(7.849 / 50, rel=1e-4)
    assert smallest_difference(5) > 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"questions": 0}, "questions=0: a whole number from 1 up"),
        ({"questions": 10.5}, "questions=10.5"),
        ({"questions": True}, "questions=True"),
        ({"changed": 0.0}, "changed=0.0: a share"),
        ({"changed": 1.5}, "changed=1.5"),
        ({"changed": float("nan")}, "changed=nan"),
        ({"changed": "many"}, "changed='many'"),
        ({"power": 1.0}, "power=1.0"),
        ({"power": 0.01}, "power must lie between level and 1"),
        ({"level": 0}, "level=0"),
    ],
)
def test_impossible_values_are_an_error(values, message):
    with pytest.raises(SettingError, match=message):
        smallest_difference(**{"questions": 141, **values})
