"""Velocities that can be integrated by hand, and the small streams they run in."""

from collections.abc import Callable

import torch
from hypothesis import strategies as st
from torch import Tensor

from streamdit_model.buffer import StreamBuffer
from streamdit_model.flow_matching import Noise, interpolate, keyed_noise
from streamdit_model.partition import Partition
from streamdit_model.sampling import Window

SIZES = (2, 1, 2)  # channels, height, width
PLAIN = Partition(num_chunks=4, chunk_size=2, micro_steps=2)
REFERENCES = Partition(num_reference=3, num_chunks=4, chunk_size=2, micro_steps=2)
SHIFTED = Partition(
    num_reference=1, num_chunks=3, chunk_size=2, micro_steps=3, gamma="shift", gamma_parameter=5.0
)
STREAMS = [PLAIN, REFERENCES, SHIFTED, Partition.diagonal(buffer_length=5)]


@st.composite
def partitions(draw: Callable[..., object]) -> Partition:
    """Any small valid partition with any gamma."""
    gamma, parameter = draw(  # type: ignore[misc]
        st.sampled_from([("linear", 1.0), ("power", 2.0), ("shift", 0.5), ("shift", 6.0)])
    )
    return Partition(
        num_reference=draw(st.integers(0, 4)),  # type: ignore[arg-type]
        num_chunks=draw(st.integers(1, 5)),  # type: ignore[arg-type]
        chunk_size=draw(st.integers(1, 4)),  # type: ignore[arg-type]
        micro_steps=draw(st.integers(1, 4)),  # type: ignore[arg-type]
        gamma=gamma,
        gamma_parameter=parameter,
    )


def no_text(first_frame: int, num_frames: int, micro_step: int) -> None:
    return None


def noise_of(*seeds: int) -> Noise:
    channels, height, width = SIZES
    return keyed_noise(seeds, channels, height, width)


def buffer_of(partition: Partition, batch: int = 1) -> StreamBuffer:
    channels, height, width = SIZES
    return StreamBuffer(partition, batch, channels, height, width)


def clean_frames(first_frame: int, frames: int) -> Tensor:
    """The data of an imaginary video: small whole numbers that differ in every frame."""
    numbers = torch.arange(first_frame, first_frame + frames, dtype=torch.float32)
    element = torch.arange(4, dtype=torch.float32).reshape(1, 2, 1, 1, 2)
    return numbers[None, None, :, None, None] % 8 - element


def stacked(noise: Noise, first_frame: int, levels: list[int]) -> Tensor:
    return torch.stack([noise(first_frame + i, level) for i, level in enumerate(levels)], dim=2)


class StraightLine:
    """The exact velocity from each frame's own noise to its data, with all calls written down."""

    def __init__(self, noise: Noise) -> None:
        self.noise = noise
        self.windows: list[tuple[int, list[float], list[int]]] = []
        self.committed: list[tuple[Tensor, int]] = []
        self.furthest = 0.0

    def __call__(self, window: Window) -> Tensor:
        frames = window.latents.shape[2]
        clean = clean_frames(window.first_frame, frames)
        born = stacked(self.noise, window.first_frame, [0] * frames)
        on_line = interpolate(clean, born, window.tau, sigma_min=0.0)
        self.furthest = max(self.furthest, float((window.latents - on_line).abs().max()))
        self.windows.append((window.first_frame, window.tau[0].tolist(), window.slots.tolist()))
        return clean - born

    def commit(self, chunk: Tensor, first_frame: int) -> None:
        self.committed.append((chunk.clone(), first_frame))


def coupled(window: Window) -> Tensor:
    """A velocity with no closed form in which every frame depends on every other and on tau."""
    mean = window.latents.mean(dim=2, keepdim=True)
    share = window.tau[:, None, :, None, None]
    return torch.tanh(window.latents * (1 + share) - mean) + share
