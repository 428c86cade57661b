"""A corpus by position equals the plain lists and dicts it stands for, also where only a part is selected."""

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from measure_scale import measure

from helpers.answers import normalize
from helpers.base.errors import DataError
from helpers.dataset import IN_MEMORY, PassageIndex, load_data


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
    monkeypatch.setattr("helpers.dataset.passage_rows", None)  # reading the text again would be a TypeError
    rows = [row["_id"] for row in small.training_corpus()]
    monkeypatch.setattr("helpers.dataset.passage_rows", lambda rows, problems: iter(()))
    assert [row["_id"] for row in load_data(tiny_folder).training_corpus()] == rows


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
    with pytest.raises(DataError, match=r"cannot be written \(.*RETRIEVER_COURSE_CACHE"):
        load_data(tiny_folder)


def test_200_000_passages_load_in_little_memory_and_again_at_once(tmp_path):
    """5,000,000 take under 3 GB: `python tests/benchmarks/measure_scale.py`; here a 25th of them."""
    first, second = measure(200_000, tmp_path)
    assert first["passages"] == 200_000 and 200_000 * 500 > IN_MEMORY
    assert 0.02 < first["peak_gb"] < 0.35 and second["peak_gb"] < 0.35  # Python and its libraries take 0.1
    assert second["load_s"] < first["load_s"] / 2
    assert first["characters"] == second["characters"] > 200_000 * 300
