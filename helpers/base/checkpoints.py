"""Checkpoints of a training run: safetensors and JSON, written beside and renamed, so that a kill at any moment leaves
whole ones only.

Random states need no saving: order and dropout follow from the seed and the step (see `helpers.training`).
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from helpers.base.errors import DataError, SettingError, shorten
from helpers.base.files import atomic_path, display_path, remove, write_json


@dataclass
class State:
    """Where a training run stands, besides its tensors.

    Attributes
    ----------
    identity : what decides the run's result: settings, data, first weights, rows. Another run cannot go on from here
    history : one dict a step, as `helpers.training.train` returns it
    micro_batch : the one asked for; the history's is smaller where memory ran out
    schedule, scaler : state of the learning-rate schedule, and of the loss scaling of fp16
    pool : question id -> ids of negatives, if it is mined anew during training
    finished : the run has reached its end
    """

    identity: dict
    history: list[dict]
    micro_batch: int
    schedule: dict
    scaler: dict
    pool: dict[str, list[str]] | None = None
    finished: bool = False


def save_checkpoint(folder: Path, state: State, model: torch.nn.Module, optimizer, keep: int) -> None:
    """Write the checkpoint of the last step in `state.history`, then delete all but the last `keep`."""
    moments = {
        f"{number}.{name}": value
        for number, entry in optimizer.state_dict()["state"].items()
        for name, value in entry.items()
    }
    with atomic_path(folder / f"step-{state.history[-1]['step']:08d}") as temporary:
        temporary.mkdir(parents=True)
        weights = {name: p.detach().contiguous() for name, p in model.named_parameters() if p.requires_grad}
        _save(weights, temporary / "model.safetensors")
        _save(moments, temporary / "optimizer.safetensors")
        write_json(temporary / "state.json", vars(state))
    for old in _checkpoints(folder)[:-keep]:
        remove(old)


def read_state(folder: Path) -> tuple[Path, State] | None:
    """Return the last checkpoint in `folder` and its state, or None; what a kill left half-written is deleted."""
    for rest in folder.glob(".step-*"):
        shutil.rmtree(rest, ignore_errors=True)
    if not (found := _checkpoints(folder)):
        return None
    path = found[-1] / "state.json"
    try:
        return found[-1], State(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{display_path(path)}: not a checkpoint ({error}); delete its folder") from error


def load_checkpoint(path: Path, model: torch.nn.Module, optimizer) -> None:
    """Read weights and optimizer back, into those that were made as they were for the interrupted run."""
    weights = _load(path / "model.safetensors")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(weights[name])
    moments: dict[int, dict] = {}
    for key, value in _load(path / "optimizer.safetensors").items():
        number, name = key.split(".")
        moments.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})


def restore(folder: Path, identity: dict, encoder: torch.nn.Module, optimizer, schedule, accelerator) -> State | None:
    """Set everything to the last checkpoint in `folder` and return its state; None if there is none."""
    if not (found := read_state(folder)):
        return None
    path, state = found
    check_identity(path, state.identity, identity)
    load_checkpoint(path, encoder, optimizer)
    schedule.load_state_dict(state.schedule)
    for group, rate in zip(optimizer.param_groups, schedule.get_last_lr(), strict=True):
        group["lr"] = rate
    if accelerator.scaler:
        accelerator.scaler.load_state_dict(state.scaler)
    where = "has ended already" if state.finished else f"goes on after step {state.history[-1]['step']}"
    print(f"{display_path(folder)}: this training {where}; resume=False starts over")
    return state


def differences(saved: dict, asked: dict) -> list[str]:
    """Return what differs between the identities of two runs, a phrase each."""
    asked = json.loads(json.dumps(asked))  # as it would be after being saved: tuples are lists
    keys = sorted(key for key in {**saved, **asked} if saved.get(key) != asked.get(key))
    return [f"{key} was {shorten(saved.get(key))}, is {shorten(asked.get(key))}" for key in keys]


def check_identity(path: Path, saved: dict, asked: dict) -> None:
    """Check that a run may go on from a checkpoint.

    Raises
    ------
    SettingError : it belongs to other data, another model or other settings; names every field that differs
    """
    if found := differences(saved, asked):
        raise SettingError(f"{display_path(path)} is of a run with other settings: {'; '.join(found)}. "
                           f"Set them back to go on, delete {display_path(path.parent)} or set resume=False to start "
                           "over, or use another run_dir")  # fmt: skip


def _save(tensors: dict[str, torch.Tensor], path: Path, limit: int = 2**28) -> None:
    """Write `tensors` to `path` and, beyond `limit` bytes, to files beside it: saving a file copies its tensors."""
    parts: list[dict] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if size and size + tensor.nbytes > limit:
            parts.append({})
            size = 0
        parts[-1][name] = tensor
        size += tensor.nbytes
    for number, part in enumerate(parts):
        save_file(part, path.with_stem(f"{path.stem}-{number}") if number else path)


def _load(path: Path) -> dict[str, torch.Tensor]:
    """Read what `_save` wrote."""
    files = [path, *path.parent.glob(f"{path.stem}-*{path.suffix}")]
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if path.is_dir())
