"""A guide hides what it takes for positives; weights prefer hard negatives and change nothing else."""

from types import SimpleNamespace

import pytest
import torch

from helpers.base.errors import SettingError
from helpers.batches import TrainingRows
from helpers.loss import infonce, score_loss
from helpers.topics.hard_losses import guided_loss, guided_mask, hardness_weighted_loss
from helpers.training import Task, TrainingSettings, train


@pytest.fixture
def batch():
    allowed = torch.tensor([[True, True, True, False], [True, True, True, True]])
    return SimpleNamespace(
        qids=["q0", "q1"], columns=[3, 1, 4, 2], positive=torch.tensor([1, 0]), allowed=allowed, passages=[]
    )


@pytest.fixture
def scores():
    return torch.tensor([[0.5, 0.9, 0.1, 0.95], [0.6, 0.7, 0.2, 0.4]], requires_grad=True)


GUIDE = torch.tensor([[0.8, 0.7, 0.65, 0.1], [0.5, float("nan"), 0.6, 0.4]])


def test_a_negative_is_hidden_if_the_guide_puts_it_above_the_positive(batch):
    kept = [[False, True, True, False], [True, True, False, True]]
    assert guided_mask(GUIDE, batch.positive, batch.allowed).tolist() == kept


def test_the_guided_loss_is_infonce_without_what_is_hidden(batch, scores):
    asked = []

    def guide(qids, columns):
        asked.append((qids, columns))
        return GUIDE

    loss = guided_loss(guide, temperature=0.1)(scores, batch)
    hidden = batch.allowed.clone()
    hidden[0, 0] = hidden[1, 2] = False
    assert loss == score_loss(scores, batch.positive, hidden, 0.1) != infonce(0.1)(scores, batch)
    assert asked == [(batch.qids, batch.columns)]


def test_without_beta_the_weights_are_infonce(batch, scores):
    assert hardness_weighted_loss(0.0)(scores, batch).item() == pytest.approx(infonce()(scores, batch).item(), rel=1e-6)


def test_the_weights_are_those_of_the_paper(batch, scores):
    def by_hand(row: int, beta: float, temperature: float) -> float:
        positive = scores[row, batch.positive[row]].item()
        places = [p for p in range(4) if batch.allowed[row, p] and p != batch.positive[row]]
        own = [scores[row, place].item() / temperature for place in places]
        weights = torch.tensor([beta * s for s in own]).softmax(0) * len(own)
        top = torch.tensor(positive / temperature).exp()
        below = (weights * torch.tensor(own).exp()).sum()
        return float(-(top / (top + below)).log())

    expected = (by_hand(0, 1.5, 0.2) + by_hand(1, 1.5, 0.2)) / 2
    assert hardness_weighted_loss(1.5, 0.2)(scores, batch).item() == pytest.approx(expected, rel=1e-5)


def test_a_weighted_gradient_pushes_hard_negatives_more(batch, scores):
    shares = []
    for loss in (hardness_weighted_loss(2.0, 0.2), infonce(0.2)):
        (gradient,) = torch.autograd.grad(loss(scores, batch), scores)
        shares.append(gradient[1, 1] / gradient[1, 1:].sum())  # column 1 is the hardest of question 1
        assert gradient[0, 3] == 0, "what is masked stays masked"
    assert shares[0] > shares[1]


def test_a_question_without_negatives_has_no_loss(scores, batch):
    batch.allowed = torch.zeros_like(batch.allowed).scatter(1, batch.positive[:, None], True)
    loss = hardness_weighted_loss(1.0)(scores, batch)
    assert loss.item() == 0 and torch.autograd.grad(loss, scores)[0].isfinite().all()


@pytest.mark.parametrize("beta", [-1.0, float("nan"), float("inf")])
def test_impossible_weights_are_refused(beta):
    with pytest.raises(SettingError, match="beta="):
        hardness_weighted_loss(beta)


def test_both_train(sample, train_passages, own_bert, tmp_path):
    rows = TrainingRows(sample, train_passages, hard_negatives=0)

    def guide(qids, columns):
        return torch.rand(len(qids), len(columns), generator=torch.Generator().manual_seed(0))

    for name, loss in {"guided": guided_loss(guide), "weighted": hardness_weighted_loss()}.items():
        settings = TrainingSettings(epochs=1, max_steps=2, batch_size=4, learning_rate=1e-3)
        history = train(own_bert, Task(rows, lambda _: 0.0, loss), settings, tmp_path / name)
        assert all(0 < entry["loss"] < 100 for entry in history if "loss" in entry)
