"""Runs side by side: the same system of several run folders, as one report with paired differences.

    python -m helpers.compare runs/a runs/b --system "fine-tuned, hard negatives"

It reads what notebook 04 left in each folder, report.json and ranks.tsv. Runs whose settings differ in nothing but the
seed count as one system with several seeds, so that its intervals cover seeds as well as questions.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from helpers.errors import CourseError, DataError, SettingError
from helpers.files import display_path, read_json, resolve
from helpers.pages import flat
from helpers.report import CUTOFFS, Report

SAME = ("data_fingerprint", "eval_corpus", "match_title", "strict_dpr")  # settings that decide what is measured
PASSING = ("seed", "run_dir", "machine", "best_step")  # that differ between seeds; of nested ones the last part


def compare(*folders: str | Path, system: str = "") -> Report:
    """Return the report on one system of several run folders; the first folder is the baseline.

    Parameters
    ----------
    folders : run folders, in which notebook 04 has left report.json and ranks.tsv
    system : a name of the reports; "": the last one of the first folder's report

    Raises
    ------
    DataError : a folder holds no such files, or the runs searched other data, passages or questions
    SettingError : fewer than two folders, an unknown system, or two runs with the same settings and seed
    """
    if len(folders) < 2:
        raise SettingError(f"{len(folders)} run folder to compare; give two or more")
    reports = {display_path(resolve(folder)): _report(resolve(folder) / "report.json") for folder in folders}
    first, *others = reports
    system = system or reports[first]["systems"][-1]["name"]
    tables = {name: _ranks(resolve(name) / "ranks.tsv", system) for name in reports}
    for name in others:
        _check_same(first, reports[first], tables[first], name, reports[name], tables[name])
    groups: dict[str, list[str]] = {}
    for name, report in reports.items():
        settings = {k: v for k, v in flat(report["settings"]).items() if k.split(".")[-1] not in PASSING}
        groups.setdefault(repr(settings), []).append(name)
    ranks, relevant_ranks, order = {}, {}, tables[first].index
    for names in groups.values():
        seeds = [reports[name]["settings"].get("seed") for name in names]
        if len(set(seeds)) < len(seeds):
            raise SettingError(f"{' and '.join(names)} have the same settings, some the same seed: nothing to compare")
        label = names[0] + f" and {len(names) - 1} more seeds" * (len(names) > 1)
        found = np.array([tables[name].loc[order].to_numpy().T for name in names])  # [S, 2, Q]
        ranks[label], relevant_ranks[label] = (found[:, kind] if len(names) > 1 else found[0, kind] for kind in (0, 1))
    settings = {"system": system} | {name: _differing(report, reports.values()) for name, report in reports.items()}
    answered, passages = tables[first]["answer"].notna().to_numpy(), reports[first]["passages"]
    cutoffs = tuple(k for k in CUTOFFS if k <= passages)
    return Report(ranks, relevant_ranks, passages, settings, answered, next(iter(ranks)), cutoffs)


def _report(path: Path) -> dict:
    try:
        report = read_json(path)
        return {key: report[key] for key in ("systems", "passages", "settings")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{display_path(path)}: not a report ({error}); run notebook 04 with this run_dir") from error


def _ranks(path: Path, system: str) -> pd.DataFrame:
    """Return the columns `answer` and `qrels` of a system, a row a question: inf without a hit, nan without answers."""
    try:
        table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, quoting=csv.QUOTE_NONE)
        own = table[table["system"] == system].set_index("query-id")[["answer", "qrels"]]
        own = own.replace({"-": "inf", "": "nan"}).astype(float)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{display_path(path)}: not readable ({error}); run notebook 04 with this run_dir") from error
    if own.empty:
        raise SettingError(f"{display_path(path)} has no system {system!r}; it has {sorted(set(table['system']))}")
    return own


def _check_same(one: str, report: dict, ranks: pd.DataFrame, other: str, second: dict, others: pd.DataFrame) -> None:
    """Raise DataError unless both runs asked the same questions over the same passages."""
    refusal = f"{one} and {other} cannot be compared"
    if not report["settings"].get("data_fingerprint"):
        raise DataError(f"{refusal}: {one} does not say on which data it ran; run notebook 04 again")
    same = {key: (report["settings"].get(key), second["settings"].get(key)) for key in SAME}
    for key, (here, there) in {**same, "passages": (report["passages"], second["passages"])}.items():
        if here != there:
            raise DataError(f"{refusal}: {key} is {here!r} in the first and {there!r} in the second")
    if set(ranks.index) != set(others.index):
        shared = len(set(ranks.index) & set(others.index))
        raise DataError(f"{refusal}: of {len(ranks)} and {len(others)} questions {shared} are the same; "
                        "run notebook 04 with the same test_questions and seed")  # fmt: skip


def _differing(report: dict, reports) -> dict:
    """Return the settings of a run that are not the same in all runs."""
    everyone = [flat(other["settings"]) for other in reports]
    return {key: value for key, value in flat(report["settings"]).items()
            if any(other.get(key) != value for other in everyone)}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare runs and print the report."""
    parser = argparse.ArgumentParser(prog="python -m helpers.compare", description=main.__doc__)
    parser.add_argument("folders", nargs="+", help="run folders; the first is the baseline")
    parser.add_argument("--system", default="", help="which system of each; default: the last of the first report")
    parser.add_argument("--save", default="", help="a folder for report.md, .html and .json")
    options = parser.parse_args(arguments)
    try:
        report = compare(*options.folders, system=options.system)
        print(report)
        if options.save:
            report.save(resolve(options.save))
    except CourseError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
