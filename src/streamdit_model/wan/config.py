"""Shapes of the Wan family's transformers, and the published ones by name.

Reference: open-weights.md 4.1.
"""

from dataclasses import dataclass, replace

from streamdit_model.errors import ConfigError

__all__ = ["WAN_CONFIGS", "WanConfig"]


@dataclass(frozen=True, kw_only=True, slots=True)
class WanConfig:
    """Shape of a Wan transformer; the defaults are what all published ones share.

    Args:
        latent_channels: channels of the latents, in and out.
        patch: latents of one token, (1, height, width).
        width: width of the residual stream, a multiple of num_heads.
        depth: blocks.
        num_heads: heads of both attentions; a head is even and at least 6 wide.
        mlp_width: hidden width of the MLP.
        text_width: width of the text tokens.
        text_length: text tokens that the cross-attention always sees, zero rows past the prompt.
        time_width: width of the sinusoidal embedding of the timestep, even.
        fps: frames per second that the model tells its fps embedding; None: it has none.
        window: tokens of an attention window, (frames, height, width), for training a StreamDiT
            from these weights, which themselves know full attention only; None is full attention.
        buffer_length: latent frames of the full buffer, on which windows are cut; None without.

    Raises:
        ConfigError: a number out of range, or a width that does not divide.
    """

    latent_channels: int = 16
    patch: tuple[int, int, int] = (1, 2, 2)
    width: int
    depth: int
    num_heads: int
    mlp_width: int
    text_width: int = 4096
    text_length: int = 512
    time_width: int = 256
    fps: int | None = None
    window: tuple[int, int, int] | None = None
    buffer_length: int | None = None

    def __post_init__(self) -> None:
        names = ["latent_channels", "width", "depth", "num_heads", "mlp_width", "text_width"]
        for name in [*names, "text_length", "time_width"]:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if len(self.patch) != 3 or min(self.patch) < 1 or self.patch[0] != 1:
            raise ConfigError(
                f"patch is {self.patch}; it must be 1 and two numbers of at least 1, as each "
                "latent frame has its own timestep"
            )
        if self.width % self.num_heads:
            raise ConfigError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")
        if self.head_width < 6 or self.head_width % 2:
            raise ConfigError(
                f"a head is {self.head_width} wide; rotary positions on three axes need an even "
                "number of at least 6"
            )
        if self.time_width % 2:
            raise ConfigError(f"time_width is {self.time_width}; it must be even")
        if self.fps is not None and self.fps < 1:
            raise ConfigError(f"fps is {self.fps}; it must be at least 1, or none")
        if (self.window is None) != (self.buffer_length is None):
            raise ConfigError(
                f"window {self.window} and buffer_length {self.buffer_length} must be given "
                "together or not at all"
            )
        if self.window is not None and (len(self.window) != 3 or min(self.window) < 1):
            raise ConfigError(f"window is {self.window}; it must be three numbers of at least 1")
        if self.buffer_length is not None and self.buffer_length < 1:
            raise ConfigError(f"buffer_length is {self.buffer_length}; it must be at least 1")

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.width // self.num_heads

    @property
    def patch_values(self) -> int:
        """Latent values of one token."""
        return self.latent_channels * self.patch[1] * self.patch[2]


_SMALL = WanConfig(width=1536, depth=30, num_heads=12, mlp_width=8960)
_LARGE = WanConfig(width=5120, depth=40, num_heads=40, mlp_width=13824)

WAN_CONFIGS: dict[str, WanConfig] = {
    "wan-1.3b": _SMALL,
    "wan-14b": _LARGE,
    "wan-5b": WanConfig(latent_channels=48, width=3072, depth=30, num_heads=24, mlp_width=14336),
    "skyreels-df-1.3b": replace(_SMALL, fps=24),
    "skyreels-df-14b": _LARGE,
}
"""Model name -> configuration. The rolling models are `wan-1.3b`; only the small SkyReels has fps.

Reference: open-weights.md 3 and 4.1.
"""
