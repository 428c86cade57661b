"""Which device computes, in which precision, and whether its memory ran out."""

import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from functools import cache

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor

from helpers.base.errors import SettingError, shorten

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
WORTHWHILE = 1.3  # the gain over fp32 from which on bf16 is chosen on a CPU, since it takes time to round the inputs


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


def choose_precision(precision: str, device: str) -> str:
    """Return "fp32", "bf16" or "fp16": the one asked for, or with "auto" the fastest that has the range of fp32.

    That is bf16 on GPUs of the Ampere generation or newer, and on CPUs that multiply faster in it, which is measured:
    some have instructions for bf16 that take twice as long as those for fp32.

    Raises
    ------
    SettingError : no name of a precision, or `device`, "cuda" or "cpu", cannot compute in it
    """
    on_gpu, may_be_bf16 = device == "cuda", precision in ("auto", "bf16")
    native = on_gpu and may_be_bf16 and torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "auto":
        return "bf16" if native or (not on_gpu and bf16_gain() >= WORTHWHILE) else "fp32"
    if precision not in PRECISIONS:
        raise SettingError(f"precision={shorten(precision)}: use 'auto', 'fp32', 'bf16' or 'fp16'")
    if precision == "fp16" and device == "cpu":
        raise SettingError("precision='fp16' needs device='cuda'; use 'bf16' or 'fp32' on a CPU")
    if precision == "bf16" and on_gpu and not native:
        raise SettingError("precision='bf16' needs a GPU of the Ampere generation or newer; use 'fp16' or 'fp32'")
    return precision


def has_bf16() -> bool:
    """Return whether this CPU has instructions for bf16."""
    return any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


@cache
def bf16_gain() -> float:
    """Return how many times as fast as in fp32 this CPU multiplies matrices in bf16; 0 if it has no instructions.

    Of several processes, the first one's measurement counts.
    """
    if not has_bf16():
        return 0.0
    best = dict.fromkeys((torch.float32, torch.bfloat16), float("inf"))
    for _ in range(10):  # in turn, a few milliseconds each; the shortest time is the least disturbed
        for dtype in best:
            left, right = torch.ones(1024, 512, dtype=dtype), torch.ones(512, 1024, dtype=dtype)
            begin = time.perf_counter()
            left @ right
            best[dtype] = min(best[dtype], time.perf_counter() - begin)
    gain = [best[torch.float32] / best[torch.bfloat16]]
    if torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(gain)
    return gain[0]


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return a context in which matrices are multiplied in `precision`, and the rest is computed in fp32."""
    return torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "fp32")


def send(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Return the tensors on `device`; a GPU fetches them from page-locked memory while it computes something else."""
    if device.type == "cpu":
        return dict(tensors)
    ready = {name: tensor if tensor.is_pinned() else tensor.pin_memory() for name, tensor in tensors.items()}
    return {name: tensor.to(device, non_blocking=True) for name, tensor in ready.items()}


def one_behind(batches: Iterable) -> Iterator:
    """Yield the same, each after the next one was asked for: a GPU computes that one while we use this one."""
    waiting = deque()
    for batch in batches:
        waiting.append(batch)
        if len(waiting) > 1:
            yield waiting.popleft()
    yield from waiting


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error says that memory ran out, on a GPU or on the machine."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or should_reduce_batch_size(error):
        return True
    phrases = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in phrases)
