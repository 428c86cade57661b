"""Encodes a corpus into shards: in this process, in several of one or more machines, or by Ray's actors.

    python -m helpers.running.encode --data squad --model all-MiniLM-L6-v2 --out runs/vectors --shards 16
    accelerate launch --num_processes 8 -m helpers.running.encode …      # the same shards
    python -m helpers.running.encode … --ray 8                           # and again, on a cluster of Ray

Killed at any time, the same command makes what is missing.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import gather_object

from helpers.base.devices import choose_device, choose_precision
from helpers.base.errors import CourseError, SettingError
from helpers.base.files import display_path, resolve, told
from helpers.base.processes import WAIT, check_shared
from helpers.dataset import PassageIndex, load_data
from helpers.encoder import Encoder, load_encoder
from helpers.importing.sources import find_data
from helpers.topics.shards import Shards, encode_shard, finish_shards, shard_path


@dataclass(frozen=True)
class Encoding:
    """Which corpus is encoded by which model into how many shards of which folder.

    Attributes
    ----------
    data, model : as the notebooks' `data` and `model_name`
    folder : of the shards
    shards : how many; of about 100,000 passages each, a restart repeats little and files stay handy
    scope : the passages: "all" or "held-out", as the notebooks' `eval_corpus`; "train": those that are mined
    precision : "fp32", "bf16", "fp16" or "auto"
    prefixes, max_length : as the notebooks' parameters; a model that was trained here keeps its own
    """

    data: str
    model: str
    folder: str
    shards: int = 1
    scope: str = "all"
    precision: str = "fp32"
    prefixes: str | Sequence[str] = "auto"
    max_length: int = 0

    def open(self) -> tuple[Encoder, PassageIndex]:
        """Load what a worker needs, on its device, and make the folder."""
        device = choose_device()
        data = load_data(find_data(self.data))
        mined = self.scope == "train"
        passages = PassageIndex(data.training_corpus() if mined else data.evaluation_corpus(self.scope))
        if not 1 <= self.shards <= len(passages):
            raise SettingError(f"shards={self.shards}: use 1 to {len(passages)}, the number of passages")
        encoder = load_encoder(self.model, self.prefixes, self.max_length, device)
        encoder.precision = choose_precision(self.precision, device)
        with told(resolve(self.folder)):
            resolve(self.folder).mkdir(parents=True, exist_ok=True)
        return encoder, passages


def encode_here(encoding: Encoding) -> int:
    """Make every missing shard; of several processes, each makes its share. Return how many they have made together."""
    state = PartialState(cpu=choose_device() == "cpu", timeout=WAIT)
    encoder, passages = encoding.open()
    check_shared(resolve(encoding.folder), state)
    own = range(state.process_index, encoding.shards, state.num_processes)
    job = encoder, passages, resolve(encoding.folder)
    made_by = encoder.fingerprint()
    made = sum(encode_shard(*job, number, encoding.shards, made_by) for number in own)
    return sum(gather_object([made]))


class ShardWorker:
    """An actor of Ray: it loads the model once, and makes one shard for each number that it is given."""

    def __init__(self, encoding: Encoding):
        self.encoding, (self.encoder, self.passages) = encoding, encoding.open()
        self.made_by = self.encoder.fingerprint()

    def __call__(self, row: dict) -> dict:
        """Make shard `row["id"]`, and say whether it was missing."""
        folder, count = resolve(self.encoding.folder), self.encoding.shards
        return {"made": encode_shard(self.encoder, self.passages, folder, row["id"], count, self.made_by)}


def encode_with_ray(encoding: Encoding, actors: int) -> int:
    """Make every missing shard with Ray Data; return how many were made.

    Every actor takes a GPU if the cluster has as many, else a CPU. The folder must be one that all machines share.
    """
    try:
        import ray.data  # for this function alone; see the extra `scale`
    except ImportError as error:
        raise SettingError("--ray needs Ray: pip install -e '.[scale]'") from error
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    have = ray.cluster_resources()
    gpus = float(have.get("GPU", 0) >= actors)
    cpus = min(1.0, 0.8 * have["CPU"] / actors)  # something must be left to hand out the numbers, or all would wait
    missing = [
        {"id": number}
        for number in range(encoding.shards)
        if not shard_path(resolve(encoding.folder), number, encoding.shards).exists()
    ]
    if not missing:
        return 0
    pool = ray.data.ActorPoolStrategy(size=actors)
    rows = ray.data.from_items(missing, override_num_blocks=len(missing))
    done = rows.map(ShardWorker, fn_constructor_args=(encoding,), compute=pool, num_cpus=cpus, num_gpus=gpus)
    return sum(row["made"] for row in done.take_all())


def encode_corpus(encoding: Encoding, actors: int = 0) -> Shards | None:
    """Make all shards, check them, and return them; of several processes only the first one checks and returns.

    Raises
    ------
    CourseError : what `encode_shard` and `finish_shards` raise
    """
    made = encode_with_ray(encoding, actors) if actors else encode_here(encoding)
    first = PartialState().is_main_process
    if first:
        shards = finish_shards(resolve(encoding.folder), encoding.shards)
        print(f"{display_path(shards.folder)}: {len(shards):,} passages in {encoding.shards} shards, {made} made now")
    return shards if first else None


def main(arguments: list[str] | None = None) -> int:
    """Encode a corpus into shards."""
    parser = argparse.ArgumentParser(prog="python -m helpers.running.encode", description=main.__doc__)
    parser.add_argument("--data", required=True, help="a BEIR-layout folder, squad or hub:squad")
    parser.add_argument("--model", required=True, help="a folder, or any encoder by name")
    parser.add_argument("--out", required=True, dest="folder", metavar="FOLDER", help="folder of the shards")
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--scope", default="all", help="all; held-out: none of train's articles; train: those alone")
    parser.add_argument("--precision", default="fp32", help="fp32, bf16, fp16 or auto")
    parser.add_argument(
        "--prefixes",
        default=["auto"],
        nargs="+",
        help="auto, model-card, none, or one for queries and one for passages",
    )
    parser.add_argument(
        "--max-length", type=int, default=0, help="tokens of a text that are read; 0: the model's usual"
    )
    parser.add_argument("--ray", type=int, default=0, metavar="ACTORS", help="let that many actors of Ray do it")
    options = parser.parse_args(arguments)
    options.folder = str(Path(options.folder).absolute())
    options.prefixes = options.prefixes[0] if len(options.prefixes) == 1 else options.prefixes
    encoding = Encoding(**{field.name: getattr(options, field.name) for field in fields(Encoding)})
    try:
        encode_corpus(encoding, options.ray)
    except CourseError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
