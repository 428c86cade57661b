"""Readers of tables with a header, and of questions whose passages must be looked for in a corpus."""

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from helpers.errors import DataError, SettingError, shorten
from helpers.evaluation import first_hits, normalize
from helpers.formats import Import, Pairs, Question, Rows, split_in
from helpers.passages import LazyTexts
from helpers.validation import Place, Problems, json_rows, passage_rows, query_rows, read_lines

COLUMNS = {  # of a table: our name, and what others call it
    "question": ("question", "query", "anchor"), "passage": ("passage", "positive", "context", "text"),
    "title": ("title",), "answers": ("answers", "answer"), "negative": ("negative", "hard_negative"),
}  # fmt: skip


def read_qa(job: Import) -> Rows:
    """NQ-open's {"question", "answer"} lines over `corpus`; positive is BM25's first of 100 that holds an answer."""
    from helpers.retrieval import BM25  # brings torch, which no other format needs

    if job.corpus is None:
        raise SettingError("qa needs --corpus: a corpus.jsonl, or a .tsv with the columns id, text, title")
    table = ".tsv" in job.corpus.suffixes
    rows = list(_table(job.corpus, job.problems) if table else json_rows(job.corpus, job.problems))
    yield from rows
    passages = list(passage_rows(rows, Problems()))
    asked, numbers = [], Counter()
    for path in job.paths:
        for place, row in json_rows(path, job.problems):
            split, answers = split_in(path.name), row.get("answers", row.get("answer", []))
            qid = row.get("_id", row.get("id", f"{split or 'all'}-{numbers[split]:06d}"))
            numbers[split] += 1
            answers = [answers] if isinstance(answers, str) else answers
            row = {"_id": qid, "text": row.get("question"), "answers": answers}
            asked.append(Question(place, row, split, str(qid)))
    job.questions += asked
    good = [question for question in asked if list(query_rows([(question.place, question.row)], Problems()))]
    if good and passages:
        texts = [f"{row['title']} {row['text']}" for row in passages]
        rankings, _ = BM25(texts).search([question.row["text"] for question in good], 100)
        normalized = LazyTexts(lambda row: normalize(row["text"]), passages)
        ranks = first_hits(rankings, [question.row["answers"] for question in good], normalized)
        for question, ranking, rank in zip(good, rankings, ranks, strict=True):
            if rank <= 100:
                question.positives[passages[ranking[int(rank) - 1]]["_id"]] = question.place, "1"


def read_table(job: Import) -> Rows:
    """TSV or CSV with a header: question, passage, and if you have them title, answers (a || b), negative."""
    pairs = Pairs(job)
    for path in job.paths:
        for place, row in _table(path, job.problems):
            yield from add_pair(pairs, place, split_in(path.name), row)


def add_pair(pairs: Pairs, place: Place, split: str, row: dict) -> Rows:
    """Add a question and its passage from a row of a table."""
    cells = {ours: next((row[name] for name in names if row.get(name)), "") for ours, names in COLUMNS.items()}
    cells["answers"] = cells["answers"].split("||") if isinstance(cells["answers"], str) else cells["answers"]
    texts = [cells["title"], cells["passage"], cells["negative"]]
    if all(isinstance(text, str) for text in texts) and cells["passage"].strip():
        hard = [("", cells["negative"])] if cells["negative"].strip() else []
        yield from pairs.add(place, split, cells, [(cells["title"], cells["passage"])], hard)
    else:
        pairs.job.problems.error(place, f"the passage is {shorten(cells['passage'])}; a non-empty text is needed", row)


def _table(path: Path, problems: Problems) -> Rows:
    last = Place(path, 1)

    def lines() -> Iterator[str]:
        nonlocal last
        for place, line in read_lines(path, problems):
            last = place
            yield line + "\n"

    tabs = ".csv" not in path.suffixes
    table = ([_unquoted(cell) for cell in line[:-1].split("\t")] for line in lines()) if tabs else csv.reader(lines())
    try:
        names = [name.strip().lower() for name in next(table, [])]
        names = ["_id" if name == "id" else name for name in names]
        for cells in table:
            if len(cells) == len(names):
                yield last, dict(zip(names, cells, strict=True))
            else:
                problems.error(last, f"{len(cells)} columns; the header has {len(names)}: {shorten(names)}", cells)
    except csv.Error as error:
        raise DataError(f"{last}: broken CSV ({error}); is a quotation mark missing?") from error


def _unquoted(cell: str) -> str:
    quoted = len(cell) > 1 and cell[0] == cell[-1] == '"'
    return cell[1:-1].replace('""', '"') if quoted else cell
