"""What `-m` means for a command that generates: a model folder of ours, or open weights.

What is named and not here is downloaded on first use, by the same code as `models pull`, unless
connections are forbidden; what is here is never asked for again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamdit_cli import console
from streamdit_cli.cache import RemoteFile, cache_folder
from streamdit_cli.catalogue import find_files, is_offline, survey
from streamdit_cli.default_model import REAL_VIDEO, default_model
from streamdit_cli.errors import MissingWeights, UsageError
from streamdit_cli.open_weights import OpenModel
from streamdit_cli.repository import refreshed

if TYPE_CHECKING:
    from streamdit_model.wan.offload import Offload
    from streamdit_model.weights import Model, ModelConfig

__all__ = ["FolderModel", "find_source", "real_video_advice"]


@dataclass(frozen=True, kw_only=True)
class FolderModel:
    """A model folder of our own layout, with the interface of `OpenModel`.

    Args:
        folder: holds `config.json`.
        preset: its name where it was found by one.
    """

    folder: Path
    preset: str | None = None

    @property
    def is_embedded(self) -> bool:
        """Whether it is the model in the package, which knows its own world only."""
        from streamdit_cli.presets import DEFAULT_MODEL

        return self.preset == DEFAULT_MODEL

    @property
    def memory_hint(self) -> str:
        """What to type when memory ran out."""
        from streamdit_cli.making import MEMORY_HINT

        return MEMORY_HINT

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
    vram: float | None = None,
    offload: Offload | None = None,
    device: str | None = None,
    dtype: str | None = None,
    download: bool = False,
    before_download: Callable[[], None] = lambda: None,
) -> FolderModel | OpenModel:
    """Find the model of a name; files of open weights are looked at, nothing is loaded.

    Args:
        name: as in `presets.find_model`; None is `default_model`.
        decoder: "small" or "full", for open weights.
        loras: `PATH[:SCALE]`, for open weights.
        random_weights: take open weights' sizes only.
        vram, offload: GB of memory, and what leaves the device, for open weights.
        device, dtype: as in `making.load_model`; open weights are planned for them.
        download: fetch what is not here, if it was named and connections are allowed.
        before_download: refuses what would be refused after it.

    Raises:
        UsageError: no such model, one that makes no video, or options that it does not have.
        MissingWeights: not downloaded, or no model there.
        DownloadError: a lock file that cannot be read, or a download that failed.
    """
    from streamdit_cli.presets import find_model, find_repository, open_preset

    wanted = name or default_model(device)
    before = before_download if download and name is not None else None
    preset = open_preset(wanted)
    if preset is not None:
        files = () if random_weights else _files_of(preset, before)
        return OpenModel(
            preset=preset,
            files=files,
            decoder=decoder,
            loras=loras,
            vram=vram,
            offload=offload,
            device=device,
            dtype=dtype,
        )
    given = {"--decoder": decoder, "--lora": loras, "--random-weights": random_weights}
    given |= {"--vram": vram, "--offload": offload}
    for option, value in given.items():
        if value:
            raise UsageError(
                f"{option} is for open weights only, {wanted} is a model of our own",
                f"leave out {option}, or see streamdit models list",
            )
    repository = find_repository(wanted)
    if repository is not None:
        return FolderModel(folder=_files_of(repository, before)[0].local.parent)
    folder, found = find_model(wanted)
    return FolderModel(folder=folder, preset=None if found is None else found["name"])


def _files_of(preset: dict[str, Any], before: Callable[[], None] | None) -> list[RemoteFile]:
    """Return the files of a model, all here and verified.

    Args:
        preset: of open weights, or of a repository.
        before: called before what is missing is fetched; None fetches nothing.
    """
    try:
        return find_files(preset)
    except MissingWeights as error:
        if before is None or is_offline():
            raise
        before()
        console.status(f"{error}; fetching it to {cache_folder()}")
    from streamdit_cli.hub import pull

    pull(preset)
    return find_files(refreshed(preset))


def real_video_advice(source: object, prompts: Iterable[str]) -> str:
    """Return how to get real video, where the embedded model is asked for what it does not know.

    Args:
        source: of the model.
        prompts: of the video.

    Returns:
        One line; empty where it has nothing to say.
    """
    if not isinstance(source, FolderModel) or not source.is_embedded:
        return ""
    from streamdit_cli.presets import find_preset, preset_names
    from streamdit_model.captions import parse

    unknown = next((prompt for prompt in prompts if parse(prompt) is None), None)
    if unknown is None or REAL_VIDEO not in preset_names():
        return ""
    preset = find_preset(REAL_VIDEO)
    size = survey(preset).size_text
    return (
        f"shapes knows only coloured shapes that move, not {unknown!r}; for real video: "
        f"streamdit generate -m {REAL_VIDEO} ({size}, needs {preset['needs'].split(' (')[0]})"
    )
