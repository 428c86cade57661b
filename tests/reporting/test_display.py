"""Passages on the page: escaped, and marked exactly where has_answer finds an answer."""

import html
import re
import unicodedata

import matplotlib.pyplot as plt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.answers import Pattern, has_answer, normalize
from helpers.reporting.display import highlight, show_figure, show_passages, side_by_side


@pytest.mark.parametrize(
    ("text", "answers", "expected"),
    [
        ("", ["x"], ""),
        ("Rome.", [], "Rome."),
        ("Rome.", ["", " "], "Rome."),
        ("Rome.", ["rome"], "<mark>Rome</mark>."),
        ("a party", ["art"], "a party"),
        ("in New  York city", ["new york"], "in <mark>New  York</mark> city"),
        ("the U.S. Navy", ["U.S."], "the <mark>U.S.</mark> Navy"),
        ("it’s 1,234!", ["it's", "1,234"], "<mark>it’s 1,234</mark>!"),
        ("Oslo, Oslo", ["Oslo"], "<mark>Oslo</mark>, <mark>Oslo</mark>"),
        ("a b c d", ["a b", "b c"], "<mark>a b c</mark> d"),  # overlapping
        ("a a a", ["a a"], "<mark>a a a</mark>"),
        ("x <b> & y", ["y"], "x &lt;b&gt; &amp; <mark>y</mark>"),
        ("a < b", ["a < b"], "<mark>a &lt; b</mark>"),
        ('"A&B"', ["A&B"], "&quot;<mark>A&amp;B</mark>&quot;"),
        ("<script>x</script>", ["script"], "&lt;<mark>script</mark>&gt;x&lt;/<mark>script</mark>&gt;"),
        ("</mark> a", ["a"], "&lt;/mark&gt; <mark>a</mark>"),
        ("  a  ", ["a"], "  <mark>a</mark>  "),
        ("in 1912 & 1914", [Pattern("19[0-9]+")], "in <mark>1912</mark> &amp; <mark>1914</mark>"),
        ("<b>1912", [Pattern("^|b>1"), "1912"], "&lt;<mark>b&gt;1912</mark>"),  # overlapping
    ],
)
def test_highlight(text, answers, expected):
    assert highlight(text, answers) == expected


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_accents_are_marked_in_either_form(form):
    got = highlight(unicodedata.normalize(form, "le Café Zoë"), [unicodedata.normalize("NFC", "café")])
    assert unicodedata.normalize("NFC", got) == "le <mark>Café</mark> Zoë"
    assert "<mark>" not in highlight("le Café", ["cafe"])


@settings(deadline=None, max_examples=300)
@given(st.text("abA é\u0301.,'’<&-", max_size=14), st.lists(st.text("abA é.'<", max_size=4), max_size=2))
def test_a_mark_appears_exactly_where_an_answer_matches_and_no_text_is_lost(text, answers):
    got = highlight(text, answers)
    assert ("<mark>" in got) == has_answer(answers, normalize(text))
    assert html.unescape(re.sub("</?mark>", "", got)) == unicodedata.normalize("NFD", text)
    assert re.sub("[^<>]", "", got) in ("<><>" * (got.count("<mark>")), "")
    assert got.count("<mark>") == got.count("</mark>")


def test_the_letter_apostrophe_is_marked_too():
    assert has_answer(["O'Neill"], normalize("Eugene OʼNeill"))
    assert highlight("Eugene OʼNeill", ["O'Neill"]) == "Eugene <mark>OʼNeill</mark>"


def test_show_passages_escapes_labels_titles_and_texts():
    rows = [("<b>1</b>", {"title": "<i>T</i>", "text": "<u>text</u> & Oslo"}), ("2", {"title": "", "text": "Bern"})]
    page = show_passages(rows, (answer for answer in ["Oslo", "Bern"])).data  # a generator serves every row
    assert not re.search("<(i|u)>", page)
    assert page.count("<b>") == 2  # the titles' own
    for part in (
        "&lt;b&gt;1&lt;/b&gt;",
        "&lt;i&gt;T&lt;/i&gt;",
        "&lt;u&gt;text&lt;/u&gt; &amp;",
        "<mark>Oslo</mark>",
        "<mark>Bern</mark>",
    ):
        assert part in page
    assert page.count("<tr>") == 2


def test_no_passage_gives_an_empty_table():
    assert show_passages([]).data == "<table></table>"


def test_side_by_side_is_a_table_of_tables():
    row = {"title": "<i>T</i>", "text": "in Oslo"}
    page = side_by_side({"<b>25": [("1", row), ("2", row)], "dense": []}, (answer for answer in ["Oslo"])).data
    assert page.count("<table>") == 3 and page.count("<mark>Oslo</mark>") == 2
    assert "&lt;b&gt;25" in page and "<i>" not in page and page.count("width:50%") == 2


def test_a_figure_carries_its_alternative_text(monkeypatch):
    shown = []
    monkeypatch.setattr("helpers.reporting.display.display", lambda *what, **how: shown.append((what, how)))
    figure = plt.figure()
    show_figure("Hit@K climbs from 30% at 1 to 80% at 100")
    assert shown == [((figure,), {"metadata": {"image/png": {"alt": "Hit@K climbs from 30% at 1 to 80% at 100"}}})]
    assert not plt.fignum_exists(figure.number)  # or it would be shown again
