"""Which files a preset needs, where they lie in the Hub's cache, and whether they are right.

Nothing here makes a connection. Beside the cache stands one lock file for each preset: what was
found out about pins that the preset leaves open, and which files were hashed and found right.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from streamdit_cli.errors import DownloadError
from streamdit_cli.schema import is_remote_path

__all__ = [
    "Lock",
    "RemoteFile",
    "adopt",
    "cache_folder",
    "discard",
    "fault",
    "lock_folder",
    "needed_files",
    "parts_of",
    "read_lock",
    "size_words",
    "unfinished",
]

LOCK_FORMAT = "streamdit-lock-1"
_LARGEST_LOCK = 1_000_000  # bytes
_SMALL = 4096  # bytes at the beginning of a wrong file that are looked at


def size_words(count: int) -> str:
    """Return a number of bytes in words: `14.7 GB`, `22.6 MB`."""
    for power, unit in ((9, "GB"), (6, "MB"), (3, "kB")):
        if count >= 10**power:
            return f"{count / 10**power:.1f} {unit}"
    return f"{count} bytes"


def cache_folder() -> Path:
    """Return the folder of the Hub's cache, as the environment says and its library finds it."""
    default = os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    home = os.environ.get("HF_HOME", default)
    legacy = os.environ.get("HUGGINGFACE_HUB_CACHE", os.path.join(home, "hub"))
    folder = os.environ.get("HF_HUB_CACHE", legacy)
    return Path(os.path.expandvars(os.path.expanduser(folder)))


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteFile:
    """One file of a repository on the Hub.

    Args:
        part: what of the model it holds.
        repo: OWNER/NAME.
        revision: a commit of 40 hexadecimal digits; empty when it is not known yet.
        path: inside the repository; with `*` a series of shards that is not known yet.
        size: bytes; 0 when not known.
        sha256: of its bytes; empty when not known.
        about: bytes, an estimate where the size is not known.
    """

    part: str
    repo: str
    revision: str
    path: str
    size: int
    sha256: str
    about: int = 0

    @property
    def is_pinned(self) -> bool:
        """Whether all is known that decides its bytes."""
        return bool(self.revision and self.size and self.sha256)

    @property
    def bytes(self) -> int:
        """Its size, or about that."""
        return self.size or self.about

    @property
    def key(self) -> str:
        """Its name among the files of all repositories."""
        return f"{self.repo}/{self.path}"

    @property
    def folder(self) -> Path:
        """The folder of its repository in the cache."""
        return cache_folder() / f"models--{self.repo.replace('/', '--')}"

    @property
    def local(self) -> Path:
        """Where it lies in the cache once it is there; its revision must be known."""
        assert self.revision, self.key
        return self.folder / "snapshots" / self.revision / self.path


@dataclass(kw_only=True, slots=True)
class Lock:
    """What was found out about a preset on this machine.

    Args:
        path: of the lock file.
        accepted: the licence statement that was accepted; empty for none.
        revisions: commit of each repository whose revision the preset leaves open.
        files: path -> (bytes, sha256) of each of those repositories, and of open pins elsewhere.
        checked: key of a file -> its stamp (inode, bytes, time, sha256) when it was hashed.
    """

    path: Path
    accepted: str = ""
    revisions: dict[str, str] = field(default_factory=dict)
    files: dict[str, dict[str, tuple[int, str]]] = field(default_factory=dict)
    checked: dict[str, list[Any]] = field(default_factory=dict)

    def save(self) -> None:
        """Write the lock file, whole or not at all.

        Raises:
            DownloadError: it cannot be written.
        """
        record = {
            "format": LOCK_FORMAT,
            "accepted": self.accepted,
            "revisions": self.revisions,
            "files": self.files,
            "checked": self.checked,
        }
        new = self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex[:8]}.part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            new.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            os.replace(new, self.path)
        except OSError as error:
            new.unlink(missing_ok=True)
            message = f"{self.path} cannot be written: {error.strerror}"
            raise DownloadError(message, "set HF_HOME to a folder that can be written") from None

    def is_checked(self, file: RemoteFile) -> bool:
        """Whether the file is there and still the one that was hashed."""
        return file.is_pinned and self.checked.get(file.key) == _stamp(file)

    def note_checked(self, file: RemoteFile) -> None:
        """Remember that the file was hashed and found right."""
        self.checked[file.key] = _stamp(file) or []


def _stamp(file: RemoteFile) -> list[Any] | None:
    """Return what changes when a file does; None when it is not there."""
    try:
        status = file.local.stat()
    except (OSError, ValueError):
        return None
    return [status.st_ino, status.st_size, status.st_mtime_ns, file.sha256]


def lock_folder(cache: Path) -> Path:
    """Return the folder of the lock files that belong to a cache."""
    return cache.parent / "streamdit"


def read_lock(name: str) -> Lock:
    """Read the lock file of a preset or of a repository; an empty one when there is none.

    Raises:
        DownloadError: it cannot be read, or is not as this program writes it.
    """
    path = lock_folder(cache_folder()) / f"{quote(name, safe='@')}.lock.json"
    lock = Lock(path=path)
    try:
        with open(path, "rb") as file:
            record = json.loads(file.read(_LARGEST_LOCK))
        if record["format"] != LOCK_FORMAT:
            raise ValueError(record["format"])
        lock.accepted = str(record["accepted"])
        lock.revisions = {repo: _hex(value, 40) for repo, value in record["revisions"].items()}
        for repo, files in record["files"].items():
            lock.files[repo] = {
                _plain(path): (int(size), _hex(sha256, 64))
                for path, (size, sha256) in files.items()
            }
        lock.checked = {key: list(stamp) for key, stamp in record["checked"].items()}
    except FileNotFoundError:
        pass
    except OSError as error:
        raise DownloadError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        hint = "delete it; the next pull writes a new one"
        raise DownloadError(f"{path} is not a lock file of streamdit", hint) from None
    return lock


def _hex(text: str, digits: int) -> str:
    if not re.fullmatch(rf"[0-9a-f]{{{digits}}}", text):
        raise ValueError(text)
    return text


def _plain(text: str) -> str:
    if not is_remote_path(text):
        raise ValueError(text)
    return text


def needed_files(preset: dict[str, Any], lock: Lock) -> list[RemoteFile]:
    """Return the files of a preset of open weights; what it leaves open is filled from the lock.

    The preset wins wherever it says something, so a newer preset replaces what was found out.
    """
    files = []
    for source in preset["weights"]["sources"]:
        repo = source["repo"]
        revision = source["revision"] or lock.revisions.get(repo, "")
        is_locked = lock.revisions.get(repo) == revision
        known = lock.files.get(repo, {}) if is_locked else {}
        for entry in source["files"]:
            file = RemoteFile(part=source["part"], repo=repo, revision=revision, **entry)
            files += _filled(file, known)
    return files


def _filled(file: RemoteFile, known: dict[str, tuple[int, str]]) -> Iterator[RemoteFile]:
    """Yield the file, or each file of a series, with size and hash where they are known."""
    if "*" not in file.path:
        size, sha256 = known.get(file.path, (0, ""))
        yield replace(file, size=file.size or size, sha256=file.sha256 or sha256)
        return
    shards = sorted(fnmatch.filter(known, file.path))
    for path in shards:
        size, sha256 = known[path]
        yield replace(file, path=path, size=size, sha256=sha256)
    if not shards:
        yield file


def parts_of(files: Sequence[RemoteFile]) -> dict[str, list[Path]]:
    """Return where the files of each part lie, in order, for whoever loads them."""
    parts: dict[str, list[Path]] = {}
    for file in files:
        parts.setdefault(file.part, []).append(file.local)
    return parts


def fault(path: Path, file: RemoteFile) -> str:
    """Return what is wrong with a file, in words; empty when its bytes are those of the pin.

    The size is compared before anything is hashed, and the hash before anything is parsed.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as data:
            if file.size and size != file.size:
                return f"{size} bytes instead of {file.size}{_guess(data.read(_SMALL))}"
            found = hashlib.file_digest(data, "sha256").hexdigest()
    except OSError as error:
        return str(error.strerror)
    if found == file.sha256:
        return ""
    return f"sha256 {found[:16]}... instead of {file.sha256[:16]}..."


def _guess(head: bytes) -> str:
    """Return what a file of the wrong size may be instead of weights."""
    if head.startswith(b"version https://git-lfs"):
        return ": a Git LFS pointer, uploaded in place of the weights"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return ": a web page, as a proxy or a login page sends it"
    return ""


def adopt(found: Path, file: RemoteFile) -> None:
    """Put a file of another tool's folder, whose hash is right, into the cache.

    It is linked where both lie on one file system, so it takes no room, and copied elsewhere.

    Raises:
        OSError: it cannot be written.
    """
    blob = file.folder / "blobs" / file.sha256
    blob.parent.mkdir(parents=True, exist_ok=True)
    new = blob.with_name(f"{blob.name}.{uuid.uuid4().hex[:8]}.incomplete")
    try:
        try:
            os.link(found.resolve(), new)
        except OSError:
            shutil.copyfile(found, new)
        os.replace(new, blob)
    finally:
        new.unlink(missing_ok=True)
    pointer = file.local
    pointer.parent.mkdir(parents=True, exist_ok=True)
    pointer.unlink(missing_ok=True)
    try:
        pointer.symlink_to(os.path.relpath(blob, pointer.parent))
    except OSError:  # a file system without symbolic links
        os.replace(blob, pointer)


def discard(file: RemoteFile) -> int:
    """Take a file out of the cache, with folders that become empty; return the bytes set free."""
    pointer = file.local
    freed = 0
    if pointer.is_symlink():
        blob = _target(pointer)
        pointer.unlink()
        links = [path for path in (file.folder / "snapshots").rglob("*") if path.is_symlink()]
        is_ours = blob.parent == Path(os.path.abspath(file.folder / "blobs"))
        if is_ours and blob not in map(_target, links):
            freed = blob.stat().st_size if blob.is_file() and not blob.is_symlink() else 0
            blob.unlink(missing_ok=True)
    elif pointer.is_file():
        freed = pointer.stat().st_size
        pointer.unlink()
    with contextlib.suppress(OSError):  # of the first folder that is not empty
        for folder in pointer.parents:
            if folder == file.folder:
                break
            folder.rmdir()
    return freed


def _target(link: Path) -> Path:
    """Return what a link names: one step, since a blob may itself be a link to a shared store."""
    return Path(os.path.abspath(link.parent / os.readlink(link)))


def unfinished(repos: set[str]) -> list[Path]:
    """Return what interrupted downloads of these repositories left in the cache."""
    folders = [cache_folder() / f"models--{repo.replace('/', '--')}" / "blobs" for repo in repos]
    return [path for folder in sorted(folders) for path in sorted(folder.glob("*.incomplete"))]
