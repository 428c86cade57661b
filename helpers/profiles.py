"""Model name -> prefixes, pooling, normalisation and maximum length, as one object saved with the model.

A retriever trained with one prefix or pooling and evaluated with another loses quality without any error;
so mining, training, evaluation and export all share one `Profile`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from helpers.base.errors import ModelError, SettingError, shorten
from helpers.base.files import write_json

PROFILE_FILE = "retriever.json"  # lies beside the weights of every model that the course saves

BGE_V15_INSTRUCTION = "Represent this sentence for searching relevant passages: "
E5_PREFIXES = ("query: ", "passage: ")

# What a model's name contains -> pooling, maximum length, prefixes of its model card; the first match counts.
# Sources: the cards of BAAI/bge-m3, BAAI/bge-large-en-v1.5, intfloat/e5-large-v2, all-MiniLM-L6-v2.
FAMILIES = {
    "bge-m3": ("cls", 512, ("", "")),  # reaches 8192; 512 is the course's setting
    "bge": ("cls", 512, (BGE_V15_INSTRUCTION, "")),
    "e5": ("mean", 512, E5_PREFIXES),
    "": ("mean", 256, ("", "")),  # MiniLM, BERT and any other encoder
}


@dataclass(frozen=True)
class Profile:
    """How one encoder turns a text into a vector.

    Attributes
    ----------
    base_model : the name that the profile was chosen by, e.g. "BAAI/bge-m3"
    scheme : "auto", "model-card", "none", or "explicit" for a pair given by hand
    query_prefix, passage_prefix : put before every query and every passage
    pooling : "cls" (first token) or "mean" (over the attention mask)
    max_length : in tokens, special tokens included; longer texts are cut
    normalize : scale vectors to length 1, so that the dot product is the cosine
    """

    base_model: str
    scheme: str
    query_prefix: str
    passage_prefix: str
    pooling: str
    max_length: int
    normalize: bool = True

    def prefix(self, kind: str) -> str:
        """Return the prefix for `kind`, "query" or "passage"."""
        return {"query": self.query_prefix, "passage": self.passage_prefix}[kind]


def profile_for(model_name: str, prefixes: str | Sequence[str] = "auto", max_length: int = 0) -> Profile:
    """Return the profile of a model, by its name or, for a model of the course, by its own metadata.

    Pooling is that of the model's sentence-transformers files, if it is a folder that has them.

    Parameters
    ----------
    model_name : a hub name, a name of `helpers.base.assets`, or a folder
    prefixes : "auto" (`query: ` / `passage: ` if the name contains bge or e5, else none), "model-card",
        "none", or an explicit pair (query prefix, passage prefix)
    max_length : in tokens; 0 takes the family's

    Raises
    ------
    ModelError : the folder holds a model that was trained with another profile, or its files are damaged
    SettingError : unknown scheme, or a length below 3

    >>> profile_for("BAAI/bge-m3").query_prefix
    'query: '
    >>> profile_for("BAAI/bge-m3", "model-card").query_prefix
    ''
    """
    if max_length < 0 or 0 < max_length < 3:  # first and last token, and one of the text
        raise SettingError(f"max_length is {max_length}; give 3 tokens or more, or 0 for the model's own")
    saved = saved_profile(model_name)
    name = _family_name(saved.base_model if saved else model_name)
    pooling, length, card = next(value for key, value in FAMILIES.items() if key in name)
    scheme, query, passage = _prefix_pair(prefixes, name, card)
    if saved is None:
        if own := _read_object(Path(model_name) / "1_Pooling" / "config.json"):
            pooling = "cls" if own.get("pooling_mode_cls_token") else "mean"
        return Profile(model_name, scheme, query, passage, pooling, max_length or length)
    asked = replace(saved, max_length=max_length or saved.max_length)
    if prefixes != "auto":  # "auto" means: as it was trained
        asked = replace(asked, scheme=scheme, query_prefix=query, passage_prefix=passage)
    if replace(asked, scheme=saved.scheme) != saved:  # another scheme may well mean the same prefixes
        raise ModelError(
            f"{model_name} was trained with {saved}, but {asked} was asked for; "
            "leave prefixes at 'auto' and max_length at 0 to use the model's own"
        )
    return saved


def _family_name(model_name: str) -> str:
    path = Path(model_name)
    cached = [part for part in path.parts if part.startswith("models--")]  # …/models--BAAI--bge-m3/snapshots/5617a9f
    return (cached or [path.name])[-1].split("--")[-1].lower()


def _prefix_pair(prefixes: str | Sequence[str], name: str, card: tuple[str, str]) -> tuple[str, str, str]:
    """Return scheme, query prefix and passage prefix."""
    if isinstance(prefixes, str):
        auto = E5_PREFIXES if "bge" in name or "e5" in name else ("", "")
        pairs = {"auto": auto, "model-card": card, "none": ("", "")}
        if prefixes in pairs:
            return prefixes, *pairs[prefixes]
    elif isinstance(prefixes, Sequence) and len(prefixes) == 2 and all(isinstance(prefix, str) for prefix in prefixes):
        return "explicit", *prefixes
    raise SettingError(f"prefixes={shorten(prefixes)}: use 'auto', 'model-card', 'none' or a pair [query, passage]")


def saved_profile(folder: str | Path) -> Profile | None:
    """Return the profile saved beside a model's weights, or None if `folder` is no model of the course."""
    if not (metadata := read_metadata(folder)):
        return None
    try:
        profile = Profile(**metadata["profile"])
        typed = all(isinstance(getattr(profile, field.name), field.type) for field in fields(profile))
        if not (typed and profile.pooling in ("cls", "mean") and profile.max_length >= 3):
            raise TypeError(f"an impossible value in {profile}")
    except (KeyError, TypeError) as error:
        raise ModelError(f"{folder}/{PROFILE_FILE}: not a profile of this course ({error}); train again") from error
    return profile


def read_metadata(folder: str | Path) -> dict:
    """Return what `Encoder.save` wrote beside the weights (profile, data, settings); {} if there is nothing."""
    return _read_object(Path(folder) / PROFILE_FILE)


def _read_object(path: Path) -> dict:
    """Return the JSON object that a file holds, {} if there is no such file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read ({error}); fetch or train the model again") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path}: it must hold a JSON object, not {shorten(found)}; fetch or train the model again")
    return found


def write_modules(folder: Path, profile: Profile, dimension: int) -> None:
    """Write the files from which sentence-transformers makes the same vectors, of `dimension` numbers each."""
    modules = []
    for number, name in enumerate(["Transformer", "Pooling", *["Normalize"] * profile.normalize]):
        path = f"{number}_{name}" if number else ""
        (folder / path).mkdir(exist_ok=True)
        kind = f"sentence_transformers.models.{name}"
        modules.append({"idx": number, "name": str(number), "path": path, "type": kind})
    pooling = {
        "word_embedding_dimension": dimension,
        "pooling_mode_cls_token": profile.pooling == "cls",
        "pooling_mode_mean_tokens": profile.pooling == "mean",
        "include_prompt": True,
    }
    prompts = {"query": profile.query_prefix, "document": profile.passage_prefix, "passage": profile.passage_prefix}
    similarity = "cosine" if profile.normalize else "dot"
    write_json(folder / "modules.json", modules)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": profile.max_length, "do_lower_case": False})
    write_json(folder / "1_Pooling" / "config.json", pooling)
    write_json(folder / "config_sentence_transformers.json", {"prompts": prompts, "similarity_fn_name": similarity})
