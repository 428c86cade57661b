"""A model that is missing, damaged or impossible: one sentence that names the model and the cause."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PegasusConfig, PegasusModel, T5Config, T5Model

from helpers.base.assets import fetch
from helpers.base.errors import ModelError
from helpers.encoder import load_encoder


def assert_refused(model_name, *parts):
    """Loading must fail with one sentence that holds the model's name and `parts`."""
    with pytest.raises(ModelError) as caught:
        load_encoder(str(model_name), device="cpu")
    message = str(caught.value)
    for part in (str(model_name), *parts):
        assert part in message
    assert "\n" not in message and len(message) < 400 + 2 * len(str(model_name))


@pytest.mark.parametrize("name", ["no-such/model", "nothing", "/no/such/folder", "not a name"])
def test_a_model_that_is_not_there_is_one_clear_error(name, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert_refused(name, "could not be loaded", "HF_ENDPOINT", "bert-tiny")


@pytest.fixture
def folder(tmp_path):
    """A copy of bert-tiny to damage."""
    return shutil.copytree(fetch("bert-tiny"), tmp_path / "bert")


def altered(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def test_missing_weights_are_an_error(folder):
    assert_refused(altered(folder, num_hidden_layers=3), "lacks 16 weights", "encoder.layer.2")


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["{", "not JSON", "[1]", "3", "", "\udcff"])
def test_a_damaged_json_file_is_an_error(folder, file, content):
    (folder / file).write_text(content, errors="surrogateescape")
    assert_refused(folder, "could not be loaded", "tokenizer" if "tokenizer" in file else "model")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_size", -1),
        ("hidden_size", 64),  # other than that of the weights
        ("hidden_size", "128"),
        ("num_attention_heads", 3),
        ("num_attention_heads", -1),
        ("num_hidden_layers", 0),
        ("max_position_embeddings", -1),
        ("vocab_size", None),
        ("hidden_act", "nonsense"),
        ("attention_probs_dropout_prob", 2),
        ("model_type", "nonsense"),
        ("model_type", 3),
    ],
)
def test_an_impossible_value_in_the_config_is_an_error(folder, name, value):
    assert_refused(altered(folder, **{name: value}), "could not be loaded")


@pytest.mark.parametrize("damage", ["gone", "empty", "garbage", "truncated", "not finite"])
def test_damaged_weights_are_an_error(folder, damage):
    weights = folder / "model.safetensors"
    if damage == "gone":
        weights.unlink()
    elif damage == "not finite":
        save_file({name: tensor * torch.nan for name, tensor in load_file(weights).items()}, weights)
    else:
        weights.write_bytes({"empty": b"", "garbage": b"garbage" * 10}.get(damage, weights.read_bytes()[:-1000]))
    assert_refused(folder, "not finite" if damage == "not finite" else "weights of")


@pytest.mark.parametrize("content", [b"", b"garbage" * 10])
def test_damaged_torch_weights_are_an_error(folder, content):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(content)
    assert_refused(folder, "weights of", "Error")


def test_a_missing_tokenizer_is_an_error(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    assert_refused(folder, "no tokenizer")


def test_a_model_that_is_no_encoder_is_an_error(folder):
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = PegasusConfig(vocab_size=30522, d_model=16, encoder_ffn_dim=16, decoder_ffn_dim=16, **sizes)
    PegasusModel(config).save_pretrained(folder)
    assert_refused(folder, "specify")


def test_of_a_t5_the_encoder_is_taken(folder):
    config = T5Config(vocab_size=30522, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    T5Model(config).save_pretrained(folder)
    encoder = load_encoder(str(folder), device="cpu")
    assert type(encoder.model).__name__ == "T5EncoderModel" and encoder.encode(["a"], "query").shape == (1, 16)


def test_a_path_that_is_no_folder_is_an_error(folder, tmp_path):
    for file in ("model.safetensors", "config.json"):
        assert_refused(folder / file, "could not be loaded")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert_refused(tmp_path / "loop", "could not be loaded")
    assert_refused("a\0b", "null")
    assert_refused("x" * 5000, "too long")


@pytest.mark.parametrize("file", ["1_Pooling/config.json", "retriever.json"])
@pytest.mark.parametrize("content", ["{", "[1]", "[]", '"cls"', "\udcff"])
def test_a_damaged_profile_is_an_error(folder, file, content):
    (folder / "1_Pooling").mkdir()
    (folder / file).write_text(content, errors="surrogateescape")
    assert_refused(folder, file)
