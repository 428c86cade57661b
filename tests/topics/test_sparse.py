"""SPLADE against sentence-transformers, and the inverted index against a dense product."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array
from sentence_transformers.sparse_encoder.modules import SpladePooling

from helpers.base.errors import ModelError
from helpers.batches import TrainingRows
from helpers.dataset import PassageIndex
from helpers.encoder import load_encoder
from helpers.evaluation import hit_at_k, hit_ranks
from helpers.retrieval import Run
from helpers.topics.hybrid import SpladeEncoder, encode_sparse, sparse_search
from helpers.training import TrainingSettings, train


def load(name="bert-tiny", **settings):
    return load_encoder(name, device="cpu", encoder_class=SpladeEncoder, **settings)


@pytest.fixture(scope="module")
def splade():
    return load()


def test_weights_equal_those_of_sentence_transformers(splade, sample_passages):
    texts = ["Sea.", *sample_passages.texts[:12]]
    inputs = splade.pad(splade.tokenize(texts, "passage"))
    with torch.no_grad():
        logits = splade.model(**inputs).logits
        features = {"token_embeddings": logits, "attention_mask": inputs["attention_mask"]}
        expected = SpladePooling("max").eval()(features)["sentence_embedding"]
    np.testing.assert_allclose(encode_sparse(splade, texts, "passage").toarray(), expected, atol=1e-5)


def test_padding_never_changes_a_weight(splade, sample_passages):
    texts = ["Sea.", sample_passages.texts[0], "A river in the north."]
    together = encode_sparse(splade, texts, "passage").toarray()
    alone = np.concatenate([encode_sparse(splade, [text], "passage").toarray() for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-4)
    assert together.shape == (3, 30522) and (together >= 0).all()


def test_a_text_gets_its_own_words_and_others_that_it_lacks(splade):
    weights = encode_sparse(splade, ["The moon landing of 1969"], "passage")
    words = splade.tokenizer.convert_ids_to_tokens(weights.indices.tolist())
    assert {"moon", "landing", "1969"} <= set(words)
    assert set(words) - {"the", "moon", "landing", "of", "1969"}  # expansion
    assert 5 < weights.nnz < 500


matrices = st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=1, max_size=7)


@given(matrices, matrices, st.integers(1, 9))
def test_search_equals_the_dense_product(queries, passages, k):
    query, passage = (csr_array(np.array(rows, dtype=np.float32)) for rows in (queries, passages))
    scores = query.toarray() @ passage.toarray().T
    rankings, found = sparse_search(query, passage.T.tocsr(), k)
    for number, line in enumerate(scores):
        assert found[number].tolist() == sorted(line[line > 0], reverse=True)[:k]
        assert line[rankings[number]].tolist() == found[number].tolist()
        assert len(set(rankings[number].tolist())) == len(rankings[number])


def test_search_in_chunks_is_the_same(monkeypatch):
    generator = np.random.default_rng(0)
    query, passage = (csr_array(generator.integers(0, 2, (20, 9)).astype(np.float32)) for _ in range(2))
    whole = sparse_search(query, passage.T.tocsr(), 5)
    monkeypatch.setattr("helpers.topics.hybrid.MAX_SCORES", 60)
    for one, other in zip(whole, sparse_search(query, passage.T.tocsr(), 5), strict=True):
        assert [part.tolist() for part in one] == [part.tolist() for part in other]


def test_the_real_splade_finds_what_it_was_trained_to_find(splade, sample):
    qids, passages = sample.split_queries("test", 60), PassageIndex(sample.evaluation_corpus("held-out"))
    index = encode_sparse(splade, passages.texts, "passage").T.tocsr()
    queries = encode_sparse(splade, [sample.queries[qid].text for qid in qids], "query")
    ranks = hit_ranks(Run("splade", qids, *sparse_search(queries, index, 10)), sample, passages, "test")[0]
    assert hit_at_k(ranks, 10) > 0.7


def test_it_trains_in_the_same_loop_and_loads_as_what_it_is(sample, tmp_path):
    encoder, passages = load(max_length=48), PassageIndex(sample.training_corpus())
    rows = TrainingRows(sample, passages, {qid: [] for qid in sample.split_queries("train", 16)}, 0, False)
    settings = TrainingSettings(epochs=1, batch_size=8, learning_rate=1e-5, temperature=1.0, micro_batch=4)
    scores, before = iter([0.1, 0.9]), encoder.fingerprint()
    train(encoder, rows, passages, settings, lambda _: next(scores), tmp_path / "model")
    assert encoder.fingerprint() != before
    assert json.loads((tmp_path / "model" / "retriever.json").read_text())["kind"] == "splade"
    assert load(str(tmp_path / "model")).fingerprint() == encoder.fingerprint()
    with pytest.raises(ModelError, match="saved as a splade encoder, but a single-vector one"):
        load_encoder(str(tmp_path / "model"), device="cpu")


def test_a_model_without_a_language_model_head_is_refused():
    with pytest.raises(ModelError, match=r"all-MiniLM-L6-v2' lacks \d+ weights, e.g. cls.predictions"):
        load("all-MiniLM-L6-v2")
