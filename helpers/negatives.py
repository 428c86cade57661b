"""Pools of hard negatives: for every training question, passages that look right and are not.

`mine_pool` walks down a ranking, rejects what may be a positive after all, counts why, and keeps the first
`size`. A strategy is a function from questions to rankings, so a new one needs no new filter. pool.jsonl holds
one header line with settings and audit, then one line a question.
"""

import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from helpers.dataset import PassageIndex, RetrievalData
from helpers.errors import DataError, SettingError, shorten
from helpers.evaluation import normalize_all
from helpers.files import display_path, write_jsonl
from helpers.retrieval import BM25

# questions (texts), depth -> rankings (row numbers, best first) and scores
Strategy = Callable[[Sequence[str], int], tuple[Sequence[np.ndarray], Sequence[np.ndarray]]]

REASONS = ("kept", "positive", "identical text", "holds an answer")


@dataclass
class Pool:
    """Hard negatives of every question, how they were mined, and what the filters took.

    Attributes
    ----------
    negatives : question id -> list of {"pid", "rank", "score"}, best first; rank 0 marks a random top-up
    settings : strategy, size, seed, data fingerprint and whatever else decides the pool
    audit : reason -> rank -> how many candidates, over all questions
    """

    negatives: dict[str, list[dict]]
    settings: dict
    audit: dict[str, dict[int, int]] = field(default_factory=dict)

    def ids(self) -> dict[str, list[str]]:
        """Return question id -> ids of its negatives."""
        return {qid: [entry["pid"] for entry in entries] for qid, entries in self.negatives.items()}

    def save(self, path: str | Path) -> None:
        """Write pool.jsonl in one step."""
        header = {"settings": self.settings, "audit": self.audit}
        rows = ({"qid": qid, "negatives": entries} for qid, entries in self.negatives.items())
        write_jsonl(path, [header, *rows])


def load_pool(path: str | Path, data: RetrievalData) -> Pool:
    """Read pool.jsonl.

    Raises
    ------
    DataError : it is missing, not a pool, or was mined from other data
    """
    try:
        with Path(path).open(encoding="utf-8") as file:
            header, *rows = (json.loads(line) for line in file)
        audit = {reason: {int(k): v for k, v in counts.items()} for reason, counts in header["audit"].items()}
        pool = Pool({row["qid"]: row["negatives"] for row in rows}, header["settings"], audit)
        pool.ids()
        mined_from = pool.settings["data"]
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing; run notebook 02 with the same run_dir first") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not a pool ({error!r}); run notebook 02 again") from error
    if mined_from != data.fingerprint:
        raise DataError(f"{path} was mined from other data (fingerprint {mined_from}) than "
                        f"{display_path(data.folder)} ({data.fingerprint}); run notebook 02 again")  # fmt: skip
    return pool


def bm25_strategy(passages: PassageIndex, k1: float = 1.5, b: float = 0.75) -> Strategy:
    """Return the strategy that ranks passages by BM25."""
    return BM25(passages.texts, k1, b).search


def random_strategy(passages: PassageIndex, seed: int) -> Strategy:
    """Return the strategy that ranks passages at random: the plain version that others are compared with."""

    def search(questions: Sequence[str], depth: int):
        drawn = [
            np.array(random.Random(f"{seed} {question}").sample(range(len(passages)), min(depth, len(passages))))
            for question in questions
        ]
        return drawn, [np.zeros(len(rows)) for rows in drawn]

    return search


def make_strategy(name: str, passages: PassageIndex, seed: int) -> Strategy:
    """Return the strategy called `name`: "bm25" or "random".

    Raises
    ------
    SettingError : unknown name
    """
    if name not in ("bm25", "random"):
        raise SettingError(f"strategy={shorten(name)}: use 'bm25' or 'random'")
    return bm25_strategy(passages) if name == "bm25" else random_strategy(passages, seed)


def mine_pool(
    data: RetrievalData,
    passages: PassageIndex,
    search: Strategy,
    qids: Sequence[str],
    size: int = 20,
    seed: int = 0,
    chunk: int = 1000,
    **settings: object,
) -> Pool:
    """Return a pool of `size` negatives for each of `qids`.

    Candidates are rejected, and counted, if they are a positive of the question, have a positive's text, or
    hold an answer. Rejections do not shrink the pool: the ranking is followed further down, and where it ends
    (BM25 ranks only passages that share a word) random passages fill the rest.

    Parameters
    ----------
    passages : where to mine; give `data.training_corpus()`, so that no test passage is seen in training
    search : a strategy, that is a function of (question texts, depth) that returns rankings and scores
    seed : for the random top-up
    chunk : questions ranked at a time
    settings : more entries for the pool's header

    Raises
    ------
    DataError : the corpus has fewer than `size` passages that may be negatives of a question
    """
    audit: dict[str, Counter] = {reason: Counter() for reason in REASONS}
    negatives: dict[str, list[dict]] = {}
    with tqdm(total=len(qids), desc="mining", delay=2, leave=False) as bar:
        for start in range(0, len(qids), chunk):
            waiting, depth = list(qids[start : start + chunk]), 2 * size + 20
            while waiting:
                depth = min(depth, len(passages))
                rankings, scores = search([data.queries[qid].text for qid in waiting], depth)
                short = []
                for qid, ranking, values in zip(waiting, rankings, scores, strict=True):
                    entries, counted = _filter(data, passages, qid, ranking, values, size)
                    if len(entries) < size and len(ranking) >= depth and depth < len(passages):
                        short.append(qid)  # there is more further down
                        continue
                    for reason, rank in counted:
                        audit[reason][rank] += 1
                    negatives[qid] = entries + _top_up(data, passages, qid, entries, size, seed)
                waiting, depth = short, depth * 4
            bar.update(len(qids[start : start + chunk]))
    settings = {"size": size, "seed": seed, "data": data.fingerprint, **settings}
    in_order = {qid: negatives[qid] for qid in qids}
    return Pool(in_order, settings, {reason: dict(sorted(counts.items())) for reason, counts in audit.items()})


def _rejection(data: RetrievalData, passages: PassageIndex, qid: str) -> Callable[[int], str]:
    """Return the function from a passage's row to the reason why it is no negative of `qid`, or "kept"."""
    own = {passages.row[pid] for pid in data.qrels.get("train", {}).get(qid, ()) if pid in passages.row}
    same = {passages.normalized[row] for row in own}
    needles = normalize_all(data.queries[qid].answers)

    def reason(row: int) -> str:
        text = passages.normalized[row]
        if row in own:
            return "positive"
        if text in same:
            return "identical text"
        return "holds an answer" if any(needle in text for needle in needles) else "kept"

    return reason


def _filter(data, passages, qid, ranking, scores, size) -> tuple[list[dict], list[tuple[str, int]]]:
    entries, counted, reason = [], [], _rejection(data, passages, qid)
    for rank, (row, score) in enumerate(zip(ranking, scores, strict=True), start=1):
        if len(entries) == size:
            break
        why = reason(int(row))
        counted.append((why, rank))
        if why == "kept":
            entries.append({"pid": passages.ids[row], "rank": rank, "score": round(float(score), 4)})
    return entries, counted


def _top_up(data, passages, qid, entries, size, seed) -> list[dict]:
    if len(entries) == size:
        return []
    reason, have = _rejection(data, passages, qid), {passages.row[entry["pid"]] for entry in entries}
    more: list[dict] = []
    for row in random.Random(f"{seed} {qid}").sample(range(len(passages)), len(passages)):
        if len(entries) + len(more) == size:
            return more
        if row not in have and reason(row) == "kept":
            more.append({"pid": passages.ids[row], "rank": 0, "score": 0.0})
    if len(entries) + len(more) < size:
        raise DataError(f"question {qid!r}: only {len(entries) + len(more)} of {len(passages)} passages can be "
                        f"negatives, {size} were asked for; lower pool_size or add passages")  # fmt: skip
    return more
