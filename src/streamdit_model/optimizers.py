"""What turns gradients into weights: Muon, AdamW and running averages, with their state as tensors.

It knows no stages, tasks or checkpoints; the loop that uses it is in `trainer.py`.

Paper: optimizer and averages are not given.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from streamdit_model.errors import WeightsError

__all__ = ["Averages", "load_optimizer", "make_optimizers", "optimizer_tensors"]

MUON_STACKS = ("blocks", "layers", "encoder", "decoder")  # repeated layers of our networks


class Averages:
    """Exponential moving averages of the state of modules, in float32 or more."""

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        self.values = {
            name: {
                key: value.detach().to(_at_least_float32(value), copy=True)
                for key, value in module.state_dict().items()
            }
            for name, module in modules.items()
        }

    @torch.no_grad()
    def update(self, modules: dict[str, nn.Module], decay: float) -> None:
        """Move every average towards the present value: decay * average + (1 - decay) * value."""
        for name, module in modules.items():
            state = module.state_dict()
            averages = [self.values[name][key] for key in state]
            values = [value.to(_at_least_float32(value)) for value in state.values()]
            torch._foreach_lerp_(averages, values, 1 - decay)  # type: ignore[attr-defined]


def _at_least_float32(value: Tensor) -> torch.dtype:
    return torch.promote_types(value.dtype, torch.float32)


def make_optimizers(
    modules: Mapping[str, nn.Module],
    *,
    uses_muon: bool,
    betas: tuple[float, float],
    weight_decay: float,
) -> dict[str, torch.optim.Optimizer]:
    """Make "muon" for the matrices of repeated blocks, where it is used, and "adamw" for the rest.

    Args:
        modules: what is trained.
        uses_muon: False leaves everything to AdamW.
        betas: of AdamW.
        weight_decay: of both.

    Returns:
        The optimizers by name, with a learning rate of 0 that the trainer sets at every step.

    Choice: Muon on the matrices, because at this size it reaches the same loss in less than half
    the samples; paper.md section 3.
    """
    matrices, rest = [], []
    for module in modules.values():
        for name, parameter in module.named_parameters():
            in_stack = any(f"{stack}." in name for stack in MUON_STACKS)
            is_matrix = parameter.ndim == 2 and name.endswith("weight") and in_stack
            (matrices if uses_muon and is_matrix else rest).append(parameter)
    optimizers: dict[str, torch.optim.Optimizer] = {
        "adamw": torch.optim.AdamW(rest, lr=0.0, betas=betas, weight_decay=weight_decay)
    }
    if matrices:
        optimizers["muon"] = torch.optim.Muon(
            matrices, lr=0.0, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
        )
    return optimizers


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Flatten an optimizer's state to tensors named `<parameter index>.<key>`."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{key}": value if isinstance(value, Tensor) else torch.tensor(value)
        for index, entries in state.items()
        for key, value in entries.items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Take back what `optimizer_tensors` returned.

    Raises:
        WeightsError: there are more states than parameters.
    """
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value.clone()
    count = sum(len(group["params"]) for group in optimizer.param_groups)
    if state and max(state) >= count:
        raise WeightsError(f"the checkpoint has {max(state) + 1} optimizer states for {count}")
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
