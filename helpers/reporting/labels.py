"""How many mined negatives are false? A person reads a sample of them and says; shares with intervals follow.

A label is the answer to one question: does this passage answer that question? If it does, the passage is a false
negative. data/README.md documents the file.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from IPython.display import HTML
from scipy.stats import binomtest

from helpers.answers import holds
from helpers.base.checks import Problems, json_rows
from helpers.base.errors import SettingError, shorten
from helpers.base.files import write_jsonl
from helpers.dataset import PassageIndex, RetrievalData
from helpers.reporting.display import show_passages

LABELS = {"yes": "it does", "unsure": "partly, or unsure", "no": "it does not"}  # what a label says, as a button does
FIELDS = ("qid", "pid", "label", "by")


class Pair(NamedTuple):
    """A question and a passage mined for it; `label` and `by`, who gave it, are empty until a person has read it.

    `drawn_from` names what the pair was drawn from, such as strategies; it counts for each of them.
    """

    qid: str
    pid: str
    drawn_from: tuple[str, ...]
    label: str = ""
    by: str = ""

    @property
    def ids(self) -> tuple[str, str]:
        """The two ids, by which pairs are known."""
        return self.qid, self.pid


def draw_pairs(candidates: Mapping[str, Iterable[tuple[str, str]]], each: int, seed: int = 0) -> list[Pair]:
    """Draw pairs to be labelled: `each` from the candidates of every name, or all where there are fewer, shuffled.

    Every pair has a random number of its own, a hash of its ids and the seed, and those with the lowest are drawn. So
    fewer pairs are a part of more pairs, and a candidate more or less changes one pair at most. A pair that is drawn
    under two names is read once. The order is another random one, so that it does not tell where a pair comes from.

    Parameters
    ----------
    candidates : what pairs are drawn from, such as a strategy -> (question id, passage id) of all that it mined

    Raises
    ------
    SettingError : `each` is below 1
    """
    if each < 1:
        raise SettingError(f"each={each}: draw at least 1 pair of each kind")
    drawn: dict[tuple[str, str], list[str]] = {}
    for name, pairs in candidates.items():
        for ids in sorted(set(pairs), key=lambda ids: _number(ids, seed))[:each]:
            drawn.setdefault(ids, []).append(name)
    return [Pair(*ids, tuple(drawn[ids])) for ids in sorted(drawn, key=lambda ids: _number(ids, f"order {seed}"))]


def _number(ids: tuple[str, str], seed: int | str) -> bytes:
    return hashlib.sha256(f"{seed} {ids[0]} {ids[1]}".encode()).digest()


def read_labels(path: str | Path, data: RetrievalData, passages: PassageIndex) -> list[Pair]:
    """Read a file of labels.

    Raises
    ------
    DataError : it is missing, or a row has an unknown id, an unknown label, a field of a wrong type, or the ids of an
        earlier row; names file and line of every such row
    """
    problems, found, lines = Problems(), [], {}
    for place, row in json_rows(Path(path), problems):
        names = row.get("drawn_from")
        pair = Pair(*(row.get(field) for field in FIELDS[:2]), names, *(row.get(field) for field in FIELDS[2:]))
        if broken := next((field for field in FIELDS if not isinstance(row.get(field), str) or not row[field]), ""):
            wrong = f"field {broken!r} is {shorten(row.get(broken))}; a non-empty string is needed"
        elif not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            wrong = f"field 'drawn_from' is {shorten(names)}; a list of names is needed, such as [\"bm25\"]"
        elif pair.qid not in data.queries:
            wrong = f"field 'qid' is {shorten(pair.qid)}, a question that the data set does not have; correct the id"
        elif passages.row.find(pair.pid) < 0:
            wrong = f"field 'pid' is {shorten(pair.pid)}, which is no passage to train on; correct the id"
        elif pair.label not in LABELS:
            wrong = f"field 'label' is {shorten(pair.label)}; use one of {', '.join(LABELS)}"
        elif pair.ids in lines:
            wrong = f"question and passage are already on line {lines[pair.ids]}; keep one label for them"
        else:
            lines[pair.ids] = place.number
            found.append(pair._replace(drawn_from=tuple(names)))
            continue
        problems.error(place, wrong, row)
    problems.stop()
    return found


def save_labels(path: str | Path, labels: Iterable[Pair]) -> None:
    """Write a file of labels in one step."""
    write_jsonl(path, ({**pair._asdict(), "drawn_from": list(pair.drawn_from)} for pair in labels))


def wilson_interval(count: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """Return an interval of the share of which `count` of `total` is a sample, as numbers from 0 to 1.

    It is honest for small samples and rare events: 0 of 50 does not mean that there are none. Without a sample it is
    (0, 1). The ends are the shares p whose distance from count / total is z times their own standard error
    √(p (1 - p) / total). Source: Wilson 1927, Probable Inference, the Law of Succession, and Statistical Inference,
    JASA 22, https://doi.org/10.1080/01621459.1927.10502953.

    >>> [round(end, 3) for end in wilson_interval(0, 50)]
    [0.0, 0.071]
    """
    if not total:
        return 0.0, 1.0
    low, high = binomtest(count, total).proportion_ci(level, method="wilson")
    return float(low), float(high)


@dataclass(frozen=True)
class Verdicts:
    """What people and the answer match say of pairs that were drawn from one source.

    Attributes
    ----------
    pairs : how many were labelled
    false : how many passages answer their question, by hand: the false negatives
    unsure : how many a person could not decide; they count as negatives that are true
    holding : how many passages hold an answer, so that the answer match would call them false
    agreed : how many are false by hand and hold an answer
    """

    pairs: int
    false: int
    unsure: int
    holding: int
    agreed: int

    @property
    def interval(self) -> tuple[float, float]:
        """The Wilson interval of the share of false negatives, at 95%."""
        return wilson_interval(self.false, self.pairs)


def judge_labels(labels: Sequence[Pair], data: RetrievalData, passages: PassageIndex) -> dict[str, Verdicts]:
    """Return name -> the verdicts on the pairs that were drawn from it, sorted by name."""
    holding = {
        pair.ids: holds(passages.needles(data.queries[pair.qid].answers), passages.normalized[passages.row[pair.pid]])
        for pair in labels
    }
    verdicts = {}
    for name in sorted({name for pair in labels for name in pair.drawn_from}):
        own = [pair for pair in labels if name in pair.drawn_from]
        false = [pair for pair in own if pair.label == "yes"]
        unsure = sum(pair.label == "unsure" for pair in own)
        held, agreed = (sum(holding[pair.ids] for pair in some) for some in (own, false))
        verdicts[name] = Verdicts(len(own), len(false), unsure, held, agreed)
    return verdicts


def label_table(verdicts: Mapping[str, Verdicts]) -> pd.DataFrame:
    """Return a row for each source: the share of false negatives by hand, and what the answer match makes of them.

    Its precision, how many of those that hold an answer are false by hand, and its recall, how many of the false ones
    hold an answer, are given as counts, because they are often shares of very few.
    """
    rows = {}
    for name, one in verdicts.items():
        low, high = one.interval
        rows[name] = {
            "pairs": one.pairs,
            "false": one.false,
            "unsure": one.unsure,
            "% false [95%]": f"{100 * one.false / one.pairs:.0f} [{100 * low:.0f}, {100 * high:.0f}]",
            "hold an answer": one.holding,
            "precision": f"{one.agreed} of {one.holding}",
            "recall": f"{one.agreed} of {one.false}",
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("drawn from")


class Labelling:
    """The labelling of pairs by a person: it resumes where it was left, and saves every label at once.

    Attributes
    ----------
    pairs : what is to be labelled, in this order
    path : the file that labels are kept in; those of other pairs stay in it
    by : who labels
    """

    def __init__(self, pairs: Sequence[Pair], path: str | Path, data: RetrievalData, passages: PassageIndex, by: str):
        self.pairs, self.path, self.data, self.passages, self.by = pairs, Path(path), data, passages, by
        found = read_labels(path, data, passages) if self.path.exists() else []
        self.labels = {pair.ids: pair for pair in found}

    @property
    def waiting(self) -> list[Pair]:
        """The pairs that have no label yet."""
        return [pair for pair in self.pairs if pair.ids not in self.labels]

    def give(self, label: str) -> None:
        """Give the first pair that waits its label."""
        pair = self.waiting[0]
        self.labels[pair.ids] = pair._replace(label=label, by=self.by)
        save_labels(self.path, self.labels.values())

    def take_back(self) -> None:
        """Remove the last label, if it was given to one of these pairs."""
        if self.labels and list(self.labels)[-1] in {pair.ids for pair in self.pairs}:
            self.labels.popitem()
            save_labels(self.path, self.labels.values())

    def shown(self) -> str:
        """Return the pair that waits, as HTML with everything escaped, and how far the labelling is."""
        waiting, total = self.waiting, len(self.pairs)
        if not waiting:
            return f"All {total} pairs are labelled."
        pair = waiting[0]
        question = {"title": self.data.queries[pair.qid].text, "text": ""}
        passage = self.passages.corpus[self.passages.row[pair.pid]]
        table = show_passages([("Question", question), ("Passage", passage)]).data
        return f"{table}Does the passage answer the question? {total - len(waiting)} of {total} pairs are labelled."


def label_pairs(
    pairs: Sequence[Pair], path: str | Path, data: RetrievalData, passages: PassageIndex, by: str = "reader"
) -> Any:
    """Return buttons to label pairs with in JupyterLab; elsewhere, where nobody could press them, the first pair.

    What is labelled in `path` already is not asked again. Raises a DataError if that file is broken.
    """
    work = Labelling(pairs, path, data, passages, by)
    if "JPY_SESSION_NAME" not in os.environ or not find_spec("ipywidgets"):  # JupyterLab sets it for its notebooks
        return HTML(work.shown())
    import ipywidgets

    text = ipywidgets.HTML(work.shown())
    buttons = [ipywidgets.Button(description=meaning, tooltip=label) for label, meaning in LABELS.items()]
    back = ipywidgets.Button(description="one back")

    def press(button: ipywidgets.Button) -> None:
        if button is back:
            work.take_back()
        elif work.waiting:
            work.give(button.tooltip)
        text.value = work.shown()

    for button in (*buttons, back):
        button.on_click(press)
    return ipywidgets.VBox([text, ipywidgets.HBox([*buttons, back])])
