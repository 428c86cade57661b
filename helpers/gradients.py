"""The gradient of one batch: in pieces that fit into memory (GradCache), on one device or several, and once more with
smaller pieces when memory runs out.

Every process holds the whole batch and computes the whole loss, which is cheap; encoding, which is not, is divided.
So several processes give the gradient of one process with the same batch, false-negative masks and all.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from accelerate import Accelerator
from accelerate.utils.memory import clear_device_cache
from torch import Tensor

from helpers.base.devices import is_out_of_memory
from helpers.base.errors import TrainingError
from helpers.batches import Batch
from helpers.encoder import Encoder

Inputs = dict[str, Tensor]  # input_ids and attention_mask, [N, L]
Loss = Callable[[Tensor, Batch], Tensor]  # (similarities [B, P], the batch on their device) -> scalar


def derive_seed(*numbers: int) -> int:
    """Return a seed that follows from `numbers` and looks unlike that of any others."""
    return random.Random(repr(numbers)).getrandbits(63)


def split(batch: Batch, micro_batch: int) -> list[Inputs]:
    """Return the batch's questions, then its passages, in pieces of at most `micro_batch` texts; 0: as they are."""
    pieces = []
    for inputs in (batch.queries, *batch.passages):
        count = len(inputs["input_ids"])
        for start in range(0, count, micro_batch or count):
            mask = inputs["attention_mask"][start : start + (micro_batch or count)]
            length = int(mask.sum(1).max())  # what is padding in this piece was text in another
            ids = inputs["input_ids"][start : start + len(mask), :length]
            pieces.append({"input_ids": ids, "attention_mask": mask[:, :length]})
    return pieces


def add_gradient(
    encoder: Encoder,
    batch: Batch,
    accelerator: Accelerator,
    loss: Loss,
    micro_batch: int = 0,
    seed: Sequence[int] = (0,),
    share: float = 1.0,
) -> dict[str, float]:
    """Add the gradient of `share` × the batch's `loss` to the encoder's parameters; return the batch's measures.

    With `micro_batch` this is GradCache (Gao et al. 2021, https://arxiv.org/abs/2101.06983): encode everything without
    a graph, take the loss and its gradient for every vector, then encode piece by piece again, now with a graph, and
    send each vector's gradient back through it. Memory is that of one piece, the gradient that of the whole batch.
    On several processes each adds the gradient of the texts that it encoded; see `sum_gradients`.

    Parameters
    ----------
    micro_batch : texts encoded at a time; 0: all, and no second encoding
    seed : numbers that decide dropout. Each piece draws from (*seed, its place), so its second encoding drops what the
        first one dropped, on whatever process

    Returns
    -------
    loss; chance: the loss of guessing, the mean of ln(candidates); accuracy: share of questions whose positive scores
    best; positive, hardest: mean similarity of the positive, and of the best-scoring negative where there is one

    Raises
    ------
    MemoryError : on every process, if memory ran out on one; parameters may hold a part of the gradient
    """
    pieces = split(batch, micro_batch)
    own = range(accelerator.process_index, len(pieces), accelerator.num_processes)

    def encode(number: int) -> Tensor:
        torch.manual_seed(derive_seed(*seed, number))
        inputs = {name: tensor.to(accelerator.device, non_blocking=True) for name, tensor in pieces[number].items()}
        with accelerator.autocast():
            return encoder(**inputs).float()

    with _together(accelerator):
        with torch.set_grad_enabled(not micro_batch):
            encoded = {number: encode(number) for number in own}
        if micro_batch:
            encoded = {number: vectors.requires_grad_() for number, vectors in encoded.items()}
        everywhere = torch.zeros(sum(len(piece["input_ids"]) for piece in pieces), *encoder.shape)
        everywhere = everywhere.to(accelerator.device)
    vectors = _gather(encoded, pieces, everywhere, accelerator)

    with _together(accelerator):
        q_vec, passage_vecs = vectors.split([len(batch.qids), len(vectors) - len(batch.qids)])
        batch = replace(batch, positive=batch.positive.to(vectors.device), allowed=batch.allowed.to(vectors.device))
        scores = encoder.similarity(q_vec, passage_vecs)
        value = loss(scores, batch)
        if encoded:
            accelerator.backward(share * value)
        elif accelerator.scaler:
            accelerator.scaler.scale(value)  # this process encoded nothing, but must count its steps like the others
        for number in own if micro_batch else ():
            encode(number).backward(encoded[number].grad)
    scores = scores.detach() if scores.ndim == 2 else scores.detach().mean(0)  # of an encoder with several scores
    return {"loss": value.item(), **_measures(scores, batch.positive, batch.allowed)}


def sum_gradients(encoder: Encoder, accelerator: Accelerator) -> None:
    """Add up the parameters' gradients over all processes, in place."""
    if accelerator.num_processes > 1:
        trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
        with _together(accelerator):
            for parameter in trained:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for parameter in trained:
            torch.distributed.all_reduce(parameter.grad)


def training_step(
    encoder: Encoder,
    batches: Sequence[Batch],
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    settings,
    accelerator: Accelerator,
    step: int = 1,
    micro_batch: int = 0,
) -> dict[str, float]:
    """Take one optimizer step on the mean `loss` of `batches`; return their measures, gradient_norm and micro_batch.

    `settings` are `helpers.training.TrainingSettings`.

    When memory runs out, the step is tried again with half the micro-batch: the same negatives and the same gradient,
    up to another draw of dropout. Nothing is left of the first try.

    Raises
    ------
    TrainingError : loss or gradient are not finite, or one text alone or AdamW's averages do not fit into memory
    """
    encoder.train()
    while True:
        try:
            parts = [
                add_gradient(encoder, batch, accelerator, loss, micro_batch,
                             (settings.seed, step, number), 1 / len(batches))
                for number, batch in enumerate(batches)
            ]  # fmt: skip
            sum_gradients(encoder, accelerator)
            break
        except MemoryError as error:
            optimizer.zero_grad()
            pieces = [piece["input_ids"].shape for batch in batches for piece in split(batch, micro_batch)]
            if max(count for count, _ in pieces) == 1:
                raise TrainingError(
                    f"out of memory with one text of {max(length for _, length in pieces)} tokens at a time ({error}): "
                    "lower max_length, set gradient_checkpointing, use bf16, LoRA (lora_rank) or a smaller model"
                ) from None
            micro_batch = max(count for count, _ in pieces) // 2
            print(f"step {step}: out of memory; the step is repeated with micro_batch={micro_batch}, "
                  "same negatives, another draw of dropout")  # fmt: skip
    norm = float(accelerator.clip_grad_norm_(encoder.parameters(), settings.clip_norm))
    measures = {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}
    scaling = accelerator.scaler and accelerator.scaler.get_scale() >= 1  # fp16: an overflow skips a step, no more
    if not (math.isfinite(measures["loss"]) and (math.isfinite(norm) or scaling)):
        qids = [qid for batch in batches for qid in batch.qids]
        raise TrainingError(
            f"loss {measures['loss']}, gradient norm {norm} on questions {qids[:8]}…: lower learning_rate, "
            "or use precision 'fp32' or 'bf16'; the best model so far is kept"
        )
    try:
        optimizer.step()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError("out of memory for AdamW's two averages, 8 bytes a trained parameter: use LoRA (lora_rank) "
                            "or a smaller model") from None  # fmt: skip
    optimizer.zero_grad()
    return {**measures, "gradient_norm": norm, "micro_batch": micro_batch}


def _gather(encoded: dict[int, Tensor], pieces: list[Inputs], known: Tensor, accelerator: Accelerator) -> Tensor:
    """Return the vectors of all pieces, [N, *shape]; those of other processes are constants, written into `known`."""
    places = known.split([len(piece["input_ids"]) for piece in pieces])
    if accelerator.num_processes > 1:
        for number, vectors in encoded.items():
            places[number].copy_(vectors.detach())
        torch.distributed.all_reduce(known)
    return torch.cat([encoded.get(number, rows) for number, rows in enumerate(places)])


def _measures(scores: Tensor, positive: Tensor, allowed: Tensor) -> dict[str, float]:
    right = scores.gather(1, positive[:, None])
    negatives = scores.masked_fill(~allowed, float("-inf")).scatter(1, positive[:, None], float("-inf")).amax(1)
    seen = negatives.isfinite()  # a question alone with its positive has no negative
    return {
        "chance": allowed.sum(1).float().log().mean().item(),
        "accuracy": (negatives < right[:, 0]).float().mean().item(),
        "positive": right.mean().item(),
        "hardest": negatives[seen].mean().item() if seen.any() else float("nan"),
    }


@contextmanager
def _together(accelerator: Accelerator) -> Iterator[None]:
    """Raise MemoryError on every process if one of them runs out of memory inside, or the others would wait forever.

    So nothing inside may wait for another process.
    """
    failed, message = torch.zeros(1, device=accelerator.device), ""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        message = str(error).strip().splitlines()[0]  # the error itself would keep the tensors of its frames alive
        failed += 1
    if accelerator.num_processes > 1:
        torch.distributed.all_reduce(failed)
    if failed.item():
        clear_device_cache(garbage_collection=True)
        raise MemoryError(message or "another process ran out of memory")
