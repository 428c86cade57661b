"""The committed prefix study: its schemes are those of the profiles, and the notebook quotes its numbers."""

import json

import pytest

from helpers.base.files import ROOT, read_json
from tests.benchmarks.benchmark_prefixes import NAMES, PAIRS, pair_of


@pytest.fixture(scope="module")
def study():
    return read_json(ROOT / "data" / "results" / "prefixes.json")


def test_the_schemes_are_those_of_the_profiles(study):
    assert study["schemes"] == {
        name: {scheme: pair_of(name, scheme) for scheme in ("auto", "model-card")} for name in NAMES
    }
    assert study["pairs"] == {name: list(pair) for name, pair in PAIRS.items()}


def test_every_pair_was_trained_with_and_searched_with(study):
    rows = [(row["trained with"], row["searched with"], row["seeds"]) for row in study["bert-tiny"]]
    assert rows == [(one, other, 3) for one in PAIRS for other in PAIRS]
    for row in study["bert-tiny"] + study["all-MiniLM-L6-v2"]:
        assert ("minus matched" in row["hits"]["1"]) == (row["trained with"] != row["searched with"])
        assert row["hits"]["1"]["low"] < row["hits"]["1"]["mean"] < row["hits"]["1"]["high"]


def test_the_notebook_quotes_the_study(study):
    cells = json.loads((ROOT / "notebooks" / "04_evaluate.ipynb").read_text(encoding="utf-8"))["cells"]
    text = " ".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown").split()
    text = " ".join(text).replace("−", "-")
    for pair, gain in study["bert-tiny, matched, minus none"].items():
        values = [100 * gain["1"][name] for name in ("mean", "low", "high")]
        assert (
            "{:+.1f} points [{:+.1f}, {:+.1f}]".format(*values) in text
            or "{:+.1f} [{:+.1f}, {:+.1f}]".format(*values) in text
        ), pair
    for model, unit in (("bert-tiny", "points "), ("all-MiniLM-L6-v2", "points ")):
        for row in study[model]:
            if row["trained with"] == "none" and row["searched with"] != "none":
                gap = row["hits"]["1"]["minus matched"]
                loss, low, high = (-100 * gap[name] for name in ("mean", "high", "low"))
                quoted = f"{loss:.1f} {unit}[{low:.1f}, {high:.1f}]", f"{loss:.1f} [{low:.1f}, {high:.1f}]"
                assert any(one in text for one in quoted), (model, row["searched with"])
