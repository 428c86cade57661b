"""Answer match against DPR's algorithm, Hit@K, and the coverage of its interval."""

import math
import unicodedata
from dataclasses import replace

import numpy as np
import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from helpers.answers import UNSPACED, has_answer, normalize, normalize_all
from helpers.base.errors import DataError
from helpers.dataset import PassageIndex
from helpers.evaluation import dev_scorer, first_hits, first_relevant, hit_at_k, hit_ranks
from helpers.reporting.significance import bootstrap_interval
from helpers.retrieval import Run


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "  "),
        (" \t\n", "  "),
        ("Paris", " paris "),
        ("the  Cat,\nsat.", " the cat , sat . "),
        ("U.S.", " u . s . "),
        ("1,234.5%", " 1 , 234 . 5 % "),
        ("it's", " it ' s "),
        ("it’s", " it ' s "),
        ("well-known", " well - known "),
        ("x_y", " x _ y "),
        ("Café", " cafe\u0301 "),
        ("a\u200bb", " a b "),  # a format character parts words, as in DPR
        ("a\u00a0b", " a b "),
        ("👩‍🔬!", " 👩 🔬 ! "),
    ],
)
def test_normalize(text, expected):
    assert normalize(text) == expected


MATCHES = [
    ("Café", "the cafe\u0301 closed"),  # composed and decomposed
    ("cafe\u0301", "THE CAFÉ CLOSED"),
    ("Ångström", "A\u030angstro\u0308m units"),
    ("ﬁre", "ﬁre"),
    ("PARIS", "in paris,"),
    ("don't", "they don’t know"),
    ("don’t", "they don't know"),
    ("O’Neill", "Eugene OʼNeill wrote"),
    ("well-known", "a well-known name"),
    ("well - known", "a well-known name"),
    ("U.S.", "the U.S. Navy"),
    ("u.s", "the U.S. Navy"),
    ("1,234", "about 1,234 people"),
    ("234", "about 1,234 people"),  # the comma is a token of its own
    ("3.14", "pi is 3.14159 or 3.14"),
    ("$5", "for $5 only"),
    ("東京", "首都は 東京 です"),
    ("กรุงเทพ", "เมืองหลวง กรุงเทพ คือ"),
    ("東京", "東京都です"),  # no space: each character is a token
    ("กรุงเทพ", "กรุงเทพมหานคร"),
    ("القاهرة", "عاصمة القاهرة هي"),
    ("हिन्दी", "भाषा हिन्दी है"),
    ("🎉", "a party🎉today"),
    ("e\u0301", "É"),
    ("new\tYork", "in New  York\ncity"),
    ("whole text", "Whole text"),
    (".", "end."),
]

MISSES = [
    ("", "anything"),
    ("   ", "anything"),
    ("\u200b", "anything \u200b"),
    ("x", ""),
    ("cafe", "the café closed"),  # accents count
    ("art", "a party"),
    ("party", "art"),
    ("Paris Seine", "Paris on the Seine"),  # side by side
    ("Seine Paris", "Paris Seine"),
    ("US", "the U.S. Navy"),
    ("U.S.", "the US Navy"),
    ("1234", "about 1,234 people"),
    ("1,234", "about 1234 people"),
    ("wellknown", "a well-known name"),
    ("dont", "they don't know"),
    ("the whole long text", "whole long text"),
    ("e", "e\u0301"),  # a combining mark belongs to its letter
    ("fire", "ﬁre"),  # canonical, not compatibility decomposition
    ("2", "²"),
    ("the Paris", "Paris"),  # no article is stripped
]


@pytest.mark.parametrize(("answer", "text"), MATCHES)
def test_answers_that_match(answer, text):
    assert has_answer([answer], normalize(text))
    assert has_answer(["nowhere", answer], normalize(text))


@pytest.mark.parametrize(("answer", "text"), MISSES)
def test_answers_that_do_not_match(answer, text):
    assert not has_answer([answer], normalize(text))


def test_no_answer_never_matches():
    assert not has_answer([], normalize("anything"))


def test_strict_dpr_keeps_curly_apostrophes():
    assert normalize("it’s", strict_dpr=True) == " it ’ s "
    assert normalize("it's", strict_dpr=True) == normalize("it's")


def test_answers_without_a_token_are_left_out():
    assert normalize_all(["", " ", "\u200b", "Oslo"]) == [" oslo "]


def dpr_tokens(text):
    """Cut `text` as DPR's SimpleTokenizer does, but apostrophes folded, scripts without spaces apart."""
    tokens, word = [], ""
    text = regex.sub(rf"[{UNSPACED}]\p{{M}}*", r" \g<0> ", unicodedata.normalize("NFD", text))
    for character in [*(("'" if character in "‘’ʼ" else character) for character in text), " "]:
        kind = unicodedata.category(character)[0]
        if kind in "LNM":
            word += character
            continue
        tokens += [word] if word else []
        tokens += [character] if kind not in "ZC" else []
        word = ""
    return [token.lower() for token in tokens]


def dpr_has_answer(answers, text):
    """Return whether the tokens of an answer are a contiguous sub-list; an empty answer matches nothing here."""
    passage = dpr_tokens(text)
    for answer in map(dpr_tokens, answers):
        for start in range(len(passage) - len(answer) + 1) if answer else ():
            if passage[start : start + len(answer)] == answer:
                return True
    return False


# unassigned characters may be assigned in a newer Unicode, and surrogates are no text
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs", "Cn", "Co"]), max_size=12)
FEW = st.text("abAÉé\u0301 .,'’ʼ-1東ΣσςİI", max_size=8)


@settings(deadline=None, max_examples=300)
@given(st.lists(FEW, max_size=3), FEW, FEW)
@example(["Σ"], "ΑΣ Σ", "")
@example(["İ"], "i\u0307", "")
def test_has_answer_is_dprs_algorithm(answers, before, after):
    for text in (before + after, *(before + answer + after for answer in answers)):
        assert has_answer(answers, normalize(text)) == dpr_has_answer(answers, text)


@settings(deadline=None, max_examples=300)
@given(ANY_TEXT, ANY_TEXT, ANY_TEXT)
def test_has_answer_is_dprs_algorithm_in_every_script(answer, before, after):
    for text in (before, f"{before} {answer} {after}", before + answer + after):
        assert has_answer([answer], normalize(text)) == dpr_has_answer([answer], text)
    assert has_answer([answer], normalize(f"{before} {answer} {after}")) == bool(dpr_tokens(answer))


@settings(deadline=None)
@given(ANY_TEXT)
def test_composition_does_not_matter(text):
    assert normalize(unicodedata.normalize("NFC", text)) == normalize(unicodedata.normalize("NFD", text))


CORPUS = [normalize(text) for text in ("Paris lies on the Seine.", "Rome", "the Seine again", "Oslo")]


@pytest.mark.parametrize(
    ("ranking", "answers", "rank"),
    [
        ([0, 1, 2, 3], ["seine"], 1),
        ([1, 3, 2, 0], ["Seine"], 3),
        ([1, 3], ["Seine"], math.inf),
        ([], ["Seine"], math.inf),
        ([0, 1], [], math.inf),
        ([0, 1], ["", " "], math.inf),
        ([3, 1, 0], ["Seine", "Rome"], 2),
    ],
)
def test_first_hits(ranking, answers, rank):
    assert first_hits([ranking], [answers], CORPUS).tolist() == [rank]
    assert first_hits([np.array(ranking, dtype=int)], [tuple(answers)], CORPUS).tolist() == [rank]


@pytest.mark.parametrize(
    ("ranking", "relevant", "rank"),
    [([4, 2, 7], {7}, 3), ([4, 2, 7], {7, 4}, 1), ([4], {5}, math.inf), ([], {5}, math.inf), ([4], set(), math.inf)],
)
def test_first_relevant(ranking, relevant, rank):
    assert first_relevant([ranking], [relevant]).tolist() == [rank]


def test_rankings_and_answers_must_be_as_many():
    with pytest.raises(ValueError, match="shorter"):
        first_hits([[0], [1]], [["Seine"]], CORPUS)


@pytest.mark.parametrize(("k", "share"), [(0, 0), (1, 0.25), (2, 0.5), (6, 0.5), (7, 0.75), (10**6, 0.75)])
def test_hit_at_k(k, share):
    assert hit_at_k(np.array([1, 7, np.inf, 2]), k) == share


def test_hit_at_k_of_no_question_is_no_number():
    assert math.isnan(hit_at_k(np.array([]), 1))


@given(st.lists(st.one_of(st.integers(1, 120).map(float), st.just(math.inf)), min_size=1))
def test_hit_at_k_rises_with_k(ranks):
    hits = [hit_at_k(np.array(ranks), k) for k in range(1, 121)]
    assert hits == sorted(hits)
    assert hits[-1] == sum(math.isfinite(rank) for rank in ranks) / len(ranks)


def test_hit_ranks_by_answer_and_by_qrels(sample, sample_passages):
    qids = sample.split_queries("dev")[:20]
    gold = [sample_passages.row[min(sample.qrels["dev"][qid])] for qid in qids]
    other = next(row for row in range(len(sample_passages)) if row not in gold)
    run = Run("gold second", qids, [np.array([other, row]) for row in gold], [np.array([2.0, 1.0])] * 20)
    answer, relevant = hit_ranks(run, sample, sample_passages, "dev")
    assert relevant.tolist() == [2] * 20
    for qid, rank in zip(qids, answer, strict=True):
        assert rank == (1 if has_answer(sample.queries[qid].answers, sample_passages.normalized[other]) else 2)


def test_a_judged_passage_outside_the_corpus_is_never_hit(sample, sample_passages):
    qid = sample.split_queries("dev")[0]
    kept = [row for row, pid in enumerate(sample_passages.ids) if pid not in sample.qrels["dev"][qid]]
    part = PassageIndex(sample.corpus.select(kept))
    run = Run("all", [qid], [np.arange(len(part))], [np.zeros(len(part))])
    assert hit_ranks(run, sample, part, "dev")[1].tolist() == [math.inf]


def test_questions_that_nobody_judged_and_questions_of_other_data(sample, sample_passages):
    qids = [sample.split_queries("train")[0], sample.split_queries("dev")[0]]
    gold = [sample_passages.row[min(sample.qrels[split][q])] for split, q in zip(("train", "dev"), qids, strict=True)]
    run = Run("mine", qids, [np.array([row]) for row in gold], [np.array([1.0])] * 2)
    answer, relevant = hit_ranks(run, sample, sample_passages, "dev")
    assert answer.tolist() == [1, 1] and relevant.tolist() == [math.inf, 1]
    run.qids[0] = "stranger"
    with pytest.raises(DataError, match=r"mine: queries\.jsonl has no question 'stranger'"):
        hit_ranks(run, sample, sample_passages, "dev")


@pytest.mark.parametrize("answered", [True, False])
def test_the_dev_scorer_is_hit_at_k_of_the_dev_questions(sample, eval_passages, short_bert, answered):
    qids = sample.split_queries("dev")
    queries = {qid: replace(query, answers=query.answers * answered) for qid, query in sample.queries.items()}
    scores = dev_scorer(replace(sample, queries=queries), eval_passages, qids)(short_bert)
    questions = short_bert.encode([sample.queries[qid].text for qid in qids], "query")
    similarity = questions @ short_bert.encode(eval_passages.texts, "passage").T
    best = {qid: np.argsort(-line, kind="stable") for qid, line in zip(qids, similarity, strict=True)}

    def hit(qid, row):
        if answered:
            return has_answer(sample.queries[qid].answers, eval_passages.normalized[row])
        return eval_passages.ids[row] in sample.qrels["dev"][qid]

    def share(k):
        return np.mean([any(hit(qid, row) for row in rows[:k]) for qid, rows in best.items()])

    assert scores == {"dev": share(10), "Hit@1": share(1), "Hit@100": share(100)}
    assert 0 < scores["Hit@1"] < scores["dev"] < scores["Hit@100"] < 1


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(1)
    truth = random.uniform(0.15, 0.85, size=200)
    covered = 0
    for number, share in enumerate(truth):
        low, high = bootstrap_interval(random.random(150) < share, seed=number)
        covered += low <= share <= high
    assert 0.90 <= covered / 200 <= 0.99


SYSTEMS = [(0.2, 0.25, 300), (0.5, 0.5, 300), (0.4, 0.45, 1000), (0.8, 0.81, 1000), (0.21, 0.42, 2000)]


@pytest.mark.parametrize(("one", "other", "questions"), SYSTEMS)
def test_the_interval_covers_a_known_hit_at_1(one, other, questions):
    random = np.random.default_rng(0)
    single, paired = 0, 0
    for seed in range(1000):
        ease = random.random(questions)  # the second system finds most questions as easy as the first
        own = np.where(random.random(questions) < 0.7, ease, random.random(questions))
        hits, others = ease < one, own < other
        low, high = bootstrap_interval(hits, seed=seed)
        single += low <= one <= high
        low, high = bootstrap_interval(others * 1.0 - hits, seed=seed)
        paired += low <= other - one <= high
    assert 930 <= single <= 970 and 930 <= paired <= 970


def test_the_paired_interval_is_narrower_than_two_single_ones():
    random = np.random.default_rng(0)
    one = random.random(300) < 0.5
    other = one.copy()
    other[:10] = True
    low, high = bootstrap_interval(other * 1.0 - one)
    single = bootstrap_interval(one)
    assert 0 <= low <= np.mean(other * 1.0 - one) <= high
    assert high - low < (single[1] - single[0]) / 2


def test_the_interval_is_close_to_the_normal_one():
    values = np.repeat([0, 1], [600, 400])
    half = 1.96 * math.sqrt(0.4 * 0.6 / 1000)
    assert bootstrap_interval(values) == pytest.approx((0.4 - half, 0.4 + half), abs=0.004)
    assert bootstrap_interval(values, level=0.5) == pytest.approx((0.4 - half * 0.344, 0.4 + half * 0.344), abs=0.004)


def test_the_interval_repeats_with_its_seed_and_not_with_the_order():
    values = np.random.default_rng(0).integers(-1, 2, size=120)
    assert bootstrap_interval(values, seed=4) == bootstrap_interval(values[::-1], seed=4)
    drawn = {bootstrap_interval(values, draws=50, seed=seed) for seed in range(5)}
    assert len(drawn) > 1


@pytest.mark.parametrize("value", [0, 1, -1])
def test_equal_values_have_no_uncertainty(value):
    assert bootstrap_interval(np.full(50, value)) == (value, value)
    assert bootstrap_interval(np.array([value])) == (value, value)


def test_no_value_has_no_interval():
    assert all(map(math.isnan, bootstrap_interval(np.array([]))))
