"""The encoder: the same vectors as sentence-transformers, whatever else is in the batch."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

import helpers.encoder
from helpers.base.assets import fetch
from helpers.base.devices import choose_device, is_out_of_memory
from helpers.base.errors import ModelError, SettingError
from helpers.encoder import Encoder, load_encoder
from helpers.profiles import PROFILE_FILE

no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")


@pytest.fixture(scope="module")
def texts(sample_passages):
    return sample_passages.texts[:50]


def reference(folder, encoder, texts, pooling):
    """Return the vectors that sentence-transformers computes from the same files."""
    st = pytest.importorskip("sentence_transformers")
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    transformer = modules.Transformer(str(folder), max_seq_length=encoder.profile.max_length)
    parts = [transformer, modules.Pooling(encoder.model.config.hidden_size, pooling)]
    parts += [modules.Normalize()] if encoder.profile.normalize else []
    return st.SentenceTransformer(modules=parts, device="cpu").encode(texts, batch_size=16, show_progress_bar=False)


@pytest.mark.parametrize(("pooling", "normalize"), [("mean", True), ("cls", True), ("mean", False)])
@pytest.mark.parametrize("name", ["bert-tiny", "all-MiniLM-L6-v2"])
def test_vectors_equal_those_of_sentence_transformers(name, pooling, normalize, texts):
    encoder = load_encoder(name, device="cpu")
    assert (encoder.profile.pooling, encoder.profile.normalize) == ("mean", True)
    encoder.profile = replace(encoder.profile, pooling=pooling, normalize=normalize)
    vectors = encoder.encode(texts, "passage")
    assert vectors.shape == (50, encoder.model.config.hidden_size)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, reference(fetch(name), encoder, texts, pooling), atol=1e-5)


def test_vectors_have_length_one(bert_tiny, texts):
    np.testing.assert_allclose(np.linalg.norm(bert_tiny.encode(texts, "passage"), axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("batch_tokens", [1, 300, 100_000])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_vector_does_not_depend_on_its_batch(bert_tiny, texts, pooling, batch_tokens):
    encoder = Encoder(bert_tiny.model, bert_tiny.tokenizer, replace(bert_tiny.profile, pooling=pooling)).eval()
    mixed = ["Short.", *texts[:9], " ".join(texts[20:30]), "x"]
    alone = np.concatenate([encoder.encode([text], "passage") for text in mixed])
    np.testing.assert_allclose(encoder.encode(mixed, "passage", batch_tokens), alone, atol=1e-5)
    np.testing.assert_allclose(encoder.encode(mixed[::-1], "passage", batch_tokens), alone[::-1], atol=1e-5)


def test_batches_keep_to_their_tokens_and_hold_hardly_any_padding(texts, monkeypatch):
    encoder = load_encoder("bert-tiny", device="cpu")
    batches, forward = [], encoder.forward

    def spy(input_ids, attention_mask):
        batches.append(attention_mask)
        return forward(input_ids, attention_mask)

    monkeypatch.setattr(encoder, "forward", spy)
    encoder.encode([text[: 10 * number] for number, text in enumerate(texts, start=1)], "passage", batch_tokens=400)
    assert len(batches) > 3
    assert max(mask.numel() for mask in batches) <= 400
    assert sum(mask.sum() for mask in batches) / sum(mask.numel() for mask in batches) > 0.85


def test_the_prefix_is_in_the_token_ids():
    encoder = load_encoder("bert-tiny", prefixes=["query: ", "passage: "], device="cpu")
    ids = {kind: encoder.tokenize(["rivers"], kind)[0] for kind in ("query", "passage")}
    start, end = encoder.tokenizer.cls_token_id, encoder.tokenizer.sep_token_id
    for kind, got in ids.items():
        words = encoder.tokenizer.convert_tokens_to_ids([kind, ":", "rivers"])
        assert encoder.tokenizer.unk_token_id not in words
        assert got == [start, *words, end]


def test_an_unknown_kind_of_text_is_an_error(bert_tiny):
    with pytest.raises(KeyError):
        bert_tiny.tokenize(["rivers"], "document")


def test_long_texts_are_cut_to_max_length(texts):
    encoder = load_encoder("bert-tiny", max_length=16, device="cpu")
    whole = load_encoder("bert-tiny", device="cpu").tokenize(texts, "passage")
    end = encoder.tokenizer.sep_token_id
    for cut, full in zip(encoder.tokenize(texts, "passage"), whole, strict=True):
        assert cut == [*full[:15], end]
    assert encoder.encode(texts[:1], "passage").shape == (1, 128)


def test_padding_is_masked(bert_tiny):
    padded = bert_tiny.pad([[101, 7, 102], [101, 102]])
    assert padded["input_ids"].tolist() == [[101, 7, 102], [101, 102, bert_tiny.tokenizer.pad_token_id]]
    assert padded["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]


@pytest.mark.parametrize("kind", ["query", "passage"])
def test_no_text_gives_no_vector(bert_tiny, kind):
    assert bert_tiny.encode([], kind).shape == (0, 128)


@pytest.mark.parametrize("training", [True, False])
def test_encode_has_no_dropout_and_restores_the_mode(training, texts):
    encoder = load_encoder("bert-tiny", device="cpu").train(training)
    one, two = encoder.encode(texts[:3], "passage"), encoder.encode(texts[:3], "passage")
    assert encoder.training is training
    assert (one == two).all()


def test_save_and_load_give_the_same_encoder(tmp_path, texts):
    encoder = load_encoder("bert-tiny", prefixes=["ask: ", "tell: "], max_length=40, device="cpu")
    encoder.save(tmp_path / "model", step=3)
    encoder.save(tmp_path / "model", step=4)  # over the old one
    again = load_encoder(str(tmp_path / "model"), device="cpu")
    assert again.profile == encoder.profile
    assert (again.encode(texts, "passage") == encoder.encode(texts, "passage")).all()
    assert json.loads((tmp_path / "model" / PROFILE_FILE).read_text())["step"] == 4


def test_only_safetensors_are_written_and_nothing_temporary(tmp_path, bert_tiny):
    bert_tiny.save(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", PROFILE_FILE} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl", ".tmp"))]


@pytest.mark.parametrize("name", ["no-such/model", "nothing", "/no/such/folder", "not a name"])
def test_a_model_that_is_not_there_is_one_clear_error(name, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="could not be loaded") as caught:
        load_encoder(name, device="cpu")
    assert name in str(caught.value)
    assert "HF_ENDPOINT" in str(caught.value)
    assert "\n" not in str(caught.value)


@no_cuda
def test_missing_cuda_is_reported_before_anything_is_loaded(monkeypatch):
    def loaded(*_, **__):
        raise AssertionError("something was loaded")

    monkeypatch.setattr(helpers.encoder, "fetch", loaded)
    monkeypatch.setattr(helpers.encoder.AutoConfig, "from_pretrained", loaded)
    with pytest.raises(SettingError, match="CUDA"):
        load_encoder("bert-tiny", device="cuda")


def test_an_unknown_device_is_an_error():
    with pytest.raises(SettingError, match="'tpu'"):
        choose_device("tpu")
    assert choose_device("cpu") == "cpu"
    assert choose_device() == ("cuda" if torch.cuda.is_available() else "cpu")


def altered(folder, **changes):
    """Return a copy of bert-tiny at `folder` with another config."""
    shutil.copytree(fetch("bert-tiny"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def test_missing_weights_are_an_error(tmp_path):
    with pytest.raises(ModelError, match=r"lacks 16 weights.*encoder\.layer\.2"):
        load_encoder(str(altered(tmp_path / "bert", num_hidden_layers=3)), device="cpu")


@pytest.mark.parametrize(
    ("file", "content"), [("config.json", "{"), ("tokenizer.json", "{"), ("model.safetensors", None)]
)
def test_a_damaged_model_folder_is_an_error(tmp_path, file, content):
    folder = altered(tmp_path / "bert")
    (folder / file).unlink() if content is None else (folder / file).write_text(content)
    with pytest.raises(ModelError, match="could not be loaded"):
        load_encoder(str(folder), device="cpu")


@pytest.mark.parametrize("damage", ["garbage", "other size"])
def test_damaged_weights_are_an_error(tmp_path, damage):
    folder = altered(tmp_path / "bert", **({"hidden_size": 64} if damage == "other size" else {}))
    if damage == "garbage":
        (folder / "model.safetensors").write_bytes(b"garbage" * 10)
    with pytest.raises(ModelError, match="could not be loaded"):
        load_encoder(str(folder), device="cpu")


def test_a_missing_tokenizer_is_an_error(tmp_path):
    folder = altered(tmp_path / "bert")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match="tokenizer"):
        load_encoder(str(folder), device="cpu")


def test_more_tokens_than_positions_are_an_error():
    assert load_encoder("bert-tiny", max_length=512, device="cpu").profile.max_length == 512
    with pytest.raises(SettingError, match=r"513.*512"):
        load_encoder("bert-tiny", max_length=513, device="cpu")


def test_the_familys_length_is_cut_to_the_positions(tmp_path):
    folder = tmp_path / "bert"
    load_encoder("bert-tiny", device="cpu").save(folder)
    (folder / PROFILE_FILE).unlink()
    config = json.loads((folder / "config.json").read_text()) | {"max_position_embeddings": 64}
    encoder = load_encoder("bert-tiny", device="cpu")
    encoder.model.embeddings.position_embeddings = torch.nn.Embedding(64, 128)
    encoder.model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    cut = load_encoder(str(folder), device="cpu")
    assert cut.profile.max_length == 64
    assert len(cut.tokenize(["word " * 100], "passage")[0]) == 64


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            True,
        ),
        (MemoryError(), True),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_lack_of_memory_is_told_from_other_errors(error, expected):
    assert is_out_of_memory(error) is expected
