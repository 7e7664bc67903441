"""What `-m` means for a command that generates: a model folder of ours, or open weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from streamdit_cli.errors import UsageError
from streamdit_cli.open_weights import OpenModel

if TYPE_CHECKING:
    from streamdit_model.weights import Model, ModelConfig

__all__ = ["FolderModel", "find_source"]


@dataclass(frozen=True, kw_only=True)
class FolderModel:
    """A model folder of our own layout, with the interface of `OpenModel`.

    `preset` is its name where it was found by one.
    """

    folder: Path
    preset: str | None = None

    @property
    def metadata(self) -> dict[str, str]:
        """What a video says about the weights, beside the name of the model."""
        return {} if self.preset is None else {"preset": self.preset}

    def read_config(
        self, *, size: tuple[int, int] | None = None, start: str | None = None
    ) -> ModelConfig:
        """Read `config.json`; a folder has one size, and knows every start.

        Raises:
            WeightsError: there is none, or it does not fit.
        """
        from streamdit_model.weights import read_config

        return read_config(self.folder)

    def load(
        self,
        *,
        prompts: Sequence[str],
        size: tuple[int, int] | None,
        device: str | None,
        dtype: str | None,
        threads: int | None,
    ) -> Model:
        """Load the weights; a folder has one size, and a stream encodes the prompts itself.

        Raises:
            WeightsError, DeviceError: see `weights.load`.
        """
        from streamdit_cli.making import load_model

        return load_model(self.folder, device=device, dtype=dtype, threads=threads)


def find_source(
    name: str | None,
    *,
    decoder: str | None = None,
    loras: Sequence[str] = (),
    random_weights: bool = False,
) -> FolderModel | OpenModel:
    """Find the model of a name; files of open weights are looked at, nothing is loaded.

    Args:
        name: as in `presets.find_model`.
        decoder: "small" or "full", for open weights.
        loras: `PATH[:SCALE]`, for open weights.
        random_weights: take open weights' sizes only.

    Raises:
        UsageError: no such model, one that makes no video, or options that it does not have.
        MissingWeights: not downloaded, or no model there.
        DownloadError: a lock file that cannot be read.
    """
    from streamdit_cli.catalogue import find_files
    from streamdit_cli.presets import find_model, open_preset

    preset = open_preset(name)
    if preset is not None:
        files = () if random_weights else find_files(preset)
        return OpenModel(preset=preset, files=files, decoder=decoder, loras=loras)
    folder, preset = find_model(name)
    given = {"--decoder": decoder, "--lora": loras, "--random-weights": random_weights}
    for option, value in given.items():
        if value:
            raise UsageError(
                f"{option} is for open weights only, {name or 'shapes'} is a model of our own",
                f"leave out {option}, or see streamdit models list",
            )
    return FolderModel(folder=folder, preset=None if preset is None else preset["name"])
