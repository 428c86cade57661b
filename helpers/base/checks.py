"""Rows checked while they are read: each reader yields those that can be used and reports the others."""

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, NamedTuple

from helpers.base.errors import DataError, shorten
from helpers.base.files import LONGEST, half_character, read_pieces

CHECKS_VERSION = 1  # of what corpora are checked for; raise it with any change, and cached corpora are checked again
SPLITS = ("train", "dev", "test")
SHOWN = 20  # problems of a file that are named; the others are only counted
SCORE = re.compile(r"[+-]?\d{1,9}(\.\d*)?")
LONG_TEXT = 10_000  # characters
TOO_LONG = f"passages of more than {LONG_TEXT:,} characters, which no encoder reads to the end; split them"


class Place(NamedTuple):
    """Where a row comes from: a file, and its line there, or words such as "article 3"."""

    path: Path
    number: int | str

    def __str__(self) -> str:
        return f"{self.path}:{self.number}" if isinstance(self.number, int) else f"{self.path}: {self.number}"


Rows = Iterable[tuple[Place, dict]]
SplitOf = Callable[[str], str | None]


class Problems:
    """Errors and warnings of a data set: all are counted, and the first of each file or kind are kept to be shown.

    Any error will stop the run, unless there is an open file `skipped`: then rows with an error are left out and
    written there as JSON lines, with their place and what is wrong.
    """

    def __init__(self, skipped: IO[str] | None = None):
        self.skipped = skipped
        self.errors: Counter[str] = Counter()
        self.shown: dict[str, list[str]] = defaultdict(list)
        self.warnings: dict[str, list] = {}  # what -> [how often, the first place or example]

    def error(self, place: Place, message: str, row: object = None) -> None:
        """Report a row that cannot be used."""
        self.errors[str(place.path)] += 1
        if self.errors[str(place.path)] <= SHOWN:
            self.shown[str(place.path)].append(f"{place}: {message}")
        if self.skipped is not None:
            found = {"file": place.path.name, "place": place.number, "problem": message, "row": row}
            self.skipped.write(json.dumps(found, default=repr) + "\n")

    def warn(self, message: str, example: object, count: int = 1) -> None:
        """Report what can be used but may be wrong."""
        self.warnings.setdefault(message, [0, str(example)])[0] += count

    def stop(self) -> None:
        """Raise a DataError that lists all errors so far, unless their rows are skipped."""
        if self.skipped is None and self.errors:
            raise DataError("\n".join(self.listed()))

    def listed(self) -> list[str]:
        """Return the first 20 errors of each file, one per line, and how many more there are."""
        lines = [f"{self.errors.total():,} problems:"] if self.errors.total() > 1 else []
        for file, shown in self.shown.items():
            more = self.errors[file] - len(shown)
            lines += [*shown, f"{file}: and {more:,} more"] if more else shown
        return lines

    def warned(self) -> list[str]:
        """Return the warnings, one sentence each."""
        return [f"{message}: {count:,}, e.g. {example}" for message, (count, example) in self.warnings.items()]


def read_lines(path: Path, problems: Problems, blanks: bool = False) -> Iterator[tuple[Place, str]]:
    """Yield place and text of every line, of blank ones only if `blanks`; Windows line ends are dropped."""
    whole = True
    for number, line in enumerate(read_pieces(path, lambda file: file.readline(LONGEST)), start=1):
        if not whole or len(line) >= LONGEST:  # pieces of a line that is too long; numbers after it count them
            if whole:
                problems.error(Place(path, number), f"a line of over {LONGEST // 2**20} MiB; write one row per line")
            whole = line.endswith(b"\n")
            continue
        try:
            text = line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            problems.error(Place(path, number), f"not UTF-8 ({error.reason}); save it as UTF-8", repr(line))
            continue
        if blanks or text.strip():
            yield Place(path, number), text


def json_rows(path: Path, problems: Problems) -> Iterator[tuple[Place, dict]]:
    """Yield place and content of every line of a JSONL file that holds an object."""
    for place, line in read_lines(path, problems):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            problems.error(place, f"broken JSON ({error}); one JSON object per line is needed", line)
            continue
        if not isinstance(row, dict):
            problems.error(place, f"{shorten(row)} is not a JSON object", row)
        elif ("\\ud" in line or "\\uD" in line) and (broken := [k for k, v in row.items() if half_character({k: v})]):
            problems.error(place, f"field {broken[0]!r} holds half of a surrogate pair; write the whole character", row)
        else:
            yield place, row


def unique_rows(rows: Rows, problems: Problems, titled: bool = False) -> Iterator[tuple[Place, dict]]:
    """Yield the rows with a non-empty `text` (or, if `titled`, title) and an `_id` that is new and without spaces."""
    seen: dict[str, int | str] = {}
    for place, row in rows:
        pid, text = row.get("_id"), row.get("text")
        title = (titled and row.get("title")) or ""  # the encoder reads both
        if not isinstance(pid, str) or not pid:
            wrong = f"field '_id' is {shorten(pid)}; a non-empty string is needed"
        elif not isinstance(text, str) or not f"{title}{text}".strip():
            wrong = f"field 'text' is {shorten(text)}; a non-empty string is needed"
        elif pid.split() != [pid]:
            wrong = f"field '_id' is {shorten(pid)}; ids hold no spaces, which separate the fields of run files"
        elif pid in seen:
            first = f"on line {seen[pid]}" if isinstance(seen[pid], int) else f"at {seen[pid]}"
            wrong = f"id {shorten(pid)} is already {first}; ids are unique"
        else:
            seen[pid] = place.number
            yield place, row
            continue
        problems.error(place, wrong, row)


def passage_rows(rows: Rows, problems: Problems) -> Iterator[dict]:
    """Yield the rows of a corpus that are passages, with `title` and `split`."""
    for place, row in unique_rows(rows, problems, titled=True):
        title = "" if row.get("title") is None else row["title"]
        row = {**row, "title": title, "split": row.get("split", "")}
        if wrong := next((field for field in ("title", "split") if not isinstance(row[field], str)), None):
            problems.error(place, f"field {wrong!r} is {shorten(row[wrong])}; a string is needed", row)
        elif row["split"] not in ("", *SPLITS):
            problems.error(place, f"field 'split' is {shorten(row['split'])}; one of {SPLITS}, or none", row)
        else:
            if not row["text"].strip():
                problems.warn("passages with a title and no text, in which no answer is looked for", place)
            if len(row["text"]) > LONG_TEXT:
                problems.warn(TOO_LONG, place)
            if "\ufffd" in row["text"]:
                problems.warn("passages with the character U+FFFD, so they were once read in a wrong encoding", place)
            yield row


def tab_rows(path: Path, names: tuple[str, str, str], problems: Problems) -> Iterator[tuple[Place, list[str]]]:
    """Yield place and cells of a tab-separated file, without its header."""
    for place, line in read_lines(path, problems):
        cells = line.split("\t")
        if place.number == 1 and cells[0].lower() in ("query-id", "qid"):
            continue
        if len(cells) == 3:
            yield place, cells
        else:
            problems.error(place, f"{len(cells)} columns; three separated by tabs are needed: {names}", line)


def read_qrels(path: Path, queries: Mapping, split_of: SplitOf, taken: Mapping[str, str], problems: Problems):
    """Return question id -> ids of its relevant passages; none, if it can be evaluated by its answers alone.

    Parameters
    ----------
    queries : id -> question, with `answers`
    split_of : passage id -> the split of its article, "" if it has none, None if there is no such passage
    taken : question id -> split, of the splits read before
    """
    relevant: dict[str, set[str]] = defaultdict(set)
    training = path.stem == "train"
    for place, (qid, pid, score) in tab_rows(path, ("query-id", "corpus-id", "score"), problems):
        wrong = _unusable(qid, [pid], queries, split_of, training)
        if not wrong and not SCORE.fullmatch(score.strip()):
            wrong = f"the score {shorten(score)} is not a number"
        positive = not wrong and float(score) > 0
        if positive and qid in taken:
            wrong = f"question {shorten(qid)} is in {taken[qid]}.tsv and in {path.name}; keep it in one split"
        if wrong:
            problems.error(place, wrong, [qid, pid, score])
        else:
            relevant[qid].update([pid] if positive else [])
    for qid in (qid for qid, pids in relevant.items() if training and not pids):
        problems.error(Place(path, f"question {shorten(qid)}"), "it has no positive; give it one or remove its rows")
    alone = {qid for qid in relevant if qid not in taken and queries[qid].answers}
    found = {qid: pids for qid, pids in relevant.items() if pids or qid in alone}
    if not any(found.values()) and not problems.errors[str(path)]:
        problems.error(Place(path, "all rows"), "no judgement above 0; remove the file or add rows")
    return found


def read_triples(path: Path, queries: Container[str], split_of: SplitOf, qrels: Mapping, problems: Problems):
    """Return the (question id, positive id, given negative id) of a file; `qrels` are those of the training split."""
    triples = []
    for place, (qid, positive, negative) in tab_rows(path, ("qid", "pos_pid", "neg_pid"), problems):
        wrong = _unusable(qid, [positive, negative], queries, split_of, True)
        if not wrong and positive not in qrels.get(qid, ()):
            wrong = (
                f"{shorten(positive)} is no positive of {shorten(qid)} in qrels/train.tsv; add it there, or remove it"
            )
        elif not wrong and negative in qrels[qid]:
            wrong = f"the negative {shorten(negative)} is a positive of {shorten(qid)} in qrels/train.tsv; remove it"
        if wrong:
            problems.error(place, wrong, [qid, positive, negative])
        else:
            triples.append((qid, positive, negative))
    return triples


def read_candidates(path: Path, queries: Container[str], split_of: SplitOf, problems: Problems):
    """Return question id -> passage id -> score (NaN if none is given) of the passages that came with each question."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for place, (qid, pid, score) in tab_rows(path, ("qid", "pid", "score"), problems):
        wrong, value = _unusable(qid, [pid], queries, split_of, True), candidate_score(score)
        if not wrong and value is None:
            wrong = f"the score {shorten(score)} is no finite number"
        if wrong:
            problems.error(place, wrong, [qid, pid, score])
        else:
            found[qid][pid] = value
    return dict(found)


def candidate_score(cell: str) -> float | None:
    """Return a score, NaN for an empty cell, or None if it is no finite number."""
    try:
        value = float(cell) if cell.strip() else 0.0
    except ValueError:
        return None
    return None if not math.isfinite(value) else value if cell.strip() else math.nan


def _unusable(qid: str, pids: Iterable[str], queries: Container[str], split_of: SplitOf, training: bool) -> str:
    """Return what is wrong with the ids of a row, or ""."""
    if qid not in queries:
        return f"unknown query id {shorten(qid)}; queries.jsonl has no such row"
    for pid in pids:
        split = split_of(pid)
        if split is None:
            return f"unknown passage id {shorten(pid)}; corpus.jsonl has no such row"
        if training and split not in ("", "train"):
            return f"passage {shorten(pid)} is of the split {split!r}; training on it would spoil the test"
    return ""
