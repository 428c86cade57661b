"""Fast dropout: the right share, drawn independently, and otherwise what torch computes."""

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModel

import helpers.base.dropout
from helpers.base.dropout import NAME, FastDropout, attention, draw
from helpers.encoder import load_encoder


class Layer(torch.nn.Module):
    is_causal = False


def tensors(*shape: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator).requires_grad_() for _ in range(3)]


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
def test_the_share_that_is_dropped_is_p(p):
    torch.manual_seed(1)
    mask, factor = draw(torch.empty(1000, 1001), p)
    kept = mask.double().mean()
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert abs(kept - (1 - p)) < 4 * (p * (1 - p) / mask.numel()) ** 0.5 + 1 / 2**16
    assert abs(factor * (1 - p) - 1) < 1e-3


def test_every_element_is_drawn_by_itself():
    torch.manual_seed(1)
    mask = draw(torch.empty(4_000_000), 0.1)[0] - 0.9
    for shift in range(1, 9):  # four neighbours come from one random number
        assert abs((mask[:-shift] * mask[shift:]).mean()) < 4 * 0.09 / 2000
    again = draw(torch.empty(4_000_000), 0.1)[0] - 0.9
    assert abs((mask * again).mean()) < 4 * 0.09 / 2000


def test_draws_follow_from_the_seed():
    like = torch.empty(3, 5, 7)
    masks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        masks.append(draw(like, 0.5)[0])
    assert masks[0].equal(masks[1]) and not masks[0].equal(masks[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(0,), (1,), (3,), (2, 5)])
def test_any_shape_and_precision(shape, dtype):
    mask, _ = draw(torch.empty(shape, dtype=dtype), 0.5)
    assert mask.shape == torch.Size(shape) and mask.dtype == dtype


def test_the_module_drops_only_in_training_and_scales():
    module = torch.nn.Dropout(0.5)
    module.__class__ = FastDropout
    ones = torch.ones(400, 500, requires_grad=True)
    out = module(ones)
    assert set(out.unique().tolist()) == {0.0, 2.0}
    out.sum().backward()
    assert ones.grad.equal(out)  # what is dropped gets no gradient
    assert module.eval()(ones) is ones
    assert FastDropout(0.0)(ones).equal(ones) and not FastDropout(1.0)(ones).any()


def masks() -> dict[str, torch.Tensor | None]:
    seen = torch.ones(2, 1, 9, 9, dtype=torch.bool)
    seen[1, :, :, 6:] = False
    return {"none": None, "bool": seen, "float": torch.zeros(2, 1, 9, 9).masked_fill(~seen, -1e9)}


@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize("name", ["none", "bool", "float"])
def test_attention_that_drops_nothing_is_torchs(monkeypatch, name, scaling):
    monkeypatch.setattr(helpers.base.dropout, "draw", lambda like, p: (torch.ones_like(like), 1.0))
    ours, theirs = tensors(2, 3, 9, 4), tensors(2, 3, 9, 4)
    out, _ = attention(Layer(), *ours, masks()[name], dropout=0.1, scaling=scaling)
    expected = F.scaled_dot_product_attention(*theirs, attn_mask=masks()[name], scale=scaling).transpose(1, 2)
    torch.testing.assert_close(out, expected)
    upstream = torch.randn(expected.shape)
    out.backward(upstream)
    expected.backward(upstream)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_attention_drops_weights_and_not_outputs():
    query, key, value = tensors(1, 1, 6, 4)
    torch.manual_seed(5)
    mask, factor = draw(torch.empty(1, 1, 6, 6), 0.3)
    torch.manual_seed(5)
    out, _ = attention(Layer(), query, key, value, None, dropout=0.3)
    weights = (query @ key.transpose(-1, -2) / 2).softmax(-1)
    torch.testing.assert_close(out, (weights * mask * factor @ value).transpose(1, 2))


def test_the_mean_of_many_draws_is_attention_without_dropout():
    query, key, value = (tensor.detach().expand(4000, -1, -1, -1) for tensor in tensors(1, 2, 5, 4))
    torch.manual_seed(0)
    out, _ = attention(Layer(), query, key, value, None, dropout=0.1)
    expected = F.scaled_dot_product_attention(query[:1], key[:1], value[:1]).transpose(1, 2)
    assert (out.mean(0) - expected[0]).abs().max() < 0.05


@pytest.mark.parametrize(
    "special", [{"is_causal": True}, {"dropout": 0.0}, {"position_bias": torch.zeros(2, 2, 9, 9)}, {"groups": 1}]
)
def test_what_we_do_not_know_is_left_to_torch(monkeypatch, special):
    called = []
    monkeypatch.setattr(
        helpers.base.dropout, "sdpa_attention_forward", lambda *_, **more: called.append(more) or (0, 0)
    )
    query, key, value = tensors(2, 2, 9, 4)
    groups = special.pop("groups", 2)
    attention(Layer(), query, key[:, :groups], value[:, :groups], None, **{"dropout": 0.1, **special})
    assert called == [{"dropout": 0.1, **special}]


def test_a_loaded_encoder_draws_fast_and_its_files_do_not_say_so(tmp_path):
    encoder = load_encoder("bert-tiny", device="cpu")
    assert encoder.model.config._attn_implementation == NAME
    assert all(isinstance(one, FastDropout) for one in encoder.modules() if isinstance(one, torch.nn.Dropout))
    encoder.save(tmp_path / "model")
    assert NAME not in (tmp_path / "model" / "config.json").read_text()
    assert AutoModel.from_pretrained(tmp_path / "model").config._attn_implementation == "sdpa"


def test_training_is_another_draw_of_the_same_distribution():
    """Similarities of a text's vectors to the one without dropout have the mean and spread that torch's own gives."""
    encoder = load_encoder("bert-tiny", device="cpu").train()
    inputs = encoder.pad(encoder.tokenize(["what makes the sky blue?", "light is scattered"] * 8, "query"), "query")
    still = encoder.eval()(**inputs)[0].detach()
    means = []
    for implementation, kind in ((NAME, FastDropout), ("sdpa", torch.nn.Dropout)):
        encoder.model.set_attn_implementation(implementation)
        for module in encoder.modules():
            if isinstance(module, torch.nn.Dropout):
                module.__class__ = kind
        encoder.train()
        torch.manual_seed(0)
        with torch.no_grad():
            means.append(torch.stack([encoder(**inputs)[::2] @ still for _ in range(60)]))
    one, other = means
    error = (one.var() / one.numel() + other.var() / other.numel()).sqrt()
    assert abs(one.mean() - other.mean()) < 4 * error
    assert 0.8 < one.std() / other.std() < 1.25 and one.std() > 0
