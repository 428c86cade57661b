"""Paths, and writing that leaves the old target or the new one, never a mixture."""

import json
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import files
from helpers.files import ROOT, atomic_path, cache_dir, display_path, resolve, write_json, write_jsonl, write_text


def tree(folder):
    """Return every file below `folder` with its text, hidden ones included."""
    return {str(p.relative_to(folder)): p.read_text("utf-8") for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("before", [{}, {"target": "old"}])
def test_file_is_replaced_on_success_and_kept_on_error(tmp_path, before):
    for name, text in before.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "target") as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert tree(tmp_path) == before
    with atomic_path(tmp_path / "target") as temporary:
        temporary.write_text("new")
        assert tree(tmp_path).get("target") == before.get("target")  # nothing to see before the end
    assert tree(tmp_path) == {"target": "new"}


@pytest.mark.parametrize("before", [{}, {"target/a": "old", "target/b": "old"}])
def test_folder_is_replaced_on_success_and_kept_on_error(tmp_path, before):
    for name, text in before.items():
        write_text(tmp_path / name, text)
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "target") as temporary:
        write_text(temporary / "a", "half")
        raise ZeroDivisionError
    assert tree(tmp_path) == before
    with atomic_path(tmp_path / "target") as temporary:
        write_text(temporary / "a", "new")
    assert tree(tmp_path) == {"target/a": "new"}  # b of the old folder is gone too
    assert os.listdir(tmp_path) == ["target"]


def test_interrupt_counts_as_error(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "target") as temporary:
        temporary.mkdir()
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_leftover_of_a_crashed_run_is_no_obstacle(tmp_path):
    with atomic_path(tmp_path / "target") as temporary:
        pass_on = temporary
        temporary.write_text("x")
    write_text(pass_on / "crumb", "left over")
    write_text(tmp_path / "target", "new")
    assert tree(tmp_path) == {"target": "new"}


def test_parents_are_made(tmp_path):
    write_text(tmp_path / "a" / "b" / "c.txt", "deep")
    assert (tmp_path / "a" / "b" / "c.txt").read_text() == "deep"


def test_old_folder_survives_a_failed_rename(tmp_path, monkeypatch):
    write_text(tmp_path / "target" / "a", "old")
    replace, calls = os.replace, []

    def second_fails(source, target):
        calls.append(source)
        if len(calls) == 2:
            raise OSError("disk trouble")
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", second_fails)
    with pytest.raises(OSError, match="disk trouble"), atomic_path(tmp_path / "target") as temporary:
        temporary.mkdir()
        (temporary / "a").write_text("new")
    monkeypatch.undo()
    assert tree(tmp_path) == {"target/a": "old"}


def test_relative_path_means_the_same_in_every_folder(tmp_path, monkeypatch):
    for folder in (tmp_path, ROOT / "notebooks"):
        monkeypatch.chdir(folder)
        assert resolve("data/sample") == ROOT / "data" / "sample"
        assert resolve("runs/../data") == ROOT / "data"
    assert resolve(tmp_path) == tmp_path.resolve()
    assert resolve("~/x") == Path.home().resolve() / "x"


def test_display_path_names_the_course_folder_only_for_what_lies_outside(tmp_path):
    assert display_path(ROOT / "runs" / "cpu") == str(Path("runs", "cpu"))
    assert display_path(tmp_path) == str(tmp_path)
    assert display_path(ROOT.parent / (ROOT.name + "-two") / "x") == str(ROOT.parent / (ROOT.name + "-two") / "x")


def test_cache_dir_order(tmp_path, monkeypatch):
    monkeypatch.setenv("RETRIEVER_COURSE_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "own"
    monkeypatch.setenv("RETRIEVER_COURSE_CACHE", "")
    assert cache_dir() == tmp_path / "xdg" / "dense-retriever-course"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "dense-retriever-course"


@given(st.lists(st.dictionaries(st.text(), st.text() | st.integers() | st.none(), max_size=3), max_size=4))
def test_jsonl_and_json_round_trip(rows):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.jsonl")
        write_jsonl(path, rows)
        lines = path.read_bytes().split(b"\n")  # a row is one line, whatever its text holds
        assert [json.loads(line) for line in lines[:-1]] == rows and lines[-1] == b""
        write_json(path, rows)
        assert json.loads(path.read_text("utf-8")) == rows


def test_failing_row_leaves_the_old_jsonl(tmp_path):
    write_jsonl(tmp_path / "x.jsonl", [{"a": 1}])
    with pytest.raises(TypeError):
        write_jsonl(tmp_path / "x.jsonl", [{"a": 2}, {"a": object()}])
    assert tree(tmp_path) == {"x.jsonl": '{"a": 1}\n'}
