"""Any language: what BM25, answer match and importers do with scripts that are not Latin."""

import random

import bm25s
import pytest
from foreign import write
from hypothesis import given
from hypothesis import strategies as st

from helpers.answers import UNSPACED
from helpers.dataset import load_data
from helpers.importing.importer import import_data
from helpers.reporting.display import highlight
from helpers.retrieval import BM25, UNSPACED_RUN, _pairs

TEXTS = {
    "Chinese": (["中国的首都是北京。", "日内瓦湖在瑞士。", "水"], {"首都在哪里": 0, "瑞士的湖": 1, "水": 2}),
    "Japanese": (["日本の首都は東京です。", "カナダは寒い国です。", "ﾃｽﾄ"], {"東京はどこ": 0, "カナダ": 1, "ﾃｽﾄ": 2}),
    "Thai": (["กรุงเทพมหานครเป็นเมืองหลวง", "ปลาอยู่ในทะเล"], {"เมืองหลวงคืออะไร": 0, "ทะเลมีปลา": 1}),
    "Khmer": (["រាជធានីភ្នំពេញ", "ទន្លេមេគង្គ"], {"ភ្នំពេញ": 0, "មេគង្គ": 1}),
    "mixed": (["iPhone在中国的价格", "Berlin ist kalt"], {"iphone": 0, "价格多少": 0, "Wie kalt ist Berlin": 1}),
}


@pytest.mark.parametrize("name", TEXTS)
def test_bm25_finds_texts_without_spaces_and_says_how(name):
    texts, questions = TEXTS[name]
    index = BM25(texts)
    assert index.tokenizer == "lower-cased words without English stop words and pairs of characters"
    rows, _ = index.search(list(questions), k=1)
    assert [list(row) for row in rows] == [[expected] for expected in questions.values()]


@given(st.lists(st.text(st.characters(max_codepoint=0xDFF), max_size=30), min_size=1, max_size=4))
def test_bm25_on_other_scripts_is_what_bm25s_does_alone(texts):
    ours, alone = BM25.tokens(texts), bm25s.tokenize(list(texts), stopwords="en", show_progress=False)
    assert (ours.ids, ours.vocab) == (alone.ids, alone.vocab)
    assert "pairs" not in BM25(texts).tokenizer


ROWS = {
    "Arabic": ("ما عاصمة مصر؟", "عاصمة مصر هي القاهرة.", "القاهرة"),
    "Hebrew": ("מהי בירת צרפת?", "בירת צרפת היא פריז.", "פריז"),
    "Hindi": ("भारत की राजधानी क्या है?", "भारत की राजधानी नई दिल्ली है।", "नई दिल्ली"),
    "Korean": ("한국의 수도는?", "한국의 수도 는 서울 이다.", "서울"),
    "Thai": ("เมืองหลวงคืออะไร", "เมืองหลวงคือกรุงเทพมหานคร", "กรุงเทพ"),
    "emoji": ("which flag?", "the flag 🇫🇷 is red 👩‍🚀", "🇫🇷"),
}


@pytest.mark.parametrize(("mark", "end"), [("", "\n"), ("\ufeff", "\r\n")])
def test_every_script_is_imported_as_it_is(mark, end, tmp_path):
    lines = ["question\tpassage\tanswers", *("\t".join(row) for row in ROWS.values())]
    source = write(tmp_path / "all.tsv", "")
    source.write_bytes((mark + end.join(lines) + end).encode())
    data = load_data(import_data("table", [source], tmp_path / "out"))
    assert data.corpus["text"][:] == [passage for _, passage, _ in ROWS.values()]
    assert [(q.text, *q.answers) for q in data.queries.values()] == [(q, a) for q, _, a in ROWS.values()]
    for _, passage, answer in ROWS.values():
        assert "<mark>" in highlight(passage, [answer])


def test_words_and_pairs_are_found_in_any_mixture():
    """Against the plain rule: at every place a pair of characters first, then a word."""
    draw, alphabet = random.Random(0), "ab9_é ,.-東京都ひらカタ。กำที่ำ조한 "
    texts = ["".join(draw.choices(alphabet, k=draw.randint(0, 30))) for _ in range(3000)]
    apart = [UNSPACED_RUN.sub(_pairs, text) for text in texts]
    pattern = rf"[{UNSPACED}]{{1,2}}|\b\w\w+\b"
    expected = bm25s.tokenize(apart, token_pattern=pattern, stopwords="en", show_progress=False)
    found = BM25.tokens(texts)
    assert (found.ids, found.vocab) == (expected.ids, expected.vocab)
    assert sum(map(len, found.ids)) > 10_000
