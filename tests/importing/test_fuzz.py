"""Mutated files into every importer and loader: the typed error or a data set that loads, and nothing half-written.

FUZZ=100000 pytest tests/importing/test_fuzz.py runs the long version.
"""

import gzip
import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from foreign import EXPORTS, write

from helpers.base.errors import CourseError
from helpers.dataset import load_data
from helpers.importing.importer import ImportOptions, import_data
from helpers.negatives import load_pool
from helpers.retrieval import load_run

COUNT = int(os.environ.get("FUZZ", "1200"))
SLOW = {"hub": 200, "qa": 8}  # `datasets` and BM25 take that many times as long: mutated so many times more seldom
SNIPPETS = [
    *(bytes([n]) for n in b"\"\\{}[],:\t\n\x00|' "),
    b"\r\n",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\\ud800",
    b"null",
    b"\xe2\x80\xa8",
    b"NaN",
    b"1e999",
    b"9" * 5000,
    b"[" * 3000,
    b'{"a":' * 3000,
    b"-1",
    b"true",
    b"../../x",
    b"<script>",
    b"\xc2\x85",
    "京".encode(),
    b'""',
    b"\x1f\x8b\x08",
    b"a" * 70_000,
]


def mutated(content, rng):
    """Return `content` with one to four things done to it."""
    for _ in range(rng.randint(1, 4)):
        at, other = sorted(rng.randrange(len(content) + 1) for _ in range(2))
        other = min(other, at + rng.choice([1, 1, 8, 64, 4096]))
        kind = rng.randrange(7)
        if kind == 0:  # something foreign
            content = content[:at] + rng.choice(SNIPPETS) + content[at:]
        elif kind == 1:  # a piece left out
            content = content[:at] + content[other:]
        elif kind == 2:  # a piece twice
            content = content[:other] + content[at:]
        elif kind == 3:  # a byte changed
            content = content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :]
        elif kind == 4:  # cut off
            content = content[: at if rng.random() < 0.3 else len(content)]
        elif kind == 5:  # lines in another order, or one missing
            lines = content.split(b"\n")
            rng.shuffle(lines) if rng.random() < 0.3 else lines.pop(rng.randrange(len(lines)))
            content = b"\n".join(lines)
        else:  # one value for another
            old, new = rng.choice(
                [
                    (b"[", b"{"),
                    (b'"', b""),
                    (b": ", b": null, "),
                    (b"text", b"txt"),
                    (b"0", b"-"),
                    (b"\t", b" "),
                    (b'["', b'[{"'),
                    (b"1", b"99"),
                    (b"_id", b"id"),
                ]
            )
            content = content.replace(old, new, rng.choice([1, 1, 1, -1]))
    return content


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """For each format a small valid data set in a folder of its own: (paths, options)."""
    folder = tmp_path_factory.mktemp("sources")
    passages = {
        f"p{n}": {"_id": f"p{n}", "title": f"T{n // 2}", "text": f"passage {n} holds w{n} and <b>x</b>", "split": split}
        for n, split in enumerate(["train"] * 4 + ["dev"] * 2 + ["test"] * 2)
    }
    asked = {
        split: [
            (f"q{n}", f"which passage holds number {n}?", [f"w{n}"], [f"p{n}"], "p0" if n == 2 else None)
            for n in numbers
        ]
        for split, numbers in {"train": [1, 2, 3], "dev": [4, 5], "test": [6, 7]}.items()
    }
    return {form: (folder / form, *make(passages, asked, folder / form)) for form, make in EXPORTS.items()}


class Hang(BaseException):
    """No error of the library may swallow this one."""


def attempt(form, place, number, sources):
    """Mutate one file of a copy of the source, load or import it, and return what came of it."""
    rng = random.Random(f"{form} {number}")
    base, paths, options = sources["beir" if form == "load" else form]
    copy, out = place / "in", place / "out"
    shutil.copytree(base, copy)
    victim = rng.choice(sorted(path for path in copy.rglob("*") if path.is_file()))
    content = mutated(victim.read_bytes(), rng)
    victim.write_bytes(content)
    if form in ("beir", "msmarco") and rng.random() < 0.1 and victim.suffix in (".jsonl", ".tsv"):
        victim.unlink()
        Path(f"{victim}.gz").write_bytes(
            mutated(gzip.compress(content), rng) if rng.random() < 0.5 else gzip.compress(content)
        )
    moved = [copy / path.relative_to(base) for path in paths]
    options = {name: copy / path.relative_to(base) for name, path in options.items()}
    try:
        if form == "load":
            load_data(copy)
            return "loaded"
        import_data(form, moved, out, ImportOptions(skip_bad_rows=rng.random() < 0.4, **options))
    except CourseError as error:
        assert str(error) and "Traceback" not in str(error) and ".tmp" not in str(error), error
        assert [path.name for path in place.iterdir() if path.suffix != ".lock"] == ["in"]
        return "told"
    loaded = load_data(out)
    assert loaded.fingerprint == json.loads((out / "manifest.json").read_text("utf-8"))["fingerprint"]
    return "imported"


@pytest.mark.parametrize("form", ["load", *EXPORTS])
def test_mutated_files_are_told_or_loaded(form, sources, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr("datasets.arrow_dataset.generate_fingerprint", lambda dataset: "0")  # 12 ms each, and unused

    def too_long(*_):
        raise Hang(f"{form}: over 20 s")

    signal.signal(signal.SIGALRM, too_long)
    outcomes, started = Counter(), time.monotonic()
    for number in range(max(3, COUNT // (len(EXPORTS) - 1) // SLOW.get(form, 1))):
        place = tmp_path / "x"
        place.mkdir()
        signal.alarm(20)
        try:
            outcomes[attempt(form, place, number, sources)] += 1
        except Exception as error:
            raise AssertionError(f"{form} {number}") from error
        finally:
            signal.alarm(0)
        shutil.rmtree(place)
    print(f"{form}: {dict(outcomes)}, {time.monotonic() - started:.0f} s")
    assert outcomes["told"] and (len(outcomes) == 2 or sum(outcomes.values()) < 20)


def test_mutated_pools_and_runs_are_told_or_loaded(sample, sample_passages, tmp_path):
    settings = {"data": sample.fingerprint, "size": 2}
    rows = [
        {"settings": settings, "audit": {"kept": {"1": 2}}},
        *({"qid": qid, "negatives": [{"pid": "p01-1", "rank": 1, "score": 0.5}]} for qid in list(sample.queries)[:4]),
    ]
    pool = "".join(json.dumps(row) + "\n" for row in rows).encode()
    run = "".join(f"q{n:04d} Q0 p01-1 {n} {1 / (n + 1):.3f} name\n" for n in range(9)).encode()
    told = 0
    for number in range(COUNT // 10):
        rng = random.Random(number)
        path = write(tmp_path / "file", "")
        path.write_bytes(mutated(rng.choice([pool, run]), rng))
        for load, known in ((load_pool, [sample]), (load_run, [sample_passages.row, list(sample.queries)])):
            try:
                load(path, *known)
            except CourseError:
                told += 1
    assert told > COUNT // 20
