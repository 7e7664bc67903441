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
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from streamdit_model.autoencoder import TIME_FACTOR, Autoencoder
from streamdit_model.captions import caption, paraphrase
from streamdit_model.errors import WeightsError
from streamdit_model.shapes import Clip, SwitchClip, draw_clip, render_batch, switch

__all__ = [
    "ClipText",
    "LatentCache",
    "encode_shapes",
    "fingerprint",
    "is_reserved",
    "training_clip",
]

FORMAT = "streamdit-latents-1"
SHARD_CLIPS = 256
PARAPHRASES = 6  # ways to say each caption, beside the canonical one
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
            WeightsError: the cache is incomplete, or was made with another autoencoder.
        """
        index_path = folder / "index.json"
        if not index_path.is_file():
            raise WeightsError(f"no latent cache in {folder}", "encode it first: streamdit train")
        index = json.loads(index_path.read_text(encoding="utf-8"))
        if index["format"] != FORMAT or index["autoencoder"] != fingerprint(autoencoder):
            raise WeightsError(
                f"the latents in {folder} were made with another autoencoder",
                "delete the folder to encode them again",
            )
        parts, texts = [], []
        for number in range(index["shards"]):
            with safe_open(_shard(folder, number), framework="pt") as file:
                parts.append(file.get_tensor("latents"))
                texts += [_text(entry) for entry in json.loads(file.metadata()["texts"])]
        return cls(torch.cat(parts), texts)

    def window(self, clip: int, first: int, length: int) -> Tensor:
        """Return latents [first, first + length) of a clip, (channels, length, h, w) float32."""
        return self.latents[clip, :, first : first + length].float()


def fingerprint(module: nn.Module) -> str:
    """Return a sha256 over names, shapes and values of a module's state, rounded to bfloat16."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)}".encode())
        value = value.detach().cpu().to(torch.bfloat16).contiguous()
        digest.update(bytes(value.view(torch.uint8).flatten().tolist()))
    return digest.hexdigest()


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
    *,
    clips: int,
    latent_frames: int,
    resolution: int,
    switch_share: float,
    seed: int,
    precision: str = "float32",
    on_progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Render, encode and store clips of the shapes world; whole shards that exist are kept.

    Args:
        folder: of the cache.
        autoencoder: in evaluation mode.
        clips: how many, rounded up to whole shards.
        latent_frames: length of each stream, from its first frame.
        resolution: pixels per side.
        switch_share: share of clips in which one attribute changes, 0 to 1.
        seed: of the clips.
        precision: "float32", or "bfloat16" for autocast.
        on_progress: called with the clips done after each shard.

    Raises:
        WeightsError: the folder holds latents of another autoencoder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = fingerprint(autoencoder)
    owner = folder / "autoencoder.sha256"
    if owner.exists() and owner.read_text(encoding="ascii") != name:
        raise WeightsError(
            f"the latents in {folder} were made with another autoencoder",
            "delete the folder to encode them again",
        )
    owner.write_text(name, encoding="ascii")
    shards = -(-clips // SHARD_CLIPS)
    for number in range(shards):
        path = _shard(folder, number)
        if not path.exists():
            numbers = range(number * SHARD_CLIPS, (number + 1) * SHARD_CLIPS)
            drawn = [_draw(seed, n, latent_frames * TIME_FACTOR, switch_share) for n in numbers]
            _write_shard(path, autoencoder, drawn, latent_frames, resolution, precision)
        on_progress((number + 1) * SHARD_CLIPS)
    index = {"format": FORMAT, "autoencoder": name, "shards": shards}
    temporary = folder / f"index.json.{os.getpid()}"
    temporary.write_text(json.dumps(index), encoding="utf-8")
    temporary.replace(folder / "index.json")


def _write_shard(
    path: Path,
    autoencoder: Autoencoder,
    drawn: Sequence[tuple[Clip | SwitchClip, ClipText]],
    latent_frames: int,
    resolution: int,
    precision: str,
) -> None:
    parameter = next(autoencoder.parameters())
    parts = []
    autocast = torch.autocast(
        parameter.device.type, torch.bfloat16, enabled=precision == "bfloat16"
    )
    with torch.inference_mode(), autocast:
        for start in range(0, len(drawn), 8):
            some = [clip for clip, _ in drawn[start : start + 8]]
            pixels = render_batch(some, latent_frames * TIME_FACTOR, resolution)
            video = pixels.to(parameter.device).permute(0, 4, 1, 2, 3).to(parameter.dtype) / 255
            parts.append(autoencoder.encode(video).to("cpu", torch.bfloat16))
    latents = torch.cat(parts).contiguous()
    texts = json.dumps([asdict(text) for _, text in drawn])
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    save_file({"latents": latents}, temporary, metadata={"texts": texts})
    temporary.replace(path)


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
