"""How files of weights are written so that they are whole or absent, and read without trust.

Writing: everything goes into a new folder beside the target, every file is flushed to the disk,
and one rename puts the folder in its place. Reading: only safetensors and JSON, whose sizes, names
and structure are checked before anything is allocated for them. This file knows neither models nor
checkpoints.
"""

import errno
import json
import math
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from streamdit_model.errors import WeightsError

__all__ = [
    "MAX_HEADER_BYTES",
    "MAX_TENSORS",
    "NO_PICKLE",
    "TensorEntry",
    "new_folder",
    "parse_json",
    "quoted",
    "read_bytes",
    "read_header",
    "read_tensors",
    "remove_leftovers",
    "sync_folder",
    "write_tensors",
    "write_text",
]

MAX_HEADER_BYTES = 8 * 2**20
MAX_TENSORS = 20_000
_MAX_DIMENSIONS = 16
_MAX_ELEMENTS = 2**62
_LEFTOVER = re.compile(r"(?P<name>.+)\.(?P<kind>partial|replaced)-(?P<process>[0-9]{1,10})")
NO_PICKLE = "only .safetensors files are opened; use the safetensors form of these weights"
_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """What a safetensors header says of one tensor; `size_bytes` is its size in the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    size_bytes: int


# Writing.


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `target` when the block ends without an error.

    A reader sees all of it or nothing: after a crash at any moment `target` is absent or complete.
    The folder in the making is `NAME.partial-PROCESS`; after an error it is removed. A folder that
    is there already is replaced: it is set aside as `NAME.replaced-PROCESS` and removed at the end,
    so there is one moment, between two renames, in which only those two names exist.
    """
    partial = target.with_name(f"{target.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    os.mkdir(partial)
    try:
        yield partial
        sync_folder(partial)
        _put_in_place(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _put_in_place(partial: Path, target: Path) -> None:
    if not target.exists():
        os.rename(partial, target)
        sync_folder(target.parent)
        return
    replaced = target.with_name(f"{target.name}.replaced-{os.getpid()}")
    os.rename(target, replaced)
    try:
        os.rename(partial, target)
    except BaseException:
        os.rename(replaced, target)
        raise
    sync_folder(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def remove_leftovers(folder: Path, name: re.Pattern[str]) -> None:
    """Clean up after processes that ended inside `new_folder`, and after earlier tries of this one.

    Args:
        folder: where the finished folders, or files, lie.
        name: what they are called; others are left alone.
    """
    for path in sorted(folder.iterdir(), reverse=True):  # NAME.replaced before NAME.partial
        found = _LEFTOVER.fullmatch(path.name)
        if not found or not name.fullmatch(found["name"]) or _is_alive(int(found["process"])):
            continue
        target = path.with_name(found["name"])
        if found["kind"] == "replaced" and not target.exists():
            os.rename(path, target)
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a new safetensors file that is on the disk when this returns.

    Raises:
        OSError: the disk is full or refuses.
    """
    with open(path, "xb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    try:
        save_file(_separate(tensors), path)
    except SafetensorError as error:
        number = re.search(r"os error ([0-9]+)", str(error))
        code = int(number[1]) if number else errno.EIO
        raise OSError(code, os.strerror(code), str(path)) from error
    os.chmod(path, mode)  # safetensors leaves a file that only its owner can read
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    """Write a new UTF-8 file that is on the disk when this returns."""
    with open(path, "x", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk, where the platform can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Reading.


def read_bytes(path: Path, limit: int) -> bytes:
    """Return the bytes of a regular file of at most `limit` bytes.

    Raises:
        WeightsError: the file is missing, no regular file, or too long.
        OSError: the system refuses to read it.
    """
    size = _regular_size(path)
    if size > limit:
        raise WeightsError(f"{path.name} has {size} bytes, at most {limit} are allowed")
    return path.read_bytes()


def parse_json(raw: bytes, what: str) -> object:
    """Parse JSON strictly: UTF-8, no key twice, no NaN, no infinity.

    Raises:
        WeightsError: anything else; `what` names the file.
    """
    try:
        return json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
    except RecursionError:
        raise WeightsError(f"{what} is not valid JSON: nested too deeply") from None
    except ValueError as error:
        raise WeightsError(f"{what} is not valid JSON: {str(error)[:120]}") from None


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Return what a safetensors file holds, without reading its tensors.

    Raises:
        WeightsError: the file is missing, another format, damaged, or beyond the limits of
            8 MB of header and 20,000 tensors.
        OSError: the system refuses to read it.
    """
    size = _regular_size(path)
    with open(path, "rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if size < 10 or length > min(size - 8, MAX_HEADER_BYTES):
            other = _other_format(start)
            raise WeightsError(
                f"{path.name} is {other or 'damaged'}, not a safetensors file: header of {length}"
                f" bytes in a file of {size}, at most {MAX_HEADER_BYTES} are allowed",
                hint=NO_PICKLE if other else "",
            )
        raw = file.read(length)
    return _entries(path.name, raw, size - 8 - length)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, on the CPU, after `read_header` accepted it.

    Raises:
        WeightsError, OSError: see `read_header`.
    """
    read_header(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise WeightsError(f"{path.name} cannot be read: {str(error)[:120]}") from error


def quoted(text: str) -> str:
    """Return foreign text for a message: quoted, control characters escaped, not too long."""
    return ascii(text if len(text) <= 80 else text[:77] + "...")


def _regular_size(path: Path) -> int:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise WeightsError(f"{path.name} is missing in {path.parent}") from None
    if not stat.S_ISREG(status.st_mode):
        raise WeightsError(f"{path.name} is not a regular file")
    return status.st_size


def _other_format(start: bytes) -> str:
    """Name the format that the first bytes belong to; "" when they are none that we know."""
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "a zip archive"
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "a pickle"
    return ""


def _entries(name: str, raw: bytes, data_bytes: int) -> dict[str, TensorEntry]:
    """Check the header of a file with `data_bytes` bytes of tensors and return its entries."""
    if not raw.startswith(b"{"):
        raise WeightsError(f"{name} is not a safetensors file: the header does not start with '{{'")
    # A header far beyond the limit is refused before JSON makes millions of objects of it.
    if raw.count(b"{") + raw.count(b"[") > 4 * MAX_TENSORS or raw.count(b'"') > 16 * MAX_TENSORS:
        raise WeightsError(f"{name} has more than {MAX_TENSORS} tensors")
    header = parse_json(raw, f"header of {name}")
    assert isinstance(header, dict)
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise WeightsError(f"{name} has {len(header)} tensors, at most {MAX_TENSORS} are allowed")
    entries, spans = {}, []
    for key, value in header.items():
        entries[key], span = _entry(f"{name}: {quoted(key)}", value)
        spans.append(span)
    end = 0
    for start, stop in sorted(spans):
        if start != end:
            raise WeightsError(f"{name} is damaged: tensors overlap or leave a gap at byte {end}")
        end = stop
    if end != data_bytes:
        raise WeightsError(f"{name} is damaged: {data_bytes} bytes of tensors, {end} are announced")
    return entries


def _entry(what: str, value: object) -> tuple[TensorEntry, tuple[int, int]]:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise WeightsError(f"{what} is not an entry of dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise WeightsError(f"{what} has an unknown dtype, allowed are {', '.join(_DTYPES)}")
    if not _are_counts(shape) or len(shape) > _MAX_DIMENSIONS:
        raise WeightsError(f"{what} has an impossible shape")
    if not _are_counts(offsets) or len(offsets) != 2:
        raise WeightsError(f"{what} has impossible data_offsets")
    extent = 1
    for size in shape:
        extent *= max(size, 1)
        if extent > _MAX_ELEMENTS:
            raise WeightsError(f"{what} has an impossible shape")
    size_bytes = math.prod(shape) * _DTYPES[dtype].itemsize
    if offsets[1] - offsets[0] != size_bytes:
        raise WeightsError(
            f"{what} takes {offsets[1] - offsets[0]} bytes, its shape and dtype need {size_bytes}"
        )
    return TensorEntry(_DTYPES[dtype], tuple(shape), size_bytes), (offsets[0], offsets[1])


def _are_counts(value: object) -> bool:
    return isinstance(value, list) and all(
        type(number) is int and 0 <= number <= _MAX_ELEMENTS for number in value
    )


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands there twice")
    return result


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not a finite number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is not a finite number")
    return value


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return CPU tensors, contiguous, no two of which share memory, as the format needs them."""
    result: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        address = value.untyped_storage().data_ptr()
        result[name] = value.clone() if address in seen else value
        seen.add(address)
    return result


def _is_alive(process: int) -> bool:
    """Say whether another process runs under this number (True where that cannot be known)."""
    if process == os.getpid():
        return False
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
