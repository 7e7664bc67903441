"""What a stream has to remember beside its buffer: a velocity's context, a stepper's history."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

__all__ = ["Forgets", "KeepsContext", "Remembers"]


@runtime_checkable
class Remembers(Protocol):
    """A velocity with a context, or a stepper with a history."""

    def state(self) -> Mapping[str, Any]:
        """Return what is needed to go on: tensors, and what JSON can hold."""
        ...

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        ...


@runtime_checkable
class Forgets(Protocol):
    """A stepper with a history, to be told which latents were replaced."""

    def forget(self, frames: range) -> None:
        """Drop the history of latent frames, in absolute numbers."""
        ...


@runtime_checkable
class KeepsContext(Remembers, Protocol):
    """A velocity whose state may leave out what can be computed again, if not bit for bit."""

    def state(self, *, full: bool = False) -> Mapping[str, Any]:
        """Return what is needed to go on; `full` is needed to go on exactly."""
        ...

    def commit(self, chunk: Tensor, first_frame: int) -> None:
        """Take note of an emitted chunk."""
        ...
