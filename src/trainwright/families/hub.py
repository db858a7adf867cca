"""Handing a checkpoint on to the Hugging Face Hub, where somebody asks for it."""

from __future__ import annotations

import re
from pathlib import Path

from trainwright.core.errors import UserError
from trainwright.core.shown import brief
from trainwright.families.libraries import first_line, quiet


def hub_name(to: str) -> str:
    """The repository that ``hub:OWNER/NAME`` names.

    Raises:
        UserError: it names none.
    """
    owner, _, name = to.removeprefix("hub:").partition("/")
    if not to.startswith("hub:") or not re.fullmatch(r"[\w.-]+", owner) or not re.fullmatch(r"[\w.-]+", name):
        raise UserError(f"--to {brief(to)}: write hub:OWNER/NAME.")
    return f"{owner}/{name}"


def upload(folder: Path, name: str) -> str:
    """Put a folder into a private repository of the Hub, which is made where it is not there; its address.

    Raises:
        UserError: not logged in, not allowed, or out of reach. The folder stays.
    """
    from huggingface_hub import HfApi
    quiet()
    try:
        api = HfApi()
        address = api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="A model made with Trainwright")
    except Exception as error:  # of several libraries: no account, no network, no right …
        raise UserError(f"{folder} is written, but cannot be uploaded to {name}: {first_line(error)}; log in "
                        "with hf auth login and run the command again with another folder.") from None
    return str(address)
