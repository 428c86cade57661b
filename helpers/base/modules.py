"""The files from which sentence-transformers builds a model: read, to use a model as they say, and written.

They are modules.json, which lists the parts of a model in order, and what it names: the transformer with its length,
pooling, Dense layers, scaling to length 1; and the prompts in config_sentence_transformers.json. The forms of version 6
and the older ones are both read. What they ask for and we do not have is a ModelError, never left out in silence.
"""

import json
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from helpers.base.errors import ModelError, shorten
from helpers.base.files import write_json

OLD_POOLING = {  # before version 6 each had a field of its own; several are concatenated in this order
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
POOLING = tuple(OLD_POOLING.values())
LENGTH_FILES = [
    f"sentence_{kind}_config.json" for kind in ("bert", "roberta", "distilbert", "xlm-roberta", "camembert")
]
# Settings of the transformer that change vectors, and those within others that do not
CHANGING = ("processing_kwargs", "query_expansion", "query_length", "document_length")
NESTED = ("model_args", "model_kwargs", "tokenizer_args", "processor_kwargs", "config_args", "config_kwargs")
HARMLESS = {"attn_implementation", "torch_dtype", "dtype", "trust_remote_code", "padding_side", "use_fast"}
UNCHANGED = {"transformer_task": "feature-extraction", "module_output_name": "token_embeddings"}
TEXT = {"method": "forward", "method_output_name": "last_hidden_state"}
UNBOUNDED = 10**6  # what a tokenizer without a length says is far more


@dataclass
class Modules:
    """What a model's own files say.

    Attributes
    ----------
    pooling : one of `POOLING`, or several with "+" between them, whose vectors are concatenated
    normalize : scale vectors to length 1
    include_prompt : the tokens of the prompt are pooled too
    max_length : in tokens; 0: the files do not say
    similarity : "cosine" or "dot"
    query_prompt, passage_prompt : put before texts; None: the files have no prompts
    lower_case : texts are lower-cased before the tokenizer sees them
    dense : the layers between pooling and scaling
    dimensions : numbers of a vector that are kept, the first ones; 0: all
    width : numbers of a token's vector, H; 0: the files do not say
    """

    pooling: str
    normalize: bool = True
    include_prompt: bool = True
    max_length: int = 0
    similarity: str = "cosine"
    query_prompt: str | None = None
    passage_prompt: str | None = None
    lower_case: bool = False
    dense: torch.nn.Sequential = field(default_factory=torch.nn.Sequential)
    width: int = 0
    dimensions: int = 0

    def check_fit(self, source: str, width: int) -> None:
        """Raise a ModelError if pooling or a Dense layer is made for vectors of another size; tokens have `width`."""
        if self.width not in (0, width):
            raise ModelError(f"{source}: its pooling is for vectors of {self.width} numbers, the model's have {width}")
        width *= len(self.pooling.split("+"))
        for layer in self.dense:
            if layer.linear.in_features != width:
                taken = layer.linear.in_features
                raise ModelError(
                    f"{source}: a Dense layer takes vectors of {taken} numbers, those before it have {width}"
                )
            width = layer.linear.out_features


def read_modules(source: str) -> Modules | None:
    """Return what the files of a model say, or None if it has none; `source` is a folder or a hub name.

    Of a hub name only these small files are fetched.

    Raises
    ------
    ModelError : they are damaged, contradict each other, or ask for what we cannot do
    OSError : of a hub name, they are neither cached nor to be reached
    """
    listed = _read(source, "modules.json", list)
    if listed is None:
        if _read(source, "1_Pooling/config.json") is not None:  # counts alone, too
            return _pooling(source, "1_Pooling")
        # in a decoder only the last token has seen the whole text
        return Modules("lasttoken") if _is_decoder(source) else None
    kinds, folders = zip(*[_part(source, entry) for entry in listed], strict=True) if listed else ((), ())
    dense = kinds.count("Dense")
    if kinds not in [("Transformer", "Pooling", *["Dense"] * dense, *end) for end in ([], ["Normalize"])]:
        wanted = "Transformer, Pooling, any number of Dense, and perhaps Normalize, in this order"
        raise ModelError(f"{source}/modules.json lists {', '.join(kinds) or 'nothing'}; what can be used is {wanted}")
    if folders[0]:
        raise ModelError(
            f"{source}/modules.json: the transformer lies in {folders[0]!r}; move its files to the top folder"
        )
    found = _pooling(source, folders[1])
    found.normalize = kinds[-1] == "Normalize"
    found.max_length, found.lower_case = _transformer(source)
    found.dense = torch.nn.Sequential(*[_dense(source, folder) for folder in folders[2 : 2 + dense]])
    config = _read(source, "config_sentence_transformers.json") or {}
    where = f"{source}/config_sentence_transformers.json"
    found.similarity = config.get("similarity_fn_name") or "cosine"
    if found.similarity not in ("cosine", "dot"):
        raise ModelError(
            f"{where}: similarity {shorten(found.similarity)} is not supported; cosine and dot product are"
        )
    found.dimensions = config.get("truncate_dim") or 0
    if not isinstance(found.dimensions, int) or found.dimensions < 0:
        raise ModelError(f"{where}: truncate_dim={shorten(found.dimensions)}; give a whole number above 0, or null")
    found.query_prompt, found.passage_prompt = _prompts(where, config)
    return found


def _find(source: str, name: str) -> str | Path | None:
    """Return where a file of the model is, fetched if it is on the hub, or None where there is none."""
    if Path(source).is_dir():
        return Path(source, name) if Path(source, name).is_file() else None
    try:
        return hf_hub_download(source, name)
    except LocalEntryNotFoundError:  # out of reach; what is not in the cache may still be on the hub
        if try_to_load_from_cache(source, name) is _CACHED_NO_EXIST:
            return None
        raise
    except EntryNotFoundError:
        return None


def _read(source: str, name: str, kind: type = dict) -> dict | list | None:
    """Return the object or list that a JSON file of the model holds, None if there is no such file."""
    path = _find(source, name)
    return None if path is None else read_model_json(Path(path), kind)


def read_model_json(path: Path, kind: type = dict) -> dict | list:
    """Return the object or list that a JSON file beside a model holds; raises a ModelError if it holds none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read ({error}); fetch or train the model again") from error
    if not isinstance(found, kind):
        raise ModelError(f"{path}: {shorten(found)} is no JSON {kind.__name__}; fetch or train the model again")
    return found


def _is_decoder(source: str) -> bool:
    try:
        config = _read(source, "config.json") or {}
    except ModelError:
        return False  # transformers will say what is wrong with it
    made_for = config.get("architectures") or [""]
    causal = isinstance(made_for, list) and str(made_for[0]).endswith("ForCausalLM")
    return causal and config.get("is_causal", True)


def _part(source: str, entry: object) -> tuple[str, str]:
    """Return kind and folder of an entry of modules.json."""
    kind, folder = (entry.get(name) if isinstance(entry, dict) else None for name in ("type", "path"))
    if not isinstance(kind, str) or not isinstance(folder, str) or Path(folder).is_absolute() or ".." in folder:
        raise ModelError(f"{source}/modules.json: {shorten(entry)} lacks a type, or a path inside the model")
    name = kind.split(".")[-1]
    if not kind.startswith("sentence_transformers.") or name not in ("Transformer", "Pooling", "Dense", "Normalize"):
        raise ModelError(
            f"{source}/modules.json: parts of type {kind!r} are not supported; a model's own code is never run"
        )
    return name, folder


def _pooling(source: str, folder: str) -> Modules:
    """Return what a pooling file says, the rest as it is by default."""
    where, config = f"{source}/{folder}/config.json", _read(source, f"{folder}/config.json")
    if config is None:
        raise ModelError(f"{where} is missing, so nothing says how to pool; fetch the model again")
    old = [OLD_POOLING[name] for name in OLD_POOLING if config.get(name)]
    given = config.get("pooling_mode", old)
    modes = [given] if isinstance(given, str) else given
    if not isinstance(modes, list) or not modes or not all(mode in POOLING for mode in modes):
        raise ModelError(
            f"{where}: the pooling is {shorten(given)}; known are {', '.join(POOLING)}, alone or in a list"
        )
    if set(OLD_POOLING) & set(config) and sorted(old) != sorted(modes):
        raise ModelError(f"{where}: pooling_mode says {shorten(given)}, the older fields {old}; remove what is wrong")
    include, width = config.get("include_prompt", True), config.get("embedding_dimension")
    width = config.get("word_embedding_dimension", 0) if width is None else width
    if not isinstance(include, bool) or not isinstance(width, int):
        raise ModelError(
            f"{where}: include_prompt={shorten(include)}, dimension={shorten(width)}; fetch the model again"
        )
    return Modules("+".join(modes), include_prompt=include, width=width)


def _transformer(source: str) -> tuple[int, bool]:
    """Return a model's length in tokens (0: unknown) and whether texts are lower-cased first."""
    files = ((name, _read(source, name)) for name in LENGTH_FILES)
    name, config = next(((name, found) for name, found in files if found is not None), (LENGTH_FILES[0], {}))
    changing = {key: config[key] for key in CHANGING if config.get(key)}
    changing |= {key: config[key] for key, usual in UNCHANGED.items() if config.get(key, usual) != usual}
    for key in NESTED:
        changing |= {
            f"{key}.{inner}": value for inner, value in (config.get(key) or {}).items() if inner not in HARMLESS
        }
    if changing:
        raise ModelError(f"{source}/{name}: {shorten(changing, 200)} is not supported here")
    text = (config.get("modality_config") or {}).get("text", TEXT)
    if text != TEXT:
        raise ModelError(f"{source}/{name}: text is read by {shorten(text)}; only {TEXT} is supported")
    length, lower = config.get("max_seq_length"), config.get("do_lower_case", False)
    if length is None:
        length = (_read(source, "tokenizer_config.json") or {}).get("model_max_length") or 0
    if not isinstance(length, int | float) or not isinstance(lower, bool) or 0 != length < 3:
        raise ModelError(
            f"{source}/{name}: max_seq_length={shorten(length)}, do_lower_case={shorten(lower)}; correct them"
        )
    return (int(length) if length < UNBOUNDED else 0), lower


def _prompts(where: str, config: dict) -> tuple[str | None, str | None]:
    """Return the prompts for queries and passages, (None, None) if the file has none."""
    prompts, usual = config.get("prompts") or {}, config.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(prompt, str | None) for prompt in prompts.values()):
        raise ModelError(f"{where}: prompts={shorten(prompts)}; an object from names to texts is needed")
    if usual is not None and usual not in prompts:
        raise ModelError(f"{where}: default_prompt_name is {shorten(usual)}, but the prompts are {sorted(prompts)}")
    if not prompts:
        return None, None
    names = ["query", usual], ["document", "passage", "corpus", usual]
    query, passage = (next((prompts[name] for name in some if name in prompts), "") for some in names)
    return query or "", passage or ""


def _dense(source: str, folder: str) -> torch.nn.Sequential:
    """Return a Dense layer, a linear one and its activation, with its weights."""
    where, config = f"{source}/{folder}", _read(source, f"{folder}/config.json") or {}
    path = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    try:
        name = path.split(".")[-1]
        activation = getattr(torch.nn, name) if path.startswith("torch.nn.") else None
        if not (isinstance(activation, type) and issubclass(activation, torch.nn.Module)):
            raise ValueError(f"its activation {path!r} is none of torch.nn")
        inside = (config.get("module_input_name", "sentence_embedding"), config.get("module_output_name"))
        if config.get("use_residual") or inside[0] != "sentence_embedding" or inside[1] not in (None, inside[0]):
            raise ValueError("it has a residual connection, or works on something else than the text's vector")
        linear = torch.nn.Linear(config["in_features"], config["out_features"], bias=config.get("bias", True))
        if file := _find(source, f"{folder}/model.safetensors"):
            state = load_file(file)
        elif file := _find(source, f"{folder}/pytorch_model.bin"):
            state = torch.load(file, "cpu", weights_only=True)
        else:
            raise ValueError("its weights are missing")
        layer = torch.nn.Sequential(OrderedDict(linear=linear, activation_function=activation()))
        layer.load_state_dict({name: weight.float() for name, weight in state.items()})
    except Exception as error:  # torch.load and torch.nn raise nearly anything
        raise ModelError(f"{where}: this Dense layer cannot be used ({shorten(str(error), 200)})") from error
    return layer


def write_modules(folder: Path, modules: Modules) -> None:
    """Write the files from which sentence-transformers makes the same vectors."""
    parts, modes = ["Transformer", "Pooling", *["Dense"] * len(modules.dense)], modules.pooling.split("+")
    listed = []
    for number, name in enumerate([*parts, "Normalize"] if modules.normalize else parts):
        path = f"{number}_{name}" if number else ""
        (folder / path).mkdir(exist_ok=True)
        listed.append(
            {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{name}"}
        )
    pooling = {"word_embedding_dimension": modules.width}  # the older fields, which every release reads
    pooling |= {name: mode in modes for name, mode in OLD_POOLING.items()}
    if modes != [mode for mode in POOLING if mode in modes]:  # an order that these cannot express
        pooling = {"embedding_dimension": modules.width, "pooling_mode": modes}
    write_json(folder / "modules.json", listed)
    write_json(folder / "1_Pooling" / "config.json", pooling | {"include_prompt": modules.include_prompt})
    for number, layer in enumerate(modules.dense, start=2):
        linear, kind = layer.linear, type(layer.activation_function)
        config = {
            "in_features": linear.in_features,
            "out_features": linear.out_features,
            "bias": linear.bias is not None,
        }
        config["activation_function"] = f"{kind.__module__}.{kind.__qualname__}"
        write_json(folder / f"{number}_Dense" / "config.json", config)
        save_file(layer.state_dict(), folder / f"{number}_Dense" / "model.safetensors")
    write_json(folder / LENGTH_FILES[0], {"max_seq_length": modules.max_length, "do_lower_case": False})
    prompts = {"query": modules.query_prompt, "document": modules.passage_prompt, "passage": modules.passage_prompt}
    config = {"prompts": prompts, "similarity_fn_name": modules.similarity, "truncate_dim": modules.dimensions or None}
    write_json(folder / "config_sentence_transformers.json", config)
