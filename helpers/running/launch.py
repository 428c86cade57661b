"""Notebook 03's trainings, in this process, on several devices at once, or on several machines.

    torchrun --nproc-per-node 4 -m helpers.running.launch runs/cuda/hard-negatives.job.json

With `processes` above 1, `train_model` writes the job file and starts this command; so can you, after `write_job`. On
two machines that share the run folder, start this on both, with `--machine_rank 1` on the second:

    accelerate launch --config_file helpers/running/two_nodes.yaml --machine_rank 0 -m helpers.running.launch JOB.json
"""

import subprocess
import sys
from pathlib import Path

import torch
from accelerate import PartialState

from helpers.base.checkpoints import read_state
from helpers.base.devices import choose_device
from helpers.base.errors import SettingError, TrainingError, shorten
from helpers.base.files import read_json, resolve, write_json
from helpers.base.processes import WAIT, check_shared
from helpers.batches import TrainingRows
from helpers.evaluation import dev_scorer
from helpers.loss import infonce
from helpers.running.start import CourseRun, course_run, training_settings
from helpers.topics.small_vectors import matryoshka_loss
from helpers.training import Task, train


def training_task(run: CourseRun, name: str) -> Task:
    """Return what `models/<name>` is trained on, how dev scores it, and what it is made from.

    Parameters
    ----------
    name : "hard-negatives", or "in-batch" for the control that sees no hard negative and no given one
    """
    if name not in ("in-batch", "hard-negatives"):
        raise SettingError(f"name={shorten(name)}: use 'in-batch' or 'hard-negatives'")
    control, asked, pool = name == "in-batch", run.parameters, run.pool()
    hard_negatives = 0 if control else asked["hard_negatives"]
    rows = TrainingRows(run.data, run.training, pool.ids(), hard_negatives, not control, asked["seed"])
    dev = list(run.questions("dev"))
    about = {
        "data": run.data.fingerprint,
        "pool": pool.settings,
        "dev_set": [asked["eval_corpus"], len(dev), len(run.dev_passages), len(run.passages)],
        "answer_match": {name: asked.get(name, False) for name in ("match_title", "strict_dpr")},
    }
    loss, cuts = None, asked.get("matryoshka", [])
    if cuts:
        about["matryoshka"], loss = cuts, matryoshka_loss(infonce(asked["temperature"]))
    return Task(rows, dev_scorer(run.data, run.dev_passages, dev), loss, about=about)


def train_model(run: CourseRun, name: str) -> list[dict]:
    """Train a fresh encoder into `models/<name>`; return the history. See `training_task`.

    Raises
    ------
    SettingError : more processes than CUDA devices
    TrainingError : a process failed; its message stands above
    """
    if run.parameters["processes"] > 1:
        return _launch(run, name)
    return train(run.encoder(), training_task(run, name), training_settings(run.parameters), run.models / name)


def write_job(run: CourseRun, name: str) -> Path:
    """Write what several processes need to train `models/<name>`: a job file, and the pool if it is missing."""
    run.pool()
    job = run.folder / f"{name}.job.json"
    write_json(job, {"parameters": run.parameters, "name": name})
    return job


def _launch(run: CourseRun, name: str) -> list[dict]:
    processes = run.parameters["processes"]
    if run.device == "cuda" and processes > torch.cuda.device_count():
        raise SettingError(f"processes={processes}, but there are {torch.cuda.device_count()} CUDA devices here")
    job = write_job(run, name)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    done = subprocess.run([*command, "--standalone", "-m", "helpers.running.launch", str(job)], cwd=resolve("."))
    if done.returncode:
        raise TrainingError(
            f"training on {processes} processes failed (exit {done.returncode}); the first error above says why; "
            "resume=True continues from the last checkpoint"
        )
    _, state = read_state(run.models / f"{name}.checkpoints")
    return state.history


def run_job(path: str | Path) -> None:
    """Do the part of one process in the job that `path` describes.

    Raises
    ------
    SettingError : the file does not describe a job, or the run folder is not one that all machines share
    """
    job = read_json(path)
    if not (isinstance(job, dict) and isinstance(job.get("parameters"), dict) and isinstance(job.get("name"), str)):
        raise SettingError(f"{path}: a job is {{'parameters': …, 'name': …}}; notebook 03 writes it")
    cpu = choose_device(job["parameters"]["device"]) == "cpu"
    state = PartialState(cpu=cpu, timeout=WAIT)  # joins the other processes and picks this one's device
    run = course_run(job["parameters"])
    check_shared(run.folder, state)
    settings = training_settings(run.parameters)
    train(run.encoder(), training_task(run, job["name"]), settings, run.models / job["name"])
    state.destroy_process_group()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SettingError("usage: torchrun --nproc-per-node N -m helpers.running.launch JOB.json")
    run_job(sys.argv[1])
