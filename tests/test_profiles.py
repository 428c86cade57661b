"""Prefixes, pooling and length by model name, and by a saved model's own metadata."""

import json
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.base.errors import ModelError, SettingError
from helpers.base.files import write_json, write_text
from helpers.profiles import PROFILE_FILE, Profile, profile_for, read_metadata, saved_profile, tell_prefixes

NONE, E5 = ("", ""), ("query: ", "passage: ")
BGE = ("Represent this sentence for searching relevant passages: ", "")

MODELS = [  # name, auto, model card, pooling, maximum length
    ("BAAI/bge-m3", E5, NONE, "cls", 512),
    ("BAAI/bge-small-en-v1.5", E5, BGE, "cls", 512),
    ("BAAI/bge-base-en-v1.5", E5, BGE, "cls", 512),
    ("BAAI/bge-large-en-v1.5", E5, BGE, "cls", 512),
    ("intfloat/e5-base-v2", E5, E5, "mean", 512),
    ("intfloat/multilingual-e5-large", E5, E5, "mean", 512),
    ("bert-base-uncased", NONE, NONE, "mean", 256),
    ("google-bert/bert-base-uncased", NONE, NONE, "mean", 256),
    ("bert-tiny", NONE, NONE, "mean", 256),
    ("all-MiniLM-L6-v2", NONE, NONE, "mean", 256),
    ("sentence-transformers/all-MiniLM-L6-v2", NONE, NONE, "mean", 256),
    ("microsoft/mpnet-base", NONE, NONE, "mean", 256),
]


def save(folder, profile):
    write_json(Path(folder) / PROFILE_FILE, {"profile": asdict(profile), "data": "x"})
    return str(folder)


@pytest.mark.parametrize(("name", "auto", "card", "pooling", "length"), MODELS)
def test_table_of_the_course(name, auto, card, pooling, length):
    for scheme, pair in (("auto", auto), ("model-card", card), ("none", NONE)):
        assert profile_for(name, scheme) == Profile(name, scheme, *pair, pooling, length, normalize=True)
    assert profile_for(name) == profile_for(name, "auto")
    assert profile_for(name, max_length=64).max_length == 64


@pytest.mark.parametrize("pair", [["Q> ", "P> "], ("Q> ", "P> ")])
def test_explicit_pair_on_any_model(pair):
    profile = profile_for("BAAI/bge-m3", pair)
    assert (profile.scheme, profile.prefix("query"), profile.prefix("passage")) == ("explicit", "Q> ", "P> ")
    assert profile.pooling == "cls"


@pytest.mark.parametrize("prefixes", ["e5", "", "Auto", ["only one"], ["a", "b", "c"], [1, 2], [], None, 3])
def test_bad_prefixes_are_named(prefixes):
    with pytest.raises(SettingError, match="prefixes=") as caught:
        profile_for("bert-tiny", prefixes)
    assert repr(prefixes) in str(caught.value) and "pair" in str(caught.value)


def test_bad_length_and_bad_kind():
    with pytest.raises(SettingError, match="max_length is -1"):
        profile_for("bert-tiny", max_length=-1)
    with pytest.raises(SettingError, match="max_length is 2; give 3"):
        profile_for("bert-tiny", max_length=2)
    with pytest.raises(KeyError):
        profile_for("bert-tiny").prefix("document")


@given(st.text(), st.text(), st.integers(3, 8192))
def test_saved_profile_round_trips(query, passage, length):
    profile = profile_for("BAAI/bge-m3", [query, passage], length)
    with tempfile.TemporaryDirectory() as folder:
        save(folder, profile)
        assert saved_profile(folder) == profile
        assert profile_for(folder) == profile
        assert read_metadata(folder)["data"] == "x"


@pytest.mark.parametrize("scheme", ["auto", "model-card", "none"])
def test_local_folder_inherits_from_its_metadata_not_from_its_name(tmp_path, scheme):
    for folder, base in (("bge-e5", "bert-base-uncased"), ("bert", "BAAI/bge-base-en-v1.5")):
        profile = profile_for(base, scheme)
        assert profile_for(save(tmp_path / folder, profile)) == profile
        assert profile_for(str(tmp_path / folder), scheme) == profile


@pytest.mark.parametrize(
    ("asked", "other"),
    [
        ({"prefixes": ["Q> ", "P> "]}, {"scheme": "explicit", "query_prefix": "Q> ", "passage_prefix": "P> "}),
        ({"prefixes": "none"}, {"scheme": "none", "query_prefix": "", "passage_prefix": ""}),
        ({"max_length": 64}, {"max_length": 64}),
    ],
)
def test_mismatch_names_both_profiles(tmp_path, asked, other):
    saved = profile_for("BAAI/bge-m3")
    folder = save(tmp_path / "model", saved)
    with pytest.raises(ModelError) as caught:
        profile_for(folder, **asked)
    for part in (folder, str(saved), str(replace(saved, **other))):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "text", ["{", "[]", "[1]", '"x"', '{"data": 1}', '{"profile": {"pooling": "cls"}}', '{"profile": 3}']
)
def test_metadata_of_something_else_is_an_error(tmp_path, text):
    write_text(tmp_path / PROFILE_FILE, text)
    with pytest.raises(ModelError, match=PROFILE_FILE):
        profile_for(str(tmp_path))


@pytest.mark.parametrize("text", ["{", "[]", "[1]", "3"])
def test_metadata_that_is_no_object_is_an_error(tmp_path, text):
    write_text(tmp_path / PROFILE_FILE, text)
    for read in (read_metadata, saved_profile):
        with pytest.raises(ModelError, match=PROFILE_FILE):
            read(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"pooling": "median"},
        {"pooling": "cls+"},
        {"pooling": None},
        {"max_length": "256"},
        {"max_length": 2},
        {"normalize": "yes"},
        {"query_prefix": None},
        {"base_model": 3},
        {"dimension": 128},
    ],
)
def test_an_impossible_saved_profile_is_an_error(tmp_path, change):
    write_json(tmp_path / PROFILE_FILE, {"profile": asdict(profile_for("bert-tiny")) | change})
    with pytest.raises(ModelError, match=f"{PROFILE_FILE}: not a profile of this course"):
        saved_profile(tmp_path)


def test_a_saved_profile_counts_whatever_its_scheme_pooling_and_scaling(tmp_path):
    """Asking by a scheme that means the same prefixes is no mismatch."""
    saved = replace(profile_for("bert-tiny"), pooling="cls", normalize=False, max_length=40)
    folder = save(tmp_path, saved)
    for prefixes in ("auto", "none", "model-card", ["", ""]):
        assert profile_for(folder, prefixes) == saved
    (tmp_path / "1_Pooling").mkdir()
    write_json(tmp_path / "1_Pooling" / "config.json", {"pooling_mode_mean_tokens": True})
    with pytest.raises(ModelError, match=r"retriever.json and modules.json differ in \['pooling', 'normalize'\]"):
        profile_for(folder)


@pytest.mark.parametrize("text", ["{", "[1]", "3", '"cls"'])
def test_a_broken_pooling_file_is_an_error(tmp_path, text):
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"1_Pooling/config\.json"):
        profile_for(str(tmp_path))


def test_folder_without_metadata_goes_by_its_name(tmp_path):
    (tmp_path / "my-bge").mkdir()
    assert saved_profile(tmp_path / "my-bge") is None
    assert profile_for(str(tmp_path / "my-bge")).pooling == "cls"


def test_a_folder_of_the_hubs_cache_is_known_by_the_models_name(tmp_path):
    folder = tmp_path / "models--BAAI--bge-m3" / "snapshots" / "e5617a9"
    folder.mkdir(parents=True)
    profile = profile_for(str(folder))
    assert (profile.pooling, profile.max_length, profile.query_prefix) == ("cls", 512, "query: ")
    assert profile_for(str(folder), "model-card").query_prefix == ""


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_models_own_pooling_counts(tmp_path, pooling):
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text(
        json.dumps({"pooling_mode_cls_token": pooling == "cls", "pooling_mode_mean_tokens": pooling == "mean"})
    )
    assert profile_for(str(tmp_path)).pooling == pooling


def test_a_rule_that_is_not_the_cards_is_told_once_and_only_for_auto(capsys):
    for scheme in ("none", "model-card", "auto", "auto"):
        tell_prefixes(profile_for("BAAI/bge-base-told-once", scheme), None)
    said = capsys.readouterr().out
    assert said.count("BAAI/bge-base-told-once: prefixes ('query: ', 'passage: ') by its name; its model card has") == 1
    tell_prefixes(profile_for("intfloat/e5-told-never"), None)
    assert not capsys.readouterr().out
