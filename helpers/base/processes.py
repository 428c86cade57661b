"""Several processes, one per device: what one does for all, what all share, and what they fail at together."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list, gather_object
from accelerate.utils.memory import clear_device_cache

from helpers.base.devices import is_out_of_memory
from helpers.base.errors import SettingError
from helpers.base.files import told

WAIT = timedelta(hours=12)  # as long as one process may work while the others wait
SLICE = 10_000  # texts whose vectors are exchanged at a time, so that a GPU never holds all of them for that


def from_main(accelerator: Accelerator, work: Callable[[], object]) -> object:
    """Let the main process do `work`, and return its result on every process."""
    return broadcast_object_list([work() if accelerator.is_main_process else None])[0]


def check_shared(folder: Path, state: PartialState) -> None:
    """Raise a SettingError on every process, before anything is computed, if not all of them see the same `folder`."""
    token = broadcast_object_list([uuid4().hex if state.is_main_process else None])[0]
    mark = folder / f".shared-{token}"
    if state.is_main_process:
        with told(folder):
            mark.touch()
    state.wait_for_everyone()
    seen = gather_object([mark.exists()])
    if state.is_main_process:
        mark.unlink()
    if not all(seen):
        raise SettingError(
            f"{folder} is another folder for {seen.count(False)} of {len(seen)} processes; "
            "give one that all machines share, such as a network drive's, under the same path"
        )


def work_together(work: Callable, encoder: torch.nn.Module, accelerator: Accelerator) -> object:
    """Let every process do `work(encoder)`, sharing the encoding, and return the main process's result on all."""
    with shared_encoding(encoder, accelerator):
        found = work(encoder)
    return from_main(accelerator, lambda: found)


@contextmanager
def shared_encoding(encoder: torch.nn.Module, accelerator: Accelerator) -> Iterator[None]:
    """Inside, `encoder.encode` lets every process encode its share of the texts, and gives all vectors to all of them.

    Every process must therefore ask for the same texts, and in the same order; each holds all vectors in the end.
    """
    count, own, alone = accelerator.num_processes, accelerator.process_index, encoder.encode
    if count == 1:
        yield
        return

    def encode(texts: Sequence[str], kind: str, batch_tokens: int = 0, progress: str = "") -> np.ndarray:
        share = torch.from_numpy(alone(texts[own::count], kind, batch_tokens, progress if own == 0 else ""))
        longest = accelerator.gather(torch.tensor([share.shape[1]], device=accelerator.device)).max()
        most = -(-len(texts) // count)  # another process may have one text more, or a longer one
        whole = share.new_zeros(most, int(longest), *share.shape[2:])
        whole[: len(share), : share.shape[1]] = share
        slices = [accelerator.gather(rows.to(accelerator.device)).cpu() for rows in whole.split(SLICE)]
        parts = torch.cat([rows.unflatten(0, (count, -1)) for rows in slices], dim=1)
        return parts.transpose(0, 1).flatten(0, 1)[: len(texts)].numpy()  # text i was number i // count of i % count

    encoder.encode = encode
    try:
        yield
    finally:
        del encoder.encode


@contextmanager
def together(accelerator: Accelerator) -> Iterator[None]:
    """Raise MemoryError on every process if one of them runs out of memory inside, or the others would wait forever.

    Nothing inside may therefore wait for another process.
    """
    failed, message = False, ""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        message = str(error).strip().splitlines()[0]  # the error itself would keep the tensors of its frames alive
        failed = True
    if accelerator.num_processes > 1:
        anywhere = torch.tensor(float(failed), device=accelerator.device)
        torch.distributed.all_reduce(anywhere)
        failed = anywhere.item() > 0
    if failed:
        clear_device_cache(garbage_collection=True)
        raise MemoryError(message or "another process ran out of memory")
