"""Memory: what is computed equals what autograd keeps and what a step takes; full size on demand."""

import json
import math
import os
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import XLMRobertaConfig, XLMRobertaModel

from helpers.base.files import ROOT
from helpers.reporting.memory import Saving, forward_flops, layer_activations, parameter_counts, training_memory
from tests.benchmarks.measure_memory import EXACT, FULL, SIZES, SMALL, save_model, two_steps

SHAPES = [(128, 256, 1024, 4), (64, 192, 512, 6), (256, 128, 512, 2)]  # tokens, hidden, inner, heads


def config_of(hidden, inner, heads, layers=2, **more):
    sizes = {"hidden_size": hidden, "intermediate_size": inner, "num_attention_heads": heads}
    return XLMRobertaConfig(vocab_size=100, max_position_embeddings=512, num_hidden_layers=layers, **sizes, **more)


def kept_by_autograd(config, length, precision, texts=4):
    """Return the bytes that autograd keeps of a forward pass, weights aside, each piece of memory counted once."""
    model = XLMRobertaModel(config, add_pooling_layer=False).train()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def look(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor keeps its address from being used again
        return tensor

    mask = torch.ones(texts, length, dtype=torch.long)
    mask[0, length // 2 :] = 0
    hooks = torch.autograd.graph.saved_tensors_hooks(look, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        model(input_ids=torch.randint(4, 99, mask.shape), attention_mask=mask)
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_layer_keeps_what_is_computed_for_it(shape, precision):
    length, *sizes = shape
    two, three = (kept_by_autograd(config_of(*sizes, layers=layers), length, precision) for layers in (2, 3))
    config = config_of(*sizes, layers=1)
    copy = 2 * parameter_counts(config)["matrices"] if precision == "bf16" else 0
    expected = 4 * layer_activations(config, length, Saving(precision, fused=False)) + copy
    assert three - two == pytest.approx(expected, rel=0.002)


@pytest.mark.parametrize("shape", SHAPES)
def test_parameters_are_counted_exactly(shape):
    config = config_of(*shape[1:])
    model = XLMRobertaModel(config, add_pooling_layer=False)
    assert parameter_counts(config)["all"] == sum(parameter.numel() for parameter in model.parameters())


def test_what_saves_memory_saves_the_part_that_it_should():
    config = XLMRobertaConfig(type_vocab_size=1, **FULL)
    plain = training_memory(config, 8, 512)
    assert plain["weights"] == pytest.approx(4 * 566_705_152 / 1e9)
    fewer, bf16 = training_memory(config, 2, 512), training_memory(config, 8, 512, Saving("bf16"))
    checkpointed = training_memory(config, 8, 512, Saving(gradient_checkpointing=True))
    lora = training_memory(config, 8, 512, Saving(lora_rank=16))
    assert fewer["activations"] == pytest.approx(plain["activations"] / 4)
    assert bf16["activations"] < 0.75 * plain["activations"] and bf16["weights"] > plain["weights"]
    assert checkpointed["activations"] < plain["activations"] / 8
    assert lora["AdamW"] < plain["AdamW"] / 50 and lora["weights"] > plain["weights"]


def test_the_peak_is_at_the_end_of_the_forward_pass_or_of_the_backward_pass():
    """Activations and gradients are there together only if texts are encoded in several rounds."""
    config = XLMRobertaConfig(type_vocab_size=1, **FULL)
    twice = 4 * parameter_counts(config)["embeddings"] / 1e9
    for texts in (0.1, 1, 8):
        whole, pieces = (training_memory(config, texts, 512, Saving(pieces=pieces)) for pieces in (False, True))
        fixed, gradients, activations = whole["weights"] + whole["AdamW"], whole["gradients"], whole["activations"]
        assert whole["total"] == pytest.approx(fixed + max(activations, gradients + twice))
        assert pieces["total"] == pytest.approx(fixed + gradients + max(activations, twice))
    lora = training_memory(config, 8, 512, Saving(lora_rank=16))
    assert lora["total"] == pytest.approx(lora["weights"] + lora["AdamW"] + lora["activations"])


def test_arithmetic_counts_what_a_forward_pass_multiplies():
    """torch's own counter of floating-point operations sees the same."""
    config = config_of(128, 256, 4, layers=3, attn_implementation="eager")
    model = XLMRobertaModel(config, add_pooling_layer=False).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.full((2, 50), 5))
    assert forward_flops(config, [50, 50]) == pytest.approx(counter.get_total_flops(), rel=1e-6)
    assert forward_flops(config, [100]) > forward_flops(config, [50, 50])


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "bge-m3-small"
    save_model(folder, **SMALL)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("way", [SIZES["small"][2][0], {"batch_size": 8, "lora_rank": 16}], ids=str)
def test_a_step_takes_what_is_computed_for_it(small, way):
    """In a process of its own, whose peak is this step's."""
    command = [
        sys.executable,
        "tests/benchmarks/measure_memory.py",
        "small",
        "--way",
        json.dumps(way),
        "--model",
        str(small),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=EXACT)
    found = json.loads(done.stdout.splitlines()[-1])
    assert all(math.isfinite(loss) and loss > 0 for loss in found["losses"]) and len(found["losses"]) == 2
    assert found["computed_gb"] == pytest.approx(found["of_step_gb"], rel=0.2)
    everything = parameter_counts(XLMRobertaConfig(type_vocab_size=1, **SMALL), way.get("lora_rank", 0))
    assert found["trained_parameters"] == everything["trained"]


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("RETRIEVER_COURSE_FULL"), reason="needs 16 GB of RAM: RETRIEVER_COURSE_FULL=1")
def test_a_model_of_full_size_takes_two_steps(tmp_path):
    save_model(tmp_path / "bge-m3-random", **FULL)
    found = two_steps(tmp_path / "bge-m3-random", 512, batch_size=4, micro_batch=1)
    assert found["trained_parameters"] > 560e6 and all(math.isfinite(loss) for loss in found["losses"])
    assert found["peak_gb"] < 16
