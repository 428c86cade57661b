"""Matryoshka: the loss at several lengths at once, and search with the first numbers of a vector."""

import importlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers.base.errors import SettingError
from helpers.batches import TrainingRows, make_batch
from helpers.encoder import Encoder, load_encoder
from helpers.gradients import add_gradient, make_engine
from helpers.loss import infonce, score_loss
from helpers.retrieval import dense_run
from helpers.topics.small_vectors import MatryoshkaEncoder, matryoshka_loss
from helpers.training import TrainingSettings

CUTS = [8, 32]


@pytest.fixture
def encoder():
    return load_encoder("bert-tiny", max_length=48, device="cpu", encoder_class=MatryoshkaEncoder)


@pytest.fixture(scope="module")
def source(sample, sample_passages):
    return TrainingRows(sample, sample_passages, hard_negatives=0)


def gradients(encoder):
    return {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("micro_batch", [0, 4])
@pytest.mark.parametrize(("normalize", "similarity"), [(True, "cosine"), (False, "cosine"), (True, "dot")])
def test_the_loss_is_the_sum_of_its_parts_and_so_is_the_gradient(encoder, source, micro_batch, normalize, similarity):
    encoder.profile = replace(encoder.profile, normalize=normalize, similarity=similarity)
    batch = make_batch([source[number] for number in range(8)], source, encoder)
    questions, passages = (torch.cat([encoder(**one) for one in many]) for many in ([batch.queries], batch.passages))
    parts = []
    for size in (128, *CUTS):
        q, p = questions[:, :size], passages[:, :size]
        if similarity == "cosine":
            q, p = (torch.nn.functional.normalize(vectors, dim=1) for vectors in (q, p))
        parts.append(score_loss(q @ p.T, batch.positive, batch.allowed))
    sum(parts).backward()
    expected, calls = gradients(encoder), []
    encoder.zero_grad()
    encoder.set_cuts(CUTS)
    encoder.model.register_forward_hook(lambda *_: calls.append(1))
    engine = make_engine(encoder, matryoshka_loss(infonce()), TrainingSettings())
    measures = add_gradient(engine, batch, micro_batch)
    assert measures["loss"] == pytest.approx(sum(parts).item(), rel=1e-5)
    assert len({round(part.item(), 3) for part in parts}) == 3
    found = gradients(encoder)
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-3)
    if not micro_batch:
        assert len(calls) == 1 + len(batch.passages)  # each text once, whatever the number of lengths


@pytest.mark.parametrize("cuts", [[0], [128], [8, 8], [1.5], ["8"], [-1]])
def test_a_length_that_is_none_is_an_error(encoder, cuts):
    with pytest.raises(SettingError, match=r"matryoshka=.*below the vectors' own 128"):
        encoder.set_cuts(cuts)


def test_it_saves_and_loads_as_any_other_encoder(encoder, tmp_path, sample_passages):
    texts = sample_passages.texts[:5]
    before = encoder.encode(texts, "passage")
    encoder.set_cuts(CUTS)
    encoder.save(tmp_path / "model")
    assert type(load_encoder(str(tmp_path / "model"), device="cpu")) is Encoder
    with torch.no_grad():
        next(encoder.parameters()).zero_()
    encoder.restore(tmp_path / "model")
    np.testing.assert_array_equal(encoder.encode(texts, "passage"), before)
    assert encoder.cuts == (8, 32)


def test_search_with_fewer_numbers_ranks_by_the_cosines_of_the_first_ones(encoder, tmp_path, sample, sample_passages):
    queries = {qid: sample.queries[qid].text for qid in sample.split_queries("dev", 20, 0)}
    q, p = encoder.encode(list(queries.values()), "query"), encoder.encode(sample_passages.texts, "passage")
    q, p = (vectors[:, :8] / np.linalg.norm(vectors[:, :8], axis=1, keepdims=True) for vectors in (q, p))
    small = load_encoder("bert-tiny", max_length=48, device="cpu", dimensions=8)
    assert small.dimension == 8 and small.fingerprint() != encoder.fingerprint()
    run = dense_run("small", small, queries, sample_passages, k=10)
    np.testing.assert_allclose(np.stack(run.scores), np.sort(q @ p.T, axis=1)[:, ::-1][:, :10], atol=1e-5)
    small.save(tmp_path / "small")
    assert load_encoder(str(tmp_path / "small"), device="cpu").profile == small.profile
    reference = importlib.import_module("sentence_transformers").SentenceTransformer(
        str(tmp_path / "small"), device="cpu"
    )
    vectors = reference.encode_query(list(queries.values()), show_progress_bar=False)
    np.testing.assert_allclose(vectors, small.encode(list(queries.values()), "query"), atol=1e-5)


@pytest.mark.parametrize("dimensions", [-1, 129])
def test_more_numbers_than_there_are_is_an_error(dimensions):
    with pytest.raises(SettingError, match=f"dimensions={dimensions}.*128 numbers"):
        load_encoder("bert-tiny", device="cpu", dimensions=dimensions)
