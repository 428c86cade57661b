"""The BEIR layout on disk, checked while it is loaded. data/README.md documents the files."""

import hashlib
import json
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import datasets

from helpers.errors import DataError, SettingError, shorten
from helpers.evaluation import Pattern, answer_problem, normalize
from helpers.files import display_path

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
        if not 0 < limit < len(ids):
            return ids
        return [ids[number] for number in sorted(random.Random(seed).sample(range(len(ids)), limit))]

    def _select(self, wanted) -> datasets.Dataset:
        keep = [number for number, split in enumerate(self.corpus["split"][:]) if wanted(split)]
        if not keep:
            raise DataError(f"{display_path(self.folder)}: no passage of the wanted splits; check the field 'split', "
                            "or use eval_corpus='all'")  # fmt: skip
        return self.corpus.select(keep)


class LazyTexts:
    """Texts by row number, made on demand; the last 100,000 are kept, so that a huge corpus never lies in memory."""

    def __init__(self, make: Callable[[int], str]):
        self._get = lru_cache(maxsize=100_000)(make)

    def __getitem__(self, row: int) -> str:
        return self._get(int(row))


class PassageIndex:
    """A corpus by position: id -> row, texts as the encoder reads them, texts as `has_answer` reads them.

    `match_title` lets answers stand in the title too; `strict_dpr` keeps curly apostrophes apart from straight ones.
    """

    def __init__(self, corpus: datasets.Dataset, match_title: bool = False, strict_dpr: bool = False):
        self.corpus, self.match_title, self.strict_dpr = corpus, match_title, strict_dpr
        self.ids: list[str] = corpus["_id"][:]
        self.row = {pid: number for number, pid in enumerate(self.ids)}

    @cached_property
    def texts(self) -> list[str]:
        """Title and text of every passage, as encoded and searched."""
        pairs = zip(self.corpus["title"][:], self.corpus["text"][:], strict=True)
        return [f"{title} {text}".strip() for title, text in pairs]

    @cached_property
    def normalized(self) -> "LazyTexts":
        """Body text of every passage through `normalize`, for answer match; made when it is asked for."""

        def make(row: int) -> str:
            passage = self.corpus[row]
            text = f"{passage['title']} {passage['text']}" if self.match_title else passage["text"]
            return normalize(text, self.strict_dpr)

        return LazyTexts(make)

    def __len__(self) -> int:
        return len(self.ids)


def positive_rows(data: RetrievalData, passages: PassageIndex, qid: str) -> list[int]:
    """Return the rows of a training question's positives."""
    relevant = data.qrels.get("train", {}).get(qid, ())
    return sorted(passages.row[pid] for pid in relevant if pid in passages.row)


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
    split_of = dict(zip(columns["_id"], columns["split"], strict=True))
    files = [folder / "qrels" / f"{split}.tsv" for split in SPLITS]
    qrels = {file.stem: _qrels(file, queries, split_of) for file in files if file.exists()}
    if not qrels:
        raise DataError(f"{folder}: no qrels/train.tsv, qrels/dev.tsv or qrels/test.tsv; at least one is needed")
    for one, other in (("train", "dev"), ("train", "test"), ("dev", "test")):
        if shared := sorted(qrels.get(one, {}).keys() & qrels.get(other, {}).keys()):
            raise DataError(f"{folder / 'qrels'}: question {shared[0]!r} is in {one}.tsv and in {other}.tsv; "
                            f"keep each question in one split ({len(shared)} are in both)")  # fmt: skip
    path = folder / "triples" / "train.tsv"
    triples = _triples(path, queries, split_of, qrels.get("train", {})) if path.exists() else []
    return RetrievalData(folder, datasets.Dataset.from_dict(columns), queries, qrels, triples, fingerprint(folder))


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
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); see data/README.md for the files needed") from error


def _records(path: Path) -> Iterator[tuple[str, dict]]:
    """Yield (place for messages, JSON object) of a JSONL file with a unique, non-empty `_id` and `text`."""
    seen: dict[str, int] = {}
    for number, line in _lines(path):
        place = f"{path}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place}: broken JSON ({error}); one JSON object a line is needed") from error
        if not isinstance(row, dict):
            raise DataError(f"{place}: {shorten(row)} is not a JSON object")
        if "\\ud" in line.lower() and (broken := [key for key, value in row.items() if _half_character(value)]):
            raise DataError(f"{place}: field {broken[0]!r} holds half of a surrogate pair; write the whole character")
        for field in ("_id", "text"):
            if not isinstance(row.get(field), str) or not row[field].strip():
                raise DataError(f"{place}: field {field!r} is {shorten(row.get(field))}; a non-empty string is needed")
        if row["_id"] in seen:
            raise DataError(f"{place}: id {shorten(row['_id'])} is already on line {seen[row['_id']]}; ids are unique")
        seen[row["_id"]] = number
        yield place, row
    if not seen:
        raise DataError(f"{path} is empty; it needs one JSON object a line")


def _half_character(value: object) -> bool:
    """Return whether a JSON value holds a lone surrogate such as \\ud800, which no UTF-8 file can store."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


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
        if not isinstance(row.get("regex", False), bool):
            raise DataError(f"{place}: field 'regex' is {shorten(row['regex'])}; true (answers are patterns) or false")
        answers = [Pattern(answer) for answer in answers] if row.get("regex") else answers
        for answer in answers:
            if problem := answer_problem(answer):
                raise DataError(f"{place}: the answer {shorten(answer)} {problem}")
        yield row["_id"], Query(row["text"], tuple(answers))


def _columns(path: Path, names: tuple[str, str, str]) -> Iterator[tuple[str, list[str]]]:
    for number, line in _lines(path):
        cells = line.split("\t")
        if number == 1 and cells[0].lower() in ("query-id", "qid"):
            continue  # the header
        if len(cells) != 3:
            raise DataError(f"{path}:{number}: {len(cells)} columns; three separated by tabs are needed: {names}")
        yield f"{path}:{number}", cells


def _qrels(path: Path, queries: dict[str, Query], split_of: dict[str, str]) -> dict[str, set[str]]:
    relevant: dict[str, set[str]] = defaultdict(set)
    for place, (qid, pid, score) in _columns(path, ("query-id", "corpus-id", "score")):
        _known(place, qid, queries, "query", "queries.jsonl")
        _known(place, pid, split_of, "passage", "corpus.jsonl", training=path.stem == "train")
        if not re.fullmatch(r"[+-]?\d+(\.\d*)?", score.strip()):
            raise DataError(f"{place}: the score {shorten(score)} is not a number")
        relevant[qid].update([pid] if float(score) > 0 else [])
    unanswered = [qid for qid, pids in relevant.items() if not pids]
    if not relevant or len(unanswered) == len(relevant):
        raise DataError(f"{path} has no judgement above 0; remove the file or add rows")
    if unanswered and path.stem == "train":
        raise DataError(f"{path}: question {shorten(unanswered[0])} has no positive; give it one or remove its rows "
                        f"({len(unanswered)} such questions)")  # fmt: skip
    return {qid: pids for qid, pids in relevant.items() if pids}


def _triples(path: Path, queries, split_of: dict[str, str], qrels: dict[str, set[str]]) -> list[tuple[str, str, str]]:
    triples = []
    for place, (qid, positive, negative) in _columns(path, ("qid", "pos_pid", "neg_pid")):
        _known(place, qid, queries, "query", "queries.jsonl")
        for pid in (positive, negative):
            _known(place, pid, split_of, "passage", "corpus.jsonl", training=True)
        if positive not in qrels.get(qid, ()):
            raise DataError(f"{place}: {shorten(positive)} is no positive of {shorten(qid)} in qrels/train.tsv; "
                            "add it there if it is one, or remove this line")  # fmt: skip
        if negative in qrels[qid]:
            raise DataError(f"{place}: the negative {shorten(negative)} is a positive of {shorten(qid)} "
                            "in qrels/train.tsv; remove this line")  # fmt: skip
        triples.append((qid, positive, negative))
    return triples


def _known(place: str, value: str, known: dict, what: str, file: str, training: bool = False) -> None:
    if value not in known:
        raise DataError(f"{place}: unknown {what} id {shorten(value)}; {file} has no such row")
    if training and known[value] not in ("", "train"):
        raise DataError(f"{place}: passage {shorten(value)} belongs to the split {known[value]!r}; "
                        "training may only use passages of 'train', or the test is spoilt")  # fmt: skip
