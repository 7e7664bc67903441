"""Which share of a batch this process makes: said by `--shard`, or by what started it.

Item number i belongs to shard i mod n, so that shares are equal and no process needs to hear of
another. What a video looks like never depends on it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from streamdit_cli.errors import UsageError

__all__ = ["Shard", "find_shard", "local_device"]

MOST_SHARDS = 100_000


class Shard(NamedTuple):
    """One of `total` shares; numbers begin at 1."""

    number: int = 1
    total: int = 1

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"

    def has(self, index: int) -> bool:
        """Whether an item belongs to it, by its number from 1."""
        return (index - 1) % self.total == self.number - 1


def find_shard(text: str | None, environment: Mapping[str, str]) -> Shard:
    """Return the share of this process.

    Args:
        text: of `--shard`, which goes before everything else: `2/8`.
        environment: of torchrun (`RANK` and `WORLD_SIZE`) or of a SLURM array.

    Raises:
        UsageError: another form, a number that is not in the count, or a SLURM array with gaps.
    """
    if text is not None:
        found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text.strip(), re.ASCII)
        if not found:
            raise UsageError(f"--shard {text!r} is not a share", "the second of eight is 2/8")
        return _checked(int(found[1]), int(found[2]), f"--shard {text}")
    if "RANK" in environment and "WORLD_SIZE" in environment:
        rank, world = (_number(environment, name) for name in ("RANK", "WORLD_SIZE"))
        return _checked(rank + 1, world, f"RANK {rank} of WORLD_SIZE {world}")
    if "SLURM_ARRAY_TASK_ID" in environment:
        task, first, count = (
            _number(environment, f"SLURM_ARRAY_TASK_{name}") for name in ("ID", "MIN", "COUNT")
        )
        step = _number(environment, "SLURM_ARRAY_TASK_STEP", 1) or 1
        number, rest = divmod(task - first, step)
        if rest or not 0 <= number < count:
            message = f"SLURM array task {task} of {count} from {first}: the array has gaps"
            raise UsageError(message, "say the share of each job: --shard 1/3")
        return _checked(number + 1, count, f"SLURM array task {task}")
    return Shard()


def local_device(environment: Mapping[str, str]) -> int | None:
    """Return the number of the GPU that torchrun means for this process; None without torchrun."""
    is_torchrun = "RANK" in environment and "WORLD_SIZE" in environment
    return (
        _number(environment, "LOCAL_RANK") if is_torchrun and "LOCAL_RANK" in environment else None
    )


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name, "" if default is None else str(default))
    if not re.fullmatch(r"[0-9]{1,9}", text, re.ASCII):
        hint = "say the share: --shard 1/1"
        raise UsageError(f"{name} is {text[:40]!r}, not a whole number", hint)
    return int(text)


def _checked(number: int, count: int, what: str) -> Shard:
    if not 1 <= number <= count <= MOST_SHARDS:
        raise UsageError(f"{what}: shares are 1/{max(count, 1)} to {max(count, 1)}/{max(count, 1)}")
    return Shard(number, count)
