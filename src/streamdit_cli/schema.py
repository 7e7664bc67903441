"""What a preset may say: keys, types and ranges, each fault one line with the nearest known name.

A preset describes a model in one of three ways: weights in a folder beside it, a configuration
without weights, or open weights of others, pinned file by file. What is not known of a pin is
empty, and then `unverified = true` and a reason must say so; a branch name is never a revision.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from streamdit_cli.errors import UsageError

__all__ = ["NAME", "check_preset", "is_remote_path", "nearest"]

NAME = re.compile(r"[a-z0-9][a-z0-9.\-]{0,62}")
PARTS = ("transformer", "autoencoder", "small_decoder", "text_encoder", "tokenizer")
SMALLEST_VRAM = 4  # GB
LARGEST_FILE = 10**12  # bytes
_REPO = re.compile(r"[A-Za-z0-9][\w.\-]{0,95}/[A-Za-z0-9][\w.\-]{0,95}", re.ASCII)
_REVISION = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PATH = re.compile(r"([A-Za-z0-9][\w\-]*/){0,3}[A-Za-z0-9][\w.\-]*(\.safetensors|\.json)", re.ASCII)
_SHARDS = "-*-of-*.safetensors"

Rule = Callable[[Any, str], None]


def nearest(word: str, words: Iterable[str]) -> str:
    """Return `did you mean X?`, or the list of all words when none is near."""
    known = sorted(words)
    close = difflib.get_close_matches(word[:80], known, n=1)
    return f"did you mean {close[0]}?" if close else f"allowed: {', '.join(known)}"


def _text(value: Any, where: str) -> None:
    if not isinstance(value, str):
        raise UsageError(f"{where} must be text, not {value!r}")


def _flag(value: Any, where: str) -> None:
    if not isinstance(value, bool):
        raise UsageError(f"{where} must be true or false, not {value!r}")


def _whole(low: int, high: int) -> Rule:
    """Return the rule of a whole number from low to high."""

    def rule(value: Any, where: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise UsageError(f"{where} must be a whole number from {low} to {high}, not {value!r}")

    return rule


def _number(low: float, high: float) -> Rule:
    """Return the rule of a number from low to high."""

    def rule(value: Any, where: str) -> None:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not low <= value <= high:
            raise UsageError(f"{where} must be a number from {low:g} to {high:g}, not {value!r}")

    return rule


def _one_of(*words: str) -> Rule:
    """Return the rule of one word of a few."""

    def rule(value: Any, where: str) -> None:
        _text(value, where)
        if value not in words:
            raise UsageError(f"{where} must be one of {', '.join(words)}, not {value!r}")

    return rule


def _pattern(pattern: re.Pattern[str], meaning: str, *, empty: bool = False) -> Rule:
    """Return the rule of a text of one form; `empty` allows none."""

    def rule(value: Any, where: str) -> None:
        _text(value, where)
        if not pattern.fullmatch(value) and not (empty and value == ""):
            raise UsageError(f"{where} must be {meaning}, not {value!r}")

    return rule


def _listed(each: Rule, *, least: int = 1, most: int = 64) -> Rule:
    """Return the rule of a list."""

    def rule(value: Any, where: str) -> None:
        if not isinstance(value, list) or not least <= len(value) <= most:
            raise UsageError(f"{where} must be a list of {least} to {most} entries")
        for index, entry in enumerate(value):
            each(entry, f"{where}[{index}]")

    return rule


def _table(needed: Mapping[str, Rule], allowed: Mapping[str, Rule] | None = None) -> Rule:
    """Return the rule of a table: keys it must have, keys it may have, and no others."""
    rules = {**needed, **(allowed or {})}

    def rule(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise UsageError(f"{where} must be a table, not {value!r}")
        for key, entry in value.items():
            if key not in rules:
                raise UsageError(f"{where}: unknown key {key!r}; {nearest(key, rules)}")
            rules[key](entry, f"{where}: {key}")
        if missing := [key for key in needed if key not in value]:
            raise UsageError(f"{where}: {', '.join(missing)} missing")

    return rule


def _anything(value: Any, where: str) -> None:
    """Accept a table whose own reader is exact: the configuration of a model of ours."""
    if not isinstance(value, dict):
        raise UsageError(f"{where} must be a table, not {value!r}")


def is_remote_path(text: str) -> bool:
    """Whether a text is a plain path of a safetensors or JSON file inside a repository."""
    return bool(_PATH.fullmatch(text))


def _remote_path(value: Any, where: str) -> None:
    """Accept the path of a file, or of a numbered series of shards (`-*-of-*.safetensors`)."""
    _text(value, where)
    plain = value.removesuffix(_SHARDS) + ".safetensors" if value.endswith(_SHARDS) else value
    if not is_remote_path(plain):
        raise UsageError(
            f"{where} must be a plain path of a .safetensors or .json file, not {value!r}"
        )


_FILE = _table(
    {
        "path": _remote_path,
        "size": _whole(0, LARGEST_FILE),  # bytes; 0 is not known
        "sha256": _pattern(_SHA256, "64 hexadecimal digits, or empty", empty=True),
    },
    {"about": _whole(1, LARGEST_FILE)},  # bytes, an estimate where the size is not known
)
_SOURCE = _table(
    {
        "part": _one_of(*PARTS),
        "repo": _pattern(_REPO, "OWNER/NAME"),
        "revision": _pattern(_REVISION, "a commit of 40 hexadecimal digits, or empty", empty=True),
        "licence": _text,
        "files": _listed(_FILE),
    }
)
_VIDEO = _table(
    {"width": _whole(16, 8192), "height": _whole(16, 8192), "fps": _number(1, 240)},
)
_NETWORK = _table(
    {
        "layers": _whole(1, 1000),
        "width": _whole(1, 100_000),
        "heads": _whole(1, 1000),
        "mlp_width": _whole(1, 1_000_000),
        "latent_channels": _whole(1, 1000),
        "patch": _listed(_whole(1, 64), least=3, most=3),
        "text_width": _whole(1, 100_000),
        "text_tokens": _whole(1, 100_000),
        "time_width": _whole(2, 100_000),
        "rope_axes": _listed(_whole(2, 1000), least=3, most=3),
        "rope_theta": _number(1, 1e9),
        "eps": _number(1e-12, 1e-2),
        "fps_embedding": _flag,
        "parameters": _whole(1, 10**13),
    }
)
_AUTOENCODER = _table(
    {
        "latent_channels": _whole(1, 1000),
        "time_factor": _whole(1, 64),
        "space_factor": _whole(1, 256),
    },
    {  # of networks that were never published; without them the published ones
        "width": _whole(1, 10_000),  # channels before the multipliers
        "small_width": _whole(1, 10_000),  # finest channels of the small decoder
    },
)
_TEXT = _table(  # the text encoder; without it umT5-XXL
    {
        "vocabulary": _whole(1, 10_000_000),
        "width": _whole(1, 100_000),
        "head_width": _whole(1, 10_000),
        "heads": _whole(1, 1000),
        "mlp_width": _whole(1, 1_000_000),
        "layers": _whole(1, 1000),
        "buckets": _whole(1, 10_000),
        "max_distance": _whole(1, 100_000),
        "tokens": _whole(1, 100_000),
    }
)
_SAMPLER = _table(
    {
        "stepper": _one_of("renoise", "euler", "unipc"),
        "shift": _number(0.01, 100),
        "distilled": _flag,
        "guidance_scale": _number(0, 100),
        "num_reference": _whole(0, 1000),
        "num_chunks": _whole(1, 1000),
        "chunk_size": _whole(1, 1000),
        "micro_steps": _whole(1, 1000),
    },
    {"timesteps": _listed(_number(0, 1000))},
)
_CONTEXT = _table(  # latent frames; all 0 where the model keeps no context
    {
        "sink_frames": _whole(0, 1000),
        "working_frames": _whole(0, 1000),
        "attended_frames": _whole(0, 1000),
    }
)
_PROFILE = _table(
    {
        "vram": _whole(SMALLEST_VRAM, 1000),  # GB of the card
        "width": _whole(16, 8192),
        "height": _whole(16, 8192),
        "decoder": _one_of("small", "full"),
        "offload": _one_of("none", "text", "cpu"),
        "context_frames": _whole(0, 1000),
        "estimate": _number(0.1, 1000),  # GB at the peak
    }
)
_SPEED = _table(  # what to expect of a GPU whose name has these words in it
    {"device": _text, "fps": _text, "basis": _text},
)
_WEIGHTS = {
    "folder": _table({"folder": _pattern(NAME, "a plain name")}),
    "none": _table({"none": _text}),
    "sources": _table(
        {"sources": _listed(_SOURCE)},
        {"unverified": _flag, "reason": _text},
    ),
}
_WORDS: dict[str, Rule] = {
    "name": _text,
    "summary": _text,
    "licence": _text,
    "needs": _text,
    "measured": _text,
    "weights": _anything,
}
_PRESET = _table(_WORDS, {"model": _anything})
_OPEN_PRESET = _table(
    {
        **_WORDS,
        "not_verified": _listed(_text),
        "video": _VIDEO,
        "network": _NETWORK,
        "autoencoder": _AUTOENCODER,
    },
    {
        "accept_licence": _text,  # what must be accepted once before a download
        "refuse": _text,  # why it does not generate by itself; then no sampler is needed
        "text": _TEXT,
        "sampler": _SAMPLER,
        "context": _CONTEXT,
        "profiles": _listed(_PROFILE),
        "speeds": _listed(_SPEED),
    },
)


def check_preset(preset: dict[str, Any], path: Path) -> None:
    """Refuse a preset that is not complete and exact.

    Args:
        preset: the table that was read from the file.
        path: of the file; its stem is the name.

    Raises:
        UsageError: a missing, unknown or mistyped key, another name than the file's, weights that
            are not exactly one of folder, none, sources, or a pin that is neither whole nor said
            to be unverified.
    """
    weights = preset.get("weights")
    is_open = isinstance(weights, dict) and "sources" in weights
    (_OPEN_PRESET if is_open else _PRESET)(preset, path.name)
    assert isinstance(weights, dict)
    if preset["name"] != path.stem:
        raise UsageError(f"{path.name}: name is {preset['name']!r}, not {path.stem!r}")
    if not weights:
        raise UsageError(f"{path.name}: weights needs exactly one of {', '.join(_WEIGHTS)}")
    kinds = [kind for kind in _WEIGHTS if kind in weights]
    if len(kinds) > 1:
        raise UsageError(f"{path.name}: weights needs exactly one of {', '.join(_WEIGHTS)}")
    _WEIGHTS[kinds[0] if kinds else "folder"](weights, f"{path.name}: weights")
    if "none" in weights and "model" not in preset:
        raise UsageError(f"{path.name}: model is missing; without weights nothing else holds it")
    if is_open:
        _check_pins(weights, f"{path.name}: weights")
        _check_sampling(preset, path.name)


def _check_pins(weights: dict[str, Any], where: str) -> None:
    """Refuse pins with gaps that are not admitted, and admissions without a gap."""
    gaps: list[str] = []
    seen: set[tuple[str, str]] = set()
    for source in weights["sources"]:
        if not source["revision"]:
            gaps.append(f"the revision of {source['repo']}")
        for file in source["files"]:
            name = f"{source['repo']} {file['path']}"
            if (source["repo"], file["path"]) in seen:
                raise UsageError(f"{where}: {name} stands there twice")
            seen.add((source["repo"], file["path"]))
            if not file["size"] and "about" not in file:
                raise UsageError(f"{where}: {name} has neither a size nor `about`")
            if file["size"] and "about" in file:
                raise UsageError(f"{where}: {name} has a size, so `about` says nothing")
            if "*" in file["path"] and (file["size"] or file["sha256"]):
                raise UsageError(f"{where}: {name} is a series, which has no size or sha256")
            gaps += [f"the {key} of {name}" for key in ("size", "sha256") if not file[key]]
    if gaps and not weights.get("unverified"):
        raise UsageError(f"{where}: {gaps[0]} is empty", "fill it in, or say unverified = true")
    if gaps and not weights.get("reason"):
        raise UsageError(f"{where}: reason missing; why is {gaps[0]} not known?")
    if not gaps and ("unverified" in weights or "reason" in weights):
        raise UsageError(f"{where}: every pin is whole, so unverified and reason must go")


def _check_sampling(preset: dict[str, Any], where: str) -> None:
    """Refuse a model that generates without saying how, or that says it and is refused."""
    needed = ("sampler", "context", "profiles")
    if "refuse" in preset:
        if extra := [key for key in needed if key in preset]:
            raise UsageError(f"{where}: it refuses to generate, so {extra[0]} says nothing")
        return
    if missing := [key for key in needed if key not in preset]:
        raise UsageError(f"{where}: {', '.join(missing)} missing")
    _check_profiles(preset, where)
    sampler = preset["sampler"]
    timesteps = sampler.get("timesteps")
    if sampler["stepper"] == "renoise" and timesteps is None:
        raise UsageError(f"{where}: sampler: timesteps missing")
    if timesteps is not None and len(timesteps) != sampler["num_chunks"]:
        raise UsageError(
            f"{where}: sampler: {len(timesteps)} timesteps for {sampler['num_chunks']} chunks"
        )


def _check_profiles(preset: dict[str, Any], where: str) -> None:
    """Refuse profiles that do not rise, do not fit their card, or keep what is never seen."""
    context, size = preset["context"], preset["sampler"]["chunk_size"]
    sink = context["sink_frames"]
    most = sink + context["attended_frames"] - size if sink else 0
    cards = [profile["vram"] for profile in preset["profiles"]]
    if cards != sorted(set(cards)):
        raise UsageError(f"{where}: profiles must be of rising vram, not {cards}")
    for profile in preset["profiles"]:
        said = f"{where}: profile of {profile['vram']} GB"
        if profile["estimate"] > profile["vram"]:
            raise UsageError(f"{said}: an estimate of {profile['estimate']} GB does not fit")
        held = profile["context_frames"]
        if not sink and held:
            raise UsageError(f"{said}: context_frames is {held}, the model keeps no context")
        if sink and (held % size or not sink + size <= held <= most):
            raise UsageError(
                f"{said}: context_frames must be a multiple of {size} from {sink + size} to "
                f"{most}, not {held}"
            )
