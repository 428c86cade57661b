"""Merged weights lie on a line between the two; what cannot be averaged is refused; LoRA's scaling is a case of it."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers.base.errors import ModelError, SettingError
from helpers.encoder import load_encoder, save_memory
from helpers.topics.merging import merge, smallest_alpha


@pytest.fixture(scope="module")
def base():
    return load_encoder("bert-tiny", device="cpu")


@pytest.fixture(scope="module")
def tuned(base):
    """Return the base with noise on its weights, as a training would leave it."""
    changed, generator = deepcopy(base), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weights in changed.parameters():
            weights += 0.01 * torch.randn(weights.shape, generator=generator)
    return changed


TEXTS = ["Which moon has geysers?", "Enceladus throws ice into space."]


def test_the_ends_are_the_two_models(base, tuned):
    for alpha, model in ((0.0, base), (1.0, tuned)):
        assert np.array_equal(merge(base, tuned, alpha).encode(TEXTS, "query"), model.encode(TEXTS, "query"))


def test_every_weight_is_on_the_line(base, tuned):
    merged = merge(base, tuned, 0.3).state_dict()
    for name, old in base.state_dict().items():
        new = tuned.state_dict()[name]
        if old.is_floating_point():
            torch.testing.assert_close(merged[name], 0.7 * old + 0.3 * new)


def test_neither_of_the_two_changes(base, tuned):
    before = base.fingerprint(), tuned.fingerprint()
    assert merge(base, tuned, 0.5).fingerprint() not in before
    assert (base.fingerprint(), tuned.fingerprint()) == before


def test_it_is_saved_and_loaded_like_any_other(base, tuned, tmp_path):
    merged = merge(base, tuned, 0.5)
    merged.save(tmp_path / "merged", {"merged": {"alpha": 0.5}})
    loaded = load_encoder(str(tmp_path / "merged"), device="cpu")
    assert np.array_equal(loaded.encode(TEXTS, "passage"), merged.encode(TEXTS, "passage"))


def test_half_precision_is_averaged_in_fp32(base, tuned):
    """In fp16, 2048 + 1 is 2048, so an average of sums would be off by more than a rounding."""
    one, other = deepcopy(base).half(), deepcopy(tuned).half()
    merged = merge(one, other, 0.5)
    for name, weights in merged.state_dict().items():
        if weights.is_floating_point():
            exact = (one.state_dict()[name].double() + other.state_dict()[name].double()) / 2
            assert torch.equal(weights, exact.to(torch.float16)), name


def test_loras_scaling_is_a_case_of_it(base, tmp_path):
    tuned = save_memory(deepcopy(base), lora_rank=4)
    with torch.no_grad():
        for name, weights in tuned.named_parameters():
            if "lora_B" in name:
                weights.normal_(std=0.05)
    tuned.save(tmp_path / "tuned")
    merged = merge(base, load_encoder(str(tmp_path / "tuned"), device="cpu"), 0.25)
    for module in tuned.modules():
        if isinstance(getattr(module, "scaling", None), dict):
            module.scaling = {name: 0.25 * factor for name, factor in module.scaling.items()}
    np.testing.assert_allclose(merged.encode(TEXTS, "query"), tuned.encode(TEXTS, "query"), atol=1e-5)
    with pytest.raises(SettingError, match="save the trained model and load it"):
        merge(base, tuned, 0.5)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_alpha_is_a_share(base, tuned, alpha):
    with pytest.raises(SettingError, match=f"alpha={alpha}"):
        merge(base, tuned, alpha)


def test_other_architectures_are_refused(base):
    with pytest.raises(ModelError, match=r"embeddings.* in the base .* in the tuned"):
        merge(base, load_encoder("all-MiniLM-L6-v2", device="cpu"), 0.5)


@pytest.mark.parametrize(("field", "value"), [("pooling", "cls"), ("query_prefix", "query: "), ("normalize", False)])
def test_other_ways_of_reading_are_refused(base, tuned, field, value):
    other = deepcopy(tuned)
    other.profile = replace(other.profile, **{field: value})
    with pytest.raises(ModelError, match=f"{field} is .* in the base and {value!r}"):
        merge(base, other, 0.5)


def test_the_smallest_alpha_that_keeps_enough():
    scores = {0.0: 0.4, 0.25: 0.55, 0.5: 0.59, 0.75: 0.61, 1.0: 0.6}
    assert [smallest_alpha(scores, keep) for keep in (0.5, 0.9, 1.0)] == [0.25, 0.5, 0.75]
    assert smallest_alpha({0.0: 0.6, 0.5: 0.7, 1.0: 0.6}) == 0.0, "a training without a gain has nothing to keep"
    with pytest.raises(SettingError, match="0 and 1 are needed"):
        smallest_alpha({0.0: 0.4, 0.5: 0.5})
