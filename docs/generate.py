"""Write the generated pages: one a method, their index, and the tables of stages, kinds and commands.

They come from the sources alone, so that no list is kept by hand. MkDocs calls this as a hook before it
builds; run as a program it does the same. A file is only written when its text changed.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainwright.compare.spec import Settings
from trainwright.core import registry
from trainwright.core.card import Card, kinds
from trainwright.core.settings import docs_of, hints_of, name_of
from trainwright.core.stage import Role, Stage, stages
from trainwright.papers.paper import Claim
from trainwright.report import cards, field, paper_pages, papers, schedule

DOCS = Path(__file__).parent


def pages() -> dict[str, str]:
    """Path below ``docs/`` to text, of everything that is generated."""
    out = {f"methods/{c.name}.md": method_page(c) for c in registry.cards().values()}
    out["methods/index.md"] = index_page()
    out |= {f"_generated/stage-{kind}.md": stage_table(cls) for kind, cls in stages().items()}
    out["_generated/kinds.md"] = kinds_table()
    out["_generated/commands.md"] = commands()
    out["_generated/compare.md"] = settings_table(Settings)
    out["_generated/claim.md"] = settings_table(Claim)
    out["_generated/evidence.md"] = paper_pages.evidence_tables()
    out["map.html"] = field.page(links=True)
    out |= paper_pages.pages()
    out["_generated/pairs.md"] = pairs_table()
    out |= {f"_generated/scale-{part}.md": f"{text}\n" for part, text in scale_tables().items()}
    return out


def write(folder: Path = DOCS) -> list[Path]:
    """Write what changed, remove what is no longer generated, return all paths."""
    wanted = {folder / path: text for path, text in pages().items()}
    for file, text in wanted.items():
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
    generated = [f for sub in ("methods", "papers", "_generated") for f in (folder / sub).glob("*.md")]
    for old in generated:
        if old not in wanted:
            old.unlink()
    return sorted(wanted)


def on_config(config: Any) -> Any:
    """MkDocs hook: write the pages, and put those of the methods into the navigation, by place in a life."""
    write(Path(config["docs_dir"]))
    places = [{folder: [f"methods/{c.name}.md" for c in found]} for folder, found in by_folder().items()]
    stages = [{stage.capitalize(): [f"papers/{p.id}.md" for p in found]}
              for stage, found in paper_pages.by_stage().items()]
    lists = {"Methods": ["methods/index.md", *places], "Papers": ["papers/index.md", *stages]}
    config["nav"] = [{name: lists.get(name, inside) for name, inside in entry.items()}
                     for entry in config["nav"]]
    return config


# ---- methods ---------------------------------------------------------------------------------------


def by_folder() -> dict[str, list[Card]]:
    """Cards by folder, in the order of a life; folders without a method are left out."""
    every = list(registry.cards().values())
    return {
        f: [c for c in every if c.folder == f] for f in sorted({c.folder for c in every}, key=registry.order)
    }


def method_page(card: Card) -> str:
    rows = [(f"`{name}`", f"`{cards.in_words(kind)}`", f"`{written(default)}`" if default else "needed",
             inline(doc))
            for name, kind, default, doc in cards.settings_of(card)]
    settings = table(("setting", "type", "default", "what it means"), rows) if rows else "It has none."
    first, _, rest = told_once(card.doc.strip()).partition("\n\n")
    of = ", ".join(f"[{kind}](index.md#{kind.lower()})" for kind in card.kinds)
    where = f"Kind {of}, place `{card.folder}`; also `trainwright show {card.name}`."
    return "\n\n".join(
        [
            f"# {card.name}",
            markdown(first),
            where,
            *([drawn] if (drawn := schedule.svg(card)) else []),
            f"```toml\n{use_line(card)}\n```",
            markdown(rest.strip("\n")),
            "## Settings",
            settings,
            "## Evidence",
            evidence_of(card.name),
            source(card),
        ]
    )


def evidence_of(method: str) -> str:
    """The claims of a method's papers, and what became of each."""
    found = papers.of_method(method)
    rows = [(f"[{p.id}](../papers/{p.id}.md)", *paper_pages.row(one)) for p, one in found]
    return paper_pages.table(("paper", *paper_pages.HEAD), rows) if rows else "None here."


def told_once(doc: str) -> str:
    """Without a last paragraph (the class docstring) that only says the first again."""
    first, last = " ".join(doc.split("\n\n")[0].split()), doc.split("\n\n")[-1]
    return doc.removesuffix(last) if "\n\n" in doc and " ".join(last.split()).rstrip(".") in first else doc


def written(default: str) -> str:
    """A default as a recipe would write it, where it is a literal."""
    try:
        value = ast.literal_eval(default)
    except ValueError:
        return default
    return "none" if value is None else toml(value)


def use_line(card: Card) -> str:
    """The method as a recipe names it: with the settings that it needs, as in its ``example``."""
    example = example_of(card.file)
    settings = [
        f"{name} = {toml(example.get(name, placeholder(kind)))}"
        for name, kind, default, _ in card.fields
        if not default
    ]
    return f"methods = [{{ {', '.join([f'use = {toml(card.name)}', *settings])} }}]"


def example_of(file: Path) -> dict[str, Any]:
    """The class attribute ``example``, as far as it is written in literals."""
    found: dict[str, Any] = {}
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if (
            isinstance(node, ast.AnnAssign)
            and ast.unparse(node.target) == "example"
            and isinstance(node.value, ast.Dict)
        ):
            for key, value in zip(node.value.keys, node.value.values, strict=True):
                with suppress(ValueError):
                    found[ast.literal_eval(key)] = ast.literal_eval(value)
    return found


def placeholder(kind: str) -> Any:
    """A value of a type, for the reader to replace."""
    values: dict[str, Any] = {"dict": {}, "list": ["…"], "tuple": ["…"], "str": "…"}
    return next((value for word, value in values.items() if kind.startswith(word)), 1)


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {toml(v)}" for k, v in value.items()) + " }" if value else "{}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return str(value).lower() if isinstance(value, bool) else str(value)


def source(card: Card) -> str:
    if registry.ROOT not in card.file.parents:
        return f"Source: `{card.file.name}`, from another package.\n"
    return f"Source: `src/trainwright/{card.file.relative_to(registry.ROOT).as_posix()}`\n"


def index_page() -> str:
    every = list(registry.cards().values())
    out = [
        "# Methods",
        f"{len(every)} methods. First by their place in a life, then by kind: what a method may do.",
    ]
    for folder, found in by_folder().items():
        out += [
            f"## {folder}",
            table(("method", "kind", "what it does"), [(link(c), c.kind, inline(c.summary)) for c in found]),
        ]
    out.append("## By kind")
    for kind in kinds():
        found = [link(c) for c in every if c.is_a(kind)]
        out += [f"### {kind}", ", ".join(found)] if found else []
    return "\n\n".join(out) + "\n"


def link(card: Card) -> str:
    return f"[{card.name}]({card.name}.md)"


# ---- stages, kinds, commands -------------------------------------------------------------------------


def stage_table(cls: type[Stage]) -> str:
    """The keys of a kind of stage, and the roles that its ``from`` knows."""
    docs, hints = docs_of(cls), hints_of(cls)
    own = [f for f in dataclasses.fields(cls) if f.name not in ("inputs", "methods") or cls.acting]
    rows = []
    for f in own:
        empty = f.default_factory is not dataclasses.MISSING or f.default in ((), None)
        default = "needed" if f.name == "name" else "" if empty else f"`{toml(f.default)}`"
        tables = {"inputs": "a table", "methods": "a list of tables", "stage": "a list of tables"}
        rows.append(
            (
                f"`{'from' if f.name == 'inputs' else f.name}`",
                tables.get(f.name) or name_of(hints[f.name]),
                default,
                inline(docs[f.name]),
            )
        )
        group = hints[f.name]
        for part in dataclasses.fields(group) if dataclasses.is_dataclass(group) else ():
            rows.append(
                (
                    f"`{f.name}.{part.name}`",
                    name_of(hints_of(group)[part.name]),
                    f"`{toml(part.default)}`",
                    inline(docs_of(group)[part.name]),
                )
            )
    found = f"{table(('key', 'type', 'default', 'what it means'), rows)}\n"
    roles = [f"`{role}` ({role_words(how)})" for role, how in cls.roles.items()]
    return found + (f"\nRoles of `from`: {', '.join(roles)}.\n" if roles else "")


def role_words(role: Role) -> str:
    """What a role takes, in words."""
    what = " or ".join(role.wants)
    return f"{f'one {what} or several' if role.many else f'a {what}'}{', needed' if role.needed else ''}"


def settings_table(cls: type) -> str:
    """The keys of a table in a recipe, from the dataclass that checks it."""
    docs, hints = docs_of(cls), hints_of(cls)
    rows = []
    for f in dataclasses.fields(cls):
        needed = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        empty = f.default_factory is not dataclasses.MISSING or f.default in ((), None)
        default = "needed" if needed else "" if empty else f"`{toml(f.default)}`"
        rows.append((f"`{f.name}`", name_of(hints[f.name]), default, inline(docs[f.name])))
    return table(("key", "type", "default", "what it means"), rows) + "\n"


def pairs_table() -> str:
    """Which methods of a training stage work together, and which are refused: what ``make pairs`` found."""
    file = DOCS.parent / "benchmarks" / "results" / "pairs.json"
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    names = sorted({name for a, b, _, _ in found for name in (a, b)})
    tried = {n: [verdict for a, b, verdict, _ in found if n in (a, b)] for n in names}
    counts = [
        (f"[{n}](methods/{n}.md)", *(str(tried[n].count(v)) for v in ("works", "refused", "refused late")))
        for n in names
    ]
    refused = [(f"`{a}`", f"`{b}`", inline(why) + (" (in the run)" if verdict == "refused late" else ""))
               for a, b, verdict, why in found if verdict.startswith("refused")]
    works = sum(verdict == "works" for _, _, verdict, _ in found)
    return (
        "\n\n".join(
            [
                f"Of {len(found):,} pairs, {works:,} work and {len(refused):,} are refused, "
                f"{sum(v == 'refused late' for _, _, v, _ in found):,} of them by what first acts in the "
                f"run.",
                table(("method", "works with", "refused with", "in the run"), counts),
                "## Refused, and why",
                table(("one", "the other", "why"), refused),
            ]
        )
        + "\n"
    )


# ---- how costs grow --------------------------------------------------------------------------------

GIB = 2**30


def results(name: str) -> dict[str, Any]:
    """The figures of a benchmark; empty where it has not run."""
    file = DOCS.parent / "benchmarks" / "results" / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def scale_tables() -> dict[str, str]:
    """By part what ``benchmarks/scale.py`` measured, and what follows from it."""
    found = results("scale")
    makers = {"models": model_curve, "ranks": rank_curve, "text": text_curve, "shards": shard_curve,
              "jobs": job_curve}
    out = dict.fromkeys((*makers, "large"), "Not measured yet.")
    for part, make in makers.items():
        if part in found:
            on = f"{found[part]['hardware']}, torch {found[part]['torch']}, {found[part]['date']}"
            out[part] = f"{make(found[part]['rows'])}\n\nMeasured on: {on}."
    if {"ranks", "text", "shards"} <= found.keys():
        out["large"] = large(found)
    return out


def model_curve(rows: list[dict[str, Any]]) -> str:
    told = [(r["size"], f"{r['parameters'] / 1e6:,.1f} M", f"{r['flops_per_token'] / 1e6:,.0f} M",
             f"{r['seconds_per_token'] * 1e6:,.0f} µs",
             f"{r['flops_per_token'] / r['seconds_per_token'] / 1e9:,.0f} G",
             f"{r['update_seconds'] * 1e3:,.0f} ms", f"{r['peak_bytes'] / 2**20:,.0f} MiB",
             f"{r['peak_bytes'] / r['parameters']:,.0f} B") for r in rows]
    head = ("model", "parameters", "FLOPs a token", "gradients a token", "FLOPs a second", "update a step",
            "peak memory", "a parameter")
    return table(head, told)


def rank_curve(rows: list[dict[str, Any]]) -> str:
    names = ("weights", "gradients", "states", "gathered", "activations", "peak")
    told = [(str(r["ranks"]), *(f"{r[n] / GIB:,.1f}" for n in names)) for r in rows]
    found = table(("ranks", *names[:-1], "in all, GiB each"), told)
    real = [(r["stage"], f"{r['parameters'] / 1e6:,.0f} M",
             *(f"{max(run['peak_bytes']) / GIB:.2f} GiB" for run in r["runs"]), f"{r['share']:.2f}")
            for r in results("sharding").get("rows", ())]
    head = ("measured on this machine", "parameters", "one rank", "a rank of two", "share")
    return f"{found}\n\n{table(head, real)}" if real else found


def text_curve(rows: list[dict[str, Any]]) -> str:
    told = [(r["what"], f"{r['megabytes']:,} MB", f"{r['documents']:,}", f"{r['seconds']:,.0f} s",
             f"{r['megabytes'] / r['seconds']:,.1f} MB/s", f"{r['peak_bytes'] / 2**20:,.0f} MiB")
            for r in rows]
    for what in dict.fromkeys(r["what"] for r in rows):
        seconds = beyond([r for r in rows if r["what"] == what], 10_000)
        told.append((what, "10,000 MB", "", f"{seconds:,.0f} s", f"{10_000 / seconds:,.1f} MB/s",
                     "(the line through the last two)"))
    whole = results("data")
    told += [(r["what"], f"{1000 * r['gigabytes']:,.0f} MB", f"{r['documents']:,}", f"{r['seconds']:,.0f} s",
              f"{1000 * r['gigabytes'] / r['seconds']:,.1f} MB/s",
              f"{r['peak_bytes'] / 2**20:,.0f} MiB (measured, {whole['date']})")
             for r in whole.get("memory", ())]
    return table(("what", "text", "documents", "time", "rate", "peak memory"), told)


def beyond(rows: list[dict[str, Any]], megabytes: float) -> float:
    """Seconds for more text than was measured, on the line through the last two."""
    a, b = rows[-2:]
    slope = (b["seconds"] - a["seconds"]) / (b["megabytes"] - a["megabytes"])
    return float(b["seconds"] + slope * (megabytes - b["megabytes"]))


def shard_curve(rows: list[dict[str, Any]]) -> str:
    told = [(f"{r['shards']:,}", f"{r['open_seconds'] * 1e3:,.1f} ms",
             f"{r['first_read_seconds'] * 1e6:,.0f} µs", f"{r['read_seconds'] * 1e6:,.0f} µs",
             str(r["descriptors"])) for r in rows]
    return table(("shards", "opening", "a first read", "once more", "descriptors of the process"), told)


def job_curve(rows: list[dict[str, Any]]) -> str:
    one = rows[0]["seconds"]
    told = [(str(r["jobs"]), str(r["runs"]), f"{r['seconds']:,.0f} s", f"{one / r['seconds']:.2f}",
             str(r["cores"])) for r in rows]
    return table(("at a time", "runs", "time", "faster than one at a time", "cores"), told)


RANKS, PEAK, SHARE, MEMORY = 8, 989e12, 0.4, 80 * GIB
"""GPUs, their FLOPs a second in bfloat16 as the maker gives them, the share that is reached, their memory."""
TEXT, TOKEN, DISK, CORES = 1e12, 4.0, 2e9, 64
"""Bytes of text, of a token, that a disk writes a second, and cores of the machine."""
SHARD = 8 << 20
"""Bytes of text in a shard."""


def large(found: dict[str, Any]) -> str:
    """What 8 billion parameters on eight GPUs and a terabyte of text come to, line by line."""
    one = next(r for r in found["ranks"]["rows"] if r["ranks"] == RANKS)
    many = TEXT / TOKEN
    work, saved = many * one["flops_per_token"], 3 * 4 * one["parameters"]
    parts = [one[n] / GIB for n in ("weights", "gradients", "states", "gathered", "activations")]
    rows = [
        ("tokens", f"{TEXT:.0e} B / {TOKEN:g} B", f"{many / 1e9:,.0f} G"),
        ("FLOPs, blocks computed twice", f"{many:.2e} × {one['flops_per_token']:.3g}", f"{work:.2e}"),
        ("training", f"{work:.2e} / ({RANKS} × {PEAK:.3g} × {SHARE:g}) s",
         f"{work / (RANKS * PEAK * SHARE) / 86_400:,.0f} days"),
        ("memory of a rank", " + ".join(f"{part:.1f}" for part in parts),
         f"{one['peak'] / GIB:,.1f} of {MEMORY / GIB:.0f} GiB"),
        ("a checkpoint", f"{one['parameters']:.3g} × 3 × 4 B",
         f"{saved / 1e9:,.0f} GB, {saved / DISK:,.0f} s at {DISK / 1e9:g} GB/s"),
        ("tokens on disk", f"{many:.3g} × 4 B (more than 65,536 words)", f"{4 * many / 1e12:,.0f} TB"),
    ]
    return table(("what", "arithmetic", "comes to"), rows + large_text(found))


def large_text(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The same of the text alone."""
    corpus = [r for r in found["text"]["rows"] if r["what"] == "corpus"][-1]
    dedup = [r for r in found["text"]["rows"] if r["what"] == "minhash"][-1]
    whole = [r for r in results("data").get("memory", ()) if r["what"] == "minhash"]
    rates = {"making tokens": corpus["megabytes"] / corpus["seconds"],
             "near-duplicates": dedup["megabytes"] / dedup["seconds"]}
    if whole:
        rates["near-duplicates"] = 1000 * whole[0]["gigabytes"] / whole[0]["seconds"]
    cores = found["text"]["cores"]
    rows = [(what, f"{TEXT:.0e} B / ({rate / cores:,.2f} MB/s of a core × {CORES})",
             f"{TEXT / 1e6 / (rate / cores * CORES) / 3600:,.1f} h") for what, rate in rates.items()]
    each, took = 1e6 * corpus["megabytes"] / corpus["documents"], found["shards"]["rows"][-1]
    held, opening = corpus["index_bytes"] / corpus["documents"], took["first_read_seconds"]
    return [
        *rows,
        ("shards", f"{TEXT:.0e} B / {SHARD >> 20} MiB", f"{TEXT / SHARD:,.0f}"),
        ("64 rows from closed shards", f"64 × {opening * 1e6:,.0f} µs", f"{64e3 * opening:,.0f} ms"),
        ("documents", f"{TEXT:.0e} B / {each:,.0f} B", f"{TEXT / each / 1e6:,.0f} M"),
        ("index in the memory of a rank", f"{TEXT / each:.2e} × {held:,.0f} B",
         f"{TEXT / each * held / GIB:,.0f} GiB, {RANKS * TEXT / each * held / GIB:,.0f} for {RANKS} ranks"),
    ]


def kinds_table() -> str:
    """The kinds of method: their docstrings and what a method of the kind writes."""
    tree = ast.parse((registry.ROOT / "core" / "method.py").read_text(encoding="utf-8"))
    kinds: dict[str, ast.ClassDef] = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and {ast.unparse(b) for b in node.bases} & {"Method", *kinds}:
            kinds[node.name] = node
    rows = [
        (
            f"`{name}`",
            ", ".join(f"`{w}`" for w in writes(node)),
            inline(" ".join((ast.get_docstring(node) or "").split())),
        )
        for name, node in kinds.items()
    ]
    return table(("kind", "what it writes", "law"), rows) + "\n"


def writes(node: ast.ClassDef) -> list[str]:
    functions = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name != "claims"]
    return [f"{n.name}({', '.join(a.arg for a in n.args.args[1:])})" for n in functions]


def commands() -> str:
    """Every command with its arguments and options, as the command line itself tells them."""
    import typer

    from trainwright.cli import app
    return "\n\n".join(command_parts(typer.main.get_command(app), "trainwright")) + "\n"


def command_parts(command: Any, path: str) -> list[str]:
    if isinstance(getattr(command, "commands", None), dict):
        return [
            part for name, one in command.commands.items() for part in command_parts(one, f"{path} {name}")
        ]
    rows = [(f"`{usage(p)}`", default_of(p), inline(plain(p.help or ""))) for p in command.params]
    head = ("argument", "default", "what it means")
    return [f"### {path}", inline(plain(command.help or "")), table(head, rows)]


def default_of(parameter: Any) -> str:
    """What is taken where an argument or option is left out; nothing where that is nothing."""
    if parameter.required:
        return "needed"
    if isinstance(parameter.show_default, str):
        return parameter.show_default
    if parameter.default is None or parameter.default in (False, ()):
        return ""
    return f"`{parameter.default}`"


def usage(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return str(parameter.name).upper()
    return ", ".join([*parameter.opts, *parameter.secondary_opts])


# ---- text --------------------------------------------------------------------------------------------


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(cell(c) for c in row) + " |" for row in rows)])


def cell(text: str) -> str:
    """A text in a table: a bar in it is none of the table's, and in code it needs no mark."""
    return re.sub(r"(`[^`]*`)|\|", lambda found: found[1] or "\\|", " ".join(text.split()))


def plain(text: str) -> str:
    """Without the marks of Rich."""
    return re.sub(r"\[/?[a-z ]*\]", "", text)


def sentence(text: str) -> str:
    return inline(text[:1].upper() + text[1:])


def inline(text: str) -> str:
    """Prose of a docstring as Markdown: code stays as it is, nothing else is taken for a mark, arXiv
    numbers become links."""
    pieces = re.split(r"(``.+?``|`.+?`)", text)
    return "".join(p if p.startswith("`") else prose(p) for p in pieces)


def prose(text: str) -> str:
    pieces = re.split(r"(https?://[^\s),]+)", text)
    text = "".join(
        f"<{p}>" if p.startswith("http") else re.sub(r"([\\*_<\[\]#$~])", r"\\\1", p) for p in pieces
    )
    return re.sub(r"arXiv[: ](\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)


def markdown(doc: str) -> str:
    """A docstring as Markdown: indented lines are equations, or the entries below a
    line such as ``Raises:``."""
    out: list[str] = []
    before = ""
    for lines in groups(doc):
        if not lines[0].startswith("    "):
            out.append(inline("\n".join(lines)))
        elif re.fullmatch(r"(Args|Raises|Returns|Errors):", before):
            out.append("\n".join(f"- {inline(line.strip())}" for line in lines))
        else:
            out.append("\n".join(["```text", *(line[4:] for line in lines), "```"]))
        before = lines[-1].strip()
    return "\n\n".join(out)


def groups(doc: str) -> list[list[str]]:
    """Runs of lines that are all indented, or all not; an empty line ends a run."""
    runs: list[list[str]] = []
    last = ""
    for line in doc.split("\n"):
        if not line.strip():
            last = ""
            continue
        kind = "equation" if line.startswith("    ") else "prose"
        if kind != last:
            runs.append([])
        runs[-1].append(line)
        last = kind
    return runs


if __name__ == "__main__":
    shutil.rmtree(DOCS / "_generated", ignore_errors=True)
    print(f"{len(write())} pages written")
