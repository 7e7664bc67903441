"""A file in the making: `out.mp4` grows as `out.part.mp4` and gets its name at the end.

One process holds a part file: it is created exclusively and, where the platform can, locked. It is
never written over an existing file unless that was asked for, and then only when it is complete.
After a kill it stays, and the next run names it. This file knows names and locks, never frames.
"""

from __future__ import annotations

import errno
import glob
import os
import time
from collections.abc import Callable
from pathlib import Path

from streamdit_cli.errors import OutputError

__all__ = [
    "PartFile",
    "check_free",
    "hold",
    "part_path",
    "remove_leftover",
    "remove_state",
    "require_unused",
    "state_path",
]

# Another process may look at a fresh part file for a moment; it lets go at once.
LOCK_SECONDS = 1.0


def part_path(final: Path) -> Path:
    """The name a file has while it grows: `out.mp4` is `out.part.mp4`."""
    return final.with_name(f"{final.stem}.part{final.suffix}")


def state_path(part: Path) -> Path:
    """Where the state of the stream lies from which a part file can be gone on with."""
    return part.with_name(f"{part.name}.state")


def remove_state(part: Path) -> None:
    """Remove the state beside a part file, also one that a killed process did not finish."""
    state = state_path(part)
    for path in (state, *state.parent.glob(f"{glob.escape(state.name)}.partial-*")):
        path.unlink(missing_ok=True)


class PartFile:
    """A file of this process alone, renamed by `finish`.

    Args:
        final: the name it will have.
        overwrite: replace an existing file at the end, and an unfinished one now.
        describe: says what an unfinished file of an earlier run holds, e.g. "12.0 s of video".
        path: the name while it grows; None is `part_path`.

    Raises:
        OutputError: the name is taken, another process writes it, or it cannot be created.
    """

    def __init__(
        self,
        final: Path,
        *,
        overwrite: bool,
        describe: Callable[[Path], str],
        path: Path | None = None,
    ) -> None:
        self.final = final
        self.path = path or part_path(final)
        self.replaced = ""
        self._overwrite = overwrite
        check_free(final, overwrite=overwrite, describe=describe, part=self.path)
        self._descriptor = self._create(describe)
        remove_state(self.path)  # of an earlier file of this name

    def _create(self, describe: Callable[[Path], str]) -> int:
        """Create and lock the part file, after removing an unfinished one where that is allowed."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        try:
            if self._overwrite and os.path.lexists(self.path):
                self.replaced = f"{self.path}, {describe(self.path)}"
                remove_leftover(self.path)
            descriptor = os.open(self.path, flags, 0o666)
        except FileExistsError:
            raise _taken(self.path, describe) from None
        except OSError as error:
            raise _cannot(self.path, error) from error
        give_up = time.monotonic() + LOCK_SECONDS
        while not _lock(descriptor):
            if time.monotonic() > give_up:
                os.close(descriptor)
                raise _in_use(self.path)
            time.sleep(0.02)
        return descriptor

    def write(self, data: bytes) -> int:
        """Write all of it at the current place; OSError when the disk is full."""
        rest = memoryview(data).cast("B")
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]
        return len(data)

    def read(self, size: int) -> bytes:
        """Read at most this many bytes at the current place."""
        return os.read(self._descriptor, size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the current place."""
        return os.lseek(self._descriptor, offset, whence)

    def tell(self) -> int:
        """The current place, in bytes."""
        return os.lseek(self._descriptor, 0, os.SEEK_CUR)

    def truncate(self, size: int) -> None:
        """Cut the file after this many bytes."""
        os.ftruncate(self._descriptor, size)

    def finish(self) -> Path:
        """Give the file its name.

        Choice: nothing is forced to the disk here, since that takes long on a busy one and a signal
        must end a run within two seconds.

        Returns:
            The final path.

        Raises:
            OutputError: the name was taken meanwhile; the part file stays.
        """
        self._check_ours()
        try:
            if os.name == "nt":  # an open file has no other name there
                self.keep()
            if self._overwrite:
                os.replace(self.path, self.final)
            else:
                _rename_new(self.path, self.final)
        except FileExistsError:
            message = f"{self.final} was made by someone else meanwhile; this one is {self.path}"
            raise OutputError(message) from None
        except OSError as error:
            reason = error.strerror
            message = f"{self.path} is complete but cannot be named {self.final}: {reason}"
            raise OutputError(message) from error
        finally:
            self.keep()
        return self.final

    def keep(self) -> None:
        """Leave the part file as it is and let go of it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def discard(self) -> None:
        """Remove the part file: it holds nothing."""
        if self._descriptor >= 0:
            if self._is_ours():
                self.path.unlink()
            self.keep()

    def _is_ours(self) -> bool:
        """Whether the name still means the file that this process writes."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._descriptor))
        except FileNotFoundError:
            return False

    def _check_ours(self) -> None:
        if not self._is_ours():
            raise OutputError(f"{self.path} was removed or replaced by another process")


def check_free(
    final: Path, *, overwrite: bool, describe: Callable[[Path], str], part: Path | None = None
) -> None:
    """Check that a file of this name can be begun, without creating anything.

    Args:
        final, overwrite, describe: as in `PartFile`.
        part: the name while it grows; None is `part_path`.

    Raises:
        OutputError: a folder, an existing or unfinished file, or a missing folder above it.
    """
    part = part or part_path(final)
    if final.is_dir():
        raise OutputError(f"{final} is a folder, not a file name")
    if not final.parent.is_dir():
        hint = f"make it first: mkdir -p {final.parent}"
        raise OutputError(f"the folder {final.parent} does not exist", hint=hint)
    if os.path.lexists(final) and not overwrite:
        raise OutputError(f"{final} exists", hint="another name with -o, or replace it with -y")
    if os.path.lexists(part) and not overwrite:
        raise _taken(part, describe)
    if not os.access(final.parent, os.W_OK):
        raise OutputError(f"the folder {final.parent} cannot be written to")


def hold(descriptor: int, path: Path, *, hint: str) -> None:
    """Lock an open file for this process, until it is closed.

    Raises:
        OutputError: another process holds it.
    """
    if not _lock(descriptor):
        raise OutputError(str(_in_use(path)), hint)


def require_unused(part: Path) -> None:
    """Refuse an unfinished file that another process writes.

    Raises:
        OutputError: one does, or the file cannot be opened.
    """
    try:
        descriptor = os.open(part, os.O_RDWR)
    except OSError as error:
        raise _cannot(part, error) from error
    try:
        if not _lock(descriptor):
            raise _in_use(part)
    finally:
        os.close(descriptor)


def remove_leftover(part: Path) -> None:
    """Remove an unfinished file that no process holds.

    Raises:
        OutputError: another process writes it.
    """
    try:
        descriptor = os.open(part, os.O_RDWR)
    except FileNotFoundError:
        return
    try:
        if not _lock(descriptor):
            raise _in_use(part)
        if os.path.samestat(os.stat(part), os.fstat(descriptor)):
            part.unlink()
    except FileNotFoundError:
        return
    finally:
        os.close(descriptor)


def _taken(part: Path, describe: Callable[[Path], str]) -> OutputError:
    """Say who holds a part file that exists: a running process, or a run that was killed."""
    try:
        descriptor = os.open(part, os.O_RDWR)
    except OSError as error:
        return _cannot(part, error)
    try:
        is_leftover = _lock(descriptor)
    finally:
        os.close(descriptor)
    if not is_leftover:
        return _in_use(part)
    message = f"{part} is left from a run that did not end: {describe(part)}"
    if state_path(part).exists():
        return OutputError(message, hint="go on with it: --continue; or replace it with -y")
    return OutputError(message, hint="rename it to keep it, or replace it with -y")


def _in_use(part: Path) -> OutputError:
    holder = _holder(part)
    process = "another process" if holder is None else f"process {holder}"
    return OutputError(f"{part} is being written by {process}", hint="another name with -o")


def _cannot(path: Path, error: OSError) -> OutputError:
    return OutputError(f"{path} cannot be written: {error.strerror}")


def _lock(descriptor: int) -> bool:
    """Take the lock of a file; False when another process has it, True where there are no locks."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True


def _holder(path: Path) -> int | None:
    """The number of the process that holds a file's lock, where the system tells (Linux)."""
    try:
        inode = os.stat(path).st_ino
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return None
    for fields in map(str.split, lines):
        # e.g. "1: FLOCK  ADVISORY  WRITE 4242 08:01:1234567 0 EOF"
        if len(fields) > 5 and fields[1] == "FLOCK" and fields[5].split(":")[-1] == str(inode):
            return int(fields[4]) if int(fields[4]) > 0 else None
    return None


def _rename_new(part: Path, final: Path) -> None:
    """Rename without ever replacing: a second name first, then the old one goes.

    Raises:
        FileExistsError: the final name is taken.
    """
    try:
        os.link(part, final)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if os.path.lexists(final):
            raise FileExistsError(final) from None
        os.rename(part, final)
    else:
        os.unlink(part)
