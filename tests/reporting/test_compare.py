"""Runs side by side: paired by question, seeds pooled, runs on other data refused."""

import json

import numpy as np
import pytest

from helpers.base.errors import DataError, SettingError
from helpers.base.files import write_json, write_text
from helpers.reporting.comparison import compare, main
from helpers.reporting.report import Report
from helpers.reporting.significance import estimate

Q = 60


def ranks(seed, shift=0.0):
    random = np.random.default_rng(seed)
    return np.where((random.random(Q) + shift) < 0.5, np.inf, random.integers(1, 8, Q))


def write(folder, seed=0, shift=0.0, qids=None, passages=200, answered=None, **settings):
    """Leave what notebook 04 leaves, and return the ranks of the trained system."""
    systems = {"zero-shot": ranks(9), "tuned": ranks(seed, shift)}
    settings = {
        "seed": seed,
        "data_fingerprint": "f",
        "eval_corpus": "all",
        "training": {"epochs": 1, "seed": seed},
        "run_dir": str(folder),
    } | settings
    qids = [f"q{n}" for n in range(Q)] if qids is None else qids
    leave(Report(systems, systems, passages, settings, answered, qids=qids), folder)
    return systems["tuned"]


def leave(report, folder):
    """Write what `compare` reads; `Report.save` would draw three plots beside it."""
    folder.mkdir(exist_ok=True)
    write_json(folder / "report.json", report.as_dict())
    write_text(folder / "ranks.tsv", report._ranks_tsv())


def test_two_runs_are_paired_by_question(tmp_path):
    one = write(tmp_path / "a")
    order = np.random.default_rng(1).permutation(Q)
    systems = {"zero-shot": ranks(9)[order], "tuned": ranks(1, 0.2)[order]}  # the same questions in another order
    settings = {"seed": 0, "data_fingerprint": "f", "eval_corpus": "all", "training": {"epochs": 2}}
    Report(systems, systems, 200, settings, qids=[f"q{n}" for n in order]).save(tmp_path / "b")
    report = compare(tmp_path / "a", tmp_path / "b")
    assert list(report.ranks) == [report.baseline, str(tmp_path / "b")] and report.settings["system"] == "tuned"
    expected = estimate(ranks(1, 0.2) <= 1, one <= 1)
    assert report.difference(str(tmp_path / "b"), 1) == pytest.approx([100 * v for v in expected[:3]])
    assert report.significance()["systems"][0]["hits"]["1"]["p"] == expected.p
    assert report.settings[str(tmp_path / "b")]["training.epochs"] == 2  # what differs is told
    assert "data_fingerprint" not in report.settings[str(tmp_path / "b")]


def test_runs_that_differ_in_their_seed_alone_are_one_system(tmp_path):
    named = {0: ["runs/a1", "runs/a2"]}  # the run that was told of the others is a seed like them
    runs = [write(tmp_path / f"a{seed}", seed, compare_with=named.get(seed, [])) for seed in (0, 1, 2)]
    other = write(tmp_path / "b", 5, 0.3, learning_rate=1.0)
    report = compare(*(tmp_path / f"a{seed}" for seed in (0, 1, 2)), tmp_path / "b", system="tuned")
    pooled, single = report.ranks
    assert pooled == f"{tmp_path / 'a0'} and 2 more seeds"
    assert (report.ranks[pooled] == np.array(runs)).all() and (report.ranks[single] == other).all()
    report.save(tmp_path / "report")
    saved = json.loads((tmp_path / "report" / "report.json").read_text())
    assert saved["systems"][0]["seeds"] == 3 and saved["systems"][0]["hits"]["1"]["sd"] > 0


def test_questions_without_answers_count_under_qrels_alone(tmp_path):
    answered = np.arange(Q) % 3 > 0
    for name, seed in (("a", 0), ("b", 1)):
        write(tmp_path / name, seed, answered=answered, epochs=seed)
    report = compare(tmp_path / "a", tmp_path / "b")
    assert report.as_dict()["questions_without_answers"] == 20
    assert (report.ranks[report.baseline] == ranks(0)[answered]).all()
    assert (report.relevant_ranks[report.baseline] == ranks(0)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data_fingerprint": "g"}, "data_fingerprint is 'f' in the first, 'g' in the second"),
        ({"eval_corpus": "held-out"}, "eval_corpus is 'all' in the first, 'held-out' in the second"),
        ({"match_title": True}, "match_title is None in the first, True in the second"),
        ({"passages": 201}, "passages is 200 in the first, 201 in the second"),
        ({"qids": [f"q{n}" for n in range(1, Q + 1)]}, "of 60 and 60 questions 59 are the same"),
    ],
)
def test_runs_on_different_data_are_refused(tmp_path, change, message):
    write(tmp_path / "a")
    write(tmp_path / "b", 1, **change)
    with pytest.raises(DataError, match=f"{tmp_path / 'a'} and {tmp_path / 'b'} cannot be compared: {message}"):
        compare(tmp_path / "a", tmp_path / "b")


def test_what_cannot_be_read_or_compared_is_named(tmp_path, capsys):
    write(tmp_path / "a")
    write(tmp_path / "twin")
    with pytest.raises(SettingError, match="give two or more"):
        compare(tmp_path / "a")
    with pytest.raises(SettingError, match="have the same settings, some the same seed"):
        compare(tmp_path / "a", tmp_path / "twin")
    with pytest.raises(SettingError, match=r"no system 'other'; it has \['tuned', 'zero-shot'\]"):
        compare(tmp_path / "a", tmp_path / "twin", system="other")
    with pytest.raises(DataError, match=r"none has no readable report.json and ranks.tsv"):
        compare(tmp_path / "a", tmp_path / "none")
    (tmp_path / "twin" / "ranks.tsv").unlink()
    assert main([str(tmp_path / "a"), str(tmp_path / "twin")]) == 1
    assert "DataError: " in capsys.readouterr().err
    nameless = json.loads((tmp_path / "a" / "report.json").read_text())
    del nameless["settings"]["data_fingerprint"]
    write(tmp_path / "b", 1)
    (tmp_path / "a" / "report.json").write_text(json.dumps(nameless))
    with pytest.raises(DataError, match="does not say on which data"):
        compare(tmp_path / "a", tmp_path / "b")


def test_the_command_prints_and_saves(tmp_path, capsys):
    write(tmp_path / "a")
    write(tmp_path / "b", 1, 0.3, epochs=9)
    assert main([str(tmp_path / "a"), str(tmp_path / "b"), "--save", str(tmp_path / "report")]) == 0
    assert f"minus {tmp_path / 'a'}" in capsys.readouterr().out
    assert (tmp_path / "report" / "report.html").exists()


def test_a_folder_that_is_none_or_holds_something_else_is_named(tmp_path):
    write(tmp_path / "a")
    (tmp_path / "file").write_text("")
    (tmp_path / "circle").symlink_to("circle")
    for name in ("file", "circle"):
        with pytest.raises(DataError, match=f"{name} has no readable report.json"):
            compare(tmp_path / "a", tmp_path / name)
    for place, text in (("report.json", "[]"), ("report.json", '{"settings": 3}'), ("ranks.tsv", "query-id\n")):
        write(tmp_path / "b", 1)
        (tmp_path / "b" / place).write_text(text)
        with pytest.raises(DataError, match=r"b has no readable report.json"):
            compare(tmp_path / "a", tmp_path / "b")
