"""The BEIR layout on disk, checked while it is loaded, and the training rows made from it.

A row is a question, its positive, the given negative and a few hard negatives sampled from the question's
pool. `make_batch` turns rows into tensors: every distinct passage once, and a mask of who may be a negative
for whom. data/README.md documents the files.
"""

import hashlib
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import datasets
import torch
from torch import Tensor

from helpers.errors import DataError, SettingError, shorten
from helpers.evaluation import normalize, normalize_all
from helpers.files import display_path, write_jsonl, write_text

SPLITS = ("train", "dev", "test")


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
    """

    folder: Path
    corpus: datasets.Dataset
    queries: dict[str, Query]
    qrels: dict[str, dict[str, set[str]]]
    triples: list[tuple[str, str, str]]
    fingerprint: str

    def training_corpus(self) -> datasets.Dataset:
        """Return the passages to mine negatives from: none that belongs to dev or test."""
        return self._select(lambda split: split in ("train", ""))

    def evaluation_corpus(self, scope: str = "held-out") -> datasets.Dataset:
        """Return the passages to search: "held-out" (no article of the training split) or "all" of them."""
        if scope not in ("held-out", "all"):
            raise SettingError(f"eval_corpus={shorten(scope)}: use 'held-out' or 'all'")
        return self.corpus if scope == "all" else self._select(lambda split: split != "train")

    def split_queries(self, split: str, limit: int = 0, seed: int = 0) -> list[str]:
        """Return the ids of a split's questions; with `limit`, that many of them, drawn with `seed`."""
        ids = list(self.qrels.get(split, ()))
        if not ids:
            raise DataError(f"{display_path(self.folder)}: qrels/{split}.tsv has no question; add its file")
        return sorted(random.Random(seed).sample(ids, limit), key=ids.index) if 0 < limit < len(ids) else ids

    def _select(self, wanted) -> datasets.Dataset:
        keep = [number for number, split in enumerate(self.corpus["split"]) if wanted(split)]
        return self.corpus.select(keep)


class PassageIndex:
    """A corpus by position: id -> row, texts as the encoder reads them, texts as `has_answer` reads them."""

    def __init__(self, corpus: datasets.Dataset):
        self.corpus = corpus
        self.ids: list[str] = list(corpus["_id"])
        self.row = {pid: number for number, pid in enumerate(self.ids)}

    @cached_property
    def texts(self) -> list[str]:
        """Title and text of every passage, as encoded and searched."""
        pairs = zip(self.corpus["title"], self.corpus["text"], strict=True)
        return [f"{title} {text}".strip() for title, text in pairs]

    @cached_property
    def normalized(self) -> list[str]:
        """Body text of every passage through `normalize`, for answer match."""
        return [normalize(text) for text in self.corpus["text"]]

    def __len__(self) -> int:
        return len(self.ids)


# --- loading ---------------------------------------------------------------------------------------------


def load_data(folder: str | Path) -> RetrievalData:
    """Load and check a BEIR-layout folder.

    Raises
    ------
    DataError : names the file, line and field of the first problem, and what to do about it
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give a folder with corpus.jsonl, queries.jsonl and qrels/")
    passages = list(_passages(folder / "corpus.jsonl"))
    columns = {key: [p[key] for p in passages] for key in ("_id", "title", "text", "split")}
    queries = dict(_queries(folder / "queries.jsonl"))
    known = set(columns["_id"])
    files = [folder / "qrels" / f"{split}.tsv" for split in SPLITS]
    qrels = {file.stem: _qrels(file, queries, known) for file in files if file.exists()}
    if not qrels:
        raise DataError(f"{folder}: no qrels/train.tsv, qrels/dev.tsv or qrels/test.tsv; at least one is needed")
    for one, other in (("train", "dev"), ("train", "test"), ("dev", "test")):
        if shared := sorted(qrels.get(one, {}).keys() & qrels.get(other, {}).keys()):
            raise DataError(f"{folder / 'qrels'}: question {shared[0]!r} is in {one}.tsv and in {other}.tsv; "
                            f"keep each question in one split ({len(shared)} are in both)")  # fmt: skip
    path = folder / "triples" / "train.tsv"
    triples = _triples(path, queries, known, qrels.get("train", {})) if path.exists() else []
    return RetrievalData(
        folder, datasets.Dataset.from_dict(columns), queries, qrels, triples, fingerprint(folder)
    )


def fingerprint(folder: Path) -> str:
    """Return a short sha256 over the names and bytes of the data files."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.jsonl"), *folder.glob("qrels/*.tsv"), *folder.glob("triples/*.tsv")]):
        digest.update(path.name.encode() + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    raise DataError(f"{path}:{number}: not UTF-8 ({error.reason}); save it as UTF-8") from error
                if text.strip():
                    yield number, text
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing; the BEIR layout needs it (see data/README.md)") from error


def _records(path: Path) -> Iterator[tuple[str, dict]]:
    """Yield (place for messages, JSON object) of a JSONL file with a unique, non-empty `_id` and `text`."""
    seen: dict[str, int] = {}
    for number, line in _lines(path):
        place = f"{path}:{number}"
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(f"{place}: broken JSON ({error}); one JSON object a line is needed") from error
        if not isinstance(row, dict):
            raise DataError(f"{place}: {shorten(row)} is not a JSON object")
        for field in ("_id", "text"):
            if not isinstance(row.get(field), str) or not row[field].strip():
                raise DataError(f"{place}: field {field!r} is {shorten(row.get(field))}; a non-empty string is needed")
        if row["_id"] in seen:
            raise DataError(f"{place}: id {row['_id']!r} is already on line {seen[row['_id']]}; ids are unique")
        seen[row["_id"]] = number
        yield place, row
    if not seen:
        raise DataError(f"{path} is empty; it needs one JSON object a line")


def _passages(path: Path) -> Iterator[dict]:
    for place, row in _records(path):
        row = {"title": "", "split": "", **row}
        for field in ("title", "split"):
            if not isinstance(row[field], str):
                raise DataError(f"{place}: field {field!r} is {shorten(row[field])}; a string is needed")
        if row["split"] not in ("", *SPLITS):
            raise DataError(f"{place}: field 'split' is {shorten(row['split'])}; use one of {SPLITS}, or leave it out")
        yield row


def _queries(path: Path) -> Iterator[tuple[str, Query]]:
    for place, row in _records(path):
        answers = row.get("answers", [])
        if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
            raise DataError(f"{place}: field 'answers' is {shorten(answers)}; a list of strings is needed")
        for answer in answers:
            if not normalize_all([answer]):
                raise DataError(f"{place}: the answer {shorten(answer)} is empty: it would match everything; remove it")
        yield row["_id"], Query(row["text"], tuple(answers))


def _columns(path: Path, names: tuple[str, str, str]) -> Iterator[tuple[str, list[str]]]:
    for number, line in _lines(path):
        cells = line.split("\t")
        if number == 1 and cells[0].lower() in ("query-id", "qid"):
            continue  # the header
        if len(cells) != 3:
            raise DataError(f"{path}:{number}: {len(cells)} columns; three separated by tabs are needed: {names}")
        yield f"{path}:{number}", cells


def _qrels(path: Path, queries: dict[str, Query], known: set[str]) -> dict[str, set[str]]:
    relevant: dict[str, set[str]] = defaultdict(set)
    for place, (qid, pid, score) in _columns(path, ("query-id", "corpus-id", "score")):
        _known(place, qid, queries, "query", "queries.jsonl")
        _known(place, pid, known, "passage", "corpus.jsonl")
        try:
            positive = float(score) > 0
        except ValueError as error:
            raise DataError(f"{place}: the score {shorten(score)} is not a number") from error
        if positive:
            relevant[qid].add(pid)
    if not relevant:
        raise DataError(f"{path} has no judgement above 0; remove the file or add rows")
    return dict(relevant)


def _triples(path: Path, queries, known: set[str], qrels: dict[str, set[str]]) -> list[tuple[str, str, str]]:
    triples = []
    for place, (qid, positive, negative) in _columns(path, ("qid", "pos_pid", "neg_pid")):
        _known(place, qid, queries, "query", "queries.jsonl")
        for pid in (positive, negative):
            _known(place, pid, known, "passage", "corpus.jsonl")
        if positive not in qrels.get(qid, ()):
            raise DataError(f"{place}: {positive!r} is no positive of {qid!r} in qrels/train.tsv; add it there")
        if negative in qrels[qid]:
            raise DataError(f"{place}: the negative {negative!r} is a positive of {qid!r} in qrels/train.tsv")
        triples.append((qid, positive, negative))
    return triples


def _known(place: str, value: str, known, what: str, file: str) -> None:
    if value not in known:
        raise DataError(f"{place}: unknown {what} id {shorten(value)}; {file} has no such row")


def write_folder(
    folder: Path,
    corpus: Iterable[dict],
    queries: Iterable[dict],
    qrels: dict[str, list[tuple[str, str, int]]],
    triples: Sequence[tuple[str, str, str]] = (),
) -> None:
    """Write a data set in BEIR layout to `folder`."""
    write_jsonl(folder / "corpus.jsonl", corpus)
    write_jsonl(folder / "queries.jsonl", queries)
    for split, rows in qrels.items():
        lines = ["query-id\tcorpus-id\tscore", *(f"{qid}\t{pid}\t{score}" for qid, pid, score in rows)]
        write_text(folder / "qrels" / f"{split}.tsv", "\n".join(lines) + "\n")
    if triples:
        lines = ["qid\tpos_pid\tneg_pid", *("\t".join(row) for row in triples)]
        write_text(folder / "triples" / "train.tsv", "\n".join(lines) + "\n")


# --- training rows ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One training example; passages are row numbers of a PassageIndex."""

    qid: str
    positive: int
    given: int | None  # the given negative
    pool: tuple[int, ...] = ()  # hard negatives to sample from


class TrainingRows(torch.utils.data.Dataset):
    """Rows whose hard negatives are drawn anew in every epoch, reproducibly from (seed, epoch, row).

    Parameters
    ----------
    pool : query id -> ids of its hard negatives; its questions are trained on. None: all train questions
    hard_negatives : how many to sample from the pool; 0 trains with in-batch negatives alone
    given_negative : use the negative that the data set gives; a row without one samples one more instead

    Raises
    ------
    DataError : a pool holds fewer negatives than are sampled, or an unknown passage
    """

    def __init__(
        self,
        data: RetrievalData,
        passages: PassageIndex,
        pool: dict[str, list[str]] | None = None,
        hard_negatives: int = 2,
        given_negative: bool = True,
        seed: int = 0,
    ):
        self.queries, self.hard_negatives, self.seed, self.epoch = data.queries, hard_negatives, seed, 0
        self.positives = {
            qid: {passages.row[pid] for pid in pids if pid in passages.row}
            for qid, pids in data.qrels.get("train", {}).items()
        }
        given = defaultdict(list)
        for qid, positive, negative in data.triples if given_negative else ():
            given[qid, passages.row[positive]].append(passages.row[negative])
        wanted = self.positives if pool is None else pool
        self.rows = []
        for qid in wanted:
            ids = pool[qid] if pool else ()
            if unknown := [pid for pid in ids if pid not in passages.row]:
                raise DataError(f"pool: question {qid!r} has the unknown passage {unknown[0]!r}; mine the pool again")
            numbers = tuple(passages.row[pid] for pid in ids)
            for positive in sorted(self.positives.get(qid, ())):
                for negative in given[qid, positive] or [None]:
                    need = hard_negatives + (given_negative and hard_negatives > 0 and negative is None)
                    if len(numbers) < need:
                        raise DataError(f"pool: question {qid!r} has {len(numbers)} negatives, {need} are "
                                        "sampled; mine a larger pool or lower hard_negatives")  # fmt: skip
                    self.rows.append(Row(qid, positive, negative, numbers))
        if not self.rows:
            raise DataError(f"{display_path(data.folder)}: no training row; qrels/train.tsv and the pool share no question")
        self.extra = given_negative and hard_negatives > 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Row:
        """Return row `number` with `pool` cut to the negatives sampled for this epoch."""
        row = self.rows[number]
        count = self.hard_negatives + (self.extra and row.given is None)
        drawn = random.Random(f"{self.seed} {self.epoch} {number}").sample(row.pool, count)
        return Row(row.qid, row.positive, row.given, tuple(drawn))


@dataclass
class Batch:
    """Tensors of B rows whose passages are P distinct ones, sorted by length.

    Attributes
    ----------
    queries : padded token ids and mask, [B, L]
    passages : the same for groups of passages of like length, P in all
    positive : column of each row's positive, [B]
    allowed : [B, P], True where a passage counts for a row: its positive, and every true negative
    qids : query id of each row
    """

    queries: dict[str, Tensor]
    passages: list[dict[str, Tensor]]
    positive: Tensor
    allowed: Tensor
    qids: list[str]


MASKS = ("positives", "text", "answers")  # the three kinds of false negative that can be masked


def candidate_mask(
    rows: Sequence[Row],
    columns: Sequence[int],
    positives: dict[str, set[int]],
    queries: dict[str, Query],
    passages: PassageIndex,
    in_batch: bool = True,
    masks: Sequence[str] = MASKS,
) -> Tensor:
    """Return which passages count for which row: its positive and its true negatives, [B, P] of bool.

    Without `in_batch` only a row's own negatives count. `masks` names the kinds of false negative to leave
    out: other "positives" of the question, a "text" identical to a positive's, a passage with its "answers".
    """
    allowed = torch.full((len(rows), len(columns)), in_batch)
    texts = [passages.normalized[column] for column in columns]
    for number, row in enumerate(rows):
        own = positives[row.qid]
        same = {passages.normalized[positive] for positive in own} if "text" in masks else ()
        needles = normalize_all(queries[row.qid].answers) if "answers" in masks else ()
        mine = {row.given, *row.pool}
        for place, (column, text) in enumerate(zip(columns, texts, strict=True)):
            if column in mine:
                allowed[number, place] = True
            if (
                ("positives" in masks and column in own)
                or text in same
                or any(needle in text for needle in needles)
            ):
                allowed[number, place] = False
            if column == row.positive:
                allowed[number, place] = True
    return allowed


def make_batch(
    rows: Sequence[Row],
    source: TrainingRows,
    passages: PassageIndex,
    encoder,
    in_batch: bool = True,
    masks: Sequence[str] = MASKS,
    group_size: int = 32,
) -> Batch:
    """Return the tensors of some rows: each distinct passage once, in groups of like length."""
    distinct = Counter(n for row in rows for n in (row.positive, row.given, *row.pool) if n is not None)
    tokens = dict(zip(distinct, encoder.tokenize([passages.texts[n] for n in distinct], "passage"), strict=True))
    columns = sorted(distinct, key=lambda n: len(tokens[n]))
    groups = [columns[start : start + group_size] for start in range(0, len(columns), group_size)]
    return Batch(
        queries=encoder.pad(encoder.tokenize([source.queries[row.qid].text for row in rows], "query")),
        passages=[encoder.pad([tokens[n] for n in group]) for group in groups],
        positive=torch.tensor([columns.index(row.positive) for row in rows]),
        allowed=candidate_mask(rows, columns, source.positives, source.queries, passages, in_batch, masks),
        qids=[row.qid for row in rows],
    )
