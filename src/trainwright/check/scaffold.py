"""The three files of a new method, written so that they run and say what to fill in."""
from __future__ import annotations

import keyword
import re
from collections import Counter
from datetime import date
from pathlib import Path

from trainwright.core import registry
from trainwright.core.card import kinds
from trainwright.core.errors import UserError, suggest
from trainwright.core.shown import brief

TEMPLATES = Path(__file__).with_name("templates")
LONGEST = 60
"""Letters of a name."""
TITLE, NAME = "TheMethod", "the_method"
"""What a template calls the method."""
STAGES = {"data": "data", "pretrain": "pretraining", "optim": "optimization", "finetune": "fine-tuning",
          "align": "alignment", "compress": "compression", "merge": "merging", "evaluate": "evaluation",
          "search": "search"}
"""What papers call the places of methods."""


def write(name: str, kind: str, folder: str | None, root: Path) -> list[Path]:
    """Write ``<folder>/<name>.py``, its test and its paper's file; refuses to overwrite anything. A paper
    that has a file already keeps it.

    Args:
        folder: place in a life, such as ``finetune`` or ``data/filter``; default: where most methods of the
            kind are.
        root: of a checkout.

    Raises:
        UserError: no snake_case name, an unknown kind or folder, a name that is taken, or no checkout at
            ``root``.
    """
    _check(name, kind, folder)
    package = root / "src" / "trainwright"
    if not package.is_dir():
        raise UserError(
            f"{root.resolve()} is no checkout of Trainwright: name it with --root. A method of your own "
            'needs no checkout: write ./mine.py and name it in a recipe as use = "./mine.py".'
        )
    place = _place(folder or _usual(kind), package)
    files = {package / place / f"{name}.py": method_text(name, kind),
             root / "tests" / place / f"test_{name}.py": test_text(name, place)}
    paper = package / "papers" / f"{name.replace('_', '-')}.toml"
    if not paper.exists():
        files[paper] = paper_text(name, place)
    for file in files:
        if file.exists():
            raise UserError(f"{file} exists already.")
    for file, text in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return list(files)


def _check(name: str, kind: str, folder: str | None) -> None:
    """Refuse what is no name, no kind or no folder, and a name that is taken."""
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
        raise UserError(f"{brief(name)} is no name in snake_case, such as half_fine_tuning.")
    reserved = keyword.iskeyword(name) or keyword.iskeyword(title(name)) or title(name) in kinds()
    if reserved or len(name) > LONGEST:
        raise UserError(f"{brief(name)} cannot be the name of a method: it is a word of Python, a kind of "
                        f"method, or longer than {LONGEST} letters.")
    if kind not in kinds():
        raise UserError(f"there is no kind {kind!r}{suggest(kind, kinds())}.")
    if name in registry.cards():
        raise UserError(f"there is a method {name!r} already: {registry.cards()[name].file}.")
    if folder is not None and folder.strip("/").partition("/")[0] not in registry.FOLDERS:
        raise UserError(f"there is no folder {brief(folder)}{suggest(folder, registry.FOLDERS)}.")


def _usual(kind: str) -> str:
    """Where most methods of a kind are."""
    found = Counter(c.folder for c in registry.cards().values() if c.is_a(kind))
    found = found or Counter(
        c.folder for c in registry.cards().values() for above in kinds()[kind].bases if c.is_a(above)
    )
    if not found:
        raise UserError(
            f"there is no method of the kind {kind} yet: say with --folder where this one is to live."
        )
    return found.most_common(1)[0][0]


def _place(folder: str, package: Path) -> str:
    """A folder of methods, or a room in one."""
    rooms = {
        f"{top}/{f.parent.name}" for top in registry.FOLDERS for f in (package / top).glob("*/__init__.py")
    }
    if folder.strip("/") not in {*registry.FOLDERS, *rooms}:
        raise UserError(f"there is no folder {folder!r}{suggest(folder, {*registry.FOLDERS, *rooms})}.")
    return folder.strip("/")


def title(name: str) -> str:
    """The class's name."""
    return "".join(w.capitalize() for w in name.split("_"))


def method_text(name: str, kind: str) -> str:
    """The template of the kind under the method's own name."""
    template = TEMPLATES / f"{_snake(kind)}.py"
    return template.read_text(encoding="utf-8").replace(TITLE, title(name)).replace(NAME, name)


def _snake(kind: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind).lower()


def test_text(name: str, folder: str) -> str:
    """A test that fails until it says the fact of the paper."""
    return f'''"""One fact of the paper, by hand."""
from trainwright.{folder.replace("/", ".")}.{name} import {title(name)}


def test_the_fact_of_the_paper():
    """Replace this by a formula on a 3x3 case, an invariant, a limit, or equality with a kept library."""
    assert {title(name)}().strength == 0.0, "write the fact that makes the paper work"
'''


def paper_text(name: str, folder: str) -> str:
    """What the paper is; its claims are still to be written."""
    return f'''title = "The paper's title"
year = {date.today().year}
about = "What it does, in a line."
kind = "method"
stage = "{STAGES[folder.partition("/")[0]]}"
modality = "text"
companion = true
methods = ["{name}"]

# Each sentence of the paper that can be measured is a claim; trainwright reproduce measures it.
# [[claim]]
# says = "it learns better than LoRA of as many trained numbers"
# suite = "adapt"
# arms = {{ {name} = [{{ use = "{name}" }}], lora = [{{ use = "lora", rank = 8 }}] }}
# compares = "{name} against lora"
# metric = "loss/code"
# expects = "lower"
'''
