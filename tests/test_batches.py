"""Training rows and batches: what is sampled, what is masked, and that columns are what they say."""

import random
import re
import unicodedata
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from helpers.answers import holds
from helpers.base.errors import DataError
from helpers.batches import MASKS, Row, TrainingRows, candidate_mask, make_batch
from helpers.dataset import PassageIndex, load_data
from helpers.importing.sources import write_folder
from helpers.negatives import mine_pool
from helpers.strategies import bm25_strategy


@pytest.fixture(scope="module")
def passages(train_passages):
    return train_passages


@pytest.fixture(scope="module")
def pool(sample, passages):
    return mine_pool(sample, passages, bm25_strategy(sample, passages), sample.split_queries("train")).ids()


@pytest.fixture
def rows(sample, passages, pool):
    return TrainingRows(sample, passages, pool, hard_negatives=3, seed=5)


def drawn(rows, epoch):
    rows.epoch = epoch
    return [rows[number] for number in range(len(rows))]


def test_a_row_for_every_triple_of_the_sample(sample, passages, rows):
    assert len(rows) == len(sample.triples)
    got = {(row.qid, passages.ids[row.positive], passages.ids[row.given]) for row in drawn(rows, 0)}
    assert got == set(sample.triples)


def test_negatives_are_drawn_from_the_pool_without_repetition(passages, pool, rows):
    for row in drawn(rows, 0):
        ids = [passages.ids[number] for number in row.pool]
        assert len(ids) == len(set(ids)) == 3
        assert set(ids) <= set(pool[row.qid])


def test_epochs_and_seeds_draw_anew_and_the_same_ones_repeat(sample, passages, pool, rows):
    again = TrainingRows(sample, passages, pool, hard_negatives=3, seed=5)
    other = TrainingRows(sample, passages, pool, hard_negatives=3, seed=6)
    assert drawn(rows, 1) == drawn(again, 1)
    for different in (drawn(rows, 0), drawn(other, 1)):
        same = sum(a.pool == b.pool for a, b in zip(drawn(again, 1), different, strict=True))
        assert same < len(rows) / 20  # three of twenty in order agree once in 6,840


def test_a_row_does_not_depend_on_what_was_drawn_before(rows):
    whole = drawn(rows, 2)
    numbers = list(range(len(rows)))
    random.Random(0).shuffle(numbers)
    assert all(rows[number] == whole[number] for number in numbers)


def test_rows_draw_each_on_their_own(rows):
    places = [tuple(rows.rows[number].pool.index(column) for column in rows[number].pool) for number in range(50)]
    assert len(set(places)) > 40  # three of twenty in order agree once in 6,840


def test_every_negative_of_the_pool_is_drawn_some_time(pool, rows):
    row = rows.rows[0]
    seen = set()
    for epoch in range(200):
        rows.epoch = epoch
        seen |= set(rows[0].pool)
    assert seen == set(row.pool)
    assert row.given not in seen  # it is in the row anyway
    assert len(pool[row.qid]) - len(seen) in (0, 1)


@pytest.mark.parametrize(("given", "count"), [(True, 2), (False, 2), (True, 0), (False, 0)])
def test_how_many_negatives_a_row_has(sample, passages, pool, given, count):
    rows = TrainingRows(sample, passages, pool, hard_negatives=count, given_negative=given)
    for row in drawn(rows, 0)[:50]:
        assert len(row.pool) == count
        assert (row.given is not None) is given


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (1, 2), (3, 4)])
def test_a_row_without_a_given_negative_samples_one_more(sample, passages, pool, count, expected, monkeypatch):
    monkeypatch.setattr(sample, "triples", [])
    rows = TrainingRows(sample, passages, pool, hard_negatives=count)
    assert {(row.given, len(row.pool)) for row in drawn(rows, 0)} == {(None, expected)}


def test_without_a_pool_all_train_questions_are_trained_on(sample, passages):
    rows = TrainingRows(sample, passages, hard_negatives=0)
    assert {row.qid for row in drawn(rows, 0)} == set(sample.qrels["train"])
    assert not any(row.pool for row in drawn(rows, 0))


def test_the_pools_questions_alone_are_trained_on(sample, passages, pool):
    some = dict(list(pool.items())[:7])
    assert {row.qid for row in TrainingRows(sample, passages, some).rows} == set(some)


def test_a_pool_that_is_too_small_is_an_error(sample, passages, pool):
    short = pool | {"q0002": pool["q0002"][:1]}
    with pytest.raises(DataError, match="'q0002' has 1 negatives, 2 are sampled"):
        TrainingRows(sample, passages, short, hard_negatives=2)


def test_no_pool_is_an_error_when_negatives_are_sampled(sample, passages):
    with pytest.raises(DataError, match="has 0 negatives, 2 are sampled"):
        TrainingRows(sample, passages, hard_negatives=2)


def test_an_unknown_passage_in_the_pool_is_an_error(sample, passages, pool):
    with pytest.raises(DataError, match="'q0002' has the unknown passage 'nowhere'"):
        TrainingRows(sample, passages, pool | {"q0002": ["nowhere", *pool["q0002"]]})


@pytest.mark.parametrize("pool", [{}, {"q9999": []}])
def test_no_row_at_all_is_an_error(sample, passages, pool):
    with pytest.raises(DataError, match="no training row"):
        TrainingRows(sample, passages, pool, hard_negatives=0)


def batch_of(rows, encoder, numbers=range(12), **more):
    chosen = [rows[number] for number in numbers]
    batch = make_batch(chosen, rows, encoder, **more)
    tokens = [
        ids[mask.bool()]
        for group in batch.passages
        for ids, mask in zip(group["input_ids"], group["attention_mask"], strict=True)
    ]
    return chosen, batch, tokens


def letters(text):
    return re.sub(r"[^a-z0-9]", "", unicodedata.normalize("NFD", text).lower())


def columns_of(tokens, passages, encoder, numbers):
    """Return the passage in each column, found by decoding its token ids."""
    by_text = {letters(passages.texts[number]): number for number in numbers}
    assert len(by_text) == len(numbers)
    return [by_text[letters(encoder.tokenizer.decode(ids, skip_special_tokens=True))] for ids in tokens]


@pytest.mark.parametrize("group_tokens", [1, 300, 1024, 10**6])
def test_every_distinct_passage_is_one_column_sorted_by_length(rows, passages, bert_tiny, group_tokens):
    chosen, batch, tokens = batch_of(rows, bert_tiny, group_tokens=group_tokens)
    wanted = {number for row in chosen for number in (row.positive, row.given, *row.pool)}
    columns = columns_of(tokens, passages, bert_tiny, wanted)
    assert sorted(columns) == sorted(wanted) == sorted(batch.columns) and columns == batch.columns
    assert [len(ids) for ids in tokens] == sorted(len(ids) for ids in tokens)
    sizes = [group["input_ids"].numel() for group in batch.passages]
    assert all(
        size <= group_tokens or len(group["input_ids"]) == 1 for size, group in zip(sizes, batch.passages, strict=True)
    )
    fuller = [
        (len(one["input_ids"]) + 1) * (next_one["attention_mask"][0].sum())
        for one, next_one in pairwise(batch.passages)
    ]
    assert all(tokens > group_tokens for tokens in fuller)  # the next passage would not have fitted
    assert [columns[number] for number in batch.positive] == [row.positive for row in chosen]


def test_the_questions_are_those_of_the_rows(sample, rows, passages, bert_tiny):
    chosen, batch, _ = batch_of(rows, bert_tiny)
    assert batch.qids == [row.qid for row in chosen]
    for row, ids in zip(chosen, batch.queries["input_ids"], strict=True):
        assert letters(bert_tiny.tokenizer.decode(ids, skip_special_tokens=True)) == letters(
            sample.queries[row.qid].text
        )


@pytest.mark.parametrize("in_batch", [True, False])
def test_who_may_be_a_negative_for_whom(sample, rows, passages, bert_tiny, in_batch):
    chosen, batch, tokens = batch_of(rows, bert_tiny, in_batch=in_batch)
    wanted = {number for row in chosen for number in (row.positive, row.given, *row.pool)}
    columns = columns_of(tokens, passages, bert_tiny, wanted)
    assert batch.allowed.shape == (len(chosen), len(columns))
    assert batch.allowed.gather(1, batch.positive[:, None]).all()
    if not in_batch:
        for row, allowed in zip(chosen, batch.allowed, strict=True):
            got = {column for column, is_allowed in zip(columns, allowed, strict=True) if is_allowed}
            assert got <= {row.positive, row.given, *row.pool}
            assert {row.positive, *row.pool} <= got  # the pool was mined with the same filters
    else:
        assert batch.allowed.float().mean() > 0.9


def test_long_passages_and_questions_are_cut(rows, passages, bert_tiny, monkeypatch):
    monkeypatch.setattr(bert_tiny, "profile", replace(bert_tiny.profile, max_length=12))
    _, batch, _ = batch_of(rows, bert_tiny)
    assert max(group["input_ids"].shape[1] for group in [batch.queries, *batch.passages]) == 12


POSITIVE, IDENTICAL, ANSWER, OTHER, PLAIN = range(5)


@pytest.fixture
def planted(tmp_path):
    """A question, its positive, one false negative of each kind, and a true negative; no other is more than one."""
    texts = [
        "A long river crosses Paris.",
        "A long  river crosses PARIS.",
        "Barges go down the Séine.",
        "The French capital has many bridges.",
        "Rome lies on the Tiber.",
    ]
    corpus = [{"_id": f"p{number}", "text": text} for number, text in enumerate(texts)]
    queries = [{"_id": "q0", "text": "Which river crosses the French capital?", "answers": ["Loire", "Séine"]}]
    queries += [{"_id": f"q{number}", "text": "Anything?"} for number in range(1, 5)]
    qrels = [("q0", "p0", 1), ("q0", "p3", 1), ("q1", "p1", 1), ("q2", "p2", 1), ("q4", "p4", 1)]
    write_folder(tmp_path / "planted", corpus, queries, {"train": qrels})
    data = load_data(tmp_path / "planted")
    return TrainingRows(data, PassageIndex(data.corpus), hard_negatives=0)


def allowed_for(planted, row, masks, in_batch=True):
    mask = candidate_mask([row], range(5), planted, in_batch, masks)
    assert mask.dtype == torch.bool
    return {number for number in range(5) if mask[0, number]}


def test_all_kinds_of_false_negative_are_masked(planted):
    assert allowed_for(planted, Row("q0", POSITIVE, None), MASKS) == {POSITIVE, PLAIN}


@pytest.mark.parametrize(
    ("kind", "column"),
    [
        ("positives", OTHER),
        ("text", IDENTICAL),
        ("answers", ANSWER),
    ],
)
def test_a_kind_is_masked_by_its_own_switch_alone(planted, kind, column):
    row = Row("q0", POSITIVE, None)
    assert allowed_for(planted, row, [kind]) == set(range(5)) - {column}
    assert allowed_for(planted, row, [name for name in MASKS if name != kind]) == {POSITIVE, PLAIN, column}


@pytest.mark.parametrize(("kind", "column"), [("text", IDENTICAL), ("answers", ANSWER)])
def test_a_false_negative_is_allowed_again_without_its_mask(planted, kind, column):
    masks = [name for name in MASKS if name != kind]
    assert allowed_for(planted, Row("q0", POSITIVE, None), masks) == {POSITIVE, PLAIN, column}


def test_with_no_mask_every_passage_of_the_batch_counts(planted):
    assert allowed_for(planted, Row("q0", POSITIVE, None), ()) == set(range(5))


def test_false_negatives_among_the_rows_own_are_masked_too(planted):
    row = Row("q0", POSITIVE, ANSWER, (IDENTICAL, PLAIN))
    assert allowed_for(planted, row, MASKS, in_batch=False) == {POSITIVE, PLAIN}
    assert allowed_for(planted, row, (), in_batch=False) == {POSITIVE, IDENTICAL, ANSWER, PLAIN}


def test_without_in_batch_only_the_rows_own_count(planted):
    assert allowed_for(planted, Row("q4", PLAIN, None), MASKS, in_batch=False) == {PLAIN}
    assert allowed_for(planted, Row("q4", PLAIN, ANSWER, (OTHER,)), MASKS, in_batch=False) == {PLAIN, ANSWER, OTHER}


def test_a_positive_that_holds_the_answer_stays(planted):
    assert allowed_for(planted, Row("q2", ANSWER, None), MASKS) == set(range(5))
    mask = candidate_mask([Row("q0", ANSWER, None)], range(5), planted)
    assert mask[0, ANSWER]


def pair_by_pair(chosen, columns, source, in_batch, masks):
    """The slow twin of `candidate_mask`: every question and passage by itself."""
    normalized, allowed = source.passages.normalized, []
    for row in chosen:
        positives, answers = source.positives[row.qid], source.queries[row.qid].answers
        same = {normalized[positive] for positive in positives}
        for column in columns:
            if column == row.positive:
                wrong = False
            elif column in positives:
                wrong = "positives" in masks
            else:
                held = "answers" in masks and holds(source.passages.needles(answers), normalized[column])
                wrong = held or ("text" in masks and normalized[column] in same)
            allowed.append(not wrong and (in_batch or column in {row.positive, row.given, *row.pool}))
    return torch.tensor(allowed).view(len(chosen), len(columns))


@pytest.mark.parametrize("in_batch", [True, False])
@pytest.mark.parametrize("masks", [MASKS, ["answers"], ["text"], ["positives", "text"]])
def test_the_mask_of_a_batch_is_that_of_its_pairs(rows, planted, in_batch, masks):
    for source in (rows, planted):
        chosen = [source[number] for number in range(min(len(source), 60))]
        columns = list(
            dict.fromkeys(n for row in chosen for n in (row.positive, row.given, *row.pool) if n is not None)
        )
        random.Random(0).shuffle(columns)
        mask = candidate_mask(chosen, columns, source, in_batch, masks)
        assert mask.equal(pair_by_pair(chosen, columns, source, in_batch, masks))
        assert not ("answers" in masks and mask.all())


def test_make_batch_masks_the_planted_false_negatives(planted, bert_tiny):
    rows = planted
    chosen = [rows[number] for number in range(len(rows))]
    assert [(row.qid, row.positive) for row in chosen][:2] == [("q0", POSITIVE), ("q0", OTHER)]
    batch = make_batch(chosen, rows, bert_tiny)
    assert batch.allowed[0].sum() == batch.allowed[1].sum() == 2  # the positive and the plain one
    assert batch.allowed[0].tolist() != batch.allowed[1].tolist()
    assert make_batch(chosen, rows, bert_tiny, masks=()).allowed.all()


@pytest.mark.parametrize("strict", [False, True])
def test_answers_are_masked_as_strictly_as_the_passages_are_read(tmp_path, strict):
    """In DPR's own reading a curly apostrophe is another character, and so are the tokens."""
    corpus = [{"_id": "p0", "text": "It is blue."}, {"_id": "p1", "text": "Here O'Hara lived."}]
    corpus.append({"_id": "p2", "text": "Here O’Hara lived."})
    write_folder(
        tmp_path / "data",
        corpus,
        [{"_id": "q0", "text": "Who lived here?", "answers": ["O’Hara"]}],
        {"train": [("q0", "p0", 1)]},
    )
    data = load_data(tmp_path / "data")
    rows = TrainingRows(data, PassageIndex(data.corpus, strict_dpr=strict), hard_negatives=0)
    assert candidate_mask([rows[0]], [0, 1, 2], rows).tolist() == [[True, strict, False]]


@pytest.mark.parametrize("titles", [False, True])
def test_answers_in_titles_are_masked_if_they_count(tmp_path, titles):
    corpus = [{"_id": "p0", "text": "It is blue."}, {"_id": "p1", "title": "Seine", "text": "A river."}]
    write_folder(
        tmp_path / "data",
        corpus,
        [{"_id": "q0", "text": "Which river?", "answers": ["Seine"]}],
        {"train": [("q0", "p0", 1)]},
    )
    data = load_data(tmp_path / "data")
    rows = TrainingRows(data, PassageIndex(data.corpus, match_title=titles), hard_negatives=0)
    assert candidate_mask([rows[0]], [0, 1], rows).tolist() == [[True, not titles]]


def test_the_given_negative_is_a_candidate_of_its_own_row(rows, bert_tiny):
    """One row at a time, for in a larger batch another row may bring the same passage."""
    for number in range(5):
        (row,), batch, _ = batch_of(rows, bert_tiny, [number], in_batch=False, masks=())
        assert row.given is not None and row.given not in row.pool
        assert set(batch.columns) == {row.positive, row.given, *row.pool}
        assert batch.allowed.all()


def test_a_fingerprint_of_rows_follows_from_what_they_hold(sample, passages, pool):
    one = TrainingRows(sample, passages, pool, seed=1)
    assert one.fingerprint() == TrainingRows(sample, passages, dict(pool), seed=1).fingerprint()
    others = [
        TrainingRows(sample, passages, pool, seed=2),
        TrainingRows(sample, passages, pool, seed=1, given_negative=False),
        TrainingRows(sample, passages, dict(list(pool.items())[1:]), seed=1),
    ]
    assert len({rows.fingerprint() for rows in [one, *others]}) == 4
