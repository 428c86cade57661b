"""Tables with a header, and questions whose passages are looked for: what is kept, and what is told."""

import json

import pytest
from foreign import lines, write

from helpers.answers import Pattern
from helpers.base.errors import DataError
from helpers.dataset import load_data
from helpers.importing.importer import ImportOptions, import_data


def rows(count=12):
    return "".join(f"question {n},passage {n}\n" for n in range(count))


def warnings(folder):
    return "\n".join(json.loads((folder / "manifest.json").read_text("utf-8"))["warnings"])


def test_qa_keeps_held_out_questions_that_bm25_cannot_answer(tmp_path):
    corpus = write(tmp_path / "c.csv", "id,text\n" + "".join(f'p{n},"the year {1900 + n}"\n' for n in range(9)))
    paths = [
        write(
            tmp_path / f"{split}.jsonl",
            lines(
                {"id": 100 * at + n, "question": "which year?", "answer": answer}
                for n, answer in enumerate(["1901", "1950"])
            ),
        )
        for at, split in enumerate(["train", "dev", "test"])
    ]
    folder = import_data("qa", paths, tmp_path / "out", ImportOptions(corpus=corpus))
    data = load_data(folder)
    assert data.qrels["train"] == {"0": {"p1"}} and data.qrels["test"] == {"200": {"p1"}, "201": set()}
    assert list(data.queries) == ["0", "100", "101", "200", "201"]
    for split, fate in {"train": "left out", "dev": "kept for answer match", "test": "kept"}.items():
        assert f"questions of {split} without a relevant passage, {fate}" in warnings(folder)
    again = load_data(import_data("beir", [folder], tmp_path / "again"))
    assert again.qrels == data.qrels


def test_qa_and_dpr_keep_patterns(tmp_path):
    corpus = write(tmp_path / "c.tsv", "id\ttext\n" + "".join(f"p{n}\tyear {1900 + n} ends\n" for n in range(9)))
    asked = [{"question": f"year {1900 + n}?", "answer": ["19[0-9]{2} ends"], "regex": True} for n in range(9)]
    passages = [
        {**row, "answers": row["answer"], "positive_ctxs": [{"title": "", "text": f"in {n}"}]}
        for n, row in enumerate(asked)
    ]
    qa = import_data("qa", [write(tmp_path / "q.jsonl", lines(asked))], tmp_path / "qa", ImportOptions(corpus=corpus))
    dpr = import_data("dpr", [write(tmp_path / "d.json", passages)], tmp_path / "dpr")
    for folder in (qa, dpr):
        data = load_data(folder)
        assert len(data.queries) == 9
        assert all(isinstance(a, Pattern) for query in data.queries.values() for a in query.answers)
    assert all(len(pids) == 1 for qrels in load_data(qa).qrels.values() for pids in qrels.values())


def test_a_question_on_several_rows_is_one(tmp_path):
    several = "question,passage,answers,negative\n" + "".join(
        f"q {n},one {n},a||b,none {n}\nq {n},two {n},b||c,x\nq {n},none {n},,y\n" for n in range(4)
    )
    paths = [write(tmp_path / f"{split}.csv", several) for split in ("train", "dev", "test")]
    data = load_data(import_data("table", paths, tmp_path / "out"))
    assert {split: len(qrels) for split, qrels in data.qrels.items()} == {"train": 4, "dev": 4, "test": 4}
    assert all(query.answers == ("a", "b", "c") for query in data.queries.values())
    assert all(len(pids) == 3 for qrels in data.qrels.values() for pids in qrels.values())
    texts = {row["_id"]: row["text"] for row in data.corpus}
    pairs = [(texts[positive], texts[negative]) for _, positive, negative in data.triples]
    assert pairs[:2] == [("two 0", "x"), ("none 0", "y")] and len(pairs) == 8  # "none 0" turned out to be a positive


def test_blank_lines_in_quotes_stay_and_an_open_quote_is_told(tmp_path):
    table = 'question,passage\n\n"many lines?","first\n\nlast"\n,\n' + rows()
    data = load_data(import_data("table", [write(tmp_path / "a.CSV", table)], tmp_path / "out"))
    assert "first\n\nlast" in data.corpus["text"][:] and len(data.queries) == 13
    for wrong in ('question,passage\nq,"never ends\n', 'question,passage\nq,"a "b" c"\n'):
        source = write(tmp_path / "b.csv", wrong + rows())
        with pytest.raises(DataError, match=r"b\.csv:2: broken CSV .* is a quotation mark missing"):
            import_data("table", [source], tmp_path / "b")


@pytest.mark.parametrize("header", ["question,passages", "answer,passage", "frage,absatz"])
def test_a_header_without_the_columns_is_told_once(header, tmp_path):
    with pytest.raises(DataError) as caught:
        import_data("table", [write(tmp_path / "a.csv", f"{header}\n{rows()}")], tmp_path / "out")
    assert "a.csv:1: the header is" in str(caught.value) and "--columns question=" in str(caught.value)
    assert header.split(",")[0] in str(caught.value) and len(str(caught.value).splitlines()) == 1
    (tmp_path / "q.jsonl").write_text('{"question": "?", "answer": ["x"]}\n')
    with pytest.raises(DataError, match=r"a\.csv:1: .*without a column _id or id and one text; "):
        import_data("qa", [tmp_path / "q.jsonl"], tmp_path / "out", ImportOptions(corpus=tmp_path / "a.csv"))
