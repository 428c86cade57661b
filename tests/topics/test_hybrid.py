"""Fused runs against plain dictionaries, SPLADE against sentence-transformers, the index against a dense product."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array
from sentence_transformers.sparse_encoder.modules import SpladePooling

from helpers.base.errors import DataError, ModelError, SettingError
from helpers.base.files import ROOT
from helpers.batches import TrainingRows
from helpers.dataset import PassageIndex
from helpers.encoder import load_encoder
from helpers.evaluation import hit_at_k, hit_ranks
from helpers.retrieval import Run, load_run
from helpers.topics.hybrid import SpladeEncoder, encode_sparse, fuse, min_max, rrf, sparse_search, weighted
from helpers.training import Task, TrainingSettings, train


def make_run(name, lists):
    """A run from one dict passage -> score a question."""
    ranked = [sorted(scores.items(), key=lambda item: -item[1]) for scores in lists]
    return Run(
        name,
        [f"q{number}" for number in range(len(lists))],
        [np.array([row for row, _ in pairs], dtype=int) for pairs in ranked],
        [np.array([score for _, score in pairs], dtype=float) for pairs in ranked],
    )


def scaled(scores):
    """Min-max as a dictionary."""
    low, high = min(scores.values(), default=0), max(scores.values(), default=0)
    return {row: (score - low) / (high - low) if high > low else 0.0 for row, score in scores.items()}


question = st.dictionaries(st.integers(0, 12), st.integers(-20, 20).map(float), max_size=8)
pairs = st.lists(st.tuples(question, question), min_size=1, max_size=4)


@given(pairs, st.floats(0, 1))
def test_weighted_is_the_sum_of_scaled_scores_where_a_missing_passage_has_the_lists_minimum(lists, alpha):
    dense, sparse = (make_run(name, [pair[n] for pair in lists]) for n, name in enumerate(("dense", "sparse")))
    fused = weighted("hybrid", dense, sparse, alpha)
    for number, (one, other) in enumerate(map(lambda pair: map(scaled, pair), lists)):
        expected = {row: alpha * one.get(row, 0.0) + (1 - alpha) * other.get(row, 0.0) for row in {**one, **other}}
        found = dict(zip(fused.rankings[number].tolist(), fused.scores[number].tolist(), strict=True))
        assert found == pytest.approx(expected)
        order = [(-score, row) for row, score in found.items()]
        assert order == sorted(order)  # best first, equal ones in the corpus's order


@given(pairs)
def test_rrf_is_the_sum_of_reciprocal_ranks(lists):
    runs = [make_run(name, [pair[n] for pair in lists]) for n, name in enumerate(("dense", "sparse"))]
    fused = rrf("rrf", runs)
    for number in range(len(lists)):
        expected: dict[int, float] = {}
        for run in runs:
            for rank, row in enumerate(run.rankings[number].tolist(), start=1):
                expected[row] = expected.get(row, 0.0) + 1 / (60 + rank)
        assert dict(zip(fused.rankings[number].tolist(), fused.scores[number].tolist(), strict=True)) == pytest.approx(
            expected
        )


def test_the_formulas_on_numbers_that_one_can_check_by_hand():
    dense, sparse = make_run("dense", [{1: 0.9, 2: 0.5, 3: 0.1}]), make_run("sparse", [{2: 30.0, 4: 10.0}])
    fused = weighted("hybrid", dense, sparse, 0.6)
    assert fused.rankings[0].tolist() == [2, 1, 3, 4]  # 0.6·0.5 + 0.4·1, then 0.6, then twice 0
    assert fused.scores[0].tolist() == pytest.approx([0.7, 0.6, 0.0, 0.0])
    assert rrf("rrf", [dense, sparse]).scores[0].tolist() == pytest.approx([1 / 62 + 1 / 61, 1 / 61, 1 / 62, 1 / 63])


def test_the_ends_of_alpha_are_the_two_parts():
    dense, sparse = make_run("dense", [{5: 3.0, 1: 2.0, 9: 1.0}]), make_run("sparse", [{7: 8.0, 5: 7.0, 2: 6.0}])
    assert weighted("h", dense, sparse, 1.0).rankings[0][:2].tolist() == [5, 1]
    assert weighted("h", dense, sparse, 0.0).rankings[0][:2].tolist() == [7, 5]


def test_scores_of_any_scale_weigh_the_same():
    lists = [{5: 3.0, 1: 2.0, 9: 1.0}], [{1: 8.0, 2: 7.0, 5: 6.0}]
    dense, sparse = make_run("dense", lists[0]), make_run("sparse", lists[1])
    large = make_run("sparse", [{row: 1000 * score - 7 for row, score in lists[1][0].items()}])
    assert weighted("h", dense, sparse, 0.3).scores[0] == pytest.approx(weighted("h", dense, large, 0.3).scores[0])


def test_equal_scores_and_empty_lists_say_nothing():
    assert min_max(np.array([4.0, 4.0])).tolist() == [0, 0]
    assert min_max(np.array([])).tolist() == []
    fused = weighted("h", make_run("dense", [{3: 1.0, 4: 0.0}, {}]), make_run("sparse", [{}, {}]), 0.5)
    assert [ranking.tolist() for ranking in fused.rankings] == [[3, 4], []]
    assert fused.rankings[1].dtype.kind == "i"


def test_k_cuts_the_union():
    dense, sparse = (
        make_run("d", [{n: float(n) for n in range(5)}]),
        make_run("s", [{n: float(n) for n in range(3, 9)}]),
    )
    assert len(rrf("h", [dense, sparse], k=100).rankings[0]) == 9
    assert rrf("h", [dense, sparse], k=1).rankings[0].tolist() == [4]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("others", [{}, {2: 0.5, 3: 0.1}])
def test_a_score_that_is_not_finite_is_refused_even_alone(bad, others):
    fine, broken = make_run("BM25", [{1: 1.0}, {1: 1.0}]), make_run("dense", [{2: 1.0}, {1: bad} | others])
    for fusion in (lambda: weighted("h", broken, fine, 0.5), lambda: rrf("h", [fine, broken])):
        with pytest.raises(DataError, match="dense: question 'q1' has a score that is NaN or infinite"):
            fusion()


def test_a_fused_run_is_a_run_file_like_any_other(tmp_path):
    ids = [f"p{number}" for number in range(10)]
    dense, sparse = make_run("d", [{1: 2.0, 3: 1.0}, {}]), make_run("s", [{3: 2.0, 5: 1.0}, {2: 1.0}])
    fused = rrf("hybrid rrf", [dense, sparse])
    fused.save(tmp_path / "rrf.test.trec", ids)
    loaded = load_run(tmp_path / "rrf.test.trec", {pid: row for row, pid in enumerate(ids)}, fused.qids)
    for number, ranking in enumerate(fused.rankings):
        assert loaded.rankings[number].tolist() == ranking.tolist()
        assert loaded.scores[number] == pytest.approx(fused.scores[number], rel=1e-5)


def test_the_runs_themselves_stay_as_they_were():
    dense, sparse = make_run("d", [{1: 2.0, 3: 1.0}]), make_run("s", [{3: 2.0, 5: 1.0}])
    weighted("h", dense, sparse, 0.5)
    assert (dense.rankings[0].tolist(), dense.scores[0].tolist()) == ([1, 3], [2.0, 1.0])


def test_what_cannot_be_fused_is_an_error_that_says_why():
    one, other = make_run("dense", [{1: 1.0}]), make_run("BM25", [{1: 1.0}, {2: 1.0}])
    with pytest.raises(DataError, match=r"BM25 and dense rank different questions.*q1.*same split"):
        rrf("h", [one, other])
    other.qids = other.qids[::-1]
    with pytest.raises(DataError, match="another order"):
        rrf("h", [make_run("dense", [{}, {}]), other])
    with pytest.raises(SettingError, match="1 weights for 2 runs"):
        fuse("h", [one, one], [1.0], min_max)
    with pytest.raises(SettingError, match=r"alpha=nan"):
        weighted("h", one, one, float("nan"))
    with pytest.raises(SettingError, match=r"alpha=1\.5.*0 \(sparse alone\) to 1 \(dense alone\)"):
        weighted("h", one, one, 1.5)


def load(name="bert-tiny", **settings):
    return load_encoder(name, device="cpu", encoder_class=SpladeEncoder, **settings)


@pytest.fixture(scope="module")
def splade():
    return load()


def test_weights_equal_those_of_sentence_transformers(splade, sample_passages):
    texts = ["Sea.", *sample_passages.texts[:12]]
    inputs = splade.pad(splade.tokenize(texts, "passage"), "passage")
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
    qids, corpus = sample.split_queries("test", 30), sample.evaluation_corpus("held-out")
    found = {pid for qid in qids for pid in sample.qrels["test"][qid]}
    wanted = [row for row, pid in enumerate(corpus["_id"]) if pid in found or row % 4 == 0]
    passages = PassageIndex(corpus.select(wanted))
    index = encode_sparse(splade, passages.texts, "passage").T.tocsr()
    queries = encode_sparse(splade, [sample.queries[qid].text for qid in qids], "query")
    ranks = hit_ranks(Run("splade", qids, *sparse_search(queries, index, 10)), sample, passages, "test")[0]
    assert hit_at_k(ranks, 10) > 0.7


def test_it_trains_in_the_same_loop_and_loads_as_what_it_is(sample, train_passages, tmp_path):
    encoder = load(max_length=24)
    rows = TrainingRows(sample, train_passages, {qid: [] for qid in sample.split_queries("train", 8)}, 0, False)
    settings = TrainingSettings(epochs=1, batch_size=4, learning_rate=1e-5, temperature=1.0, micro_batch=2)
    scores, before = iter([0.1, 0.9]), encoder.fingerprint()
    train(encoder, Task(rows, lambda _: next(scores)), settings, tmp_path / "model")
    assert encoder.fingerprint() != before
    assert json.loads((tmp_path / "model" / "retriever.json").read_text())["kind"] == "splade"
    assert load(str(tmp_path / "model")).fingerprint() == encoder.fingerprint()
    with pytest.raises(ModelError, match="saved as a splade encoder, but a single-vector one"):
        load_encoder(str(tmp_path / "model"), device="cpu")


def test_a_model_without_a_language_model_head_is_refused():
    with pytest.raises(ModelError, match=r"MiniLM-L6-v2 could not be loaded .*lacks \d+ weights, e.g. cls.predictions"):
        load("all-MiniLM-L6-v2")


def test_what_notebook_and_readme_say_of_squad_was_measured():
    measured = json.loads((ROOT / "data" / "results" / "hybrid.json").read_text(encoding="utf-8"))
    notebook = (ROOT / "notebooks" / "05_hybrid_retrieval.ipynb").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    gain = measured["gains"][f"weighted, α = {measured['alpha']}"]["10"]
    assert "gains +{:.1f} points of Hit@10 [+{:.1f}, +{:.1f}]".format(*gain) in readme
    assert "by +{:.1f} points of Hit@10 (+{:.1f} to +{:.1f})".format(*gain) in notebook
    lost, low, high = (f"{-value:.1f}" for value in measured["gains"]["RRF"]["10"])
    assert f"(RRF) loses {lost}" in readme and f"{lost} points of Hit@10 (−{low} to −{high})" in notebook
    for system in measured["systems"]:  # the table is made from the file: outputs must not be older
        assert "{answer:.1%} [{low:.1%}, {high:.1%}]".format(**system["hits"]["10"]) in notebook, system["name"]
