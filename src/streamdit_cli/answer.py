"""The answer of a command that makes no video: a table for people, or JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from streamdit_cli import console
from streamdit_cli.errors import OutputError

__all__ = ["print_answer"]


def print_answer(
    title: str,
    record: Mapping[str, object],
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    json_path: str | None,
    overwrite: bool,
) -> None:
    """Print the table on standard output, or write the record where `--json` says.

    Args:
        title: one line above the table.
        record: the same for programs.
        columns: headings; all empty for a table without.
        rows: as many cells a row as there are columns.
        json_path: None for the table, `-` for standard output, or a new file.
        overwrite: replace an existing file.

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
