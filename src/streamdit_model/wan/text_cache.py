"""Prompts that were encoded once, on the disk, so that a repeated one needs no text encoder.

A file is one prompt: its real rows and a checksum. Its name is the hash of everything the rows
depend on. A file that is damaged in any way is computed again; a disk that cannot be written costs
time, never a video. The rows of a hit are the bits of the miss before it.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from streamdit_model.errors import ConfigError, WeightsError
from streamdit_model.storage import quoted, read_header, read_tensors, write_tensors
from streamdit_model.text import TextCondition
from streamdit_model.wan.text import WanTextEncoder, clean_prompt, padded_condition
from streamdit_model.wan.text_weights import WanTextConfig

__all__ = ["MAX_CACHE_BYTES", "EncoderIdentity", "TextCache"]

MAX_CACHE_BYTES = 512 * 2**20
"""About 600 prompts of 100 tokens. Choice: little beside the weights, much for a person."""

_FORMAT = 1
_HEX = frozenset("0123456789abcdef")
_FORGOTTEN_SECONDS = 3600.0  # a file in the making this old belongs to no living process
_AFTER = ("keep", "offload", "free")


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderIdentity:
    """Everything the rows of a prompt depend on, the prompt aside.

    Args:
        file_hashes: sha256 of the encoder's files and of the tokenizer's, in any order.
        config: the sizes.
        dtype: of weights and rows.
        device_type: "cpu" or "cuda".

    Raises:
        ConfigError: no hash, or one that is not 64 lower-case hexadecimal digits.

    Choice: dtype and kind of device belong to it, since they round differently and the frames of a
    seed must not depend on what was encoded before.
    """

    file_hashes: tuple[str, ...]
    config: WanTextConfig
    dtype: torch.dtype
    device_type: str

    def __post_init__(self) -> None:
        if not self.file_hashes:
            raise ConfigError("no hash of the text encoder's files, at least one is needed")
        for value in self.file_hashes:
            if len(value) != 64 or not _HEX.issuperset(value):
                raise ConfigError(
                    f"{quoted(value)} is not a sha256: 64 digits of 0-9 and a-f are needed"
                )

    def file_name(self, cleaned_prompt: str) -> str:
        """Return the name of the file of a prompt; another prompt or encoder has another name."""
        said = {
            "format": _FORMAT,
            "files": sorted(self.file_hashes),
            "config": asdict(self.config),
            "dtype": str(self.dtype),
            "device": self.device_type,
            "prompt": cleaned_prompt,
        }
        raw = json.dumps(said, sort_keys=True).encode("ascii")
        return f"{hashlib.sha256(raw).hexdigest()}.safetensors"


class TextCache:
    """Encode prompts as `WanTextEncoder.encode` does, each of them once.

    One thread uses a cache; several processes may share its folder.

    Args:
        folder: where the files lie; made when the first is written.
        identity: which encoder in which form.
        device: where the rows go.
        make_encoder: called when a prompt is not there and no encoder is; returns it on `device`.
        after: what happens to the encoder after a call that used it: "keep" leaves it, "offload"
            moves it to the CPU until it is needed, "free" gives its memory back.
        max_bytes: size of all files together. Beyond it the prompts not used for longest are
            removed; the newest always stays.
        on_problem: called with one line when a file cannot be written; the prompt is used anyway.

    Raises:
        ConfigError: an unknown `after`, or a limit below 1.
    """

    def __init__(
        self,
        folder: Path,
        identity: EncoderIdentity,
        device: torch.device | str,
        make_encoder: Callable[[], WanTextEncoder],
        *,
        after: str = "keep",
        max_bytes: int = MAX_CACHE_BYTES,
        on_problem: Callable[[str], None] = lambda line: None,
    ) -> None:
        if after not in _AFTER:
            raise ConfigError(f"after {after!r} is unknown; {', '.join(_AFTER)} are known")
        if max_bytes < 1:
            raise ConfigError(f"text cache of {max_bytes} bytes is not at least 1")
        self._folder = folder
        self._identity = identity
        self._device = torch.device(device)
        self._make_encoder = make_encoder
        self._after = after
        self._max_bytes = max_bytes
        self._on_problem = on_problem
        self._encoder: WanTextEncoder | None = None

    def has(self, prompt: str) -> bool:
        """Say whether a prompt is there whole, so that it needs no encoder.

        Raises:
            ConfigError: the prompt cannot be written as UTF-8.
        """
        return self._read(self._path(clean_prompt(prompt))) is not None

    def encode(self, prompts: Sequence[str]) -> TextCondition:
        """Return the condition of prompts, from the disk where they are there.

        Args:
            prompts: at least one; "" is the null prompt of guidance.

        Returns:
            As `WanTextEncoder.encode`, on the device.

        Raises:
            ConfigError, NumericsError, WeightsError: as there, and what `make_encoder` raises.
        """
        if not prompts:
            raise ConfigError("no prompt to encode, at least one is needed")
        paths = {prompt: self._path(clean_prompt(prompt)) for prompt in prompts}
        rows: dict[Path, Tensor] = {}
        missing: dict[Path, str] = {}
        for prompt, path in paths.items():
            found = self._read(path)
            if found is None:
                missing[path] = prompt
            else:
                rows[path] = found
        if missing:
            rows |= self._computed(missing)
        length = self._identity.config.max_tokens
        conditions = [
            padded_condition(rows[paths[prompt]].to(self._device), length) for prompt in prompts
        ]
        return TextCondition(
            torch.cat([condition.tokens for condition in conditions]),
            torch.cat([condition.mask for condition in conditions]),
        )

    def free(self) -> None:
        """Give the encoder's memory back; a later miss makes a new one."""
        if self._encoder is not None:
            self._encoder.free()
            self._encoder = None

    def _computed(self, missing: Mapping[Path, str]) -> dict[Path, Tensor]:
        """Encode prompts, write them, and do with the encoder what `after` says.

        The encoder gets them as they were typed: cleaning a clean prompt again may change it.
        """
        if self._encoder is None:
            self._encoder = self._make_encoder()
        elif self._after == "offload":
            self._encoder.move(self._device)
        rows: dict[Path, Tensor] = {}
        try:
            for path, prompt in missing.items():
                condition = self._encoder.encode([prompt])
                rows[path] = condition.tokens[0, : int(condition.mask.sum())].clone()
                self._write(path, rows[path])
        finally:
            if self._after == "offload":
                self._encoder.move("cpu")
            elif self._after == "free":
                self.free()
        return rows

    def _path(self, cleaned: str) -> Path:
        return self._folder / self._identity.file_name(cleaned)

    def _read(self, path: Path) -> Tensor | None:
        """Return the rows of a file, (tokens, width) on the CPU; None if it is not whole."""
        config = self._identity.config
        try:
            entries = read_header(path)
            if entries.keys() != {"rows", "sha256"}:
                return None
            shape = entries["rows"].shape
            if len(shape) != 2 or not 1 <= shape[0] <= config.max_tokens:
                return None
            if shape[1] != config.width or entries["rows"].dtype != self._identity.dtype:
                return None
            tensors = read_tensors(path)
        except (WeightsError, OSError):
            return None
        rows = tensors["rows"].clone()  # the file is mapped, and may be removed
        if not torch.equal(tensors["sha256"], _checksum(path.stem, rows)):
            return None
        with suppress(OSError):  # a folder that can only be read keeps its order
            os.utime(path)  # the ones not used for longest are removed first
        return rows

    def _write(self, path: Path, rows: Tensor) -> None:
        """Write a file whole or not at all, then keep the folder within its limit."""
        rows = rows.cpu().contiguous()
        partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            partial.unlink(missing_ok=True)
            try:
                write_tensors(partial, {"rows": rows, "sha256": _checksum(path.stem, rows)})
                os.replace(partial, path)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
            self._trim(path)
        except OSError as error:
            self._on_problem(f"encoded prompts cannot be kept in {self._folder}: {error.strerror}")

    def _trim(self, newest: Path) -> None:
        """Remove what was not used for longest beyond the limit, and files left in the making."""
        found: list[tuple[int, int, Path]] = []
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):  # another process removes files too
                status = path.stat()
                if ".safetensors.partial-" in path.name:
                    if status.st_mtime < time.time() - _FORGOTTEN_SECONDS:
                        path.unlink()
                elif path.suffix == ".safetensors" and path != newest:
                    found.append((status.st_mtime_ns, status.st_size, path))
        room = self._max_bytes - newest.stat().st_size
        for _, size, path in sorted(found, reverse=True):
            room -= size
            if room < 0:
                path.unlink(missing_ok=True)


def _checksum(name: str, rows: Tensor) -> Tensor:
    """Return the sha256 of a file's name and rows, uint8 (32,)."""
    digest = hashlib.sha256(f"{name} {tuple(rows.shape)} {rows.dtype} ".encode("ascii"))
    digest.update(rows.contiguous().view(torch.uint8).numpy().tobytes())
    return torch.tensor(list(digest.digest()), dtype=torch.uint8)
