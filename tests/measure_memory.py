"""Peak memory of two optimizer steps on a model of BGE-M3's size, a fresh process for each way of saving memory.

    python tests/measure_memory.py            # writes data/results/memory.json; 16 GB of RAM, ten minutes

24 layers × 1024, 250,002 tokens, 567M parameters, with random weights: memory and time do not depend on their values.
A step has 4 questions and their 4 passages of 512 tokens. On CUDA it is the GPU's memory that counts.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaModel

from helpers.batches import TrainingRows
from helpers.dataset import PassageIndex, load_data
from helpers.encoder import load_encoder
from helpers.files import resolve, write_json
from helpers.training import TrainingSettings, train

WAYS = {
    "everything at once": {},
    "micro_batch 1": {"micro_batch": 1},
    "micro_batch 1, lora_rank 16": {"micro_batch": 1, "lora_rank": 16},
}
FULL = {"num_hidden_layers": 24, "hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096,
        "vocab_size": 250_002, "max_position_embeddings": 8194}  # fmt: skip


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
    config = XLMRobertaConfig(type_vocab_size=1, **FULL | size)
    XLMRobertaModel(config, add_pooling_layer=False).save_pretrained(folder)


def two_steps(model: Path, precision: str = "fp32", micro_batch: int = 0, **loading: object) -> dict:
    """Take two optimizer steps; return peak memory, seconds of the second step, trained parameters, both losses."""
    data = load_data("data/sample")
    passages = PassageIndex(data.training_corpus())
    rows = TrainingRows(data, passages, {qid: [] for qid in data.split_queries("train", 40)}, hard_negatives=0)
    encoder = load_encoder(str(model), max_length=512, **loading)
    trained = sum(parameter.numel() for parameter in encoder.parameters() if parameter.requires_grad)
    seen = []

    def look(_encoder) -> dict:
        if encoder.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated()
        else:
            peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        seen.append((time.perf_counter(), peak))
        return {}

    def no_score(_encoder) -> float:
        look(_encoder)
        return -len(seen)

    settings = TrainingSettings(batch_size=4, max_steps=2, eval_every=2, precision=precision, micro_batch=micro_batch)
    with tempfile.TemporaryDirectory(dir=model.parent) as folder:
        history = train(encoder, rows, passages, settings, no_score, f"{folder}/model", look, 1)
    (_, _), (first, _), (second, peak) = seen  # before training, after each step
    return {
        "peak_gb": round(peak / 1e9, 2),
        "seconds_a_step": round(second - first, 1),
        "trained_parameters": trained,
        "losses": [entry["loss"] for entry in history[1:]],
    }


def main() -> None:
    """Measure every way, or the one named, and print or write the figures."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--way", choices=list(WAYS), help="measure this one, in this process, and print JSON")
    parser.add_argument("--model", type=Path, help="a folder made by an earlier call")
    options = parser.parse_args()
    if options.way:
        print(json.dumps(two_steps(options.model, **WAYS[options.way])))
        return
    with tempfile.TemporaryDirectory() as name:
        model = options.model or Path(name) / "bge-m3-random"
        if not model.exists():
            save_model(model)
        found = {}
        for way in WAYS:
            command = [sys.executable, __file__, "--way", way, "--model", str(model)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode == 0:
                found[way] = json.loads(done.stdout.splitlines()[-1])
            else:  # a negative exit is the signal that ended it: -9 when the machine's memory ran out
                found[way] = {"failed": done.stderr[-300:] or f"exit {done.returncode}"}
            print(way, found[way], flush=True)
            device = "cuda" if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
            figures = {"device": device, "batch_size": 4, "length": 512, "ways": found}
            write_json(resolve("data/results/memory.json"), figures)


if __name__ == "__main__":
    main()
