"""The report: its numbers, its file formats, and that no name breaks out of it."""

import json
import math
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from helpers.base.errors import DataError, SettingError
from helpers.reporting.plots import plot_differences, plot_first_hits, plot_hit_curve
from helpers.reporting.report import Report

INF = np.inf
ZERO = np.array([1, 3, 50, INF, INF, 2, 11, INF])
TUNED = np.array([1, 1, 9, 99, INF, 1, 8, INF])
HOSTILE = "<script>alert('x|y')</script>\n| a `b` <img src=x>"


def report(**more):
    ranks = {"zero-shot": ZERO, "tuned": TUNED}
    return Report(
        **{
            "ranks": ranks,
            "relevant_ranks": {name: r + 1 for name, r in ranks.items()},
            "passages": 200,
            "settings": {"seed": 0},
        }
        | more
    )


def test_report_json_has_the_documented_fields(tmp_path):
    report().save(tmp_path)
    got = json.loads((tmp_path / "report.json").read_text())
    assert got == report().as_dict()
    keys = {"systems", "questions", "questions_without_answers", "passages", "settings", "significance", "breakdown"}
    assert got.keys() == keys
    assert (got["questions"], got["questions_without_answers"], got["passages"]) == (8, 0, 200)
    assert got["settings"] == {"seed": 0}
    assert [system["name"] for system in got["systems"]] == ["zero-shot", "tuned"]
    for system in got["systems"]:
        assert system.keys() == {"name", "hits"}
        assert list(system["hits"]) == ["1", "5", "10", "20", "50", "100"]
        for hit in system["hits"].values():
            assert hit.keys() == {"answer", "low", "high", "qrels"}
            assert 0 <= hit["low"] <= hit["answer"] <= hit["high"] <= 1


def test_the_numbers_are_hit_at_k():
    zero, tuned = (system["hits"] for system in report().as_dict()["systems"])
    assert [zero[k]["answer"] for k in ("1", "10", "100")] == [1 / 8, 3 / 8, 5 / 8]
    assert [tuned[k]["answer"] for k in ("1", "10", "100")] == [3 / 8, 5 / 8, 6 / 8]
    assert [zero[k]["qrels"] for k in ("1", "10", "100")] == [0, 3 / 8, 5 / 8]
    assert [tuned[k]["qrels"] for k in ("1", "10", "100")] == [0, 5 / 8, 6 / 8]
    assert report().table().loc["tuned", "Hit@1"].startswith("37.5 [")
    assert report().table().loc["tuned", "qrels @10"] == "62.5"


def test_differences_are_paired_and_in_points():
    gain, low, high = report().difference("tuned", 1)
    assert (gain, low) == (25.0, 0.0)
    assert low < gain < high
    assert report().difference("tuned", 10, against="tuned") == (0, 0, 0)
    assert report().difference("zero-shot", 1, against="tuned")[0] == -25
    table = report().differences()
    assert list(table.index) == ["tuned"]
    assert table.loc["tuned", "Hit@1"].startswith("+25.0 [+0.0, ")


def test_p_values_are_mcnemars_corrected_by_holm():
    ranks = {"zero-shot": ZERO, "tuned": TUNED, "twin": ZERO}
    got = report(ranks=ranks, relevant_ranks=ranks).as_dict()["significance"]
    assert (got["baseline"], got["level"], got["comparisons"]) == ("zero-shot", 0.05, 6)
    tuned, twin = got["systems"]
    assert (tuned["name"], twin["name"]) == ("tuned", "twin")
    assert [tuned["hits"][k]["p"] for k in ("1", "10", "100")] == [0.5, 0.5, 1.0]  # 2, 2 and 1 wins, no loss
    assert all(test == {"p": 1.0, "p_holm": 1.0} for test in twin["hits"].values())
    assert tuned["hits"]["1"]["p_holm"] == 1.0


SIX = np.array([1.0] * 6 + [5.0] * 20)  # six wins and no loss against FIVE: p is 2 / 2**6
FIVE = np.array([5.0] * 26)


@pytest.mark.parametrize(("rivals", "starred"), [(1, True), (2, False)])
def test_a_star_marks_what_is_significant_after_the_correction(tmp_path, rivals, starred):
    ranks = {"zero-shot": FIVE, "tuned": SIX} | {f"twin {n}": FIVE for n in range(1, rivals)}
    small = report(ranks=ranks, relevant_ranks=ranks, cutoffs=(1,))
    assert small.as_dict()["significance"]["systems"][0]["hits"]["1"] == {"p": 2 / 2**6, "p_holm": rivals * 2 / 2**6}
    assert small.differences().loc["tuned", "Hit@1"].endswith("*") is starred
    assert not small.differences().iloc[1:]["Hit@1"].str.endswith("*").any()
    small.save(tmp_path)
    for text in (
        str(small),
        small._repr_html_(),
        (tmp_path / "report.md").read_text(),
        (tmp_path / "report.html").read_text(),
    ):
        assert ("]*" in text) is starred
        assert "A trailing * marks what is significant at 5%" in text
        assert f"number of comparisons, here {rivals}." in text


def test_files_are_written_and_the_pictures_are_some(tmp_path):
    report(qids=[f"q{n}" for n in range(8)]).save(tmp_path / "new")
    report(qids=[f"q{n}" for n in range(8)]).save(tmp_path / "new")  # over the old ones
    files = {path.name for path in (tmp_path / "new").iterdir()}
    pictures = {"hit_at_k.png", "differences.png", "first_hits.png"}
    assert files == pictures | {"report.md", "report.html", "report.json", "ranks.tsv"}
    for name in pictures:
        picture = (tmp_path / "new" / name).read_bytes()
        assert picture.startswith(b"\x89PNG\r\n")
        assert len(picture) > 5000
        assert f"({name})" in (tmp_path / "new" / "report.md").read_text()
    page = (tmp_path / "new" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "http" not in page  # nothing is fetched


def test_ranks_are_a_line_a_question_and_system(tmp_path):
    answered = np.array([True] * 6 + [False, True])
    report(qids=[f"q{n}" for n in range(8)], answered=answered).save(tmp_path)
    lines = [line.split("\t") for line in (tmp_path / "ranks.tsv").read_text().splitlines()]
    assert lines[0] == ["query-id", "system", "answer", "qrels"]
    assert len(lines) == 1 + 2 * 8
    assert lines[1:4] == [["q0", "zero-shot", "1", "2"], ["q1", "zero-shot", "3", "4"], ["q2", "zero-shot", "50", "51"]]
    assert lines[7:9] == [["q6", "zero-shot", "", "12"], ["q7", "zero-shot", "-", "-"]]
    assert [line[2] for line in lines[9:]] == ["1", "1", "9", "99", "-", "1", "", "-"]


def test_every_cutoff_that_the_corpus_allows_is_reported():
    assert list(report().every_k()) == [f"Hit@{k}" for k in (1, 5, 10, 20, 50, 100)]
    assert report().every_k().loc["tuned", "Hit@5"] == "37.5 / 37.5"
    small = report(passages=20, cutoffs=(1, 3))
    assert list(small.as_dict()["systems"][0]["hits"]) == ["1", "3", "5", "10", "20"]
    assert list(small.table()) == ["Hit@1", "Hit@3", "qrels @1", "qrels @3"]


SEEDS = np.array([TUNED, [1, 1, 1, 1, INF, 1, 8, INF]])


def test_several_seeds_are_one_system(tmp_path):
    ranks = {"zero-shot": ZERO, "tuned": SEEDS}
    several = report(ranks=ranks, relevant_ranks=ranks, qids=["q"] * 8)
    zero, tuned = several.as_dict()["systems"]
    assert "seeds" not in zero and "sd" not in zero["hits"]["1"] and tuned["seeds"] == 2
    assert tuned["hits"]["1"]["answer"] == tuned["hits"]["1"]["qrels"] == (3 + 5) / 16
    assert tuned["hits"]["1"]["sd"] == pytest.approx(np.std([3 / 8, 5 / 8], ddof=1))
    assert several.table().loc["tuned", "Hit@1"].startswith("50.0 ± 17.7 [")
    assert several.difference("tuned", 1)[0] == pytest.approx(100 * (0.5 - 1 / 8))
    for word in ("questions and seeds (± deviation of the seeds)", "a t-test over questions and seeds"):
        assert word in str(several) and word not in str(report())
    several.save(tmp_path)
    assert not (tmp_path / "ranks.tsv").exists()  # it holds one rank a question


GROUPS = pd.DataFrame(
    {"word": pd.Categorical(["who", "how", "who", "how", "why", "who", None, "how"], ["who", "when", "why", "how"])}
)


def test_groups_of_questions_are_broken_down(tmp_path):
    answered = np.array([True, True, True, True, False, True, True, True])
    got = report(groups=GROUPS, answered=answered)
    (word,) = got.as_dict()["breakdown"].values()
    assert [(group["group"], group["questions"]) for group in word] == [("who", 3), ("how", 3)]
    assert [group["hits"]["tuned"]["answer"] for group in word] == [2 / 3, 1 / 3]
    assert [group["hits"]["zero-shot"]["answer"] for group in word] == [1 / 3, 0]
    assert got.breakdown("word").loc["how", "questions"] == "3"
    assert got.breakdown("word").loc["how", "zero-shot"] == "0.0 [0.0, 70.8]"  # 0 of 3 is no proof of anything
    got.save(tmp_path)
    assert "| word | zero-shot | tuned | questions |" in (tmp_path / "report.md").read_text()


def test_speed_is_reported(tmp_path):
    got = report(speed={"tuned": {"ms a question": 1.234, "passages a second": 100.0}})
    assert [system.get("speed") for system in got.as_dict()["systems"]] == [
        None,
        {"ms a question": 1.234, "passages a second": 100.0},
    ]
    got.save(tmp_path)
    assert "| tuned | 1.23 | 100.0 |" in (tmp_path / "report.md").read_text()


def test_the_bars_are_the_differences_and_the_shares_add_up():
    axes = plot_differences({"a": {1: (2.0, 1.0, 3.0), 10: (-1.0, -4.0, 2.0)}, "b": {1: (0, 0, 0), 10: (5, 4, 6)}}, "z")
    assert [bar.get_width() for bar in axes.patches] == [2.0, 0, -1.0, 5]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    axes = plot_first_hits({"zero-shot": ZERO, "tuned": SEEDS}, [1, 5, 10, 100])
    widths = np.array([bar.get_width() for bar in axes.patches]).reshape(5, 2)  # a row a range, a column a system
    np.testing.assert_allclose(widths[:, 0], [12.5, 25, 0, 25, 37.5])
    np.testing.assert_allclose(widths.sum(0), 100)
    assert [text.get_text() for text in axes.get_legend().texts] == ["1", "2-5", "6-10", "11-100", "over 100"]
    plt.close("all")


def test_saving_closes_its_figure(tmp_path):
    plt.close("all")
    report().save(tmp_path)
    assert not plt.get_fignums()


@pytest.mark.parametrize("where", ["system", "baseline", "setting", "value"])
def test_names_cannot_break_out_of_the_report(tmp_path, where):
    name = {"baseline": "zero-shot", "system": "tuned"}.get(where)
    ranks = {HOSTILE if key == name else key: value for key, value in (("zero-shot", ZERO), ("tuned", TUNED))}
    setting = {"setting": {HOSTILE: 1}, "value": {"data": HOSTILE}}.get(where, {})
    hostile = report(ranks=ranks, relevant_ranks=ranks, settings=setting, baseline=next(iter(ranks)))
    hostile.save(tmp_path)
    page, text = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    for written in (page, text, hostile._repr_html_()):
        assert "<script" not in written
    assert "<img src=x" not in page + text
    assert "&lt;script&gt;" in page
    assert "&lt;script&gt;" in text
    tables = [part.splitlines() for part in text.split("\n\n") if part.startswith("|")]
    assert len(tables) == 4
    for lines in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1  # as many cells in every row
    names = json.dumps(json.loads((tmp_path / "report.json").read_text()))
    assert json.dumps(HOSTILE) in names


def test_dollars_in_a_name_are_no_formula(tmp_path):
    ranks = {r"$\frac$": ZERO}
    report(ranks=ranks, relevant_ranks=ranks, baseline=r"$\frac$").save(tmp_path)


def test_every_system_is_drawn():
    assert len(plot_hit_curve({f"system {number}": ZERO for number in range(9)}).lines) == 9


@pytest.mark.parametrize(("passages", "cutoffs"), [(99, (1, 10, 100)), (9, (1, 10)), (0, (1,))])
def test_k_larger_than_the_corpus_is_an_error(passages, cutoffs):
    with pytest.raises(SettingError, match=f"Hit@{max(cutoffs)}.*the corpus has {passages}"):
        report(passages=passages, cutoffs=cutoffs)
    assert report(passages=max(cutoffs), cutoffs=cutoffs)


def test_an_unknown_baseline_is_an_error():
    with pytest.raises(SettingError, match=r"'nothing'.*zero-shot.*tuned"):
        report(baseline="nothing")


def test_unanswered_questions_count_under_qrels_alone():
    answered = np.array([True, True, True, True, False, True, True, False])
    got = report(answered=answered).as_dict()
    assert (got["questions"], got["questions_without_answers"]) == (8, 2)
    tuned = got["systems"][1]["hits"]
    assert [tuned[k]["answer"] for k in ("1", "10", "100")] == [3 / 6, 5 / 6, 1]
    assert [tuned[k]["qrels"] for k in ("1", "10", "100")] == [0, 5 / 8, 6 / 8]
    assert report(answered=answered).difference("tuned", 1)[0] == pytest.approx(100 * 2 / 6)


def test_without_any_answer_hits_are_those_by_qrels(tmp_path):
    unanswered = report(answered=np.zeros(8, dtype=bool))
    got = unanswered.as_dict()
    assert (got["questions"], got["questions_without_answers"]) == (8, 8)
    for system in got["systems"]:
        assert all(hit["answer"] == hit["qrels"] for hit in system["hits"].values())
    assert "% of questions with a judged passage" in unanswered.summary()
    assert "% of questions with an answer" in report().summary()
    unanswered.save(tmp_path)


def test_the_text_shows_systems_and_differences():
    for text in (str(report()), report()._repr_html_()):
        for part in ("8 questions over 200 passages", "zero-shot", "tuned", "minus zero-shot", "Hit@100"):
            assert part in text


def test_one_system_alone_can_be_reported(tmp_path):
    alone = report(ranks={"zero-shot": ZERO}, relevant_ranks={"zero-shot": ZERO})
    alone.save(tmp_path)
    assert len(alone.as_dict()["systems"]) == 1
    assert alone.as_dict()["significance"]["systems"] == []
    assert "significant" not in (tmp_path / "report.md").read_text()


def test_one_system_alone_shows_no_empty_table():
    assert "Empty DataFrame" not in str(report(ranks={"zero-shot": ZERO}, relevant_ranks={"zero-shot": ZERO}))


def test_what_is_not_a_number_is_null_in_report_json(tmp_path):
    report(speed={"tuned": {"ms per question": math.nan, "passages per second": math.inf}}).save(tmp_path)

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    got = json.loads((tmp_path / "report.json").read_text(), parse_constant=refuse)
    assert got["systems"][1]["speed"] == {"ms per question": None, "passages per second": None}


def test_a_full_disk_is_told(tmp_path, full_disk):
    with full_disk(1000), pytest.raises(DataError, match=r"File too large; free some space"):
        report().save(tmp_path / "report")
    assert not list((tmp_path / "report").glob("*.tmp"))
