"""How much faster answer match is than DPR's algorithm as published, on SQuAD's test questions.

python -m tests.benchmarks.benchmark_answers --questions 2000 --passages 100
"""

import argparse
import random
import time
from collections.abc import Callable

import numpy as np

from helpers.dataset import PassageIndex, load_data
from helpers.evaluation import first_hits
from helpers.importing.sources import find_data
from helpers.retrieval import BM25
from tests.test_answer_match import dpr_has_answer


def timed(work: Callable, *given) -> tuple[float, object]:
    """Return the least seconds of CPU that `work` took in three runs, and its result."""
    seconds = []
    for _ in range(3):
        begin = time.process_time()
        result = work(*given)
        seconds.append(time.process_time() - begin)
    return min(seconds), result


def plain(rankings, answers, texts) -> list[list[bool]]:
    """Return the verdict on every passage of every ranking: DPR's code does not stop at the first hit either."""
    return [[dpr_has_answer(wanted, texts[row]) for row in r] for r, wanted in zip(rankings, answers, strict=True)]


def fast(rankings, answers, corpus) -> np.ndarray:
    """Return the ranks of the first hits, from passages that nobody has normalised yet."""
    return first_hits(rankings, answers, PassageIndex(corpus).normalized)


def main() -> None:
    """Time first_hits, normalising included, and the plain algorithm on a sample of the same questions, scaled up."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--passages", type=int, default=100, help="length of a ranking")
    parser.add_argument("--sample", type=int, default=100, help="questions that the plain algorithm is timed on")
    options = parser.parse_args()
    data = load_data(find_data("squad"))
    corpus = data.evaluation_corpus()
    texts, qids = corpus["text"][:], data.split_queries("test", options.questions)
    answers = [data.queries[qid].answers for qid in qids]
    draw = np.random.default_rng(0)
    bm25 = BM25(PassageIndex(corpus).texts)
    rankings = {
        "passages of BM25": bm25.search([data.queries[qid].text for qid in qids], options.passages)[0],
        "random passages": [draw.permutation(len(texts))[: options.passages] for _ in qids],
    }
    sample = random.Random(0).sample(range(len(qids)), min(options.sample, len(qids)))
    for name, ranking in rankings.items():
        seconds, ranks = timed(fast, ranking, answers, corpus)
        slow, verdicts = timed(plain, [ranking[n] for n in sample], [answers[n] for n in sample], texts)
        slow *= len(qids) / len(sample)
        assert [line.index(True) + 1 if True in line else np.inf for line in verdicts] == ranks[sample].tolist()
        print(f"{len(qids):,} questions × {options.passages} {name}: {seconds:.2f} s of CPU")
        print(f"  plain algorithm {slow:.1f} s (scaled from {len(sample)}): {slow / seconds:.0f} times; ranks equal")


if __name__ == "__main__":
    main()
