"""The main job: papermill runs notebooks 01 to 04 with one parameter file, into one folder under runs/.

python -m helpers.running --params cpu --name cpu
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import papermill
import yaml
from nbclient.exceptions import DeadKernelError

from helpers.base.assets import ASSETS, fetch
from helpers.base.devices import choose_device
from helpers.base.errors import CourseError, SettingError
from helpers.base.files import display_path, resolve, told
from helpers.importing.sources import find_data
from helpers.running.parameters import NOTEBOOKS, all_parameters, check_values, declared_parameters, load_parameters

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
    notebooks = sorted(path for path in NOTEBOOKS.glob("*.ipynb") if path.match(pattern or "-"))
    if not notebooks:
        raise SettingError(f"no notebook matches {pattern!r} in {NOTEBOOKS}")
    choose_device(parameters.get("device", "auto"))
    for name in (parameters.get("data", "data/sample"), *parameters.get("also_on", ())):
        find_data(name)
    if (model := parameters.get("model_name", "bert-tiny")) in ASSETS:
        fetch(model)
    with told(run_dir):
        (run_dir / "notebooks").mkdir(parents=True, exist_ok=True)
    for notebook in notebooks:
        declared = declared_parameters(notebook)
        given = {name: value for name, value in {**parameters, "run_dir": str(run_dir)}.items() if name in declared}
        started = time.perf_counter()
        print(f"{notebook.name} …", flush=True)
        target = run_dir / "notebooks" / notebook.name
        papermill.execute_notebook(notebook, target, given, kernel_name="python3", progress_bar=False)
        print(f"{notebook.name} took {time.perf_counter() - started:.0f} s", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the course's notebooks headlessly."""
    parser = argparse.ArgumentParser(prog="python -m helpers.running", description=main.__doc__)
    parser.add_argument("--params", default="cpu", help="a name in notebooks/params, or a .yaml file")
    parser.add_argument("--name", default="", help="run folder under runs/; default: the parameter file's name")
    parser.add_argument("--notebooks", default=MAIN_JOB, help=f"which to run; default: {MAIN_JOB}")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="override one")
    options, started = parser.parse_args(arguments), time.time()
    run_dir = resolve(Path("runs") / (options.name or Path(options.params).stem))
    try:
        if run_dir.parent != resolve("runs"):
            raise SettingError(f"--name {options.name!r}: a plain folder name is needed, it is put under runs/")
        run_notebooks(load_parameters(options.params) | _overrides(options.p), run_dir, options.notebooks)
    except CourseError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except (papermill.PapermillExecutionError, DeadKernelError) as error:
        cell = f"cell {error.exec_count}: {error.ename}: {error.evalue}" if hasattr(error, "ename") else str(error)
        print(f"{cell}\nSee the notebooks in {display_path(run_dir)}/notebooks", file=sys.stderr)
        return 1
    report = run_dir / "report.md"
    if report.exists() and report.stat().st_mtime >= started:
        print(f"\n{report.read_text(encoding='utf-8')}")
        print("\n".join(display_path(path) for path in sorted(run_dir.glob("report.*"))))
    return 0


def _overrides(pairs: list[list[str]]) -> dict[str, Any]:
    """Return the -p options with YAML's types, except run_dir, which --name decides."""
    values = {}
    for name, text in pairs:
        try:
            values[name] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise SettingError(f"-p {name} {text}: not readable as YAML") from error
    if "run_dir" in values:
        raise SettingError("-p run_dir: use --name, the run folder is always one under runs/")
    return values
