"""Runs side by side: the same system of several run folders, as one report with paired differences.

    python -m helpers.reporting.comparison runs/a runs/b --system "fine-tuned, hard negatives"

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

from helpers.base.errors import CourseError, DataError, SettingError
from helpers.base.files import display_path, read_json, resolve
from helpers.reporting.pages import flat
from helpers.reporting.report import CUTOFFS, Report

SAME = ("data_fingerprint", "eval_corpus", "match_title", "strict_dpr", "passages")  # decide what is measured
# may differ between seeds; of nested settings the last part
PASSING = ("seed", "run_dir", "machine", "best_step", "compare_with")


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
    settings, tables, groups = {}, {}, {}
    for folder in map(resolve, folders):
        name = display_path(folder)
        settings[name], tables[name], system = _read(folder, system)
        first = next(iter(tables))
        _check_same((first, name), (settings[first], settings[name]), (tables[first], tables[name]))
        own = {key: value for key, value in settings[name].items() if key.split(".")[-1] not in PASSING}
        groups.setdefault(repr(own), []).append(name)
    ranks, relevant_ranks = {}, {}
    for names in groups.values():
        if len({settings[name].get("seed") for name in names}) < len(names):
            raise SettingError(f"{' and '.join(names)} have the same settings, some the same seed: nothing to compare")
        label = names[0] + f" and {len(names) - 1} more seeds" * (len(names) > 1)
        found = np.array([tables[name].loc[tables[first].index].to_numpy().T for name in names])  # [S, 2, Q]
        ranks[label], relevant_ranks[label] = found.transpose(1, 0, 2) if len(names) > 1 else found[0]
    differing = {key for own in settings.values() for key, value in own.items() if settings[first].get(key) != value}
    told = {name: {key: own.get(key) for key in sorted(differing)} for name, own in settings.items()}
    answered, passages = tables[first]["answer"].notna().to_numpy(), settings[first]["passages"]
    cutoffs = tuple(k for k in CUTOFFS if k <= passages)
    return Report(ranks, relevant_ranks, passages, {"system": system} | told, answered, next(iter(ranks)), cutoffs)


def _read(folder: Path, system: str) -> tuple[dict, pd.DataFrame, str]:
    """Return a run's settings, with dotted names; ranks by `answer` (nan: no answer) and by `qrels`; and the system."""
    try:
        report = read_json(folder / "report.json")
        settings = flat(report["settings"]) | {"passages": report["passages"]}
        system = system or report["systems"][-1]["name"]
        table = pd.read_csv(folder / "ranks.tsv", sep="\t", dtype=str, keep_default_na=False, quoting=csv.QUOTE_NONE)
        own = table[table["system"] == system].set_index("query-id")[["answer", "qrels"]]
        own = own.replace({"-": "inf", "": "nan"}).astype(float)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise DataError(
            f"{display_path(folder)} has no readable report.json and ranks.tsv ({error}); run notebook 04 with this "
            "run_dir"
        ) from error
    if own.empty:
        raise SettingError(f"{display_path(folder)} has no system {system!r}; it has {sorted(set(table['system']))}")
    return settings, own, system


def _check_same(names: tuple[str, str], both_settings: tuple[dict, dict], both_ranks: tuple) -> None:
    """Raise DataError unless both runs asked the same questions over the same passages."""
    (one, other), (settings, second), (ranks, others) = names, both_settings, both_ranks
    refusal = f"{one} and {other} cannot be compared"
    if not settings.get("data_fingerprint"):
        raise DataError(f"{refusal}: {one} does not say on which data it ran; run notebook 04 again")
    for key in SAME:
        if settings.get(key) != second.get(key):
            values = f"{settings.get(key)!r} in the first, {second.get(key)!r} in the second"
            raise DataError(f"{refusal}: {key} is {values}")
    if set(ranks.index) != set(others.index):
        shared = len(set(ranks.index) & set(others.index))
        raise DataError(
            f"{refusal}: of {len(ranks)} and {len(others)} questions {shared} are the same; "
            "run notebook 04 with the same test_questions and seed"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare runs and print the report."""
    parser = argparse.ArgumentParser(prog="python -m helpers.reporting.comparison", description=main.__doc__)
    parser.add_argument("folders", nargs="+", help="run folders; the first is the baseline")
    parser.add_argument("--system", default="", help="which system of each; default: the last of the first report")
    parser.add_argument("--save", default="", help="a folder for report.md, .html and .json")
    options = parser.parse_args(arguments)
    try:
        report = compare(*options.folders, system=options.system)
    except CourseError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(report)
    if options.save:
        report.save(resolve(options.save))
    return 0


if __name__ == "__main__":
    sys.exit(main())
