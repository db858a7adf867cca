"""Every file below a folder is read, or counted under a reason."""
from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.data.sources.text.test_text import rows, written
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.corpus import documents
from trainwright.data.sources.text._folders import found
from trainwright.data.sources.text.text import Text

KEY = "0123456789ab"


def test_what_is_not_read_is_counted_and_said(tmp_path: Path) -> None:
    written(tmp_path, {"w/a.txt": "a", "w/b.rtf": "b", "w/c.odt": "c", "w/d.xyz.zst": "d", "w/LICENSE": "e",
                       "w/.f.txt": "f", "w/.git/g.txt": "g", "w/h.png": "h", "w/deep/i.rtf": "i"})
    (tmp_path / "w/gone.txt").symlink_to("nowhere")
    os.mkfifo(tmp_path / "w/pipe.txt")
    ctx = Context(root=tmp_path)
    Text(paths=["w"]).apply(documents.empty(), ctx)
    assert ctx.texts == {"not read in w": "5 of unknown type (no ending, .odt, .rtf, .xyz); hidden: 1; "
                         "hidden folders: 1; images and sounds, read where a table names them: 1; "
                         "links to nothing: 1; no regular files: 1"}
    assert found("w", tmp_path).names == ["w/a.txt"]
    with pytest.raises(
        UserError, match=r"w/deep holds no file that can be read \(1 of unknown type \(\.rtf\)\)"
    ):
        found("w/deep", tmp_path)


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    written(tmp_path, {"w/real/a.txt": "a", "elsewhere/b.txt": "b"})
    (tmp_path / "w/again").symlink_to("real")
    (tmp_path / "w/loop").symlink_to(".")
    (tmp_path / "w/far").symlink_to("../elsewhere")
    (tmp_path / "elsewhere/back").symlink_to("../w")
    assert found("w", tmp_path).names == ["w/far/b.txt", "w/real/a.txt"]
    assert [r["text"] for r in rows(tmp_path, paths=["w"])] == ["b", "a"]
    assert [r["text"] for r in rows(tmp_path, paths=["w/far"])] == ["b", "a"], (
        "the folder itself may be a link"
    )


@pytest.mark.parametrize(
    "store",
    [
        {f"base-{KEY}/manifest.json": "{}"},
        {f"work/corpus-{KEY}/lock": ""},
        {"cache/tokens/x.json": '{"text": "no"}'},
    ],
)
def test_a_store_below_is_left_out(tmp_path: Path, store: dict[str, str]) -> None:
    written(tmp_path, {"a.md": "a"})
    before = Text(paths=["."]).depends(tmp_path)
    written(tmp_path, {f"store/{name}": content for name, content in store.items()})
    written(tmp_path, {"store/cache/b.md": "b"} if "cache/tokens/x.json" in store else {"store/b.md": "b"})
    assert found(".", tmp_path).names == ["a.md"] and found(".", tmp_path).said() == "stores of runs: 1"
    assert found("**/*.*", tmp_path).names == ["a.md"], "a wildcard does not reach into it either"
    assert Text(paths=["."]).depends(tmp_path) == before


def test_a_folder_that_looks_a_little_like_a_store_is_read(tmp_path: Path) -> None:
    written(tmp_path, {"w/work/a.txt": "a", f"w/logs-{KEY}/b.txt": "b", "v/cache/c.txt": "c", "v/d.txt": "d"})
    assert len(found("w", tmp_path).names) == 2 and len(found("v", tmp_path).names) == 2


def test_the_card_of_a_repository_of_the_hub_is_no_document(tmp_path: Path) -> None:
    card = "---\nlicense: mit\nconfigs:\n- config_name: default\n---\n# A data set\n"
    written(
        tmp_path, {"hub/README.md": card, "hub/data/t.jsonl": '{"text": "a"}\n', "own/README.md": "# Mine\n"}
    )
    assert found("hub", tmp_path).names == ["hub/data/t.jsonl"]
    assert found("hub", tmp_path).said() == "README.md that describe a repository of the Hub: 1"
    assert found("own", tmp_path).names == ["own/README.md"]
    assert found("hub/README.md", tmp_path).names == ["hub/README.md"], "unless it is named"
