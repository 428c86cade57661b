"""Pack what `make gpu` needs on a GPU box without a network into runs/gpu-kit, about 55 MB.

    make gpu-kit                                   # here, with a network
    sh runs/gpu-kit/run.sh                         # there, in a copy of the course; stages may follow

The box must have Python 3.12 on x86-64 Linux with torch, transformers, sentence-transformers, accelerate, peft,
pyarrow, regex, matplotlib, pandas, scipy and tensorboard. The rest comes along: wheels of the versions installed here,
the small model's weights as fp16, and SQuAD.
"""

import io
import subprocess
import sys
import tarfile
from importlib.metadata import version

from safetensors.torch import load_file, save

from helpers.base.assets import fetch
from helpers.base.files import atomic_path, resolve, write_text

MODEL = "all-MiniLM-L6-v2"
WHEELS = """
    bm25s datasets dill gguf ijson ir-measures multiprocess pytrec-eval-terrier xxhash
    papermill nbclient nbformat entrypoints fastjsonschema jsonschema jsonschema-specifications referencing rpds-py
    tenacity ipykernel ipython ipython-pygments-lexers jupyter-client jupyter-core platformdirs pyzmq tornado traitlets
    comm matplotlib-inline nest-asyncio2 prompt-toolkit wcwidth pexpect ptyprocess stack-data executing asttokens
    pure-eval
""".split()
GLIBC = ("2_17", "2_24", "2_26", "2_27", "2_28", "2_34", "2_35")  # pip matches each of them exactly
RUN = """#!/bin/sh
# Install the wheels beside what the box has, unpack model and data, and measure: sh run.sh [options of measure_gpu]
set -e
kit=$(cd "$(dirname "$0")" && pwd)
place=$(mktemp -d)
python3 -m pip install --quiet --no-index --no-deps --no-compile --target "$place/packages" "$kit"/wheels/*.whl
python3 -m tarfile -e "$kit/assets.tar.xz" "$place"
export PYTHONPATH="$place/packages" RETRIEVER_COURSE_CACHE="$place" HF_HUB_OFFLINE=1
cd "$kit/../.."
exec python3 -m tests.benchmarks.measure_gpu --model "$place/fp16/%s" "$@"
"""


def main() -> int:
    """Fill runs/gpu-kit anew."""
    with atomic_path(resolve("runs/gpu-kit")) as kit:
        kit.mkdir()
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--python-version", "3.12", "--implementation", "cp", "--dest", str(kit / "wheels")]
        command += [f"--platform=manylinux_{glibc}_x86_64" for glibc in GLIBC]
        subprocess.run([*command, *(f"{name}=={version(name)}" for name in WHEELS)], check=True)
        with tarfile.open(kit / "assets.tar.xz", "w:xz", preset=6) as archive:
            archive.add(fetch("squad-v1.1"), "squad-v1.1")
            for path in sorted(fetch(MODEL).iterdir()):
                data = path.read_bytes()
                if path.suffix == ".safetensors":
                    half = {name: tensor.half().contiguous() for name, tensor in load_file(path).items()}
                    data = save(half, {"format": "pt"})
                entry = tarfile.TarInfo(f"fp16/{MODEL}/{path.name}")
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
        write_text(kit / "run.sh", RUN % MODEL)
        size = sum(path.stat().st_size for path in kit.rglob("*") if path.is_file())
    print(f"runs/gpu-kit: {size / 1e6:.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
