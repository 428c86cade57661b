"""What other tools need beside the weights: sentence-transformers' files, BGE-M3's other two heads, a model card."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import yaml
from transformers.utils import cached_file

from helpers.base.files import write_json, write_text
from helpers.profiles import Profile

HEADS = ("sparse_linear.pt", "colbert_linear.pt")  # of BGE-M3; FlagEmbedding wants them beside the weights


def write_export(folder: Path, profile: Profile, dimension: int, source: str, metadata: Mapping) -> None:
    """Write into a model's folder what lets other tools load it and give the same vectors.

    Parameters
    ----------
    dimension : numbers in a vector, D
    source : folder or hub name that the weights once came from; its heads are copied as they are, never loaded
    """
    modules = ["Transformer", "Pooling", *["Normalize"] * profile.normalize]
    paths = ["", "1_Pooling", "2_Normalize"]
    for number, name in enumerate(modules):
        (folder / paths[number]).mkdir(exist_ok=True)
        modules[number] = {
            "idx": number, "name": str(number), "path": paths[number], "type": f"sentence_transformers.models.{name}"
        }  # fmt: skip
    write_json(folder / "modules.json", modules)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": profile.max_length, "do_lower_case": False})
    write_json(
        folder / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": dimension,
            "pooling_mode_cls_token": profile.pooling == "cls",
            "pooling_mode_mean_tokens": profile.pooling == "mean",
            "include_prompt": True,
        },
    )
    prompts = {"query": profile.query_prefix, "document": profile.passage_prefix, "passage": profile.passage_prefix}
    similarity = "cosine" if profile.normalize else "dot"
    write_json(folder / "config_sentence_transformers.json", {"prompts": prompts, "similarity_fn_name": similarity})
    for name in HEADS if "bge-m3" in profile.base_model.lower() else ():
        if head := cached_file(source, name, _raise_exceptions_for_missing_entries=False):
            shutil.copyfile(head, folder / name)
    write_text(folder / "README.md", model_card(profile, dimension, metadata))


def model_card(profile: Profile, dimension: int, metadata: Mapping) -> str:
    """Return README.md for a model: what it is, how to use it, how it was made, what it reached on dev."""
    base = Path(profile.base_model).name if Path(profile.base_model).is_absolute() else profile.base_model
    length = ", scaled to length 1" if profile.normalize else ""
    query, passage = (
        f"`{prefix}`" if prefix else "nothing" for prefix in (profile.query_prefix, profile.passage_prefix)
    )
    settings = "\n".join(f"| {name} | {value} |" for name, value in metadata.get("settings", {}).items())
    scores = ""
    if "scores" in metadata:
        lines = [f"| {name} | {metadata['scores_before'][name]:.1%} | {value:.1%} |"
                 for name, value in metadata["scores"].items()]  # fmt: skip
        scores = "\n".join(
            [f"| on dev | before fine-tuning | after step {metadata['step']} |", "|---|---|---|", *lines]
        )
        scores += "\n\n`dev` chose this checkpoint: Hit@10 by answer match over the evaluation corpus."
    front = {
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "base_model": base,
        "tags": ["dense-retrieval", "sentence-transformers", "feature-extraction"],
    }
    return f"""---
{yaml.safe_dump(front, sort_keys=False)}---

# {Path(base).name}, fine-tuned for passage retrieval

A text of at most {profile.max_length} tokens becomes {dimension} numbers: {profile.pooling} pooling{length}.
Before a query stands {query}, before a passage {passage}; other prefixes give worse results.

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/folder")
queries = model.encode_query(["…"])
passages = model.encode_document(["…"])
scores = queries @ passages.T
```

{scores}

Training data: a BEIR folder with fingerprint `{metadata.get("data", "unknown")}`.
`retriever.json` holds everything about the run.

| setting | value |
|---|---|
{settings}
"""
