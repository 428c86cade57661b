r"""The ladder: what each kind of hard negative buys, at equal steps and equal passages a step, over several seeds.

    python -m tests.benchmarks.measure_ladder --model bert-tiny --seeds 0 1 2 --steps 150 --learning-rate 5e-4

Every rung's step encodes `4 × batch` passages: 16 questions with a positive and 3 negatives each, 32 questions with 1
negative each, or, in-batch only, 64 questions. No rung uses the given negative, so that only the pool differs, and the
last weights count, so that no choice of a checkpoint blurs the comparison. Finished runs in runs/ladder are not
repeated; the summary over all of them goes to data/results. Other losses:

    python -m tests.benchmarks.measure_ladder --name losses-bert-tiny --rungs "dense, unfiltered" \
      "dense, unfiltered, guided" "dense, filtered" "dense, filtered, weighted" \
      "dense, filtered, τ = 0.02"
"""

import argparse
import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from filelock import FileLock

from helpers.base.devices import choose_precision
from helpers.base.files import resolve, write_json
from helpers.batches import TrainingRows
from helpers.dataset import PassageIndex, load_data
from helpers.encoder import Encoder, load_encoder
from helpers.evaluation import hit_at_k, hit_ranks
from helpers.gradients import Loss
from helpers.importing.sources import find_data
from helpers.negatives import MiningSettings, Pool, load_pool, mine_pool
from helpers.reporting.diagnosis import churn, false_negative_rate
from helpers.reporting.significance import bootstrap_interval
from helpers.retrieval import dense_run
from helpers.strategies import make_strategy
from helpers.topics.distillation import Teacher, dense_teacher, teacher_vectors
from helpers.topics.hard_losses import guided_loss, hardness_weighted_loss
from helpers.training import Task, TrainingSettings, train
from tests.benchmarks.common import (
    CUTOFFS,
    finite_ranks,
    keep_last_weights,
    last_loss,
    read_ranks,
    settings_of,
    slug,
    without_attention_dropout,
)


@dataclass(frozen=True)
class Rung:
    """One way to choose the negatives."""

    strategy: str = ""
    negatives: int = 3  # of each question; 0: in-batch negatives only
    mining: MiningSettings = field(default_factory=MiningSettings)
    miner: str = ""  # the encoder that ranks; "": the one that will be trained, as it is before
    refreshes: int = 0  # how often the pool is mined anew with the weights of the moment; the first one is BM25's
    temperature: float = 0.05
    guide: str = ""  # the encoder whose scores hide negatives that it takes for positives
    beta: float = 0.0  # how much harder negatives weigh more
    against: str = ""  # the rung that differs from it in one thing


MARGIN = MiningSettings(relative_margin=0.95)
RUNGS = {
    "in-batch only": Rung(negatives=0),
    "random pool": Rung("random"),
    "BM25": Rung("bm25"),
    "dense, unfiltered": Rung("dense", mining=MiningSettings(answers=False)),
    "dense, filtered": Rung("dense", mining=MARGIN),
    "ReSa2": Rung("resa2", mining=MARGIN),
    "dynamic": Rung("dense", mining=MARGIN, refreshes=2),
    "dense, stronger miner": Rung("dense", mining=MARGIN, miner="all-MiniLM-L6-v2"),
    "dense, stronger miner, 1 each": Rung("dense", 1, MARGIN, miner="all-MiniLM-L6-v2"),
    "dense, unfiltered, guided": Rung(
        "dense", mining=MiningSettings(answers=False), guide="all-MiniLM-L6-v2", against="dense, unfiltered"
    ),
    "dense, filtered, guided": Rung("dense", mining=MARGIN, guide="all-MiniLM-L6-v2", against="dense, filtered"),
    "dense, filtered, weighted": Rung("dense", mining=MARGIN, beta=1.0, against="dense, filtered"),
    "dense, filtered, τ = 0.02": Rung("dense", mining=MARGIN, temperature=0.02, against="dense, filtered"),
}


class Ladder:
    """The data, the settings and the folder that all rungs share."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.data = options, load_data(find_data(options.data))
        key = [options.questions, options.steps, options.batch, options.learning_rate, options.precision]
        key.append(self.data.fingerprint)
        name = f"{Path(options.model).name}-{hashlib.sha256(repr(key).encode()).hexdigest()[:8]}"
        self.folder = resolve(f"runs/ladder/{name}")  # runs of other settings lie elsewhere
        self.train_passages = PassageIndex(self.data.training_corpus())
        self.passages = PassageIndex(self.data.evaluation_corpus("held-out"))
        self.train_ids = self.data.split_queries("train", options.questions)
        self.test = {qid: self.data.queries[qid].text for qid in self.data.split_queries("test")}

    def ranks(self, encoder: Encoder) -> np.ndarray:
        """Return the rank of the first passage with an answer for every test question, [Q]."""
        run = dense_run("ladder", encoder, self.test, self.passages)
        return hit_ranks(run, self.data, self.passages, "test")[0]

    def mine(self, rung: Rung, encoder: Encoder) -> Pool:
        """Return the pool of a rung under `encoder`."""
        strategy = make_strategy(rung.strategy, self.data, self.train_passages, 0, encoder)
        return mine_pool(self.data, self.train_passages, strategy, self.train_ids, rung.mining)

    def first_pool(self, name: str) -> Pool:
        """Return the pool that a rung starts with: the same for all its seeds, and for rungs that mine alike."""
        rung = RUNGS["BM25" if RUNGS[name].refreshes else name]
        alike = (rung.strategy, rung.mining, rung.miner)
        name = next(other for other, found in RUNGS.items() if (found.strategy, found.mining, found.miner) == alike)
        path = self.folder / f"{slug(name)}.pool.jsonl"
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.exists():
                self.mine(rung, load_encoder(rung.miner or self.options.model)).save(path)
        return load_pool(path, self.data)

    def loss(self, rung: Rung) -> Loss | None:
        """Return the loss of a rung; None: InfoNCE at its temperature."""
        if rung.beta:
            return hardness_weighted_loss(rung.beta, rung.temperature)
        return guided_loss(self.guide(rung.guide), temperature=rung.temperature) if rung.guide else None

    def guide(self, name: str) -> Teacher:
        """Return an encoder's similarities of all training questions and passages; its vectors are made once."""
        questions = [self.data.queries[qid].text for qid in self.train_ids]
        encoder = load_encoder(name)
        encoder.precision = choose_precision("auto", encoder.device.type)
        texts = {"query": questions, "passage": self.train_passages.texts}
        vectors = teacher_vectors(encoder, texts, self.folder / f"{slug(name)}.safetensors")
        return dense_teacher(vectors, self.train_ids, range(len(self.train_passages)), temperature=1.0)

    def climb(self, name: str, seed: int) -> None:
        """Train one rung with one seed and write its test ranks, unless that has been done."""
        path = self.folder / f"{slug(name)}.{seed}.json"
        if path.exists():
            return
        rung, options = RUNGS[name], self.options
        pool = self.first_pool(name) if rung.negatives else Pool({qid: [] for qid in self.train_ids}, {})
        rows = TrainingRows(self.data, self.train_passages, pool.ids(), rung.negatives, False, seed)
        encoder = without_attention_dropout(load_encoder(options.model))

        def refresh(encoder: Encoder) -> dict:
            nonlocal pool
            old, pool = pool, self.mine(rung, encoder)
            rows.set_pool(pool.ids())
            return {
                "churn": churn(old, pool),
                "false_negatives": false_negative_rate(pool, self.data, self.train_passages),
            }

        settings = TrainingSettings(
            epochs=100,
            max_steps=options.steps,
            batch_size=4 * options.batch // (1 + rung.negatives),
            learning_rate=options.learning_rate,
            eval_every=options.steps,
            seed=seed,
            precision=options.precision,
            refresh_every=-(-options.steps // (rung.refreshes + 1)),
            temperature=rung.temperature,
        )
        task = Task(rows, keep_last_weights(), self.loss(rung), refresh if rung.refreshes else None)
        history = train(encoder, task, settings, self.folder / "model" / f"{slug(name)}.{seed}")
        refreshes = [{"step": entry["step"], **entry["refresh"]} for entry in history if "refresh" in entry]
        found = {"ranks": finite_ranks(self.ranks(encoder)), "last_loss": last_loss(history), "refreshes": refreshes}
        write_json(path, found)

    def summary(self) -> dict:
        """Return Hit@K of every finished rung over its seeds, and paired differences from the rung below and random."""
        zero = self.ranks(load_encoder(self.options.model))
        runs, losses, refreshes = {"zero-shot": [zero]}, {}, {}
        for name in RUNGS:
            paths = [p for p in self.folder.glob("*.json") if re.fullmatch(rf"{slug(name)}\.-?\d+", p.stem)]
            found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(paths)]
            if found:
                refreshes[name] = [run["refreshes"] for run in found]
                losses[name] = [run["last_loss"] for run in found]
                runs[name] = [read_ranks(path) for path in sorted(paths)]
        rows, below = [], ""
        for name, ranks in runs.items():
            row = {"rung": name, "seeds": len(ranks)}
            if name in losses:
                row |= {"last loss": float(np.mean(losses[name])), "refreshes": refreshes[name]}
            if name in RUNGS and RUNGS[name].negatives:
                row["false negatives"] = false_negative_rate(self.first_pool(name), self.data, self.train_passages)
            for k in CUTOFFS:
                hits = np.array([100 * hit_at_k(r, k) for r in ranks])
                row[f"hit@{k}"] = {"mean": hits.mean(), "sd": hits.std(ddof=1) if len(hits) > 1 else None}
                against = RUNGS[name].against if name in RUNGS else ""
                for label, other in (("below", below), ("random", "random pool"), ("one change", against)):
                    if other in runs and other != name:
                        gain = np.mean([r <= k for r in ranks], axis=0) - np.mean([r <= k for r in runs[other]], axis=0)
                        low, high = bootstrap_interval(100 * gain)
                        row[f"hit@{k}"][f"minus {label}"] = [100 * gain.mean(), low, high]
            rows.append(row)
            below = name
        return {
            "settings": settings_of(self.options, "seeds", "rungs", "name"),
            "questions": len(zero),
            "passages": len(self.passages),
            "rungs": rows,
        }


def main() -> None:
    """Climb the ladder and write its summary."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.measure_ladder", description=main.__doc__)
    parser.add_argument("--data", default="squad")
    parser.add_argument("--model", default="bert-tiny")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rungs", nargs="+", default=list(RUNGS), choices=list(RUNGS))
    parser.add_argument("--questions", type=int, default=5000, help="training questions")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument(
        "--batch",
        type=int,
        default=16,
        help="questions a step with 3 negatives each; with fewer negatives, more questions",
    )
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--name", default="", help="of the summary, ladder-<name>.json; the model's if none")
    options = parser.parse_args()
    ladder = Ladder(options)
    for seed in options.seeds:
        for name in options.rungs:
            ladder.climb(name, seed)
            print(f"seed {seed}: {name} done", flush=True)
    write_json(resolve(f"data/results/ladder-{options.name or Path(options.model).name}.json"), ladder.summary())


if __name__ == "__main__":
    main()
