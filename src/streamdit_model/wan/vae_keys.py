"""Names of the tensors of a Wan autoencoder in files, and ours.

Two layouts are published: `original` (Wan-Video) and `diffusers`. A file fits one of them to the
last name or is refused; nothing is guessed.

Reference: open-weights.md 4.5, hub-pins.md rows 3.12, 4.10 and 7.6.
"""

from collections.abc import Iterator, Mapping
from typing import Literal, TypeVar

from streamdit_model.errors import WeightsError
from streamdit_model.storage import quoted
from streamdit_model.wan.vae_config import Stage, WanAutoencoderConfig

__all__ = ["LAYOUTS", "Layout", "exported", "key_map", "refuse_other_keys", "translated"]

Layout = Literal["original", "diffusers"]
LAYOUTS: tuple[Layout, ...] = ("original", "diffusers")
_Tensor = TypeVar("_Tensor")
_Names = tuple[str, str, str]
"""Name of a layer with weight and bias, or of a norm: ours, original, diffusers."""


def key_map(config: WanAutoencoderConfig, layout: Layout) -> dict[str, str]:
    """Return for every name in a file of the layout our name of the tensor."""
    index = 1 + LAYOUTS.index(layout)
    return {names[index]: names[0] for names in _tensors(config)}


def translated(tensors: Mapping[str, _Tensor], config: WanAutoencoderConfig) -> dict[str, _Tensor]:
    """Return the content of a file under our names.

    Args:
        tensors: names of the file; the values are handed on and may be anything.
        config: of the autoencoder that the file should hold.

    Raises:
        WeightsError: the names fit no layout; the first missing and the first unexpected name of
            the nearest layout are named.
    """
    maps = [key_map(config, layout) for layout in LAYOUTS]
    nearest = max(maps, key=lambda names: len(names.keys() & tensors.keys()))
    layout = LAYOUTS[maps.index(nearest)]
    refuse_other_keys(tensors, nearest, f"a Wan autoencoder in the {layout} layout")
    return {ours: tensors[theirs] for theirs, ours in nearest.items()}


def exported(
    tensors: Mapping[str, _Tensor], config: WanAutoencoderConfig, layout: Layout
) -> dict[str, _Tensor]:
    """Return tensors of our names under the names of a layout; the inverse of `translated`.

    Raises:
        WeightsError: a name of ours is missing or unknown.
    """
    names = key_map(config, layout)
    refuse_other_keys(tensors, dict.fromkeys(names.values()), "our Wan autoencoder")
    return {theirs: tensors[ours] for theirs, ours in names.items()}


def refuse_other_keys(found: Mapping[str, object], needed: Mapping[str, object], what: str) -> None:
    """Refuse names that are not exactly the needed ones.

    Args:
        found: names of a file.
        needed: names of a layout, in the order of the network.
        what: what the file would be with the needed names.

    Raises:
        WeightsError: the first missing and the first unexpected name are in the message.
    """
    missing = [name for name in needed if name not in found]
    unexpected = sorted(found.keys() - needed.keys())
    problems = [f"{quoted(name)} is missing" for name in missing[:1]]
    problems += [f"{quoted(name)} is unexpected" for name in unexpected[:1]]
    if problems:
        more = len(missing) + len(unexpected) - len(problems)
        raise WeightsError(
            f"not the weights of {what}: {', '.join(problems)}{f', and {more} more' * bool(more)}",
            hint="take the file that the preset names, unchanged",
        )


def _tensors(config: WanAutoencoderConfig) -> Iterator[_Names]:
    """Every tensor: its name in our modules, in the original files, in diffusers files."""
    for layer in _layers(config):
        parameters = ("gamma",) if ".norm" in layer[0] else ("weight", "bias")
        for parameter in parameters:
            ours, original, diffusers = (f"{name}.{parameter}" for name in layer)
            yield ours, original, diffusers


def _layers(config: WanAutoencoderConfig) -> Iterator[_Names]:
    yield "encoder.conv_in", "encoder.conv1", "encoder.conv_in"
    yield from _stages("encoder", config.encoder_stages, config.straight_ways)
    yield from _middle("encoder")
    yield from _ends("encoder")
    yield "to_moments", "conv1", "quant_conv"
    yield "from_latents", "conv2", "post_quant_conv"
    yield "decoder.conv_in", "decoder.conv1", "decoder.conv_in"
    yield from _middle("decoder")
    yield from _stages("decoder", config.decoder_stages, config.straight_ways)
    yield from _ends("decoder")


def _stages(part: str, stages: tuple[Stage, ...], nested: bool) -> Iterator[_Names]:
    """Both layouts number all layers of Wan 2.1 in a row, but diffusers not in the decoder."""
    direction = "down" if part == "encoder" else "up"
    row = f"{part}.{direction}samples"
    place = 0  # in the row of all layers
    for index, stage in enumerate(stages):
        ours, group = f"{part}.stages.{index}", f"{part}.{direction}_blocks.{index}"
        in_row = not nested and part == "encoder"
        for block in range(stage.blocks):
            yield from _block(
                f"{ours}.blocks.{block}",
                f"{row}.{index}.{direction}samples.{block}" if nested else f"{row}.{place}",
                f"{part}.down_blocks.{place}" if in_row else f"{group}.resnets.{block}",
                has_shortcut=block == 0 and stage.inputs != stage.outputs,
            )
            place += 1
        if not stage.resampled:
            continue
        original = f"{row}.{place}"
        diffusers = f"{part}.down_blocks.{place}" if in_row else f"{group}.upsamplers.0"
        if nested:
            original = f"{row}.{index}.{direction}samples.{stage.blocks}"
            diffusers = f"{group}.{direction}sampler"
        yield f"{ours}.space", f"{original}.resample.1", f"{diffusers}.resample.1"
        if stage.changes_time:
            yield f"{ours}.time", f"{original}.time_conv", f"{diffusers}.time_conv"
        place += 1


def _block(ours: str, original: str, diffusers: str, has_shortcut: bool) -> Iterator[_Names]:
    yield f"{ours}.norm_1", f"{original}.residual.0", f"{diffusers}.norm1"
    yield f"{ours}.conv_1", f"{original}.residual.2", f"{diffusers}.conv1"
    yield f"{ours}.norm_2", f"{original}.residual.3", f"{diffusers}.norm2"
    yield f"{ours}.conv_2", f"{original}.residual.6", f"{diffusers}.conv2"
    if has_shortcut:
        yield f"{ours}.shortcut", f"{original}.shortcut", f"{diffusers}.conv_shortcut"


def _middle(part: str) -> Iterator[_Names]:
    ours, original, diffusers = f"{part}.middle", f"{part}.middle", f"{part}.mid_block"
    attention = f"{ours}.attention", f"{original}.1", f"{diffusers}.attentions.0"
    yield from _block(f"{ours}.first", f"{original}.0", f"{diffusers}.resnets.0", False)
    for name, theirs in {"norm": "norm", "qkv": "to_qkv", "out": "proj"}.items():
        yield f"{attention[0]}.{name}", f"{attention[1]}.{theirs}", f"{attention[2]}.{theirs}"
    yield from _block(f"{ours}.last", f"{original}.2", f"{diffusers}.resnets.1", False)


def _ends(part: str) -> Iterator[_Names]:
    yield f"{part}.norm_out", f"{part}.head.0", f"{part}.norm_out"
    yield f"{part}.conv_out", f"{part}.head.2", f"{part}.conv_out"
