"""The summary of generated questions pairs seeds and questions, and README says what was measured."""

import argparse
import json

import numpy as np
import pytest

from helpers.base.files import ROOT, read_json, write_text
from helpers.reporting.significance import estimate
from tests.benchmarks import measure_no_labels as measure

GENERATED = ("generated", "generated, as many", "generated, filtered", "filtered, margins")
SYSTEMS = ("BM25", "as it came", *GENERATED, "asked by people")


def test_the_summary_is_over_seeds_and_questions(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "resolve", lambda name: tmp_path / name)
    rng, ranks = np.random.default_rng(0), {}
    for seed in (0, 1):
        lines = ["query-id\tsystem\tanswer\tqrels"]
        for name in SYSTEMS:
            ranks[seed, name] = rng.integers(1, 130, 60).astype(float)
            ranks[seed, name][ranks[seed, name] > 100] = np.inf
            for number, rank in enumerate(ranks[seed, name]):
                lines.append(f"q{number}\t{name}\t{'-' if np.isinf(rank) else int(rank)}\t1")
        write_text(tmp_path / f"runs/no-labels-{seed}/no_labels/ranks.tsv", "\n".join(lines) + "\n")
    names = ("passages", "texts", "round trip", "twins", "negatives above the positive", "steps", "seconds a text")
    runs = [{"report": {"passages": 200}, "questions": {}, "trust": {}, **dict.fromkeys(names, 0)}] * 2
    found = measure.summary(argparse.Namespace(seeds=[0, 1]), runs)
    assert found["questions"] == 60 and found["searched"] == 200
    rows = {row["name"]: row for row in found["systems"]}
    assert list(rows) == list(SYSTEMS)
    both = {name: np.stack([ranks[seed, name] for seed in (0, 1)]) for name in SYSTEMS}
    row = rows["generated, filtered"]["hit@10"]
    assert row["mean"] == pytest.approx(100 * (both["generated, filtered"] <= 10).mean())
    assert row["each"] == pytest.approx([100 * (own <= 10).mean() for own in both["generated, filtered"]])
    gain = estimate(both["generated, filtered"] <= 10, both["generated"] <= 10)
    assert row["minus generated"] == pytest.approx([100 * gain.mean, 100 * gain.low, 100 * gain.high])
    assert "minus generated" not in rows["generated"]["hit@10"]


def test_a_finished_seed_is_not_repeated(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "resolve", lambda name: tmp_path / name)
    monkeypatch.setattr(measure, "run_notebooks", lambda *_: pytest.fail("it ran again"))
    write_text(tmp_path / "runs/no-labels-3/no_labels.json", json.dumps({"seed": 3}))
    assert measure.run_seed(3, argparse.Namespace(seeds=[3], articles=2, steps=1)) == {"seed": 3}


def test_the_readme_says_what_was_measured():
    found = read_json(ROOT / "data/results/no-labels.json")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = {row["name"]: row["hit@10"] for row in found["systems"]}
    for name in ("generated", "generated, filtered", "asked by people"):
        gain = "{:+.1f} points of Hit@10 [{:+.1f}, {:+.1f}]".format(*rows[name]["minus as it came"])
        assert gain.replace("-", "−") in readme, gain
