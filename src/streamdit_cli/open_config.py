"""A preset of open weights as a configuration.

What a preset says of a network must be what the network here computes; a difference is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streamdit_cli.errors import UsageError

if TYPE_CHECKING:
    from streamdit_model.partition import Partition
    from streamdit_model.wan.config import WanConfig
    from streamdit_model.wan.context import ContextSizes
    from streamdit_model.wan.model_config import WanModelConfig
    from streamdit_model.wan.text_weights import WanTextConfig
    from streamdit_model.wan.tiny import TinyAutoencoderConfig
    from streamdit_model.wan.vae_config import WanAutoencoderConfig

__all__ = ["open_config"]

THETA, EPSILON = 10_000.0, 1e-6  # of the networks in streamdit_model.wan
TIMESTEPS = 1000.0
_CLOSE = 1e-3  # of a timestep


def open_config(
    preset: dict[str, Any],
    *,
    size: tuple[int, int] | None = None,
    decoder: str = "full",
    context_frames: int | None = None,
) -> WanModelConfig:
    """Return the configuration of a preset of open weights.

    Args:
        preset: that generates.
        size: (width, height) in pixels; None is the preset's own.
        decoder: "small" or "full".
        context_frames: latent frames of the past that are kept; None is all that is ever seen. A
            model without context has none.

    Raises:
        UsageError: the preset says something that the networks here do not do.
        ConfigError: a size that the network does not take.
    """
    from streamdit_model.wan.model_config import WanModelConfig

    video, sampler = preset["video"], preset["sampler"]
    width, height = size or (video["width"], video["height"])
    partition = _partition(preset)
    return WanModelConfig(
        name=preset["name"],
        fps=float(video["fps"]),
        height=height,
        width=width,
        partition=partition,
        stepper=sampler["stepper"],
        distilled=sampler["distilled"],
        guidance_scale=float(sampler["guidance_scale"]),
        context=_context(preset, partition, context_frames),
        transformer=_network(preset),
        autoencoder=_autoencoder(preset, decoder),
        text=_text(preset),
    )


def _partition(preset: dict[str, Any]) -> Partition:
    """Return how the buffer moves; the timesteps that a preset lists must be its levels."""
    from streamdit_model.partition import Partition

    sampler = preset["sampler"]
    chunks = sampler["num_chunks"]
    even = [TIMESTEPS * (1 - k / chunks) for k in range(chunks)]
    stated = sampler.get("timesteps", even)
    if any(abs(one - other) > _CLOSE for one, other in zip(stated, even, strict=True)):
        raise UsageError(f"{preset['name']}: timesteps {stated} are not evenly spaced")
    return Partition(
        num_reference=sampler["num_reference"],
        num_chunks=chunks,
        chunk_size=sampler["chunk_size"],
        micro_steps=sampler["micro_steps"],
        gamma="shift",
        gamma_parameter=float(sampler["shift"]),
    )


def _context(preset: dict[str, Any], partition: Partition, held: int | None) -> ContextSizes | None:
    """Return how much of the past is seen; None where a preset has no working frames."""
    from streamdit_model.wan.context import ContextSizes

    said = preset["context"]
    sink, working, span = (
        said[key] for key in ("sink_frames", "working_frames", "attended_frames")
    )
    if span != sink + working + partition.buffer_length:
        raise UsageError(
            f"{preset['name']}: {span} attended frames are not {sink} and {working} and the "
            f"{partition.buffer_length} of the buffer"
        )
    if not sink and not working:
        return None
    return ContextSizes(chunk=partition.chunk_size, sink=sink, span=span, held=held)


def _network(preset: dict[str, Any]) -> WanConfig:
    from streamdit_model.wan.config import WanConfig

    said = preset["network"]
    head = said["width"] // said["heads"]
    space = 2 * (head // 6)
    axes = [head - 2 * space, space, space]
    known = {"rope_axes": axes, "rope_theta": THETA, "eps": EPSILON}
    for key, value in known.items():
        if said[key] != value:
            raise UsageError(
                f"{preset['name']}: network {key} {said[key]} is not the {value} of a Wan network"
            )
    return WanConfig(
        latent_channels=said["latent_channels"],
        patch=tuple(said["patch"]),
        width=said["width"],
        depth=said["layers"],
        num_heads=said["heads"],
        mlp_width=said["mlp_width"],
        text_width=said["text_width"],
        text_length=said["text_tokens"],
        time_width=said["time_width"],
        fps=round(preset["video"]["fps"]) if said["fps_embedding"] else None,
    )


def _autoencoder(
    preset: dict[str, Any], decoder: str
) -> WanAutoencoderConfig | TinyAutoencoderConfig:
    from dataclasses import replace

    from streamdit_model.wan.tiny import TAEW_2_1, TAEW_2_2
    from streamdit_model.wan.vae_config import WAN_2_1, WAN_2_2

    said = preset["autoencoder"]
    published = {16: (WAN_2_1, TAEW_2_1), 48: (WAN_2_2, TAEW_2_2)}
    full, small = published.get(said["latent_channels"], (None, None))
    factor = None if full is None else full.space_factor
    if full is None or small is None or (said["space_factor"], said["time_factor"]) != (factor, 4):
        raise UsageError(
            f"{preset['name']}: there is no Wan autoencoder of {said['latent_channels']} channels, "
            f"{said['space_factor']}x in space and {said['time_factor']}x in time"
        )
    if decoder == "small":
        width = said.get("small_width")
        widths = None if width is None else (4 * width, 2 * width, width, width)
        return (
            small if widths is None else replace(small, encoder_width=width, decoder_widths=widths)
        )
    width = said.get("width")
    return full if width is None else replace(full, encoder_width=width, decoder_width=width)


def _text(preset: dict[str, Any]) -> WanTextConfig:
    from streamdit_model.wan.text_weights import UMT5_XXL, WanTextConfig

    said = preset.get("text")
    if said is None:
        return UMT5_XXL
    return WanTextConfig(
        vocabulary=said["vocabulary"],
        width=said["width"],
        head_width=said["head_width"],
        num_heads=said["heads"],
        mlp_width=said["mlp_width"],
        depth=said["layers"],
        num_buckets=said["buckets"],
        max_distance=said["max_distance"],
        max_tokens=said["tokens"],
    )
