"""What a training recipe says: one frozen tree for `train`, one for `distill`.

A recipe is complete: the model it makes, the data, and every stage. The TOML file of a recipe has
the same keys; unknown ones are refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from streamdit_model.distillation import DistillationConfig
from streamdit_model.errors import ConfigError
from streamdit_model.model_config import ModelConfig
from streamdit_model.reconstruction import ReconstructionConfig
from streamdit_model.trainer import LoopConfig, Stage
from streamdit_model.training import FlowMix

__all__ = [
    "AutoencoderRecipe",
    "DataRecipe",
    "DistillationRecipe",
    "FlowStage",
    "TrainingRecipe",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowStage(Stage):
    """A stage of the network and what it draws."""

    mix: FlowMix = field(default_factory=FlowMix)


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoencoderRecipe:
    """The autoencoder stage."""

    stage: Stage
    loop: LoopConfig
    reconstruction: ReconstructionConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class DataRecipe:
    """The latent cache of the shapes world.

    Args:
        clips: how many.
        latent_frames: length of each, longer than the buffer and the encoder's lead-in together.
        switch_share: share of clips in which one attribute changes.
    """

    clips: int
    latent_frames: int = 24
    switch_share: float = 0.2

    def __post_init__(self) -> None:
        if self.clips < 1 or not 0 <= self.switch_share <= 1:
            raise ConfigError(
                f"{self.clips} clips with switch_share {self.switch_share}; at least 1 clip, "
                "and a share between 0 and 1"
            )
        if self.latent_frames <= 4:
            raise ConfigError(f"latent_frames {self.latent_frames} is not more than 4")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingRecipe:
    """All of `streamdit train`.

    Args:
        seed: of weights, clips and every draw.
        model: what `config.json` of the result will say.
        autoencoder: its stage.
        data: clips for the network.
        loop: of the network's stages.
        compile: compile the network's blocks first.
        base: ordinary text-to-video training, the uniform scheme alone.
        task: learn to stream, mixed partitions.
        generalize: the same on all data.
        quality: the last, with a falling rate.

    Raises:
        ConfigError: a model that is not square, as the shapes world is, or has reference frames, or
            a chunk size that does not divide its buffer.

    Paper: section 5.1.
    """

    seed: int = 0
    model: ModelConfig
    autoencoder: AutoencoderRecipe
    data: DataRecipe
    loop: LoopConfig
    compile: bool = False
    base: FlowStage
    task: FlowStage
    generalize: FlowStage
    quality: FlowStage

    def __post_init__(self) -> None:
        if self.model.height != self.model.width:
            raise ConfigError(
                f"height {self.model.height} is not width {self.model.width}; the shapes world "
                "is square"
            )
        if self.model.partition.num_reference:
            raise ConfigError(
                f"num_reference {self.model.partition.num_reference}; training is with 0"
            )
        length = self.model.partition.buffer_length
        for stage in self.stages:
            wrong = [size for size in stage.mix.chunk_sizes if length % size]
            if wrong:
                raise ConfigError(
                    f"{stage.name}.mix.chunk_sizes: {wrong[0]} does not divide the buffer of "
                    f"{length} latent frames"
                )

    @property
    def stages(self) -> tuple[FlowStage, ...]:
        """The network's stages in their order, each with its name."""
        names = ("base", "task", "generalize", "quality")
        return tuple(replace(getattr(self, name), name=name) for name in names)


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillationRecipe:
    """All of `streamdit distill`.

    Args:
        name: of the student.
        seed: of every draw.
        strength: the student's default for video to video.
        distillation: how the student learns.
        data: clips for start states.
        stage: steps and rates.
        loop: the training loop.
        compile: compile the blocks of both networks first.
    """

    name: str
    seed: int = 0
    strength: float = 0.75
    distillation: DistillationConfig
    data: DataRecipe
    stage: Stage
    loop: LoopConfig
    compile: bool = False
