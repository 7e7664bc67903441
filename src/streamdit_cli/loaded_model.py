"""A model that is loaded once for many videos: stands where the source of a model does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from streamdit_cli.model_source import FolderModel

if TYPE_CHECKING:
    from streamdit_cli.open_weights import OpenModel
    from streamdit_model.wan.model import WanModel
    from streamdit_model.wan.model_config import WanModelConfig
    from streamdit_model.weights import Model, ModelConfig

__all__ = ["LoadedModel"]

MOST_TEXTS = 400  # encoded prompts that the disk keeps for open weights, and a few spare


class LoadedModel:
    """A source whose model is loaded once and then given to every item.

    Args:
        source: of the model.
        texts: of all items, each the texts that its model reads, in the order they are made in.

    Open weights get the next 400 texts when they are loaded, since their text encoder comes before
    the network and leaves; after those they are loaded again.
    """

    def __init__(self, source: FolderModel | OpenModel, texts: Sequence[Sequence[str]]) -> None:
        self._source = source
        self._texts = [list(each) for each in texts]
        self._ready: set[str] = set()
        self._model: Model | WanModel | None = None
        self.said: dict[str, str] = {}

    @property
    def memory_hint(self) -> str:
        """What to type when memory ran out, see the source."""
        return self._source.memory_hint

    @property
    def metadata(self) -> dict[str, str]:
        """What a video says about the weights, and whatever else the next one is to say."""
        return {**self._source.metadata, **self.said}

    def read_config(
        self, *, size: tuple[int, int] | None = None, start: str | None = None
    ) -> ModelConfig | WanModelConfig:
        """Return the configuration, see the source."""
        return self._source.read_config(size=size, start=start)

    def load(
        self,
        *,
        prompts: Sequence[str],
        size: tuple[int, int] | None,
        device: str | None,
        dtype: str | None,
        threads: int | None,
    ) -> Model | WanModel:
        """Return the model in the size asked for; it is loaded at the first call."""
        needs_texts = not isinstance(self._source, FolderModel)
        if self._model is None or (needs_texts and not self._ready.issuperset(prompts)):
            self._model = None  # two of them may not fit
            self._ready = self._upcoming(prompts)
            loading = {"device": device, "dtype": dtype, "threads": threads}
            self._model = self._source.load(prompts=sorted(self._ready), size=size, **loading)
        config = self._source.read_config(size=size)
        if config == self._model.config:
            return self._model
        return replace(self._model, config=config)  # type: ignore[arg-type]

    def _upcoming(self, prompts: Sequence[str]) -> set[str]:
        """Return texts to be encoded: those of an item and of the items after it."""
        texts = set(prompts)
        first = next((i for i, each in enumerate(self._texts) if texts.issuperset(each)), 0)
        for each in self._texts[first:]:
            if len(texts.union(each)) > MOST_TEXTS:
                break
            texts.update(each)
        return texts
