"""Find a model by preset name or path, read TOML, and apply `--set`.

A preset is `presets/NAME.toml` beside a folder of weights. All that is read here comes from
outside: each fault is one line that names the file, and no file can name a path outside its folder.
"""

from __future__ import annotations

import copy
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomli

from streamdit_cli.catalogue import find_files
from streamdit_cli.errors import MissingWeights, TerminalError, UsageError
from streamdit_cli.repository import parse_repository, repository_preset
from streamdit_cli.schema import NAME, check_preset, nearest

__all__ = [
    "apply_set",
    "check_preset",
    "find_model",
    "find_preset",
    "find_repository",
    "nearest",
    "open_preset",
    "parse_toml",
    "preset_names",
    "read_toml",
]

DEFAULT_MODEL = "shapes"
_MODEL_FILE = "config.json"
_LARGEST_FILE = 1_000_000  # bytes; a preset or a recipe has a few thousand
_DEEPEST_TABLE = 32
_LARGEST_INT = 2**63 - 1
_DOTTED_KEY = re.compile(r"[A-Za-z0-9_\-]{1,64}(\.[A-Za-z0-9_\-]{1,64}){0,7}")
_BARE_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_./\-]*")


def read_toml(path: Path, *, kind: type[TerminalError] = UsageError) -> dict[str, Any]:
    """Read a TOML file: UTF-8, at most 1 MB, all numbers finite and within 64 bits.

    Args:
        path: the file.
        kind: the error to raise, which decides the exit code.

    Raises:
        UsageError: or `kind`; the file cannot be read or is not such a TOML file.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(_LARGEST_FILE + 1)
    except (OSError, ValueError) as error:
        raise kind(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    return parse_toml(data, str(path), kind=kind)


def parse_toml(
    data: bytes, where: str, *, kind: type[TerminalError] = UsageError
) -> dict[str, Any]:
    """Read TOML, with the limits of `read_toml`.

    Args:
        data: UTF-8 text.
        where: what messages call it.
        kind: the error to raise, which decides the exit code.

    Raises:
        UsageError: or `kind`; it is not such TOML.
    """
    if len(data) > _LARGEST_FILE:
        raise kind(f"{where} is larger than {_LARGEST_FILE} bytes")
    try:
        table = tomli.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise kind(f"{where} line {line}: not UTF-8 text") from None
    except RecursionError:
        raise kind(f"{where}: tables within tables, too deep to read") from None
    except ValueError as error:  # also tomli's own, and integers of thousands of digits
        raise kind(f"{where} is not TOML: {error}") from None
    _check_values(table, where, kind)
    return table


def _check_values(table: dict[str, Any], where: str, kind: type[TerminalError]) -> None:
    """Refuse what no recipe needs: nan, inf, huge integers, tables 32 deep."""
    pending: list[tuple[str, Any, int]] = [("", table, 0)]
    while pending:
        key, value, depth = pending.pop()
        if depth > _DEEPEST_TABLE:
            raise kind(f"{where}: tables within tables, more than {_DEEPEST_TABLE} deep")
        if isinstance(value, dict):
            pending += [(f"{key}.{name}", child, depth + 1) for name, child in value.items()]
        elif isinstance(value, list):
            pending += [(key, child, depth + 1) for child in value]
        elif isinstance(value, float) and not math.isfinite(value):
            raise kind(f"{where}: {key[1:]} is {value}; it must be a finite number")
        elif isinstance(value, int) and abs(value) > _LARGEST_INT:
            raise kind(f"{where}: {key[1:]} is an integer of more than 64 bits")


def apply_set(config: dict[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """Return a copy of a recipe with `key.key=value` changes made.

    A value is TOML, or a plain word that stands for itself. Whether a key exists is not known here.

    Raises:
        UsageError: a change without key or value, a value that is not TOML, or a key inside
            something that is no table.
    """
    changed = copy.deepcopy(config)
    for change in changes:
        key, equals, text = (part.strip() for part in change.partition("="))
        if not equals or not _DOTTED_KEY.fullmatch(key):
            raise UsageError(f"--set {change!r} is not KEY=VALUE", "write --set base.steps=100")
        *path, last = key.split(".")
        table = changed
        for depth, name in enumerate(path):
            table = table.setdefault(name, {})
            if not isinstance(table, dict):
                raise UsageError(f"--set {key}: {'.'.join(path[: depth + 1])} is not a table")
        table[last] = _set_value(key, text)
    return changed


def _set_value(key: str, text: str) -> Any:
    """Read the value of one `--set`."""
    try:
        table = tomli.loads(f"value = {text}")
        if list(table) != ["value"]:
            raise ValueError("more than one value")
    except RecursionError:
        raise UsageError(f"--set {key}: lists within lists, too deep to read") from None
    except ValueError as error:
        if _BARE_WORD.fullmatch(text):
            return text
        hint = "quote text: --set 'key=\"some words\"'"
        raise UsageError(f"--set {key}: {text!r} is not a TOML value: {error}", hint) from None
    _check_values({key: table["value"]}, "--set", UsageError)
    return table["value"]


def _presets_folder() -> Path:
    """Return where the presets are: in the installed package, or beside `src` in a checkout."""
    installed = Path(__file__).parent / "presets"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "presets"


def preset_names() -> list[str]:
    """Return the names of all presets, sorted; their files are not opened."""
    return sorted(path.stem for path in _presets_folder().glob("*.toml"))


def find_preset(name: str) -> dict[str, Any]:
    """Read a preset and check it against the schema.

    Raises:
        UsageError: no preset of that name, or a file with a missing, unknown or mistyped key.
    """
    if not NAME.fullmatch(name) or name not in preset_names():
        raise UsageError(f"there is no model {name!r}; {nearest(name, preset_names())}")
    path = _presets_folder() / f"{name}.toml"
    preset = read_toml(path)
    check_preset(preset, path)
    return preset


def find_model(name: str | None = None) -> tuple[Path, dict[str, Any] | None]:
    """Find the folder of a model.

    Args:
        name: a preset name, a folder with `config.json`, a training run that holds `model/`, or
            OWNER/NAME[@REVISION] of a repository on the Hub that was downloaded. A bare word is a
            preset if there is one of that name, and a path that exists is never a repository. None
            is `STREAMDIT_MODEL`, else `shapes`.

    Returns:
        The folder that holds `config.json`, and the preset when it was found by name.

    Raises:
        UsageError: neither a preset nor a path that exists, or open weights, see `open_preset`.
        MissingWeights: a preset without weights, a folder without a model, or a repository that was
            not downloaded.
        DownloadError: a lock file that cannot be read.
    """
    wanted = name or os.environ.get("STREAMDIT_MODEL") or DEFAULT_MODEL
    if wanted in preset_names():
        preset = find_preset(wanted)
        return _weights_folder(preset), preset
    if _exists(Path(wanted)):
        return _model_folder(Path(wanted)), None
    repository = find_repository(wanted)
    if repository is not None:
        return find_files(repository)[0].local.parent, None
    if os.sep in wanted or wanted.startswith("."):
        raise UsageError(
            f"there is no folder {wanted!r}", "-m takes a preset, a folder, a run, or OWNER/NAME"
        )
    raise UsageError(f"there is no model or folder {wanted!r}; {nearest(wanted, preset_names())}")


def open_preset(name: str | None = None) -> dict[str, Any] | None:
    """Return the preset of open weights that a name means; None for every other model.

    Args:
        name: as in `find_model`.

    Raises:
        UsageError: it makes no video by itself.
    """
    wanted = name or os.environ.get("STREAMDIT_MODEL") or DEFAULT_MODEL
    preset = find_preset(wanted) if wanted in preset_names() else None
    if preset is None or "sources" not in preset["weights"]:
        return None
    if "refuse" in preset:
        message = f"{wanted} does not make video by itself: {preset['refuse']}"
        raise UsageError(message, "streamdit models list shows those that do")
    return preset


def find_repository(name: str) -> dict[str, Any] | None:
    """Return what a pull needs of a repository on the Hub; None for every other name.

    Choice: as with other tools that take both, a folder that exists wins; `./OWNER/NAME` is never
    looked for on the Hub.

    Raises:
        DownloadError: its lock file cannot be read.
    """
    repository = None if _exists(Path(name)) else parse_repository(name)
    return None if repository is None else repository_preset(repository)


def _exists(path: Path) -> bool:
    """Whether there is anything at the path; a name no file system takes has nothing."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _weights_folder(preset: dict[str, Any]) -> Path:
    """Return the folder of a preset's weights, which must hold a model."""
    name = preset["name"]
    if "sources" in preset["weights"]:
        return _open_folder(preset)
    if "none" in preset["weights"]:
        reason = preset["weights"]["none"]
        raise MissingWeights(
            f"{name} has no weights: {reason}", f"streamdit info {name} shows its configuration"
        )
    folder = _presets_folder() / preset["weights"]["folder"]
    if not (folder / _MODEL_FILE).is_file():
        raise MissingWeights(
            f"the weights of {name} are not in this installation: no {_MODEL_FILE} in {folder}",
            "train it (streamdit train --help) and run it with -m RUN",
        )
    return folder


def _open_folder(preset: dict[str, Any]) -> Path:
    """Refuse open weights where a model folder is needed, which they are not."""
    open_preset(preset["name"])
    raise UsageError(
        f"{preset['name']} is no model folder, which is needed here",
        f"streamdit generate -m {preset['name']}",
    )


def _model_folder(path: Path) -> Path:
    """Return the folder itself or its `model/`, whichever holds a model."""
    for folder in (path, path / "model"):
        if (folder / _MODEL_FILE).is_file():
            return folder
    if not path.is_dir():
        raise MissingWeights(f"{path} is a file; a model is a folder with {_MODEL_FILE}")
    raise MissingWeights(
        f"{path} is not a model: neither {_MODEL_FILE} nor model/{_MODEL_FILE} is in it",
        "a training run has one after its first stage",
    )
