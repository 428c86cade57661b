"""Model name -> prefixes, pooling, normalisation and maximum length, as one object saved with the model.

A retriever trained with one prefix or pooling and evaluated with another loses quality without any error;
so mining, training, evaluation and export all share one `Profile`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from helpers.base.errors import ModelError, SettingError, shorten

PROFILE_FILE = "retriever.json"  # lies beside the weights of every model that the course saves

BGE_V15_INSTRUCTION = "Represent this sentence for searching relevant passages: "
E5_PREFIXES = ("query: ", "passage: ")

# What a model's name holds -> pooling, maximum length, prefixes of its model card; the first match counts.
# Sources: the cards of BAAI/bge-m3, BAAI/bge-large-en-v1.5, intfloat/e5-large-v2, all-MiniLM-L6-v2.
FAMILIES = {
    "bge-m3": ("cls", 512, ("", "")),  # reaches 8192; 512 is the course's setting
    "bge": ("cls", 512, (BGE_V15_INSTRUCTION, "")),
    "e5": ("mean", 512, E5_PREFIXES),
    "minilm": ("mean", 256, ("", "")),
    "bert": ("mean", 256, ("", "")),
    "": ("mean", 256, ("", "")),  # any other encoder
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
    prefixes : "auto" (`query: ` / `passage: ` if the name holds bge or e5, else none), "model-card",
        "none", or an explicit pair (query prefix, passage prefix)
    max_length : in tokens; 0 takes the family's

    Raises
    ------
    ModelError : the folder holds a model that was trained with another profile
    SettingError : unknown scheme

    >>> profile_for("BAAI/bge-m3").query_prefix
    'query: '
    >>> profile_for("BAAI/bge-m3", "model-card").query_prefix
    ''
    >>> profile_for("bert-base-uncased").pooling
    'mean'
    """
    saved = saved_profile(model_name)
    if saved is not None:
        asked = replace(_build(saved.base_model, prefixes, max_length or saved.max_length), pooling=saved.pooling)
        if prefixes == "auto":  # the default means: as it was trained
            asked = replace(saved, max_length=asked.max_length)
        if replace(asked, scheme=saved.scheme) != saved:  # another scheme may well mean the same prefixes
            raise ModelError(
                f"{model_name} was trained with {saved}, but {asked} was asked for; "
                "leave prefixes at 'auto' and max_length at 0 to use the model's own"
            )
        return saved
    return _build(model_name, prefixes, max_length)


def _build(model_name: str, prefixes: str | Sequence[str], max_length: int) -> Profile:
    path = Path(model_name)
    cached = [part for part in path.parts if part.startswith("models--")]  # …/models--BAAI--bge-m3/snapshots/5617a9f
    name = (cached or [path.name])[-1].split("--")[-1].lower()
    pooling, family_length, card = next(value for key, value in FAMILIES.items() if key in name)
    if (own := path / "1_Pooling" / "config.json").is_file():  # a sentence-transformers model says it itself
        pooling = "cls" if json.loads(own.read_text(encoding="utf-8")).get("pooling_mode_cls_token") else "mean"
    if max_length < 0 or 0 < max_length < 3:  # first and last token, and one of the text
        raise SettingError(f"max_length is {max_length}; give 3 tokens or more, or 0 for {family_length}")
    if not isinstance(prefixes, str):
        if len(prefixes) != 2 or not all(isinstance(prefix, str) for prefix in prefixes):
            raise SettingError(f"prefixes={shorten(prefixes)}: a pair is [query prefix, passage prefix]")
        scheme, pair = "explicit", tuple(prefixes)
    elif prefixes in ("auto", "model-card", "none"):
        auto = E5_PREFIXES if "bge" in name or "e5" in name else ("", "")
        scheme, pair = prefixes, {"auto": auto, "model-card": card, "none": ("", "")}[prefixes]
    else:
        raise SettingError(f"prefixes={shorten(prefixes)}: use 'auto', 'model-card', 'none' or a pair [query, passage]")
    return Profile(model_name, scheme, *pair, pooling=pooling, max_length=max_length or family_length)


def saved_profile(folder: str | Path) -> Profile | None:
    """Return the profile saved beside a model's weights, or None if `folder` is no model of the course."""
    metadata = read_metadata(folder)
    try:
        return Profile(**metadata["profile"]) if metadata else None
    except (KeyError, TypeError) as error:
        raise ModelError(f"{folder}/{PROFILE_FILE}: not a profile of this course ({error}); train again") from error


def read_metadata(folder: str | Path) -> dict:
    """Return what `Encoder.save` wrote beside the weights (profile, data, settings); {} if there is nothing."""
    path = Path(folder) / PROFILE_FILE
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: broken JSON ({error}); train the model again") from error
