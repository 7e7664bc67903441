"""Downloads from the Hub: pinned commits, named files, every hash checked, every fault one line.

Only what a preset names is fetched, by its commit, through huggingface_hub, which honours HF_HOME,
HF_TOKEN, HF_ENDPOINT and the rest. No pickle is ever fetched: a preset cannot name one. A pin that
a preset leaves open is looked up once, printed, and held to from then on by the lock file.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

from streamdit_cli import console
from streamdit_cli.cache import (
    RemoteFile,
    adopt,
    cache_folder,
    discard,
    fault,
    size_words,
    unfinished,
)
from streamdit_cli.catalogue import Survey, is_offline, pull_command, survey
from streamdit_cli.download_faults import disk_fault, explained, named_fault
from streamdit_cli.errors import DownloadError, InputError, Stopped, UsageError
from streamdit_cli.pins import named_paths, pin_of
from streamdit_cli.repository import CONFIG, check_model_files, is_repository, refreshed
from streamdit_cli.transfer import Transfer, bar_class

__all__ = ["pull"]

LEFT_ALONE = 3600.0  # seconds after which a file in the making has nobody who writes it
_LIBRARY = "streamdit"
_LARGEST_SMALL = 10 * 2**20  # bytes; the Hub keeps a sha256 of everything larger


def pull(
    preset: dict[str, Any],
    *,
    look_in: Path | None = None,
    offline: bool = False,
    accept_licence: bool = False,
) -> None:
    """Bring the files of a preset into the cache, and hash every one of them.

    Args:
        preset: of open weights.
        look_in: a folder of another tool; files with the right hash are taken from there.
        offline: make no connection.
        accept_licence: accept the statement of a preset that asks for it; remembered.

    Raises:
        UsageError: the licence was not accepted, or needs no acceptance.
        InputError: `look_in` is no folder.
        DownloadError: something is missing, wrong, refused, or does not fit on the disk.
    """
    name = preset["name"]
    found = survey(preset)
    _accept(preset, found, accept_licence)
    console.status(f"{name}: {found.size_text}, licence: {preset['licence']}")
    if look_in is not None and not look_in.is_dir():
        raise InputError(f"--look-in {look_in} is not a folder")
    forbidden = "--offline" if offline else "HF_HUB_OFFLINE" if is_offline() else ""
    if not forbidden and not all(file.is_pinned for file in found.files):
        _Hub(name).resolve(preset, found)
        preset = refreshed(preset)
        found = survey(preset)
    _verify(found, found.here)
    if look_in is not None:
        _take_from(look_in, found)
    found = survey(preset)
    if found.missing and forbidden:
        _refuse_offline(preset, found, forbidden)
    if found.missing:
        _check_disk(found)
        _Hub(name).download(found)
    _report_unfinished(found)
    console.summary(f"{name} is complete and verified: {found.size_text} in {cache_folder()}")


def _accept(preset: dict[str, Any], found: Survey, accepted: bool) -> None:
    """Hold a preset with unclear terms until they were accepted once."""
    name, terms = preset["name"], preset.get("accept_licence")
    if terms is None:
        if accepted:
            raise UsageError(f"--accept-license has no effect on {name}: {preset['licence']}")
        return
    if found.lock.accepted == terms:
        return
    if not accepted:
        raise UsageError(
            f"{name} asks for its licence to be accepted: {terms}",
            f"streamdit models pull {name} --accept-license",
        )
    found.lock.accepted = terms
    found.lock.save()


def _refuse_offline(preset: dict[str, Any], found: Survey, forbidden: str) -> None:
    """Say what is missing and what to type where connections are allowed."""
    name = preset["name"]
    left = sum(file.bytes for file in found.missing)
    words = f"{len(found.missing)} files, {size_words(left)}" if left else "its files"
    raise DownloadError(
        f"{name} is not complete: {words} are missing, and {forbidden} allows no connection",
        pull_command(name),
    )


def _verify(found: Survey, files: list[RemoteFile]) -> None:
    """Hash files that are here; a wrong one is taken out of the cache."""
    for file in files:
        console.status(f"checking {file.path}, {size_words(file.size)}")
        if wrong := fault(file.local, file):
            console.warn(f"{file.local} is not what it must be: {wrong}; it is removed")
            discard(file)
        else:
            found.lock.note_checked(file)
    if files:
        found.lock.save()


def _take_from(folder: Path, found: Survey) -> None:
    """Take missing files from another tool's folder; sizes are compared, then hashes, no names."""
    wanted = {(file.size, file.sha256): file for file in found.missing if file.is_pinned}
    sizes = {size for size, _ in wanted}
    taken = 0
    for parent, _, names in os.walk(folder):
        for path in sorted(Path(parent) / name for name in names):
            size = path.stat().st_size if path.is_file() else -1
            if size not in sizes:
                continue
            console.status(f"checking {path}, {size_words(size)}")
            for file in [file for key, file in wanted.items() if key[0] == size]:
                if not fault(path, file):
                    _adopt(path, file)
                    found.lock.note_checked(file)
                    found.lock.save()
                    del wanted[size, file.sha256]
                    taken += 1
    console.status(f"{taken} files taken from {folder}")


def _adopt(path: Path, file: RemoteFile) -> None:
    """Put one file into the cache."""
    console.status(f"{path} is {file.repo} {file.path}")
    try:
        adopt(path, file)
    except OSError as error:
        raise disk_fault(error, cache_folder()) from None


def _check_disk(found: Survey) -> None:
    """Refuse a download that does not fit, before it begins."""
    needed = sum(file.bytes for file in found.missing)
    folder = cache_folder()
    place = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(place).free
    words = f"{size_words(needed)} in {len(found.missing)} files"
    if needed > free:
        raise DownloadError(
            f"{words} do not fit on the disk of {folder}: {size_words(free)} are free",
            "make room, or set HF_HOME to a folder on a larger disk",
        )
    console.status(f"fetching {words}; {size_words(free)} are free in {folder}")


def _report_unfinished(found: Survey) -> None:
    """Remove what earlier downloads left when they were interrupted long ago."""
    old = time.time() - LEFT_ALONE
    for path in unfinished({file.repo for file in found.files}):
        try:
            status = path.stat()
            if status.st_mtime < old:
                path.unlink()
                console.status(f"removed {size_words(status.st_size)} of an interrupted download")
        except OSError:
            continue


class _Notes(logging.Handler):
    """Says in one line that a connection was interrupted; the rest of the library is for -v."""

    def emit(self, record: logging.LogRecord) -> None:
        """Say one record."""
        message = record.getMessage()
        if message.startswith("Error while downloading") and "Max retries" not in message:
            console.status("the connection broke; going on where it ended")
        else:
            console.detail(message.splitlines()[0] if message else "")


class _Hub:
    """The Hub's library, imported when something has to be fetched.

    Args:
        name: of the preset, for hints.
    """

    def __init__(self, name: str) -> None:
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        import huggingface_hub

        self._name = name
        self._library = huggingface_hub
        self._version = importlib.metadata.version(_LIBRARY)
        self._fetch_file = huggingface_hub.hf_hub_download  # loads it, and its logging with it
        logger = logging.getLogger("huggingface_hub")
        logger.handlers = [_Notes()]
        logger.propagate = False

    def resolve(self, preset: dict[str, Any], found: Survey) -> None:
        """Look up what a preset leaves open, say it, and write it into the lock file.

        Raises:
            DownloadError: the Hub does not have it, or cannot be asked.
        """
        api = self._library.HfApi(library_name=_LIBRARY, library_version=self._version)
        console.status(f"looking up the pins left open: {preset['weights']['reason']}")
        timeout = float(self._library.constants.HF_HUB_DOWNLOAD_TIMEOUT)
        for repo in dict.fromkeys(file.repo for file in found.files if not file.is_pinned):
            files = [file for file in found.files if file.repo == repo]
            pinned = files[0].revision
            revision = pinned or preset["weights"].get("asked") or None
            try:
                info = api.model_info(repo, revision=revision, files_metadata=True, timeout=timeout)
            except Exception as error:  # translated, or raised again as it is
                endpoint = self._library.constants.ENDPOINT
                typed = is_repository(preset) and named_fault(
                    error, repo, revision, endpoint=endpoint
                )
                raise typed or self._explained(error, repo) from None
            commit = str(info.sha)
            entries = {entry.rfilename: entry for entry in info.siblings or []}
            if not re.fullmatch(r"[0-9a-f]{40}", commit) or pinned not in ("", commit):
                raise DownloadError(f"{repo} answers with the commit {commit!r}, not {pinned}")
            if is_repository(preset):
                known = self._pin_model(repo, commit, info, entries)
            else:
                known = {
                    path: pin_of(repo, path, entries[path], file)
                    for file in files
                    for path in named_paths(file, list(entries))
                }
            console.status(f"{repo} is at commit {commit}; recorded, and held to from now on")
            for path, (size, sha256) in known.items():
                console.status(f"  {path}: {size} bytes, sha256 {sha256}")
            found.lock.revisions[repo] = commit
            found.lock.files[repo] = known
        found.lock.save()

    def _pin_model(
        self, repo: str, commit: str, info: Any, entries: dict[str, Any]
    ) -> dict[str, tuple[int, str]]:
        """Return size and hash of every file of a model of our layout; it is checked first.

        The Hub knows no sha256 of small files: they are fetched, and compared with the hash that
        git has of them.

        Raises:
            DownloadError: it is no such model, or a file is not as the Hub says.
            WeightsError: its configuration does not fit.
        """
        from streamdit_model.weights import read_config

        licence = getattr(info.card_data, "license", None) or "its card names none"
        console.status(f"{repo} at {commit}, licence: {licence}")
        known = {}
        for path in check_model_files(repo, entries):
            entry = entries[path]
            file = RemoteFile(
                part="model", repo=repo, revision=commit, path=path, size=0, sha256=""
            )
            if entry.lfs is not None:
                known[path] = pin_of(repo, path, entry, file)
                continue
            if not 0 < int(entry.size or 0) <= _LARGEST_SMALL:
                raise DownloadError(f"{repo} {path} has {entry.size} bytes and no sha256")
            known[path] = self._pin_small(file, int(entry.size), str(entry.blob_id))
            if path == CONFIG:
                read_config(file.local.parent)
        return known

    def _pin_small(self, file: RemoteFile, size: int, blob: str) -> tuple[int, str]:
        """Fetch a small file; return its size and sha256 if git's hash of it is the Hub's."""
        transfer = Transfer(size)
        try:
            wrong = self._fetch_once(file, transfer, anew=False)
        finally:
            transfer.close()
        if wrong:
            raise DownloadError(f"{file.repo} {file.path} arrived wrong: {wrong}")
        data = file.local.read_bytes()
        if hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() != blob:
            discard(file)
            raise DownloadError(f"{file.repo} {file.path} is not the file that the Hub describes")
        return len(data), hashlib.sha256(data).hexdigest()

    def download(self, found: Survey) -> None:
        """Fetch what is missing, file by file, and hash each; a wrong one is fetched once more.

        Raises:
            DownloadError: the Hub, the network or the disk does not give it, or the bytes are
                wrong twice.
        """
        transfer = Transfer(sum(file.size for file in found.missing))
        try:
            for file in found.missing:
                console.status(f"{file.repo} {file.path}, {size_words(file.size)}")
                wrong = self._fetch(file, transfer)
                if wrong:
                    console.warn(f"{file.path} arrived wrong ({wrong}); once more")
                    wrong = self._fetch(file, transfer, anew=True)
                if wrong:
                    raise DownloadError(
                        f"{file.repo} {file.path} arrived wrong twice: {wrong}",
                        "nothing of it was kept; is there a proxy between, or a wrong HF_ENDPOINT?",
                    )
                found.lock.note_checked(file)
                found.lock.save()
        except KeyboardInterrupt:
            raise Stopped(
                signal.SIGINT,
                "stopped; the files that were complete are kept",
                f"go on with streamdit models pull {self._name}",
            ) from None
        finally:
            transfer.close()

    def _fetch(self, file: RemoteFile, transfer: Transfer, *, anew: bool = False) -> str:
        """Fetch one file; return what is wrong with it, or nothing. A wrong one is removed.

        Args:
            file: what to fetch.
            transfer: counts its bytes.
            anew: take it from nowhere but the network.
        """
        before = transfer.done
        wrong = self._fetch_once(file, transfer, anew=anew) or fault(file.local, file)
        if wrong:
            discard(file)
            transfer.add(before - transfer.done)
        return wrong

    def _fetch_once(self, file: RemoteFile, transfer: Transfer, *, anew: bool) -> str:
        """Bring one file into the cache; return what the library finds wrong with its length."""
        try:
            self._fetch_file(
                file.repo,
                file.path,
                revision=file.revision,
                cache_dir=cache_folder(),
                force_download=anew,
                tqdm_class=bar_class(transfer),
                library_name=_LIBRARY,
                library_version=self._version,
            )
        except OSError as error:
            if "Consistency check failed" not in str(error):
                raise self._explained(error, file.repo, file.path) from None
            return "its length is not the one the server names"
        except Exception as error:
            raise self._explained(error, file.repo, file.path) from None
        return ""

    def _explained(self, error: Exception, repo: str, path: str = "") -> Exception:
        """Return the error in one line with what to do; an unknown one as it is."""
        endpoint = self._library.constants.ENDPOINT
        again = f"streamdit models pull {self._name}"
        told = explained(error, repo, path, endpoint=endpoint, again=again, folder=cache_folder())
        return told or error
