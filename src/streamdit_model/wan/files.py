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

__all__ = ["Names", "check_entries", "fill_module", "read_headers", "read_in_dtype"]

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
    if not paths:
        raise WeightsError(f"no file of the {what} is given, at least one is needed")
    entries, homes = read_headers(paths)
    stored = names({key: key for key in entries})
    shapes = {stored[ours]: tuple(tensor.shape) for ours, tensor in module.state_dict().items()}
    check_entries(what, entries, shapes, hint="take the file that the preset names, unchanged")
    state = read_in_dtype(stored, homes, dtype, device)
    module.load_state_dict(state, strict=True, assign=True)
    module.eval().requires_grad_(False)
    return module


def read_headers(paths: Sequence[Path]) -> tuple[dict[str, TensorEntry], dict[str, Path]]:
    """Return the entries of all files together, and the file of each tensor.

    Raises:
        WeightsError: a file is missing, damaged or a pickle, or a tensor stands in two.
    """
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
                    f"{quoted(name)} stands in both {homes[name].name} and {path.name}"
                )
            entries[name], homes[name] = entry, path
    return entries, homes


def check_entries(
    what: str,
    entries: Mapping[str, TensorEntry],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    hint: str,
) -> None:
    """Compare shapes and dtypes with what a network needs.

    Args:
        what: the part, for messages.
        entries: of the files.
        shapes: key in the files -> shape; every key is among the entries.
        hint: for a wrong shape.

    Raises:
        WeightsError: a shape is another, or a dtype is none of a weight.
    """
    for name, shape in shapes.items():
        entry = entries[name]
        if entry.shape != shape:
            raise WeightsError(f"{what}: {quoted(name)} is {entry.shape}, expected {shape}", hint)
        if entry.dtype not in _FILE_DTYPES:
            allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in _FILE_DTYPES)
            raise WeightsError(f"{what}: {quoted(name)} is {entry.dtype}, allowed are {allowed}")


def read_in_dtype(
    stored: Mapping[str, str],
    homes: Mapping[str, Path],
    dtype: torch.dtype,
    device: torch.device,
) -> dict[str, Tensor]:
    """Return tensors by our names, finite in a dtype, moved to a device one by one.

    Args:
        stored: our name -> key in the files.
        homes: key -> file.
        dtype: of the result.
        device: where it goes.

    Raises:
        WeightsError: a file cannot be read, or a value is not finite.
    """
    state: dict[str, Tensor] = {}
    for path in dict.fromkeys(homes.values()):
        try:
            tensors = read_tensors(path)
        except OSError as error:
            raise WeightsError(f"{path.name} cannot be read: {error.strerror}") from error
        for name, key in stored.items():
            if homes[key] == path:
                value = finite(path.name, {key: tensors.pop(key)}, dtype)[key]
                state[name] = value.to(device)
    return state
