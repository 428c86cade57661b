"""A made-up corpus of millions of passages: seconds and peak memory to load, validate and iterate, first and later.

python -m tests.benchmarks.measure_scale --passages 5000000

Each step runs in a process of its own. Memory is what the process itself holds (RssAnon); pages of the mapped corpus
come on top while memory is free, and the kernel takes them back when it is not. The folder is deleted at the end.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path


def make(folder: Path, passages: int, seed: int = 0) -> None:
    """Write a data set in BEIR layout: passages of 60 to 100 words, and 2,000 questions of each split."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 9))) for _ in range(20_000)]
    lines = [" ".join(rng.choices(words, k=rng.randint(60, 100))) for _ in range(5_000)]
    (folder / "qrels").mkdir(parents=True)
    with (folder / "corpus.jsonl").open("w") as file:
        for number in range(passages):
            text = f"{number} {lines[number % 5_000]}"
            file.write(f'{{"_id": "p{number}", "title": "T{number // 10}", "text": "{text}"}}\n')
    asked = rng.sample(range(passages), 6_000)
    with (folder / "queries.jsonl").open("w") as file:
        file.writelines(f'{{"_id": "q{n}", "text": "which one is {n}?", "answers": ["{n}"]}}\n' for n in asked)
    for place, split in enumerate(("train", "dev", "test")):
        rows = "".join(f"q{n}\tp{n}\t1\n" for n in asked[place::3])
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + rows)


def anonymous() -> float:
    """Return the GB of memory that this process holds and that no file backs."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 2**20
    raise OSError("no RssAnon in /proc/self/status")


def step(folder: Path) -> dict:
    """Load the data, look up the rows of its positives, read every text once; return seconds and peak GB."""
    from helpers.dataset import PassageIndex, load_data

    peak, done = [anonymous()], threading.Event()

    def watch():
        while not done.wait(0.05):
            peak[0] = max(peak[0], anonymous())

    threading.Thread(target=watch, daemon=True).start()
    start = time.perf_counter()
    data = load_data(folder)
    loaded = time.perf_counter()
    passages = PassageIndex(data.corpus)
    rows = [passages.row[pid] for pids in data.qrels["train"].values() for pid in pids]
    assert [passages.ids[row] for row in rows] == [pid for pids in data.qrels["train"].values() for pid in pids]
    indexed = time.perf_counter()
    characters = sum(map(len, passages.texts))
    done.set()
    end = time.perf_counter()
    return {
        "passages": len(passages),
        "load_s": round(loaded - start, 1),
        "index_s": round(indexed - loaded, 1),
        "iterate_s": round(end - indexed, 1),
        "characters": characters,
        "peak_gb": round(peak[0], 2),
    }


def measure(passages: int, place: Path) -> list[dict]:
    """Return the figures of a first and of a second start."""
    with tempfile.TemporaryDirectory(dir=place, prefix="scale-") as folder:
        make(Path(folder) / "data", passages)
        environment = os.environ | {"RETRIEVER_COURSE_CACHE": f"{folder}/cache"}
        command = [sys.executable, __file__, "--step", f"{folder}/data"]
        runs = [subprocess.run(command, capture_output=True, text=True, env=environment) for _ in range(2)]
        for run in runs:
            assert run.returncode == 0, run.stderr[-2000:]
        return [json.loads(run.stdout.splitlines()[-1]) for run in runs]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passages", type=int, default=5_000_000)
    parser.add_argument("--place", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--step", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(step(options.step)))
    else:
        for name, figures in zip(("first", "second"), measure(options.passages, options.place), strict=True):
            print(name, figures, f"free disk {shutil.disk_usage(options.place).free / 1e9:.0f} GB")
