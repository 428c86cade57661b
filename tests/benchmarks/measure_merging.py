"""What does a training cost elsewhere, and how much of it does merging undo? Notebook 14 with a strong model and seeds.

    python -m tests.benchmarks.measure_merging --seeds 0 1

all-MiniLM-L6-v2 is trained on SQuAD and looked at on SQuAD's held-out articles, the sample, and code search. Runs are
in runs/merging-<seed>, finished ones are not repeated; the summary goes to data/results/merging.json.
"""

import argparse
import time

import numpy as np

from helpers.base.files import read_json, resolve, write_json
from helpers.reporting.significance import bootstrap_interval
from helpers.running.run import run_notebooks
from tests.benchmarks.common import machine, settings_of


def run_seed(seed: int, options: argparse.Namespace) -> dict:
    """Run the notebook with one seed, unless that has been done, and return its summary."""
    folder = resolve(f"runs/merging-{seed}")
    if not (folder / "merging.json").exists():
        parameters = {"model_name": options.model, "train_questions": options.questions, "precision": "auto"}
        parameters |= {"learning_rate": options.learning_rate, "resume": True, "seed": seed}
        started = time.perf_counter()
        run_notebooks(parameters | {"also_questions": 0, "test_questions": 0}, folder, "14_*.ipynb")
        print(f"seed {seed}: {time.perf_counter() - started:.0f} s", flush=True)
    return read_json(folder / "merging.json")


def summary(options: argparse.Namespace, runs: list[dict]) -> dict:
    """Return, for each data set, what every α and the chosen one change, in points.

    Intervals are paired bootstraps over questions, with the seeds averaged; the gain of each seed stands beside them.
    """
    sets = {}
    for name in runs[0]["hits"]:
        about = {key: runs[0]["ledger"][name][key] for key in ("questions", "passages")}
        sets[name] = about | {"before": {}, "changes": {}, "by seed": {}}
        for measure in ("Hit@1", "Hit@10"):
            hits = [run["hits"][name][measure] for run in runs]
            before = np.array([own["0.0"] for own in hits]) > 0  # [S, Q]
            changes, by_seed = {}, {}
            for alpha in [*hits[0], "chosen"]:
                places = [str(run["chosen"]) if alpha == "chosen" else alpha for run in runs]
                after = np.array([own[place] for own, place in zip(hits, places, strict=True)]) > 0
                gains = 100 * (after.astype(float) - before)
                changes[alpha] = [float(gains.mean()), *bootstrap_interval(gains.mean(0))]
                by_seed[alpha] = gains.mean(1).tolist()
            sets[name]["before"][measure] = float(100 * before.mean())
            sets[name]["changes"][measure] = changes
            sets[name]["by seed"][measure] = by_seed
    return {
        "settings": settings_of(options) | {"machine": machine()},
        "chosen": [run["chosen"] for run in runs],
        "dev": [run["dev"] for run in runs],
        "sets": sets,
    }


def main() -> None:
    """Run every seed, and write the summary."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", default="all-MiniLM-L6-v2")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--questions", type=int, default=1600)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    options = parser.parse_args()
    runs = [run_seed(seed, options) for seed in options.seeds]
    write_json(resolve("data/results/merging.json"), summary(options, runs))


if __name__ == "__main__":
    main()
