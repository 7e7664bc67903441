"""A rolling stream on a tiny Wan transformer, with every pass of the network written down."""

from __future__ import annotations

import torch
from tiny_wan import TINY, text_of, tiny_wan
from torch import Tensor, nn

from streamdit_model.buffer import StreamBuffer
from streamdit_model.flow_matching import Noise, keyed_noise
from streamdit_model.frame_text import FrameText
from streamdit_model.sampling import Window, cycle, warm_up
from streamdit_model.wan.context import ContextSizes
from streamdit_model.wan.rolling import RollingVelocity, rolling_partition
from streamdit_model.wan.transformer import WanTransformer

CHUNK, HEIGHT, WIDTH = 3, 2, 4
CHANNELS = TINY["latent_channels"]

# Levels, 0 = noisiest: open-weights.md 2.1
TAU = {
    4: (0.0, 0.0625, 0.166667, 0.375),
    5: (0.0, 0.047619, 0.117647, 0.230769, 0.444444),
}


class RollingStream:
    """A rolling stream on a tiny network, with every pass of the network written down."""

    def __init__(
        self, network: WanTransformer, levels: int, text: FrameText, sizes: ContextSizes
    ) -> None:
        self.velocity = RollingVelocity(network, sizes)
        self.partition = rolling_partition(levels, sizes.chunk)
        self.buffer = StreamBuffer(self.partition, 1, CHANNELS, HEIGHT, WIDTH)
        self.noise = noise_of()
        self.text = text
        self.lines: list[str] = []
        self.positions: list[int] = []
        self.emitted: list[Tensor] = []
        network.register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, module: nn.Module, inputs: tuple[Tensor, ...], kept: dict[str, object]) -> None:
        latents, tau, positions = inputs[:3]
        self.positions += positions.tolist()
        if kept.get("keep") is not None:
            assert tau.eq(1).all()
            chunks = [chunk.to(latents.dtype).double() for chunk in self.emitted]
            numbers = [n for n, c in enumerate(chunks) if torch.equal(c, latents.double())]
            self.lines.append(f"write {numbers[0]}")
            return
        table = [f"{value:.6f}" for value in TAU[self.partition.num_chunks]]
        first = self.buffer.first_frame // CHUNK
        levels = [table.index(f"{value:.6f}") for value in tau[0].tolist()]
        assert levels == [level for level in levels[::CHUNK] for _ in range(CHUNK)]
        shown = [f"{first + place}@{level}" for place, level in enumerate(levels[::CHUNK])]
        self.lines.append("pass " + " ".join(shown))

    def run(self, num_chunks: int) -> list[Tensor]:
        """Emit chunks and return them, in the precision of the buffer."""
        for _ in range(num_chunks):
            if not self.buffer.num_frames:
                warm_up(self.buffer, self.velocity, self.noise, self._text_of, stepper="renoise")
            chunk = cycle(self.buffer, self.velocity, self.noise, self._text_of, stepper="renoise")
            self.lines[-1] += f" | emit {len(self.emitted)}"
            self.emitted.append(chunk)
        return self.emitted

    def _text_of(self, first_frame: int, num_frames: int, micro_step: int) -> FrameText:
        return self.text


def noise_of() -> Noise:
    return keyed_noise([7], CHANNELS, HEIGHT, WIDTH)


def stream_of(levels: int = 4) -> RollingStream:
    """Return a stream with the sizes of the published models."""
    network = tiny_wan()
    return RollingStream(network, levels, text_of(network, 0), ContextSizes())


def window_of(stream: RollingStream, text: FrameText) -> Window:
    """Return the window that the next cycle will ask for."""
    buffer = stream.buffer
    return Window(
        latents=buffer.latents,
        tau=stream.partition.tau(0)[None],
        slots=buffer.slots,
        first_frame=buffer.first_frame,
        text=text,
    )
