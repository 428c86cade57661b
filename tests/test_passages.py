"""A corpus by position equals the plain lists and dicts it stands for, also where only a part is selected."""

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.answers import Pattern, holds, normalize
from helpers.base.checks import CHECKS_VERSION
from helpers.base.errors import DataError
from helpers.dataset import IN_MEMORY, PassageIndex, load_data
from tests.benchmarks.measure_scale import measure


@settings(max_examples=50)
@given(st.lists(st.tuples(st.text(max_size=5), st.text(max_size=5)), min_size=1, max_size=8), st.data())
def test_lazy_equals_eager(passages, data):
    rows = [{"_id": f"p{n}", "title": t, "text": x, "split": ""} for n, (t, x) in enumerate(passages)]
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), unique=True, min_size=1))
    corpus = datasets.Dataset.from_list(rows)
    for dataset, part in ((corpus, rows), (corpus.select(chosen), [rows[n] for n in chosen])):
        index, texts = PassageIndex(dataset), [f"{row['title']} {row['text']}".strip() for row in part]
        assert index.texts[:] == list(index.texts) == [index.texts[n] for n in range(len(index))] == texts
        assert index.texts[1:3] == texts[1:3] and index.texts[-1] == texts[-1] and len(index.texts) == len(texts)
        assert list(index.ids) == list(index.row) == [row["_id"] for row in part]
        assert {pid: index.row[pid] for pid in index.ids} == {row["_id"]: n for n, row in enumerate(part)}
        assert [index.normalized[np.int64(n)] for n in range(len(index))] == [normalize(row["text"]) for row in part]
        assert "p99" not in index.row and 3 not in index.row and index.row.get("p99") is None
        with pytest.raises(KeyError):
            index.row["p99"]
        with pytest.raises(IndexError):
            index.texts[len(part)]


def test_equal_hashes_are_told_apart(monkeypatch):
    import helpers.base.columns

    monkeypatch.setattr(helpers.base.columns, "hash", lambda pid: 7, raising=False)
    rows = [{"_id": f"p{n}", "title": "", "text": str(n), "split": ""} for n in range(5)]
    row = PassageIndex(datasets.Dataset.from_list(rows)).row
    assert [row[f"p{n}"] for n in range(5)] == [0, 1, 2, 3, 4] and "p5" not in row


def test_large_corpus_is_mapped_from_the_cache_and_small_is_not(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("RETRIEVER_COURSE_CACHE", str(tmp_path / "cache"))
    small = load_data(tiny_folder)
    assert small.corpus.cache_files == [] and not (tmp_path / "cache").exists()
    monkeypatch.setattr("helpers.dataset.IN_MEMORY", 1)
    large = load_data(tiny_folder)
    (kept,) = (path for path in (tmp_path / "cache" / "corpora").iterdir() if path.suffix != ".lock")
    assert large.corpus.cache_files[0]["filename"] == str(kept / "corpus.arrow")
    assert large.corpus.to_list() == small.corpus.to_list() and large.fingerprint == small.fingerprint
    monkeypatch.setattr("helpers.base.checks.passage_rows", None)  # reading the text again would be a TypeError
    rows = [row["_id"] for row in small.training_corpus()]
    monkeypatch.setattr("helpers.base.checks.passage_rows", lambda rows, problems: iter(()))
    assert [row["_id"] for row in load_data(tiny_folder).training_corpus()] == rows


def test_a_cached_corpus_is_checked_again_by_newer_checks(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("RETRIEVER_COURSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("helpers.dataset.IN_MEMORY", 1)
    load_data(tiny_folder)
    strict = lambda rows, problems: (row for row in rows if problems.error(row[0], "not allowed any more"))  # noqa: E731
    monkeypatch.setattr("helpers.base.checks.passage_rows", strict)
    load_data(tiny_folder)  # from the cache: it has passed these checks
    monkeypatch.setattr("helpers.dataset.CHECKS_VERSION", CHECKS_VERSION + 1)
    for _ in range(2):  # what fails is not kept
        with pytest.raises(DataError, match=r"corpus\.jsonl:1: not allowed any more"):
            load_data(tiny_folder)


def test_warnings_of_a_cached_corpus_come_again(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("RETRIEVER_COURSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("helpers.dataset.IN_MEMORY", 1)
    with (tiny_folder / "corpus.jsonl").open("a") as file:
        file.write('{"_id": "p9", "text": "\ufffd"}\n')
    first, second = load_data(tiny_folder), load_data(tiny_folder)
    assert "U+FFFD" in first.warnings[0] and first.warnings == second.warnings


def test_a_leftover_of_a_killed_start_is_cleared(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("RETRIEVER_COURSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("helpers.dataset.IN_MEMORY", 1)
    first = load_data(tiny_folder).corpus.to_list()
    (kept,) = (path for path in (tmp_path / "cache" / "corpora").iterdir() if path.suffix != ".lock")
    half = kept.with_name(f".{kept.name}.99999.tmp")
    kept.rename(half)  # as if the process had been killed before the last step
    (half / "corpus.arrow").write_bytes(b"half")
    assert load_data(tiny_folder).corpus.to_list() == first
    assert not half.exists() and kept.exists()


def test_a_cache_that_cannot_be_written_is_told(tiny_folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("RETRIEVER_COURSE_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr("helpers.dataset.IN_MEMORY", 1)
    with pytest.raises(DataError, match=f"{tmp_path / 'file'}.*RETRIEVER_COURSE_CACHE name a folder"):
        load_data(tiny_folder)


def test_a_full_disk_is_told_and_leaves_no_half_corpus(tiny_folder, tmp_path, monkeypatch, full_disk):
    monkeypatch.setenv("RETRIEVER_COURSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("helpers.dataset.IN_MEMORY", 1)
    with full_disk(100), pytest.raises(DataError, match=r"cache/corpora/.*RETRIEVER_COURSE_CACHE name a folder"):
        load_data(tiny_folder)
    assert [path for path in (tmp_path / "cache" / "corpora").iterdir() if path.suffix != ".lock"] == []
    assert len(load_data(tiny_folder).corpus) == 5


@pytest.mark.parametrize("match_title", [False, True])
@pytest.mark.parametrize("strict_dpr", [False, True])
def test_answers_are_looked_for_as_the_index_was_told(match_title, strict_dpr):
    rows = [{"_id": "p0", "title": "The Oslo fjord", "text": "It\u2019s in Norway.", "split": ""}]
    index = PassageIndex(datasets.Dataset.from_list(rows), match_title=match_title, strict_dpr=strict_dpr)

    def found(*answers):
        return holds(index.needles(answers), index.normalized[0])

    assert found("norway") and found("Rome", "Norway") and not found("Rome") and not found()
    assert found("It\u2019s") and found("It's") != strict_dpr
    assert found("Oslo") == match_title and not found("fjord It")  # the title's end is no neighbour of the text
    assert found(Pattern("Nor.ay")) and found(Pattern("O.lo")) == match_title


def test_200_000_passages_load_in_little_memory_and_again_at_once(tmp_path):
    """5,000,000 take under 3 GB: `python -m tests.benchmarks.measure_scale`; here a 25th of them."""
    first, second = measure(200_000, tmp_path)
    assert first["passages"] == 200_000 and 200_000 * 500 > IN_MEMORY
    assert 0.02 < first["peak_gb"] < 0.35 and second["peak_gb"] < 0.35  # Python and its libraries take 0.1
    assert second["load_s"] < first["load_s"] / 2
    assert first["characters"] == second["characters"] > 200_000 * 300
