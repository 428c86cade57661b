"""Documents of four kinds -> text and passages; what cannot be read is named, what is left out is counted."""

import logging
import random
import re
from itertools import pairwise

import matplotlib.pyplot as plt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pypdf import PdfReader, PdfWriter

from helpers.base.checks import Problems
from helpers.base.errors import CourseError, DataError, SettingError
from helpers.importing.documents import cut, document_rows, read_documents

FIRST = "Titan is the largest moon of Saturn. Lakes of methane lie near its poles."
SECOND = "A probe landed there in 2005 – it sent pictures of rounded pebbles."


def write_pdf(path, lines, title=None, password=None):
    with plt.rc_context({"pdf.fonttype": 42}):
        figure = plt.figure(figsize=(8, 4))
        for number, line in enumerate(lines):
            figure.text(0.05, 0.9 - 0.08 * number, line)
        figure.savefig(path, metadata={"Title": title})
        plt.close(figure)
    if password:
        writer = PdfWriter(PdfReader(path))
        writer.encrypt(password, algorithm="RC4-128")
        writer.write(path)


WEB = f"""<!doctype html><html><head><title>Titan - My site</title><style>p {{color: red}}</style></head>
<body><nav><a href="/">Home</a></nav><h1>Titan &amp; its lakes</h1><script>track("you")</script>
<p>Titan is the <b>largest</b> moon
of Saturn. Lakes of methane lie near its poles.</p><!-- a note --><p>{SECOND}</p><footer>Imprint</footer></body>"""


def test_each_kind_gives_its_title_and_its_paragraphs(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "a-plain_file.txt").write_text(f"{FIRST[:20]}\n{FIRST[21:]}\n\n\n{SECOND}\n", encoding="utf-8-sig")
    (tmp_path / "b.md").write_text(f"# Titan\n\n**{FIRST[:5]}**{FIRST[5:]}\n\n{SECOND}\n", encoding="utf-8")
    (tmp_path / "c.md").write_text(f'---\ntitle: "The moon Titan"\n---\n{FIRST}\n\n{SECOND}\n', encoding="utf-8")
    (tmp_path / "deep" / "d.HTML").write_text(WEB, encoding="utf-8")
    write_pdf(tmp_path / "e.pdf", ["Titan is the largest moon of Sa-", "turn.", SECOND], "A PDF's title")
    found = {document.name: document for document in read_documents(tmp_path, Problems())}
    assert list(found) == ["a-plain_file.txt", "b.md", "c.md", "deep/d.HTML", "e.pdf"]
    titles = [document.title for document in found.values()]
    assert titles == ["a plain file", "Titan", "The moon Titan", "Titan & its lakes", "A PDF's title"]
    for name in list(found)[:4]:
        assert found[name].text == f"{FIRST}\n\n{SECOND}", name
    assert found["e.pdf"].text == f"{FIRST[:36]} {SECOND}"


def test_pages_in_other_encodings_are_read_as_they_say(tmp_path):
    page = '<html><head><meta charset="iso-8859-1"></head><body><p>Bodélé, Huyghens, façade.</p></body></html>'
    (tmp_path / "old.html").write_bytes(page.encode("latin-1"))
    (tmp_path / "wide.txt").write_bytes("Bodélé, 土星".encode("utf-16"))
    assert [document.text for document in read_documents(tmp_path, Problems())] == [
        "Bodélé, Huyghens, façade.",
        "Bodélé, 土星",
    ]


def test_what_is_left_out_is_counted(tmp_path):
    (tmp_path / "a.txt").write_text(FIRST)
    (tmp_path / "b.docx").write_bytes(b"PK")
    (tmp_path / "c.txt").write_text(" \n- - -\n")
    (tmp_path / ".hidden.txt").write_text("a secret")
    write_pdf(tmp_path / "scan.pdf", [])
    problems = Problems()
    assert [document.name for document in read_documents(tmp_path, problems)] == ["a.txt"]
    assert problems.warned() == [
        "files of other kinds than .txt, .md, .html, .htm, .pdf, left out: 1, e.g. b.docx",
        "files without text, left out; scanned pages need OCR first: 2, e.g. c.txt",
    ]


def test_every_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "a.txt").write_text(FIRST)
    (tmp_path / "b.txt").write_bytes("Bodélé".encode("latin-1"))
    (tmp_path / "c.pdf").write_bytes(b"%PDF-1.4 and no more")
    write_pdf(tmp_path / "d.pdf", [FIRST], password="secret")
    with pytest.raises(DataError) as error:
        read_documents(tmp_path, Problems())
    lines = str(error.value).splitlines()
    assert len(lines) == 4 and lines[0] == "3 problems:"
    assert "b.txt" in lines[1] and "save it as UTF-8" in lines[1]
    assert "c.pdf" in lines[2] and "not a PDF that can be read" in lines[2]
    assert "d.pdf" in lines[3] and "it needs a password" in lines[3]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "is not a folder; put the documents"),
        (lambda folder: folder.write_text("a file"), "is not a folder; put the documents"),
        (lambda folder: folder.mkdir(), "holds no document that can be read .it is empty"),
        (lambda folder: (folder.mkdir(), (folder / "a.doc").touch()), "other kinds than .*left out: 1, e.g. a.doc"),
    ],
)
def test_a_folder_without_documents_is_refused(tmp_path, make, message):
    make(tmp_path / "docs")
    with pytest.raises(DataError, match=message):
        read_documents(tmp_path / "docs", Problems())


def test_damaged_files_give_typed_errors_or_text(tmp_path):
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    write_pdf(tmp_path / "whole.pdf", [FIRST, SECOND], "Titan")
    sources = {".pdf": (tmp_path / "whole.pdf").read_bytes(), ".html": WEB.encode(), ".md": f"# A\n\n{FIRST}".encode()}
    rng, refused = random.Random(0), 0
    for number in range(150):
        suffix = list(sources)[number % 3]
        broken = bytearray(sources[suffix])
        for _ in range(rng.randint(1, 20)):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / f"a{suffix}").write_bytes(broken[: rng.randint(1, len(broken))] if number % 2 else broken)
        try:
            (document,) = read_documents(folder, Problems())
            document.text.encode("utf-8")
            assert cut(document.text)
        except CourseError as error:
            refused += 1
            assert f"a{suffix}" in str(error)
    assert 10 < refused < 140


# Passages


def test_passages_are_whole_sentences_with_an_overlap():
    sentences = [f"Fact number {n} has exactly seven words." for n in range(30)]
    passages = cut(" ".join(sentences), size=30, overlap=8)
    assert all(len(passage.split()) <= 30 for passage in passages)
    split = [re.findall(r"Fact.+?words\.", passage) for passage in passages]
    assert all(" ".join(own) == passage for own, passage in zip(split, passages, strict=True))
    assert all(one[-1] == other[0] and one[-2:] != other[:2] for one, other in pairwise(split))
    assert {fact for own in split for fact in own} == set(sentences)
    assert sum(map(len, (re.findall("Fact", text) for text in cut(" ".join(sentences), 30, 0)))) == 30


def test_a_sentence_that_is_too_long_is_cut_between_words():
    text = "A short one. " + " ".join(f"w{n}" for n in range(50)) + ". The end."
    passages = cut(text, size=20, overlap=5)
    assert all(len(passage.split()) <= 20 for passage in passages)
    assert set(" ".join(passages).split()) == set(text.split())


def test_unspaced_scripts_are_cut_by_characters():
    text = "土星的卫星很多。" * 40  # 7 characters, which count as half a word each, and the stop as one
    passages = cut(text, size=40, overlap=4)
    assert {len(passage) for passage in passages} == {64}
    assert passages[0].endswith("。") and len(passages) == 5


@given(st.text(alphabet="ab .!?\n。土", max_size=300), st.integers(1, 12), st.integers(0, 11))
def test_no_word_is_lost_and_no_passage_too_long(text, size, overlap):
    if overlap >= size:
        with pytest.raises(SettingError, match="overlap is a number of words below size"):
            cut(text, size, overlap)
        return
    passages = cut(text, size, overlap)
    assert set("".join(passages)) >= set(text) - {" ", "\n"}
    assert "".join(cut(text, size, 0)).replace(" ", "") == "".join(text.split())
    for passage in passages:
        assert len(re.findall("[。土]", passage)) / 2 + len(re.findall("[^。土 ]+", passage)) <= size + 1


def test_a_document_is_of_one_split_and_its_passages_keep_its_title(tmp_path):
    for number in range(19):
        (tmp_path / f"doc {number}.txt").write_text(f"{FIRST} {SECOND} " * 5)
    (tmp_path / "doc_0.txt").write_text(f"{FIRST} {SECOND} " * 5)
    documents = read_documents(tmp_path, Problems())
    rows = document_rows(documents, size=40, overlap=10, seed=3)
    assert rows == document_rows(documents, 40, 10, seed=3) != document_rows(documents, 40, 10, seed=4)
    splits = {row["_id"].rpartition("-")[0]: row["split"] for row in rows}
    assert sorted(splits.values()) == ["dev"] * 2 + ["test"] * 2 + ["train"] * 16
    assert all(splits[row["_id"].rpartition("-")[0]] == row["split"] for row in rows)
    assert {row["title"] for row in rows} == {f"doc {number}" for number in range(19)}
    assert len({row["_id"] for row in rows}) == len(rows) and not any(" " in row["_id"] for row in rows)
    with pytest.raises(DataError, match="three are needed"):
        document_rows(documents[:2])
