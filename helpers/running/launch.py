"""Notebook 03's training on several devices at once, each in a process of its own.

    torchrun --nproc-per-node 4 -m helpers.running.launch runs/cuda/hard-negatives.job.json

The notebook writes the job file and starts this when its parameter `processes` is above 1; so can you.
"""

import json
import subprocess
import sys
from pathlib import Path

import torch
from accelerate import PartialState

from helpers.base.checkpoints import read_state
from helpers.base.devices import choose_device
from helpers.base.errors import SettingError, TrainingError
from helpers.base.files import resolve, write_json
from helpers.batches import TrainingRows
from helpers.dataset import PassageIndex, load_data
from helpers.encoder import load_encoder
from helpers.evaluation import dev_scorer
from helpers.importing.sources import find_data
from helpers.negatives import load_pool
from helpers.training import WAIT, TrainingSettings, train


def launch(parameters: dict, name: str, settings: TrainingSettings) -> list[dict]:
    """Train `models/<name>` of the run folder on `parameters["processes"]` devices; return the history.

    Parameters
    ----------
    parameters : those of notebook 03
    name : "in-batch", which takes no hard negatives, or "hard-negatives"

    Raises
    ------
    SettingError : more processes than CUDA devices
    TrainingError : a process failed; its message stands above
    """
    processes, folder = parameters["processes"], resolve(parameters["run_dir"])
    if choose_device(parameters["device"]) == "cuda" and processes > torch.cuda.device_count():
        raise SettingError(f"processes={processes}, but there are {torch.cuda.device_count()} CUDA devices here")
    job = folder / f"{name}.job.json"
    write_json(job, {"parameters": parameters, "name": name, "settings": vars(settings)})
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    done = subprocess.run([*command, "--standalone", "-m", "helpers.running.launch", str(job)], cwd=resolve("."))
    if done.returncode:
        raise TrainingError(f"training on {processes} processes failed (exit {done.returncode}); "
                            "the first error above says why; resume=True goes on from the last checkpoint")  # fmt: skip
    _, state = read_state(folder / "models" / f"{name}.checkpoints")
    return state.history


def run_job(path: str | Path) -> None:
    """Do one process' part of the job in `path`."""
    job = json.loads(Path(path).read_text(encoding="utf-8"))
    parameters, name = job["parameters"], job["name"]
    device = choose_device(parameters["device"])
    state = PartialState(cpu=device == "cpu", timeout=WAIT)  # joins the other processes and picks this one's device
    data, folder = load_data(find_data(parameters["data"])), resolve(parameters["run_dir"])
    passages = PassageIndex(data.training_corpus())
    searched = PassageIndex(data.evaluation_corpus(parameters["eval_corpus"]))
    pool = load_pool(folder / "pool.jsonl", data)
    dev = data.split_queries("dev", parameters["dev_questions"], parameters["seed"])
    alone = name == "in-batch"
    rows = TrainingRows(data, passages, pool.ids(), 0 if alone else parameters["hard_negatives"], not alone,
                        parameters["seed"])  # fmt: skip
    encoder = load_encoder(
        parameters["model_name"], parameters["prefixes"], parameters["max_length"], device,
        parameters["gradient_checkpointing"], parameters["lora_rank"],
    )  # fmt: skip

    train(
        encoder, rows, passages, TrainingSettings(**job["settings"]), dev_scorer(data, searched, dev),
        folder / "models" / name, resume=parameters["resume"], data=data.fingerprint, pool=pool.settings,
        dev_set=[parameters["eval_corpus"], len(dev)],
    )  # fmt: skip
    state.destroy_process_group()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SettingError("usage: torchrun --nproc-per-node N -m helpers.running.launch JOB.json")
    run_job(sys.argv[1])
