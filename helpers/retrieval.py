"""Search: BM25 by bm25s and exact dense search, both ending in a `Run` that is saved as a TREC run file."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import bm25s
import numpy as np
import torch

from helpers.dataset import PassageIndex, RetrievalData
from helpers.errors import DataError, shorten
from helpers.evaluation import hit_at_k, hit_ranks, normalize_all
from helpers.files import write_text


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


def load_run(path: str | Path, row_of: dict[str, int], qids: Sequence[str]) -> Run:
    """Read a TREC run file; questions it does not mention get an empty ranking.

    Raises
    ------
    DataError : a line has not six fields, or names a passage that the corpus has not
    """
    found: dict[str, list[tuple[float, int]]] = {qid: [] for qid in qids}
    name = Path(path).stem
    try:
        content = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable as a TREC run file ({error}); run notebook 04 to make it") from error
    for number, line in enumerate(content.splitlines(), start=1):
        fields = line.split()
        if len(fields) != 6:
            raise DataError(
                f"{path}:{number}: {len(fields)} fields; a TREC run line has six: qid Q0 pid rank score name"
            )
        qid, _, pid, _, score, name = fields
        if pid not in row_of:
            raise DataError(f"{path}:{number}: passage {pid!r} is not in the corpus that was given")
        if not re.fullmatch(r"[+-]?[\d.]+([eE][+-]?\d+)?", score):
            raise DataError(f"{path}:{number}: the score {shorten(score)} is not a number")
        if qid in found:
            found[qid].append((float(score), row_of[pid]))
    ranked = {qid: sorted(pairs, key=lambda pair: -pair[0]) for qid, pairs in found.items()}
    rankings = [np.array([row for _, row in pairs], dtype=int) for pairs in ranked.values()]
    return Run(name, list(qids), rankings, [np.array([score for score, _ in p]) for p in ranked.values()])


class BM25:
    """BM25 over a list of texts (Lucene's variant), built once and searched many times.

    Tokens: lower-cased words of two or more letters, English stop words left out, no stemming.
    Robertson & Zaragoza 2009; bm25s: https://arxiv.org/abs/2407.03618.
    """

    def __init__(self, texts: Sequence[str], k1: float = 1.5, b: float = 0.75):
        tokens = self._tokens(texts)
        self.index = bm25s.BM25(method="lucene", k1=k1, b=b) if tokens.vocab else None  # None: not one word
        if self.index:
            self.index.index(tokens, show_progress=False)
        self.size = len(texts)

    @staticmethod
    def _tokens(texts: Sequence[str]):
        return bm25s.tokenize(list(texts), stopwords="en", show_progress=False)

    def search(self, queries: Sequence[str], k: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Return rankings (row numbers) and scores of the first `k` passages that share a word, per query."""
        if self.index is None:
            return [np.array([], dtype=int) for _ in queries], [np.array([]) for _ in queries]
        rows, scores = self.index.retrieve(
            self._tokens(queries), k=min(k, self.size), show_progress=False, n_threads=-1
        )
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
    for what, vectors in (("query", query_vecs), ("passage", passage_vecs)):
        if not np.isfinite(vectors).all():
            raise DataError(f"{what} vector {np.argwhere(~np.isfinite(vectors))[0][0]} is NaN or infinite; "
                            "the model diverged: train again with a lower learning rate")  # fmt: skip
    passages = torch.from_numpy(passage_vecs).to(device)
    chunk = max(1, min(chunk, 2**26 // max(1, len(passages))))  # at most 256 MiB of scores
    starts = range(0, max(1, len(query_vecs)), chunk)  # no question at all still gives an array, of no rows
    parts = [
        torch.topk(torch.from_numpy(query_vecs[start : start + chunk]).to(device) @ passages.T, min(k, len(passages)))
        for start in starts
    ]
    scores = torch.cat([part.values for part in parts]).cpu().numpy()
    return torch.cat([part.indices for part in parts]).cpu().numpy(), scores


def dense_run(
    name: str, encoder, queries: Mapping[str, str], passages: PassageIndex, k: int = 100, progress: bool = True
) -> Run:
    """Return the run of an encoder over all passages; `queries` maps question id to text."""
    passage_vecs = encoder.encode(passages.texts, "passage", progress=f"{name}: passages" * progress)
    query_vecs = encoder.encode(list(queries.values()), "query", progress=f"{name}: questions" * progress)
    rows, scores = dense_search(query_vecs, passage_vecs, k, device=encoder.device.type)
    return Run(name, list(queries), list(rows), list(scores))


def bm25_run(name: str, queries: Mapping[str, str], passages: PassageIndex, k: int = 100) -> Run:
    """Return the run of BM25 over all passages; `queries` maps question id to text."""
    rows, scores = BM25(passages.texts).search(list(queries.values()), k)
    return Run(name, list(queries), rows, scores)


def dev_scorer(data: RetrievalData, passages: PassageIndex, qids: Sequence[str]) -> Callable:
    """Return the function from an encoder to its scores on the dev questions `qids`, searched over all of `passages`.

    "dev" is Hit@10, by which the checkpoint is chosen, and Hit@1 and Hit@100 stand beside it. They go by answer match,
    or by qrels if none of the questions has an answer; see notebook 03.
    """
    queries = {qid: data.queries[qid].text for qid in qids}
    answered = any(data.queries[qid].answers for qid in qids)

    def score(encoder) -> dict[str, float]:
        run = dense_run("dev", encoder, queries, passages, progress=False)
        ranks = hit_ranks(run, data, passages, "dev")[0 if answered else 1]
        return {"dev": hit_at_k(ranks, 10), "Hit@1": hit_at_k(ranks, 1), "Hit@100": hit_at_k(ranks, 100)}

    return score


def diagnose_run(run: Run, data: RetrievalData, passages: PassageIndex, split: str) -> list[str]:
    """Return a sentence for each thing that would make Hit@K of a run meaningless, often 0; none if all is well.

    Call it before `hit_ranks`, which fails on questions that the split does not judge. What is wrong with the data
    gets the same sentence for every run; what is wrong with a run begins with its name.

    Parameters
    ----------
    run : the rankings to look at
    data, split : what holds the answers and the qrels that they will be judged by
    passages : the corpus that was searched
    """
    qrels = data.qrels.get(split, {})
    if not any(qid in qrels for qid in run.qids):
        homes = [name for name, others in data.qrels.items() if any(qid in others for qid in run.qids)]
        why = f"they belong to {' and '.join(homes)}: wrong split" if homes else "the ids do not match"
        return [f"{run.name}: {split!r} judges none of its questions; {why} "
                f"(the run asks {_first(run.qids)}, {split!r} judges {_first(qrels)})."]  # fmt: skip
    judged = {qid: qrels.get(qid, set()) for qid in run.qids}
    return [*_diagnose_data(judged, data, passages, split), *_diagnose_rankings(run, judged, passages)]


def _diagnose_data(judged: dict[str, set[str]], data: RetrievalData, passages: PassageIndex, split: str) -> list[str]:
    """Return what is wrong with answers and qrels; `judged` maps the run's questions to their relevant passages."""
    found = []
    if unjudged := [qid for qid, pids in judged.items() if not pids]:
        found.append(f"{split!r} does not judge {len(unjudged):,} of {len(judged):,} questions, e.g. "
                     f"{_first(unjudged)}; ask those of data.split_queries({split!r}).")  # fmt: skip
    answers = [data.queries[qid].answers for qid in judged if qid in data.queries]
    if not any(map(normalize_all, answers)):
        state = "all answers are empty" if any(answers) else "no question has an answer"
        found.append(f"In {split!r} {state}, so answer match finds nothing; add answers to queries.jsonl, "
                     "or go by the qrels alone.")  # fmt: skip
    if lost := [pids for pids in judged.values() if pids and not any(pid in passages.row for pid in pids)]:
        wanted = set().union(*lost)
        why = f"the ids do not match (qrels name {_first(wanted)}, the corpus {_first(passages.ids)})"
        if any(pid in wanted for pid in data.corpus["_id"]):
            why = "the data set has them: wrong split, or eval_corpus leaves them out"
        found.append(f"Judged passages of {len(lost):,} of {len(judged):,} questions of {split!r} are not among the "
                     f"{len(passages):,} that are searched; {why}.")  # fmt: skip
    return found


def _diagnose_rankings(run: Run, judged: dict[str, set[str]], passages: PassageIndex) -> list[str]:
    """Return the first thing that is wrong with the rankings themselves."""
    ranked = [(rows, scores) for rows, scores in zip(run.rankings, run.scores, strict=True) if len(rows)]
    several = [scores for rows, scores in ranked if len(rows) > 1]
    gold = [{passages.row[pid] for pid in judged[qid] if pid in passages.row} for qid in run.qids]
    collapsed = "the model seems to map every {} to one vector: it diverged, or its weights were not loaded"
    problem = ""
    if not ranked:
        problem = "no question has a single passage; a run file whose question ids do not match reads like this"
    elif max(rows.max() for rows, _ in ranked) >= len(passages):
        problem = f"it ranks passages beyond the {len(passages):,} of this corpus; it was made with another one"
    elif several and all(np.ptp(scores) <= 1e-4 * np.abs(scores).max() for scores in several):
        problem = f"all scores of a question are equal; {collapsed.format('passage')}"
    elif len(set(map(frozenset, judged.values()))) > 1 and len(set(map(tuple, run.rankings))) == 1:
        problem = f"all questions have the same ranking; {collapsed.format('question')}"
    elif any(gold) and not any(wanted.intersection(rows) for wanted, rows in zip(gold, run.rankings, strict=True)):
        problem = "no judged passage is in any ranking; the model knows nothing, or it searched another corpus"
    return [f"{run.name}: {problem}."] if problem else []


def _first(ids: Iterable[str]) -> str:
    return shorten(min(ids, default=None))
