"""A model of our own layout with random weights: size and speed of what nobody has trained yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from streamdit_cli.presets import find_model, find_preset, preset_names

if TYPE_CHECKING:
    from torch import nn

    from streamdit_model.weights import Model, ModelConfig

__all__ = ["RandomModel", "draw_weights"]

RANDOM_SEED = 0
VECTOR_DEVIATION = 0.02  # of biases, positions and tables around what they begin with


@dataclass(frozen=True, kw_only=True)
class RandomModel:
    """A configuration of our own without its weights, with the interface of `FolderModel`.

    Args:
        name: a preset with a configuration or a folder, a model folder, or a run; None is what
            `presets.find_model` takes.
    """

    name: str | None

    def read_config(
        self, *, size: tuple[int, int] | None = None, start: str | None = None
    ) -> ModelConfig:
        """Read the configuration; random weights take any size.

        Args:
            size: (width, height) in pixels; None is the model's own.
            start: not looked at, every start is known.

        Raises:
            UsageError, MissingWeights: see `presets.find_model`.
            WeightsError, ConfigError: the configuration does not fit, or a size that it cannot be.
        """
        from streamdit_model.model_config import ModelConfig
        from streamdit_model.weights import read_config

        preset = find_preset(self.name) if self.name in preset_names() and self.name else None
        if preset is not None and "model" in preset:
            config = ModelConfig.from_dict(preset["model"])
        else:
            config = read_config(find_model(self.name)[0])
        return config if size is None else _resized(config, *size)

    def load(
        self,
        *,
        prompts: Sequence[str],
        size: tuple[int, int] | None,
        device: str | None,
        dtype: str | None,
        threads: int | None,
    ) -> Model:
        """Draw the weights; arguments as in `FolderModel.load`.

        Raises:
            DeviceError: there is no such device.
        """
        from streamdit_cli import console
        from streamdit_cli.making import where_and_how
        from streamdit_model.autoencoder import Autoencoder
        from streamdit_model.text import TextEncoder
        from streamdit_model.transformer import StreamDiT
        from streamdit_model.weights import Model, meta_modules

        config = self.read_config(size=size)
        place, number_type = where_and_how(device=device, dtype=dtype, threads=threads)
        console.warn(f"{config.name} runs on random weights: the video shows nothing")
        parts = meta_modules(config)
        for part in parts.values():
            part.to(number_type).to_empty(device=place).eval().requires_grad_(False)
            draw_weights(part)
        transformer, autoencoder, text = parts["transformer"], parts["autoencoder"], parts["text"]
        assert isinstance(transformer, StreamDiT) and isinstance(autoencoder, Autoencoder)
        assert isinstance(text, TextEncoder)
        return Model(config, transformer, autoencoder, text, place, number_type)


def draw_weights(module: nn.Module) -> None:
    """Draw all parameters, always the same ones, so that a signal keeps about its size.

    Matrices and convolutions are normal with variance 1/inputs, none of them zero, since products
    with zeros take less power and time than others. Vectors are near 1 where they scale a norm.

    Args:
        module: its memory may hold anything; buffers become what a new latent norm has.
    """
    import torch

    from streamdit_model.autoencoder import LatentNorm

    generator = torch.Generator(next(module.parameters()).device).manual_seed(RANDOM_SEED)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, LatentNorm):
                part.mean.zero_()
                part.deviation.fill_(1.0)
        for name, parameter in module.named_parameters():
            is_weight = name.endswith("weight")
            is_matrix = is_weight and parameter.dim() > 1
            deviation = parameter[0].numel() ** -0.5 if is_matrix else VECTOR_DEVIATION
            parameter.normal_(std=deviation, generator=generator)
            if is_weight and not is_matrix:  # the scale of a norm
                parameter.add_(1.0)


def _resized(config: ModelConfig, width: int, height: int) -> ModelConfig:
    """Return the configuration for another size.

    Raises:
        ConfigError: a size that autoencoder or patches do not take.
    """
    from streamdit_model.autoencoder import TIME_FACTOR, Autoencoder

    frames = config.partition.buffer_length * TIME_FACTOR
    grid = Autoencoder.latent_shape(frames, height, width)
    transformer = replace(config.transformer, grid=grid)
    return replace(config, width=width, height=height, transformer=transformer)
