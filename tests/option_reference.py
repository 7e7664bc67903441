"""Write docs/options.md from the commands themselves: `python tests/option_reference.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from streamdit_cli.app import COMMANDS, load_command

PAGE = Path(__file__).parents[1] / "docs" / "options.md"
HEAD = """# Every option

Written by `python tests/option_reference.py` from the commands themselves; a test holds it equal to
them. The `--help` of each command shows the same with colors and examples.
"""
SHARED = "Options"  # the heading of options without a panel of their own


def reference() -> str:
    """Return the page: each command with its arguments and options, by panel."""
    return "\n".join([HEAD, *(_command(name) for name in COMMANDS)])


def _command(name: str) -> str:
    command = load_command(name)
    shown = [param for param in command.params if not getattr(param, "hidden", False)]
    lines = [f"## streamdit {name}", "", _paragraphs(command.help or ""), ""]
    for panel in dict.fromkeys(_panel(param) for param in shown):
        lines += [f"| {panel} | |", "|---|---|"]
        lines += [_row(param) for param in shown if _panel(param) == panel]
        lines.append("")
    return "\n".join(lines)


def _panel(param: Any) -> str:
    if param.param_type_name == "argument":
        return "Arguments"
    return getattr(param, "rich_help_panel", None) or SHARED


def _row(param: Any) -> str:
    if param.param_type_name == "argument":
        words = param.metavar or param.human_readable_name.upper()
    else:
        words = ", ".join([*param.opts, *param.secondary_opts])
        if not param.is_flag:
            words += f" {param.metavar or _choices(param)}"
    notes = []
    if param.param_type_name == "option" and not param.is_flag and _has_default(param):
        notes.append(f"default {param.default}")
    if getattr(param, "envvar", None):
        notes.append(f"or `{param.envvar}`")
    rest = f" ({'; '.join(notes)})" if notes else ""
    return f"| `{_cell(words)}` | {_cell(_paragraphs(param.help or ''))}{rest} |"


def _choices(param: Any) -> str:
    """Return the words of a choice, or the name of the type."""
    annotation = param.type_descriptor.annotation
    choices = get_args(annotation)
    return "|".join(map(str, choices)) if choices else annotation.__name__.upper()


def _has_default(param: Any) -> bool:
    return param.show_default is not False and param.default not in (None, (), [])


def _paragraphs(text: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in text.strip().split("\n\n"))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
