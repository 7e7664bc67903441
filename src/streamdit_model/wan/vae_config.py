"""The sizes of a Wan autoencoder, and the two that were published.

Reference: open-weights.md 4.5; the statistics of the latent channels are those of
Wan-Video/Wan2.1 `wan/modules/vae.py` and Wan-Video/Wan2.2 `wan/modules/vae2_2.py`.
"""

from dataclasses import dataclass
from itertools import pairwise

from streamdit_model.autoencoder import TIME_FACTOR
from streamdit_model.errors import ConfigError

__all__ = ["WAN_2_1", "WAN_2_2", "Stage", "WanAutoencoderConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One resolution of the encoder or decoder: residual blocks, then a change of resolution.

    Args:
        inputs: channels that enter.
        outputs: channels of every block.
        blocks: how many residual blocks.
        resampled: channels after the change of resolution; 0 in the last stage, which has none.
        changes_time: True where time is halved or doubled together with space.
    """

    inputs: int
    outputs: int
    blocks: int
    resampled: int
    changes_time: bool

    @property
    def time_factor(self) -> int:
        """Return by how much time changes."""
        return 2 if self.changes_time else 1

    @property
    def space_factor(self) -> int:
        """Return by how much height and width change."""
        return 2 if self.resampled else 1


@dataclass(frozen=True, kw_only=True, slots=True)
class WanAutoencoderConfig:
    """Sizes of a Wan autoencoder.

    Args:
        mean: of each latent channel before it is normalised; as many as latent channels.
        deviation: of each latent channel likewise, above 0.
        encoder_width: channels of the encoder before its multipliers.
        decoder_width: channels of the decoder before its multipliers.
        multipliers: of the channels, fine to coarse.
        blocks: residual blocks of an encoder stage; a decoder stage has one more.
        halves_time: for each halving of space, whether time is halved too, fine to coarse.
        straight_ways: True in Wan 2.2: averages and repeats lead round every stage.
        pixel_patch: pixels along each axis folded into channels before the first convolution.

    Raises:
        ConfigError: numbers that make no autoencoder of 4x in time.
    """

    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    encoder_width: int = 96
    decoder_width: int = 96
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    halves_time: tuple[bool, ...] = (False, True, True)
    straight_ways: bool = False
    pixel_patch: int = 1

    def __post_init__(self) -> None:
        sizes = (self.encoder_width, self.decoder_width, self.blocks, self.pixel_patch)
        if not self.mean or min(*sizes, *self.multipliers) < 1:
            raise ConfigError("widths, multipliers, blocks and latent channels must be at least 1")
        if len(self.deviation) != len(self.mean) or min(self.deviation) <= 0:
            raise ConfigError(
                f"{len(self.deviation)} deviations for {len(self.mean)} latent channels; as many "
                "are needed, all above 0"
            )
        if len(self.halves_time) != len(self.multipliers) - 1:
            raise ConfigError(
                f"{len(self.halves_time)} halvings for {len(self.multipliers)} multipliers; one "
                "less is needed"
            )
        if 2 ** sum(self.halves_time) != TIME_FACTOR:
            raise ConfigError(
                f"halves_time makes {2 ** sum(self.halves_time)}x in time; {TIME_FACTOR}x is needed"
            )
        if not self.straight_ways and self.decoder_width < 2:
            raise ConfigError(f"decoder_width {self.decoder_width} cannot be halved")
        for stage in self.encoder_stages:
            self._check_straight_way(stage, stage.inputs, stage.outputs)
        for stage in self.decoder_stages[:-1]:
            self._check_straight_way(stage, stage.outputs, stage.inputs)

    def _check_straight_way(self, stage: Stage, wider: int, narrower: int) -> None:
        parts = stage.time_factor * stage.space_factor**2
        if self.straight_ways and wider * parts % narrower:
            raise ConfigError(
                f"no straight way round a stage of {stage.inputs} to {stage.outputs} channels: "
                f"{narrower} does not divide {wider} times {parts}"
            )

    @property
    def latent_channels(self) -> int:
        """Return the channels of a latent frame."""
        return len(self.mean)

    @property
    def pixel_channels(self) -> int:
        """Return the channels of a folded video frame."""
        return 3 * self.pixel_patch**2

    @property
    def space_factor(self) -> int:
        """Return the pixels a latent pixel, along each axis."""
        return self.pixel_patch * 2 ** len(self.halves_time)

    @property
    def encoder_stages(self) -> tuple[Stage, ...]:
        """Return the stages of the encoder, fine to coarse."""
        widths = [self.encoder_width * multiplier for multiplier in (1, *self.multipliers)]
        return tuple(
            Stage(
                inputs=inputs,
                outputs=outputs,
                blocks=self.blocks,
                resampled=0 if index == len(self.halves_time) else outputs,
                changes_time=index < len(self.halves_time) and self.halves_time[index],
            )
            for index, (inputs, outputs) in enumerate(pairwise(widths))
        )

    @property
    def decoder_stages(self) -> tuple[Stage, ...]:
        """Return the stages of the decoder, coarse to fine.

        In Wan 2.1 the convolution that doubles space also halves the channels.
        """
        coarse_to_fine = self.multipliers[::-1]
        widths = [self.decoder_width * m for m in (coarse_to_fine[0], *coarse_to_fine)]
        last, halved = len(self.halves_time), 1 if self.straight_ways else 2
        return tuple(
            Stage(
                inputs=inputs // (halved if index else 1),
                outputs=outputs,
                blocks=self.blocks + 1,
                resampled=0 if index == last else outputs // halved,
                changes_time=index < last and self.halves_time[last - 1 - index],
            )
            for index, (inputs, outputs) in enumerate(pairwise(widths))
        )


WAN_2_1 = WanAutoencoderConfig(
    mean=(
        *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
        *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
    ),
    deviation=(
        *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
        *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
    ),
)
"""Wan 2.1: 16 latent channels, 8x in space; 126,892,531 parameters."""

WAN_2_2 = WanAutoencoderConfig(
    mean=(
        *(-0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557),
        *(-0.1382, 0.0542, 0.2813, 0.0891, 0.1570, -0.0098, 0.0375, -0.1825),
        *(-0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502),
        *(-0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230),
        *(-0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520, 0.3748),
        *(0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667),
    ),
    deviation=(
        *(0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013),
        *(0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165, 0.8454, 0.4978),
        *(0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659),
        *(0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093),
        *(0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887),
        *(0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744),
    ),
    encoder_width=160,
    decoder_width=256,
    straight_ways=True,
    pixel_patch=2,
)
"""Wan 2.2 TI2V-5B: 48 latent channels, 16x in space; 704,688,668 parameters."""
