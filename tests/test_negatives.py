"""Pools of hard negatives: no false negative of a known kind, always full, always the same."""

import json
import random
from dataclasses import asdict, fields, replace

import numpy as np
import pytest

from helpers.answers import has_answer
from helpers.base.errors import DataError, SettingError
from helpers.dataset import PassageIndex, load_data
from helpers.importing.sources import write_folder
from helpers.negatives import REASONS, MiningSettings, Pool, _shuffled, load_pool, mine_pool
from helpers.reporting.diagnosis import churn, false_negative_rate, near_positives
from helpers.strategies import NAMES, Ranked, make_strategy

SIZE = 20
SORTED = ("random", "bm25", "dense")  # the others draw: their scores do not fall


@pytest.fixture
def passages(train_passages):
    return train_passages


DEFAULTS = MiningSettings()
ALONE = [name for name in NAMES if name != "given"]  # those that the sample can be mined with


def mine(data, passages, strategy="bm25", settings=DEFAULTS, index=None, qids=None, about=None):
    """Mine with the strategy of this name; its seed is that of the settings."""
    weights = {name: 1 for name in ALONE[:-1]} if strategy == "mixed" else None
    rank = make_strategy(strategy, data, passages, settings.seed, index, weights)
    return mine_pool(data, passages, rank, qids or list(data.qrels["train"]), settings, about)


@pytest.fixture(scope="module", params=ALONE)
def named_pool(request, sample, train_passages, train_index):
    return request.param, mine(sample, train_passages, request.param, index=train_index)


@pytest.fixture
def pool(named_pool):
    return named_pool[1]


def in_order(scores=None, positive=np.nan):
    """Return a strategy that ranks row 0 first, then row 1 and so on, with these scores or falling ones."""

    def rank(qids, depth):
        rows = np.arange(depth if scores is None else min(depth, len(scores)))
        values = -rows.astype(float) if scores is None else np.array(scores, dtype=float)[: len(rows)]
        return Ranked([rows] * len(qids), [values] * len(qids), [np.full(len(rows), positive)] * len(qids))

    return rank


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


def test_ranks_rise_scores_fall_and_topped_up_ones_come_last(named_pool):
    name, pool = named_pool
    for entries in pool.negatives.values():
        ranked = [entry for entry in entries if entry["rank"]]
        assert entries[: len(ranked)] == ranked
        ranks, scores = [entry["rank"] for entry in ranked], [entry["score"] for entry in ranked]
        assert ranks == sorted(set(ranks))
        assert name not in SORTED or scores == sorted(scores, reverse=True)


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
def test_chunks_do_not_change_the_pool(sample, passages, monkeypatch, chunk):
    qids = list(sample.qrels["train"])[:30]
    search = make_strategy("bm25", sample, passages)
    whole = mine_pool(sample, passages, search, qids)
    monkeypatch.setattr("helpers.negatives.CHUNK", chunk)
    assert mine_pool(sample, passages, search, qids) == whole


@pytest.mark.parametrize("strategy", ALONE)
def test_the_same_seed_gives_the_same_bytes(sample, passages, train_index, tmp_path, strategy):
    qids = sample.split_queries("train", limit=40)
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        settings = MiningSettings(seed=seed, last_rank=30, relative_margin=0.95)  # so that some are filled up
        mine(sample, passages, strategy, settings, train_index, qids).save(tmp_path / name)
    one, two, other = ((tmp_path / name).read_bytes() for name in ("one", "two", "other"))
    assert one == two
    assert one != other
    if strategy in ("random", "resa2"):
        negatives = [[json.loads(line) for line in text.splitlines()[1:]] for text in (one, other)]
        assert sum(a == b for a, b in zip(*negatives, strict=True)) == 0


@pytest.mark.parametrize("strategy", ["random", "resa2", "mixed"])
def test_the_strategys_seed_alone_changes_what_is_ranked(sample, passages, train_index, strategy):
    qids, weights = sample.split_queries("train", limit=40), {"bm25": 1, "dense": 1}
    ranks = [make_strategy(strategy, sample, passages, seed, train_index, weights) for seed in (0, 0, 1)]
    one, two, other = (mine_pool(sample, passages, rank, qids).ids() for rank in ranks)
    assert one == two
    assert sum(one[qid] == other[qid] for qid in qids) < 4


def test_the_pools_seed_alone_changes_what_fills_it_up(lakes):
    settings = [MiningSettings(last_rank=4, seed=seed) for seed in (0, 0, 1)]
    one, two, other = (mine_pool(*lakes, in_order(), ["q0"], each).negatives["q0"] for each in settings)
    assert one == two
    assert one[:3] == other[:3]  # these were ranked
    assert one[3:] != other[3:]


def write(folder, texts, question="Which river crosses Paris?", answers=("Seine",), positives=("p0",)):
    corpus = [{"_id": f"p{number}", "title": "River Paris", "text": text} for number, text in enumerate(texts)]
    queries = [{"_id": "q0", "text": question, "answers": list(answers)}]
    write_folder(folder, corpus, queries, {"train": [("q0", pid, 1) for pid in positives]})
    data = load_data(folder)
    return data, PassageIndex(data.corpus)


PLANTED = [
    "It crosses Paris and is a river.",
    "it  crosses PARIS and is a river.",
    "Boats go down the SEINE.",
    "Another positive about Paris.",
    "The seiner is a boat.",
    "The Tiber river crosses Rome.",
    "Oslo.",
]


@pytest.mark.parametrize("strategy", ["bm25", "random"])
def test_planted_false_negatives_are_removed_and_counted(tmp_path, strategy):
    data, passages = write(tmp_path / "data", PLANTED, positives=("p0", "p3"))
    pool = mine(data, passages, strategy, MiningSettings(3))
    assert sorted(pool.ids()["q0"]) == ["p4", "p5", "p6"]
    assert sum(pool.audit["kept"].values()) == sum(entry["rank"] > 0 for entry in pool.negatives["q0"])


def test_every_rejection_has_its_reason(tmp_path):
    data, passages = write(tmp_path / "data", PLANTED, positives=("p0", "p3"))

    pool = mine_pool(data, passages, in_order(), ["q0"], MiningSettings(size=2))
    assert pool.audit == {
        "kept": {5: 1, 6: 1},
        "positive": {1: 1, 4: 1},
        "the question itself": {},
        "identical text": {2: 1},
        "nearly a positive": {},
        "holds an answer": {3: 1},
        "outside the ranks": {},
        "too close to the positive": {},
    }
    assert pool.negatives == {"q0": [{"pid": "p4", "rank": 5, "score": -4.0}, {"pid": "p5", "rank": 6, "score": -5.0}]}


PIECES = [
    "the river rises in the hills above the town and flows past the old mill into the lake",
    "The river rises in the hills, above the town; and flows past the old mill, into the lake.",  # other punctuation
    "past the old mill into the lake where boats are let from may to october by the hour",  # the next piece
    "the river rises",  # a part of it
    "the old town by the lake rises past the mill above the river and the hills",  # the same words in another order
    "boats are let from may to october by the hour",
]


@pytest.mark.parametrize(("share", "kept"), [(0.0, [1, 2, 3, 4, 5]), (0.3, [4, 5]), (0.5, [2, 4, 5]), (1.0, [2, 4, 5])])
def test_overlapping_pieces_and_copies_can_be_kept_out(tmp_path, share, kept):
    data, passages = write(tmp_path / "data", PIECES, answers=("none of these",))
    everything = mine_pool(data, passages, in_order(), ["q0"], MiningSettings(size=5))
    assert near_positives(everything, data, passages, 0.3) == 3 and near_positives(everything, data, passages) == 2
    pool = mine_pool(data, passages, in_order(), ["q0"], MiningSettings(size=len(kept), overlap=share))
    assert pool.ids()["q0"] == [f"p{row}" for row in kept]
    assert sum(pool.audit["nearly a positive"].values()) == 5 - len(kept)
    assert near_positives(pool, data, passages, share or 2) == 0


def test_the_answer_in_the_title_alone_is_no_rejection(tmp_path):
    data, passages = write(tmp_path / "data", PLANTED, answers=("River Paris",))
    assert len(mine(data, passages, "bm25", MiningSettings(5)).ids()["q0"]) == 5


def test_the_ranking_is_followed_until_the_pool_is_full(tmp_path):
    texts = ["The Seine.", *[f"Seine {number}" for number in range(120)], "Tiber.", "Rhine."]
    data, passages = write(tmp_path / "data", texts)
    depths = []

    def rank(questions, depth):
        depths.append(depth)
        return in_order()(questions, depth)

    pool = mine_pool(data, passages, rank, ["q0"], MiningSettings(size=2))
    assert pool.negatives["q0"] == [{"pid": f"p{n}", "rank": n + 1, "score": float(-n)} for n in (121, 122)]
    assert depths == sorted(set(depths))
    assert sum(pool.audit["holds an answer"].values()) == 120  # counted once, however often it was searched


def test_where_bm25_ends_random_passages_follow_with_rank_zero(tmp_path):
    texts = ["The Seine crosses Paris.", "Paris crosses.", *[f"Word{number}" for number in range(8)]]
    corpus = [{"_id": f"p{number}", "text": text} for number, text in enumerate(texts)]
    query = {"_id": "q0", "text": "Which river crosses Paris?", "answers": ["Seine"]}
    write_folder(tmp_path / "data", corpus, [query], {"train": [("q0", "p0", 1)]})
    data = load_data(tmp_path / "data")
    passages = PassageIndex(data.corpus)
    entries = mine(data, passages, "bm25", MiningSettings(6)).negatives["q0"]
    assert (entries[0]["pid"], entries[0]["rank"] > 0) == ("p1", True)
    assert [(entry["rank"], entry["score"]) for entry in entries[1:]] == [(0, 0.0)] * 5
    assert len({entry["pid"] for entry in entries}) == 6
    assert mine(data, passages, "bm25", MiningSettings(6, 0)).negatives["q0"] == entries
    assert any(mine(data, passages, "bm25", MiningSettings(6, seed)).negatives["q0"] != entries for seed in (1, 2, 3))
    audit = mine(data, passages, "bm25", MiningSettings(6)).audit
    assert sum(audit["kept"].values()) == 1  # those that filled it up are no candidates


@pytest.mark.parametrize("strategy", ["bm25", "random"])
def test_a_corpus_that_is_too_small_is_an_error(tmp_path, strategy):
    data, passages = write(tmp_path / "data", PLANTED, positives=("p0", "p3"))
    with pytest.raises(DataError, match="'q0': only 3 of 7 passages can be negatives, 4 were asked for"):
        mine(data, passages, strategy, MiningSettings(4))


# the filters

LAKES = ["It crosses Paris.", *[f"Lake {number}." for number in range(1, 40)]]


@pytest.fixture
def lakes(tmp_path):
    """A question whose positive is row 0, and 39 passages that no filter but rank and score can tell apart."""
    return write(tmp_path / "lakes", LAKES)


def kept(pool):
    return [(entry["pid"], entry["rank"]) for entry in pool.negatives["q0"]]


def ranked_as(*rows):
    return [(f"p{row}", row + 1) for row in rows]


def test_answers_can_be_left_in(tmp_path):
    data, passages = write(tmp_path / "data", PLANTED, positives=("p0", "p3"))
    pool = mine_pool(data, passages, in_order(), ["q0"], MiningSettings(size=3, answers=False))
    assert kept(pool) == ranked_as(2, 4, 5)
    assert not pool.audit["holds an answer"]
    assert pool.audit["identical text"] == {2: 1}  # the others stay on
    assert false_negative_rate(pool, data, passages) == 1 / 3
    filtered = mine_pool(data, passages, in_order(), ["q0"], MiningSettings(size=3))
    assert false_negative_rate(filtered, data, passages) == 0


APOSTROPHES = [
    ("", "He wrote plays."),
    ("", "Eugene O'Neill wrote."),
    ("", "Eugene O\u2019Neill wrote."),
    ("On O\u2019Neill", "A study."),
    ("", "Nobody."),
]


@pytest.mark.parametrize(
    ("switches", "negatives"),
    [
        ({}, ["p3", "p4"]),
        ({"strict_dpr": True}, ["p1", "p3", "p4"]),
        ({"match_title": True}, ["p4"]),
        ({"match_title": True, "strict_dpr": True}, ["p1", "p4"]),
    ],
)
def test_answers_are_matched_as_the_passages_say(tmp_path, switches, negatives):
    corpus = [{"_id": f"p{n}", "title": title, "text": text} for n, (title, text) in enumerate(APOSTROPHES)]
    query = {"_id": "q0", "text": "Who?", "answers": ["O\u2019Neill"]}
    write_folder(tmp_path / "data", corpus, [query], {"train": [("q0", "p0", 1)]})
    data = load_data(tmp_path / "data")
    passages = PassageIndex(data.corpus, **switches)
    pool = mine_pool(data, passages, in_order(), ["q0"], MiningSettings(size=len(negatives)))
    assert pool.ids() == {"q0": negatives}
    everything = mine_pool(data, passages, in_order(), ["q0"], MiningSettings(size=4, answers=False))
    assert false_negative_rate(everything, data, passages) == 1 - len(negatives) / 4


def test_false_negatives_are_counted_in_topped_up_entries_too(tmp_path):
    data, passages = write(tmp_path / "data", PLANTED, positives=("p0",))
    entries = [{"pid": pid, "rank": rank, "score": 0.0} for pid, rank in (("p2", 0), ("p4", 1), ("p5", 2), ("p6", 0))]
    assert false_negative_rate(Pool({"q0": entries}, {}), data, passages) == 0.25
    assert false_negative_rate(Pool({"q0": []}, {}), data, passages) == 0


def test_ranks_before_the_window_are_passed_over(lakes):
    pool = mine_pool(*lakes, in_order(), ["q0"], MiningSettings(size=3, first_rank=5))
    assert kept(pool) == ranked_as(4, 5, 6)
    assert pool.audit["outside the ranks"] == {rank: 1 for rank in (1, 2, 3, 4)}
    assert pool.audit["positive"] == {}  # it lies before the window
    last = mine_pool(*lakes, in_order(), ["q0"], MiningSettings(size=1, first_rank=40))
    assert kept(last) == ranked_as(39)


def test_where_the_window_closes_random_passages_follow(lakes):
    pool = mine_pool(*lakes, in_order(), ["q0"], MiningSettings(size=10, first_rank=3, last_rank=6))
    assert kept(pool)[:4] == ranked_as(2, 3, 4, 5)
    assert [(entry["rank"], entry["score"]) for entry in pool.negatives["q0"][4:]] == [(0, 0.0)] * 6
    assert len(set(pool.ids()["q0"])) == 10 and "p0" not in pool.ids()["q0"]
    assert {rank for counts in pool.audit.values() for rank in counts} == set(range(1, 7))
    assert sum(pool.audit["kept"].values()) == 4
    narrow = mine_pool(*lakes, in_order(), ["q0"], MiningSettings(size=2, first_rank=4, last_rank=4))
    assert kept(narrow)[0] == ("p3", 4) and kept(narrow)[1][1] == 0


def test_the_window_needs_no_deeper_search(lakes):
    depths = []

    def rank(qids, depth):
        depths.append(depth)
        return in_order()(qids, depth)

    mine_pool(*lakes, rank, ["q0"], MiningSettings(size=3, last_rank=2))
    assert len(depths) == 1


def test_a_window_just_beyond_the_first_search_is_looked_at_to_its_end(tmp_path):
    texts = ["The Seine.", *[f"Seine {number}" for number in range(24)], *[f"Lake {number}" for number in range(9)]]
    data, passages = write(tmp_path / "data", texts)
    pool = mine_pool(data, passages, in_order(), ["q0"], MiningSettings(size=2, last_rank=26))  # 25 are searched first
    assert kept(pool)[0] == ("p25", 26)
    assert kept(pool)[1][1] == 0


def test_every_question_is_filled_up_with_a_draw_of_its_own(sample, passages):
    nothing = Ranked(*[[np.array([], dtype=int)] * 10] * 3)
    qids = sample.split_queries("train")[:10]
    pool = mine_pool(sample, passages, lambda qids, depth: nothing, qids)
    assert len({tuple(ids) for ids in pool.ids().values()}) == 10
    assert len({ids[0] for ids in pool.ids().values()}) > 5


# positive 0.8: 0.95 of it is 0.76, 0.1 below it is 0.7
SCORES = [0.8, 0.9, 0.77, 0.7599, 0.75, 0.7001, 0.69, 0.5]


@pytest.mark.parametrize(
    ("filters", "rows"),
    [
        (MiningSettings(), [1, 2, 3]),
        (MiningSettings(relative_margin=0.95), [3, 4, 5]),
        (MiningSettings(relative_margin=1), [2, 3, 4]),
        (MiningSettings(absolute_margin=0.1), [6, 7]),
        (MiningSettings(absolute_margin=0.045), [4, 5, 6]),
        (MiningSettings(relative_margin=0.95, absolute_margin=0.1), [6, 7]),
        (MiningSettings(relative_margin=0.95, first_rank=6), [5, 6, 7]),
        (MiningSettings(relative_margin=0.95, last_rank=5), [3, 4]),
    ],
)
def test_a_margin_rejects_what_scores_like_the_positive(lakes, filters, rows):
    pool = mine_pool(*lakes, in_order(SCORES, 0.8), ["q0"], replace(filters, size=3))
    assert kept(pool)[: len(rows)] == ranked_as(*rows)
    assert [rank for _, rank in kept(pool)[len(rows) :]] == [0] * (3 - len(rows))
    close = {row + 1: 1 for row in range(max(1, filters.first_rank - 1), rows[-1] + 1) if row not in rows}
    assert pool.audit["too close to the positive"] == (close if filters != MiningSettings() else {})
    assert sum(sum(counts.values()) for counts in pool.audit.values()) == (filters.last_rank or rows[-1] + 1)


def test_a_score_on_the_margin_stays():
    assert not MiningSettings(relative_margin=0.5).too_close(0.25, 0.5)
    assert MiningSettings(relative_margin=0.5).too_close(0.2501, 0.5)
    assert not MiningSettings(absolute_margin=0.25).too_close(0.25, 0.5)
    assert MiningSettings(absolute_margin=0.25).too_close(0.2501, 0.5)
    assert not MiningSettings().too_close(9.0, 0.5)


def test_an_unknown_positive_score_rejects_nothing(lakes):
    filters = MiningSettings(relative_margin=0.5, absolute_margin=0.5)
    pool = mine_pool(*lakes, in_order(), ["q0"], replace(filters, size=3))
    assert kept(pool) == ranked_as(1, 2, 3)
    assert not pool.audit["too close to the positive"]


@pytest.mark.parametrize("filters", [MiningSettings(relative_margin=0.95), MiningSettings(absolute_margin=0.01)])
@pytest.mark.parametrize("strategy", ["dense", "resa2"])
def test_margins_hold_against_scores_computed_by_hand(sample, passages, train_index, short_bert, strategy, filters):
    qids = sample.split_queries("train", limit=30)
    pool = mine(sample, passages, strategy, replace(filters, size=5), train_index, qids)
    vectors = short_bert.encode(passages.texts, "passage")
    questions = short_bert.encode([sample.queries[qid].text for qid in qids], "query")
    for qid, vec in zip(qids, questions, strict=True):
        lowest = min(vec @ vectors[passages.row[pid]] for pid in sample.qrels["train"][qid])
        bound = filters.relative_margin * lowest if filters.relative_margin else lowest - filters.absolute_margin
        for entry in pool.negatives[qid]:
            score = vec @ vectors[passages.row[entry["pid"]]]
            assert entry["rank"] == 0 or abs(score - entry["score"]) < 1e-4
            assert entry["rank"] == 0 or score <= bound + 1e-5
    assert sum(pool.audit["too close to the positive"].values()) > 0


def test_deeper_candidates_come_before_random_ones(lakes):
    scores = [1.0] * 36 + [0.1] * 4  # nearly all too close; the first search does not reach the others
    pool = mine_pool(*lakes, in_order(scores, 1.0), ["q0"], MiningSettings(size=3, relative_margin=0.5))
    assert kept(pool) == ranked_as(36, 37, 38)
    assert sum(pool.audit["too close to the positive"].values()) == 35


@pytest.mark.parametrize(
    "filters",
    [
        MiningSettings(relative_margin=0.5),
        MiningSettings(relative_margin=0.5, last_rank=32),
        MiningSettings(first_rank=36, last_rank=36),
    ],
)
def test_what_was_rejected_never_comes_back_as_a_top_up(lakes, filters):
    pool = mine_pool(*lakes, in_order([1.0] * 35 + [0.1] * 5, 1.0), ["q0"], replace(filters, size=4))
    rejected = {f"p{row}" for row in range(32)}
    assert len(pool.ids()["q0"]) == 4
    assert not rejected & set(pool.ids()["q0"])


@pytest.mark.parametrize(
    "settings",
    [
        {"first_rank": 0},
        {"last_rank": -1},
        {"first_rank": 5, "last_rank": 4},
        {"relative_margin": -0.1},
        {"absolute_margin": -1},
        {"overlap": 1.1},
        {"overlap": float("nan")},
        {"relative_margin": float("nan")},
        {"absolute_margin": float("nan")},
        {"relative_margin": float("inf")},
        {"absolute_margin": float("inf")},
    ],
)
def test_settings_that_cannot_be_meant_are_an_error(settings):
    with pytest.raises(SettingError, match=next(iter(settings))):
        MiningSettings(**settings)


@pytest.mark.parametrize("size", [0, -1])
def test_a_pool_of_nothing_is_an_error(size):
    with pytest.raises(SettingError, match=f"pool_size={size}: a pool holds at least 1"):
        MiningSettings(size=size)


def test_a_misspelt_name_is_an_error(lakes):
    with pytest.raises(TypeError, match="pool_size"):
        mine_pool(*lakes, in_order(), ["q0"], pool_size=5)
    with pytest.raises(TypeError, match="pool_size"):
        MiningSettings(pool_size=5)


@pytest.mark.parametrize("name", ["relative_margin", "absolute_margin"])
def test_a_margin_that_can_do_nothing_is_an_error(lakes, name):
    filters = MiningSettings(**{name: 0.5})
    with pytest.raises(SettingError, match=f"{name}=0.5: strategy='bm25' scores no positive.*set {name} to 0"):
        mine_pool(*lakes, in_order(), ["q0"], filters, {"strategy": "bm25"})
    assert kept(mine_pool(*lakes, in_order(SCORES, 0.8), ["q0"], replace(filters, size=1), {"strategy": "dense"}))


@pytest.mark.parametrize("count", [0, 1, 5, 21, 22, 3000])
def test_a_lazy_shuffle_is_the_whole_one(count):
    for seed in range(20):
        whole = random.Random(seed).sample(range(count), count)
        assert list(_shuffled(count, random.Random(seed))) == whole


def test_a_top_up_draws_no_more_than_it_needs(lakes, monkeypatch):
    drawn = []

    def shuffled(*arguments):
        for row in _shuffled(*arguments):
            drawn.append(row)
            yield row

    monkeypatch.setattr("helpers.negatives._shuffled", shuffled)
    pool = mine_pool(*lakes, in_order(), ["q0"], MiningSettings(size=4, last_rank=3))
    assert [rank for _, rank in kept(pool)] == [2, 3, 0, 0]
    assert len(drawn) < 8


def test_churn_is_the_share_of_new_ones():
    def pool(**ids):
        return Pool({qid: [{"pid": pid} for pid in pids] for qid, pids in ids.items()}, {})

    assert churn(pool(q0="abcd"), pool(q0="dcba")) == 0
    assert churn(pool(q0="abcd"), pool(q0="abxy")) == 0.5
    assert churn(pool(q0="abcd", q1="efgh"), pool(q0="efgh", q1="efgh")) == 0.5  # another question's do not count
    assert churn(pool(q0="ab"), pool(q1="ab")) == 1
    assert churn(pool(q0="ab"), pool()) == 0


# the file


def test_a_pool_survives_its_file(sample, pool, tmp_path):
    pool.save(tmp_path / "pool.jsonl")
    assert load_pool(tmp_path / "pool.jsonl", sample) == pool
    assert [path.name for path in tmp_path.iterdir()] == ["pool.jsonl"]


@pytest.mark.parametrize("settings", [MiningSettings(seed=3), MiningSettings(10, 3, False, 2, 30, 0.95, 0.1)])
def test_settings_and_the_number_of_questions_are_in_the_header(sample, passages, tmp_path, settings):
    pool = mine(sample, passages, settings=settings, about={"miner": "bm25"})
    expected = {"data": sample.fingerprint, **asdict(settings), "miner": "bm25"}
    assert {field.name for field in fields(settings)} < set(expected)
    assert pool.settings == expected
    pool.save(tmp_path / "pool.jsonl")
    with (tmp_path / "pool.jsonl").open() as file:
        header = json.loads(file.readline())
    assert header["settings"] == expected
    assert header["questions"] == len(sample.qrels["train"])


def test_a_pool_that_was_cut_off_is_an_error(sample, passages, tmp_path):
    path = tmp_path / "pool.jsonl"
    mine(sample, passages, qids=list(sample.qrels["train"])[:3]).save(path)
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(load_pool(path, sample).negatives) == 3
    for count in (1, 2, 3):  # whole lines
        path.write_bytes(b"".join(lines[:count]))
        with pytest.raises(DataError, match=rf"pool\.jsonl holds {count - 1} of 3 questions.*run notebook 02 again"):
            load_pool(path, sample)
    path.write_bytes(b"".join(lines)[:-9])  # within one
    with pytest.raises(DataError, match=r"pool\.jsonl: not a pool.*run notebook 02 again"):
        load_pool(path, sample)
    path.write_bytes(b"".join([*lines[:3], lines[2]]))  # one twice, one lost
    with pytest.raises(DataError, match="holds 2 of 3 questions"):
        load_pool(path, sample)


def test_a_pool_of_an_older_version_is_an_error(sample, passages, tmp_path):
    path = tmp_path / "pool.jsonl"
    mine(sample, passages, qids=list(sample.qrels["train"])[:3]).save(path)
    header, *rows = path.read_text().splitlines()
    header = {key: value for key, value in json.loads(header).items() if key != "questions"}
    path.write_text("\n".join([json.dumps(header), *rows]))
    with pytest.raises(DataError, match=r"pool\.jsonl: not a pool of this version.*questions.*run notebook 02 again"):
        load_pool(path, sample)


def test_a_full_disk_is_told_and_leaves_the_old_pool(sample, passages, tmp_path, full_disk):
    path = tmp_path / "pool.jsonl"
    Pool({}, {"data": "x"}).save(path)
    before = path.read_bytes()
    with full_disk(1000), pytest.raises(DataError, match=r"pool\.jsonl"):
        mine(sample, passages).save(path)
    assert [found.name for found in tmp_path.iterdir()] == ["pool.jsonl"]
    assert path.read_bytes() == before


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
        b'{"settings": {"size": 20}, "questions": 0, "audit": {}}\n',
        b'{"settings": null, "audit": {}}\n',
        b'{"a":' * 5000,
    ],
)
def test_what_is_no_pool_is_an_error(sample, tmp_path, content):
    (tmp_path / "pool.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=r"pool\.jsonl: not a pool.*run notebook 02 again"):
        load_pool(tmp_path / "pool.jsonl", sample)


def test_a_folder_or_a_circle_is_no_pool(sample, tmp_path):
    (tmp_path / "pool.jsonl").symlink_to("pool.jsonl")
    (tmp_path / "folder").mkdir()
    for name in ("pool.jsonl", "folder", "folder/../pool.jsonl/more"):
        with pytest.raises(DataError, match=f"{name}: not a pool.*run notebook 02 again"):
            load_pool(tmp_path / name, sample)


def test_a_missing_pool_is_an_error(sample, tmp_path):
    with pytest.raises(DataError, match=r"pool\.jsonl is missing; run notebook 02"):
        load_pool(tmp_path / "pool.jsonl", sample)


def test_a_pool_of_other_data_is_an_error(sample, tmp_path):
    Pool({}, {"data": "0123"}).save(tmp_path / "pool.jsonl")
    with pytest.raises(DataError, match=f"other data .*0123.*{sample.fingerprint}"):
        load_pool(tmp_path / "pool.jsonl", sample)
