"""What can go wrong in a download: each fault one line, with what to do about it.

Errors of the Hub's library and of its HTTP library are known here by the names of their classes,
so nothing has to be imported for them, and both of the HTTP libraries it has used are known.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

from streamdit_cli.errors import DownloadError

__all__ = ["NEWER", "disk_fault", "explained", "named_fault"]

NEWER = "a newer streamdit may have a new pin; --look-in DIR takes files you have"
LOG_IN = "hf auth login, or HF_TOKEN"


def explained(
    error: BaseException, repo: str, path: str, *, endpoint: str, again: str, folder: Path
) -> DownloadError | None:
    """Return an error of a download in one line; None for one that is not known.

    Args:
        error: as the Hub's library raised it.
        repo, path: what was asked for; no path for the repository itself.
        endpoint: the address of the Hub.
        again: the command to type again.
        folder: of the cache.
    """
    cause = error
    while _is_wrapper(cause) and cause.__cause__ is not None:
        cause = cause.__cause__
    what = f"{repo} {path}".rstrip()
    return _repository_fault(cause, what, repo, endpoint, again) or _network_fault(
        cause, what, endpoint, again, folder
    )


def named_fault(
    error: BaseException, repo: str, revision: str | None, *, endpoint: str
) -> DownloadError | None:
    """Return what is wrong with a name that a person typed; None for any other error.

    Args:
        error: as the Hub's library raised it.
        repo, revision: what was typed.
        endpoint: the address of the Hub.
    """
    names = _names(error)
    if "GatedRepoError" in names:  # exists; and is a kind of the next
        return None
    if "RepositoryNotFoundError" in names:
        return DownloadError(
            f"{repo} is not on {endpoint}, or is private, and there is no such folder here",
            f"a folder is written ./{repo}; for a private repository {LOG_IN}",
        )
    if "RevisionNotFoundError" in names:
        return DownloadError(
            f"{repo} has no revision {revision}", f"{endpoint}/{repo}/commits/main shows them"
        )
    return None


def _is_wrapper(error: BaseException) -> bool:
    """Whether the library wrapped the error that counts, since it looked for a local file too."""
    is_forced = isinstance(error, ValueError) and str(error).startswith("Force download failed")
    return is_forced or "LocalEntryNotFoundError" in _names(error)


def _names(error: BaseException) -> set[str]:
    """Return the names of the classes of an error."""
    return {kind.__name__ for kind in type(error).__mro__}


def _repository_fault(
    error: Any, what: str, repo: str, endpoint: str, again: str
) -> DownloadError | None:
    """Return what the Hub said about a repository; None when it said nothing."""
    names = _names(error)
    if "GatedRepoError" in names:  # before its base
        return DownloadError(
            f"{repo} asks for its terms to be accepted by a person who is logged in",
            f"accept them on {endpoint}/{repo}, then {LOG_IN}, then {again}",
        )
    if "RepositoryNotFoundError" in names:
        return DownloadError(
            f"{repo} is not on {endpoint}, or is private (HTTP {_status(error)})",
            f"for a private one {LOG_IN}; else a newer streamdit may know where it went",
        )
    if "RevisionNotFoundError" in names:
        return DownloadError(f"{repo} has not the pinned commit any more", NEWER)
    if "RemoteEntryNotFoundError" in names:
        return DownloadError(f"{what} is not in the repository at the pinned commit", NEWER)
    if "HfHubHTTPError" in names:
        return _http_fault(what, endpoint, _status(error), again)
    return None


def _status(error: Any) -> int:
    """Return the HTTP status of an error of the Hub's library."""
    return int(error.response.status_code)


def _http_fault(what: str, endpoint: str, status: int, again: str) -> DownloadError:
    """Return what an HTTP status means here."""
    if status == 429:
        return DownloadError(
            f"{endpoint} says that there were too many requests (HTTP 429)",
            f"wait some minutes, then {again}; HF_TOKEN raises the limit",
        )
    if status in (401, 403):
        return DownloadError(
            f"{endpoint} refuses access to {what} (HTTP {status})", f"{LOG_IN}, then {again}"
        )
    if status == 416:
        return DownloadError(
            f"{endpoint} cannot go on with {what} where the connection broke (HTTP 416)",
            f"{again} begins this file anew",
        )
    return DownloadError(f"{endpoint} failed for {what} (HTTP {status})", f"later: {again}")


def _network_fault(
    error: BaseException, what: str, endpoint: str, again: str, folder: Path
) -> DownloadError | None:
    """Return a fault below HTTP, of an answer without sense, or of the disk."""
    names = _names(error)
    if "TimeoutException" in names:
        return DownloadError(
            f"{endpoint} does not answer in time for {what}",
            f"{again}; HF_HUB_DOWNLOAD_TIMEOUT=60 waits longer",
        )
    if names & {"FileMetadataError", "LocalEntryNotFoundError"}:
        return DownloadError(
            f"{endpoint} does not answer as a Hub does for {what}: a proxy or a login page?",
            f"open {endpoint} in a browser, then {again}",
        )
    if "TransportError" in names or isinstance(error, ConnectionError):
        return DownloadError(
            f"the connection to {endpoint} failed for {what} ({type(error).__name__})",
            f"{again}; is the network up? HF_ENDPOINT names another Hub, HTTPS_PROXY a proxy",
        )
    if isinstance(error, OSError) and error.errno is not None:
        return disk_fault(error, folder)
    if isinstance(error, ValueError | RuntimeError):  # no JSON; or hf_xet, in its own words
        return DownloadError(
            f"{endpoint} gives no proper answer for {what} ({type(error).__name__})",
            f"{again}; is a proxy or a login page between? HF_HUB_DISABLE_XET=1 may help",
        )
    return None


def disk_fault(error: OSError, folder: Path) -> DownloadError:
    """Return what the disk did.

    Args:
        error: with its number.
        folder: of the cache.
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return DownloadError(
            f"the disk of {folder} is full: {error.strerror}",
            "make room, or set HF_HOME to a folder on a larger disk; whole files are kept",
        )
    return DownloadError(
        f"{error.filename or folder} cannot be used: {error.strerror}",
        "set HF_HOME to a folder that can be written",
    )
