"""The published files of a Wan model: one part's tensors read strictly, one by one to the device.

A part is one safetensors file or several that together hold it. Names are translated by whoever
knows the layout; here names, shapes, dtypes and values are held against a network that was built
on the meta device, and it gets its weights. No pickle is ever opened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from streamdit_model.errors import WeightsError
from streamdit_model.shards import PICKLE_SUFFIXES, finite
from streamdit_model.storage import NO_PICKLE, TensorEntry, quoted, read_header, read_tensors

__all__ = ["Names", "fill_module"]

Names = Callable[[Mapping[str, str]], dict[str, str]]
"""names(key in the files -> the same key) -> our parameter -> its key; refuses other layouts."""

_FILE_DTYPES = (torch.bfloat16, torch.float32, torch.float16)
_Module = TypeVar("_Module", bound=nn.Module)


def fill_module(
    what: str,
    module: _Module,
    paths: Sequence[Path],
    names: Names,
    dtype: torch.dtype,
    device: torch.device,
) -> _Module:
    """Give a module of the meta device its weights; it is returned in evaluation mode.

    Each tensor is cast and moved by itself, so that beside the network no more than one tensor is
    in memory.

    Args:
        what: the part, for messages.
        module: built on the meta device.
        paths: safetensors files that together hold it, in any order.
        names: translates the layout.
        dtype: of the parameters.
        device: where they go.

    Raises:
        WeightsError: a file is missing, damaged or a pickle; names are those of no known layout; a
            shape or dtype does not fit; a value is not finite.
    """
    entries, homes = _headers(what, paths)
    stored = names({key: key for key in entries})
    expected = module.state_dict()
    _check_entries(what, entries, stored, expected)
    state: dict[str, Tensor] = {}
    for path in paths:
        tensors = _opened(path)
        for ours, key in stored.items():
            if homes[key] == path:
                value = finite(path.name, {key: tensors.pop(key)}, dtype)[key]
                state[ours] = value.to(device)
    module.load_state_dict(state, strict=True, assign=True)
    module.eval().requires_grad_(False)
    return module


def _headers(what: str, paths: Sequence[Path]) -> tuple[dict[str, TensorEntry], dict[str, Path]]:
    """Return the entries of all files together, and the file of each tensor."""
    if not paths:
        raise WeightsError(f"no file of the {what} is given, at least one is needed")
    entries: dict[str, TensorEntry] = {}
    homes: dict[str, Path] = {}
    for path in paths:
        if path.suffix.lower() in PICKLE_SUFFIXES:
            raise WeightsError(f"{path.name} is not a safetensors file", hint=NO_PICKLE)
        try:
            header = read_header(path)
        except OSError as error:
            raise WeightsError(f"{path.name} cannot be read: {error.strerror}") from error
        for name, entry in header.items():
            if name in entries:
                raise WeightsError(
                    f"{quoted(name)} of the {what} stands in both {homes[name].name} and"
                    f" {path.name}"
                )
            entries[name], homes[name] = entry, path
    return entries, homes


def _check_entries(
    what: str,
    entries: Mapping[str, TensorEntry],
    stored: Mapping[str, str],
    expected: Mapping[str, Tensor],
) -> None:
    for ours, tensor in expected.items():
        entry = entries[stored[ours]]
        name = quoted(stored[ours])
        if entry.shape != tuple(tensor.shape):
            raise WeightsError(
                f"{what}: {name} is {entry.shape}, expected {tuple(tensor.shape)}",
                hint="take the file that the preset names, unchanged",
            )
        if entry.dtype not in _FILE_DTYPES:
            allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in _FILE_DTYPES)
            raise WeightsError(f"{what}: {name} is {entry.dtype}, allowed are {allowed}")


def _opened(path: Path) -> dict[str, Tensor]:
    try:
        return read_tensors(path)
    except OSError as error:
        raise WeightsError(f"{path.name} cannot be read: {error.strerror}") from error
