"""What only a CUDA device can show; skipped without one. `make gpu` runs these tests first.

python -m pytest tests/test_cuda.py
"""

import json
import os
import signal
import subprocess
import sys
import warnings
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from helpers.base.devices import autocast
from helpers.base.errors import TrainingError
from helpers.base.files import ROOT
from helpers.batches import TrainingRows, make_batch
from helpers.encoder import load_encoder, save_memory
from helpers.gradients import add_gradient, make_engine, training_step
from helpers.loss import infonce
from helpers.negatives import mine_pool
from helpers.strategies import bm25_strategy
from helpers.training import Task, TrainingSettings, train
from tests.tiny_models import bert_tokenizer

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
SCALE = 256.0  # of a loss in fp16
SIZE = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024}


def save_model(folder, texts, dropout):
    """Write a BERT of 4 layers × 256 with random weights: small, but its activations are not."""
    torch.manual_seed(0)
    tokenizer = bert_tokenizer(texts)
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    BertModel(BertConfig(vocab_size=len(tokenizer), initializer_range=0.1, **SIZE, **rates)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory, train_passages):
    """A model without dropout, so that every way of a step gives the same gradient."""
    return save_model(tmp_path_factory.mktemp("without dropout"), train_passages.texts, 0.0)


@pytest.fixture(scope="module")
def dropping(tmp_path_factory, train_passages):
    return save_model(tmp_path_factory.mktemp("with dropout"), train_passages.texts, 0.1)


@pytest.fixture(scope="module")
def rows(sample, train_passages):
    qids = sample.split_queries("train", limit=96)
    pool = mine_pool(sample, train_passages, bm25_strategy(sample, train_passages), qids)
    return TrainingRows(sample, train_passages, pool.ids())


@pytest.fixture(autouse=True)
def _exact():
    """No limit of memory and no precision are left to the next test."""
    yield
    torch.set_float32_matmul_precision("high")
    torch.cuda.set_per_process_memory_fraction(1.0)


def load(folder, device="cuda"):
    """An encoder, and from here on fp32 without TF32."""
    encoder = load_encoder(str(folder), max_length=128, device=device)
    torch.set_float32_matmul_precision("highest")
    return encoder


def gradient(encoder, batch, micro_batch=0, precision="fp32"):
    encoder.zero_grad()
    engine = make_engine(encoder, infonce(), TrainingSettings(precision=precision))
    if precision == "fp16":
        engine.accelerator.scaler = torch.amp.GradScaler(init_scale=SCALE)
    encoder.train()
    measures = add_gradient(engine, batch, micro_batch, (1, 2))
    found = torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None])
    return found.cpu(), measures["loss"].item()


def off(one, other):
    return ((one - other).norm() / other.norm()).item()


def batch_of(encoder, rows, count=16):
    return make_batch([rows[number] for number in range(count)], rows, encoder).pin_memory()


def test_vectors_equal_the_cpus(folder, sample_passages):
    texts = sample_passages.texts[:200]
    expected = load(folder, "cpu").encode(texts, "passage")
    encoder = load(folder)
    np.testing.assert_allclose(encoder.encode(texts, "passage"), expected, atol=2e-5)
    for batch_tokens in (1, 700, 10**6):
        np.testing.assert_allclose(encoder.encode(texts, "passage", batch_tokens), expected, atol=2e-5)


def test_tf32_bf16_and_fp16_vectors_agree_with_fp32(folder, sample_passages):
    texts, encoder = sample_passages.texts[:200], load(folder)
    expected = encoder.encode(texts, "passage")
    torch.set_float32_matmul_precision("high")
    for precision, least in (("fp32", 0.99999), ("fp16", 0.9999), ("bf16", 0.999)):
        encoder.precision = precision
        vectors = encoder.encode(texts, "passage")
        assert vectors.dtype == np.float32 and (vectors * expected).sum(1).min() > least, precision


def test_loss_and_gradient_equal_the_cpus(folder, rows):
    encoder, there = load(folder), load(folder, "cpu")
    expected, loss = gradient(there, make_batch([rows[n] for n in range(16)], rows, there))
    found, measured = gradient(encoder, batch_of(encoder, rows))
    assert measured == pytest.approx(loss, rel=1e-4) and off(found, expected) < 1e-3


@pytest.mark.parametrize("micro_batch", [1, 7, 100])
def test_gradcache_gives_the_gradient_of_the_whole_batch(folder, rows, micro_batch):
    encoder = load(folder)
    batch = batch_of(encoder, rows)
    (expected, loss), (found, measured) = gradient(encoder, batch), gradient(encoder, batch, micro_batch)
    assert measured == pytest.approx(loss, rel=1e-5) and off(found, expected) < 1e-4


def test_gradcache_drops_the_same_twice(dropping, rows):
    """The pieces of a whole batch and of a micro-batch that holds each of them are the same, and so is dropout."""
    encoder = load(dropping)
    batch = batch_of(encoder, rows)
    (expected, loss), (found, measured) = gradient(encoder, batch), gradient(encoder, batch, 10**6)
    assert measured == pytest.approx(loss, rel=1e-5) and off(found, expected) < 1e-4
    assert off(gradient(load(dropping), batch)[0], expected) < 1e-4  # and another process would drop it, too


@pytest.mark.parametrize(("precision", "loss_off", "gradient_off"), [("bf16", 0.02, 0.1), ("fp16", 0.005, 0.03)])
def test_mixed_precision_gives_nearly_the_gradient_of_fp32(folder, rows, precision, loss_off, gradient_off):
    encoder = load(folder)
    batch = batch_of(encoder, rows)
    expected, loss = gradient(encoder, batch)
    found, measured = gradient(encoder, batch, precision=precision)
    if precision == "fp16":
        found = found / SCALE
    assert measured == pytest.approx(loss, rel=loss_off) and off(found, expected) < gradient_off


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_loss_falls_in_every_precision(dropping, rows, tmp_path, precision):
    settings = TrainingSettings(max_steps=60, epochs=60, learning_rate=3e-4, precision=precision, workers=2)
    history = train(load(dropping), Task(rows, lambda _encoder: 0.5), settings, tmp_path / "model")
    losses = [entry["loss"] for entry in history[1:]]
    skipped = sum(entry["gradient_norm"] is None for entry in history[1:])
    assert np.isfinite(losses).all() and np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    assert skipped <= (10 if precision == "fp16" else 0)


def test_workers_and_pinned_memory_change_nothing(folder, rows, tmp_path):
    found = []
    for workers in (0, 3):
        settings = TrainingSettings(max_steps=8, workers=workers)
        history = train(load(folder), Task(rows, lambda _encoder: 0.5), settings, tmp_path / str(workers))
        found.append([entry["loss"] for entry in history[1:]])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_gradient_checkpointing_and_lora_work(dropping, rows, tmp_path):
    for way in ({"gradient_checkpointing": True}, {"lora_rank": 4}, {"gradient_checkpointing": True, "lora_rank": 4}):
        encoder = save_memory(load(dropping), **way)
        settings = TrainingSettings(max_steps=4, precision="bf16", micro_batch=8)
        history = train(encoder, Task(rows, lambda _encoder: 0.5), settings, tmp_path / "model")
        assert all(np.isfinite(entry["loss"]) for entry in history[1:]), way


def peak_of(work):
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    work()
    return torch.cuda.max_memory_reserved()


def limit_memory(size):
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(size / torch.cuda.get_device_properties(0).total_memory)


def one_step(folder, batch):
    """A first step from the same weights: what it returns, and the weights after it."""
    encoder = load(folder)
    engine = make_engine(encoder, infonce(), TrainingSettings())
    measures = training_step(engine, [batch])
    return measures, torch.cat([parameter.detach().flatten() for parameter in encoder.parameters()]).cpu()


def test_a_step_that_runs_out_of_memory_is_repeated_in_smaller_pieces(folder, rows, capsys):
    """Limits between the memory of single texts and that of the whole batch end forward and backward passes alike."""
    batch = batch_of(load(folder), rows, 96)
    expected, weights = one_step(folder, batch)
    most = peak_of(lambda: one_step(folder, batch))
    encoder = load(folder)
    engine = make_engine(encoder, infonce(), TrainingSettings())
    least = peak_of(partial(training_step, engine, [batch], micro_batch=1))
    encoder = engine = None
    seen = []
    for share in (0.1, 0.3, 0.5, 0.7, 0.9):
        limit_memory(least + share * (most - least))
        found, changed = one_step(folder, batch)
        seen.append(found["micro_batch"])
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert found["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=1e-3)
        assert (changed - weights).abs().max() < 1e-5
    assert capsys.readouterr().out.count("repeated with micro_batch") >= 4
    assert all(seen[:3]) and min(seen[:3]) == seen[0] < 96


def test_one_text_that_does_not_fit_is_told(folder, rows):
    batch = batch_of(load(folder), rows)
    encoder = load(folder)
    engine = make_engine(encoder, infonce(), TrainingSettings())
    limit_memory(torch.cuda.memory_allocated())
    filler = []
    with suppress(torch.OutOfMemoryError):  # what the allocator still holds
        while True:
            filler.append(torch.empty(2**20, dtype=torch.uint8, device="cuda"))
    with pytest.raises(TrainingError, match="out of memory with one text of"):
        training_step(engine, [batch])


def test_encoding_that_runs_out_of_memory_goes_on_in_smaller_batches(folder, sample_passages):
    encoder, texts = load(folder), sample_passages.texts
    expected = encoder.encode(texts, "passage")
    need = [peak_of(lambda size=size: encoder.encode(texts, "passage", size)) for size in (2000, 10**6)]
    limit_memory(need[0] + 0.3 * (need[1] - need[0]))
    np.testing.assert_allclose(encoder.encode(texts, "passage", 10**6), expected, atol=2e-5)


def test_a_step_waits_for_the_device_once(dropping, rows):
    """Beside the check of transformers whether a piece has padding, one for each piece."""
    encoder = load(dropping)
    engine = make_engine(encoder, infonce(), TrainingSettings(precision="bf16"))
    batches = [batch_of(encoder, rows) for _ in range(3)]
    training_step(engine, batches[:1])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        training_step(engine, batches[1:2], micro_batch=0)
        torch.cuda.set_sync_debug_mode("default")
    waits = [warning for warning in caught if "called a synchronizing" in str(warning.message)]
    where = Counter("transformers" if "transformers" in warning.filename else warning.filename for warning in waits)
    where.pop("transformers", None)
    assert sum(where.values()) == 1, where


KILLED = """
import os, signal, sys
import tests.test_cuda as t
from helpers.dataset import PassageIndex, load_data
from helpers.batches import TrainingRows
from helpers.training import Task, TrainingSettings, train
data = load_data("data/sample")
rows = TrainingRows(data, PassageIndex(data.training_corpus()), {q: [] for q in data.split_queries("train", 96)}, 0)
calls = []
def evaluate(encoder):
    calls.append(1)
    if len(calls) == 4 and sys.argv[3] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    return 0.5 + len(calls) / 100
settings = TrainingSettings(max_steps=20, epochs=20, eval_every=5, learning_rate=1e-4, resume=True, precision="bf16")
history = train(t.load(sys.argv[1]), Task(rows, evaluate), settings, sys.argv[2])
print(__import__("json").dumps([entry["loss"] for entry in history[1:]]))
"""


def test_a_killed_run_goes_on_where_it_was(dropping, tmp_path):
    def run(name, how):
        command = [sys.executable, "-c", KILLED, str(dropping), str(tmp_path / name), how]
        quiet = {**os.environ, "TQDM_DISABLE": "1"}
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=quiet)

    whole = run("whole", "live")
    killed = run("again", "kill")
    assert whole.returncode == 0 and killed.returncode == -signal.SIGKILL, whole.stderr[-500:]
    assert [path.name for path in Path(tmp_path / "again.checkpoints").iterdir() if path.is_dir()]
    resumed = run("again", "live")
    losses = [json.loads(done.stdout.splitlines()[-1]) for done in (whole, resumed)]
    assert len(losses[1]) == 20 and losses[1] == pytest.approx(losses[0], rel=0.02)


def test_autocast_ends_with_its_block():
    with autocast(torch.device("cuda"), "bf16"):
        assert torch.is_autocast_enabled("cuda")
    assert not torch.is_autocast_enabled("cuda")
