"""Rows that repeat one another are found, and nothing else; who harms whom agrees with the mask of a batch."""

import random
import time

import pytest

from helpers.answers import normalize
from helpers.base.shingles import jaccard, shingles
from helpers.batches import TrainingRows, candidate_mask
from helpers.dataset import PassageIndex, load_data
from helpers.importing.sources import write_folder
from helpers.reporting.signs import _clash, _twins, diagnose_rows

WORDS = [f"word{n}" for n in range(3000)]


def text(rng, words):
    return " ".join(rng.choices(WORDS, k=words))


@pytest.fixture
def clean():
    """30 passages and questions without anything in common: (corpus, queries, train qrels)."""
    rng = random.Random(0)
    corpus = [{"_id": f"p{n}", "title": f"T{n}", "text": text(rng, 60)} for n in range(30)]
    queries = [{"_id": f"q{n}", "text": text(rng, 12), "answers": [f"answer{n}"]} for n in range(30)]
    return corpus, queries, {"train": [(f"q{n}", f"p{n}", 1) for n in range(30)]}


def rows_of(folder, parts):
    write_folder(folder, *parts)
    data = load_data(folder)
    return TrainingRows(data, PassageIndex(data.training_corpus()), hard_negatives=0, given_negative=False)


def test_rows_with_nothing_in_common_are_fine(clean, tmp_path):
    assert diagnose_rows(rows_of(tmp_path, clean)) == []


def test_the_sample_repeats_nothing(sample, train_passages):
    assert diagnose_rows(TrainingRows(sample, train_passages, hard_negatives=0, given_negative=False)) == []


def test_questions_of_one_passage_are_no_copies(clean, tmp_path):
    clean[2]["train"] = [(f"q{n}", f"p{n // 2}", 1) for n in range(30)]
    assert diagnose_rows(rows_of(tmp_path, clean)) == []


def change(text, number=5):
    words = text.split()
    words[number] = "another"
    return " ".join(words)


@pytest.mark.parametrize(
    ("kind", "copy"),
    [("the same", lambda text: f"{text.upper()} "), ("nearly the same", lambda text: f"{text} really")],
)
def test_questions_that_repeat_are_told_with_an_example(clean, tmp_path, kind, copy):
    queries = clean[1]
    queries[7]["text"] = copy(queries[3]["text"])
    (sentence,) = diagnose_rows(rows_of(tmp_path, clean))
    assert sentence.startswith(f"1 of 30 training questions are {kind} as an earlier one")
    assert queries[3]["text"][:40] in sentence and queries[7]["text"][:40] in sentence
    assert "with 1 of them" in sentence and "qrels/train.tsv" in sentence


@pytest.mark.parametrize(
    ("kind", "copy", "harm"),
    [("the same", str.upper, "none is a negative of its copy"), ("nearly the same", change, "with 1 of them")],
)
def test_positives_that_repeat_are_told(clean, tmp_path, kind, copy, harm):
    corpus = clean[0]
    corpus[8]["text"] = copy(corpus[2]["text"])
    (sentence,) = diagnose_rows(rows_of(tmp_path, clean))
    assert sentence.startswith(f"1 of 30 training positives are {kind} as an earlier one") and harm in sentence


def test_a_copy_with_the_same_positive_or_a_masked_one_does_no_harm(clean, tmp_path):
    _, queries, qrels = clean
    queries[7]["text"] = queries[3]["text"]
    qrels["train"][7] = ("q7", "p3", 1)
    (sentence,) = diagnose_rows(rows_of(tmp_path / "one", clean))
    assert "none is a negative of its copy" in sentence
    qrels["train"][7] = ("q7", "p7", 1)
    queries[3]["answers"] = queries[7]["answers"] = ["word5 word6"]
    for place in (3, 7):
        clean[0][place]["text"] += " word5 word6"  # each holds the other's answer
    (sentence,) = diagnose_rows(rows_of(tmp_path / "two", clean))
    assert "none is a negative of its copy" in sentence


def test_a_passage_that_is_no_positive_is_not_looked_at(clean, tmp_path):
    clean[0].append({"_id": "p30", "title": "", "text": clean[0][0]["text"]})
    assert diagnose_rows(rows_of(tmp_path, clean)) == []


def test_who_harms_whom_agrees_with_the_mask_of_a_batch(clean, tmp_path):
    corpus = clean[0]
    for n in range(0, 30, 3):
        corpus[n]["text"] += f" answer{n + 1}"  # holds the answer of the next question
    corpus[20]["text"] = corpus[11]["text"]
    rows = rows_of(tmp_path, clean)
    columns = [row.positive for row in rows.rows]
    allowed = candidate_mask(rows.rows, columns, rows)
    sides = [({row.qid}, {row.positive}) for row in rows.rows]
    for a in range(30):
        for b in range(a):
            assert _clash(rows, sides[a], sides[b]) == bool(allowed[a, b] or allowed[b, a])


def test_near_copies_are_those_that_all_pairs_find():
    rng = random.Random(1)
    texts = [text(rng, 50) for _ in range(150)]
    for one in texts[:150]:
        words = one.split()
        for _ in range(rng.randrange(7)):
            words[rng.randrange(50)] = rng.choice(WORDS)
        texts.append(" ".join(words))
    same, nearly = _twins([normalize(one) for one in texts], 3, 0.8)
    sets = [shingles(normalize(one).strip(), 3) for one in texts]
    alike = {(150 + n, n) for n in range(150) if jaccard(sets[150 + n], sets[n]) >= 0.8}
    assert {*same, *nearly} == alike and 20 < len(nearly) < 130 and same


def test_a_phrase_that_stands_everywhere_costs_no_square():
    start = time.process_time()
    same, nearly = _twins([" the same words everywhere "] * 40_000, 2, 0.8)
    assert len(same) == 39_999 and nearly == [] and time.process_time() - start < 10
