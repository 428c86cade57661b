"""Training rows, and the batches made from them.

A row is a question, its positive, the given negative and a few hard negatives sampled from the question's pool.
`make_batch` turns rows into tensors: every distinct passage once, and a mask of who may be a negative for whom.
"""

import hashlib
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from helpers.answers import which_hold
from helpers.base.errors import DataError
from helpers.base.files import display_path
from helpers.dataset import PassageIndex, RetrievalData, positive_rows


@dataclass(frozen=True)
class Row:
    """One training example; passages are row numbers of a PassageIndex."""

    qid: str
    positive: int
    given: int | None  # the given negative
    pool: tuple[int, ...] = ()  # hard negatives to sample from


class TrainingRows(torch.utils.data.Dataset):
    """Rows whose hard negatives are drawn anew in every epoch, reproducibly from (seed, epoch, row).

    Parameters
    ----------
    pool : query id -> ids of its hard negatives; its questions are trained on. None: all train questions
    hard_negatives : how many to sample from the pool; 0 trains with in-batch negatives alone
    given_negative : use the negative that the data set gives; a row without one samples one more instead

    Raises
    ------
    DataError : a pool holds fewer negatives than are sampled, or an unknown passage
    """

    def __init__(
        self,
        data: RetrievalData,
        passages: PassageIndex,
        pool: dict[str, list[str]] | None = None,
        hard_negatives: int = 2,
        given_negative: bool = True,
        seed: int = 0,
    ):
        self.data, self.passages, self.queries = data, passages, data.queries
        self.hard_negatives, self.seed, self.epoch = hard_negatives, seed, 0
        self.extra = given_negative and hard_negatives > 0  # a row without a given negative samples one more
        self.positives = {qid: set(positive_rows(data, passages, qid)) for qid in data.qrels.get("train", {})}
        self.given = defaultdict(list)
        for qid, positive, negative in data.triples if given_negative else ():
            self.given[qid, passages.row[positive]].append(passages.row[negative])
        self.set_pool(dict.fromkeys(self.positives, ()) if pool is None else pool)

    def set_pool(self, pool: dict[str, list[str]]) -> None:
        """Make the rows from `pool`; call it between two steps to train on newly mined negatives."""
        self.rows, self.pool = [], pool
        for qid, ids in pool.items():
            if unknown := [pid for pid in ids if pid not in self.passages.row]:
                raise DataError(f"pool: question {qid!r} has the unknown passage {unknown[0]!r}; mine the pool again")
            numbers = [self.passages.row[pid] for pid in ids]
            for positive in sorted(self.positives.get(qid, ())):
                for negative in self.given[qid, positive] or [None]:
                    others = tuple(number for number in numbers if number != negative)
                    need = self.hard_negatives + (self.extra and negative is None)
                    if len(others) < need:
                        raise DataError(
                            f"pool: question {qid!r} has {len(others)} negatives, {need} are sampled; "
                            "mine a larger pool or lower hard_negatives"
                        )
                    self.rows.append(Row(qid, positive, negative, others))
        if not self.rows:
            where = display_path(self.data.folder)
            raise DataError(f"{where}: no training row; qrels/train.tsv and the pool share no question")

    def fingerprint(self) -> str:
        """Return a short sha256 of the rows and of how their negatives are drawn, except for their number."""
        return hashlib.sha256(repr((self.rows, self.extra, self.seed)).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, size: int, generator: torch.Generator) -> list[list[int]]:
        """Return the numbers of all rows in batches of `size`, in a random order; the rows that are left over wait."""
        order = torch.randperm(len(self), generator=generator).tolist()
        return [order[start : start + size] for start in range(0, len(order) - size + 1, size)]

    def collate(self, rows: Sequence[Row], encoder, in_batch: bool, masks: Sequence[str]) -> "Batch":
        """Return the tensors of some of these rows; see `make_batch`."""
        return make_batch(rows, self, encoder, in_batch, masks)

    def __getitem__(self, number: int) -> Row:
        """Return row `number` with `pool` cut to the negatives sampled for this epoch."""
        row = self.rows[number]
        count = self.hard_negatives + (self.extra and row.given is None)
        drawn = random.Random(f"{self.seed} {self.epoch} {number}").sample(row.pool, count)
        return replace(row, pool=tuple(drawn))


@dataclass
class Batch:
    """Tensors of B rows whose passages are P distinct ones, sorted by length.

    Attributes
    ----------
    queries : padded token ids and mask, [B, L]
    passages : the same for groups of passages of like length, P in all
    positive : column of each row's positive, [B]
    allowed : [B, P], True where a passage counts for a row: its positive, and every true negative
    qids : query id of each row
    columns : row number in the PassageIndex of each passage
    """

    queries: dict[str, Tensor]
    passages: list[dict[str, Tensor]]
    positive: Tensor
    allowed: Tensor
    qids: list[str]
    columns: list[int]

    def pin_memory(self) -> "Batch":
        """Return the same in page-locked memory, from where a GPU copies faster; a DataLoader calls this."""

        def pinned(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: tensor.pin_memory() for name, tensor in inputs.items()}

        passages = [pinned(group) for group in self.passages]
        positive, allowed = self.positive.pin_memory(), self.allowed.pin_memory()
        return replace(self, queries=pinned(self.queries), passages=passages, positive=positive, allowed=allowed)


GROUP_TOKENS = {"cpu": 2048, "cuda": 4096}  # enough for a GPU, and enough groups for several
MASKS = ("positives", "text", "answers")  # the three kinds of false negative that can be masked


def candidate_mask(
    rows: Sequence[Row], columns: list[int], source: TrainingRows, in_batch: bool = True, masks: Sequence[str] = MASKS
) -> Tensor:
    """Return which passages count for which row: its positive and its true negatives, [B, P] of bool.

    The question itself never counts as a passage. Without `in_batch` only a row's own negatives count. `masks` names
    the kinds of false negative to leave out: other "positives" of the question, a "text" identical to that of a
    positive, a passage that holds one of its "answers". Texts and answers are compared as `source.passages` says.
    """
    passages = source.passages
    texts = [passages.normalized[column] for column in columns]
    place, same = {column: number for number, column in enumerate(columns)}, defaultdict(list)
    for number, text in enumerate(texts):
        same[text].append(number)
    needles = [passages.needles(source.queries[row.qid].answers) if "answers" in masks else [] for row in rows]
    allowed = ~which_hold(needles, texts)
    for number, row in enumerate(rows):
        others = source.positives[row.qid]
        for positive in others if "text" in masks else ():
            allowed[number, same.get(passages.normalized[positive], [])] = False
        allowed[number, [place[other] for other in others if other in place]] = "positives" not in masks
        copies = passages.rows_of(source.data.copies.get(row.qid, ()))
        allowed[number, [place[copy] for copy in copies if copy in place]] = False
        allowed[number, place[row.positive]] = True
        if not in_batch:
            own = {row.positive, row.given, *row.pool}
            allowed[number] &= [column in own for column in columns]
    return torch.from_numpy(allowed)


def make_batch(
    rows: Sequence[Row],
    source: TrainingRows,
    encoder,
    in_batch: bool = True,
    masks: Sequence[str] = MASKS,
    group_tokens: int = 0,
) -> Batch:
    """Return the tensors of some rows: each distinct passage once, in groups of like length.

    A group holds at most `group_tokens` tokens with its padding, and at least one passage; 0: what suits the device.
    Small groups have little padding and stay in a CPU's caches; a GPU wants enough to do at a time.
    """
    group_tokens = group_tokens or GROUP_TOKENS[encoder.device.type]
    distinct = list(dict.fromkeys(n for row in rows for n in (row.positive, row.given, *row.pool) if n is not None))
    texts = [source.passages.texts[n] for n in distinct]
    tokens = dict(zip(distinct, encoder.tokenize(texts, "passage"), strict=True))
    columns = sorted(distinct, key=lambda n: len(tokens[n]))
    place = {column: number for number, column in enumerate(columns)}
    groups: list[list[int]] = []
    for column in columns:
        if not groups or (len(groups[-1]) + 1) * encoder.padded(len(tokens[column])) > group_tokens:
            groups.append([])
        groups[-1].append(column)
    return Batch(
        queries=encoder.pad(encoder.tokenize([source.queries[row.qid].text for row in rows], "query"), "query"),
        passages=[encoder.pad([tokens[n] for n in group], "passage") for group in groups],
        positive=torch.tensor([place[row.positive] for row in rows]),
        allowed=candidate_mask(rows, columns, source, in_batch, masks),
        qids=[row.qid for row in rows],
        columns=columns,
    )
