"""Several data sets in one training: batches of one each, shares by size, the same result after a kill."""

import pytest
import torch

from helpers.base.errors import SettingError
from helpers.batches import TrainingRows
from helpers.encoder import load_encoder
from helpers.topics.mixture import MixedRows, mixed_scorer
from helpers.training import Task, TrainingSettings, train


def part(sample, passages, qids, seed=0):
    """Return rows without hard negatives of some training questions."""
    return TrainingRows(sample, passages, dict.fromkeys(qids, ()), 0, False, seed)


@pytest.fixture(scope="module")
def parts(sample, sample_passages):
    qids = sample.split_queries("train")
    cuts = {"large": qids[:200], "middle": qids[200:300], "small": qids[300:325]}
    return {name: part(sample, sample_passages, own) for name, own in cuts.items()}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("power", "size", "counts"),
    [(1.0, 8, [25, 12, 3]), (0.0, 8, [14, 13, 13]), (0.5, 8, [19, 14, 7]), (1.0, 25, [8, 4, 1]), (0.0, 25, [5, 4, 4])],
)
def test_shares_follow_the_power_and_add_up(parts, power, size, counts):
    mixed = MixedRows(parts, power)
    found = mixed.counts(size)
    assert sum(found) == sum(len(rows) // size for rows in parts.values())
    assert found == counts


def test_a_tiny_data_set_keeps_a_batch(parts):
    assert MixedRows(parts, 1.0).counts(25)[-1] == 1


def test_every_batch_is_of_one_data_set_and_every_row_comes_once(parts):
    mixed = MixedRows(parts)
    batches = mixed.batches(8, generator())
    names = [{mixed[number][0] for number in batch} for batch in batches]
    assert all(len(own) == 1 and len(batch) == 8 for own, batch in zip(names, batches, strict=True))
    assert len(set(map(str, names[:12]))) > 1, "one data set after the other"
    drawn = [number for batch in batches for number in batch]
    assert len(drawn) == len(set(drawn)) == 8 * (25 + 12 + 3)
    assert batches == mixed.batches(8, generator()) != mixed.batches(8, generator(1))


def test_equal_shares_repeat_the_small_and_cut_the_large(parts):
    mixed = MixedRows(parts, 0.0)
    drawn = [mixed[number] for batch in mixed.batches(8, generator()) for number in batch]
    seen = {name: [row.qid for own, row in drawn if own == name] for name in parts}
    assert len(set(seen["large"])) == len(seen["large"]) < 200
    assert len(set(seen["small"])) == 24 or len(set(seen["small"])) == 25
    assert len(seen["small"]) > 4 * 24


def test_rows_keep_their_own_negatives_and_epochs(sample, sample_passages):
    qids = sample.split_queries("train")
    pool = {qid: [pid for pid in sample_passages.ids[:30] if pid not in sample.qrels["train"][qid]] for qid in qids}
    one, other = (
        TrainingRows(sample, sample_passages, {qid: pool[qid] for qid in own}, 2, False, seed)
        for own, seed in ((qids[:20], 1), (qids[20:50], 2))
    )
    mixed = MixedRows({"one": one, "other": other})
    mixed.epoch = 3
    assert one.epoch == other.epoch == mixed.epoch == 3 and len(mixed) == 50
    assert mixed[19] == ("one", one[19]) and mixed[20] == ("other", other[0]) and mixed[49] == ("other", other[29])
    assert mixed.hard_negatives == [2, 2]


def test_what_changes_the_rows_changes_the_fingerprint(parts):
    marks = {
        MixedRows(parts).fingerprint(),
        MixedRows(parts, 0.5).fingerprint(),
        MixedRows({"large": parts["large"], "small": parts["small"]}).fingerprint(),
        MixedRows({"big": parts["large"], "middle": parts["middle"], "small": parts["small"]}).fingerprint(),
    }
    assert len(marks) == 4 and MixedRows(parts).fingerprint() in marks


def test_what_cannot_be_mixed_is_refused(parts):
    with pytest.raises(SettingError, match="0 data sets"):
        MixedRows({})
    with pytest.raises(SettingError, match=r"power=2: give one or more, and a power from 0 to 1"):
        MixedRows(parts, 2)
    with pytest.raises(SettingError, match="small has 25 training rows, a batch holds 32; lower batch_size"):
        MixedRows(parts).batches(32, generator())
    with pytest.raises(SettingError, match="cannot be refreshed"):
        _ = MixedRows(parts).pool


def test_training_takes_a_mixture_and_resumes_it(parts, tmp_path):
    score = mixed_scorer({"a": lambda _: {"dev": 0.5, "Hit@1": 0.1}, "b": lambda _: {"dev": 0.7}})
    common = {"batch_size": 8, "max_steps": 6, "learning_rate": 1e-4, "eval_every": 3, "accumulate": 2}

    def trained(folder, stop=0, done=0, **more):
        encoder, mixed = load_encoder("bert-tiny", max_length=32, device="cpu"), MixedRows(parts, 0.5)
        calls = [1] * done  # evaluations, each better than the one before

        def evaluate(encoder):
            calls.append(1)
            if stop and len(calls) > stop:
                raise KeyboardInterrupt
            return score(encoder) | {"dev": 0.5 + len(calls) / 100}

        history = train(encoder, Task(mixed, evaluate), TrainingSettings(**common, **more), tmp_path / folder)
        return history, {name: tensor.clone() for name, tensor in encoder.state_dict().items()}

    history, weights = trained("whole")
    assert history[0]["dev a"] == 0.5 and history[0]["dev b"] == 0.7 and history[-1]["step"] == 6
    with pytest.raises(KeyboardInterrupt):
        trained("killed", stop=2)
    again, same = trained("killed", done=2, resume=True)
    assert [entry.get("loss") for entry in again] == [entry.get("loss") for entry in history]
    assert all(torch.equal(same[name], tensor) for name, tensor in weights.items())


def test_the_mean_of_the_data_sets_decides():
    score = mixed_scorer({"a": lambda _: {"dev": 0.5, "Hit@1": 0.1}, "b": lambda _: {"dev": 0.7}})
    assert score(None) == {"dev": pytest.approx(0.6), "dev a": 0.5, "dev b": 0.7}
