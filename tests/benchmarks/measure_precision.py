"""What bf16 changes in a search: Hit@K with its vectors beside those of fp32, on the same SQuAD test questions.

python -m tests.benchmarks.measure_precision --model all-MiniLM-L6-v2 --out data/results/precision.json
"""

import argparse
from pathlib import Path

import numpy as np

from helpers.base.devices import bf16_gain
from helpers.base.files import ROOT, write_json
from helpers.dataset import PassageIndex
from helpers.encoder import load_encoder
from helpers.evaluation import hit_ranks
from helpers.reporting.significance import estimate
from helpers.retrieval import dense_run
from tests.benchmarks.common import machine
from tests.benchmarks.duels import squad


def main() -> None:
    """Search in both precisions, print Hit@K in percent and the paired difference, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="all-MiniLM-L6-v2")
    parser.add_argument("--questions", type=int, default=0, help="of the test split; 0: all")
    parser.add_argument("--passages", type=int, default=0, help="the first so many; 0: all")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "precision.json")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    data, _ = squad()
    corpus = data.evaluation_corpus()
    passages = PassageIndex(corpus.select(range(min(options.passages or len(corpus), len(corpus)))))
    queries = {qid: data.queries[qid].text for qid in data.split_queries("test", options.questions)}
    encoder, ranks, vectors = load_encoder(options.model, device="cpu"), {}, {}
    for precision in ("fp32", "bf16"):
        encoder.precision = precision
        run = dense_run(precision, encoder, queries, passages)
        ranks[precision] = hit_ranks(run, data, passages, "test")[0]
        vectors[precision] = encoder.search_vectors(list(queries.values()), "query")
    cosines = (vectors["fp32"] * vectors["bf16"]).sum(1)
    results = {
        "machine": machine(),
        "model": options.model,
        "questions": len(queries),
        "passages": len(passages),
        "bf16_gain": bf16_gain(),
        "cosine": {"least": float(cosines.min()), "mean": float(cosines.mean())},
        "hits": {},
    }
    for k in (1, 10, 100):
        exact, coarse = (ranks[precision] <= k for precision in ("fp32", "bf16"))
        found = estimate(coarse, exact)
        row = {"fp32": exact.mean(), "bf16": coarse.mean(), "difference": found.mean, "interval": found[1:3]}
        results["hits"][k] = {name: np.round(100 * np.array(value), 3).tolist() for name, value in row.items()}
        print(f"Hit@{k}, % (fp32, bf16, difference, 95% interval): {results['hits'][k]}")
    print(f"cosines of questions: {results['cosine']}; products in bf16 {bf16_gain():.2f} times as fast as in fp32")
    write_json(options.out, results)


if __name__ == "__main__":
    main()
