"""The gradient of one batch: in pieces that fit into memory (GradCache), on one device or several, and once more with
smaller pieces when memory runs out.

Every process holds the whole batch and computes the whole loss, which is cheap; encoding, which is not, is divided.
So several processes give the gradient of one process with the same batch, false-negative masks and all.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor

from helpers.batches import Batch
from helpers.encoder import Encoder
from helpers.loss import in_batch_loss

Inputs = dict[str, Tensor]  # input_ids and attention_mask, [N, L]


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
    temperature: float,
    micro_batch: int = 0,
    seed: Sequence[int] = (0,),
    share: float = 1.0,
) -> dict[str, float]:
    """Add the gradient of `share` × the batch's loss to the encoder's parameters; return the batch's measures.

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

    with _together(accelerator), torch.set_grad_enabled(not micro_batch):
        encoded = {number: encode(number) for number in own}
    if micro_batch:
        encoded = {number: vectors.requires_grad_() for number, vectors in encoded.items()}

    with _together(accelerator):
        vectors = _gather(encoded, pieces, accelerator, encoder.dimension)
        q_vec, passage_vecs = vectors.split([len(batch.qids), len(vectors) - len(batch.qids)])
        positive, allowed = batch.positive.to(vectors.device), batch.allowed.to(vectors.device)
        loss = in_batch_loss(q_vec, passage_vecs, positive, allowed, temperature)
        if encoded:
            accelerator.backward(share * loss)
        for number in own if micro_batch else ():
            encode(number).backward(encoded[number].grad)
    return {"loss": loss.item(), **_measures(q_vec.detach(), passage_vecs.detach(), positive, allowed)}


def sum_gradients(encoder: Encoder, accelerator: Accelerator) -> None:
    """Add up the parameters' gradients over all processes."""
    if accelerator.num_processes > 1:
        for parameter in encoder.parameters():
            if parameter.requires_grad:
                own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = accelerator.reduce(own, "sum")


def _gather(encoded: dict[int, Tensor], pieces: list[Inputs], accelerator: Accelerator, dimension: int) -> Tensor:
    """Return the vectors of all pieces, [N, D]; those of other processes are constants."""
    sizes = [len(piece["input_ids"]) for piece in pieces]
    if accelerator.num_processes == 1:
        return torch.cat([encoded[number] for number in range(len(pieces))])
    known = torch.zeros(sum(sizes), dimension, device=accelerator.device)
    for number, rows in enumerate(known.split(sizes)):
        if number in encoded:
            rows.copy_(encoded[number].detach())
    everywhere = accelerator.reduce(known, "sum").split(sizes)
    return torch.cat([encoded.get(number, rows) for number, rows in enumerate(everywhere)])


def _measures(q_vec: Tensor, passage_vecs: Tensor, positive: Tensor, allowed: Tensor) -> dict[str, float]:
    scores = q_vec @ passage_vecs.T
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
    """Raise MemoryError on every process if one of them runs out of memory inside; or the others would wait forever."""
    message = ""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not (isinstance(error, MemoryError) or should_reduce_batch_size(error)):
            raise
        message = str(error).strip().splitlines()[0]  # the error itself would keep the tensors of its frames alive
    failed = torch.tensor([float(bool(message))], device=accelerator.device)
    if accelerator.num_processes > 1:
        failed = accelerator.reduce(failed, "sum")
    if failed.item():
        clear_device_cache(garbage_collection=True)
        raise MemoryError(message or "another process ran out of memory")
