"""The main job: papermill runs notebooks 01 to 04 with one parameter file, into one folder under runs/.

python -m helpers.run --params cpu --name cpu
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import papermill
import yaml

from helpers.assets import ASSETS, fetch
from helpers.encoder import choose_device
from helpers.errors import CourseError, SettingError
from helpers.files import display_path, resolve
from helpers.parameters import NOTEBOOKS, all_parameters, check_values, declared_parameters, load_parameters
from helpers.sources import find_data

MAIN_JOB = "0[1-4]_*.ipynb"


def run_notebooks(parameters: dict[str, Any], run_dir: Path, pattern: str = MAIN_JOB) -> None:
    """Run the notebooks that match `pattern` in order, each with those parameters that it declares.

    Everything that can be checked before hours of compute is: names and types, the device, data and model.

    Raises
    ------
    SettingError, DataError : a parameter, the device or the data is wrong; nothing has run
    papermill.PapermillExecutionError : a cell failed; its notebook is left in `run_dir` to look at
    """
    check_values(parameters, all_parameters(), "parameters")
    notebooks = sorted(NOTEBOOKS.glob(pattern))
    if not notebooks:
        raise SettingError(f"no notebook matches {pattern!r} in {NOTEBOOKS}")
    choose_device(parameters.get("device", "auto"))
    find_data(parameters.get("data", "data/sample"))
    if (model := parameters.get("model_name", "bert-tiny")) in ASSETS:
        fetch(model)
    (run_dir / "notebooks").mkdir(parents=True, exist_ok=True)
    for notebook in notebooks:
        declared = declared_parameters(notebook)
        given = {name: value for name, value in parameters.items() if name in declared}
        started = time.perf_counter()
        print(f"{notebook.name} …", flush=True)
        papermill.execute_notebook(
            notebook,
            run_dir / "notebooks" / notebook.name,
            {**given, "run_dir": str(run_dir)},
            kernel_name="python3",
            progress_bar=False,
        )
        print(f"{notebook.name} took {time.perf_counter() - started:.0f} s", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the course's notebooks headlessly."""
    parser = argparse.ArgumentParser(prog="python -m helpers.run", description=main.__doc__)
    parser.add_argument("--params", default="cpu", help="a name in notebooks/params, or a .yaml file")
    parser.add_argument("--name", default="", help="run folder under runs/; default: the parameter file's name")
    parser.add_argument("--notebooks", default=MAIN_JOB, help=f"which to run; default: {MAIN_JOB}")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="override one")
    options = parser.parse_args(arguments)
    run_dir = resolve(Path("runs") / (options.name or Path(options.params).stem))
    try:
        if run_dir.parent != resolve("runs"):
            raise SettingError(f"--name {options.name!r}: a plain folder name is needed, it is put under runs/")
        overrides = {name: yaml.safe_load(value) for name, value in options.p}
        run_notebooks(load_parameters(options.params) | overrides, run_dir, options.notebooks)
    except CourseError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except papermill.PapermillExecutionError as error:
        print(f"cell {error.exec_count} failed: {error.ename}: {error.evalue}", file=sys.stderr)
        print(f"see the notebooks in {display_path(run_dir)}/notebooks", file=sys.stderr)
        return 1
    for report in sorted(run_dir.glob("report.*")):
        print(display_path(report))
    if (run_dir / "report.md").exists():
        print("\n" + (run_dir / "report.md").read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
