"""Encoding by one process, by several, after a kill, and by Ray: the same bytes each time."""

import os
import signal
import subprocess
import sys
import time

import pytest

from helpers.base.errors import DataError, SettingError
from helpers.base.files import ROOT
from helpers.encoder import load_encoder
from helpers.running.encode import Encoding, encode_corpus, main
from helpers.running.start import course_run
from helpers.topics.shards import open_shards

SHARDS = 12


def command(folder, *launcher: str) -> list[str]:
    options = ["--data", "data/sample", "--model", "bert-tiny", "--out", str(folder), "--shards", str(SHARDS)]
    return [sys.executable, "-m", *launcher, "helpers.running.encode", *options]


def several(processes: int) -> list[str]:
    return ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]


def files(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    shards = encode_corpus(Encoding("data/sample", "bert-tiny", str(folder), SHARDS))
    assert len(shards) == 384 and len(files(folder)) == SHARDS + 1
    return folder


def test_killed_and_started_again_by_four_processes_the_rest_is_made(alone, tmp_path):
    started = subprocess.Popen(command(tmp_path), cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("*.arrow"))) < 3:
        assert started.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    left = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("shard-*")}
    assert 3 <= len(left) < SHARDS and not (tmp_path / "manifest.json").exists()
    done = subprocess.run(command(tmp_path, *several(4)), cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("passages in") == 1 and f"{SHARDS - len(left)} made now" in done.stdout
    assert files(tmp_path) == files(alone)
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in left} == left  # these were not made again


def test_ray_makes_the_same_shards(alone, tmp_path):
    (tmp_path / "shard-00002-of-00012.arrow").write_bytes((alone / "shard-00002-of-00012.arrow").read_bytes())
    done = subprocess.run([*command(tmp_path), "--ray", "2"], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "384 passages in 12 shards, 11 made now" in done.stdout
    assert files(tmp_path) == files(alone)


def test_a_folder_that_is_done_is_only_checked(alone, capsys):
    before = files(alone)
    encode_corpus(Encoding("data/sample", "bert-tiny", str(alone), SHARDS))
    assert "12 shards, 0 made now" in capsys.readouterr().out and files(alone) == before
    assert list(open_shards(alone).ids())[:2] and len(open_shards(alone)) == 384


def test_the_command_has_the_notebooks_scopes_prefixes_and_length(tmp_path):
    options = ["--scope", "train", "--prefixes", "ask: ", "tell: ", "--max-length", "16"]
    assert main(["--data", "data/sample", "--model", "bert-tiny", "--out", str(tmp_path), *options]) == 0
    run = course_run({"data": "data/sample", "run_dir": str(tmp_path / "run")})
    encoder = load_encoder("bert-tiny", ("ask: ", "tell: "), 16)
    assert len(open_shards(tmp_path, encoder, run.training)) == 240  # each of them is checked
    with pytest.raises(DataError, match="was made by encoder"):
        open_shards(tmp_path, load_encoder("bert-tiny"), run.training)


def test_mistakes_are_told_in_one_line(tmp_path, capsys):
    assert main(["--data", "data/nowhere", "--model", "bert-tiny", "--out", str(tmp_path)]) == 1
    assert "DataError: data='data/nowhere'" in capsys.readouterr().err
    assert main(["--data", "data/sample", "--model", "bert-tiny", "--out", str(tmp_path), "--prefixes", "one: "]) == 1
    assert "SettingError" in capsys.readouterr().err
    with pytest.raises(SettingError, match="shards=385: use 1 to 384"):
        Encoding("data/sample", "bert-tiny", str(tmp_path), 385).open()
