"""The Hit@K report: one object that shows itself in JupyterLab and saves itself for people and programs."""

import base64
import html
import io
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from helpers.errors import SettingError
from helpers.evaluation import bootstrap_interval, hit_at_k
from helpers.files import atomic_path, write_json, write_text
from helpers.plotting import plot_hit_curve
from helpers.significance import holm, mcnemar

CUTOFFS = (1, 10, 100)
LEVEL = 0.05  # a difference with a corrected p-value up to this is called significant


@dataclass(repr=False)
class Report:
    """Hit@K of several systems on the same questions and passages.

    Attributes
    ----------
    ranks : system -> rank of the first passage that holds an answer, [Q]; inf if none
    relevant_ranks : system -> rank of the first judged passage, [Q]
    passages : size of the searched corpus
    settings : what produced the numbers, for the reader
    answered : which questions have an answer string, [Q]; the others count under qrels alone. None: all.
        If no question has one, `ranks` are those by qrels
    baseline : the system that differences are taken against

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

    def __post_init__(self):
        if max(self.cutoffs) > self.passages:
            raise SettingError(f"Hit@{max(self.cutoffs)} needs as many passages; the corpus has {self.passages}")
        if self.baseline not in self.ranks:
            raise SettingError(f"baseline {self.baseline!r} is none of the systems {list(self.ranks)}")
        self.match = "an answer"
        if self.answered is not None and not self.answered.any():
            self.ranks, self.match = self.relevant_ranks, "a judged passage"
        elif self.answered is not None:
            self.ranks = {name: values[self.answered] for name, values in self.ranks.items()}

    @property
    def questions(self) -> int:
        """How many questions were asked."""
        return len(next(iter(self.relevant_ranks.values())))

    def as_dict(self) -> dict:
        """Return the content of report.json; hits are shares between 0 and 1."""
        systems = []
        for name, ranks in self.ranks.items():
            hits = {}
            for k in self.cutoffs:
                low, high = bootstrap_interval(ranks <= k)
                relevant = hit_at_k(self.relevant_ranks[name], k)
                hits[str(k)] = {"answer": hit_at_k(ranks, k), "low": low, "high": high, "qrels": relevant}
            systems.append({"name": name, "hits": hits})
        unanswered = 0 if self.answered is None else int((~self.answered).sum())
        return {
            "systems": systems,
            "questions": self.questions,
            "questions_without_answers": unanswered,
            "passages": self.passages,
            "settings": self.settings,
            "significance": self.significance(),
        }

    def significance(self) -> dict:
        """Return the p-value of every difference to the baseline: McNemar's, and the same after Holm's correction."""
        pairs = [(name, k) for name in self.ranks if name != self.baseline for k in self.cutoffs]
        base = self.ranks[self.baseline]
        raw = [mcnemar(self.ranks[name] <= k, base <= k) for name, k in pairs]
        tests = {name: {"name": name, "hits": {}} for name, _ in pairs}
        for (name, k), p, corrected in zip(pairs, raw, holm(raw), strict=True):
            tests[name]["hits"][str(k)] = {"p": p, "p_holm": float(corrected)}
        return {"baseline": self.baseline, "level": LEVEL, "comparisons": len(pairs), "systems": list(tests.values())}

    def table(self) -> pd.DataFrame:
        """Return Hit@K in percent with 95% intervals, a row a system."""
        rows = {}
        for system in self.as_dict()["systems"]:
            hits = system["hits"].items()
            row = {f"Hit@{k}": "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * h[x] for x in ("answer", "low", "high")))
                   for k, h in hits}  # fmt: skip
            rows[system["name"]] = row | {f"qrels @{k}": f"{100 * h['qrels']:.1f}" for k, h in hits}
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("system")

    def differences(self) -> pd.DataFrame:
        """Return each system's Hit@K minus the baseline's, in points, with paired 95% intervals and stars."""
        rows = {}
        for system in self.significance()["systems"]:
            rows[system["name"]] = {
                f"Hit@{k}": "{:+.1f} [{:+.1f}, {:+.1f}]".format(*self.difference(system["name"], k))
                + "*" * (system["hits"][str(k)]["p_holm"] <= LEVEL)
                for k in self.cutoffs
            }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis(f"minus {self.baseline}")

    def difference(self, name: str, k: int, against: str = "") -> tuple[float, float, float]:
        """Return Hit@k of `name` minus that of `against` (the baseline), its low and its high end, in points."""
        gain = (self.ranks[name] <= k) * 1.0 - (self.ranks[against or self.baseline] <= k)
        low, high = bootstrap_interval(gain)
        return 100 * float(gain.mean()), 100 * low, 100 * high

    def summary(self) -> str:
        """Return one sentence on what was measured."""
        return (
            f"{self.questions:,} questions over {self.passages:,} passages. Hit@K: % of questions with {self.match} in "
            "the first K passages, with 95% bootstrap intervals over questions; qrels: with a judged passage there."
        )

    def caption(self) -> str:
        """Return what the table of differences shows, and what its stars mean."""
        comparisons = self.significance()["comparisons"]
        return (
            "Difference in Hit@K from the baseline, in points, with paired 95% bootstrap intervals, not corrected. "
            f"A trailing * marks what is significant at {LEVEL:.0%} by McNemar's exact test after Holm's correction "
            f"for the number of comparisons, here {comparisons}."
        )

    def __str__(self) -> str:
        return "\n\n".join(f"{caption}\n\n{table.to_string()}" for caption, table in self._tables())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return "".join(f"<p>{html.escape(caption)}</p>{table.to_html()}" for caption, table in self._tables())

    def _tables(self) -> list[tuple[str, pd.DataFrame]]:
        captioned = [(self.summary(), self.table()), (self.caption(), self.differences())]
        return [(caption, table) for caption, table in captioned if len(table)]

    def plot(self) -> bytes:
        """Return the Hit@K curve as PNG."""
        axes = plot_hit_curve(self.ranks, max_k=max(self.cutoffs))
        picture = io.BytesIO()
        axes.figure.savefig(picture, format="png", dpi=150)
        plt.close(axes.figure)
        return picture.getvalue()

    def save(self, folder: str | Path) -> None:
        """Write report.json, report.md, report.html and hit_at_k.png to `folder`."""
        folder, picture = Path(folder), self.plot()
        with atomic_path(folder / "hit_at_k.png") as temporary:
            temporary.write_bytes(picture)
        flat = _flat(self.settings)
        settings = [f"| {_cell(name)} | {_cell(value)} |" for name, value in flat.items()]
        write_text(folder / "report.md", "\n\n".join([
            "# Hit@K report", *(f"{caption}\n\n{_markdown(table)}" for caption, table in self._tables()),
            "![Hit@K](hit_at_k.png)",
            "\n".join(["| setting | value |", "|---|---|", *settings]),
        ]) + "\n")  # fmt: skip
        image = base64.b64encode(picture).decode()
        rows = "".join(
            f"<tr><th>{html.escape(str(name))}</th><td>{html.escape(str(value))}</td></tr>"
            for name, value in flat.items()
        )
        write_text(folder / "report.html", (
            '<!doctype html><html lang="en"><meta charset="utf-8"><title>Hit@K report</title>'
            f"<style>{STYLE}</style><h1>Hit@K report</h1>{self._repr_html_()}"
            f'<img alt="Hit@K against K for every system" src="data:image/png;base64,{image}">'
            f"<h2>Settings</h2><table>{rows}</table></html>\n"
        ))  # fmt: skip
        write_json(folder / "report.json", self.as_dict())


STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#111;"
    "background:#fff}table{border-collapse:collapse;margin:1rem 0}td,th{border:0;border-bottom:1px solid #ccc;"
    "padding:.3rem .8rem;text-align:right}th:first-child{text-align:left}img{max-width:100%}"
)


def _markdown(table: pd.DataFrame) -> str:
    lines = [[table.index.name, *table.columns], ["---"] * (1 + len(table.columns))]
    lines += [[name, *row] for name, row in zip(table.index, table.to_numpy(), strict=True)]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _flat(settings: dict, prefix: str = "") -> dict:
    """Return nested settings with dotted names, e.g. training.epochs."""
    flat = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _cell(value: object) -> str:
    return html.escape(str(value), quote=False).replace("|", "\\|").replace("\n", " ")
