"""What README says of weight merging is what was measured, and the summary over seeds adds up."""

import argparse

import numpy as np
import pytest

from helpers.base.files import ROOT, read_json
from helpers.reporting.significance import bootstrap_interval
from tests.benchmarks.measure_merging import summary

HITS = {
    0: {"0.0": [1, 0, 0, 1, 0, 0], "0.5": [1, 1, 0, 1, 0, 1], "1.0": [1, 1, 1, 0, 0, 1]},
    1: {"0.0": [1, 0, 0, 1, 0, 0], "0.5": [1, 0, 0, 1, 1, 1], "1.0": [1, 1, 1, 1, 1, 0]},
}


def made_run(seed: int, chosen: float) -> dict:
    ledger = {"squad": {"questions": 6, "passages": 9}}
    hits = {"squad": {"Hit@1": HITS[seed], "Hit@10": HITS[seed]}}
    return {"chosen": chosen, "dev": {"0.0": 0.5, "1.0": 0.6}, "ledger": ledger, "hits": hits}


def test_the_summary_averages_seeds_and_each_seed_has_its_own_alpha():
    got = summary(argparse.Namespace(model="m", seeds=[0, 1]), [made_run(0, 0.5), made_run(1, 1.0)])
    assert got["chosen"] == [0.5, 1.0] and got["settings"]["model"] == "m"
    own = got["sets"]["squad"]
    assert (own["questions"], own["passages"], own["before"]["Hit@1"]) == (6, 9, pytest.approx(100 / 3))
    before = np.array([HITS[0]["0.0"], HITS[1]["0.0"]]) > 0
    after = np.array([HITS[0]["0.5"], HITS[1]["1.0"]]) > 0
    gains = 100 * (after.astype(float) - before)
    chosen = own["changes"]["Hit@10"]["chosen"]
    assert chosen == pytest.approx([100 * (2 + 3) / 12, *bootstrap_interval(gains.mean(0))])
    assert own["changes"]["Hit@1"]["0.0"] == [0, 0, 0]
    assert own["by seed"]["Hit@1"]["chosen"] == pytest.approx([100 * 2 / 6, 100 * 3 / 6])


def test_readme_says_what_was_measured():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    measured = read_json(ROOT / "data" / "results" / "merging.json")
    bullet = next(text for text in readme.split("\n- ") if text.startswith("*Weight merging*"))
    assert f"{len(measured['chosen'])} seeds" in bullet
    for name in ("squad", "sample", "code"):
        for place in ("1.0", "chosen"):
            change = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*measured["sets"][name]["changes"]["Hit@1"][place])
            assert change.replace("-", "−") in bullet, (name, place)
    gain = measured["sets"]["squad"]["changes"]["Hit@1"]
    assert f"{gain['chosen'][0] / gain['1.0'][0]:.0%} of the gain" in bullet
