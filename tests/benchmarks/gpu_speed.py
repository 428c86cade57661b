"""Training steps and encoding of a model on a GPU, timed beside sentence-transformers; see `measure_gpu`."""

import gc
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from transformers import XLMRobertaConfig, XLMRobertaModel

from helpers.base.files import write_json
from helpers.batches import Batch, TrainingRows, make_batch
from helpers.dataset import PassageIndex, load_data
from helpers.encoder import Encoder, load_encoder, save_memory
from helpers.gradients import make_engine, training_step
from helpers.importing.sources import find_data
from helpers.loss import infonce
from helpers.negatives import mine_pool
from helpers.reporting.memory import Saving, forward_flops, training_memory
from helpers.strategies import bm25_strategy
from helpers.training import TrainingSettings
from tests.benchmarks.common import spread
from tests.benchmarks.measure_memory import FULL
from tests.benchmarks.rivals import columns_of, trainer_seconds

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
QUESTIONS = 16  # of a batch, each with its positive and 3 hard negatives
TINY = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
TINY |= {"max_position_embeddings": 600}
# dense bf16 TFLOP/s by the makers' data sheets; the first name that is part of the card's own counts
PEAKS = {"H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "RTX 4090": 165, "A10": 125}
WAYS = [  # the fourth is what cuda.yaml was before any of this was measured
    {"precision": "bf16"},
    {"precision": "bf16", "micro_batch": 16},
    {"precision": "bf16", "gradient_checkpointing": True},
    {"precision": "bf16", "gradient_checkpointing": True, "micro_batch": 16},
    {"precision": "fp32"},
]
LORA = {"precision": "bf16", "lora_rank": 16}


@dataclass
class Bench:
    """What the stages share: data, models, and where results go.

    Attributes
    ----------
    small : the small model with real weights, a name or a folder
    scratch : a folder that is deleted at the end
    """

    out: Path
    small: str
    tiny: bool
    scratch: Path
    results: dict = field(default_factory=dict)

    def record(self, stage: str, **row: object) -> None:
        """Add a result to a stage's list, write all of them, and print it."""
        self.results.setdefault(stage, []).append(row)
        write_json(self.out, self.results)
        print(f"{stage}: {row}", flush=True)

    def sizes(self, real: int, tiny: int) -> int:
        """Return how many: `tiny` if only the script is to be tried."""
        return tiny if self.tiny else real

    @cached_property
    def rows(self) -> TrainingRows:
        """Training rows of SQuAD, or of the sample, with 3 hard negatives of BM25's each."""
        data = load_data(find_data("data/sample" if self.tiny else "squad"))
        passages = PassageIndex(data.training_corpus())
        qids = data.split_queries("train", 40 * QUESTIONS)
        pool = mine_pool(data, passages, bm25_strategy(data, passages), qids)
        return TrainingRows(data, passages, pool.ids(), hard_negatives=3, given_negative=False)

    @cached_property
    def long_rows(self) -> TrainingRows:
        """The same with 512 tokens in every passage."""
        rows = self.rows
        passages = PassageIndex(rows.passages.corpus)
        characters = self.sizes(3000, 400)  # more than 512 tokens, but not much more to tokenize
        passages.texts = Joined(passages.texts, characters)
        return TrainingRows(rows.data, passages, rows.pool, hard_negatives=3, given_negative=False)

    @cached_property
    def full(self) -> Path:
        """A folder with a model of BGE-M3's size and random weights, and the small model's tokenizer."""
        folder, tokenizer = self.scratch / "random-bge-m3", load_encoder(self.small, device="cpu").tokenizer
        size = {**TINY, "vocab_size": len(tokenizer)} if self.tiny else FULL
        config = XLMRobertaConfig(type_vocab_size=1, pad_token_id=tokenizer.pad_token_id, **size)
        with torch.device(DEVICE):
            model = XLMRobertaModel(config, add_pooling_layer=False)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        encoder = load_encoder(str(folder), device="cpu")
        encoder.export(folder, {})  # and sentence-transformers' own files
        return folder


class Joined:
    """Texts of `size` characters, each made of one and those after it."""

    def __init__(self, texts: Sequence[str], size: int):
        self.texts, self.size = texts, size

    def __getitem__(self, row: int) -> str:
        text = ""
        while len(text) < self.size:
            text, row = f"{text} {self.texts[row % len(self.texts)]}", row + 1
        return text[: self.size]


def wait() -> None:
    """Return when the device has done everything."""
    if CUDA:
        torch.cuda.synchronize()


def clear() -> None:
    """Let go of the memory of what no longer exists, and forget the peak."""
    gc.collect()
    if CUDA:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gb() -> float | None:
    """Return the most memory that tensors took on the card since `clear`."""
    return torch.cuda.max_memory_allocated() / 1e9 if CUDA else None


def share_of_peak(flops_a_second: float) -> float | None:
    """Return the share of the card's dense bf16 rate by its data sheet; None if that is not known."""
    known = [rate for card, rate in PEAKS.items() if CUDA and card in torch.cuda.get_device_name()]
    return flops_a_second / (known[0] * 1e12) if known else None


def timed(work: Callable[[], object]) -> float:
    """Return the seconds of `work` on the device."""
    wait()
    begin = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - begin


def alternate(ways: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds that each way says it took, round by round, after a first round that does not count."""
    found = {name: [] for name in ways}
    for number, (name, work) in itertools.product(range(rounds + 1), ways.items()):
        clear()
        seconds = work()
        found[name] += [seconds] if number else []
    return found


def tokens_of(batch: Batch) -> list[int]:
    """Return the length of every text of a batch."""
    return [int(count) for inputs in (batch.queries, *batch.passages) for count in inputs["attention_mask"].sum(1)]


def time_steps(encoder: Encoder, rows: TrainingRows, steps: int, way: dict, group_tokens: int = 0) -> dict:
    """Take optimizer steps; return the median time of one and of making its batch, tokens, MFU and memory.

    The first three do not count, `seconds` is the sum of the others with their batches, made in the same process.
    """
    clear()
    micro_batch, found, config = way.get("micro_batch", 0), [], encoder.model.config
    engine = make_engine(encoder, infonce(), TrainingSettings(precision=way["precision"]))
    for step in range(steps):
        begin = time.perf_counter()
        chosen = [rows[(step * QUESTIONS + number) % len(rows)] for number in range(QUESTIONS)]
        batch = make_batch(chosen, rows, encoder, group_tokens=group_tokens)
        batch = batch.pin_memory() if CUDA else batch
        made = time.perf_counter()
        micro_batch = training_step(engine, [batch], step + 1, micro_batch)["micro_batch"]
        wait()
        groups = [inputs["input_ids"].shape for inputs in (batch.queries, *batch.passages)]
        found.append((time.perf_counter() - made, made - begin, tokens_of(batch), groups))
    peak = peak_gb()
    engine.free_memory()
    encoder.zero_grad(set_to_none=True)
    computing, making, lengths, groups = zip(*found[3:], strict=True)
    tokens, padded = sum(map(sum, lengths)), sum(count * length for shapes in groups for count, length in shapes)
    all_groups = [shapes for *_, shapes in found]
    if micro_batch:
        together = max(min(micro_batch, count) * length for shapes in all_groups for count, length in shapes)
    else:
        together = max(sum(count * length for count, length in shapes) for shapes in all_groups)
    less, rank = way.get("gradient_checkpointing", False), way.get("lora_rank", 0)
    saving = Saving(way["precision"], less, rank, pieces=micro_batch > 0, fused=CUDA)
    return {
        "seconds": sum(computing) + sum(making),
        "seconds_a_step": statistics.median(computing),
        "seconds_for_its_batch": statistics.median(making),
        "tokens_a_step": tokens / len(computing),
        "padding": 1 - tokens / padded,
        "tokens_a_second": tokens / sum(computing),
        "mfu": share_of_peak(3 * sum(forward_flops(config, own) for own in lengths) / sum(computing)),
        "peak_gb": peak,
        "padded_tokens": together,  # encoded at a time, at most
        "computed_gb": training_memory(config, together, 1, saving)["total"],  # of tokens, wherever texts end
        "micro_batch": micro_batch,
    }


def training(bench: Bench) -> None:
    """Steps of BGE-M3's size in every way of saving memory, with groups of several sizes, and beside the rival's."""
    every = {"512": bench.long_rows, "own": bench.rows}
    steps = {"512": bench.sizes(9, 4), "own": bench.sizes(15, 4)}
    against_trainer(bench, str(bench.full), "512", every["512"], steps["512"])
    against_trainer(bench, str(bench.full), "own", every["own"], bench.sizes(23, 4))
    against_trainer(bench, bench.small, "own", every["own"], bench.sizes(39, 4))
    encoder = load_encoder(str(bench.full), device=DEVICE)

    def one(kind: str, way: dict, group_tokens: int = 0) -> None:
        about = {"lengths": kind, "way": way, "group_tokens": group_tokens}
        save_memory(encoder, way.get("gradient_checkpointing", False))
        try:
            bench.record("training", **about, **time_steps(encoder, every[kind], steps[kind], way, group_tokens))
        except Exception as error:  # the others are worth measuring all the same
            bench.record("training", **about, failed=f"{type(error).__name__}: {str(error)[:300]}")
        encoder.model.gradient_checkpointing_disable()

    for group_tokens in (0, 8192, 16384, 65536):
        one("own", WAYS[0], group_tokens)
    for kind, way in itertools.product(every, WAYS):
        one(kind, way)
    encoder = save_memory(load_encoder(str(bench.full), device=DEVICE), lora_rank=LORA["lora_rank"])
    for kind in every:
        one(kind, LORA)


def profile(bench: Bench) -> None:
    """Where the time of a step of BGE-M3's size goes: kernels and their launches, whole groups, layers compiled."""
    encoder, rows = load_encoder(str(bench.full), device=DEVICE), bench.long_rows
    for compiled in (False, True) if CUDA else (False,):
        for layer in encoder.model.encoder.layer if compiled else ():
            layer.compile(dynamic=True)
        found = time_steps(encoder, rows, bench.sizes(8, 4), WAYS[0], 2**16)
        engine = make_engine(encoder, infonce(), TrainingSettings(precision="bf16"))
        batch = make_batch([rows[number] for number in range(QUESTIONS)], rows, encoder, group_tokens=2**16)
        training_step(engine, [batch])
        activities = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] * CUDA)]
        with torch.profiler.profile(activities=activities) as record:
            training_step(engine, [batch])
            wait()
        engine.free_memory()
        events = record.key_averages()
        kernels = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
        top = sorted(kernels, key=lambda event: -event.self_device_time_total)[:14]
        calls = sorted(
            (event for event in events if event.key.startswith("cuda")), key=lambda e: -e.self_cpu_time_total
        )
        bench.record(
            "profile",
            compiled=compiled,
            **found,
            kernel_seconds=sum(event.self_device_time_total for event in kernels) / 1e6,
            kernels=sum(event.count for event in kernels),
            longest={event.key[:90]: [event.count, event.self_device_time_total / 1e6] for event in top},
            calls={event.key: [event.count, event.self_cpu_time_total / 1e6] for event in calls[:6]},
        )


def against_trainer(bench: Bench, model: str, kind: str, rows: TrainingRows, steps: int) -> None:
    """Alternate our loop and sentence-transformers' trainer, both in bf16; both make each batch before its step."""
    encoder = load_encoder(model, device=DEVICE)
    rival = SentenceTransformer(encoder.source, device=DEVICE)
    columns, memory = columns_of(rows, encoder), {}

    def ours() -> float:
        found = time_steps(encoder, rows, steps, WAYS[0])
        memory["peak_gb"] = found["peak_gb"]
        return found["seconds"]

    def theirs() -> float:
        seconds = trainer_seconds(rival, columns, bench.scratch / "theirs", QUESTIONS, steps, "bf16", skip=3)
        memory["rival_peak_gb"] = peak_gb()
        rival.zero_grad(set_to_none=True)
        return seconds

    found = alternate({"ours": ours, "theirs": theirs}, bench.sizes(3, 1))
    own, other = ([seconds / (steps - 3) for seconds in found[name]] for name in found)
    about = {"model": Path(model).name, "lengths": kind, "rival": "sentence-transformers' trainer, bf16"}
    bench.record("against the trainer", **about, seconds=own, rival_seconds=other, **spread(other, own), **memory)


def encoding(bench: Bench) -> None:
    """Passages a second, ours and sentence-transformers', of BGE-M3's size and of the small model."""
    for model, count in ((str(bench.full), 4000), (bench.small, 6000)):
        texts = bench.rows.passages.texts[: bench.sizes(count, 40)]
        encoder, half = (load_encoder(model, device=DEVICE) for _ in range(2))
        half.model.to(torch.bfloat16)
        rivals = {name: SentenceTransformer(encoder.source, device=DEVICE) for name in ("fp32", "bf16")}
        rivals["bf16"].to(torch.bfloat16)

        def ours(precision: str, batch_tokens: int, encoder=encoder, texts=texts) -> float:
            encoder.precision = precision
            return timed(lambda: encoder.encode(texts, "passage", batch_tokens))

        def theirs(precision: str, batch_size: int, rivals=rivals, texts=texts) -> float:
            return timed(lambda: rivals[precision].encode(texts, batch_size=batch_size, show_progress_bar=False))

        ways = {f"ours, bf16, {size} tokens": partial(ours, "bf16", size) for size in (8192, 32768, 131072)}
        ways["ours, bf16 weights, 32768 tokens"] = partial(ours, "fp32", 32768, encoder=half)
        ways["ours, fp32, 32768 tokens"] = partial(ours, "fp32", 32768)
        for precision, size in itertools.product(rivals, (32, 256)):
            ways[f"sentence-transformers, {precision}, {size} texts"] = partial(theirs, precision, size)
        found = alternate(ways, bench.sizes(3, 1))
        lengths = [len(ids) for ids in encoder.tokenize(texts, "passage")]
        flops = forward_flops(encoder.model.config, lengths)
        base = found["sentence-transformers, bf16, 32 texts"]
        for name, seconds in found.items():
            middle = statistics.median(seconds)
            about = {"model": Path(model).name, "way": name, "texts": len(texts), "seconds": seconds}
            speed = {"tokens_a_second": sum(lengths) / middle, "mfu": share_of_peak(flops / middle)}
            bench.record("encoding", **about, **speed, **spread(base, seconds))
        agreement(bench, model, encoder, texts[:200])


def agreement(bench: Bench, model: str, encoder: Encoder, texts: Sequence[str]) -> None:
    """The least cosine of vectors in TF32, bf16 and fp16 to those in exact fp32."""
    torch.set_float32_matmul_precision("highest")
    encoder.precision, least = "fp32", {}
    exact = encoder.search_vectors(texts, "passage")
    torch.set_float32_matmul_precision("high")
    for precision in ("fp32", "bf16", "fp16") if CUDA else ("bf16",):
        encoder.precision = precision
        least[precision] = float((encoder.search_vectors(texts, "passage") * exact).sum(1).min())
    bench.record("agreement", model=Path(model).name, least_cosine_to_fp32=least)
