"""What a history says: which score is the best, and what looks wrong."""

import math

import pytest

from helpers.base.history import BestScore, diagnose


def test_the_first_of_equal_scores_is_the_best_and_its_age_counts_evaluations():
    best, found = BestScore(), []
    for score in (0.2, 0.1, 0.5, 0.5, 0.4, 0.6):
        found.append((best.add(score), best.value, best.age))
    assert found == [
        (True, 0.2, 0),
        (False, 0.2, 1),
        (True, 0.5, 0),
        (False, 0.5, 1),
        (False, 0.5, 2),
        (True, 0.6, 0),
    ]


def test_any_score_is_better_than_none():
    assert BestScore().value == -math.inf
    assert BestScore().add(-5.0)


def made_up(loss, chance=4.0, dev=(0.1, 0.2), steps=30):
    entries = [{"step": step, "loss": loss, "chance": chance} for step in range(1, steps + 1)]
    return [{"step": 0, "dev": dev[0]}, *entries[:-1], entries[-1] | {"dev": dev[1]}]


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        (made_up(1.0), []),
        (made_up(4.01), ["guessing gives 4.00"]),
        (made_up(3.99), ["guessing gives 4.00"]),
        (made_up(3.9), []),  # a fortieth below it
        (made_up(0.00001), ["can be told without reading"]),
        (made_up(1.0, dev=(0.3, 0.2)), ["made dev worse (0.300 before, at best 0.200 after)"]),
        (made_up(1.0, dev=(0.3, 0.3)), ["did not make dev better (0.300 before, at best 0.300 after)"]),
        (made_up(3.99, dev=(0.3, 0.2)), ["guessing gives 4.00", "made dev worse"]),
        (made_up(4.0, steps=5), []),  # too early to say
        (made_up(4.0, steps=5)[:1], []),
        ([*made_up(4.0)[:25], *made_up(1.0)[1:]], []),  # it got away from there
    ],
)
def test_what_looks_wrong_is_said(history, expected):
    found = diagnose(history)
    assert len(found) == len(expected)
    assert all(part in sentence for part, sentence in zip(expected, found, strict=True))


def test_only_a_contrastive_loss_is_compared_with_guessing():
    assert diagnose(made_up(4.01), contrastive=False) == diagnose(made_up(0.00001), contrastive=False) == []


def test_whether_training_helped_is_said_at_its_end():
    assert len(diagnose(made_up(4.01, dev=(0.3, 0.2)))) == 2
    assert len(diagnose(made_up(4.01, dev=(0.3, 0.2)), ended=False)) == 1  # dev may still rise


def test_measures_that_do_not_exist_are_no_obstacle():
    assert diagnose([entry | {"hardest": None, "gradient_norm": None} for entry in made_up(1.0)]) == []
