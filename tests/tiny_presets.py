"""Presets of open weights for tests: as a shipped one, with small files of a hub of our own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PRESETS = Path(__file__).parents[1] / "presets"


def pin(path: str, data: bytes | None) -> dict[str, Any]:
    """Return the entry of a file; without its bytes nothing is known of it."""
    if data is None:
        return {"path": path, "size": 0, "sha256": "", "about": 1000}
    return {"path": path, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def preset_text(name: str, sources: Sequence[dict[str, Any]], *, extra: str = "") -> str:
    """Return the text of a preset: words and network of `rolling-1.3b`, other weights.

    Args:
        name: of the preset.
        sources: part, repo, revision and files, as `pin` returns them.
        extra: lines of the first table.
    """
    shipped = (PRESETS / "rolling-1.3b.toml").read_text(encoding="utf-8")
    head = shipped[: shipped.index("[weights]")].replace('"rolling-1.3b"', json.dumps(name))
    tail = shipped[shipped.index("[network]") :]
    head = head.replace("\nmeasured", f"\n{extra}\nmeasured", 1)
    lines = ["[weights]"]
    files = [file for source in sources for file in source["files"]]
    is_open = any(not source["revision"] for source in sources)
    if is_open or any(not file["size"] or not file["sha256"] for file in files):
        lines += ["unverified = true", 'reason = "it is a test"']
    for source in sources:
        lines.append("[[weights.sources]]")
        words = {"licence": "none", **{key: source[key] for key in ("part", "repo", "revision")}}
        lines += [f"{key} = {json.dumps(value)}" for key, value in words.items()]
        for file in source["files"]:
            lines.append("[[weights.sources.files]]")
            lines += [f"{key} = {json.dumps(value)}" for key, value in file.items()]
    return head + "\n".join(lines) + "\n" + tail


def write_preset(
    folder: Path, name: str, sources: Sequence[dict[str, Any]], *, extra: str = ""
) -> Path:
    """Write such a preset; returns its file."""
    path = folder / f"{name}.toml"
    path.write_text(preset_text(name, sources, extra=extra), encoding="utf-8")
    return path
