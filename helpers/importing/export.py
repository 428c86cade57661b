"""A data set of the course -> the files of other trainers, with the negatives that were mined here.

python -m helpers.importing.export data/sample --to flagembedding --pool runs/sample/pool.jsonl --out exported

One file per split. Both formats hold whole texts, so titles stand before them; passages of no question are left out.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from helpers.base.checks import Problems, tab_rows
from helpers.base.errors import CourseError, DataError, SettingError, shorten
from helpers.base.files import atomic_path, display_path, resolve, told, write_jsonl
from helpers.dataset import PassageIndex, RetrievalData, load_data
from helpers.negatives import load_pool

FORMATS = ("flagembedding", "sentence-transformers")
KINDS = ("jsonl", "parquet", "csv")


def export_data(
    folder: str | Path, form: str, out: str | Path, pool: str | Path = "", kind: str = "jsonl"
) -> dict[str, list[dict]]:
    """Write the questions of a BEIR-layout folder to the new folder `out`; return the rows of each split.

    Parameters
    ----------
    form : "flagembedding": {"query", "pos", "neg"} and, where every passage has one, scores, always as JSON lines;
        "sentence-transformers": anchor, positive, negative_1, negative_2, …, one row per positive, as many negatives as
        the row with the fewest has
    pool : a pool.jsonl of notebook 02, whose negatives come after those that the data set gives
    kind : of the files for sentence-transformers, one of `KINDS`

    Raises
    ------
    DataError : the data set or the pool is broken, `out` exists, or no question has a positive
    SettingError : there is no such format or kind of file
    """
    if form not in FORMATS or kind not in KINDS or (form == "flagembedding" and kind != "jsonl"):
        raise SettingError(f"{shorten(form)}, {shorten(kind)}: use one of {FORMATS}, the second as one of {KINDS}")
    folder, out = resolve(folder), resolve(out)
    data = load_data(folder)
    mined = load_pool(pool, data).ids() if pool else {}
    if out.exists():
        raise DataError(f"{out} exists; choose another folder, or remove that one")
    written = {}
    with told(out), atomic_path(out) as temporary:
        temporary.mkdir()
        for split in data.qrels:
            found = list(_questions(data, split, mined if split == "train" else {}))
            rows = list(_lists(found) if form == "flagembedding" else _columns(found))
            if rows:
                _write(rows, temporary / f"{split}.{kind}")
                written[split] = rows
        if not written:
            raise DataError(f"{folder}: no question has a judged passage, so there is nothing to write")
    return written


def _questions(data: RetrievalData, split: str, mined: dict[str, list[str]]) -> Iterator[tuple[str, list, list]]:
    """Yield text, positives and negatives of each question, as (text, score or NaN) in the order of the files."""
    passages, given = PassageIndex(data.corpus), {}
    for qid, _, pid in data.triples if split == "train" else ():
        given.setdefault(qid, []).append(pid)
    ordered: dict[str, list[str]] = {qid: [] for qid in data.qrels[split]}
    path = data.folder / "qrels" / f"{split}.tsv"
    for _, (qid, pid, _) in tab_rows(path, ("query-id", "corpus-id", "score"), Problems()):
        if pid in data.qrels[split].get(qid, ()):
            ordered[qid].append(pid)
    for qid, positives in ordered.items():
        scores = data.candidates.get(qid, {})
        negatives = dict.fromkeys([*given.get(qid, ()), *scores, *mined.get(qid, ())])
        parts = [positives, [pid for pid in negatives if pid not in data.qrels[split][qid]]]
        texts = [[(passages.texts[passages.row[pid]], scores.get(pid, float("nan"))) for pid in own] for own in parts]
        if positives:
            yield data.queries[qid].text, *texts


def _lists(found: list) -> Iterator[dict]:
    scored = all(score == score for _, *sides in found for side in sides for _, score in side)
    for text, positives, negatives in found:
        row = {"query": text, "pos": [own for own, _ in positives], "neg": [own for own, _ in negatives]}
        if scored and positives:
            row |= {"pos_scores": [score for _, score in positives], "neg_scores": [score for _, score in negatives]}
        yield row


def _columns(found: list) -> Iterator[dict]:
    count = min((len(negatives) for *_, negatives in found), default=0)
    names = ["negative"] if count == 1 else [f"negative_{number}" for number in range(1, count + 1)]
    for text, positives, negatives in found:
        for positive, _ in positives:
            others = dict(zip(names, (own for own, _ in negatives), strict=False))
            yield {"anchor": text, "positive": positive, **others}


def _write(rows: list[dict], path: Path) -> None:
    if path.suffix == ".jsonl":
        write_jsonl(path, rows)
    elif path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path, index=False)
    else:
        pd.DataFrame(rows).to_csv(path, index=False)


def main(arguments: list[str] | None = None) -> int:
    """Write a data set, and a pool that was mined for it, in the format of another trainer."""
    parser = argparse.ArgumentParser(prog="python -m helpers.importing.export", description=main.__doc__)
    parser.add_argument("data", help="a folder in BEIR layout")
    parser.add_argument("--to", dest="form", choices=FORMATS, required=True)
    parser.add_argument("--out", required=True, help="a new folder")
    parser.add_argument("--pool", default="", help="pool.jsonl of notebook 02, for training negatives")
    parser.add_argument("--kind", choices=KINDS, default="jsonl", help="of the files, for sentence-transformers")
    asked = parser.parse_args(arguments)
    try:
        pool = resolve(asked.pool) if asked.pool else ""
        written = export_data(asked.data, asked.form, asked.out, pool, asked.kind)
    except CourseError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    counts = ", ".join(f"{len(rows):,} rows of {split}" for split, rows in written.items())
    print(f"{display_path(resolve(asked.out))}: {counts}")
    if bare := sum(row.get("neg") == [] for row in written.get("train", ())):
        print(f"{bare:,} training questions have no negative, at which FlagEmbedding stops: give a --pool")
    return 0


if __name__ == "__main__":
    sys.exit(main())
