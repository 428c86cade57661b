"""Where the time of the hottest paths goes, by torch's profiler: encoding, also in bf16, and a training step.

    python -m tests.benchmarks.measure_profile --model all-MiniLM-L6-v2 --out data/results/profile.json

Writes the share of each operation's own time, and the rate of the matrix products.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from helpers.base.devices import has_bf16
from helpers.base.files import ROOT, write_json
from helpers.batches import TrainingRows, make_batch
from helpers.encoder import load_encoder
from helpers.gradients import make_engine, training_step
from helpers.loss import infonce
from helpers.negatives import mine_pool
from helpers.strategies import bm25_strategy
from helpers.training import TrainingSettings
from tests.benchmarks.common import machine
from tests.benchmarks.duels import seconds, squad

PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm")
SHOWN = 12  # operations
ENCODING = {"encode": "fp32", "encode, bf16": "bf16"}


def measure(work: Callable[[], object]) -> dict:
    """Return seconds, shares of operations in the time of all of them, and GFLOP/s of the matrix products."""
    work()
    whole = seconds(work)
    with profile(activities=[ProfilerActivity.CPU], with_flops=True) as profiler:
        work()
    events = profiler.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    longest = sorted(events, key=lambda event: event.self_cpu_time_total, reverse=True)[:SHOWN]
    products = [event for event in events if event.key in PRODUCTS]
    return {
        "seconds": whole,
        "seconds_in_operations": total / 1e6,  # with the profiler's own cost; the rest is tokenizing and Python
        "shares": {event.key: event.self_cpu_time_total / total for event in longest},
        "products_gflops": sum(e.flops for e in products) / sum(e.self_cpu_time_total for e in products) / 1e3,
    }


def main() -> None:
    """Profile the paths, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="all-MiniLM-L6-v2")
    parser.add_argument("--passages", type=int, default=200)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "profile.json")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    data, passages = squad()
    qids, encoder = data.split_queries("train", 64), load_encoder(options.model, device="cpu")
    pool = mine_pool(data, passages, bm25_strategy(data, passages), qids)
    rows = TrainingRows(data, passages, pool.ids(), hard_negatives=2, given_negative=False)
    results = {"machine": machine(), "model": options.model, "threads": torch.get_num_threads()}
    texts = passages.texts[-options.passages :]
    for path, precision in ENCODING.items():
        if precision == "fp32" or has_bf16():
            encoder.precision = precision
            results[path] = measure(lambda: encoder.encode(texts, "passage"))
    encoder.precision = "fp32"
    engine = make_engine(encoder, infonce(), TrainingSettings())
    batch = make_batch([rows[number] for number in range(16)], rows, encoder)
    results["training step"] = measure(lambda: training_step(engine, [batch]))
    write_json(options.out, results)
    for path in [name for name in (*ENCODING, "training step") if name in results]:
        shares = ", ".join(f"{name.split('::')[-1]} {share:.0%}" for name, share in results[path]["shares"].items())
        found = results[path]
        print(f"{path}: {found['seconds']:.2f} s, products at {found['products_gflops']:.0f} GFLOP/s: {shares}")


if __name__ == "__main__":
    main()
