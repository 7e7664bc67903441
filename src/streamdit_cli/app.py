"""The Typer app: commands by name, global options, and the one place that makes exit codes.

A command lives in the module of its name, which holds a function of that name (its docstring is the
help) and `EXAMPLES`, two or three command lines. The module is imported when the command is run or
asked for its own help, so `streamdit --help` needs neither torch nor any command module. `main` is
the only `except` that catches everything.
"""

from __future__ import annotations

import importlib
import platform
from collections.abc import Sequence
from enum import IntEnum
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from streamdit_cli.errors import (
    DownloadError,
    InputError,
    MissingWeights,
    OutputError,
    Stopped,
    TerminalError,
    UsageError,
    is_out_of_memory,
)
from streamdit_model.errors import (
    ConfigError,
    DeviceError,
    NumericsError,
    StreamDiTError,
    WeightsError,
)

__all__ = ["COMMANDS", "ExitCode", "app", "main"]


class ExitCode(IntEnum):
    """What a shell learns from a run; stable, documented and tested."""

    OK = 0
    UNEXPECTED = 1
    USAGE = 2
    PARTIAL = 3
    INPUT = 4
    WEIGHTS = 5
    OUTPUT = 6
    DEVICE = 7
    NUMERICS = 8
    HANGUP = 129
    INTERRUPTED = 130
    PIPE_CLOSED = 141
    TERMINATED = 143


# Name -> first line of the help; a test holds it equal to the docstring of the function.
COMMANDS: dict[str, str] = {
    "generate": "Make a video, or an endless stream, from words.",
    "v2v": "Change a video as words say, from a file or as it arrives.",
    "batch": "Make a video of every line of a prompt file, in one folder.",
    "train": "Train a model stage by stage from one recipe.",
    "distill": "Shorten a trained model to one network call for each chunk.",
    "evaluate": "Score a model: does its video show what the captions say?",
    "bench": "Measure how fast a model makes video here, stage by stage and end to end.",
    "info": "Show a model, preset, run or video, or draw a partition.",
    "models": "List, download, verify and remove open weights.",
    "doctor": "Show what works on this machine, to be pasted into a question.",
}

EXAMPLES = (
    'streamdit generate -p "a red star bouncing" --seconds 10 -o star.mp4',
    "streamdit info shapes",
    "streamdit generate --help",
)

_CONTEXT_SETTINGS: dict[str, Any] = {
    "help_option_names": ["-h", "--help"],
    "token_normalize_func": lambda token: token.replace("_", "-"),
}

_EXIT_CODES: tuple[tuple[type[TerminalError | StreamDiTError], ExitCode], ...] = (
    (UsageError, ExitCode.USAGE),
    (InputError, ExitCode.INPUT),
    (DownloadError, ExitCode.WEIGHTS),
    (MissingWeights, ExitCode.WEIGHTS),
    (OutputError, ExitCode.OUTPUT),
    (ConfigError, ExitCode.USAGE),
    (WeightsError, ExitCode.WEIGHTS),
    (DeviceError, ExitCode.DEVICE),
    (NumericsError, ExitCode.NUMERICS),
)

# What Typer raises for a wrong command line has no public name of its own.
_TYPER_USAGE_ERROR = typer.BadParameter.__bases__[0]


class CommandGroup(TyperGroup):
    """The commands of `COMMANDS`, each imported when it is run or asked for its help."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for name, line in COMMANDS.items():  # stand-ins, enough for the help and for suggestions
            self.add_command(TyperCommand(name, help=line))

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
        """Return (name, the real command, the other words), the module imported now."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, load_command(name) if name in COMMANDS else command, rest

    def invoke(self, ctx: Any) -> Any:
        """Run the command; that the reader closed the pipe is an ordinary end."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise typer.Exit(ExitCode.PIPE_CLOSED) from None


def load_command(name: str) -> TyperCommand:
    """Import the module of a command and build it, with its examples and `--debug`.

    Args:
        name: a key of `COMMANDS`.
    """
    module = importlib.import_module(f"streamdit_cli.{name}")
    single = typer.Typer(add_completion=False, rich_markup_mode="rich")
    single.command(name, epilog=_epilog(module.EXAMPLES), context_settings=_CONTEXT_SETTINGS)(
        getattr(module, name)
    )
    command = typer.main.get_command(single)
    assert isinstance(command, TyperCommand)
    donor = typer.main.get_command(_debug_only)
    command.params.extend(param for param in donor.params if param.name == "debug")
    return command


def _epilog(examples: Sequence[str]) -> str:
    """Return the examples as the end of a help text, with nothing in them read as markup."""
    return "\n\n".join(["[bold]Examples[/bold]", *(line.replace("[", "\\[") for line in examples)])


def _note_debug(ctx: typer.Context, value: bool) -> None:
    """Remember `--debug`, wherever on the command line it stands."""
    if value and isinstance(ctx.obj, dict):
        ctx.obj["debug"] = True


def _show_version(value: bool) -> None:
    """Print the versions that decide which frames a seed gives, and stop."""
    if value:
        from importlib.metadata import version

        versions = [f"{name} {version(name)}" for name in ("torch", "av")]
        others = ", ".join([*versions, f"Python {platform.python_version()}"])
        typer.echo(f"streamdit {version('streamdit')} ({others})")
        raise typer.Exit


DebugOption = Annotated[
    bool,
    typer.Option(
        "--debug",
        callback=_note_debug,
        expose_value=False,
        is_eager=True,
        help="Show the traceback of an unexpected error.",
    ),
]

VersionOption = Annotated[
    bool,
    typer.Option(
        "--version", callback=_show_version, is_eager=True, help="Show the versions and exit."
    ),
]

app = typer.Typer(
    name="streamdit",
    cls=CommandGroup,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    pretty_exceptions_show_locals=False,
    context_settings=_CONTEXT_SETTINGS,
    epilog=_epilog(EXAMPLES),
)
_debug_only = typer.Typer(add_completion=False)


@app.callback()
def streamdit(version: VersionOption = False, debug: DebugOption = False) -> None:
    """Endless video from text, in a terminal.

    Video goes to a file or to standard output, and every word for people to standard error.
    """


@_debug_only.command()
def _carry_debug(debug: DebugOption = False) -> None:
    """Exist for its one option, which `load_command` gives to every command."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; never raises.

    Args:
        argv: the words after `streamdit`; None reads those of this process.

    Returns:
        A number of `ExitCode`, or 128 + the signal that ended the run.
    """
    settings = {"debug": False}
    try:
        command = typer.main.get_command(app)
        code = command.main(argv, prog_name="streamdit", standalone_mode=False, obj=settings)
        return int(code or 0)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException as error:
        return _report(error, debug=settings["debug"])


def _report(error: BaseException, *, debug: bool) -> int:
    """Say in one line what ended the run, and return the exit code for it."""
    from streamdit_cli import console

    code, message, hint = _explain(error)
    if message and isinstance(error, Stopped):  # asked for, so no error
        console.plain(f"{message}; {hint}" if hint else message)
    elif message:
        console.error(message, hint)
    if debug:
        import traceback

        for line in "".join(traceback.format_exception(error)).splitlines():
            console.plain(line)
    return code


def _explain(error: BaseException) -> tuple[int, str, str]:
    """Return (exit code, message, hint) for whatever ended a run; no message for some."""
    if isinstance(error, KeyboardInterrupt):
        return ExitCode.INTERRUPTED, "", ""
    if isinstance(error, _TYPER_USAGE_ERROR):
        return _explain_usage(error)
    if isinstance(error, Stopped):
        return 128 + error.signal_number, str(error), error.hint
    for kind, code in _EXIT_CODES:
        if isinstance(error, kind):
            return code, str(error), error.hint
    if is_out_of_memory(error):
        hint = "take a smaller model (-m) or another --device"
        return ExitCode.DEVICE, f"out of memory: {_one_line(error)}", hint
    message = f"unexpected {type(error).__name__}: {_one_line(error)}"
    return ExitCode.UNEXPECTED, message, "the same command with --debug shows where"


def _explain_usage(error: Any) -> tuple[int, str, str]:
    """Return (exit code, message, hint) for a command line that Typer refused."""
    path = error.ctx.command_path if error.ctx is not None else "streamdit"
    if type(error).__name__ == "NoArgsIsHelpError":  # the help itself was printed
        return ExitCode.USAGE, "", ""
    message = error.format_message().replace(": Value error, ", ": ").rstrip(".")
    return ExitCode.USAGE, message, f"{path} --help"


def _one_line(error: BaseException) -> str:
    """Return the first line of an error's text that says something."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), "no message")
