"""StreamDiT: the diffusion transformer with one time embedding per latent frame.

Patches of latents run through adaLN blocks: windowed self-attention, cross-attention to text, and
a SwiGLU MLP. The time embedding of a latent frame becomes shift, scale and gate of that frame's
tokens; the projection that makes them is shared by all blocks, and each block adds its own learned
table. Positions are slots of the full buffer, also while it grows.

The residual stream is (batch, frames, tokens of a frame, width), so that modulation per frame and
full attention are views. The blocks are in `blocks.py`, windows in `window_attention.py`.

Time: tau is 0 for noise and 1 for data; the velocity points toward data.

Paper: section 4.1 and figure 3. What the paper does not give is in paper.md section 2.
"""

import math
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from streamdit_model.blocks import (
    MODULATIONS,
    Block,
    CrossAttention,
    ScaledNorm,
    modulate,
    rms_norm,
)
from streamdit_model.errors import ConfigError
from streamdit_model.frame_text import FrameText, TextKeys
from streamdit_model.text import TextCondition
from streamdit_model.window_attention import WindowPlan, full_plan, key_masks, plan_windows

__all__ = ["FrameText", "StreamDiT", "TextKeys", "TransformerConfig", "paper_4b"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformerConfig:
    """Shape of a StreamDiT.

    Args:
        latent_channels: channels of the latents, at least 1.
        grid: full grid in latents, (buffer length, height, width).
        patch: latents of one token, (1, height, width). Choice: (1, 2, 2), since every latent
            frame has its own tau (paper.md section 2).
        width: width of the residual stream, a multiple of num_heads.
        depth: blocks.
        num_heads: heads of both attentions.
        mlp_width: hidden width of the SwiGLU.
        text_width: width of the text tokens.
        window: tokens of an attention window, (frames, height, width); None is full attention.
        shift: axes that odd blocks shift by half a window: "all" or "time".
        mask_wrapped: True keeps the regions of a shifted window that wrap round an end of an axis
            apart, False joins them, "time" keeps them apart in time and joins them in space.
        tau_width: width of the sinusoidal embedding of tau, even.
    """

    latent_channels: int
    grid: tuple[int, int, int]
    patch: tuple[int, int, int] = (1, 2, 2)
    width: int
    depth: int
    num_heads: int
    mlp_width: int
    text_width: int
    window: tuple[int, int, int] | None = None
    shift: Literal["all", "time"] = "all"
    mask_wrapped: bool | Literal["time"] = True
    tau_width: int = 256

    def __post_init__(self) -> None:
        for name in ("latent_channels", "width", "depth", "num_heads", "mlp_width", "text_width"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("grid", "patch", "window"):
            triple = getattr(self, name)
            if triple is not None and (len(triple) != 3 or min(triple) < 1):
                raise ConfigError(f"{name} is {triple}; it must be three numbers of at least 1")
        if self.patch[0] != 1:
            raise ConfigError(
                f"patch covers {self.patch[0]} latent frames; it must be 1, as each has its own tau"
            )
        for axis, name in ((1, "height"), (2, "width")):
            if self.grid[axis] % self.patch[axis]:
                raise ConfigError(
                    f"grid {name} {self.grid[axis]} is not a multiple of patch {self.patch[axis]}"
                )
        if self.width % self.num_heads:
            raise ConfigError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")
        if self.tau_width < 2 or self.tau_width % 2:
            raise ConfigError(f"tau_width is {self.tau_width}; it must be even and at least 2")
        if self.shift not in ("all", "time"):
            raise ConfigError(f'shift is "{self.shift}"; it must be "all" or "time"')
        if self.mask_wrapped not in (True, False, "time"):
            raise ConfigError(
                f'mask_wrapped is "{self.mask_wrapped}"; it must be true, false or "time"'
            )

    @property
    def token_grid(self) -> tuple[int, int, int]:
        """Tokens of the full grid, (frames, height, width)."""
        frames, height, width = self.grid
        return frames, height // self.patch[1], width // self.patch[2]

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.width // self.num_heads

    @property
    def patch_values(self) -> int:
        """Latent values of one token."""
        return self.latent_channels * self.patch[1] * self.patch[2]


def paper_4b(*, depth: int = 27, text_width: int = 4096) -> TransformerConfig:
    """Return the configuration of the paper's 4B model.

    Args:
        depth: 27 gives 4.08B parameters in the blocks, 26 gives 3.93B.
        text_width: width of the text encoder; 4096 is UL2's and umT5-XXL's.

    Paper: section 5 (latents of 16 x 64 x 64 with 8 channels). Choice: everything else, from Movie
    Gen's proportions and the total of 4B (paper.md section 2).
    """
    return TransformerConfig(
        latent_channels=8,
        grid=(16, 64, 64),
        width=3072,
        depth=depth,
        num_heads=24,
        mlp_width=8192,
        text_width=text_width,
        window=(8, 16, 16),
    )


def sinusoid(positions: Tensor, width: int) -> Tensor:
    """Embed positions as cosines and sines of `width / 2` frequencies from 1 to 1/10,000.

    Args:
        positions: any shape, float32.
        width: even.

    Returns:
        (*shape, width), float32.
    """
    steps = torch.arange(width // 2, device=positions.device, dtype=torch.float32)
    angles = positions.unsqueeze(-1) * torch.exp(steps * (-math.log(10_000.0) / (width // 2)))
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class StreamDiT(nn.Module):
    """The network: latents, tau per latent frame and text to a velocity.

    Paper: section 4.1. Choice: one modulation projection for all blocks and a table per block, as
    there are only as many modulation vectors as latent frames (paper.md section 2).
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        frames, height, columns = config.token_grid
        self.patch_embedding = nn.Linear(config.patch_values, width)
        self.time_embedding = nn.Sequential(
            nn.Linear(config.tau_width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        self.modulation = nn.Linear(width, MODULATIONS * width)
        self.text_embedding = nn.Linear(config.text_width, width, bias=False)
        self.text_norm = ScaledNorm(width)
        self.frame_position = nn.Parameter(torch.empty(frames, width))
        self.row_position = nn.Parameter(torch.empty(height, width))
        self.column_position = nn.Parameter(torch.empty(columns, width))
        self.blocks = nn.ModuleList(
            Block(width, config.num_heads, config.mlp_width) for _ in range(config.depth)
        )
        self.head_modulation = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, config.patch_values)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Draw the weights; also after `to_empty`, when the model was built on the meta device.

        Linear weights are normal with variance 1/inputs, so unit input gives unit output; biases
        are 0; norm scales are 1; positions are normal with deviation 0.02. Zero are: both
        modulations and the tables (so every gate), the output of the cross-attention and the head.
        So every block starts by adding the positions and nothing else, and the first velocity is 0.

        Args:
            generator: source of the draws, on the device of the weights; None is torch's own.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                deviation = module.in_features**-0.5
                nn.init.normal_(module.weight, std=deviation, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, ScaledNorm):
                nn.init.ones_(module.weight)
            elif isinstance(module, Block):
                nn.init.zeros_(module.table)
        for table in (self.frame_position, self.row_position, self.column_position):
            nn.init.normal_(table, std=0.02, generator=generator)
        outputs = [attention.output for attention in self._cross_attentions()]
        for linear in (self.modulation, self.head_modulation, self.head, *outputs):
            nn.init.zeros_(linear.weight)

    def text_keys(self, condition: TextCondition) -> TextKeys:
        """Compute keys and values of every block, once per prompt.

        Args:
            condition: tokens (prompts, length, text_width) and their mask.
        """
        tokens = condition.tokens.to(self.text_embedding.weight.dtype)
        tokens = self.text_norm(self.text_embedding(tokens))
        pairs = [attention.keys_values(tokens) for attention in self._cross_attentions()]
        mask = None if bool(condition.mask.all()) else condition.mask
        return TextKeys(tuple(key for key, _ in pairs), tuple(value for _, value in pairs), mask)

    def forward(
        self,
        latents: Tensor,
        tau: Tensor,
        slots: Tensor,
        text: FrameText,
        present: Tensor | None = None,
    ) -> Tensor:
        """Predict the velocity of every latent frame.

        Args:
            latents: (batch, channels, frames, height, width); frames may be fewer than the grid's.
            tau: (batch, frames) in [0, 1], 0 = noise, 1 = data.
            slots: (frames,) long, each frame's slot on the full grid; best kept on the CPU.
            text: the prompt of every sample or frame.
            present: (batch, frames) bool, or None when all are; False hides a frame from all
                others, as if it were not there, and leaves its own result undefined.

        Returns:
            Velocity pointing toward data, shape and dtype of the latents.
        """
        self._check(latents, slots)
        position = self._positions(slots.to(latents.device))  # (f, s, d)
        x = self.patch_embedding(self._patches(latents)).to(position.dtype)  # (b, f, s, d)
        time = self._time(tau)  # (b, f, d)
        modulation = self.modulation(time).unflatten(-1, (MODULATIONS, -1))  # (b, f, 6, d)
        layers = self._layers(slots, x.shape[2], latents.device, present)
        texts = text.per_block()
        for number, block in enumerate(self.blocks):
            x = block(x, modulation, position, texts[number], *layers[number % 2])  # (b, f, s, d)
        shift, scale = self.head_modulation(time).unsqueeze(2).chunk(2, dim=-1)
        values = self.head(modulate(rms_norm(x), shift, scale))  # (b, f, s, channels * patch)
        return self._unpatch(values).to(latents.dtype)

    def _check(self, latents: Tensor, slots: Tensor) -> None:
        frames, height, width = self.config.grid
        if latents.shape[1] != self.config.latent_channels or latents.shape[3:] != (height, width):
            raise ConfigError(
                f"latents have channels, height and width {latents.shape[1]}, {latents.shape[3]}, "
                f"{latents.shape[4]}; the model's are {self.config.latent_channels}, {height}, "
                f"{width}"
            )
        if latents.shape[2] != len(slots) or len(slots) > frames:
            raise ConfigError(
                f"{latents.shape[2]} latent frames in {len(slots)} slots; each needs its own of "
                f"the model's {frames}"
            )

    def _cross_attentions(self) -> list[CrossAttention]:
        return [cast(Block, block).cross_attention for block in self.blocks]

    def _patches(self, latents: Tensor) -> Tensor:
        """(batch, channels, frames, height, width) -> (batch, frames, tokens, values)."""
        batch, _, frames, _, _ = latents.shape
        _, height, width = self.config.token_grid
        _, rows, columns = self.config.patch
        x = latents.reshape(batch, -1, frames, height, rows, width, columns)
        x = x.permute(0, 2, 3, 5, 1, 4, 6)
        return x.reshape(batch, frames, height * width, -1).to(self.patch_embedding.weight.dtype)

    def _unpatch(self, values: Tensor) -> Tensor:
        """The inverse of `_patches`."""
        batch, frames = values.shape[:2]
        _, height, width = self.config.token_grid
        _, rows, columns = self.config.patch
        x = values.view(batch, frames, height, width, -1, rows, columns)
        x = x.permute(0, 4, 1, 2, 5, 3, 6)
        return x.reshape(batch, -1, frames, height * rows, width * columns)

    def _positions(self, slots: Tensor) -> Tensor:
        space = (self.row_position[:, None] + self.column_position).flatten(0, 1)
        return self.frame_position[slots][:, None] + space

    def _time(self, tau: Tensor) -> Tensor:
        """Embed tau in float32. Choice: tau times 1000, the usual scale of such embeddings."""
        embedded = sinusoid(tau.float() * 1000.0, self.config.tau_width)
        return self.time_embedding(embedded.to(self.modulation.weight.dtype))

    def _layers(
        self, slots: Tensor, tokens_per_frame: int, device: torch.device, present: Tensor | None
    ) -> list[tuple[WindowPlan, tuple[Tensor, ...] | None]]:
        """Plan and key masks of even and of odd blocks."""
        plans = self._plans(slots, tokens_per_frame, device)
        if present is None:
            return [(plan, None) for plan in plans]
        tokens = present.repeat_interleave(tokens_per_frame, dim=1)
        return [(plan, key_masks(plan, tokens)) for plan in plans]

    def _plans(
        self, slots: Tensor, tokens_per_frame: int, device: torch.device
    ) -> tuple[WindowPlan, WindowPlan]:
        config = self.config
        if config.window is None:
            plan = full_plan(len(slots) * tokens_per_frame)
            return plan, plan
        frames, grid = tuple(slots.tolist()), config.token_grid
        space = config.shift == "all"
        wrap_time, wrap_space = config.mask_wrapped is False, config.mask_wrapped is not True
        wrap = (wrap_time, wrap_space, wrap_space)
        shifted = (True, space, space)
        even = plan_windows(frames, grid, config.window, (False,) * 3, (False,) * 3, device)
        return even, plan_windows(frames, grid, config.window, shifted, wrap, device)
