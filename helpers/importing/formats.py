"""Readers of other people's formats: each yields the passages and collects the questions."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from helpers.answers import answer_problem
from helpers.base.checks import SCORE, Place, Problems, candidate_score, json_rows, read_lines, tab_rows
from helpers.base.errors import DataError, shorten
from helpers.base.files import json_items
from helpers.importing.squad import EMPTY_ANSWERS, LONGEST_WORDS, convert, json_paragraphs, unique

Rows = Iterator[tuple[Place, dict]]
NAMES = {"train": "train", "training": "train", "dev": "dev", "val": "dev", "valid": "dev", "validation": "dev"}


@dataclass
class Question:
    """A question on its way in; those of a `group` will share a split."""

    place: Place
    row: dict
    split: str = ""
    group: str = ""
    positives: dict[str, tuple[Place, str]] = field(default_factory=dict)  # id -> where it is judged, and the score
    negatives: list[tuple[str, str, Place]] = field(default_factory=list)  # positive, given negative, where they stand
    candidates: dict[str, str] = field(default_factory=dict)  # id -> score, or "", of all passages that came with it

    def relevant(self) -> bool:
        """Return whether a passage is judged above 0."""
        return any(float(score) > 0 for _, score in self.positives.values())

    def judge(self, pid: str, split: str, place: Place, score: str, problems: Problems) -> None:
        """Add a relevant passage, unless the question belongs to another split already."""
        if self.positives and self.split != split:
            both = f"question {shorten(self.row['_id'])} is in {self.split!r} and in {split!r}"
            problems.error(place, f"{both}; keep each question in one split", pid)
        else:
            self.split, self.positives[pid] = split, (place, score)


@dataclass
class Import:
    """What a reader works with: it yields the passages of `paths` and adds the questions."""

    paths: list[Path]
    problems: Problems
    corpus: Path | None = None
    longest: int = LONGEST_WORDS
    seed: int = 0
    columns: Mapping[str, str] = field(default_factory=dict)
    shares: tuple[float, float, float] | None = None
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
    return from_squad(job, by_split((path.name, json_paragraphs(path, job.problems)) for path in job.paths))


def by_split(parts: Iterable[tuple[str, Iterable]]) -> dict[str, Iterable]:
    """Return split -> what belongs to it, from pairs of a name that says the split and its rows."""
    found: dict[str, Iterable] = {}
    for name, rows in parts:
        found[split_in(name)] = chain(found.get(split_in(name), ()), rows)
    return found


def from_squad(job: Import, sources: Mapping[str, Iterable]) -> Rows:
    """Yield the passages of paragraphs by split, and add their questions."""
    corpus, queries, qrels, triples = convert(sources, job.seed, job.longest, job.problems, job.shares)
    splits = {qid: split for split, rows in qrels.items() for qid, _, _ in rows}
    place = Place(job.paths[0], "its questions")
    asked = {row["_id"]: Question(place, row, splits[row["_id"]]) for row in queries}
    for qid, pid, score in chain(*qrels.values()):
        asked[qid].positives[pid] = asked[qid].place, str(score)
    for qid, positive, negative in triples:
        asked[qid].negatives.append((positive, negative, place))
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
                yield from pairs.add(place, split_in(path.name), item, *texts)
            else:
                job.problems.error(place, f"{', '.join(kinds)} must be lists of {{'title', 'text'}}", item)


def _is_passage(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("text"), str) and isinstance(value.get("title", ""), str)


class Pairs:
    """Questions with the texts of their passages: equal passages get one id, made from title and text.

    A question of a split that stands on several rows is one, with the passages and answers of all of them.
    """

    def __init__(self, job: Import):
        self.job, self.seen, self.numbers, self.asked = job, set(), Counter(), {}

    def add(self, place: Place, split: str, row: dict, positives, hard=(), others=()) -> Rows:
        """Add the question of a row and yield the passages that are new; texts are (title, text)."""
        question, answers = row.get("question"), row.get("answers", [])
        answers = [answers] if isinstance(answers, str) else answers
        texts = [(title.strip(), text.strip()) for title, text in chain(positives, hard, others)]
        if not isinstance(question, str) or not question.strip() or not all(text for _, text in texts):
            self.job.problems.error(place, f"the question is {shorten(question)}; it and its passages need a text", row)
        elif not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
            self.job.problems.error(place, f"the answers are {shorten(answers)}; a list of strings is needed", row)
        elif not positives:
            self.job.problems.warn("questions without a positive passage, left out", place)
        else:
            ids = [hashlib.sha256("\0".join(text).encode()).hexdigest()[:16] for text in texts]
            asked = self._question(place, split, question.strip(), row.get("regex", False), texts[0][0] or ids[0])
            asked.row["answers"] = list(dict.fromkeys([*asked.row["answers"], *self._answers(place, row, answers)]))
            asked.positives |= dict.fromkeys(ids[: len(positives)], (place, "1"))
            listed = ids[: len(positives) + len(hard)]
            asked.candidates |= dict(zip(listed, map(str, row.get("scores") or [""] * len(listed)), strict=True))
            given = [pid for pid in ids[len(positives) : len(positives) + len(hard)] if pid not in asked.positives]
            asked.negatives = [one for one in asked.negatives if one[1] not in asked.positives]
            asked.negatives += [(ids[0], pid, place) for pid in given[:1]]
            for pid, (title, text) in zip(ids, texts, strict=True):
                if pid not in self.seen:
                    self.seen.add(pid)
                    yield place, {"_id": pid, "title": title, "text": text}

    def _question(self, place: Place, split: str, text: str, regex: object, group: str) -> Question:
        key = (split, text, str(regex))
        if key not in self.asked:
            row = {"_id": f"{split or 'all'}-{self.numbers[split]:06d}", "text": text, "answers": []}
            self.asked[key] = Question(place, row | ({"regex": regex} if regex else {}), split, group)
            self.numbers[split] += 1
            self.job.questions.append(self.asked[key])
        return self.asked[key]

    def _answers(self, place: Place, row: dict, answers: list[str]) -> list[str]:
        """Return the answers of a row without empty ones; patterns as they are."""
        if row.get("regex"):
            return answers
        if empty := sum(bool(answer_problem(answer)) for answer in answers):
            self.job.problems.warn(EMPTY_ANSWERS, place, empty)
        return unique(answer for answer in answers if not answer_problem(answer))


def read_msmarco(job: Import) -> Rows:
    """MS MARCO's collection*.tsv, queries*.tsv, qrels*.tsv and qidpidtriples*.tsv, or the folder that holds them."""
    files: dict[str, list[Path]] = {"collection": [], "queries": [], "qrels": [], "qidpidtriples": []}
    for path in chain(*(sorted(p.iterdir()) if p.is_dir() else [p] for p in job.paths)):
        if ".tsv" in path.suffixes and (kind := next((kind for kind in files if path.name.startswith(kind)), None)):
            files[kind].append(path)
    if missing := [f"{kind}*.tsv" for kind in ("collection", "queries", "qrels") if not files[kind]]:
        raise DataError(f"{job.paths[0]}: no {' and no '.join(missing)}; MS MARCO's files are needed by their names")
    for path in files["collection"]:
        for place, (pid, text) in _split_lines(path, job.problems, "\t", 2):
            yield place, {"_id": pid, "title": "", "text": text}
    texts: dict[str, tuple[Place, str]] = {}
    for path in files["queries"]:
        for place, (qid, text) in _split_lines(path, job.problems, "\t", 2):
            first = texts.setdefault(qid, (place, text))
            if first[1] != text:
                job.problems.error(place, f"question {shorten(qid)} has another text at {first[0]}; keep one", text)
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
                question.judge(pid, split_in(path.name), place, score, job.problems)
    for path in files["qidpidtriples"]:
        for place, (qid, positive, negative) in _split_lines(path, job.problems, None, 3):
            if qid in asked and not asked[qid].negatives and positive in asked[qid].positives:
                asked[qid].negatives = [(positive, negative, place)] * (negative not in asked[qid].positives)
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
    if len(job.paths) > 1 or not job.paths[0].is_dir():
        raise DataError(f"{job.paths[0]}: beir needs one folder, with corpus.jsonl, queries.jsonl and qrels/")
    folder = job.paths[0]
    yield from json_rows(_either(folder / "corpus.jsonl"), job.problems)
    rows = json_rows(_either(folder / "queries.jsonl"), job.problems)
    asked = {row["_id"]: Question(at, row, group=row["_id"]) for at, row in rows if isinstance(row.get("_id"), str)}
    names = {path.name.removesuffix(".gz") for path in (folder / "qrels").glob("*.tsv*")}
    zeros: dict[str, tuple] = {}
    for path in (_either(folder / "qrels" / name) for name in sorted(names) if name.endswith(".tsv")):
        for place, (qid, pid, score) in tab_rows(path, ("query-id", "corpus-id", "score"), job.problems):
            question = asked.get(qid)
            if question is None:
                job.problems.error(place, f"unknown query id {shorten(qid)}; queries.jsonl has no such row", [qid, pid])
            elif not SCORE.fullmatch(score.strip()):
                job.problems.error(place, f"the score {shorten(score)} is not a number", [qid, pid, score])
            elif float(score) > 0:
                question.judge(pid, split_in(path.name), place, score.strip(), job.problems)
            else:
                zeros[qid] = pid, split_in(path.name), place, score.strip()
    for qid, row in zeros.items():  # a question without a relevant passage, but with answers to go by
        if asked[qid].row.get("answers") and not asked[qid].positives:
            asked[qid].judge(*row, job.problems)
    path = _either(folder / "triples" / "train.tsv")
    triples = tab_rows(path, ("qid", "pos_pid", "neg_pid"), job.problems) if path.exists() else ()
    for place, (qid, positive, negative) in triples:
        if qid in asked and positive in asked[qid].positives and negative not in asked[qid].positives:
            asked[qid].negatives.append((positive, negative, place))
        else:
            job.problems.error(place, "it needs a question, its positive, and a passage that is none", [qid, positive])
    path = _either(folder / "candidates" / "train.tsv")
    listed = tab_rows(path, ("qid", "pid", "score"), job.problems) if path.exists() else ()
    for place, (qid, pid, score) in listed:
        if qid not in asked:
            job.problems.error(place, f"unknown query id {shorten(qid)}; queries.jsonl has no such row", [qid, pid])
        elif candidate_score(score) is None:
            job.problems.error(place, f"the score {shorten(score)} is no finite number", [qid, pid, score])
        else:
            asked[qid].candidates[pid] = score.strip()
    job.questions += asked.values()


def _either(path: Path) -> Path:
    packed = path.with_name(f"{path.name}.gz")
    return packed if packed.exists() and not path.exists() else path
