"""The same network with its buffer cut another way: what a stream's speed is compared with.

A baseline is the model itself with another partition, so that it runs through the same loop, buffer
and decoder, and differs in nothing but the order in which frames are denoised.

Paper: Table 1 (uniform, diagonal and StreamDiT as partitions of one kind).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from streamdit_model.errors import ConfigError
from streamdit_model.partition import Partition

if TYPE_CHECKING:
    from streamdit_model.stream_state import StreamModel

__all__ = ["BASELINES", "baseline", "baseline_partition", "without_context"]

BASELINES = ("fifo", "clip")


def baseline_partition(partition: Partition, kind: str) -> Partition:
    """Return how a baseline moves the buffer of a partition.

    Args:
        partition: of the model; the buffer length, gamma and reference frames are kept.
        kind: `fifo`: the diagonal loop of FIFO-Diffusion and PA-VDM, every latent frame a chunk of
            its own with as many micro steps as a chunk has. `clip`: whole clips one after another,
            each by as many steps as a latent frame of the model sees.

    Raises:
        ConfigError: another kind.

    Paper: Table 1. Choice: the diagonal keeps the micro steps, not the total steps, since one
    network call an emission is the least there is; it therefore has c times the levels, and every
    latent frame sees c times the calls. FIFO's look-ahead, which doubles its cost, and the overlap
    that would join one clip to the next are left out; without them the baselines are cheaper.
    """
    gamma = {"gamma": partition.gamma, "gamma_parameter": partition.gamma_parameter}
    free = partition.num_chunks * partition.chunk_size
    if kind == "fifo":
        num_chunks, size, steps = free, 1, partition.micro_steps
    elif kind == "clip":
        num_chunks, size, steps = 1, free, partition.total_steps
    else:
        raise ConfigError(f"baseline {kind!r} is not one of {', '.join(BASELINES)}")
    return Partition(
        num_reference=partition.num_reference,
        num_chunks=num_chunks,
        chunk_size=size,
        micro_steps=steps,
        **gamma,
    )


def without_context(model: StreamModel) -> StreamModel:
    """Return the model on the same weights with nothing but its buffer in sight.

    A context of clean frames is kept by the chunk and would itself differ between the baselines.
    """
    config = model.config
    if getattr(config, "context", None) is None:
        return model
    return replace(model, config=replace(config, context=None))  # type: ignore[arg-type]


def baseline(model: StreamModel, kind: str) -> StreamModel:
    """Return a model on the same weights that goes the way of a baseline.

    Args:
        model: is not changed; a context is left out, see `without_context`.
        kind: as in `baseline_partition`.

    Raises:
        ConfigError: another kind.
    """
    plain = without_context(model)
    partition = baseline_partition(plain.config.partition, kind)
    return replace(plain, config=replace(plain.config, partition=partition))  # type: ignore
