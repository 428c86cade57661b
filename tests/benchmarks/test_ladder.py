"""The ladder: rungs cost the same, finished ones are not repeated, and the summary adds up."""

import argparse
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

import helpers.batches
import helpers.training
import tests.benchmarks.measure_ladder
from helpers.base.files import ROOT, write_json
from helpers.batches import make_batch
from helpers.encoder import load_encoder
from helpers.negatives import MiningSettings, Pool, load_pool
from helpers.reporting.significance import bootstrap_interval
from tests.benchmarks.common import slug
from tests.benchmarks.measure_ladder import RUNGS, Ladder, Rung


@pytest.fixture
def ladder(tmp_path, monkeypatch):
    """Return a function that builds a ladder in its own folder; options can be changed by name."""
    monkeypatch.setattr(tests.benchmarks.measure_ladder, "resolve", lambda path: tmp_path / path)

    def build(**more):
        options = {"data": str(ROOT / "data" / "sample"), "model": "bert-tiny", "questions": 24, "steps": 2}
        return Ladder(argparse.Namespace(**(options | {"batch": 4, "learning_rate": 5e-4, "precision": "fp32"} | more)))

    return build


@pytest.fixture
def quick(monkeypatch):
    """Replace training and search; return what training was called with."""
    calls = []

    def train(encoder, task, settings, folder):
        rows, refresh, refresh_every = task.rows, task.refresh, settings.refresh_every
        calls.append(argparse.Namespace(**{k: v for k, v in locals().items() if k != "calls"}))
        steps = range(1, settings.max_steps + 1)
        losses = [{"step": step, "loss": 0.25} for step in steps]
        due = [step for step in steps[:-1] if refresh and refresh_every and step % refresh_every == 0]
        return [
            {"step": 0, "dev": 0.25},
            *losses,
            *({"step": step, "refresh": {"churn": 0.5}} for step in due),
            {"step": 9},
        ]

    monkeypatch.setattr(tests.benchmarks.measure_ladder, "train", train)
    monkeypatch.setattr(Ladder, "ranks", lambda *_: np.array([1, np.inf, 3]))
    monkeypatch.setattr(tests.benchmarks.measure_ladder, "load_encoder", lambda name: name)
    monkeypatch.setattr(tests.benchmarks.measure_ladder, "without_attention_dropout", lambda encoder: encoder)
    monkeypatch.setattr(Ladder, "guide", lambda self, name: lambda qids, columns: torch.zeros(len(qids), len(columns)))
    return calls


def flat_pool(ladder):
    """Return a pool without any mining."""
    ids = ladder.train_passages.ids[-30:]
    return Pool({qid: [{"pid": pid, "rank": 1, "score": 0.0} for pid in ids] for qid in ladder.train_ids}, {})


def test_the_rungs_of_the_issue():
    plain = ["in-batch only", "random pool", "BM25", "dense, unfiltered", "dense, filtered", "ReSa2", "dynamic"]
    stronger = ["dense, stronger miner", "dense, stronger miner, 1 each"]
    losses = {name: rung for name, rung in RUNGS.items() if name not in [*plain, *stronger]}
    assert list(RUNGS) == [*plain, *stronger, *losses]
    for rung in losses.values():  # each differs in one thing from the one that it is compared with
        assert replace(rung, against="", guide="", beta=0.0, temperature=0.05) == RUNGS[rung.against]
        assert [bool(rung.guide), rung.beta > 0, rung.temperature != 0.05].count(True) == 1
    rungs = {name: RUNGS[name] for name in (*plain, *stronger)}
    strategies = [rung.strategy for rung in rungs.values()]
    assert strategies == ["", "random", "bm25", "dense", "dense", "resa2", "dense", "dense", "dense"]
    assert [rung.negatives for rung in rungs.values()] == [0, 3, 3, 3, 3, 3, 3, 3, 1]
    margin = MiningSettings(relative_margin=0.95)
    filtered = [name for name, rung in rungs.items() if rung.mining == margin]
    assert filtered == ["dense, filtered", "ReSa2", "dynamic", "dense, stronger miner", "dense, stronger miner, 1 each"]
    assert RUNGS["dense, unfiltered"].mining == MiningSettings(answers=False)
    assert [name for name, rung in rungs.items() if rung.refreshes] == ["dynamic"]
    mined = [name for name, rung in rungs.items() if rung.miner]
    assert mined == ["dense, stronger miner", "dense, stronger miner, 1 each"]


def test_every_rung_encodes_equally_many_passages_a_step(ladder, quick, monkeypatch):
    monkeypatch.setattr(Ladder, "first_pool", lambda self, name: flat_pool(self))
    one = ladder(steps=7)
    for name in RUNGS:
        one.climb(name, 3)
    assert len(quick) == len(RUNGS)
    for call in quick:
        batch = [call.rows[number] for number in range(call.settings.batch_size)]
        assert sum(1 + len(row.pool) + (row.given is not None) for row in batch) == 16
        assert {row.qid for row in call.rows.rows} == set(one.train_ids)
        assert (call.settings.max_steps, call.settings.learning_rate) == (7, 5e-4)
        assert call.settings.seed == call.rows.seed == 3
        assert call.rows.passages is one.train_passages
        rung = next(rung for name, rung in RUNGS.items() if slug(name) == call.folder.name.removesuffix(".3"))
        assert call.settings.temperature == rung.temperature
        assert (call.task.loss is not None) == bool(rung.guide or rung.beta)
    assert len({call.folder for call in quick}) == len(RUNGS)


@pytest.mark.parametrize("steps", [3, 7, 100, 150])
def test_a_rung_is_refreshed_as_often_as_it_says(ladder, quick, monkeypatch, steps):
    monkeypatch.setattr(Ladder, "first_pool", lambda self, name: flat_pool(self))
    one = ladder(steps=steps)
    one.climb("dynamic", 0)
    one.climb("dense, filtered", 0)
    refreshes = json.loads((one.folder / "dynamic.0.json").read_text())["refreshes"]
    assert [entry["churn"] for entry in refreshes] == [0.5] * RUNGS["dynamic"].refreshes
    assert json.loads((one.folder / "dense-filtered.0.json").read_text())["refreshes"] == []


def test_a_refresh_mines_with_the_encoder_and_trains_on_it(ladder, quick, monkeypatch):
    one, miners = ladder(steps=9), []
    pools = [flat_pool(one), flat_pool(one)]
    for entries in pools[1].negatives.values():
        entries[:15] = [{"pid": pid, "rank": 1, "score": 0.0} for pid in one.train_passages.ids[:15]]
    monkeypatch.setattr(Ladder, "first_pool", lambda self, name: pools[0])
    monkeypatch.setattr(Ladder, "mine", lambda self, rung, encoder: miners.append((rung, encoder)) or pools[1])
    one.climb("dynamic", 0)
    (call,) = quick
    got = call.refresh("the encoder of this step")
    assert miners == [(RUNGS["dynamic"], "the encoder of this step")]
    assert got["churn"] == 0.5 and 0 <= got["false_negatives"] < 1
    assert call.refresh("the next one")["churn"] == 0  # compared with the last one, not with the first
    assert set(one.train_passages.ids[:15]) & {one.train_passages.ids[n] for row in call.rows.rows for n in row.pool}


def test_two_rungs_climb_and_are_not_repeated(ladder, monkeypatch):
    one, counts = ladder(), Counter()
    monkeypatch.setattr(
        tests.benchmarks.measure_ladder, "load_encoder", lambda name: load_encoder(name, max_length=32, device="cpu")
    )

    def spy(rows, *more):
        counts[len(rows), sum(1 + len(row.pool) for row in rows)] += 1
        return make_batch(rows, *more)

    monkeypatch.setattr(helpers.batches, "make_batch", spy)
    for name in ("in-batch only", "dense, filtered"):
        one.climb(name, 0)
    assert counts == {(16, 16): 2, (4, 16): 2}
    files = {path.name: path for path in one.folder.glob("*.json*") if path.suffix != ".lock"}
    assert set(files) == {"in-batch-only.0.json", "dense-filtered.0.json", "dense-filtered.pool.jsonl"}
    questions = len(one.data.split_queries("test"))
    for name in ("in-batch-only", "dense-filtered"):
        got = json.loads(files[f"{name}.0.json"].read_text())
        assert len(got["ranks"]) == questions
        assert all(isinstance(rank, int) and 0 <= rank <= 100 for rank in got["ranks"])
        assert len(set(got["ranks"])) > 5
        assert got["last_loss"] > 0 and got["refreshes"] == []
    pool = load_pool(files["dense-filtered.pool.jsonl"], one.data)
    assert list(pool.negatives) == one.train_ids
    assert pool.settings["relative_margin"] == 0.95

    def train(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(tests.benchmarks.measure_ladder, "train", train)
    before = {path: path.read_bytes() for path in files.values()}
    ladder().climb("dense, filtered", 0)
    assert before == {path: path.read_bytes() for path in files.values()}
    with pytest.raises(AssertionError, match="trained again"):
        ladder().climb("dense, filtered", 1)


def test_the_first_pool_is_mined_once_by_the_rungs_miner(ladder, quick, monkeypatch):
    one, miners = ladder(), []

    def mine(self, rung, encoder):
        miners.append(encoder)
        pool = flat_pool(self)
        pool.settings["data"] = self.data.fingerprint
        return pool

    monkeypatch.setattr(Ladder, "mine", mine)
    for seed in (0, 1):
        one.climb("dense, stronger miner", seed)
        one.climb("BM25", seed)
        one.climb("dynamic", seed)  # starts from BM25's pool
        one.climb("dense, stronger miner, 1 each", seed)  # and this from its neighbour's
    assert miners == ["all-MiniLM-L6-v2", "bert-tiny"]


@pytest.mark.parametrize("change", [{"learning_rate": 1e-3}, {"batch": 8}, {"questions": 12}, {"precision": "bf16"}])
def test_a_run_under_other_settings_does_not_count_as_finished(ladder, quick, change):
    ladder().climb("in-batch only", 0)
    ladder(**change).climb("in-batch only", 0)
    assert len(quick) == 2


ZERO = [1, 5, np.inf, 11, 2, 101]
IN_BATCH = [[1, 5, 0, 9, 1, 50], [2, 1, 0, 9, 1, 50]]
RANDOM = [[1, 1, 0, 1, 1, 20], [1, 1, 0, 12, 2, 20]]
BM25 = [[1, 1, 3, 1, 1, 0]]
ZERO_FOUND = [1, 5, 0, 11, 2, 0]


@pytest.fixture
def climbed(ladder, monkeypatch):
    """A ladder with hand-made ranks of six questions; 0 in a file: not found."""
    one = ladder()
    monkeypatch.setattr(one, "ranks", lambda *_: np.array(ZERO))
    monkeypatch.setattr(one, "first_pool", lambda name: flat_pool(one))
    monkeypatch.setattr(tests.benchmarks.measure_ladder, "load_encoder", lambda name: name)
    for name, runs in (("in-batch-only", IN_BATCH), ("random-pool", RANDOM), ("BM25", BM25)):
        for seed, ranks in enumerate(runs):
            write_json(one.folder / f"{name}.{seed}.json", {"ranks": ranks, "last_loss": seed + 1.0, "refreshes": []})
    return one


def hits(runs, k):
    return 100 * np.array([[0 < rank <= k for rank in run] for run in runs])


def test_the_summary_of_hand_made_ranks(climbed):
    got = climbed.summary()
    assert (got["questions"], got["passages"]) == (6, len(climbed.passages))
    assert got["settings"]["learning_rate"] == 5e-4
    rows = {row["rung"]: row for row in got["rungs"]}
    assert list(rows) == ["zero-shot", "in-batch only", "random pool", "BM25"]
    assert [row["seeds"] for row in got["rungs"]] == [1, 2, 2, 1]
    assert rows["zero-shot"]["hit@1"]["mean"] == pytest.approx(100 / 6)
    assert rows["in-batch only"]["hit@1"]["mean"] == pytest.approx(100 * 2 / 6)
    assert rows["random pool"]["hit@1"] == {
        "mean": pytest.approx(100 * 3 / 6),
        "sd": pytest.approx(100 * np.sqrt(2) / 6),  # 4 and 2 of 6
        "minus below": [pytest.approx(100 / 6), *bootstrap_interval(100 * np.array([0.5, 0.5, 0, 0.5, -0.5, 0]))],
    }
    assert rows["BM25"]["hit@100"]["mean"] == pytest.approx(100 * 5 / 6)
    assert rows["in-batch only"]["last loss"] == 1.5
    assert "false negatives" not in rows["in-batch only"] and 0 <= rows["BM25"]["false negatives"] < 1
    assert rows["BM25"]["hit@1"]["sd"] is rows["zero-shot"]["hit@10"]["sd"] is None
    assert set(rows["zero-shot"]["hit@1"]) == {"mean", "sd", "minus random"}  # nothing is below it
    json.dumps(got)


@pytest.mark.parametrize("k", [1, 10, 100])
def test_differences_are_paired(climbed, k):
    rows = {row["rung"]: row[f"hit@{k}"] for row in climbed.summary()["rungs"]}
    zero, in_batch, random_pool, bm25 = (hits(runs, k).mean(0) for runs in ([ZERO], IN_BATCH, RANDOM, BM25))
    for name, label, gain in (
        ("in-batch only", "minus below", in_batch - zero),
        ("in-batch only", "minus random", in_batch - random_pool),
        ("random pool", "minus below", random_pool - in_batch),
        ("BM25", "minus below", bm25 - random_pool),
        ("BM25", "minus random", bm25 - random_pool),
    ):
        low, high = bootstrap_interval(gain)
        assert rows[name][label] == [pytest.approx(value) for value in (gain.mean(), low, high)]
        assert low < high or k == 100
    assert "minus random" not in rows["random pool"]


def test_a_rung_with_one_change_is_compared_with_the_one_without(climbed):
    for name, ranks in (("dense, filtered", BM25[0]), ("dense, filtered, weighted", ZERO_FOUND)):
        write_json(climbed.folder / f"{slug(name)}.0.json", {"ranks": ranks, "last_loss": 1.0, "refreshes": []})
    rows = {row["rung"]: row["hit@10"] for row in climbed.summary()["rungs"]}
    gain = (hits([ZERO_FOUND], 10) - hits(BM25, 10)).mean()
    assert rows["dense, filtered, weighted"]["minus one change"][0] == pytest.approx(gain) and gain
    assert "minus one change" not in rows["dense, filtered"]


def test_a_rung_that_was_left_out_is_stepped_over(climbed):
    for path in climbed.folder.glob("random-pool.*"):
        path.unlink()
    rows = {row["rung"]: row["hit@1"] for row in climbed.summary()["rungs"]}
    gain = (hits(BM25, 1).mean(0) - hits(IN_BATCH, 1).mean(0)).mean()
    assert rows["BM25"]["minus below"][0] == pytest.approx(gain)
    assert "minus random" not in rows["BM25"]


def test_every_seed_counts(climbed):
    for seed in (1, 10, 11):
        write_json(climbed.folder / f"BM25.{seed}.json", {"ranks": BM25[0], "last_loss": 1.0, "refreshes": []})
    assert {row["rung"]: row["seeds"] for row in climbed.summary()["rungs"]}["BM25"] == 4


def test_a_rung_has_three_negatives_by_default():
    assert Rung("bm25") == Rung("bm25", 3, MiningSettings(), "", 0) == RUNGS["BM25"]
