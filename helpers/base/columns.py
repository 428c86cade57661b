"""Columns of a corpus, read from its Arrow table when they are needed, and the row of each id."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

BATCH = 10_000  # rows read at a time


class ArrowColumn(Sequence[str]):
    """A column of a corpus, read from its Arrow table: for a single row `datasets` takes 50 times as long."""

    def __init__(self, corpus: datasets.Dataset, name: str):
        self.column = corpus.data.column(name)
        self.rows = None if corpus._indices is None else corpus._indices.column(0)  # of a selection

    def __len__(self) -> int:
        return len(self.column if self.rows is None else self.rows)

    def __getitem__(self, row: int | slice) -> str | list[str]:
        if self.rows is None:
            return self.column[row].to_pylist() if isinstance(row, slice) else self.column[row].as_py()
        if isinstance(row, slice):
            return [self.column[number].as_py() for number in self.rows[row].to_pylist()]
        return self.column[self.rows[row].as_py()].as_py()


class LazyTexts(Sequence[str]):
    """`make` of each row of `columns`, made when needed; only the last 100,000 are kept, so a corpus may be huge."""

    def __init__(self, make: Callable[..., str], *columns: Sequence):
        self.make, self.columns = make, columns
        self._get = lru_cache(maxsize=100_000)(lambda row: make(*(column[row] for column in columns)))

    def __len__(self) -> int:
        return len(self.columns[0])

    def __getitem__(self, row: int | slice) -> str | list[str]:
        if type(row) is int and row >= 0:  # answer matching comes here millions of times
            return self._get(row)
        if isinstance(row, slice):
            return list(map(self.make, *(column[row] for column in self.columns)))
        return self._get(range(len(self))[row])

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), BATCH):
            yield from self[start : start + BATCH]


class RowOf(Mapping[str, int]):
    """Passage id -> row, by sorted hashes: 16 bytes per passage, where a dict takes ten times that."""

    def __init__(self, ids: LazyTexts):
        self.ids = ids
        hashes = np.fromiter(map(hash, ids), np.int64, len(ids))
        self.order = np.argsort(hashes, kind="stable")
        self.hashes = hashes[self.order]
        self.find = lru_cache(maxsize=2**18)(self._find)

    def _find(self, pid: str) -> int:
        """Return the row, or -1."""
        first, last = np.searchsorted(self.hashes, hash(pid)), np.searchsorted(self.hashes, hash(pid), "right")
        return next((int(row) for row in self.order[first:last] if self.ids[row] == pid), -1)

    def __getitem__(self, pid: str) -> int:
        if (row := self.find(pid)) < 0:
            raise KeyError(pid)
        return row

    def __contains__(self, pid: object) -> bool:
        return isinstance(pid, str) and self.find(pid) >= 0

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    def __len__(self) -> int:
        return len(self.ids)


def repeated(corpus: datasets.Dataset, queries: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield (question id, passage id) where a passage of a whole corpus is a question: ArguAna and Quora have such.

    Its text is the question's, with or without its title, or it has the question's id and holds the question's text.
    BEIR goes by equal ids alone; but where questions and passages are numbered, those mean nothing.
    """
    asked = defaultdict(set)
    for qid, text in queries.items():
        asked[text.strip()].add(qid)
    texts, qids = (pa.array(list(values), pa.string()) for values in (asked, queries))
    for batch in corpus.data.to_batches(BATCH):
        ids, title, text = (batch.column(name) for name in ("_id", "title", "text"))
        whole = pc.binary_join_element_wise(title, text, " ")
        same = [pc.is_in(pc.utf8_trim_whitespace(own), texts) for own in (text, whole)]
        maybe = pc.or_(pc.or_(*same), pc.is_in(ids, qids))
        for pid, *forms in zip(*(column.filter(maybe).to_pylist() for column in (ids, text, whole)), strict=True):
            candidates = {pid} & queries.keys() | set().union(*(asked.get(form.strip(), ()) for form in forms))
            held = " ".join(forms[1].split())
            yield from ((qid, pid) for qid in sorted(candidates) if " ".join(queries[qid].split()) in held)
