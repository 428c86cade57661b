"""The forgetting ledger: what a training gained on its own data set, and what it gained or lost on others."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import ir_measures
import numpy as np
import pandas as pd
from ir_measures import nDCG

from helpers.base.errors import SettingError
from helpers.dataset import PassageIndex, RetrievalData
from helpers.evaluation import hit_ranks, own_rows
from helpers.reporting.plots import plot_differences
from helpers.reporting.report import Report, figure_png
from helpers.reporting.significance import bootstrap_interval
from helpers.retrieval import BM25, DenseIndex, Run, search_run

CUTOFFS = (1, 10)
CAPTION = (
    "{} in percent, and of the others the difference from it in points, with paired 95% intervals over questions. "
    "Hit@K by answer match, by qrels where no question has an answer; nDCG@10 by qrels."
)
Index = BM25 | DenseIndex


@dataclass
class Entry:
    """One data set of a ledger: its report, and nDCG@10 of each question by system, [Q]."""

    report: Report
    ndcg: dict[str, np.ndarray]

    def difference(self, system: str, measure: str) -> tuple[float, float, float]:
        """Return a measure of `system` minus the baseline's, its low and its high end, in points."""
        if measure.startswith("Hit@"):
            return self.report.difference(system, int(measure.removeprefix("Hit@")))
        gain = 100 * (self.ndcg[system] - self.ndcg[self.report.baseline])
        return float(gain.mean()), *bootstrap_interval(gain)

    def value(self, measure: str) -> float:
        """Return a measure of the baseline, in percent."""
        if measure.startswith("Hit@"):
            return 100 * self.report.estimate(self.report.baseline, int(measure.removeprefix("Hit@"))).mean
        return 100 * float(self.ndcg[self.report.baseline].mean())


@dataclass
class Ledger:
    """The same systems on several data sets; of them, the first is the one that was trained for.

    Raises a SettingError unless all entries have the same systems and the same baseline.
    """

    entries: dict[str, Entry]

    def __post_init__(self):
        kinds = {(*entry.report.ranks, entry.report.baseline) for entry in self.entries.values()}
        if len(kinds) > 1:
            raise SettingError(f"a ledger compares the same systems everywhere; there are {sorted(kinds)}")

    @property
    def _first(self) -> Report:
        return next(iter(self.entries.values())).report

    @property
    def measures(self) -> list[str]:
        """Hit@1, Hit@10 and nDCG@10, or fewer where a corpus has fewer than ten passages."""
        hits = [k for k in CUTOFFS if all(k <= entry.report.passages for entry in self.entries.values())]
        return [*(f"Hit@{k}" for k in hits), "nDCG@10"]

    @property
    def rivals(self) -> list[str]:
        """All systems but the baseline."""
        return [name for name in self._first.ranks if name != self._first.baseline]

    def table(self) -> pd.DataFrame:
        """Return one row per data set and system: the baseline's percent, the others' differences with intervals."""
        rows = []
        for name, entry in self.entries.items():
            about = f"{name} ({entry.report.questions:,} questions, {entry.report.passages:,} passages)"
            own = {measure: f"{entry.value(measure):.1f}" for measure in self.measures}
            rows.append({"data set": about, "system": self._first.baseline, **own})
            for system in self.rivals:
                found = {measure: entry.difference(system, measure) for measure in self.measures}
                told = {measure: "{:+.1f} [{:+.1f}, {:+.1f}]".format(*three) for measure, three in found.items()}
                rows.append({"data set": "", "system": system, **told})
        return pd.DataFrame(rows).set_index("data set")

    def as_dict(self) -> dict:
        """Return the same as numbers: data set -> baseline in percent, and each system's [difference, low, high]."""
        return {
            name: {
                "questions": entry.report.questions,
                "passages": entry.report.passages,
                self._first.baseline: {measure: entry.value(measure) for measure in self.measures},
                **{s: {measure: list(entry.difference(s, measure)) for measure in self.measures} for s in self.rivals},
            }
            for name, entry in self.entries.items()
        }

    def plot(self, measure: str = "Hit@10"):
        """Draw the differences from the baseline in one measure, a bar for each system and data set."""
        gains = {s: {name: e.difference(s, measure) for name, e in self.entries.items()} for s in self.rivals}
        axes = plot_differences(gains, self._first.baseline)
        axes.set_title(measure)
        return axes

    def parts(self) -> list:
        """Return what belongs into the report's pages: a heading, the table, the plot."""
        plot = figure_png(self.plot(self.measures[-2]))
        return ["On other data sets", (CAPTION.format(self._first.baseline), self.table()), ("elsewhere.png", plot)]


def judge(
    systems: Mapping[str, Callable[[Sequence[str]], Index]],
    data: RetrievalData,
    passages: PassageIndex,
    queries: Mapping[str, str],
    baseline: str,
    split: str = "test",
) -> Entry:
    """Search a data set by several systems, and return its entry of a ledger.

    Parameters
    ----------
    systems : name -> function from the texts of all passages to an index, such as `BM25`
    passages, queries : what is searched, and question id -> text of what is asked
    baseline : the system that differences are taken against
    split : whose qrels count
    """
    left_out, runs = own_rows(data, passages), []
    for name, build in systems.items():
        runs.append(search_run(name, build(passages.texts), queries, min(100, len(passages)), left_out))
    both = {run.name: hit_ranks(run, data, passages, split) for run in runs}
    answered = np.array([bool(data.queries[qid].answers) for qid in queries])
    by_answer, by_qrels = ({name: pair[place] for name, pair in both.items()} for place in (0, 1))
    cutoffs = tuple(k for k in CUTOFFS if k <= len(passages))
    settings = {"data": str(data.folder), "data_fingerprint": data.fingerprint, "split": split}
    report = Report(by_answer, by_qrels, len(passages), settings, answered, baseline, cutoffs, list(queries))
    return Entry(report, {run.name: ndcg_at_10(run, data, passages, split) for run in runs})


def ndcg_at_10(run: Run, data: RetrievalData, passages: PassageIndex, split: str) -> np.ndarray:
    """Return nDCG@10 of each question by qrels, [Q], as `ir-measures` computes it; 0 where none is judged."""
    qrels = [ir_measures.Qrel(qid, pid, 1) for qid in run.qids for pid in data.qrels[split].get(qid, ())]
    ranked = [
        ir_measures.ScoredDoc(qid, passages.ids[row], -place)  # by place: scores may be equal
        for qid, ranking in zip(run.qids, run.rankings, strict=True)
        for place, row in enumerate(ranking[:10])
    ]
    found = {value.query_id: value.value for value in ir_measures.iter_calc([nDCG @ 10], qrels, ranked)}
    return np.array([found.get(qid, 0.0) for qid in run.qids])
