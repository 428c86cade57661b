"""The training loop: AdamW, a linear schedule with warm-up, clipping, the best model kept, checkpoints to resume from.

Order and dropout follow from (seed, step) alone, so on a CPU a run that is resumed from a checkpoint ends with exactly
the weights of one that was never interrupted.
"""

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from tqdm.auto import tqdm
from transformers import get_linear_schedule_with_warmup

from helpers.base.checkpoints import State, restore, save_checkpoint
from helpers.base.devices import choose_device, choose_precision
from helpers.base.errors import DataError, SettingError, TrainingError, shorten
from helpers.base.files import QUIET, recover, remove, told, write_json
from helpers.base.history import BestScore, diagnose
from helpers.base.processes import from_main, work_together
from helpers.batches import MASKS, Batch, TrainingRows
from helpers.encoder import Encoder
from helpers.gradients import Loss, derive_seed, make_engine, training_step
from helpers.loss import infonce

FREE = ("micro_batch", "checkpoint_every", "keep_checkpoints", "workers", "resume")  # do not change the result
ABOVE_0 = ("epochs", "batch_size", "learning_rate", "clip_norm", "temperature", "accumulate", "keep_checkpoints")


@dataclass(frozen=True)
class TrainingSettings:
    """Every number and switch of a training run.

    Attributes
    ----------
    batch_size : questions whose passages are each other's negatives, on each device
    max_steps : stop after that many steps; 0: after `epochs`
    warmup_ratio : share of the steps over which the learning rate rises from 0
    clip_norm : largest allowed norm of the gradient
    eval_every : steps between two dev evaluations; 0: at the end of every epoch
    precision : of training and dev scores: "fp32" (on CUDA, products in TF32), "bf16" or "fp16" (mixed), or "auto"
    in_batch : count the other rows' passages as negatives too
    masks : which kinds of false negative are masked, see `helpers.batches.candidate_mask`
    micro_batch : texts encoded at a time, see `helpers.gradients.add_gradient`; 0: all. Same gradient, less memory
    accumulate : batches whose gradients are averaged for one step. They do not share negatives
    patience : stop after that many evaluations without a better dev score; 0: never
    checkpoint_every : steps between two checkpoints; 0: at every evaluation
    keep_checkpoints : how many of the last checkpoints stay on disk
    workers : processes that make batches beside the training one
    refresh_every : steps between two calls of `Task.refresh`; 0: never
    resume : continue from the last checkpoint, or return the history of a run that has ended; False starts over
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
    refresh_every: int = 0
    resume: bool = False

    def __post_init__(self):
        for setting in fields(self):
            name, value, kind = setting.name, getattr(self, setting.name), type(setting.default)
            if kind not in (int, float):
                continue
            if not isinstance(value, int | kind) or not math.isfinite(value):
                raise SettingError(f"{name}={shorten(value)}: a finite {kind.__name__} is needed")
            if value <= 0 and name in ABOVE_0:
                raise SettingError(f"{name}={value}: a number above 0 is needed")
            if value < 0 and name != "seed":
                raise SettingError(f"{name}={value}: it cannot be negative")
        if self.warmup_ratio > 1:
            raise SettingError(f"warmup_ratio={self.warmup_ratio}: a share between 0 and 1 is needed")
        if not isinstance(self.masks, list | tuple) or any(mask not in MASKS for mask in self.masks):
            raise SettingError(f"masks={shorten(self.masks)}: use a list of some of {MASKS}")
        if self.precision != "auto":  # what the encoder's own device lacks, `make_engine` says
            choose_precision(self.precision, choose_device() if self.precision == "fp16" else "cpu")


@dataclass
class Task:
    """What an encoder is trained on, and how it is judged.

    Attributes
    ----------
    evaluate : function from the encoder to its dev score, higher is better, or to several scores by name, of which
        "dev" decides; see `helpers.evaluation.dev_scorer`. Every process calls it and encodes its share of the texts
    loss : function from (similarities [B, P], batch) to a scalar; None: InfoNCE over `batch.allowed` at the temperature
        of the settings. Describe any other one in `about`: a resumed run is compared by it
    refresh : called with the encoder after every `refresh_every` steps, by every process, e.g. to hand newly mined
        negatives to `rows.set_pool`; what it returns goes into the history
    about : what else the result depends on, such as the fingerprint of the data; saved with the model
    """

    rows: TrainingRows
    evaluate: Callable[[Encoder], float | dict[str, float]]
    loss: Loss | None = None
    refresh: Callable[[Encoder], dict] | None = None
    about: Mapping[str, object] = field(default_factory=dict)


def train(encoder: Encoder, task: Task, settings: TrainingSettings, folder: str | Path) -> list[dict]:
    """Fine-tune `encoder`; leave the model with the best dev score in `folder`, and load it into `encoder`.

    The model is in Hugging Face format, with profile, settings and `task.about`; `<folder>.checkpoints` and
    TensorBoard's `<folder>.log` lie beside it. The encoder before training counts as the first model: training that
    only makes it worse leaves it unchanged. With several processes (`accelerate launch`) each has its own `batch_size`.

    Returns
    -------
    One dict per step: step, epoch, learning_rate and what `helpers.gradients.training_step` returns; the scores where
    it was evaluated, refresh where there was one. A measure that does not exist is None

    Raises
    ------
    TrainingError : loss, gradient or a dev score is NaN or infinite, or a single text does not fit into memory;
        `<folder>.failed.json` holds the questions of a failed step
    SettingError : the checkpoint is of a run with other data, model or settings
    DataError : the disk is full, or a file is in the way; the best model and the last checkpoint are kept
    """
    with told(folder):  # a full disk, and whatever else is wrong with it
        run = _Run(encoder, task, settings, Path(folder))
        run.start()
        log = SummaryWriter(f"{folder}.log", purge_step=run.step + 1) if run.main and not run.finished else None
        bar = tqdm(total=run.total, initial=run.step, desc=run.folder.name, delay=2, disable=QUIET or not run.main)
        with log or nullcontext(), bar, torch.random.fork_rng(run.gpus):  # the steps' seeds are not the caller's
            for batches in run.batches():
                run.step += 1
                try:
                    measures = training_step(run.engine, batches, run.step, run.micro_batch)
                except TrainingError as error:
                    raise run.failure(error, batches) from None
                rate, run.micro_batch = run.schedule.get_last_lr()[0], measures["micro_batch"]
                run.history.append({"step": run.step, "epoch": task.rows.epoch, **measures, "learning_rate": rate})
                run.schedule.step()
                if task.refresh and run.due(settings.refresh_every) and run.step < run.total:
                    run.refresh()
                if run.due(run.eval_every) or run.step == run.total:
                    run.evaluate()
                for name, value in run.history[-1].items() if log else ():
                    if isinstance(value, float):
                        log.add_scalar(name, value, run.step)
                if run.main and (run.finished or run.due(settings.checkpoint_every or run.eval_every)):
                    run.save_checkpoint()
                bar.update()
                bar.set_postfix(loss=f"{measures['loss']:.3f}", refresh=False)
        run.warn(ended=True)
        run.engine.free_memory()  # so that a GPU never holds the optimizer and two models
        encoder.restore(folder)
    return run.history


class _Run:
    """A training run: its parts, and how far it has come."""

    def __init__(self, encoder: Encoder, task: Task, settings: TrainingSettings, folder: Path):
        self.encoder, self.task, self.folder = encoder, task, folder
        self.checkpoints, self.failed = Path(f"{folder}.checkpoints"), Path(f"{folder}.failed.json")
        self.engine = make_engine(encoder, task.loss or infonce(settings.temperature), settings)
        self.settings = settings = replace(settings, precision=encoder.precision)  # "auto" is decided
        self.main, processes = self.engine.accelerator.is_main_process, self.engine.accelerator.num_processes
        self.gpus = [encoder.device] if encoder.device.type == "cuda" else []
        self.size = settings.batch_size * processes  # questions in a batch
        self.steps_per_epoch = len(self.shuffled(0)) // settings.accumulate
        if not self.steps_per_epoch:
            needs = f"batch_size={settings.batch_size} × accumulate={settings.accumulate} × {processes} device(s)"
            raise SettingError(f"{needs}: more than the {len(task.rows)} training rows that there are")
        self.total = min(settings.epochs * self.steps_per_epoch, settings.max_steps or sys.maxsize)
        self.eval_every = settings.eval_every or self.steps_per_epoch
        warm_up = math.ceil(settings.warmup_ratio * self.total)
        self.schedule = get_linear_schedule_with_warmup(self.engine.optimizer, warm_up, self.total)
        self.identity = {
            **task.about,
            **{name: value for name, value in asdict(settings).items() if name not in FREE},
            "first weights": encoder.fingerprint(),
            "rows": task.rows.fingerprint(),
            "hard_negatives": task.rows.hard_negatives,
            "refresh_every": settings.refresh_every if task.refresh else 0,
            "processes": processes,
        }
        self.history, self.step, self.micro_batch = [], 0, settings.micro_batch
        self.best, self.finished, self.warned = BestScore(), False, False

    def due(self, every: int) -> bool:
        """Return whether what happens once in `every` steps (0: never) happens after this one."""
        return every > 0 and self.step % every == 0

    def start(self) -> None:
        """Continue from the last checkpoint, or clear up after an earlier run and evaluate the encoder as it is."""
        folders = self.folder, self.checkpoints, Path(f"{self.folder}.log")
        for path in (*folders, self.failed) if self.main else ():
            path.parent.mkdir(parents=True, exist_ok=True)
            recover(path)
            if path in folders and (path.exists() or path.is_symlink()) and not path.is_dir():
                raise DataError(f"{path} is not a folder; remove it, or train into another one")
        state = restore(self.checkpoints, self.identity, self.engine, self.schedule) if self.settings.resume else None
        self.engine.accelerator.wait_for_everyone()  # before the main process clears away what others still read
        if state:
            self.history, self.step, self.finished = state.history, state.history[-1]["step"], state.finished
            for score in [entry["dev"] for entry in self.history if "dev" in entry]:
                self.best.add(score)
            if state.pool:
                self.task.rows.set_pool(state.pool)
            if state.micro_batch == self.micro_batch:  # as asked for; use what it came down to when memory ran out
                self.micro_batch = self.history[-1].get("micro_batch", self.micro_batch)
        else:
            for path in (*folders[1:], self.failed) if self.main else ():
                remove(path)
            self.history.append({"step": 0, "epoch": 0})
            self.evaluate()

    def batches(self) -> Iterator[Sequence[Batch]]:
        """Yield the batches of every step to come, in an order that follows from seed and epoch."""
        rows, settings, encoder = self.task.rows, self.settings, self.encoder
        while not self.finished:
            rows.epoch, done = divmod(self.step, self.steps_per_epoch)
            loader = DataLoader(
                rows,
                batch_sampler=self.shuffled(rows.epoch)[done * settings.accumulate :],
                collate_fn=partial(rows.collate, encoder=encoder, in_batch=settings.in_batch, masks=settings.masks),
                num_workers=settings.workers,
                multiprocessing_context="fork" if settings.workers else None,  # to share the corpus, not copy it
                pin_memory=bool(self.gpus),
            )
            for batches in zip(*[iter(loader)] * settings.accumulate, strict=True):
                yield batches
                if self.finished or "refresh" in self.history[-1]:
                    break  # after a refresh, the workers must see the new pool

    def shuffled(self, epoch: int) -> list[list[int]]:
        """Return the row numbers of an epoch's batches, as many as make whole steps."""
        generator = torch.Generator().manual_seed(derive_seed(self.settings.seed, epoch))
        drawn, count = self.task.rows.batches(self.size, generator), self.settings.accumulate
        return drawn[: len(drawn) // count * count]

    def failure(self, error: TrainingError, batches: Sequence[Batch]) -> TrainingError:
        """Write down what a step failed on; return the error with its number."""
        qids = [qid for batch in batches for qid in batch.qids]
        if self.main:
            report = {"step": self.step, "error": str(error), "qids": qids, "history": self.history[-20:]}
            write_json(self.failed, report)
        return TrainingError(f"step {self.step}: {error}")

    def refresh(self) -> None:
        """Mine anew, and take over the main process's pool."""
        rows = self.task.rows
        self.history[-1]["refresh"] = work_together(self.task.refresh, self.encoder, self.engine.accelerator)
        rows.set_pool(from_main(self.engine.accelerator, lambda: rows.pool))
        if len(self.shuffled(rows.epoch)) // self.settings.accumulate != self.steps_per_epoch:
            raise SettingError(f"refresh left {len(rows)} training rows; give it the same questions")

    def evaluate(self) -> None:
        """Record the dev scores, write the model if it is the best so far, and see whether training is finished."""
        found = work_together(self.task.evaluate, self.encoder, self.engine.accelerator)
        found = found if isinstance(found, dict) else {"dev": found}
        scores = {name: float(score) for name, score in found.items()}  # numpy's own numbers are not JSON
        for name, score in scores.items():
            if not math.isfinite(score):
                raise TrainingError(f"step {self.step}: the {name} score is {score}; are there dev questions?")
        self.history[-1] |= scores
        if self.best.add(scores["dev"]) and self.main:
            before = {name: self.history[0][name] for name in scores}
            result = {"step": self.step, "scores": scores, "scores_before": before}
            self.encoder.save(self.folder, {**self.task.about, "settings": asdict(self.settings), **result})
        self.finished = self.step == self.total or 0 < self.settings.patience <= self.best.age
        self.warned = self.warned or self.warn(ended=False)  # hours before the end; the rest is said there

    def save_checkpoint(self) -> None:
        pool = self.task.rows.pool if self.task.refresh else None
        state = State(self.identity, self.history, self.settings.micro_batch, pool, self.finished)
        save_checkpoint(self.checkpoints, state, self.engine, self.schedule, self.settings.keep_checkpoints)

    def warn(self, ended: bool) -> bool:
        """Print what looks wrong; return whether anything does."""
        found = diagnose(self.history, contrastive=self.task.loss is None, ended=ended) if self.main else []
        for sentence in found:
            print(f"{self.folder.name}: step {self.step}: {sentence}")
        return bool(found)
