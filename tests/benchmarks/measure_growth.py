"""How the cost of search grows with the corpus: seconds at 1,000 to 1,000,000 passages, and the fitted exponents.

    python -m tests.benchmarks.measure_growth --out data/results/growth.json

Passages are SQuAD's, repeated with their words in another order; vectors are random, of length 1. Every time is the
shortest of `--rounds`, for a million passages of one. An exponent is fitted where there are three sizes. Writes the
JSON file after every size, and a plot beside it at the end.
"""

import argparse
import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from helpers.base.files import ROOT, write_json
from helpers.encoder import load_encoder
from helpers.retrieval import BM25, dense_search
from tests.benchmarks.common import machine
from tests.benchmarks.duels import K, many_passages, seconds, unit_vectors

ENCODED = 10_000  # passages at most, which takes half a minute; its cost is that of each text by itself


def works(count: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield the pieces of work with `count` passages and 500 questions."""
    texts, questions = many_passages(count)
    if count <= ENCODED:
        encoder = load_encoder("bert-tiny", device="cpu")
        yield "encode (BERT-tiny)", lambda: encoder.encode(texts, "passage")
    index: list[BM25] = []

    def build() -> None:
        index.clear()
        index.append(BM25(texts))

    yield "BM25: index", build
    yield "BM25: search", lambda: index[-1].search(questions, K)
    index.clear()
    passages, queries = unit_vectors(count), unit_vectors(len(questions), seed=1)
    yield "exact search, 384 numbers", lambda: dense_search(queries, passages, K)


def exponent(sizes: list[int], times: list[float]) -> float:
    """Return b of the line through log(times) = a + b log(sizes), without the first size, which is overhead."""
    return float(np.polyfit(np.log(sizes[1:]), np.log(times[1:]), 1)[0])


def draw(results: dict, path: Path) -> None:
    """Save a log-log plot of seconds against passages."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for marker, (name, row) in zip("os^D", results["works"].items(), strict=False):
        label = f"{name}: passages to the power of {row['exponent']:.2f}" if "exponent" in row else name
        axes.plot(row["passages"], row["seconds"], marker=marker, label=label)
    axes.set(xscale="log", yscale="log", xlabel="passages", ylabel="seconds")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Measure, and write results and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "growth.json")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    results = {"machine": machine(), "questions": 500, "rounds": options.rounds, "works": {}}
    for count in options.sizes:
        rounds = options.rounds if count < 1_000_000 else 1
        for name, work in works(count):
            row = results["works"].setdefault(name, {"passages": [], "seconds": []})
            row["passages"].append(count)
            row["seconds"].append(min(seconds(work) for _ in range(rounds)))
            if len(row["seconds"]) > 2:
                row["exponent"] = exponent(row["passages"], row["seconds"])
            print(f"{count:,} passages, {name}: {row['seconds'][-1]:.3f} s", flush=True)
            gc.collect()
        write_json(options.out, results)
    draw(results, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
