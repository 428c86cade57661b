"""The comparison of speed runs, and writes what it promises."""

import os
import subprocess
import sys
from itertools import chain

import pytest

from helpers.base.files import ROOT, read_json
from tests.benchmarks.common import spread
from tests.benchmarks.measure_growth import exponent


def measure(*options):
    command = [sys.executable, "-m", "tests.benchmarks.measure_speed", *map(str, options)]
    quiet = {**os.environ, "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=quiet)


def test_a_ratio_is_the_rivals_time_over_ours():
    assert spread([2.0, 6.0, 1.0], [1.0, 2.0, 2.0]) == {"ratio_median": 2.0, "ratio_min": 0.5, "ratio_max": 3.0}


def test_unknown_work_is_refused():
    done = measure("encodign")
    assert done.returncode == 2 and "encodign: no such work; use some of encoding" in done.stderr


@pytest.mark.bench
def test_results_are_written_one_by_one(tmp_path):
    out = tmp_path / "new" / "bench.json"
    done = measure("import", "mask", "--rounds", 1, "--out", out)
    assert done.returncode == 0, done.stderr[-2000:]
    for row in read_json(out):
        assert {"work", "rival", "ratio_median", "ratio_min", "ratio_max", "target", "machine"} <= set(row)
        assert row["ratio_median"] == pytest.approx(row["rival_seconds"] / row["seconds"])
        assert f"{row['work']}: {row['ratio_median']:.2f}" in done.stdout
    assert len(read_json(out)) == 2 and out.with_suffix(".png").stat().st_size > 1000


def test_readme_shows_the_committed_results():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for row in chain.from_iterable(map(read_json, sorted((ROOT / "data" / "results").glob("speed*.json")))):
        spread_of = f"{row['ratio_median']:.2f} ({row['ratio_min']:.2f} to {row['ratio_max']:.2f})"
        assert f"| {row['work']} | {row['rival']} | {spread_of} | {row['target']:g} |" in readme


def test_the_exponent_of_a_power_is_found_and_overhead_left_out():
    sizes = [1_000, 10_000, 100_000]
    assert exponent(sizes, [9.0, 0.2, 0.2 * 10**1.3]) == pytest.approx(1.3)


SMALL = {
    "growth": ["--sizes", 50, 100, 200, "--rounds", 1],
    "profile": ["--model", "bert-tiny", "--passages", 20],
    "precision": ["--model", "bert-tiny", "--questions", 20, "--passages", 150],
}


@pytest.mark.bench
@pytest.mark.parametrize("name", SMALL)
def test_the_other_measurements_run(tmp_path, name):
    out, options = tmp_path / f"{name}.json", map(str, SMALL[name])
    command = [sys.executable, "-m", f"tests.benchmarks.measure_{name}", *options, "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = read_json(out)
    if name == "growth":
        assert all(row["passages"] == [50, 100, 200] and "exponent" in row for row in found["works"].values())
        assert out.with_suffix(".png").stat().st_size > 1000
    elif name == "profile":
        assert all(0.5 < sum(found[path]["shares"].values()) <= 1 for path in ("encode", "training step"))
    else:
        assert found["cosine"]["least"] > 0.999 and list(found["hits"]) == ["1", "10", "100"]
        assert all(row["difference"] == pytest.approx(row["bf16"] - row["fp32"]) for row in found["hits"].values())
