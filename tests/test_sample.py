"""The committed sample data keeps its promises."""

import json
import re
from collections import Counter, defaultdict

import pytest

from helpers.answers import has_answer, normalize
from helpers.base.files import ROOT

STOP = set(
    "a an and are as at be been before after by did do does for from had has have how in into is it its many much of "
    "on or than that the these this those to was were what when where which who whom whose why will with".split()
)


@pytest.fixture(scope="module")
def rows():
    lines = (ROOT / "data" / "sample" / "corpus.jsonl").read_text("utf-8").splitlines()
    return {row["_id"]: row for row in map(json.loads, lines)}


def positives(sample):
    return [(split, qid, pid) for split, qrels in sample.qrels.items() for qid, pids in qrels.items() for pid in pids]


def content_words(text):
    return set(re.findall(r"\w+", text.casefold())) - STOP


def test_size(sample, rows):
    assert len(rows) >= 300 and len(sample.queries) >= 700
    assert [pid for pid, row in rows.items() if not 50 <= len(row["text"].split()) <= 100] == []


def test_sixteen_domains_of_four_articles_of_six_passages(rows):
    assert set(Counter(row["title"] for row in rows.values()).values()) == {6}
    articles = {(row["domain"], row["title"]) for row in rows.values()}
    assert len(articles) == len({title for _, title in articles}) == 64
    by_domain = Counter(domain for domain, _ in articles)
    assert len(by_domain) == 16 and set(by_domain.values()) == {4}


def test_articles_are_in_one_split(sample, rows):
    splits = defaultdict(set)
    for row in rows.values():
        splits[row["title"]].add(row["split"])
    assert Counter(split for found in splits.values() for split in found) == {"train": 40, "dev": 8, "test": 16}
    assert [qid for split, qid, pid in positives(sample) if rows[pid]["split"] != split] == []


def test_every_question_is_in_one_split_and_has_one_positive(sample):
    judged = Counter(qid for _, qid, _ in positives(sample))
    assert judged.keys() == sample.queries.keys() and set(judged.values()) == {1}


def test_gold_passage_holds_the_first_answer(sample, rows):
    missing = [
        qid
        for _, qid, pid in positives(sample)
        if not has_answer(sample.queries[qid].answers[:1], normalize(rows[pid]["text"]))
    ]
    assert missing == []


def test_no_text_repeats(sample, rows):
    for texts in ([row["text"] for row in rows.values()], [query.text for query in sample.queries.values()]):
        assert [text for text, count in Counter(t.casefold().strip() for t in texts).items() if count > 1] == []


def test_given_negatives_share_the_article_and_hold_no_answer(sample, rows):
    assert {qid for qid, _, _ in sample.triples} == sample.qrels["train"].keys()
    for qid, positive, negative in sample.triples:
        assert positive != negative and rows[positive]["title"] == rows[negative]["title"], qid
        assert not has_answer(sample.queries[qid].answers, normalize(rows[negative]["text"])), qid


def test_questions_do_not_copy_their_passage(sample, rows):
    shares = []
    for _, qid, pid in positives(sample):
        words = content_words(sample.queries[qid].text)
        shares.append(len(words & content_words(rows[pid]["text"])) / len(words))
    assert 0 < sum(shares) / len(shares) < 0.5


def test_no_question_gives_its_answer_away(sample):
    assert [qid for qid, q in sample.queries.items() if has_answer(q.answers, normalize(q.text))] == []
