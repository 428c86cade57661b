"""`python -m helpers.importing train.jsonl --out data/mine`: see `helpers.importing.importer`."""

import argparse
import sys

from helpers.base.errors import CourseError, SettingError, shorten
from helpers.importing.importer import READERS, ImportOptions, describe, import_data, recognise
from helpers.importing.squad import LONGEST_WORDS


def _pairs(text: str) -> dict[str, str]:
    """Return our name -> the table's name, from "question=Frage,passage=Antwort"."""
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    if wrong := [ours for ours, mark, name in pairs if not mark or not name.strip()]:
        raise SettingError(f"--columns: {shorten(wrong[0])} has no column; write question=…,passage=…")
    return {"answers" if ours.strip() == "answer" else ours.strip(): name.strip() for ours, _, name in pairs}


def _shares(text: str) -> tuple[float, ...] | None:
    """Return three numbers, from "80/10/10"."""
    try:
        return tuple(map(float, text.split("/"))) if text else None
    except ValueError:
        raise SettingError(f"--splits {shorten(text)}: give three shares, for train, dev and test: 80/10/10") from None


def main(arguments: list[str] | None = None) -> int:
    """Import a data set into a folder that the notebooks' parameter `data` can name."""
    parser = argparse.ArgumentParser(prog="python -m helpers.importing", description=main.__doc__)
    parser.add_argument(
        "paths",
        nargs="+",
        help=f"files or a folder, perhaps after the name of their format ({', '.join(READERS)}); "
        "for hub: a name and perhaps a configuration",
    )
    parser.add_argument("--out", required=True, help="a new folder; a relative one lies in the course folder")
    parser.add_argument("--skip-bad-rows", action="store_true", help="leave out rows with errors, and keep a list")
    parser.add_argument("--corpus", help="for qa: the passages, a corpus.jsonl or a .tsv with id, text, title")
    parser.add_argument("--longest", type=int, default=LONGEST_WORDS, help="for squad: words of a context left whole")
    parser.add_argument("--licence", default="unknown", help="of the data, for the manifest")
    parser.add_argument("--seed", type=int, default=0, help="for splits and given negatives that are drawn")
    parser.add_argument("--columns", help="of a table: question=…,passage=…,answers=…,title=…,negative=…")
    parser.add_argument("--splits", help="shares of train, dev and test, e.g. 80/10/10, if no file name says a split")
    asked = vars(parser.parse_args(arguments))
    paths, out, columns, splits = (asked.pop(name) for name in ("paths", "out", "columns", "splits"))
    try:
        options = ImportOptions(**asked, columns=_pairs(columns or ""), splits=_shares(splits or ""))
        named = paths[0] in READERS and len(paths) > 1
        form = paths.pop(0) if named else recognise(paths)
        print(describe(import_data(form, paths, out, options)))
    except CourseError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
