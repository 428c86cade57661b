"""A pretrained transformer that turns texts into vectors the way its profile says."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from helpers.base.assets import ASSETS, fetch
from helpers.base.devices import choose_device, is_out_of_memory
from helpers.base.errors import ModelError, SettingError, shorten
from helpers.base.files import QUIET, atomic_path, display_path, resolve, write_json
from helpers.export import write_export
from helpers.profiles import PROFILE_FILE, Profile, profile_for, read_metadata

transformers_logging.set_verbosity_error()  # its loading report lists heads that retrieval never uses;
transformers_logging.disable_progress_bar()  # what counts, a missing weight, is an error in load_encoder
MODELS = [name for name, asset in ASSETS.items() if "model.safetensors" in asset.files]
WINDOW = 50_000  # texts tokenized at a time: the token ids of a huge corpus never lie in memory together
NO_POOLER = ("bert", "roberta", "xlm-roberta")  # their extra pooling layer has no part in retrieval


class Encoder(torch.nn.Module):
    """Model, tokenizer and profile as one module: token ids in, vectors [B, D] out.

    It is a module, rather than a few functions, so that accelerate can wrap and move it as a whole. A subclass that
    makes something else of a text says so by `kind`, which is saved with it.
    """

    kind = "single-vector"
    auto_class = AutoModel  # how transformers loads the weights

    def __init__(self, model: torch.nn.Module, tokenizer, profile: Profile, source: str = ""):
        super().__init__()
        self.model, self.tokenizer, self.profile, self.source = model, tokenizer, profile, source

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of what a text becomes: (D,), one vector of D numbers. A subclass may say otherwise."""
        return (self.model.config.hidden_size,)

    def similarity(self, q_vec: Tensor, passage_vecs: Tensor) -> Tensor:
        """Return the scores of questions [B, *shape] against passages [P, *shape]: dot products, [B, P]."""
        return q_vec @ passage_vecs.T

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return one vector a text, [B, *shape]. Both arguments are [B, L]; the mask is 1 on real tokens."""
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state  # [B, L, D]
        return self.pool(hidden, attention_mask)

    def pool(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """Return one vector a text, [B, D], from those of its tokens, [B, L, D], as the profile says."""
        if self.profile.pooling == "cls":
            vectors = hidden[:, 0]
        else:
            mask = attention_mask[:, :, None].to(hidden.dtype)
            vectors = (hidden * mask).sum(1) / mask.sum(1)
        return F.normalize(vectors, dim=-1) if self.profile.normalize else vectors

    def tokenize(self, texts: Sequence[str], kind: str) -> list[list[int]]:
        """Return the token ids of each text with the prefix of its `kind`, "query" or "passage", unpadded."""
        prefix = self.profile.prefix(kind)
        return self.tokenizer(
            [prefix + text for text in texts],
            truncation=True,
            max_length=self.profile.max_length,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]

    def pad(self, tokens: Sequence[list[int]]) -> dict[str, Tensor]:
        """Return `input_ids` and `attention_mask`, [B, L], padded to the longest of these texts."""
        rows = [torch.tensor(ids) for ids in tokens]
        ids = pad_sequence(rows, batch_first=True, padding_value=self.tokenizer.pad_token_id)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        return {"input_ids": ids, "attention_mask": mask}

    @torch.inference_mode()
    def encode(self, texts: Sequence[str], kind: str, batch_tokens: int = 8192, progress: str = "") -> np.ndarray:
        """Return the vectors of `texts` in their order, [N, *shape], float32.

        Texts of like length share a batch of at most `batch_tokens` tokens, so hardly anything is padding.
        A bar named `progress` appears if it takes longer than two seconds.
        """
        training = self.training
        self.eval()
        vectors = np.zeros((len(texts), *self.shape), dtype=np.float32)
        with tqdm(total=len(texts), desc=progress, delay=2, disable=QUIET or not progress, leave=False) as bar:
            for first in range(0, len(texts), WINDOW):
                tokens = self.tokenize(texts[first : first + WINDOW], kind)
                order = sorted(range(len(tokens)), key=lambda number: len(tokens[number]), reverse=True)
                while order:
                    size = max(1, batch_tokens // len(tokens[order[0]]))
                    batch, order = order[:size], order[size:]
                    inputs = self.pad([tokens[number] for number in batch])
                    try:
                        inputs = {name: value.to(self.device) for name, value in inputs.items()}
                        vectors[[first + number for number in batch]] = self(**inputs).float().cpu().numpy()
                    except (RuntimeError, MemoryError) as error:
                        if size == 1 or not is_out_of_memory(error):
                            raise
                        batch_tokens, order = batch_tokens // 2, batch + order  # once more, with half as many
                        continue
                    bar.update(len(batch))
        self.train(training)
        return vectors

    def encode_windows(
        self, texts: Sequence[str], kind: str, size: int, batch_tokens: int = 8192, progress: str = ""
    ) -> Iterator[np.ndarray]:
        """Yield the vectors of `size` texts at a time, to make them smaller where all of them would fill memory."""
        starts = tqdm(range(0, len(texts), size), progress, delay=2, disable=QUIET or not progress, leave=False)
        yield from (self.encode(texts[start : start + size], kind, batch_tokens) for start in starts)

    def fingerprint(self) -> str:
        """Return a short sha256 over weights and profile; equal fingerprint, equal vectors."""
        return fingerprint(self, repr(self.profile))

    def save(self, folder: str | Path, **metadata: object) -> None:
        """Write weights (safetensors), tokenizer, profile and `metadata` to `folder` in one step.

        The folder loads here, in transformers, in sentence-transformers and, for BGE-M3, in FlagEmbedding. LoRA's
        adapters are merged into the weights.
        """
        merge = getattr(self.model, "merge_and_unload", None)
        model = deepcopy(self.model).merge_and_unload() if merge else self.model
        with atomic_path(folder) as temporary:
            model.save_pretrained(temporary)
            self.tokenizer.save_pretrained(temporary)
            write_json(temporary / PROFILE_FILE, {"kind": self.kind, "profile": asdict(self.profile), **metadata})
            self.export(temporary, metadata)

    def export(self, folder: Path, metadata: Mapping) -> None:
        """Write what else belongs beside the weights; here, what other tools need."""
        write_export(folder, self.profile, self.shape[-1], self.source, metadata)

    def restore(self, folder: str | Path) -> None:
        """Take over the weights that `save` wrote to `folder`; read on the CPU, so no second copy is on the GPU."""
        target = self.device
        for name, module in load_encoder(str(folder), device="cpu", encoder_class=type(self)).named_children():
            setattr(self, name, module)
        self.to(target).eval()


def fingerprint(module: torch.nn.Module, about: str = "") -> str:
    """Return a short sha256 over the weights of `module` and over `about`."""
    digest = hashlib.sha256(about.encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(
            name.encode() + tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()[:16]


def load_encoder(
    model_name: str,
    prefixes: str | Sequence[str] = "auto",
    max_length: int = 0,
    device: str = "auto",
    gradient_checkpointing: bool = False,
    lora_rank: int = 0,
    encoder_class: type[Encoder] = Encoder,
) -> Encoder:
    """Load an encoder by name: one of `helpers.base.assets`, a folder, or a model of the Hugging Face hub.

    Parameters
    ----------
    max_length : tokens of a text that are read; 0: the family's usual
    gradient_checkpointing : in training keep only each layer's input and compute the rest again: less memory, more time
    lora_rank : freeze the weights and train pairs of matrices of this rank beside each linear layer (Hu et al. 2021,
        https://arxiv.org/abs/2106.09685): optimizer and checkpoints shrink to a few MB; 0: train all weights
    encoder_class : what to make of the weights, `Encoder` or a subclass

    Raises
    ------
    SettingError : `device` is not to be had here; checked before anything is loaded
    ModelError : no such model, or it was trained with another profile or as another kind of encoder; code in a model
        folder is never run
    """
    target = choose_device(device)
    if model_name not in ASSETS and resolve(model_name).is_dir():
        model_name = str(resolve(model_name))  # a path means the same in every notebook's folder
    profile = profile_for(model_name, prefixes, max_length)
    asked, saved = encoder_class.kind, read_metadata(model_name)
    if saved and (was := saved.get("kind", Encoder.kind)) != asked:
        raise ModelError(f"{shorten(model_name)} was saved as a {was} encoder, but a {asked} one was asked for; "
                         "load it as what it is, or train one of the other kind")  # fmt: skip
    source = fetch(model_name) if model_name in ASSETS else model_name
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        bare = encoder_class.auto_class is AutoModel and config.model_type in NO_POOLER
        more = {"add_pooling_layer": False} if bare else {}
        model, report = encoder_class.auto_class.from_pretrained(
            source,
            config=config,
            dtype=torch.float32,
            trust_remote_code=False,
            output_loading_info=True,
            **more,
        )
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ModelError(
            f"model {shorten(model_name)} could not be loaded: {str(error).strip().splitlines()[0]} "
            f"Give a folder, a hub name that can be reached (HF_ENDPOINT is honoured), or one of {MODELS}"
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise ModelError(f"{shorten(model_name)} lacks {len(missing)} weights, e.g. {missing[0]}; is it an encoder?")
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ModelError(f"{shorten(model_name)} has no tokenizer; save its tokenizer.json beside the weights")
    longest = getattr(config, "max_position_embeddings", profile.max_length)
    longest -= 2 if config.model_type in ("roberta", "xlm-roberta") else 0  # their positions start at 2
    if profile.max_length > longest:
        if max_length:
            raise SettingError(f"max_length={max_length}, but {model_name} has positions for {longest} tokens")
        profile = replace(profile, max_length=longest)
    if gradient_checkpointing:
        model.activation_checkpointing_enable()
    if lora_rank:
        from peft import LoraConfig, get_peft_model  # takes seconds to import, and few need it

        with torch.random.fork_rng():
            torch.manual_seed(0)  # the same adapters every time, or no checkpoint would fit them
            config = LoraConfig(r=lora_rank, lora_alpha=2 * lora_rank, target_modules="all-linear")
            model = get_peft_model(model, config)
    return encoder_class(model, tokenizer, profile, str(source)).to(target).eval()


def load_trained(folder: str | Path, data_fingerprint: str, device: str = "auto") -> Encoder:
    """Load a model that the course has trained, and check that it was trained on this data.

    Raises
    ------
    ModelError : there is none in `folder`, or it was trained on other data
    """
    where, metadata = display_path(folder), read_metadata(folder)
    if not metadata:
        raise ModelError(f"{where} holds no trained model; run notebook 03 with the same run_dir first")
    if metadata.get("data") != data_fingerprint:
        raise ModelError(
            f"{where} was trained on other data (fingerprint {metadata.get('data')}, here {data_fingerprint}); "
            "run notebooks 02 and 03 again, or choose another run_dir"
        )
    return load_encoder(str(folder), device=device)
