"""Data sets of the Hugging Face hub: loaded by `datasets`, from files in which nothing can be executed."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, groupby
from pathlib import Path

import datasets

from helpers.base.checks import SCORE, Place
from helpers.base.errors import CourseError, DataError, shorten
from helpers.importing.formats import Import, Question, Rows, by_split, from_squad, split_in
from helpers.importing.squad import Paragraph
from helpers.importing.tables import Table

SAFE_KINDS = ("parquet", "json", "csv", "text", "arrow")  # `pandas` unpickles, others decode files of many kinds


def load_hub(name: str, *configuration: str, streaming: bool = False) -> Mapping[str, Iterable[dict]]:
    """Return the splits of a data set of the Hugging Face hub ($HF_ENDPOINT and its offline cache are honoured).

    Raises
    ------
    DataError : its files are of a kind that may run code or unpickle when read
    """
    builder = datasets.load_dataset_builder(name, *configuration)
    kinds = [kind.__module__ for kind in type(builder).__mro__]  # datasets.packaged_modules.parquet.parquet, …
    if not any(module == f"datasets.packaged_modules.{kind}.{kind}" for kind in SAFE_KINDS for module in kinds):
        raise DataError(
            f"{name}: files of the kind {type(builder).__name__} are not read; only {', '.join(SAFE_KINDS)} are, "
            "since nothing in them can be executed"
        )
    return datasets.load_dataset(name, *configuration, streaming=streaming)


def hub_paragraphs(rows: Iterable[dict]) -> Iterator[Paragraph]:
    """Yield the paragraphs of a data set in the hub's form: one row per question, rows of a paragraph side by side."""
    for (title, text), group in groupby(rows, key=lambda row: (row["title"], row["context"])):
        answered = [row for row in group if row["answers"]["text"]]
        asked = [{"id": row["id"], "question": row["question"]} for row in answered]
        for question, row in zip(asked, answered, strict=True):
            question |= {"answers": row["answers"]["text"], "starts": row["answers"]["answer_start"]}
        yield title, text, asked


def read_hub(job: Import) -> Rows:
    """A data set of the hub, by its name (and configuration): SQuAD's form, BEIR's, or one pair per row."""
    name, *configuration = map(str, job.paths)
    try:
        kinds = set() if configuration else set(datasets.get_dataset_config_names(name))
        if {"corpus", "queries"} <= kinds:
            own = next(([name, kind] for kind in ("qrels", "default") if kind in kinds), [f"{name}-qrels"])
            yield from _hub_beir(job, name, load_hub(*own, streaming=True))
            return
        splits = load_hub(name, *configuration, streaming=True)
        first = next(iter(next(iter(splits.values()))), {})
        if isinstance(first.get("answers"), dict) and "context" in first:
            yield from from_squad(job, by_split((split, hub_paragraphs(rows)) for split, rows in splits.items()))
            return
        table = Table(job)
        for split, rows in splits.items():
            for number, row in enumerate(rows, start=1):
                yield from table.add(Place(Path(name), f"{split}, row {number}"), split_in(split), row)
        yield from table.finish()
    except CourseError:
        raise
    except Exception as error:  # `datasets` raises nearly anything
        why = f"{type(error).__name__}: {shorten(str(error), 200)}"
        raise DataError(
            f"{name}: the hub gave no data set that can be read ({why}); check the name and HF_ENDPOINT"
        ) from error


def _hub_beir(job: Import, name: str, judged: Mapping[str, Iterable[dict]]) -> Rows:
    """Yield the passages, and add the questions as `read_beir` does; ids may be numbers here."""
    for row in chain(*load_hub(name, "corpus", streaming=True).values()):
        row = {"_id": _id(row), **{key: row.get(key) or "" for key in ("title", "text")}}
        yield Place(Path(name), f"passage {row['_id']}"), row
    asked = {}
    for row in chain(*load_hub(name, "queries", streaming=True).values()):
        more = {key: row[key] for key in ("answers", "regex") if row.get(key) is not None}  # others may be no JSON
        row = {"_id": _id(row), "text": row.get("text"), **more}
        asked[row["_id"]] = Question(Place(Path(name), f"question {row['_id']}"), row, group=row["_id"])
    for split, rows in judged.items():
        for number, row in enumerate(rows, start=1):
            place = Place(Path(name), f"qrels {split}, row {number}")
            qid, pid, score = (str(row[key]) for key in ("query-id", "corpus-id", "score"))
            if qid not in asked:
                job.problems.error(place, f"unknown query id {shorten(qid)}; its queries have no such row", [qid, pid])
            elif not SCORE.fullmatch(score):
                job.problems.error(place, f"the score {shorten(score)} is not a number", [qid, pid, score])
            elif float(score) > 0:
                asked[qid].judge(pid, split_in(split), place, score, job.problems)
    job.questions += asked.values()


def _id(row: dict) -> str:
    return "" if row.get("_id") is None else str(row["_id"])
