"""The configuration of a whole model: what `config.json` says.

The configuration of each part lives in the file of the part and is only joined here, with the
numbers that two parts must agree on.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from streamdit_model.autoencoder import TIME_FACTOR, Autoencoder, AutoencoderConfig
from streamdit_model.configuration import from_table, to_table
from streamdit_model.errors import ConfigError
from streamdit_model.partition import Partition
from streamdit_model.storage import quoted
from streamdit_model.text import TextConfig
from streamdit_model.transformer import TransformerConfig

__all__ = ["FORMAT", "ModelConfig"]

FORMAT = "streamdit-model-1"
_LARGEST = 2**20  # of a whole number in config.json
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """All that `config.json` says.

    Args:
        name: of the model, lower case, at most 64 characters.
        fps: video frames a second, above 0 and at most 240.
        height: of the video in pixels.
        width: of the video in pixels.
        partition: how the buffer moves.
        start: how a stream begins, see `sampling.warm_up`.
        stepper: how a micro step is made, see `sampling.cycle`.
        distilled: True when guidance is baked in; then guidance_scale is 1.
        guidance_scale: default of guidance, 1 is off.
        strength: default noise level of entry for video to video, 0 to 1.
        transformer, autoencoder, text: the parts; their channels, widths and sizes agree.

    Raises:
        ConfigError: a number is out of range, or two parts do not agree; both numbers are named.
    """

    name: str
    fps: float
    height: int
    width: int
    partition: Partition
    start: Literal["ramp", "clip"]
    stepper: Literal["euler", "renoise"]
    distilled: bool
    guidance_scale: float
    strength: float
    transformer: TransformerConfig
    autoencoder: AutoencoderConfig
    text: TextConfig

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(f"name {quoted(self.name)} is not lower case letters, digits, . _ -")
        ranges = {"fps": (1e-3, 240.0), "guidance_scale": (0.0, 100.0), "strength": (0.0, 1.0)}
        for name, (least, most) in ranges.items():
            if not least <= getattr(self, name) <= most:
                raise ConfigError(f"{name} {getattr(self, name)} is not in {least:g} to {most:g}")
        if self.distilled and self.guidance_scale != 1.0:
            raise ConfigError(f"guidance_scale {self.guidance_scale} of a distilled model is not 1")
        frames = self.partition.buffer_length * TIME_FACTOR
        latents = Autoencoder.latent_shape(frames, self.height, self.width)
        pairs = {
            "transformer.grid": (self.transformer.grid, "partition and size", latents),
            "transformer.latent_channels": (
                self.transformer.latent_channels,
                "autoencoder.latent_channels",
                self.autoencoder.latent_channels,
            ),
            "transformer.text_width": (
                self.transformer.text_width,
                "text.width",
                self.text.width,
            ),
        }
        for name, (found, other, expected) in pairs.items():
            if found != expected:
                raise ConfigError(f"{name} {found} is not {expected} of {other}")

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of a latent frame."""
        return self.transformer.latent_channels, *self.transformer.grid[1:]

    @classmethod
    def from_dict(cls, table: object) -> "ModelConfig":
        """Make a configuration from parsed JSON, strictly.

        Raises:
            ConfigError: a key or value does not fit; its place is named.
        """
        if not isinstance(table, Mapping) or table.get("format") != FORMAT:
            raise ConfigError(f"this is not a model configuration of the format {FORMAT}")
        rest = {key: value for key, value in table.items() if key != "format"}
        return from_table(cls, rest, largest=_LARGEST)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that `from_dict` and JSON give back as they are."""
        return {"format": FORMAT, **to_table(self)}
