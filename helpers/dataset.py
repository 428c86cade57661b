"""The BEIR layout on disk, checked while it is loaded. data/README.md documents the files."""

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock

from helpers.answers import Pattern, answer_problem, normalize
from helpers.base.checks import SPLITS, Problems, Rows, json_rows, passage_rows, read_qrels, read_triples, unique_rows
from helpers.base.columns import BATCH, ArrowColumn, LazyTexts, RowOf
from helpers.base.errors import DataError, SettingError, shorten
from helpers.base.files import atomic_path, cache_dir, display_path, file_sha256, read_json, recover, told, write_json

IN_MEMORY = 64 * 2**20  # bytes of a corpus.jsonl that is kept in memory; a larger one is mapped from the cache
COLUMNS = ("_id", "title", "text", "split")


@dataclass(frozen=True)
class Query:
    """A question and the strings that count as its answer (empty if the data set has none)."""

    text: str
    answers: tuple[str, ...] = ()


@dataclass
class RetrievalData:
    """A data set in memory: an Arrow table of passages, and plain dicts for the far fewer questions.

    Attributes
    ----------
    corpus : columns `_id`, `title`, `text` and `split` (the split of the passage's article, or "")
    queries : query id -> Query
    qrels : split -> query id -> the set of ids of its relevant passages
    triples : (query id, positive id, given negative id)
    fingerprint : sha256 over all files, shortened; equal data, equal fingerprint
    warnings : what can be used but may be wrong, a sentence each
    """

    folder: Path
    corpus: datasets.Dataset
    queries: dict[str, Query]
    qrels: dict[str, dict[str, set[str]]]
    triples: list[tuple[str, str, str]]
    fingerprint: str
    warnings: tuple[str, ...] = ()

    def training_corpus(self) -> datasets.Dataset:
        """Return the passages to mine negatives from: none that belongs to dev or test."""
        return self._select("train", "")

    def evaluation_corpus(self, scope: str = "held-out") -> datasets.Dataset:
        """Return the passages to search: "held-out" (no article of the training split) or "all" of them."""
        if scope not in ("held-out", "all"):
            raise SettingError(f"eval_corpus={shorten(scope)}: use 'held-out' or 'all'")
        return self.corpus if scope == "all" else self._select("dev", "test", "")

    def split_queries(self, split: str, limit: int = 0, seed: int = 0) -> list[str]:
        """Return the ids of a split's questions; with `limit`, that many of them, drawn with `seed`."""
        ids = list(self.qrels.get(split, ()))
        if not ids:
            raise DataError(f"{display_path(self.folder)}: qrels/{split}.tsv has no question; add its file")
        if not 0 < limit < len(ids):
            return ids
        return [ids[number] for number in sorted(random.Random(seed).sample(range(len(ids)), limit))]

    def _select(self, *splits: str) -> datasets.Dataset:
        wanted = pc.is_in(self.corpus.data.column("split"), value_set=pa.array(splits)).to_numpy()
        if not wanted.any():
            raise DataError(f"{display_path(self.folder)}: no passage of the wanted splits; check the field 'split', "
                            "or use eval_corpus='all'")  # fmt: skip
        return self.corpus if wanted.all() else self.corpus.select(np.flatnonzero(wanted))


class PassageIndex:
    """A corpus by position: id -> row, texts as the encoder reads them, texts as `has_answer` reads them.

    Nothing of it is copied into memory, so that a corpus of millions of passages stays on disk.
    `match_title` lets answers stand in the title too; `strict_dpr` keeps curly apostrophes apart from straight ones.
    """

    def __init__(self, corpus: datasets.Dataset, match_title: bool = False, strict_dpr: bool = False):
        self.corpus, self.match_title, self.strict_dpr = corpus, match_title, strict_dpr
        ids, title, text = (ArrowColumn(corpus, name) for name in ("_id", "title", "text"))
        self.ids = LazyTexts(str, ids)
        self.texts = LazyTexts(lambda title, text: f"{title} {text}".strip(), title, text)  # as encoded and searched
        body = (lambda title, text: f"{title} . {text}") if match_title else (lambda title, text: text)
        self.normalized = LazyTexts(lambda *passage: normalize(body(*passage), strict_dpr), title, text)

    @cached_property
    def row(self) -> RowOf:
        """The row of every passage id."""
        return RowOf(self.ids)

    def __len__(self) -> int:
        return len(self.ids)


def positive_rows(data: RetrievalData, passages: PassageIndex, qid: str) -> list[int]:
    """Return the rows of a training question's positives."""
    relevant = data.qrels.get("train", {}).get(qid, ())
    return sorted(passages.row[pid] for pid in relevant if pid in passages.row)


def load_data(folder: str | Path) -> RetrievalData:
    """Load and check a BEIR-layout folder.

    A large corpus is checked once and kept as an Arrow table in the cache, under its hash; later it opens at once.

    Raises
    ------
    DataError : names file, line and field of everything that is wrong (of a file the first 20), and what to do
    """
    with told(folder):
        return _load(Path(folder), Problems())


def _load(folder: Path, problems: Problems) -> RetrievalData:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give a folder with corpus.jsonl, queries.jsonl and qrels/")
    digests = file_digests(folder)
    corpus = read_corpus(folder / "corpus.jsonl", digests, problems)
    rows = query_rows(json_rows(folder / "queries.jsonl", problems), problems)
    queries = {row["_id"]: Query(row["text"], tuple(row["answers"])) for row in rows}
    for name, found in (("corpus.jsonl", corpus), ("queries.jsonl", queries)):
        if not found and not problems.errors[str(folder / name)]:
            raise DataError(f"{folder / name} is empty; it needs one JSON object a line")
    problems.stop()
    split_of, qrels, taken = passage_splits(corpus), {}, {}
    for path in (folder / "qrels" / f"{split}.tsv" for split in SPLITS):
        if path.exists():
            qrels[path.stem] = read_qrels(path, queries, split_of, taken, problems)
            taken |= dict.fromkeys(qrels[path.stem], path.stem)
    if not qrels:
        raise DataError(f"{folder}: no qrels/train.tsv, qrels/dev.tsv or qrels/test.tsv; at least one is needed")
    if unasked := [qid for qid in queries if qid not in taken]:
        problems.warn("questions that no qrels file judges, so that they are never asked", unasked[0], len(unasked))
    problems.stop()
    path, triples = folder / "triples" / "train.tsv", []
    if path.exists():
        triples = read_triples(path, queries, split_of, qrels.get("train", {}), problems)
    problems.stop()
    return RetrievalData(
        folder, corpus, queries, qrels, triples, fingerprint(folder, digests), tuple(problems.warned())
    )


def file_digests(folder: Path) -> dict[Path, bytes]:
    """Return the sha256 of every data file of a folder."""
    paths = sorted([*folder.glob("*.jsonl"), *folder.glob("qrels/*.tsv"), *folder.glob("triples/*.tsv")])
    return {path: file_sha256(path) for path in paths if path.is_file()}


def fingerprint(folder: Path, digests: Mapping[Path, bytes] | None = None) -> str:
    """Return a short sha256 over the names and bytes of the data files; `digests` if they are known already."""
    total = hashlib.sha256()
    for path, digest in (digests or file_digests(folder)).items():
        total.update(path.name.encode() + b"\0" + digest)
    return total.hexdigest()[:16]


def read_corpus(path: Path, digests: Mapping[Path, bytes], problems: Problems) -> datasets.Dataset:
    """Return the passages of a corpus.jsonl, from memory or, if it is large, mapped from the cache."""
    rows = passage_rows(json_rows(path, problems), problems)
    if path not in digests or path.stat().st_size < IN_MEMORY:
        sink = pa.BufferOutputStream()
        _write_arrow(rows, sink)
        return datasets.Dataset.from_buffer(sink.getvalue())
    cached = cache_dir() / "corpora" / digests[path].hex()[:32]
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(cached.with_name(f".{cached.name}.lock")):
            recover(cached)
            if not cached.exists():
                with atomic_path(cached) as folder:
                    folder.mkdir()
                    _write_arrow(rows, folder / "corpus.arrow")
                    problems.stop()
                    write_json(folder / "warnings.json", problems.warnings)
    except OSError as error:
        raise DataError(f"{cached} cannot be written ({error.strerror or error}); free some space, or let "
                        "RETRIEVER_COURSE_CACHE name a folder on another disk") from error  # fmt: skip
    problems.warnings = read_json(cached / "warnings.json")
    return datasets.Dataset.from_file(str(cached / "corpus.arrow"))


def _write_arrow(rows: Iterator[dict], sink: pa.NativeFile | Path) -> None:
    schema = pa.schema([(name, pa.string()) for name in COLUMNS])
    with pa.ipc.new_stream(sink, schema) as writer:
        while batch := list(islice(rows, BATCH)):
            columns = [pa.array([row[name] for row in batch]) for name in COLUMNS]
            writer.write_batch(pa.record_batch(columns, schema))


def passage_splits(corpus: datasets.Dataset) -> Callable[[str], str | None]:
    """Return the function from a passage id to its split, or None if there is no such passage."""
    if len(corpus) < 1_000_000:
        return dict(zip(corpus["_id"][:], corpus["split"][:], strict=True)).get
    splits = corpus.data.column("split").combine_chunks().dictionary_encode()
    names, codes, find = splits.dictionary.to_pylist(), splits.indices.to_numpy(), PassageIndex(corpus).row.find
    return lambda pid: None if (row := find(pid)) < 0 else names[codes[row]]


def query_rows(rows: Rows, problems: Problems) -> Iterator[dict]:
    """Yield the rows of questions, with `answers`: strings, or a `Pattern` each where the field `regex` is true."""
    for place, row in unique_rows(rows, problems):
        answers = row.get("answers", [])
        if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
            problems.error(place, f"field 'answers' is {shorten(answers)}; a list of strings is needed", row)
        elif not isinstance(row.get("regex", False), bool):
            problems.error(
                place, f"field 'regex' is {shorten(row['regex'])}; use true (they are patterns) or false", row
            )
        else:
            answers = [Pattern(answer) for answer in answers] if row.get("regex") else answers
            wrong = next(((a, why) for a in answers if (why := answer_problem(a))), None)
            if wrong:
                problems.error(place, f"the answer {shorten(wrong[0])} {wrong[1]}", row)
            else:
                yield {**row, "answers": answers}
