"""Names of a Wan transformer's weights: the published layouts translated into ours.

Two layouts are known, the original one of the Wan and SkyReels repositories and the one of
diffusers; both name the same tensors, of the same shapes as ours. A set of names that is not
exactly one of them is refused: nothing is guessed and nothing left over.

Reference: open-weights.md 3 and 4.2.
"""

from collections.abc import Iterable, Mapping

from torch import Tensor

from streamdit_model.errors import WeightsError
from streamdit_model.wan.config import WanConfig

__all__ = ["LAYOUTS", "find_layout", "key_map", "rename"]

LAYOUTS = ("original", "diffusers")

_Rows = tuple[tuple[str, str, str], ...]

# ours, original, diffusers; all have a weight and a bias
_LINEAR: _Rows = (
    ("patch_embedding", "patch_embedding", "patch_embedding"),
    ("time_embedding.0", "time_embedding.0", "condition_embedder.time_embedder.linear_1"),
    ("time_embedding.2", "time_embedding.2", "condition_embedder.time_embedder.linear_2"),
    ("modulation", "time_projection.1", "condition_embedder.time_proj"),
    ("text_embedding.0", "text_embedding.0", "condition_embedder.text_embedder.linear_1"),
    ("text_embedding.2", "text_embedding.2", "condition_embedder.text_embedder.linear_2"),
    ("head", "head.head", "proj_out"),
)
_FPS_LINEAR: _Rows = (
    ("fps_modulation.0", "fps_projection.0", "fps_projection.net.0.proj"),
    ("fps_modulation.2", "fps_projection.2", "fps_projection.net.2"),
)
_BLOCK_LINEAR: _Rows = (
    ("cross_norm", "norm3", "norm2"),  # the two layouts number the norms differently
    ("mlp_up", "ffn.0", "ffn.net.0.proj"),
    ("mlp_down", "ffn.2", "ffn.net.2"),
)
_ATTENTIONS: _Rows = (
    ("attention", "self_attn", "attn1"),
    ("cross_attention", "cross_attn", "attn2"),
)
_ATTENTION_LINEAR: _Rows = (
    ("query", "q", "to_q"),
    ("key", "k", "to_k"),
    ("value", "v", "to_v"),
    ("output", "o", "to_out.0"),
)
# these have one tensor
_SINGLE: _Rows = (("head_table", "head.modulation", "scale_shift_table"),)
_FPS_SINGLE: _Rows = (("fps_embedding.weight", "fps_embedding.weight", "fps_embedding.weight"),)
_BLOCK_SINGLE: _Rows = (("table", "modulation", "scale_shift_table"),)
_ATTENTION_SINGLE: _Rows = (
    ("query_norm.weight", "norm_q.weight", "norm_q.weight"),
    ("key_norm.weight", "norm_k.weight", "norm_k.weight"),
)


def key_map(config: WanConfig, layout: str) -> dict[str, str]:
    """Return the name in a layout -> our name, for every tensor of a configuration.

    Args:
        config: its depth and its fps embedding count.
        layout: one of `LAYOUTS`.
    """
    column = 1 + LAYOUTS.index(layout)
    has_fps = config.fps is not None
    rows = _with_bias(_LINEAR + (_FPS_LINEAR if has_fps else ()))
    rows += _SINGLE + (_FPS_SINGLE if has_fps else ())
    block = _block_rows()
    for number in range(config.depth):
        name = f"blocks.{number}"
        rows += _below((name, name, name), block)
    return {row[column]: row[0] for row in rows}


def rename(tensors: Mapping[str, Tensor], config: WanConfig) -> dict[str, Tensor]:
    """Return the tensors of a published checkpoint under our names.

    Args:
        tensors: whole, in either layout.
        config: what the checkpoint is said to be.

    Raises:
        WeightsError: the names are not exactly those of a known layout; the first that is missing
            and the first that is unexpected are named.
    """
    names = find_layout(tensors, config)
    return {ours: tensors[theirs] for theirs, ours in names.items()}


def find_layout(keys: Iterable[str], config: WanConfig) -> dict[str, str]:
    """Return the `key_map` of the layout that these names are.

    Args:
        keys: names of all tensors of a checkpoint.
        config: what the checkpoint is said to be.

    Raises:
        WeightsError: as in `rename`.
    """
    found = set(keys)
    maps = {layout: key_map(config, layout) for layout in LAYOUTS}
    layout = max(LAYOUTS, key=lambda name: len(maps[name].keys() & found))
    names = maps[layout]
    missing = [name for name in names if name not in found]
    unexpected = sorted(found - names.keys())
    if not missing and not unexpected:
        return names
    parts = []
    if missing:
        parts.append(f"{missing[0]} is missing ({len(missing)} in all)")
    if unexpected:
        parts.append(f"{unexpected[0]} is unexpected ({len(unexpected)} in all)")
    raise WeightsError(
        f"the tensors are in no known layout of a Wan transformer with {config.depth} blocks; "
        f"nearest is {layout}: {', '.join(parts)}",
        hint="choose the model that the file was made for: original or diffusers names are read",
    )


def _with_bias(rows: _Rows) -> _Rows:
    """Complete names of layers to the names of their two tensors."""
    return tuple(
        (f"{ours}.{part}", f"{original}.{part}", f"{diffusers}.{part}")
        for ours, original, diffusers in rows
        for part in ("weight", "bias")
    )


def _below(parent: tuple[str, str, str], rows: _Rows) -> _Rows:
    """Put names below a parent's."""
    return tuple(
        (f"{parent[0]}.{ours}", f"{parent[1]}.{original}", f"{parent[2]}.{diffusers}")
        for ours, original, diffusers in rows
    )


def _block_rows() -> _Rows:
    """Return the names within one block."""
    rows = _with_bias(_BLOCK_LINEAR) + _BLOCK_SINGLE
    for attention in _ATTENTIONS:
        rows += _below(attention, _with_bias(_ATTENTION_LINEAR) + _ATTENTION_SINGLE)
    return rows
