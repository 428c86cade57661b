"""What people have for other trainers, and any table: read, and written for them with the negatives mined here."""

import json
import math
from types import SimpleNamespace

import datasets
import pandas as pd
import pytest
from foreign import lines, write

from helpers.base.errors import CourseError, DataError, SettingError
from helpers.base.files import ROOT
from helpers.dataset import PassageIndex, load_data
from helpers.importing.__main__ import main
from helpers.importing.export import export_data
from helpers.importing.export import main as export_main
from helpers.importing.importer import ImportOptions, import_data, recognise
from helpers.negatives import load_pool, mine_pool
from helpers.strategies import make_strategy


def listed(count=12, **more):
    """Rows as FlagEmbedding has them, with two positives and three negatives each."""
    for n in range(count):
        row = {"query": f"Question {n}?", "pos": [f"right {n}", f"also right {n}"]}
        yield row | {"neg": [f"wrong {n} {m}" for m in (2, 0, 1)]} | more


def splits(tmp_path, rows, name="{}.jsonl"):
    rows = list(rows)
    parts = {"train": rows[:-4], "dev": rows[-4:-2], "test": rows[-2:]}
    return [write(tmp_path / name.format(split), lines(own)) for split, own in parts.items()]


def texts(data):
    return dict(zip(data.corpus["_id"], data.corpus["text"], strict=True))


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("scores", [{}, {"pos_scores": [9.5, 8.0], "neg_scores": [-1.0, 2.5, 0.0]}])
def test_flagembeddings_lists_with_all_fields(tmp_path, scores):
    rows = listed(**scores, prompt="Find what answers this: ", type="normal", id=7)
    data = load_data(folder := import_data("flagembedding", splits(tmp_path, rows), tmp_path / "out"))
    text = texts(data)
    assert {split: len(rows) for split, rows in data.qrels.items()} == {"train": 8, "dev": 2, "test": 2}
    for qid, positive, negative in data.triples:
        number = data.queries[qid].text[9:-1]
        assert (text[positive], text[negative]) == (
            f"right {number}",
            f"wrong {number} 2",
        )  # the first is the given one
        found = {text[pid]: score for pid, score in data.candidates[qid].items()}
        assert list(found) == [f"right {number}", f"also right {number}", *(f"wrong {number} {m}" for m in (2, 0, 1))]
        wanted = [*scores.get("pos_scores", [math.nan] * 2), *scores.get("neg_scores", [math.nan] * 3)]
        assert [str(score) for score in found.values()] == [str(score) for score in wanted]
    assert len(data.triples) == 8 and data.candidates.keys() == data.qrels["train"].keys()
    assert any("'Find what answers this: '" in warning for warning in manifest(folder)["warnings"])


def test_a_beir_folder_keeps_its_candidates(tmp_path):
    scores = {"pos_scores": [9.5, 8.0], "neg_scores": [-1.0, 2.5, 0.0]}
    first = import_data("flagembedding", splits(tmp_path, listed(**scores)), tmp_path / "first")
    again = import_data("beir", [first], tmp_path / "again")
    assert manifest(again)["files"] == manifest(first)["files"]
    table = first / "candidates" / "train.tsv"
    good = table.read_text("utf-8")
    for row, why in {
        "train-000000\tnowhere\t1": "unknown passage id 'nowhere'",
        f"nobody\t{load_data(first).corpus['_id'][0]}\t1": "unknown query id 'nobody'",
        "train-000000\tx\tmuch": "the score 'much' is no finite number",
    }.items():
        table.write_text(good + row + "\n", "utf-8")
        with pytest.raises(DataError, match=why):
            import_data("beir", [first], tmp_path / "broken")
        options = ImportOptions(skip_bad_rows=True)
        skipped = import_data("beir", [first], tmp_path / f"skipped {why[:9]}", options)
        assert manifest(skipped)["files"]["candidates/train.tsv"] == manifest(first)["files"]["candidates/train.tsv"]


def test_given_negatives_become_a_pool(tmp_path):
    data = load_data(import_data("flagembedding", splits(tmp_path, listed()), tmp_path / "out"))
    passages, text = PassageIndex(data.training_corpus()), texts(data)
    rank = make_strategy("given", data, passages)
    pool = mine_pool(data, passages, rank, data.split_queries("train"))
    for qid, entries in pool.negatives.items():
        number = data.queries[qid].text[9:-1]
        assert [text[entry["pid"]] for entry in entries[:3]] == [f"wrong {number} {m}" for m in (2, 0, 1)]
        assert [entry["rank"] for entry in entries[:4]] == [3, 4, 5, 0]  # its positives came first; then random ones
    with pytest.raises(SettingError, match=r"'given'.*no candidates/train\.tsv"):
        make_strategy("given", load_data(ROOT / "data" / "sample"), passages)


COLUMN_SETS = {
    "pair": ({}, None),
    "triplet": ({"negative": "wrong {n} a"}, ["wrong {n} a"]),
    "many": ({"negative_10": "wrong {n} c", "negative_2": "wrong {n} b", "negative_1": "wrong {n} a"}, "abc"),
    "list": ({"negative": ["wrong {n} a", "wrong {n} b"]}, "ab"),
}


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "csv"])
@pytest.mark.parametrize("name", COLUMN_SETS)
def test_column_sets_of_sentence_transformers(tmp_path, name, kind):
    more, order = COLUMN_SETS[name]
    if name == "list" and kind == "csv":
        pytest.skip("a cell of a text file holds no list")

    def filled(value, n):
        return [own.format(n=n) for own in value] if isinstance(value, list) else value.format(n=n)

    rows = [
        {"anchor": f"Question {n}?", "positive": f"right {n}"} | {key: filled(own, n) for key, own in more.items()}
        for n in range(12)
    ]
    paths = [tmp_path / f"{split}.{kind}" for split in ("train", "dev", "test")]
    for path, own in zip(paths, (rows[:8], rows[8:10], rows[10:]), strict=True):
        if kind in ("jsonl", "json"):
            write(path, lines(own) if kind == "jsonl" else own)
        else:
            table = pd.DataFrame(own)
            table.to_parquet(path) if kind == "parquet" else table.to_csv(path, index=False)
    data = load_data(import_data("sentence-transformers", paths, tmp_path / "out"))
    text = texts(data)
    assert len(data.qrels["train"]) == 8 and len(data.triples) == (0 if order is None else 8)
    for qid, _, negative in data.triples:
        number = data.queries[qid].text[9:-1]
        wanted = [own if " " in own else f"wrong {number} {own}" for own in (own.format(n=number) for own in order)]
        assert text[negative] == wanted[0]
        if len(wanted) > 1:
            assert [text[pid] for pid in data.candidates[qid]] == [f"right {number}", *wanted]
    assert bool(data.candidates) == (name in ("many", "list"))


@pytest.mark.parametrize("soft", [False, True])
def test_labelled_pairs_are_gathered_by_question(tmp_path, soft):
    label = {True: (0.9, 0.2), False: (1, 0)}[soft]
    rows = [
        {"sentence1": f"Question {n}?", "sentence2": f"{side} {n}", "score": value}
        for side, value in (("wrong", label[1]), ("right", label[0]))
        for n in range(9)
    ]
    rows.append({"sentence1": "Alone?", "sentence2": "nothing fits", "score": 0})
    source = write(tmp_path / "all.jsonl", lines(rows))
    assert recognise([source]) == "sentence-transformers"
    data = load_data(folder := import_data("sentence-transformers", [source], tmp_path / "out"))
    text = texts(data)
    assert sum(map(len, data.qrels.values())) == 9
    for qid, positive, negative in data.triples:
        number = data.queries[qid].text[9:-1]
        assert (text[positive], text[negative]) == (f"right {number}", f"wrong {number}")
        if soft:
            assert list(data.candidates[qid].values()) == [0.9, 0.2]
    assert bool(data.candidates) == soft and len(data.triples) == 7
    assert any("without a positive passage, left out: 1" in warning for warning in manifest(folder)["warnings"])


@pytest.mark.parametrize(
    ("label", "scores"),
    [(1.5, [0, -1.5]), ([1.5], [0, -1.5]), ([4.0, 2.5], [4, 2.5]), (None, None)],
)
def test_margins_and_scores_of_triplets(tmp_path, label, scores):
    row = {"query": "Q{n}?", "positive": "right {n}", "negative": "wrong {n}"}
    rows = [{key: text.format(n=n) for key, text in row.items()} | {"label": label} for n in range(9)]
    data = load_data(import_data("table", [write(tmp_path / "a.jsonl", lines(rows))], tmp_path / "out"))
    found = [list(own.values()) for own in data.candidates.values()]
    assert found == ([] if scores is None else [scores] * 7)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"label": 3.8}, "the label is 3.8; a number from 0"),
        ({"label": "good"}, "the scores are 'good'; finite"),
        ({"label": [0.1, 0.2]}, r"the label is \[0.1, 0.2\]"),
        ({"neg": ["a", "b"], "label": [1, 2, 3, 4]}, "4 labels for 3 passages"),
        ({"neg": ["a"], "pos_scores": [1]}, "1 scores for 2 passages"),
        ({"neg": ["a"], "pos_scores": [1], "neg_scores": [math.inf]}, r"the scores are \[inf\]; finite"),
        ({"neg": ["a", 7]}, "title and passages must be texts"),
        ({"neg": [" "]}, "title and passages must be texts"),
        ({"pos": None}, "the passage is None; a non-empty text"),
        ({"pos": []}, "the passage is None; a non-empty text"),
        ({"title": ["a"]}, "title and passages must be texts"),
        ({"query": ["a"]}, r"the question is \['a'\]"),
    ],
)
def test_what_no_trainer_reads_is_told_with_its_line(tmp_path, row, why):
    rows = [{"query": f"Q{n}?", "pos": [f"right {n}"]} for n in range(9)]
    source = write(tmp_path / "a.jsonl", lines([*rows, rows[0] | row]))
    with pytest.raises(DataError, match=rf"a\.jsonl:10: {why}"):
        import_data("flagembedding", [source], tmp_path / "out")
    folder = import_data("flagembedding", [source], tmp_path / "out", ImportOptions(skip_bad_rows=True))
    assert manifest(folder)["counts"]["skipped"] == 1 and len(load_data(folder).queries) == 9


@pytest.mark.parametrize("mark", ["\t", ",", ";", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_a_list_of_frequent_questions_with_any_delimiter_and_mark(tmp_path, mark, encoding):
    rows = [f"Wie, wo; was {n}?{mark}Antwort „{n}“".replace(mark, " ", mark in ",;") for n in range(12)]
    begin = "\ufeff" if encoding == "utf-16-be" else ""
    content = begin + "\r\n".join([f"Question{mark}Answer", *rows]) + "\r\n"
    source = tmp_path / "faq.csv"
    source.write_bytes(content.encode(encoding))
    folder = import_data("table", [source], tmp_path / "out", ImportOptions(splits=(50, 25, 25)))
    data = load_data(folder)
    assert {split: len(own) for split, own in data.qrels.items()} == {"train": 6, "dev": 3, "test": 3}
    assert "Antwort „3“" in data.corpus["text"][:] and not any(query.answers for query in data.queries.values())
    assert all("\r" not in text for text in data.corpus["text"])


def test_columns_of_any_table(tmp_path, capsys):
    rows = "".join(f"{n},Frage {n},Absatz {n},{n} km\n" for n in range(12))
    source = write(tmp_path / "a.csv", f"nr,Frage,Text der Seite,Antwort\n{rows}")
    with pytest.raises(DataError, match=r"a\.csv:1: the header is .* --columns question=…"):
        import_data("table", [source], tmp_path / "out")
    columns = "question=Frage, passage=Text der Seite, answer=antwort"
    assert main([str(source), "--columns", columns, "--splits", "6/3/3", "--out", str(tmp_path / "out")]) == 0
    assert "read as table" in capsys.readouterr().out
    data = load_data(tmp_path / "out")
    assert sorted(query.answers[0] for query in data.queries.values()) == sorted(f"{n} km" for n in range(12))
    assert {split: len(own) for split, own in data.qrels.items()} == {"train": 6, "dev": 3, "test": 3}
    for wrong, why in {
        "frage=x": "use some of question, passage",
        "question": "has no column",
        "question=Frage,passage=Seite": "without a column seite",
    }.items():
        assert main([str(source), "--columns", wrong, "--out", str(tmp_path / "no")]) == 1
        assert why in capsys.readouterr().err
    for wrong in ("80/20", "a/b/c", "80/20/0", "nan/1/1"):
        assert main([str(source), "--splits", wrong, "--columns", columns, "--out", str(tmp_path / "no")]) == 1
        assert "three shares" in capsys.readouterr().err
    named = write(tmp_path / "train.csv", f"question,passage,a,b\n{rows}")
    with pytest.raises(SettingError, match="columns: squad has its own names"):
        import_data("squad", [named], tmp_path / "no", ImportOptions(columns={"question": "q"}))
    with pytest.raises(SettingError, match="the names of the files say already"):
        import_data("table", [named], tmp_path / "no", ImportOptions(splits=(8, 1, 1)))
    assert not (tmp_path / "no").exists()


def test_the_format_is_recognised(tmp_path, tiny_folder):
    kinds = {
        "squad": {"version": "1.1", "data": []},
        "dpr": [{"question": "?", "answers": [], "positive_ctxs": []}],
        "flagembedding": {"query": "?", "pos": ["x"], "neg": []},
        "sentence-transformers": {"anchor": "?", "positive": "x"},
        "qa": {"question": "?", "answer": ["x"]},
        "table": {"question": "?", "answer": "x"},
    }
    for form, value in kinds.items():
        assert recognise([write(tmp_path / f"{form}.json", value)]) == form
    squad = write(tmp_path / "pretty.json", json.dumps(kinds["squad"], indent=1))
    assert recognise([squad]) == "squad"
    long = [{"question": "?", "context": "x" * 2**20}] * 20  # a single line, longer than any that is read whole
    for value in ([{"question": "?", "context": "x"}], long):
        assert recognise([write(tmp_path / "list.json", value)]) == "table"
    assert recognise([write(tmp_path / "x.parquet", "PAR1"), tmp_path / "missing"]) == "table"
    assert recognise([tiny_folder]) == "beir"
    write(tmp_path / "ms" / "collection.tsv", "1\tx\n")
    assert recognise([tmp_path / "ms"]) == "msmarco"
    for wrong in (tmp_path / "nothing.csv", write(tmp_path / "empty" / "x.txt", "").parent):
        with pytest.raises(CourseError):
            recognise([wrong])


@pytest.mark.parametrize("scores", [{}, {"pos_scores": [0.1, 8e-9], "neg_scores": [-1.0, 2.5, 0.0]}])
def test_lists_come_back_as_they_were(tmp_path, scores):
    first = import_data("flagembedding", splits(tmp_path, listed(**scores)), tmp_path / "first")
    written = export_data(first, "flagembedding", tmp_path / "lists")
    assert {split: len(rows) for split, rows in written.items()} == {"train": 8, "dev": 2, "test": 2}
    paths = [tmp_path / "lists" / f"{split}.jsonl" for split in written]
    exported = [json.loads(line) for line in paths[0].read_text("utf-8").splitlines()]
    assert exported == list(listed(8, **scores))
    again = import_data("flagembedding", paths, tmp_path / "again")
    shared = [name for name in manifest(first)["files"] if name != "corpus.jsonl"]
    assert len(shared) == 6 and all(manifest(again)["files"][name] == manifest(first)["files"][name] for name in shared)
    left = set(texts(load_data(first)).values()) - set(texts(load_data(again)).values())
    assert left == {f"wrong {n} {m}" for n in range(8, 12) for m in range(3)}  # no use to a dev or test question
    export_data(again, "flagembedding", tmp_path / "more")
    more = [tmp_path / "more" / f"{split}.jsonl" for split in written]
    assert manifest(import_data("flagembedding", more, tmp_path / "third"))["files"] == manifest(again)["files"]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
def test_what_is_mined_here_can_be_trained_on_there(sample, train_passages, tmp_path, kind):
    """The files open with `datasets`, as sentence-transformers reads them, and hold the pool's texts in its order."""
    pool = mine_pool(sample, train_passages, make_strategy("bm25", sample, train_passages), list(sample.qrels["train"]))
    pool.save(tmp_path / "pool.jsonl")
    pool = load_pool(tmp_path / "pool.jsonl", sample)
    arguments = ["data/sample", "--to", "sentence-transformers", "--pool", str(tmp_path / "pool.jsonl")]
    assert export_main([*arguments, "--kind", kind, "--out", str(tmp_path / "out")]) == 0
    loader = {"jsonl": "json"}.get(kind, kind)
    path = str(tmp_path / "out" / f"train.{kind}")
    rows = datasets.load_dataset(loader, data_files=path, split="train", cache_dir=str(tmp_path / "hf"))
    whole = PassageIndex(sample.corpus)
    given = {qid: negative for qid, _, negative in sample.triples}
    assert rows.column_names[:3] == ["anchor", "positive", "negative_1"] and len(rows) == 712
    assert {"negative_20"} <= {*rows.column_names}
    for row, (qid, positives) in zip(rows, sample.qrels["train"].items(), strict=True):
        order = dict.fromkeys([given[qid], *(entry["pid"] for entry in pool.negatives[qid])])
        assert row["anchor"] == sample.queries[qid].text and row["positive"] == whole.texts[whole.row[min(positives)]]
        wanted = [whole.texts[whole.row[pid]] for pid in order]
        count = len(rows.column_names) - 2
        assert [row[f"negative_{n}"] for n in range(1, count + 1)] == wanted[:count]
    assert export_main([*arguments, "--out", str(tmp_path / "out")]) == 1  # it exists, and is never changed


@pytest.mark.parametrize("scored", [True, False])
def test_flagembedding_itself_reads_what_is_exported(tmp_path, capsys, scored):
    from FlagEmbedding.abc.finetune.embedder.AbsDataset import AbsEmbedderTrainDataset  # seconds to import

    scores = {"pos_scores": [0.5, 1.5], "neg_scores": [-1.0, 2.5, 0.0]} if scored else {}
    folder = import_data("flagembedding", splits(tmp_path, listed(**scores)), tmp_path / "in")
    assert export_main([str(folder), "--to", "flagembedding", "--out", str(tmp_path / "out")]) == 0
    assert "no negative" not in capsys.readouterr().out
    settings = {"train_data": [str(tmp_path / "out" / "train.jsonl")], "cache_path": str(tmp_path / "hf")}
    settings |= {"shuffle_ratio": 0, "max_example_num_per_dataset": 100, "train_group_size": 4}
    settings |= {"query_instruction_for_retrieval": None, "passage_instruction_for_retrieval": None}
    rows = AbsEmbedderTrainDataset(SimpleNamespace(**settings, knowledge_distillation=scored), None)
    assert len(rows) == 8
    for number in range(8):
        query, passages, teacher = rows[number]
        assert query == f"Question {number}?" and passages[0] in (f"right {number}", f"also right {number}")
        assert sorted(passages[1:]) == [f"wrong {number} {m}" for m in range(3)]
        known = {f"right {number}": 0.5, f"also right {number}": 1.5}
        known |= {f"wrong {number} {m}": score for m, score in zip((2, 0, 1), (-1.0, 2.5, 0.0), strict=True)}
        assert teacher == ([known[text] for text in passages] if scored else None)
    bare = import_data("flagembedding", splits(tmp_path, listed(neg=[])), tmp_path / "bare")
    assert export_main([str(bare), "--to", "flagembedding", "--out", str(tmp_path / "bare-out")]) == 0
    assert "8 training questions have no negative" in capsys.readouterr().out


def test_exports_refuse_what_they_cannot_write(tmp_path, tiny_folder, capsys):
    for form, kind in (("tevatron", "jsonl"), ("flagembedding", "csv"), ("sentence-transformers", "xls")):
        with pytest.raises(SettingError, match="use one of"):
            export_data(tiny_folder, form, tmp_path / "out", kind=kind)
    assert export_main([str(tmp_path / "none"), "--to", "flagembedding", "--out", str(tmp_path / "out")]) == 1
    assert "no such folder" in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="exists; choose another folder"):
        export_data(tiny_folder, "flagembedding", tmp_path / "out")


@pytest.mark.parametrize("line", ["q0\tp0", "q9\tp0\t1", "q0\tp9\t1", "q0\tp2\t1", "q0\tp0\tx", "q0\tp0\tinf"])
def test_broken_candidates_are_told_with_their_line(tiny_folder, line):
    write(tiny_folder / "candidates" / "train.tsv", f"qid\tpid\tscore\nq0\tp1\t0.5\nq0\tp4\t\n{line}\n")
    with pytest.raises(DataError, match=r"candidates/train\.tsv:4: "):
        load_data(tiny_folder)
    write(tiny_folder / "candidates" / "train.tsv", "qid\tpid\tscore\nq0\tp1\t0.5\n")
    assert load_data(tiny_folder).candidates == {"q0": {"p1": 0.5}}
