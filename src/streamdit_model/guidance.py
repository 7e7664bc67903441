"""Guidance of a whole model: the velocity of a stream, with its null text where it has guidance.

The wrapper itself, which knows no model, is `sampling.guided`.

Paper: section 4.2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from streamdit_model.errors import ConfigError
from streamdit_model.frame_text import FrameText
from streamdit_model.sampling import Velocity, guided

if TYPE_CHECKING:
    from streamdit_model.stream_state import StreamModel

__all__ = ["guided_velocity"]


@torch.inference_mode()
def guided_velocity(
    model: StreamModel, *, guidance_scale: float | None, negative_prompt: str | None
) -> Velocity:
    """Return the velocity of a model with its guidance, which runs a second call for the null text.

    Args:
        model: its configuration says whether guidance is baked in, and the scale otherwise.
        guidance_scale: 1 is no guidance; None is the scale of the configuration.
        negative_prompt: the null text; None is the empty prompt.

    Raises:
        ConfigError: guidance for a distilled model, a scale out of range, or a negative prompt
            without guidance.
    """
    config = model.config
    if config.distilled:
        if guidance_scale not in (None, 1.0) or negative_prompt is not None:
            asked = f"scale {guidance_scale}" if negative_prompt is None else "a negative prompt"
            raise ConfigError(
                f"guidance is baked in to the distilled model {config.name}: {asked} is refused",
                hint="leave out the guidance scale and the negative prompt",
            )
        return model.new_velocity()
    scale = config.guidance_scale if guidance_scale is None else guidance_scale
    if not 0 <= scale <= 100:
        raise ConfigError(f"guidance scale {scale} is not in 0 .. 100")
    if scale == 1.0:
        if negative_prompt is not None:
            raise ConfigError("a negative prompt has no effect at guidance scale 1")
        return model.new_velocity()
    keys = model.transformer.text_keys(model.text_encoder.encode([negative_prompt or ""]))
    first = torch.zeros(1, dtype=torch.long, device=model.device)
    return guided(model.new_velocity(), scale, FrameText(keys, first))
