"""How much Hit@10 falls when vectors are cut, with and without the Matryoshka loss.

    python -m tests.benchmarks.measure_matryoshka

Notebook 03's defaults, with several seeds; both ways take the same steps over the same rows.
The test split is searched.
"""

import argparse
import itertools
from dataclasses import replace

import numpy as np

from helpers.base.files import resolve, write_json
from helpers.evaluation import hit_ranks
from helpers.reporting.significance import bootstrap_interval, estimate
from helpers.retrieval import dense_run
from helpers.running.launch import train_model
from helpers.running.start import CourseRun, course_run
from tests.benchmarks.common import machine, settings_of

WAYS = {"without": False, "with": True}  # the loss over cut vectors


def hits(run: CourseRun, sizes: list[int], k: int = 10) -> np.ndarray:
    """Train a model and return whether each test question has an answer in the first `k`, [sizes, Q]."""
    train_model(run, "hard-negatives")
    encoder = run.encoder()
    encoder.restore(run.models / "hard-negatives")
    queries, found = run.questions("test", 0), []
    for size in sizes:
        encoder.profile = replace(encoder.profile, dimensions=size)
        ranking = dense_run(f"{size}", encoder, queries, run.passages)
        found.append(hit_ranks(ranking, run.data, run.passages, "test")[0] <= k)
    return np.array(found)


def main() -> None:
    """Train, search with whole and cut vectors, and write the table."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", default="data/sample")
    parser.add_argument("--epochs", type=int, default=2, help="as notebook 03, whose other defaults are used too")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 64, 32, 16], help="the first: the whole vector")
    parser.add_argument("--out", default="data/results/matryoshka.json")
    options = parser.parse_args()
    given = {"data": options.data, "model_name": "bert-tiny", "device": "cpu", "epochs": options.epochs}
    given |= {"processes": 1, "hard_negatives": 2, "eval_corpus": "all", "temperature": 0.05, "learning_rate": 5e-4}
    found = {way: [] for way in WAYS}
    for seed, (way, cut) in itertools.product(options.seeds, WAYS.items()):
        own = {"seed": seed, "run_dir": f"runs/matryoshka/{way}-{seed}", "matryoshka": options.sizes[1:] if cut else []}
        found[way].append(hits(course_run(given | own), options.sizes))
        print(way, seed, found[way][-1].mean(1).round(4).tolist(), flush=True)
    arrays = {way: np.array(runs) for way, runs in found.items()}  # [seeds, sizes, Q]
    falls = {way: runs[:, :1].astype(float) - runs for way, runs in arrays.items()}
    rows = []
    for number, size in enumerate(options.sizes):
        saved = falls["without"][:, number] - falls["with"][:, number]  # [seeds, Q]
        rows.append(
            {
                "dimensions": size,
                "hit@10": {way: estimate(runs[:, number])._asdict() for way, runs in arrays.items()},
                "falls less by": float(saved.mean()),
                "interval over questions": list(bootstrap_interval(saved.mean(0), 0.95)),
                "by seed": saved.mean(1).tolist(),
            }
        )
    settings = settings_of(options, "out") | {"machine": machine()}
    write_json(resolve(options.out), {"settings": settings, "questions": arrays["with"].shape[-1], "rows": rows})


if __name__ == "__main__":
    main()
