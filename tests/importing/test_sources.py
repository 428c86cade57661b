"""SQuAD into the BEIR layout: by hand, in the hub's form, and the real one."""

import errno
import os
import re
import subprocess
import sys
import time
from collections import defaultdict

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.answers import has_answer
from helpers.base.checks import Problems
from helpers.base.errors import DataError
from helpers.base.files import ROOT, write_json
from helpers.dataset import PassageIndex, load_data
from helpers.importing import sources
from helpers.importing.hub import hub_paragraphs, load_hub
from helpers.importing.sources import find_data, prepare_squad, write_folder
from helpers.importing.squad import convert, json_paragraphs, unique

# article -> paragraphs -> (question id, question, answers); `Only` has no second paragraph, `Both` none free of "red"
TRAIN = {
    "Blue_Lake": {
        "The lake is blue and deep.": [("a1", "What colour is it? ", ["blue", "blue", " Blue "])],
        "The lake was dug in 1901. ": [("a2", "When?", ["1901"]), ("a3", "What was done?", ["dug"])],
        "Swans love blue water.": [("a4", "Who loves it?", ["Swans"])],
    },
    "Only": {"One lonely paragraph.": [("b1", "How many?", ["One"])]},
    "Both": {"A red ball.": [("c1", "Which colour?", ["red"])], "Red, white.": [("c2", "Which other?", ["white"])]},
}
DEV = {f"Dev_{n}": {f"Fact {n} is {n}.": [(f"d{n}", f"Which {n}?", [str(n), "Fact"])]} for n in range(5)}


def squad_file(path, articles):
    data = [
        {
            "title": title,
            "paragraphs": [
                {
                    "context": text,
                    "qas": [
                        {"id": i, "question": q, "answers": [{"text": a, "answer_start": 0} for a in answers]}
                        for i, q, answers in questions
                    ],
                }
                for text, questions in paragraphs.items()
            ],
        }
        for title, paragraphs in articles.items()
    ]
    write_json(path, {"data": data, "version": "1.1"})
    return path


def hub_folder(folder):
    """Write the same data in the hub's layout: one parquet file a split, one row a question."""
    for split, articles in (("train", TRAIN), ("validation", DEV)):
        rows = [
            {
                "id": i,
                "title": title,
                "context": text,
                "question": q,
                "answers": {"text": answers, "answer_start": [0] * len(answers)},
            }
            for title, paragraphs in articles.items()
            for text, questions in paragraphs.items()
            for i, q, answers in questions
        ]
        (folder / "plain_text").mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_list(rows).to_parquet(folder / "plain_text" / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture
def squad_files(tmp_path):
    for split, articles in (("train", TRAIN), ("dev", DEV)):
        squad_file(tmp_path / f"{split}-v1.1.json", articles)
    return tmp_path


@pytest.fixture
def converted(squad_files):
    problems = Problems()
    paragraphs = {split: json_paragraphs(squad_files / f"{split}-v1.1.json", problems) for split in ("train", "dev")}
    parts = convert(paragraphs)
    problems.stop()
    return parts


def test_ids_texts_and_answers(converted):
    corpus, queries, qrels, _ = converted
    assert corpus[:4] == [
        {"_id": "train-000-000", "title": "Blue Lake", "text": "The lake is blue and deep.", "split": "train"},
        {"_id": "train-000-001", "title": "Blue Lake", "text": "The lake was dug in 1901.", "split": "train"},
        {"_id": "train-000-002", "title": "Blue Lake", "text": "Swans love blue water.", "split": "train"},
        {"_id": "train-001-000", "title": "Only", "text": "One lonely paragraph.", "split": "train"},
    ]
    assert queries[0] == {"_id": "a1", "text": "What colour is it?", "answers": ["blue", "Blue"]}
    assert qrels["train"][:3] == [("a1", "train-000-000", 1), ("a2", "train-000-001", 1), ("a3", "train-000-001", 1)]
    assert [row["split"] for row in corpus if row["_id"].startswith("dev")] == ["dev", "test", "dev", "test", "dev"]
    assert [qid for qid, _, _ in qrels["dev"]] == ["d0", "d2", "d4"]
    assert [qid for qid, _, _ in qrels["test"]] == ["d1", "d3"]


def test_given_negatives_by_hand(converted):
    negatives = {qid: (positive, negative) for qid, positive, negative in converted[3]}
    assert negatives["a1"] == ("train-000-000", "train-000-001")  # the third holds "blue" too
    assert negatives["a4"][1] in ("train-000-000", "train-000-001")
    assert negatives.keys() == {"a1", "a2", "a3", "a4", "c2"}  # c1: the other passage says "Red"; b1: no other


def test_result_loads(converted, tmp_path):
    write_folder(tmp_path / "out", *converted)
    data = load_data(tmp_path / "out")
    assert len(data.corpus) == 11 and len(data.queries) == 12
    assert len(data.training_corpus()) == 6 and len(data.evaluation_corpus()) == 5


WORDS = st.sampled_from("ant bee cat dog elk fox".split())
ARTICLES = st.lists(st.lists(st.lists(WORDS, min_size=1, max_size=4), min_size=1, max_size=4), min_size=1, max_size=3)


@given(ARTICLES, st.lists(WORDS, min_size=1, max_size=2), st.integers(0, 3))
def test_given_negative_is_another_paragraph_of_the_article_without_an_answer(articles, answers, seed):
    paragraphs = [
        (f"Article {a}", " ".join(words), [{"id": f"{a}-{p}", "question": "?", "answers": answers}])
        for a, texts in enumerate(articles)
        for p, words in enumerate(texts)
    ]
    corpus, queries, qrels, triples = convert(
        {"train": paragraphs, "dev": [("D", "d", [])], "test": [("E", "e", [])]}, seed
    )
    corpus = [row for row in corpus if row["split"] == "train"]
    rows = {row["_id"]: row for row in corpus}
    assert len(rows) == len(queries) == len(qrels["train"]) == len(paragraphs)
    free = {pid for pid, row in rows.items() if not set(row["text"].split()) & set(answers)}
    given_to = {qid: (positive, negative) for qid, positive, negative in triples}
    for qid, positive, _ in qrels["train"]:
        allowed = {pid for pid in free - {positive} if rows[pid]["title"] == rows[positive]["title"]}
        assert (qid in given_to) == bool(allowed)
        if allowed:
            assert given_to[qid][0] == positive and given_to[qid][1] in allowed


def test_seed_decides_the_negatives_and_nothing_else():
    questions = [{"id": str(n), "question": "?", "answers": ["yes"]} for n in range(30)]
    paragraphs = [("A", "yes", questions), *(("A", f"no {n}", []) for n in range(9))]
    held_out = [("D", "d", []), ("E", "e", [])]
    first, again, other = (convert({"train": paragraphs, "dev": held_out}, seed) for seed in (0, 0, 1))
    assert first == again and first[:3] == other[:3] and first[3] != other[3]
    assert len({negative for _, _, negative in first[3]}) > 5  # drawn, not always the first


def test_hub_form_gives_the_same(converted, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = load_hub(str(hub_folder(tmp_path / "squad")))
    assert convert({"train": hub_paragraphs(rows["train"]), "dev": hub_paragraphs(rows["validation"])}) == converted


BROKEN = [  # the file, and what is said of it
    ("{", "broken.json:1: not the JSON that is needed"),
    ("[]", "broken.json:1: .*no field 'data'"),
    ("{}", "no field 'data'"),
    ('{"data": 3}', "a list is needed"),
    ('{"data": {"a": 1}}', "a list is needed"),
    ('{"data": [{"title": "A"}]}', "broken.json: article 1: not an article"),
    ('{"data": [{"title": 1, "paragraphs": []}]}', "article 1: not an article"),
    ('{"data": [{"title": "A", "paragraphs": [{"qas": []}]}]}', "article 1, paragraph 1: not a paragraph"),
    ('{"data": [{"title": "A", "paragraphs": [{"context": "x", "qas": [{"id": "1"}]}]}]}', "not a question"),
    (
        '{"data": [{"paragraphs": [{"context": "x", "qas": [{"id": "1", "question": "?", "answers": 3}]}]}]}',
        "paragraph 1: not a question of SQuAD's format: {'id': '1'",
    ),
    ('{"data": []', "premature EOF"),
    ('{"data": []} {', "trailing garbage"),
    ('{"data": [1, "\\ud800"]}', "broken.json:1: .*half of a surrogate pair"),
]


@pytest.mark.parametrize(("text", "message"), BROKEN)
def test_broken_squad_file_is_named(tmp_path, text, message):
    (tmp_path / "broken.json").write_text(text)
    problems = Problems()
    with pytest.raises(DataError, match=message):
        list(json_paragraphs(tmp_path / "broken.json", problems))
        problems.stop()


def test_squad_file_that_is_missing_or_not_utf8_is_named(tmp_path):
    with pytest.raises(DataError, match=r"x\.json"):
        list(json_paragraphs(tmp_path / "x.json", Problems()))
    (tmp_path / "x.json").write_bytes(b'{"data": "\xff"}')
    with pytest.raises(DataError, match=r"x\.json"):
        list(json_paragraphs(tmp_path / "x.json", Problems()))


def test_unique_strips_and_keeps_order():
    assert unique([" b", "a", "b ", "", "  ", "B"]) == ["b", "a", "B"]


@pytest.fixture
def offline(squad_files, monkeypatch):
    """An empty cache, the small SQuAD as the asset, and a hub that cannot be reached."""
    monkeypatch.setenv("RETRIEVER_COURSE_CACHE", str(squad_files / "cache"))
    monkeypatch.setattr(sources, "fetch", lambda name: squad_files)

    def unreachable(name):
        raise ConnectionError(name)

    monkeypatch.setattr(sources, "load_hub", unreachable)
    return squad_files


def test_squad_is_converted_once(offline, monkeypatch):
    folder = find_data("squad")
    assert folder == offline / "cache" / "squad" and len(load_data(folder).corpus) == 11
    monkeypatch.setattr(sources, "fetch", None)  # a second fetch would be a TypeError
    assert find_data("squad") == folder


def test_hub_out_of_reach_falls_back_and_says_so(offline, capsys):
    assert find_data("hub:squad") == offline / "cache" / "squad"
    assert "hub cannot be reached" in capsys.readouterr().out


def test_failed_conversion_leaves_no_folder(offline):
    (offline / "dev-v1.1.json").write_text("{}")
    with pytest.raises(DataError, match=r"dev-v1\.1\.json"):
        find_data("squad")
    assert [path.name for path in (offline / "cache").iterdir() if path.suffix != ".lock"] == []


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_told(offline, monkeypatch, capsys):
    monkeypatch.setattr(sources, "write_folder", full)
    with pytest.raises(DataError, match="cache/squad: No space left on device; free some space"):
        find_data("squad")
    monkeypatch.setattr(sources, "ASSETS", {})
    assert sources.main() == 1
    assert "DataError: " in (said := capsys.readouterr().err) and "No space left on device" in said


def test_a_path_that_is_too_long_or_unreadable_is_told(tiny_folder, tmp_path, monkeypatch):
    for load in (find_data, load_data):
        with pytest.raises(DataError, match=r"File name too long|no folder|no such folder"):
            load(str(tmp_path / ("x" * 300)))

    def forbidden(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))  # chmod does not stop root

    monkeypatch.setattr("helpers.dataset.file_sha256", forbidden)
    with pytest.raises(DataError, match=r"corpus\.jsonl: Permission denied; .*check the name and the permissions"):
        load_data(tiny_folder)


PREPARE = """
import sys
from pathlib import Path
from helpers.importing import sources
sources.fetch = lambda name: Path(sys.argv[1])
print(sources.find_data("squad"))
"""


def start(folder):
    environment = os.environ | {"RETRIEVER_COURSE_CACHE": str(folder / "cache")}
    command = [sys.executable, "-c", PREPARE, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_two_processes_at_once_both_succeed_and_a_killed_one_is_no_obstacle(squad_files):
    articles = {f"A {n}": {f"text {n} holds w{n}": [(f"x{n}", "?", [f"w{n}"])], "other": []} for n in range(9000)}
    squad_file(squad_files / "train-v1.1.json", articles)
    cache, killed, deadline = squad_files / "cache", start(squad_files), time.monotonic() + 60
    while not list(cache.glob(".squad.*.tmp/corpus.jsonl")):
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    killed.kill()
    killed.wait()
    assert not (cache / "squad").exists()
    for process in [start(squad_files), start(squad_files)]:
        out, error = process.communicate(timeout=60)
        assert (process.returncode, out.strip()) == (0, str(cache / "squad")), error
    assert [path.name for path in cache.iterdir() if path.suffix != ".lock"] == ["squad"]
    assert len(load_data(cache / "squad").queries) == 9005


def test_find_data_takes_folders_from_the_course(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_data("data/sample") == ROOT / "data" / "sample"
    assert find_data(str(tmp_path)) == tmp_path.resolve()
    for wrong in ("data/smaple", "hub:other", str(tmp_path / "none")):
        with pytest.raises(DataError, match=re.escape(f"data={wrong!r}") + ".*'squad'.*'hub:squad'"):
            find_data(wrong)


@pytest.fixture(scope="module")
def squad():
    return load_data(prepare_squad())


def test_real_squad_counts(squad):
    assert len(squad.corpus) == 20_963
    assert {split: len(qrels) for split, qrels in squad.qrels.items()} == {"train": 87_599, "dev": 5_397, "test": 5_173}
    assert len(squad.training_corpus()) == 18_896 and len(squad.evaluation_corpus()) == 2_067
    assert all(query.answers for query in squad.queries.values())
    assert all(len(positives) == 1 for qrels in squad.qrels.values() for positives in qrels.values())


def test_real_squad_articles_are_in_one_split(squad):
    splits = defaultdict(set)
    for title, split in zip(squad.corpus["title"], squad.corpus["split"], strict=True):
        splits[title].add(split)
    assert (
        sorted(split for found in splits.values() for split in found) == ["dev"] * 24 + ["test"] * 24 + ["train"] * 442
    )
    row = PassageIndex(squad.corpus).row
    split_of = squad.corpus["split"][:]
    assert all(split_of[row[p]] == split for split, qrels in squad.qrels.items() for ps in qrels.values() for p in ps)


def test_real_squad_answers_and_negatives(squad):
    passages = PassageIndex(squad.corpus)

    def holds(qid, pid):
        return has_answer(squad.queries[qid].answers, passages.normalized[passages.row[pid]])

    share = {s: sum(holds(q, p) for q, (p,) in qrels.items()) / len(qrels) for s, qrels in squad.qrels.items()}
    assert share["train"] == pytest.approx(0.99774, abs=2e-4)  # some answers cut a token, such as "four" of "fourth"
    assert share["dev"] == 1 and share["test"] == pytest.approx(0.99981, abs=2e-4)
    assert len(squad.triples) == 87_532
    assert not any(positive == negative or holds(qid, negative) for qid, positive, negative in squad.triples)
