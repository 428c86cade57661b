"""The Hit@K report: one object that shows itself in JupyterLab and saves itself for people and programs."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from helpers.base.errors import SettingError
from helpers.base.files import write_json, write_text
from helpers.evaluation import hit_at_k
from helpers.reporting.pages import html_table, settings_table, write_pages
from helpers.reporting.plots import plot_differences, plot_first_hits, plot_hit_curve
from helpers.reporting.significance import Estimate, estimate, holm

CUTOFFS = (1, 10, 100)  # compared and tested
ALL_CUTOFFS = (1, 5, 10, 20, 50, 100)  # reported, as far as the corpus is large enough
LEVEL = 0.05  # a difference with a corrected p-value up to this is called significant


@dataclass(repr=False)
class Report:
    """Hit@K of several systems on the same questions and passages.

    Attributes
    ----------
    ranks : system -> rank of the first passage that holds an answer, [Q]; inf if none. With several seeds [S, Q]
    relevant_ranks : system -> rank of the first judged passage, [Q] or [S, Q]
    passages : size of the searched corpus
    settings : what produced the numbers, for the reader
    answered : which questions have an answer string, [Q]; the others count under qrels alone. None: all.
        If no question has one, `ranks` are those by qrels
    baseline : the system that differences are taken against
    qids : the questions' ids; with them `save` also writes ranks.tsv, which `helpers.reporting.comparison` reads
    groups : one row per question, one categorical column per way to group them, see notebook 04
    speed : system -> measure and unit -> value

    Raises
    ------
    SettingError : K is larger than the corpus, or the baseline is unknown
    """

    ranks: dict[str, np.ndarray]
    relevant_ranks: dict[str, np.ndarray]
    passages: int
    settings: dict = field(default_factory=dict)
    answered: np.ndarray | None = None
    baseline: str = "zero-shot"
    cutoffs: tuple[int, ...] = CUTOFFS
    qids: Sequence[str] = ()
    groups: pd.DataFrame | None = None
    speed: dict[str, dict[str, float]] = field(default_factory=dict)

    def __post_init__(self):
        if max(self.cutoffs) > self.passages:
            raise SettingError(f"Hit@{max(self.cutoffs)} needs as many passages; the corpus has {self.passages}")
        if self.baseline not in self.ranks:
            raise SettingError(f"baseline {self.baseline!r} is none of the systems {list(self.ranks)}")
        self.all_cutoffs = sorted({*self.cutoffs, *(k for k in ALL_CUTOFFS if k <= self.passages)})
        self.seeds = {name: len(np.atleast_2d(ranks)) for name, ranks in self.ranks.items()}
        self.questions = np.shape(next(iter(self.relevant_ranks.values())))[-1]
        every = np.ones(self.questions, dtype=bool)
        self.match, self.counted = "an answer", every if self.answered is None else self.answered
        if not self.counted.any():
            self.ranks, self.match, self.counted = self.relevant_ranks, "a judged passage", every
        self.ranks = {name: values[..., self.counted] for name, values in self.ranks.items()}

    def estimate(self, name: str, k: int, against: str = "", among: np.ndarray | slice = slice(None)) -> Estimate:
        """Return Hit@k of a system, or minus that of `against`, as shares; `among` selects questions that count."""
        hits = self.ranks[name][..., among] <= k
        return estimate(hits, self.ranks[against][..., among] <= k if against else None)

    def difference(self, name: str, k: int, against: str = "") -> tuple[float, float, float]:
        """Return Hit@k of `name` minus that of `against` (the baseline), its low and its high end, in points."""
        return tuple(100 * value for value in self.estimate(name, k, against or self.baseline)[:3])

    def as_dict(self) -> dict:
        """Return the content of report.json; hits are shares between 0 and 1."""
        systems = []
        for name, ranks in self.ranks.items():
            system = {"name": name, "hits": {}}
            for k in self.all_cutoffs:
                hit = self._shares(name, k) | {"qrels": hit_at_k(self.relevant_ranks[name], k)}
                if self.seeds[name] > 1:
                    hit["sd"] = float((ranks <= k).mean(1).std(ddof=1))
                system["hits"][str(k)] = hit
            system |= {"seeds": self.seeds[name]} if self.seeds[name] > 1 else {}
            system |= {"speed": self.speed[name]} if name in self.speed else {}
            systems.append(system)
        return {
            "systems": systems,
            "questions": self.questions,
            "questions_without_answers": 0 if self.answered is None else int((~self.answered).sum()),
            "passages": self.passages,
            "settings": self.settings,
            "significance": self.significance(),
            "breakdown": {column: self._grouped(column) for column in self._columns()},
        }

    def significance(self) -> dict:
        """Return the p-value of every difference to the baseline, and the same after Holm's correction."""
        pairs = [(name, k) for name in self.ranks if name != self.baseline for k in self.cutoffs]
        raw = [self.estimate(name, k, self.baseline).p for name, k in pairs]
        tests = {name: {"name": name, "hits": {}} for name, _ in pairs}
        for (name, k), p, corrected in zip(pairs, raw, holm(raw), strict=True):
            tests[name]["hits"][str(k)] = {"p": p, "p_holm": float(corrected)}
        return {"baseline": self.baseline, "level": LEVEL, "comparisons": len(pairs), "systems": list(tests.values())}

    def table(self) -> pd.DataFrame:
        """Return Hit@K in percent with 95% intervals, one row per system; with several seeds ± their deviation."""
        rows = {}
        for system in self.as_dict()["systems"]:
            hits = {k: system["hits"][str(k)] for k in self.cutoffs}
            rows[system["name"]] = {f"Hit@{k}": _share(hit) for k, hit in hits.items()}
            rows[system["name"]] |= {f"qrels @{k}": f"{100 * hit['qrels']:.1f}" for k, hit in hits.items()}
        return _frame(rows, "system")

    def every_k(self) -> pd.DataFrame:
        """Return Hit@K in percent by answer / by qrels for every K, one row per system."""
        rows = {}
        for name in self.ranks:
            pairs = {k: (self.estimate(name, k).mean, hit_at_k(self.relevant_ranks[name], k)) for k in self.all_cutoffs}
            rows[name] = {f"Hit@{k}": f"{100 * answer:.1f} / {100 * qrels:.1f}" for k, (answer, qrels) in pairs.items()}
        return _frame(rows, "system")

    def differences(self) -> pd.DataFrame:
        """Return each system's Hit@K minus the baseline's, in points, with paired 95% intervals and stars."""
        rows = {}
        for system in self.significance()["systems"]:
            row = rows.setdefault(system["name"], {})
            for k in self.cutoffs:
                star = "*" if system["hits"][str(k)]["p_holm"] <= LEVEL else ""
                row[f"Hit@{k}"] = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*self.difference(system["name"], k)) + star
        return _frame(rows, f"minus {self.baseline}")

    def breakdown(self, column: str) -> pd.DataFrame:
        """Return Hit@1 in percent with 95% intervals, one row per group of questions."""
        rows = {}
        for group in self._grouped(column):
            rows[group["group"]] = {name: _share(hit) for name, hit in group["hits"].items()}
            rows[group["group"]]["questions"] = f"{group['questions']:,}"
        return _frame(rows, column)

    def _shares(self, name: str, k: int, among: np.ndarray | slice = slice(None)) -> dict[str, float]:
        mean, low, high, _ = self.estimate(name, k, among=among)
        return {"answer": mean, "low": low, "high": high}

    def _columns(self) -> list[str]:
        return [] if self.groups is None else list(self.groups)

    def _grouped(self, column: str) -> list[dict]:
        """Return Hit@1 of every group that holds a question that counts."""
        values, found = self.groups[column].to_numpy()[self.counted], []
        for group in self.groups[column].cat.categories:
            if (among := values == group).any():
                hits = {name: self._shares(name, 1, among) for name in self.ranks}
                found.append({"group": group, "questions": int(among.sum()), "hits": hits})
        return found

    def summary(self) -> str:
        """Return one sentence on what was measured."""
        over = "questions and seeds (± deviation of the seeds)" if self._seeded() else "questions"
        return (
            f"{self.questions:,} questions over {self.passages:,} passages. Hit@K: % of questions with {self.match} in "
            f"the first K passages, with 95% intervals over {over}; qrels: with a judged passage there."
        )

    def caption(self) -> str:
        """Return what the table of differences shows, and what its stars mean."""
        test = "McNemar's exact test" + " or, with several seeds, a t-test over questions and seeds" * self._seeded()
        return (
            "Difference in Hit@K from the baseline, in points, with paired 95% intervals, not corrected. A trailing * "
            f"marks what is significant at {LEVEL:.0%} by {test} after Holm's correction for the number of "
            f"comparisons, here {self.significance()['comparisons']}."
        )

    def _seeded(self) -> bool:
        return max(self.seeds.values()) > 1

    def __str__(self) -> str:
        return "\n\n".join(f"{caption}\n\n{table.to_string()}" for caption, table in self._tables())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return "".join(html_table(*part) for part in self._tables())

    def _tables(self) -> list[tuple[str, pd.DataFrame]]:
        captioned = [(self.summary(), self.table()), (self.caption(), self.differences())]
        return [(caption, table) for caption, table in captioned if len(table)]

    def plots(self) -> dict[str, bytes]:
        """Return file name -> PNG: the Hit@K curve, the differences, and where the first hit is."""
        pictures = {"hit_at_k.png": plot_hit_curve(self.ranks, max(self.cutoffs))}
        if rivals := [name for name in self.ranks if name != self.baseline]:
            gains = {name: {k: self.difference(name, k) for k in self.cutoffs} for name in rivals}
            pictures["differences.png"] = plot_differences(gains, self.baseline)
        pictures["first_hits.png"] = plot_first_hits(self.ranks, self.all_cutoffs)
        return {name: figure_png(axes) for name, axes in pictures.items()}

    def save(self, folder: str | Path, ledger=None) -> None:
        """Write report.json, report.md, report.html and their plots, and with `qids` ranks.tsv, to `folder`.

        With a `helpers.reporting.ledger.Ledger`, what changed on other data sets is part of them.
        """
        folder, plots = Path(folder), self.plots()
        parts = [*self._tables(), *plots.items(), ("Hit@K by answer match / by qrels.", self.every_k())]
        parts += ledger.parts() if ledger else []
        if self.speed:
            parts.append(("Speed on this machine.", pd.DataFrame(self.speed).T.round(2).rename_axis("system")))
        if columns := self._columns():
            parts += ["Hit@1 by kind of question", *(("", self.breakdown(column)) for column in columns)]
        write_pages(folder, "report", "Hit@K report", [*parts, "Settings", ("", settings_table(self.settings))])
        if self.qids and not self._seeded():
            write_text(folder / "ranks.tsv", self._ranks_tsv())
        write_json(folder / "report.json", self.as_dict() | ({"elsewhere": ledger.as_dict()} if ledger else {}))

    def _ranks_tsv(self) -> str:
        """Return the ranks of first hits by answer and by qrels: "-" without a hit, nothing without an answer."""
        answered, places = self.counted if self.answered is None else self.answered, np.cumsum(self.counted) - 1
        lines = ["query-id\tsystem\tanswer\tqrels"]
        for name, relevant in self.relevant_ranks.items():
            for qid, place, has_answer, by_qrels in zip(self.qids, places, answered, relevant, strict=True):
                answer = _rank(self.ranks[name][place]) if has_answer else ""
                lines.append("\t".join([qid, name, answer, _rank(by_qrels)]))
        return "\n".join(lines) + "\n"


def _frame(rows: dict[str, dict], name: str) -> pd.DataFrame:
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(name)


def _rank(rank: float) -> str:
    return "-" if np.isinf(rank) else f"{rank:.0f}"


def _share(hit: dict[str, float]) -> str:
    deviation = f" ± {100 * hit['sd']:.1f}" if "sd" in hit else ""
    return f"{100 * hit['answer']:.1f}{deviation} [{100 * hit['low']:.1f}, {100 * hit['high']:.1f}]"


def figure_png(axes) -> bytes:
    """Return the figure of `axes` as a PNG, and close it."""
    picture = io.BytesIO()
    axes.figure.savefig(picture, format="png", dpi=150)
    plt.close(axes.figure)
    return picture.getvalue()
