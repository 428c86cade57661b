"""The highest of many scores, exactly, with equal ones in a fixed order."""

import numpy as np
import torch
from torch import Tensor

MAX_SCORES = {"cpu": 2**22, "cuda": 2**25}  # scores in memory at a time; 16 MiB stay in a CPU's caches
QUESTIONS = 512  # whose scores are computed together


def best_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return columns and values of the `k` highest of each row of `scores` [Q, P], equal ones in the columns' order.

    torch.topk leaves the order of equal scores open, and which of them are among the first k. Only the questions with
    equal scores at that boundary are looked at twice.
    """
    k = min(k, scores.shape[1])
    columns = scores.topk(min(k + 1, scores.shape[1]), sorted=False).indices.sort().values
    values, order = scores.gather(1, columns).sort(stable=True, descending=True)
    columns = columns.gather(1, order)
    if 0 < k < scores.shape[1]:
        for row in (values[:, k - 1] == values[:, k]).nonzero().flatten():
            better = (values[row] > values[row, k]).sum()
            tied = (scores[row] == values[row, k]).nonzero().flatten()
            columns[row, better:k] = tied[: k - better]
    return columns[:, :k], values[:, :k]


def nearest(queries: Tensor, passages: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and dot products of the `k` passages [P, D] nearest to each question [Q, D], as `best_k` of all.

    It runs where the passages are. They are multiplied block by block, and of a block only those count that beat the
    k-th best of an earlier one, which are soon very few; they are sorted in when there are enough of them. Scores are
    equal if all their bits are: the last one of the same product may differ from block to block.
    """
    parts = [_nearest(part.to(passages.device), passages, k) for part in queries.split(QUESTIONS)]
    rows, scores = (torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True))
    return rows, scores


def _nearest(queries: Tensor, passages: Tensor, k: int) -> tuple[Tensor, Tensor]:
    block = max(1, k, MAX_SCORES[passages.device.type] // max(1, len(queries)))
    first, *others = passages.split(block)
    rows, values = best_k(queries @ first.T, k)
    found, start = [], len(first)
    for part in others if k else ():
        scores = queries @ part.T
        better = scores > values[:, -1:]  # an equal score of a later passage ranks behind
        places = torch.from_numpy(np.flatnonzero(better)) if better.is_cpu else better.flatten().nonzero().flatten()
        question, column = places // len(part), places % len(part)
        found.append((question, column + start, scores.flatten()[places]))
        start += len(part)
        if start == len(passages) or sum(len(new) for new, _, _ in found) > 2 * values.numel():
            rows, values = _sorted_in(rows, values, found)
            found = []
    return rows, values


def _sorted_in(rows: Tensor, values: Tensor, found: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return the best of `rows` and `values` [Q, k] and of triples (question, row, value) in the order of rows."""
    known = torch.arange(len(rows), device=rows.device).repeat_interleave(rows.shape[1])
    triples = [(known, rows.flatten(), values.flatten()), *found]
    question, row, value = (torch.cat(part) for part in zip(*triples, strict=True))
    order = value.argsort(descending=True, stable=True)
    order = order[question[order].argsort(stable=True)]  # question by question, the best first
    counts = question.bincount(minlength=len(rows))
    rank = torch.arange(len(order), device=rows.device) - (counts.cumsum(0) - counts)[question[order]]
    best = order[rank < rows.shape[1]].view(rows.shape)
    return row[best], value[best]
