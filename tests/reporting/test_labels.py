"""Hand labels: drawn fairly, kept safely, and shares and intervals as a person would count them."""

import json
import math
import os
from dataclasses import replace

import pytest

from helpers.base.errors import DataError, SettingError
from helpers.base.files import ROOT
from helpers.dataset import PassageIndex, Query
from helpers.reporting.labels import (
    LABELS,
    Labelling,
    Pair,
    Verdicts,
    draw_pairs,
    judge_labels,
    label_pairs,
    label_table,
    read_labels,
    save_labels,
    wilson_interval,
)

COMMITTED = ROOT / "data" / "results" / "labels-sample.jsonl"


@pytest.fixture(scope="module")
def passages(sample):
    return PassageIndex(sample.training_corpus())


@pytest.fixture
def pairs(sample, passages):
    """Three pairs to label."""
    qids = list(sample.qrels["train"])[:3]
    return [Pair(qid, passages.ids[100 + number], ("bm25",)) for number, qid in enumerate(qids)]


def row(**changes):
    return {"qid": "q0002", "pid": "p29-3", "drawn_from": ["bm25"], "label": "no", "by": "reader", **changes}


def written(path, *rows):
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return path


def test_the_committed_labels_are_of_mined_pairs_of_the_sample(sample, passages):
    labels = read_labels(COMMITTED, sample, passages)
    assert len(labels) > 400 and {pair.by for pair in labels} == {"a language model, reading"}
    assert not [pair for pair in labels if pair.pid in sample.qrels["train"][pair.qid]]  # no positive was asked about
    verdicts = judge_labels(labels, sample, passages)
    assert min(one.pairs for one in verdicts.values()) >= 30
    assert verdicts["rejected: holds an answer"].holding == verdicts["rejected: holds an answer"].pairs
    assert verdicts["dense, filtered"].holding == verdicts["rejected: too close"].holding == 0


def test_labels_hold_ids_and_no_text():
    for line in COMMITTED.read_text(encoding="utf-8").splitlines():
        assert list(json.loads(line)) == ["qid", "pid", "drawn_from", "label", "by"]


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    [  # Newcombe 1998, Statistics in Medicine 17, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_intervals_are_the_published_ones(count, total, low, high):
    assert wilson_interval(count, total) == pytest.approx((low, high), abs=5e-5)
    mirrored = wilson_interval(total - count, total)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_wilson_ends_are_as_far_from_the_share_as_they_should_be():
    for end in wilson_interval(7, 50):
        assert abs(7 / 50 - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / 50), rel=1e-5)
    assert wilson_interval(0, 0) == (0.0, 1.0)
    wide, narrow = wilson_interval(7, 50, 0.99), wilson_interval(7, 50, 0.9)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_verdicts_count_what_was_planted(sample, passages):
    """The answer of q0002, nitrogen, stands in p29-3 and p31-1, and not in p29-5."""
    planted = [("p29-3", "yes"), ("p31-1", "no"), ("p29-5", "yes"), ("p01-4", "unsure")]
    labels = [Pair("q0002", pid, ("dense",), label, "reader") for pid, label in planted]
    labels[0] = labels[0]._replace(drawn_from=("bm25", "dense"))
    verdicts = judge_labels(labels, sample, passages)
    assert verdicts == {"bm25": Verdicts(1, 1, 0, 1, 1), "dense": Verdicts(4, 2, 1, 2, 1)}
    table = label_table(verdicts)
    assert list(table.loc["dense"]) == [4, 2, 1, "50 [15, 85]", 2, "1 of 2", "1 of 2"]
    assert label_table(judge_labels([], sample, passages)).empty


def test_a_title_counts_only_if_the_run_says_so(sample):
    """p29-5 is titled "The noble gases" and does not say so again."""
    data = replace(sample, queries={"q0002": Query("What is it about?", ("noble gases",))})
    labels = [Pair("q0002", "p29-5", ("dense",), "no", "reader")]
    for match_title in (False, True):
        passages = PassageIndex(sample.training_corpus(), match_title)
        assert judge_labels(labels, data, passages)["dense"].holding == match_title


CANDIDATES = {"one": [(f"q{n}", "p") for n in range(300)], "two": [(f"q{n}", "p") for n in range(200, 500)]}


def test_pairs_are_drawn_from_each_source_and_fewer_are_part_of_more():
    few, many = draw_pairs(CANDIDATES, 10), draw_pairs(CANDIDATES, 100)
    for name, candidates in CANDIDATES.items():
        own = [pair for pair in many if name in pair.drawn_from]
        assert len(own) == 100 and {pair.ids for pair in own} <= set(candidates)
    assert {pair.ids for pair in few} < {pair.ids for pair in many}
    assert len({pair.ids for pair in many}) == len(many) < 200  # what both drew is asked once
    assert draw_pairs(CANDIDATES, 10) == few != draw_pairs(CANDIDATES, 10, seed=1)
    assert len(draw_pairs({"one": CANDIDATES["one"][:3]}, 10)) == 3
    with pytest.raises(SettingError, match="each=0"):
        draw_pairs(CANDIDATES, 0)


def test_a_draw_is_even_and_its_order_does_not_tell_the_source():
    many = draw_pairs({**CANDIDATES, "few": [("q1", f"p{n}") for n in range(60)]}, 60)
    numbers = [int(pair.qid[1:]) for pair in draw_pairs({"one": CANDIDATES["one"]}, 150)]
    assert 120 < sum(numbers) / 150 < 180  # of 0 to 299
    places = [place for place, pair in enumerate(many) if pair.drawn_from == ("few",)]
    assert 0.4 < sum(places) / len(places) / len(many) < 0.6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qid": "q9999"}, "'qid' is 'q9999'"),
        ({"pid": "p99-9"}, "'pid' is 'p99-9'"),
        ({"label": "maybe"}, "'label' is 'maybe'; use one of yes, unsure, no"),
        ({"label": ""}, "'label' is ''"),
        ({"by": None}, "'by' is None"),
        ({"drawn_from": "bm25"}, "'drawn_from' is 'bm25'"),
        ({"drawn_from": [1]}, "'drawn_from' is [1]"),
        ({"pid": "p29-3"}, "already on line 1"),
    ],
)
def test_a_broken_row_is_named_with_file_and_line(changes, message, tmp_path, sample, passages):
    path = written(tmp_path / "labels.jsonl", row(), {**row(pid="p29-5"), **changes})
    with pytest.raises(DataError) as error:
        read_labels(path, sample, passages)
    assert str(error.value).startswith(f"{path}:2: ") and message in str(error.value)


def test_all_broken_rows_are_named_and_a_missing_file_too(tmp_path, sample, passages):
    path = written(tmp_path / "labels.jsonl", row(label="?"), row(), row(qid="?"))
    with pytest.raises(DataError, match=r"(?s)labels.jsonl:1: .*labels.jsonl:3: "):
        read_labels(path, sample, passages)
    with pytest.raises(DataError, match=r"missing.jsonl"):
        read_labels(tmp_path / "missing.jsonl", sample, passages)


def test_what_is_saved_is_read_back(tmp_path, sample, passages):
    labels = [Pair("q0002", "p29-3", ("bm25", "dense"), "no", "Zoë")]
    save_labels(tmp_path / "labels.jsonl", labels)
    assert read_labels(tmp_path / "labels.jsonl", sample, passages) == labels


def buttons(widget):
    return {button.description: button for button in widget.children[1].children}


def test_every_press_is_saved_and_another_day_resumes(tmp_path, monkeypatch, pairs, sample, passages):
    monkeypatch.setitem(os.environ, "JPY_SESSION_NAME", "a notebook")
    path = tmp_path / "labels.jsonl"
    widget = label_pairs(pairs, path, sample, passages)
    assert sample.queries[pairs[0].qid].text in widget.children[0].value.replace("&#x27;", "'")
    assert set(buttons(widget)) == {*LABELS.values(), "one back"} and not path.exists()
    buttons(widget)[LABELS["yes"]].click()
    assert read_labels(path, sample, passages) == [pairs[0]._replace(label="yes", by="reader")]
    assert sample.queries[pairs[1].qid].text in widget.children[0].value.replace("&#x27;", "'")
    assert "1 of 3" in widget.children[0].value

    again = label_pairs(pairs, path, sample, passages)
    assert "1 of 3" in again.children[0].value
    for meaning in (LABELS["no"], LABELS["unsure"], LABELS["no"]):  # one press too many
        buttons(again)[meaning].click()
    assert [pair.label for pair in read_labels(path, sample, passages)] == ["yes", "no", "unsure"]
    assert again.children[0].value == "All 3 pairs are labelled."
    buttons(again)["one back"].click()
    assert [pair.label for pair in read_labels(path, sample, passages)] == ["yes", "no"]
    assert sample.queries[pairs[2].qid].text in again.children[0].value.replace("&#x27;", "'")


def test_labels_of_other_pairs_stay(tmp_path, pairs, sample, passages):
    path = written(tmp_path / "labels.jsonl", row(pid="p01-4"))
    work = Labelling(pairs, path, sample, passages, "reader")
    work.take_back()  # it is not one of these pairs
    work.give("no")
    assert [pair.pid for pair in read_labels(path, sample, passages)] == ["p01-4", pairs[0].pid]


def test_without_jupyterlab_the_first_pair_is_shown_and_nothing_written(tmp_path, monkeypatch, pairs, sample, passages):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    shown = label_pairs(pairs, tmp_path / "labels.jsonl", sample, passages)
    assert "0 of 3 pairs" in shown.data and "widget" not in repr(shown).lower()
    assert not list(tmp_path.iterdir())


def test_texts_are_escaped(tmp_path, sample, pairs):
    corpus = sample.corpus.select([0]).map(lambda one: {**one, "title": "<b>", "text": "<script>alert(1)</script>"})
    passages = PassageIndex(corpus)
    shown = Labelling([pairs[0]._replace(pid=passages.ids[0])], tmp_path / "none", sample, passages, "reader").shown()
    assert "<script>" not in shown and "&lt;script&gt;" in shown and "<b>&lt;b&gt;</b>" in shown
