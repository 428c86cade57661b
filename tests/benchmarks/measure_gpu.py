"""BGE-M3 on a CUDA GPU: the tests, training steps, encoding and real trainings, in stages of about two minutes.

    make gpu                                                   # everything
    python -m tests.benchmarks.measure_gpu training encoding   # some stages
    python -m tests.benchmarks.measure_gpu --tiny              # small models on a CPU: that the script works

Every measurement is in runs/gpu.json as soon as it is made, so that a cut leaves what was done. The weights of BGE-M3
are random: time and memory do not depend on their values. Its texts are SQuAD's, in the tokens of a small model's
vocabulary, at their own lengths or joined to 512 tokens. Padding counts neither as tokens nor as work.
"""

import argparse
import itertools
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
import transformers
import yaml

from helpers.base.files import ROOT, read_json, resolve, write_text
from helpers.evaluation import hit_ranks
from helpers.reporting.significance import bootstrap_interval, estimate
from helpers.retrieval import dense_run
from helpers.running.launch import train_model
from helpers.running.start import course_run
from tests.benchmarks import gpu_speed
from tests.benchmarks.common import machine
from tests.benchmarks.gpu_speed import CUDA, DEVICE, Bench, encoding, profile, timed, training

# of notebooks 01 to 04 with the small model
LEARNING = {"data": "squad", "eval_corpus": "held-out", "precision": "bf16", "train_questions": 16_000, "epochs": 1}
LEARNING |= {"batch_size": 32, "learning_rate": 5e-5, "workers": 6, "dev_questions": 1000, "eval_every": 250}
LEARNING |= {"train_control": False, "seed": 0}
GRID = list(itertools.product((0.05, 0.02), (2e-5, 5e-5)))  # temperature, learning rate


def card(bench: Bench) -> None:
    """What the card is, and the most that its matrix units and its memory give."""
    row = {"card": machine(), "python": platform.python_version(), "torch": torch.__version__}
    row |= {"transformers": transformers.__version__, "CPU cores": os.cpu_count()}
    if CUDA:
        query = ["nvidia-smi", "--query-gpu=driver_version,power.limit", "--format=csv,noheader"]
        row["driver, power limit"] = subprocess.run(query, capture_output=True, text=True).stdout.strip()
        row["memory_gb"] = torch.cuda.get_device_properties(0).total_memory / 1e9
    torch.set_float32_matmul_precision("high")
    size, bytes_copied = bench.sizes(8192, 256), bench.sizes(2**30, 2**20)
    for name, dtype in (("bf16", torch.bfloat16), ("TF32", torch.float32)):
        one, other = (torch.randn(size, size, device=DEVICE, dtype=dtype) for _ in range(2))
        row[f"{name}_tflops"] = 2 * size**3 / usual_seconds(partial(torch.mm, one, other)) / 1e12
    source, target = (torch.empty(bytes_copied, dtype=torch.uint8, device=DEVICE) for _ in range(2))
    row["copy_gb_a_second"] = 2 * bytes_copied / usual_seconds(partial(target.copy_, source)) / 1e9
    bench.record("card", **row)


def usual_seconds(work: Callable[[], object]) -> float:
    """Return the median of ten times of `work`, after three that do not count."""
    return statistics.median([timed(work) for _ in range(13)][3:])


def tests(bench: Bench, seconds: int = 300) -> None:
    """The tests that need CUDA, a row each; those that do not end in time have none."""
    command = [sys.executable, "-m", "pytest", "tests/test_cuda.py", "-v", "-p", "no:cacheprovider", "--color=no"]
    with (bench.scratch / "tests.log").open("w+", encoding="utf-8") as log, suppress(subprocess.TimeoutExpired):
        try:
            subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, timeout=seconds)
        finally:
            log.seek(0)
            text = log.read()
            for name, outcome in re.findall(r"::(\S+) (PASSED|FAILED|ERROR|SKIPPED)", text):
                bench.record("tests", test=name, outcome=outcome.lower())
            print(text[text.find("= FAILURES") :][:12_000] if "= FAILURES" in text else "", flush=True)


def learning(bench: Bench) -> None:
    """Notebooks 01 to 04 under papermill with the small model: the report's Hit@K, and how long each took."""
    given = {**LEARNING, "model_name": bench.small, "trained_model": bench.small, "device": DEVICE}
    if bench.tiny:
        given |= {"data": "data/sample", "train_questions": 48, "max_steps": 4, "eval_every": 2, "workers": 0}
        given |= {"dev_questions": 20, "test_questions": 20}
    parameters, name = bench.scratch / "learning.yaml", f"{bench.out.stem}-learning"
    write_text(parameters, yaml.safe_dump(given))
    command = [sys.executable, "-m", "helpers.running", "--params", str(parameters), "--name", name]
    begin = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"TQDM_DISABLE": "1"})
    named = dict.fromkeys(("model_name", "trained_model"), Path(bench.small).name)  # not the folder of a machine
    row = {"parameters": given | named, "seconds": time.perf_counter() - begin}
    row |= {"took": [line for line in done.stdout.splitlines() if " took " in line]}
    if done.returncode:
        bench.record("learning", **row, failed=done.stderr[-2000:])
        return
    report = read_json(resolve(f"runs/{name}/report.json"))
    kept = {key: report[key] for key in ("systems", "significance", "questions", "passages")}
    bench.record("learning", **row, report=kept)


def grid(bench: Bench) -> None:
    """Temperature and learning rate at equal steps, judged on all dev questions; the first pair is the course's."""
    given = {"data": "data/sample" if bench.tiny else "squad", "eval_corpus": "all" if bench.tiny else "held-out"}
    given |= {"model_name": bench.small, "device": DEVICE, "processes": 1, "hard_negatives": 2, "seed": 0}
    given |= {"train_questions": bench.sizes(8000, 48), "max_steps": bench.sizes(500, 3), "batch_size": 16}
    given |= {"epochs": 1, "precision": "bf16", "workers": bench.sizes(6, 0), "dev_questions": bench.sizes(1000, 20)}
    first = {}
    for temperature, rate in GRID:
        own = {"temperature": temperature, "learning_rate": rate}
        run = course_run(given | own | {"run_dir": str(bench.scratch / f"grid-{temperature}-{rate}")})
        seconds = timed(partial(train_model, run, "hard-negatives"))
        encoder, queries = run.encoder(), run.questions("dev", bench.sizes(0, 20))
        encoder.restore(run.models / "hard-negatives")
        ranks = hit_ranks(dense_run("dev", encoder, queries, run.passages), run.data, run.passages, "dev")[0]
        row = {**own, "steps": given["max_steps"], "seconds": seconds, "dev_questions": len(queries)}
        for k in (1, 10):
            hits = ranks <= k
            row[f"Hit@{k}"] = [float(hits.mean()), *map(float, bootstrap_interval(hits))]
            gain = estimate(hits, first.setdefault(k, hits))
            row[f"Hit@{k} minus the first"] = [gain.mean, gain.low, gain.high]
        bench.record("grid", **row)


STAGES = {stage.__name__: stage for stage in (card, tests, learning, training, profile, encoding, grid)}


def main() -> int:
    """Run some stages, or all."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("stages", nargs="*", help=f"of {', '.join(STAGES)}; default: all")
    parser.add_argument(
        "--model", default="all-MiniLM-L6-v2", help="the small model with real weights, a name or folder"
    )
    parser.add_argument("--out", type=Path, default=resolve("runs/gpu.json"), help="what it holds already stays")
    parser.add_argument("--tiny", action="store_true", help="on a CPU, with models that show nothing but that it runs")
    options = parser.parse_args()
    if unknown := set(options.stages) - set(STAGES):
        parser.error(f"no stage {min(unknown)!r}; there are {', '.join(STAGES)}")
    if not CUDA and not options.tiny:
        print("make gpu needs a CUDA GPU that torch sees (`nvidia-smi`); --tiny tries the script without one.")
        return 1
    if options.tiny:
        gpu_speed.QUESTIONS = 4
    with tempfile.TemporaryDirectory() as scratch:
        out = resolve(options.out)
        bench = Bench(out, options.model, options.tiny, Path(scratch), read_json(out) if out.exists() else {})
        for name in options.stages or STAGES:
            print(f"{name} …", flush=True)
            bench.results.pop(name, None)
            try:
                seconds = timed(partial(STAGES[name], bench))
                print(f"{name} took {seconds:.0f} s", flush=True)
            except Exception:  # the other stages are worth having all the same
                bench.record(name, failed=traceback.format_exc(limit=-3))
    return int(any("failed" in row for rows in bench.results.values() for row in rows))


if __name__ == "__main__":
    sys.exit(main())
