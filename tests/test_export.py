"""What `Encoder.save` leaves: a folder that other tools load, with the same vectors, and a model card."""

import importlib
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from helpers.base.errors import DataError
from helpers.base.model_card import model_card
from helpers.encoder import HEADS, Encoder, load_encoder, save_memory
from helpers.profiles import profile_for
from helpers.training import TrainingSettings
from tests.tiny_models import save_bert, save_xlm

# what is exported -> model, how it is made (None: it is one of the course's), settings of load_encoder
CASES = {
    "mean": ("bert-tiny", None, {}),
    "prefixes": ("bert-tiny", None, {"prefixes": ["query: ", "passage: "]}),
    "cls": ("bge-random", save_bert, {}),
    "m3 without heads": ("bge-m3-random", save_xlm, {}),
}


@pytest.fixture(scope="module")
def queries(sample):
    return [query.text for query in list(sample.queries.values())[:20]]


@pytest.fixture(scope="module")
def passages(sample_passages):
    return ["Sea.", *sample_passages.texts[:20]]


@pytest.fixture(scope="module", params=CASES)
def exported(request, sample_passages, tmp_path_factory):
    """An encoder and the folder where it was saved."""
    model, make, settings = CASES[request.param]
    folder = tmp_path_factory.mktemp("models")
    if make:
        torch.manual_seed(0)
        make(folder / model, sample_passages.texts)
        model = str(folder / model)
    encoder = load_encoder(model, device="cpu", **settings)
    encoder.save(folder / "saved")
    return encoder, folder / "saved"


@pytest.fixture(scope="module")
def m3(sample_passages, tmp_path_factory):
    """A random BGE-M3 with its two other heads, and a pickle that is none of them."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "bge-m3-random"
    save_xlm(folder, sample_passages.texts)
    for name, outputs in (("sparse_linear.pt", 1), ("colbert_linear.pt", 32)):
        torch.save(torch.nn.Linear(32, outputs).state_dict(), folder / name)
    torch.save({}, folder / "optimizer.pt")
    return folder


def assert_same_in_sentence_transformers(encoder, folder, queries, passages):
    model = importlib.import_module("sentence_transformers").SentenceTransformer(str(folder), device="cpu")
    for kind, encode, texts in (("query", model.encode_query, queries), ("passage", model.encode_document, passages)):
        np.testing.assert_allclose(encode(texts, show_progress_bar=False), encoder.encode(texts, kind), atol=1e-5)


def pickles(folder):
    return {path.name for path in folder.rglob("*") if path.suffix in (".pt", ".pth", ".bin", ".pkl", ".ckpt")}


def test_the_cases_differ_in_pooling_and_prefixes(exported):
    encoder, folder = exported
    bge = "bge" in encoder.profile.base_model
    assert encoder.profile.pooling == ("cls" if bge else "mean")
    assert encoder.profile.normalize
    assert load_encoder(str(folder), device="cpu").profile == encoder.profile


def test_sentence_transformers_gives_the_same_vectors(exported, queries, passages):
    assert_same_in_sentence_transformers(*exported, queries, passages)


def test_sentence_transformers_cuts_at_the_same_token(tmp_path, queries, passages):
    prefixes = ["query: ", "passage: "]
    encoder = load_encoder("bert-tiny", prefixes, max_length=12, device="cpu")
    encoder.save(tmp_path / "saved")
    assert_same_in_sentence_transformers(encoder, tmp_path / "saved", queries, passages)
    whole = load_encoder("bert-tiny", prefixes, device="cpu")
    for kind, text in (("query", queries[-1]), ("passage", passages[-1])):
        assert len(whole.tokenize([text], kind)[0]) > len(encoder.tokenize([text], kind)[0]) == 12
        assert np.abs(whole.encode([text], kind) - encoder.encode([text], kind)).max() > 0.01


def test_sentence_transformers_scales_no_vector_that_the_course_does_not(tmp_path, bert_tiny, queries, passages):
    encoder = Encoder(bert_tiny.model, bert_tiny.tokenizer, replace(bert_tiny.profile, normalize=False)).eval()
    encoder.save(tmp_path / "saved")
    assert np.linalg.norm(encoder.encode(passages, "passage"), axis=1).min() > 2
    assert_same_in_sentence_transformers(encoder, tmp_path / "saved", queries, passages)


def test_plain_transformers_with_pooling_by_hand_gives_the_same_vectors(exported, queries, passages):
    encoder, folder = exported
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    for kind, texts in (("query", queries), ("passage", passages)):
        for text, vector in zip(texts, encoder.encode(texts, kind), strict=True):
            text = encoder.profile.prefix(kind) + text
            inputs = tokenizer(text, truncation=True, max_length=encoder.profile.max_length, return_tensors="pt")
            with torch.no_grad():
                hidden = model(**inputs).last_hidden_state[0]  # [L, D]
            pooled = hidden[0] if encoder.profile.pooling == "cls" else hidden.mean(0)
            np.testing.assert_allclose(vector, pooled / pooled.norm(), atol=1e-5)


def test_weights_are_safetensors_and_nothing_is_pickled(exported):
    _, folder = exported
    assert (folder / "model.safetensors").is_file()
    assert pickles(folder) == set()


def test_bge_m3_keeps_its_other_heads(m3, tmp_path):
    saved = tmp_path / "saved"
    load_encoder(str(m3), device="cpu").save(saved)
    for _ in range(2):
        assert pickles(saved) == set(HEADS)
        assert [(saved / name).read_bytes() for name in HEADS] == [(m3 / name).read_bytes() for name in HEADS]
        assert (saved / "model.safetensors").is_file()
        load_encoder(str(saved), device="cpu").save(saved)  # over the folder that the heads come from


def test_flagembedding_gives_the_same_vectors_and_finds_the_heads(m3, tmp_path, queries, passages):
    flag_embedding = importlib.import_module("FlagEmbedding")
    encoder = load_encoder(str(m3), device="cpu")
    encoder.save(tmp_path / "saved")
    model = flag_embedding.BGEM3FlagModel(
        str(tmp_path / "saved"),
        use_fp16=False,
        devices="cpu",
        query_instruction_for_retrieval=encoder.profile.query_prefix,
        passage_instruction_for_retrieval=encoder.profile.passage_prefix,
        query_max_length=encoder.profile.max_length,
        passage_max_length=encoder.profile.max_length,
    )
    for kind, encode, texts in (("query", model.encode_queries, queries), ("passage", model.encode_corpus, passages)):
        np.testing.assert_allclose(encode(texts)["dense_vecs"], encoder.encode(texts, kind), atol=1e-5)
    for name, head in zip(HEADS, (model.model.sparse_linear, model.model.colbert_linear), strict=True):
        for key, value in torch.load(m3 / name, weights_only=True).items():
            assert torch.equal(head.state_dict()[key], value)


def test_lora_is_merged_into_a_plain_model(tmp_path, bert_tiny, queries, passages):
    importlib.import_module("peft")
    encoder = save_memory(load_encoder("bert-tiny", device="cpu"), lora_rank=2)
    adapters = {name: parameter for name, parameter in encoder.named_parameters() if "lora_" in name}
    assert {name for name, parameter in encoder.named_parameters() if parameter.requires_grad} == set(adapters) != set()
    for parameter in adapters.values():
        torch.nn.init.normal_(parameter, std=0.1)
    vectors = encoder.encode(passages, "passage")
    assert np.abs(vectors - bert_tiny.encode(passages, "passage")).max() > 0.01

    saved = tmp_path / "saved"
    encoder.save(saved)
    assert (encoder.encode(passages, "passage") == vectors).all()  # merged in a copy
    bert_tiny.save(tmp_path / "plain")
    assert set(load_file(saved / "model.safetensors")) == set(load_file(tmp_path / "plain" / "model.safetensors"))
    assert not list(saved.glob("adapter*"))
    np.testing.assert_allclose(load_encoder(str(saved), device="cpu").encode(passages, "passage"), vectors, atol=1e-5)
    assert_same_in_sentence_transformers(encoder, saved, queries, passages)


def test_saving_over_another_model_leaves_nothing_of_it(m3, tmp_path, bert_tiny):
    def files(folder):
        return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    bert_tiny.save(tmp_path / "fresh")
    load_encoder(str(m3), device="cpu").save(tmp_path / "model")
    (tmp_path / "model" / "stray.bin").touch()
    bert_tiny.save(tmp_path / "model")
    bert_tiny.save(tmp_path / "model")
    assert files(tmp_path / "model") == files(tmp_path / "fresh")
    assert {path.name for path in tmp_path.iterdir()} == {"fresh", "model"}


def test_a_full_disk_is_an_error_and_leaves_the_old_model(bert_tiny, full_disk, tmp_path):
    bert_tiny.save(tmp_path / "model")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "model").iterdir()}
    for size in (0, 100_000):  # the first file does not fit, or the weights do not
        with full_disk(size), pytest.raises(DataError, match=r"model.*free some space"):
            bert_tiny.save(tmp_path / "model")
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "model").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def front_matter(card):
    """Return what stands between the first two lines of `---`."""
    before, front, _ = re.split(r"^---\n", card, maxsplit=2, flags=re.MULTILINE)
    assert before == ""
    return yaml.safe_load(front)


def test_the_card_says_how_the_model_was_made(tmp_path, bert_tiny):
    profile = replace(bert_tiny.profile, query_prefix="ask: ", passage_prefix="tell: ")
    settings = asdict(TrainingSettings(batch_size=24, learning_rate=3e-5))
    made = {
        "settings": settings,
        "step": 20,
        "scores": {"dev": 0.583, "Hit@1": 0.3},
        "scores_before": {"dev": 0.41, "Hit@1": 0.2},
        "data": "0123abcd",
    }
    Encoder(bert_tiny.model, bert_tiny.tokenizer, profile).save(tmp_path / "saved", made)
    card = (tmp_path / "saved" / "README.md").read_text(encoding="utf-8")
    front = front_matter(card)
    assert (front["base_model"], front["library_name"]) == ("bert-tiny", "sentence-transformers")
    for text in ("`ask: `", "`tell: `", "256 tokens", "128 numbers", "mean pooling", "length 1"):
        assert text in card
    for text in ("after step 20", "| dev | 41.0% | 58.3% |", "| Hit@1 | 20.0% | 30.0% |", "`0123abcd`"):
        assert text in card
    for name, value in settings.items():
        assert f"| {name} | {value} |" in card


def test_the_card_of_an_untrained_model_claims_no_score(exported):
    encoder, folder = exported
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert front_matter(card)["base_model"] == Path(encoder.profile.base_model).name  # no folder of this machine
    assert "%" not in card


@given(name=st.text())
@example(name="model\n---\nlicense: other\n---\n# Title")
@example(name="x\nlibrary_name: other")
@example(name="[model](http://example.org): `{*&!|>'\"%@# yes")
@example(name="null")
@example(name="- 1.0")
@example(name="\u2028\x85\r\n\t\\n \U0001f600 \x00")
def test_no_name_of_a_base_model_breaks_the_front_matter(name):
    profile = profile_for("bert-tiny")
    expected = front_matter(model_card(asdict(profile), 128, {})) | {"base_model": name}
    assert front_matter(model_card(asdict(replace(profile, base_model=name)), 128, {})) == expected
