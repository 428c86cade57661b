"""Readers of tables, other trainers' among them, and of questions whose passages must be looked for in a corpus."""

import csv
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from helpers.answers import normalize
from helpers.base.checks import Place, Problems, json_rows, passage_rows, read_lines
from helpers.base.columns import LazyTexts
from helpers.base.errors import DataError, SettingError, shorten
from helpers.base.files import json_items, read_pieces
from helpers.dataset import query_rows
from helpers.evaluation import first_hits
from helpers.importing.formats import Import, Pairs, Question, Rows, split_in
from helpers.importing.squad import question_id

COLUMNS = {  # of a table: our name, and what FlagEmbedding, sentence-transformers and others call it
    "question": ("question", "query", "anchor", "sentence1"),
    "passage": ("passage", "positive", "pos", "context", "text", "sentence2"),
    "title": ("title",),
    "answers": ("answers", "answer"),
    "negative": ("negative", "negatives", "hard_negative", "neg"),
    "label": ("label", "labels", "score", "scores"),
    "pos_scores": ("pos_scores",),
    "neg_scores": ("neg_scores",),
    "prompt": ("prompt",),
}
NUMBERED = re.compile(r"(?:negative|neg)_?(\d+)")
MARKS = "\t,;|"  # between the columns of a text file; the header decides


def read_qa(job: Import) -> Rows:
    """NQ-open's {"question", "answer"} lines over `corpus`; positive is BM25's first of 100 that holds an answer.

    If none does, BM25's first is judged 0: `helpers.importing.importer` then keeps the question for dev and test.
    """
    from helpers.retrieval import BM25  # brings torch, which no other format needs

    if job.corpus is None:
        raise SettingError("qa needs --corpus: a corpus.jsonl, or a .tsv or .csv with the columns id, text, title")
    table = _is(".tsv", job.corpus) or _is(".csv", job.corpus)
    needed = (("_id", "id"), ("text",))
    rows = list(_text_table(job.corpus, needed, job.problems) if table else json_rows(job.corpus, job.problems))
    yield from rows
    passages = list(passage_rows(rows, Problems()))
    asked, numbers = [], Counter()
    for path in job.paths:
        for place, row in json_rows(path, job.problems):
            split, answers = split_in(path.name), row.get("answers", row.get("answer", []))
            qid = row.get("_id", row.get("id", f"{split or 'all'}-{numbers[split]:06d}"))
            numbers[split] += 1
            answers = [answers] if isinstance(answers, str) else answers
            regex = {"regex": row["regex"]} if "regex" in row else {}
            row = {"_id": question_id(qid), "text": row.get("question"), "answers": answers, **regex}
            asked.append(Question(place, row, split, row["_id"]))
    job.questions += asked
    checked = ((question, list(query_rows([(question.place, question.row)], Problems()))) for question in asked)
    good = [(question, row["answers"]) for question, rows in checked for row in rows if row["answers"]]
    if good and passages:
        texts = [f"{row['title']} {row['text']}" for row in passages]
        rankings, _ = BM25(texts).search([question.row["text"] for question, _ in good], 100)
        normalized = LazyTexts(lambda row: normalize(row["text"]), passages)
        ranks = first_hits(rankings, [answers for _, answers in good], normalized)
        for (question, _), ranking, rank in zip(good, rankings, ranks, strict=True):
            at = ranking[int(rank) - 1] if rank <= 100 else ranking[0] if len(ranking) else 0
            question.positives[passages[at]["_id"]] = question.place, "1" if rank <= 100 else "0"


class Table:
    """Questions from the rows of a table; `columns` says what a column is called where it is none of `COLUMNS`."""

    def __init__(self, job: Import):
        self.job, self.pairs = job, Pairs(job)
        self.names = COLUMNS | {ours: (name.strip().lower(),) for ours, name in job.columns.items()}
        self.labelled: dict[tuple[str, str], tuple[Place, dict, list[list]]] = {}  # pairs with a label, by question

    def needed(self) -> tuple[Sequence[str], ...]:
        """Return the columns that a header must have, each by one of several names."""
        passage = self.names["passage"]
        return self.names["question"], passage if "passage" in self.job.columns else (*passage, *self.names["answers"])

    def add(self, place: Place, split: str, row: dict) -> Rows:
        """Add the question of a row and yield the passages that are new."""
        filled = {name: value for name, value in row.items() if value not in (None, "", [])}
        cells = {
            ours: next((filled[name] for name in names if name in filled), None) for ours, names in self.names.items()
        }
        if not any(name in row for name in self.names["passage"]) and isinstance(cells["answers"], str):
            cells |= {"passage": cells["answers"], "answers": None}  # as in a list of frequent questions
        if isinstance(cells["answers"], dict):  # the hub's SQuAD
            cells["answers"] = cells["answers"].get("text")
        if isinstance(cells["answers"], str):
            cells["answers"] = cells["answers"].split("||")
        numbered = sorted((int(found[1]), row[name]) for name in row if (found := NUMBERED.fullmatch(name)))
        lists = [_texts(cells["passage"]), _texts(cells["negative"]), *(_texts(value) for _, value in numbered)]
        title = cells["title"] or ""
        if None in lists or not lists[0] or not isinstance(title, str):
            wrong = f"the passage is {shorten(cells['passage'])}; a non-empty text is needed"
            self.job.problems.error(place, wrong if not lists[0] else "title and passages must be texts", row)
            return
        if isinstance(cells["prompt"], str) and cells["prompt"].strip():
            told = "rows with a prompt, which is not kept; for the same, set prefixes: [the prompt, '']"
            self.job.problems.warn(told, shorten(cells["prompt"]))
        positives, negatives = lists[0], [text for own in lists[1:] for text in own]
        try:
            scores = _scores(cells, len(positives), len(negatives))
        except ValueError as error:
            self.job.problems.error(place, str(error), row)
            return
        cells["answers"] = cells["answers"] or []
        if cells["label"] is not None and not negatives and len(positives) == 1:
            question = str(cells["question"]).strip()
            parts = self.labelled.setdefault((split, question), (place, cells, [[], [], [], []]))[2]
            side = 0 if scores[0] >= 0.5 else 1
            parts[side].append((title, positives[0]))
            parts[side + 2].append(scores[0])
        else:
            texts = [(title, text) for text in positives], [("", text) for text in negatives]
            yield from self.pairs.add(place, split, cells | {"scores": scores}, *texts)

    def finish(self) -> Rows:
        """Add the questions whose passages are labelled one by one."""
        for (split, _), (place, cells, (positives, negatives, high, low)) in self.labelled.items():
            soft = {*high, *low} - {0.0, 1.0}
            yield from self.pairs.add(place, split, cells | {"scores": soft and high + low}, positives, negatives)


def _texts(value: object) -> list[str] | None:
    """Return the texts of a cell, or None if there is something else in it."""
    values = value if isinstance(value, list) else [] if value in (None, "") else [value]
    return values if all(isinstance(text, str) and text.strip() for text in values) else None


def _scores(cells: Mapping, positives: int, negatives: int) -> list[float]:
    """Return the scores of a row's positives and negatives, or [] if it has none; only their differences count.

    `pos_scores` and `neg_scores` are FlagEmbedding's. sentence-transformers has a label: for a pair how well it fits,
    from 0 to 1; with negatives a list with a score for each passage, or the margin of each negative (MarginMSE).
    """
    given = [*_numbers(cells["pos_scores"]), *_numbers(cells["neg_scores"])]
    if given and len(given) != positives + negatives:
        raise ValueError(f"{len(given)} scores for {positives + negatives} passages; give each passage one")
    label = _numbers(cells["label"])
    if given or not label:
        return given
    if not negatives:
        if len(label) != 1 or positives != 1 or not 0 <= label[0] <= 1:
            raise ValueError(f"the label is {shorten(cells['label'])}; a number from 0 (no fit) to 1 is needed")
        return label
    if positives == 1 and len(label) == negatives:
        return [0.0, *(-margin for margin in label)]
    if len(label) != positives + negatives:
        raise ValueError(f"{len(label)} labels for {positives + negatives} passages; give each one, or each a margin")
    return label


def _numbers(value: object) -> list[float]:
    values = value if isinstance(value, list) else [] if value in (None, "") else [value]
    try:
        numbers = [float(number) for number in values]
    except (TypeError, ValueError, OverflowError):
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"the scores are {shorten(value)}; finite numbers are needed")
    return numbers


def read_table(job: Import) -> Rows:
    """Rows of questions with their passages: JSON lines, a JSON list, Parquet, or text with a header."""
    table = Table(job)
    for path in job.paths:
        for place, row in table_rows(path, table.needed(), job.problems):
            yield from table.add(place, split_in(path.name), row)
    yield from table.finish()


def table_rows(path: Path, needed: Sequence[Sequence[str]], problems: Problems) -> Rows:
    """Yield the rows of a table whose kind the file's name says; column names in lower case."""
    if _is(".parquet", path):
        rows = _parquet_rows(path, problems)
    elif not any(_is(suffix, path) for suffix in (".json", ".jsonl", ".ndjson")):
        return _text_table(path, needed, problems)
    elif is_list(path):
        rows = ((Place(path, f"item {number}"), row) for number, row in enumerate(json_items(path), start=1))
    else:
        rows = json_rows(path, problems)
    return _lower_names(rows, problems)


def is_list(path: Path) -> bool:
    """Return whether a JSON file begins as a list."""
    pieces = read_pieces(path, lambda file: file.readline(64))
    return next((piece.lstrip()[:1] == b"[" for piece in pieces if piece.strip()), False)


def _lower_names(rows: Rows, problems: Problems) -> Rows:
    for place, row in rows:
        if isinstance(row, dict):
            yield place, {str(name).strip().lower(): value for name, value in row.items()}
        else:
            problems.error(place, f"{shorten(row)} is not an object of columns", row)


def _parquet_rows(path: Path, problems: Problems) -> Rows:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(1000):
                for row in batch.to_pylist():
                    number += 1
                    yield Place(path, f"row {number}"), row
    except (pa.ArrowException, OSError, UnicodeDecodeError, ValueError) as error:
        raise DataError(f"{path}: not a Parquet file that can be read ({shorten(str(error), 200)})") from error


def _text_table(path: Path, needed: Sequence[Sequence[str]], problems: Problems) -> Rows:
    """Yield the rows of a text file with a header; `needed` are columns that it must have, by one of several names."""
    begun: list[Place] = []  # the lines of the row that is being read

    def lines() -> Iterator[str]:
        for place, line in read_lines(path, problems, blanks=True):
            begun.append(place)
            yield line + "\n"

    tabs = ([_unquoted(cell) for cell in line[:-1].split("\t")] for line in lines())
    names: list[str] = []
    try:
        first = next((line for _, line in read_lines(path, Problems())), "")
        mark = max(MARKS, key=lambda mark: len(next(csv.reader([first], delimiter=mark), [])))
        for cells in tabs if mark == "\t" else csv.reader(lines(), strict=True, delimiter=mark):
            place, blank = begun[0], not any(cell.strip() for cell in cells)
            begun.clear()
            if blank:
                continue
            if not names:
                names = _header(place, cells, needed)
            elif len(cells) == len(names):
                yield place, dict(zip(names, cells, strict=True))
            else:
                problems.error(place, f"{len(cells)} columns; the header has {len(names)}: {shorten(names)}", cells)
    except csv.Error as error:
        place = begun[0] if begun else path
        why = f"broken CSV ({error}) in the row that begins here; is a quotation mark missing?"
        raise DataError(f"{place}: {why}") from error


def _header(place: Place, cells: Sequence[str], needed: Sequence[Sequence[str]]) -> list[str]:
    names = [name.strip().lower() for name in cells]
    if lacking := [" or ".join(group) for group in needed if not set(group) & set(names)]:
        raise DataError(
            f"{place}: the header is {shorten(names, 200)}, without a column {' and one '.join(lacking)}; "
            "rename a column, or say which it is with --columns question=…,passage=…"
        )
    return ["_id" if name == "id" else name for name in names]


def _is(suffix: str, path: Path) -> bool:
    return suffix in map(str.lower, path.suffixes)


def _unquoted(cell: str) -> str:
    quoted = len(cell) > 1 and cell[0] == cell[-1] == '"'
    return cell[1:-1].replace('""', '"') if quoted else cell
