"""Training checkpoints: whole or absent, verified when read, tensors and JSON only.

A checkpoint is a folder `step-00000100` of safetensors files, `record.json` for everything that is
no tensor, and `manifest.json`, written last, with the size and SHA-256 of every file. It is made
beside its place and renamed into it. This file knows nothing of models, optimizers or training.

Choice: no pickle, which runs what it reads, and no general checkpoint library, since the one of
torch loads files that were altered, or left over from an earlier save, without a word.
"""

import hashlib
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from streamdit_model.errors import ConfigError, WeightsError
from streamdit_model.storage import (
    new_folder,
    parse_json,
    quoted,
    read_bytes,
    read_tensors,
    remove_leftovers,
    sync_folder,
    write_tensors,
    write_text,
)

__all__ = ["keep_last", "load_checkpoint", "newest_checkpoint", "save_checkpoint"]

FORMAT = "streamdit-checkpoint-1"
_STEP_FOLDER = re.compile(r"step-(?P<step>[0-9]{8,18})")
_STEM = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_MAX_JSON_BYTES = 64 * 2**20
_log = logging.getLogger(__name__)


def save_checkpoint(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    record: Mapping[str, object],
) -> Path:
    """Save a checkpoint of a training step; one process saves into a folder, one at a time.

    Args:
        folder: holds all checkpoints of a run; made when missing.
        step: number of finished steps, at least 0.
        tensors: file stem ("model", "ema", "optimizer") to name to tensor; of any device.
        record: everything else; only dict, list, str, int, finite float, bool and None.

    Returns:
        The new folder, on the disk.

    Raises:
        ConfigError: the step, a stem or a value of the record cannot be saved.
        WeightsError: there is a checkpoint of this step already.
        OSError: the disk is full or refuses; earlier checkpoints are as they were.
    """
    if step < 0 or step >= 10**18:
        raise ConfigError(f"checkpoint step {step} is not a number of finished steps")
    for stem in tensors:
        if not _STEM.fullmatch(stem):
            raise ConfigError(f"checkpoint file stem {quoted(stem)} is not a plain name")
    record_text = json.dumps(_plain(dict(record), "record"), indent=1)
    if len(record_text) > _MAX_JSON_BYTES:
        raise ConfigError(f"checkpoint record has {len(record_text)} bytes of {_MAX_JSON_BYTES}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder, _STEP_FOLDER)
    target = folder / f"step-{step:08d}"
    if target.exists():
        raise WeightsError(
            f"checkpoint {target.name} is there already",
            hint=f"resume from {folder} or save into another folder",
        )
    with new_folder(target) as partial:
        for stem, group in tensors.items():
            write_tensors(partial / f"{stem}.safetensors", group)
        write_text(partial / "record.json", record_text)
        names = [f"{stem}.safetensors" for stem in tensors] + ["record.json"]
        files = {name: _fingerprint(partial / name) for name in sorted(names)}
        write_text(partial / "manifest.json", _manifest_text(step, files))
    return target


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the newest whole checkpoint, or None where there is none.

    Every file is read and compared with the manifest. A damaged checkpoint is renamed to
    `step-N.damaged` with a logged warning, and the next older one is tried.

    Raises:
        OSError: a file is there but the system refuses to read it; nothing is set aside then.
    """
    for _, path in reversed(_checkpoints(Path(folder))):
        try:
            _verify(path)
        except WeightsError as error:
            _set_aside(path, str(error))
        else:
            return path
    return None


def load_checkpoint(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, object]]:
    """Return the tensors, on the CPU, and the record of a checkpoint, after verifying it.

    Raises:
        WeightsError: the checkpoint is missing or damaged; the message names the file.
    """
    path = Path(path)
    names = _verify(path)
    record = parse_json(read_bytes(path / "record.json", _MAX_JSON_BYTES), "record.json")
    assert isinstance(record, dict)
    tensors = {
        name.removesuffix(".safetensors"): read_tensors(path / name)
        for name in names
        if name.endswith(".safetensors")
    }
    return tensors, record


def keep_last(folder: Path, number: int, every: int | None = None) -> None:
    """Remove all but the newest checkpoints.

    Args:
        folder: holds the checkpoints of a run.
        number: how many of the newest stay, at least 1.
        every: steps that are multiples of this stay as well.

    Raises:
        ConfigError: a number is below 1.
    """
    if number < 1 or (every is not None and every < 1):
        raise ConfigError(f"checkpoints to keep: {number}, every {every}; both are at least 1")
    for step, path in _checkpoints(Path(folder))[:-number]:
        if every is None or step % every:
            # Under this name a half removed checkpoint is never taken for a damaged one.
            doomed = path.with_name(f"{path.name}.partial-{os.getpid()}")
            os.rename(path, doomed)
            shutil.rmtree(doomed)


def _checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Return (step, path) of what is named like a checkpoint, oldest first."""
    if not folder.is_dir():
        return []
    found = ((_STEP_FOLDER.fullmatch(path.name), path) for path in folder.iterdir())
    return sorted((int(match["step"]), path) for match, path in found if match and path.is_dir())


def _fingerprint(path: Path) -> dict[str, object]:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"size": os.fstat(file.fileno()).st_size, "sha256": digest}


def _manifest_text(step: int, files: Mapping[str, object]) -> str:
    manifest = {"format": FORMAT, "step": step, "files": files}
    return json.dumps(manifest, indent=1, sort_keys=True) + "\n"


def _verify(path: Path) -> list[str]:
    """Return the file names of a checkpoint after comparing every one with the manifest."""
    if not path.is_dir():
        raise WeightsError(f"checkpoint {path} is missing or not a folder")
    raw = read_bytes(path / "manifest.json", _MAX_JSON_BYTES)
    manifest = parse_json(raw, f"{path.name}/manifest.json")
    step, files = _manifest_fields(path, manifest)
    # The text is compared too, so that no changed bit of the manifest itself goes unnoticed.
    if raw != _manifest_text(step, files).encode():
        raise WeightsError(f"{path.name}/manifest.json is damaged")
    for name, expected in files.items():
        file = path / name
        if not file.is_file():
            raise WeightsError(f"{path.name}/{name} is missing")
        if file.stat().st_size != expected["size"] or _fingerprint(file) != expected:
            raise WeightsError(f"{path.name}/{name} is not what was saved")
    return list(files)


def _manifest_fields(path: Path, manifest: object) -> tuple[int, dict[str, dict[str, object]]]:
    fields = manifest if isinstance(manifest, dict) else {}
    if set(fields) != {"format", "step", "files"} or fields["format"] != FORMAT:
        raise WeightsError(f"{path.name}/manifest.json is not a manifest of {FORMAT}")
    step, files = fields["step"], fields["files"]
    named = _STEP_FOLDER.fullmatch(path.name)
    if type(step) is not int or not named or int(named["step"]) != step:
        raise WeightsError(f"{path.name}/manifest.json is of another step")
    if not isinstance(files, dict) or "record.json" not in files:
        raise WeightsError(f"{path.name}/manifest.json does not list record.json")
    for name, entry in files.items():
        stem, dot, suffix = name.partition(".")
        plain = _STEM.fullmatch(stem) and dot + suffix in (".safetensors", ".json")
        if not plain or not isinstance(entry, dict) or set(entry) != {"size", "sha256"}:
            raise WeightsError(f"{path.name}/manifest.json has a wrong entry {quoted(name)}")
    return step, files


def _set_aside(path: Path, reason: str) -> None:
    names = (f"{path.name}.damaged{suffix}" for suffix in ("", *(f"-{n}" for n in range(2, 100))))
    aside = next(path.with_name(name) for name in names if not path.with_name(name).exists())
    os.rename(path, aside)
    sync_folder(path.parent)
    _log.warning("%s; set aside as %s, an older checkpoint is taken", reason, aside.name)


def _plain(value: object, where: str) -> object:
    """Return a value that JSON gives back as it is, or refuse it with its place."""
    if value is None or type(value) in (bool, str):
        return value
    if type(value) is int:
        if abs(value) >= 2**256:
            raise ConfigError(f"{where} is beyond 256 bits, a smaller number can be saved")
        return value
    if type(value) is float:
        if not math.isfinite(value):
            raise ConfigError(f"{where} is {value}, only finite numbers can be saved")
        return value
    if type(value) is list:
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if type(value) is dict:
        for key in value:
            if type(key) is not str:
                raise ConfigError(f"{where} has the key {key!r}, only text keys can be saved")
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    raise ConfigError(
        f"{where} is a {type(value).__name__}, only JSON values can be saved",
        hint="tensors go into the tensors argument, tuples become lists",
    )
