"""Data sets of the hub in BEIR's form, from parquet files in folders laid out as its repositories are."""

import datetime

import datasets
import pytest

from helpers.base.errors import DataError
from helpers.base.files import write_text
from helpers.dataset import load_data
from helpers.importing.importer import ImportOptions, import_data


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")


def repository(folder, **configurations):
    """Write split -> rows of every configuration, and the card that lists them."""
    card = ["---", "configs:"]
    for name, splits in configurations.items():
        card += [f"- config_name: {name}", "  data_files:"]
        for split, rows in splits.items():
            path = folder / name / f"{split}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            datasets.Dataset.from_list(rows).to_parquet(path)
            card += [f"  - split: {split}", f"    path: {name}/{split}.parquet"]
    write_text(folder / "README.md", "\n".join([*card, "---", ""]))


def texts(kind=str):
    """Passages 0 to 29 and questions 0 to 24, with ids of a kind, a column of dates, and answers."""
    day = datetime.date(2020, 1, 1)
    corpus = [{"_id": kind(n), "title": "", "text": f"passage {n}"} for n in range(30)]
    queries = [{"_id": kind(n), "text": f"question {n}", "asked": day, "answers": [f"{n}"]} for n in range(25)]
    return {"corpus": {"corpus": corpus}, "queries": {"queries": queries}}


def judged(numbers, kind=str, score=1):
    return [{"query-id": kind(n), "corpus-id": kind(n), "score": score} for n in numbers]


@pytest.mark.parametrize("kinds", [(str, str), (int, int), (int, str), (str, int)])
@pytest.mark.parametrize("place", ["qrels", "default", "beside"])
def test_questions_keep_their_split_whatever_the_kind_of_the_ids(tmp_path, kinds, place):
    qrels = {"train": judged(range(20), kinds[1]), "test": judged(range(20, 24), kinds[1], 1.0)}
    if place == "beside":  # BEIR's own repositories
        repository(tmp_path / "set", **texts(kinds[0]))
        repository(tmp_path / "set-qrels", default=qrels)
    else:
        repository(tmp_path / "set", **texts(kinds[0]), **{place: qrels})
    data = load_data(import_data("hub", [tmp_path / "set"], tmp_path / "out"))
    assert data.qrels["test"] == {f"{n}": {f"{n}"} for n in range(20, 24)}
    assert sorted(map(int, data.qrels["train"] | data.qrels["dev"])) == list(range(20))
    assert len(data.corpus) == 30 and data.queries["0"].answers == ("0",)


@pytest.mark.parametrize(
    ("split", "row", "message"),
    [
        ("test", {"query-id": "3", "corpus-id": "4", "score": 1}, "row 5: question '3' is in 'train' and in 'test'"),
        ("test", {"query-id": "77", "corpus-id": "4", "score": 1}, "qrels test, row 5: unknown query id '77'"),
        ("train", {"query-id": "3", "corpus-id": "99", "score": 1}, "qrels train, row 21: unknown passage id '99'"),
        ("train", {"query-id": "3", "corpus-id": "4", "score": None}, "row 21: the score 'None' is not a number"),
    ],
)
def test_a_wrong_judgement_is_told_or_skipped(tmp_path, split, row, message):
    qrels = {"train": judged(range(20)), "test": judged(range(20, 24))}
    qrels[split].append(row)
    repository(tmp_path / "set", **texts(), qrels=qrels)
    with pytest.raises(DataError, match=message):
        import_data("hub", [tmp_path / "set"], tmp_path / "out")
    data = load_data(import_data("hub", [tmp_path / "set"], tmp_path / "out", ImportOptions(skip_bad_rows=True)))
    assert data.qrels["test"] == {f"{n}": {f"{n}"} for n in range(20, 24)}


def test_a_row_without_an_id_is_told(tmp_path):
    parts = texts()
    parts["corpus"]["corpus"].append({"_id": None, "title": "", "text": "x"})
    parts["queries"]["queries"].append({**parts["queries"]["queries"][0], "_id": None})
    repository(tmp_path / "set", **parts, qrels={"train": judged(range(20))})
    with pytest.raises(DataError, match=r"(?s)passage : field '_id' is ''.*question : field '_id' is ''"):
        import_data("hub", [tmp_path / "set"], tmp_path / "out")


def test_judgements_that_are_nowhere_are_told(tmp_path):
    repository(tmp_path / "set", **texts())
    with pytest.raises(DataError, match=r"the hub gave no data set that can be read .*set-qrels"):
        import_data("hub", [tmp_path / "set"], tmp_path / "out")
