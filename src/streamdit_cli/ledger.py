"""What became of each video of a batch: `batch.jsonl` in its folder, a line each time.

A line is appended and forced to the disk at once, so that a kill loses at most a line that was not
finished, which the next run cuts off. Each shard has a file of its own that one process holds, and
reads those of all others. This file knows keys and names, never prompts or frames.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamdit_cli.errors import InputError, OutputError
from streamdit_cli.part import hold

__all__ = ["Entry", "Ledger", "ledger_name", "read_ledgers"]

FORMAT = "streamdit-batch-1"
LARGEST_LEDGER = 512 * 2**20  # bytes
STATES = ("begun", "done", "stopped", "failed")
_LONGEST_LINE = 65_536  # bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """The last that is known of an item.

    Args:
        state: `begun` (a run was killed), `done`, `stopped` by a signal, or `failed`.
        name: of its file in the folder.
        size: bytes of the file, 0 where there is none or none was ended.
        error: why it failed.
        when: seconds since 1970.
    """

    state: str
    name: str
    size: int = 0
    error: str = ""
    when: float = 0.0


def ledger_name(shard: tuple[int, int]) -> str:
    """Return the file name of a shard's ledger, (1, 1) being all of a batch."""
    number, count = shard
    return "batch.jsonl" if count == 1 else f"batch-{number}-of-{count}.jsonl"


def read_ledgers(folder: Path) -> dict[str, Entry]:
    """Return the last entry of each item, from the ledgers of all shards.

    Lines that are no entries (a torn one of a killed run, or a newer format) are passed over.

    Args:
        folder: of the batch; it may not exist.

    Raises:
        InputError: a ledger that cannot be read, or is larger than 512 MiB.
    """
    entries: dict[str, Entry] = {}
    for path in sorted(folder.glob("batch*.jsonl")):
        try:
            if path.stat().st_size > LARGEST_LEDGER:
                raise InputError(f"{path} is larger than {LARGEST_LEDGER} bytes")
            with open(path, "rb") as file:
                while line := file.readline(_LONGEST_LINE):
                    key, entry = _entry(line)
                    if entry is not None and (
                        key not in entries or entries[key].when <= entry.when
                    ):
                        entries[key] = entry
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from error
    return entries


def _entry(line: bytes) -> tuple[str, Entry | None]:
    """Return the key and entry of a line; None for a line that is none."""
    try:
        said = json.loads(line)
        entry = Entry(
            state=said["record"],
            name=said["name"],
            size=said.get("bytes", 0),
            error=said.get("error", ""),
            when=float(said["when"]),
        )
        key = said["item"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "", None
    is_whole = (
        entry.state in STATES
        and all(isinstance(text, str) for text in (key, entry.name, entry.error))
        and type(entry.size) is int
        and entry.name == os.path.basename(entry.name) != ""
    )
    return key, entry if is_whole else None


class Ledger:
    """The ledger of one shard, held by this process alone; a context manager.

    Args:
        folder: of the batch; exists.
        shard: (number from 1, count).

    Raises:
        OutputError: another process holds it, or it cannot be written.
    """

    def __init__(self, folder: Path, shard: tuple[int, int]) -> None:
        self.path = folder / ledger_name(shard)
        try:
            self._descriptor = os.open(
                self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o666
            )
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written: {error.strerror}") from error
        try:
            hint = "wait for it, or give each run a share: --shard 1/2"
            hold(self._descriptor, self.path, hint=hint)
            self._begin()
        except BaseException:
            self.close()
            raise

    def write(self, record: str, key: str, name: str, more: Mapping[str, Any]) -> None:
        """Append what became of an item; it is on the disk when this returns.

        Raises:
            OutputError: the disk is full or the device failed.
        """
        said = {"record": record, "item": key, "name": name, **more, "when": time.time()}
        self._append(said)

    def close(self) -> None:
        """Let go of it; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self) -> None:
        """Cut off a line that a killed run did not finish; say in a new file what it is."""
        try:
            size = os.lseek(self._descriptor, 0, os.SEEK_END)
            start = max(0, size - _LONGEST_LINE)
            os.lseek(self._descriptor, start, os.SEEK_SET)
            end = os.read(self._descriptor, _LONGEST_LINE)
            if end and not end.endswith(b"\n"):
                os.ftruncate(self._descriptor, start + end.rfind(b"\n") + 1)
        except OSError as error:
            raise OutputError(f"{self.path}: {error.strerror}") from error
        if size == 0:
            self._append({"record": "ledger", "format": FORMAT})

    def _append(self, said: Mapping[str, Any]) -> None:
        line = json.dumps(said).encode() + b"\n"
        size = os.fstat(self._descriptor).st_size
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
            os.fsync(self._descriptor)
        except OSError as error:
            os.ftruncate(self._descriptor, size)  # half a line is none
            hint = "make room; the same command goes on"
            raise OutputError(f"{self.path}: {error.strerror}", hint) from error
