"""`models`: list, download, verify and remove open weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from streamdit_cli.options import (
    JsonOption,
    OfflineOption,
    OverwriteOption,
    QuietOption,
    VerboseOption,
    complete_model,
)

if TYPE_CHECKING:
    from streamdit_cli.catalogue import Survey

__all__ = ["EXAMPLES", "models"]

EXAMPLES = (
    "streamdit models list",
    "streamdit models pull rolling-1.3b --look-in ~/ComfyUI/models",
    "streamdit models remove rolling-1.3b",
)

ActionArgument = Annotated[
    Literal["list", "pull", "remove"],
    typer.Argument(
        metavar="list|pull|remove",
        show_default=False,
        help="list the models; pull: download one, or verify it again; remove: delete its files.",
    ),
]

NameArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="NAME",
        show_default=False,
        autocompletion=complete_model,
        help="For pull and remove: a model of the list, or OWNER/NAME[@REVISION] on the Hub.",
    ),
]

LookInOption = Annotated[
    Path | None,
    typer.Option(
        "--look-in",
        metavar="DIR",
        show_default=False,
        help="pull: take files from another tool's folder first, if their sha256 is right.",
    ),
]

AcceptOption = Annotated[
    bool,
    typer.Option("--accept-license", help="pull: accept the terms of a model that asks, once."),
]


def models(
    action: ActionArgument,
    name: NameArgument = None,
    look_in: LookInOption = None,
    accept_license: AcceptOption = False,
    offline: OfflineOption = False,
    json_path: JsonOption = None,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """List, download, verify and remove open weights.

    They lie in the Hub's cache (HF_HOME), where other tools find them too. Each file is pinned to a
    commit and its sha256 is checked. HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE are honoured.
    """
    from streamdit_cli import console

    console.configure(quiet=quiet, verbose=verbose)
    given = {
        "NAME": name is not None,
        "--look-in": look_in is not None,
        "--accept-license": accept_license,
        "--offline": offline,
        "--json": json_path is not None,
        "--overwrite": overwrite,
    }
    _check_words(action, [word for word, is_given in given.items() if is_given])
    if action == "list":
        _list(json_path, overwrite)
        return
    preset = _open_preset(name or "")
    if action == "remove":
        _remove(preset)
        return
    from streamdit_cli.hub import pull

    pull(preset, look_in=look_in, offline=offline, accept_licence=accept_license)


_ALLOWED = {
    "list": {"--json", "--overwrite"},
    "pull": {"NAME", "--look-in", "--accept-license", "--offline"},
    "remove": {"NAME"},
}


def _check_words(action: str, given: list[str]) -> None:
    """Refuse what has no meaning for an action, and an action without its model."""
    from streamdit_cli.errors import UsageError

    for word in given:
        if word not in _ALLOWED[action]:
            raise UsageError(f"{word} has no effect on models {action}", "streamdit models --help")
    if "NAME" in _ALLOWED[action] and "NAME" not in given:
        raise UsageError(f"models {action} needs the NAME of a model", "streamdit models list")


def _open_preset(name: str) -> dict[str, Any]:
    """Return a preset of open weights, or what stands for a repository of our own layout.

    Raises:
        UsageError: there is no such preset, or it has nothing to download.
    """
    from streamdit_cli.catalogue import is_open
    from streamdit_cli.errors import UsageError
    from streamdit_cli.presets import find_preset
    from streamdit_cli.repository import parse_repository, repository_preset

    repository = parse_repository(name)
    if repository is not None:
        return repository_preset(repository)
    preset = find_preset(name)
    if not is_open(preset):
        none = preset["weights"].get("none")
        reason = f"there are no weights: {none}" if none else "it is in the package"
        raise UsageError(f"{name} has nothing to download: {reason}", "streamdit models list")
    return preset


def _list(json_path: str | None, overwrite: bool) -> None:
    """Print every model: its size, licence, where it runs, whether it is here."""
    from streamdit_cli.answers import answer
    from streamdit_cli.catalogue import is_open, survey
    from streamdit_cli.presets import find_preset, preset_names

    rows, records = [], []
    for name in preset_names():
        preset = find_preset(name)
        record: dict[str, Any] = {key: preset[key] for key in ("name", "summary", "licence")}
        record |= {"needs": preset["needs"], "bytes": 0, "exact": True}
        if is_open(preset):
            found = survey(preset)
            record |= {"bytes": found.size, "exact": found.is_exact, "downloaded": found.state}
            size, state = found.size_text, found.state
        else:
            has_none = "none" in preset["weights"]
            size = "-"
            state = "no weights" if has_none else "in the package"
            record["downloaded"] = state
        licence = preset["licence"].split(":")[0].split(",")[0].split(" as ")[0]
        runs_on = preset["needs"].split(";")[0].split(" (")[0]
        rows.append([name, size, licence, runs_on, state])
        records.append(record)
    for preset in _repositories():
        found = survey(preset)
        record = {"name": found.name, "licence": preset["licence"], "bytes": found.size}
        records.append({**record, "exact": found.is_exact, "downloaded": found.state})
        rows.append([found.name, found.size_text, preset["licence"], "-", found.state])
    columns = ["model", "download", "licence", "runs on", "downloaded"]
    answer("", records, columns, rows, json_path, overwrite=overwrite)


def _remove(preset: dict[str, Any]) -> None:
    """Delete the files of a model that no other downloaded model needs."""
    from streamdit_cli import console
    from streamdit_cli.cache import discard, size_words
    from streamdit_cli.catalogue import survey
    from streamdit_cli.repository import is_repository

    found = survey(preset)
    others = _needed_by_others(preset["name"])
    freed, kept = 0, 0
    for file in found.files:
        if not file.revision:
            continue
        if file.key in others:
            kept += file.size if file in found.here else 0
            continue
        freed += discard(file)
        found.lock.checked.pop(file.key, None)
    if is_repository(preset):  # so that the next pull takes the newest commit
        found.lock.path.unlink(missing_ok=True)
    elif found.lock.checked or found.lock.path.exists():
        for file in found.files:
            found.lock.checked.pop(file.key, None)
        found.lock.save()
    rest = f"; {size_words(kept)} are kept, other models use them" if kept else ""
    console.summary(f"{preset['name']}: {size_words(freed)} set free{rest}")


def _needed_by_others(name: str) -> set[str]:
    """Return the keys of the files that other pulled models need."""
    from streamdit_cli.catalogue import is_open, survey
    from streamdit_cli.presets import find_preset, preset_names

    presets = [*map(find_preset, preset_names()), *_repositories()]
    others = [preset for preset in presets if is_open(preset) and preset["name"] != name]
    surveys: list[Survey] = [survey(preset) for preset in others]
    return {file.key for found in surveys if found.lock.checked for file in found.files}


def _repositories() -> list[dict[str, Any]]:
    """Return every repository of our own layout that was pulled, in the form of a preset."""
    from streamdit_cli.repository import known_repositories, parse_repository, repository_preset

    found = map(parse_repository, known_repositories())
    return [repository_preset(one) for one in found if one is not None]
