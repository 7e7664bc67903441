"""How much memory the tensors of a computation take: of all that are alive, the largest sum.

Every operator is looked at after it ran, and the storages it made are counted as long as they
live. What an operator takes and gives back inside itself (the workspace of a convolution) is not
seen. Under `FakeTensorMode` the same is measured at any size without memory for it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of storages that operators make on one kind of device while it is entered.

    Args:
        device: its kind.
        skips: says of a storage that it takes no memory, such as a mapped file.

    Attributes:
        live: bytes that are alive now.
        peak: the largest that `live` ever was.
    """

    def __init__(
        self,
        device: str = "cpu",
        skips: Callable[[torch.UntypedStorage], bool] = lambda storage: False,
    ) -> None:
        super().__init__()
        self._skips = skips
        self.live = self.peak = 0
        self._device = device
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        for tensor in _tensors((args, kwargs)):
            self._known.add(tensor.untyped_storage())
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if tensor.device.type != self._device or storage in self._known:
                continue
            self._known.add(storage)
            if self._skips(storage):
                continue
            size = storage.nbytes()
            self.live += size
            weakref.finalize(storage, self._forget, size)
        self.peak = max(self.peak, self.live)
        return result

    def _forget(self, size: int) -> None:
        self.live -= size


def _tensors(values: Any) -> list[torch.Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]
