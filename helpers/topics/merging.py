"""Weight merging: between a model and its fine-tuned self lie models that keep most of the gain and forget less.

WiSE-FT, Wortsman et al. 2022, https://arxiv.org/abs/2109.01903; for embedding models LM-Cocktail, Xiao et al. 2023,
https://arxiv.org/abs/2311.13534.
"""

from collections.abc import Mapping
from copy import deepcopy

import torch

from helpers.base.errors import ModelError, SettingError
from helpers.encoder import Encoder

ALIKE = ("query_prefix", "passage_prefix", "pooling", "normalize", "include_prompt", "similarity")  # of both profiles


def merge(base: Encoder, tuned: Encoder, alpha: float) -> Encoder:
    """Return a new encoder with the weights (1 - α) · base + α · tuned: α = 0 is `base`, α = 1 is `tuned`.

    It is computed in fp32, is on the device of `tuned`, has its profile, and is saved like any other. Of a model
    trained with LoRA and loaded again, it is the model with its adapters scaled by α.

    Parameters
    ----------
    base : the encoder that `tuned` was trained from; both read and pool texts in the same way

    Raises
    ------
    SettingError : α is not between 0 and 1, or one of the two has LoRA's adapters beside its weights
    ModelError : the two are of different architectures, or have other prefixes or another pooling
    """
    if not 0 <= alpha <= 1:
        raise SettingError(f"alpha={alpha}: use a number between 0, the base, and 1, the tuned model")
    if base.lora_rank or tuned.lora_rank:
        raise SettingError("adapters cannot be averaged with weights; save the trained model and load it, then merge")
    _check_alike(base, tuned)
    merged, old = deepcopy(tuned), base.state_dict()
    with torch.no_grad():
        for name, weights in merged.state_dict().items():
            if weights.is_floating_point():  # others are positions and the like, the same in both
                mixed = torch.lerp(old[name].to(weights.device).float(), weights.float(), alpha)
                weights.copy_(mixed)
    return merged.eval()


def _check_alike(base: Encoder, tuned: Encoder) -> None:
    """Raise ModelError if the two cannot be averaged."""
    shapes = [{name: tuple(weights.shape) for name, weights in one.state_dict().items()} for one in (base, tuned)]
    if shapes[0] != shapes[1]:
        differing = sorted(name for name in {*shapes[0], *shapes[1]} if shapes[0].get(name) != shapes[1].get(name))
        raise ModelError(
            f"{differing[0]} is {shapes[0].get(differing[0])} in the base and {shapes[1].get(differing[0])} in the "
            f"tuned model ({len(differing)} such weights): only a model and its own fine-tuned self can be merged"
        )
    for name in ALIKE:
        one, other = (getattr(encoder.profile, name) for encoder in (base, tuned))
        if one != other:
            raise ModelError(f"{name} is {one!r} in the base and {other!r} in the tuned model; load both alike")


def smallest_alpha(scores: Mapping[float, float], keep: float = 0.9) -> float:
    """Return the smallest α that keeps a share of the gain on dev, and with it the least of the change elsewhere.

    Parameters
    ----------
    scores : α -> dev score of the merged model, 0 and 1 among them
    keep : the share of the difference between the scores of 1 and 0; where that is no gain, 0 is returned

    >>> smallest_alpha({0.0: 0.50, 0.25: 0.52, 0.5: 0.60, 0.75: 0.62, 1.0: 0.60})
    0.5
    """
    if not {0, 1} <= set(scores):
        raise SettingError(f"alphas={sorted(scores)}: 0 and 1 are needed, between which a gain is shared")
    if scores[1] <= scores[0]:
        return 0.0
    wanted = scores[0] + keep * (scores[1] - scores[0]) - 1e-9
    return min(alpha for alpha, score in scores.items() if score >= wanted)
