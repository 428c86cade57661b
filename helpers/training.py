"""The training loop: AdamW, linear schedule with warm-up, clipping, the best dev score kept, checkpoints to go on from.

Order and dropout follow from (seed, step) alone, so a run that goes on from a checkpoint ends, on a CPU, in the very
weights of one that was never interrupted.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from tqdm.auto import tqdm
from transformers import get_linear_schedule_with_warmup

from helpers.base.checkpoints import State, restore, save_checkpoint
from helpers.base.errors import SettingError, TrainingError, shorten
from helpers.base.files import QUIET, recover, remove, write_json
from helpers.batches import MASKS, TrainingRows, make_batch
from helpers.dataset import PassageIndex
from helpers.encoder import Encoder
from helpers.gradients import Loss, derive_seed, training_step
from helpers.loss import infonce
from helpers.reporting.diagnosis import diagnose

WAIT = timedelta(hours=12)  # one process evaluates or mines, the others wait
FREE = ("micro_batch", "checkpoint_every", "keep_checkpoints", "workers")  # may differ when a run goes on


@dataclass(frozen=True)
class TrainingSettings:
    """Everything that decides a training run besides model and rows.

    Attributes
    ----------
    batch_size : questions whose passages are each other's negatives, on each device
    max_steps : stop after that many steps; 0: after `epochs`
    warmup_ratio : share of the steps over which the learning rate rises from 0
    clip_norm : largest allowed norm of the gradient
    eval_every : steps between two dev evaluations; 0: at the end of every epoch
    precision : "fp32", "bf16" or "fp16" (mixed; fp16 needs CUDA)
    in_batch : count the other rows' passages as negatives too
    masks : which kinds of false negative are masked, see `helpers.batches.candidate_mask`
    micro_batch : texts encoded at a time, see `helpers.gradients.add_gradient`; 0: all. Same gradient, less memory
    accumulate : batches whose gradients are averaged for one step. They do not share negatives
    patience : stop after that many evaluations without a better dev score; 0: never
    checkpoint_every : steps between two checkpoints; 0: at every evaluation
    keep_checkpoints : how many of the last checkpoints stay on disk
    workers : processes that make batches beside the training one
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
    micro_batch: int = 0
    accumulate: int = 1
    patience: int = 0
    checkpoint_every: int = 0
    keep_checkpoints: int = 2
    workers: int = 0

    def __post_init__(self):
        for name in ("epochs", "batch_size", "learning_rate", "clip_norm", "temperature", "accumulate",
                     "keep_checkpoints"):  # fmt: skip
            if getattr(self, name) <= 0:
                raise SettingError(f"{name}={getattr(self, name)}: a number above 0 is needed")
        for name in ("max_steps", "weight_decay", "warmup_ratio", "eval_every", "micro_batch", "patience",
                     "checkpoint_every", "workers"):  # fmt: skip
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
    evaluate: Callable[[Encoder], float | dict[str, float]],
    folder: str | Path,
    refresh: Callable[[Encoder], dict] | None = None,
    refresh_every: int = 0,
    resume: bool = False,
    loss: Loss | None = None,
    **metadata: object,
) -> list[dict]:
    """Fine-tune `encoder` and leave the checkpoint with the best dev score in `folder`, loaded again.

    The untrained encoder counts as the first checkpoint: training that only makes it worse leaves it unchanged.
    Run by several processes (`accelerate launch`), it trains on `batch_size` questions for each of them.

    Parameters
    ----------
    evaluate : a function from the encoder to its dev score, higher is better, or to several scores by name, of which
        "dev" decides; see `helpers.retrieval.dev_scorer`
    folder : where the best model is written, in Hugging Face format, with profile, settings and `metadata`;
        `<folder>.checkpoints` and TensorBoard's `<folder>.log` lie beside it
    refresh : called after every `refresh_every` steps, e.g. to mine negatives anew with the current weights and hand
        them to `rows.set_pool`; what it returns goes into the history
    loss : a function from (similarities [B, P], batch) to a scalar; None: InfoNCE over `batch.allowed` at the
        temperature of `settings`. Say in `metadata` what another one is: a resumed run is compared by it
    resume : go on from the last checkpoint, or return the history of a run that has ended; False starts over

    Returns
    -------
    One dict a step with step, epoch, learning_rate, gradient_norm, micro_batch and the measures of
    `helpers.gradients.add_gradient`; the scores where it was evaluated, refresh where there was one.

    Raises
    ------
    TrainingError : the loss or the gradient is NaN or infinite (`<folder>.failed.json` holds step, questions and norm),
        or a single text does not fit into memory
    SettingError : the checkpoint is of a run with other data, model or settings
    """
    folder, resumable = Path(folder), Path(f"{folder}.checkpoints")
    if settings.precision == "fp16" and encoder.device.type != "cuda":
        raise SettingError("precision='fp16' needs device='cuda'; use 'bf16' or 'fp32' on a CPU")
    accelerator = _accelerator(encoder, settings)
    contrastive, loss = loss is None, loss or infonce(settings.temperature)
    device_count, main = accelerator.num_processes, accelerator.is_main_process
    encoder.to(accelerator.device)
    per_step = settings.batch_size * device_count * settings.accumulate  # questions
    steps_per_epoch = len(rows) // per_step
    if not steps_per_epoch:
        raise SettingError(f"batch_size={settings.batch_size} × accumulate={settings.accumulate} × {device_count} "
                           f"device(s) = {per_step}, but there are only {len(rows)} training rows")  # fmt: skip
    total = settings.epochs * steps_per_epoch
    total = min(total, settings.max_steps) if settings.max_steps else total
    eval_every = settings.eval_every or steps_per_epoch
    optimizer = torch.optim.AdamW(
        _parameter_groups(encoder, settings.weight_decay), lr=settings.learning_rate, fused=True
    )  # fused: in one pass over memory
    schedule = get_linear_schedule_with_warmup(optimizer, math.ceil(settings.warmup_ratio * total), total)
    optimizer = accelerator.prepare(optimizer)
    identity = {
        **{key: value for key, value in asdict(settings).items() if key not in FREE},
        "first weights": encoder.fingerprint(),
        "rows": hashlib.sha256(repr((rows.rows, rows.extra, rows.seed)).encode()).hexdigest()[:16],
        "hard_negatives": rows.hard_negatives,
        "refresh_every": refresh_every if refresh else 0,
        "processes": device_count,
        **metadata,
    }

    for path in (folder, resumable, f"{folder}.log", f"{folder}.failed.json") if main else ():
        recover(path)
    state = restore(resumable, identity, encoder, optimizer, schedule, accelerator) if resume else None
    if state and state.pool:
        rows.set_pool(state.pool)
    accelerator.wait_for_everyone()  # or the main process might clear away what another one still reads
    history = state.history if state else []
    micro_batch = settings.micro_batch
    if state and state.micro_batch == micro_batch:
        micro_batch = history[-1].get("micro_batch", micro_batch)  # what it came down to when memory ran out

    def score_and_save(step: int) -> dict[str, float]:
        """Evaluate, and write the model if it is the best so far. One process does so for all."""
        found = _from_main(accelerator, lambda: evaluate(encoder))
        scores = found if isinstance(found, dict) else {"dev": found}
        if not math.isfinite(scores["dev"]):
            raise TrainingError(f"step {step}: the dev score is {scores['dev']}; are there dev questions?")
        if main and scores["dev"] > max((entry["dev"] for entry in history if "dev" in entry), default=-math.inf):
            before = {name: history[0][name] for name in scores} if history else scores
            encoder.save(folder, settings=asdict(settings), step=step, scores=scores, scores_before=before, **metadata)
        return scores

    def warn(ended: bool) -> bool:
        """Print what looks wrong, if anything does; return whether something did."""
        found = diagnose(history, contrastive=contrastive, ended=ended) if main else []
        for sentence in found:
            print(f"{folder.name}: step {history[-1]['step']}: {sentence}")
        return bool(found)

    if not history:
        if main:
            for of_an_earlier_run in (resumable, f"{folder}.log", f"{folder}.failed.json"):
                remove(of_an_earlier_run)
        history.append({"step": 0, "epoch": 0, **score_and_save(0)})
    step, finished, warned = history[-1]["step"], bool(state and state.finished), False
    log = SummaryWriter(f"{folder}.log", purge_step=step + 1) if main and not finished else None
    here = [accelerator.device] if accelerator.device.type == "cuda" else []
    bar = tqdm(total=total, initial=step, desc=folder.name, delay=2, disable=QUIET or not main)
    with bar, torch.random.fork_rng(here):  # the steps' seeds are not the caller's
        while not finished:
            rows.epoch = step // steps_per_epoch
            loader = _loader(rows, passages, encoder, settings, device_count, step % steps_per_epoch, steps_per_epoch)
            for batches in zip(*[iter(loader)] * settings.accumulate, strict=True):
                step += 1
                try:
                    measures = training_step(
                        encoder, batches, loss, optimizer, settings, accelerator, step, micro_batch
                    )
                except TrainingError as error:
                    if main:
                        qids = [qid for batch in batches for qid in batch.qids]
                        report = {"step": step, "error": str(error), "qids": qids, "history": history[-20:]}
                        write_json(f"{folder}.failed.json", report)
                    raise TrainingError(f"step {step}: {error}") from None
                micro_batch = measures["micro_batch"]
                measures["learning_rate"] = schedule.get_last_lr()[0]
                schedule.step()
                history.append({"step": step, "epoch": rows.epoch, **measures})
                refreshed = refresh and refresh_every and step % refresh_every == 0 and step < total
                if refreshed:
                    history[-1]["refresh"], pool = _from_main(accelerator, lambda: (refresh(encoder), rows.pool))
                    rows.set_pool(pool)
                    if len(rows) // per_step != steps_per_epoch:
                        raise SettingError(f"refresh left {len(rows)} training rows; give it the same questions")
                if step % eval_every == 0 or step == total:
                    history[-1] |= score_and_save(step)
                    warned = warned or warn(ended=False)  # hours before the end; the rest is said there
                finished = step == total or _patience_lost(history, settings.patience)
                if main:
                    for name, value in history[-1].items():
                        if isinstance(value, float):
                            log.add_scalar(name, value, step)
                    if finished or step % (settings.checkpoint_every or eval_every) == 0:
                        scaler = accelerator.scaler.state_dict() if accelerator.scaler else {}
                        pool = rows.pool if refresh else None
                        state = State(
                            identity, history, settings.micro_batch, schedule.state_dict(), scaler, pool, finished
                        )
                        save_checkpoint(resumable, state, encoder, optimizer, settings.keep_checkpoints)
                bar.update()
                bar.set_postfix(loss=f"{measures['loss']:.3f}", refresh=False)
                if finished or refreshed:
                    break  # after a refresh, workers must see the new pool
    if log:
        log.close()
    warn(ended=True)
    accelerator.wait_for_everyone()
    optimizer.state.clear()  # before the best weights come in: no second copy of a large model on the GPU
    optimizer.param_groups.clear()
    accelerator.free_memory()
    encoder.restore(folder)
    return history


def _accelerator(encoder: Encoder, settings: TrainingSettings) -> Accelerator:
    alone = not torch.distributed.is_initialized()
    # or a second training in one notebook could change neither precision nor device
    AcceleratorState._reset_state(reset_partial_state=alone)
    precision = {"fp32": "no"}.get(settings.precision, settings.precision)
    patient = InitProcessGroupKwargs(timeout=WAIT)
    return Accelerator(mixed_precision=precision, cpu=encoder.device.type == "cpu", kwargs_handlers=[patient])


def _loader(rows, passages, encoder, settings, devices: int, done: int, steps: int) -> DataLoader:
    """Return the batches of the epoch's steps after the first `done`, in an order that follows from seed and epoch."""
    generator = torch.Generator().manual_seed(derive_seed(settings.seed, rows.epoch))
    order = torch.randperm(len(rows), generator=generator).tolist()
    size = settings.batch_size * devices
    first, last = (count * settings.accumulate * size for count in (done, steps))
    collate = partial(
        make_batch, source=rows, passages=passages, encoder=encoder, in_batch=settings.in_batch, masks=settings.masks
    )
    return DataLoader(
        rows,
        batch_sampler=[order[start : start + size] for start in range(first, last, size)],
        collate_fn=collate,
        num_workers=settings.workers,
        multiprocessing_context="fork" if settings.workers else None,  # to share the corpus, not copy it
        pin_memory=encoder.device.type == "cuda",
    )


def _from_main(accelerator: Accelerator, work: Callable[[], object]) -> object:
    """Let the main process do `work`, and return its result on every process."""
    result = [work() if accelerator.is_main_process else None]
    return broadcast_object_list(result)[0] if accelerator.num_processes > 1 else result[0]


def _patience_lost(history: list[dict], patience: int) -> bool:
    scores = [entry["dev"] for entry in history if "dev" in entry]
    return 0 < patience <= len(scores) - 1 - scores.index(max(scores))


def _parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict]:
    """Return the parameters with decay, and those without: biases and norms, as usual since BERT."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
