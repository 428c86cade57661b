"""Which device computes, in which precision, and whether its memory ran out."""

import os
from collections.abc import Mapping

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor

from helpers.base.errors import SettingError, shorten

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(device: str = "auto") -> str:
    """Return "cuda" or "cpu": the one asked for, or with "auto" the best one of this machine.

    On CUDA, products of fp32 matrices are computed in TF32 from then on: 10 bits of mantissa, several times as fast.

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
    torch.set_float32_matmul_precision("high")
    return "cuda"


def check_precision(precision: str, device: str) -> None:
    """Raise a SettingError if `precision` is no name of one, or if `device`, "cuda" or "cpu", cannot compute in it."""
    if precision not in PRECISIONS:
        raise SettingError(f"precision={shorten(precision)}: use 'fp32', 'bf16' or 'fp16'")
    if precision == "fp16" and device == "cpu":
        raise SettingError("precision='fp16' needs device='cuda'; use 'bf16' or 'fp32' on a CPU")
    if precision == "bf16" and device == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise SettingError("precision='bf16' needs a GPU of the Ampere generation or newer; use 'fp16' or 'fp32'")


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return a context in which matrices are multiplied in `precision`, and the rest is computed in fp32."""
    return torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "fp32")


def send(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Return the tensors on `device`; a GPU fetches them from page-locked memory while it computes something else."""
    if device.type == "cpu":
        return dict(tensors)
    ready = {name: tensor if tensor.is_pinned() else tensor.pin_memory() for name, tensor in tensors.items()}
    return {name: tensor.to(device, non_blocking=True) for name, tensor in ready.items()}


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error says that memory ran out, on a GPU or on the machine."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or should_reduce_batch_size(error):
        return True
    phrases = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in phrases)
