"""What a vector for every token buys: a multi-vector model against its single-vector twin, over several seeds.

    python -m tests.benchmarks.measure_multi_vector --seeds 0 1 2

Twins share weights at the start, questions, batches (in-batch negatives only), steps, learning rate and loss; dev
chooses between the weights before and after. Seed 0 also says what 8 bits cost. Finished runs in runs/multi-vector
are not repeated; the summary goes to data/results.
"""

import argparse
import json
import time

import numpy as np

from helpers.base.files import resolve, write_json
from helpers.batches import TrainingRows
from helpers.dataset import PassageIndex, load_data
from helpers.encoder import Encoder, load_encoder
from helpers.evaluation import hit_at_k, hit_ranks
from helpers.importing.sources import find_data
from helpers.reporting.significance import bootstrap_interval
from helpers.retrieval import Run, dense_search
from helpers.topics.late_interaction import MultiVectorEncoder, encode_tokens, maxsim_search
from helpers.training import Task, TrainingSettings, train
from tests.benchmarks.common import CUTOFFS, finite_ranks, machine, read_ranks, settings_of


class Measurement:
    """The data and settings that all runs share."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.data = options, load_data(find_data(options.data))
        name = f"{options.model}-{options.questions}-{options.steps}-{options.learning_rate:g}"
        self.folder = resolve(f"runs/multi-vector/{name}")
        self.train_passages = PassageIndex(self.data.training_corpus())
        self.passages = PassageIndex(self.data.evaluation_corpus())
        self.questions = self.data.split_queries("train", options.questions)

    def search(self, encoder, split: str, limit: int = 0, precision: str = "fp16") -> tuple[np.ndarray, dict]:
        """Return the rank of the first passage with an answer for each question of a split, and what it costs."""
        queries = {qid: self.data.queries[qid].text for qid in self.data.split_queries(split, limit)}
        texts, k = list(queries.values()), min(100, len(self.passages))
        if isinstance(encoder, MultiVectorEncoder):
            vectors = encode_tokens(encoder, self.passages.texts, "passage", precision)
            begin = time.perf_counter()
            found = maxsim_search(encode_tokens(encoder, texts, "query", "fp32"), vectors, k)
        else:
            vectors = encoder.encode(self.passages.texts, "passage")
            begin = time.perf_counter()
            found = dense_search(encoder.encode(texts, "query"), vectors, k)
        seconds = time.perf_counter() - begin
        run = Run("run", list(queries), *map(list, found))
        cost = {"bytes_a_passage": vectors.nbytes / len(self.passages), "ms_a_question": 1000 * seconds / len(texts)}
        return hit_ranks(run, self.data, self.passages, split)[0], cost

    def measure(self, name: str, encoder, precision: str = "fp16") -> None:
        """Write the test ranks and the cost of an encoder."""
        ranks, cost = self.search(encoder, "test", precision=precision)
        write_json(self.folder / f"{name}.json", {"ranks": finite_ranks(ranks), **cost})
        print(f"{name}: Hit@10 {hit_at_k(ranks, 10):.1%}, {cost}", flush=True)

    def run(self, kind: str, seed: int) -> None:
        """Train one of the twins with one seed and measure it, unless that has been done."""
        options, name = self.options, f"{kind}.{seed}"
        if (self.folder / f"{name}.json").exists():
            return
        encoder = load_encoder(options.model, encoder_class=MultiVectorEncoder if kind == "multi" else Encoder)
        if not (self.folder / f"{kind}.zero-shot.json").exists():
            self.measure(f"{kind}.zero-shot", encoder)
        settings = TrainingSettings(
            epochs=100,
            max_steps=options.steps,
            batch_size=options.batch,
            learning_rate=options.learning_rate,
            eval_every=options.steps,
            seed=seed,
        )
        rows = TrainingRows(self.data, self.train_passages, {qid: [] for qid in self.questions}, 0, False, seed)

        def dev_hits(encoder) -> float:
            return hit_at_k(self.search(encoder, "dev", options.dev_questions)[0], 10)

        train(encoder, Task(rows, dev_hits), settings, self.folder / "models" / name)
        self.measure(name, encoder)
        for precision in ("fp32", "int8") if name == "multi.0" else ():
            self.measure(f"{precision}.0", encoder, precision)

    def summary(self) -> dict:
        """Return Hit@K over the seeds, paired differences, and what each form costs."""
        found: dict[str, list[dict]] = {}
        ranks: dict[str, list[np.ndarray]] = {}
        for path in sorted(self.folder.glob("*.json")):
            kind, seed = path.stem.split(".")
            name = f"{kind}, zero-shot" if seed == "zero-shot" else kind
            found.setdefault(name, []).append(json.loads(path.read_text(encoding="utf-8")))
            ranks.setdefault(name, []).append(read_ranks(path))

        def hits(name: str, k: int) -> np.ndarray:
            """Each question's share of hits over the seeds, in points."""
            return 100 * np.mean([r <= k for r in ranks[name]], axis=0)

        def interval(values: np.ndarray) -> list[float]:
            return [float(values.mean()), *bootstrap_interval(values)]

        systems = {
            name: {"seeds": len(runs)}
            | {f"hit@{k}": interval(hits(name, k)) for k in CUTOFFS}
            | {cost: float(np.mean([run[cost] for run in runs])) for cost in ("bytes_a_passage", "ms_a_question")}
            for name, runs in found.items()
        }
        pairs = [
            ("multi", "single"),
            ("multi", "multi, zero-shot"),
            ("multi, zero-shot", "single, zero-shot"),
            ("int8", "fp32"),
        ]
        differences = {
            f"{one} minus {other}": {f"hit@{k}": interval(hits(one, k) - hits(other, k)) for k in CUTOFFS}
            for one, other in pairs
        }
        twins = zip(ranks["multi"], ranks["single"], strict=True)
        by_seed = [100 * (hit_at_k(multi, 10) - hit_at_k(single, 10)) for multi, single in twins]
        settings = settings_of(self.options, "seeds")
        return {
            "settings": settings,
            "machine": machine(),
            "questions": len(ranks["multi"][0]),
            "passages": len(self.passages),
            "systems": systems,
            "differences": differences,
            "multi minus single, hit@10 by seed": by_seed,
        }


def main() -> None:
    """Train and measure both twins with every seed, and write the summary."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--data", default="squad")
    parser.add_argument("--model", default="bert-tiny")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--questions", type=int, default=5000, help="training questions")
    parser.add_argument("--dev-questions", type=int, default=500)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    options = parser.parse_args()
    measurement = Measurement(options)
    for seed in options.seeds:
        for kind in ("single", "multi"):
            measurement.run(kind, seed)
    write_json(resolve(f"data/results/multi-vector-{options.model}.json"), measurement.summary())


if __name__ == "__main__":
    main()
