"""What looks wrong, said in a sentence: with a training's history; with a run whose Hit@K is 0, its data or corpus."""

from collections.abc import Iterable, Sequence

import numpy as np

from helpers.answers import normalize_all
from helpers.base.errors import shorten
from helpers.dataset import PassageIndex, RetrievalData
from helpers.retrieval import Run


def diagnose(history: Sequence[dict], window: int = 20, contrastive: bool = True, ended: bool = True) -> list[str]:
    """Return a sentence for each thing that looks wrong in a history; none if all is well.

    A contrastive loss at `chance`, the mean of ln(candidates), has learnt nothing; one at 0 was not asked anything.
    Whether training helped can be told only when it has `ended`.
    """
    last = [entry for entry in history if "loss" in entry][-window:]
    scores = {entry["step"]: entry["dev"] for entry in history if "dev" in entry}
    found = []
    if contrastive and len(last) == window:
        loss, chance = (sum(entry[name] for entry in last) / window for name in ("loss", "chance"))
        if loss < 1e-4:
            found.append(f"the loss is {loss:.1e}: the positives can be told without reading. Are there negatives? "
                         "Look at in_batch, hard_negatives, batch_size and masks")  # fmt: skip
        if abs(loss - chance) < 0.02 * chance:
            found.append(f"the loss stays at {loss:.2f}, guessing gives {chance:.2f}: all texts get one vector "
                         "(learning_rate too high), nothing moves (too low), or the positives are wrong")  # fmt: skip
    if ended and len(scores) > 1 and max(scores, key=scores.get) == 0:
        after = max(score for step, score in scores.items() if step > 0)
        verdict = "made dev worse" if after < scores[0] else "did not make dev better"
        found.append(f"training {verdict} ({scores[0]:.3f} before, at best {after:.3f} after): the untrained "
                     "model was kept; lower learning_rate, or look at the negatives")  # fmt: skip
    return found


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
        return [f"{run.name}: {split!r} judges none of its questions; {why} "
                f"(the run asks {_first(run.qids)}, {split!r} judges {_first(qrels)})."]  # fmt: skip
    judged = {qid: qrels.get(qid, set()) for qid in run.qids}
    return [*_diagnose_data(judged, data, passages, split), *_diagnose_rankings(run, judged, passages)]


def _diagnose_data(judged: dict[str, set[str]], data: RetrievalData, passages: PassageIndex, split: str) -> list[str]:
    """Return what is wrong with answers and qrels; `judged` maps the run's questions to their relevant passages."""
    found = []
    if unjudged := [qid for qid in judged if qid not in data.qrels[split]]:
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
