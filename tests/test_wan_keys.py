"""Weights under the published names become ours, all of them, or are refused."""

from __future__ import annotations

import pytest
import torch
from tiny_transformer import randomize
from tiny_wan import TINY, tensors_in, tiny_wan

from streamdit_model.errors import WeightsError
from streamdit_model.wan.keys import LAYOUTS, key_map, rename
from streamdit_model.wan.transformer import WanTransformer

# Written out from open-weights.md 4.2, and section 3 for the fps.
ORIGINAL_BLOCK = """
modulation norm3.weight norm3.bias
self_attn.q.weight self_attn.q.bias self_attn.k.weight self_attn.k.bias
self_attn.v.weight self_attn.v.bias self_attn.o.weight self_attn.o.bias
self_attn.norm_q.weight self_attn.norm_k.weight
cross_attn.q.weight cross_attn.q.bias cross_attn.k.weight cross_attn.k.bias
cross_attn.v.weight cross_attn.v.bias cross_attn.o.weight cross_attn.o.bias
cross_attn.norm_q.weight cross_attn.norm_k.weight
ffn.0.weight ffn.0.bias ffn.2.weight ffn.2.bias
"""
ORIGINAL = """
patch_embedding.weight patch_embedding.bias
time_embedding.0.weight time_embedding.0.bias time_embedding.2.weight time_embedding.2.bias
time_projection.1.weight time_projection.1.bias
text_embedding.0.weight text_embedding.0.bias text_embedding.2.weight text_embedding.2.bias
head.modulation head.head.weight head.head.bias
fps_embedding.weight fps_projection.0.weight fps_projection.0.bias
fps_projection.2.weight fps_projection.2.bias
"""


@pytest.mark.parametrize("fps", [None, 24])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_comes_back_as_the_same_weights(layout: str, fps: int | None) -> None:
    model = tiny_wan(fps=fps)
    found = rename(tensors_in(layout, model), model.config)
    expected = model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("name", "fps"), [("WanTransformer3DModel", None), ("SkyReelsV2Transformer3DModel", 24)]
)
def test_diffusers_class_has_the_names_and_shapes_of_its_layout(name: str, fps: int | None) -> None:
    models = pytest.importorskip("diffusers")
    changes = {} if fps is None else {"inject_sample_info": True}
    reference = getattr(models, name)(
        num_attention_heads=TINY["num_heads"],
        attention_head_dim=TINY["width"] // TINY["num_heads"],
        in_channels=TINY["latent_channels"],
        out_channels=TINY["latent_channels"],
        text_dim=TINY["text_width"],
        freq_dim=TINY["time_width"],
        ffn_dim=TINY["mlp_width"],
        num_layers=TINY["depth"],
        rope_max_seq_len=32,
        **changes,
    )
    randomize(reference)
    model = tiny_wan(fps=fps)
    shapes = {key: value.shape for key, value in tensors_in("diffusers", model).items()}
    assert {key: value.shape for key, value in reference.state_dict().items()} == shapes
    network = WanTransformer(model.config)
    network.load_state_dict(rename(reference.state_dict(), model.config))
    converted = tensors_in("diffusers", network)
    assert all(torch.equal(converted[key], value) for key, value in reference.state_dict().items())


def test_original_layout_is_the_published_one_name_by_name() -> None:
    block = {f"blocks.{number}.{name}" for number in range(3) for name in ORIGINAL_BLOCK.split()}
    expected = block | set(ORIGINAL.split())
    assert key_map(tiny_wan(fps=24).config, "original").keys() == expected


def test_layouts_name_the_norm_before_the_cross_attention_differently() -> None:
    config = tiny_wan().config
    found = {
        layout: {ours: theirs for theirs, ours in key_map(config, layout).items()}
        for layout in LAYOUTS
    }
    assert found["original"]["blocks.0.cross_norm.weight"] == "blocks.0.norm3.weight"
    assert found["diffusers"]["blocks.0.cross_norm.weight"] == "blocks.0.norm2.weight"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_unknown_layout_is_refused_with_the_first_missing_and_unexpected_name(layout: str) -> None:
    model = tiny_wan()
    tensors = tensors_in(layout, model)
    value = tensors.pop("blocks.1.ffn.2.weight" if layout == "original" else "proj_out.weight")
    tensors["img_emb.proj.0.weight"] = value
    with pytest.raises(WeightsError) as caught:
        rename(tensors, model.config)
    message = str(caught.value)
    missing = "blocks.1.ffn.2.weight" if layout == "original" else "proj_out.weight"
    assert f"nearest is {layout}" in message and "\n" not in message
    assert f"{missing} is missing (1 in all)" in message
    assert "img_emb.proj.0.weight is unexpected (1 in all)" in message


def test_prefixed_mixed_or_wrongly_deep_names_are_refused() -> None:
    model, deep, fast = tiny_wan(), tiny_wan(depth=4), tiny_wan(fps=24)
    original = tensors_in("original", model)
    prefixed = {f"model.{name}": value for name, value in original.items()}
    with pytest.raises(WeightsError, match=r"patch_embedding\.weight is missing"):
        rename(prefixed, model.config)
    with pytest.raises(WeightsError, match=r"attn1\S+ is unexpected"):
        rename(original | tensors_in("diffusers", model), model.config)
    with pytest.raises(WeightsError, match=r"4 blocks.*blocks\.3\.\S+ is missing"):
        rename(original, deep.config)
    with pytest.raises(WeightsError, match=r"3 blocks.*blocks\.3\.\S+ is unexpected"):
        rename(tensors_in("original", deep), model.config)
    with pytest.raises(WeightsError, match=r"fps_\S+ is missing"):
        rename(original, fast.config)
    with pytest.raises(WeightsError, match="is missing"):
        rename({}, model.config)
