"""The tensors of one part of a model in its folder: one safetensors file, or shards with an index.

File names come from the part's name, and from an index only when they have the form of a shard of
that part, so that nothing outside the folder is ever opened. This file knows no architecture.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from streamdit_model.errors import WeightsError
from streamdit_model.storage import (
    MAX_TENSORS,
    NO_PICKLE,
    TensorEntry,
    parse_json,
    quoted,
    read_bytes,
    read_header,
    read_tensors,
    write_tensors,
    write_text,
)

__all__ = [
    "MAX_JSON_BYTES",
    "PICKLE_SUFFIXES",
    "finite",
    "part_entries",
    "read_part",
    "write_part",
]

PICKLE_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle")
MAX_JSON_BYTES = 4 * 2**20
_SHARD = r"{part}-[0-9]{{5}}-of-[0-9]{{5}}\.safetensors"


def part_entries(folder: Path, part: str) -> dict[str, TensorEntry]:
    """Return the headers of a part, all its files together.

    Raises:
        WeightsError: a file is missing, damaged, or not what the index says.
        OSError: the system refuses to read one.
    """
    paths, announced = _part_files(folder, part)
    entries: dict[str, TensorEntry] = {}
    for path in paths:
        header = read_header(path)
        if announced is not None and header.keys() != announced[path]:
            raise WeightsError(f"{path.name} does not hold the tensors that its index says")
        entries |= header
    return entries


def read_part(
    folder: Path, part: str, dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    """Return the tensors of a part, `finite` in a dtype, on a device.

    Raises:
        WeightsError, OSError: as in `part_entries`, or a value is not finite.
    """
    state: dict[str, Tensor] = {}
    for path in _part_files(folder, part)[0]:
        cast = finite(path.name, read_tensors(path), dtype)
        state |= {name: tensor.to(device) for name, tensor in cast.items()}
    return state


def finite(what: str, state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return float tensors in a dtype, others as they are, all of them finite.

    Every tensor gets memory of its own: a mapped file that is cut short must not end the process.

    Raises:
        WeightsError: a value is not finite; the tensor is named.
    """
    result: dict[str, Tensor] = {}
    for name, tensor in state.items():
        target = dtype if tensor.is_floating_point() else tensor.dtype
        value = tensor.detach().to(target, copy=True)
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise WeightsError(
                f"{what}: {quoted(name)} holds values that are not finite in {dtype}",
                hint="take an earlier checkpoint, or fetch the weights again",
            )
        result[name] = value
    return result


def write_part(folder: Path, part: str, state: dict[str, Tensor], max_shard_bytes: int) -> None:
    """Write a part as one file, or as shards of about `max_shard_bytes` with their index."""
    shards: list[dict[str, Tensor]] = [{}]
    room = max_shard_bytes
    for name, tensor in state.items():
        if shards[-1] and tensor.nbytes > room:
            shards.append({})
            room = max_shard_bytes
        shards[-1][name] = tensor
        room -= tensor.nbytes
    if len(shards) == 1:
        write_tensors(folder / f"{part}.safetensors", state)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file_name = f"{part}-{number:05d}-of-{len(shards):05d}.safetensors"
        write_tensors(folder / file_name, shard)
        weight_map |= dict.fromkeys(shard, file_name)
    total = sum(tensor.nbytes for tensor in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_text(folder / f"{part}.safetensors.index.json", json.dumps(index, indent=2) + "\n")


def _part_files(folder: Path, part: str) -> tuple[list[Path], dict[Path, set[str]] | None]:
    """Return the files of a part, and when it is sharded the tensors that each should hold."""
    single = folder / f"{part}.safetensors"
    index_path = folder / f"{part}.safetensors.index.json"
    if single.exists() and index_path.exists():
        raise WeightsError(f"{folder} has both {single.name} and {index_path.name}, one is needed")
    if not index_path.exists():
        if not single.exists():
            _refuse_other_formats(folder, part)
        return [single], None
    index = parse_json(read_bytes(index_path, MAX_JSON_BYTES), index_path.name)
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict) or not 0 < len(names) <= MAX_TENSORS:
        raise WeightsError(f"{index_path.name} has no weight_map of 1 to {MAX_TENSORS} tensors")
    announced: dict[Path, set[str]] = {}
    for tensor, name in names.items():
        if not isinstance(name, str) or not re.fullmatch(_SHARD.format(part=part), name):
            raise WeightsError(
                f"{index_path.name} names the file {quoted(str(name))}, which is not a shard"
                f" {part}-00001-of-0000N.safetensors"
            )
        announced.setdefault(folder / name, set()).add(tensor)
    return sorted(announced), announced


def _refuse_other_formats(folder: Path, part: str) -> None:
    others = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in PICKLE_SUFFIXES)
    found = f"; {quoted(others[0])} is not opened" if others else ""
    raise WeightsError(
        f"{part}.safetensors is missing in {folder}{found}", hint=NO_PICKLE if others else ""
    )
