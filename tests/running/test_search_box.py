"""The search box of notebook 04: widgets for a person at JupyterLab, plain output for everybody else."""

import nbformat
from nbclient import NotebookClient

from helpers.running.parameters import NOTEBOOKS

BEFORE = """
import os
from importlib.util import find_spec
from types import SimpleNamespace
from IPython.display import display
os.environ.pop("JPY_SESSION_NAME", None)  # the tests themselves may have been started from JupyterLab
asked = []
def search(text, answers=()):
    asked.append((text, *answers))
    return text.upper()
dataset, test = SimpleNamespace(queries={"q": SimpleNamespace(text="Who?", answers=["I"])}), ["q"]
"""


def test_the_box_searches_as_one_types_and_is_plain_text_elsewhere():
    notebook = nbformat.read(NOTEBOOKS / "04_evaluate.ipynb", 4)
    (box,) = [cell.source for cell in notebook.cells if cell.cell_type == "code" and "JPY_SESSION_NAME" in cell.source]
    sources = [BEFORE, box, 'os.environ["JPY_SESSION_NAME"] = "a notebook"', box, 'box.value = "And now?"', "asked"]
    ran = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    NotebookClient(ran, timeout=120, kernel_name="python3").execute()
    plain, widget, asked = (ran.cells[number].outputs for number in (1, 3, 5))
    assert [output.get("text") or output["data"] for output in plain] == ["Who?\n", {"text/plain": "'WHO?'"}]
    assert "application/vnd.jupyter.widget-view+json" in widget[0]["data"]
    assert asked[0]["data"]["text/plain"] == "[('Who?', 'I'), ('Who?',), ('And now?',)]"
