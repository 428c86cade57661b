"""Pools of hard negatives: for every training question, passages that look right and are not.

`mine_pool` walks down a strategy's ranking, rejects what may be a positive after all, counts why, and keeps the
first `size`. pool.jsonl holds a header line with settings and audit, then one line per question.
"""

import json
import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from helpers.answers import holds
from helpers.base.errors import DataError, SettingError
from helpers.base.files import QUIET, display_path, write_jsonl
from helpers.base.shingles import overlap, word_triples
from helpers.dataset import PassageIndex, RetrievalData, positive_rows
from helpers.strategies import Ranked, Strategy

REASONS = (
    "kept",
    "positive",
    "the question itself",
    "identical text",
    "nearly a positive",
    "holds an answer",
    "outside the ranks",
    "too close to the positive",
)
CHUNK = 4096  # questions that are ranked at a time


@dataclass(frozen=True)
class MiningSettings:
    """How many negatives a pool holds, and what keeps a candidate out, besides being a positive or having its text.

    Attributes
    ----------
    size : negatives of each question
    seed : for the random ones that fill up a pool
    answers : reject what holds one of the question's answers
    first_rank, last_rank : reject ranks outside this window; ranks count from 1, and a last_rank of 0 sets no end
    relative_margin : reject scores above this share of the lowest positive's score, e.g. 0.95; 0: off.
        Moreira et al. 2024 (NV-Retriever), https://arxiv.org/abs/2407.15831
    absolute_margin : reject scores less than this below the lowest positive's score; 0: off
    overlap : reject what shares at least this share of its word triples with a positive, or the positive with it, as
        overlapping pieces of a document do; 0: off
    """

    size: int = 20
    seed: int = 0
    answers: bool = True
    first_rank: int = 1
    last_rank: int = 0
    relative_margin: float = 0.0
    absolute_margin: float = 0.0
    overlap: float = 0.0

    def __post_init__(self):
        if self.size < 1:
            raise SettingError(f"pool_size={self.size}: a pool holds at least 1 negative for each question")
        if self.first_rank < 1 or (self.last_rank and self.last_rank < self.first_rank):
            raise SettingError(f"first_rank={self.first_rank}, last_rank={self.last_rank}: no rank lies between them")
        for name in ("relative_margin", "absolute_margin"):
            if not 0 <= getattr(self, name) < math.inf:
                raise SettingError(f"{name}={getattr(self, name)}: use a number from 0; 0 turns it off")
        if not 0 <= self.overlap <= 1:
            raise SettingError(f"overlap={self.overlap}: use a share between 0 and 1; 0 turns it off")

    def too_close(self, score: float, positive: float) -> bool:
        """Return whether a candidate scores so near the positive that it is probably one; NaN: unknown, so no."""
        relative = self.relative_margin > 0 and score > self.relative_margin * positive
        return relative or (self.absolute_margin > 0 and score > positive - self.absolute_margin)


@dataclass
class Pool:
    """Hard negatives of every question, how they were mined, and what was rejected.

    Attributes
    ----------
    negatives : question id -> list of {"pid", "rank", "score"}, best first; rank 0 marks one drawn at random
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
        header = {"settings": self.settings, "questions": len(self.negatives), "audit": self.audit}
        rows = ({"qid": qid, "negatives": entries} for qid, entries in self.negatives.items())
        write_jsonl(path, [header, *rows])


def load_pool(path: str | Path, data: RetrievalData) -> Pool:
    """Read pool.jsonl; raise a DataError if it is missing, not a pool, cut off, or was mined from other data."""
    try:
        with Path(path).open(encoding="utf-8") as file:
            header, *rows = (json.loads(line) for line in file)
        audit = {reason: {int(k): v for k, v in counts.items()} for reason, counts in header["audit"].items()}
        pool = Pool({row["qid"]: row["negatives"] for row in rows}, header["settings"], audit)
        pool.ids()
        mined_from, questions = pool.settings["data"], header["questions"]
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing; run notebook 02 with the same run_dir first") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: not a pool of this version ({error!r}); run notebook 02 again") from error
    if len(pool.negatives) != questions:
        found = len(pool.negatives)
        raise DataError(f"{path} holds {found} of {questions} questions, so it was cut off; run notebook 02 again")
    if mined_from != data.fingerprint:
        here = f"{display_path(data.folder)} ({data.fingerprint})"
        raise DataError(f"{path} was mined from other data ({mined_from}) than {here}; run notebook 02 again")
    return pool


def mine_pool(
    data: RetrievalData,
    passages: PassageIndex,
    rank: Strategy,
    qids: Sequence[str],
    settings: MiningSettings = MiningSettings(),
    about: Mapping | None = None,
) -> Pool:
    """Return a pool of negatives for each of `qids`.

    Rejected candidates do not shrink the pool: the ranking is followed further down. Where it ends, as BM25's does, or
    the rank window closes, random passages fill the rest, with rank 0. If even those run out, as in a small corpus with
    a weak miner, the last of those come back that only their rank or the margin kept out.

    Parameters
    ----------
    passages : where to mine; give `data.training_corpus()`, so that no test passage is seen in training
    rank : the strategy, see `helpers.strategies`
    about : more entries for the pool's header, such as {"strategy": "bm25"}

    Raises
    ------
    DataError : the corpus has fewer passages that may be negatives of a question than were asked for
    SettingError : there is a margin, and the strategy that `about` names scores no positive
    """
    audit: dict[str, Counter] = {reason: Counter() for reason in REASONS}
    negatives: dict[str, list[dict]] = {}
    about = about or {}
    with tqdm(total=len(qids), desc="mining", delay=2, disable=QUIET, leave=False) as bar:
        for start in range(0, len(qids), CHUNK):
            waiting, depth = qids[start : start + CHUNK], 2 * settings.size + 20 + settings.first_rank
            while waiting:
                depth = min(depth, len(passages))
                ranked, deeper = rank(waiting, depth), []
                if not negatives:  # the first ranking
                    _check_margins(settings, about.get("strategy"), ranked)
                for qid, *columns in zip(waiting, *ranked, strict=True):
                    choice = _Choice(data, passages, qid, settings)
                    choice.walk(Ranked(*columns))
                    ended = len(columns[0]) < depth or depth == len(passages) or 0 < settings.last_rank <= depth
                    if choice.missing and not ended:
                        deeper.append(qid)
                        continue
                    negatives[qid] = choice.filled_up()
                    for place, verdict in enumerate(choice.verdicts.values(), start=1):
                        audit[verdict][place] += 1
                waiting, depth = deeper, depth * 4
            bar.update(len(qids[start : start + CHUNK]))
    in_order = {qid: negatives[qid] for qid in qids}
    by_rank = {reason: dict(sorted(counts.items())) for reason, counts in audit.items()}
    return Pool(in_order, {"data": data.fingerprint, **asdict(settings), **about}, by_rank)


def _check_margins(settings: MiningSettings, strategy: object, ranked: Ranked) -> None:
    """Refuse a margin that can do nothing. A strategy without a name only stands beside others for comparison."""
    margins = {name: value for name, value in asdict(settings).items() if name.endswith("margin") and value}
    if margins and strategy and not any(np.isfinite(column).any() for column in ranked.positives):
        name, value = next(iter(margins.items()))
        why = f"strategy={strategy!r} scores no positive, so nothing can be too close to one"
        raise SettingError(f"{name}={value}: {why}; set {name} to 0, or use 'dense' or 'resa2'")


class _Choice:
    """The choice of one question's negatives: `entries`, and the verdict on every row looked at, in order of rank."""

    def __init__(self, data: RetrievalData, passages: PassageIndex, qid: str, settings: MiningSettings):
        self.qid, self.passages, self.settings = qid, passages, settings
        self.positives = set(positive_rows(data, passages, qid))
        self.copies = passages.rows_of(data.copies.get(qid, ()))
        self.same = {passages.normalized[row] for row in self.positives}
        self.parts = [word_triples(text) for text in self.same] if settings.overlap else []
        self.needles = passages.needles(data.queries[qid].answers) if settings.answers else []
        self.entries: list[dict] = []
        self.verdicts: dict[int, str] = {}

    @property
    def missing(self) -> int:
        return self.settings.size - len(self.entries)

    def verdict(self, row: int) -> str:
        """Return why a passage is no negative whatever its rank and score, or "kept"."""
        text = self.passages.normalized[row]
        if row in self.positives:
            return "positive"
        if row in self.copies:
            return "the question itself"
        if text in self.same:
            return "identical text"
        if self.parts and (words := word_triples(text)):
            if max(overlap(words, part) for part in self.parts) >= self.settings.overlap:
                return "nearly a positive"
        return "holds an answer" if holds(self.needles, text) else "kept"

    def walk(self, ranked: Ranked) -> None:
        """Take candidates from a ranking until there are enough or the rank window closes."""
        for rank, (row, score, positive) in enumerate(zip(*ranked, strict=True), start=1):
            if not self.missing or 0 < self.settings.last_rank < rank:
                break
            verdict = "outside the ranks" if rank < self.settings.first_rank else self.verdict(int(row))
            if verdict == "kept" and self.settings.too_close(score, positive):
                verdict = "too close to the positive"
            self.verdicts[int(row)] = verdict
            if verdict == "kept":
                self.entries.append({"pid": self.passages.ids[row], "rank": rank, "score": round(float(score), 4)})

    def filled_up(self) -> list[dict]:
        """Return the entries, with what was missing: random passages not looked at, then the last of the rejected."""
        rng = random.Random(f"{self.settings.seed} {self.qid}")
        unseen = (row for row in _shuffled(len(self.passages), rng) if row not in self.verdicts)
        rejected = (row for row in reversed(self.verdicts) if self.verdicts[row] != "kept")
        more = chain(unseen, rejected)
        while self.missing and (row := next(more, None)) is not None:
            if self.verdict(row) == "kept":
                self.entries.append({"pid": self.passages.ids[row], "rank": 0, "score": 0.0})
        if self.missing:
            found = f"only {len(self.entries)} of {len(self.passages)} passages can be negatives"
            asked = f"{self.settings.size} were asked for; lower pool_size or add passages"
            raise DataError(f"question {self.qid!r}: {found}, {asked}")
        return self.entries


def _shuffled(count: int, rng: random.Random) -> Iterator[int]:
    """Yield what `rng.sample(range(count), count)` holds, drawn one by one, so that a few of millions cost little."""
    moved: dict[int, int] = {}  # the pool of Fisher and Yates, but only where it is no longer in order
    for last in range(count - 1, -1, -1):
        drawn = rng.randrange(last + 1)
        yield moved.get(drawn, drawn)
        moved[drawn] = moved.get(last, last)
