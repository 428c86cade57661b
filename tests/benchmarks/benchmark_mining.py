"""What mining costs compared with encoding the corpus once: time and peak memory on SQuAD.

python -m tests.benchmarks.benchmark_mining --model all-MiniLM-L6-v2 --questions 16000
"""

import argparse
import resource
import time

from helpers.dataset import PassageIndex, load_data
from helpers.encoder import load_encoder
from helpers.importing.sources import find_data
from helpers.negatives import MiningSettings, mine_pool
from helpers.retrieval import DenseIndex
from helpers.strategies import make_strategy


def main() -> None:
    """Encode SQuAD's training passages, mine, and print the whole over the encoding alone."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", default="bert-tiny")
    parser.add_argument("--questions", type=int, default=16_000)
    parser.add_argument("--relative-margin", type=float, default=0.95)
    options = parser.parse_args()
    data = load_data(find_data("squad"))
    passages = PassageIndex(data.training_corpus())
    index = DenseIndex(load_encoder(options.model), passages.texts)
    begin = time.perf_counter()
    _ = index.vectors
    encoded = time.perf_counter() - begin
    rank = make_strategy("dense", data, passages, 0, index)
    qids = data.split_queries("train", options.questions)
    settings = MiningSettings(relative_margin=options.relative_margin)
    pool = mine_pool(data, passages, rank, qids, settings)
    whole = time.perf_counter() - begin
    print(f"{options.model}: {len(pool.negatives):,} questions, {len(passages):,} passages")
    print(f"encoding the passages {encoded:.1f} s, everything {whole:.1f} s: {whole / encoded:.2f} times as long")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main()
