"""What a model's own files say, in both forms, and what happens where they are missing, unknown or contradictory."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from helpers.base.errors import ModelError
from helpers.base.modules import OLD_POOLING, Modules, read_modules, write_modules
from helpers.encoder import load_encoder
from helpers.profiles import profile_for
from helpers.topics.late_interaction import MultiVectorEncoder
from helpers.topics.m3 import M3Encoder
from tests.tiny_models import save_bert

NEW = "sentence_transformers.base.modules"
PARTS = {
    "Transformer": f"{NEW}.transformer.Transformer",
    "Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    "Dense": f"{NEW}.dense.Dense",
    "Normalize": f"{NEW}.normalize.Normalize",
}
MODULES, POOLING, LENGTH = "modules.json", "1_Pooling/config.json", "sentence_bert_config.json"
PROMPTS, DENSE = "config_sentence_transformers.json", "2_Dense/config.json"


def listed(*names, old=False):
    """Return the content of modules.json."""
    kinds = {name: f"sentence_transformers.models.{name}" if old else PARTS[name] for name in PARTS}
    paths = [f"{number}_{name}" if number else "" for number, name in enumerate(names)]
    return [
        {"idx": number, "name": str(number), "path": path, "type": kinds.get(name, name)}
        for number, (name, path) in enumerate(zip(names, paths, strict=True))
    ]


def write(folder, files):
    for name, value in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(value if isinstance(value, str) else json.dumps(value))


@pytest.fixture
def model(tmp_path):
    """A folder whose files are all there and right."""
    files = {
        MODULES: listed("Transformer", "Pooling", "Dense", "Normalize"),
        POOLING: {"embedding_dimension": 32, "pooling_mode": "cls", "include_prompt": True},
        LENGTH: {"max_seq_length": 40, "do_lower_case": False},
        PROMPTS: {"prompts": {"query": "ask: ", "document": "tell: "}, "similarity_fn_name": "cosine"},
        DENSE: {"in_features": 32, "out_features": 8, "bias": True},
    }
    write(tmp_path, files)
    save_file(
        {f"linear.{k}": v for k, v in torch.nn.Linear(32, 8).state_dict().items()},
        tmp_path / "2_Dense/model.safetensors",
    )
    return tmp_path


def change(folder, file, **changes):
    """Change fields of a file; None takes a field away."""
    value = json.loads((folder / file).read_text()) | changes
    write(folder, {file: {name: field for name, field in value.items() if field is not None}})


def test_everything_is_read(model):
    found = read_modules(str(model))
    assert (found.pooling, found.normalize, found.include_prompt, found.width) == ("cls", True, True, 32)
    assert (found.max_length, found.similarity, found.lower_case) == (40, "cosine", False)
    assert (found.query_prompt, found.passage_prompt) == ("ask: ", "tell: ")
    assert isinstance(found.dense[0].activation_function, torch.nn.Tanh)  # as for Dense itself, where it says none
    profile = profile_for(str(model))
    assert (profile.pooling, profile.max_length, profile.query_prefix) == ("cls", 40, "ask: ")


@pytest.mark.parametrize("field", OLD_POOLING)
@pytest.mark.parametrize("old_list", [False, True])
def test_the_older_form_of_pooling_is_read(model, field, old_list):
    write(model, {MODULES: listed("Transformer", "Pooling", old=old_list)})
    write(model, {POOLING: {"word_embedding_dimension": 32} | {name: name == field for name in OLD_POOLING}})
    found = read_modules(str(model))
    assert (found.pooling, found.width, found.normalize) == (OLD_POOLING[field], 32, False)


def test_several_ways_are_concatenated_in_the_order_of_their_form(model):
    change(model, POOLING, pooling_mode=["mean", "cls"])
    assert read_modules(str(model)).pooling == "mean+cls"
    write(model, {POOLING: {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}})
    assert read_modules(str(model)).pooling == "cls+mean"


@pytest.mark.parametrize("pooling", ["cls", "cls+mean", "mean+cls", "lasttoken"])
@pytest.mark.parametrize("normalize", [False, True])
def test_what_is_written_is_read_again(tmp_path, pooling, normalize):
    written = Modules(pooling, normalize, False, 77, "dot", "ask: ", "", width=32)
    write_modules(tmp_path, written)
    found = read_modules(str(tmp_path))
    assert vars(found) | {"dense": None} == vars(written) | {"dense": None}


@pytest.mark.parametrize(
    ("prompts", "default", "pair"),
    [
        ({"query": "q: ", "document": "d: ", "passage": "p: "}, None, ("q: ", "d: ")),
        ({"query": "q: ", "passage": "p: "}, None, ("q: ", "p: ")),
        ({"query": "q: ", "corpus": "c: "}, "query", ("q: ", "c: ")),
        ({"all": "a: "}, "all", ("a: ", "a: ")),
        ({"query": "", "document": "", "all": "a: "}, "all", ("", "")),
        ({"query": None, "document": "d: "}, None, ("", "d: ")),
        ({"clustering": "c: "}, None, ("", "")),
        ({}, None, (None, None)),
        (None, None, (None, None)),
    ],
)
def test_prompts_go_by_their_names(model, prompts, default, pair):
    change(model, PROMPTS, prompts=prompts, default_prompt_name=default)
    found = read_modules(str(model))
    assert (found.query_prompt, found.passage_prompt) == pair


def test_the_tokenizers_length_counts_where_no_other_is_named(model):
    change(model, LENGTH, max_seq_length=None)
    assert read_modules(str(model)).max_length == 0
    write(model, {"tokenizer_config.json": {"model_max_length": 1e30}})
    assert read_modules(str(model)).max_length == 0
    write(model, {"tokenizer_config.json": {"model_max_length": 24}})
    assert profile_for(str(model)).max_length == 24


def test_longer_texts_only_where_the_user_asks_for_them(model):
    change(model, LENGTH, max_seq_length=8192)
    assert read_modules(str(model)).max_length == 8192
    assert profile_for(str(model)).max_length == 512
    assert profile_for(str(model), max_length=1024).max_length == 1024


def test_the_files_count_more_than_the_name(model):
    folder = model.rename(model.with_name("my-bge-m3"))
    change(folder, POOLING, pooling_mode="max")
    profile = profile_for(str(folder))
    assert (profile.pooling, profile.query_prefix, profile.passage_prefix) == ("max", "ask: ", "tell: ")
    assert profile_for(str(folder), "model-card").prefix("query") == "ask: "
    assert profile_for(str(folder), "none").prefix("query") == ""
    assert profile_for(str(folder), ["a", "b"]).prefix("passage") == "b"
    change(folder, PROMPTS, prompts=None)
    assert profile_for(str(folder)).prefix("query") == "query: "


FAULTS = [  # file, fields that change (or the whole text), words of the error
    (MODULES, "{", "modules.json cannot be read"),
    (MODULES, "{}", "modules.json.*no JSON list"),
    (MODULES, "[]", "lists nothing"),
    (MODULES, "[3]", "lacks a type"),
    (MODULES, '[{"type": "sentence_transformers.models.Transformer", "path": "../x"}]', "path inside the model"),
    (MODULES, json.dumps(listed("Transformer", "Pooling", "custom_code.Magic")), "'custom_code.Magic'.*never run"),
    (MODULES, json.dumps(listed("Transformer", "Pooling", "sentence_transformers.models.LSTM")), "LSTM"),
    (MODULES, json.dumps(listed("Transformer")), "lists Transformer;"),
    (MODULES, json.dumps(listed("Transformer", "Pooling", "Normalize", "Dense")), "in this order"),
    (MODULES, json.dumps([*listed("Transformer", "Pooling")[1:], *listed("Transformer")]), "in this order"),
    (MODULES, json.dumps([{"path": "0_BERT", "type": PARTS["Transformer"]}, *listed("x", "Pooling")[1:]]), "0_BERT"),
    (POOLING, None, "nothing says how to pool"),
    (POOLING, "[1]", "no JSON dict"),
    (POOLING, {"pooling_mode": "median"}, "'median'; known are cls, max"),
    (POOLING, {"pooling_mode": []}, "known are"),
    (POOLING, {"pooling_mode": 3}, "known are"),
    (POOLING, {"pooling_mode": None}, "known are"),
    (POOLING, {"pooling_mode_mean_tokens": True}, "older fields"),
    (POOLING, {"include_prompt": "yes"}, "include_prompt"),
    (POOLING, {"embedding_dimension": "x"}, "dimension"),
    (LENGTH, {"max_seq_length": "40"}, "max_seq_length"),
    (LENGTH, {"max_seq_length": 2}, "max_seq_length"),
    (LENGTH, {"do_lower_case": "yes"}, "do_lower_case"),
    (LENGTH, {"query_expansion": {"token": "[MASK]"}}, "query_expansion"),
    (LENGTH, {"processing_kwargs": {"text": {"padding": "max_length"}}}, "processing_kwargs"),
    (LENGTH, {"transformer_task": "fill-mask"}, "fill-mask"),
    (LENGTH, {"config_args": {"num_hidden_layers": 1}}, "config_args.num_hidden_layers"),
    (LENGTH, {"modality_config": {"text": {"method": "encode_text"}}}, "encode_text"),
    (PROMPTS, {"similarity_fn_name": "euclidean"}, "euclidean.*cosine and dot"),
    (PROMPTS, {"truncate_dim": "64"}, "truncate_dim='64'"),
    (PROMPTS, {"prompts": ["query: "]}, "prompts="),
    (PROMPTS, {"prompts": {"query": 3}}, "prompts="),
    (PROMPTS, {"default_prompt_name": "no such"}, "default_prompt_name is 'no such'"),
    (DENSE, {"in_features": None}, "2_Dense.*in_features"),
    (DENSE, {"in_features": 16}, "2_Dense.*size mismatch"),
    (DENSE, {"activation_function": "torch.nn.modules.activation.NoSuch"}, "NoSuch"),
    (DENSE, {"activation_function": "os.system"}, "os.system"),
    (DENSE, {"use_residual": True}, "residual"),
    (DENSE, {"module_input_name": "token_embeddings"}, "text's vector"),
    (DENSE, {"bias": False}, "2_Dense.*bias"),
    ("2_Dense/model.safetensors", None, "2_Dense"),
    ("2_Dense/model.safetensors", "no weights", "2_Dense"),
]


@pytest.mark.parametrize(("file", "changes", "words"), FAULTS)
def test_a_fault_is_one_sentence_that_names_its_file(model, file, changes, words):
    if changes is None:
        (model / file).unlink()
    elif isinstance(changes, str):
        write(model, {file: changes})
    else:
        change(model, file, **changes)
    with pytest.raises(ModelError, match=words) as caught:
        profile_for(str(model))
    assert str(model) in str(caught.value) and "\n" not in str(caught.value)


@pytest.fixture
def whole(model, sample_passages):
    """The same with the weights of a transformer."""
    torch.manual_seed(0)
    save_bert(model, sample_passages.texts)
    return model


@pytest.mark.parametrize("encoder_class", [MultiVectorEncoder, M3Encoder])
def test_dense_layers_are_for_single_vectors(whole, encoder_class):
    assert load_encoder(str(whole), device="cpu").dimension == 8
    with pytest.raises(ModelError, match="Dense layers"):
        load_encoder(str(whole), device="cpu", encoder_class=encoder_class)


def test_sizes_must_fit(whole):
    change(whole, POOLING, pooling_mode=["cls", "mean"])
    with pytest.raises(ModelError, match="takes vectors of 32 numbers, those before it have 64"):
        load_encoder(str(whole), device="cpu")
    change(whole, POOLING, pooling_mode="cls", embedding_dimension=64)
    with pytest.raises(ModelError, match="pooling is for vectors of 64 numbers, the model's have 32"):
        load_encoder(str(whole), device="cpu")


def test_lower_case_is_honoured(whole):
    upper, lower = ["OLD Rivers"], ["old rivers"]
    for asked in (False, True):
        change(whole, LENGTH, do_lower_case=asked)
        backend = json.loads((whole / "tokenizer.json").read_text())
        (whole / "tokenizer.json").write_text(json.dumps(backend | {"normalizer": None}))
        encoder = load_encoder(str(whole), device="cpu")
        assert (encoder.tokenize(upper, "query") == encoder.tokenize(lower, "query")) is asked
    encoder.save(whole / "saved")
    saved = load_encoder(str(whole / "saved"), device="cpu")
    assert saved.tokenize(upper, "query") == saved.tokenize(lower, "query")


def test_code_that_lies_beside_a_model_is_never_run(whole):
    auto = {"AutoConfig": "made_up.MadeUpConfig", "AutoModel": "made_up.MadeUpModel"}
    change(whole, "config.json", model_type="made_up", auto_map=auto)
    (whole / "made_up.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(ModelError, match="its own code, which is never run here"):
        load_encoder(str(whole), device="cpu")


def test_prefixes_that_differ_from_the_rule_are_told_once(whole, capsys):
    folder = whole.rename(whole.with_name("e5-of-mine"))
    for _ in range(2):
        load_encoder(str(folder), device="cpu")
    said = capsys.readouterr().out
    assert said.count("('ask: ', 'tell: ') from its own files; by its name they would be ('query: ', 'passage: ')") == 1


HUB = """
import sys
from helpers.base.errors import ModelError
from helpers.encoder import load_encoder
try:
    encoder = load_encoder(sys.argv[1], device="cpu")
    print(encoder.profile.pooling, repr(encoder.profile.query_prefix), encoder.dimension)
except ModelError as error:
    print("ModelError", error)
"""


def test_a_hub_name_is_read_from_the_offline_cache(whole, tmp_path_factory):
    """Its small files decide; without them a model that no table knows is refused."""
    cache = tmp_path_factory.mktemp("hub")
    for owner, missing in (("whole", []), ("lost", [MODULES])):
        folder = cache / f"models--{owner}--encoder"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text("0" * 40)
        copied = folder / "snapshots" / ("0" * 40)
        for path in whole.rglob("*"):
            if path.is_file() and path.name not in missing:
                target = copied / path.relative_to(whole)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
    environment = os.environ | {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}

    def load(name):
        command = [sys.executable, "-c", HUB, name]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    assert load("whole/encoder").splitlines()[-1] == "cls 'ask: ' 8"
    assert "ModelError model lost/encoder could not be loaded (LocalEntryNotFoundError" in load("lost/encoder")
