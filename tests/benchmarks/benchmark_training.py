"""Training speed against sentence-transformers' trainer: same rows, model, precision and batch, alternating runs.

    python -m tests.benchmarks.benchmark_training --model all-MiniLM-L6-v2 --steps 8 --rounds 3

Rows are SQuAD questions with a positive and 2 hard negatives of BM25's pool. Prints steps per second of both, round by
round, and the median of the ratios.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer

from helpers.batches import TrainingRows
from helpers.dataset import PassageIndex, load_data
from helpers.encoder import load_encoder
from helpers.importing.sources import find_data
from helpers.loss import infonce
from helpers.negatives import mine_pool
from helpers.strategies import make_strategy
from helpers.training import Task, TrainingSettings, train
from tests.benchmarks.rivals import columns_of, trainer_seconds


def ours(options: argparse.Namespace, rows: TrainingRows, folder: Path) -> float:
    """Return the seconds of our loop from its first loss to its last; nothing is saved in between."""
    marks, infonce_loss = [], infonce()

    def loss(scores, batch):
        marks.append(time.perf_counter())
        return infonce_loss(scores, batch)

    settings = TrainingSettings(
        batch_size=options.batch, max_steps=options.steps, eval_every=options.steps, precision=options.precision
    )
    encoder = load_encoder(options.model, device="cpu")
    train(encoder, Task(rows, lambda _encoder: 0.0, loss), settings, folder / "ours")
    return marks[-1] - marks[0]


def main() -> None:
    """Alternate the two and print the ratio of their speeds."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", default="all-MiniLM-L6-v2")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    options = parser.parse_args()
    data = load_data(find_data("squad"))
    passages = PassageIndex(data.training_corpus())
    qids = data.split_queries("train", 500)
    pool = mine_pool(data, passages, make_strategy("bm25", data, passages), qids)
    rows = TrainingRows(data, passages, pool.ids(), hard_negatives=2, given_negative=False)
    columns = columns_of(rows, load_encoder(options.model, device="cpu"))
    ratios = []
    with tempfile.TemporaryDirectory() as name:
        for number in range(options.rounds):
            mine = ours(options, rows, Path(name))
            model = SentenceTransformer(f"{name}/ours", device="cpu")  # the untrained weights, saved at step 0
            where = Path(name) / "theirs"
            other = trainer_seconds(model, columns, where, options.batch, options.steps, options.precision)
            ratios.append(other / mine)
            speeds = [(options.steps - 1) / seconds for seconds in (mine, other)]
            print(f"round {number}: ours {speeds[0]:.2f} steps/s, theirs {speeds[1]:.2f}: {ratios[-1]:.2f} times")
    threads = torch.get_num_threads()
    print(f"{options.model}, {options.precision}, batch {options.batch}, {threads} threads")
    print(f"median {statistics.median(ratios):.2f} times as fast")


if __name__ == "__main__":
    main()
