"""Pools of hard negatives: no false negative of a known kind, always full, always the same."""

import json

import numpy as np
import pytest

from helpers.dataset import PassageIndex, load_data
from helpers.errors import DataError, SettingError
from helpers.evaluation import has_answer
from helpers.negatives import REASONS, Pool, load_pool, make_strategy, mine_pool
from helpers.sources import write_folder

SIZE = 20


@pytest.fixture(scope="module")
def passages(sample):
    return PassageIndex(sample.training_corpus())


def mine(data, passages, strategy="bm25", size=SIZE, seed=0, **more):
    search = make_strategy(strategy, passages, seed)
    return mine_pool(data, passages, search, list(data.qrels["train"]), size, seed, **more)


@pytest.fixture(scope="module", params=["bm25", "random"])
def pool(request, sample, passages):
    return mine(sample, passages, request.param)


def test_every_train_question_has_a_full_pool_in_order(sample, pool):
    assert list(pool.negatives) == list(sample.qrels["train"])
    for ids in pool.ids().values():
        assert len(ids) == len(set(ids)) == SIZE


def test_no_negative_is_a_known_false_one(sample, passages, pool):
    for qid, ids in pool.ids().items():
        positives = sample.qrels["train"][qid]
        texts = {passages.normalized[passages.row[pid]] for pid in positives}
        for pid in ids:
            text = passages.normalized[passages.row[pid]]
            assert pid not in positives
            assert text not in texts
            assert not has_answer(sample.queries[qid].answers, text)


def test_ranks_rise_scores_fall_and_topped_up_ones_come_last(pool):
    for entries in pool.negatives.values():
        ranked = [entry for entry in entries if entry["rank"]]
        assert entries[: len(ranked)] == ranked
        ranks, scores = [entry["rank"] for entry in ranked], [entry["score"] for entry in ranked]
        assert ranks == sorted(set(ranks))
        assert scores == sorted(scores, reverse=True)


def test_nothing_of_dev_or_test_is_in_a_pool(sample, pool):
    split = dict(zip(sample.corpus["_id"], sample.corpus["split"], strict=True))
    assert {split[pid] for ids in pool.ids().values() for pid in ids} == {"train"}
    assert "test" in split.values()


def test_the_audit_adds_up(pool):
    total = {reason: sum(counts.values()) for reason, counts in pool.audit.items()}
    ranked = [entry["rank"] for entries in pool.negatives.values() for entry in entries if entry["rank"]]
    assert set(total) == set(REASONS)
    assert total["kept"] == len(ranked)
    assert total["holds an answer"] > 0
    assert sum(counts.get(1, 0) for counts in pool.audit.values()) == len(pool.negatives)
    looked_at = sum(max(entry["rank"] for entry in entries) for entries in pool.negatives.values())
    if all(entries[-1]["rank"] for entries in pool.negatives.values()):  # no question was topped up
        assert sum(total.values()) == looked_at
    else:
        assert sum(total.values()) >= looked_at


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_chunks_do_not_change_the_pool(sample, passages, chunk):
    qids = list(sample.qrels["train"])[:30]
    search = make_strategy("bm25", passages, 0)
    one, other = (mine_pool(sample, passages, search, qids, chunk=size) for size in (chunk, 30))
    assert one == other


@pytest.mark.parametrize("strategy", ["bm25", "random"])
def test_the_same_seed_gives_the_same_bytes(sample, passages, tmp_path, strategy):
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        mine(sample, passages, strategy, seed=seed).save(tmp_path / name)
    one, two, other = ((tmp_path / name).read_bytes() for name in ("one", "two", "other"))
    assert one == two
    if strategy == "random":
        negatives = [[json.loads(line) for line in text.splitlines()[1:]] for text in (one, other)]
        assert sum(a == b for a, b in zip(*negatives, strict=True)) == 0


def write(folder, texts, question="Which river crosses Paris?", answers=("Seine",), positives=("p0",)):
    corpus = [{"_id": f"p{number}", "title": "River Paris", "text": text} for number, text in enumerate(texts)]
    queries = [{"_id": "q0", "text": question, "answers": list(answers)}]
    write_folder(folder, corpus, queries, {"train": [("q0", pid, 1) for pid in positives]})
    data = load_data(folder)
    return data, PassageIndex(data.corpus)


PLANTED = ["It crosses Paris and is a river.", "it  crosses PARIS and is a river.", "Boats go down the SEINE.",
           "Another positive about Paris.", "The seiner is a boat.", "The Tiber river crosses Rome.",
           "Oslo."]  # fmt: skip


@pytest.mark.parametrize("strategy", ["bm25", "random"])
def test_planted_false_negatives_are_removed_and_counted(tmp_path, strategy):
    data, passages = write(tmp_path / "data", PLANTED, positives=("p0", "p3"))
    pool = mine(data, passages, strategy, size=3)
    assert sorted(pool.ids()["q0"]) == ["p4", "p5", "p6"]
    assert sum(pool.audit["kept"].values()) == sum(entry["rank"] > 0 for entry in pool.negatives["q0"])


def test_every_rejection_has_its_reason(tmp_path):
    data, passages = write(tmp_path / "data", PLANTED, positives=("p0", "p3"))

    def in_order(questions, depth):
        return [np.arange(depth)] * len(questions), [np.arange(depth, 0, -1.0)] * len(questions)

    pool = mine_pool(data, passages, in_order, ["q0"], size=2)
    assert pool.audit == {
        "kept": {5: 1, 6: 1},
        "positive": {1: 1, 4: 1},
        "identical text": {2: 1},
        "holds an answer": {3: 1},
    }
    assert pool.negatives == {"q0": [{"pid": "p4", "rank": 5, "score": 3.0}, {"pid": "p5", "rank": 6, "score": 2.0}]}


def test_the_answer_in_the_title_alone_is_no_rejection(tmp_path):
    data, passages = write(tmp_path / "data", PLANTED, answers=("River Paris",))
    assert len(mine(data, passages, size=5).ids()["q0"]) == 5


def test_the_ranking_is_followed_until_the_pool_is_full(tmp_path):
    texts = ["The Seine.", *[f"Seine {number}" for number in range(120)], "Tiber.", "Rhine."]
    data, passages = write(tmp_path / "data", texts)
    depths = []

    def in_order(questions, depth):
        depths.append(depth)
        return [np.arange(depth)] * len(questions), [np.zeros(depth)] * len(questions)

    pool = mine_pool(data, passages, in_order, ["q0"], size=2)
    assert pool.negatives["q0"] == [{"pid": "p121", "rank": 122, "score": 0}, {"pid": "p122", "rank": 123, "score": 0}]
    assert depths == sorted(set(depths))
    assert sum(pool.audit["holds an answer"].values()) == 120  # counted once, however often it was searched


def test_where_bm25_ends_random_passages_follow_with_rank_zero(tmp_path):
    texts = ["The Seine crosses Paris.", "Paris crosses.", *[f"Word{number}" for number in range(8)]]
    corpus = [{"_id": f"p{number}", "text": text} for number, text in enumerate(texts)]
    query = {"_id": "q0", "text": "Which river crosses Paris?", "answers": ["Seine"]}
    write_folder(tmp_path / "data", corpus, [query], {"train": [("q0", "p0", 1)]})
    data = load_data(tmp_path / "data")
    passages = PassageIndex(data.corpus)
    entries = mine(data, passages, size=6).negatives["q0"]
    assert (entries[0]["pid"], entries[0]["rank"] > 0) == ("p1", True)
    assert [(entry["rank"], entry["score"]) for entry in entries[1:]] == [(0, 0.0)] * 5
    assert len({entry["pid"] for entry in entries}) == 6
    assert mine(data, passages, size=6, seed=0).negatives["q0"] == entries
    assert any(mine(data, passages, size=6, seed=seed).negatives["q0"] != entries for seed in (1, 2, 3))
    assert sum(mine(data, passages, size=6).audit["kept"].values()) == 1  # topped-up ones are no candidates


@pytest.mark.parametrize("strategy", ["bm25", "random"])
def test_a_corpus_that_is_too_small_is_an_error(tmp_path, strategy):
    data, passages = write(tmp_path / "data", PLANTED, positives=("p0", "p3"))
    with pytest.raises(DataError, match="'q0': only 3 of 7 passages can be negatives, 4 were asked for"):
        mine(data, passages, strategy, size=4)


def test_an_unknown_strategy_is_an_error(passages):
    with pytest.raises(SettingError, match="'bm26'"):
        make_strategy("bm26", passages, 0)


def test_a_pool_survives_its_file(sample, pool, tmp_path):
    pool.save(tmp_path / "pool.jsonl")
    assert load_pool(tmp_path / "pool.jsonl", sample) == pool
    assert [path.name for path in tmp_path.iterdir()] == ["pool.jsonl"]


def test_settings_are_in_the_header(sample, passages, tmp_path):
    pool = mine(sample, passages, seed=3, strategy_name="bm25")
    expected = {"size": SIZE, "seed": 3, "data": sample.fingerprint, "strategy_name": "bm25"}
    assert pool.settings == expected
    pool.save(tmp_path / "pool.jsonl")
    with (tmp_path / "pool.jsonl").open() as file:
        assert json.loads(file.readline())["settings"] == expected


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        b"\xff\xfe",
        b"[]\n",
        b"{}\n",
        b'{"settings": {}}\n',
        b'{"settings": {"data": "x"}, "audit": {"kept": {"one": 1}}}\n',
        b'{"settings": {"data": "x"}, "audit": {}}\n{"qid": "q0001"}\n',
        b'{"settings": {"size": 20}, "audit": {}}\n',
        b'{"settings": null, "audit": {}}\n',
    ],
)
def test_what_is_no_pool_is_an_error(sample, tmp_path, content):
    (tmp_path / "pool.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=r"pool\.jsonl: not a pool.*run notebook 02 again"):
        load_pool(tmp_path / "pool.jsonl", sample)


def test_a_missing_pool_is_an_error(sample, tmp_path):
    with pytest.raises(DataError, match=r"pool\.jsonl is missing; run notebook 02"):
        load_pool(tmp_path / "pool.jsonl", sample)


def test_a_pool_of_other_data_is_an_error(sample, tmp_path):
    Pool({}, {"data": "0123"}).save(tmp_path / "pool.jsonl")
    with pytest.raises(DataError, match=f"other data .*0123.*{sample.fingerprint}"):
        load_pool(tmp_path / "pool.jsonl", sample)
