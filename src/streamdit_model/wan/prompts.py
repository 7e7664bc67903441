"""The prompts of a stream of open Wan weights: encoded once, then needed no encoder for.

`EncodedPrompts` stands before the text encoder, which is larger than all the rest of a model: what
was encoded stays, and the encoder can be freed. `RandomPrompts` stands in for it where the weights
are random.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from streamdit_model.text import PromptCache, PromptEncoder, TextCondition
from streamdit_model.wan.text import clean_prompt, padded_condition
from streamdit_model.wan.text_weights import WanTextConfig

__all__ = ["EncodedPrompts", "RandomPrompts"]


class EncodedPrompts:
    """The conditions of prompts, each encoded once.

    Args:
        encoder: encodes a new prompt; a `TextCache` may take it from the disk.
    """

    def __init__(self, encoder: PromptEncoder) -> None:
        self._lock = threading.Lock()
        self.encoder = encoder
        self._conditions = PromptCache(_Current(self))

    def use(self, encoder: PromptEncoder) -> None:
        """Let another encoder read the prompts that come from now on."""
        with self._lock:
            self.encoder = encoder

    def prompt_bytes(self, prompt: str) -> bytes:
        """Return the prompt as it is read.

        Raises:
            ConfigError: the text cannot be written as UTF-8.
        """
        return clean_prompt(prompt).encode("utf-8")

    def encode(self, prompts: Sequence[str]) -> TextCondition:
        """Return the condition of prompts, as `WanTextEncoder.encode`."""
        with self._lock:
            found = [self._conditions(prompt) for prompt in prompts]
        return TextCondition(
            torch.cat([condition.tokens for condition in found]),
            torch.cat([condition.mask for condition in found]),
        )

    def truncated(self, prompt: str) -> bool:
        """Say whether a prompt fills all rows that the encoder has, so that it may be cut."""
        return bool(self.encode([prompt]).mask.all())


class _Current:
    """The encoder that reads new prompts now."""

    def __init__(self, prompts: EncodedPrompts) -> None:
        self._prompts = prompts

    def encode(self, prompts: Sequence[str]) -> TextCondition:
        return self._prompts.encoder.encode(prompts)


class RandomPrompts:
    """Rows drawn from the letters of a prompt, in the shape of the real encoder's.

    Args:
        config: sizes of the encoder that is stood in for.
        device: where conditions are wanted.
        dtype: of the rows.
    """

    def __init__(self, config: WanTextConfig, device: torch.device, dtype: torch.dtype) -> None:
        self._config = config
        self._device = device
        self._dtype = dtype

    def prompt_bytes(self, prompt: str) -> bytes:
        """Return the prompt as it is read.

        Raises:
            ConfigError: the text cannot be written as UTF-8.
        """
        return clean_prompt(prompt).encode("utf-8")

    def truncated(self, prompt: str) -> bool:
        """Say whether a prompt has more letters than there are rows."""
        return len(self.prompt_bytes(prompt)) >= self._config.max_tokens

    def encode(self, prompts: Sequence[str]) -> TextCondition:
        """Return a row for each letter and one for the end, other ones for another prompt."""
        found = [self._rows(self.prompt_bytes(prompt)) for prompt in prompts]
        conditions = [padded_condition(rows, self._config.max_tokens) for rows in found]
        return TextCondition(
            torch.cat([condition.tokens for condition in conditions]),
            torch.cat([condition.mask for condition in conditions]),
        )

    def _rows(self, prompt: bytes) -> Tensor:
        seed = int.from_bytes(hashlib.sha256(prompt).digest()[:7], "little")
        generator = torch.Generator().manual_seed(seed)
        count = min(len(prompt) + 1, self._config.max_tokens)
        rows = torch.randn(count, self._config.width, generator=generator)
        return rows.to(self._device, self._dtype)
