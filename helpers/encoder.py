"""A pretrained transformer that turns texts into vectors the way its profile says."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import AutoModel
from transformers.utils import cached_file

from helpers.base.assets import fetch
from helpers.base.devices import autocast, choose_device, is_out_of_memory, one_behind, send
from helpers.base.errors import ModelError, SettingError
from helpers.base.files import QUIET, atomic_path, resolve, write_json, write_text
from helpers.base.model_card import model_card
from helpers.base.modules import read_modules, write_modules
from helpers.base.pretrained import MODELS, loading, lower_case, most_tokens, read_pretrained, weights_fingerprint
from helpers.profiles import PROFILE_FILE, Profile, pool, profile_for, read_metadata, tell_prefixes

BATCH_TOKENS = {"cpu": 2048, "cuda": 32768}  # encoded at a time; on a CPU few enough to stay in its caches
WINDOW = 50_000  # texts tokenized at a time, so that the token ids of a huge corpus never fill memory
HEADS = ("sparse_linear.pt", "colbert_linear.pt")  # of BGE-M3; FlagEmbedding wants them beside the weights


class Encoder(torch.nn.Module):
    """Model, tokenizer and profile as one module: token ids in, vectors [B, D] out.

    It is a module, rather than a few functions, so that accelerate can wrap and move it as a whole. A subclass that
    makes something else of a text has its own `kind`, which is saved with it.
    """

    kind = "single-vector"
    auto_class = AutoModel  # how transformers loads the weights

    def __init__(self, model: torch.nn.Module, tokenizer, profile: Profile, source: str = ""):
        super().__init__()
        self.model, self.tokenizer, self.profile, self.source = model, tokenizer, profile, source
        self.dense = torch.nn.Sequential()  # layers between pooling and scaling, if the model has any
        self.gradient_checkpointing, self.lora_rank = False, 0  # see `save_memory`
        self.precision = "fp32"  # in which `encode` multiplies matrices, one of `helpers.base.devices.PRECISIONS`

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def dimension(self) -> int:
        """How many numbers a vector has, D."""
        width = self.model.config.hidden_size * len(self.profile.pooling.split("+"))
        width = self.dense[-1].linear.out_features if self.dense else width
        return min(self.profile.dimensions or width, width)

    def output_shape(self, length: int) -> tuple[int, ...]:
        """Return the shape of what one text of `length` tokens becomes: here one vector, (D,)."""
        return (self.dimension,)

    @property
    def multiple(self) -> int:
        """Texts are padded to a multiple of that many tokens, as far as `max_length` allows."""
        return 16 if self.precision != "fp32" and self.device.type == "cpu" else 1

    def padded(self, length: int) -> int:
        """Return how many tokens a text of `length` tokens has in a batch of its own."""
        return length + max(0, min(-length % self.multiple, self.profile.max_length - length))

    def similarity(self, q_vec: Tensor, passage_vecs: Tensor) -> Tensor:
        """Return the scores of questions against passages, both as `forward` returns them, [B, P]."""
        return self._comparable(q_vec) @ self._comparable(passage_vecs).T

    def _comparable(self, vectors: Tensor) -> Tensor:
        own = self.profile.similarity == "dot" or (self.profile.normalize and not self.profile.dimensions)
        return vectors if own else F.normalize(vectors, dim=-1)

    def search_vectors(self, texts: Sequence[str], kind: str, progress: str = "") -> np.ndarray:
        """Return `encode`'s vectors so that dot products are the model's similarity: for cosines, of length 1."""
        return self._comparable(torch.from_numpy(self.encode(texts, kind, progress=progress))).numpy()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, pooled: Tensor | None = None) -> Tensor:
        """Return one output per text, [B, *output_shape(L)]; all arguments are [B, L], see `pad`."""
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state  # [B, L, H]
        return self.pool(hidden, attention_mask, pooled)

    def pool(self, hidden: Tensor, attention_mask: Tensor, pooled: Tensor | None = None) -> Tensor:
        """Return one vector per text, [B, D], from those of its tokens, [B, L, H], as the profile says."""
        vectors = self.dense(pool(hidden, attention_mask, self.profile.pooling, pooled))
        vectors = F.normalize(vectors, dim=-1) if self.profile.normalize else vectors
        return vectors[:, : self.profile.dimensions or None]

    def tokenize(self, texts: Sequence[str], kind: str) -> list[list[int]]:
        """Return the token ids of each text with the prefix of its `kind`, "query" or "passage", unpadded."""
        prefix = self.profile.prefix(kind)
        texts = [prefix + text for text in texts]
        only_ids = {"return_attention_mask": False, "return_token_type_ids": False}
        return self.tokenizer(texts, truncation=True, max_length=self.profile.max_length, **only_ids)["input_ids"]

    def pad(self, tokens: Sequence[list[int]], kind: str) -> dict[str, Tensor]:
        """Return `input_ids` and `attention_mask` (1 on real tokens), [B, L], padded to the longest of these texts.

        L is a multiple of `multiple`, since odd lengths are slow on some CPUs in bf16. If the profile does not pool
        prefixes, `pooled` is there too, 1 on the tokens after that of their `kind`.
        """
        rows = [torch.tensor(ids) for ids in tokens]
        ids = pad_sequence(rows, batch_first=True, padding_value=self.tokenizer.pad_token_id)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        missing = (0, self.padded(ids.shape[1]) - ids.shape[1])
        inputs = {
            "input_ids": F.pad(ids, missing, value=self.tokenizer.pad_token_id),
            "attention_mask": F.pad(mask, missing),
        }
        if not self.profile.include_prompt and self.profile.prefix(kind):
            start = self.tokenizer(self.profile.prefix(kind))["input_ids"]
            count = len(start) - (start[-1] in self.tokenizer.all_special_ids)  # without the end of a text
            inputs["pooled"] = inputs["attention_mask"] * (torch.arange(self.padded(ids.shape[1])) >= count)
        return inputs

    @torch.inference_mode()
    def encode(self, texts: Sequence[str], kind: str, batch_tokens: int = 0, progress: str = "") -> np.ndarray:
        """Return the outputs of `texts` in their order, [N, *output_shape(longest text)], float32.

        Texts of like length share a batch of at most `batch_tokens` tokens, so hardly anything is padding; 0: as many
        as suit the device. A bar named `progress` appears if it takes longer than two seconds.
        """
        training, batch_tokens = self.training, batch_tokens or BATCH_TOKENS[self.device.type]
        vectors = torch.zeros(len(texts), *self.output_shape(1))
        bar = tqdm(total=len(texts), desc=progress, delay=2, disable=QUIET or not progress, leave=False)
        try:
            self.eval()
            for start in range(0, len(texts), WINDOW):
                tokens = self.tokenize(texts[start : start + WINDOW], kind)
                vectors = pad_texts(vectors, self.output_shape(max(map(len, tokens)))[0])
                for rows, outputs in one_behind(self._batches(tokens, kind, batch_tokens)):
                    outputs = outputs[:, : vectors.shape[1]].float().cpu()
                    vectors[[start + row for row in rows]] = pad_texts(outputs, vectors.shape[1])
                    bar.update(len(rows))
        finally:
            bar.close()
            self.train(training)
        return vectors.numpy()

    def _batches(self, tokens: Sequence[list[int]], kind: str, batch_tokens: int) -> Iterator[tuple[list[int], Tensor]]:
        """Yield the numbers and outputs of texts of like length, the longest first."""
        order = sorted(range(len(tokens)), key=lambda row: len(tokens[row]), reverse=True)
        with autocast(self.device, self.precision):
            while order:
                length = self.padded(len(tokens[order[0]]))
                size = min(max(1, batch_tokens // length), len(order))
                inputs = self.pad([tokens[row] for row in order[:size]], kind)
                try:
                    outputs = self(**send(inputs, self.device))
                except (RuntimeError, MemoryError) as error:
                    if size == 1 or not is_out_of_memory(error):
                        raise
                    batch_tokens = size // 2 * length  # and once more
                    continue
                yield order[:size], outputs
                order = order[size:]

    def encode_windows(
        self, texts: Sequence[str], kind: str, size: int, batch_tokens: int = 0, progress: str = ""
    ) -> Iterator[np.ndarray]:
        """Yield the outputs of `size` texts at a time, to make them smaller where all of them would fill memory."""
        starts = tqdm(range(0, len(texts), size), progress, delay=2, disable=QUIET or not progress, leave=False)
        yield from (self.encode(texts[start : start + size], kind, batch_tokens) for start in starts)

    def fingerprint(self) -> str:
        """Return a short sha256 over weights, profile and Dense layers; equal fingerprint, equal vectors."""
        return weights_fingerprint(self, f"{self.profile} {self.dense}")

    def save(self, folder: str | Path, metadata: Mapping | None = None) -> None:
        """Write weights (safetensors), tokenizer, profile and `metadata` to `folder` in one step.

        The folder loads here, in transformers, in sentence-transformers and, for BGE-M3, in FlagEmbedding. LoRA's
        adapters are merged into the weights.
        """
        metadata = metadata or {}
        model = deepcopy(self.model).merge_and_unload() if self.lora_rank else self.model
        with atomic_path(folder) as temporary:
            model.save_pretrained(temporary)
            self.tokenizer.save_pretrained(temporary)
            write_json(temporary / PROFILE_FILE, {"kind": self.kind, "profile": asdict(self.profile), **metadata})
            self.export(temporary, metadata)

    def export(self, folder: Path, metadata: Mapping) -> None:
        """Write what else belongs beside the weights: files of sentence-transformers, heads of BGE-M3, model card."""
        write_modules(folder, self.profile.files(self.dense, self.model.config.hidden_size))
        patient = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors")}
        for name in HEADS if "bge-m3" in self.profile.base_model.lower() else ():
            if head := cached_file(self.source, name, **patient):
                shutil.copyfile(head, folder / name)  # as it is: it is never loaded
        write_text(folder / "README.md", model_card(asdict(self.profile), self.dimension, metadata))

    def restore(self, folder: str | Path) -> None:
        """Take over weights and profile that `save` wrote to `folder`; LoRA starts anew, with adapters of its rank."""
        target = self.device
        loaded = load_encoder(str(folder), device="cpu", encoder_class=type(self))  # no second model on the GPU
        save_memory(loaded, self.gradient_checkpointing, self.lora_rank)
        for name, module in loaded.named_children():
            setattr(self, name, module)
        self.profile = loaded.profile
        self.to(target).eval()


def pad_texts(outputs: Tensor, length: int) -> Tensor:
    """Return outputs of texts [B, l, …] with rows of zeros appended up to `length`; vectors [B, D] as they are."""
    missing = length - outputs.shape[1]
    if outputs.ndim == 2 or missing <= 0:
        return outputs
    return torch.cat([outputs, outputs.new_zeros(len(outputs), missing, *outputs.shape[2:])], 1)


def load_encoder(
    model_name: str,
    prefixes: str | Sequence[str] = "auto",
    max_length: int = 0,
    device: str = "auto",
    encoder_class: type[Encoder] = Encoder,
    dimensions: int = 0,
) -> Encoder:
    """Load an encoder by name: one of `helpers.base.assets`, a folder, or a model of the Hugging Face hub.

    Parameters
    ----------
    max_length : tokens of a text that are read; 0: as many as the model's own files say, but 512 at most
    encoder_class : what to make of the weights, `Encoder` or a subclass
    dimensions : numbers of each vector that are kept, the first ones; 0: as the model's own files say

    Raises
    ------
    SettingError : `device` is unavailable, which is checked before anything is loaded; `max_length` is too large
    ModelError : no such model, or its files are damaged, or it was trained with another profile or as another kind
    """
    target = choose_device(device)
    with loading(model_name):
        is_folder = model_name not in MODELS and resolve(model_name).is_dir()
        name = str(resolve(model_name)) if is_folder else model_name  # the same in every notebook's folder
        source = str(fetch(name)) if name in MODELS else name
        files = read_modules(source)
        profile = profile_for(name, prefixes, max_length, files)
        kind = read_metadata(name).get("kind", encoder_class.kind)
        if kind != encoder_class.kind:
            asked = f"a {encoder_class.kind} one was asked for; load it as what it is, or train one of the other kind"
            raise ModelError(f"{name} was saved as a {kind} encoder, but {asked}")
        model, tokenizer = read_pretrained(source, encoder_class.auto_class)
        if max_length > (longest := most_tokens(model)):
            raise SettingError(f"max_length={max_length}, but {name} has positions for {longest} tokens")
        profile = replace(profile, max_length=min(profile.max_length, longest))
        encoder = encoder_class(model, tokenizer, profile, source)
        if files:
            files.check_fit(source, model.config.hidden_size)
            if files.dense and kind != Encoder.kind:
                raise ModelError(f"{name} has Dense layers, which a {kind} encoder cannot use")
            encoder.dense = files.dense
            lower_case(tokenizer, files.lower_case)
        if not 0 <= dimensions <= encoder.dimension:
            raise SettingError(f"dimensions={dimensions}, but the vectors of {name} have {encoder.dimension} numbers")
        encoder.profile = replace(profile, dimensions=dimensions or profile.dimensions)
        tell_prefixes(profile, files)
        if not np.isfinite(encoder.eval().encode(["a"], "query")).all():  # a fault of config.json may show only now
            raise ValueError("its vectors are not finite")
    return encoder.to(target)


def save_memory(encoder: Encoder, gradient_checkpointing: bool = False, lora_rank: int = 0) -> Encoder:
    """Make training need less memory; `encoder` is changed in place and returned.

    Parameters
    ----------
    gradient_checkpointing : keep only each layer's input and compute the rest again: less memory, more time
    lora_rank : freeze the weights and train pairs of matrices of this rank beside each linear layer (Hu et al. 2021,
        https://arxiv.org/abs/2106.09685): optimizer and checkpoints shrink to a few MB; 0: train all weights

    Raises
    ------
    SettingError : the rank is negative, or the encoder has adapters already
    """
    if lora_rank < 0 or (lora_rank and encoder.lora_rank):
        raise SettingError(f"lora_rank={lora_rank}: use 0 or more, and only once; it is {encoder.lora_rank} so far")
    if gradient_checkpointing:
        old_name = encoder.model.gradient_checkpointing_enable  # of transformers before 5.2x
        getattr(encoder.model, "activation_checkpointing_enable", old_name)()
        encoder.gradient_checkpointing = True
    if lora_rank:
        from peft import LoraConfig, get_peft_model  # takes seconds to import, and few need it

        config = LoraConfig(r=lora_rank, lora_alpha=2 * lora_rank, target_modules="all-linear")
        with torch.random.fork_rng():
            torch.manual_seed(0)  # the same adapters every time, or no checkpoint would fit them
            encoder.model = get_peft_model(encoder.model, config).train(encoder.training)
        encoder.lora_rank = lora_rank
    return encoder
