"""Words from the command line, a file or standard input: checked, one prompt each.

A prompt file is UTF-8 text with one prompt a line; blank lines and lines that begin with `#` are
skipped. Prompts of one video share its length equally.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from streamdit_cli.errors import InputError, TerminalError, UsageError

__all__ = ["check_prompt", "equal_parts", "read_prompt_file", "read_prompts"]

LONGEST_PROMPT = 8 * 1024  # bytes
LARGEST_FILE = 10 * 1024 * 1024  # bytes
MOST_LINES = 100_000


def read_prompts(words: Sequence[str] | None, *, no_prompt: bool = False) -> list[str]:
    """Turn `-p` options into prompts.

    Args:
        words: each a prompt, `@FILE`, or `-` for standard input (once).
        no_prompt: no words are wanted.

    Returns:
        Prompts in order; empty with `no_prompt`.

    Raises:
        UsageError: no prompt, an empty one, both forms at once, or characters no prompt can have.
        InputError: a file that cannot be read or holds no prompt.
    """
    if no_prompt:
        if words:
            raise UsageError("-p and --no-prompt exclude each other")
        return []
    if not words:
        hint = 'say what to see: -p "a red star bouncing"; or --no-prompt'
        raise UsageError("there is no prompt", hint)
    if list(words).count("-") > 1:
        raise UsageError("standard input can be read once: one -p - is allowed")
    prompts: list[str] = []
    for word in words:
        if word == "-":
            prompts += _read_lines(sys.stdin.buffer if sys.stdin else None, "standard input")
        elif word.startswith("@"):
            prompts += read_prompt_file(Path(word[1:]))
        else:
            prompts.append(check_prompt(word, UsageError, "the prompt"))
    return prompts


def read_prompt_file(path: Path) -> list[str]:
    """Read a prompt file.

    Raises:
        InputError: it cannot be read, is too large, is not UTF-8 text, or holds no prompt.
    """
    try:
        with open(path, "rb") as file:
            return _read_lines(file, str(path))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"prompt file {path} cannot be read: {reason}") from error


def _read_lines(file: BinaryIO | None, name: str) -> list[str]:
    """Read prompts from an open file, one a line."""
    data = b"" if file is None else file.read(LARGEST_FILE + 1)
    if len(data) > LARGEST_FILE:
        raise InputError(f"{name} is larger than {LARGEST_FILE} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(f"{name} line {line} is not UTF-8 text") from None
    lines = text.replace("\r\n", "\n").split("\n")
    if len(lines) > MOST_LINES:
        raise InputError(f"{name} has more than {MOST_LINES} lines")
    prompts = [
        check_prompt(line, InputError, f"{name} line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not prompts:
        raise InputError(f"{name} holds no prompt", "one prompt a line; # begins a comment")
    return prompts


def check_prompt(text: str, kind: type[TerminalError], where: str) -> str:
    """Return a prompt without blanks around it, or refuse it.

    Args:
        text: the words.
        kind: the error to raise, which decides the exit code.
        where: what the message calls it.

    Raises:
        UsageError: or `kind`; it is empty, too long, not Unicode, or has control characters.
    """
    prompt = text.strip()
    if not prompt:
        raise kind(f"{where} is empty", "say what to see, or take --no-prompt")
    try:
        size = len(prompt.encode())
    except UnicodeEncodeError:
        raise kind(f"{where} is not UTF-8 text") from None
    if size > LONGEST_PROMPT:
        raise kind(f"{where} has {size} bytes; at most {LONGEST_PROMPT} are allowed")
    controls = [
        sign for sign in prompt if (ord(sign) < 32 and sign not in "\t\n\r") or sign == "\x7f"
    ]
    if controls:
        raise kind(f"{where} has the control character 0x{ord(controls[0]):02x}")
    return prompt


def equal_parts(prompts: Sequence[str], seconds: float) -> list[tuple[str, float]]:
    """Give each prompt its start, so that all have the same share of the length.

    Args:
        prompts: at least one.
        seconds: length of the video; infinite only with one prompt.

    Returns:
        Prompts with the second at which each begins.

    Raises:
        UsageError: several prompts in a stream without end.
    """
    if len(prompts) > 1 and seconds == float("inf"):
        message = f"{len(prompts)} prompts cannot share a stream without end"
        raise UsageError(message, "give a length: --seconds 60")
    return [
        (prompt, 0.0 if index == 0 else seconds * index / len(prompts))
        for index, prompt in enumerate(prompts)
    ]
