"""What looks wrong with a run, in a sentence each, and what a pool of negatives is like, in numbers."""

from collections.abc import Iterable

import numpy as np

from helpers.answers import holds
from helpers.base.errors import shorten
from helpers.base.shingles import overlap, word_triples
from helpers.dataset import PassageIndex, RetrievalData, positive_rows
from helpers.negatives import Pool
from helpers.retrieval import Run


def diagnose_run(run: Run, data: RetrievalData, passages: PassageIndex, split: str) -> list[str]:
    """Return a sentence for each thing that would make Hit@K of a run meaningless, often 0; none if all is well.

    What is wrong with the data gets the same sentence for every run; what is wrong with a run begins with its name.

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
        asked = f"the run asks {_first(run.qids)}, {split!r} judges {_first(qrels)}"
        return [f"{run.name}: {split!r} judges none of its questions; {why} ({asked})."]
    judged = {qid: qrels.get(qid, set()) for qid in run.qids}
    return [*_diagnose_data(judged, data, passages, split), *_diagnose_rankings(run, judged, passages)]


def _diagnose_data(judged: dict[str, set[str]], data: RetrievalData, passages: PassageIndex, split: str) -> list[str]:
    """Return what is wrong with answers and qrels; `judged` maps the run's questions to their relevant passages."""
    found = []
    if unjudged := [qid for qid in judged if qid not in data.qrels[split]]:
        found.append(
            f"{split!r} does not judge {len(unjudged):,} of {len(judged):,} questions, e.g. {_first(unjudged)}; "
            f"ask those of data.split_queries({split!r})."
        )
    answers = [data.queries[qid].answers for qid in judged if qid in data.queries]
    if not any(map(passages.needles, answers)):
        state = "all answers are empty" if any(answers) else "no question has an answer"
        found.append(
            f"In {split!r} {state}, so answer match finds nothing; add answers to queries.jsonl, "
            "or go by the qrels alone."
        )
    if lost := [pids for pids in judged.values() if pids and not any(pid in passages.row for pid in pids)]:
        wanted = set().union(*lost)
        why = f"the ids do not match (qrels name {_first(wanted)}, the corpus {_first(passages.ids)})"
        if any(pid in wanted for pid in data.corpus["_id"]):
            why = "the data set has them: wrong split, or eval_corpus leaves them out"
        found.append(
            f"Judged passages of {len(lost):,} of {len(judged):,} questions of {split!r} are not among the "
            f"{len(passages):,} that are searched; {why}."
        )
    return found


def _diagnose_rankings(run: Run, judged: dict[str, set[str]], passages: PassageIndex) -> list[str]:
    """Return the first thing that is wrong with the rankings themselves."""
    ranked = [(rows, scores) for rows, scores in zip(run.rankings, run.scores, strict=True) if len(rows)]
    several = [scores for rows, scores in ranked if len(rows) > 1]
    gold = [{passages.row[pid] for pid in judged[qid] if pid in passages.row} for qid in run.qids]
    collapsed = "the model seems to map every {} to one vector: it diverged, or its weights were not loaded"
    problem = ""
    if not ranked:
        problem = "no question has a passage; that is how a run file with other question ids is read"
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


def false_negative_rate(pool: Pool, data: RetrievalData, passages: PassageIndex) -> float:
    """Return the share of a pool's negatives that hold an answer of their question: probably no negatives at all."""
    held = []
    for qid, entries in pool.negatives.items():
        needles = passages.needles(data.queries[qid].answers)
        held += [holds(needles, passages.normalized[passages.row[entry["pid"]]]) for entry in entries]
    return sum(held) / max(1, len(held))


def near_positives(pool: Pool, data: RetrievalData, passages: PassageIndex, share: float = 0.5) -> int:
    """Return how many negatives of a pool have `share` of their word triples in common with a positive.

    They are overlapping pieces of a document, or copies with other punctuation: possible false negatives, which
    `MiningSettings.overlap` keeps out.
    """
    count = 0
    for qid, ids in pool.ids().items():
        parts = [word_triples(passages.normalized[row]) for row in positive_rows(data, passages, qid)]
        words = (word_triples(passages.normalized[row]) for row in passages.rows_of(ids))
        count += sum(max((overlap(own, part) for part in parts), default=0.0) >= share for own in words)
    return count


def churn(old: Pool, new: Pool) -> float:
    """Return the share of negatives of `new` that were not in the pool of the same question in `old`."""
    before = {qid: set(ids) for qid, ids in old.ids().items()}
    fresh = [pid not in before.get(qid, ()) for qid, ids in new.ids().items() for pid in ids]
    return sum(fresh) / max(1, len(fresh))
