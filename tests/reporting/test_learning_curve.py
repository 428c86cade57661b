"""The learning curve: a planted one is found again, its interval covers as often as it says, bad points are refused."""

import math

import numpy as np
import pytest

from helpers.base.errors import DataError, SettingError
from helpers.reporting.learning_curve import SHAPES, LearningCurve, plot_curve, question_variance

SIZES = (200, 400, 800)
PLANTED = {  # Hit@K of n training questions
    "steady": lambda n: 0.45 + 0.05 * math.log2(n / 200),
    "misses by a power": lambda n: 1 - 0.5 * (n / 200) ** -0.3,
    "levels off": lambda n: 0.8 - 4 * n**-0.5,
}
OTHERS = {  # none of the shapes
    "log-odds": lambda n: 1 / (1 + math.exp(-(0.2 + 0.3 * math.log2(n / 200)))),
    "a ceiling, more slowly": lambda n: 0.8 - 0.25 * (n / 200) ** -0.3,
}
NOISE = 0.01


def draw(planted, noise, rng, runs=3):
    return LearningCurve({n: (planted(n) + noise * rng.standard_normal(runs)).tolist() for n in SIZES}, 0.4)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_planted_curve_is_found_again_by_its_own_shape(shape):
    planted = PLANTED[shape]
    curve = draw(planted, 1e-5, np.random.default_rng(0))
    truth = planted(3200) - 0.4
    gains = curve.gains(3200)
    assert gains[shape] == pytest.approx(truth, abs=2e-4)
    assert all(abs(gains[other] - truth) > 0.01 for other in SHAPES if other != shape)
    found = curve.predict(3200)
    assert min(gains.values()) <= found.gain <= max(gains.values())
    assert found.low < truth < found.high


def count(planted, level=0.95):
    """Return of 200 draws how many were covered, and the mean width."""
    rng, covered, widths = np.random.default_rng(1), 0, []
    for _ in range(200):
        found = draw(planted, NOISE, rng).predict(3200, level=level)
        covered += found.low <= planted(3200) + NOISE * rng.standard_normal() - 0.4 <= found.high
        widths.append(found.high - found.low)
    return covered, float(np.mean(widths))


@pytest.mark.parametrize("name", [*PLANTED, *OTHERS])
def test_the_interval_covers_a_curve_that_is_none_of_the_shapes_too(name):
    covered, width = count((PLANTED | OTHERS)[name])
    assert covered >= 175, covered
    assert width < 0.16  # one shape alone: 0.07; the rest is what the shapes differ by where a curve is steep


def test_the_interval_is_no_wider_than_it_need_be_where_the_shapes_agree():
    covered, width = count(lambda n: 0.7 + 0.012 * math.log2(n / 200))
    assert 180 <= covered < 200 and width < 0.08  # seven runs' noise of 0.01 each, and four times the size


def test_a_lower_level_covers_less():
    covered, _ = count(lambda n: 0.7 + 0.012 * math.log2(n / 200), level=0.5)
    assert 80 <= covered <= 125, covered


def test_a_curve_that_turns_upwards_is_not_foreseen():
    """As the docstring says: no shape has it, and this test holds the sentence true."""
    covered, _ = count(lambda n: 0.75 - 0.3 / (1 + n / 1500))
    assert covered < 130, covered


def test_the_interval_grows_with_distance_and_shrinks_with_runs():
    curve = draw(PLANTED["steady"], NOISE, np.random.default_rng(0))

    def width(*args, **options):
        found = curve.predict(*args, **options)
        return found.high - found.low

    widths = [width(n) for n in (400, 800, 1600, 3200, 12800)]
    assert widths == sorted(widths)
    assert width(3200, runs=3) < width(3200) < width(3200, level=0.99) < width(3200, level=0.99, variance=0.001)
    assert curve.predict(3200, variance=0.001).gain == curve.predict(3200).gain


def test_a_rising_curve_predicts_more_for_more_and_never_more_than_all():
    steep = LearningCurve({100: [0.4, 0.41], 200: [0.6, 0.62], 400: [0.8, 0.79]}, 0.2)
    gains = [steep.predict(n).gain for n in (100, 200, 400, 1600, 100_000)]
    assert gains == sorted(gains) and gains[-1] <= 0.8
    assert steep.predict(1600).high <= 0.8 and steep.gains(1600)["misses by a power"] < 0.8


def test_weights_are_those_of_least_squares():
    curve = LearningCurve({800: [0.5, 0.52], 200: [0.4, 0.45, 0.41], 400: [0.47, 0.44]}, 0.3)
    weights = curve.weights(3200)
    assert sum(weights.values()) == pytest.approx(1) and weights[800] > 1 > 0 > weights[200]
    places = [math.log(size) for size, own in curve.hits.items() for _ in own]
    slope, height = np.polyfit(places, [hit for own in curve.hits.values() for hit in own], 1)
    assert curve.gains(3200)["steady"] == pytest.approx(height + slope * math.log(3200) - 0.3)


def test_the_variance_over_questions_is_that_of_their_gains_without_luck():
    """Questions of which a fifth are always won, the rest as before: runs differ in nothing, or in luck alone."""
    rng, before = np.random.default_rng(3), np.zeros(500, bool)
    steady = np.arange(500) < 100
    hits = dict.fromkeys(SIZES, np.stack([steady] * 3))
    curve = draw(PLANTED["steady"], NOISE, rng)
    expected = steady.var(ddof=1) / 500
    assert question_variance(curve, hits, before, 3200) == pytest.approx(expected)
    assert question_variance(curve, hits, before, 3200, others=500) == pytest.approx(2 * expected)
    found = [question_variance(curve, {n: rng.random((3, 500)) < 0.5 for n in SIZES}, before, 3200) for _ in range(20)]
    assert np.mean(found) < 0.5 * expected  # luck alone has no spread over questions, but for what its estimate errs by


@pytest.mark.parametrize(
    "hits, said",
    [
        ({100: [0.4, 0.5], 200: [0.5, 0.6]}, r"sizes \[100, 200\]: a curve needs three"),
        (dict([(100, [0.4, 0.5]), (200, [0.5, 0.6]), (100.0, [0.4, 0.6])]), "needs three"),  # equal sizes are one
        ({100: [0.4, 0.5], 200: [0.5], 400: [0.5, 0.6]}, "200 questions: 1 run"),
        ({100: [0.4, 0.5], 200: [0.5, math.nan], 400: [0.5, 0.6]}, "200 questions: Hit@K of nan"),
        ({100: [0.4, 0.5], 200: [0.5, "0.6"], 400: [0.5, 0.6]}, "200 questions: Hit@K of '0.6'"),
        ({100: [0.4, 0.5], 200: [0.5, 1.0], 400: [0.5, 0.6]}, r"200 questions: Hit@K of 1\.0.*another K"),
        ({100: [0.4, 0.5], 200: [0.5, 57.1], 400: [0.5, 0.6]}, r"Hit@K of 57\.1; a share"),
        ({0: [0.4, 0.5], 200: [0.5, 0.6], 400: [0.5, 0.6]}, "size 0: a number"),
        ({math.nan: [0.4, 0.5], 200: [0.5, 0.6], 400: [0.5, 0.6]}, "size nan: a number"),
        ({100: [0.4, 0.4], 200: [0.4, 0.4], 400: [0.4, 0.4]}, "no run differs from the curve"),
    ],
)
def test_bad_points_are_refused(hits, said):
    with pytest.raises(DataError, match=said):
        LearningCurve(hits, 0.3)


def test_bad_questions_are_refused():
    good = {100: [0.4, 0.45], 200: [0.5, 0.55], 400: [0.58, 0.6]}
    with pytest.raises(DataError, match="before training: Hit@K of inf"):
        LearningCurve(good, math.inf)
    curve = LearningCurve(good, 0.3)
    for options in ({"size": 0}, {"size": math.inf}, {"size": 800, "runs": 0}, {"size": 800, "level": 95}):
        with pytest.raises(SettingError):
            curve.predict(**options)
    with pytest.raises(SettingError, match="variance=-1"):
        curve.predict(800, variance=-1)
    hits = {size: np.ones((2, 9), bool) for size in good}
    with pytest.raises(SettingError, match="others=0"):
        question_variance(curve, hits, np.zeros(9), 1600, others=0)
    with pytest.raises(DataError, match=r"hits of sizes \[100, 200\]"):
        question_variance(curve, {100: hits[100], 200: hits[200]}, np.zeros(9), 1600)
    with pytest.raises(DataError, match=r"hits \(2, 9\): runs × 8 questions"):
        question_variance(curve, hits, np.zeros(8), 1600)


def test_the_plot_has_every_run_and_reaches_what_was_held_back():
    curve = draw(PLANTED["steady"], NOISE, np.random.default_rng(0))
    axes = plot_curve(curve, 3200, {3200: [0.55]})
    lines = {line.get_label(): line.get_xydata() for line in axes.get_lines()}
    assert len(lines["fitted to"]) == 9 and lines["held back"].tolist() == [[3200, pytest.approx(15)]]
    assert lines["predicted"][-1].tolist() == pytest.approx([3200, 100 * curve.predict(3200).gain])
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["200", "400", "800", "3,200"]
    assert "held back" not in [line.get_label() for line in plot_curve(curve, 1600).get_lines()]
