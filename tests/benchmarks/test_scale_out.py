"""The measurement of a million vectors, over two thousand: every stage, and shards that are there already."""

import json
import subprocess
import sys
from argparse import Namespace

import pytest

from helpers.base.files import ROOT, read_json
from tests.benchmarks.measure_scale_out import EFFORTS, STAGES


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scale-out")
    numbers = {"passages": 2000, "real": 1000, "questions": 20, "test_questions": 50, "rounds": 2, "seed": 0}
    return Namespace(model="bert-tiny", folder=folder, **numbers)


def test_shards_are_made_once_and_searched_exactly(options):
    first, again = STAGES["encode"](options, ""), STAGES["encode"](options, "")
    assert first["shards"] == 1 and first["real texts a second"] > 0
    assert "real texts a second" not in again  # nothing was encoded
    found = STAGES["from disk"](options, "")
    assert found["largest difference of a score"] < 1e-6 and found["ms"] > 0


def test_ways_are_compared_on_squads_own_passages(options):
    STAGES["encode"](options, "")
    found = STAGES["squad"](options, "")
    assert (found["passages"], found["questions"]) == (1000, 50) and len(found["ways"]) == 9
    exact, flat = found["ways"]["exact, from disk"], found["ways"]["flat"]
    assert exact["bytes"] == 2 * 128 and exact["recall@100"] == flat["recall@100"] == 1
    assert exact["minus exact"] == [0, 0, 0] and found["ways"]["bits"]["recall@100"] < 1


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_an_index_is_compared_with_exact_search(options, kind):
    STAGES["encode"](options, "")
    built = STAGES["build"](options, kind)
    assert built["build_s"] > 0 and built["bytes a vector"] > 4 * 128
    rows = STAGES["search"](options, kind)["searches"]
    assert [row["effort"] for row in rows] == list(EFFORTS[kind])
    shares = [row["recall@100"] for row in rows]
    assert shares == sorted(shares) and shares[0] < shares[-1] and shares[-1] > 0.95
    assert all(row["ratio_min"] <= row["ratio_median"] <= row["ratio_max"] for row in rows)
    assert all(row["ratio one"] > 0 for row in rows)


def test_a_stage_says_its_result_and_its_memory(options):
    """As the whole measurement starts it: in a process of its own, which may not hold more than 8 GB."""
    command = [sys.executable, "-m", "tests.benchmarks.measure_scale_out", "--stage", "encode"]
    for name, value in vars(options).items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert 0 < json.loads(done.stdout.splitlines()[-1])["peak_gb"] < 8


def test_the_readme_says_what_was_measured():
    measured = read_json(ROOT / "data" / "results" / "scale-out.json")
    hnsw, readme = measured["hnsw"], (ROOT / "README.md").read_text(encoding="utf-8")
    row = next(row for row in hnsw["search"]["searches"] if row["recall@100"] >= 0.95)
    slow, fast = row["ratio_min"], row["ratio_max"]
    for text in (
        f"HNSW finds {row['recall@100']:.1%} of the exact first hundred",
        f"{row['ratio_median']:.1f} times as fast as our exact search ({slow:.1f} to {fast:.1f})",
        f"{row['ratio one']:.0f} times with one alone; it was built in {hnsw['build']['build_s']:.0f} s",
        f"takes {measured['from disk']['ms']:.0f} ms a question",
    ):
        assert text in " ".join(readme.split()), text
    assert max(part[stage]["peak_gb"] for part in (hnsw, measured["ivf"]) for stage in ("build", "search")) < 8
