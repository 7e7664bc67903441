"""Pins from what the Hub says of a repository: which files, how large, with which sha256."""

from __future__ import annotations

import fnmatch
import re
from typing import Any

from streamdit_cli.cache import RemoteFile
from streamdit_cli.download_faults import NEWER
from streamdit_cli.errors import DownloadError

__all__ = ["named_paths", "pin_of"]

_SHARD = re.compile(r"-([0-9]{5})-of-([0-9]{5})\.safetensors")


def named_paths(file: RemoteFile, names: list[str]) -> list[str]:
    """Return the files of a repository that an entry means: one, or a whole series of shards."""
    if "*" not in file.path:
        if file.path not in names:
            raise DownloadError(f"{file.repo} has no {file.path}", NEWER)
        return [file.path]
    shards = sorted(fnmatch.filter(names, file.path))
    numbers = [match.groups() for shard in shards if (match := _SHARD.search(shard))]
    count = len(shards)
    if not shards or numbers != [(f"{i:05d}", f"{count:05d}") for i in range(1, count + 1)]:
        raise DownloadError(f"{file.repo} has no whole series {file.path}: {shards or 'no file'}")
    return shards


def pin_of(repo: str, path: str, entry: Any, file: RemoteFile) -> tuple[int, str]:
    """Return size and hash of a file as the Hub has them; a known one must be the same."""
    if entry.lfs is None or not re.fullmatch(r"[0-9a-f]{64}", str(entry.lfs.sha256)):
        raise DownloadError(f"{repo} {path} has no sha256 on the Hub, so it cannot be pinned")
    size, sha256 = int(entry.lfs.size), str(entry.lfs.sha256)
    if (file.size or size) != size or (file.sha256 or sha256) != sha256:
        raise DownloadError(
            f"{repo} {path} is not the file that is pinned: {size} bytes, sha256 {sha256}",
            NEWER,
        )
    return size, sha256
