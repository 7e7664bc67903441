"""What of open weights fits into the memory that is there: a profile, or a refusal with a way out.

A profile is a size, a decoder, what leaves the device, and the length of the context. What was
asked for on the command line wins over it. An amount of memory that was asked for chooses the
largest profile for such a card; else it is the largest that fits into what is free, and a network
that has room stays there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamdit_cli.cache import size_words
from streamdit_cli.open_config import open_config

if TYPE_CHECKING:
    import torch

    from streamdit_model.wan.memory import MemoryEstimate
    from streamdit_model.wan.model_config import WanModelConfig
    from streamdit_model.wan.offload import Offload

__all__ = ["Asked", "MemoryPlan", "Where", "look_around", "plan_memory"]

_GIGA = 10**9
_SMALLER = (3 / 4, 1 / 2, 1 / 4)  # of both sides, tried when nothing else fits
_RAM_FILE = Path("/proc/meminfo")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the command line says; None is nothing. `vram` is in GB, `size` (width, height)."""

    size: tuple[int, int] | None = None
    decoder: str | None = None
    offload: Offload | None = None
    vram: float | None = None


@dataclass(frozen=True, kw_only=True)
class Where:
    """A device and what of its memory may be used.

    Args:
        device, dtype: of the networks.
        name: of the device, in words.
        room: bytes; None where the system does not tell.
    """

    device: torch.device
    dtype: torch.dtype
    name: str
    room: int | None


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """How a model is loaded and what that needs.

    Args:
        preset: of the model.
        profile: of the preset.
        asked: that is not in the profile.
        config: with size, decoder and context.
        decoder, offload: that are used.
        where: it runs.
        estimate: of the memory.
        has_text: whether there is a text encoder.
    """

    preset: dict[str, Any]
    profile: dict[str, Any]
    asked: Asked
    config: WanModelConfig
    decoder: str
    offload: Offload
    where: Where
    estimate: MemoryEstimate
    has_text: bool

    @property
    def is_context_shorter(self) -> bool:
        """Whether less of the past is kept than the model can see."""
        context = self.config.context
        return context is not None and context.frames_held < replace(context, held=None).frames_held

    @property
    def fits(self) -> bool:
        """Whether there is room; prompts are encoded elsewhere where their encoder has none."""
        return self.where.room is None or self.estimate.video_phase <= self.where.room

    @property
    def text_device(self) -> torch.device:
        """Where the text encoder runs."""
        import torch

        device, room = self.where.device, self.where.room
        fits = room is None or self.estimate.text_phase <= room
        return device if device.type == "cuda" and fits else torch.device("cpu")

    @property
    def need(self) -> int:
        """Bytes on the device at the peak."""
        is_here = self.has_text and self.text_device == self.where.device
        return self.estimate.peak if is_here else self.estimate.video_phase

    @property
    def words(self) -> str:
        """The plan for people, without its memory."""
        config = self.config
        words = f"{config.width}x{config.height}, decoder {self.decoder}, offload {self.offload}"
        if config.context is not None:
            words += f", context of {config.context.frames_held} latent frames"
        return f"profile of {self.profile['vram']} GB: {words}"

    @property
    def hint(self) -> str:
        """Options that need less memory than this plan, for a message."""
        smaller = (option for option, plan in self._smaller() if plan.need < self.need)
        first = [option for option, _ in zip(smaller, range(3), strict=False)]
        return f"{', '.join(first)} or -m shapes needs less" if first else "use -m shapes"

    def say(self) -> None:
        """Tell the plan, what it needs, and how fast this device is expected to be."""
        from streamdit_cli import console

        room = self.where.room
        of = "" if room is None else f" of {size_words(room)}"
        console.status(f"{self.words}; needs about {size_words(self.need)}{of}, {self.where.name}")
        for speed in self.preset.get("speeds", []):
            if speed["device"].lower() in self.where.name.lower():
                console.status(f"expect {speed['fps']} FPS on this GPU ({speed['basis']})")
        text = self.estimate.text_phase
        if self.has_text and self.where.device.type == "cpu" and room is not None and text > room:
            console.warn(f"a prompt that was never encoded needs about {size_words(text)}")

    def require_room(self) -> None:
        """Refuse what does not fit, and hold a GPU to the memory that was asked for.

        Raises:
            DeviceError: with an option that fits.
        """
        from streamdit_model.errors import DeviceError

        if not self.fits:
            assert self.where.room is not None
            hint = next(
                (
                    f"{option} fits: about {size_words(plan.need)}"
                    for option, plan in self._smaller()
                    if plan.fits
                ),
                "no option makes it fit; use a smaller model: -m shapes",
            )
            need = size_words(self.estimate.video_phase)
            has = f"{self.where.name} has {size_words(self.where.room)}"
            raise DeviceError(f"{self.preset['name']} needs about {need}, {has}", hint)
        if self.asked.vram and self.where.device.type == "cuda":
            limit_gpu(self.where.device, self.asked.vram)

    def _smaller(self) -> Iterator[tuple[str, MemoryPlan]]:
        """Return options to type, each with the plan that it makes, mildest first."""

        def other(profile: dict[str, Any], asked: Asked) -> MemoryPlan:
            prompts = self.estimate.num_prompts
            return _planned(
                self.preset, profile, self.where, asked, num_prompts=prompts, has_text=self.has_text
            )

        tries: list[tuple[str, dict[str, Any]]] = [
            ("--offload text", {"offload": "text"}),
            ("--decoder small", {"decoder": "small"}),
            ("--offload cpu", {"offload": "cpu"}),
            ("--decoder small --offload cpu", {"decoder": "small", "offload": "cpu"}),
        ]
        if self.where.device.type == "cpu":
            tries = [(option, change) for option, change in tries if "cpu" not in option]
        yield from ((option, other(self.profile, replace(self.asked, **c))) for option, c in tries)
        for profile in reversed(self.preset["profiles"]):
            if profile["vram"] < self.profile["vram"]:
                yield f"--vram {profile['vram']}", other(profile, Asked(size=self.asked.size))
        factor = self.config.autoencoder.space_factor * self.config.transformer.patch[1]
        least = {"decoder": "small", "offload": tries[-1][1].get("offload", self.offload)}
        for share in _SMALLER:
            sides = (self.config.width, self.config.height)
            width, height = (max(1, round(side * share / factor)) * factor for side in sides)
            size = f"--size {width}x{height}"
            asked = replace(self.asked, size=(width, height))
            yield size, other(self.profile, asked)
            yield f"{size} {tries[-1][0]}", other(self.profile, replace(asked, **least))


def look_around(device: str | None, dtype: str | None, vram: float | None) -> Where:
    """Find a device and how much of its memory is free.

    Args:
        device, dtype: as in `making.load_model`.
        vram: GB to use at most; None or 0 is what is free.

    Raises:
        DeviceError: there is no such device.
    """
    import torch

    from streamdit_cli.making import where_and_how

    place, number_type = where_and_how(device=device, dtype=dtype, threads=None)
    name, free = "the memory of this machine", free_memory()
    if place.type == "cuda":
        name, free = torch.cuda.get_device_name(place), torch.cuda.mem_get_info(place)[0]
    if vram:
        limit = round(vram * _GIGA)
        free = limit if place.type == "cpu" or free is None else min(limit, free)
    return Where(device=place, dtype=number_type, name=name, room=free)


def free_memory() -> int | None:
    """Return the bytes of this machine that a new process can have; None where nobody tells."""
    try:
        for line in _RAM_FILE.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError, AttributeError):
        return None


def limit_gpu(device: torch.device, vram: float) -> None:
    """Let this process take no more of a GPU than a card of so many GB has."""
    import torch

    whole = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, vram * _GIGA / whole), device)


def plan_memory(
    preset: dict[str, Any], where: Where, asked: Asked, *, num_prompts: int, has_text: bool
) -> MemoryPlan:
    """Choose the profile: that of the card asked for, else the largest that fits, else the least.

    Args:
        preset: that generates; its profiles rise.
        where: it runs.
        asked: wins over the profile.
        num_prompts: that are read.
        has_text: whether there is a text encoder.

    Raises:
        ConfigError: a size that the network does not take.
    """
    profiles = preset["profiles"]
    if asked.vram:
        profiles = [one for one in profiles if one["vram"] <= asked.vram] or profiles[:1]
        profiles = profiles[-1:]
    plans = [
        _planned(preset, profile, where, asked, num_prompts=num_prompts, has_text=has_text)
        for profile in reversed(profiles)
    ]
    chosen = next((plan for plan in plans if plan.fits), plans[-1])
    if not asked.vram and asked.offload is None and chosen.offload == "cpu":
        stays = replace(asked, offload="text")
        whole = _planned(
            preset, chosen.profile, where, stays, num_prompts=num_prompts, has_text=has_text
        )
        return whole if whole.fits else chosen
    return chosen


def _planned(
    preset: dict[str, Any],
    profile: dict[str, Any],
    where: Where,
    asked: Asked,
    *,
    num_prompts: int,
    has_text: bool,
) -> MemoryPlan:
    """Return what comes of a profile and of what was asked for."""
    from streamdit_model.wan.memory import estimate_memory

    decoder = asked.decoder or profile["decoder"]
    offload: Offload = asked.offload or profile["offload"]
    config = open_config(
        preset,
        size=asked.size or (profile["width"], profile["height"]),
        decoder=decoder,
        context_frames=profile["context_frames"] or None,
    )
    estimate = estimate_memory(
        config,
        dtype=where.dtype,
        offload="text" if offload == "cpu" and where.device.type == "cpu" else offload,
        has_text_encoder=has_text,
        num_prompts=num_prompts,
    )
    return MemoryPlan(
        preset=preset,
        profile=profile,
        asked=asked,
        config=config,
        decoder=decoder,
        offload=offload,
        where=where,
        estimate=estimate,
        has_text=has_text,
    )
