"""What a command that makes no video was asked for: a table, or a record for programs."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from streamdit_cli import console
from streamdit_cli.errors import OutputError

__all__ = ["answer", "check_answer"]


def answer(
    title: str,
    record: object,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    json_path: str | None,
    *,
    overwrite: bool,
) -> None:
    """Print the table, or write the record where `--json` says.

    Args:
        title, columns, rows: of the table, as `console.table` takes them.
        record: the same for programs, of what JSON can hold.
        json_path: None for the table, `-` for standard output, or a file.
        overwrite: replace the file if there is one.

    Raises:
        OutputError: the file exists or cannot be written.
    """
    if json_path is None:
        console.table(title, columns, rows)
        return
    text = json.dumps(record, indent=2).replace("\x7f", "\\u007f")
    if json_path == "-":
        console.result(text)
        return
    try:
        with open(json_path, "w" if overwrite else "x", encoding="utf-8") as file:
            file.write(text + "\n")
    except FileExistsError:
        raise OutputError(f"{json_path} exists", "another name, or replace it with -y") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{json_path} cannot be written: {reason}") from None


def check_answer(json_path: str | None, *, overwrite: bool) -> None:
    """Refuse a file that cannot be written, before the work whose result it is to hold.

    Args:
        json_path, overwrite: as in `answer`.

    Raises:
        OutputError: the file exists or cannot be written.
    """
    if json_path in (None, "-"):
        return
    path = Path(json_path or "")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise OutputError(f"--json {path} cannot be written", "choose another file")
    if path.exists() and not overwrite:
        raise OutputError(f"--json {path} exists", "another name, or replace it with -y")
