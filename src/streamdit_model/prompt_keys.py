"""Prompts to what a network reads of them: encoded once, in whichever thread, and kept.

Paper: section 8 and Fig. 11 (the prompt callback runs beside denoising and decoding).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

import torch

from streamdit_model.text import PromptCache
from streamdit_model.transformer import TextKeys

if TYPE_CHECKING:
    from streamdit_model.stream_state import StreamModel

__all__ = ["PromptKeys", "Submit", "TextWork", "encode_now"]

TextWork = Callable[[], TextKeys]
Submit = Callable[[TextWork], "Future[TextKeys]"]
KEYS_KEPT = 8  # prompts whose keys stay beside those in use


class PromptKeys:
    """The cross-attention keys of prompts: each is encoded once, the ones used last are kept.

    Args:
        model: encodes the text.
        submit: runs the encoding, at once or in another thread, one at a time.
        size: number of prompts whose keys are kept.
    """

    def __init__(self, model: StreamModel, submit: Submit, size: int = KEYS_KEPT) -> None:
        self._model = model
        self._conditions = PromptCache(model.text_encoder)
        self._submit = submit
        self._size = size
        self._lock = threading.Lock()
        self._keys: OrderedDict[str | None, Future[TextKeys]] = OrderedDict()
        self._joined: tuple[tuple[str | None, ...], TextKeys] | None = None

    def request(self, prompt: str | None) -> Future[TextKeys]:
        """Return the keys of a prompt, which may still be in the making."""
        with self._lock:
            keys = self._keys.pop(prompt, None)
            if keys is None:
                keys = self._submit(lambda: self._encode(prompt))
            self._keys[prompt] = keys
            while len(self._keys) > self._size:
                self._keys.popitem(last=False)
            return keys

    def is_ready(self, prompt: str | None) -> bool:
        """Say whether the keys of a prompt are there, after asking for them if need be."""
        return self.request(prompt).done()

    def wait(self, prompt: str | None) -> TextKeys:
        """Return the keys of a prompt as soon as they are there."""
        return self.request(prompt).result()

    def join(self, prompts: tuple[str | None, ...]) -> TextKeys:
        """Return the keys of several prompts, in that order."""
        if self._joined is None or self._joined[0] != prompts:
            self._joined = prompts, TextKeys.stack([self.wait(prompt) for prompt in prompts])
        return self._joined[1]

    @torch.inference_mode()
    def _encode(self, prompt: str | None) -> TextKeys:
        return self._model.transformer.text_keys(self._conditions(prompt or ""))


def encode_now(work: TextWork) -> Future[TextKeys]:
    """Encode a prompt in the caller's thread."""
    keys: Future[TextKeys] = Future()
    keys.set_result(work())
    return keys
