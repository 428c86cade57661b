"""The BEIR layout on disk, checked while it is loaded. data/README.md documents the files."""

import hashlib
import os
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock

from helpers.answers import Pattern, answer_problem, normalize, normalize_all
from helpers.base import checks
from helpers.base.checks import CHECKS_VERSION, SPLITS, Problems
from helpers.base.columns import BATCH, ArrowColumn, LazyTexts, RowOf, repeated
from helpers.base.errors import DataError, SettingError, shorten
from helpers.base.files import atomic_path, cache_dir, display_path, file_sha256, read_json, recover, told, write_json

IN_MEMORY = 64 * 2**20  # bytes; a larger corpus.jsonl is mapped from the cache
MANY = 1_000_000  # passages whose splits are not copied into a dict
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
    candidates : training question id -> passages that came with it, in their order -> score, or NaN if there is none
    fingerprint : sha256 over all files, shortened; equal data, equal fingerprint
    warnings : what can be used but may be wrong, one sentence each
    """

    folder: Path
    corpus: datasets.Dataset
    queries: dict[str, Query]
    qrels: dict[str, dict[str, set[str]]]
    triples: list[tuple[str, str, str]]
    fingerprint: str
    warnings: tuple[str, ...] = ()
    candidates: dict[str, dict[str, float]] = field(default_factory=dict)

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

    @cached_property
    def copies(self) -> dict[str, set[str]]:
        """Question id -> ids of the passages that are the question itself, unless judged relevant, if there are any."""
        found: dict[str, set[str]] = defaultdict(set)
        for qid, pid in repeated(self.corpus, {qid: query.text for qid, query in self.queries.items()}):
            if not any(pid in judged.get(qid, ()) for judged in self.qrels.values()):
                found[qid].add(pid)
        return dict(found)

    def _select(self, *splits: str) -> datasets.Dataset:
        wanted = pc.is_in(self.corpus.data.column("split"), value_set=pa.array(splits)).to_numpy()
        if not wanted.any():
            place = display_path(self.folder)
            raise DataError(f"{place}: no passage is of {splits}; check the field 'split', or use eval_corpus='all'")
        return self.corpus if wanted.all() else self.corpus.select(np.flatnonzero(wanted))


class PassageIndex:
    """A corpus by position: id -> row, texts as the encoder reads them, texts as `has_answer` reads them.

    Nothing is copied into memory, so that a corpus of millions of passages stays on disk. With `match_title` answers
    may stand in the title too; with `strict_dpr` a curly apostrophe is not a straight one.
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

    def rows_of(self, ids: Iterable[str]) -> set[int]:
        """Return the rows of those passages that are here."""
        return {row for row in map(self.row.find, ids) if row >= 0}

    def needles(self, answers: Iterable[str]) -> list:
        """Return `answers` as `helpers.answers.holds` looks for them in `normalized`, by the same rules."""
        return normalize_all(answers, self.strict_dpr)


def positive_rows(data: RetrievalData, passages: PassageIndex, qid: str) -> list[int]:
    """Return the rows of a training question's positives."""
    return sorted(passages.rows_of(data.qrels.get("train", {}).get(qid, ())))


def load_data(folder: str | Path) -> RetrievalData:
    """Load and check a BEIR-layout folder.

    A large corpus is checked once and kept as an Arrow table in the cache; later it opens at once.

    Raises
    ------
    DataError : names file, line and field of everything that is wrong (the first 20 of each file), and what to do
    """
    with told(folder):
        return _load(Path(folder), Problems())


def _load(folder: Path, problems: Problems) -> RetrievalData:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give a folder with corpus.jsonl, queries.jsonl and qrels/")
    digests = file_digests(folder)
    corpus = read_corpus(folder / "corpus.jsonl", digests, problems)
    rows = query_rows(checks.json_rows(folder / "queries.jsonl", problems), problems)
    queries = {row["_id"]: Query(row["text"], tuple(row["answers"])) for row in rows}
    for name, found in (("corpus.jsonl", corpus), ("queries.jsonl", queries)):
        if not found and not problems.errors[str(folder / name)]:
            raise DataError(f"{folder / name} is empty; it needs one JSON object per line")
    problems.stop()
    split_of, qrels, taken = passage_splits(corpus), {}, {}
    for path in (folder / "qrels" / f"{split}.tsv" for split in SPLITS):
        if os.path.lexists(path):  # a link to nothing is an error
            qrels[path.stem] = checks.read_qrels(path, queries, split_of, taken, problems)
            taken |= dict.fromkeys(qrels[path.stem], path.stem)
    if not qrels:
        raise DataError(f"{folder}: no qrels/train.tsv, qrels/dev.tsv or qrels/test.tsv; at least one is needed")
    if unasked := [qid for qid in queries if qid not in taken]:
        problems.warn("questions that no qrels file judges, so that they are never asked", unasked[0], len(unasked))
    problems.stop()
    (path, listed), triples, candidates = (folder / name / "train.tsv" for name in ("triples", "candidates")), [], {}
    if os.path.lexists(path):
        triples = checks.read_triples(path, queries, split_of, qrels.get("train", {}), problems)
    if os.path.lexists(listed):
        candidates = checks.read_candidates(listed, qrels.get("train", {}), split_of, problems)
    problems.stop()
    fingerprint = data_fingerprint(folder, digests)
    return RetrievalData(folder, corpus, queries, qrels, triples, fingerprint, tuple(problems.warned()), candidates)


def file_digests(folder: Path) -> dict[Path, bytes]:
    """Return the sha256 of every data file of a folder."""
    names = ("*.jsonl", "qrels/*.tsv", "triples/*.tsv", "candidates/*.tsv")
    paths = sorted(path for name in names for path in folder.glob(name))
    return {path: file_sha256(path) for path in paths if path.is_file()}


def data_fingerprint(folder: Path, digests: Mapping[Path, bytes] | None = None) -> str:
    """Return a short sha256 over the names and bytes of the data files; `digests` if they are known already."""
    total = hashlib.sha256()
    for path, digest in (digests or file_digests(folder)).items():
        total.update(path.name.encode() + b"\0" + digest)
    return total.hexdigest()[:16]


def read_corpus(path: Path, digests: Mapping[Path, bytes], problems: Problems) -> datasets.Dataset:
    """Return the passages of a corpus.jsonl, from memory or, if it is large, mapped from the cache."""
    rows = checks.passage_rows(checks.json_rows(path, problems), problems)
    if path not in digests or path.stat().st_size < IN_MEMORY:
        sink = pa.BufferOutputStream()
        _write_arrow(rows, sink)
        return datasets.Dataset.from_buffer(sink.getvalue())
    cached = cache_dir() / "corpora" / f"{digests[path].hex()[:32]}-{CHECKS_VERSION}"
    fix = "free some space, or let RETRIEVER_COURSE_CACHE name a folder on another disk"
    with told(cached, fix):
        cached.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(cached.with_name(f".{cached.name}.lock")):
            recover(cached)
            if not cached.exists():
                with atomic_path(cached) as folder, told(cached, fix):
                    folder.mkdir()
                    _write_arrow(rows, folder / "corpus.arrow")
                    problems.stop()
                    write_json(folder / "warnings.json", problems.warnings)
    problems.warnings = read_json(cached / "warnings.json")
    return datasets.Dataset.from_file(str(cached / "corpus.arrow"))


def _write_arrow(rows: Iterator[dict], sink: pa.NativeFile | Path) -> None:
    schema = pa.schema([(name, pa.string()) for name in COLUMNS])
    with pa.ipc.new_stream(sink, schema) as writer:
        while batch := list(islice(rows, BATCH)):
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema))


def passage_splits(corpus: datasets.Dataset) -> Callable[[str], str | None]:
    """Return the function from a passage id to its split, or None if there is no such passage."""
    if len(corpus) < MANY:
        return dict(zip(corpus["_id"][:], corpus["split"][:], strict=True)).get
    find, splits = PassageIndex(corpus).row.find, ArrowColumn(corpus, "split")
    return lambda pid: None if (row := find(pid)) < 0 else splits[row]


def query_rows(rows: checks.Rows, problems: Problems) -> Iterator[dict]:
    """Yield the rows of questions, with `answers`: strings, or `Pattern`s where the field `regex` is true."""
    for place, row in checks.unique_rows(rows, problems):
        answers, patterns, wrong = row.get("answers", []), row.get("regex", False), ""
        if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
            wrong = f"field 'answers' is {shorten(answers)}; a list of strings is needed"
        elif not isinstance(patterns, bool):
            wrong = f"field 'regex' is {shorten(patterns)}; use true (they are patterns) or false"
        else:
            answers = [Pattern(answer) for answer in answers] if patterns else answers
            for answer in answers:
                if not wrong and (why := answer_problem(answer)):
                    wrong = f"the answer {shorten(answer)} {why}"
        if wrong:
            problems.error(place, wrong, row)
        else:
            yield {**row, "answers": answers}
