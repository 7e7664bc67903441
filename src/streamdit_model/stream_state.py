"""What a stream was made with, and its state in one file: tensors and JSON, no pickle.

A state is a pair of tensors and a JSON-able record. In the file, a safetensors file, the record is
a tensor of JSON bytes, and one more tensor holds the SHA-256 of all others, so that a changed bit
is noticed. This file knows neither prompts nor samplers.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from safetensors.torch import save
from torch import Tensor

from streamdit_model.errors import ConfigError, WeightsError
from streamdit_model.storage import parse_json, read_tensors, sync_folder, write_tensors

if TYPE_CHECKING:
    from streamdit_model.wan.model import WanModel
    from streamdit_model.weights import Model

    StreamModel: TypeAlias = Model | WanModel

__all__ = [
    "StreamState",
    "frames_read",
    "load_state",
    "model_fingerprint",
    "require_same_origin",
    "save_state",
    "stream_plan",
]

StreamState = tuple[dict[str, Tensor], dict[str, Any]]
"""Tensors on the CPU by name, and a JSON-able record."""

FORMAT = "streamdit-state-1"
_RECORD, _DIGEST = "record", "sha256"
_RECORD_KEYS = {
    "settings",
    "plan",
    "model",
    "about",
    "chunks",
    "frames",
    "buffer",
    "memories",
    "input",
    "timeline",
    "rest_prompt",
}
_log = logging.getLogger(__name__)
_SAMPLED_VALUES = 64  # of each tensor; versions of a model differ in nearly all values


def stream_plan(model: StreamModel, *, start: str, stepper: str) -> dict[str, str]:
    """Return everything beside seed, prompts and model that decides about the bits of a stream."""
    return {
        "machine": _machine(model.device),
        "device": model.device.type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "compile": "on" if _is_compiled(model.transformer) else "off",
        "stepper": stepper,
        "start": start,
    }


def model_fingerprint(model: StreamModel) -> str:
    """Return a hash of the configuration and of values spread over every tensor of a model.

    It does not depend on the dtype or device a model was loaded with.
    """
    digest = hashlib.sha256(json.dumps(model.config.to_dict(), sort_keys=True).encode())
    for part in model.parts:
        for name, tensor in sorted(part.state_dict().items()):
            digest.update(f"{name.replace('_orig_mod.', '')} {tuple(tensor.shape)}".encode())
            step = max(1, tensor.numel() // _SAMPLED_VALUES)
            values = tensor.detach().flatten()[::step].bfloat16().float().tolist()
            digest.update(json.dumps(values).encode())
    return digest.hexdigest()


def require_same_origin(model: StreamModel, record: dict[str, Any], *, exact: bool) -> None:
    """Refuse to go on with another model, or under another plan where frames must be equal.

    Args:
        model: that is to go on.
        record: of a state.
        exact: False lets another plan pass with a logged warning.

    Raises:
        WeightsError: the state is of another model.
        ConfigError: the plan is another one.
    """
    if record["model"] != model_fingerprint(model):
        raise WeightsError(
            f"the state was made with another model than {model.config.name}",
            hint="give the model that the stream was started with",
        )
    if exact and is_light(record):
        raise ConfigError(
            f"the context of {model.config.name} is rebuilt from its clean frames, so that frames "
            "would differ",
            hint="give up equal frames with exact=False, or save states with full_states=True",
        )
    now = stream_plan(model, start=record["plan"]["start"], stepper=model.config.stepper)
    changes = ", ".join(
        f"{name} {was} is now {now.get(name)}"
        for name, was in record["plan"].items()
        if was != now.get(name)
    )
    if changes and exact:
        raise ConfigError(
            f"the state was made under another plan, frames would differ: {changes}",
            hint="use the same plan, or give up equal frames with exact=False",
        )
    if changes:
        _log.warning("frames after this point are not bit-exact: %s", changes)


def is_light(record: dict[str, Any]) -> bool:
    """Whether a context has to be rebuilt from a state in another way than it was built.

    Args:
        record: of a state.
    """
    context = (record["memories"] or {}).get("context")
    return bool(context) and not context.get("is_exact", False)


def save_state(path: Path | str, state: StreamState) -> None:
    """Write the state of a stream; the file at `path` is the old one or the whole new one.

    Raises:
        OSError: the disk is full or refuses.
    """
    path = Path(path)
    tensors, record = state
    text = json.dumps({"format": FORMAT, **record}, sort_keys=True).encode()
    tensors = {**tensors, _RECORD: torch.frombuffer(bytearray(text), dtype=torch.uint8)}
    tensors[_DIGEST] = _digest(tensors)
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    partial.unlink(missing_ok=True)
    try:
        write_tensors(partial, tensors)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)


def load_state(path: Path | str) -> StreamState:
    """Read the state of a stream.

    Raises:
        WeightsError: the file is missing, damaged, or no state of a stream.
        OSError: the system refuses to read it.
    """
    path = Path(path)
    tensors = read_tensors(path)
    digest = tensors.pop(_DIGEST, None)
    if digest is None or _RECORD not in tensors:
        raise WeightsError(f"{path.name} is not the state of a stream")
    if not torch.equal(digest, _digest(tensors)):
        raise WeightsError(f"{path.name} is damaged: it is not what was saved")
    record = parse_json(bytes(tensors.pop(_RECORD).tolist()), f"record of {path.name}")
    found = record.pop("format", None) if isinstance(record, dict) else None
    if not isinstance(record, dict) or found != FORMAT or record.keys() != _RECORD_KEYS:
        raise WeightsError(f"{path.name} is not a state of the format {FORMAT}")
    return tensors, record


def frames_read(state: StreamState) -> int | None:
    """Return the frame at which the input of a stream goes on; None for a stream without input."""
    video = state[1]["input"]
    return None if video is None else video["frames_read"]


def _digest(tensors: dict[str, Tensor]) -> Tensor:
    """Return the SHA-256 of tensors, their names, shapes and dtypes, (32,) uint8."""
    whole = save({name: tensor.cpu().contiguous() for name, tensor in sorted(tensors.items())})
    return torch.tensor(list(hashlib.sha256(whole).digest()), dtype=torch.uint8)


def _machine(device: torch.device) -> str:
    """Name the class of machines that compute the same bits."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    features = getattr(torch.cpu, "get_capabilities", dict)()
    amx = "AMX" if features.get("amx_bf16") else ""
    parts = platform.machine(), features.get("cpu_name"), torch.backends.cpu.get_cpu_capability()
    return " ".join(str(part) for part in (*parts, amx) if part)


def _is_compiled(module: torch.nn.Module) -> bool:
    return hasattr(module, "_orig_mod") or module._compiled_call_impl is not None
