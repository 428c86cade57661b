"""The BEIR layout: what loads, and what a broken file's error says."""

import json
import os
import random
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.answers import Pattern, normalize
from helpers.base.errors import DataError, SettingError
from helpers.dataset import PassageIndex, data_fingerprint, load_data, positive_rows
from helpers.evaluation import hit_ranks
from helpers.importing.sources import write_folder
from helpers.retrieval import bm25_run

FILES = ["corpus.jsonl", "queries.jsonl", "qrels/train.tsv", "qrels/dev.tsv", "qrels/test.tsv", "triples/train.tsv"]


def ids(corpus):
    return list(corpus["_id"])


def content(data):
    return data.corpus.to_dict(), data.queries, data.qrels, data.triples


def put(folder, file, number, line):
    """Replace one line (counted from 1; one after the last appends)."""
    lines = (folder / file).read_bytes().rstrip(b"\n").split(b"\n")
    lines[number - 1 : number] = [line.encode() if isinstance(line, str) else line]
    (folder / file).write_bytes(b"\n".join(lines) + b"\n")


def test_tiny_folder_loads(tiny_folder):
    data = load_data(tiny_folder)
    assert ids(data.corpus) == ["p0", "p1", "p2", "p3", "p4"]
    assert data.queries["q1"].text == "Where is Oslo?" and data.queries["q1"].answers == ("Norway",)
    assert data.qrels == {"train": {"q0": {"p0"}}, "dev": {"q1": {"p2"}}, "test": {"q2": {"p3"}}}
    assert data.triples == [("q0", "p0", "p1")]
    assert load_data(str(tiny_folder)).fingerprint == data.fingerprint


def test_corpora_by_split(tiny_folder):
    data = load_data(tiny_folder)
    assert ids(data.training_corpus()) == ["p0", "p1", "p4"]
    assert ids(data.evaluation_corpus()) == ids(data.evaluation_corpus("held-out")) == ["p2", "p3"]
    assert ids(data.evaluation_corpus("all")) == ["p0", "p1", "p2", "p3", "p4"]
    with pytest.raises(SettingError, match=r"'dev'.*held-out.*all"):
        data.evaluation_corpus("dev")


def test_public_set_without_optional_fields(tmp_path):
    """No title, answers, split, triples, header or training questions."""
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl").write_text('{"_id": "d", "text": "body", "metadata": {}}\n\n{"_id": "e", "text": "x"}')
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "what?"}')
    (tmp_path / "qrels" / "test.tsv").write_text("q\td\t2\nq\te\t0\n")
    data = load_data(tmp_path)
    assert (data.qrels, data.triples, data.queries["q"].answers) == ({"test": {"q": {"d"}}}, [], ())
    assert ids(data.training_corpus()) == ids(data.evaluation_corpus()) == ["d", "e"]
    assert PassageIndex(data.corpus).texts[:] == ["body", "x"]


def test_answers_are_patterns_only_where_the_field_says_so(tiny_folder):
    put(tiny_folder, "queries.jsonl", 1, question(_id="q0", answers=["S.ine"], regex=True))
    put(tiny_folder, "queries.jsonl", 2, question(answers=["Nor.ay"], regex=False))
    queries = load_data(tiny_folder).queries
    assert [type(queries[qid].answers[0]) for qid in ("q0", "q1", "q2")] == [Pattern, str, str]


def test_positive_rows_are_those_of_the_passages_at_hand(tiny_folder):
    (tiny_folder / "qrels" / "train.tsv").write_text("q0\tp4\t1\nq0\tp0\t1\nq0\tp1\t1\n")
    (tiny_folder / "triples" / "train.tsv").unlink()
    data = load_data(tiny_folder)
    for chosen, rows in (([4, 3, 1, 0], [0, 2, 3]), ([0, 2, 4], [0, 2]), ([2, 3], []), ([4, 0, 1], [0, 1, 2])):
        assert positive_rows(data, PassageIndex(data.corpus.select(chosen)), "q0") == rows
    assert positive_rows(data, PassageIndex(data.corpus), "q1") == []  # a question of dev


def test_triples_are_optional(tiny_folder):
    (tiny_folder / "triples" / "train.tsv").unlink()
    assert load_data(tiny_folder).triples == []


@pytest.mark.parametrize("file", [*FILES, "all"])
@pytest.mark.parametrize(("mark", "end"), [(b"\xef\xbb\xbf", b"\n"), (b"", b"\r\n"), (b"\xef\xbb\xbf", b"\r\n")])
def test_byte_order_mark_and_crlf_change_nothing(tiny_folder, file, mark, end):
    before = content(load_data(tiny_folder))
    for path in (tiny_folder / name for name in FILES if file in (name, "all")):
        path.write_bytes(mark + path.read_bytes().replace(b"\n", end))
    assert content(load_data(tiny_folder)) == before


P1 = {"_id": "p1", "title": "Capitals", "text": "Rome lies on the Tiber.", "split": "train"}
Q1 = {"_id": "q1", "text": "Where is Oslo?", "answers": ["Norway"]}


def passage(**fields):
    return json.dumps({k: v for k, v in {**P1, **fields}.items() if v is not ...})


def question(**fields):
    return json.dumps({k: v for k, v in {**Q1, **fields}.items() if v is not ...})


BROKEN = [  # file, line, what is written there, parts of the message beside "file:line"
    ("corpus.jsonl", 2, passage()[:-1], ["broken JSON", "one JSON object per line"]),
    ("corpus.jsonl", 2, "p1,Rome", ["broken JSON"]),
    ("corpus.jsonl", 2, "[" * 100_000, ["broken JSON"]),
    ("corpus.jsonl", 2, passage().encode().replace(b"Rome", b"R\xf6m"), ["not UTF-8"]),
    ("corpus.jsonl", 2, '["p1", "Rome"]', ["['p1', 'Rome']", "JSON object"]),
    ("corpus.jsonl", 2, passage(_id=...), ["'_id'", "None", "non-empty string"]),
    ("corpus.jsonl", 2, passage(_id=""), ["'_id'", "''", "non-empty string"]),
    ("corpus.jsonl", 2, passage(_id=7), ["'_id'", "7"]),
    ("corpus.jsonl", 5, passage(_id="p0"), ["'p0'", "line 1"]),
    ("corpus.jsonl", 2, passage(text=...), ["'text'", "None"]),
    ("corpus.jsonl", 2, passage(text=" \t", title=""), ["'text'"]),
    ("corpus.jsonl", 2, passage(text="", title=None), ["'text'", "''"]),
    ("corpus.jsonl", 2, passage(text=["Rome"]), ["'text'", "['Rome']"]),
    ("corpus.jsonl", 2, passage(title=7, text=""), ["'title'", "7", "string"]),
    ("corpus.jsonl", 2, passage(split=1), ["'split'", "1"]),
    ("corpus.jsonl", 2, passage(split="validation"), ["'split'", "'validation'", "'dev'"]),
    ("queries.jsonl", 2, question()[1:], ["broken JSON"]),
    ("queries.jsonl", 2, question().encode().replace(b"Oslo", b"\xd8slo"), ["not UTF-8"]),
    ("queries.jsonl", 2, question(_id=...), ["'_id'"]),
    ("queries.jsonl", 2, question(_id="q0"), ["'q0'", "line 1"]),
    ("queries.jsonl", 2, question(text="", title="Oslo"), ["'text'", "''"]),
    ("queries.jsonl", 2, question(answers="Norway"), ["'answers'", "'Norway'", "list"]),
    ("queries.jsonl", 2, question(answers=None), ["'answers'", "None"]),
    ("queries.jsonl", 2, question(answers=["Norway", 9]), ["'answers'", "9"]),
    ("queries.jsonl", 2, question(answers=["Norway", ""]), ["answer ''", "empty", "remove"]),
    ("queries.jsonl", 2, question(answers=[" "]), ["answer ' '", "empty"]),
    ("queries.jsonl", 2, question(answers=["\u200b"]), [r"answer '\u200b'", "empty"]),
    ("queries.jsonl", 2, question(answers=["Norway", "["], regex=True), ["answer '['", "no regular expression"]),
    ("queries.jsonl", 2, question(regex="yes"), ["'regex'", "'yes'", "true"]),
    ("qrels/train.tsv", 2, "q0 p0 1", ["1 columns", "three", "query-id"]),
    ("qrels/train.tsv", 2, "q0\tp0", ["2 columns"]),
    ("qrels/train.tsv", 2, "q0\t0\tp0\t1", ["4 columns"]),
    ("qrels/train.tsv", 2, "q9\tp0\t1", ["query", "'q9'", "queries.jsonl"]),
    ("qrels/train.tsv", 2, "q0\tp9\t1", ["passage", "'p9'", "corpus.jsonl"]),
    ("qrels/train.tsv", 2, "q0\tp0\tyes", ["'yes'", "number"]),
    ("qrels/dev.tsv", 2, b"q1\tp2\xff\t1", ["not UTF-8"]),
    ("qrels/dev.tsv", 2, "q1\tp2\t", ["''", "number"]),
    ("triples/train.tsv", 2, "q0\tp0", ["2 columns", "neg_pid"]),
    ("triples/train.tsv", 2, "q9\tp0\tp1", ["query", "'q9'"]),
    ("triples/train.tsv", 2, "q0\tp9\tp1", ["passage", "'p9'"]),
    ("triples/train.tsv", 2, "q0\tp0\tp9", ["passage", "'p9'"]),
    ("triples/train.tsv", 2, "q0\tp0\tp0", ["negative 'p0'", "positive of 'q0'"]),
    ("triples/train.tsv", 2, "q0\tp4\tp1", ["'p4'", "no positive of 'q0'", "qrels/train.tsv"]),
]


@pytest.mark.parametrize(
    ("file", "number", "line", "parts"), BROKEN, ids=[f"{n}-{case[3][0]}" for n, case in enumerate(BROKEN)]
)
def test_broken_line_is_named(tiny_folder, file, number, line, parts):
    put(tiny_folder, file, number, line)
    with pytest.raises(DataError) as caught:
        load_data(tiny_folder)
    for part in (f"{tiny_folder / file}:{number}:", *parts):
        assert part in str(caught.value)


def test_all_problems_of_a_file_are_listed_the_first_20_by_name(tiny_folder):
    with (tiny_folder / "corpus.jsonl").open("a") as file:
        file.writelines(f'{{"_id": "n{n}", "text": ""}}\n' for n in range(30))
    put(tiny_folder, "queries.jsonl", 2, question(answers="Norway"))
    with pytest.raises(DataError) as caught:
        load_data(tiny_folder)
    first, *lines = str(caught.value).splitlines()
    assert first == "31 problems:" and len(lines) == 22
    assert lines[0].startswith(f"{tiny_folder / 'corpus.jsonl'}:6: field 'text' is ''")
    assert lines[19].startswith(f"{tiny_folder / 'corpus.jsonl'}:25:")
    assert (
        lines[20] == f"{tiny_folder / 'corpus.jsonl'}: and 10 more" and "queries.jsonl:2: field 'answers'" in lines[21]
    )


def test_a_line_without_end_is_told_and_not_held(tiny_folder):
    with (tiny_folder / "corpus.jsonl").open("a") as file:
        file.write('{"_id": "long", "text": "' + "a" * (40 * 2**20) + '"}\n{"_id": "p0", "text": "x"}\n')
    with pytest.raises(DataError) as caught:
        load_data(tiny_folder)
    assert "2 problems" in str(caught.value) and "corpus.jsonl:6: a line of over 16 MiB" in str(caught.value)


def test_what_may_be_wrong_is_a_warning(tiny_folder):
    assert load_data(tiny_folder).warnings == ()
    put(tiny_folder, "corpus.jsonl", 5, passage(_id="p4", text="long " * 3000 + "\ufffd"))
    put(tiny_folder, "queries.jsonl", 4, question(_id="q9", text="Who?") + "\n" + question(_id="q8", text="Why?"))
    long, wrong, unasked = load_data(tiny_folder).warnings
    assert "more than 10,000 characters" in long and f"{tiny_folder / 'corpus.jsonl'}:5" in long
    assert "U+FFFD" in wrong and "no qrels file judges" in unasked and "2, e.g. q9" in unasked


def test_ids_hold_no_spaces(tiny_folder):
    put(tiny_folder, "corpus.jsonl", 2, passage(_id="p 1"))
    with pytest.raises(DataError, match=r"corpus.jsonl:2: field '_id' is 'p 1'; ids hold no space"):
        load_data(tiny_folder)


LEAKS = [
    ("qrels/train.tsv", 3, "q0\tp3\t1", ["'p3'", "test"]),  # trains on a held-out passage
    ("triples/train.tsv", 2, "q0\tp0\tp2", ["'p2'", "dev"]),
    ("qrels/dev.tsv", 3, "q1\tp7\t1", ["unknown passage id 'p7'"]),
]


@pytest.mark.parametrize("many", [1, 1_000_000])
@pytest.mark.parametrize(("file", "number", "line", "parts"), LEAKS)
def test_held_out_passage_in_training_rows_is_named(tiny_folder, monkeypatch, file, number, line, parts, many):
    monkeypatch.setattr("helpers.dataset.MANY", many)
    assert load_data(tiny_folder).triples
    put(tiny_folder, file, number, line)
    with pytest.raises(DataError) as caught:
        load_data(tiny_folder)
    for part in (f"{tiny_folder / file}:{number}:", *parts):
        assert part in str(caught.value)


ODD = [
    ("corpus.jsonl", 2, passage(text="\ud800"), "'text'"),  # half of a surrogate pair
    ("corpus.jsonl", 2, passage(text=r"x\uDFFF").replace(r"\\u", r"\u"), "'text'"),
    ("corpus.jsonl", 2, passage()[:-1] + r', "\ud800": 1}', r"'\ud800'"),  # in the name of another field
    ("corpus.jsonl", 2, passage()[:-1] + f', "number": {"1" * 5000}}}', "broken JSON"),
]


@pytest.mark.parametrize(
    ("file", "number", "line", "part"), ODD, ids=["surrogate", "upper case", "surrogate in a name", "long number"]
)
def test_odd_json_is_an_error_of_ours(tiny_folder, file, number, line, part):
    put(tiny_folder, file, number, line)
    with pytest.raises(DataError) as caught:
        load_data(tiny_folder)
    assert f"{file}:{number}:" in str(caught.value) and part in str(caught.value)


def test_question_without_a_positive_in_train_is_named(tiny_folder):
    put(tiny_folder, "queries.jsonl", 4, question(_id="q9", text="Who?"))
    put(tiny_folder, "qrels/train.tsv", 3, "q9\tp1\t0")
    with pytest.raises(DataError, match=r"train\.tsv.*'q9'"):
        load_data(tiny_folder)


def test_a_title_is_text_enough_and_may_be_null(tiny_folder):
    put(tiny_folder, "corpus.jsonl", 2, passage(text=""))
    put(tiny_folder, "corpus.jsonl", 5, passage(_id="p4", title=None))
    data = load_data(tiny_folder)
    assert (data.corpus[1]["title"], data.corpus[1]["text"], data.corpus[4]["title"]) == ("Capitals", "", "")
    assert PassageIndex(data.corpus).texts[1] == "Capitals"
    assert "a title and no text" in data.warnings[0] and ": 1, e.g." in data.warnings[0]


def test_a_question_with_answers_alone_is_evaluated_by_them(tiny_folder):
    put(tiny_folder, "queries.jsonl", 4, question(_id="q8", text="Who?"))
    put(tiny_folder, "queries.jsonl", 5, question(_id="q9", text="What?", answers=[]))
    put(tiny_folder, "qrels/test.tsv", 3, "q8\tp2\t0\nq9\tp2\t0")
    data = load_data(tiny_folder)
    assert data.qrels["test"] == {"q2": {"p3"}, "q8": set()} and data.split_queries("test") == ["q2", "q8"]
    passages = PassageIndex(data.corpus)
    by_answer, by_qrels = hit_ranks(bm25_run("BM25", {"q8": "Oslo Norway"}, passages), data, passages, "test")
    assert by_answer[0] == 1 and np.isinf(by_qrels[0])


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_empty_split_is_named(tiny_folder, split):
    qid, pid = {"train": ("q0", "p0"), "dev": ("q1", "p2"), "test": ("q2", "p3")}[split]
    for rows in ("", f"{qid}\t{pid}\t0\n"):
        (tiny_folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + rows)
        with pytest.raises(DataError, match=rf"qrels/{split}\.tsv"):
            load_data(tiny_folder)


@pytest.mark.parametrize("file", ["corpus.jsonl", "queries.jsonl"])
def test_empty_or_missing_file_is_named(tiny_folder, file):
    (tiny_folder / file).write_text("\n")
    with pytest.raises(DataError, match=f"{file} is empty"):
        load_data(tiny_folder)
    (tiny_folder / file).unlink()
    with pytest.raises(DataError, match=f"{file} cannot be read"):
        load_data(tiny_folder)


def test_folders_and_pipes_in_place_of_files_are_told(tiny_folder):
    (tiny_folder / "notes.jsonl").mkdir()
    os.mkfifo(tiny_folder / "pipe.jsonl")
    before = load_data(tiny_folder).fingerprint
    assert before == data_fingerprint(tiny_folder)
    (tiny_folder / "queries.jsonl").unlink()
    os.mkfifo(tiny_folder / "queries.jsonl")
    with pytest.raises(DataError, match=r"queries\.jsonl is not a file"):
        load_data(tiny_folder)


@pytest.mark.parametrize("file", FILES)
def test_a_folder_or_a_circular_link_in_place_of_a_file_is_told(tiny_folder, file):
    (tiny_folder / file).unlink()
    (tiny_folder / file).mkdir()
    with pytest.raises(DataError, match=f"{file} is not a file"):
        load_data(tiny_folder)
    (tiny_folder / file).rmdir()
    for target, reason in ((file, "Too many levels"), ("nowhere", "No such file")):
        (tiny_folder / file).symlink_to(tiny_folder / target)
        with pytest.raises(DataError, match=rf"{tiny_folder / file} cannot be read \({reason}"):
            load_data(tiny_folder)
        (tiny_folder / file).unlink()


def test_what_cannot_be_a_folder_is_told(tiny_folder):
    (tiny_folder / "circle").symlink_to(tiny_folder / "circle")
    with pytest.raises(DataError, match="circle: no such folder"):
        load_data(tiny_folder / "circle")
    with pytest.raises(DataError, match="name too long"):
        load_data(tiny_folder / ("x" * 300))


def test_missing_folders_are_named(tiny_folder):
    for wrong in (tiny_folder / "nowhere", tiny_folder / "corpus.jsonl"):
        with pytest.raises(DataError, match=f"{wrong}: no such folder.*corpus.jsonl"):
            load_data(wrong)
    shutil.rmtree(tiny_folder / "qrels")
    with pytest.raises(DataError, match=r"tiny: no qrels/train\.tsv"):
        load_data(tiny_folder)


@pytest.mark.parametrize(
    ("one", "other", "qid"), [("train", "dev", "q0"), ("train", "test", "q0"), ("dev", "test", "q1")]
)
def test_question_in_two_splits_is_named(tiny_folder, one, other, qid):
    put(tiny_folder, f"qrels/{other}.tsv", 3, f"{qid}\tp2\t1")
    with pytest.raises(DataError, match=rf"'{qid}' is in {one}\.tsv and in {other}\.tsv"):
        load_data(tiny_folder)


def test_long_value_is_shortened(tiny_folder):
    put(tiny_folder, "queries.jsonl", 2, question(answers="Norway " * 10_000))
    with pytest.raises(DataError, match=r"queries\.jsonl:2") as caught:
        load_data(tiny_folder)
    assert len(str(caught.value)) < 300 + len(str(tiny_folder))


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=5))
def test_any_text_survives_writing_and_loading(texts):
    with tempfile.TemporaryDirectory() as folder:
        corpus = [{"_id": f"p{n}", "title": text, "text": text} for n, text in enumerate(texts)]
        queries = [{"_id": f"q{n}", "text": text} for n, text in enumerate(texts)]
        write_folder(Path(folder), corpus, queries, {"test": [(f"q{n}", f"p{n}", 1) for n in range(len(texts))]})
        data = load_data(folder)
        assert data.corpus["text"][:] == data.corpus["title"][:] == texts
        assert [query.text for query in data.queries.values()] == texts


def test_fingerprint_changes_with_any_byte_of_any_file(tiny_folder):
    seen, written = {data_fingerprint(tiny_folder)}, 1
    for path in (tiny_folder / name for name in FILES):
        old = path.read_bytes()
        flipped = [old[:n] + bytes([old[n] ^ 1]) + old[n + 1 :] for n in range(0, len(old), 7)]
        for new in (old + b"\n", old[:-1], *flipped):
            path.write_bytes(new)
            seen.add(data_fingerprint(tiny_folder))
            written += 1
        path.write_bytes(old)
    assert len(seen) == written
    assert data_fingerprint(tiny_folder) in seen


def test_fingerprint_is_of_the_data_and_not_of_the_place(tiny_folder, tmp_path):
    before = data_fingerprint(tiny_folder)
    shutil.copytree(tiny_folder, tmp_path / "another name")
    (tmp_path / "another name" / "README.md").write_text("notes")
    assert data_fingerprint(tmp_path / "another name") == before
    (tiny_folder / "qrels" / "test.tsv").unlink()
    without_test = data_fingerprint(tiny_folder)
    (tiny_folder / "qrels" / "dev.tsv").rename(tiny_folder / "qrels" / "test.tsv")
    assert len({before, without_test, data_fingerprint(tiny_folder)}) == 3


@pytest.mark.parametrize("split", ["train", "dev", "test"])
@pytest.mark.parametrize(("limit", "seed"), [(1, 0), (10, 0), (10, 1), (100, 7)])
def test_limit_draws_that_many_with_the_seed_in_order(sample, split, limit, seed):
    everything = sample.split_queries(split)
    drawn = sample.split_queries(split, limit, seed)
    assert len(set(drawn)) == len(drawn) == limit
    assert drawn == [qid for qid in everything if qid in set(drawn)]
    assert drawn == sample.split_queries(split, limit, seed) != sample.split_queries(split, limit, seed + 1)


def test_no_limit_or_a_high_one_gives_all_questions(sample):
    for limit in (0, 141, 1000):
        assert sample.split_queries("dev", limit) == list(sample.qrels["dev"])


def test_split_without_questions_is_named(tiny_folder):
    (tiny_folder / "qrels" / "dev.tsv").unlink()
    with pytest.raises(DataError, match=r"qrels/dev\.tsv"):
        load_data(tiny_folder).split_queries("dev")


def test_passage_index_keeps_positions(sample, sample_passages):
    assert len(sample_passages) == len(sample.corpus)
    for number in random.Random(0).sample(range(len(sample_passages)), 20):
        row = sample.corpus[number]
        assert sample_passages.row[row["_id"]] == number and sample_passages.ids[number] == row["_id"]
        assert sample_passages.texts[number] == f"{row['title']} {row['text']}"
        assert sample_passages.normalized[number] == normalize(row["text"])  # the body only
