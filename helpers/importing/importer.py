"""Other formats -> the course's BEIR layout, checked row by row, with a manifest; data/README.md shows the formats.

python -m helpers.importing train.json dev.json --out data/mine
python -m helpers.importing beir nfcorpus --out data/nfcorpus --skip-bad-rows
python -m helpers.importing faq.csv --columns question=Frage,passage=Antwort --splits 80/10/10 --out data/faq

A file belongs to the split in its name (train, dev, test); `helpers.importing.squad.divide` draws missing splits.
"""

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from helpers.base.checks import Problems, json_rows, passage_rows
from helpers.base.errors import DataError, SettingError, shorten
from helpers.base.files import (
    atomic_path,
    display_path,
    file_sha256,
    json_items,
    read_json,
    recover,
    resolve,
    told,
    write_json,
    write_jsonl,
)
from helpers.dataset import file_digests, load_data, passage_splits, query_rows, read_corpus
from helpers.importing.formats import Import, Question, read_beir, read_dpr, read_msmarco, read_squad
from helpers.importing.hub import read_hub
from helpers.importing.leakage import find_leaks
from helpers.importing.sources import write_folder
from helpers.importing.squad import LONGEST_WORDS, divide
from helpers.importing.tables import COLUMNS, is_list, read_qa, read_table

READERS = {
    "squad": read_squad,
    "dpr": read_dpr,
    "msmarco": read_msmarco,
    "beir": read_beir,
    "qa": read_qa,
    "table": read_table,
    "flagembedding": read_table,
    "sentence-transformers": read_table,
    "hub": read_hub,
}


@dataclass(frozen=True)
class ImportOptions:
    """How a data set is imported.

    Attributes
    ----------
    skip_bad_rows : leave out rows with an error, and list them in `skipped/rows.jsonl` in the folder
    licence : of the data, for the manifest
    corpus : for "qa": the passages in which to look for the answers
    longest : for "squad": words of a context that stays whole; longer ones are cut into passages of 100; 0: none is
    seed : for splits and given negatives that are drawn
    columns : of a table, our name (of `helpers.importing.tables.COLUMNS`) -> the table's, where it is not recognised
    splits : shares of train, dev and test, such as (80, 10, 10), if the names of the files say no split
    """

    skip_bad_rows: bool = False
    licence: str = "unknown"
    corpus: str | Path | None = None
    longest: int = LONGEST_WORDS
    seed: int = 0
    columns: Mapping[str, str] = field(default_factory=dict)
    splits: tuple[float, float, float] | None = None

    def __post_init__(self):
        if unknown := self.columns.keys() - COLUMNS.keys():
            raise SettingError(f"columns: {shorten(sorted(unknown))}; use some of {', '.join(COLUMNS)}")
        if self.splits and not (len(self.splits) == 3 and all(0 < share < math.inf for share in self.splits)):
            raise SettingError(f"splits={self.splits}: give three shares above 0, for train, dev and test: 80/10/10")
        if self.longest < 0:
            raise SettingError(f"longest={self.longest}: give a number of words, or 0 to cut nothing")


def import_data(form: str, paths: Sequence[str | Path], out: str | Path, options: ImportOptions | None = None) -> Path:
    """Write a data set in BEIR layout to the new folder `out` and return it; if it is done already, only return it.

    Parameters
    ----------
    form : one of `READERS`; `recognise` guesses it
    paths : its files or folders; for "hub" a name, and a configuration if there are several

    Raises
    ------
    DataError : names the lines that are wrong and what to do; nothing is left in `out`
    SettingError : there is no such format, or it needs a corpus
    """
    options = options or ImportOptions()
    if form not in READERS:
        raise SettingError(f"format {shorten(form)}: use one of {', '.join(READERS)}")
    out, inputs = resolve(out), [Path(path) if form == "hub" else resolve(path) for path in paths]
    if not out.name:
        raise SettingError(f"--out {out}: name a new folder in it")
    corpus = resolve(options.corpus) if options.corpus else None
    files = [*([] if form == "hub" else inputs), *([corpus] if corpus else [])]
    for path in files:
        with told(path):
            path.stat()
    if options.columns and READERS[form] not in (read_table, read_hub):
        raise SettingError(f"columns: {form} has its own names; leave the option out, or name the format 'table'")
    made_from = {"format": form} | {name: getattr(options, name) for name in ("skip_bad_rows", "longest", "seed")}
    made_from |= {"columns": dict(options.columns)} if options.columns else {}
    made_from |= {"splits": list(options.splits)} if options.splits else {}
    try:
        with told(out):
            made_from["sources"] = [_source(path) for path in [*inputs, *([corpus] if corpus else [])]]
            out.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(out.with_name(f".{out.name}.lock")):
                recover(out)
                if not (out.exists() or out.is_symlink()):
                    about = options.columns, options.splits
                    job = Import(inputs, Problems(), corpus, options.longest, options.seed, *about)
                    _make(out, form, job, {"licence": options.licence, "made_from": made_from})
                elif _made_from(out) != made_from:
                    raise DataError(f"{out} exists and holds something else; choose another folder, or remove that one")
    except DataError as error:
        raise DataError(str(error).replace(f".{out.name}.{os.getpid()}.tmp", out.name)) from error
    return out


def _make(out: Path, form: str, job: Import, about: dict) -> None:
    """Write the folder `out` in one step, with its manifest."""
    with atomic_path(out) as folder, ExitStack() as stack:
        folder.mkdir()
        if about["made_from"]["skip_bad_rows"]:
            (folder / "skipped").mkdir()
            job.problems.skipped = stack.enter_context((folder / "skipped" / "rows.jsonl").open("w", encoding="utf-8"))
        manifest = about | _write(folder, form, job)
        stack.close()
        write_json(folder / "manifest.json", manifest)


def _source(path: Path) -> dict:
    """Return name, size and hash of a source: of all files of a folder, or of none for a name of the hub."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    digest, size = hashlib.sha256(), 0
    for file in (file for file in files if file.is_file()):
        digest.update(file_sha256(file))
        size += file.stat().st_size
    name = path.name if path.exists() else str(path)  # of the hub: owner/name
    return {"name": name, "bytes": size, "sha256": digest.hexdigest()}


def _made_from(folder: Path) -> object:
    """Return what the manifest of an existing folder says it was made from, or None if it is not one of ours."""
    try:
        manifest = read_json(folder / "manifest.json")
    except DataError:
        return None
    return manifest.get("made_from") if isinstance(manifest, dict) else None


def _write(folder: Path, form: str, job: Import) -> dict:
    """Write the data files and return what the manifest says of them."""
    problems, path = job.problems, folder / "corpus.jsonl"
    rows = passage_rows(READERS[form](job), problems)
    write_jsonl(path, ({key: value for key, value in row.items() if (key, value) != ("split", "")} for row in rows))
    if not path.stat().st_size:
        problems.stop()
        raise DataError(f"{job.paths[0]}: no passage was found that can be used")
    split_of = passage_splits(read_corpus(path, file_digests(folder), Problems()))
    asked = query_rows(((question.place, {**question.row, "asked": question}) for question in job.questions), problems)
    questions = [row["asked"] for row in asked if _judged(row["asked"], split_of, problems)]
    problems.stop()
    if not any(question.relevant() for question in questions):
        raise DataError(f"{job.paths[0]}: no question was found that has a passage")
    groups = {(question.split, question.group): question.split for question in questions if question.group}
    drawn = dict(zip(groups, divide(list(groups.values()), job.seed, job.shares), strict=True)) if groups else {}
    qrels: dict[str, list] = {"train": [], "dev": [], "test": []}
    kept, triples, candidates = [], [], []
    for question in questions:
        qid, split = question.row["_id"], drawn.get((question.split, question.group), question.split)
        if not question.relevant():
            fate = "left out" if split == "train" else "kept for answer match"
            problems.warn(f"questions of {split} without a relevant passage, {fate}", question.place)
            if split == "train":
                continue
        kept.append(question.row)
        qrels[split] += [(qid, pid, score) for pid, (_, score) in question.positives.items()]
        if split == "train":
            triples += [(qid, *pair) for *pair, _ in question.negatives if split_of(pair[1]) in ("", "train")]
            usable = {pid: score for pid, score in question.candidates.items() if split_of(pid) in ("", "train")}
            candidates.append((question, usable))
    written = {split: rows for split, rows in qrels.items() if any(float(score) > 0 for *_, score in rows)}
    write_folder(folder, None, kept, written, triples, _candidates(candidates))
    data, digests = load_data(folder), file_digests(folder)  # checked once more as what it has become
    counts = {"passages": len(data.corpus), "questions": len(data.queries), "triples": len(data.triples)}
    return {
        "counts": counts | {"skipped": problems.errors.total()},
        "splits": {split: len(rows) for split, rows in data.qrels.items()},
        "warnings": [*problems.warned(), *data.warnings],
        "skipped": problems.listed(),
        "leaks": [str(leak) for leak in find_leaks(data)],
        "fingerprint": data.fingerprint,
        "files": {str(file.relative_to(folder)): digest.hex() for file, digest in digests.items()},
    }


def _candidates(asked: list[tuple[Question, dict[str, str]]]) -> list[tuple[str, str, str]]:
    """Return (question id, passage id, score) of all that came with the questions, unless triples say as much."""
    if not any(any(own.values()) or len(own.keys() - question.positives.keys()) > 1 for question, own in asked):
        return []
    return [(question.row["_id"], *pair) for question, own in asked for pair in own.items()]


def recognise(paths: Sequence[str | Path]) -> str:
    """Return the format of files, or of a folder.

    Raises
    ------
    DataError : there is no such file, or it looks like none of the formats
    """
    path = resolve(paths[0])
    with told(path):
        path.stat()
    if path.is_dir():
        for form, name in (("beir", "corpus.jsonl*"), ("msmarco", "collection*.tsv*")):
            if any(path.glob(name)):
                return form
        raise DataError(
            f"{path} has no corpus.jsonl (BEIR) and no collection*.tsv (MS MARCO); name the format or a file"
        )
    if not {".json", ".jsonl", ".ndjson"} & {suffix.lower() for suffix in path.suffixes}:
        return "table"
    if is_list(path):
        first = next(json_items(path), None)
        return "dpr" if isinstance(first, dict) and "positive_ctxs" in first else "table"
    _, row = next(json_rows(path, Problems()), (None, {"data": "of many lines, or of one that is too long"}))
    if "data" in row:
        return "squad"
    if "pos" in row:
        return "flagembedding"
    if {"anchor", "sentence1"} & row.keys():
        return "sentence-transformers"
    passages = {name for name in row if name in COLUMNS["passage"]}
    return "table" if passages or isinstance(row.get("answer"), str) else "qa"


def _judged(question: Question, split_of, problems: Problems) -> bool:
    """Return whether a question has a passage; unknown ids are errors where they are judged."""
    for pid, (place, _) in list(question.positives.items()):
        if split_of(pid) is None:
            problems.error(place, f"unknown passage id {shorten(pid)}; the corpus has no such row", pid)
            del question.positives[pid]
    question.negatives = [given for given in question.negatives if given[0] in question.positives]
    for _, pid, place in question.negatives:
        if split_of(pid) is None:
            problems.error(place, f"unknown passage id {shorten(pid)}; the corpus has no such row", pid)
    for pid in [pid for pid in question.candidates if split_of(pid) is None]:
        problems.error(question.place, f"unknown passage id {shorten(pid)} among its candidates", pid)
        del question.candidates[pid]
    if not question.positives:
        problems.warn("questions without a judged passage, left out", question.place)
    return bool(question.positives)


def describe(folder: Path) -> str:
    """Return what an imported folder's manifest says, for people."""
    manifest = read_json(folder / "manifest.json")
    lines = [f"read as {manifest['made_from']['format']}"]
    lines += [", ".join(f"{count:,} {what}" for what, count in (manifest["counts"] | manifest["splits"]).items())]
    lines += [f"skipped: {line}" for line in manifest["skipped"]]
    lines += [f"warning: {line}" for line in manifest["warnings"]] + [f"leak: {line}" for line in manifest["leaks"]]
    return "\n".join([*lines, f"use it with  data: {display_path(folder)}"])
