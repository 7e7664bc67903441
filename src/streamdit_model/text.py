"""The text encoder: the bytes of a prompt in, tokens for the cross-attention out.

A byte has no vocabulary file and no unknown words, so the same code reads every language and
every typing mistake. One transformer layer looks at single bytes, then four neighbours are merged
into one token and the remaining layers work on a quarter of the length. The encoder is trained
together with the diffusion transformer. It knows nothing of latents, noise or guidance: the empty
prompt that guidance needs is simply the prompt "".

Paper: sec. 3.1 conditions on text encoders of which one is ByT5, a byte encoder.
Choice: this byte encoder is the only one and is trained from scratch, because the small models
must not depend on a download.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from streamdit_model.errors import ConfigError

__all__ = [
    "BYTES_PER_TOKEN",
    "PromptCache",
    "PromptEncoder",
    "TextCondition",
    "TextConfig",
    "TextEncoder",
    "normalize_prompt",
]

BYTES_PER_TOKEN = 4
_BEGIN = 256
_PADDING = 257


@dataclass(frozen=True, kw_only=True, slots=True)
class TextConfig:
    """Sizes of the text encoder.

    Args:
        width: width of a text token as the cross-attention sees it.
        byte_width: width of the layer that looks at single bytes.
        depth: number of layers after the merge to tokens.
        num_heads: attention heads of every layer; divides both widths.
        max_bytes: bytes of a prompt that are read; the rest is cut off (see `truncated`).

    Raises:
        ConfigError: a number is out of range, or num_heads does not divide a width.
    """

    width: int
    byte_width: int
    depth: int
    num_heads: int
    max_bytes: int = 256

    def __post_init__(self) -> None:
        for name in ("width", "byte_width", "depth", "num_heads", "max_bytes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"text {name} {getattr(self, name)} is not at least 1")
        for name in ("width", "byte_width"):
            if getattr(self, name) % self.num_heads:
                raise ConfigError(
                    f"text {name} {getattr(self, name)} is not a multiple of num_heads"
                    f" {self.num_heads}"
                )

    @property
    def max_tokens(self) -> int:
        """Longest number of tokens of one prompt, the begin byte included."""
        return math.ceil((self.max_bytes + 1) / BYTES_PER_TOKEN)


@dataclass(frozen=True, slots=True)
class TextCondition:
    """What the cross-attention reads.

    Args:
        tokens: (prompts, length, width).
        mask: (prompts, length) bool, True where a token is real.
    """

    tokens: Tensor
    mask: Tensor


def normalize_prompt(prompt: str) -> str:
    """Strip surrounding whitespace and fold every run of whitespace to one space.

    Choice: nothing else is changed (no case folding, no Unicode normal form), so that what the
    user typed is what the model reads and what the metadata of a video says.
    """
    return " ".join(prompt.split())


class _TextLayer(nn.Module):
    """A pre-norm transformer layer in which every position sees every real position."""

    def __init__(self, width: int, num_heads: int, num_layers: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.mlp_norm = nn.RMSNorm(width)
        self.mlp_in = nn.Linear(width, 4 * width)
        self.mlp_out = nn.Linear(4 * width, width)
        for linear in (self.attention_out, self.mlp_out):
            _init_linear(linear, 1.0 / math.sqrt(2.0 * num_layers))
        for linear in (self.qkv, self.mlp_in):
            _init_linear(linear, 1.0)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map (prompts, length, width) to the same shape; mask is (prompts, length) bool."""
        shape = (x.shape[0], x.shape[1], 3, self.num_heads, -1)
        q, k, v = self.qkv(self.attention_norm(x)).view(shape).permute(2, 0, 3, 1, 4)
        head_width = (q.shape[-1],)
        q, k = functional.rms_norm(q, head_width), functional.rms_norm(k, head_width)
        attended = functional.scaled_dot_product_attention(
            q, k.to(v.dtype), v, attn_mask=mask[:, None, None, :]
        )
        x = x + self.attention_out(attended.transpose(1, 2).reshape(x.shape))
        return x + self.mlp_out(functional.gelu(self.mlp_in(self.mlp_norm(x))))


class TextEncoder(nn.Module):
    """Encode prompts as bytes; the parameters are trained with the diffusion transformer.

    Args:
        config: the sizes.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        num_layers = config.depth + 1
        length = config.max_tokens * BYTES_PER_TOKEN
        self.byte_embedding = nn.Embedding(_PADDING + 1, config.byte_width)
        self.position = nn.Embedding(length, config.byte_width)
        self.byte_layer = _TextLayer(config.byte_width, config.num_heads, num_layers)
        self.merge = nn.Linear(BYTES_PER_TOKEN * config.byte_width, config.width)
        self.layers = nn.ModuleList(
            _TextLayer(config.width, config.num_heads, num_layers) for _ in range(config.depth)
        )
        self.norm = nn.RMSNorm(config.width)
        _init_linear(self.merge, 1.0)
        for embedding in (self.byte_embedding, self.position):
            nn.init.normal_(embedding.weight, std=0.3)

    def prompt_bytes(self, prompt: str) -> bytes:
        """Return the UTF-8 bytes that are read of a prompt, cut at a whole character.

        Raises:
            ConfigError: the text cannot be written as UTF-8.
        """
        encoded = _utf8(prompt)
        if len(encoded) <= self.config.max_bytes:
            return encoded
        return encoded[: self.config.max_bytes].decode("utf-8", "ignore").encode("utf-8")

    def truncated(self, prompt: str) -> bool:
        """Say whether the prompt is longer than the encoder reads."""
        return len(_utf8(prompt)) > self.config.max_bytes

    def byte_ids(self, prompts: Sequence[str]) -> Tensor:
        """Return (prompts, bytes) int64 on the CPU: a begin byte first, padded to whole tokens."""
        rows = [[_BEGIN, *self.prompt_bytes(prompt)] for prompt in prompts]
        longest = max(len(row) for row in rows)
        length = math.ceil(longest / BYTES_PER_TOKEN) * BYTES_PER_TOKEN
        return torch.tensor([row + [_PADDING] * (length - len(row)) for row in rows])

    def encode(self, prompts: Sequence[str]) -> TextCondition:
        """Encode a batch of prompts, padded to the longest of them.

        Args:
            prompts: at least one; "" is the null prompt of guidance and gives one real token.

        Returns:
            The condition; a prompt's real tokens do not depend on the others in the batch.

        Raises:
            ConfigError: no prompt, or one that cannot be written as UTF-8.
        """
        if not prompts:
            raise ConfigError("no prompt to encode, at least one is needed")
        return self(self.byte_ids(prompts).to(self.byte_embedding.weight.device))

    def forward(self, byte_ids: Tensor) -> TextCondition:
        """Map (prompts, bytes) ids to tokens; bytes is a multiple of BYTES_PER_TOKEN."""
        byte_mask = byte_ids != _PADDING
        x = self.byte_embedding(byte_ids) + self.position.weight[: byte_ids.shape[1]]
        x = self.byte_layer(x, byte_mask) * byte_mask[..., None]
        mask = byte_mask[:, ::BYTES_PER_TOKEN]
        x = self.merge(x.reshape(*mask.shape, -1)).to(self.norm.weight.dtype)
        for layer in self.layers:
            x = layer(x, mask)
        return TextCondition(self.norm(x), mask)


class PromptEncoder(Protocol):
    """What a cache needs of a text encoder."""

    def encode(self, prompts: Sequence[str]) -> TextCondition:
        """Encode prompts, as `TextEncoder.encode`."""
        ...


class PromptCache:
    """The conditions of the prompts used last, so that a prompt is encoded once.

    One thread uses a cache, and the encoder's parameters stay as they are while it lives.

    Args:
        encoder: the text encoder.
        size: number of prompts kept; the one not used for longest leaves first.
    """

    def __init__(self, encoder: PromptEncoder, size: int = 64) -> None:
        if size < 1:
            raise ConfigError(f"prompt cache size {size} is not at least 1")
        self._encoder = encoder
        self._size = size
        self._conditions: OrderedDict[str, TextCondition] = OrderedDict()

    def __len__(self) -> int:
        return len(self._conditions)

    def __call__(self, prompt: str) -> TextCondition:
        """Return the condition of one prompt, tokens (1, length, width), without gradients."""
        key = normalize_prompt(prompt)
        condition = self._conditions.pop(key, None)
        if condition is None:
            with torch.no_grad():
                condition = self._encoder.encode([key])
        self._conditions[key] = condition
        if len(self._conditions) > self._size:
            self._conditions.popitem(last=False)
        return condition


def _init_linear(linear: nn.Linear, gain: float) -> None:
    nn.init.normal_(linear.weight, std=gain / math.sqrt(linear.in_features))
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def _utf8(prompt: str) -> bytes:
    try:
        return normalize_prompt(prompt).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"prompt has a character that is not Unicode text at position {error.start}",
            hint="type the prompt in UTF-8",
        ) from None
