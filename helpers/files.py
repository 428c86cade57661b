"""Paths, and writing so that nothing half-written is ever left behind."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

QUIET = bool(os.environ.get("TQDM_DISABLE"))  # no progress bars, e.g. in committed outputs
ROOT = Path(__file__).resolve().parent.parent  # the course folder: helpers/ is installed editable


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
    for old in target.parent.glob(f".{target.name}.*.old"):
        _remove(old) if target.exists() else os.replace(old, target)
    for temporary in target.parent.glob(f".{target.name}.*.tmp"):
        _remove(temporary)


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


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` in one step."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: object) -> None:
    """Write `value` to `path` as readable JSON in one step."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def write_jsonl(path: str | Path, rows: Iterable[dict]) -> None:
    """Write `rows` to `path`, one JSON object a line, in one step."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
