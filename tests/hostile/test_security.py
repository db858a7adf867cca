"""What ``docs/security.md`` says, line by line: commands in a folder full of traps, watched from within."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import LIFE, environment, write_texts
from trainwright.core import registry
from trainwright.core.errors import UserError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
DOCS = Path(__file__).parents[2] / "docs" / "security.md"

TRAP = "open({!r}, 'a').write(__name__ + '\\n')\n"
MODULES = (
    "pickle", "json", "random", "queue", "torch", "numpy", "trainwright", "sitecustomize", "usercustomize",
    "conftest", "modeling_x", "tokenization_x", "setup", "daft", "rich",
)
MINE = '''"""Changes nothing. Nobody's paper."""
import beside

from trainwright.core.method import Update

open({!r}, "a").write("mine\\n")


class Mine(Update):
    """Changes nothing."""
'''
OWN = 'methods = [{ use = "pack", length = 32 }, { use = "./mine.py" }, { use = "next_token" }'
COMMANDS: dict[str, list[str]] = {
    "plan": ["plan", "life.toml"],
    "plan of own code": ["plan", "own.toml"],
    "run": ["run", "life.toml"],
    "show": ["show", "base"],
    "store": ["store", "ls"],
    "generate": ["generate", "model", "-p", "x", "--tokens", "2"],
    "adapted": ["plan", "adapted.toml"],
    "dry run": [
        "compare", "own.toml", "--stage", "adapt", "--metric", "loss/code", "--arm", "a:", "--arm",
        "b: lora", "--seeds", "2", "--dry-run",
    ],
    "run of own code": ["run", "own.toml"],
    "export": ["export", "base", "exported"],
    "init": ["init", "continue", "--data", "texts", "--model", "model", "--out", "exported/mine.toml"],
}


@dataclass
class Watched:
    """What became of the commands."""

    home: Path
    """The stranger's folder."""
    own: Path
    """The folder of the user: caches lie there, and temporary files."""
    done: dict[str, dict[str, Any]]
    before: dict[str, bytes]
    """The stranger's files, but for the store."""

    def noted(self, command: str, what: str) -> list[Any]:
        return self.done[command].get(what, [])


def stranger(folder: Path) -> None:
    """A recipe, with traps in every place where careless software looks."""
    write_texts(folder / "texts")
    trap = TRAP.format(str(folder / "trapped"))
    (folder / "life.toml").write_text(LIFE.replace("steps = 6", "steps = 2"))
    life = (folder / "life.toml").read_text()
    (folder / "own.toml").write_text(
        life.replace('methods = [{ use = "pack", length = 32 }, { use = "next_token" }', OWN, 1)
    )
    (folder / "adapted.toml").write_text(
        life.replace('from = { model = "base", data', 'from = { model = "model", data')
    )
    (folder / "mine.py").write_text(MINE.format(str(folder / "ran")))
    (folder / "beside.py").write_text("x = 1\n")
    for name in MODULES:
        (folder / f"{name}.py").write_text(trap)
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text(f'[core]\n\tfsmonitor = "touch {folder}/trapped"\n')
    (folder / "pyproject.toml").write_text("[tool]\n")


def model(folder: Path, of: Path) -> None:
    """A checkpoint that asks for code of its own: its weights are those of another."""
    (folder / "model").mkdir()
    for file in of.iterdir():
        if file.is_file():
            (folder / "model" / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "model" / "config.json").read_text())
    auto = {
        "AutoConfig": "modeling_x.XConfig",
        "AutoModelForCausalLM": "modeling_x.XModel",
        "AutoTokenizer": ["tokenization_x.X", None],
    }
    (folder / "model" / "config.json").write_text(json.dumps(config | {"auto_map": auto}))
    for name in ("modeling_x", "tokenization_x"):
        (folder / "model" / f"{name}.py").write_text(TRAP.format(str(folder / "trapped")))


def carry_out(folder: Path, own: Path, commands: list[list[str]]) -> list[dict[str, Any]]:
    for part in ("home", "tmp"):
        (own / part).mkdir(parents=True, exist_ok=True)
    around = {k: v for k, v in environment().items() if not k.startswith(("HF_HOME", "XDG_"))}
    around |= {"HOME": str(own / "home"), "TMPDIR": str(own / "tmp"), "PYTHONDONTWRITEBYTECODE": ""}
    line = [
        sys.executable, "-P", str(Path(__file__).with_name("watched.py")), str(own / "log"),
        json.dumps(commands),
    ]
    done = subprocess.run(line, cwd=folder, env=around, text=True, capture_output=True, timeout=800)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((own / "log").read_text())  # type: ignore[no-any-return]


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(f.relative_to(folder)): f.read_bytes()
        for f in sorted(folder.rglob("*"))
        if f.is_file() and f.relative_to(folder).parts[0] not in ("store", "ran", "exported")
    }


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    folder, own = tmp_path_factory.mktemp("stranger"), tmp_path_factory.mktemp("user")
    stranger(folder)
    (folder / "base.toml").write_text(
        (folder / "life.toml").read_text().partition('[[stage]]\nname = "adapt"')[0]
    )
    carry_out(folder, own / "first", [["run", "base.toml", "--store", str(own / "made")]])
    model(folder, next(f for f in (own / "made").glob("base-*") if f.is_dir()))
    before = files(folder)
    done = carry_out(folder, own, list(COMMANDS.values()))
    return Watched(folder, own, dict(zip(COMMANDS, done, strict=True)), before)


def lines() -> list[str]:
    """The numbered lines of the page."""
    return [line for line in DOCS.read_text().splitlines() if line.partition(".")[0].isdecimal()]


def test_the_page_has_ten_lines() -> None:
    assert len(lines()) == 10


def test_every_command_is_carried_out(watched: Watched) -> None:
    assert {name: one["code"] for name, one in watched.done.items()} == dict.fromkeys(COMMANDS, 0), [
        one["err"] for one in watched.done.values() if one["code"]
    ]


def test_1_run_executes_what_the_recipe_names(watched: Watched) -> None:
    ran = [f for f in watched.noted("run of own code", "ran") if f.startswith(str(watched.home))]
    assert set(ran) <= {str(watched.home / "mine.py"), str(watched.home / "beside.py")}
    assert not [f for f in watched.noted("run", "ran") if f.startswith(str(watched.home))]
    assert "mine" in (watched.home / "ran").read_text()


def test_1_only_program_tests_runs_what_a_model_wrote() -> None:
    files = [f for f in registry.ROOT.rglob("*.py") if "lm.sandbox import" in f.read_text(encoding="utf-8")]
    assert [f.name for f in files] == ["program_tests.py"]


def test_2_plan_and_dry_run_say_what_they_execute(watched: Watched) -> None:
    assert "plan runs ./mine.py, since the recipe names it\n" in watched.done["plan of own code"]["out"]
    assert "compare runs ./mine.py, since the recipe names it\n" in watched.done["dry run"]["out"]
    assert " runs " not in watched.done["plan"]["out"]
    ran = {f for f in watched.noted("plan of own code", "ran") if f.startswith(str(watched.home))}
    assert ran == {str(watched.home / "mine.py"), str(watched.home / "beside.py")}


@pytest.mark.parametrize("command", ["show", "store", "generate", "export", "init"])
def test_3_commands_on_a_store_execute_nothing_of_it(command: str, watched: Watched) -> None:
    assert not [f for f in watched.noted(command, "ran") if f.startswith(str(watched.home))]


def test_4_folders_are_data(watched: Watched) -> None:
    assert not [
        name
        for name in COMMANDS
        for name in watched.noted(name, "unpickled")
        if not name.startswith("trainwright.")
    ], "only what a process of ours answers is unpickled, of classes of ours"
    with pytest.raises(UserError, match="a folder alone runs nothing"):
        registry.recall({"use": str(watched.home / "torch.py")}, "adapter/surgery.json")


def test_5_nothing_is_imported_because_it_lies_there(watched: Watched) -> None:
    assert not (watched.home / "trapped").exists(), (watched.home / "trapped").read_text()
    for name in COMMANDS:
        for line in watched.noted(name, "started"):
            assert line[:2] == [sys.executable, "-P"] or line[0] == "fc-list", f"{name} starts {line}"


ELSEWHERE = (sys.prefix, sys.base_prefix, "/proc/", "/sys/", "/dev/", "/etc/", "/usr/", "/lib")
"""Where Python, its packages and the system lie."""


def test_6_only_what_was_named_is_read(watched: Watched) -> None:
    known = (
        *ELSEWHERE, str(Path(registry.ROOT).parent), str(Path(__file__).parent), str(watched.home),
        str(watched.own),
    )
    strange = {name: [f for f in watched.noted(name, "read") if not f.startswith(known)] for name in COMMANDS}
    assert not any(strange.values()), strange


def test_7_run_writes_into_the_store_alone(watched: Watched) -> None:
    assert files(watched.home) == watched.before, (
        "the stranger's files are as they were, and no other lies beside them"
    )
    known = (
        str(watched.home / "store"), str(watched.own), str(watched.home / "ran"), "/dev/null",
        "/proc/self/",
    )
    for name in COMMANDS:
        mine = (*known, str(watched.home / "exported")) if name in ("export", "init") else known
        strange = [
            f for f in watched.noted(name, "write")
            if not f.startswith(mine) and ("__pycache__" not in f or f.startswith(str(watched.home)))
        ]
        assert not strange, f"{name} writes {strange}"


@pytest.mark.parametrize("command", ["plan", "show", "store", "generate", "adapted", "export", "init"])
def test_8_what_only_looks_writes_nothing(command: str, watched: Watched) -> None:
    store = str(watched.home / "store")
    assert not [f for f in watched.noted(command, "write") if f.startswith(store)]


def test_9_nothing_is_sent(watched: Watched) -> None:
    asked = {name: watched.noted(name, "asked") for name in COMMANDS}
    assert not any(asked.values()), asked


FOREIGN = ("AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY", "HF_TOKEN", "MY_TRAINWRIGHT_KEY", "trainwright_key")


def written_by(**changes: str) -> UserError:
    """How a writer with such settings is refused."""
    writer = {"endpoint": "https://x.org/v1", "model": "m", "key_variable": "TRAINWRIGHT_KEY"} | changes
    with pytest.raises(UserError) as told:
        registry.create({"use": "wrap", "writer": writer}, Path(), "here")
    return told.value


@pytest.mark.parametrize("name", FOREIGN)
def test_10_a_key_comes_from_a_variable_that_is_meant_for_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "very secret")
    told = str(written_by(key_variable=name))
    assert "begins with TRAINWRIGHT_" in told and "very secret" not in told


@pytest.mark.parametrize(
    "endpoint",
    ["http://x.org/v1", "https://user:secret@x.org/v1", "https://x.org/v1?key=secret", "https://x.org/#secret",
     "http://127.0.0.1.x.org/v1", "http://localhost.x.org/v1", "ftp://x.org"],
)  # fmt: skip
def test_10_a_key_goes_where_nobody_can_read_it(endpoint: str) -> None:
    assert "secret" not in str(written_by(endpoint=endpoint))
