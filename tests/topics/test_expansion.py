"""Generation, its cache through a real kill, and what is done with the texts; real SmolLM2 and tiny random models."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from filelock import FileLock
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from helpers.base.assets import fetch
from helpers.base.errors import DataError, ModelError, SettingError
from helpers.base.files import ROOT
from helpers.encoder import load_encoder
from helpers.topics import expansion
from helpers.topics.expansion import Generation, Writer, expand, load_writer, usable, vocabulary
from helpers.topics.feedback import mean_vectors

PROMPT = "Question: {question}\nPassage:"
SMALL = Generation(max_new_tokens=5)


@pytest.fixture(scope="module")
def tiny_models(tmp_path_factory):
    """Folders of a causal and a sequence-to-sequence model with random weights and a real tokenizer."""
    base, tokenizer = tmp_path_factory.mktemp("models"), AutoTokenizer.from_pretrained(fetch("bert-tiny"))
    torch.manual_seed(0)
    size = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.sep_token_id,
    }
    llama = LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, **size)
    start = tokenizer.pad_token_id
    t5 = T5Config(d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2, decoder_start_token_id=start, **size)
    for name, model in (("causal", LlamaForCausalLM(llama)), ("seq2seq", T5ForConditionalGeneration(t5))):
        model.save_pretrained(base / name)
        tokenizer.save_pretrained(base / name)
    return {name: str(base / name) for name in ("causal", "seq2seq")}


@pytest.fixture(scope="module")
def smollm():
    if not os.environ.get("RETRIEVER_COURSE_FULL"):
        pytest.skip("loads 135M parameters; notebook 07 does too: RETRIEVER_COURSE_FULL=1")
    return load_writer("SmolLM2-135M-Instruct", "cpu")


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_padding_is_not_read(kind, tiny_models):
    writer = load_writer(tiny_models[kind], "cpu")
    torch.nn.Module.float(writer.model)  # bfloat16 rounds differently for another batch size
    prompts = ["Who?", "Which of the moons of Saturn has lakes of methane and a thick atmosphere?"]
    alone = [writer.write([prompt], Generation(max_new_tokens=12))[0] for prompt in prompts]
    assert writer.write(prompts, Generation(max_new_tokens=12)) == alone and alone[0] != alone[1]


def test_smollm_answers_alone_as_in_a_batch(smollm):
    torch.nn.Module.float(smollm.model)
    prompts = ["What is the capital of France?", "Name a metal that is liquid at room temperature, in one sentence."]
    settings = Generation(max_new_tokens=12)
    together = smollm.write(prompts, settings)
    assert together == [smollm.write([prompt], settings)[0] for prompt in prompts]  # padding is not read
    assert "Paris" in together[0][0] and "assistant" not in together[0][0]


def test_samples_differ_and_follow_from_the_seed(tiny_models):
    writer, state = load_writer(tiny_models["causal"], "cpu"), torch.random.get_rng_state()
    settings = Generation(max_new_tokens=8, temperature=1.0, samples=3)
    first, again, other = (writer.write(["Tell me about tea.", "And rain?"], settings, seed) for seed in (1, 1, 2))
    assert [len(texts) for texts in first] == [3, 3] and len(set(first[0] + first[1])) == 6
    assert first == again != other
    assert torch.equal(state, torch.random.get_rng_state())  # the caller's random numbers are not touched


def test_every_batch_draws_its_own_samples(tiny_models, tmp_path, monkeypatch):
    monkeypatch.setattr(expansion, "BATCH", 1)
    queries, sampled = {"a": "Who?", "b": "Who?"}, Generation(max_new_tokens=8, temperature=1.0)
    found = expand(tiny_models["causal"], queries, PROMPT, sampled, tmp_path / "cache.jsonl", "cpu")
    assert found["a"]["texts"] != found["b"]["texts"]


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_any_model_by_name_writes_through_the_cache(kind, tiny_models, tmp_path, monkeypatch):
    monkeypatch.setattr(expansion, "BATCH", 2)
    queries = {"b": "Who?", "a": "Where does the long river end?", "c": "Why?"}
    found = expand(tiny_models[kind], queries, PROMPT, SMALL, tmp_path / "cache.jsonl")
    assert list(found) == list(queries) and all(len(row["texts"]) == 1 and row["seconds"] > 0 for row in found.values())
    writer = load_writer(tiny_models[kind])
    assert writer.causal == (kind == "causal")
    prompts = [PROMPT.replace("{question}", queries[qid]) for qid in "bca"]
    assert writer.write(prompts[:2], SMALL) == [found["b"]["texts"], found["c"]["texts"]]
    assert not any("question" in text for (text,) in writer.write(prompts, SMALL))  # the prompt is not part of it


def test_cache_is_keyed_by_model_prompt_settings_and_question(tiny_models, tmp_path, monkeypatch):
    asked, path = [], tmp_path / "cache.jsonl"
    write = Writer.write

    def counted(self, prompts, *rest):
        asked.extend(prompts if len(rest) > 1 else ())  # not that of the check after loading
        return write(self, prompts, *rest)

    monkeypatch.setattr(Writer, "write", counted)
    queries = {"a": "Who?", "b": "Where?"}

    def new(model="causal", prompt=PROMPT, settings=SMALL, **changed):
        asked.clear()
        expand(tiny_models[model], {**queries, **changed}, prompt, settings, path)
        return len(asked)

    assert [new(), new()] == [2, 0]
    assert [new("seq2seq"), new(prompt="{question}"), new(settings=Generation(max_new_tokens=6))] == [2, 2, 2]
    assert [new(c="When?"), new(a="Who else?"), new()] == [1, 1, 0]
    assert [new("seq2seq"), new(prompt="{question}")] == [0, 0]
    monkeypatch.setattr(expansion, "load_writer", None)  # nothing missing: no model is loaded
    assert new() == 0


KILLED = """
import os, signal, sys
from helpers.topics import expansion
from tests.topics.test_expansion import NUMBERED, PAIRS

write, asked = expansion.Writer.write, []


def killed_at_the_ninth(self, prompts, *rest):
    asked.extend(prompts if len(rest) > 1 else ())  # not those of the check after loading
    if len(asked) > 8:
        os.kill(os.getpid(), signal.SIGKILL)
    return write(self, prompts, *rest)


expansion.BATCH, expansion.Writer.write = 2, killed_at_the_ninth
expansion.expand(sys.argv[1], NUMBERED, "{question}", PAIRS, sys.argv[2], "cpu")
"""
NUMBERED = {f"q{n}": f"What is number {n}?" for n in range(20)}
PAIRS = Generation(max_new_tokens=4, temperature=1.0, samples=2)


def test_a_killed_run_resumes_without_repeating_a_question(tiny_models, tmp_path, monkeypatch):
    path, model, asked, write = tmp_path / "cache.jsonl", tiny_models["causal"], [], Writer.write
    killed = subprocess.run([sys.executable, "-c", KILLED, model, str(path)], cwd=ROOT, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    whole = path.read_bytes()
    assert whole.count(b"\n") - 1 == 8 and whole.endswith(b"\n")
    path.write_bytes(whole + b'{"key": "abc", "qid": "q3", "te')  # the worst moment: half a line

    def counted(self, prompts, *rest):
        asked.extend(prompts if len(rest) > 1 else ())
        return write(self, prompts, *rest)

    monkeypatch.setattr(expansion, "BATCH", 2)
    monkeypatch.setattr(Writer, "write", counted)
    job = model, NUMBERED, "{question}", PAIRS
    resumed = expand(*job, path, "cpu")
    assert path.read_bytes().startswith(whole)
    assert len(asked) == 12
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    assert sorted(row["qid"] for row in rows) == sorted(NUMBERED)
    straight = expand(*job, tmp_path / "other.jsonl", "cpu")
    assert {q: row["texts"] for q, row in straight.items()} == {q: row["texts"] for q, row in resumed.items()}


def test_broken_cache_and_wrong_settings_are_named(tiny_models, tmp_path):
    path = tmp_path / "cache.jsonl"
    path.write_text('{"key": "a", "model": "m"}\nnot json\n{"key": "a"}\n{"key": "a", "qid": "b"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"(?s)cache\.jsonl:2: broken JSON.*cache\.jsonl:4: not a cached expansion"):
        expand(tiny_models["causal"], {"a": "Who?"}, PROMPT, SMALL, path)
    with pytest.raises(SettingError, match="where the question goes"):
        expand(tiny_models["causal"], {"a": "Who?"}, "Passage:", SMALL, path)
    with pytest.raises(SettingError, match="all be the same"):
        Generation(samples=2)
    with pytest.raises(SettingError, match="start at 1"):
        Generation(max_new_tokens=0)
    with pytest.raises(SettingError, match="temperature at 0"):
        Generation(temperature=float("inf"))
    with pytest.raises(SettingError, match="temperature at 0"):
        Generation(temperature=float("nan"))
    assert not FileLock(f"{path}.lock").is_locked


BAD_ROWS = [
    '"texts": ["a"], "seconds": NaN',
    '"texts": [NaN], "seconds": 1',
    '"texts": "a", "seconds": 1',
    '"texts": ["a"]',
]


@pytest.mark.parametrize("bad", BAD_ROWS)
def test_a_cached_row_that_is_no_expansion_is_named(bad, tiny_models, tmp_path):
    path, queries = tmp_path / "cache.jsonl", {"a": "Who?"}
    expand(tiny_models["causal"], queries, PROMPT, SMALL, path, "cpu")
    first = path.read_text(encoding="utf-8").splitlines()[0]
    key = json.loads(first)["key"]
    path.write_text(f'{first}\n{{"key": "{key}", "qid": "a", "question": "Who?", {bad}}}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"cache\.jsonl:2: not a cached expansion"):
        expand(tiny_models["causal"], queries, PROMPT, SMALL, path, "cpu")


def test_a_cache_that_cannot_be_read_or_written_is_named(tiny_models, tmp_path, full_disk):
    job = tiny_models["causal"], {"a": "Who?", "b": "Where?"}, PROMPT, SMALL
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "circle.jsonl").symlink_to(tmp_path / "circle.jsonl")
    for name in ("folder.jsonl", "circle.jsonl", "circle.jsonl/cache.jsonl"):
        with pytest.raises(DataError, match=name.split("/")[0]):
            expand(*job, tmp_path / name, "cpu")
    path = tmp_path / "cache.jsonl"
    with full_disk(300), pytest.raises(DataError, match=r"cache\.jsonl.*free some space"):
        expand(*job, path, "cpu")  # the first line fits, the texts do not
    assert expand(*job, path, "cpu") == expand(*job, path, "cpu")  # what was half-written is gone


DAMAGED = {
    "no folder": lambda folder: shutil.rmtree(folder),
    "no layer": lambda folder: altered(folder, num_hidden_layers=0, num_layers=0),
    "more layers than weights": lambda folder: altered(folder, num_hidden_layers=9, num_layers=9),
    "no attention head": lambda folder: altered(folder, num_attention_heads=0, num_heads=0),
    "no number": lambda folder: altered(folder, rms_norm_eps=float("nan"), layer_norm_epsilon=float("nan")),
    "an unknown kind": lambda folder: altered(folder, model_type="none such"),
    "empty weights": lambda folder: (folder / "model.safetensors").write_bytes(b""),
    "no tokenizer": lambda folder: [path.unlink() for path in folder.glob("tokenizer*")],
}


def altered(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_language_model_is_refused_in_one_sentence(kind, damage, tiny_models, tmp_path):
    folder = shutil.copytree(tiny_models[kind], tmp_path / "writer")
    DAMAGED[damage](folder)
    with pytest.raises(ModelError, match="writer could not be loaded") as caught:
        load_writer(str(folder), "cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"GGUF but no more"])
def test_a_gguf_file_that_is_none_is_refused(content, tmp_path, monkeypatch):
    monkeypatch.setenv("RETRIEVER_COURSE_CACHE", str(tmp_path / "cache"))
    if content is not None:
        (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(ModelError, match="could not be loaded"):
        load_writer(str(tmp_path / "model.gguf"), "cpu")


def test_the_committed_cache_answers_without_a_model(monkeypatch, tmp_path):
    """Its key is made of the model, the prompt and the settings, as notebook 07 has them."""
    rows = [json.loads(line) for line in (ROOT / "data" / "results" / "expansions-sample.jsonl").open(encoding="utf-8")]
    monkeypatch.setattr(expansion, "load_writer", None)
    path = shutil.copy(ROOT / "data" / "results" / "expansions-sample.jsonl", tmp_path / "cache.jsonl")
    for about in (row for row in rows if "model" in row):
        own = {row["qid"]: row for row in rows if row["key"] == about["key"] and "qid" in row}
        queries = {qid: row["question"] for qid, row in own.items()}
        found = expand(about["model"], queries, about["prompt"], Generation(**about["settings"]), path)
        assert own and all(found[qid]["texts"] == row["texts"] for qid, row in own.items())


WORDS = vocabulary(["Titan is a moon of Saturn.", "It has lakes of methane and a thick atmosphere, seen by Huygens."])
TWICE = "Titan has lakes. It has a thick atmosphere. Titan has lakes. It has"


@pytest.mark.parametrize(
    "text, kept, why",
    [
        ("Titan is a moon\n of Saturn.", "Titan is a moon of Saturn.", "kept"),
        ("Titan is a moon of", "Titan is a moon of", "kept"),  # max_new_tokens ended it
        ("", "", "empty"),
        (" \n\n ", "", "empty"),
        ("?! ... 42 --", "", "empty"),
        (TWICE, "Titan has lakes. It has a thick atmosphere.", "cut"),
        ("a moon of Saturn of Saturn of Saturn of Saturn of Sat", "a moon of Saturn", "cut"),
        ("lakes " * 400, "lakes", "cut"),
        ("Titan has lakes.\nQuestion: Who saw it?\nPassage: Huygens", "Titan has lakes.", "cut"),
        ("Titan est la plus grande lune, découverte par Huygens en 1655.", "", "other language"),
        ("土星の衛星タイタン", "", "other language"),
        ("J. R. R. Tolkien saw Titan, a moon of Saturn.", "J. R. R. Tolkien saw Titan, a moon of Saturn.", "kept"),
        ("No. 1 is Titan, a moon. No. 2 is a moon.", "No. 1 is Titan, a moon. No. 2 is a moon.", "kept"),
    ],
)
def test_what_a_bad_writer_leaves_is_handled(text, kept, why):
    assert usable(text, WORDS) == (kept, why)


def test_a_corpus_without_spaces_knows_its_own_language():
    words = vocabulary(["土星の衛星タイタンには湖があります。"])
    assert usable("タイタンは土星の衛星です。", words)[1] == "kept"
    assert usable("Titan is a moon of Saturn.", words)[1] == "other language"
    assert usable("タイタンは土星の衛星です。" * 20, words) == ("タイタンは土星の衛星です。", "cut")


def test_letters_with_marks_are_words():
    hindi = "टाइटन शनि का सबसे बड़ा चंद्रमा है।"
    assert usable(hindi, vocabulary([hindi])) == (hindi, "kept")


def test_a_very_long_text_is_judged_quickly():
    started = time.perf_counter()
    usable(" ".join(f"word{n}" for n in range(4000)), WORDS)
    usable("moon and " * 4000, WORDS)
    assert time.perf_counter() - started < 5


def test_texts_are_used():
    encoder = load_encoder("bert-tiny", ["query: ", "passage: "], 32, "cpu")  # what was written is read as a passage
    questions, texts = ["Which moon?", "Who?"], [["Titan.", "Rhea."], []]
    vectors = mean_vectors(encoder, questions, texts)
    own, (titan, rhea) = encoder.encode(["Which moon?"], "query")[0], encoder.encode(["Titan.", "Rhea."], "passage")
    expected = (own + titan + rhea) / np.linalg.norm(own + titan + rhea)
    assert vectors[0] == pytest.approx(expected, abs=1e-5)
    assert vectors[1] == pytest.approx(encoder.encode(["Who?"], "query")[0], abs=1e-5)  # nothing written: unmoved
    assert mean_vectors(encoder, questions, [[], []]) == pytest.approx(encoder.encode(questions, "query"), abs=1e-5)
