"""What a command that makes no video was asked for: a table, or a record for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence

from streamdit_cli import console
from streamdit_cli.errors import OutputError

__all__ = ["answer"]


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
