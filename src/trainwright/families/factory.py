"""Models that a function of the user's builds: ``model = { factory = "./net.py:build", width = 64 }``.

The function takes the other fields as its arguments and returns any ``nn.Module``; an argument ``vocab_size``
that the table leaves out is the tokenizer's. Its weights depend on the seed alone, which is set around the
call. A checkpoint is ``model.safetensors`` and ``factory.json``, which names the function and its settings. A
checkpoint is data: the function is called only where a recipe names it, never because a folder does.

``next_token`` and its kin train such a module if it maps ``input_ids`` [rows, length] (and ``position_ids``,
if it takes them) to logits [rows, length, vocabulary], as a tensor or as ``.logits``, and if no output
depends on a later token, which is measured.
"""
from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import inspect
import json
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from trainwright.core.errors import UserError, suggest
from trainwright.core.files import read_json
from trainwright.families.base import MADE_FROM, Family
from trainwright.families.configs import Tokens

WEIGHTS = "model.safetensors"


@dataclasses.dataclass(frozen=True)
class FactoryConfig:
    """A function of a file, and what it is called with."""

    factory: str
    """``./FILE.py:FUNCTION``, as the recipe says it."""
    settings: dict[str, Any]
    root: Path
    """Folder of the recipe."""

    def table(self) -> dict[str, Any]:
        return {"factory": self.factory, "settings": self.settings}


class Factory(Family):
    """A module that the recipe's own function builds."""

    key: ClassVar[str] = "factory"
    file: ClassVar[str] = "factory.json"
    closed: ClassVar[bool] = True

    def claims(self, config: Any, classes: Sequence[str]) -> int:
        return int(isinstance(config, FactoryConfig))

    def config(self, table: dict[str, Any], tokens: Tokens | None, where: str, root: Path) -> FactoryConfig:
        settings = {k: v for k, v in table.items() if k != self.key}
        config = FactoryConfig(table[self.key], settings, root)
        known = inspect.signature(_function(config, where)).parameters
        if tokens is not None and "vocab_size" in known:
            settings.setdefault("vocab_size", tokens.size)
        for name in settings:
            if name not in known:
                raise UserError(f"{where}: model.{name} is no argument of "
                                f"{config.factory}{suggest(name, known)}.")
        return config

    def config_in(self, folder: str) -> Any:
        table = _table(Path(folder))
        raise UserError(f"{folder} holds a model that {table['factory']} built, and a folder alone runs "
                        "nothing: name it in a recipe as a stage's model, and take that stage's artifact.")

    def vocabulary(self, config: FactoryConfig) -> int | None:
        return config.settings.get("vocab_size")

    def most_positions(self, config: FactoryConfig) -> int | None:
        return None

    def blocks_of(self, config: FactoryConfig) -> tuple[int, int]:
        return 0, 0

    def smaller(self, config: FactoryConfig) -> FactoryConfig:
        return config

    def build(self, config: FactoryConfig, where: str) -> nn.Module:
        function = _function(config, where)
        needed = [n for n, p in inspect.signature(function).parameters.items() if p.default is p.empty]
        if missing := [n for n in needed if n not in config.settings]:
            raise UserError(f"{where}: {config.factory} needs model.{missing[0]}.")
        try:
            model = function(**config.settings)
        except Exception as error:
            raise UserError(f"{where}: {config.factory}{_line_of(error, _place(config, where)[0])}: "
                            f"{type(error).__name__}: {str(error).rstrip('.')}.") from None
        if not isinstance(model, nn.Module):
            raise UserError(f"{where}: {config.factory} must return a torch module, not a "
                            f"{type(model).__name__}.")
        model.__dict__[MADE_FROM] = config
        return model

    def load(self, name: str, where: str, config: Any) -> nn.Module:
        from safetensors.torch import load_model
        table = _table(Path(name))
        if not isinstance(config, FactoryConfig):
            raise UserError(f"{where}: {name} was built by {table['factory']}, which only the recipe that "
                            "names it may run: take the artifact of its stage.")
        if config.table() != table:
            raise UserError(f"{where}: {name} was built by {table['factory']} with {table['settings']}, and "
                            f"the recipe says {config.factory} with {config.settings}.")
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = self.build(config, where)
        try:
            load_model(model, Path(name) / WEIGHTS)
        except RuntimeError as error:
            raise UserError(f"{where}: the weights in {name} are not those of what {config.factory} builds "
                            f"now: {' '.join(str(error).split())[:200]}.") from None
        return model

    def save(self, model: nn.Module, folder: Path, tokenizer: Any) -> None:
        """The weights, tied ones once, and how the model was built."""
        from safetensors.torch import save_model
        folder.mkdir(parents=True, exist_ok=True)
        save_model(model, str(folder / WEIGHTS), {"format": "pt"})
        table = model.__dict__[MADE_FROM].table()
        (folder / self.file).write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)


def _table(folder: Path) -> dict[str, Any]:
    table = read_json(folder / Factory.file)
    if not isinstance(table, dict):
        raise UserError(f"{folder / Factory.file} is damaged: it holds no table.")
    return table


def _place(config: FactoryConfig, where: str) -> tuple[Path, str]:
    """The file and the function's name."""
    path, _, function = str(config.factory).rpartition(":")
    file = (config.root / path).resolve()
    if not path.endswith(".py") or not function.isidentifier():
        raise UserError(f"{where}: model.factory must be a file and a function in it, such as "
                        f"\"./net.py:build\", not {config.factory!r}.")
    if not file.is_file():
        raise UserError(f"{where}: there is no file {file} (model.factory).")
    return file, function


def _function(config: FactoryConfig, where: str) -> Callable[..., Any]:
    file, name = _place(config, where)
    try:
        module = _module(file, hashlib.sha256(file.read_bytes()).hexdigest())
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{where}: {file}{_line_of(error, file)}: {type(error).__name__}: {error}.") from None
    function = getattr(module, name, None)
    if not callable(function):
        raise UserError(f"{where}: {file} has no function {name!r}{suggest(name, vars(module))}.")
    return function  # type: ignore[no-any-return]


@cache
def _module(file: Path, content: str) -> Any:
    """The user's file, run once for each content."""
    name = f"trainwright_factory_{file.stem}_{content[:8]}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        with uncompiled():
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextmanager
def uncompiled() -> Iterator[None]:
    """Within, Python leaves no compiled files beside those that it runs."""
    keeps, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = keeps


def _line_of(error: Exception, file: Path) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(file)]
    return f", line {lines[-1]}" if lines else ""
