"""A loaded model of open Wan weights: what a stream needs of it.

The counterpart of `streamdit_model.weights.Model`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from streamdit_model.frame_text import FrameText
from streamdit_model.sampling import Stepper, Velocity, Window
from streamdit_model.text import PromptEncoder
from streamdit_model.wan.model_config import WanModelConfig
from streamdit_model.wan.rolling import RollingVelocity
from streamdit_model.wan.tiny import TinyAutoencoder
from streamdit_model.wan.transformer import WanTransformer
from streamdit_model.wan.unipc import UniPCStepper
from streamdit_model.wan.vae import WanAutoencoder

__all__ = ["Prompts", "WanModel"]


class Prompts(PromptEncoder, Protocol):
    """Prompts to conditions, with what is said about a prompt before."""

    def prompt_bytes(self, prompt: str) -> bytes:
        """Return the prompt as it is read.

        Raises:
            ConfigError: the text cannot be written as UTF-8.
        """
        ...

    def truncated(self, prompt: str) -> bool:
        """Say whether not all of a prompt is read."""
        ...


@dataclass(slots=True, eq=False)
class WanModel:
    """A loaded model; the parts are in evaluation mode and have no gradients.

    Args:
        config: what it is.
        transformer, autoencoder: the networks, on one device, in one dtype.
        text_encoder: gives the conditions of prompts on that device.
        device: where the networks are.
        dtype: float dtype of the parameters.
    """

    config: WanModelConfig
    transformer: WanTransformer
    autoencoder: WanAutoencoder | TinyAutoencoder
    text_encoder: Prompts
    device: torch.device
    dtype: torch.dtype

    def velocity(self, window: Window) -> Tensor:
        """Return the predicted velocity of a window without context, float32.

        Args:
            window: its text is a `FrameText`.
        """
        text = window.text
        assert isinstance(text, FrameText), type(text)
        latents = window.latents.to(self.dtype)
        return self.transformer(latents, window.tau, window.slots, text).float()

    def new_velocity(self) -> Velocity:
        """Return the velocity of a new stream, with a context where the model has one."""
        if self.config.context is None:
            return self.velocity
        return RollingVelocity(self.transformer, self.config.context)

    def new_stepper(self) -> str | Stepper:
        """Return how a new stream makes its micro steps, see `sampling.cycle`."""
        if self.config.stepper == "unipc":
            return UniPCStepper(self.config.partition)
        return self.config.stepper

    @property
    def parts(self) -> tuple[nn.Module, ...]:
        """What holds the weights that frames depend on, but for the text encoder."""
        return self.transformer, self.autoencoder

    @property
    def text_limit(self) -> str:
        """How much of a prompt is read, in words."""
        return f"{self.config.text.max_tokens} tokens"
