"""Shared fixtures: the sample data, a tiny data set to break, and tiny encoders with random weights."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tests never reach for a hub

import resource
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import pytest
import torch
from hypothesis import HealthCheck, settings

from helpers.base.files import ROOT
from helpers.dataset import PassageIndex, load_data
from helpers.encoder import load_encoder
from helpers.importing.sources import write_folder
from helpers.retrieval import DenseIndex

# a busy machine is no failure, and the same commit draws the same examples
settings.register_profile("course", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("course")
torch.set_num_threads(1)  # tiny tensors: a second thread only waits for the first
matplotlib.use("agg")  # here alone: an environment variable would reach the notebooks' kernels too


@pytest.fixture(scope="session")
def sample():
    """The committed sample data."""
    return load_data(ROOT / "data" / "sample")


@pytest.fixture(scope="session")
def sample_passages(sample):
    """Its whole corpus by position."""
    return PassageIndex(sample.corpus)


@pytest.fixture(scope="session")
def train_passages(sample):
    """The part of it that negatives are mined from."""
    return PassageIndex(sample.training_corpus())


@pytest.fixture(scope="session")
def eval_passages(sample):
    """The part of it that dev and test questions are searched in."""
    return PassageIndex(sample.evaluation_corpus())


@pytest.fixture(scope="session")
def bert_tiny():
    """The real small encoder; tests must not change its weights."""
    return load_encoder("bert-tiny", device="cpu")


@pytest.fixture(scope="session")
def short_bert():
    """The same, but it reads 32 tokens of a text, which is fast; tests must not change its weights."""
    return load_encoder("bert-tiny", max_length=32, device="cpu")


@pytest.fixture
def own_bert():
    """The same once more, for a test that changes its weights."""
    return load_encoder("bert-tiny", max_length=32, device="cpu")


@pytest.fixture(scope="session")
def train_index(train_passages, short_bert):
    """The vectors of `train_passages` under `short_bert`."""
    return DenseIndex(short_bert, train_passages.texts)


@pytest.fixture
def full_disk():
    """A context in which no file can grow beyond `size` bytes; the system then fails as on a full disk."""

    @contextmanager
    def limited(size: int = 0):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


@pytest.fixture
def tiny_folder(tmp_path) -> Path:
    """A valid data set of five passages and three questions, small enough to break one field at a time."""
    texts = [
        "Paris lies on the Seine.",
        "Rome lies on the Tiber.",
        "Oslo is in Norway.",
        "Bern is in Switzerland.",
        "Vienna lies on the Danube.",
    ]
    splits = ["train", "train", "dev", "test", "train"]
    corpus = [
        {"_id": f"p{i}", "title": "Capitals", "text": text, "split": split}
        for i, (text, split) in enumerate(zip(texts, splits, strict=True))
    ]
    queries = [
        {"_id": "q0", "text": "Which river crosses the French capital?", "answers": ["Seine"]},
        {"_id": "q1", "text": "Where is Oslo?", "answers": ["Norway"]},
        {"_id": "q2", "text": "Where is Bern?", "answers": ["Switzerland"]},
    ]
    qrels = {"train": [("q0", "p0", 1)], "dev": [("q1", "p2", 1)], "test": [("q2", "p3", 1)]}
    folder = tmp_path / "tiny"
    write_folder(folder, corpus, queries, qrels, [("q0", "p0", "p1")])
    return folder


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
