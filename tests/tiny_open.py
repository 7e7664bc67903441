"""A tiny model of open weights: a preset, its files in either published layout, their cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny_presets import pin, preset_text
from torch import Tensor

from streamdit_cli.open_weights import open_config
from streamdit_cli.presets import read_toml
from streamdit_model.wan import keys, vae_keys
from streamdit_model.wan.loading import random_wan
from streamdit_model.wan.model import WanModel
from streamdit_model.wan.model_config import WanModelConfig
from streamdit_model.wan.text_weights import tensor_names

SHA = "c" * 40
REPO = "owner/open"
LETTERS = "abcdefghijklmnopqrst"

NETWORK = """[network]
layers = 2
width = 24
heads = 2
mlp_width = 20
latent_channels = 16
patch = [1, 2, 2]
text_width = 24
text_tokens = 20
time_width = 16
rope_axes = [4, 4, 4]
rope_theta = 10000.0
eps = 1e-6
fps_embedding = {fps}
parameters = 1

[autoencoder]
latent_channels = 16
time_factor = 4
space_factor = 8
width = 2
small_width = 2

[text]
vocabulary = 32
width = 24
head_width = 8
heads = 2
mlp_width = 40
layers = 1
buckets = 8
max_distance = 12
tokens = 20
"""
SAMPLERS = {
    "rolling": 'stepper = "renoise"\ntimesteps = [1000, 750, 500, 250]\nshift = 5.0\n'
    "distilled = true\nguidance_scale = 1.0\nnum_reference = 0\nnum_chunks = 4\nchunk_size = 3\n"
    "micro_steps = 1\n[context]\nsink_frames = 3\nworking_frames = 6\nattended_frames = 21\n",
    "guided": 'stepper = "unipc"\nshift = 8.0\n'
    "distilled = false\nguidance_scale = 3.0\nnum_reference = 0\nnum_chunks = 2\nchunk_size = 2\n"
    "micro_steps = 2\n[context]\nsink_frames = 0\nworking_frames = 0\nattended_frames = 4\n",
}
PROFILE = """[[profiles]]
vram = 12
width = 32
height = 32
decoder = "full"
offload = "text"
context_frames = {context}
estimate = 1.0
"""


def open_preset_text(name: str, sources: list[dict[str, Any]], sampler: str) -> str:
    """Return the text of a preset of 32 x 32 pixels at 16 FPS with tiny networks."""
    text = preset_text(name, sources)
    head = text[: text.index("[network]")]
    head = head.replace("width = 832", "width = 32").replace("height = 480", "height = 32")
    network = NETWORK.format(fps="true" if sampler == "guided" else "false")
    profile = PROFILE.format(context=0 if sampler == "guided" else 21)
    return f"{head}{network}[sampler]\n{SAMPLERS[sampler]}{profile}"


def written_preset(
    folder: Path, name: str, sources: list[dict[str, Any]] | None = None, sampler: str = "rolling"
) -> dict[str, Any]:
    """Write such a preset and return it; without sources its files were never seen."""
    files = [pin("model.safetensors", None)]
    sources = sources or [{"part": "transformer", "repo": REPO, "revision": "", "files": files}]
    path = folder / f"{name}.toml"
    path.write_text(open_preset_text(name, sources, sampler), encoding="utf-8")
    return read_toml(path)


def tiny_config(folder: Path, sampler: str = "rolling", **changes: Any) -> WanModelConfig:
    """Return the configuration of such a preset."""
    folder.mkdir(parents=True, exist_ok=True)
    return open_config(written_preset(folder, "tiny", sampler=sampler), **changes)


def tiny_open(folder: Path, sampler: str = "rolling", **changes: Any) -> WanModel:
    """Return such a model with random weights, in float32 on the CPU."""
    config = tiny_config(folder, sampler, **changes)
    return random_wan(config, device=torch.device("cpu"), dtype=torch.float32)


def tiny_tokenizer(path: Path) -> None:
    """Write a tokenizer of single letters with umT5's ids of padding and end."""
    import tokenizers

    pieces = ["<pad>", "</s>", "<unk>", "\u2581", *LETTERS]
    scores = [(piece, -float(number)) for number, piece in enumerate(pieces)]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram(scores, unk_id=2))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    tokenizer.save(str(path))


def checkpoint(config: WanModelConfig, small: WanModelConfig, layout: str) -> dict[str, Any]:
    """Return path in the repository -> tensors, under the names of a published layout."""
    cpu, dtype = torch.device("cpu"), torch.float32
    model, tiny = (random_wan(one, device=cpu, dtype=dtype) for one in (config, small))
    theirs = keys.key_map(config.transformer, layout)
    state = model.transformer.state_dict()
    network = {key: state[ours] for key, ours in theirs.items()}
    names = sorted(network)
    decoder = vae_keys.exported(
        model.autoencoder.state_dict(),
        model.autoencoder.config,  # type: ignore[arg-type]
        layout,  # type: ignore[arg-type]
    )
    generator = torch.Generator().manual_seed(5)
    text = {
        (original if layout == "original" else name): torch.randn(shape, generator=generator) * 0.3
        for name, (original, shape) in tensor_names(config.text).items()
    }
    return {
        "net-00001-of-00002.safetensors": {name: network[name] for name in names[::2]},
        "net-00002-of-00002.safetensors": {name: network[name] for name in names[1::2]},
        "vae.safetensors": decoder,
        "taew.safetensors": tiny.autoencoder.state_dict(),
        "text.safetensors": text,
    }


PARTS = {
    "net-00001-of-00002.safetensors": "transformer",
    "net-00002-of-00002.safetensors": "transformer",
    "vae.safetensors": "autoencoder",
    "taew.safetensors": "small_decoder",
    "text.safetensors": "text_encoder",
    "tokenizer.json": "tokenizer",
}


def write_checkpoint(
    cache: Path, presets: Path, name: str, layout: str, sampler: str = "rolling"
) -> Path:
    """Put a tiny checkpoint into the Hub's cache and its preset beside; returns its folder."""
    (cache / "tmp").mkdir(parents=True, exist_ok=True)
    config = tiny_config(cache / "tmp", sampler)
    small = tiny_config(cache / "tmp", sampler, decoder="small")
    folder = cache / f"models--{REPO.replace('/', '--')}" / "snapshots" / SHA
    folder.mkdir(parents=True, exist_ok=True)
    for path, tensors in checkpoint(config, small, layout).items():
        write_tensors(folder / path, tensors)
    tiny_tokenizer(folder / "tokenizer.json")
    pin_checkpoint(folder, presets, name, sampler)
    return folder


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file."""
    save_file({key: value.clone().contiguous() for key, value in tensors.items()}, path)


def pin_checkpoint(folder: Path, presets: Path, name: str, sampler: str = "rolling") -> None:
    """Write the preset whose pins are the files as they are now."""
    sources = [
        {"part": part, "repo": REPO, "revision": SHA, "files": [pin(path, _read(folder / path))]}
        for path, part in PARTS.items()
    ]
    written_preset(presets, name, sources, sampler)


def _read(path: Path) -> bytes:
    return path.read_bytes()
