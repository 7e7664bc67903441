"""Presets of open weights in words: size, licence, where they run, and whether they are here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamdit_cli.cache import (
    Lock,
    RemoteFile,
    needed_files,
    read_lock,
    size_words,
)
from streamdit_cli.errors import MissingWeights
from streamdit_cli.repository import is_repository

__all__ = [
    "Survey",
    "find_files",
    "is_offline",
    "is_open",
    "open_facts",
    "open_rows",
    "pull_command",
    "survey",
]


def is_offline() -> bool:
    """Whether the environment forbids connections."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def pull_command(name: str) -> str:
    """Return what to type to download a model, whatever the environment says."""
    return f"{'HF_HUB_OFFLINE=0 ' if is_offline() else ''}streamdit models pull {name}"


def is_open(preset: dict[str, Any]) -> bool:
    """Whether a preset is one of open weights, which are downloaded."""
    return "sources" in preset["weights"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """What of a preset of open weights is on this machine.

    Args:
        name: of the preset.
        files: all it needs.
        here: those whose size in the cache is right.
        lock: what was found out on this machine.
    """

    name: str
    files: list[RemoteFile]
    here: list[RemoteFile]
    lock: Lock

    @property
    def missing(self) -> list[RemoteFile]:
        """The files that are not in the cache."""
        return [file for file in self.files if file not in self.here]

    @property
    def size(self) -> int:
        """Bytes of all files, with estimates where a size is not known."""
        return sum(file.bytes for file in self.files)

    @property
    def is_exact(self) -> bool:
        """Whether no size is an estimate."""
        return all(file.size for file in self.files)

    @property
    def state(self) -> str:
        """Whether it is downloaded: yes, no, or how much of it."""
        if not self.here:
            return "no"
        if self.missing:
            there = sum(file.size for file in self.here)
            return f"partly, {size_words(there)} of {size_words(self.size)}"
        unchecked = [file for file in self.files if not self.lock.is_checked(file)]
        return "yes, not verified" if unchecked else "yes"

    @property
    def size_text(self) -> str:
        """The download size in words."""
        if not self.size:
            return "its size is not known yet"
        return size_words(self.size) if self.is_exact else f"about {size_words(self.size)}"


def survey(preset: dict[str, Any]) -> Survey:
    """Look at what of a preset is in the cache; sizes only, nothing is hashed.

    Raises:
        DownloadError: its lock file cannot be read.
    """
    lock = read_lock(preset["name"])
    files = needed_files(preset, lock)
    here = [file for file in files if file.is_pinned and _size(file.local) == file.size]
    return Survey(name=preset["name"], files=files, here=here, lock=lock)


def _size(path: Path) -> int:
    """Return the bytes of a file, -1 when there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def find_files(preset: dict[str, Any]) -> list[RemoteFile]:
    """Return the files of a preset of open weights, all of them here and verified.

    Raises:
        MissingWeights: they are not all here, or not verified; says how big they are and what to
            type.
        DownloadError: its lock file cannot be read.
    """
    found = survey(preset)
    name = preset["name"]
    hint = pull_command(name)
    if found.state == "no" and is_repository(preset):
        raise MissingWeights(f"{name} is not downloaded, and no folder here has that name", hint)
    if found.state == "no":
        raise MissingWeights(
            f"{name} is not downloaded: {found.size_text}, licence: {preset['licence']}", hint
        )
    if found.missing:
        left = sum(file.bytes for file in found.missing)
        raise MissingWeights(f"{name} is not complete: {size_words(left)} are missing", hint)
    if found.state != "yes":
        raise MissingWeights(f"the files of {name} were not verified on this machine", hint)
    return found.files


def open_facts(preset: dict[str, Any]) -> dict[str, Any]:
    """Return what is known of a preset of open weights, for programs."""
    found = survey(preset)
    files = [
        {
            "part": file.part,
            "repo": file.repo,
            "revision": file.revision or None,
            "path": file.path,
            "bytes": file.size or None,
            "sha256": file.sha256 or None,
            "path_here": str(file.local) if file in found.here else None,
        }
        for file in found.files
    ]
    rest = {key: value for key, value in preset.items() if key != "weights"}
    return {
        "kind": "open weights",
        **rest,
        "download_bytes": found.size,
        "download_bytes_exact": found.is_exact,
        "downloaded": found.state,
        "unverified": preset["weights"].get("reason"),
        "files": files,
    }


def open_rows(preset: dict[str, Any]) -> list[list[str]]:
    """Return what is known of a preset of open weights, as rows of a table."""
    found = survey(preset)
    video, network = preset["video"], preset["network"]
    rows = [
        ["downloaded", found.state],
        ["download", f"{found.size_text}, {len(found.files)} files"],
        *([key, preset[key]] for key in ("summary", "licence", "needs", "measured")),
    ]
    if "accept_licence" in preset:
        accepted = "accepted" if found.lock.accepted else "asks once (--accept-license)"
        rows.append(["licence terms", f"{accepted}: {preset['accept_licence']}"])
    if "refuse" in preset:
        rows.append(["generates", f"no: {preset['refuse']}"])
    rows += [
        ["video", f"{video['width']}x{video['height']} at {video['fps']:g} FPS"],
        ["network", f"{network['parameters']:,} parameters, {network['layers']} layers"],
    ]
    if "sampler" in preset:
        rows += _sampling_rows(preset)
    rows += [["not verified", line] for line in preset["not_verified"]]
    if "reason" in preset["weights"]:
        rows.append(["pins left open", preset["weights"]["reason"]])
    for file in found.files:
        pin = file.revision[:12] or "revision not known"
        size = size_words(file.size) if file.size else f"about {size_words(file.about)}"
        rows.append([file.part, f"{file.repo} @ {pin}: {file.path}, {size}"])
    return rows


def _sampling_rows(preset: dict[str, Any]) -> list[list[str]]:
    """Return the rows of a model that generates."""
    sampler, context = preset["sampler"], preset["context"]
    guidance = "baked in" if sampler["distilled"] else f"{sampler['guidance_scale']:g}"
    partition = " ".join(
        f"{letter}={sampler[key]}"
        for letter, key in zip(
            "KNcs", ("num_reference", "num_chunks", "chunk_size", "micro_steps"), strict=True
        )
    )
    words = f"stepper {sampler['stepper']}, shift {sampler['shift']:g}, guidance {guidance}"
    kept = f"{context['sink_frames']} first and {context['working_frames']} last latent frames"
    most = f"at most {context['attended_frames']} attended to"
    rows = [["sampling", f"{partition}, {words}"], ["context", f"{kept}, {most}"]]
    for profile in preset["profiles"]:
        plan = (
            f"{profile['width']}x{profile['height']}, decoder {profile['decoder']}, "
            f"offload {profile['offload']}, context {profile['context_frames']}"
        )
        line = f"{plan}: about {profile['estimate']:g} GB (estimate)"
        rows.append([f"on {profile['vram']} GB", line])
    return rows
