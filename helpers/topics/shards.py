"""Vectors of a corpus too large for one process: made shard by shard, kept on disk, checked before they are used.

A shard is an Arrow file of ids and float16 vectors, [n, D], for a range of the corpus's rows. It says in its own header
which model and which texts it was made from, and the sha256 of what it holds. It appears in one step, so whoever is
killed leaves whole shards only, and the next start makes those that are missing. How rows are shared out depends on the
number of shards alone, so that it does not matter who makes one: a loop, several processes, or a cluster.
"""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from helpers.base.errors import DataError, SettingError, shorten
from helpers.base.files import atomic_path, display_path, read_json, recover, told, write_json
from helpers.dataset import PassageIndex
from helpers.encoder import Encoder

MANIFEST = "manifest.json"
ABOUT = b"retriever-course"  # under which a shard's header is kept in the Arrow file


def shard_rows(number: int, count: int, passages: int) -> range:
    """Return the rows of shard `number`, from 0, of `count`; the shards differ by one row at most.

    >>> [shard_rows(number, 3, 10) for number in range(3)]
    [range(0, 3), range(3, 6), range(6, 10)]
    """
    if not 0 <= number < count <= max(1, passages):
        raise SettingError(f"shard {number} of {count}: use 0 to {count - 1}, and at most {passages} shards")
    return range(number * passages // count, (number + 1) * passages // count)


def shard_path(folder: Path, number: int, count: int) -> Path:
    """Return the file of shard `number` of `count`."""
    return folder / f"shard-{number:05d}-of-{count:05d}.arrow"


def encode_shard(
    encoder: Encoder, passages: PassageIndex, folder: Path, number: int, count: int, made_by: str = ""
) -> bool:
    """Write shard `number` of `count`, unless it is there already; return whether it had to be made.

    The same texts, encoder and `count` give the same bytes, whoever makes the shard, as far as processors compute
    alike; numbers of threads made no difference where we looked. `made_by` is the encoder's fingerprint if it is known
    already, since hashing the weights of a large model takes seconds.

    Raises
    ------
    DataError : the shard that is there is damaged, or was made by another encoder or from other texts; a vector is not
        finite, or too large for float16; the disk is full
    """
    path, rows = shard_path(folder, number, count), shard_rows(number, count, len(passages))
    recover(path)
    ids, texts = passages.ids[rows.start : rows.stop], passages.texts[rows.start : rows.stop]
    about = {
        "encoder": made_by or encoder.fingerprint(),
        "precision": encoder.precision,
        "texts": digest(*ids, *texts),
        "rows": [rows.start, rows.stop],
        "passages": len(passages),
    }
    if path.exists():
        found = _read(path)[1]
        for what, here in about.items():
            if found.get(what) != here:
                fix = "give another folder, or delete this one"
                raise DataError(f"{display_path(path)} has {what} {found.get(what)!r}, here {here!r}; {fix}")
        return False
    vectors = encoder.search_vectors(texts, "passage").astype(np.float16)
    if not np.isfinite(vectors).all():
        row = rows[int((~np.isfinite(vectors)).any(axis=1).argmax())]
        raise DataError(f"the vector of passage {shorten(passages.ids[row])} is not finite in float16; check the model")
    about["sha256"] = digest(*ids, vectors.tobytes())
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    table = pa.table({"_id": pa.array(ids, pa.string()), "vector": column}, metadata={ABOUT: json.dumps(about)})
    with atomic_path(path) as temporary, told(path), pa.OSFile(str(temporary), "wb") as sink:
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    return True


def finish_shards(folder: Path, count: int) -> "Shards":
    """Check all shards of a folder, and write the manifest without which they are not opened.

    Raises
    ------
    DataError : a shard is missing, damaged, or made by another encoder; rows are missing; rows or ids are there twice
    """
    entries, hashes, next_row = [], [], 0
    missing = [number for number in range(count) if not shard_path(folder, number, count).exists()]
    if missing:
        fix = "start the encoding again; it makes only what is missing"
        raise DataError(
            f"{display_path(folder)}: {len(missing)} of {count} shards are missing, first {missing[0]}; {fix}"
        )
    for path in (shard_path(folder, number, count) for number in range(count)):
        table, about = _read(path, check=True)
        if entries and any(
            about[what] != entries[0][what] for what in ("encoder", "precision", "passages", "dimension")
        ):
            raise DataError(f"{display_path(path)} was made by another encoder or for another corpus; delete it")
        if about["rows"] != [next_row, next_row + len(table)]:
            raise DataError(f"{display_path(path)} holds rows {about['rows']}, but {next_row} comes next; delete it")
        next_row += len(table)
        entries.append({"file": path.name, **about})
        hashes.append(np.fromiter(map(hash, table.column("_id").to_pylist()), np.int64, len(table)))
    if next_row != entries[0]["passages"]:
        raise DataError(f"{display_path(folder)}: {next_row} of {entries[0]['passages']} rows are there")
    if len(np.unique(np.concatenate(hashes))) < next_row:
        raise DataError(f"{display_path(folder)}: an id is there twice; give every passage its own")
    write_json(folder / MANIFEST, {"shards": entries})
    return Shards(folder, entries)


def open_shards(folder: Path, encoder: Encoder | None = None, passages: PassageIndex | None = None) -> "Shards":
    """Open the finished shards of a folder.

    Raises
    ------
    DataError : there is no manifest, or a shard's header is not the manifest's, or the shards are not from `encoder`,
        or not of `passages`
    """
    if not (folder / MANIFEST).exists():
        raise DataError(f"{display_path(folder)} has no {MANIFEST}: it is not finished; start the encoding again")
    shards = Shards(folder, read_json(folder / MANIFEST)["shards"])
    for entry in shards.entries:
        if _read(folder / entry["file"])[1] != {name: value for name, value in entry.items() if name != "file"}:
            raise DataError(f"{display_path(folder / entry['file'])} is not the one that was checked; encode again")
    shards.check(encoder, passages)
    return shards


class Shards:
    """The vectors of a corpus on disk, read block by block; see `open_shards`."""

    device = torch.device("cpu")

    def __init__(self, folder: Path, entries: list[dict]):
        self.folder, self.entries = folder, entries
        self._checked: PassageIndex | None = None  # hashing the texts of millions takes minutes: once will do

    def __len__(self) -> int:
        return self.entries[0]["passages"]

    @property
    def dimension(self) -> int:
        """How many numbers a vector has, D."""
        return self.entries[0]["dimension"]

    @property
    def fingerprint(self) -> str:
        """A digest of all ids, texts and vectors, and of the encoder."""
        return digest(*(str(entry) for entry in self.entries))

    @property
    def nbytes(self) -> int:
        """Bytes of all vectors."""
        return 2 * len(self) * self.dimension

    def check(self, encoder: Encoder | None = None, passages: PassageIndex | None = None) -> None:
        """Raise a DataError if `encoder` did not make the shards, or if an id or a text in `passages` is another."""
        made_by = self.entries[0]["encoder"]
        if encoder is not None and (here := encoder.fingerprint()) != made_by:
            raise DataError(f"{display_path(self.folder)} was made by encoder {made_by}, here {here}; encode again")
        if passages is None or passages is self._checked:
            return
        for entry in self.entries:
            own = slice(*entry["rows"])
            if digest(*passages.ids[own], *passages.texts[own]) != entry["texts"] or len(self) != len(passages):
                raise DataError(f"{display_path(self.folder / entry['file'])} is of other passages; encode again")
        self._checked = passages

    def __getitem__(self, rows: Sequence[int]) -> torch.Tensor:
        """Return the vectors of some rows of the corpus as float32, [N, D]; only these are read from the disk."""
        found = torch.empty(len(rows), self.dimension)
        for place, row in enumerate(rows):
            number = bisect_right(self._starts, row) - 1
            found[place] = torch.from_numpy(self._mapped[number][row - self._starts[number]].astype(np.float32))
        return found

    @cached_property
    def _starts(self) -> list[int]:
        return [entry["rows"][0] for entry in self.entries]

    @cached_property
    def _mapped(self) -> list[np.ndarray]:
        return [vectors for _, vectors in self.blocks()]

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the first row and the vectors of each shard, [n, D] float16, mapped from the disk."""
        for entry in self.entries:
            table, about = _read(self.folder / entry["file"])
            flat = table.column("vector").combine_chunks().flatten().to_numpy()
            yield about["rows"][0], flat.reshape(len(table), self.dimension)

    def ids(self) -> Iterator[str]:
        """Yield the ids of all passages, in the corpus's order."""
        for entry in self.entries:
            yield from _read(self.folder / entry["file"])[0].column("_id").to_pylist()


def _read(path: Path, check: bool = False) -> tuple[pa.Table, dict]:
    """Return the table and the header of a shard; with `check`, its content is compared with its sha256."""
    broken = f"{display_path(path)} is damaged; delete it and start the encoding again"
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        about = json.loads(table.schema.metadata[ABOUT])
        about["dimension"] = table.schema.field("vector").type.list_size
        whole = len(table) == about["rows"][1] - about["rows"][0]
        if whole and check:
            vectors = table.column("vector").combine_chunks().flatten().to_numpy()
            whole = digest(*table.column("_id").to_pylist(), vectors.tobytes()) == about["sha256"]
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{broken} ({shorten(error)})") from error
    if not whole:
        raise DataError(broken)
    return table, about


def digest(*parts: str | bytes) -> str:
    """Return the sha256 over strings and bytes and their lengths, shortened."""
    digest = hashlib.sha256()
    for part in parts:
        own = part.encode() if isinstance(part, str) else part
        digest.update(len(own).to_bytes(8, "little") + own)
    return digest.hexdigest()[:32]
