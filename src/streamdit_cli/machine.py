"""What this machine is, in facts for people and programs: versions, processor, memory, devices.

`doctor` and `bench` show them. Nothing is tried here, and nothing is sent anywhere.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = [
    "all_devices",
    "cpu",
    "devices",
    "load_average",
    "memory",
    "peak_bytes",
    "resident_bytes",
    "seconds_since_start",
    "size_words",
    "versions",
]

_PACKAGES = ("streamdit", "torch", "numpy", "av", "safetensors", "huggingface-hub", "typer", "rich")
_CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")


def versions() -> dict[str, str]:
    """Return the versions that decide about frames and files."""
    found = {"Python": platform.python_version(), "system": platform.platform()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def cpu() -> dict[str, Any]:
    """Return what kind of processor it is, and what of it may be used."""
    import torch

    from streamdit_cli.making import fastest_dtype

    lines = _system_lines("/proc/cpuinfo")
    found = set(lines.get("flags", lines.get("Features", "")).split())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "name": lines.get("model name", platform.processor() or platform.machine()),
        "cores": cores,
        "torch threads": torch.get_num_threads(),
        "torch uses": torch.backends.cpu.get_cpu_capability(),
        "features": [name for name in _CPU_FEATURES if name in found],
        "dtype": str(fastest_dtype(torch.device("cpu"))).removeprefix("torch."),
    }


def _system_lines(path: str) -> dict[str, str]:
    """Return the `name: value` lines of a file of the system, the first of each name."""
    found: dict[str, str] = {}
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return found
    for line in text.splitlines():
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())
    return found


def _first_word(path: str) -> str:
    """Return the first word of a file of the system; empty without one."""
    try:
        return (Path(path).read_text(encoding="ascii").split() or [""])[0]
    except (OSError, ValueError):
        return ""


def memory() -> dict[str, str]:
    """Return how much memory there is and how much of it is free, where the system tells."""
    found = {}
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found["in all"] = size_words(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    limit = _first_word("/sys/fs/cgroup/memory.max")
    if limit.isdigit():  # of a container
        found["limit"] = size_words(int(limit))
    available = _system_lines("/proc/meminfo").get("MemAvailable", "").split()
    if available:
        found["available"] = size_words(int(available[0]) * 1024)
    return found or {"in all": "unknown"}


def size_words(count: int) -> str:
    """Return bytes for people."""
    return f"{count / 2**30:.1f} GiB"


def all_devices() -> list[torch.device]:
    """Return the CPU and every accelerator that torch can use."""
    import torch

    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        devices += [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append(torch.device("mps"))
    return devices


def devices() -> dict[str, str]:
    """Return every device with what it is; the first accelerator is what commands use."""
    import torch

    found = {}
    for device in all_devices():
        words = "always there"
        if device.type == "cuda":
            facts = torch.cuda.get_device_properties(device)
            free = torch.cuda.mem_get_info(device)[0]
            memory = f"{size_words(facts.total_memory)}, {size_words(free)} free"
            words = f"{facts.name}, capability {facts.major}.{facts.minor}, {memory}"
        elif device.type == "mps":
            words = "the GPU of this Mac"
        found[str(device)] = words
    if torch.version.cuda or torch.version.hip:
        found["torch was built for"] = f"CUDA {torch.version.cuda}, HIP {torch.version.hip}"
    return found


def resident_bytes() -> int | None:
    """Return how much memory this process has now; None where the system does not tell."""
    pages = _second_word("/proc/self/statm")
    return int(pages) * os.sysconf("SC_PAGE_SIZE") if pages.isdigit() else None


def peak_bytes() -> int | None:
    """Return how much memory this process had at most; None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)


def seconds_since_start() -> float | None:
    """Return how long ago this process was started; None where the system does not tell."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        ticks = int(fields[19])  # starttime, the 22nd field; the second may hold spaces
        return float(_first_word("/proc/uptime")) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None


def load_average() -> float | None:
    """Return how many processes wanted to run in the last minute; None where it is not known."""
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None


def _second_word(path: str) -> str:
    """Return the second word of a file of the system; empty without one."""
    try:
        return [*Path(path).read_text(encoding="ascii").split(), "", ""][1]
    except (OSError, ValueError):
        return ""
