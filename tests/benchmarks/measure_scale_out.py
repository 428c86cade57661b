"""A million vectors on two cores and in 8 GB: encoded, sharded, indexed and searched.

    python -m tests.benchmarks.measure_scale_out

50,000 real texts of SQuAD (its passages, then sentences of them) are encoded by a real model; the other vectors are
copies of theirs with noise. Every stage runs in a process of its own that may not hold more than 8 GB of data, and its
part of the result is written at once. Shards that are there already are used again.
"""

import argparse
import json
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import faiss
import numpy as np
import torch

from helpers.base.files import resolve, write_json
from helpers.base.nearest import nearest
from helpers.dataset import PassageIndex, load_data
from helpers.encoder import Encoder, load_encoder
from helpers.evaluation import hit_ranks
from helpers.importing.sources import find_data
from helpers.reporting.significance import estimate
from helpers.retrieval import Run, dense_search
from helpers.topics.indexes import ShardIndex, build_faiss, load_faiss, recall
from helpers.topics.shards import Shards, encode_shard, finish_shards, open_shards
from helpers.topics.small_vectors import SmallIndex
from tests.benchmarks.common import machine, settings_of, spread

NOISE = 0.5  # length of the noise on a copy whose original has length 1: their cosine is about 0.89
EFFORTS = {"hnsw": (16, 64, 256, 512, 1024), "ivf": (4, 16, 32, 64, 128, 256), "ivfpq": (4, 16, 64, 256)}
SQUAD_EFFORTS = {"flat": 1, "hnsw": 256, "ivf": 64, "ivfpq": 64}
LIMIT = 8 * 2**30  # bytes
K = 100


class Texts:
    """Stands in for a `PassageIndex`: texts whose ids are their places."""

    def __init__(self, texts: list[str]):
        self.texts, self.ids = texts, [str(number) for number in range(len(texts))]

    def __len__(self) -> int:
        return len(self.texts)


class Copies:
    """Stands in for an encoder: row r is a vector of the real texts, and from their number on, one with noise."""

    precision = "fp32"

    def __init__(self, real: Shards, seed: int):
        self.vectors = np.concatenate([vectors for _, vectors in real.blocks()]).astype(np.float32)
        self.made_by, self.seed = f"{real.entries[0]['encoder']} with noise {NOISE}", seed

    def fingerprint(self) -> str:
        return self.made_by

    def search_vectors(self, texts: list[str], kind: str) -> np.ndarray:
        rows = np.array([int(text) for text in texts])
        vectors = self.vectors[rows % len(self.vectors)]
        rng = np.random.default_rng([self.seed, int(rows[0])])
        noise = rng.standard_normal(vectors.shape, np.float32) * (NOISE / vectors.shape[1] ** 0.5)
        noise[rows < len(self.vectors)] = 0
        return (vectors + noise) / np.linalg.norm(vectors + noise, axis=1, keepdims=True)


def real_texts(count: int) -> Iterator[str]:
    """Yield SQuAD's passages, and then their sentences, until there are enough."""
    texts = PassageIndex(load_data(find_data("squad")).corpus).texts
    yield from texts[:count]
    sentences = (own for text in texts for own in re.split(r"(?<=[.!?]) ", text) if len(own) > 40)
    yield from (own for own, _ in zip(sentences, range(count - len(texts)), strict=False))


def encode(options: argparse.Namespace) -> dict:
    """Encode the real texts, and make shards of them and of all vectors."""
    begin, count, folder = time.perf_counter(), options.real, options.folder / "real"
    texts = list(real_texts(count))
    assert len(texts) == count, f"only {len(texts)} real texts"
    encoder = load_encoder(options.model, device="cpu")
    made = [encode_shard(encoder, Texts(texts), folder, number, 5) for number in range(5)]
    seconds, real = time.perf_counter() - begin, finish_shards(folder, 5)
    begin, rows = time.perf_counter(), Texts([str(number) for number in range(options.passages)])
    copies, number = Copies(real, options.seed), options.passages // 100_000 or 1
    for shard in range(number):
        encode_shard(copies, rows, options.folder / "all", shard, number)
    finish_shards(options.folder / "all", number)
    found = {"shards": number, "seconds for the copies' shards": time.perf_counter() - begin}
    return found | ({"real texts a second": count / seconds} if all(made) else {})


def build(options: argparse.Namespace, kind: str) -> dict:
    """Build an index from the shards, and save it."""
    faiss.omp_set_num_threads(torch.get_num_threads())
    shards, begin = open_shards(options.folder / "all"), time.perf_counter()
    index = build_faiss(kind, shards, seed=options.seed)
    seconds = time.perf_counter() - begin
    index.save(options.folder / kind)
    return {"build_s": seconds, "bytes a vector": (options.folder / kind / "index.faiss").stat().st_size / len(shards)}


def timed(work: Callable[[], object]) -> tuple[float, object]:
    """Return the seconds of a call, and its result."""
    begin = time.perf_counter()
    found = work()
    return time.perf_counter() - begin, found


def search(options: argparse.Namespace, kind: str) -> dict:
    """Search an index at several efforts beside exact search in memory: recall, and the ratio of their times."""
    shards, encoder = open_shards(options.folder / "all"), load_encoder(options.model, device="cpu")
    asked, index = questions(options, encoder), load_faiss(options.folder / kind, shards)
    faiss.omp_set_num_threads(torch.get_num_threads())
    whole = torch.from_numpy(np.concatenate([vectors for _, vectors in shards.blocks()]).astype(np.float32))
    exact, rows = nearest(torch.from_numpy(asked), whole, K)[0], []
    index.search_vectors(asked, K)
    for effort in EFFORTS[kind]:
        index.effort, times = effort, {"exact": [], "index": [], "exact, one": [], "index, one": []}
        for _ in range(options.rounds):
            times["exact"].append(timed(lambda: nearest(torch.from_numpy(asked), whole, K))[0])
            seconds, found = timed(lambda: index.search_vectors(asked, K))
            times["index"].append(seconds)
            for row in range(10):
                one = asked[row : row + 1]
                times["exact, one"].append(timed(lambda one=one: nearest(torch.from_numpy(one), whole, K))[0])
                times["index, one"].append(timed(lambda one=one: index.search_vectors(one, K))[0])
        middle = {f"ms {name}": 1000 * statistics.median(own) for name, own in times.items()}
        for name in ("ms exact", "ms index"):
            middle[name] /= len(asked)
        ratio = spread(times["exact"], times["index"]) | {
            "ratio one": middle["ms exact, one"] / middle["ms index, one"]
        }
        rows.append({"effort": effort, "recall@100": float(recall(found[0], exact).mean()), **middle, **ratio})
        print(kind, rows[-1], flush=True)
    return {"searches": rows}


def from_disk(options: argparse.Namespace, _kind: str) -> dict:
    """Search the shards exactly from the disk, and check that it finds what exact search in memory finds."""
    shards, encoder = open_shards(options.folder / "all"), load_encoder(options.model, device="cpu")
    asked = questions(options, encoder)
    seconds, (_, scores) = timed(lambda: ShardIndex(shards).search_vectors(asked, K))
    whole = torch.from_numpy(np.concatenate([vectors for _, vectors in shards.blocks()]).astype(np.float32))
    wanted = nearest(torch.from_numpy(asked), whole, K)[1]
    return {"ms": 1000 * seconds / len(asked), "largest difference of a score": float(np.abs(scores - wanted).max())}


def questions(options: argparse.Namespace, encoder: Encoder) -> np.ndarray:
    """Return the vectors of SQuAD's first dev questions, [Q, D]."""
    data = load_data(find_data("squad"))
    qids = data.split_queries("dev", options.questions, options.seed)
    return encoder.search_vectors([data.queries[qid].text for qid in qids], "query")


def on_squad(options: argparse.Namespace, _kind: str) -> dict:
    """Return what each way to search SQuAD's own passages costs and finds, as notebook 11 does for its corpus."""
    data = load_data(find_data("squad"))
    count = min(options.real, len(data.corpus))  # they are the first real texts
    passages, folder = PassageIndex(data.corpus.select(range(count))), options.folder / "squad"
    rows = Texts([str(number) for number in range(count)])
    encode_shard(Copies(open_shards(options.folder / "real"), options.seed), rows, folder, 0, 1)
    shards, encoder = finish_shards(folder, 1), load_encoder(options.model, device="cpu")
    qids = data.split_queries("test", options.test_questions, options.seed)
    asked = encoder.search_vectors([data.queries[qid].text for qid in qids], "query")
    vectors = np.concatenate([block for _, block in shards.blocks()]).astype(np.float32)
    exact = ShardIndex(shards)
    best, ways = exact.search_vectors(asked, K), {}

    def hits(found) -> np.ndarray:
        return hit_ranks(Run("squad", qids, *map(list, found)), data, passages, "test")[0] <= 10

    def try_out(name: str, search: Callable, size: float) -> None:
        seconds, found = timed(lambda: search(asked, K))
        own = hits(found)
        ways[name] = {"bytes": size / count, "ms": 1000 * seconds / len(qids)}
        ways[name] |= {"recall@100": float(recall(found[0], best[0]).mean())}
        ways[name] |= {"Hit@10": list(estimate(own)[:3]), "minus exact": list(estimate(own, hits(best))[:3])}

    try_out("exact, from disk", exact.search_vectors, shards.nbytes)
    for kind, effort in SQUAD_EFFORTS.items():
        index = build_faiss(kind, shards, seed=options.seed)
        index.effort = effort
        index.save(folder / kind)
        try_out(kind, index.search_vectors, (folder / kind / "index.faiss").stat().st_size)
    for name, how in {"int8": ("int8",), "bits": ("binary",), "bits, 100 looked at again": ("binary", 100)}.items():
        small = SmallIndex(vectors, *how)
        try_out(name, small.search_vectors, small.nbytes)
    parts = [part[:, : part.shape[1] // 4] for part in (asked, vectors)]
    parts = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in parts]
    try_out("a quarter of the numbers", lambda _, k: dense_search(*parts, k), parts[1].nbytes)
    return {"passages": count, "questions": len(qids), "efforts": SQUAD_EFFORTS, "ways": ways}


STAGES = {"encode": lambda options, _: encode(options), "squad": on_squad, "from disk": from_disk}
STAGES |= {"build": build, "search": search}


def in_its_own_process(stage: str, kind: str) -> dict:
    """Return what a stage measures, its peak memory, and whether the limit was kept."""
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.measure_scale_out",
        *sys.argv[1:],
        "--stage",
        stage,
        "--kind",
        kind,
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{stage} {kind} failed")
    print(stage, kind, done.stdout.splitlines()[-1], flush=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Run every stage, or one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="all-MiniLM-L6-v2")
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--real", type=int, default=50_000, help="how many of them are encoded")
    parser.add_argument("--questions", type=int, default=500)
    parser.add_argument("--test-questions", type=int, default=0, help="of SQuAD, for Hit@10; 0: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", default=list(EFFORTS))
    parser.add_argument(
        "--folder", type=Path, default=resolve("runs/scale-out"), help="of the shards and indexes, 8 GB"
    )
    parser.add_argument("--out", type=Path, default=resolve("runs/scale-out.json"))
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--kind", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))
        found = STAGES[options.stage](options, options.kind)
        print(json.dumps(found | {"peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}))
        return
    settings = settings_of(options, "folder", "out", "stage", "kind")
    results = {"settings": settings, "machine": machine(), "limit_gb": 8}
    for stage in ("encode", "squad", "from disk"):
        write_json(options.out, results := results | {stage: in_its_own_process(stage, "")})
    for kind in options.kinds:
        results[kind] = {stage: in_its_own_process(stage, kind) for stage in ("build", "search")}
        write_json(options.out, results)


if __name__ == "__main__":
    main()
