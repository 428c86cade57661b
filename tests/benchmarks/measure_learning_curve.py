"""Does a learning curve foretell what four times as many questions gain? Ten repetitions on SQuAD.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.measure_learning_curve

Each repetition draws 4n training questions of its own. It owns n of them: it trains on a quarter, a half and all of
these, three seeds each, and predicts the gain of 4n. Then one training on all 4n is held against the prediction, on the
1,000 test questions of the curve and on 1,000 others. A quarter and a half are drawn anew for every seed. Every
training passes over its questions once, with in-batch negatives only, which need no mining, and the last weights count.

Finished runs in runs/learning-curve are not repeated, and data/results/learning-curve.json is written after every
repetition.
"""

import argparse
import hashlib
import random
import time

import numpy as np

from helpers.base.files import resolve, write_json
from helpers.batches import TrainingRows
from helpers.dataset import PassageIndex, load_data
from helpers.encoder import Encoder, load_encoder
from helpers.evaluation import hit_ranks
from helpers.importing.sources import find_data
from helpers.reporting.learning_curve import LearningCurve, question_variance
from helpers.retrieval import dense_run
from helpers.training import Task, TrainingSettings, train
from tests.benchmarks.common import (
    finite_ranks,
    keep_last_weights,
    machine,
    read_ranks,
    settings_of,
    without_attention_dropout,
)

CUTOFFS = (10, 1)  # the first is the one that counts
LEVELS = (0.5, 0.8, 0.95)
FREE = ("repetitions", "machine")  # options that change no run
SIZES = (800, 1000, 1200, 1400, 1600)  # the n of repetitions 0 to 4, and of 5 to 9


class Repetitions:
    """The data, the settings and the folder that all repetitions share."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.data = options, load_data(find_data(options.data))
        key = [value for name, value in vars(options).items() if name not in FREE] + [self.data.fingerprint]
        self.folder = resolve(f"runs/learning-curve/{hashlib.sha256(repr(key).encode()).hexdigest()[:8]}")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.train_passages = PassageIndex(self.data.training_corpus())
        self.passages = PassageIndex(self.data.evaluation_corpus("held-out"))

    def encoder(self) -> Encoder:
        """Return the encoder before training."""
        options = self.options
        return without_attention_dropout(load_encoder(options.model, max_length=options.max_length, device="cpu"))

    def ranks(self, name: str, qids: list[str], trained_on: list[str], seed: int) -> np.ndarray:
        """Return the rank of each test question's first hit after a training, [Q], unless it is known already."""
        path, options = self.folder / f"{name}.json", self.options
        if not path.exists():
            encoder, started = self.encoder(), time.perf_counter()
            if trained_on:
                rows = TrainingRows(self.data, self.train_passages, dict.fromkeys(trained_on, ()), 0, False, seed)
                settings = TrainingSettings(
                    epochs=options.epochs,
                    batch_size=options.batch,
                    learning_rate=options.learning_rate,
                    eval_every=10**9,
                    seed=seed,
                )
                train(encoder, Task(rows, keep_last_weights()), settings, self.folder / "model")
            queries = {qid: self.data.queries[qid].text for qid in qids}
            run = dense_run(name, encoder, queries, self.passages)
            found = finite_ranks(hit_ranks(run, self.data, self.passages, "test")[0])
            write_json(path, {"ranks": found, "seconds": time.perf_counter() - started})
        return read_ranks(path)

    def repeat(self, number: int) -> dict:
        """Train and evaluate one repetition; return its points, what they foretell, and what was measured."""
        own, options = SIZES[number % len(SIZES)], self.options
        pool = self.data.split_queries("train", 4 * own, seed=number)
        random.Random(number).shuffle(pool)
        test = self.data.split_queries("test", 2 * options.questions, seed=number)
        random.Random(number).shuffle(test)
        asked = self.data.split_queries("test")
        before = dict(zip(asked, self.ranks("before", asked, [], 0), strict=True))
        ranks = {0: [[before[qid] for qid in test]]}
        for size in (own // 4, own // 2, own):
            for seed in range(options.seeds):
                drawn = random.Random(f"{number} {size} {seed}").sample(pool[:own], size)
                name = f"{number}-{size}-{seed}"
                ranks.setdefault(size, []).append(self.ranks(name, test, drawn, 100 * number + seed))
        ranks[4 * own] = [self.ranks(f"{number}-{4 * own}-held-back", test, pool, 100 * number + 99)]
        found = {size: np.array(own_ranks) for size, own_ranks in ranks.items()}
        return {
            "repetition": number,
            "training questions": own,
            **{f"hit@{k}": judge(found, own, k, options.questions) for k in CUTOFFS},
        }


def judge(ranks: dict[int, np.ndarray], own: int, k: int, asked: int) -> dict:
    """Return the points of one repetition, its predictions for 4 × `own`, and what was measured, as shares.

    Parameters
    ----------
    ranks : number of training questions -> ranks of each run, [S, Q]; 0: before training
    asked : that many of the questions are the curve's, and the rest are the others
    """
    target = 4 * own
    hits = {size: found[:, :asked] <= k for size, found in ranks.items()}
    before, last = hits.pop(0)[0], hits.pop(target)
    curve = LearningCurve({size: one.mean(1).tolist() for size, one in hits.items()}, float(before.mean()))
    others = {size: (ranks[size][:, asked:] <= k).mean() for size in (0, target)}
    variance = question_variance(curve, hits, before, target, ranks[0].shape[1] - asked)
    checks = {
        "same questions": (curve.predict(target), last.mean() - before.mean()),
        "other questions": (curve.predict(target, variance=variance), others[target] - others[0]),
    }
    return {
        "before": curve.before,
        "hits": {str(size): own_hits for size, own_hits in curve.hits.items()},
        "held back": {str(target): last.mean(1).tolist()},
        "variance over questions": variance,
        **{
            name: {
                "predicted": list(predicted),
                "measured": float(gain),
                "held": bool(predicted.low <= gain <= predicted.high),
            }
            for name, (predicted, gain) in checks.items()
        },
    }


def summary(options: argparse.Namespace, found: list[dict]) -> dict:
    """Return the repetitions and what they come to: how many held, how wide, how far off, in points."""
    about = {"machine": getattr(options, "machine", "") or machine(), "sizes": SIZES}
    told = {"settings": settings_of(options) | about}
    for k in CUTOFFS:
        told[f"hit@{k}"] = {}
        for name in ("same questions", "other questions"):
            checks = [one[f"hit@{k}"][name] for one in found]
            gains, lows, highs = 100 * np.array([check["predicted"] for check in checks]).T
            measured = 100 * np.array([check["measured"] for check in checks])
            told[f"hit@{k}"][name] = {
                "held": sum(check["held"] for check in checks),
                "of": len(checks),
                "mean width": float((highs - lows).mean()),
                "mean gain": float(measured.mean()),
                **errors(gains - measured),
            }
        told[f"hit@{k}"] |= closer(found, k)
    return told | {"repetitions": found}


def errors(off: np.ndarray) -> dict:
    """Return the mean of what predictions are off by, [R] points, and the mean without signs."""
    return {"mean error": float(off.mean()), "mean absolute error": float(abs(off).mean())}


def closer(found: list[dict], k: int) -> dict:
    """Return, on the same questions, what other levels would hold, and how far off each shape is, and no growth."""
    levels, off = {level: [] for level in LEVELS}, {}
    for one in found:
        points, own = one[f"hit@{k}"], one["training questions"]
        curve = LearningCurve({int(size): hits for size, hits in points["hits"].items()}, points["before"])
        measured = points["same questions"]["measured"]
        for level, checks in levels.items():
            checks.append(curve.predict(4 * own, level=level))
        as_now = float(np.mean(curve.hits[own])) - curve.before
        for name, gain in (curve.gains(4 * own) | {"no more than own": as_now}).items():
            off.setdefault(name, []).append(100 * (gain - measured))
    gains = np.array([one[f"hit@{k}"]["same questions"]["measured"] for one in found])
    held = {}
    for level, checks in levels.items():
        _, lows, highs = np.array(checks).T
        inside = (lows <= gains) & (gains <= highs)
        held[f"{level:.0%}"] = {"held": int(inside.sum()), "mean width": float(100 * (highs - lows).mean())}
    return {"levels": held, "shapes": {name: errors(np.array(own)) for name, own in off.items()}}


def main() -> None:
    """Run every repetition, and write the summary after each."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.measure_learning_curve", description=main.__doc__)
    parser.add_argument("--data", default="squad")
    parser.add_argument("--model", default="bert-tiny")
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each size that the curve goes through")
    parser.add_argument("--questions", type=int, default=1000, help="test questions of the curve, and as many others")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--max-length", type=int, default=96, help="tokens of a text that are read")
    parser.add_argument("--machine", default="", help="on what it runs, in words")
    options = parser.parse_args()
    repetitions, found = Repetitions(options), []
    for number in range(options.repetitions):
        found.append(repetitions.repeat(number))
        write_json(resolve("data/results/learning-curve.json"), summary(options, found))
        print(f"repetition {number} done", flush=True)


if __name__ == "__main__":
    main()
