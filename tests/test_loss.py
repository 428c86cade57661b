"""The loss: known values, sentence-transformers as reference, and what must not change it."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.loss import contrastive_loss_with_hard_negatives, in_batch_loss


def vectors(*shape, seed=0, dtype=torch.float32):
    random = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=random, dtype=dtype), dim=-1)


def own_only(batch, negatives):
    """Return the mask in which row i may use columns i, B + i, 2B + i, …: its positive and its own negatives."""
    return torch.eye(batch, dtype=torch.bool).repeat(1, 1 + negatives)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 6), st.integers(0, 4), st.sampled_from([0.01, 0.05, 1.0]), st.integers(0, 99))
def test_contrastive_loss_is_the_plain_formula(batch, negatives, temperature, seed):
    q, *rest = vectors(2 + negatives, batch, 8, seed=seed, dtype=torch.float64)
    expected = 0.0
    for row in range(batch):
        scores = [float(q[row] @ candidates[row]) / temperature for candidates in rest]
        expected -= scores[0] - math.log(sum(math.exp(score) for score in scores))
    got = contrastive_loss_with_hard_negatives(q, rest[0], rest[1:], temperature)
    assert got.item() == pytest.approx(expected / batch, abs=1e-9)


def test_contrastive_loss_is_cross_entropy_with_label_zero():
    q, *rest = vectors(5, 4, 16)
    scores = torch.stack([(q * candidates).sum(1) for candidates in rest], dim=1) / 0.05
    expected = F.cross_entropy(scores, torch.zeros(4, dtype=torch.long))
    torch.testing.assert_close(contrastive_loss_with_hard_negatives(q, rest[0], rest[1:]), expected)


@pytest.mark.parametrize("negatives", [0, 1, 3])
@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_in_batch_loss_with_own_negatives_alone_is_the_contrastive_loss(negatives, temperature):
    q, *rest = vectors(2 + negatives, 5, 16)
    mask = own_only(5, negatives)
    got = in_batch_loss(q, torch.cat(rest), torch.arange(5), mask, temperature)
    torch.testing.assert_close(got, contrastive_loss_with_hard_negatives(q, rest[0], rest[1:], temperature))


@pytest.mark.parametrize("negatives", [0, 2])
@pytest.mark.parametrize("allowed", [False, True], ids=["no mask", "all-true mask"])
def test_in_batch_loss_equals_that_of_sentence_transformers(negatives, allowed):
    losses = pytest.importorskip("sentence_transformers.losses")
    columns = [(3 * column).requires_grad_() for column in vectors(2 + negatives, 8, 32)]
    reference = losses.MultipleNegativesRankingLoss(model=torch.nn.Identity(), scale=20)
    expected = reference.compute_loss_from_embeddings(columns, None)
    mask = torch.ones(8, 8 * (1 + negatives), dtype=torch.bool) if allowed else None
    q, *rest = (F.normalize(column, dim=-1) for column in columns)  # theirs does this inside
    got = in_batch_loss(q, torch.cat(rest), torch.arange(8), mask, temperature=0.05)
    assert got.item() == pytest.approx(expected.item(), abs=1e-6)
    for mine, theirs in zip(torch.autograd.grad(got, columns), torch.autograd.grad(expected, columns), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-4)


def test_contrastive_gradient_is_that_of_finite_differences():
    q, *rest = (column.clone().requires_grad_() for column in vectors(4, 3, 5, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda q, p, *n: contrastive_loss_with_hard_negatives(q, p, n, 0.3), (q, *rest))


def test_in_batch_gradient_is_that_of_finite_differences():
    """Its scores are float32 whatever comes in, so the step is large and the tolerance loose."""
    q, passages = (v.requires_grad_() for v in vectors(2, 4, 5, dtype=torch.float64))
    positive, mask = torch.tensor([2, 0, 3, 1]), torch.rand(4, 4) > 0.3
    mask[torch.arange(4), positive] = True

    def loss(q, passages):
        return in_batch_loss(q, passages, positive, mask, temperature=0.5)

    assert torch.autograd.gradcheck(loss, (q, passages), eps=1e-2, atol=1e-2, rtol=1e-2)


def masked_case(seed=0):
    q, passages = vectors(4, 8, seed=seed), vectors(9, 8, seed=seed + 100)
    positive = torch.tensor([0, 3, 8, 5])
    mask = torch.rand(4, 9, generator=torch.Generator().manual_seed(seed)) > 0.3
    mask[torch.arange(4), positive] = True
    return q.requires_grad_(), passages.requires_grad_(), positive, mask


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_the_passages_does_not_matter(seed):
    q, passages, positive, mask = masked_case(seed)
    order = torch.randperm(9)
    where = torch.argsort(order)[positive]
    torch.testing.assert_close(
        in_batch_loss(q, passages[order], where, mask[:, order]), in_batch_loss(q, passages, positive, mask)
    )


@pytest.mark.parametrize("seed", range(5))
def test_a_passage_masked_for_everyone_changes_nothing(seed):
    q, passages, positive, mask = masked_case(seed)
    more = torch.cat([passages, vectors(1, 8, seed=7)])
    wider = torch.cat([mask, torch.zeros(4, 1, dtype=torch.bool)], dim=1)
    one, two = in_batch_loss(q, passages, positive, mask), in_batch_loss(q, more, positive, wider)
    torch.testing.assert_close(one, two)
    for left, right in zip(
        torch.autograd.grad(one, (q, passages)), torch.autograd.grad(two, (q, passages)), strict=True
    ):
        torch.testing.assert_close(left, right)


def test_a_masked_passage_gets_no_gradient_at_all():
    q, passages, positive, mask = masked_case()
    mask[:, 7] = False
    in_batch_loss(q, passages, positive, mask).backward()
    assert (passages.grad[7] == 0).all()
    assert (passages.grad[positive].abs().sum(1) > 0).all()
    assert passages.grad.isfinite().all()


def test_masking_a_false_negative_lowers_the_loss():
    q, passages, positive, _ = masked_case()
    everything = torch.ones(4, 9, dtype=torch.bool)
    without = everything.clone()
    without[0, (q[0] @ passages[1:].T).argmax() + 1] = False
    assert in_batch_loss(q, passages, positive, without) < in_batch_loss(q, passages, positive, everything)


@pytest.mark.parametrize("temperature", [0.01, 0.05, 1.0])
@pytest.mark.parametrize("candidates", [1, 2, 7])
def test_equal_scores_cost_the_logarithm_of_the_candidates(candidates, temperature):
    q = vectors(3, 8)
    same = vectors(1, 8, seed=1)
    expected = pytest.approx(math.log(candidates), abs=1e-5)
    assert (
        in_batch_loss(q, same.repeat(candidates, 1), torch.zeros(3, dtype=torch.long), temperature=temperature).item()
        == expected
    )
    assert (
        contrastive_loss_with_hard_negatives(
            q, same.repeat(3, 1), [same.repeat(3, 1)] * (candidates - 1), temperature
        ).item()
        == expected
    )


def test_a_lower_temperature_sharpens():
    q = torch.eye(2)
    right = [in_batch_loss(q, q, torch.tensor([0, 1]), temperature=t).item() for t in (1.0, 0.5, 0.05)]
    wrong = [in_batch_loss(q, q, torch.tensor([1, 0]), temperature=t).item() for t in (1.0, 0.5, 0.05)]
    assert right == sorted(right, reverse=True)  # a right ranking costs less and less
    assert wrong == sorted(wrong)  # a wrong one more and more
    assert wrong[2] == pytest.approx(20, abs=1e-5)


def test_masking_a_positive_is_an_error():
    q, passages, positive, mask = masked_case()
    mask[2, positive[2]] = False
    with pytest.raises(ValueError, match="positive"):
        in_batch_loss(q, passages, positive, mask)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_vectors_are_scored_in_float32(dtype):
    q, passages = vectors(6, 32).to(dtype), vectors(9, 32, seed=1).to(dtype)
    loss = in_batch_loss(q, passages, torch.arange(6))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(in_batch_loss(q.double(), passages.double(), torch.arange(6)).item())
