"""How much arithmetic a call takes, counted while it runs: no model of the network is needed.

A multiplication and an addition are two operations, as everywhere; only products of matrices,
convolutions and attention count, the rest is below a hundredth of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["Cost", "count_flops"]

_ATEN = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Cost:
    """What a call took.

    Args:
        flops: floating-point operations.
        attention: names of the attention kernels that ran, as torch calls them; empty where it was
            written out as products of matrices.
    """

    flops: int
    attention: tuple[str, ...]


def count_flops(call: Callable[[], object]) -> Cost:
    """Run a call once in this thread and count its operations.

    Args:
        call: its work is done on the CPU or a GPU as always, only slower.

    Choice: attention is counted as if no key were masked, which is what a kernel without blocks
    computes; torch itself leaves out that of a CPU.
    """
    mapping: dict[Any, Any] = {_ATEN._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        call()
    by_kernel = counter.get_flop_counts().get("Global", {})
    names = {str(kernel).removeprefix("aten.") for kernel in by_kernel}
    attention = sorted(name.strip("_") for name in names if "attention" in name)
    return Cost(counter.get_total_flops(), tuple(attention))


def _attention_flops(
    query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], *rest: Any, **named: Any
) -> int:
    """Return the operations of attention, from shapes (batch, heads, tokens, head width)."""
    batch, heads, queries, width = query
    return 2 * batch * heads * queries * key[2] * (width + value[3])
