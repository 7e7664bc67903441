"""Faults at file operations: fail or die at the n-th one of a save."""

import builtins
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import streamdit_model.storage as storage

SITES: list[tuple[Any, str]] = [
    (os, "mkdir"),
    (os, "rename"),
    (os, "replace"),
    (os, "fsync"),
    (os, "open"),
    (os, "chmod"),
    (builtins, "open"),
    (shutil, "rmtree"),
    (storage, "save_file"),
]


@contextmanager
def file_operations(on_call: Callable[[int, str, tuple[Any, ...]], None]) -> Iterator[None]:
    """Call `on_call(number, name, arguments)` before every file operation; numbers begin at 1."""
    number = 0

    def watched(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal number
            number += 1
            on_call(number, name, arguments)
            return original(*arguments, **named)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in SITES:
            patch.setattr(owner, name, watched(name, getattr(owner, name)))
        yield


def count_file_operations(action: Callable[[], object]) -> list[str]:
    """Return the names of the file operations of an action, in order."""
    names: list[str] = []
    with file_operations(lambda number, name, arguments: names.append(name)):
        action()
    return names


def fail_from(first: int, *, once: bool) -> Callable[[int, str, tuple[Any, ...]], None]:
    """Return a fault that reports a full disk at operation `first`, or from there on."""

    def fault(number: int, name: str, arguments: tuple[Any, ...]) -> None:
        if number == first or (number > first and not once):
            _tear(name, arguments)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return fault


def die_at(last: int) -> Callable[[int, str, tuple[Any, ...]], None]:
    """Return a fault that ends the process at operation `last`, with torn files left behind."""

    def fault(number: int, name: str, arguments: tuple[Any, ...]) -> None:
        if number == last:
            _tear(name, arguments)
            os._exit(77)

    return fault


def in_child(action: Callable[[], object]) -> int:
    """Run an action in a forked process and return its exit status; 70 when it raised."""
    child = os.fork()
    if child == 0:
        status = 70
        with suppress(BaseException):
            action()
            status = 0
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def flip_bit(path: Path, bit: int) -> None:
    """Flip one bit of a file."""
    raw = bytearray(path.read_bytes())
    raw[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(raw)


def _tear(name: str, arguments: tuple[Any, ...]) -> None:
    """Leave what a crash may leave: half of a file that was not flushed yet."""
    if name == "fsync":
        with suppress(OSError):
            os.ftruncate(arguments[0], os.fstat(arguments[0]).st_size // 2)
    if name == "save_file":
        Path(arguments[1]).write_bytes(b"\x40\0\0\0\0\0\0\0{half a header")
