"""A user's own data, by one parameter: an imported file goes through notebooks 01 to 04 to a report."""

import json
import os
import shutil

import pytest
from foreign import chinese_articles, export, long_articles, write

from helpers.base.files import resolve
from helpers.importing.importer import import_data
from helpers.running.run import main

# the other two take as long, and were run by hand: OWN_DATA="long chinese beir" pytest tests/test_own_data.py
SETS = os.environ.get("OWN_DATA", "chinese").split()


def prepare(kind, folder):
    """Return the folder of a data set: long articles, Chinese ones, or a BEIR folder without answers, as it is."""
    articles = chinese_articles() if kind == "chinese" else long_articles()
    imported = import_data("squad", [write(folder / "articles.json", {"data": articles})], folder / "imported")
    if kind != "beir":
        return imported
    ((beir,), _) = export("beir", imported, folder / "beir")
    queries = [json.loads(line) for line in (beir / "queries.jsonl").read_text("utf-8").splitlines()]
    write(beir / "queries.jsonl", "".join(json.dumps({k: q[k] for k in ("_id", "text")}) + "\n" for q in queries))
    shutil.rmtree(beir / "triples")
    return beir


@pytest.mark.parametrize("kind", SETS)
def test_main_job_runs_on_imported_data(kind, tmp_path):
    name = f"test-own-{kind}"
    shutil.rmtree(resolve(f"runs/{name}"), ignore_errors=True)
    data = prepare(kind, tmp_path)
    quick = ["-p", "train_control", "false", "-p", "trained_model", "bert-tiny", "-p", "also_on", "[]"]
    assert main(["--params", "smoke", "-p", "data", str(data), "--name", name, *quick]) == 0
    report = json.loads((resolve(f"runs/{name}") / "report.json").read_text(encoding="utf-8"))
    by = "qrels" if kind == "beir" else "answer"
    bm25 = next(system for system in report["systems"] if system["name"] == "BM25")
    assert bm25["hits"]["10"][by] > 0.5  # the texts are found at all: by characters, where there are no words
    assert report["settings"]["data"] == str(data)
    shutil.rmtree(resolve(f"runs/{name}"))
