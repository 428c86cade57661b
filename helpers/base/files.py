"""Paths, reading within bounds, and writing that leaves no half-written file behind."""

import codecs
import gzip
import hashlib
import io
import json
import math
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import ijson
from safetensors import SafetensorError

from helpers.base.errors import DataError, shorten

QUIET = bool(os.environ.get("TQDM_DISABLE"))  # no progress bars, e.g. in committed outputs
ROOT = Path(__file__).resolve().parents[2]  # the course folder: helpers/ is installed editable
LONGEST = 16 * 2**20  # bytes of a line, or of an item of a JSON list, that are read
DEEPEST = 100  # lists and objects within each other in a JSON file
UNPACKED = 100  # times its size that a .gz file may grow to; text grows to 3 to 20 times
PIECE = 2**16  # bytes of a long line of a JSON file that are read at a time
ESCAPE = re.compile(rb"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]..|(u[dD][89a-fA-F])|.)", re.DOTALL)  # group 1: half a pair
HIDDEN = re.compile(r"\.([^/\\]+)\.\d+\.(tmp|old)")  # what a process writes before it is renamed, and moves aside


def resolve(path: str | Path) -> Path:
    """Return `path` as an absolute path; a relative one is taken from the course folder.

    So `data/sample` means the same in JupyterLab, which starts a notebook in notebooks/, and in papermill.
    """
    return Path(os.path.realpath(ROOT / os.path.expanduser(path)))


def display_path(path: str | Path) -> str:
    """Return `path` relative to the course folder if it lies inside, so that outputs name no machine's folders."""
    path = Path(path)
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def cache_dir() -> Path:
    """Return the folder for fetched models and data: $RETRIEVER_COURSE_CACHE, or one under ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return resolve(os.environ.get("RETRIEVER_COURSE_CACHE") or Path(base) / "dense-retriever-course")


@contextmanager
def told(path: str | Path, fix: str = "free some space, or check the name and the permissions") -> Iterator[None]:
    """Turn an OSError into a DataError that names its file, or `path` where it names none, and how to `fix` it."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        name = HIDDEN.sub(r"\1", str(getattr(error, "filename", None) or path))
        raise DataError(f"{name}: {getattr(error, 'strerror', None) or error}; {fix}") from error


@contextmanager
def atomic_path(target: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; rename it to `target` on success, delete it on error.

    Works for a file and for a folder. An existing folder is moved aside first and deleted last, so an error leaves
    the old one or the new one, never a mixture and never neither.

    Raises
    ------
    DataError : the disk is full, a permission is missing, or `target` cannot be such a file
    """
    target = Path(target)
    temporary, old = (target.with_name(f".{target.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    with told(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        _delete(temporary)
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
            _delete(old)
        finally:
            _delete(temporary)


def recover(target: str | Path) -> None:
    """Clear up after processes killed inside `atomic_path(target)`, and put back what they had moved aside."""
    target = Path(target)
    for path in sorted(target.parent.iterdir()) if target.parent.is_dir() else ():
        found = HIDDEN.fullmatch(path.name)
        if found and found[1] == target.name:
            _delete(path) if found[2] == "tmp" or target.exists() else os.replace(path, target)


def remove(path: str | Path) -> None:
    """Delete a file or folder so that it stays whole or is gone if the process is killed; see `recover`."""
    path = Path(path)
    if path.exists():
        hidden = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        os.replace(path, hidden)
        _delete(hidden)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def file_sha256(path: Path) -> bytes:
    """Return the sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` in one step; errors as `atomic_path`."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: object) -> None:
    """Write `value` to `path` as readable JSON in one step; NaN and infinity become null."""
    write_text(path, _json(value, indent=2))


def write_jsonl(path: str | Path, rows: Iterable[dict]) -> None:
    """Write `rows` to `path` in one step, one JSON object per line; NaN and infinity become null."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(map(_json, rows))


def _json(value: object, indent: int | None = None) -> str:
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    if "NaN" in text or "Infinity" in text:  # JSON has no such numbers
        value = json.loads(text, parse_constant=lambda name: None)
        text = json.dumps(value, ensure_ascii=False, indent=indent)
    return text + "\n"


def read_json(path: str | Path) -> object:
    """Return the value of a small JSON file that we wrote, or raise a DataError."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{display_path(path)} cannot be read as JSON ({reason}); make it again") from error


def read_pieces(path: Path, read: Callable[[IO[bytes]], bytes]) -> Iterator[bytes]:
    """Yield what `read` takes of a file, plain or .gz, until nothing is left; a byte-order mark is dropped.

    UTF-16 that begins with its mark is read as if it were UTF-8.

    Raises
    ------
    DataError : the file cannot be read, is truncated, or unpacks to more than 100 times its size
    """
    try:
        if path.exists() and not path.is_file():  # a folder, or a pipe that would be waited for without end
            raise DataError(f"{path} is not a file; see data/README.md for the files needed")
        with path.open("rb") as raw, gzip.open(raw) if path.suffix == ".gz" else raw as file:
            bound, total = (2**20 + UNPACKED * path.stat().st_size if file is not raw else math.inf), 0
            wide = file.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # as Excel saves "Unicode text"
            source = _Recoded(file) if wide else file
            while piece := read(source):
                yield piece if total else piece.removeprefix(b"\xef\xbb\xbf")
                total += len(piece)
                if total > bound:
                    raise DataError(
                        f"{path} unpacks to more than {UNPACKED} times its size, which no text does; do not use it"
                    )
    except (OSError, EOFError, zlib.error, UnicodeError) as error:  # a damaged or truncated .gz; broken UTF-16
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path} cannot be read ({reason}); see data/README.md for the files needed") from error


class _Recoded:
    """The lines of a UTF-16 file, as UTF-8."""

    def __init__(self, file: IO[bytes]):
        self.text = io.TextIOWrapper(file, "utf-16", newline="\n")

    def readline(self, size: int) -> bytes:
        return self.text.readline(size).encode("utf-8")


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
    DataError : names the line of broken JSON, of a number beyond 64 bits and of an item above 16 MiB or nested more
        than 100 levels deep; there is no such list
    """
    file, found = _JSONFile(path), False
    try:
        event, _ = next(file.events)
        if not key:
            yield from file.items(event)
        elif event == "start_map":
            while (name := next(file.events)[1]) is not None:
                event, value = next(file.events)
                if name == key:
                    found = True
                    yield from file.items(event)
                else:
                    file.value(event, value)
        if key and not found:
            raise file.wrong(f"no field {key!r}")
        next(file.events, None)  # nothing may follow
    except (ijson.JSONError, UnicodeDecodeError) as error:
        what, *context = re.split(r"\n|\\n", str(error).removeprefix("b'"))
        near = f" near {shorten(context[0].strip())}" if context and context[0].strip() else ""
        raise file.wrong(what + near) from error


class _JSONFile:
    """A file as ijson reads and parses it: in lines, so that an error can name its own."""

    def __init__(self, path: Path):
        self.path, self.line, self.piece = path, 1, b""
        self.held = 0  # bytes read since the last item
        self.pieces = read_pieces(path, _read_line)
        self.events = ijson.basic_parse(self, use_float=True)

    def wrong(self, why: str) -> DataError:
        return DataError(f"{self.path}:{self.line}: not the JSON that is needed ({why})")

    def read(self, size: int) -> bytes:
        if not size:  # ijson asks whether these are bytes
            return b""
        self.line += self.piece.count(b"\n")
        self.piece = next(self.pieces, b"")
        self.held += len(self.piece)
        if self.held > LONGEST:
            raise self.wrong(f"an item of over {LONGEST // 2**20} MiB; split it")
        if b"\\ud" in self.piece.lower() and any(found[1] for found in ESCAPE.finditer(self.piece)):
            raise self.wrong("half of a surrogate pair; write the whole character")  # ijson would make up another half
        return self.piece

    def items(self, event: str) -> Iterator[object]:
        if event != "start_array":
            raise self.wrong("a list is needed")
        while (found := next(self.events))[0] != "end_array":
            yield self.value(*found)

    def value(self, event: str, value: object, depth: int = 0) -> object:
        """Return the value that begins with `event`."""
        if depth > DEEPEST:
            raise self.wrong(f"more than {DEEPEST} lists or objects within each other")
        if event == "start_array":
            value = []
            while (found := next(self.events))[0] != "end_array":
                value.append(self.value(*found, depth + 1))
        elif event == "start_map":
            value = {}
            while (found := next(self.events))[0] != "end_map":
                value[found[1]] = self.value(*next(self.events), depth + 1)
        self.held = self.held if depth else 0
        return value


def _read_line(file: IO[bytes]) -> bytes:
    """Read a line, or of a long one a piece that does not end within an escape such as \\ud83d\\ude00."""
    line = more = file.readline(PIECE)
    while more and b"\\" in line[-12:] and not line.endswith(b"\n") and len(line) < LONGEST:
        more = file.readline(PIECE)
        line += more
    return line
