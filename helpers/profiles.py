"""A model's files, or else its name -> prefixes, pooling, scaling and maximum length: one object, saved with the model.

A retriever trained with one prefix or pooling and evaluated with another loses quality without any error;
so mining, training, evaluation and export all share one `Profile`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor

from helpers.base.errors import ModelError, SettingError, shorten
from helpers.base.modules import POOLING, Modules, read_model_json, read_modules

PROFILE_FILE = "retriever.json"  # lies beside the weights of every model that the course saves
TOLD: set[str] = set()  # models about whose prefixes something was said
FROM_FILES = ("pooling", "normalize", "include_prompt", "similarity", "dimensions")  # what files of either kind decide
LONGEST = 512  # tokens, unless the user asks for more: the course's setting, although BGE-M3 reaches 8192

SEARCHING = "Represent this sentence for searching relevant passages: "
WEB_SEARCH = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: "
E5_PREFIXES = ("query: ", "passage: ")
NOMIC_PREFIXES = ("search_query: ", "search_document: ")

# For models whose own files do not say it: pattern of the name -> pooling, maximum length, prefixes of the model card.
# The first match counts. Sources: the cards of these models on the Hugging Face hub.
FAMILIES = {
    "bge-m3": ("cls", 512, ("", "")),
    "bge-.*-zh": ("cls", 512, ("为这个句子生成表示以用于检索相关文章：", "")),
    "bge": ("cls", 512, (SEARCHING, "")),
    "e5-mistral": ("lasttoken", 512, (WEB_SEARCH, "")),
    "e5-.*instruct": ("mean", 512, (WEB_SEARCH, "")),
    "e5": ("mean", 512, E5_PREFIXES),
    "mxbai-embed": ("cls", 512, (SEARCHING, "")),
    "snowflake-arctic-embed-.*v2": ("cls", 512, ("query: ", "")),
    "snowflake-arctic-embed": ("cls", 512, (SEARCHING, "")),
    "gte-modernbert|gte-multilingual|gte-.*-en-v1.5": ("cls", 512, ("", "")),
    "gte-qwen2": ("lasttoken", 512, (WEB_SEARCH, "")),
    "gte": ("mean", 512, ("", "")),
    "nomic-embed|modernbert-embed": ("mean", 512, NOMIC_PREFIXES),
    "qwen3-embedding": ("lasttoken", 512, (WEB_SEARCH.rstrip(), "")),
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
    pooling : "cls" (first token), "mean" (over the attention mask), another of `helpers.base.modules.POOLING`, or
        several of them joined by "+"
    max_length : in tokens, special tokens included; longer texts are cut
    normalize : scale vectors to length 1, so that the dot product is the cosine
    include_prompt : pool the tokens of the prefix too
    similarity : "cosine" or "dot", by which vectors are compared
    dimensions : keep only that many numbers of each vector, the first ones; 0: all
    """

    base_model: str
    scheme: str
    query_prefix: str
    passage_prefix: str
    pooling: str
    max_length: int
    normalize: bool = True
    include_prompt: bool = True
    similarity: str = "cosine"
    dimensions: int = 0

    def prefix(self, kind: str) -> str:
        """Return the prefix for `kind`, "query" or "passage"."""
        return {"query": self.query_prefix, "passage": self.passage_prefix}[kind]

    def files(self, dense: torch.nn.Sequential, width: int) -> Modules:
        """Return what the files of a model with these Dense layers and token vectors [L, width] say."""
        own = {name: getattr(self, name) for name in ("max_length", *FROM_FILES)}
        return Modules(
            **own, query_prompt=self.query_prefix, passage_prompt=self.passage_prefix, dense=dense, width=width
        )


def profile_for(
    model_name: str, prefixes: str | Sequence[str] = "auto", max_length: int = 0, files: Modules | None = None
) -> Profile:
    """Return the profile of a model: by its own files, or by its name if it has none.

    Parameters
    ----------
    model_name : a hub name, a name of `helpers.base.assets`, or a folder
    prefixes : "auto" (the prompts of the model's own files; without any, `query: ` / `passage: ` if the name contains
        bge or e5, else none), "model-card", "none", or an explicit pair (query prefix, passage prefix)
    max_length : in tokens; 0 takes the model's own, but 512 at most
    files : what `helpers.base.modules.read_modules` returns for this model; None: read them if it is a folder

    Raises
    ------
    ModelError : the folder holds a model that was trained with another profile, or its files are damaged or ask for
        what we cannot do
    SettingError : unknown scheme, or a length below 3

    >>> profile_for("BAAI/bge-m3").query_prefix
    'query: '
    >>> profile_for("BAAI/bge-m3", "model-card").query_prefix
    ''
    """
    if max_length < 0 or 0 < max_length < 3:  # first and last token, and one of the text
        raise SettingError(f"max_length is {max_length}; give 3 tokens or more, or 0 for the model's own")
    saved = saved_profile(model_name)
    name = saved.base_model if saved else model_name
    if files is None and Path(model_name).is_dir():
        files = read_modules(model_name)
    pooling, length, _ = family(name)
    if saved is None:
        scheme, query, passage = _prefix_pair(prefixes, name, files)
        profile = Profile(model_name, scheme, query, passage, pooling, max_length or length)
        if files is None:
            return profile
        profile = replace(profile, max_length=max_length or min(files.max_length or LONGEST, LONGEST))
        return replace(profile, **{name: getattr(files, name) for name in FROM_FILES})
    if files and (differing := [name for name in FROM_FILES if getattr(files, name) != getattr(saved, name)]):
        raise ModelError(
            f"{model_name}: {PROFILE_FILE} and modules.json differ in {differing}; train or export it again"
        )
    asked = replace(saved, max_length=max_length or saved.max_length)
    if prefixes != "auto":  # "auto" means: as it was trained
        scheme, query, passage = _prefix_pair(prefixes, name, None)
        asked = replace(asked, scheme=scheme, query_prefix=query, passage_prefix=passage)
    if replace(asked, scheme=saved.scheme) != saved:  # another scheme may well mean the same prefixes
        raise ModelError(
            f"{model_name} was trained with {saved}, but {asked} was asked for; "
            "leave prefixes at 'auto' and max_length at 0 to use the model's own"
        )
    return saved


def family(model_name: str) -> tuple[str, int, tuple[str, str]]:
    """Return pooling, maximum length and the model card's prefixes of a model that is known by its name alone."""
    name = _short_name(model_name)
    return next(facts for pattern, facts in FAMILIES.items() if re.search(pattern, name))


def tell_prefixes(profile: Profile, files: Modules | None) -> None:
    """Say once per model where the prefixes of "auto" are not those of the model card, or not those of the course."""
    pair = (profile.query_prefix, profile.passage_prefix)
    own, card, rule = files and files.query_prompt, family(profile.base_model)[2], rule_by_name(profile.base_model)
    if profile.scheme != "auto" or profile.base_model in TOLD:
        return
    if own is not None and pair != rule:
        print(f"{profile.base_model}: prefixes {pair} from its own files; by its name they would be {rule}")
    elif own is None and pair != card:
        print(f"{profile.base_model}: prefixes {pair} by its name; its model card has {card} (prefixes='model-card')")
    TOLD.add(profile.base_model)


def rule_by_name(model_name: str) -> tuple[str, str]:
    """Return the course's prefixes for a model whose files have no prompts: models with instructions keep theirs."""
    name = _short_name(model_name)
    if "instruct" in name:
        return family(model_name)[2]
    return E5_PREFIXES if "bge" in name or "e5" in name else ("", "")


def _short_name(model_name: str) -> str:
    path = Path(model_name)
    cached = [part for part in path.parts if part.startswith("models--")]  # …/models--BAAI--bge-m3/snapshots/5617a9f
    return (cached or [path.name])[-1].split("--")[-1].lower()


def _prefix_pair(prefixes: str | Sequence[str], model_name: str, files: Modules | None) -> tuple[str, str, str]:
    """Return scheme, query prefix and passage prefix."""
    if isinstance(prefixes, str):
        auto, card = rule_by_name(model_name), family(model_name)[2]
        if files and files.query_prompt is not None:
            auto = card = files.query_prompt, files.passage_prompt
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
        if not (typed and set(profile.pooling.split("+")) <= set(POOLING) and profile.max_length >= 3):
            raise TypeError(f"an impossible value in {profile}")
    except (KeyError, TypeError) as error:
        raise ModelError(f"{folder}/{PROFILE_FILE}: not a profile of this course ({error}); train again") from error
    return profile


def read_metadata(folder: str | Path) -> dict:
    """Return what `Encoder.save` wrote beside the weights (profile, data, settings); {} if there is nothing."""
    path = Path(folder) / PROFILE_FILE
    return read_model_json(path) if path.is_file() else {}


def pool(hidden: Tensor, attention_mask: Tensor, pooling: str, pooled: Tensor | None = None) -> Tensor:
    """Return one vector per text, [B, D], from those of its tokens, [B, L, H]; texts are padded on the right.

    Parameters
    ----------
    attention_mask : 1 on real tokens, [B, L]
    pooling : see `Profile`; each of several ways gives H numbers, D in all
    pooled : 1 on the tokens that count, [B, L]; None: all real ones

    >>> tokens, mask = torch.tensor([[[1.0], [2.0], [6.0], [9.0]]]), torch.tensor([[1, 1, 1, 0]])
    >>> [pool(tokens, mask, way).item() for way in ("cls", "mean", "max", "lasttoken", "weightedmean")]
    [1.0, 3.0, 6.0, 6.0, 3.8333332538604736]
    """
    kept = (attention_mask if pooled is None else pooled)[:, :, None].to(hidden.dtype)  # [B, L, 1]
    count = kept.sum(1).clamp(min=1)
    rows, ends = torch.arange(len(hidden), device=hidden.device), attention_mask.sum(1) - 1
    places = torch.arange(1, 1 + hidden.shape[1], device=hidden.device)[:, None] * kept
    ways = {
        "cls": lambda: hidden[rows, kept[:, :, 0].argmax(1)],
        "max": lambda: hidden.masked_fill(kept == 0, -torch.inf).amax(1),
        "mean": lambda: (hidden * kept).sum(1) / count,
        "mean_sqrt_len_tokens": lambda: (hidden * kept).sum(1) / count.sqrt(),
        "weightedmean": lambda: (hidden * places).sum(1) / places.sum(1).clamp(min=1),
        "lasttoken": lambda: hidden[rows, ends],
    }
    return torch.cat([ways[way]() for way in pooling.split("+")], -1)
