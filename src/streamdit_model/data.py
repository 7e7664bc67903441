"""The latent cache: streams encoded once, with their captions, and windows cut from them.

A cache is a folder of safetensors shards; each holds the latents of some clips (as bfloat16) and,
in its header, their captions as JSON. `index.json` says which autoencoder made them, and a cache
made with another one is refused. Clips are encoded as streams from their first frame, so that
windows from the middle carry what came before, as at inference.

Paper: section 5.1 trains on windows of a longer video. The shapes world is one source of clips.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from streamdit_model.autoencoder import TIME_FACTOR, Autoencoder
from streamdit_model.captions import caption, paraphrase
from streamdit_model.errors import WeightsError
from streamdit_model.shapes import Clip, SwitchClip, draw_clip, render_batch, switch
from streamdit_model.storage import remove_leftovers

__all__ = [
    "ClipSet",
    "ClipText",
    "LatentCache",
    "encode_shapes",
    "fingerprint",
    "is_cache_of",
    "is_reserved",
    "training_clip",
]

FORMAT = "streamdit-latents-1"
SHARD_CLIPS = 256
ENCODED_CLIPS = 8  # at once
PARAPHRASES = 6  # ways to say each caption, beside the canonical one
_CACHE_FILE = re.compile(r"autoencoder\.sha256|index\.json|latents-[0-9]+\.safetensors")
RESERVED_SHARE = 10  # one caption of so many is kept for evaluation


@dataclass(frozen=True, slots=True)
class ClipText:
    """The captions of one clip, canonical first.

    Args:
        before: what holds from the first frame.
        after: what holds from latent frame `switch` on; empty when nothing changes.
        switch: latent frame that shows the change first; -1 when nothing changes.
    """

    before: tuple[str, ...]
    after: tuple[str, ...] = ()
    switch: int = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipSet:
    """Which clips of the shapes world a cache holds.

    Args:
        number: how many, at least 1.
        latent_frames: length of each stream, from its first frame; more than 4.
        resolution: pixels per side.
        switch_share: share of clips in which one attribute changes, 0 to 1.
        seed: of the clips.
    """

    number: int
    latent_frames: int
    resolution: int
    switch_share: float
    seed: int


class LatentCache:
    """All latents of a cache in memory, (clips, channels, frames, height, width) bfloat16."""

    def __init__(self, latents: Tensor, texts: Sequence[ClipText]) -> None:
        if len(latents) != len(texts):
            raise WeightsError(f"{len(latents)} clips of latents with {len(texts)} captions")
        self.latents = latents
        self.texts = tuple(texts)

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def num_frames(self) -> int:
        """Latent frames of a clip."""
        return self.latents.shape[2]

    @classmethod
    def open(cls, folder: Path, autoencoder: nn.Module) -> LatentCache:
        """Read a whole cache.

        Raises:
            WeightsError: the cache is incomplete or damaged, or was made with another autoencoder.
        """
        if not (folder / "index.json").is_file():
            raise WeightsError(f"no latent cache in {folder}", "encode it first: streamdit train")
        index = _index(folder)
        if index["autoencoder"] != fingerprint(autoencoder.state_dict()):
            raise _another_autoencoder(folder)
        parts, texts = [], []
        for number in range(index["shards"]):
            latents, shard_texts = _read_shard(_shard(folder, number))
            parts.append(latents)
            texts += shard_texts
        return cls(torch.cat(parts), texts)

    def window(self, clip: int, first: int, length: int) -> Tensor:
        """Return latents [first, first + length) of a clip, (channels, length, h, w) float32."""
        return self.latents[clip, :, first : first + length].float()


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """Return a sha256 over names, shapes and values of weights, rounded to bfloat16."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(f"{name} {tuple(value.shape)}".encode())
        value = value.detach().cpu().to(torch.bfloat16).contiguous()
        digest.update(value.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def is_cache_of(folder: Path, autoencoder: nn.Module) -> bool:
    """Say whether the folder holds a complete cache that this autoencoder has made."""
    if not (folder / "index.json").is_file():
        return False
    return _index(folder)["autoencoder"] == fingerprint(autoencoder.state_dict())


def is_reserved(clip: Clip) -> bool:
    """Say whether the clip's caption is kept for evaluation: one canonical caption in ten."""
    digest = hashlib.sha256(caption(clip).encode()).digest()
    return int.from_bytes(digest[:4], "big") % RESERVED_SHARE == 0


def training_clip(seed: int, index: int) -> Clip:
    """Return the clip number `index` of the training set: no held-out pair, no reserved caption."""
    for attempt in range(10_000):
        clip = draw_clip(seed, index * 10_000 + attempt)
        if not is_reserved(clip):
            return clip
    raise AssertionError("every caption is reserved")


def encode_shapes(
    folder: Path,
    autoencoder: Autoencoder,
    clips: ClipSet,
    *,
    precision: str = "float32",
    on_progress: Callable[[int], None] = lambda done: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Render, encode and store clips of the shapes world; shards that exist are kept.

    Args:
        folder: of the cache.
        autoencoder: in evaluation mode.
        clips: which ones.
        precision: "float32", or "bfloat16" for autocast.
        on_progress: called with the clips done after each shard.
        should_stop: asked between a few clips; True leaves the cache incomplete, to go on later.

    Returns:
        Whether the cache is complete.

    Raises:
        WeightsError: the folder holds latents of another autoencoder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(folder, _CACHE_FILE)
    name = fingerprint(autoencoder.state_dict())
    owner = folder / "autoencoder.sha256"
    if not owner.exists():
        temporary = folder / f"autoencoder.sha256.partial-{os.getpid()}"
        temporary.write_text(name, encoding="ascii")
        _put_in_place(temporary, owner)
    elif owner.read_text(encoding="ascii") != name:
        raise _another_autoencoder(folder)
    starts = range(0, clips.number, SHARD_CLIPS)
    for shard, start in enumerate(starts):
        path = _shard(folder, shard)
        numbers = range(start, min(start + SHARD_CLIPS, clips.number))
        if not path.exists():
            latents, texts = _encoded(autoencoder, clips, numbers, precision, should_stop)
            if len(latents) < len(numbers):
                return False
            _write_shard(path, latents, texts)
        on_progress(numbers.stop)
    index = {"format": FORMAT, "autoencoder": name, "shards": len(starts)}
    temporary = folder / f"index.json.partial-{os.getpid()}"
    temporary.write_text(json.dumps(index), encoding="utf-8")
    _put_in_place(temporary, folder / "index.json")
    return True


def _encoded(
    autoencoder: Autoencoder,
    clips: ClipSet,
    numbers: range,
    precision: str,
    should_stop: Callable[[], bool],
) -> tuple[Tensor, list[ClipText]]:
    """Return latents and captions of some clips; of fewer when stopped."""
    video_frames = clips.latent_frames * TIME_FACTOR
    drawn = [_draw(clips.seed, number, video_frames, clips.switch_share) for number in numbers]
    parameter = next(autoencoder.parameters())
    parts: list[Tensor] = []
    autocast = torch.autocast(
        parameter.device.type, torch.bfloat16, enabled=precision == "bfloat16"
    )
    with torch.inference_mode(), autocast:
        for start in range(0, len(drawn), ENCODED_CLIPS):
            if should_stop():
                break
            some = [clip for clip, _ in drawn[start : start + ENCODED_CLIPS]]
            pixels = render_batch(some, video_frames, clips.resolution)
            video = pixels.to(parameter.device).permute(0, 4, 1, 2, 3).to(parameter.dtype) / 255
            parts.append(autoencoder.encode(video).to("cpu", torch.bfloat16))
    latents = torch.cat(parts).contiguous() if parts else torch.empty(0)
    return latents, [text for _, text in drawn]


def _write_shard(path: Path, latents: Tensor, texts: Sequence[ClipText]) -> None:
    temporary = path.with_name(f"{path.name}.partial-{os.getpid()}")
    metadata = {"texts": json.dumps([asdict(text) for text in texts])}
    save_file({"latents": latents}, temporary, metadata=metadata)
    _put_in_place(temporary, path)


def _put_in_place(temporary: Path, path: Path) -> None:
    """Give a file its name once all of it is on the disk."""
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    temporary.replace(path)


def _read_shard(path: Path) -> tuple[Tensor, list[ClipText]]:
    try:
        with safe_open(path, framework="pt") as file:
            texts = [_text(entry) for entry in json.loads(file.metadata()["texts"])]
            return file.get_tensor("latents"), texts
    except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
        raise WeightsError(
            f"{path.name} of the latents in {path.parent} is missing or damaged",
            f"delete {path.parent} to encode them again",
        ) from error


def _index(folder: Path) -> dict[str, Any]:
    """Read index.json: format, autoencoder and shards."""
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        if index["format"] == FORMAT and index["shards"] >= 1 and index["autoencoder"]:
            return index
    except (ValueError, TypeError, KeyError):
        pass
    raise WeightsError(
        f"index.json of the latents in {folder} is damaged, or of another format than {FORMAT}",
        f"delete {folder} to encode them again",
    )


def _another_autoencoder(folder: Path) -> WeightsError:
    return WeightsError(
        f"the latents in {folder} were made with another autoencoder",
        "delete the folder to encode them again",
    )


def _draw(
    seed: int, number: int, video_frames: int, switch_share: float
) -> tuple[Clip | SwitchClip, ClipText]:
    """Return clip number `number`, with or without a switch, and its captions."""
    clip = training_clip(seed, number)
    digest = hashlib.sha256(f"{seed} {number}".encode()).digest()
    share = int.from_bytes(digest[:4], "big") / 2**32
    before = _captions(clip, seed, number)
    if share >= switch_share:
        return clip, ClipText(before)
    room = video_frames - 4 * TIME_FACTOR
    frame = 2 * TIME_FACTOR + int.from_bytes(digest[4:8], "big") % room
    changed = switch(clip, seed, number, frame=frame)
    if is_reserved(changed.after):
        return clip, ClipText(before)
    after = _captions(changed.after, seed, number)
    return changed, ClipText(before, after, frame // TIME_FACTOR)


def _captions(clip: Clip, seed: int, number: int) -> tuple[str, ...]:
    said = (paraphrase(clip, seed, number * PARAPHRASES + way) for way in range(PARAPHRASES))
    return (caption(clip), *said)


def _shard(folder: Path, number: int) -> Path:
    return folder / f"latents-{number:05d}.safetensors"


def _text(entry: dict[str, object]) -> ClipText:
    before, after, frame = entry["before"], entry["after"], entry["switch"]
    assert isinstance(before, list) and isinstance(after, list) and isinstance(frame, int)
    return ClipText(tuple(before), tuple(after), frame)
