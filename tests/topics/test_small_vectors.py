"""Matryoshka: the loss at several lengths at once, search with the first numbers; vectors of bytes and bits."""

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
from helpers.retrieval import dense_run, dense_search
from helpers.topics.small_vectors import BLOCK, MatryoshkaEncoder, SmallIndex, matryoshka_loss, to_bits, to_int8
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


@pytest.fixture(scope="module")
def vectors():
    """Questions and passages of length 1 around common directions: enough of both to be told apart or not."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(40, 128))
    both = [centres[generator.integers(40, size=n)] + generator.normal(size=(n, 128)) for n in (30, 700)]
    return [(v / np.linalg.norm(v, axis=1, keepdims=True)).astype(np.float32) for v in both]


def test_int8_is_a_multiple_of_each_vectors_largest_number():
    whole = torch.tensor([[0.5, -1.0, 0.004], [0.0, 0.0, 0.0]])
    values, scales = to_int8(whole)
    assert (
        values.tolist() == [[64, -127, 1], [0, 0, 0]] and values.dtype == torch.int8 and scales.dtype == torch.float16
    )
    assert ((values.float() * scales) - whole).abs().max() <= 1.001 / 127 / 2 and (scales > 0).all()


@pytest.mark.parametrize(("dimension", "dtype", "width"), [(64, "uint64", 1), (128, "uint64", 2), (20, "uint8", 3)])
def test_bits_are_the_signs(dimension, dtype, width):
    whole = np.random.default_rng(1).normal(size=(5, dimension)).astype(np.float32)
    bits = to_bits(whole)
    assert bits.shape == (5, width) and bits.dtype == dtype
    assert (np.unpackbits(bits.view(np.uint8), axis=1, count=dimension) == (whole > 0)).all()


@pytest.mark.parametrize("dimension", [128, 100])  # whole words, and bits that end within one
def test_binary_search_counts_equal_signs(vectors, dimension):
    queries, passages = (whole[:, :dimension] for whole in vectors)
    rows, scores = SmallIndex(passages, "binary").search_vectors(queries, 20)
    equal = ((queries > 0)[:, None] == (passages > 0)[None]).mean(2)
    order = np.argsort(-equal, axis=1, kind="stable")[:, :20]  # ties in corpus order
    assert (rows == order).all()
    np.testing.assert_allclose(scores, np.take_along_axis(equal, order, 1), atol=1e-6)


def test_int8_search_is_that_of_the_whole_vectors_but_for_rounding(vectors, monkeypatch):
    queries, passages = vectors
    expected = dense_search(queries, passages, 10)
    rows, scores = SmallIndex(passages, "int8").search_vectors(queries, 10)
    assert (rows[:, 0] == expected[0][:, 0]).mean() > 0.9
    np.testing.assert_allclose(scores, expected[1], atol=5e-3)
    monkeypatch.setattr("helpers.topics.small_vectors.BLOCK", 64)  # in several blocks, and a few questions at a time
    monkeypatch.setattr("helpers.topics.small_vectors.MAX_SCORES", 7 * len(passages))
    again = SmallIndex(passages, "int8").search_vectors(queries, 10)
    assert (again[0] == rows).all() and BLOCK > len(passages)


@pytest.mark.parametrize("kind", ["int8", "binary"])
def test_candidates_are_ranked_by_what_they_are_scored_with_again(vectors, kind):
    queries, passages = vectors
    every = SmallIndex(passages, kind, candidates=len(passages)).search_vectors(queries, 10)
    np.testing.assert_array_equal(every[0], dense_search(queries, passages, 10)[0])  # all of them: the exact search
    some = SmallIndex(passages, kind, candidates=50)
    first, (rows, scores) = (
        SmallIndex(passages, kind).search_vectors(queries, 50)[0],
        some.search_vectors(queries, 10),
    )
    for query, own, candidates, values in zip(queries, rows, first, scores, strict=True):
        exact = passages[np.sort(candidates)] @ query
        np.testing.assert_allclose(values, np.sort(exact)[::-1][:10], atol=1e-6)
        assert set(own) <= set(candidates)
    stored = SmallIndex(passages, kind, candidates=50, rescore="stored")
    assert stored.whole is None and some.whole is passages
    signs = np.where(passages > 0, 1, -1) if kind == "binary" else passages
    rows, scores = stored.search_vectors(queries, 10)
    np.testing.assert_allclose(scores, np.take_along_axis(queries @ signs.T, rows, 1), atol=5e-3)
    assert (np.diff(scores) <= 0).all()


def test_equal_passages_stay_in_corpus_order(vectors):
    """The second is written in between by the first look, since it is no worse than the others there."""
    queries = np.eye(64, dtype=np.float32)[:1] + 0.1
    worse, best = queries[0] * np.linspace(1, 0.5, 64, dtype=np.float32), queries[0] * 2
    passages = np.stack([-queries[0], best, worse, best, best])
    for kind in ("int8", "binary"):
        rows, _ = SmallIndex(passages, kind, candidates=4).search_vectors(queries, 4)
        assert rows[0].tolist() == [1, 3, 4, 2]
    close = passages.copy()
    close[4] *= 1.001  # the best by int8, but equal again where whole vectors say so
    index = SmallIndex(close, "int8", candidates=4)
    index.whole = passages
    assert index.search_vectors(queries, 4)[0][0].tolist() == [1, 3, 4, 2]


def test_zero_is_no_positive_number():
    assert np.unpackbits(to_bits(np.array([[0.0, 1.0, -1.0, -0.0]], np.float32)))[:4].tolist() == [0, 1, 0, 0]


def test_fewer_candidates_than_asked_for_are_all_there_is(vectors):
    rows, _ = SmallIndex(vectors[1][:7], "binary", candidates=3).search_vectors(vectors[0], 100)
    assert rows.shape == (30, 7) and all(set(row) == set(range(7)) for row in rows)


def test_bytes_are_those_of_the_numbers(vectors):
    passages = vectors[1]
    assert SmallIndex(passages, "int8").nbytes == 700 * (128 + 2)
    assert SmallIndex(passages, "binary", candidates=10).nbytes == passages.nbytes / 32


def test_whole_vectors_may_stay_on_disk(vectors, tmp_path):
    queries, passages = vectors
    np.save(tmp_path / "passages.npy", passages)
    mapped = np.load(tmp_path / "passages.npy", mmap_mode="r")
    found = [SmallIndex(whole, "binary", 20).search_vectors(queries, 5) for whole in (passages, mapped)]
    assert all((one == other).all() for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("given", [{"kind": "int4"}, {"rescore": "some"}, {"candidates": -1}])
def test_unknown_kinds_are_errors(vectors, given):
    with pytest.raises(SettingError, match=f"{next(iter(given))}="):
        SmallIndex(vectors[1], **given)
