"""Checkpoints of a training run: safetensors and JSON, written elsewhere and then renamed, so that a process killed at
any moment leaves only whole ones.

Random states need no saving: order and dropout follow from the seed and the step (see `helpers.training`).
"""

import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file

from helpers.base.errors import CourseError, DataError, SettingError, shorten
from helpers.base.files import atomic_path, display_path, remove, write_json


@dataclass
class State:
    """Where a training run stands, besides its tensors.

    Attributes
    ----------
    identity : what decides the result: settings, data, first weights, rows. Only an equal run may resume from here
    history : one dict per step, as `helpers.training.train` returns it
    micro_batch : the one asked for; that of the history is smaller where memory ran out
    pool : question id -> ids of its negatives, if they are mined anew during training
    finished : the run has reached its end
    schedule, scaler : state of the learning-rate schedule, and of the loss scaling of fp16
    """

    identity: dict
    history: list[dict]
    micro_batch: int
    pool: dict[str, list[str]] | None = None
    finished: bool = False
    schedule: dict = field(default_factory=dict)
    scaler: dict = field(default_factory=dict)


def save_checkpoint(folder: Path, state: State, engine, schedule, keep: int) -> None:
    """Write the checkpoint of the last step in `state.history`, then delete all but the last `keep`.

    `engine` is a `helpers.gradients.Engine`. If the disk is full, the earlier checkpoints are still there.
    """
    weights = {name: p.detach() for name, p in engine.encoder.named_parameters() if p.requires_grad}
    moments = {
        f"{number}.{name}": value
        for number, entry in engine.optimizer.state_dict()["state"].items()
        for name, value in entry.items()
    }
    scaler = engine.accelerator.scaler.state_dict() if engine.accelerator.scaler else {}
    state = replace(state, schedule=schedule.state_dict(), scaler=scaler)
    with atomic_path(folder / f"step-{state.history[-1]['step']:08d}") as temporary:
        temporary.mkdir(parents=True)
        for name, tensors in (("model", weights), ("optimizer", moments)):
            pattern = f"{name}{{suffix}}.safetensors"  # in several files, since each is copied from a GPU as a whole
            save_torch_state_dict(tensors, temporary, filename_pattern=pattern, max_shard_size="256MB")
        write_json(temporary / "state.json", vars(state))
    for old in _checkpoints(folder)[:-keep]:
        remove(old)


def read_state(folder: Path) -> tuple[Path, State] | None:
    """Return the last checkpoint in `folder` and its state, or None; delete what a killed process left half-written.

    Raises
    ------
    DataError : the checkpoint is damaged
    """
    for rest in folder.glob(".step-*"):
        shutil.rmtree(rest, ignore_errors=True)
    if not (found := _checkpoints(folder)):
        return None
    with _whole(found[-1]):
        return found[-1], State(**json.loads((found[-1] / "state.json").read_text(encoding="utf-8")))


def restore(folder: Path, identity: dict, engine, schedule) -> State | None:
    """Set everything to the last checkpoint in `folder` and return its state; None if there is none.

    Raises
    ------
    SettingError : it belongs to other data, another model or other settings; names every field that differs
    DataError : the checkpoint is damaged
    """
    if not (found := read_state(folder)):
        return None
    (path, state), optimizer = found, engine.optimizer
    with _whole(path):
        _check_identity(path, state.identity, identity)
        weights, moments = _load(path.glob("model*.safetensors")), {}
        for key, value in _load(path.glob("optimizer*.safetensors")).items():
            number, name = key.split(".")
            moments.setdefault(int(number), {})[name] = value
        with torch.no_grad():
            for name, parameter in engine.encoder.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(weights[name])
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
        schedule.load_state_dict(state.schedule)
        for group, rate in zip(optimizer.param_groups, schedule.get_last_lr(), strict=True):
            group["lr"] = rate
        if engine.accelerator.scaler:
            engine.accelerator.scaler.load_state_dict(state.scaler)
        step = state.history[-1]["step"]
    where = "has ended already" if state.finished else f"resumes after step {step}"
    print(f"{display_path(folder)}: this training {where}; resume=False starts over")
    return state


def _check_identity(path: Path, saved: dict, asked: dict) -> None:
    asked = json.loads(json.dumps(asked))  # as it would be after being saved: tuples are lists
    different = sorted(key for key in {**saved, **asked} if saved.get(key) != asked.get(key))
    if different:
        changes = "; ".join(f"{key} was {shorten(saved.get(key))}, is {shorten(asked.get(key))}" for key in different)
        raise SettingError(
            f"{display_path(path)} is of a run with other settings: {changes}. Set them back to resume it, delete "
            f"{display_path(path.parent)} or set resume=False to start over, or use another run_dir"
        )


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Turn whatever a damaged checkpoint causes into a DataError."""
    try:
        yield
    except CourseError:
        raise
    except (OSError, SafetensorError, LookupError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{display_path(path)}: not a whole checkpoint ({error}); delete this folder") from error


def _load(files: Iterable[Path]) -> dict[str, torch.Tensor]:
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if path.is_dir())
