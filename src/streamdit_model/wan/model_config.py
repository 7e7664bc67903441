"""What a model of open Wan weights is: its parts, how its buffer moves, and its context.

The counterpart of `streamdit_model.model_config` for weights of others: the numbers come from a
preset, since the published files do not hold them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from streamdit_model.errors import ConfigError
from streamdit_model.partition import Partition
from streamdit_model.strength import strength_levels
from streamdit_model.wan.config import WanConfig
from streamdit_model.wan.context import ContextSizes
from streamdit_model.wan.text_weights import WanTextConfig
from streamdit_model.wan.tiny import TinyAutoencoderConfig
from streamdit_model.wan.vae_config import WanAutoencoderConfig

__all__ = ["WanModelConfig"]

FORMAT = "streamdit-wan-1"


@dataclass(frozen=True, kw_only=True, slots=True)
class WanModelConfig:
    """Everything but the weights.

    Args:
        name: of the preset.
        fps: video frames a second.
        height, width: of the video in pixels, multiples of the pixels of a patch.
        partition: how the buffer moves.
        stepper: how a micro step is made; "unipc" is `unipc.UniPCStepper`.
        distilled: True when guidance is baked in; then guidance_scale is 1.
        guidance_scale: default of guidance, 1 is off.
        context: how much of the past a rolling model sees; None for a model without context.
        transformer, autoencoder, text: the parts; their channels and widths agree.

    Raises:
        ConfigError: a number that the network does not take, or two parts that do not agree.
    """

    name: str
    fps: float
    height: int
    width: int
    partition: Partition
    stepper: Literal["euler", "renoise", "unipc"]
    distilled: bool
    guidance_scale: float
    context: ContextSizes | None
    transformer: WanConfig
    autoencoder: WanAutoencoderConfig | TinyAutoencoderConfig
    text: WanTextConfig

    def __post_init__(self) -> None:
        factor = self.autoencoder.space_factor
        _, rows, columns = self.transformer.patch
        for name, size, patch in (("height", self.height, rows), ("width", self.width, columns)):
            if size < factor * patch or size % (factor * patch):
                raise ConfigError(
                    f"{name} {size} of {self.name} is not a multiple of {factor * patch}",
                    hint=f"use {max(1, size // (factor * patch)) * factor * patch}",
                )
        pairs = {
            "latent channels of transformer and autoencoder": (
                self.transformer.latent_channels,
                self.autoencoder.latent_channels,
            ),
            "text width of transformer and encoder": (
                self.transformer.text_width,
                self.text.width,
            ),
            "text length of transformer and encoder": (
                self.transformer.text_length,
                self.text.max_tokens,
            ),
        }
        if self.context is not None:
            pairs["chunk of buffer and context"] = self.partition.chunk_size, self.context.chunk
        for name, (one, other) in pairs.items():
            if one != other:
                raise ConfigError(f"{name} are {one} and {other}, they must be equal")
        if self.context is not None and not self.distilled:
            raise ConfigError(f"{self.name} has a context, which a guided model cannot have")

    @property
    def start(self) -> Literal["ramp", "clip"]:
        """How a stream begins: open weights know growing buffers."""
        return "ramp"

    @property
    def strength(self) -> float:
        """Default noise level of entry for video to video.

        Choice: 0.7, about where StreamDiffusionV2 begins with models of this family
        (open-weights.md 2.7), or the lowest level where a model has only stronger ones.
        """
        return max(0.7, strength_levels(self.partition)[0])

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of a latent frame."""
        factor = self.autoencoder.space_factor
        return self.transformer.latent_channels, self.height // factor, self.width // factor

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, the same for the same model."""
        return {"format": FORMAT, **asdict(self)}
