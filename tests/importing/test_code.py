"""Functions become passages without their docstrings, first sentences become questions."""

import textwrap
import zipfile

import pytest

from helpers.dataset import load_data
from helpers.importing.code import code_search, documented, first_sentence
from helpers.importing.sources import find_data, write_folder

MODULE = textwrap.dedent('''
    """A module."""

    class Tree:
        """A class of trees is no function."""

        @property
        def depth(self):
            """Return the depth of the tree.

            The root is at depth 0.
            """
            return max(walk(self))  # the deepest

    def short():
        """Too short."""
        return 1

    def only_documented():
        """Nothing but a docstring is here."""

    async def fetch(url):
        """Fetch a page and
        all that it links. Then stop."""
        def inner():
            """Return the page that was fetched."""
            return url
        return inner()
''')


@pytest.fixture
def wheel(tmp_path):
    path = tmp_path / "made-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("made/a.py", MODULE)
        archive.writestr("made/b.py", 'def deep(tree):\n    """Return the depth of the tree."""\n    return 2\n')
        archive.writestr("made/c.py", 'def wide(tree):\n    """Return the width of the tree."""\n    return 3\n')
        archive.writestr("made/tests/d.py", 'def test():\n    """Return the height of the tree."""\n    return 3\n')
        archive.writestr("made/notes.txt", "no code")
    return path


def test_functions_and_their_first_sentences():
    found = {name: (question, source) for name, question, source in documented(MODULE)}
    assert list(found) == ["Tree.depth", "fetch", "fetch.inner"]
    assert found["Tree.depth"][0] == "Return the depth of the tree."
    assert found["Tree.depth"][1] == "def depth(self):\n    return max(walk(self))  # the deepest"
    assert found["fetch"][0] == "Fetch a page and all that it links."
    assert "links" not in found["fetch"][1] and found["fetch"][1].startswith("async def fetch(url):")


def test_equal_sentences_are_one_question_with_several_passages(wheel):
    corpus, queries, qrels = code_search(wheel)
    assert [row["_id"] for row in corpus] == [
        *("made.a.Tree.depth", "made.a.fetch", "made.a.fetch.inner", "made.b.deep", "made.c.wide")
    ]
    assert len(queries) == 4 and not qrels["dev"], "the question of b is that of a, whose split it shares"
    assert [pid for qid, pid, _ in qrels["test"] if qid == "c0000"] == ["made.a.Tree.depth", "made.b.deep"]


def test_it_loads_as_a_data_set(wheel, tmp_path):
    corpus, queries, qrels = code_search(wheel)
    write_folder(tmp_path / "code", corpus, queries, {"test": qrels["test"]})
    data = load_data(tmp_path / "code")
    assert len(data.corpus) == len(data.evaluation_corpus()) == 5
    assert data.split_queries("test") == ["c0000", "c0001", "c0002", "c0003"]


def test_the_functions_of_networkx():
    data = load_data(find_data("code"))
    assert len(data.corpus) == 1505 and [len(data.qrels[split]) for split in ("dev", "test")] == [636, 764]
    asked = {query.text: qid for qid, query in data.queries.items()}
    qid = asked["Returns the House graph with a cross inside the house square."]
    (pid,) = (data.qrels["dev"] | data.qrels["test"])[qid]
    assert pid == "networkx.generators.small.house_x_graph"
    assert "house square" not in dict(zip(data.corpus["_id"], data.corpus["text"], strict=True))[pid]


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [("", ""), ("One. Two.", "One."), ("e.g.\nwithout end", "e.g. without end"), ("  A `b`\n  c\n\n d", "A b c")],
)
def test_first_sentences(docstring, sentence):
    assert first_sentence(docstring) == sentence
