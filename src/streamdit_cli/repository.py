"""A model of our own layout in a repository on the Hub: its name, and which files it is made of.

`-m OWNER/NAME[@REVISION]`. The files are those that every run writes to its `model/`: `config.json`
and the safetensors of three parts. Whatever else a repository holds is neither fetched nor named
here, and no name of a file comes from anything but these words. Nothing here makes a connection.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from streamdit_cli.cache import cache_folder, lock_folder, read_lock
from streamdit_cli.errors import DownloadError

__all__ = [
    "CONFIG",
    "Repository",
    "check_model_files",
    "is_repository",
    "known_repositories",
    "parse_repository",
    "refreshed",
    "repository_preset",
]

CONFIG = "config.json"
PARTS = ("transformer", "autoencoder", "text")
_WORD = r"[A-Za-z0-9](?:[\w.\-]{0,94}[A-Za-z0-9_])?"
_NAME = re.compile(rf"({_WORD}/{_WORD})(?:@({_WORD}(?:/{_WORD}){{0,3}}))?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHARD = re.compile(r"-([0-9]{5})-of-([0-9]{5})\.safetensors")


@dataclass(frozen=True, kw_only=True, slots=True)
class Repository:
    """A repository that was named.

    Args:
        repo: OWNER/NAME.
        revision: a commit, tag or branch; empty for the newest commit of the main branch.
    """

    repo: str
    revision: str

    @property
    def text(self) -> str:
        """What to type for it."""
        return f"{self.repo}@{self.revision}" if self.revision else self.repo


def parse_repository(text: str) -> Repository | None:
    """Read `OWNER/NAME[@REVISION]`; None for what cannot be such a name.

    Two hyphens or two dots in a row are no name on the Hub, and would not be one in its cache.
    """
    found = _NAME.fullmatch(text)
    if found is None or re.search(r"\.\.|--", text) or found[1].endswith(".git"):
        return None
    return Repository(repo=found[1], revision=found[2] or "")


def repository_preset(repository: Repository) -> dict[str, Any]:
    """Return what a pull needs to know of a repository, in the form of a preset.

    The commit that a branch or tag had when it was first asked for is held to by the lock file,
    with the files it had; before that only `config.json` is known to be needed.

    Raises:
        DownloadError: its lock file cannot be read.
    """
    lock = read_lock(repository.text)
    is_commit = bool(_COMMIT.fullmatch(repository.revision))
    paths = sorted(lock.files.get(repository.repo, {})) or [CONFIG]
    source = {
        "part": "model",
        "repo": repository.repo,
        "revision": repository.revision if is_commit else "",
        "files": [{"path": path, "size": 0, "sha256": ""} for path in paths],
    }
    weights = {
        "unverified": True,
        "reason": "what a repository holds is known when it is first asked for",
        "asked": repository.revision,
        "sources": [source],
    }
    return {"name": repository.text, "licence": "as its card says", "weights": weights}


def refreshed(preset: dict[str, Any]) -> dict[str, Any]:
    """Return the preset of a repository with what the lock says now; any other one as it is."""
    repository = parse_repository(preset["name"]) if is_repository(preset) else None
    return preset if repository is None else repository_preset(repository)


def is_repository(preset: dict[str, Any]) -> bool:
    """Whether this came from `repository_preset`."""
    return "asked" in preset["weights"]


def known_repositories() -> list[str]:
    """Return what can be typed for each repository that was pulled on this machine, sorted."""
    found = [unquote(path.name.removesuffix(".lock.json")) for path in _locks()]
    return sorted(text for text in found if parse_repository(text) is not None)


def _locks() -> Iterable[Path]:
    return lock_folder(cache_folder()).glob("*.lock.json")


def check_model_files(repo: str, names: Iterable[str]) -> list[str]:
    """Return the files of a repository that a model of our layout is made of.

    Args:
        repo: OWNER/NAME, for messages.
        names: of everything in it; they come from outside and are only compared.

    Raises:
        DownloadError: one is missing, a part has one file and shards, or its shards are not whole.
    """
    present = set(names)
    if CONFIG not in present:
        raise _refusal(repo, f"it has no {CONFIG}")
    chosen = [CONFIG]
    for part in PARTS:
        single, index = f"{part}.safetensors", f"{part}.safetensors.index.json"
        shards = sorted(name for name in present if _is_shard(name, part))
        if single in present and (index in present or shards):
            raise _refusal(repo, f"it has both {single} and shards of it")
        if single in present:
            chosen.append(single)
            continue
        count = len(shards)
        whole = [f"{part}-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
        if not shards or shards != whole or index not in present:
            raise _refusal(repo, f"it has neither {single} nor whole shards with {index}")
        chosen += [index, *shards]
    return chosen


def _is_shard(name: str, part: str) -> bool:
    return name.startswith(part) and bool(_SHARD.fullmatch(name[len(part) :]))


def _refusal(repo: str, reason: str) -> DownloadError:
    return DownloadError(
        f"{repo} is not a model of streamdit: {reason}",
        "it needs what every run writes to RUN/model; streamdit models list shows open weights",
    )
