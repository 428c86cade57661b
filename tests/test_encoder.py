"""The encoder: the same vectors as sentence-transformers, whatever else is in the batch."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

import helpers.encoder
from helpers.base.assets import fetch
from helpers.base.devices import bf16_gain, choose_device, has_bf16, is_out_of_memory, one_behind
from helpers.base.errors import ModelError, SettingError
from helpers.base.pretrained import weights_fingerprint
from helpers.encoder import Encoder, load_encoder, pad_texts, save_memory
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
    parts = [transformer, modules.Pooling(encoder.dimension, pooling)]
    parts += [modules.Normalize()] if encoder.profile.normalize else []
    return st.SentenceTransformer(modules=parts, device="cpu").encode(texts, batch_size=16, show_progress_bar=False)


@pytest.mark.parametrize(("pooling", "normalize"), [("mean", True), ("cls", True), ("mean", False)])
@pytest.mark.parametrize("name", ["bert-tiny", "all-MiniLM-L6-v2"])
def test_vectors_equal_those_of_sentence_transformers(name, pooling, normalize, texts):
    encoder, texts = load_encoder(name, device="cpu"), texts[:20]
    assert (encoder.profile.pooling, encoder.profile.normalize) == ("mean", True)
    encoder.profile = replace(encoder.profile, pooling=pooling, normalize=normalize)
    vectors = encoder.encode(texts, "passage")
    assert vectors.shape == (20, *encoder.output_shape(9)) == (20, encoder.dimension)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, reference(fetch(name), encoder, texts, pooling), atol=1e-5)


def test_a_batch_is_computed_while_the_one_before_is_used():
    asked = []

    def batches():
        for number in range(5):
            asked.append(number)
            yield number

    assert [(batch, len(asked)) for batch in one_behind(batches())] == [(0, 2), (1, 3), (2, 4), (3, 5), (4, 5)]
    assert list(one_behind([])) == [] and list(one_behind([7])) == [7]


def test_bf16_multiplies_coarsely_and_sums_finely(bert_tiny, texts):
    encoder = Encoder(bert_tiny.model, bert_tiny.tokenizer, bert_tiny.profile).eval()
    exact = encoder.encode(texts, "passage")
    encoder.precision = "bf16"
    found = encoder.encode(texts, "passage")
    assert found.dtype == np.float32 and not torch.is_autocast_enabled("cpu")
    assert 0.999 < (found * exact).sum(1).min() < 0.9999999 and (found != exact).any()


def test_the_gain_of_bf16_is_measured_where_there_is_any():
    assert bf16_gain() >= 0 and bf16_gain() == bf16_gain()
    assert (bf16_gain() > 0) == has_bf16()


@pytest.mark.parametrize(("max_length", "expected"), [(512, 16), (12, 12), (9, 9)])
def test_lengths_are_rounded_up_in_bf16_and_vectors_stay(bert_tiny, max_length, expected):
    profile = replace(bert_tiny.profile, max_length=max_length, query_prefix="query: ", include_prompt=False)
    encoder = Encoder(bert_tiny.model, bert_tiny.tokenizer, profile).eval()
    tokens = encoder.tokenize(["the cause of the tides", "the moon and its pull"], "query")
    exact = encoder.pad(tokens, "query")
    assert encoder.multiple == 1 and exact["input_ids"].shape == (2, max(map(len, tokens)))
    encoder.precision = "bf16"
    padded = encoder.pad(tokens, "query")
    assert encoder.multiple == 16 and all(tensor.shape == (2, expected) for tensor in padded.values())
    assert padded.keys() == exact.keys() == {"input_ids", "attention_mask", "pooled"}
    for name, tensor in exact.items():
        assert padded[name][:, : tensor.shape[1]].equal(tensor)
    assert not padded["attention_mask"][:, max(map(len, tokens)) :].any()
    torch.testing.assert_close(encoder(**padded), encoder(**exact))  # without autocast: the same numbers


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


def test_running_out_of_memory_halves_the_batch(texts, monkeypatch):
    encoder = load_encoder("bert-tiny", device="cpu")
    expected, sizes, forward = encoder.encode(texts[:8], "passage"), [], encoder.forward

    def small(input_ids, attention_mask):
        sizes.append(len(input_ids))
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(input_ids, attention_mask)

    monkeypatch.setattr(encoder, "forward", small)
    np.testing.assert_allclose(encoder.encode(texts[:8], "passage"), expected, atol=1e-5)
    assert sizes[:3] == [8, 4, 2] and set(sizes[3:]) == {2}


def test_a_corpus_is_read_window_by_window(bert_tiny, texts, monkeypatch):
    expected = bert_tiny.encode(texts[:20], "passage")
    monkeypatch.setattr(helpers.encoder, "WINDOW", 6)
    np.testing.assert_allclose(bert_tiny.encode(texts[:20], "passage"), expected, atol=1e-5)
    windows = list(bert_tiny.encode_windows(texts[:20], "passage", 8))
    assert [len(window) for window in windows] == [8, 8, 4]
    np.testing.assert_allclose(np.concatenate(windows), expected, atol=1e-5)


class TokenEncoder(Encoder):
    """One vector per token: what comes out depends on the length of the text."""

    kind = "tokens"

    def output_shape(self, length):
        return length, self.dimension

    def forward(self, input_ids, attention_mask):
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return hidden * attention_mask[:, :, None]


@pytest.mark.parametrize("window", [4, 50_000])
def test_outputs_that_depend_on_the_length_are_padded_to_the_longest_text(bert_tiny, texts, monkeypatch, window):
    monkeypatch.setattr(helpers.encoder, "WINDOW", window)
    encoder = TokenEncoder(bert_tiny.model, bert_tiny.tokenizer, bert_tiny.profile).eval()
    mixed = ["Short.", "A river.", *texts[:3], "Sea.", texts[4] + texts[5], "x", "Rome"]
    lengths = [len(ids) for ids in encoder.tokenize(mixed, "passage")]
    vectors = encoder.encode(mixed, "passage", batch_tokens=300)
    assert vectors.shape == (9, max(lengths), 128) and max(lengths) < encoder.profile.max_length
    for text, length, rows in zip(mixed, lengths, vectors, strict=True):
        np.testing.assert_allclose(rows[:length], encoder.encode([text], "passage")[0], atol=1e-5)
        assert not rows[length:].any()
    assert encoder.encode([], "passage").shape[::2] == (0, 128)


def test_texts_are_padded_with_rows_of_zeros_and_never_cut():
    tokens, vectors = torch.ones(2, 3, 4), torch.ones(2, 3)
    padded = pad_texts(tokens, 5)
    assert padded.shape == (2, 5, 4) and (padded[:, :3] == tokens).all() and not padded[:, 3:].any()
    assert pad_texts(tokens, 3) is tokens and pad_texts(tokens, 2) is tokens
    assert pad_texts(vectors, 5) is vectors


def test_the_prefix_is_in_the_token_ids():
    encoder = load_encoder("bert-tiny", prefixes=["query: ", "passage: "], device="cpu")
    ids = {kind: encoder.tokenize(["rivers"], kind)[0] for kind in ("query", "passage")}
    start, end = encoder.tokenizer.cls_token_id, encoder.tokenizer.sep_token_id
    for kind, got in ids.items():
        words = encoder.tokenizer.convert_tokens_to_ids([kind, ":", "rivers"])
        assert encoder.tokenizer.unk_token_id not in words
        assert got == [start, *words, end]


@pytest.mark.parametrize("kind", ["query", "passage"])
def test_the_prefix_is_in_the_vector(bert_tiny, kind):
    prefixed = load_encoder("bert-tiny", prefixes=["query: ", "passage: "], device="cpu")
    np.testing.assert_array_equal(prefixed.encode(["rivers"], kind), bert_tiny.encode([f"{kind}: rivers"], kind))


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
    padded = bert_tiny.pad([[101, 7, 102], [101, 102]], "passage")
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


@pytest.mark.parametrize("training", [True, False])
def test_encode_restores_the_mode_when_it_fails(training, monkeypatch):
    encoder = load_encoder("bert-tiny", device="cpu").train(training)

    def failing(input_ids, attention_mask):
        assert not encoder.training
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(encoder, "forward", failing)
    for kind, error in (("query", RuntimeError), ("document", KeyError)):
        with pytest.raises(error):
            encoder.encode(["rivers"], kind)
        assert encoder.training is training and encoder.model.training is training


def test_save_and_load_give_the_same_encoder(tmp_path, texts):
    encoder = load_encoder("bert-tiny", prefixes=["ask: ", "tell: "], max_length=40, device="cpu")
    encoder.save(tmp_path / "model", {"step": 3})
    encoder.save(tmp_path / "model", {"step": 4})  # over the old one
    again = load_encoder(str(tmp_path / "model"), device="cpu")
    assert again.profile == encoder.profile and again.tokenize(texts, "query") == encoder.tokenize(texts, "query")
    assert (again.encode(texts, "passage") == encoder.encode(texts, "passage")).all()
    assert json.loads((tmp_path / "model" / PROFILE_FILE).read_text())["step"] == 4


def test_an_encoder_is_loaded_as_the_kind_that_was_saved(tmp_path, bert_tiny):
    bert_tiny.save(tmp_path / "one vector")
    TokenEncoder(bert_tiny.model, bert_tiny.tokenizer, bert_tiny.profile).save(tmp_path / "tokens")
    load_encoder(str(tmp_path / "tokens"), device="cpu", encoder_class=TokenEncoder)
    with pytest.raises(ModelError, match="saved as a tokens encoder, but a single-vector one"):
        load_encoder(str(tmp_path / "tokens"), device="cpu")
    with pytest.raises(ModelError, match="saved as a single-vector encoder, but a tokens one"):
        load_encoder(str(tmp_path / "one vector"), device="cpu", encoder_class=TokenEncoder)


def test_a_fingerprint_follows_from_weights_names_and_profile(bert_tiny):
    def linear(weight):
        layer = torch.nn.Linear(2, 1, bias=False)
        layer.weight.data[:] = weight
        return layer

    one, two = linear(1), linear(2)
    prints = [
        weights_fingerprint(module, about)
        for module, about in [
            (torch.nn.ModuleDict({"a": one, "b": two}), ""),
            (torch.nn.ModuleDict({"a": two, "b": one}), ""),
            (torch.nn.ModuleDict({"a": one, "c": two}), ""),
            (torch.nn.ModuleDict({"a": one, "b": two}), "x"),
        ]
    ]
    assert len(set(prints)) == 4
    assert weights_fingerprint(torch.nn.ModuleDict({"a": linear(1), "b": linear(2)})) == prints[0]
    other = Encoder(bert_tiny.model, bert_tiny.tokenizer, replace(bert_tiny.profile, query_prefix="ask: "))
    assert other.fingerprint() != bert_tiny.fingerprint()


def test_only_safetensors_are_written_and_nothing_temporary(tmp_path, bert_tiny):
    bert_tiny.save(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", PROFILE_FILE} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl", ".tmp"))]


def trained(encoder):
    return {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}


def changed(encoder):
    """Move every weight that is trained."""
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    return encoder


def test_restore_brings_back_weights_and_profile(tmp_path, texts):
    saved = load_encoder("bert-tiny", prefixes=["ask: ", "tell: "], max_length=20, device="cpu")
    vectors = changed(saved).encode(texts[:5], "passage")
    saved.save(tmp_path / "model")
    encoder = changed(load_encoder("bert-tiny", device="cpu")).train()
    everything = trained(encoder)
    encoder.restore(tmp_path / "model")
    assert (encoder.encode(texts[:5], "passage") == vectors).all()
    assert encoder.profile == saved.profile and not encoder.training
    assert trained(encoder) == everything


def test_restore_keeps_lora_and_gradient_checkpointing(tmp_path, texts):
    encoder = save_memory(load_encoder("bert-tiny", device="cpu"), gradient_checkpointing=True, lora_rank=2)
    adapters = trained(encoder)
    changed(encoder).save(tmp_path / "best")
    vectors = encoder.encode(texts[:5], "passage")
    changed(encoder).restore(tmp_path / "best")
    np.testing.assert_allclose(encoder.encode(texts[:5], "passage"), vectors, atol=1e-5)
    plain = load_encoder(str(tmp_path / "best"), device="cpu").encode(texts[:5], "passage")
    np.testing.assert_array_equal(encoder.encode(texts[:5], "passage"), plain)
    assert trained(encoder) == adapters and all("lora_" in name for name in adapters)
    assert {min(p.shape) for name, p in encoder.named_parameters() if "lora_" in name} == {2}
    assert encoder.model.is_activation_checkpointing
    changed(encoder).save(tmp_path / "best")  # a second training, and a third start
    encoder.restore(tmp_path / "best")
    assert trained(encoder) == adapters
    assert np.abs(encoder.encode(texts[:5], "passage") - vectors).max() > 0.01


def test_adapters_are_the_same_every_time_and_change_no_vector(bert_tiny, texts):
    one = save_memory(load_encoder("bert-tiny", device="cpu"), lora_rank=4)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    two = save_memory(load_encoder("bert-tiny", device="cpu"), lora_rank=4)
    assert torch.equal(torch.get_rng_state(), state)  # the caller's random numbers stay what they were
    assert one.fingerprint() == two.fingerprint() != bert_tiny.fingerprint()
    assert one.model.peft_config["default"].lora_alpha == 8
    assert (one.encode(texts[:5], "passage") == bert_tiny.encode(texts[:5], "passage")).all()
    assert not any(module.training for module in one.modules())


def test_adapters_are_put_on_once_and_have_a_rank():
    encoder = load_encoder("bert-tiny", device="cpu")
    with pytest.raises(SettingError, match="lora_rank=-1"):
        save_memory(encoder, lora_rank=-1)
    save_memory(encoder, lora_rank=2)
    with pytest.raises(SettingError, match=r"lora_rank=3: .* 2 so far"):
        save_memory(encoder, lora_rank=3)


def test_gradient_checkpointing_works_with_older_transformers(monkeypatch):
    encoder, calls = load_encoder("bert-tiny", device="cpu"), []
    monkeypatch.delattr(PreTrainedModel, "activation_checkpointing_enable")
    monkeypatch.setattr(encoder.model, "gradient_checkpointing_enable", lambda: calls.append(1))
    save_memory(encoder, gradient_checkpointing=True)
    assert calls == [1]


@no_cuda
def test_missing_cuda_is_reported_before_anything_is_loaded(monkeypatch):
    def loaded(*_, **__):
        raise AssertionError("something was loaded")

    monkeypatch.setattr(helpers.encoder, "fetch", loaded)
    monkeypatch.setattr(helpers.encoder, "read_pretrained", loaded)
    with pytest.raises(SettingError, match="CUDA"):
        load_encoder("bert-tiny", device="cuda")


def test_an_unknown_device_is_an_error():
    with pytest.raises(SettingError, match="'tpu'"):
        choose_device("tpu")
    assert choose_device("cpu") == "cpu"
    assert choose_device() == ("cuda" if torch.cuda.is_available() else "cpu")


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
