"""Long contexts into passages: whole answers, no word lost, never too long."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.base.checks import Problems
from helpers.base.errors import DataError
from helpers.importing.squad import WORD, convert, divide, json_paragraphs, split_text

TEXTS = st.lists(st.sampled_from(["one", "two-2", "三", "ก", ".", "x" * 30, "l’été"]), min_size=1, max_size=80).map(
    " ".join
)


def cost(text):
    return sum(1 if re.match(r"[a-z.]", word) else 0.5 for word in WORD.findall(text))


@settings(max_examples=300)
@given(TEXTS, st.lists(st.tuples(st.integers(0, 300), st.integers(1, 40)), max_size=8), st.integers(1, 12))
def test_passages_cover_the_text_and_cut_no_short_span(text, places, size):
    spans = [(begin, min(len(text), begin + length)) for begin, length in places if begin < len(text)]
    spans = [(begin, end) for begin, end in spans if text[begin:end] == text[begin:end].strip()]  # as answers are
    pieces = split_text(text, spans, longest=size, size=size)
    assert "".join(text[begin:end] for begin, end in pieces) == text
    assert all(begin < end for begin, end in pieces)
    assert all(cost(text[begin:end]) <= size for begin, end in pieces) or size == 1
    assert len(pieces) == 1 or cost(text) > size
    cuts = {begin for begin, _ in pieces[1:]}
    assert all(WORD.match(text, cut) for cut in cuts)  # at the beginning of a word
    for begin, end in spans:  # one that touches no other and fits into a passage stays whole
        alone = not any(b < end and begin < e for b, e in widened(text, spans, (begin, end)))
        first, last = widen(text, begin, end)
        if alone and cost(text[first:last]) <= size:
            assert not any(begin < cut < end for cut in cuts)


def widen(text, begin, end):
    words = [match.span() for match in WORD.finditer(text) if match.start() < end and match.end() > begin]
    return (min([begin, *(b for b, _ in words)]), max([end, *(e for _, e in words)]))


def widened(text, spans, own):
    first, last = widen(text, *own)
    return [s for s in spans if s != own and widen(text, *s)[0] < last and first < widen(text, *s)[1]] and [own]


def test_a_text_that_is_not_long_stays_whole():
    text = "word " * 250
    assert split_text(text) == [(0, len(text))] and split_text(text * 9, longest=0) == [(0, 9 * len(text))]
    assert len(split_text(text + "more")) == 3  # 251 words: three of 84, not 100, 100 and 51


@given(st.lists(st.sampled_from(["", "train", "dev", "test"]), min_size=3, max_size=40), st.integers(0, 3))
def test_what_is_known_stays_and_what_is_missing_is_drawn(labels, seed):
    splits = divide(labels, seed)
    assert splits == divide(labels, seed) and len(splits) == len(labels)
    have = set(labels) - {""}
    if have <= {"train"}:
        assert {"train", "dev", "test"} == set(splits)
        assert splits.count("dev") == splits.count("test") == max(1, len(labels) // 10)
    else:
        kept = {"test": ["test"], "dev": ["dev"] if "test" in have else ["dev", "test"], "train": ["train", "dev"]}
        assert all(split in kept.get(label or "train", ["train"]) for label, split in zip(labels, splits, strict=True))


def test_two_articles_are_too_few():
    with pytest.raises(DataError, match="three are needed"):
        divide(["", ""])


def test_answers_decide_which_passages_of_a_cut_context_are_judged():
    text = " ".join(f"w{n}" for n in range(300))
    questions = [
        {"id": "a", "question": "?", "answers": ["w7", "w299"], "starts": [text.index("w7 "), text.index("w299")]},
        {"id": "b", "question": "?", "answers": ["w150"], "starts": [3]},  # a wrong place is mended
        {"id": "c", "question": "?", "answers": ["W151"], "starts": [None]},  # found as answer match finds it
        {"id": "d", "question": "?", "answers": ["w99 w100 w101"], "starts": [text.index("w99 ")]},
    ]
    corpus, queries, qrels, triples = convert(
        {"test": [("T", text, questions)], "train": [("U", "u", [])], "dev": []}, longest=250
    )
    texts = {row["_id"]: row["text"] for row in corpus}
    assert sum(len(row.split()) for row in texts.values()) == 301 and max(len(r.split()) for r in texts.values()) <= 100
    judged = {qid: [pid for q, pid, _ in qrels["test"] if q == qid] for qid in "abcd"}
    assert [len(judged[qid]) for qid in "abcd"] == [2, 1, 1, 1]
    assert "w150 w151" in texts[judged["b"][0]] and judged["b"] == judged["c"]
    assert "w99 w100 w101" in texts[judged["d"][0]]
    assert len(queries) == 4 and triples == []


def test_questions_with_the_same_id_stay_apart():
    def paragraphs(name):
        return [
            (f"{name} {n}", f"{name} {n}.", [{"id": 0, "question": f"{name} {n}?", "answers": [name]}])
            for n in range(2)
        ]

    problems = Problems()
    sources = {"train": paragraphs("a"), "dev": paragraphs("b"), "test": paragraphs("a")}
    _, queries, qrels, _ = convert(sources, problems=problems)
    assert [(q["_id"], q["text"]) for q in queries[:3]] == [("0", "a 0?"), ("train-1-0", "a 1?"), ("dev-0-0", "b 0?")]
    assert len({q["_id"] for q in queries}) == 6
    assert [qid for qid, _, _ in qrels["test"]] == ["test-0-0", "test-1-0"]
    assert "used twice" in problems.warned()[0] and ": 5, e.g. 0" in problems.warned()[0]


def test_ids_may_hold_spaces_or_be_0_and_empty_answers_are_counted(tmp_path):
    qas = [{"id": qid, "question": "?", "answers": [{"text": "x"}, {"text": " "}]} for qid in (0, "a  b", None, "")]
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"data": [{"title": "T", "paragraphs": [{"context": "x", "qas": qas}]}]}))
    problems = Problems()
    ((_, _, questions),) = json_paragraphs(path, problems)
    assert [(q["id"], q["answers"]) for q in questions] == [("0", ["x"]), ("a_b", ["x"])]
    assert problems.errors.total() == 2 and "empty answers, left out: 2" in problems.warned()[0]
