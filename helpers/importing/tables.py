"""Readers of tables with a header, and of questions whose passages must be looked for in a corpus."""

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from helpers.answers import normalize
from helpers.base.checks import Place, Problems, json_rows, passage_rows, read_lines
from helpers.base.columns import LazyTexts
from helpers.base.errors import DataError, SettingError, shorten
from helpers.dataset import query_rows
from helpers.evaluation import first_hits
from helpers.importing.formats import Import, Pairs, Question, Rows, split_in
from helpers.importing.squad import question_id

COLUMNS = {  # of a table: our name, and what others call it
    "question": ("question", "query", "anchor"),
    "passage": ("passage", "positive", "context", "text"),
    "title": ("title",),
    "answers": ("answers", "answer"),
    "negative": ("negative", "hard_negative"),
}


def read_qa(job: Import) -> Rows:
    """NQ-open's {"question", "answer"} lines over `corpus`; positive is BM25's first of 100 that holds an answer.

    If none does, BM25's first is judged 0: `helpers.importing.importer` then keeps the question for dev and test.
    """
    from helpers.retrieval import BM25  # brings torch, which no other format needs

    if job.corpus is None:
        raise SettingError("qa needs --corpus: a corpus.jsonl, or a .tsv or .csv with the columns id, text, title")
    table = _is(".tsv", job.corpus) or _is(".csv", job.corpus)
    needed = (("_id", "id"), ("text",))
    rows = list(_table(job.corpus, needed, job.problems) if table else json_rows(job.corpus, job.problems))
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


def read_table(job: Import) -> Rows:
    """TSV or CSV with a header: question, passage, and if you have them title, answers (a || b), negative."""
    pairs = Pairs(job)
    for path in job.paths:
        for place, row in _table(path, (COLUMNS["question"], COLUMNS["passage"]), job.problems):
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


def _table(path: Path, needed: Sequence[Sequence[str]], problems: Problems) -> Rows:
    """Yield the rows of a table; `needed` are columns that it must have, each by one of several names."""
    begun: list[Place] = []  # the lines of the row that is being read

    def lines() -> Iterator[str]:
        for place, line in read_lines(path, problems, blanks=True):
            begun.append(place)
            yield line + "\n"

    commas = _is(".csv", path)
    tabs = ([_unquoted(cell) for cell in line[:-1].split("\t")] for line in lines())
    names: list[str] = []
    try:
        for cells in csv.reader(lines(), strict=True) if commas else tabs:
            place, blank = begun[0], not any(cell.strip() for cell in cells)
            begun.clear()
            if blank:
                continue
            if not names:
                names = _header(place, cells, needed, "commas" if commas else "tabs")
            elif len(cells) == len(names):
                yield place, dict(zip(names, cells, strict=True))
            else:
                problems.error(place, f"{len(cells)} columns; the header has {len(names)}: {shorten(names)}", cells)
    except csv.Error as error:
        place = begun[0] if begun else path
        why = f"broken CSV ({error}) in the row that begins here; is a quotation mark missing?"
        raise DataError(f"{place}: {why}") from error


def _header(place: Place, cells: Sequence[str], needed: Sequence[Sequence[str]], mark: str) -> list[str]:
    names = [name.strip().lower() for name in cells]
    if lacking := [" or ".join(group) for group in needed if not set(group) & set(names)]:
        raise DataError(
            f"{place}: the header is {shorten(names, 200)}, without a column {' and one '.join(lacking)}; "
            f"name the columns there, with {mark} between them"
        )
    return ["_id" if name == "id" else name for name in names]


def _is(suffix: str, path: Path) -> bool:
    return suffix in map(str.lower, path.suffixes)


def _unquoted(cell: str) -> str:
    quoted = len(cell) > 1 and cell[0] == cell[-1] == '"'
    return cell[1:-1].replace('""', '"') if quoted else cell
