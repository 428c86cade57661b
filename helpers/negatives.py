"""Pools of hard negatives: for every training question, passages that look right and are not.

`mine_pool` walks down a strategy's ranking, rejects what may be a positive after all, counts why, and keeps the
first `size`. pool.jsonl holds one header line with settings and audit, then one line a question.
"""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from helpers.answers import has_answer, holds, normalize_all
from helpers.base.errors import DataError, SettingError
from helpers.base.files import QUIET, display_path, write_jsonl
from helpers.dataset import PassageIndex, RetrievalData, positive_rows
from helpers.strategies import Ranked, Strategy

REASONS = ("kept", "positive", "identical text", "holds an answer", "outside the ranks", "too close to the positive")


@dataclass(frozen=True)
class Filters:
    """What keeps a candidate out of the pool, besides being a positive of the question or having its text.

    Attributes
    ----------
    answers : holding one of the question's answers
    first_rank, last_rank : a rank outside this window; ranks count from 1, last_rank 0 sets no end
    relative_margin : a score above this share of the lowest positive's score, e.g. 0.95; 0: off.
        Moreira et al. 2024 (NV-Retriever), https://arxiv.org/abs/2407.15831
    absolute_margin : a score less than this below the lowest positive's score; 0: off
    """

    answers: bool = True
    first_rank: int = 1
    last_rank: int = 0
    relative_margin: float = 0.0
    absolute_margin: float = 0.0

    def __post_init__(self):
        if self.first_rank < 1 or (self.last_rank and self.last_rank < self.first_rank):
            raise SettingError(f"first_rank={self.first_rank}, last_rank={self.last_rank}: no rank lies between them")
        if not (self.relative_margin >= 0 and self.absolute_margin >= 0):
            raise SettingError("relative_margin and absolute_margin are numbers from 0; 0 turns them off")

    def too_close(self, score: float, positive: float) -> bool:
        """Return whether a candidate scores so near the positive that it is probably one; NaN: unknown, so no."""
        relative = self.relative_margin > 0 and score > self.relative_margin * positive
        return relative or (self.absolute_margin > 0 and score > positive - self.absolute_margin)


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
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: not a pool ({error!r}); run notebook 02 again") from error
    if mined_from != data.fingerprint:
        raise DataError(f"{path} was mined from other data (fingerprint {mined_from}) than "
                        f"{display_path(data.folder)} ({data.fingerprint}); run notebook 02 again")  # fmt: skip
    return pool


def mine_pool(
    data: RetrievalData,
    passages: PassageIndex,
    rank: Strategy,
    qids: Sequence[str],
    size: int = 20,
    filters: Filters | None = None,
    seed: int = 0,
    chunk: int = 4096,
    **settings: object,
) -> Pool:
    """Return a pool of `size` negatives for each of `qids`.

    Rejected candidates do not shrink the pool: the ranking is followed further down, and where it ends (BM25 ranks
    only passages that share a word, a rank window closes) random passages fill the rest, with rank 0. If even those run
    out, as in a small corpus with a weak miner, those come back last that only their rank or the margin kept out.

    Parameters
    ----------
    rank : the strategy, see helpers.strategies
    passages : where to mine; give `data.training_corpus()`, so that no test passage is seen in training
    seed : for the random top-up
    chunk : questions ranked at a time
    settings : more entries for the pool's header, such as `strategy`, its name

    Raises
    ------
    DataError : the corpus has fewer than `size` passages that may be negatives of a question
    SettingError : `size` is below 1, or there is a margin and the strategy that `settings` name scores no positive
    """
    if size < 1:
        raise SettingError(f"pool_size={size}: a pool holds at least 1 negative for each question")
    filters = filters or Filters()
    audit: dict[str, Counter] = {reason: Counter() for reason in REASONS}
    negatives: dict[str, list[dict]] = {}
    with tqdm(total=len(qids), desc="mining", delay=2, disable=QUIET, leave=False) as bar:
        for start in range(0, len(qids), chunk):
            waiting, depth = list(qids[start : start + chunk]), 2 * size + 20 + filters.first_rank
            while waiting:
                depth = min(depth, len(passages))
                short = []
                ranked = rank(waiting, depth)
                if not negatives:
                    _check_margins(filters, settings.get("strategy"), ranked)
                for qid, *columns in zip(waiting, *ranked, strict=True):
                    entries, counted, seen = _filter(data, passages, qid, Ranked(*columns), size, filters)
                    ended = len(columns[0]) < depth or depth == len(passages) or 0 < filters.last_rank <= depth
                    if len(entries) < size and not ended:
                        short.append(qid)  # there is more further down
                        continue
                    for reason, place in counted:
                        audit[reason][place] += 1
                    negatives[qid] = entries + _top_up(data, passages, qid, entries, seen, size, filters, seed)
                waiting, depth = short, depth * 4
            bar.update(len(qids[start : start + chunk]))
    settings = {"size": size, "seed": seed, "data": data.fingerprint, "filters": asdict(filters), **settings}
    in_order = {qid: negatives[qid] for qid in qids}
    return Pool(in_order, settings, {reason: dict(sorted(counts.items())) for reason, counts in audit.items()})


def _check_margins(filters: Filters, strategy: object, ranked: Ranked) -> None:
    """Refuse a margin that can do nothing. A strategy without a name only stands beside others for comparison."""
    margins = {name: value for name, value in asdict(filters).items() if name.endswith("margin") and value}
    if margins and strategy and not any(np.isfinite(column).any() for column in ranked.positives):
        name, value = next(iter(margins.items()))
        raise SettingError(f"{name}={value}: strategy={strategy!r} scores no positive, so nothing can be too close "
                           f"to one; set {name} to 0, or use 'dense' or 'resa2'")  # fmt: skip


def _rejection(data: RetrievalData, passages: PassageIndex, qid: str, filters: Filters) -> Callable[[int], str]:
    """Return the function from a passage's row to the reason why it is no negative of `qid`, or "kept"."""
    own = set(positive_rows(data, passages, qid))
    same = {passages.normalized[row] for row in own}
    needles = normalize_all(data.queries[qid].answers) if filters.answers else []

    def reason(row: int) -> str:
        text = passages.normalized[row]
        if row in own:
            return "positive"
        if text in same:
            return "identical text"
        return "holds an answer" if holds(needles, text) else "kept"

    return reason


def _filter(
    data, passages, qid, ranked: Ranked, size: int, filters: Filters
) -> tuple[list[dict], list[tuple[str, int]], dict[int, None]]:
    """Return what is kept, (reason, rank) of every candidate looked at, and their rows in order of rank."""
    entries, counted, seen, reason = [], [], {}, _rejection(data, passages, qid, filters)
    for rank, (row, score, positive) in enumerate(zip(*ranked, strict=True), start=1):
        if len(entries) == size or 0 < filters.last_rank < rank:
            break
        why = "outside the ranks" if rank < filters.first_rank else reason(int(row))
        if why == "kept" and filters.too_close(score, positive):
            why = "too close to the positive"
        counted.append((why, rank))
        seen[int(row)] = None
        if why == "kept":
            entries.append({"pid": passages.ids[row], "rank": rank, "score": round(float(score), 4)})
    return entries, counted, seen


def _top_up(data, passages, qid, entries, seen: dict[int, None], size, filters, seed) -> list[dict]:
    """Return negatives that fill up the pool: at random from what was not seen, then the last of what was rejected."""
    if len(entries) == size:
        return []
    reason = _rejection(data, passages, qid, filters)
    more: list[dict] = []
    have = {passages.row[entry["pid"]] for entry in entries}
    unseen = (row for row in _shuffled(len(passages), random.Random(f"{seed} {qid}")) if row not in seen)
    for row in chain(unseen, (row for row in reversed(seen) if row not in have)):
        if len(entries) + len(more) == size:
            return more
        if reason(row) == "kept":
            more.append({"pid": passages.ids[row], "rank": 0, "score": 0.0})
    if len(entries) + len(more) < size:
        raise DataError(f"question {qid!r}: only {len(entries) + len(more)} of {len(passages)} passages can be "
                        f"negatives, {size} were asked for; lower pool_size or add passages")  # fmt: skip
    return more


def _shuffled(count: int, rng: random.Random) -> Iterator[int]:
    """Yield what `rng.sample(range(count), count)` holds, drawn one by one, so that a few of millions cost little."""
    moved: dict[int, int] = {}  # the pool of Fisher and Yates, but only where it is no longer in order
    for last in range(count - 1, -1, -1):
        drawn = rng.randrange(last + 1)
        yield moved.get(drawn, drawn)
        moved[drawn] = moved.get(last, last)


def false_negative_rate(pool: Pool, data: RetrievalData, passages: PassageIndex) -> float:
    """Return the share of a pool's negatives that hold an answer of their question: probably no negatives at all."""
    held = [
        has_answer(data.queries[qid].answers, passages.normalized[passages.row[entry["pid"]]])
        for qid, entries in pool.negatives.items()
        for entry in entries
    ]
    return sum(held) / max(1, len(held))


def churn(old: Pool, new: Pool) -> float:
    """Return the share of negatives of `new` that were not in the pool of the same question in `old`."""
    before = {qid: set(ids) for qid, ids in old.ids().items()}
    fresh = [pid not in before.get(qid, ()) for qid, ids in new.ids().items() for pid in ids]
    return sum(fresh) / max(1, len(fresh))
