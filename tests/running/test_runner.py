"""The headless run: what it checks before it starts, what it passes on, and how it fails."""

import json

import nbformat
import pytest
import torch
from nbclient.exceptions import DeadKernelError

from helpers.base import files
from helpers.base.errors import DataError
from helpers.running import parameters, run

FIRST = """
import json
from pathlib import Path
if fail:
    raise RuntimeError("the pond is empty")
Path(run_dir, "first.json").write_text(json.dumps([epochs, lr, "k" in globals(), Path(run_dir).is_absolute()]))
"""
SECOND = """
import json
from pathlib import Path
Path(run_dir, "second.json").write_text(json.dumps([k, data, sorted({"epochs", "lr", "fail"} & set(globals()))]))
Path(run_dir, "report.md").write_text("# All went well")
"""
NOTEBOOKS = {
    "01_a": ("epochs: int = 1\nlr: float = 0.1\nfail: bool = False\ndevice: str = 'auto'\nrun_dir: str = ''", FIRST),
    "02_b": ("k: int = 10\ndata: str = 'data/sample'\nmodel_name: str = 'bert-tiny'\nrun_dir: str = ''", SECOND),
    "05_other": ("run_dir: str = ''", "raise RuntimeError('not part of the main job')"),
}


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A course folder with small notebooks, whose runs/ and data/ are its own."""
    folder = tmp_path.resolve()
    (folder / "data" / "sample").mkdir(parents=True)
    (folder / "notebooks" / "params").mkdir(parents=True)
    (folder / "notebooks" / "params" / "cpu.yaml").write_text("epochs: 2\nk: 3\n")
    for name, cells in NOTEBOOKS.items():
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        notebook.cells[0].metadata["tags"] = ["parameters"]
        notebook.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "Python 3"}
        nbformat.write(notebook, folder / "notebooks" / f"{name}.ipynb")
    monkeypatch.setattr(files, "ROOT", folder)
    for module in (run, parameters):
        monkeypatch.setattr(module, "NOTEBOOKS", folder / "notebooks")
    monkeypatch.setattr(run, "fetch", lambda name: folder)
    return folder


@pytest.fixture
def nothing_runs(course, monkeypatch):
    """The same, where running a notebook is an error of the test."""
    monkeypatch.setattr(run.papermill, "execute_notebook", lambda *_, **__: pytest.fail("a notebook was started"))
    return course


def test_runs_the_main_job_in_order_with_declared_parameters_only(course, capsys):
    assert run.main(["--name", "try", "-p", "k", "7", "-p", "lr", "1"]) == 0
    folder = course / "runs" / "try"
    assert json.loads((folder / "first.json").read_text()) == [2, 1, False, True]
    assert json.loads((folder / "second.json").read_text()) == [7, "data/sample", []]
    assert sorted(path.name for path in (folder / "notebooks").iterdir()) == ["01_a.ipynb", "02_b.ipynb"]
    out = capsys.readouterr().out
    assert out.index("01_a") < out.index("02_b") < out.index("# All went well") and "05_other" not in out


def test_failing_cell_ends_the_run_and_names_the_error(course, capsys):
    assert run.main(["-p", "fail", "true"]) == 1
    error = capsys.readouterr().err
    assert "RuntimeError: the pond is empty" in error and "runs/cpu/notebooks" in error and str(course) not in error
    assert [path.name for path in (course / "runs" / "cpu" / "notebooks").iterdir()] == ["01_a.ipynb"]


REFUSED = [
    (["-p", "epochz", "3"], ["SettingError", "'epochz'", "'epochs'"]),
    (["-p", "epochs", "three"], ["SettingError", "epochs='three'", "int"]),
    (["-p", "fail", "1"], ["SettingError", "fail=1", "bool"]),
    (["-p", "lr", "1e-5"], ["SettingError", "lr='1e-5'", "float"]),
    (["-p", "k", ""], ["SettingError", "k=None", "int"]),
    (["-p", "device", "cuda"], ["SettingError", "cuda", "no CUDA device"]),
    (["-p", "device", "tpu"], ["SettingError", "'tpu'"]),
    (["-p", "data", "data/nowhere"], ["DataError", "data/nowhere"]),
    (["--params", "gpu"], ["SettingError", "gpu.yaml", "cpu"]),
    (["--notebooks", "09_*"], ["SettingError", "'09_*'"]),
    (["--name", "../x"], ["SettingError", "'../x'", "plain folder name"]),
    (["--name", ".."], ["SettingError", "'..'"]),
    (["--name", "."], ["SettingError", "'.'"]),
    (["--name", "a/b"], ["SettingError", "'a/b'"]),
    (["--name", "/absolute"], ["SettingError", "'/absolute'"]),
]


@pytest.mark.parametrize(("arguments", "parts"), REFUSED)
def test_wrong_setting_is_refused_before_anything_runs(nothing_runs, monkeypatch, capsys, arguments, parts):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run.main(arguments) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and len(printed.err.splitlines()) == 1
    for part in parts:
        assert part in printed.err
    assert not (nothing_runs / "runs").exists()


@pytest.mark.parametrize(
    "arguments", [["-p", "data", "[1,"], ["--notebooks", "/absolute/*.ipynb"], ["--notebooks", ""]]
)
def test_malformed_argument_is_refused_without_a_traceback(nothing_runs, capsys, arguments):
    assert run.main(arguments) == 1
    assert "SettingError" in capsys.readouterr().err


def test_dead_kernel_ends_the_run_with_a_message(course, monkeypatch, capsys):
    def dies(*_, **__):
        raise DeadKernelError("Kernel died")

    monkeypatch.setattr(run.papermill, "execute_notebook", dies)
    assert run.main([]) == 1
    assert "Kernel died" in capsys.readouterr().err


def test_model_that_cannot_be_fetched_stops_the_run(nothing_runs, monkeypatch, capsys):
    def fails(name):
        raise DataError(f"{name}: run `make setup`")

    monkeypatch.setattr(run, "fetch", fails)
    assert run.main([]) == 1
    assert capsys.readouterr().err == "DataError: bert-tiny: run `make setup`\n"


def test_run_folder_is_named_after_the_parameter_file(course, monkeypatch):
    started = []
    monkeypatch.setattr(run.papermill, "execute_notebook", lambda *args, **_: started.append(args))
    assert run.main([]) == 0
    assert [target for _, target, _ in started] == [
        course / "runs" / "cpu" / "notebooks" / name for name in ("01_a.ipynb", "02_b.ipynb")
    ]
    run_dir = str(course / "runs" / "cpu")
    assert [given for _, _, given in started] == [{"epochs": 2, "run_dir": run_dir}, {"k": 3, "run_dir": run_dir}]
