"""The gradient of one batch: in pieces that fit into memory (GradCache), on one device or several, and once more in
smaller pieces when memory runs out.

Every process holds the whole batch and computes the whole loss, which is cheap; encoding, which is not, is divided.
So several processes give the gradient that one process gives for the same batch, false-negative masks and all.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor

from helpers.base.devices import choose_precision, is_out_of_memory, send
from helpers.base.errors import TrainingError
from helpers.base.processes import WAIT, together
from helpers.batches import Batch
from helpers.encoder import Encoder, pad_texts

Inputs = dict[str, Tensor]  # what `Encoder.pad` returns, [N, L] each
Loss = Callable[[Tensor, Batch], Tensor]  # (similarities [B, P], the batch on their device) -> scalar


@dataclass
class Engine:
    """What a training step works with; see `make_engine`.

    Attributes
    ----------
    loss : what is minimised, e.g. `helpers.loss.infonce(0.05)`
    optimizer : accelerate's, or None where only gradients are wanted
    settings : `helpers.training.TrainingSettings`, of which a step reads clip_norm and seed
    before : the encoder's precision before training
    """

    encoder: Encoder
    loss: Loss
    optimizer: torch.optim.Optimizer | None
    accelerator: Accelerator
    settings: object
    before: str = "fp32"

    def free_memory(self) -> None:
        """Let go of the optimizer's averages and of the precision; the engine is of no use after that."""
        self.encoder.precision = self.before
        self.accelerator.wait_for_everyone()
        self.optimizer.state.clear()
        self.optimizer.param_groups.clear()
        self.accelerator.free_memory()


def make_engine(encoder: Encoder, loss: Loss, settings) -> Engine:
    """Return the engine that trains `encoder` as `settings` say: devices, precision, and AdamW.

    Weights decay, but not biases and norms, as usual since BERT.
    """
    on_cpu, alone = encoder.device.type == "cpu", not torch.distributed.is_initialized()
    before, encoder.precision = encoder.precision, choose_precision(settings.precision, encoder.device.type)
    AcceleratorState._reset_state(reset_partial_state=alone)  # so that device and precision may differ from last time
    precision = "no" if encoder.precision == "fp32" else encoder.precision
    patient = InitProcessGroupKwargs(timeout=WAIT)
    accelerator = Accelerator(mixed_precision=precision, cpu=on_cpu, kwargs_handlers=[patient])
    encoder.to(accelerator.device)
    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)  # fused: in one pass over memory
    return Engine(encoder, loss, accelerator.prepare(optimizer), accelerator, settings, before)


def derive_seed(*numbers: int) -> int:
    """Return a seed that follows from `numbers` and looks unlike that of any others."""
    return random.Random(repr(numbers)).getrandbits(63)


def split(batch: Batch, micro_batch: int, multiple: int = 1) -> tuple[list[Inputs], list[Inputs]]:
    """Return the questions and the passages in pieces of at most `micro_batch` texts each; 0: as they are.

    A piece is as long as its longest text, rounded up to a `multiple` of tokens.
    """

    def pieces(inputs: Inputs) -> Iterator[Inputs]:
        count = len(inputs["input_ids"])
        for start in range(0, count, micro_batch or count):
            piece = {name: tensor[start : start + (micro_batch or count)] for name, tensor in inputs.items()}
            longest = int(piece["attention_mask"].sum(1).max())  # that of the group may be in another piece
            length = math.ceil(longest / multiple) * multiple
            yield {name: tensor[:, :length] for name, tensor in piece.items()}

    return list(pieces(batch.queries)), [piece for group in batch.passages for piece in pieces(group)]


def add_gradient(
    engine: Engine, batch: Batch, micro_batch: int = 0, seed: Sequence[int] = (0,), share: float = 1.0
) -> dict[str, Tensor]:
    """Add the gradient of `share` × the batch's loss to the encoder's parameters; return the batch's measures.

    With `micro_batch` this is GradCache (Gao et al. 2021, https://arxiv.org/abs/2101.06983): encode everything without
    a graph, take the loss and its gradient for every vector, then encode piece by piece again, now with a graph, and
    send each vector's gradient back through it. Memory is that of one piece, the gradient that of the whole batch.
    On several processes each adds the gradient of the texts that it encoded; see `sum_gradients`.

    Parameters
    ----------
    micro_batch : texts encoded at a time; 0: all, and no second encoding
    seed : numbers that decide dropout. Each piece draws from (*seed, its number), so that its second encoding drops
        what the first one dropped, on whatever process

    Returns
    -------
    loss; chance: the loss of guessing, the mean of ln(candidates); accuracy: share of questions whose positive scores
    best; positive: mean similarity of the positive; hardest: that of the best-scoring negative, NaN if there is none.
    Scalars on the device: to read them means to wait for it

    Raises
    ------
    MemoryError : on every process, if memory ran out on one; parameters may hold a part of the gradient
    """
    accelerator, device = engine.accelerator, engine.accelerator.device
    questions, passages = split(batch, micro_batch, engine.encoder.multiple)
    pieces = [*questions, *passages]
    own = range(accelerator.process_index, len(pieces), accelerator.num_processes)

    def encode(number: int) -> Tensor:
        torch.manual_seed(derive_seed(*seed, number))
        with accelerator.autocast():
            return engine.encoder(**send(pieces[number], device)).float()

    with together(accelerator):
        with torch.set_grad_enabled(not micro_batch):
            vectors = [encode(n) if n in own else _blank(engine, pieces[n]) for n in range(len(pieces))]
        for number in own if micro_batch else ():
            vectors[number].requires_grad_()
    if accelerator.num_processes > 1:
        for number, encoded in enumerate(vectors):
            torch.distributed.broadcast(encoded.detach().contiguous(), src=number % accelerator.num_processes)

    with together(accelerator):
        positive, allowed = (tensor.to(device, non_blocking=True) for tensor in (batch.positive, batch.allowed))
        batch = replace(batch, positive=positive, allowed=allowed)
        scores = engine.encoder.similarity(_join(vectors[: len(questions)]), _join(vectors[len(questions) :]))
        loss = engine.loss(scores, batch)
        if own:
            accelerator.backward(share * loss)
        elif accelerator.scaler:
            accelerator.scaler.scale(loss)  # this process encoded nothing, but must count its steps like the others
        for number in own if micro_batch else ():
            encode(number).backward(vectors[number].grad)
    scores = scores.detach() if scores.ndim == 2 else scores.detach().mean(0)  # of an encoder with several scores
    return {"loss": loss.detach(), **_measures(scores, positive, allowed)}


def _blank(engine: Engine, inputs: Inputs) -> Tensor:
    """Return zeros, to be overwritten by the vectors of a piece that another process encodes."""
    texts, length = inputs["input_ids"].shape
    return torch.zeros(texts, *engine.encoder.output_shape(length), device=engine.accelerator.device)


def _join(vectors: Sequence[Tensor]) -> Tensor:
    """Return the vectors of several pieces as one tensor, [N, …], padded to the longest text."""
    longest = max(piece.shape[1] for piece in vectors)
    return torch.cat([pad_texts(piece, longest) for piece in vectors])


def sum_gradients(engine: Engine) -> None:
    """Add up the parameters' gradients over all processes, in place."""
    if engine.accelerator.num_processes > 1:
        trained = [parameter for parameter in engine.encoder.parameters() if parameter.requires_grad]
        with together(engine.accelerator):
            for parameter in trained:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for parameter in trained:
            torch.distributed.all_reduce(parameter.grad)


def training_step(engine: Engine, batches: Sequence[Batch], step: int = 1, micro_batch: int = 0) -> dict:
    """Take one optimizer step on the mean loss of `batches`.

    When memory runs out, the step is tried again piece by piece (GradCache), then in ever smaller pieces: the same
    negatives and the same gradient, up to another draw of dropout. Nothing is left of the first try.

    Returns
    -------
    The means of the measures of `add_gradient`; gradient_norm, before clipping (None if mixed precision overflowed, so
    that the step was skipped); and the micro_batch that fitted into memory

    Raises
    ------
    TrainingError : loss or gradient are not finite, or one text alone or AdamW's averages do not fit into memory
    """
    accelerator, optimizer = engine.accelerator, engine.optimizer
    engine.encoder.train()
    parts, micro_batch = _fit_into_memory(engine, batches, step, micro_batch)
    norm = accelerator.clip_grad_norm_(engine.encoder.parameters(), engine.settings.clip_norm)
    read = torch.stack([norm, *(value for part in parts for value in part.values())]).tolist()  # waits for the device
    norm, values = read[0], {name: read[1 + place :: len(parts[0])] for place, name in enumerate(parts[0])}
    measures = {name: sum(own) / len(own) for name, own in values.items()}
    known = [value for value in values["hardest"] if not math.isnan(value)]
    measures["hardest"] = sum(known) / len(known) if known else None
    scaling = accelerator.scaler and accelerator.scaler.get_scale() >= 1  # fp16: an overflow only skips a step
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
        why = "out of memory for AdamW's two averages, 8 bytes per trained parameter"
        raise TrainingError(f"{why}: use LoRA (lora_rank) or a smaller model") from None
    optimizer.zero_grad()
    return {**measures, "gradient_norm": norm if math.isfinite(norm) else None, "micro_batch": micro_batch}


def _fit_into_memory(engine: Engine, batches: Sequence[Batch], step: int, micro_batch: int) -> tuple[list[dict], int]:
    """Add the mean gradient of `batches`, in ever smaller pieces until they fit; return measures and micro-batch."""
    while True:
        try:
            parts = [
                add_gradient(engine, batch, micro_batch, (engine.settings.seed, step, number), 1 / len(batches))
                for number, batch in enumerate(batches)
            ]
            sum_gradients(engine)
            return parts, micro_batch
        except MemoryError as error:
            engine.optimizer.zero_grad()
            pieces = [piece for batch in batches for side in split(batch, micro_batch) for piece in side]
            texts, tokens = (max(piece["input_ids"].shape[axis] for piece in pieces) for axis in (0, 1))
            if texts == 1 and micro_batch:
                raise TrainingError(
                    f"out of memory with one text of {tokens} tokens at a time ({error}): lower max_length, "
                    "set gradient_checkpointing, use bf16, LoRA (lora_rank) or a smaller model"
                ) from None
            micro_batch = texts // 2 if micro_batch else texts  # first the same pieces, one at a time
            print(
                f"step {step}: out of memory, so it is repeated with micro_batch={micro_batch} and the same negatives"
            )


def _measures(scores: Tensor, positive: Tensor, allowed: Tensor) -> dict[str, Tensor]:
    right = scores.gather(1, positive[:, None])
    negatives = scores.masked_fill(~allowed, float("-inf")).scatter(1, positive[:, None], float("-inf")).amax(1)
    return {
        "chance": allowed.sum(1).float().log().mean(),
        "accuracy": (negatives < right[:, 0]).float().mean(),
        "positive": right.mean(),
        "hardest": negatives.masked_fill(negatives.isinf(), torch.nan).nanmean(),  # a question may have no negative
    }
