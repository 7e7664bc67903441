"""The one training loop of every stage: optimizers, schedule, averages, metrics, checkpoints.

It knows nothing of video: a task says what the loss of a range of global samples is. Every draw
of a task is keyed by (seed, step, global sample index), so a run that stops and resumes, or splits
its batch in other ways, does the same mathematics. Single process here; ranks would each take a
share of the global batch in `Trainer._samples`.

Paper: section 5.1 (stages); optimizer, averages and clipping are not given.
Choice: Muon on the matrices of the blocks and AdamW on the rest, because at this size it reaches
the same loss in less than half the samples; paper.md section 3.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from streamdit_model.checkpoint import (
    keep_last,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from streamdit_model.errors import ConfigError, NumericsError, WeightsError

__all__ = ["Averages", "LoopConfig", "Stage", "Task", "Trainer", "learning_rate_share"]

_log = logging.getLogger(__name__)

MUON_STACKS = ("blocks", "layers", "encoder", "decoder")  # repeated layers of our networks


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A stretch of training with one learning rate.

    Args:
        name: stage name; in a recipe the name of its table.
        steps: optimizer steps, at least 0.
        learning_rate: of AdamW.
        muon_learning_rate: of Muon; 0 leaves its matrices to AdamW.
        warmup_steps: steps over which the rate rises linearly from 0.
        decay_share: last share of the stage over which the rate falls linearly, 0 to 1.
        final_share: share of the rate that is left at the end of the fall.
    """

    name: str = ""
    steps: int
    learning_rate: float
    muon_learning_rate: float = 0.0
    warmup_steps: int = 0
    decay_share: float = 0.0
    final_share: float = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopConfig:
    """What holds for all stages of a run.

    Args:
        batch_size: samples of one optimizer step, over all ranks.
        accumulation: parts the batch is worked in, one after the other; divides batch_size.
        betas: of AdamW.
        weight_decay: of both optimizers.
        ema_decay: of the averaged weights; early on min(ema_decay, (1 + step) / (10 + step)).
        gradient_clip: largest norm of the whole gradient.
        precision: "float32" or "bfloat16" (autocast; the weights stay float32).
        checkpoint_every: steps between checkpoints.
        log_every: steps between lines of metrics.jsonl.
        max_skipped: steps with a loss or gradient that is not finite before the run is given up.

    Raises:
        ConfigError: accumulation does not divide batch_size, or an unknown precision.
    """

    batch_size: int
    accumulation: int = 1
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    ema_decay: float = 0.999
    gradient_clip: float = 1.0
    precision: str = "bfloat16"
    checkpoint_every: int = 250
    log_every: int = 10
    max_skipped: int = 5

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.accumulation < 1 or self.batch_size % self.accumulation:
            raise ConfigError(
                f"batch_size {self.batch_size} is not a multiple of "
                f"accumulation {self.accumulation}"
            )
        if self.precision not in ("float32", "bfloat16"):
            raise ConfigError(f"precision {self.precision!r}; float32 and bfloat16 are known")


class Task(Protocol):
    """What a stage trains: modules, and a loss for a range of global samples."""

    modules: dict[str, nn.Module]

    def begin(self, stage: str) -> None:
        """Prepare for a stage by name."""

    def loss(self, step: int, samples: range) -> tuple[Tensor, dict[str, float]]:
        """Return the sum over samples of their mean loss, and numbers to log."""

    def after_step(self, step: int) -> None:
        """Commit what the step changed outside the weights, such as a replay pool."""

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint needs beside weights and optimizers."""

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` returned."""


def learning_rate_share(stage: Stage, step: int) -> float:
    """Return the share of the stage's rate at its step (0 = first): warm-up, hold, decay."""
    warm = min(1.0, (step + 1) / stage.warmup_steps) if stage.warmup_steps else 1.0
    decay_steps = stage.decay_share * stage.steps
    left = stage.steps - step
    if decay_steps and left < decay_steps:
        warm *= stage.final_share + (1 - stage.final_share) * left / decay_steps
    return warm


class Averages:
    """Exponential moving averages of the floating-point state of modules, in float32."""

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        self.values = {
            name: {key: value.detach().clone() for key, value in module.state_dict().items()}
            for name, module in modules.items()
        }

    @torch.no_grad()
    def update(self, modules: dict[str, nn.Module], decay: float) -> None:
        """Move every average towards the present value: decay * average + (1 - decay) * value."""
        for name, module in modules.items():
            state = module.state_dict()
            averages = [self.values[name][key] for key in state]
            torch._foreach_lerp_(averages, [value.float() for value in state.values()], 1 - decay)


class Trainer:
    """Runs the stages of a task, and leaves checkpoints and metrics in a folder.

    Args:
        task: what is trained.
        stages: one after the other; steps are counted through.
        config: what holds for all stages.
        folder: gets `checkpoints/` and `metrics.jsonl`.
        on_sample: called with the step after each checkpoint (samples, model export).
        should_stop: asked before each step; True saves a checkpoint and leaves `run`.
    """

    def __init__(
        self,
        task: Task,
        stages: tuple[Stage, ...],
        config: LoopConfig,
        folder: Path,
        *,
        on_sample: Callable[[int], None] | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.task = task
        self.stages = stages
        self.config = config
        self.folder = folder
        self.on_sample = on_sample
        self.should_stop = should_stop
        self.step = 0
        self.skipped = 0
        self.optimizers = _optimizers(task.modules, stages, config)
        self.averages = Averages(task.modules)

    @property
    def total_steps(self) -> int:
        """Steps of all stages together."""
        return sum(stage.steps for stage in self.stages)

    def run(self) -> bool:
        """Train to the end of the last stage; return False when `should_stop` ended it early.

        Raises:
            NumericsError: more than max_skipped steps were not finite; the weights of the last
                finite step are saved.
        """
        name = None
        for stage, step in self._remaining():
            if stage.name != name:
                name = stage.name
                self.task.begin(name)
            if self.should_stop():
                self.save()
                return False
            started = time.perf_counter()
            logs = self._optimize(stage, step)
            self.step += 1
            if self.step % self.config.log_every == 0 or "skipped" in logs:
                self._write_metrics(name, logs, time.perf_counter() - started)
            if self.step % self.config.checkpoint_every == 0 or self.step == self.total_steps:
                self.save()
                if self.on_sample is not None:
                    self.on_sample(self.step)
            if self.skipped > self.config.max_skipped:
                self.save()
                raise NumericsError(
                    f"{self.skipped} steps with a loss or gradient that is not finite, "
                    f"the last at step {self.step}",
                    "the last good weights are in the newest checkpoint; lower the learning rate",
                )
        return True

    def resume(self) -> bool:
        """Take up the newest whole checkpoint; return False when there is none."""
        newest = newest_checkpoint(self.folder / "checkpoints")
        if newest is None:
            return False
        tensors, record = load_checkpoint(newest)
        for name, module in self.task.modules.items():
            module.load_state_dict(tensors[f"model-{name}"], strict=True)
            for key, value in tensors[f"average-{name}"].items():
                self.averages.values[name][key].copy_(value)
        for name, optimizer in self.optimizers.items():
            _load_optimizer(optimizer, tensors.get(f"optimizer-{name}", {}))
        self.task.load_state(tensors.get("task", {}))
        self.step = int(record["step"])
        self.skipped = int(record["skipped"])
        torch.set_rng_state(tensors["random"]["cpu"])
        return True

    def save(self) -> Path:
        """Write a whole checkpoint of everything the run needs, and drop old ones."""
        tensors: dict[str, dict[str, Tensor]] = {"random": {"cpu": torch.get_rng_state()}}
        for name, module in self.task.modules.items():
            tensors[f"model-{name}"] = dict(module.state_dict())
            tensors[f"average-{name}"] = self.averages.values[name]
        for name, optimizer in self.optimizers.items():
            tensors[f"optimizer-{name}"] = _optimizer_tensors(optimizer)
        tensors["task"] = self.task.state()
        tensors = {name: group for name, group in tensors.items() if group}
        folder = self.folder / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        record = {"step": self.step, "skipped": self.skipped}
        path = save_checkpoint(folder, self.step, tensors, record)
        keep_last(folder, 2)
        return path

    def _remaining(self) -> Iterator[tuple[Stage, int]]:
        """Yield every stage and its own step that lie ahead."""
        first = 0
        for stage in self.stages:
            for step in range(max(0, self.step - first), stage.steps):
                yield stage, step
            first += stage.steps

    def _samples(self, part: int) -> range:
        """Global sample indices of one part of this step's batch."""
        size = self.config.batch_size // self.config.accumulation
        return range(part * size, (part + 1) * size)

    def _optimize(self, stage: Stage, step: int) -> dict[str, float]:
        share = learning_rate_share(stage, step)
        rates = {"adamw": stage.learning_rate, "muon": stage.muon_learning_rate}
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = rates[name] * share
            optimizer.zero_grad(set_to_none=True)
        logs: dict[str, float] = {}
        total = 0.0
        for part in range(self.config.accumulation):
            precision = self.config.precision == "bfloat16"
            device = next(self._parameters()).device.type
            with torch.autocast(device, torch.bfloat16, enabled=precision):
                loss, part_logs = self.task.loss(self.step, self._samples(part))
            (loss / self.config.batch_size).backward()
            total += float(loss.detach()) / self.config.batch_size
            logs |= part_logs
        parameters = [p for p in self._parameters() if p.grad is not None]
        norm = float(nn.utils.clip_grad_norm_(parameters, self.config.gradient_clip))
        logs |= {"loss": total, "gradient_norm": norm, "learning_rate_share": share}
        if not math.isfinite(total) or not math.isfinite(norm):
            self.skipped += 1
            _log.warning("step %d skipped: loss %s, gradient norm %s", self.step, total, norm)
            return logs | {"skipped": float(self.skipped)}
        for optimizer in self.optimizers.values():
            optimizer.step()
        self.task.after_step(self.step)
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        self.averages.update(self.task.modules, decay)
        return logs

    def _parameters(self) -> Iterator[nn.Parameter]:
        for module in self.task.modules.values():
            yield from module.parameters()

    def _write_metrics(self, stage: str, logs: dict[str, float], seconds: float) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        line = {"step": self.step, "stage": stage, "step_seconds": round(seconds, 4)}
        line |= {key: _finite_or_text(value) for key, value in logs.items()}
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _finite_or_text(value: float) -> float | str:
    """JSON has no NaN: write what is not finite as text."""
    return round(value, 6) if math.isfinite(value) else str(value)


def _optimizers(
    modules: dict[str, nn.Module], stages: tuple[Stage, ...], config: LoopConfig
) -> dict[str, torch.optim.Optimizer]:
    """Muon for the matrices of repeated blocks where a stage asks for it, AdamW for the rest."""
    uses_muon = any(stage.muon_learning_rate > 0 for stage in stages)
    matrices, rest = [], []
    for module in modules.values():
        for name, parameter in module.named_parameters():
            in_stack = any(f"{stack}." in name for stack in MUON_STACKS)
            is_matrix = parameter.ndim == 2 and name.endswith("weight") and in_stack
            (matrices if uses_muon and is_matrix else rest).append(parameter)
    optimizers: dict[str, torch.optim.Optimizer] = {
        "adamw": torch.optim.AdamW(
            rest, lr=0.0, betas=config.betas, weight_decay=config.weight_decay
        )
    }
    if matrices:
        optimizers["muon"] = torch.optim.Muon(
            matrices, lr=0.0, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
        )
    return optimizers


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Flatten an optimizer's state to tensors named `<parameter index>.<key>`."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{key}": value if isinstance(value, Tensor) else torch.tensor(value)
        for index, entries in state.items()
        for key, value in entries.items()
    }


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value.clone()
    count = sum(len(group["params"]) for group in optimizer.param_groups)
    if state and max(state) >= count:
        raise WeightsError(f"the checkpoint has {max(state) + 1} optimizer states for {count}")
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
