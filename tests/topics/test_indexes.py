"""Indexes over shards find what exact search in memory finds, or say which share of it."""

import json

import faiss
import numpy as np
import pytest

from helpers.base.errors import DataError, SettingError
from helpers.dataset import PassageIndex
from helpers.negatives import MiningSettings, mine_pool
from helpers.retrieval import DenseIndex
from helpers.strategies import dense_strategy
from helpers.topics.indexes import KINDS, ShardIndex, VectorIndex, build_faiss, load_faiss, recall
from helpers.topics.shards import encode_shard, finish_shards


@pytest.fixture(scope="module")
def shards(sample_passages, short_bert, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    for number in range(3):
        encode_shard(short_bert, sample_passages, folder, number, 3)
    return finish_shards(folder, 3)


@pytest.fixture(scope="module")
def queries(sample):
    return [query.text for query in list(sample.queries.values())[:40]]


def test_exact_search_over_shards_and_faiss_flat_rank_as_in_memory(shards, queries, short_bert, sample_passages):
    stored = np.concatenate([vectors for _, vectors in shards.blocks()]).astype(np.float32)
    asked = short_bert.search_vectors(queries, "query")
    products = asked @ stored.T
    for index in (ShardIndex(shards, short_bert), build_faiss("flat", shards, short_bert)):
        for k in (1, 100, 1000):
            rows, scores = map(np.array, index.search(queries, k))
            assert rows.shape == scores.shape == (40, min(k, 384))
            assert np.allclose(np.take_along_axis(products, rows, 1), scores, atol=1e-6)
            assert np.allclose(
                -np.sort(-products, axis=1)[:, :k], scores, atol=1e-6
            )  # none that scores higher is left out
    whole = DenseIndex(short_bert, sample_passages.texts).search(queries, 10)[0]
    assert recall(ShardIndex(shards).search_vectors(asked, 10)[0], whole).mean() > 0.97  # float16 moves near ties alone


def test_equal_scores_stay_in_the_corpus_order_across_shards(tmp_path, short_bert, sample):
    twins = PassageIndex(sample.corpus.select([5, 9, 5, 9, 5, 9, 5]))
    for number in range(3):
        encode_shard(short_bert, twins, tmp_path, number, 3)
    with pytest.raises(DataError, match="twice"):
        finish_shards(tmp_path, 3)
    twins.corpus = None  # the ids differ from here on, the texts do not
    twins.ids = [f"p{number}" for number in range(7)]
    for path in tmp_path.glob("*.arrow"):
        path.unlink()
    for number in range(3):
        encode_shard(short_bert, twins, tmp_path, number, 3)
    rows, scores = ShardIndex(finish_shards(tmp_path, 3), short_bert).search([twins.texts[0]], 4)
    assert rows.tolist() == [[0, 2, 4, 6]] and np.ptp(scores) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_more_effort_finds_more_and_what_is_saved_opens_the_same(kind, shards, queries, short_bert, tmp_path):
    asked = short_bert.search_vectors(queries, "query")
    exact, _ = ShardIndex(shards).search_vectors(asked, 10)
    index, shares = build_faiss(kind, shards), []
    for effort in (1, 400):
        index.effort = effort
        assert index.effort == (0 if kind == "flat" else effort)
        shares.append(recall(index.search_vectors(asked, 10)[0], exact).mean())
    assert shares[0] <= shares[1] and shares[1] >= (0.7 if kind == "ivfpq" else 0.99)
    index.save(tmp_path / kind)
    again = load_faiss(tmp_path / kind, shards)
    again.effort = 400
    for own, other in zip(again.search_vectors(asked, 10), index.search_vectors(asked, 10), strict=True):
        assert all(map(np.array_equal, own, other))


def test_what_does_not_fit_is_refused(shards, short_bert, tmp_path):
    with pytest.raises(SettingError, match="index='hsnw': use one of flat, hnsw, ivf, ivfpq"):
        build_faiss("hsnw", shards)
    index = build_faiss("flat", shards)
    for wrong in (np.zeros((2, 3), np.float32), np.zeros(128, np.float32)):
        with pytest.raises(DataError, match="holds vectors of 128 numbers"):
            index.search_vectors(wrong, 1)
    with pytest.raises(DataError, match="NaN or infinite"):
        ShardIndex(shards).search_vectors(np.full((1, 128), np.nan, np.float32), 1)
    with pytest.raises(SettingError, match="without an encoder"):
        index.search(["a"], 1)
    index.save(tmp_path / "index")
    about = json.loads((tmp_path / "index" / "index.json").read_text(encoding="utf-8"))
    (tmp_path / "index" / "index.json").write_text(json.dumps(about | {"shards": "others"}), encoding="utf-8")
    with pytest.raises(DataError, match="made from other shards"):
        load_faiss(tmp_path / "index", shards)
    (tmp_path / "index" / "index.json").write_text(json.dumps(about), encoding="utf-8")
    (tmp_path / "index" / "index.faiss").write_bytes(b"nonsense")
    with pytest.raises(DataError, match="is damaged"):
        load_faiss(tmp_path / "index", shards)


def test_product_quantization_needs_enough_vectors(tmp_path, short_bert, sample):
    few = PassageIndex(sample.corpus.select(range(100)))
    encode_shard(short_bert, few, tmp_path, 0, 1)
    with pytest.raises(SettingError, match="there are 100 vectors of 128 numbers; it needs 256 vectors or more"):
        build_faiss("ivfpq", finish_shards(tmp_path, 1))


def test_fewer_than_k_are_found_where_few_are_looked_at(shards, queries, short_bert):
    index = build_faiss("ivf", shards, short_bert)
    rows, scores = index.search(queries, 300)  # effort is 1: one of nine lists
    assert list(map(len, rows)) == list(map(len, scores))
    assert max(map(len, rows)) < 300 and min(map(min, rows)) >= 0


@pytest.mark.parametrize("kind", ["exact", "hnsw"])
def test_hard_negatives_are_mined_from_shards(kind, sample, train_passages, short_bert, train_index, tmp_path):
    for number in range(3):
        encode_shard(short_bert, train_passages, tmp_path, number, 3)
    shards = finish_shards(tmp_path, 3)
    index = ShardIndex(shards, short_bert) if kind == "exact" else build_faiss("hnsw", shards, short_bert)
    if kind == "hnsw":
        index.effort = 400
    qids = list(sample.qrels["train"])[:30]
    pools = [dense_strategy(sample, train_passages, one)(qids, 50) for one in (index, train_index)]
    assert recall(pools[0].rows, pools[1].rows).mean() > 0.97  # float16 moves near ties alone
    for part in (1, 2):  # scores, and the lowest scores of the positives
        assert np.abs(np.array(pools[0][part]) - np.array(pools[1][part])).max() < 2e-3
    margin = MiningSettings(relative_margin=0.95, size=5)
    sizes = [
        {qid: len(own) for qid, own in mine_pool(sample, train_passages, strategy, qids, margin).ids().items()}
        for strategy in (dense_strategy(sample, train_passages, one) for one in (index, train_index))
    ]
    assert sizes[0] == sizes[1]


def test_what_cannot_be_mined_from_is_refused(sample, sample_passages, train_passages, shards, short_bert, own_bert):
    with pytest.raises(DataError, match="is of other passages"):
        dense_strategy(sample, train_passages, ShardIndex(shards, short_bert))
    with pytest.raises(SettingError, match="was made without shards"):
        dense_strategy(sample, sample_passages, VectorIndex())
    with pytest.raises(SettingError, match="was made without an encoder"):
        dense_strategy(sample, sample_passages, ShardIndex(shards))
    next(own_bert.parameters()).data.add_(1)
    with pytest.raises(DataError, match="was made by encoder"):
        dense_strategy(sample, sample_passages, ShardIndex(shards, own_bert))


def test_faiss_is_filled_with_all_rows_of_all_shards(shards):
    index = build_faiss("flat", shards).index
    stored = np.concatenate([vectors for _, vectors in shards.blocks()]).astype(np.float32)
    assert np.array_equal(faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d).reshape(index.ntotal, -1), stored)
