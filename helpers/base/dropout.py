"""Dropout that a CPU draws several times as fast as torch's own, which takes a quarter of a training step there.

torch draws one random number for every element, one after the other. Here four elements share one, 16 bits each.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

STEPS = 2**16  # a probability is rounded to a multiple of 1 / STEPS
NAME = "sdpa_with_fast_dropout"
SPECIAL = ("position_bias", "softcap", "cache")  # what some architectures pass to their attention


def draw_fast(model: torch.nn.Module) -> None:
    """Let a transformer draw its dropout fast, in place. On a GPU, or where it is not known how, nothing changes.

    What is drawn follows from torch's seed, as always, but differs from what torch draws.
    """
    for module in model.modules():
        if type(module) is torch.nn.Dropout:
            module.__class__ = FastDropout
    if model.config._attn_implementation == "sdpa" and not model.config.sub_configs:
        model.set_attn_implementation(NAME)


class FastDropout(torch.nn.Dropout):
    """`torch.nn.Dropout`, drawn fast on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        """Return `input` with elements set to 0 and the others scaled up."""
        if not (self.training and 0 < self.p < 1 and input.device.type == "cpu"):
            return F.dropout(input, self.p, self.training)
        mask, factor = draw(input, self.p)
        return input * mask.mul_(factor)


def draw(like: Tensor, p: float) -> tuple[Tensor, float]:
    """Return a tensor like the given one, of 0 with probability `p` and else 1, and the factor that makes up for 0s."""
    dropped, shape = min(round(p * STEPS), STEPS - 1), like.shape
    numbers = torch.empty(-(-shape.numel() // 4), dtype=torch.int64).random_(-(2**63), None)  # all of 64 bits
    numbers = numbers.view(torch.int16)[: shape.numel()].view(shape)
    # No bools: to multiply by them, torch would turn them into numbers every time.
    mask = torch.ge(numbers, dropped - STEPS // 2, out=torch.empty(shape, dtype=like.dtype))
    return mask, STEPS / (STEPS - dropped)


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **_options: object,
) -> tuple[Tensor, None]:
    """Attend as transformers' "sdpa" does, with fast dropout; [B, H, L, D] each, [B, L, H, D] comes out.

    Without dropout torch has a fast kernel; with it, it multiplies the same matrices as here. Under autocast in bf16,
    scores are rounded to bf16 before the softmax, as in transformers' "eager". What else an architecture asks for
    (groups of heads, causal attention, biases of positions) is left to torch.
    """
    dropout, causal = _options.get("dropout", 0.0), _options.get("is_causal")
    causal = attention_mask is None and (getattr(module, "is_causal", True) if causal is None else causal)
    special = causal or key.shape[1] != query.shape[1] or any(_options.get(name) is not None for name in SPECIAL)
    if special or not 0 < dropout < 1 or query.device.type != "cpu":
        return sdpa_attention_forward(module, query, key, value, attention_mask, **_options)
    scores = query * (_options.get("scaling") or query.shape[-1] ** -0.5) @ key.transpose(-1, -2)  # [B, H, L, L]
    if attention_mask is not None:
        hidden = attention_mask.logical_not() if attention_mask.dtype == torch.bool else None
        scores += attention_mask if hidden is None else hidden.to(scores.dtype) * torch.finfo(scores.dtype).min
    weights = scores.softmax(-1)
    mask, factor = draw(weights, dropout)
    return (weights * mask @ (value * factor)).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
