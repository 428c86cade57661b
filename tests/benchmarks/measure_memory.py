"""Peak memory of two optimizer steps, a fresh process for each way of saving memory, beside what is computed for it.

    python -m tests.benchmarks.measure_memory small      # 6 layers × 384, two minutes
    python -m tests.benchmarks.measure_memory full       # BGE-M3's size, 567M parameters: 16 GB of RAM, ten minutes

Writes data/results/memory.json. The weights are random: memory and time do not depend on their values. On CUDA the
GPU's memory counts.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaModel

from helpers.base.files import resolve, write_json
from helpers.batches import TrainingRows
from helpers.dataset import PassageIndex, load_data
from helpers.encoder import load_encoder, save_memory
from helpers.loss import infonce
from helpers.reporting.memory import Saving, training_memory
from helpers.training import Task, TrainingSettings, train

# every tensor over 1 MB goes back to the system when it is freed, or a peak would count the allocator's leftovers
EXACT = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)}
RESULTS = resolve("data/results/memory.json")
FULL = {
    "num_hidden_layers": 24,
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "vocab_size": 250_002,
    "max_position_embeddings": 8194,
}
SMALL = {
    "num_hidden_layers": 6,
    "hidden_size": 384,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "vocab_size": 30_522,
    "max_position_embeddings": 514,
}
SIZES = {  # architecture, tokens of a text, ways
    "full": (
        FULL,
        512,
        [
            {"batch_size": 4},
            {"batch_size": 4, "micro_batch": 1},
            {"batch_size": 4, "micro_batch": 1, "lora_rank": 16},
        ],
    ),
    "small": (
        SMALL,
        256,
        [
            {"batch_size": 8},
            {"batch_size": 16},
            {"batch_size": 16, "micro_batch": 4},
            {"batch_size": 16, "precision": "bf16"},
            {"batch_size": 16, "gradient_checkpointing": True},
            {"batch_size": 16, "lora_rank": 16},
        ],
    ),
}


def save_model(folder: Path, **size: int) -> None:
    """Write an XLM-RoBERTa of the given size with random weights and a tokenizer of single letters."""
    letters = {
        token: number for number, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *map(chr, range(32, 127))])
    }
    tokenizer = Tokenizer(models.WordLevel(letters, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)
    XLMRobertaModel(XLMRobertaConfig(type_vocab_size=1, **size), add_pooling_layer=False).save_pretrained(folder)


def peak_bytes() -> int:
    """Return the most memory that this process has held so far."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def computed_gb(model: Path, texts: float, length: int, **saving: object) -> float:
    """Return what a step with `texts` encoded at a time should need; `saving` are fields of `Saving`."""
    way = Saving(**saving, fused=torch.cuda.is_available())
    return round(training_memory(AutoConfig.from_pretrained(model), texts, length, way)["total"], 2)


def two_steps(
    model: Path, length: int, batch_size: int, micro_batch: int = 0, precision: str = "fp32", **saving: object
) -> dict:
    """Take two optimizer steps; return their peak memory and what was computed for it, seconds of a step and losses.

    On a CPU `peak_gb` holds Python, torch and the data too, `of_step_gb` does not.
    """
    data = load_data("data/sample")
    passages = PassageIndex(data.training_corpus())
    rows = TrainingRows(data, passages, {qid: [] for qid in data.split_queries("train", 60)}, hard_negatives=0)
    before = 0 if torch.cuda.is_available() else psutil.Process().memory_info().rss
    encoder = save_memory(load_encoder(str(model), max_length=length), **saving)
    trained = sum(parameter.numel() for parameter in encoder.parameters() if parameter.requires_grad)
    marks, infonce_loss = [], infonce()

    def loss(scores, batch):
        tokens = sum(inputs["input_ids"].numel() for inputs in (batch.queries, *batch.passages))
        marks.append((time.perf_counter(), tokens / length))  # questions are shorter than passages
        return infonce_loss(scores, batch)

    settings = TrainingSettings(
        batch_size=batch_size, max_steps=2, eval_every=2, precision=precision, micro_batch=micro_batch
    )
    with tempfile.TemporaryDirectory(dir=model.parent) as folder:
        history = train(encoder, Task(rows, lambda _encoder: 0.0, loss), settings, f"{folder}/model")
    peak, texts = peak_bytes(), micro_batch or max(texts for _, texts in marks)
    return {
        "peak_gb": round(peak / 1e9, 2),
        "of_step_gb": round((peak - before) / 1e9, 2),
        "computed_gb": computed_gb(model, texts, length, precision=precision, pieces=micro_batch > 0, **saving),
        "seconds_a_step": round(marks[-1][0] - marks[0][0], 1),
        "trained_parameters": trained,
        "losses": [entry["loss"] for entry in history[1:]],
    }


def main() -> None:
    """Measure what the results do not hold yet, or the way that is given, and print it."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("size", choices=list(SIZES))
    parser.add_argument("--way", type=json.loads, help="measure this one, in this process, and print JSON")
    parser.add_argument("--model", type=Path, help="a folder made by an earlier call")
    options = parser.parse_args()
    size, length, ways = SIZES[options.size]
    if options.way:
        print(json.dumps(two_steps(options.model, length, **options.way)))
        return
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []
    known = [(row["size"], row["way"]) for row in results]
    with tempfile.TemporaryDirectory() as name:
        model = Path(name) / "random"
        save_model(model, **size)
        for way in (way for way in ways if (options.size, way) not in known):
            command = [sys.executable, __file__, options.size, "--way", json.dumps(way), "--model", str(model)]
            done = subprocess.run(command, capture_output=True, text=True, env=EXACT)
            if done.returncode == 0:
                found = json.loads(done.stdout.splitlines()[-1])
            else:  # a negative exit is the signal that ended it: -9 when the machine's memory ran out
                saving = {key: value for key, value in way.items() if key not in ("batch_size", "micro_batch")}
                texts = way.get("micro_batch", way["batch_size"])  # the passages alone
                found = {
                    "failed": done.stderr[-300:] or f"exit {done.returncode}",
                    "computed_gb": computed_gb(model, texts, length, pieces="micro_batch" in way, **saving),
                }
            device = "cuda" if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
            results.append({"size": options.size, "length": length, "device": device, "way": way, **found})
            print(results[-1], flush=True)
            write_json(RESULTS, results)


if __name__ == "__main__":
    main()
