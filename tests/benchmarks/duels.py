"""What `measure_speed` times: one function for each piece of work, which sets it up and returns both sides."""

import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import bm25s
import faiss
import numpy as np
import torch
from rank_bm25 import BM25Okapi
from sentence_transformers import SentenceTransformer

from helpers.base.devices import PRECISIONS, choose_precision
from helpers.batches import Row, TrainingRows, candidate_mask
from helpers.dataset import PassageIndex, RetrievalData, load_data
from helpers.encoder import load_encoder
from helpers.evaluation import first_hits
from helpers.importing.sources import find_data
from helpers.loss import infonce
from helpers.negatives import mine_pool
from helpers.retrieval import BM25, dense_search
from helpers.strategies import bm25_strategy
from helpers.training import Task, TrainingSettings, train
from tests.benchmarks.common import keep_last_weights
from tests.benchmarks.rivals import columns_of, trainer_seconds
from tests.test_answer_match import dpr_has_answer

K = 100


@dataclass
class Duel:
    """The same work done by us and by what people would use otherwise.

    Attributes
    ----------
    target : the ratio of times to reach, theirs over ours
    ours, theirs : do the work once and return its seconds
    more : what else belongs into the result
    keep : what must live as long as the duel, such as a folder
    """

    work: str
    rival: str
    target: float
    ours: Callable[[], float]
    theirs: Callable[[], float]
    more: dict = field(default_factory=dict)
    keep: object = None


def seconds(work: Callable[[], object]) -> float:
    """Return how long `work` takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def squad() -> tuple[RetrievalData, PassageIndex]:
    """Return SQuAD and all of its passages."""
    data = load_data(find_data("squad"))
    return data, PassageIndex(data.corpus)


def encoding(precision: str, target: float, theirs: str = "fp32", count: int = 200) -> Duel:
    """Encode passages; in fp32 the vectors must be those of the rival, in bf16 nearly those of fp32."""
    _, passages = squad()
    texts, encoder = passages.texts[-count:], load_encoder("all-MiniLM-L6-v2", device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        encoder.save(f"{folder}/model")
        other = SentenceTransformer(f"{folder}/model", device="cpu", model_kwargs={"dtype": PRECISIONS[theirs]})
    exact = encoder.encode(texts, "passage")
    encoder.precision = choose_precision(precision, "cpu")
    cosines = (encoder.encode(texts, "passage") * exact).sum(1)
    gap = abs(exact - other.encode(texts)).max()
    assert (theirs != "fp32" or gap < 1e-5) and cosines.min() > 0.999, (gap, cosines.min())
    ours = f"{precision} ({encoder.precision} here)" if precision == "auto" else precision
    return Duel(
        f"encode {count} SQuAD passages, all-MiniLM-L6-v2, {ours}",
        f"sentence-transformers, encode, {theirs}",
        target,
        lambda: seconds(lambda: encoder.encode(texts, "passage")),
        lambda: seconds(lambda: other.encode(texts)),
        {"least_cosine_to_fp32": float(cosines.min())},
    )


def share_of_peak(precision: str, target: float, count: int = 200, tokens: int = 2048) -> Duel:
    """Encode passages, beside the time that the model's products would take by themselves at their best."""
    _, passages = squad()
    texts, encoder = passages.texts[-count:], load_encoder("all-MiniLM-L6-v2", device="cpu")
    encoder.precision = precision
    lengths = np.array([len(ids) for ids in encoder.tokenize(texts, "passage")])
    layers = [module.weight.shape for module in encoder.modules() if isinstance(module, torch.nn.Linear)]
    attention = 4 * encoder.model.config.hidden_size * encoder.model.config.num_hidden_layers * (lengths**2).sum()

    def products() -> float:
        alone, operations = 0.0, 0.0
        for shape, times in Counter(layers).items():
            weight, inputs = (torch.randn(*of).to(PRECISIONS[precision]) for of in (shape, (tokens, shape[1])))
            linear = partial(torch.nn.functional.linear, inputs, weight)
            alone += times * min(seconds(linear) for _ in range(20)) * lengths.sum() / tokens
            operations += times * 2 * shape.numel() * lengths.sum()
        return alone * (1 + attention / operations)  # attention's products at the same rate

    return Duel(
        f"encode {count} SQuAD passages, all-MiniLM-L6-v2, {precision}",
        "its matrix products alone, at this machine's peak",
        target,
        lambda: seconds(lambda: encoder.encode(texts, "passage")),
        products,
    )


def training(model: str, steps: int, target: float, precision: str = "fp32", itself: str = "") -> Duel:
    """Train on the same rows, 16 questions with a positive and 2 hard negatives of BM25's pool at a time.

    The rival is sentence-transformers' trainer in the same precision, or we in the precision `itself`.
    """
    data = load_data(find_data("squad"))
    passages, qids = PassageIndex(data.training_corpus()), data.split_queries("train", 500)
    pool = mine_pool(data, passages, bm25_strategy(data, passages), qids)
    rows = TrainingRows(data, passages, pool.ids(), hard_negatives=2, given_negative=False)
    scratch = tempfile.TemporaryDirectory()
    folder, untrained = Path(scratch.name), load_encoder(model, device="cpu")
    untrained.save(folder / "untrained")
    columns = columns_of(rows, untrained)

    def ours(precision: str = precision) -> float:
        marks, loss = [], infonce()

        def timed_loss(scores, batch):
            marks.append(time.perf_counter())
            return loss(scores, batch)

        settings = TrainingSettings(max_steps=steps, eval_every=steps, precision=precision)
        train(load_encoder(model, device="cpu"), Task(rows, keep_last_weights(), timed_loss), settings, folder / "ours")
        return marks[-1] - marks[0]

    def theirs() -> float:
        other = SentenceTransformer(str(folder / "untrained"), device="cpu")
        return trainer_seconds(other, columns, folder / "theirs", 16, steps, precision)

    return Duel(
        f"{steps - 1} training steps, {model}, {precision}",
        f"ours in {itself}" if itself else "sentence-transformers, trainer",
        target,
        ours,
        partial(ours, itself) if itself else theirs,
        keep=scratch,
    )


def unit_vectors(rows: int, dimensions: int = 384, seed: int = 0) -> np.ndarray:
    """Return random vectors of length 1, [rows, dimensions]."""
    vectors = np.random.default_rng(seed).standard_normal((rows, dimensions), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def exact_search(count: int, questions: int = 500, dimensions: int = 384) -> Duel:
    """Search random unit vectors exactly; the same passages must be found, equal scores apart."""
    passages, queries = unit_vectors(count, dimensions), unit_vectors(questions, dimensions, seed=1)
    index = faiss.IndexFlatIP(dimensions)
    index.add(passages)
    assert (
        np.sort(dense_search(queries[:9], passages, K)[0]) == np.sort(index.search(queries[:9], K)[1])
    ).mean() > 0.99
    return Duel(
        f"exact top-{K}, {questions} questions, {count:,} × {dimensions}",
        "faiss.IndexFlatIP",
        2.0,
        lambda: seconds(lambda: dense_search(queries, passages, K)),
        lambda: seconds(lambda: index.search(queries, K)),
    )


def many_passages(count: int) -> tuple[list[str], list[str]]:
    """Return SQuAD's passages, repeated with their words in another order up to `count`, and 500 test questions."""
    data, passages = squad()
    texts, draw = passages.texts[:], np.random.default_rng(0)
    more = (" ".join(draw.permutation(texts[n % len(texts)].split())) for n in range(count - len(texts)))
    return [*texts, *more][:count], [data.queries[qid].text for qid in data.split_queries("test", 500)]


def bm25_plain(count: int = 100_000) -> Duel:
    """Index passages and search them, by bm25s as its README shows it."""
    texts, questions = many_passages(count)

    def theirs() -> None:
        index = bm25s.BM25()
        index.index(bm25s.tokenize(texts, stopwords="en", show_progress=False), show_progress=False)
        tokens = bm25s.tokenize(questions, stopwords="en", show_progress=False)
        index.retrieve(tokens, k=K, show_progress=False)

    return Duel(
        f"BM25: index {count:,} passages, top-{K} of {len(questions)} questions",
        "bm25s, used plainly",
        1.0,
        lambda: seconds(lambda: BM25(texts).search(questions, K)),
        lambda: seconds(theirs),
    )


def bm25_rank(count: int = 100_000, questions: int = 20) -> Duel:
    """Search indexed passages by rank_bm25; it is so slow that it gets few questions, and we get the same."""
    texts, asked = many_passages(count)
    ours, theirs = BM25(texts), BM25Okapi([text.lower().split() for text in texts])
    return Duel(
        f"BM25: top-{K} of {questions} questions in {count:,} passages, indexed before",
        "rank_bm25",
        20.0,
        lambda: seconds(lambda: ours.search(asked[:questions], K)),
        lambda: seconds(lambda: [np.argsort(-theirs.get_scores(q.lower().split()))[:K] for q in asked[:questions]]),
    )


def answer_match(questions: int = 2000, sample: int = 100) -> Duel:
    """Find the first hit among BM25's first 100, normalising included; DPR's algorithm on a sample, scaled up."""
    data = load_data(find_data("squad"))
    corpus, qids = data.evaluation_corpus(), data.split_queries("test", questions)
    texts, answers = corpus["text"][:], [data.queries[qid].answers for qid in qids]
    rankings = BM25(PassageIndex(corpus).texts).search([data.queries[qid].text for qid in qids], K)[0]
    some = range(0, len(qids), len(qids) // sample)

    def ours() -> np.ndarray:
        return first_hits(rankings, answers, PassageIndex(corpus).normalized)

    def theirs() -> list[list[bool]]:  # DPR's code does not stop at the first hit either
        return [[dpr_has_answer(answers[n], texts[row]) for row in rankings[n]] for n in some]

    ranks = ours()[list(some)].tolist()
    assert [line.index(True) + 1 if True in line else np.inf for line in theirs()] == ranks
    return Duel(
        f"answer match, {questions:,} questions × {K} passages",
        f"DPR's algorithm, plainly written (timed on {len(some)}, scaled)",
        100.0,
        lambda: seconds(ours),
        lambda: seconds(theirs) * len(qids) / len(some),
    )


def mask(questions: int = 512, passages: int = 2048) -> Duel:
    """Find the false negatives of a batch; `tests/test_batches.py` has the slow twin."""
    data = load_data(find_data("squad"))
    index, qids = PassageIndex(data.training_corpus()), data.split_queries("train", questions)
    rows = TrainingRows(data, index, dict.fromkeys(qids, ()), hard_negatives=0, given_negative=False)
    chosen: list[Row] = [rows[number] for number in range(questions)]
    columns = list(dict.fromkeys([row.positive for row in chosen] + list(range(len(index)))))[:passages]
    return Duel(
        f"which of {questions} × {passages:,} pairs of a batch are false negatives, texts normalised before",
        "a limit of 0.1 s",
        1.0,
        lambda: seconds(lambda: candidate_mask(chosen, columns, rows)),
        lambda: 0.1,
    )


def importing() -> Duel:
    """Start Python and import the parts that need no torch."""
    light = "import helpers, helpers.answers, helpers.base.files, helpers.base.checks, helpers.running.parameters"
    loaded = subprocess.check_output([sys.executable, "-c", f"{light}, sys; print(*sys.modules)"], text=True)
    assert "torch" not in loaded.split()
    return Duel(
        "start Python and import the parts without torch",
        "a limit of 0.3 s",
        1.0,
        lambda: seconds(lambda: subprocess.run([sys.executable, "-c", light], check=True)),
        lambda: 0.3,
    )


DUELS: dict[str, Callable[[], Duel]] = {
    "encoding": lambda: encoding("auto", 2.5),
    "encoding-fp32": lambda: encoding("fp32", 1.25),
    "encoding-bf16": lambda: encoding("bf16", 1.25, "bf16"),
    "peak-fp32": lambda: share_of_peak("fp32", 0.85),
    "peak-bf16": lambda: share_of_peak("bf16", 0.65),
    "training-minilm": lambda: training("all-MiniLM-L6-v2", 4, 2.5),
    "training-bf16": lambda: training("all-MiniLM-L6-v2", 3, 1.5, "bf16"),
    "training-bf16-fp32": lambda: training("all-MiniLM-L6-v2", 3, 1.0, "bf16", "fp32"),
    "training-bert-tiny": lambda: training("bert-tiny", 16, 2.0),
    "search-200k": lambda: exact_search(200_000),
    "search-1m": lambda: exact_search(1_000_000),
    "bm25s": bm25_plain,
    "rank_bm25": bm25_rank,
    "answers": answer_match,
    "mask": mask,
    "import": importing,
}


def threads() -> int:
    """Give faiss as many threads as torch has, and return how many."""
    faiss.omp_set_num_threads(torch.get_num_threads())
    return torch.get_num_threads()
