"""The adaLN block of StreamDiT: windowed self-attention, cross-attention to text, SwiGLU.

A block maps the residual stream, (batch, frames, tokens of a frame, width), to itself. It is the
unit of torch.compile: its shapes are fixed by its inputs and no branch looks at their values.
It knows nothing of tau, slots or prompts; `transformer.py` hands it their tensors.

Paper: section 4.1 and figure 3.
"""

# Shape suffixes: b batch, f latent frames, s tokens of one frame, t all tokens, d width, m heads,
# k head width, l text tokens, p prompts.

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamdit_model.frame_text import BlockText, PromptRows
from streamdit_model.window_attention import WindowPlan, attend, window_attention

__all__ = ["MODULATIONS", "Block", "CrossAttention", "ScaledNorm", "modulate", "rms_norm"]

MODULATIONS = 6  # shift, scale and gate of the self-attention and of the MLP
NORM_EPSILON = 1e-6  # the same in every dtype


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Shift and scale normed tokens (batch, frames, tokens, width) by (batch, frames, 1, width)."""
    return x * (1 + scale) + shift


def rms_norm(x: Tensor) -> Tensor:
    """Norm the last axis to a root mean square of 1, without learned scale."""
    return F.rms_norm(x, x.shape[-1:], eps=NORM_EPSILON)


class ScaledNorm(nn.RMSNorm):
    """Root mean square norm with a learned scale, which may be of another dtype than the input."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., width) to itself."""
        return rms_norm(x) * self.weight


class SelfAttention(nn.Module):
    """Attention of every token to its own window, with normed queries and keys."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.heads = (num_heads, width // num_heads)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.query_norm = ScaledNorm(self.heads[1])
        self.key_norm = ScaledNorm(self.heads[1])
        self.output = nn.Linear(width, width, bias=False)

    def forward(self, x_bfsd: Tensor, plan: WindowPlan, masks: tuple[Tensor, ...] | None) -> Tensor:
        """Map the residual layout to itself."""
        x_btd = x_bfsd.flatten(1, 2)
        if plan.order is not None:
            x_btd = x_btd.index_select(1, plan.order)
        query, key, value = self.qkv(x_btd).unflatten(-1, (3, *self.heads)).unbind(2)
        query, key = self.query_norm(query), self.key_norm(key)
        attended = window_attention(query, key, value, plan.groups, masks)
        if plan.inverse is not None:
            attended = attended.index_select(1, plan.inverse)
        return self.output(attended).view(x_bfsd.shape)


class CrossAttention(nn.Module):
    """Attention of every token to the text of its sample or of its latent frame."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.heads = (num_heads, width // num_heads)
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.query_norm = ScaledNorm(self.heads[1])
        self.key_norm = ScaledNorm(self.heads[1])
        self.output = nn.Linear(width, width, bias=False)

    def keys_values(self, tokens_pld: Tensor) -> tuple[Tensor, Tensor]:
        """Map projected text tokens to keys and values, (prompts, heads, length, head width)."""
        key, value = self.key_value(tokens_pld).unflatten(-1, (2, *self.heads)).unbind(2)
        key = self.key_norm(key).to(value.dtype)
        return key.transpose(1, 2).contiguous(), value.transpose(1, 2).contiguous()

    def forward(self, x_bfsd: Tensor, text: BlockText) -> Tensor:
        """Map the residual layout to itself."""
        query = self.query_norm(self.query(x_bfsd).unflatten(-1, self.heads))
        attended = self._attend(query, text.first)
        if text.second is not None:
            rows, weight = text.second
            second = self._attend(query, rows)
            attended = ((1 - weight) * attended + weight * second).to(second.dtype)
        return self.output(attended)

    @staticmethod
    def _attend(query_bfsmk: Tensor, rows: PromptRows) -> Tensor:
        num_rows, heads, _, head_width = rows.key.shape
        query = query_bfsmk.reshape(num_rows, -1, heads, head_width).transpose(1, 2)
        attended = attend(query, rows.key, rows.value, rows.mask)
        return attended.transpose(1, 2).reshape(*query_bfsmk.shape[:3], heads * head_width)


class SwiGLU(nn.Module):
    """A gated MLP."""

    def __init__(self, width: int, mlp_width: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * mlp_width, bias=False)
        self.down = nn.Linear(mlp_width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., width) to itself."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    """One adaLN block.

    Paper: figure 3. Choice: norms without learned scale, since a modulation or a projection follows
    each; cross-attention has neither modulation nor gate, as figure 3 draws none.
    """

    def __init__(self, width: int, num_heads: int, mlp_width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(MODULATIONS, width))
        self.attention = SelfAttention(width, num_heads)
        self.cross_attention = CrossAttention(width, num_heads)
        self.mlp = SwiGLU(width, mlp_width)

    def forward(
        self,
        x_bfsd: Tensor,
        modulation_bf6d: Tensor,
        position_fsd: Tensor,
        text: BlockText,
        plan: WindowPlan,
        masks: tuple[Tensor, ...] | None,
    ) -> Tensor:
        """Map the residual stream to itself; `masks` hide absent frames as keys."""
        modulation = (modulation_bf6d + self.table).unsqueeze(3)  # (b, f, 6, 1, d)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = modulation.unbind(2)
        x = x_bfsd + position_fsd
        x = x + gate * self.attention(modulate(rms_norm(x), shift, scale), plan, masks)
        x = x + self.cross_attention(rms_norm(x), text)
        return x + mlp_gate * self.mlp(modulate(rms_norm(x), mlp_shift, mlp_scale))
