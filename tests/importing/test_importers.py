"""Foreign formats in, BEIR layout out: round trips, what is kept, what is told, and what two processes do."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from foreign import EXPORTS, chinese_articles, export, lines, long_articles, parts, write

from helpers.answers import has_answer, normalize
from helpers.base.errors import DataError, SettingError
from helpers.base.files import ROOT
from helpers.dataset import PassageIndex, load_data
from helpers.importing.__main__ import main
from helpers.importing.importer import READERS, ImportOptions, import_data
from helpers.importing.leakage import find_leaks
from helpers.reporting.display import show_passages
from helpers.reporting.report import Report

WITHOUT_ANSWERS = ("msmarco", "flagembedding", "sentence-transformers")


@pytest.fixture(scope="module")
def valves(tmp_path_factory):
    """An imported SQuAD file of long articles in a special domain."""
    folder = tmp_path_factory.mktemp("valves")
    return import_data("squad", [write(folder / "valves.json", {"data": long_articles()})], folder / "out")


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def left_in(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


@pytest.mark.parametrize("form", EXPORTS)
def test_import_export_import_gives_the_same_hashes(form, valves, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    paths, options = export(form, valves, tmp_path / "one")
    first = import_data(form, paths, tmp_path / "first", ImportOptions(longest=0, **options))
    paths, options = export(form, first, tmp_path / "two")
    second = import_data(form, paths, tmp_path / "second", ImportOptions(longest=0, **options))
    assert manifest(first)["files"] == manifest(second)["files"]
    data = load_data(second)
    assert data.fingerprint == manifest(first)["fingerprint"]
    assert {split: len(qrels) for split, qrels in data.qrels.items()} == manifest(valves)["splits"]
    for qrels in data.qrels.values():  # answers that were in a passage still are
        for qid, pids in qrels.items():
            texts = [row["text"] for row in data.corpus if row["_id"] in pids]
            assert form in WITHOUT_ANSWERS or any(
                has_answer(data.queries[qid].answers, normalize(text)) for text in texts
            )


def test_every_format_is_exported_here():
    assert EXPORTS.keys() == READERS.keys()


def test_long_contexts_become_passages_of_100_words_and_answers_stay_whole(valves):
    data = load_data(valves)
    words = [len(text.split()) for text in data.corpus["text"]]
    assert max(words) <= 100 and min(words) > 50
    assert len(data.queries) == 120 and manifest(valves)["warnings"] == []
    texts = {row["_id"]: row["text"] for row in data.corpus}
    for qrels in data.qrels.values():
        for qid, pids in qrels.items():
            assert all(data.queries[qid].answers[0] in texts[pid] for pid in pids)
    assert manifest(valves)["leaks"] == [] or all("passage" in leak for leak in manifest(valves)["leaks"])


def test_chinese_contexts_are_cut_by_characters(tmp_path):
    source = write(tmp_path / "towns.json", {"data": chinese_articles()})
    data = load_data(import_data("squad", [source], tmp_path / "out", ImportOptions(longest=100)))
    assert len(data.corpus) > 2 * len(chinese_articles()) and max(map(len, data.corpus["text"])) <= 260
    passages, asked = parts(data)
    assert sum(map(len, asked.values())) == 240
    for questions in asked.values():
        assert all(has_answer(q[2], normalize(passages[pid]["text"])) for q in questions for pid in q[3])


def test_what_gets_lost_is_counted(tmp_path):
    long = " ".join(f"w{n}" for n in range(400))
    qas = [
        {"id": "a", "question": "All of it?", "answers": [{"text": long, "answer_start": 0}]},
        {"id": "b", "question": "Nothing?", "answers": [], "is_impossible": True},
        {"id": "c", "question": "Which?", "answers": [{"text": "w7", "answer_start": 999}]},
    ]
    others = [
        {
            "title": f"T{n}",
            "paragraphs": [
                {
                    "context": f"t{n} is t{n}",
                    "qas": [{"id": f"t{n}", "question": f"{n}?", "answers": {"text": f"t{n}"}}],
                }
            ],
        }
        for n in range(3)
    ]
    source = write(
        tmp_path / "x.json", {"data": [{"title": "L", "paragraphs": [{"context": long, "qas": qas}]}, *others]}
    )
    folder = import_data("squad", [source], tmp_path / "out")
    assert list(load_data(folder).queries) == ["c", "t0", "t1", "t2"]
    told = "\n".join(manifest(folder)["warnings"])
    assert "no passage holds whole, left out: 1, e.g. a" in told and "without an answer" in told and "id b" in told


def broken_dpr(good):
    def item(n, **fields):
        passage = {"title": f"T{n}", "text": f"passage {n} holds word{n}"}
        return {"question": f"question {n}?", "answers": [f"word{n}"], "positive_ctxs": [passage], **fields}

    return [item(n) for n in range(good)] + [item(99, question=7), item(98, positive_ctxs="x"), item(97, answers=[1])]


def test_all_problems_at_once_with_their_places(tmp_path):
    source = write(tmp_path / "all.json", broken_dpr(30))
    with pytest.raises(DataError) as caught:
        import_data("dpr", [source], tmp_path / "out")
    for part in (
        "3 problems",
        "all.json: item 31: the question is 7",
        "item 32: positive_ctxs",
        "item 33: the answers",
    ):
        assert part in str(caught.value)
    assert left_in(tmp_path) == ["all.json"]


def test_skipped_rows_are_written_down(tmp_path):
    source = write(tmp_path / "all.json", broken_dpr(30))
    folder = import_data("dpr", [source], tmp_path / "out", ImportOptions(skip_bad_rows=True))
    skipped = [json.loads(line) for line in (folder / "skipped" / "rows.jsonl").read_text().splitlines()]
    assert [row["place"] for row in skipped] == ["item 31", "item 32", "item 33"]
    assert manifest(folder)["counts"]["skipped"] == 3 and len(load_data(folder).queries) == 30


def test_beir_folder_with_bad_rows(tiny_folder, tmp_path):
    for name, line in (("corpus.jsonl", '{"_id": "p0", "text": "twice"}\n{"_id"\n'), ("qrels/dev.tsv", "q1\tp9\t1\n")):
        with (tiny_folder / name).open("a") as file:
            file.write(line)
    with pytest.raises(DataError) as caught:
        import_data("beir", [tiny_folder], tmp_path / "out")
    for part in (
        "3 problems",
        "corpus.jsonl:6: id 'p0' is already on line 1",
        "corpus.jsonl:7: broken JSON",
        "qrels/dev.tsv:3: unknown passage id 'p9'",
    ):
        assert part in str(caught.value)
    clean = import_data("beir", [tiny_folder], tmp_path / "out", ImportOptions(skip_bad_rows=True))
    assert manifest(clean)["counts"] == {"passages": 5, "questions": 3, "triples": 1, "skipped": 3}


def test_splits_that_are_missing_are_drawn(tmp_path):
    rows = [(f"question {n}", f"text {n} of it", f"title {n // 2}") for n in range(40)]
    table = "question,passage,title\n" + "".join(",".join(row) + "\n" for row in rows)
    data = load_data(
        import_data("table", [write(tmp_path / "a.csv", "\ufeff" + table.replace("\n", "\r\n"))], tmp_path / "out")
    )
    assert {split: len(qrels) for split, qrels in data.qrels.items()} == {"train": 32, "dev": 4, "test": 4}
    with pytest.raises(DataError, match=r"about 2 article\(s\); three are needed"):
        import_data("table", [write(tmp_path / "b.csv", "question,passage\na,b\nc,d\n")], tmp_path / "two")


def test_too_few_passages_or_no_training_data_is_one_sentence(tmp_path):
    write(tmp_path / "corpus.jsonl", lines({"_id": str(n), "text": f"text {n}"} for n in range(9)))
    write(tmp_path / "queries.jsonl", lines([{"_id": "q", "text": "what?"}]))
    write(tmp_path / "qrels" / "test.tsv", "q\t1\t1\n")
    data = load_data(import_data("beir", [tmp_path], tmp_path / "out"))
    with pytest.raises(DataError, match=r"qrels/train.tsv has no question; add its file$"):
        data.split_queries("train")


def test_an_existing_folder_is_never_touched(valves, tmp_path):
    source = write(tmp_path / "valves.json", {"data": long_articles(seed=1)})
    before = manifest(valves)
    with pytest.raises(DataError, match="exists and holds something else"):
        import_data("squad", [source], valves)
    (tmp_path / "mine").mkdir()
    write(tmp_path / "mine" / "notes.txt", "mine")
    with pytest.raises(DataError, match="exists and holds something else"):
        import_data("squad", [source], tmp_path / "mine")
    assert manifest(valves) == before and left_in(tmp_path / "mine") == ["notes.txt"]


def test_wrong_calls_are_told(tmp_path):
    with pytest.raises(SettingError, match="'xml': use one of squad, dpr"):
        import_data("xml", [tmp_path], tmp_path / "out")
    with pytest.raises(DataError, match="nowhere: No such file"):
        import_data("dpr", [tmp_path / "nowhere"], tmp_path / "out")
    with pytest.raises(SettingError, match="qa needs --corpus"):
        import_data("qa", [write(tmp_path / "q.jsonl", "{}")], tmp_path / "out")
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(DataError, match=r"pipe.json is not a file"):
        import_data("dpr", [tmp_path / "pipe.json"], tmp_path / "out")


def test_command_line(valves, tmp_path, capsys):
    source = write(tmp_path / "valves.json", {"data": long_articles()})
    assert main(["squad", str(source), "--out", str(tmp_path / "out"), "--licence", "CC0"]) == 0
    assert "120 questions" in capsys.readouterr().out and manifest(tmp_path / "out")["licence"] == "CC0"
    assert main(["squad", str(source), "--out", str(tmp_path)]) == 1
    assert "DataError" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["[1]", '{"name": 1}', "{", '{"made_from": 1}', "\ud800", "[" * 100_000])
def test_a_manifest_of_another_tool_is_none_of_ours(content, tmp_path):
    source = write(tmp_path / "valves.json", {"data": long_articles()})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "manifest.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(DataError, match="exists and holds something else"):
        import_data("squad", [source], tmp_path / "mine")
    with pytest.raises(SettingError, match="--out /: name a new folder"):
        import_data("squad", [source], "/")
    with pytest.raises(SettingError, match="longest=-1"):
        import_data("squad", [source], tmp_path / "out", ImportOptions(longest=-1))


def test_two_hub_sets_with_the_same_last_name_are_two_imports(tmp_path, monkeypatch):
    rows = [{"anchor": f"question {n}", "positive": f"passage {n}"} for n in range(30)]
    monkeypatch.setattr("helpers.importing.hub.datasets.get_dataset_config_names", lambda name: [])
    monkeypatch.setattr("helpers.importing.hub.load_hub", lambda name, *configuration, **options: {"train": rows})
    folder = import_data("hub", ["one/pairs"], tmp_path / "out")
    assert manifest(folder)["made_from"]["sources"][0]["name"] == "one/pairs"
    assert import_data("hub", ["one/pairs"], tmp_path / "out") == folder
    with pytest.raises(DataError, match="exists and holds something else"):
        import_data("hub", ["two/pairs"], tmp_path / "out")


def test_files_that_count_their_questions_from_0_each_lose_none(tmp_path):
    articles = long_articles()
    for article in articles:
        for number, qa in enumerate(article["paragraphs"][0]["qas"]):
            qa["id"] = number
    paths = [
        write(tmp_path / f"{split}.json", {"data": articles[at::3]})
        for at, split in enumerate(["train", "dev", "test"])
    ]
    folder = import_data("squad", paths, tmp_path / "out")
    data = load_data(folder)
    assert {split: len(qrels) for split, qrels in data.qrels.items()} == {"train": 40, "dev": 40, "test": 40}
    assert any("used twice" in warning for warning in manifest(folder)["warnings"])


def test_an_article_in_two_named_splits_moves_no_question(tmp_path):
    table = "question,passage,title\n" + "".join(f"{{0}} {n},{{0}} text {n},title {n}\n" for n in range(8))
    paths = [write(tmp_path / f"{split}.csv", table.format(split)) for split in ("train", "dev", "test")]
    folder = import_data("table", paths, tmp_path / "out")
    data = load_data(folder)
    for split, qrels in data.qrels.items():
        assert len(qrels) == 8 and all(data.queries[qid].text.startswith(split) for qid in qrels)
    assert "the same article in train and dev: 8" in "\n".join(manifest(folder)["leaks"])


def test_unknown_negatives_and_packed_judgements(tiny_folder, tmp_path):
    with (tiny_folder / "triples" / "train.tsv").open("a") as file:
        file.write("q0\tp0\tp77\n")
    for name in ("corpus.jsonl", "qrels/test.tsv", "triples/train.tsv"):
        path = tiny_folder / name
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    with pytest.raises(DataError, match=r"triples/train\.tsv\.gz:3: unknown passage id 'p77'"):
        import_data("beir", [tiny_folder], tmp_path / "out")
    data = load_data(import_data("beir", [tiny_folder], tmp_path / "out", ImportOptions(skip_bad_rows=True)))
    assert data.triples == [("q0", "p0", "p1")] and data.qrels["test"] == {"q2": {"p3"}}


def test_a_query_id_with_two_texts_is_told(valves, tmp_path):
    ((source,), _) = export("msmarco", valves, tmp_path / "in")
    queries = source / "queries.train.tsv"
    first = queries.read_text("utf-8").splitlines()[0]
    write(source / "queries.more.tsv", f"{first}\n")
    import_data("msmarco", [source], tmp_path / "out")
    write(source / "queries.more.tsv", f"{first} or not?\n")
    with pytest.raises(DataError, match=r"queries\.train\.tsv:1: question .* another text at .*queries\.more\.tsv:1"):
        import_data("msmarco", [source], tmp_path / "two")


def test_empty_answers_are_counted(tmp_path):
    items = broken_dpr(30)[:30]
    items[3]["answers"] += ["", " "]
    folder = import_data("dpr", [write(tmp_path / "all.json", items)], tmp_path / "out")
    assert any("empty answers, left out: 2, e.g." in warning for warning in manifest(folder)["warnings"])


# processes

COMMAND = [sys.executable, "-m", "helpers.importing", "squad"]


def test_two_processes_at_once_make_one_folder(tmp_path):
    source = write(tmp_path / "valves.json", {"data": long_articles()})
    command = [*COMMAND, str(source), "--out", str(tmp_path / "out")]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in started:
        out, error = process.communicate(timeout=60)
        assert process.returncode == 0 and "120 questions" in out, error
    assert left_in(tmp_path) == ["out", "valves.json"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills by signal")
def test_after_a_kill_the_next_run_succeeds(tmp_path):
    articles = [article for seed in range(15) for article in long_articles(seed)]
    for number, article in enumerate(articles):
        for qa in article["paragraphs"][0]["qas"]:
            qa["id"] += f"-{number}"
    source = write(tmp_path / "valves.json", {"data": articles})
    command = [*COMMAND, str(source), "--out", str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".out.*.tmp/corpus.jsonl")):  # in the middle: the corpus is there, the rest is not
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists() and list(tmp_path.glob(".out.*.tmp"))
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert left_in(tmp_path) == ["out", "valves.json"]


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path):
    resource = pytest.importorskip("resource")
    source = write(tmp_path / "valves.json", {"data": long_articles()})
    done = subprocess.run(
        [*COMMAND, str(source), "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000,) * 2),
    )
    assert done.returncode == 1 and "corpus.jsonl: File too large; free some space" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and left_in(tmp_path) == ["valves.json"]


# hostile data


def test_nothing_in_a_folder_is_executed_and_ids_are_no_paths(tmp_path):
    trap = f"import pathlib; pathlib.Path({str(tmp_path / 'sprung')!r}).touch()"
    source = tmp_path / "set"
    for name in ("set.py", "__init__.py", "conftest.py", "setup.py"):
        write(source / name, trap)
    (source / "data.pkl").write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "sprung").encode() + b"'\ntR.")
    names = ["../../escape", "/etc/passwd", "..", "a/b\\c", "C:con"]
    write(source / "corpus.jsonl", lines({"_id": name, "text": f"text {n}"} for n, name in enumerate(names)))
    write(source / "queries.jsonl", lines({"_id": name, "text": f"question {n}"} for n, name in enumerate(names)))
    write(source / "qrels" / "train.tsv", "".join(f"{name}\t{name}\t1\n" for name in names))
    data = load_data(import_data("beir", [source], tmp_path / "out"))
    assert set(data.queries) == set(names)
    with pytest.raises(DataError, match=r"hub gave no data set|are not read"):
        import_data("hub", [source], tmp_path / "hub")
    assert left_in(tmp_path) == ["out", "set"]
    assert "pickle" not in "".join(path.read_text() for path in (ROOT / "helpers").glob("*.py")).replace(
        "pickled", ""
    ).replace("unpickles", "").replace("unpickle", "").replace("no pickle", "")


def test_hostile_text_is_escaped_wherever_it_is_shown(tmp_path):
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    rows = [f"{evil} question {n},{evil} passage {n},{evil} {n},{evil}\n" for n in range(12)]
    source = write(tmp_path / "evil.csv", "question,passage,title,answers\n" + "".join(rows))
    data = load_data(import_data("table", [source], tmp_path / "out"))
    passages, qids = PassageIndex(data.corpus), list(data.qrels["train"])
    shown = show_passages([(evil, passages.corpus[0])], [evil]).data
    ranks = {"zero-shot": np.ones(len(qids)), evil: np.ones(len(qids))}
    report = Report(ranks, ranks, len(passages), {"data": evil, evil: 1}, cutoffs=(1,))
    report.save(tmp_path / "report")
    table = pd.DataFrame({evil: [data.queries[qid].text for qid in qids]}).to_html()
    leaks = pd.DataFrame([vars(leak) for leak in find_leaks(data)]).to_html()
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    for html in (shown, report._repr_html_(), table, leaks, page):
        assert "script" in html or html == leaks
        assert "<script>alert" not in html and "<img src=x" not in html


# the hub's other forms, from folders laid out as its repositories are

CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: qrels/train.jsonl
  - split: test
    path: qrels/test.jsonl
- config_name: corpus
  data_files:
  - split: corpus
    path: corpus.jsonl
- config_name: queries
  data_files:
  - split: queries
    path: queries.jsonl
---
"""


def test_hub_sets_in_beirs_form(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    source = tmp_path / "set"
    write(source / "README.md", CARD)
    write(source / "corpus.jsonl", lines({"_id": f"p{n}", "title": "", "text": f"passage {n}"} for n in range(30)))
    write(source / "queries.jsonl", lines({"_id": f"q{n}", "text": f"question {n}"} for n in range(25)))
    for split, numbers in {"train": range(20), "test": range(20, 24)}.items():
        rows = [{"query-id": f"q{n}", "corpus-id": f"p{n}", "score": n % 3} for n in numbers]
        write(source / "qrels" / f"{split}.jsonl", lines(rows))
    data = load_data(import_data("hub", [source], tmp_path / "out"))
    assert len(data.corpus) == 30 and data.qrels["test"] == {"q20": {"p20"}, "q22": {"p22"}, "q23": {"p23"}}
    assert len(data.qrels["train"]) == 12 and len(data.qrels["dev"]) == 1  # a third of the 20 has score 0


def test_hub_sets_of_pairs(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    rows = [{"anchor": f"question {n}", "positive": f"passage {n}", "negative": f"passage {n + 1}"} for n in range(30)]
    write(tmp_path / "set" / "train.jsonl", lines(rows))
    data = load_data(import_data("hub", [tmp_path / "set"], tmp_path / "out"))
    assert {split: len(qrels) for split, qrels in data.qrels.items()} == {"train": 24, "dev": 3, "test": 3}
    assert len(data.corpus) == 31 and len(data.triples) == 24


def test_a_hub_name_that_does_not_exist_is_told(tmp_path):
    with pytest.raises(DataError, match=r"nobody/nothing: the hub gave no data set.*check the name and HF_ENDPOINT"):
        import_data("hub", ["nobody/nothing"], tmp_path / "out")
    assert left_in(tmp_path) == []
