"""Search: BM25 by bm25s and exact dense search, both ending in a `Run` that is saved as a TREC run file."""

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # where JAX is installed, bm25s imports it, and JAX
import bm25s  # would take three quarters of the GPU's memory at once
import numpy as np
import torch
from torch import Tensor

from helpers.answers import UNSPACED
from helpers.base.errors import DataError, SettingError, shorten
from helpers.base.files import write_text
from helpers.base.nearest import best_k, nearest
from helpers.dataset import PassageIndex
from helpers.encoder import Encoder

UNSPACED_RUN = re.compile(f"[{UNSPACED}]+")


@dataclass
class Run:
    """The ranked passages of one system: row numbers of the corpus and scores, best first, per question."""

    name: str
    qids: list[str]
    rankings: list[np.ndarray]
    scores: list[np.ndarray]

    def check(self) -> None:
        """Raise a DataError if a score is NaN or infinite."""
        for qid, scores in zip(self.qids, self.scores, strict=True):
            if not np.isfinite(scores).all():
                raise DataError(f"{self.name}: question {shorten(qid)} has a score that is NaN or infinite")

    def without(self, left_out: Mapping[str, set[int]], k: int | None = None) -> "Run":
        """Return the first `k` of each ranking, without the rows that `left_out` names for its question."""
        if not left_out:
            return self
        run = Run(self.name, self.qids, [], [])
        for qid, ranking, scores in zip(self.qids, self.rankings, self.scores, strict=True):
            kept = np.flatnonzero(~np.isin(ranking, list(left_out.get(qid, ()))))[:k]
            run.rankings.append(np.asarray(ranking)[kept])
            run.scores.append(np.asarray(scores)[kept])
        return run

    def save(self, path: str | Path, ids: Sequence[str]) -> None:
        """Write a TREC run file (`qid Q0 pid rank score name`), readable by trec_eval and ir-measures.

        Those tools sort by score and break ties by id, trec_eval from the last id down. So that all of them keep this
        run's order, a score that is not below the one before is written as the next smaller float32.
        """
        self.check()
        lines = []
        for qid, ranking, scores in zip(self.qids, self.rankings, self.scores, strict=True):
            last = np.float32(np.inf)
            for rank, (row, score) in enumerate(zip(ranking, np.asarray(scores, np.float32), strict=True), start=1):
                last = score if score < last else np.nextafter(last, np.float32(-np.inf))
                lines.append(f"{qid} Q0 {ids[row]} {rank} {last:.9g} {self.name.replace(' ', '-')}\n")
        write_text(path, "".join(lines))


def load_run(path: str | Path, row_of: Mapping[str, int], qids: Sequence[str], least: float = 0.0) -> Run:
    """Read a TREC run file of ours or of another tool; questions it does not mention get an empty ranking.

    As in trec_eval, the scores decide, as float32, not the ranks that are written, and of equal scores the last
    passage id comes first. So Hit@K is Success@K of trec_eval and ir-measures, whoever made the file.

    Parameters
    ----------
    row_of : passage id -> row of the corpus
    qids : the questions to read; lines of others are skipped
    least : share of them that must have a line

    Raises
    ------
    DataError : a broken line, an unknown or repeated passage, a score that is no finite number, too few questions
    """
    found: dict[str, dict[str, np.float32]] = {qid: {} for qid in qids}
    name = Path(path).stem
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable as a TREC run file ({error}); run notebook 04 to make it") from error
    for place, fields in ((f"{path}:{number}", line.split()) for number, line in enumerate(lines, start=1)):
        if not fields:
            continue
        if len(fields) != 6:
            raise DataError(f"{place}: {len(fields)} fields; a TREC run line has six: qid Q0 pid rank score name")
        qid, _, pid, _, score, name = fields
        if pid not in row_of:
            raise DataError(f"{place}: passage {pid!r} is not in the corpus that was given")
        if pid in found.get(qid, ()):
            raise DataError(f"{place}: passage {pid!r} is ranked twice for question {qid!r}; keep one line")
        try:
            value = np.float32(score)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise DataError(f"{place}: the score {shorten(score)} is not a finite number")
        if qid in found:
            found[qid][pid] = value
    if (named := sum(map(bool, found.values()))) < least * len(found):
        raise DataError(f"{path}: only {named} of {len(found)} questions have a line; run notebook 04 again")
    ranked = [sorted(pairs.items(), key=lambda pair: pair[::-1], reverse=True) for pairs in found.values()]
    rankings = [np.array([row_of[pid] for pid, _ in pairs], dtype=int) for pairs in ranked]
    return Run(name, list(qids), rankings, [np.array([score for _, score in pairs]) for pairs in ranked])


class BM25:
    """BM25 over a list of texts (Lucene's variant), built once and searched many times.

    Tokens: lower-cased words of two or more letters, English stop words left out, no stemming; in scripts without
    spaces (Chinese, Japanese, Thai, …) every pair of neighbouring characters. `tokenizer` says which were used.
    Robertson & Zaragoza 2009; bm25s: https://arxiv.org/abs/2407.03618.
    """

    def __init__(self, texts: Sequence[str], k1: float = 1.5, b: float = 0.75):
        tokens = self.tokens(texts)
        pairs = any(map(UNSPACED_RUN.match, tokens.vocab))
        self.tokenizer = "lower-cased words without English stop words" + " and pairs of characters" * pairs
        self.index = bm25s.BM25(method="lucene", k1=k1, b=b) if tokens.vocab else None  # None: the texts have no word
        if self.index:
            self.index.index(tokens, show_progress=False)
        self.size = len(texts)

    @staticmethod
    def tokens(texts: Sequence[str]) -> bm25s.tokenization.Tokenized:
        """Return the words of texts: `ids`, a list of numbers for each text, and `vocab`, word -> number."""
        texts = [text if text.isascii() else UNSPACED_RUN.sub(_pairs, text) for text in texts]
        pattern = rf"\b\w\w+\b|[{UNSPACED}]{{1,2}}"  # in this order, since words are by far the most
        return bm25s.tokenize(texts, token_pattern=pattern, stopwords="en", show_progress=False)

    def search(self, queries: Sequence[str], k: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Return row numbers and scores of the best `k` passages that share a word, per query; ties in corpus order."""
        if self.index is None:
            return [np.array([], dtype=int) for _ in queries], [np.array([]) for _ in queries]
        rankings, scores = [], []
        for words in bm25s.tokenization.convert_tokenized_to_string_list(self.tokens(queries)):
            every = self.index.get_scores_from_ids(self.index.get_tokens_ids(words))
            rows, values = best_k(torch.from_numpy(every)[None], k)
            shared = values > 0
            rankings.append(rows[shared].numpy())
            scores.append(values[shared].numpy())
        return rankings, scores


def _pairs(match: re.Match) -> str:
    """Return a run of characters as its overlapping pairs, as Lucene's CJKBigramFilter makes them."""
    run = match.group()
    return f" {' '.join(run[at : at + 2] for at in range(max(1, len(run) - 1)))} "


def dense_search(
    query_vecs: np.ndarray, passage_vecs: np.ndarray, k: int, device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """Return row numbers and dot products of the `k` nearest passages, exactly, [Q, k] each; ties in corpus order.

    `query_vecs` are [Q, D], `passage_vecs` [P, D]; `k` is cut to P. Raises a DataError if one is NaN or infinite.
    """
    return nearest(_finite("query", query_vecs), _finite("passage", passage_vecs).to(device), k)


def _finite(what: str, vectors: np.ndarray) -> Tensor:
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        why = "the model diverged: train again with a lower learning rate"
        raise DataError(f"{what} vector {finite.argmin()} is NaN or infinite; {why}")
    return torch.from_numpy(vectors)


class DenseIndex:
    """An encoder and the vectors of a list of texts: what `BM25` is for words.

    The vectors are made when they are first needed, and made anew when the encoder has changed since, as in training.
    """

    def __init__(self, encoder: Encoder, texts: Sequence[str], progress: str = ""):
        self.encoder, self.texts, self.progress = encoder, texts, progress
        self._vectors, self._made_by = torch.empty(0), None

    @property
    def vectors(self) -> Tensor:
        """The vectors of all texts under the encoder's present weights, [P, D], on its device."""
        if (present := _state(self.encoder)) != self._made_by:
            self._vectors, self._made_by = _finite("passage", self._encode(self.texts, "passage")), present
        self._vectors = self._vectors.to(self.encoder.device)
        return self._vectors

    def search(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return row numbers and dot products of the `k` nearest texts, [Q, k] each; ties in corpus order."""
        return self.search_vectors(self._encode(queries, "query"), k)

    def search_vectors(self, query_vecs: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the same for questions that are encoded already, [Q, D]."""
        return nearest(_finite("query", query_vecs), self.vectors, k)

    def check(self, passages: PassageIndex) -> None:
        """Raise a SettingError if the texts are not those of `passages`."""
        if self.texts is not passages.texts:
            raise SettingError("the DenseIndex holds other passages; make one for those that are mined")

    def _encode(self, texts: Sequence[str], kind: str) -> np.ndarray:
        return self.encoder.search_vectors(texts, kind, self.progress and f"{self.progress}: {kind}")


def _state(encoder: Encoder) -> tuple:
    """Return what differs when the weights or the profile do: for each tensor the sum of its bits as whole numbers.

    A tensor's `_version` will not do: fused optimizers do not raise it. Hashing all bytes takes five times as long.
    """
    if not isinstance(encoder, torch.nn.Module):
        return ()  # a stand-in whose vectors never change
    whole = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = [tensor.view(whole[tensor.element_size()]).sum() for tensor in encoder.state_dict().values()]
    return repr(encoder.profile), torch.stack(sums).tolist()


def search_run(
    name: str, index: BM25 | DenseIndex, queries: Mapping[str, str], k: int = 100, left_out: Mapping | None = None
) -> Run:
    """Return the run of an index.

    `queries` maps question id to text, `left_out` question id to rows that may not be ranked for it, as
    `helpers.evaluation.own_rows` returns them. Raises a DataError if a score is not finite.
    """
    more = max(map(len, (left_out or {}).values()), default=0)
    rows, scores = index.search(list(queries.values()), k + more)
    run = Run(name, list(queries), list(rows), list(scores)).without(left_out or {}, k)
    run.check()
    return run


def dense_run(
    name: str, encoder: Encoder, queries: Mapping[str, str], passages: PassageIndex, k: int = 100, progress: bool = True
) -> Run:
    """Return the run of an encoder over all passages; `queries` maps question id to text."""
    return search_run(name, DenseIndex(encoder, passages.texts, name * progress), queries, k)


def bm25_run(name: str, queries: Mapping[str, str], passages: PassageIndex, k: int = 100) -> Run:
    """Return the run of BM25 over all passages; `queries` maps question id to text."""
    return search_run(name, BM25(passages.texts), queries, k)
