"""Folders of models on the Hugging Face Hub, by `huggingface_hub` (the extra `hub`): fetched and uploaded."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path
from typing import Any

_ID = re.compile(r"(?!\.+/)[\w.-]+/(?!\.+\Z)[\w.-]+")
_FILES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors", ".tar")
_READ = ["*.json", "*.safetensors", "*.bin"]
"""Of what lies beside the weights, what is read."""


def looks_like_hub_id(name: str) -> bool:
    """Whether it is of the kind owner/name, and not of the kind folder/file.pth or ../folder."""
    return _ID.fullmatch(name) is not None and not name.endswith(_FILES)


def fetch(name: str, revision: str | None = None, into: Path | None = None) -> Path:
    """The folder of owner/name, from the cache of huggingface_hub where it lies there already.

    Args:
        into: where its files are put; None: they stay in the cache.

    Raises:
        ValueError: no such model there, no network, or huggingface_hub is not installed.
    """
    hub, wanted = _api(name), None if into else _READ
    try:
        return Path(hub.snapshot_download(name, revision=revision, local_dir=into, allow_patterns=wanted))
    except Exception as error:  # of huggingface_hub, and of its several HTTP libraries
        raise ValueError(f"{name!r}: no such file or folder, and from the Hub: {_told(error)}") from error


def upload(folder: Path, name: str, *, private: bool, message: str) -> str:
    """All files of `folder` into the model owner/name, which is made if it is not there; the address of the commit.

    Raises:
        ValueError: not allowed there, no network, or huggingface_hub is not installed.
    """
    hub = _api(name)
    try:
        hub.create_repo(name, private=private, exist_ok=True)
        return str(hub.upload_folder(repo_id=name, folder_path=folder, commit_message=message))
    except Exception as error:  # of huggingface_hub, and of its several HTTP libraries
        raise ValueError(f"{name!r}: not uploaded to the Hub: {_told(error)}") from error


def _api(name: str) -> Any:
    if importlib.util.find_spec("huggingface_hub") is None:
        how = "its names on the Hub need the package huggingface_hub: pip install 'diffmavil[hub]'"
        raise ValueError(f"{name!r}: no such file or folder; {how}")
    return importlib.import_module("huggingface_hub").HfApi()


def _told(error: BaseException) -> str:
    """The first line of what went wrong, and of what lies beneath."""
    lines = [str(one).strip().partition("\n")[0] for one in (error, error.__cause__) if one is not None]
    said = [f"{type(error).__name__}", *(line for line in lines if line)]
    return ": ".join(dict.fromkeys(said))
