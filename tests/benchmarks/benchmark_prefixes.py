"""What prefixes buy, and what it costs to train with one pair and to search with another.

    python -m tests.benchmarks.benchmark_prefixes

Trains a BERT-tiny on SQuAD with each pair of prefixes, over several seeds, and evaluates each of the models with every
pair; then all-MiniLM-L6-v2 as it is, which was trained without any. The last weights count, nothing was chosen on the
test questions, and the result goes to data/results/prefixes.json.
"""

import argparse
import itertools
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from helpers.base.files import resolve, write_json
from helpers.batches import TrainingRows
from helpers.dataset import PassageIndex, load_data
from helpers.encoder import Encoder, load_encoder
from helpers.evaluation import hit_at_k, hit_ranks
from helpers.importing.sources import find_data
from helpers.profiles import E5_PREFIXES, SEARCHING, profile_for
from helpers.reporting.significance import estimate
from helpers.retrieval import Run, dense_search
from helpers.training import Task, TrainingSettings, train
from tests.benchmarks.common import CUTOFFS, keep_last_weights, last_loss, settings_of, without_attention_dropout

PAIRS = {"none": ("", ""), "query: / passage: ": E5_PREFIXES, "an instruction": (SEARCHING, "")}
NAMES = ["BAAI/bge-m3", "BAAI/bge-large-en-v1.5", "intfloat/e5-large-v2", "bert-tiny", "all-MiniLM-L6-v2"]


def pair_of(name: str, scheme: str) -> str:
    """Return the pair that `scheme` means for the model `name`."""
    profile = profile_for(name, scheme)
    return next(pair for pair, texts in PAIRS.items() if texts == (profile.query_prefix, profile.passage_prefix))


def trained(options: argparse.Namespace, data, pair: str, seed: int, dev: list[str]) -> Encoder:
    """Return a model trained with in-batch negatives; print its loss and dev Hit@10, to see that nothing went wrong."""
    begin, passages = time.process_time(), PassageIndex(data.training_corpus())
    pool = {qid: [] for qid in data.split_queries("train", options.questions)}
    rows = TrainingRows(data, passages, pool, 0, False, seed)
    encoder = load_encoder(options.model, list(PAIRS[pair]), device="cpu")
    without_attention_dropout(encoder)
    settings = TrainingSettings(
        epochs=100,
        max_steps=options.steps,
        batch_size=options.batch,
        seed=seed,
        learning_rate=options.learning_rate,
        eval_every=options.steps,
    )
    with tempfile.TemporaryDirectory() as folder:
        history = train(encoder, Task(rows, keep_last_weights()), settings, Path(folder) / "m")
    spent, loss = time.process_time() - begin, last_loss(history)
    score = hit_at_k(ranks(encoder, data, "dev", dev, [pair])[pair], 10)
    print(f"{pair}, seed {seed}: {spent:.0f} s of CPU, last loss {loss:.3f}, dev Hit@10 {score:.3f}", flush=True)
    return encoder


def ranks(encoder: Encoder, data, split: str, qids: list[str], pairs: list[str]) -> dict[str, np.ndarray]:
    """Return the rank of the first passage with an answer, [Q], when searching with each of `pairs`."""
    passages, profile, found = PassageIndex(data.evaluation_corpus()), encoder.profile, {}
    texts = [data.queries[qid].text for qid in qids]
    vectors = {}  # of the passages, by their prefix
    for pair in pairs:
        query_prefix, passage_prefix = PAIRS[pair]
        encoder.profile = replace(profile, query_prefix=query_prefix, passage_prefix=passage_prefix)
        if passage_prefix not in vectors:
            vectors[passage_prefix] = encoder.encode(passages.texts, "passage")
        rows, scores = dense_search(encoder.encode(texts, "query"), vectors[passage_prefix], 100)
        found[pair] = hit_ranks(Run(pair, qids, list(rows), list(scores)), data, passages, split)[0]
    encoder.profile = profile
    return found


def row(trained_with: str, searched_with: str, own: np.ndarray, matched: np.ndarray) -> dict:
    """Return Hit@K of [S, Q] ranks, and the difference from those of the pair that the model was trained with."""
    hits = {}
    for k in CUTOFFS:
        hits[str(k)] = estimate(own <= k)._asdict() | {"sd": None}
        del hits[str(k)]["p"]
        if len(own) > 1:
            hits[str(k)]["sd"] = float((own <= k).mean(1).std(ddof=1))
        if searched_with != trained_with:
            hits[str(k)]["minus matched"] = estimate(own <= k, matched <= k)._asdict()
    return {"trained with": trained_with, "searched with": searched_with, "seeds": len(own), "hits": hits}


def main() -> None:
    """Train, search, and write the table."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", default="bert-tiny", help="the model that is trained")
    parser.add_argument("--zero-shot", default="all-MiniLM-L6-v2", help="the model that is taken as it is")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--questions", type=int, default=5000, help="training questions")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--out", default="data/results/prefixes.json")
    options = parser.parse_args()
    data = load_data(find_data("squad"))
    dev, test = data.split_queries("dev", 500), data.split_queries("test")
    found = {pair: [] for pair in PAIRS}
    for seed, pair in itertools.product(options.seeds, PAIRS):
        found[pair].append(ranks(trained(options, data, pair, seed, dev), data, "test", test, list(PAIRS)))
    rows = []
    for trained_with, runs in found.items():
        own = {pair: np.array([run[pair] for run in runs]) for pair in PAIRS}
        rows += [row(trained_with, pair, own[pair], own[trained_with]) for pair in PAIRS]
    matched = {pair: np.array([run[pair] for run in runs]) for pair, runs in found.items()}
    gains = {
        pair: {str(k): estimate(own <= k, matched["none"] <= k)._asdict() for k in CUTOFFS}
        for pair, own in matched.items()
        if pair != "none"
    }
    still = ranks(load_encoder(options.zero_shot, device="cpu"), data, "test", test, list(PAIRS))
    schemes = {name: {scheme: pair_of(name, scheme) for scheme in ("auto", "model-card")} for name in NAMES}
    settings = settings_of(options, "out")
    write_json(
        resolve(options.out),
        {
            "settings": settings,
            "questions": len(test),
            "schemes": schemes,
            "pairs": PAIRS,
            options.model: rows,
            f"{options.model}, matched, minus none": gains,
            options.zero_shot: [row("none", pair, still[pair][None], still["none"][None]) for pair in PAIRS],
        },
    )


if __name__ == "__main__":
    main()
