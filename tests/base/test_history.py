"""What a history says: which score is the best, and what looks wrong."""

import math

import pytest

from helpers.base.history import BestScore, diagnose
from helpers.reporting.significance import smallest_difference


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


def trained(dev, accuracy, norms=(0.5,), each=20):
    """Return a history with `each` steps before every evaluation but the first, their accuracy and gradients' norms."""
    entries = [{"step": 0, "dev": dev[0]}]
    for score, share in zip(dev[1:], accuracy, strict=True):
        for _ in range(each):
            number = len(entries)
            norm = norms[number % len(norms)]
            entries.append({"step": number, "loss": 1.0, "chance": 4.0, "accuracy": share, "gradient_norm": norm})
        entries[-1]["dev"] = score
    return entries


@pytest.mark.parametrize(
    ("dev", "accuracy", "questions", "told"),
    [
        ((0.461, 0.823, 0.787), (0.48, 0.84), 141, True),  # 5 of 141 questions, above 3.8
        ((0.461, 0.809, 0.801), (0.48, 0.84), 141, False),  # 1 question
        ((0.461, 0.809, 0.801), (0.48, 0.84), 14_100, True),  # 100 questions
        ((0.461, 0.823, 0.787), (0.48, 0.84), None, False),  # how large is the noise?
        ((0.461, 0.823, 0.787), (0.48, 0.55), 141, False),  # dev fell, but nothing became easy
        ((0.461, 0.823, 0.787), (0.90, 0.95), 141, True),  # errors halved
        ((0.461, 0.787, 0.823), (0.48, 0.84), 141, False),  # healthy: both rise
        ((0.461, 0.823, 0.700, 0.823), (0.48, 0.84, 0.9), 141, False),  # dev came back
        ((0.4, 0.80, 0.79, 0.785, 0.78), (0.5, 0.7, 0.8, 0.9), None, True),  # three times in a row
        ((0.4, 0.80, 0.79, 0.795, 0.78), (0.5, 0.7, 0.8, 0.9), None, False),
        ((0.4, 0.80, 0.79, 0.785), (0.5, 0.7, 0.8), None, False),  # twice
        ((0.4, 0.80, 0.79, 0.785, 0.78), (0.5, 0.5, 0.5, 0.5), None, False),
        ((0.9, 0.5, 0.4), (0.48, 0.84), 141, False),  # never better than before: another sentence says that
    ],
)
def test_memorising_is_told_where_batches_become_easy_and_dev_falls_beyond_noise(dev, accuracy, questions, told):
    smallest = smallest_difference(questions) if questions else None
    found = [one for one in diagnose(trained(dev, accuracy), smallest=smallest) if one.startswith("memorising")]
    assert len(found) == told
    assert all(f"{accuracy[-1]:.0%} of a batch" in one and "more questions" in one for one in found)


def test_memorising_is_told_while_there_is_time_to_stop():
    history = trained((0.4, 0.80, 0.79, 0.785, 0.78), (0.5, 0.7, 0.8, 0.9))
    assert [one.split(":")[0] for one in diagnose(history, ended=False)] == ["memorising"]


def test_short_trainings_compare_the_steps_that_they_have():
    found = diagnose(trained((0.4, 0.8, 0.5), (0.3, 0.9), each=4), smallest=0.1)
    assert "90% of a batch instead of 30%" in found[0]


@pytest.mark.parametrize(
    ("dev", "questions", "times"),
    [
        ((0.461, 0.809, 0.801), 141, "about 87 times as many"),  # 0.8 points apart, 7.46 are shown
        ((0.461, 0.801, 0.801), 141, "far more"),
        ((0.461, 0.809, 0.700), 141, None),
        ((0.461, 0.809, 0.801), 141_000, None),
        ((0.461, 0.809), 141, None),  # one alone is not chosen
    ],
)
def test_a_dev_set_too_small_to_choose_by_is_told(dev, questions, times):
    history, smallest = trained(dev, (0.5,) * (len(dev) - 1)), smallest_difference(questions)
    found = [one for one in diagnose(history, smallest=smallest) if one.startswith("dev is too small")]
    assert len(found) == (times is not None)
    assert not found or f"choose by {times} dev questions" in found[0]
    assert diagnose(history, smallest=smallest, ended=False) == []  # there may be more to choose from


@pytest.mark.parametrize(
    ("norms", "clip_norm", "told"),
    [
        ((4.0, 6.0), 1.0, "40 of 40 gradients were clipped (median norm 5.0, clip_norm 1)"),
        ((0.5, 0.6), 1.0, ""),
        ((*(4.0,) * 9, 0.5), 1.0, ""),  # 36 of 40
        ((*(4.0,) * 39, 0.5), 1.0, "39 of 40"),
        ((4.0, 6.0), None, ""),
        ((4.0, None), 1.0, "20 of 20"),  # fp16 skipped the others
    ],
)
def test_clipping_of_nearly_every_gradient_is_told(norms, clip_norm, told):
    found = diagnose(trained((0.1, 0.2, 0.3), (0.5, 0.6), norms), clip_norm=clip_norm)
    assert len(found) == bool(told) and told in "".join(found)
    assert diagnose(trained((0.1, 0.2, 0.3), (0.5, 0.6), norms), clip_norm=clip_norm, ended=False) == []


def test_few_steps_say_nothing_of_clipping():
    assert diagnose(trained((0.1, 0.2), (0.5,), (4.0,), each=19), clip_norm=1.0) == []
