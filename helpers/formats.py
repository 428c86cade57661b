"""Readers of other people's formats, for `helpers.importers`: each yields passages and collects the questions."""

import csv
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from helpers.errors import CourseError, DataError, SettingError, shorten
from helpers.evaluation import answer_problem, first_hits, normalize
from helpers.files import json_items
from helpers.passages import LazyTexts
from helpers.sources import hub_configurations, load_hub
from helpers.squad import LONGEST_WORDS, convert, hub_paragraphs, json_paragraphs, unique
from helpers.validation import SCORE, Place, Problems, json_rows, passage_rows, query_rows, read_lines, tab_rows

Rows = Iterator[tuple[Place, dict]]
NAMES = {"train": "train", "training": "train", "dev": "dev", "val": "dev", "valid": "dev", "validation": "dev"}
COLUMNS = {  # of a table: our name, and what others call it
    "question": ("question", "query", "anchor"), "passage": ("passage", "positive", "context", "text"),
    "title": ("title",), "answers": ("answers", "answer"), "negative": ("negative", "hard_negative"),
}  # fmt: skip


@dataclass
class Question:
    """A question on its way in; those of a `group` will share a split."""

    place: Place
    row: dict
    split: str = ""
    group: str = ""
    positives: dict[str, tuple[Place, str]] = field(default_factory=dict)  # id -> where it is judged, and the score
    negatives: list[tuple[str, str]] = field(default_factory=list)  # positive and given negative


@dataclass
class Import:
    """What a reader works with: it yields the passages of `paths` and adds the questions."""

    paths: list[Path]
    problems: Problems
    corpus: Path | None = None
    longest: int = LONGEST_WORDS
    seed: int = 0
    questions: list[Question] = field(default_factory=list)


def split_in(name: str) -> str:
    """Return the split that a file's name speaks of, or "".

    >>> [split_in(name) for name in ("qrels.dev.small.tsv", "nq-train.json", "test.jsonl", "restraint.json")]
    ['dev', 'train', 'test', '']
    """
    names = NAMES | {"test": "test"}
    return next((names[word] for word in re.split(r"[^a-z]+", name.lower()) if word in names), "")


def read_squad(job: Import) -> Rows:
    """SQuAD JSON v1.1 or v2.0; long contexts are cut into passages of 100 words."""
    sources: dict[str, Iterable] = {}
    for path in job.paths:
        sources[split_in(path.name)] = chain(sources.get(split_in(path.name), ()), json_paragraphs(path, job.problems))
    return _from_squad(job, sources)


def _from_squad(job: Import, sources: Mapping[str, Iterable]) -> Rows:
    corpus, queries, qrels, triples = convert(sources, job.seed, job.longest, job.problems)
    splits = {qid: split for split, rows in qrels.items() for qid, _, _ in rows}
    asked = {
        row["_id"]: Question(Place(job.paths[0], f"question {row['_id']}"), row, splits[row["_id"]]) for row in queries
    }
    for qid, pid, score in chain(*qrels.values()):
        asked[qid].positives[pid] = asked[qid].place, str(score)
    for qid, positive, negative in triples:
        asked[qid].negatives.append((positive, negative))
    job.questions += asked.values()
    return ((Place(job.paths[0], f"passage {row['_id']}"), row) for row in corpus)


def read_dpr(job: Import) -> Rows:
    """DPR JSON: a list of {"question", "answers", "positive_ctxs", "hard_negative_ctxs", "negative_ctxs"}."""
    kinds = ("positive_ctxs", "hard_negative_ctxs", "negative_ctxs")
    pairs = Pairs(job)
    for path in job.paths:
        for number, item in enumerate(json_items(path), start=1):
            place, item = Place(path, f"item {number}"), item if isinstance(item, dict) else {}
            lists = [item.get(kind, []) for kind in kinds]
            if all(isinstance(found, list) and all(map(_is_passage, found)) for found in lists):
                texts = [[(passage.get("title", ""), passage["text"]) for passage in found] for found in lists]
                yield from pairs.add(place, split_in(path.name), item.get("question"), item.get("answers"), *texts)
            else:
                job.problems.error(place, f"{', '.join(kinds)} must be lists of {{'title', 'text'}}", item)


def _is_passage(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("text"), str) and isinstance(value.get("title", ""), str)


class Pairs:
    """Questions with the texts of their passages: equal passages get one id, made from title and text."""

    def __init__(self, job: Import):
        self.job, self.seen, self.numbers = job, set(), Counter()

    def add(self, place, split: str, question, answers, positives, hard=(), others=()) -> Rows:
        """Add a question and yield the passages that are new; texts are (title, text)."""
        answers = [answers] if isinstance(answers, str) else [] if answers is None else answers
        texts = [(title.strip(), text.strip()) for title, text in chain(positives, hard, others)]
        if not isinstance(question, str) or not question.strip() or not all(text for _, text in texts):
            self.job.problems.error(place, f"the question is {shorten(question)}; it and its passages need a text")
        elif not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
            self.job.problems.error(place, f"the answers are {shorten(answers)}; a list of strings is needed")
        elif not positives:
            self.job.problems.warn("questions without a positive passage, left out", place)
        else:
            answers = unique(answer for answer in answers if not answer_problem(answer))
            ids = [hashlib.sha256("\0".join(text).encode()).hexdigest()[:16] for text in texts]
            row = {"_id": f"{split or 'all'}-{self.numbers[split]:06d}", "text": question.strip(), "answers": answers}
            asked = Question(
                place, row, split, texts[0][0] or ids[0], dict.fromkeys(ids[: len(positives)], (place, "1"))
            )
            free = [pid for pid in ids[len(positives) : len(positives) + len(hard)] if pid not in asked.positives]
            asked.negatives = [(ids[0], negative) for negative in free[:1]]
            self.numbers[split] += 1
            self.job.questions.append(asked)
            for pid, (title, text) in zip(ids, texts, strict=True):
                if pid not in self.seen:
                    self.seen.add(pid)
                    yield place, {"_id": pid, "title": title, "text": text}


def read_msmarco(job: Import) -> Rows:
    """MS MARCO's collection*.tsv, queries*.tsv, qrels*.tsv and qidpidtriples*.tsv, or the folder that holds them."""
    files: dict[str, list[Path]] = {"collection": [], "queries": [], "qrels": [], "qidpidtriples": []}
    for path in chain(*(sorted(p.iterdir()) if p.is_dir() else [p] for p in job.paths)):
        if kind := next((kind for kind in files if path.name.startswith(kind)), None):
            files[kind].append(path)
    if missing := [f"{kind}*.tsv" for kind in ("collection", "queries", "qrels") if not files[kind]]:
        raise DataError(f"{job.paths[0]}: no {' and no '.join(missing)}; MS MARCO's files are needed by their names")
    for path in files["collection"]:
        for place, (pid, text) in _split_lines(path, job.problems, "\t", 2):
            yield place, {"_id": pid, "title": "", "text": text}
    texts = {q[0]: (place, q[1]) for path in files["queries"] for place, q in _split_lines(path, job.problems, "\t", 2)}
    asked: dict[str, Question] = {}
    for path in files["qrels"]:
        for place, (qid, _, pid, score) in _split_lines(path, job.problems, None, 4):
            if qid not in texts:
                job.problems.error(place, f"unknown query id {shorten(qid)}; no queries*.tsv has it", [qid, pid])
            elif not SCORE.fullmatch(score):
                job.problems.error(place, f"the score {shorten(score)} is not a number", [qid, pid, score])
            elif float(score) > 0:
                row = {"_id": qid, "text": texts[qid][1]}
                question = asked.setdefault(qid, Question(texts[qid][0], row, split_in(path.name), qid))
                question.positives[pid] = place, score
    for path in files["qidpidtriples"]:
        for _, (qid, positive, negative) in _split_lines(path, job.problems, None, 3):
            if qid in asked and not asked[qid].negatives and positive in asked[qid].positives:
                asked[qid].negatives = [(positive, negative)] if negative not in asked[qid].positives else []
    job.questions += asked.values()


def _split_lines(path: Path, problems: Problems, mark: str | None, count: int) -> Iterator[tuple[Place, list[str]]]:
    for place, line in read_lines(path, problems):
        cells = line.split(mark, count - 1) if mark else line.split()
        if len(cells) == count:
            yield place, cells
        else:
            problems.error(place, f"{len(cells)} columns, {count} are needed", line)


def read_beir(job: Import) -> Rows:
    """A folder in BEIR layout, as it is; only splits that it lacks are drawn from its training questions."""
    (folder,) = job.paths
    yield from json_rows(_either(folder / "corpus.jsonl"), job.problems)
    asked = {row["_id"]: Question(place, row, group=row["_id"])
             for place, row in json_rows(_either(folder / "queries.jsonl"), job.problems)
             if isinstance(row.get("_id"), str)}  # fmt: skip
    for path in sorted((folder / "qrels").glob("*.tsv")):
        for place, (qid, pid, score) in tab_rows(path, ("query-id", "corpus-id", "score"), job.problems):
            question, split = asked.get(qid), split_in(path.name)
            if question is None:
                job.problems.error(place, f"unknown query id {shorten(qid)}; queries.jsonl has no such row", [qid, pid])
            elif not SCORE.fullmatch(score.strip()):
                job.problems.error(place, f"the score {shorten(score)} is not a number", [qid, pid, score])
            elif question.positives and question.split != split:
                job.problems.error(place, f"question {shorten(qid)} is in {question.split} too; keep it in one split")
            elif float(score) > 0:
                question.split, question.positives[pid] = split, (place, score.strip())
    path = folder / "triples" / "train.tsv"
    for place, (qid, positive, negative) in (
        tab_rows(path, ("qid", "pos", "neg"), job.problems) if path.exists() else ()
    ):
        if qid in asked and positive in asked[qid].positives and negative not in asked[qid].positives:
            asked[qid].negatives.append((positive, negative))
        else:
            job.problems.error(place, "it needs a question, its positive, and a passage that is none", [qid, positive])
    job.questions += asked.values()


def _either(path: Path) -> Path:
    packed = path.with_name(f"{path.name}.gz")
    return packed if packed.exists() and not path.exists() else path


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
            row = {
                "_id": qid,
                "text": row.get("question"),
                "answers": [answers] if isinstance(answers, str) else answers,
            }
            asked += [Question(place, row, split, str(qid))]
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
            yield from _pair(pairs, place, split_in(path.name), row)


def _pair(pairs: Pairs, place: Place, split: str, row: dict) -> Rows:
    row = {ours: next((row[name] for name in names if row.get(name)), "") for ours, names in COLUMNS.items()}
    answers = row["answers"].split("||") if isinstance(row["answers"], str) else row["answers"]
    texts = [row["title"], row["passage"], row["negative"]]
    if all(isinstance(text, str) for text in texts) and row["passage"].strip():
        hard = [("", row["negative"])] if row["negative"].strip() else []
        yield from pairs.add(place, split, row["question"], answers, [(row["title"], row["passage"])], hard)
    else:
        pairs.job.problems.error(place, f"the passage is {shorten(row['passage'])}; a non-empty text is needed")


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


def read_hub(job: Import) -> Rows:
    """A data set of the Hugging Face hub, by its name (and configuration): SQuAD's form, BEIR's, or a row a pair."""
    name, *configuration = map(str, job.paths)
    try:
        kinds = set() if configuration else set(hub_configurations(name))
        if {"corpus", "queries"} <= kinds:
            yield from _hub_beir(job, name, "qrels" if "qrels" in kinds else "default")
            return
        splits = load_hub(name, *configuration, streaming=True)
        first = next(iter(next(iter(splits.values()))), {})
        if isinstance(first.get("answers"), dict) and "context" in first:
            yield from _from_squad(job, {split_in(split): hub_paragraphs(rows) for split, rows in splits.items()})
            return
        pairs = Pairs(job)
        for split, rows in splits.items():
            for number, row in enumerate(rows, start=1):
                yield from _pair(pairs, Place(Path(name), f"{split}, row {number}"), split_in(split), row)
    except CourseError:
        raise
    except Exception as error:  # `datasets` raises nearly anything
        raise DataError(f"{name}: the hub gave no data set that can be read ({type(error).__name__}: "
                        f"{shorten(str(error), 200)}); check the name and HF_ENDPOINT") from error  # fmt: skip


def _hub_beir(job: Import, name: str, judged: str) -> Rows:
    for row in chain(*load_hub(name, "corpus", streaming=True).values()):
        yield (
            Place(Path(name), f"passage {row.get('_id')}"),
            {key: row.get(key) or "" for key in ("_id", "title", "text")},
        )
    rows = chain(*load_hub(name, "queries", streaming=True).values())
    asked = {row["_id"]: Question(Place(Path(name), f"question {row['_id']}"), row, group=row["_id"]) for row in rows}
    for split, rows in load_hub(name, judged, streaming=True).items():
        for row in rows:
            if float(row["score"]) > 0 and (question := asked.get(str(row["query-id"]))):
                question.split = split_in(split)
                question.positives[str(row["corpus-id"])] = question.place, f"{row['score']:g}"
    job.questions += asked.values()


READERS: dict[str, Callable[[Import], Rows]] = {
    "squad": read_squad, "dpr": read_dpr, "msmarco": read_msmarco, "beir": read_beir, "qa": read_qa,
    "tsv": read_table, "hub": read_hub,
}  # fmt: skip
