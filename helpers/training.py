"""The training loop on accelerate: AdamW, linear schedule with warm-up, clipping, the best dev score kept."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import get_linear_schedule_with_warmup

from helpers.batches import MASKS, TrainingRows, make_batch
from helpers.dataset import PassageIndex
from helpers.encoder import Encoder, load_encoder
from helpers.errors import CourseError, SettingError, shorten
from helpers.files import QUIET
from helpers.loss import in_batch_loss


class TrainingError(CourseError):
    """Training cannot go on, e.g. the loss is NaN."""


@dataclass(frozen=True)
class TrainingSettings:
    """Everything that decides a training run besides model and rows.

    Attributes
    ----------
    batch_size : questions a step
    max_steps : stop after that many steps; 0: after `epochs`
    warmup_ratio : share of the steps over which the learning rate rises from 0
    clip_norm : largest allowed norm of the gradient
    eval_every : steps between two dev evaluations; 0: at the end of every epoch
    precision : "fp32", "bf16" or "fp16" (mixed; fp16 needs CUDA)
    in_batch : count the other rows' passages as negatives too
    masks : which kinds of false negative are masked, see `helpers.batches.candidate_mask`
    """

    epochs: int = 5
    batch_size: int = 16
    max_steps: int = 0
    learning_rate: float = 2e-5
    weight_decay: float = 0.01
    warmup_ratio: float = 0.1
    clip_norm: float = 1.0
    temperature: float = 0.05
    eval_every: int = 0
    precision: str = "fp32"
    in_batch: bool = True
    masks: Sequence[str] = MASKS
    seed: int = 0

    def __post_init__(self):
        for name in ("epochs", "batch_size", "learning_rate", "clip_norm", "temperature"):
            if getattr(self, name) <= 0:
                raise SettingError(f"{name}={getattr(self, name)}: a number above 0 is needed")
        for name in ("max_steps", "weight_decay", "warmup_ratio", "eval_every"):
            if getattr(self, name) < 0:
                raise SettingError(f"{name}={getattr(self, name)}: it cannot be negative")
        if not (math.isfinite(self.learning_rate) and self.warmup_ratio <= 1):
            raise SettingError(f"learning_rate={self.learning_rate}, warmup_ratio={self.warmup_ratio}: the first must "
                               "be finite, the second a share between 0 and 1")  # fmt: skip
        if isinstance(self.masks, str) or not set(self.masks) <= set(MASKS):
            raise SettingError(f"masks={shorten(self.masks)}: use a list of some of {MASKS}")
        if self.precision not in ("fp32", "bf16", "fp16"):
            raise SettingError(f"precision={shorten(self.precision)}: use 'fp32', 'bf16' or 'fp16'")
        if self.precision == "fp16" and not torch.cuda.is_available():
            raise SettingError("precision='fp16' needs CUDA; use 'bf16' or 'fp32' here")


def train(
    encoder: Encoder,
    rows: TrainingRows,
    passages: PassageIndex,
    settings: TrainingSettings,
    evaluate: Callable[[Encoder], float],
    folder: str | Path,
    refresh: Callable[[Encoder], dict] | None = None,
    refresh_every: int = 0,
    **metadata: object,
) -> list[dict]:
    """Fine-tune `encoder` and leave the checkpoint with the best dev score in `folder`, loaded again.

    The untrained encoder counts as the first checkpoint: training that only makes it worse leaves it unchanged.

    Parameters
    ----------
    evaluate : a function from the encoder to its dev score, higher is better (here Hit@10)
    refresh : called after every `refresh_every` steps, e.g. to mine negatives anew with the current weights and hand
        them to `rows.set_pool`; what it returns goes into the history
    folder : where the best model is written, in Hugging Face format, with profile, settings and `metadata`

    Returns
    -------
    One dict a step with step, epoch, loss, learning_rate, gradient_norm, and dev where it was evaluated.

    Raises
    ------
    TrainingError : the loss or the gradient is NaN or infinite; names the step and the questions
    """
    set_seed(settings.seed)
    AcceleratorState._reset_state()  # or a second training in one notebook could not change the precision
    precision = {"fp32": "no"}.get(settings.precision, settings.precision)
    accelerator = Accelerator(mixed_precision=precision, cpu=encoder.device.type == "cpu")
    collate = partial(
        make_batch,
        source=rows,
        passages=passages,
        encoder=encoder,
        in_batch=settings.in_batch,
        masks=settings.masks,
    )
    order = torch.Generator().manual_seed(settings.seed)
    loader = DataLoader(rows, settings.batch_size, shuffle=True, collate_fn=collate, generator=order, drop_last=True)
    if not len(loader):
        raise SettingError(f"batch_size={settings.batch_size}, but there are only {len(rows)} training rows")
    total = settings.epochs * len(loader)
    total = min(total, settings.max_steps) if settings.max_steps else total
    optimizer = torch.optim.AdamW(_parameter_groups(encoder, settings.weight_decay), lr=settings.learning_rate)
    schedule = get_linear_schedule_with_warmup(optimizer, math.ceil(settings.warmup_ratio * total), total)
    model, optimizer, schedule = accelerator.prepare(encoder, optimizer, schedule)

    best = evaluate(encoder)
    history: list[dict] = [{"step": 0, "epoch": 0, "dev": best}]
    save = partial(encoder.save, folder, settings=asdict(settings), **metadata)
    save(step=0, dev=best)
    eval_every = settings.eval_every or len(loader)
    step = 0
    with tqdm(total=total, desc=Path(folder).name, delay=2, disable=QUIET) as bar:
        while step < total:
            rows.epoch = step // len(loader)
            for batch in loader:
                step += 1
                try:
                    loss, norm = training_step(model, batch, optimizer, settings, accelerator)
                except TrainingError as error:
                    raise TrainingError(f"step {step}: {error}") from None
                entry = {"step": step, "epoch": rows.epoch, "loss": loss, "gradient_norm": norm}
                history.append(entry | {"learning_rate": schedule.get_last_lr()[0]})
                schedule.step()
                bar.update()
                bar.set_postfix(loss=f"{loss:.3f}", dev=f"{best:.3f}", refresh=False)
                if refresh and refresh_every and step % refresh_every == 0 and step < total:
                    history[-1]["refresh"] = refresh(encoder)
                if step % eval_every == 0 or step == total:
                    history[-1]["dev"] = score = evaluate(encoder)
                    if score > best:
                        best = score
                        save(step=step, dev=score)
                if step == total:
                    break
    accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # the encoder without autocast around it
    encoder.load_state_dict(load_encoder(str(folder), device="cpu").state_dict())  # no second copy on the GPU
    encoder.eval()
    return history


def training_step(model, batch, optimizer, settings: TrainingSettings, accelerator) -> tuple[float, float]:
    """Take one optimizer step on a `helpers.batches.Batch`; return the loss and the gradient's norm."""
    model.train()
    device = accelerator.device
    with accelerator.autocast():
        q_vec = model(**{key: value.to(device) for key, value in batch.queries.items()})
        groups = [{key: value.to(device) for key, value in group.items()} for group in batch.passages]
        passage_vecs = torch.cat([model(**group) for group in groups])
    loss = in_batch_loss(q_vec, passage_vecs, batch.positive.to(device), batch.allowed.to(device), settings.temperature)
    accelerator.backward(loss)
    norm = accelerator.clip_grad_norm_(model.parameters(), settings.clip_norm)
    if not (math.isfinite(loss.item()) and (math.isfinite(norm) or settings.precision == "fp16")):
        raise TrainingError(
            f"loss {loss.item()}, gradient norm {float(norm)} on questions {batch.qids[:8]}…: lower learning_rate, "
            "or use precision 'fp32' or 'bf16'; the best model so far is kept"
        )
    optimizer.step()
    optimizer.zero_grad()
    return loss.item(), float(norm)


def _parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict]:
    """Return the parameters with decay, and those without: biases and norms, as usual since BERT."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
