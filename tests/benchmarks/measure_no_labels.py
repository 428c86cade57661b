"""What are generated questions worth? Notebook 12 on SQuAD's articles, several seeds, beside questions people asked.

    python -m tests.benchmarks.measure_no_labels --seeds 0 1 2

The articles and what the language model wrote for them are the same for all seeds; what differs is the training. Runs
are in runs/no-labels-<seed>, finished ones are not repeated; the summary goes to data/results/no-labels.json.
"""

import argparse
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pandas as pd

from helpers.base.files import resolve, write_json
from helpers.reporting.significance import estimate
from helpers.running.parameters import load_parameters
from helpers.running.run import run_notebooks
from tests.benchmarks.common import CUTOFFS, machine, settings_of

BASELINES = ("as it came", "generated, as many", "generated, filtered", "generated", "asked by people")


def run_seed(seed: int, options: argparse.Namespace) -> dict:
    """Run the notebook with one seed, unless that has been done, and return its summary."""
    folder, first = (resolve(f"runs/no-labels-{number}") for number in (seed, options.seeds[0]))
    if not (folder / "no_labels.json").exists():
        parameters = load_parameters("cpu") | {"seed": seed, "document_count": options.articles, "dev_questions": 500}
        parameters["max_steps"] = options.steps
        folder.mkdir(parents=True, exist_ok=True)
        if folder != first:
            shutil.copy(first / "questions.jsonl", folder)
        started = time.perf_counter()
        run_notebooks(parameters, folder, "12_*.ipynb")
        print(f"seed {seed}: {time.perf_counter() - started:.0f} s", flush=True)
    return json.loads((folder / "no_labels.json").read_text(encoding="utf-8"))


def ranks_by_answer(path: Path) -> dict[str, np.ndarray]:
    """Return system -> rank of the first passage with an answer, [Q], from the ranks.tsv of a report."""
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    table["answer"] = table["answer"].replace("-", "inf").astype(float)
    return {name: own["answer"].to_numpy() for name, own in table.groupby("system", sort=False)}


def summary(options: argparse.Namespace, runs: list[dict]) -> dict:
    """Return Hit@K of every system over all seeds, its gains with paired intervals, and what was generated."""
    tables = [ranks_by_answer(resolve(f"runs/no-labels-{seed}") / "no_labels" / "ranks.tsv") for seed in options.seeds]
    ranks = {name: np.stack([table[name] for table in tables]) for name in tables[0]}  # [S, Q]
    systems = []
    for name, own in ranks.items():
        row = {"name": name}
        for k in CUTOFFS:
            row[f"hit@{k}"] = {"mean": float(100 * (own <= k).mean()), "each": (100 * (own <= k).mean(1)).tolist()}
            for other in BASELINES:
                if other != name:
                    gain = estimate(own <= k, ranks[other] <= k)
                    row[f"hit@{k}"][f"minus {other}"] = [100 * gain.mean, 100 * gain.low, 100 * gain.high]
        systems.append(row)
    kept = ("passages", "texts", "round trip", "twins", "negatives above the positive", "steps", "seconds a text")
    return {
        "settings": settings_of(options) | {"machine": machine()},
        "questions": len(next(iter(ranks.values()))[0]),
        "searched": runs[0]["report"]["passages"],
        **{name: runs[0][name] for name in kept},
        "trained on": runs[0]["questions"],
        "trust": [run["trust"] for run in runs],
        "systems": systems,
    }


def main() -> None:
    """Run every seed, and write the summary."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--articles", type=int, default=25)
    parser.add_argument("--steps", type=int, default=150)
    options = parser.parse_args()
    runs = [run_seed(seed, options) for seed in options.seeds]
    write_json(resolve("data/results/no-labels.json"), summary(options, runs))


if __name__ == "__main__":
    main()
