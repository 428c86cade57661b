"""Does a student learn more from a teacher than from the labels alone, at equal steps and data? Over several seeds.

    python -m tests.benchmarks.measure_distillation --split dev --seeds 0      # every recipe: the knobs are chosen here
    python -m tests.benchmarks.measure_distillation --split test --seeds 0 1 2 --recipes …   # the chosen ones, once

SQuAD, 5,000 training questions, in-batch negatives and one of BM25's hard negatives each, 200 steps of 32 questions;
the last weights count. Finished runs in runs/distillation are not repeated; the summary goes to data/results.
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass

import numpy as np
import torch

from helpers.base.files import resolve, write_json
from helpers.batches import TrainingRows
from helpers.dataset import PassageIndex, load_data
from helpers.encoder import load_encoder
from helpers.evaluation import hit_at_k, hit_ranks
from helpers.importing.sources import find_data
from helpers.negatives import load_pool, mine_pool
from helpers.reporting.significance import estimate
from helpers.retrieval import Run, dense_run, dense_search
from helpers.strategies import bm25_strategy
from helpers.topics.distillation import (
    bm25_teacher,
    dense_teacher,
    distillation_loss,
    ensemble,
    first_layers,
    match_vectors,
    teacher_vectors,
)
from helpers.training import Task, TrainingSettings, train
from tests.benchmarks.common import (
    CUTOFFS,
    finite_ranks,
    keep_last_weights,
    read_ranks,
    slug,
    without_attention_dropout,
)

TEACHER = "all-MiniLM-L6-v2"


@dataclass(frozen=True)
class Recipe:
    """A student, and what it learns from."""

    layers: int = 0  # of the teacher that the student keeps; 0: the student is BERT-tiny
    teacher: str = ""  # "": the labels alone; "dense", or "ensemble" with BM25
    kind: str = "kl"
    softness: float = 1.0
    contrastive: float = 0.0
    bm25: float = 0.0  # weight of BM25's score in the ensemble
    match: float = 0.0  # share of the steps that only match the teacher's vectors
    learning_rate: float = 5e-4


def recipes() -> dict[str, Recipe]:
    """Return every recipe by name."""
    found = {}
    for layers, name, rate in ((0, "bert-tiny", 5e-4), (1, "cut to 1", 5e-4), (2, "cut to 2", 3e-4)):
        found[f"{name}, contrastive"] = Recipe(layers, learning_rate=rate)
        for softness in (1.0, 2.0, 4.0):
            found[f"{name}, KL, T = {softness:g}"] = Recipe(layers, "dense", softness=softness, learning_rate=rate)
        found[f"{name}, KL, T = 2, contrastive 1"] = Recipe(layers, "dense", "kl", 2.0, 1.0, learning_rate=rate)
        found[f"{name}, margin"] = Recipe(layers, "dense", "margin", learning_rate=rate)
        found[f"{name}, KL of the ensemble"] = Recipe(layers, "ensemble", "kl", 2.0, 0.0, 0.3, learning_rate=rate)
        if layers:
            found[f"{name}, vectors, then KL"] = Recipe(layers, "dense", "kl", 2.0, match=0.5, learning_rate=rate)
    return found


class Study:
    """The data, the teacher's vectors and the folder that all runs share."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.data = options, load_data(find_data("squad"))
        self.folder = resolve("runs/distillation")
        self.train_passages = PassageIndex(self.data.training_corpus())
        self.passages = PassageIndex(self.data.evaluation_corpus("held-out"))
        self.qids = self.data.split_queries("train", 5000)
        pool = self.folder / "pool.jsonl"
        if not pool.exists():
            rank = bm25_strategy(self.data, self.train_passages)
            mine_pool(self.data, self.train_passages, rank, self.qids, about={"strategy": "bm25"}).save(pool)
        self.pool = load_pool(pool, self.data).ids()
        self.texts = {"query": [self.data.queries[qid].text for qid in self.qids], "passage": self.train_passages.texts}

    def teacher(self, recipe: Recipe):
        """Return the teacher of a recipe and its vectors."""
        encoder = load_encoder(TEACHER)
        with torch.autocast("cpu", torch.bfloat16):  # vectors of 24,000 texts in half the time
            vectors = teacher_vectors(encoder, self.texts, self.folder / "teacher.safetensors")
        dense = dense_teacher(vectors, self.qids, range(len(self.train_passages)))
        if recipe.teacher != "ensemble":
            return dense, vectors
        lexical = bm25_teacher({qid: self.data.queries[qid].text for qid in self.qids}, self.train_passages)
        return ensemble([dense, lexical], [1.0, recipe.bm25]), vectors

    def asked(self, split: str) -> dict[str, str]:
        """Return the questions that are evaluated, id -> text."""
        qids = self.data.split_queries(split, 1000 if split == "dev" else 0)
        return {qid: self.data.queries[qid].text for qid in qids}

    def ranks(self, encoder) -> np.ndarray:
        """Return the rank of the first passage with an answer for every question of the split, [Q]."""
        split = self.options.split
        run = dense_run("study", encoder, self.asked(split), self.passages)
        return hit_ranks(run, self.data, self.passages, split)[0]

    def teacher_ranks(self) -> np.ndarray:
        """Return the same for the teacher, whose vectors are kept."""
        split, encoder = self.options.split, load_encoder(TEACHER)
        questions = {split: self.asked(split) for split in ("dev", "test")}
        texts = {"query": [q for own in questions.values() for q in own.values()], "passage": self.passages.texts}
        with torch.autocast("cpu", torch.bfloat16):
            vectors = teacher_vectors(encoder, texts, self.folder / "teacher-evaluation.safetensors")
        start, end = (0, len(questions["dev"])) if split == "dev" else (len(questions["dev"]), None)
        rows, scores = dense_search(vectors["query"][start:end], vectors["passage"], 100)
        run = Run("teacher", list(questions[split]), list(rows), list(scores))
        return hit_ranks(run, self.data, self.passages, split)[0]

    def run(self, name: str, recipe: Recipe, seed: int) -> dict:
        """Train one recipe with one seed, unless that has been done, and return its ranks."""
        path = self.folder / f"{slug(name)}.{seed}.{self.options.split}.json"
        if path.exists():
            return json.loads(path.read_text(encoding="utf-8"))
        student = first_layers(load_encoder(TEACHER), recipe.layers) if recipe.layers else load_encoder("bert-tiny")
        without_attention_dropout(student)
        rows = TrainingRows(self.data, self.train_passages, self.pool, 1, False, seed)
        loss, started, steps = None, time.perf_counter(), self.options.steps
        if recipe.teacher:
            teacher, vectors = self.teacher(recipe)
            loss = distillation_loss(teacher, recipe.kind, recipe.softness, recipe.contrastive)
            if recipe.match:
                matched = int(recipe.match * steps)
                match_vectors(student, vectors, self.texts, matched, recipe.learning_rate, seed)
                steps -= matched
        settings = TrainingSettings(
            epochs=100,
            max_steps=steps,
            batch_size=32,
            learning_rate=recipe.learning_rate,
            eval_every=steps,
            seed=seed,
            resume=True,
        )
        folder = self.folder / "models" / f"{slug(name)}.{seed}"
        train(student, Task(rows, keep_last_weights(), loss, about={"recipe": asdict(recipe)}), settings, folder)
        result = {"ranks": finite_ranks(self.ranks(student)), "seconds": round(time.perf_counter() - started)}
        write_json(path, result)
        return result


def summary(study: Study) -> list[dict]:
    """Return one row per recipe: Hit@K over its seeds, the gain over labels alone, the share of the teacher's."""
    teacher = study.teacher_ranks()
    rows = [
        {
            "name": "teacher",
            "seeds": 1,
            "kept": 1.0,
            **{f"hit@{k}": {"mean": 100 * hit_at_k(teacher, k)} for k in CUTOFFS},
        }
    ]
    found = {}
    for name in recipes():
        paths = sorted(study.folder.glob(f"{slug(name)}.*.{study.options.split}.json"))
        if paths:
            found[name] = np.stack([read_ranks(path) for path in paths])  # [S, Q]
    for name, ranks in found.items():
        row = {"name": name, "seeds": len(ranks), "recipe": asdict(recipes()[name])}
        row["kept"] = float((ranks <= 10).mean() / hit_at_k(teacher, 10))
        control = found[f"{name.split(',')[0]}, contrastive"]
        for k in CUTOFFS:
            row[f"hit@{k}"] = {"mean": float(100 * (ranks <= k).mean()), "each": (100 * (ranks <= k).mean(1)).tolist()}
            if ranks is not control:
                gain = estimate(ranks <= k, control <= k)
                row[f"hit@{k}"]["gain"] = [100 * gain.mean, 100 * gain.low, 100 * gain.high]
        rows.append(row)
    return rows


def speed(study: Study) -> dict[str, dict]:
    """Return the cost of each encoder: median ms for a question alone, passages per second, MB of fp32 weights."""
    queries = [study.data.queries[qid].text for qid in study.data.split_queries("dev", 220)]
    found = {}
    for name, layers in (("teacher", 0), ("bert-tiny", 0), ("cut to 1", 1)):
        encoder = load_encoder("bert-tiny" if name == "bert-tiny" else TEACHER)
        encoder = first_layers(encoder, layers) if layers else encoder
        times = []
        for text in queries:
            started = time.perf_counter()
            encoder.encode([text], "query")
            times.append(1000 * (time.perf_counter() - started))
        rates = []
        for kind, texts in (("query", queries), ("passage", study.passages.texts[:256])):
            started = time.perf_counter()
            encoder.encode(texts, kind)
            rates.append(round(len(texts) / (time.perf_counter() - started)))
        weights = sum(parameter.numel() for parameter in encoder.parameters())
        found[name] = {
            "ms per question": round(float(np.median(times[20:])), 2),
            "questions per second": rates[0],
            "passages per second": rates[1],
            "MB": round(4 * weights / 2**20, 1),
            "M parameters": round(weights / 1e6, 1),
        }
    return found


def main() -> None:
    """Train, and write the summary."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--split", choices=["dev", "test"], default="dev")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--recipes", nargs="+", default=list(recipes()), choices=list(recipes()))
    options = parser.parse_args()
    study = Study(options)
    for seed in options.seeds:
        for name in options.recipes:
            result = study.run(name, recipes()[name], seed)
            ranks = np.array([rank or np.inf for rank in result["ranks"]])
            hits = " / ".join(f"{100 * hit_at_k(ranks, k):.1f}" for k in CUTOFFS)
            print(f"{options.split} seed {seed}: {name}: {hits} in {result['seconds']} s", flush=True)
    path = resolve("data/results/distillation.json")
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"dev": [], "test": []}
    known |= {options.split: summary(study), "speed": known.get("speed") or speed(study)}
    write_json(path, known)


if __name__ == "__main__":
    main()
