"""The Wan transformer: one timestep per latent frame, frame positions given, context optional.

Inside stand the family's own conventions: timestep 1000 is noise and 0 is data, and the network
predicts noise minus data. `WanTransformer.forward` is the one place where they become ours: tau 0
is noise and 1 is data, and the velocity points to data.

The residual stream is (batch, frames, tokens of a frame, width). Blocks are in `blocks.py`,
positions in `rotary.py`, what is remembered of past frames in `context.py`.

Reference: open-weights.md 2.2, 3 and 4.1.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from streamdit_model.blocks import MODULATIONS, ScaledNorm, modulate
from streamdit_model.errors import ConfigError
from streamdit_model.frame_text import FrameText, TextKeys
from streamdit_model.text import TextCondition
from streamdit_model.wan.blocks import (
    Keep,
    LayerContext,
    LayerWindows,
    WanBlock,
    layer_norm,
)
from streamdit_model.wan.config import WanConfig
from streamdit_model.wan.offload import TravellingBlocks
from streamdit_model.wan.rotary import Rotation, rotation
from streamdit_model.window_attention import key_masks, plan_windows

__all__ = ["Context", "KeepLayer", "WanTransformer", "timestep_embedding"]

TIMESTEPS = 1000.0
FPS_CLASSES = 2
FPS_OF_CLASS_0 = 16  # every other number of frames per second is class 1


class Context(Protocol):
    """Keys and values of frames that lie before the window, as a pass reads them."""

    @property
    def positions(self) -> Tensor:
        """(frames,) position of each context frame, in the same count as the window's."""
        ...

    def read(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return keys (normed, not rotated) and values of a layer.

        Both are (batch, heads, frames, tokens of a frame, head width).
        """
        ...


KeepLayer = Callable[[int, Tensor, Tensor], None]
"""keep(layer, key, value), as `Context.read` returns them; called after the layer has read."""


def timestep_embedding(timestep: Tensor, width: int) -> Tensor:
    """Embed timesteps as cosines and sines of `width / 2` frequencies from 1 to 1/10,000.

    Args:
        timestep: any shape.
        width: even.

    Returns:
        (*shape, width), float64. Choice: float64 as in the original; at timestep 1000 a float32
        angle is off by up to 1e-4.
    """
    half = width // 2
    steps = torch.arange(half, device=timestep.device, dtype=torch.float64) / half
    angles = timestep.double().unsqueeze(-1) * 10_000.0**-steps
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class PatchEmbedding(nn.Module):
    """Patches of latents to tokens; the weight has the shape of a 3-D convolution.

    Choice: a product of matrices, since the patches do not overlap.
    """

    def __init__(self, channels: int, width: int, patch: tuple[int, int, int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, channels, *patch))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, latents: Tensor) -> Tensor:
        """(batch, channels, frames, height, width) -> (batch, frames, tokens, model width)."""
        rows, columns = self.weight.shape[3:]
        x = latents.unflatten(4, (-1, columns)).unflatten(3, (-1, rows))  # (b, c, f, h, p, w, q)
        x = x.permute(0, 2, 3, 5, 1, 4, 6).flatten(4).flatten(2, 3)
        return F.linear(x, self.weight.flatten(1), self.bias)


class WanTransformer(nn.Module):
    """The network: latents, tau per latent frame, frame positions and text to a velocity.

    Args:
        config: its shape.
        checkpoint_blocks: keep only the blocks' inputs for the backward pass and run them again.
    """

    def __init__(self, config: WanConfig, *, checkpoint_blocks: bool = False) -> None:
        super().__init__()
        self.config = config
        self.checkpoint_blocks = checkpoint_blocks
        self._travelling: TravellingBlocks | None = None
        width = config.width
        self.patch_embedding = PatchEmbedding(config.latent_channels, width, config.patch)
        self.time_embedding = nn.Sequential(
            nn.Linear(config.time_width, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.modulation = nn.Linear(width, MODULATIONS * width)
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_width, width),
            nn.GELU(approximate="tanh"),
            nn.Linear(width, width),
        )
        if config.fps is not None:
            self.fps_embedding = nn.Embedding(FPS_CLASSES, width)
            self.fps_modulation = nn.Sequential(
                nn.Linear(width, width), nn.SiLU(), nn.Linear(width, MODULATIONS * width)
            )
        self.blocks = nn.ModuleList(
            WanBlock(width, config.num_heads, config.mlp_width) for _ in range(config.depth)
        )
        self.head_table = nn.Parameter(torch.empty(1, 2, width))
        self.head = nn.Linear(width, config.patch_values)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Draw the weights; also after `to_empty`, when the model was built on the meta device.

        Linear weights are normal with variance 1/inputs, biases 0, norm scales 1, tables normal
        with variance 1/width. Choice: nothing but biases is zero, so that a network of random
        weights exercises every part.

        Args:
            generator: source of the draws, on the device of the weights; None is torch's own.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | PatchEmbedding):
                inputs = module.weight[0].numel()
                nn.init.normal_(module.weight, std=inputs**-0.5, generator=generator)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=1.0, generator=generator)
            elif isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, ScaledNorm):
                nn.init.ones_(module.weight)
            elif isinstance(module, WanBlock):
                nn.init.normal_(module.table, std=self.config.width**-0.5, generator=generator)
        nn.init.normal_(self.head_table, std=self.config.width**-0.5, generator=generator)

    def offload_blocks(self, device: torch.device) -> None:
        """Let the blocks rest in CPU memory and come to the device in turn, the rest stay there.

        For a network without gradients; moving it afterwards is not provided for.
        """
        travelling = self._travelling = TravellingBlocks(self.blocks, device)
        for name, parameter in self.named_parameters():
            if not name.startswith("blocks."):
                parameter.data = parameter.data.to(device)

        def at_home(module: nn.Module, state: dict[str, Tensor], prefix: str, _: object) -> None:
            """Let nobody read weights that are about to make room for the next block's."""
            for number, home in enumerate(travelling.homes):
                state |= {f"{prefix}blocks.{number}.{name}": home[name] for name in home}

        self.register_state_dict_post_hook(at_home)

    def text_keys(self, condition: TextCondition) -> TextKeys:
        """Compute keys and values of every block, once per prompt.

        Args:
            condition: tokens (prompts, length, text_width) and their mask; at most `text_length`
                tokens of a prompt are real.

        Raises:
            ConfigError: a prompt with more tokens, or of another width.

        Reference: open-weights.md 4.4. Rows past the true length are zero, are embedded like any
        other and are seen by the cross-attention: the weights were trained so.
        """
        tokens, length = condition.tokens, self.config.text_length
        if tokens.shape[1] > length:
            if bool(condition.mask[:, length:].any()):
                raise ConfigError(
                    f"a prompt has {tokens.shape[1]} tokens; the model reads {length}"
                )
            tokens = tokens[:, :length]
        if tokens.shape[2] != self.config.text_width:
            raise ConfigError(
                f"text tokens are {tokens.shape[2]} wide; the model's are {self.config.text_width}"
            )
        tokens = tokens * condition.mask[:, :length, None]
        tokens = F.pad(tokens, (0, 0, 0, length - tokens.shape[1]))
        tokens = self.text_embedding(tokens.to(self.modulation.weight.dtype))
        with self._blocks_in_turn() as blocks:
            pairs = [cast(WanBlock, block).cross_attention.keys_values(tokens) for block in blocks]
        return TextKeys(tuple(key for key, _ in pairs), tuple(value for _, value in pairs), None)

    def forward(
        self,
        latents: Tensor,
        tau: Tensor,
        positions: Tensor,
        text: FrameText,
        present: Tensor | None = None,
        *,
        context: Context | None = None,
        keep: KeepLayer | None = None,
    ) -> Tensor:
        """Predict the velocity of every latent frame, in the project's conventions.

        Args:
            latents: (batch, channels, frames, height, width), any number of frames.
            tau: (batch, frames), or (batch, 1) for all frames, in [0, 1], 0 = noise, 1 = data.
            positions: (frames,) position of each frame in time; only differences count. With
                windows they are slots of the full buffer.
            text: the prompt of every sample or frame.
            present: (batch, frames) bool, or None when all are; False hides a frame from all
                others, as if it were not there, and leaves its own result undefined.
            context: earlier frames that the window sees and that do not see the window; not with
                a configuration of attention windows.
            keep: gets each layer's keys and values of the window, to be a context later.

        Returns:
            Velocity pointing to data, shape and dtype of the latents.

        Raises:
            ConfigError: a shape that the model cannot take.

        Reference: open-weights.md 2.2.
        """
        timestep = TIMESTEPS * (1.0 - tau.double())
        return -self.noise_direction(
            latents, timestep, positions, text, present, context=context, keep=keep
        )

    def noise_direction(
        self,
        latents: Tensor,
        timestep: Tensor,
        positions: Tensor,
        text: FrameText,
        present: Tensor | None = None,
        *,
        context: Context | None = None,
        keep: KeepLayer | None = None,
    ) -> Tensor:
        """Predict noise minus data, in the conventions of the weights; see `forward`.

        Args:
            latents: as in `forward`.
            timestep: (batch, frames) or (batch, 1), 1000 = noise, 0 = data; not only whole numbers.
            positions: as in `forward`, like the rest.
        """
        self._check(latents, timestep, positions)
        if context is not None and self.config.window is not None:
            raise ConfigError(
                f"a model with attention windows {self.config.window} takes no context"
            )
        height, width = latents.shape[3] // self.config.patch[1], latents.shape[4]
        tokens = (height, width // self.config.patch[2])
        dtype = self.modulation.weight.dtype
        x = self.patch_embedding(latents.to(dtype))  # (b, f, s, d)
        time = self.time_embedding(timestep_embedding(timestep, self.config.time_width).to(dtype))
        modulation = self.modulation(F.silu(time)).unflatten(-1, (MODULATIONS, -1))
        if self.config.fps is not None:
            modulation = modulation + self._fps_modulation(self.config.fps)
        turn = self._rotation(positions, tokens, x)
        past = None if context is None else self._rotation(context.positions, tokens, x)
        windows = self._windows(positions, tokens, x.device, present)
        mask = None
        if present is not None and windows[0] is None:
            mask = _key_mask(present, past, x.shape[2])
        texts = text.per_block()
        with self._blocks_in_turn() as blocks:
            for number, block in enumerate(blocks):
                layer = None
                if context is not None and past is not None:
                    layer = LayerContext(*context.read(number), past)
                rest = (layer, mask, _at(keep, number), windows[number % 2])
                x = self._run(block, x, modulation, turn, texts[number], *rest)
        shift, scale = (time.unsqueeze(2) + self.head_table).unsqueeze(3).unbind(2)
        values = self.head(modulate(layer_norm(x), shift, scale))  # (b, f, s, patch * channels)
        return self._unpatch(values, tokens).to(latents.dtype)

    def _run(self, block: nn.Module, *inputs: object) -> Tensor:
        if self.checkpoint_blocks and torch.is_grad_enabled():
            return cast(Tensor, checkpoint(block, *inputs, use_reentrant=False))
        return block(*inputs)

    def _check(self, latents: Tensor, timestep: Tensor, positions: Tensor) -> None:
        channels, frames, height, width = latents.shape[1:]
        _, rows, columns = self.config.patch
        if channels != self.config.latent_channels:
            raise ConfigError(
                f"latents have {channels} channels; the model's have {self.config.latent_channels}"
            )
        if height % rows or width % columns:
            raise ConfigError(
                f"latents of {height} x {width} are not whole patches of {rows} x {columns}"
            )
        times = ((len(latents), frames), (len(latents), 1))
        if len(positions) != frames or tuple(timestep.shape) not in times:
            raise ConfigError(
                f"{frames} latent frames with {len(positions)} positions and times of shape "
                f"{tuple(timestep.shape)}; each frame has a position, and a time or the one of all"
            )

    def _blocks_in_turn(self) -> AbstractContextManager[Iterable[nn.Module]]:
        return nullcontext(self.blocks) if self._travelling is None else self._travelling.in_turn()

    def _fps_modulation(self, fps: int) -> Tensor:
        """Return what the frame rate adds to the modulation, (6, width)."""
        number = torch.tensor(int(fps != FPS_OF_CLASS_0), device=self.head_table.device)
        return self.fps_modulation(self.fps_embedding(number)).unflatten(-1, (MODULATIONS, -1))

    def _rotation(self, positions: Tensor, tokens: tuple[int, int], x: Tensor) -> Rotation:
        dtype = torch.promote_types(x.dtype, torch.float32)
        return rotation(positions, *tokens, self.config.head_width, x.device, dtype)

    def _windows(
        self,
        positions: Tensor,
        tokens: tuple[int, int],
        device: torch.device,
        present: Tensor | None,
    ) -> tuple[LayerWindows, LayerWindows] | tuple[None, None]:
        """Return the windows of even and, shifted by half a window, of odd blocks."""
        window, length = self.config.window, self.config.buffer_length
        if window is None or length is None:
            return None, None
        slots, grid = tuple(positions.tolist()), (length, *tokens)
        if not 0 <= min(slots) <= max(slots) < length:
            raise ConfigError(f"positions {slots} are not slots of a buffer of {length} frames")
        seen = None
        if present is not None:
            seen = present.repeat_interleave(tokens[0] * tokens[1], dim=1)
        plans = [
            plan_windows(slots, grid, window, (shifted,) * 3, (False,) * 3, device)
            for shifted in (False, True)
        ]
        masks = [None if seen is None else key_masks(plan, seen) for plan in plans]
        return LayerWindows(plans[0], masks[0]), LayerWindows(plans[1], masks[1])

    def _unpatch(self, values: Tensor, tokens: tuple[int, int]) -> Tensor:
        """(batch, frames, tokens, values) -> (batch, channels, frames, height, width)."""
        _, rows, columns = self.config.patch
        x = values.unflatten(3, (rows, columns, -1)).unflatten(2, tokens)  # (b, f, h, w, p, q, c)
        return x.permute(0, 6, 1, 2, 4, 3, 5).flatten(5).flatten(3, 4)


def _at(keep: KeepLayer | None, layer: int) -> Keep | None:
    """Bind a layer's number."""
    return None if keep is None else lambda key, value: keep(layer, key, value)


def _key_mask(present: Tensor, past: Rotation | None, tokens: int) -> Tensor:
    """Return (batch, 1, 1, keys): the context's keys are seen, those of absent frames are not."""
    frames = 0 if past is None else len(past.cosine)
    return F.pad(present, (frames, 0), value=True).repeat_interleave(tokens, dim=1)[:, None, None]
