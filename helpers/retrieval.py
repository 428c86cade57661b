"""Search: BM25 by bm25s and exact dense search, both ending in a `Run` that is saved as a TREC run file."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import bm25s
import numpy as np
import torch

from helpers.answers import UNSPACED
from helpers.base.errors import DataError, shorten
from helpers.base.files import write_text
from helpers.dataset import PassageIndex


@dataclass
class Run:
    """The ranked passages of one system: row numbers of the corpus and scores, best first, per question."""

    name: str
    qids: list[str]
    rankings: list[np.ndarray]
    scores: list[np.ndarray]

    def save(self, path: str | Path, ids: Sequence[str]) -> None:
        """Write a TREC run file (`qid Q0 pid rank score name`), readable by trec_eval and ir-measures.

        Those tools sort by score and break ties by id, trec_eval from the last id down. So that all of them keep this
        run's order, a score that is not below the one before is written as the next smaller float32.

        Raises
        ------
        DataError : a score is NaN or infinite
        """
        lines = []
        for qid, ranking, scores in zip(self.qids, self.rankings, self.scores, strict=True):
            if not np.isfinite(scores).all():
                raise DataError(f"{self.name}: question {shorten(qid)} has a score that is NaN or infinite; "
                                "such a ranking means nothing")  # fmt: skip
            last = np.float32(np.inf)
            for rank, (row, score) in enumerate(zip(ranking, np.asarray(scores, np.float32), strict=True), start=1):
                last = score if score < last else np.nextafter(last, np.float32(-np.inf))
                lines.append(f"{qid} Q0 {ids[row]} {rank} {last:.9g} {self.name.replace(' ', '-')}\n")
        write_text(path, "".join(lines))


def load_run(path: str | Path, row_of: Mapping[str, int], qids: Sequence[str], least: float = 0.0) -> Run:
    """Read a TREC run file of ours or of another tool; questions it does not mention get an empty ranking.

    As for trec_eval, scores decide, as float32, the ranks that are written do not count, and of equal scores the last
    passage id comes first. So Hit@K is Success@K of trec_eval and ir-measures, whoever made the file.

    Parameters
    ----------
    row_of : passage id -> row of the corpus
    qids : the questions to read; lines of others are skipped
    least : share of them that must have a line

    Raises
    ------
    DataError : a line has not six fields, names a passage that the corpus has not, repeats one of its question, or has
        a score that is no finite number; or too few questions have a line
    """
    found: dict[str, dict[str, np.float32]] = {qid: {} for qid in qids}
    name = Path(path).stem
    try:
        content = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable as a TREC run file ({error}); run notebook 04 to make it") from error
    for number, line in enumerate(content.splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 6:
            raise DataError(
                f"{path}:{number}: {len(fields)} fields; a TREC run line has six: qid Q0 pid rank score name"
            )
        qid, _, pid, _, score, name = fields
        if pid not in row_of:
            raise DataError(f"{path}:{number}: passage {pid!r} is not in the corpus that was given")
        if pid in found.get(qid, ()):
            raise DataError(f"{path}:{number}: passage {pid!r} is ranked twice for question {qid!r}; keep one line")
        try:
            value = float(score)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise DataError(f"{path}:{number}: the score {shorten(score)} is not a finite number")
        if qid in found:
            found[qid][pid] = np.float32(value)
    if (named := sum(map(bool, found.values()))) < least * len(found):
        raise DataError(f"{path}: only {named} of {len(found)} questions have a line; it was made for other questions, "
                        "run notebook 04 again with the same parameters")  # fmt: skip
    ranked = [sorted(pairs.items(), key=lambda pair: pair[::-1], reverse=True) for pairs in found.values()]
    rankings = [np.array([row_of[pid] for pid, _ in pairs], dtype=int) for pairs in ranked]
    return Run(name, list(qids), rankings, [np.array([score for _, score in pairs]) for pairs in ranked])


UNSPACED_RUN = re.compile(f"[{UNSPACED}]+")


def _pairs(match: re.Match) -> str:
    """Return a run of characters as its overlapping pairs, as Lucene's CJKBigramFilter makes them."""
    run = match.group()
    return f" {' '.join(run[at : at + 2] for at in range(max(1, len(run) - 1)))} "


class BM25:
    """BM25 over a list of texts (Lucene's variant), built once and searched many times.

    Tokens: lower-cased words of two or more letters, English stop words left out, no stemming; in scripts without
    spaces (Chinese, Japanese, Thai, …) every pair of neighbouring characters. `tokenizer` says which were used.
    Robertson & Zaragoza 2009; bm25s: https://arxiv.org/abs/2407.03618.
    """

    def __init__(self, texts: Sequence[str], k1: float = 1.5, b: float = 0.75):
        pairs = any(UNSPACED_RUN.search(text) for text in texts)
        self.tokenizer = "lower-cased words without English stop words" + " and pairs of characters" * pairs
        tokens = self.tokens(texts)
        self.index = bm25s.BM25(method="lucene", k1=k1, b=b) if tokens.vocab else None  # None: not one word
        if self.index:
            self.index.index(tokens, show_progress=False)
        self.size = len(texts)

    @staticmethod
    def tokens(texts: Sequence[str]):
        """Return the words of texts as bm25s has them: `ids`, a list of numbers a text, and `vocab`, word -> number."""
        texts = [UNSPACED_RUN.sub(_pairs, text) for text in texts]
        pattern = rf"[{UNSPACED}]{{1,2}}|\b\w\w+\b"
        return bm25s.tokenize(texts, token_pattern=pattern, stopwords="en", show_progress=False)

    def search(self, queries: Sequence[str], k: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Return rankings (row numbers) and scores of the first `k` passages that share a word, per query."""
        if self.index is None:
            return [np.array([], dtype=int) for _ in queries], [np.array([]) for _ in queries]
        rows, scores = self.index.retrieve(self.tokens(queries), k=min(k, self.size), show_progress=False, n_threads=-1)
        kept = scores > 0  # the rest shares no word with the question: in no order at all
        order = np.lexsort((rows, -scores))  # equal scores in the corpus's order, the same on every machine
        order = [line[keep[line]] for line, keep in zip(order, kept, strict=True)]
        return [row[line] for row, line in zip(rows, order, strict=True)], [
            score[line] for score, line in zip(scores, order, strict=True)
        ]


def dense_search(
    query_vecs: np.ndarray, passage_vecs: np.ndarray, k: int, chunk: int = 1024, device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """Return row numbers and dot products of the `k` nearest passages, exactly, [Q, k] each.

    Parameters
    ----------
    query_vecs, passage_vecs : [Q, D] and [P, D]
    k : cut to P if larger
    chunk : questions scored at a time, so that memory is chunk × P scores, not Q × P; fewer where P is large

    Raises
    ------
    DataError : a vector is NaN or infinite, which would make every ranking meaningless
    """
    return _nearest(_finite("query", query_vecs), _finite("passage", passage_vecs).to(device), k, chunk)


def _finite(what: str, vectors: np.ndarray) -> torch.Tensor:
    if not np.isfinite(vectors).all():
        raise DataError(f"{what} vector {np.argwhere(~np.isfinite(vectors))[0][0]} is NaN or infinite; "
                        "the model diverged: train again with a lower learning rate")  # fmt: skip
    return torch.from_numpy(vectors)


def _nearest(queries: torch.Tensor, passages: torch.Tensor, k: int, chunk: int = 1024) -> tuple[np.ndarray, np.ndarray]:
    chunk = max(1, min(chunk, 2**26 // max(1, len(passages))))  # at most 256 MiB of scores
    starts = range(0, max(1, len(queries)), chunk)  # no question at all still gives an array, of no rows
    parts = [
        torch.topk(queries[start : start + chunk].to(passages.device) @ passages.T, min(k, len(passages)))
        for start in starts
    ]
    scores = torch.cat([part.values for part in parts]).cpu().numpy()
    return torch.cat([part.indices for part in parts]).cpu().numpy(), scores


class DenseIndex:
    """An encoder and the vectors of all passages, made once and searched many times: what BM25 is for words."""

    def __init__(self, encoder, texts: Sequence[str], progress: str = ""):
        self.encoder, self.progress = encoder, progress
        vectors = encoder.encode(texts, "passage", progress=progress and f"{progress}: passages")
        self.vectors = _finite("passage", vectors).to(encoder.device)

    def search(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return row numbers and similarities of the `k` nearest passages, [Q, k] each."""
        label = self.progress and f"{self.progress}: questions"
        return _nearest(_finite("query", self.encoder.encode(list(queries), "query", progress=label)), self.vectors, k)


def search_run(name: str, index, queries: Mapping[str, str], k: int = 100) -> Run:
    """Return the run of a BM25 or a DenseIndex; `queries` maps question id to text."""
    rows, scores = index.search(list(queries.values()), k)
    return Run(name, list(queries), list(rows), list(scores))


def dense_run(
    name: str, encoder, queries: Mapping[str, str], passages: PassageIndex, k: int = 100, progress: bool = True
) -> Run:
    """Return the run of an encoder over all passages; `queries` maps question id to text."""
    return search_run(name, DenseIndex(encoder, passages.texts, name * progress), queries, k)


def bm25_run(name: str, queries: Mapping[str, str], passages: PassageIndex, k: int = 100) -> Run:
    """Return the run of BM25 over all passages; `queries` maps question id to text."""
    return search_run(name, BM25(passages.texts), queries, k)
