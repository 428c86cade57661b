"""Which device computes, and whether its memory ran out."""

import os

import torch
from accelerate.utils.memory import should_reduce_batch_size

from helpers.base.errors import SettingError, shorten


def choose_device(device: str = "auto") -> str:
    """Return "cuda" or "cpu": the one asked for, or with "auto" the best one of this machine.

    Raises
    ------
    SettingError : "cuda" was asked for and there is none
    """
    if device not in ("auto", "cpu", "cuda"):
        raise SettingError(f"device={shorten(device)}: use 'auto', 'cpu' or 'cuda'")
    if device == "cuda" and not torch.cuda.is_available():
        raise SettingError(
            f"device='cuda', but torch {torch.__version__} sees no CUDA device; use device='auto' or 'cpu', "
            "or check `nvidia-smi` and that torch is a CUDA build"
        )
    if device == "cpu" or not torch.cuda.is_available():
        return "cpu"
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))  # torchrun starts one process per GPU
    return "cuda"


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error says that memory ran out, on a GPU or on the machine."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or should_reduce_batch_size(error):
        return True
    phrases = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in phrases)
