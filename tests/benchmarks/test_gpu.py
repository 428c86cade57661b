"""The GPU script's tiny form runs on a CPU, and its committed results are what notebook 03 and README say."""

import json
import os
import subprocess
import sys

import pytest
import torch
from transformers import XLMRobertaConfig

from helpers.base.files import ROOT, read_json
from helpers.reporting.memory import Saving, training_memory
from tests.benchmarks.measure_memory import FULL
from tests.tiny_models import save_bert


def measure(out, *options):
    command = [sys.executable, "-m", "tests.benchmarks.measure_gpu", *options, "--out", str(out)]
    quiet = {**os.environ, "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=quiet)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_without_a_gpu_it_says_what_it_needs(tmp_path):
    done = measure(tmp_path / "gpu.json")
    assert done.returncode == 1 and done.stdout.startswith("make gpu needs a CUDA GPU") and not done.stderr
    assert not (tmp_path / "gpu.json").exists()


@pytest.mark.bench
def test_every_stage_runs_in_its_tiny_form(tmp_path, sample):
    small = tmp_path / "small"  # BERT-tiny would take minutes where bf16 is emulated
    save_bert(small, sample.corpus["text"], max_position_embeddings=512)
    stages = "card", "training", "profile", "encoding", "grid"
    done = measure(tmp_path / "gpu.json", *stages, "--tiny", "--model", str(small))
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["card"][0]["bf16_tflops"] > 0
    assert [row["lengths"] for row in found["training"]].count("512") == 6
    for row in found["training"]:
        assert row["seconds_a_step"] > 0 and row["tokens_a_second"] > 0 and 0 <= row["padding"] < 1
        assert row["micro_batch"] == row["way"].get("micro_batch", 0) and row["computed_gb"] > 0
    for row in found["against the trainer"] + found["encoding"]:
        assert 0 < row["ratio_min"] <= row["ratio_median"] <= row["ratio_max"]
    assert {row["model"] for row in found["encoding"]} == {"random-bge-m3", "small"}
    assert all(row["least_cosine_to_fp32"]["bf16"] > 0.999 for row in found["agreement"])
    first = found["grid"][0]
    assert len(found["grid"]) == 4 and (first["temperature"], first["learning_rate"]) == (0.05, 2e-5)
    assert first["Hit@10 minus the first"][0] == 0
    assert found["profile"][0]["seconds_a_step"] > 0


def test_computed_memory_is_within_15_percent_of_the_measured_peaks():
    rows = [row for row in read_json(ROOT / "data/results/gpu.json")["training"] if "failed" not in row]
    assert len(rows) == 7
    config = XLMRobertaConfig(type_vocab_size=1, **FULL)
    for row in rows:
        way = row["way"]
        saving = Saving(way["precision"], way.get("gradient_checkpointing", False), pieces="micro_batch" in way)
        computed = training_memory(config, row["padded_tokens"], 1, saving)["total"]
        assert computed == pytest.approx(row["peak_gb"], rel=0.15)
        assert row["computed_gb"] == pytest.approx(computed, rel=1e-3)
