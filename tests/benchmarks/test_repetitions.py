"""The ten repetitions: predictions follow from the points beside them, and README says how many held."""

import argparse

import numpy as np
import pytest

from helpers.base.files import ROOT, read_json
from helpers.reporting.learning_curve import LearningCurve
from tests.benchmarks import measure_learning_curve as measure

CHECKS = ("same questions", "other questions")


@pytest.fixture(scope="module")
def results():
    return read_json(ROOT / "data/results/learning-curve.json")


def test_there_are_ten_repetitions_none_like_another(results):
    found = results["repetitions"]
    assert [one["repetition"] for one in found] == list(range(10))
    assert results["settings"]["model"] == "bert-tiny" and results["settings"]["data"] == "squad"
    for one in found:
        own = one["training questions"]
        for k in measure.CUTOFFS:
            points = one[f"hit@{k}"]
            assert [int(size) for size in points["hits"]] == [own // 4, own // 2, own]
            assert {len(hits) for hits in points["hits"].values()} == {results["settings"]["seeds"]}
            assert list(points["held back"]) == [str(4 * own)]
    runs = [hit for one in found for hits in one["hit@10"]["hits"].values() for hit in hits]
    assert len(set(runs)) > 40  # of 90 shares of 1,000 questions


def test_every_prediction_follows_from_its_points(results):
    for one in results["repetitions"]:
        for k in measure.CUTOFFS:
            points, target = one[f"hit@{k}"], 4 * one["training questions"]
            curve = LearningCurve({int(size): hits for size, hits in points["hits"].items()}, points["before"])
            for name, variance in zip(CHECKS, (0.0, points["variance over questions"]), strict=True):
                check = points[name]
                assert check["predicted"] == pytest.approx(list(curve.predict(target, variance=variance)))
                assert check["held"] is (check["predicted"][1] <= check["measured"] <= check["predicted"][2])
            measured = np.mean(points["held back"][str(target)]) - points["before"]
            assert points["same questions"]["measured"] == pytest.approx(measured)


def test_the_summary_is_that_of_the_repetitions(results):
    again = measure.summary(argparse.Namespace(), results["repetitions"])
    for k in measure.CUTOFFS:
        for name in CHECKS:
            assert results[f"hit@{k}"][name] == pytest.approx(again[f"hit@{k}"][name])
        for name, own in again[f"hit@{k}"]["levels"].items():
            assert results[f"hit@{k}"]["levels"][name] == pytest.approx(own)
        assert results[f"hit@{k}"]["levels"]["95%"]["held"] == again[f"hit@{k}"]["same questions"]["held"]


def test_lower_levels_hold_fewer_and_no_growth_is_too_little(results):
    for k in measure.CUTOFFS:
        levels, shapes = results[f"hit@{k}"]["levels"], results[f"hit@{k}"]["shapes"]
        assert levels["50%"]["held"] < levels["80%"]["held"] < levels["95%"]["held"]  # so 95% is not trivially wide
        assert shapes["levels off"]["mean error"] < shapes["misses by a power"]["mean error"]
        assert shapes["no more than own"]["mean error"] < 0 < shapes["steady"]["mean error"]


def test_at_least_eight_of_ten_held_and_not_by_being_wide(results):
    for k in measure.CUTOFFS:
        same, other = (results[f"hit@{k}"][name] for name in CHECKS)
        assert same["held"] >= 8 and other["held"] >= 8
        assert same["mean width"] < other["mean width"] < same["mean gain"]


def test_one_repetition_is_judged_on_its_own_and_on_other_questions():
    """Made-up ranks: a hit is rank 1, a miss has none; the last 30 questions are the others, all won by training."""

    def made(hits, others):
        return np.where(np.arange(130) < 100, np.where(np.arange(130) < hits, 1, np.inf), 1 if others else np.inf)

    ranks = {0: made(10, False)[None], 400: made(62, True)[None]}
    ranks |= {100: np.stack([made(20, True), made(22, True)]), 50: np.stack([made(11, False), made(12, True)])}
    ranks |= {25: np.stack([made(7, False), made(9, False)])}
    found = measure.judge(ranks, 100, 10, 100)
    assert found["before"] == pytest.approx(0.1) and found["held back"] == {"400": [pytest.approx(0.62)]}
    assert found["hits"] == {"100": [0.2, 0.22], "50": [0.11, 0.12], "25": [0.07, 0.09]}
    assert found["same questions"]["measured"] == pytest.approx(0.52) and found["same questions"]["held"] is False
    assert found["other questions"]["measured"] == 1.0 and found["other questions"]["held"] is False
    assert 0 < found["same questions"]["predicted"][0] < 0.3
    ranks[400] = made(35, True)[None]
    assert measure.judge(ranks, 100, 10, 100)["same questions"]["held"] is True


def test_a_finished_run_is_not_repeated(tmp_path, monkeypatch):
    repetitions = object.__new__(measure.Repetitions)
    repetitions.folder, repetitions.options = tmp_path, argparse.Namespace()
    measure.write_json(tmp_path / "3-200-0.json", {"ranks": [1, 0, 7]})
    monkeypatch.setattr(measure.Repetitions, "encoder", lambda _self: pytest.fail("it was trained again"))
    assert repetitions.ranks("3-200-0", ["a", "b", "c"], ["x"], 300).tolist() == [1, np.inf, 7]


def test_the_readme_says_what_was_measured(results):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    same = results["hit@10"]["same questions"]
    told = f"in {same['held']} of {same['of']} repetitions"
    assert told in readme and f"intervals {same['mean width']:.1f} points wide" in readme, told
