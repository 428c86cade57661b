"""Paths, reading within bounds, and writing that leaves the old target or the new one, never a mixture."""

import errno
import gzip
import json
import math
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from helpers.base import files
from helpers.base.errors import DataError
from helpers.base.files import (
    ROOT,
    atomic_path,
    cache_dir,
    display_path,
    json_items,
    read_json,
    read_pieces,
    recover,
    remove,
    resolve,
    told,
    write_json,
    write_jsonl,
    write_text,
)


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
    with pytest.raises(DataError, match="disk trouble"), atomic_path(tmp_path / "target") as temporary:
        temporary.mkdir()
        (temporary / "a").write_text("new")
    monkeypatch.undo()
    assert tree(tmp_path) == {"target/a": "old"} and os.listdir(tmp_path) == ["target"]


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
        assert json.loads(path.read_text("utf-8")) == rows == read_json(path)


def test_failing_row_leaves_the_old_jsonl(tmp_path):
    write_jsonl(tmp_path / "x.jsonl", [{"a": 1}])
    with pytest.raises(TypeError):
        write_jsonl(tmp_path / "x.jsonl", [{"a": 2}, {"a": object()}])
    assert tree(tmp_path) == {"x.jsonl": '{"a": 1}\n'}


def test_numbers_that_json_lacks_become_null(tmp_path):
    value = {"a": [1.5, math.nan, (-math.inf, 2)], "b": {"c": math.inf, "d": "NaN"}, "e": np.float64("nan")}
    expected = {"a": [1.5, None, [None, 2]], "b": {"c": None, "d": "NaN"}, "e": None}
    write_json(tmp_path / "x.json", value)
    write_jsonl(tmp_path / "x.jsonl", [value, {"f": math.inf}])
    first, second = (tmp_path / "x.jsonl").read_text().splitlines()
    assert read_json(tmp_path / "x.json") == json.loads(first) == expected and json.loads(second) == {"f": None}


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, None])
def test_a_broken_json_file_is_told(tmp_path, content):
    path = tmp_path / "x.json"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(DataError, match=r"x\.json cannot be read as JSON"):
        read_json(path)
    with pytest.raises(DataError, match=r"none\.json cannot be read as JSON \(No such file"):
        read_json(tmp_path / "none.json")


def test_a_full_disk_is_told_and_leaves_the_old_file(tmp_path, full_disk):
    write_json(tmp_path / "x.json", [1])
    rows = [{"text": "a" * 1000}] * 100
    for write in (write_json, write_jsonl, lambda path, rows: save_file({"a": torch.zeros(30_000)}, path)):
        with full_disk(10_000), pytest.raises(DataError, match=r"x\.json: .*; free some space"):
            with atomic_path(tmp_path / "x.json") as temporary:
                write(temporary, rows)
        assert tree(tmp_path) == {"x.json": "[\n  1\n]\n"}
        with full_disk(10_000), pytest.raises(DataError, match=r"new.*: .*; free some space"):
            with atomic_path(tmp_path / "new") as temporary:
                temporary.mkdir()
                write(temporary / "x.json", rows)
        assert os.listdir(tmp_path) == ["x.json"]


def test_what_cannot_be_a_file_is_told_by_its_own_name(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    write_text(tmp_path / "file", "x")
    for wrong in ("folder", "circle/x", "file/x"):
        with pytest.raises(DataError, match="; free some space, or check the name and the permissions") as caught:
            write_text(tmp_path / wrong, "x")
        assert str(tmp_path / wrong.split("/")[0]) in str(caught.value) and ".tmp" not in str(caught.value)
        with pytest.raises(DataError):
            list(read_pieces(tmp_path / wrong, lambda file: file.read(1)))
        with pytest.raises(DataError):
            read_json(tmp_path / wrong)
    assert resolve(tmp_path / "circle" / "x") == tmp_path.resolve() / "circle" / "x"
    assert sorted(os.listdir(tmp_path)) == ["circle", "file", "folder"]


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(1 - 2**63, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.lists(VALUES, max_size=5), st.dictionaries(st.text(max_size=3), VALUES, max_size=2), st.integers(4, 9), st.data()
)
def test_json_items_are_those_of_the_whole_file_however_it_is_cut(items, others, size, data):
    fields = [*others.items(), ("data", items)]
    whole = dict(data.draw(st.permutations([f for f in fields if f[0] != "data" or f[1] is items])))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.json")
        text = json.dumps(whole, indent=data.draw(st.sampled_from([None, 1])), ensure_ascii=data.draw(st.booleans()))
        path.write_bytes(data.draw(st.sampled_from([b"", b"\xef\xbb\xbf"])) + text.encode())
        with pytest.MonkeyPatch.context() as patch:  # pieces of a few bytes, so that every place is a border
            patch.setattr(files, "PIECE", size)
            found = list(json_items(path, "data"))
            assert found == items and json.dumps(found) == json.dumps(items)  # 1 is not 1.0, and neither is a Decimal
            path.write_text(json.dumps(items), encoding="utf-8")
            assert list(json_items(path)) == items
            path.write_text(json.dumps(items)[:-1], encoding="utf-8")
            with pytest.raises(DataError, match=r"x\.json:1"):
                list(json_items(path))


BROKEN = [
    ("", r"x.json:1: .*premature EOF\)$"),
    ("[1,\n 2", "x.json:2: .*premature EOF"),
    ('[{"a": "never closed', "x.json:1: .*premature EOF"),
    ("[1,\n2,\n}]", "x.json:3: .*unallowed token .* near '}]'"),
    ("[1]\n2", "x.json:2: .*trailing garbage"),
    ("[1]\n[2]", "x.json:2: .*trailing garbage"),
    ("[NaN]", r"x.json:1: .*invalid .* near '\[NaN\]'"),
    ("[1, 1e999]", "x.json:1: .*overflow"),
    ("[" + "9" * 5000 + "]", "x.json:1: .*overflow"),
    ("[" * 100_000, "x.json:1: .*more than 100 lists or objects within each other"),
    ('[1,\n{"a": ' + '{"a": ' * 200 + "1" + "}" * 201 + "]", "x.json:2: .*more than 100 lists"),
    ('["' + "a" * (17 * 2**16), "x.json:1: .*an item of over 1 MiB"),
    ("[[" + "1," * (9 * 2**16), "x.json:1: .*an item of over 1 MiB"),
    ('["' + "\\" * (17 * 2**16), "x.json:1: .*an item of over 1 MiB"),
    ('[{"a": 1 2},' + "1," * (9 * 2**16), "x.json:1: .*after key and value"),  # short, but wrong
    ('["a",\n"\xff"]', "x.json:2: .*invalid bytes in UTF8 string"),
    ("[1, \xff]", "x.json:1: .*invalid char"),
    ('["\xed\xa0\x80"]', "x.json:1: .*can't decode"),  # a surrogate as if it were a character
    ('["\\ud83d\\ude00",\n{"a": ["\\ud83d"]}]', "x.json:2: .*half of a surrogate pair"),
    ('["\\uDE00\\ud83d"]', "x.json:1: .*half of a surrogate pair"),  # the wrong way round
    ('["\\\\\\ud83d\\u0041"]', "x.json:1: .*half of a surrogate pair"),
]


@pytest.mark.parametrize(("text", "message"), BROKEN, ids=map(str, range(len(BROKEN))))
def test_broken_and_endless_json_is_told_with_its_line(tmp_path, monkeypatch, text, message):
    monkeypatch.setattr(files, "LONGEST", 2**20)
    for inside in (text, '{"data": ' + text) if text else ("",):
        (tmp_path / "x.json").write_bytes(inside.encode("latin-1"))
        with pytest.raises(DataError, match=message if inside == text else "x.json:"):
            list(json_items(tmp_path / "x.json", "" if inside == text else "data"))


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        ('{"data": []}', "", "a list is needed"),
        ("7", "", "a list is needed"),
        ("[]", "data", "no field 'data'"),
        ("{}", "data", "no field 'data'"),
        ('{"x": {"data": [1]}, "data.item": [1]}', "data", "no field 'data'"),
        ('{"data": {"item": 1}}', "data", "a list is needed"),
        ('{"data": null}', "data", "a list is needed"),
    ],
)
def test_a_missing_list_is_told(tmp_path, text, key, message):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError, match=rf"x\.json:1: .*{message}"):
        list(json_items(tmp_path / "x.json", key))


@pytest.mark.parametrize("size", range(1, 20))
def test_whole_characters_pass_wherever_a_long_line_is_cut(tmp_path, monkeypatch, size):
    monkeypatch.setattr(files, "PIECE", size)
    text = r'["\\ud83d", "\ud83d\ude00", "\\\ud83d\uDE00\\", "\u00e9", "\"\uD55c"]'
    (tmp_path / "x.json").write_text(text)
    assert list(json_items(tmp_path / "x.json")) == json.loads(text)
    (tmp_path / "x.json").write_text(text.replace(r"\ude00", r"\u0041", 1))
    with pytest.raises(DataError, match="half of a surrogate pair"):
        list(json_items(tmp_path / "x.json"))


@pytest.mark.parametrize("indent", [None, 1])
def test_a_long_file_of_short_items_is_read(tmp_path, monkeypatch, indent):
    monkeypatch.setattr(files, "LONGEST", 2**17)
    items = [{"text": ["a" * 50_000]}] * 10
    (tmp_path / "x.json").write_text(json.dumps({"x": "a" * 50_000, "data": items, "y": items[0]}, indent=indent))
    assert list(json_items(tmp_path / "x.json", "data")) == items


def test_a_field_given_twice_counts_twice_in_the_file_and_once_in_an_item(tmp_path):
    (tmp_path / "x.json").write_text('{"data": [{"a": 1, "a": 2}], "x": [[3]], "data": [4]}')
    assert list(json_items(tmp_path / "x.json", "data")) == [{"a": 2}, 4]


def test_json_items_of_a_gzip_bomb_are_not_read(tmp_path):
    (tmp_path / "x.json.gz").write_bytes(gzip.compress(b"[" + (b"1," * 1000 + b"\n") * 10_000 + b"1]"))
    with pytest.raises(DataError, match="unpacks to more than 100 times its size"):
        for _ in json_items(tmp_path / "x.json.gz"):
            pass


def test_gzip_is_read_and_a_bomb_is_not(tmp_path):
    lines = [f"line {n} of a text\n".encode() for n in range(5000)]
    (tmp_path / "good.gz").write_bytes(gzip.compress(b"".join(lines)))
    assert list(read_pieces(tmp_path / "good.gz", lambda file: file.readline())) == lines
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(b"0" * 2**28))
    unpacked = 0
    with pytest.raises(DataError, match=r"bomb\.gz unpacks to more than 100 times its size"):
        for piece in read_pieces(tmp_path / "bomb.gz", lambda file: file.read(2**20)):
            unpacked += len(piece)
    assert unpacked < 2**26  # stopped long before its end
    for cut in (b"", b"x", gzip.compress(b"".join(lines))[:-50]):
        (tmp_path / "cut.gz").write_bytes(cut or b"\x1f\x8b")
        with pytest.raises(DataError, match=r"cut\.gz cannot be read"):
            list(read_pieces(tmp_path / "cut.gz", lambda file: file.readline()))


def test_folders_and_pipes_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(DataError, match="is not a file"):
            list(read_pieces(path, lambda file: file.read(1)))


def test_recovery_touches_nothing_of_another_name(tmp_path):
    others = [".nq.small.123.tmp", ".nq.small.123.old", ".nq.x.tmp", ".nqx.1.tmp", "nq.1.tmp"]
    for name in [*others, ".nq.123.tmp", ".nq.123.old", ".nq.124.old"]:
        write_text(tmp_path / name / "a", name)
    recover(tmp_path / "nq")
    assert sorted(os.listdir(tmp_path)) == sorted([*others, "nq"])
    assert (tmp_path / "nq" / "a").read_text() == ".nq.123.old"
    recover(tmp_path / "none" / "nq")  # a folder that is not there yet


@pytest.mark.parametrize("name", ["file", "folder/a"])
def test_a_removal_that_breaks_off_leaves_nothing_half(tmp_path, monkeypatch, name):
    write_text(tmp_path / name, "x")
    path = tmp_path / name.split("/")[0]
    monkeypatch.setattr(files, "_delete", lambda path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        remove(path)
    assert not path.exists() and len(os.listdir(tmp_path)) == 1
    monkeypatch.undo()
    recover(path)
    assert os.listdir(tmp_path) == []
    write_text(tmp_path / name, "x")
    remove(path)
    remove(path)  # gone already
    assert os.listdir(tmp_path) == []


def test_recovery_takes_a_name_as_it_is(tmp_path):
    for name in (".n[q]*.123.tmp", ".nq.123.tmp"):
        write_text(tmp_path / name, "x")
    recover(tmp_path / "n[q]*")
    assert os.listdir(tmp_path) == [".nq.123.tmp"]


def test_trouble_with_a_file_is_told_with_its_name(tmp_path):
    with pytest.raises(DataError, match=f"{tmp_path}/none: No such file or directory; free some space, or check"):
        with told("x"):
            (tmp_path / "none").read_text()
    with pytest.raises(DataError, match=r"^the cache: No space left on device"), told("the cache"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(DataError, match="name too long"):
        list(read_pieces(tmp_path / ("x" * 300), lambda file: file.read(1)))
