"""Strategies: what each ranks, that it repeats itself, and that no vector outlives the weights that made it."""

import subprocess
import sys
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

import helpers.batches
import helpers.training
from helpers.answers import normalize
from helpers.base.columns import LazyTexts
from helpers.base.errors import SettingError
from helpers.base.files import ROOT
from helpers.batches import TrainingRows, make_batch
from helpers.dataset import PassageIndex, Query, RetrievalData
from helpers.encoder import load_encoder
from helpers.negatives import mine_pool
from helpers.strategies import (
    NAMES,
    Ranked,
    dense_strategy,
    make_strategy,
    mixed_strategy,
    random_strategy,
    resa2_strategy,
)
from helpers.training import Task, TrainingSettings, train

WEIGHTS = {"random": 1, "bm25": 1, "dense": 1, "resa2": 1}
DEPTH = 40
ALONE = [name for name in NAMES if name != "given"]  # those that the sample can be mined with


@pytest.fixture
def own(own_bert):
    """An encoder that a test may change; `train_index` is for the others."""
    return own_bert


@pytest.fixture
def passages(train_passages):
    return train_passages


@pytest.fixture(scope="module")
def qids(sample):
    return sample.split_queries("train", limit=40)


@pytest.fixture(scope="module")
def vectors(sample, train_passages, short_bert, qids):
    """Return the vectors of questions and passages."""
    query_vecs = short_bert.encode([sample.queries[qid].text for qid in qids], "query")
    return query_vecs, short_bert.encode(train_passages.texts, "passage")


def build(name, data, passages, index, seed=0):
    return make_strategy(name, data, passages, seed, index, WEIGHTS if name == "mixed" else None)


def same(one, other):
    pairs = [pair for columns in zip(one, other, strict=True) for pair in zip(*columns, strict=True)]
    return all(np.array_equal(*pair, equal_nan=True) for pair in pairs)


def shake(encoder, amount=0.05):
    """Change every weight."""
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(amount * torch.randn_like(parameter))


# what a strategy returns


@pytest.mark.parametrize("depth", [1, DEPTH, 10**6])
@pytest.mark.parametrize("name", ALONE)
def test_rows_are_valid_and_distinct(sample, passages, train_index, qids, name, depth):
    ranked = build(name, sample, passages, train_index)(qids, depth)
    assert [len(column) for column in ranked] == [len(qids)] * 3
    for rows, scores, positives in zip(*ranked, strict=True):
        assert len(rows) == len(scores) == len(positives)
        assert np.issubdtype(np.asarray(rows).dtype, np.integer)
        assert len(set(rows.tolist())) == len(rows)
        assert set(rows.tolist()) <= set(range(len(passages)))
        if name == "bm25":
            assert 1 <= len(rows) <= depth
        else:
            assert len(rows) == min(max(depth, 200 * (name == "resa2")), len(passages))


@pytest.mark.parametrize("name", ALONE)
def test_one_seed_one_ranking_in_whatever_company(sample, passages, train_index, qids, name):
    rank = build(name, sample, passages, train_index)
    whole = rank(qids, DEPTH)
    assert same(build(name, sample, passages, train_index)(qids, DEPTH), whole)
    back = rank(qids[::-1], DEPTH)
    for number in range(len(qids)):
        assert np.array_equal(whole.rows[number], back.rows[-1 - number])
    other = build(name, sample, passages, train_index, seed=1)(qids, DEPTH)
    assert same(other, whole) is (name in ("bm25", "dense"))


def test_bm25_ranks_passages_that_share_a_word(sample, passages, qids):
    ranked = make_strategy("bm25", sample, passages)(qids, DEPTH)
    for qid, rows, scores, positives in zip(qids, *ranked, strict=True):
        assert (np.diff(scores) <= 0).all() and (scores > 0).all()
        words = set(normalize(sample.queries[qid].text).split())
        assert all(words & set(normalize(passages.texts[row]).split()) for row in rows)
        assert np.isnan(positives).all()
    first = [{passages.ids[row] for row in rows[:10]} for rows in ranked.rows]
    found = [bool(pids & sample.qrels["train"][qid]) for qid, pids in zip(qids, first, strict=True)]
    assert np.mean(found) > 0.3  # at random 0.04


def test_dense_equals_brute_force(sample, passages, train_index, qids, vectors):
    ranked = make_strategy("dense", sample, passages, encoder=train_index)(qids, DEPTH)
    products = vectors[0].astype(float) @ vectors[1].T.astype(float)
    for rows, scores, product in zip(ranked.rows, ranked.scores, products, strict=True):
        assert (np.diff(scores) <= 0).all()
        np.testing.assert_allclose(scores, np.sort(product)[::-1][:DEPTH], atol=1e-5)
        np.testing.assert_allclose(product[rows], scores, atol=1e-5)


def test_the_positives_column_is_the_lowest_positive_score(sample, passages, train_index, qids, vectors):
    several = {qid: set(passages.ids[number : number + 3]) for number, qid in enumerate(qids)}
    several[qids[-1]] = {"not in this corpus"}
    data = replace(sample, qrels={"train": several})
    for name in ("dense", "resa2"):
        ranked = make_strategy(name, data, passages, 0, train_index)(qids, 10)
        for number, got in enumerate(ranked.positives[:-1]):
            products = vectors[1][number : number + 3] @ vectors[0][number]
            np.testing.assert_allclose(got, products.min(), atol=1e-5)
            assert products.max() - products.min() > 1e-4
        assert np.isnan(ranked.positives[-1]).all() and len(ranked.positives[-1]) == len(ranked.rows[-1])


def test_random_is_uniform(sample, passages):
    asked = list(sample.qrels["train"])
    ranked = random_strategy(passages, 0)(asked, DEPTH)
    for rows, share in ((ranked.rows, DEPTH / len(passages)), ([r[:8] for r in ranked.rows], 8 / len(passages))):
        drawn = np.bincount(np.concatenate(rows), minlength=len(passages))
        sd = np.sqrt(len(asked) * share * (1 - share))
        assert np.abs(drawn - len(asked) * share).max() < 5 * sd
    assert len({tuple(rows) for rows in ranked.rows}) == len(asked)
    assert np.isnan(ranked.positives).all()


# ReSa2


def test_resa2_is_a_permutation_of_the_first_candidates(sample, passages, train_index, qids):
    drawn = resa2_strategy(sample, passages, train_index, 0, candidates=50)(qids, 20)
    stage1 = dense_strategy(sample, passages, train_index)(qids, 50)
    for number in range(len(qids)):
        score = dict(zip(stage1.rows[number].tolist(), stage1.scores[number], strict=True))
        assert len(drawn.rows[number]) == 50
        assert [score[row] for row in drawn.rows[number].tolist()] == drawn.scores[number].tolist()
        assert drawn.rows[number].tolist() != stage1.rows[number].tolist()
        assert np.array_equal(drawn.positives[number], stage1.positives[number])


def test_resa2_favours_what_is_like_the_positive(sample, passages, train_index, qids, vectors):
    def gap(temperature):
        gaps = []
        for seed in range(12):
            drawn = resa2_strategy(sample, passages, train_index, seed, 100, temperature)(qids[:15], 10)
            for qid, rows in zip(qids, drawn.rows, strict=False):
                (positive,) = (passages.row[pid] for pid in sample.qrels["train"][qid])
                similarity = vectors[1][rows] @ vectors[1][positive]
                gaps.append(similarity[:10].mean() - similarity[-10:].mean())
        return np.mean(gaps), np.std(gaps) / np.sqrt(len(gaps))

    mean, error = gap(0.05)
    assert mean > 6 * error
    mean, error = gap(1e6)
    assert abs(mean) < 4 * error  # without a preference there is none


class Made:
    """An encoder that looks its vectors up."""

    device = torch.device("cpu")

    def __init__(self, vectors):
        self.vectors = vectors

    def search_vectors(self, texts, kind, progress=""):
        return np.array([self.vectors[text] for text in texts], dtype=np.float32)


@pytest.fixture
def made():
    """Return a question, its positive p0 and three more passages; what is like the question is not like p0."""
    rows = {"p0": [1, 0], "p1": [0.98, 0.2], "p2": [0.9, 0.44], "p3": [0.8, 0.6]}
    columns = {"_id": list(rows), "title": [""] * 4, "text": list(rows), "split": ["train"] * 4}
    data = RetrievalData(Path(), dataset(columns), {"q": Query("q")}, {"train": {"q": {"p0"}}}, [], "made up")
    return data, PassageIndex(data.corpus), Made(rows | {"q": [0, 1]})


def dataset(columns):
    from datasets import Dataset

    return Dataset.from_dict(columns)


def test_resa2_draws_with_the_stated_probabilities(made):
    draws, weights = 4000, np.exp(np.array([1, 0.98, 0.9, 0.8]) / 0.2)
    ranked = [resa2_strategy(*made, seed, temperature=0.2)(["q"], 4).rows[0] for seed in range(draws)]
    first = Counter(rows[0] for rows in ranked)
    for row, share in enumerate(weights / weights.sum()):
        assert abs(first[row] / draws - share) < 4 * np.sqrt(share * (1 - share) / draws)
    rest = weights[1:] / weights[1:].sum()  # without replacement: where p0 came first, the others by their weights
    second = Counter(rows[1] for rows in ranked if rows[0] == 0)
    for row, share in enumerate(rest, start=1):
        assert abs(second[row] / first[0] - share) < 4 * np.sqrt(share * (1 - share) / first[0])


def test_resa2_draws_for_every_question_anew(made):
    data, passages, encoder = made
    same = [f"q{number}" for number in range(50)]
    data = replace(data, queries=dict.fromkeys(same, Query("q")), qrels={"train": {key: {"p0"} for key in same}})
    ranked = resa2_strategy(data, passages, encoder, 0, temperature=10)(same, 4)
    assert len({tuple(rows) for rows in ranked.rows}) > 12  # of 24 orders


def test_resa2_scores_are_the_questions_and_a_cold_draw_sorts_by_the_positive(made):
    rows, scores, positives = (column[0] for column in resa2_strategy(*made, 0, temperature=1e-6)(["q"], 4))
    assert rows.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(scores, [0, 0.2, 0.44, 0.6], atol=1e-6)
    assert positives.tolist() == [0] * 4
    dense = make_strategy("dense", *made[:2], encoder=made[2])(["q"], 4)
    assert dense.rows[0].tolist() == [3, 2, 1, 0]
    assert set(resa2_strategy(*made, 0, candidates=2)(["q"], 1).rows[0].tolist()) == {2, 3}


def test_resa2_goes_by_the_nearest_of_several_positives(made):
    data, passages, encoder = made
    data = replace(data, qrels={"train": {"q": {"p0", "p3"}}})
    rows = resa2_strategy(data, passages, encoder, 0, temperature=1e-6)(["q"], 4).rows[0].tolist()
    assert set(rows[:2]) == {0, 3} and rows[2:] == [2, 1]


# mixtures


def fixed(*rows):
    """Return a strategy that gives every question these rows; a row's score is its tenth, its positive's is 9."""

    def rank(qids, depth):
        found = np.array(rows, dtype=int)[:depth]
        return Ranked([found] * len(qids), [found / 10] * len(qids), [np.full(len(found), 9.0)] * len(qids))

    return rank


def broken(qids, depth):
    raise AssertionError("a strategy without weight was asked")


MANY = [f"q{number}" for number in range(200)]


def test_mixed_takes_its_shares():
    parts = {"bm25": fixed(*range(1000)), "dense": fixed(*range(1000, 2000)), "random": broken}
    ranked = mixed_strategy(parts, {"bm25": 3, "dense": 1, "random": 0}, 0)(MANY, 100)
    rows = np.array(ranked.rows)
    assert rows.shape == (200, 100)
    assert abs((rows < 1000).mean() - 0.75) < 4 * np.sqrt(0.75 * 0.25 / rows.size)
    assert abs((rows[:, 0] < 1000).mean() - 0.75) < 4 * np.sqrt(0.75 * 0.25 / 200)
    for row in rows:  # each part in its own order
        assert row[row < 1000].tolist() == list(range((row < 1000).sum()))
        assert row[row >= 1000].tolist() == list(range(1000, 1000 + (row >= 1000).sum()))
    assert len({tuple(row < 1000) for row in rows}) == 200
    np.testing.assert_allclose(ranked.scores, rows / 10)
    assert (np.array(ranked.positives) == 9).all()


def test_mixed_has_no_duplicates_and_ends_where_its_parts_end():
    parts = {"bm25": fixed(4, 3, 2, 1, 0), "dense": fixed(9, 4, 0)}
    ranked = mixed_strategy(parts, {"bm25": 1, "dense": 1}, 0)(MANY, 50)
    assert all(sorted(rows.tolist()) == [0, 1, 2, 3, 4, 9] for rows in ranked.rows)
    assert {len(rows) for rows in mixed_strategy(parts, {"bm25": 1, "dense": 1}, 0)(MANY, 4).rows} == {4}
    empty = mixed_strategy({"bm25": fixed(), "dense": fixed()}, {"bm25": 1, "dense": 1}, 0)(["q0"], 5)
    assert [[len(values) for values in column] for column in empty] == [[0]] * 3


def test_mixed_of_one_is_that_one(sample, passages, train_index, qids):
    alone = make_strategy("mixed", sample, passages, 0, train_index, {"dense": 0.3, "bm25": 0})(qids, DEPTH)
    assert same(alone, make_strategy("dense", sample, passages, 0, train_index)(qids, DEPTH))


# what cannot be made


def test_an_unknown_strategy_is_an_error(sample, passages):
    with pytest.raises(SettingError, match="'bm26': use one of random, given, bm25, dense, resa2, mixed"):
        make_strategy("bm26", sample, passages)


@pytest.mark.parametrize("name", ["dense", "resa2"])
def test_a_strategy_without_its_encoder_is_an_error(sample, passages, name):
    with pytest.raises(SettingError, match=f"strategy='{name}' ranks with an encoder"):
        make_strategy(name, sample, passages)
    with pytest.raises(SettingError, match=f"strategy='{name}' ranks with an encoder"):
        make_strategy("mixed", sample, passages, weights={name: 1})


@pytest.mark.parametrize(
    "weights",
    [
        None,
        {},
        {"bm25": 0},
        {"bm25": -1, "random": 2},
        {"bm25": float("nan")},
        {"bm25": float("inf")},
        {"bm25": "much"},
        {"bm25": None},
        {"bm26": 1},
        {"mixed": 1},
        ["bm25"],
    ],
)
def test_wrong_weights_are_an_error(sample, passages, weights):
    with pytest.raises(SettingError, match="weights="):
        make_strategy("mixed", sample, passages, weights=weights)


# vectors and weights


@pytest.fixture
def encoded(own, monkeypatch):
    """Collect the corpora that are encoded; all weights are hashed for none of them."""
    calls, encode = [], own.encode

    def counted(texts, kind, **more):
        calls.extend([kind] * (kind == "passage"))
        return encode(texts, kind, **more)

    monkeypatch.setattr(own, "encode", counted)
    monkeypatch.setattr(own, "fingerprint", lambda: pytest.fail("hashing all weights takes long"))
    return calls


@pytest.mark.parametrize("name", ["dense", "resa2", "mixed"])
def test_vectors_are_kept_as_long_as_the_weights_and_no_longer(sample, passages, own, encoded, qids, name):
    rank = build(name, sample, passages, own)
    assert len(encoded) == 0  # before a first question they may change
    before = rank(qids, DEPTH)
    assert same(rank(qids, DEPTH), before)
    assert len(encoded) == 1  # parts of a mixture share them
    shake(own)
    after = rank(qids, DEPTH)
    assert len(encoded) == 2
    assert same(after, build(name, sample, passages, own)(qids, DEPTH))
    assert not same(after, before)
    assert rank(qids, DEPTH) and len(encoded) == 3  # one for the fresh strategy


def test_mining_in_chunks_encodes_and_hashes_nothing_twice(sample, passages, own, encoded, qids, monkeypatch):
    monkeypatch.setattr("helpers.negatives.CHUNK", 7)
    mine_pool(sample, passages, build("resa2", sample, passages, own), qids)
    assert len(encoded) == 1


@pytest.mark.parametrize("name", ["dense", "resa2"])
def test_mining_reads_questions_and_passages_with_their_prefixes(sample, passages, own, qids, name):
    plain = own.profile
    own.profile = replace(plain, query_prefix="what do we ask? ", passage_prefix="what we read: ")
    got = build(name, sample, passages, own)(qids, DEPTH)
    own.profile = plain
    questions = own.encode([f"what do we ask? {sample.queries[qid].text}" for qid in qids], "query")
    read = own.encode([f"what we read: {text}" for text in passages.texts], "passage")
    for qid, vec, rows, scores, lowest in zip(qids, questions, *got, strict=True):
        np.testing.assert_allclose(scores, read[rows] @ vec, atol=1e-5)
        positive = min(read[passages.row[pid]] @ vec for pid in sample.qrels["train"][qid])
        np.testing.assert_allclose(lowest, positive, atol=1e-5)


def test_an_index_of_other_passages_is_an_error(sample, passages, sample_passages, train_index):
    for name in NAMES:
        with pytest.raises(SettingError, match="the DenseIndex holds other passages"):
            build(name, sample, sample_passages, train_index)
    with pytest.raises(SettingError, match="the DenseIndex holds other passages"):
        dense_strategy(sample, sample_passages, train_index)


def test_the_fingerprint_changes_with_any_weight(own):
    seen = {own.fingerprint()}
    parameters = list(own.model.parameters())
    for number, parameter in enumerate(parameters):
        with torch.no_grad():
            parameter.view(-1)[number % parameter.numel()] += 1e-3
        seen.add(own.fingerprint())
    assert len(seen) == len(parameters) + 1


def test_the_fingerprint_changes_with_the_profile(own):
    seen, profile = {own.fingerprint()}, own.profile
    for field in fields(profile):
        old = getattr(profile, field.name)
        own.profile = replace(profile, **{field.name: f"{old}x" if isinstance(old, str) else int(old) + 2})
        seen.add(own.fingerprint())
    assert len(seen) == len(fields(profile)) + 1
    own.profile = profile
    assert own.fingerprint() in seen


def test_the_fingerprint_survives_the_disk(own, short_bert, tmp_path):
    shake(own)
    own.save(tmp_path / "model")
    assert load_encoder(str(tmp_path / "model"), device="cpu").fingerprint() == own.fingerprint()
    assert own.train().fingerprint() == own.eval().fingerprint() != short_bert.fingerprint()


def test_a_model_with_a_scalar_has_a_fingerprint(own):
    own.model.register_buffer("steps", torch.tensor(1.0))
    before = own.fingerprint()
    own.model.steps += 1
    assert own.fingerprint() != before


# mining anew during training


@pytest.fixture
def batches(monkeypatch):
    """Collect the rows of every batch; a step of training only moves one weight, which is quick."""
    seen = []

    def spy(rows, *more):
        seen.append(list(rows))
        return make_batch(rows, *more)

    def step(engine, batches, *_):
        assert [batch.qids for batch in batches] == [[row.qid for row in seen[-1]]]
        with torch.no_grad():
            engine.encoder.model.embeddings.LayerNorm.bias += 1e-3
        engine.optimizer.step()
        return {"loss": 1.0, "chance": 2.0, "gradient_norm": 1.0, "micro_batch": 0}

    monkeypatch.setattr(helpers.batches, "make_batch", spy)
    monkeypatch.setattr(helpers.training, "training_step", step)
    return seen


@pytest.mark.parametrize(
    ("every", "steps"),
    [
        (3, [3, 6]),
        (2, [2, 4, 6]),  # 8 is the end: what for?
        (7, [7]),
        (8, []),
        (0, []),
    ],
)
def test_refreshed_pools_are_trained_on(sample, passages, own, qids, batches, tmp_path, every, steps):
    asked, positives = qids[:20], {row for qid in qids for row in sample.qrels["train"][qid]}
    spare = [pid for pid in passages.ids if pid not in positives]
    pools = [dict.fromkeys(asked, spare[start : start + 4]) for start in range(0, 20, 4)]
    rows = TrainingRows(sample, passages, pools[0], hard_negatives=3, given_negative=False)
    weights, calls = [own.fingerprint()], []

    def refresh(encoder):
        weights.append(encoder.fingerprint())
        calls.append(len(batches))
        rows.set_pool(pools[len(calls)])
        return {"pool": len(calls)}

    settings = TrainingSettings(batch_size=4, max_steps=8, refresh_every=every)  # an epoch has five steps
    history = train(own, Task(rows, lambda _: 0.5, refresh=refresh), settings, tmp_path / "model")
    assert calls == steps
    assert {entry["step"]: entry["refresh"] for entry in history if "refresh" in entry} == {
        step: {"pool": number} for number, step in enumerate(steps, start=1)
    }
    assert len(set(weights)) == len(weights)  # every refresh sees other weights
    assert len(batches) == 8
    for step, batch in enumerate(batches, start=1):
        number = sum(refreshed < step for refreshed in steps)
        used = {passages.ids[column] for row in batch for column in row.pool}
        assert used <= set(pools[number][asked[0]])
        assert [len(row.pool) for row in batch] == [3] * 4
    first = [row.qid for batch in batches[:5] for row in batch]
    assert sorted(first) == sorted(asked)  # an epoch is whole, refreshed or not


@pytest.mark.parametrize("name", ["dense", "resa2"])
def test_mining_during_training_uses_the_weights_of_that_step(sample, passages, own, qids, tmp_path, name):
    rank, asked = build(name, sample, passages, own), qids[:12]
    pools = [mine_pool(sample, passages, rank, asked)]
    rows = TrainingRows(sample, passages, pools[0].ids(), given_negative=False)

    def refresh(encoder):
        pools.append(mine_pool(sample, passages, rank, asked))
        rows.set_pool(pools[-1].ids())
        assert pools[-1] == mine_pool(sample, passages, build(name, sample, passages, encoder), asked)
        return {}

    settings = TrainingSettings(batch_size=4, max_steps=3, learning_rate=5e-3, warmup_ratio=0, refresh_every=1)
    train(own, Task(rows, lambda _: 0.5, refresh=refresh), settings, tmp_path / "model")
    assert len(pools) == 3
    assert pools[0] != pools[1] != pools[2]


def test_vectors_follow_training_and_what_it_loads(sample, passages, own, short_bert, qids, tmp_path):
    rank, scores = build("dense", sample, passages, own), iter(range(9))
    untrained = rank(qids, DEPTH)
    task = Task(TrainingRows(sample, passages, hard_negatives=0), lambda _: next(scores))
    settings = TrainingSettings(batch_size=4, max_steps=2, learning_rate=5e-3, warmup_ratio=0)
    train(own, task, settings, tmp_path / "model")
    trained = rank(qids, DEPTH)
    assert not same(trained, untrained)
    own.load_state_dict(short_bert.state_dict())
    assert same(rank(qids, DEPTH), untrained)
    train(
        own, task, replace(settings, resume=True), tmp_path / "model"
    )  # it has ended: a checkpoint and the best model
    assert same(rank(qids, DEPTH), trained)


# large corpora


def test_lazy_texts_equal_eager_ones(sample, passages):
    eager = [normalize(text) for text in passages.corpus["text"]]
    assert [passages.normalized[row] for row in range(len(passages))] == eager
    assert passages.normalized[np.int64(3)] == eager[3]


def test_lazy_texts_keep_100_000():
    made = Counter()

    def make(row):
        made[row] += 1
        return str(row)

    texts = LazyTexts(make, range(100_010))
    assert all(texts[row] == str(row) for row in range(100_010))
    assert texts[100_009] == "100009" and texts[10] == "10"
    assert set(made.values()) == {1}
    assert texts[0] == "0"
    assert made[0] == 2


MILLION = """
import time
from pathlib import Path

import datasets
import numpy as np
import torch

from helpers.dataset import PassageIndex, Query, RetrievalData
from helpers.negatives import MiningSettings, mine_pool
from helpers.strategies import make_strategy

P, Q = 1_000_000, 200


class Made:
    device = torch.device("cpu")

    def search_vectors(self, texts, kind, progress=""):
        vectors = np.random.default_rng(kind == "query").standard_normal((len(texts), 64), dtype=np.float32)
        return vectors.astype(np.float16).astype(np.float32)


start = time.perf_counter()
columns = {"_id": [f"p{n}" for n in range(P)], "title": [""] * P, "text": [f"Text {n}" for n in range(P)]}
corpus = datasets.Dataset.from_dict(columns | {"split": ["train"] * P})
del columns
queries = {f"q{n}": Query(f"Question {n}", (f"{n + 1}",)) for n in range(Q)}
qrels = {"train": {f"q{n}": {f"p{n}"} for n in range(Q)}}
data = RetrievalData(Path("."), corpus, queries, qrels, [], "made up")
passages = PassageIndex(corpus)
for name in ("dense", "resa2"):
    strategy = make_strategy(name, data, passages, 0, Made())
    pool = mine_pool(data, passages, strategy, list(queries), MiningSettings(first_rank=3))
    assert all(len(entries) == 20 and all(e["rank"] for e in entries) for entries in pool.negatives.values())
peak = [line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
print(int(peak[0]) / 2**20, time.perf_counter() - start)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_a_million_passages_fit_in_four_gigabytes():
    done = subprocess.run([sys.executable, "-c", MILLION], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    gigabytes, seconds = map(float, done.stdout.split())
    print(f"{gigabytes:.2f} GB, {seconds:.0f} s")
    assert 0.3 < gigabytes < 4
