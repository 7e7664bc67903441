"""Open weights as a model to generate with: what fits is planned, files are found and loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamdit_cli.cache import RemoteFile, cache_folder, parts_of
from streamdit_cli.errors import MissingWeights, UsageError
from streamdit_cli.memory_plan import Asked, MemoryPlan, look_around, plan_memory
from streamdit_cli.open_config import open_config

if TYPE_CHECKING:
    from streamdit_model.wan.loading import WanFiles
    from streamdit_model.wan.model import WanModel
    from streamdit_model.wan.model_config import WanModelConfig
    from streamdit_model.wan.offload import Offload

__all__ = ["OpenModel", "open_config"]


@dataclass(frozen=True, kw_only=True)
class OpenModel:
    """Open weights that were asked for.

    Args:
        preset: of open weights that generate.
        files: all of them, verified; none where the weights are random.
        decoder: "small" or "full"; None is that of the profile.
        loras: `PATH[:SCALE]`, to be merged into the network.
        vram: GB of memory to use at most; None is what is free.
        offload: "none", "text" or "cpu"; None is that of the profile.
        device, dtype: as in `making.load_model`, for a plan before anything is loaded.
    """

    preset: dict[str, Any]
    files: Sequence[RemoteFile] = ()
    decoder: str | None = None
    loras: Sequence[str] = field(default=())
    vram: float | None = None
    offload: Offload | None = None
    device: str | None = None
    dtype: str | None = None
    _plans: list[MemoryPlan] = field(default_factory=list, init=False, repr=False, compare=False)

    @property
    def metadata(self) -> dict[str, str]:
        """What a video says about the weights."""
        plan = self._plans[-1] if self._plans else self.plan()
        said = {"decoder": plan.decoder}
        if plan.is_context_shorter:
            said["context"] = f"{plan.profile['context_frames']} latent frames"
        if self.loras:
            said["lora"] = " | ".join(self.loras)
        if not self.files:
            return {"weights": "random", **said}
        network = next(file for file in self.files if file.part == "transformer")
        return {"weights": f"{network.repo}@{network.revision}", **said}

    @property
    def memory_hint(self) -> str:
        """What to type when memory ran out in spite of the plan."""
        from streamdit_cli.making import MEMORY_HINT

        return self._plans[-1].hint if self._plans else MEMORY_HINT

    def plan(
        self,
        *,
        size: tuple[int, int] | None = None,
        num_prompts: int = 1,
        device: str | None = None,
        dtype: str | None = None,
    ) -> MemoryPlan:
        """Choose a profile, put in it what was asked for, and estimate its memory.

        Args:
            size: (width, height) in pixels; None is that of the profile.
            num_prompts: that are read, the null text of guidance included.
            device, dtype: None is that of the model.

        Raises:
            DeviceError: there is no such device.
            ConfigError: a size that the network does not take.
        """
        where = look_around(device or self.device, dtype or self.dtype, self.vram)
        asked = Asked(size=size, decoder=self.decoder, offload=self.offload, vram=self.vram)
        has_text = bool(self.files)
        plan = plan_memory(self.preset, where, asked, num_prompts=num_prompts, has_text=has_text)
        self._plans[:] = [plan]
        return plan

    def read_config(
        self, *, size: tuple[int, int] | None = None, start: str | None = None
    ) -> WanModelConfig:
        """Return the configuration, with everything checked that needs no weights.

        Args:
            size: (width, height) in pixels; None is that of the profile.
            start: that was asked for.

        Raises:
            UsageError: a start or a LoRA that cannot be.
            ConfigError: a size that the network does not take.
            MissingWeights: a LoRA file that is not there.
            DeviceError: there is no such device.
        """
        if start not in (None, "ramp"):
            raise UsageError(
                f"--start {start} does not fit {self.preset['name']}: open weights begin with a "
                "growing buffer",
                "leave out --start",
            )
        for path, _ in self._parsed_loras():
            if not path.is_file():
                raise MissingWeights(f"--lora {path} is not a file")
        return self.plan(size=size).config

    def load(
        self,
        *,
        prompts: Sequence[str],
        size: tuple[int, int] | None,
        device: str | None,
        dtype: str | None,
        threads: int | None,
    ) -> WanModel:
        """Load the weights, or draw them, after saying how much memory they need.

        Args:
            prompts: to be encoded before the network is loaded.
            size: as in `read_config`.
            device, dtype, threads: as in `making.load_model`.

        Raises:
            WeightsError: a file does not fit.
            ConfigError: the text encoder's package is not installed.
            DeviceError: there is no such device, or not enough memory on it.
        """
        from streamdit_cli import console
        from streamdit_cli.making import where_and_how
        from streamdit_model.wan.loading import load_wan, merge_lora_files, random_wan

        plan = self.plan(size=size, num_prompts=max(1, len(prompts)), device=device, dtype=dtype)
        plan.say()
        plan.require_room()
        place, number_type = where_and_how(device=device, dtype=dtype, threads=threads)
        if self.files:
            model = load_wan(
                plan.config,
                self._located(plan.decoder),
                prompts=prompts,
                device=place,
                dtype=number_type,
                offload=plan.offload,
                text_device=plan.text_device,
                on_problem=console.warn,
            )
        else:
            console.warn(f"{plan.config.name} runs on random weights: the video shows nothing")
            model = random_wan(plan.config, device=place, dtype=number_type, offload=plan.offload)
        merge_lora_files(model, self._parsed_loras())
        return model

    def _parsed_loras(self) -> list[tuple[Path, float]]:
        if not self.loras:
            return []
        from streamdit_model.wan.lora import parse_lora

        return [parse_lora(text) for text in self.loras]

    def _located(self, decoder_used: str) -> WanFiles:
        """Return where the files of each part lie."""
        from streamdit_model.wan.loading import WanFiles

        decoder = "small_decoder" if decoder_used == "small" else "autoencoder"
        parts = parts_of(self.files)
        for part in ("transformer", decoder, "text_encoder", "tokenizer"):
            if part not in parts:
                raise MissingWeights(f"{self.preset['name']} names no file of its {part}")
        text = [file for file in self.files if file.part in ("text_encoder", "tokenizer")]
        return WanFiles(
            transformer=tuple(parts["transformer"]),
            autoencoder=tuple(parts[decoder]),
            text_encoder=tuple(parts["text_encoder"]),
            tokenizer=parts["tokenizer"][0],
            text_hashes=tuple(file.sha256 for file in text),
            text_folder=cache_folder().parent / "streamdit" / "prompts",
        )
