"""Any encoder that sentence-transformers has saved gives the same vectors here, before and after a step of training."""

import importlib
import json

import numpy as np
import pytest
import torch
import transformers
from tokenizers import processors

from helpers.batches import TrainingRows, make_batch
from helpers.encoder import load_encoder, save_memory
from helpers.gradients import add_gradient, make_engine
from helpers.loss import in_batch_loss, infonce
from helpers.retrieval import DenseIndex
from helpers.training import TrainingSettings
from tests.tiny_models import SIZES, bert_tokenizer, xlm_tokenizer

TEXTS = ["Sea.", "Which river flows through the old town?", "An old map of the northern rivers and their ports. " * 3]
SMALL = {name: value for name, value in SIZES.items() if name not in ("max_position_embeddings", "initializer_range")}
DECODER = SMALL | {"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "initializer_range": 0.2}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
NOMIC = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 64, "n_positions": 66}
XLM = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "type_vocab_size": 1}

# name -> class of the model, of its configuration, what differs from SIZES, kind of tokenizer
ARCHITECTURES = {
    "bert": ("BertModel", "BertConfig", SIZES, "bert"),
    "roberta": ("RobertaModel", "RobertaConfig", SIZES | XLM, "xlm"),
    "xlm-roberta": ("XLMRobertaModel", "XLMRobertaConfig", SIZES | XLM, "xlm"),
    "distilbert": (
        "DistilBertModel",
        "DistilBertConfig",
        {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
        "bert",
    ),
    "mpnet": ("MPNetModel", "MPNetConfig", SIZES | XLM, "xlm"),
    "deberta-v2": ("DebertaV2Model", "DebertaV2Config", SIZES | {"relative_attention": True}, "bert"),
    "modernbert": ("ModernBertModel", "ModernBertConfig", SIZES | {"pad_token_id": 0}, "bert"),
    "t5": ("T5EncoderModel", "T5Config", T5, "xlm"),
    "nomic": ("NomicBertModel", "NomicBertConfig", SIZES, "bert"),
    "gemma": ("Gemma3TextModel", "Gemma3TextConfig", DECODER | {"use_bidirectional_attention": True}, "xlm"),
    "qwen3": ("Qwen3Model", "Qwen3Config", DECODER, "decoder"),
    "llama": ("LlamaModel", "LlamaConfig", DECODER, "decoder"),
    "mistral": ("MistralModel", "MistralConfig", DECODER, "decoder"),
}

# what is built on a BERT -> pooling, Dense layers (outputs, activation), whether scaled, other settings
SHAPES = {
    "cls": ("cls", [], True, {}),
    "mean": ("mean", [], False, {}),
    "max": ("max", [], True, {}),
    "square root": ("mean_sqrt_len_tokens", [], False, {}),
    "weighted": ("weightedmean", [], False, {}),
    "last": ("lasttoken", [], True, {}),
    "two": (["max", "cls"], [], False, {}),
    "two, in the old order": (["cls", "mean"], [(8, "Tanh")], True, {}),
    "dense": ("mean", [(48, "Identity"), (16, "Tanh")], True, {}),
    "dense, not scaled": ("cls", [(16, "GELU")], False, {"similarity_fn_name": "dot"}),
    "prompts": ("mean", [], True, {"prompts": {"query": "ask: ", "document": "tell: "}}),
    "prompts not pooled": ("mean", [(16, "Identity")], True, {"prompts": {"query": "ask an old: "}, "include": False}),
    "not pooled, weighted": ("weightedmean", [], True, {"prompts": {"query": "ask: "}, "include": False}),
    "not pooled, first": (["cls", "max"], [], True, {"prompts": {"document": "ask: "}, "include": False}),
    "cut": ("mean", [(16, "Identity")], True, {"truncate_dim": 6}),
    "a length": ("cls", [], True, {"length": 9}),
}


@pytest.fixture(scope="module")
def sentence_transformers():
    return importlib.import_module("sentence_transformers")


@pytest.fixture(scope="module")
def tokenizers(sample_passages):
    decoder = xlm_tokenizer(sample_passages.texts)
    decoder._tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    decoder.padding_side = "left"
    return {
        "bert": bert_tokenizer(sample_passages.texts),
        "xlm": xlm_tokenizer(sample_passages.texts),
        "decoder": decoder,
    }


def save_plain(folder, architecture, tokenizers):
    """Save a model with random weights in the form of transformers."""
    model, config, sizes, kind = ARCHITECTURES[architecture]
    tokenizer = tokenizers[kind]
    torch.manual_seed(0)
    config = getattr(transformers, config)(vocab_size=len(tokenizer), **sizes)
    getattr(transformers, model)(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def build(library, plain, pooling="mean", dense=(), normalize=True, include=True, length=None, **settings):
    """Return a model of sentence-transformers on top of one that `save_plain` made."""
    modules = importlib.import_module("sentence_transformers.models")
    parts = [modules.Transformer(plain)]
    width = parts[0].get_embedding_dimension()
    if length:
        parts[0].max_seq_length = length
    parts.append(modules.Pooling(width, pooling, include_prompt=include))
    width *= len(pooling) if isinstance(pooling, list) else 1
    for outputs, activation in dense:
        parts.append(modules.Dense(width, outputs, activation_function=getattr(torch.nn, activation)()))
        width = outputs
    return library.SentenceTransformer(modules=[*parts, *[modules.Normalize()] * normalize], device="cpu", **settings)


def assert_same_vectors(library, folder, encoder, texts=TEXTS):
    reference = library.SentenceTransformer(str(folder), device="cpu")
    for kind, encode in (("query", reference.encode_query), ("passage", reference.encode_document)):
        expected = encode(texts, show_progress_bar=False)
        found = encoder.encode(texts, kind)
        np.testing.assert_allclose(found, expected, atol=1e-5 * max(1, np.abs(expected).max()))
        assert np.linalg.norm(expected[0] - expected[1]) > 1e-3  # the model tells texts apart


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("pooling", ["mean", "lasttoken"])
def test_every_architecture_gives_the_vectors_of_sentence_transformers(
    tmp_path, architecture, pooling, tokenizers, sentence_transformers
):
    plain = save_plain(tmp_path / "plain", architecture, tokenizers)
    build(sentence_transformers, plain, pooling, normalize=pooling == "mean").save(str(tmp_path / "saved"))
    encoder = load_encoder(str(tmp_path / "saved"), device="cpu")
    assert encoder.profile.pooling == pooling
    assert_same_vectors(sentence_transformers, tmp_path / "saved", encoder)
    encoder.save(tmp_path / "again")
    assert_same_vectors(sentence_transformers, tmp_path / "again", encoder)
    again = load_encoder(str(tmp_path / "again"), device="cpu")
    np.testing.assert_allclose(again.encode(TEXTS, "query"), encoder.encode(TEXTS, "query"), atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_gives_the_vectors_of_sentence_transformers(tmp_path, shape, tokenizers, sentence_transformers):
    pooling, dense, normalize, settings = SHAPES[shape]
    plain = save_plain(tmp_path / "plain", "bert", tokenizers)
    build(sentence_transformers, plain, pooling, dense, normalize, **settings).save(str(tmp_path / "saved"))
    encoder = load_encoder(str(tmp_path / "saved"), device="cpu")
    assert_same_vectors(sentence_transformers, tmp_path / "saved", encoder)
    optimizer = torch.optim.SGD(encoder.train().parameters(), lr=0.05)
    inputs = [encoder.pad(encoder.tokenize(TEXTS, kind), kind) for kind in ("query", "passage")]
    before = encoder.encode(TEXTS, "query")
    questions, passages = (encoder(**one) for one in inputs)
    torch.nn.functional.cross_entropy(encoder.similarity(questions, passages), torch.arange(len(TEXTS))).backward()
    assert all(layer.linear.weight.grad.abs().max() > 0 for layer in encoder.dense)
    optimizer.step()
    encoder.eval().save(tmp_path / "trained")
    assert np.abs(encoder.encode(TEXTS, "query") - before).max() > 1e-4
    assert_same_vectors(sentence_transformers, tmp_path / "trained", encoder)
    assert load_encoder(str(tmp_path / "trained"), device="cpu").profile == encoder.profile
    similarity = sentence_transformers.SentenceTransformer(str(tmp_path / "trained"), device="cpu").similarity_fn_name
    assert similarity == encoder.profile.similarity == settings.get("similarity_fn_name", "cosine")


@pytest.mark.parametrize("micro_batch", [0, 2])
def test_training_pools_as_the_files_say(
    tmp_path, micro_batch, tokenizers, sentence_transformers, sample, sample_passages
):
    """Prefixes that are not pooled stay out in every piece of a batch, and Dense layers get their gradient."""
    plain = save_plain(tmp_path / "plain", "bert", tokenizers)
    parts = SHAPES["prompts not pooled"]
    build(sentence_transformers, plain, *parts[:3], **parts[3]).save(str(tmp_path / "saved"))
    encoder = load_encoder(str(tmp_path / "saved"), device="cpu")
    source = TrainingRows(sample, sample_passages, hard_negatives=0)
    batch = make_batch([source[number] for number in range(6)], source, encoder)
    measures = add_gradient(make_engine(encoder, infonce(), TrainingSettings()), batch, micro_batch)
    reference = sentence_transformers.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    questions = reference.encode_query([sample.queries[qid].text for qid in batch.qids], convert_to_tensor=True)
    passages = reference.encode_document([sample_passages.texts[n] for n in batch.columns], convert_to_tensor=True)
    expected = in_batch_loss(questions, passages, batch.positive, batch.allowed)
    assert measures["loss"] == pytest.approx(expected.item(), abs=1e-4)
    assert encoder.dense[0].linear.weight.grad.abs().max() > 0


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_search_and_training_compare_as_the_files_say(tmp_path, similarity, tokenizers, sentence_transformers):
    """Vectors that are not scaled are compared by their cosine or their dot product, not by whichever comes first."""
    plain = save_plain(tmp_path / "plain", "bert", tokenizers)
    build(sentence_transformers, plain, "max", normalize=False, similarity_fn_name=similarity).save(str(tmp_path / "m"))
    encoder = load_encoder(str(tmp_path / "m"), device="cpu")
    reference = sentence_transformers.SentenceTransformer(str(tmp_path / "m"), device="cpu")
    expected = reference.similarity(reference.encode_query(TEXTS), reference.encode_document(TEXTS)).numpy()
    rows, scores = DenseIndex(encoder, TEXTS).search(TEXTS, len(TEXTS))
    np.testing.assert_allclose(scores, np.take_along_axis(expected, rows, axis=1), rtol=1e-4)
    vectors = [torch.from_numpy(encoder.encode(TEXTS, kind)) for kind in ("query", "passage")]
    np.testing.assert_allclose(encoder.similarity(*vectors), expected, rtol=1e-4)
    assert bool(expected.max() > 1.01) == (similarity == "dot")


def test_lora_works_end_to_end_on_a_decoder(tmp_path, tokenizers, sentence_transformers):
    plain = save_plain(tmp_path / "plain", "qwen3", tokenizers)
    instruction = ["Instruct: find the passage\nQuery: ", ""]
    build(sentence_transformers, plain, "lasttoken").save(str(tmp_path / "saved"))
    encoder = save_memory(load_encoder(str(tmp_path / "saved"), instruction, device="cpu"), lora_rank=2).train()
    optimizer = torch.optim.SGD([p for p in encoder.parameters() if p.requires_grad], lr=1.0)
    before = encoder.encode(TEXTS, "passage")
    encoder(**encoder.pad(encoder.tokenize(TEXTS, "passage"), "passage")).pow(3).sum().backward()
    optimizer.step()
    encoder.eval().save(tmp_path / "trained")
    assert np.abs(encoder.encode(TEXTS, "passage") - before).max() > 1e-5
    assert_same_vectors(sentence_transformers, tmp_path / "trained", encoder)
    assert load_encoder(str(tmp_path / "trained"), device="cpu").profile.prefix("query") == instruction[0]


def test_a_decoder_without_files_is_pooled_by_its_last_token(tmp_path, tokenizers, sentence_transformers):
    plain = tmp_path / "plain"
    save_plain(plain, "llama", tokenizers)
    config = json.loads((plain / "config.json").read_text())
    (plain / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaForCausalLM"]}))
    encoder = load_encoder(str(plain), device="cpu")
    assert encoder.profile.pooling == "lasttoken"
    expected = sentence_transformers.SentenceTransformer(str(plain), device="cpu").encode(
        TEXTS, show_progress_bar=False
    )
    found = encoder.encode(TEXTS, "passage")
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)
