"""Paths, reading within bounds, and writing so that nothing half-written is ever left behind."""

import codecs
import gzip
import hashlib
import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from helpers.base.errors import DataError, shorten

QUIET = bool(os.environ.get("TQDM_DISABLE"))  # no progress bars, e.g. in committed outputs
ROOT = Path(__file__).resolve().parents[2]  # the course folder: helpers/ is installed editable
LONGEST = 16 * 2**20  # bytes of a line, or of an item of a JSON list, that are read
UNPACKED = 100  # times its size that a .gz file may grow to; text grows to 3 to 20 times
PIECE = 2**20  # bytes of a JSON file that are read at a time
SPACE = re.compile(r"[ \t\n\r]*")


def resolve(path: str | Path) -> Path:
    """Return `path` as an absolute path; a relative one is taken from the course folder.

    JupyterLab and nbval start a notebook in notebooks/, papermill in the shell's folder; this way
    `data/sample` means the same in all of them.
    """
    return (ROOT / Path(path).expanduser()).resolve()


def display_path(path: str | Path) -> str:
    """Return `path` relative to the course folder if it lies inside, so that outputs name no machine's folders."""
    path = Path(path)
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def cache_dir() -> Path:
    """Return the folder for fetched models and data: $RETRIEVER_COURSE_CACHE, or one under ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return resolve(os.environ.get("RETRIEVER_COURSE_CACHE") or Path(base) / "dense-retriever-course")


@contextmanager
def told(path: str | Path) -> Iterator[None]:
    """Turn an OSError into a DataError that names its file, or `path` where it names none, as on a full disk."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{error.filename or path}: {error.strerror or error}; "
                        "free some space, or check the name and the permissions") from error  # fmt: skip


@contextmanager
def atomic_path(target: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; rename it to `target` on success, delete it on error.

    Works for a file and for a folder. An existing folder is moved aside first and deleted last, so an
    error leaves the old one or the new one, never a mixture and never neither.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    _remove(temporary)
    try:
        yield temporary
        if temporary.is_dir() and target.exists():
            os.replace(target, old)
        try:
            os.replace(temporary, target)
        except BaseException:
            if old.exists():
                os.replace(old, target)
            raise
        _remove(old)
    finally:
        _remove(temporary)


def recover(target: str | Path) -> None:
    """Clear up after processes killed inside `atomic_path(target)`, and put back what they had moved aside."""
    target = Path(target)
    left = re.compile(rf"\.{re.escape(target.name)}\.\d+\.(tmp|old)")
    for path in sorted(target.parent.iterdir()) if target.parent.is_dir() else ():
        if found := left.fullmatch(path.name):
            _remove(path) if found[1] == "tmp" or target.exists() else os.replace(path, target)


def remove(path: str | Path) -> None:
    """Delete a file or folder so that a kill in the middle leaves it whole or gone; see `recover`."""
    path = Path(path)
    if path.exists():
        hidden = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        os.replace(path, hidden)
        _remove(hidden)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def file_sha256(path: Path) -> bytes:
    """Return the sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` in one step."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: object) -> None:
    """Write `value` to `path` as readable JSON in one step."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def read_json(path: str | Path) -> object:
    """Return the value of a small JSON file that we wrote."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def write_jsonl(path: str | Path, rows: Iterable[dict]) -> None:
    """Write `rows` to `path`, one JSON object a line, in one step."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_pieces(path: Path, read: Callable[[IO[bytes]], bytes]) -> Iterator[bytes]:
    """Yield what `read` takes of a file, plain or .gz, until nothing is left.

    Raises
    ------
    DataError : the file cannot be read, is truncated, or unpacks to more than 100 times its size
    """
    try:
        if path.exists() and not path.is_file():  # a folder, or a pipe that would be waited for without end
            raise DataError(f"{path} is no file; see data/README.md for the files needed")
        with path.open("rb") as raw, gzip.open(raw) if path.suffix == ".gz" else raw as file:
            bound, total = (2**20 + UNPACKED * path.stat().st_size if file is not raw else 0), 0
            while piece := read(file):
                total += len(piece)
                if 0 < bound < total:
                    raise DataError(f"{path} unpacks to more than {UNPACKED} times its size, as no text does; "
                                    "look at it with care, or leave it alone")  # fmt: skip
                yield piece
    except (OSError, EOFError, zlib.error) as error:  # the last two: a damaged or truncated .gz
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path} cannot be read ({reason}); see data/README.md for the files needed") from error


def half_character(value: object) -> bool:
    """Return whether a JSON value holds a lone surrogate such as \\ud800, which no UTF-8 file can store."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def json_items(path: Path, key: str = "") -> Iterator[object]:
    """Yield the items of the list that a JSON file is, or has in its field `key`, holding one of them at a time.

    Raises
    ------
    DataError : broken or truncated JSON, no such list, an item above 16 MiB; names the line
    """
    decode = codecs.getincrementaldecoder("utf-8-sig")().decode
    pieces = read_pieces(path, lambda file: file.read(PIECE))
    parse = json.JSONDecoder().raw_decode
    text, at, line, ended = "", 0, 1, False

    def wrong(why: object) -> DataError:
        return DataError(f"{path}:{line + text.count(chr(10), 0, at)}: not the JSON that is needed ({why})")

    def more() -> bool:
        nonlocal text, at, line, ended
        line, text, at, piece = line + text.count("\n", 0, at), text[at:], 0, next(pieces, b"")
        try:
            text, ended = text + decode(piece, final=not piece), not piece
        except UnicodeDecodeError as error:
            raise wrong(f"not UTF-8: {error.reason}") from error
        return not ended

    def peek() -> str:
        nonlocal at
        while True:
            at = SPACE.match(text, at).end()
            if at < len(text) or ended or not more():
                return text[at : at + 1]

    def value() -> object:
        nonlocal at
        peek()
        while True:
            try:
                found, end = parse(text, at)
            except (ValueError, RecursionError) as error:
                over = len(text) - at > LONGEST
                if over or isinstance(error, RecursionError) or ended or not more():
                    cut = str(error).startswith("Unterminated") or getattr(error, "pos", 0) > len(text) - 8
                    limit = f"an item of over {LONGEST // 2**20} MiB; split it"
                    raise wrong(limit if over and cut else str(error).split(":")[0]) from error
            else:
                if end < len(text) or ended or not more():  # a number at the end of a piece may go on
                    escaped = text.find("\\ud", at, end) >= 0 or text.find("\\uD", at, end) >= 0
                    if escaped and half_character(found):
                        raise wrong("half of a surrogate pair; write the whole character")
                    at = end
                    return found

    def symbol(wanted: str) -> str:
        nonlocal at
        if (found := peek()) == "" or found not in wanted:
            raise wrong(f"found {shorten(text[at : at + 20]) if found else 'the end of the file'}, "
                        f"expected {' or '.join(wanted)}")  # fmt: skip
        at += 1
        return found

    def items() -> Iterator[object]:
        nonlocal at
        symbol("[")
        if peek() == "]":
            at += 1
            return
        yield value()
        while symbol(",]") == ",":
            yield value()

    if not key:
        yield from items()
    elif symbol("{") and peek() == "}":
        raise wrong(f"no field {key!r}")
    else:
        names = []
        while True:
            names.append(value())
            symbol(":")
            if names[-1] == key:
                yield from items()
            else:
                value()
            if symbol(",}") == "}":
                break
        if key not in names:
            raise wrong(f"no field {key!r}")
    if peek():
        raise wrong(f"found {shorten(text[at : at + 20])} after its end")
