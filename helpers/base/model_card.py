"""README.md of a saved model, in the form that the Hugging Face hub shows."""

from collections.abc import Mapping
from pathlib import Path

import yaml


def model_card(profile: Mapping, dimension: int, metadata: Mapping) -> str:
    """Return README.md for a model: what it is, how to use it, how it was made, what it reached on dev.

    `profile` and `metadata` are those of the model's retriever.json; `dimension` is D, the numbers in a vector.
    """
    base = profile["base_model"]
    base = Path(base).name if Path(base).is_absolute() else base  # no folder of somebody's machine
    length = ", scaled to length 1" if profile["normalize"] else ""
    query, passage = (
        f"`{profile[name]}`" if profile[name] else "nothing" for name in ("query_prefix", "passage_prefix")
    )
    front = {
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "base_model": base,
        "tags": ["dense-retrieval", "sentence-transformers", "feature-extraction"],
    }
    settings = "\n".join(f"| {name} | {value} |" for name, value in metadata.get("settings", {}).items())
    return f"""---
{yaml.safe_dump(front, sort_keys=False)}---

# {Path(base).name}, fine-tuned for passage retrieval

A text of at most {profile["max_length"]} tokens becomes {dimension} numbers: {profile["pooling"]} pooling{length}.
Before a query stands {query}, before a passage {passage}; other prefixes give worse results.

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("path/to/this/folder")
queries = model.encode_query(["…"])
passages = model.encode_document(["…"])
scores = model.similarity(queries, passages)
```

{_scores(metadata) if "scores" in metadata else ""}

Training data: a BEIR folder with fingerprint `{metadata.get("data", "unknown")}`.
`retriever.json` holds everything about the run.

| setting | value |
|---|---|
{settings}
"""


def _scores(metadata: Mapping) -> str:
    lines = [f"| on dev | before fine-tuning | after step {metadata['step']} |", "|---|---|---|"]
    for name, value in metadata["scores"].items():
        lines.append(f"| {name} | {metadata['scores_before'][name]:.1%} | {value:.1%} |")
    over = "over the evaluation corpus"
    if "dev_set" in metadata:
        scope, questions, searched, passages = metadata["dev_set"]
        part = f"a sample of {searched:,} of the" if searched < passages else "all"
        over = f"{questions:,} questions over {part} {passages:,} passages of eval_corpus={scope!r}"
    return "\n".join([*lines, "", f"`dev` chose this checkpoint: Hit@10 by answer match, {over}."])
