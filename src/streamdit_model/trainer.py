"""The one training loop of every stage: schedule, metrics, checkpoints, and what is not finite.

It knows nothing of video: a task says what the loss of a range of global samples is. Every draw
of a task is keyed by (seed, step, global sample index), so a run that stops and resumes, or splits
its batch in other ways, does the same mathematics. Single process here; ranks would each take a
share of the global batch in `Trainer._samples`.

Paper: section 5.1 (stages); the schedule inside a stage and clipping are not given.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
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
from streamdit_model.errors import ConfigError, NumericsError
from streamdit_model.optimizers import Averages, load_optimizer, make_optimizers, optimizer_tensors
from streamdit_model.storage import remove_leftovers

__all__ = ["LoopConfig", "Stage", "Task", "Trainer", "learning_rate_share"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A stretch of training with one learning rate.

    Args:
        name: stage name; in a recipe the name of its table.
        steps: optimizer steps, at least 0.
        learning_rate: of AdamW.
        muon_learning_rate: of Muon; 0 in all stages leaves its matrices to AdamW.
        warmup_steps: steps over which the rate rises linearly from 0.
        decay_share: last share of the stage over which the rate falls linearly, 0 to 1.
        final_share: share of the rate that is left at the end of the fall, 0 to 1.

    Raises:
        ConfigError: a number below 0, or a share above 1.
    """

    name: str = ""
    steps: int
    learning_rate: float
    muon_learning_rate: float = 0.0
    warmup_steps: int = 0
    decay_share: float = 0.0
    final_share: float = 0.05

    def __post_init__(self) -> None:
        for name in ("steps", "learning_rate", "muon_learning_rate", "warmup_steps"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} {getattr(self, name)} is below 0")
        for name in ("decay_share", "final_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} {getattr(self, name)} is not between 0 and 1")


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
        ConfigError: accumulation does not divide batch_size, an unknown precision, or a number out
            of range.
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
        for name in ("checkpoint_every", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} is not at least 1")
        for name in ("weight_decay", "max_skipped"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} {getattr(self, name)} is below 0")
        if self.gradient_clip <= 0:
            raise ConfigError(f"gradient_clip {self.gradient_clip} is not above 0")
        if not all(0 <= decay < 1 for decay in (*self.betas, self.ema_decay)):
            raise ConfigError(
                f"betas {self.betas} and ema_decay {self.ema_decay} are not all at least 0, below 1"
            )


class Task(Protocol):
    """What a stage trains: modules, and a loss for a range of global samples."""

    modules: dict[str, nn.Module]

    def begin(self, stage: str) -> None:
        """Prepare for a stage by name."""

    def loss(self, step: int, samples: range) -> tuple[Tensor, dict[str, float]]:
        """Return the sum over samples of their mean loss, and numbers to log."""
        ...

    def after_step(self, step: int) -> None:
        """Commit what the step changed outside the weights, such as a replay pool."""

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint needs beside weights and optimizers."""
        ...

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


class Trainer:
    """Runs the stages of a task, and leaves checkpoints and metrics in a folder.

    Args:
        task: what is trained.
        stages: one after the other; steps are counted through.
        config: what holds for all stages.
        folder: gets `checkpoints/` and `metrics.jsonl`.
        on_sample: called with the step after each checkpoint (samples, model export).
        should_stop: asked before each step; True saves a checkpoint and leaves `run`.

    Raises:
        ConfigError: Muon in some stages only, so that its matrices would rest in the others.
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
        self._saved_step = -1
        self.optimizers = make_optimizers(
            task.modules,
            uses_muon=_uses_muon(stages),
            betas=config.betas,
            weight_decay=config.weight_decay,
        )
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
        if self.step == self.total_steps and self.on_sample is not None:
            self.on_sample(self.step)  # a run that was killed at its end may lack it
        for stage, step in self._remaining():
            if stage.name != name:
                name = stage.name
                self.task.begin(name)
            if self.should_stop():
                self._checkpoint()
                return False
            started = time.perf_counter()
            logs = self._optimize(stage, step)
            self.step += 1
            if self.step % self.config.log_every == 0 or "skipped" in logs:
                self._write_metrics(stage.name, logs, time.perf_counter() - started)
            if self.step % self.config.checkpoint_every == 0 or self.step == self.total_steps:
                self._checkpoint()
            if "skipped" in logs and self.skipped > self.config.max_skipped:
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
            self._trim_metrics()
            return False
        tensors, record = load_checkpoint(newest)
        for name, module in self.task.modules.items():
            module.load_state_dict(tensors[f"model-{name}"], strict=True)
            for key, value in tensors[f"average-{name}"].items():
                self.averages.values[name][key].copy_(value)
        for name, optimizer in self.optimizers.items():
            load_optimizer(optimizer, tensors.get(f"optimizer-{name}", {}))
        self.task.load_state(tensors.get("task", {}))
        step, skipped = record["step"], record["skipped"]
        assert isinstance(step, int) and isinstance(skipped, int)
        self.step, self.skipped = step, skipped
        torch.set_rng_state(tensors["random"]["cpu"])
        self._saved_step = self.step
        self._trim_metrics()
        return True

    def save(self) -> None:
        """Write a whole checkpoint of everything the run needs, and drop old ones.

        Nothing is written when there is one of this step already.
        """
        if self.step == self._saved_step:
            return
        tensors: dict[str, dict[str, Tensor]] = {"random": {"cpu": torch.get_rng_state()}}
        for name, module in self.task.modules.items():
            tensors[f"model-{name}"] = dict(module.state_dict())
            tensors[f"average-{name}"] = self.averages.values[name]
        for name, optimizer in self.optimizers.items():
            tensors[f"optimizer-{name}"] = optimizer_tensors(optimizer)
        tensors["task"] = self.task.state()
        tensors = {name: group for name, group in tensors.items() if group}
        folder = self.folder / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        record = {"step": self.step, "skipped": self.skipped}
        save_checkpoint(folder, self.step, tensors, record)
        self._saved_step = self.step
        keep_last(folder, 2)

    def _checkpoint(self) -> None:
        self.save()
        if self.on_sample is not None:
            self.on_sample(self.step)

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
        buffers = [
            (buffer, buffer.clone())
            for module in self.task.modules.values()
            for buffer in module.buffers()
        ]
        total, logs = self._backward()
        parameters = [p for p in self._parameters() if p.grad is not None]
        norm = float(nn.utils.clip_grad_norm_(parameters, self.config.gradient_clip))
        logs |= {"loss": total, "gradient_norm": norm, "learning_rate_share": share}
        if not math.isfinite(total) or not math.isfinite(norm):
            self.skipped += 1
            for buffer, value in buffers:  # statistics that the forward pass has moved
                buffer.copy_(value)
            _log.warning("step %d skipped: loss %s, gradient norm %s", self.step, total, norm)
            return logs | {"skipped": float(self.skipped)}
        for optimizer in self.optimizers.values():
            optimizer.step()
        self.task.after_step(self.step)
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        self.averages.update(self.task.modules, decay)
        return logs

    def _backward(self) -> tuple[float, dict[str, float]]:
        """Add up the gradients of all parts; return the loss, and the parts' mean numbers."""
        total = 0.0
        numbers: dict[str, list[float]] = {}
        device = next(self._parameters()).device.type
        for part in range(self.config.accumulation):
            low = self.config.precision == "bfloat16"
            with torch.autocast(device, torch.bfloat16, enabled=low):
                loss, logs = self.task.loss(self.step, self._samples(part))
            (loss / self.config.batch_size).backward()
            total += float(loss.detach()) / self.config.batch_size
            for name, value in logs.items():
                numbers.setdefault(name, []).append(value)
        return total, {name: sum(values) / len(values) for name, values in numbers.items()}

    def _parameters(self) -> Iterator[nn.Parameter]:
        for module in self.task.modules.values():
            yield from module.parameters()

    def _write_metrics(self, stage: str, logs: dict[str, float], seconds: float) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        line = {"step": self.step, "stage": stage, "step_seconds": round(seconds, 4)}
        line |= {key: _finite_or_text(value) for key, value in logs.items()}
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _trim_metrics(self) -> None:
        """Drop the lines of steps that are made again: a killed run was ahead of its checkpoint."""
        path = self.folder / "metrics.jsonl"
        if not path.exists():
            return
        remove_leftovers(self.folder, re.compile(r"metrics\.jsonl"))
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        kept = [line for line in lines if _metrics_step(line) <= self.step]
        if kept != lines:
            temporary = path.with_name(f"metrics.jsonl.partial-{os.getpid()}")
            temporary.write_text("".join(kept), encoding="utf-8")
            temporary.replace(path)


def _metrics_step(line: str) -> float:
    """Step of a line of metrics.jsonl; infinity for a line that was cut off."""
    try:
        return json.loads(line)["step"] if line.endswith("\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf


def _uses_muon(stages: tuple[Stage, ...]) -> bool:
    """Whether Muon trains matrices, in all stages that have steps."""
    used = [stage for stage in stages if stage.steps]
    without = [stage.name for stage in used if stage.muon_learning_rate == 0]
    if without and len(without) < len(used):
        raise ConfigError(
            f"muon_learning_rate is 0 in {', '.join(without)} and not in the other stages; "
            "all stages have one, or none"
        )
    return bool(used) and not without


def _finite_or_text(value: float) -> float | str:
    """Six digits; JSON has no NaN, so what is not finite is text."""
    return float(f"{value:.6g}") if math.isfinite(value) else str(value)
