"""Blocks of a network that rest in CPU memory and come to the device one after another.

Two places on the device are taken once. While the block in one of them runs, the next one is copied
into the other; on CUDA by a stream of its own, from pinned memory. So of all blocks two are on the
device at any time, and a pass takes no memory for their weights.

The numbers of a pass are the same bits, since the weights are.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

__all__ = ["Offload", "TravellingBlocks"]

Offload = Literal["none", "text", "cpu"]
"""none: all stays on the device. text: the text encoder leaves it before the network comes.
cpu: besides, the network's blocks rest in CPU memory and come one after another."""

_PLACES = 2


class TravellingBlocks:
    """Blocks of one shape, each on the device only while it has its turn, or is the next.

    Args:
        blocks: their parameters go to CPU memory and stay there between turns; in evaluation mode
            and without gradients. Parameters may be changed in place before the first turn.
        device: where they run.
    """

    def __init__(self, blocks: Iterable[nn.Module], device: torch.device) -> None:
        self._blocks = list(blocks)
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None
        for block in self._blocks:
            _point(block, {name: self._resting(p) for name, p in block.named_parameters()})
        self._homes = [_weights(block) for block in self._blocks]
        with torch.inference_mode(False):
            self._places: list[dict[str, Tensor]] = [
                {name: torch.empty_like(x, device=device) for name, x in self._homes[0].items()}
                for _ in range(_PLACES)
            ]
        self._held: list[int | None] = [None] * _PLACES  # which block is in a place
        self._arrived: list[torch.Event | None] = [None] * _PLACES
        self._left: list[torch.Event | None] = [None] * _PLACES
        self._lock = threading.RLock()

    @property
    def num_bytes(self) -> int:
        """Memory of the places on the device."""
        return sum(tensor.nbytes for place in self._places for tensor in place.values())

    @property
    def homes(self) -> list[dict[str, Tensor]]:
        """The weights of each block where they rest, by the names of its parameters."""
        return self._homes

    @contextmanager
    def in_turn(self) -> Iterator[Iterator[nn.Module]]:
        """Give the blocks in order, each on the device until the next one is asked for.

        One thread walks at a time; another one waits.
        """
        with self._lock:
            try:
                yield self._walk()
            finally:
                for block, home in zip(self._blocks, self._homes, strict=True):
                    _point(block, home)

    def _walk(self) -> Iterator[nn.Module]:
        self._fetch(0, into=0)
        for number, block in enumerate(self._blocks):
            place = self._held.index(number)
            if (arrived := self._arrived[place]) is not None:
                torch.cuda.current_stream().wait_event(arrived)
            _point(block, self._places[place])
            self._fetch((number + 1) % len(self._blocks), into=1 - place)
            yield block
            if self._side is not None:
                self._left[place] = torch.cuda.current_stream().record_event()
            _point(block, self._homes[number])

    def _fetch(self, number: int, *, into: int) -> None:
        """Begin to copy a block into a place, unless it is there already."""
        if number in self._held:
            return
        self._held[into] = number
        if self._side is None:
            _copy(self._homes[number], self._places[into])
            return
        with torch.cuda.stream(self._side):
            if (left := self._left[into]) is not None:
                self._side.wait_event(left)
            _copy(self._homes[number], self._places[into])
            self._arrived[into] = self._side.record_event()

    def _resting(self, parameter: Tensor) -> Tensor:
        """Return weights in CPU memory, pinned where a GPU copies from it."""
        value = parameter.detach().cpu()
        if self._side is None:
            return value
        try:
            return value.pin_memory()
        except RuntimeError:  # the system lends no more of it: slower, not wrong
            return value


@torch.no_grad()
def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    for name, tensor in target.items():
        tensor.copy_(source[name], non_blocking=True)


def _weights(block: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.data for name, parameter in block.named_parameters()}


def _point(block: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Let the parameters of a block be other tensors of their shape."""
    for name, parameter in block.named_parameters():
        parameter.data = weights[name]
