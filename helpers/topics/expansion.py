"""Query expansion: a language model writes what an answer might look like, and the search uses that text too.

HyDE (Gao et al. 2022, https://arxiv.org/abs/2212.10496) encodes the text as if it were a passage; query2doc (Wang et
al. 2023, https://arxiv.org/abs/2303.07678) appends it to the question. Every text is cached, as the model wrote it, in
a JSONL file: one line that says what a key stands for, then one line per question.
"""

import hashlib
import json
import math
import os
import re
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from filelock import FileLock
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, GgufConfig

from helpers.answers import CHARACTERS
from helpers.base.assets import ASSETS, fetch
from helpers.base.checks import Problems, json_rows
from helpers.base.devices import choose_device, has_bf16
from helpers.base.errors import SettingError, shorten
from helpers.base.files import QUIET, atomic_path, cache_dir, file_sha256, told
from helpers.base.pretrained import loading, read_pretrained

KINDS = ("question", "passage")  # what a prompt may take, at the place that it marks with {question} or {passage}
BATCH = 16  # prompts written together; sampled texts depend on it


@dataclass(frozen=True)
class Generation:
    """What decides a text besides model, prompt and question."""

    max_new_tokens: int = 48
    temperature: float = 0.0  # of sampling; 0: greedy, the likeliest token every time
    samples: int = 1  # texts for each question; more than one needs a temperature
    seed: int = 0  # for sampling

    def __post_init__(self):
        if self.max_new_tokens < 1 or self.samples < 1 or not 0 <= self.temperature < math.inf:
            raise SettingError(f"{self}: max_new_tokens and samples start at 1, temperature at 0")
        if self.samples > 1 and not self.temperature:
            raise SettingError(f"samples={self.samples} at temperature 0 would all be the same text; set a temperature")


class Writer:
    """A language model that continues prompts, causal or sequence to sequence, with its tokenizer."""

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model.eval(), tokenizer
        self.causal = not model.config.is_encoder_decoder
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = "left" if self.causal else "right"  # a causal model continues after the last token

    @torch.inference_mode()
    def write(self, prompts: Sequence[str], settings: Generation, seed: int = 0) -> list[list[str]]:
        """Return `settings.samples` texts for each prompt, as they come; a chat model gets its own template."""
        chat = bool(self.tokenizer.chat_template)
        if chat:
            talks = [[{"role": "user", "content": prompt}] for prompt in prompts]
            prompts = self.tokenizer.apply_chat_template(talks, tokenize=False, add_generation_prompt=True)
        how = {"return_tensors": "pt", "padding": True, "return_token_type_ids": False, "add_special_tokens": not chat}
        inputs = self.tokenizer(list(prompts), **how).to(self.model.device)
        sampling = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if settings.temperature:
            sampling = {"do_sample": True, "temperature": settings.temperature, "top_p": 1.0, "top_k": 0}
            sampling["num_return_sequences"] = settings.samples
        longest, padding = settings.max_new_tokens, self.tokenizer.pad_token_id
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            ids = self.model.generate(**inputs, max_new_tokens=longest, pad_token_id=padding, **sampling)
        start = inputs["input_ids"].shape[1] if self.causal else 0
        texts = self.tokenizer.batch_decode(ids[:, start:], skip_special_tokens=True)
        return [texts[n : n + settings.samples] for n in range(0, len(texts), settings.samples)]


def load_writer(model_name: str, device: str = "auto") -> Writer:
    """Load a language model: one of `helpers.base.assets`, a folder, a .gguf file, or a model of the hub.

    Its weights are bfloat16 where the device computes in it, else float32. Raises a ModelError if there is no such
    model, or if it is damaged or does not write.
    """
    target, source = choose_device(device), Path(model_name)
    if model_name in ASSETS:
        source = next(fetch(model_name).glob("*.gguf"), fetch(model_name))
    fast = torch.cuda.is_bf16_supported() if target == "cuda" else has_bf16()
    with loading(model_name, "language model"):
        source = str(_unpacked(source) if source.suffix == ".gguf" else source)
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        model, tokenizer = read_pretrained(source, kind, torch.bfloat16 if fast else torch.float32)
        writer = Writer(model.to(target), tokenizer)
        writer.write(["a"], Generation(1, temperature=1.0))  # a fault may show only now; NaN cannot be sampled from
    return writer


def _unpacked(path: Path) -> Path:
    """Return the folder of a .gguf file's weights as bfloat16 safetensors, in the cache: unpacking takes 20 s."""
    folder = cache_dir() / f"{path.stem}.{file_sha256(path).hex()[:16]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            how = {"gguf_file": path.name, "trust_remote_code": False}
            tokenizer = AutoTokenizer.from_pretrained(path.parent, **how)
            how |= {"dtype": torch.bfloat16, "quantization_config": GgufConfig(dequantize=True)}
            model = AutoModelForCausalLM.from_pretrained(path.parent, **how)
            vars(model.config).pop("quantization_config", None)  # the weights are no longer quantized
            model.is_quantized, model.hf_quantizer = False, None
            with atomic_path(folder) as temporary:
                model.save_pretrained(temporary)
                tokenizer.save_pretrained(temporary)
    return folder


def expand(
    model_name: str,
    queries: Mapping[str, str],
    prompt: str,
    settings: Generation,
    path: str | Path,
    device: str = "auto",
) -> dict[str, dict]:
    """Return id -> {"texts": what the model wrote, "seconds": the share of one question of the time it took}.

    Texts that `path` holds for this model, prompt, settings and question are read from there; the model is loaded only
    if one is missing. Every finished batch is appended at once, so a killed run resumes where it was, with the same
    batches and so with the same samples.

    Parameters
    ----------
    queries : question id -> text; or passage id -> text, for which questions are to be written
    prompt : what the model reads, with "{question}" (or "{passage}") in it
    path : the JSONL cache; several models and prompts may share one. A last line that a kill cut off is dropped

    Raises
    ------
    SettingError : the prompt has no place for the question
    DataError : the cache cannot be read or written
    """
    kind = next((kind for kind in KINDS if f"{{{kind}}}" in prompt), None)
    if not kind:
        raise SettingError(f"prompt={shorten(prompt)}: it needs {{question}}, where the question goes, or {{passage}}")
    path, about = Path(path), {"model": model_name, "prompt": prompt, "settings": asdict(settings)}
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    order = sorted(queries, key=lambda qid: (len(queries[qid]), qid))  # prompts of similar length share a batch
    batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    with told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            rows = [row for row in _read_cache(path) if row["key"] == key]
            known = {row["qid"]: row for row in rows if "qid" in row and row.get(kind) == queries.get(row["qid"])}
            writer = load_writer(model_name, device) if queries.keys() - known.keys() else None
            if writer and not rows:
                _append(path, [{"key": key, **about}])
            for number, batch in enumerate(tqdm(batches, desc="writing", delay=2, disable=QUIET, leave=False)):
                if missing := [qid for qid in batch if qid not in known]:
                    started = time.perf_counter()
                    prompts = [prompt.replace(f"{{{kind}}}", queries[qid]) for qid in missing]
                    texts = writer.write(prompts, settings, settings.seed + number)
                    seconds = round((time.perf_counter() - started) / len(missing), 4)
                    for qid, own in zip(missing, texts, strict=True):
                        row = {"key": key, "qid": qid, kind: queries[qid], "texts": own, "seconds": seconds}
                        known[qid] = row
                    _append(path, [known[qid] for qid in missing])
    return {qid: {name: known[qid][name] for name in ("texts", "seconds")} for qid in queries}


def _read_cache(path: Path) -> list[dict]:
    """Return the rows of the cache, after cutting off a last line that a kill left unfinished."""
    path.touch()
    os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
    problems, rows = Problems(), []
    for place, row in json_rows(path, problems):
        texts, seconds = row.get("texts"), row.get("seconds")
        whole = (
            isinstance(texts, list)
            and all(isinstance(text, str) for text in texts)
            and not row.keys().isdisjoint(KINDS)
        )
        timed = isinstance(seconds, int | float) and math.isfinite(seconds)
        if "key" not in row or ("qid" in row and not (whole and timed)):
            problems.error(place, "not a cached expansion; delete the line, and it is written anew", row)
        rows.append(row)
    problems.stop()
    return rows


def _append(path: Path, rows: Iterable[dict]) -> None:
    """Write lines in one go and wait until they are on the disk."""
    with path.open("ab") as file:
        file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8", "replace"))
        file.flush()
        os.fsync(file.fileno())


def vocabulary(texts: Iterable[str]) -> set[str]:
    """Return the words of a corpus; `usable` recognises its language by them."""
    return {word for text in texts for word in _words(text)}


def _words(text: str) -> list[str]:
    return [token for token in CHARACTERS.findall(text.lower()) if any(map(str.isalpha, token))]


def usable(text: str, words: Collection[str], share: float = 0.5) -> tuple[str, str]:
    """Return the part of a text to search with, "" if there is none, and "kept", "cut", "empty" or "other language".

    A text is cut where it repeats itself or goes on to the next question, as small models do when they should stop.
    It is in another language if less than `share` of its words are among `words`, those of the corpus.

    >>> usable("Titan has lakes. Titan has lakes. Titan has", {"titan", "has", "lakes"})
    ('Titan has lakes.', 'cut')
    >>> usable("Titan possède des lacs de méthane.", {"titan", "has", "lakes"})
    ('', 'other language')
    """
    whole = " ".join(text.split())
    first = " ".join(re.split(r"\n\s*(?:Question|Query):", text)[0].split())
    kept: list[str] = []
    for sentence in re.findall(r".+?(?:[.!?](?: |$)|[。！？।]|$)", first):
        again = any(old.lower().startswith(sentence.strip().lower()) for old in kept)
        if again and len(_words(sentence)) > 2:  # the second "R." of "J. R. R." repeats nothing
            break
        kept.append(sentence)
    loop = r"(?<!\S)(\S+(?: \S+){0,7}?)(?: \1){2,}(?!\S).*"  # up to eight words, three times in a row
    short = re.sub(loop, r"\1", "".join(kept).strip())
    found = _words(short)
    if not found:
        return "", "empty"
    if sum(word in words for word in found) < share * len(found):
        return "", "other language"
    return short, "kept" if short == whole else "cut"
