"""A LoRA file changes exactly the weights it names, by exactly what it says, or is refused."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from streamdit_model.errors import ConfigError, WeightsError
from streamdit_model.wan.lora import KeyMap, layer_map, merge_loras, parse_lora, read_lora

THEIRS_TO_OURS = {
    "blocks.0.self_attn.q": "layers.query",
    "blocks.0.ffn.0": "layers.inner",
    "patch_embedding": "layers.patch",
    "blocks.0.norm3": "layers.norm",
}
KEYS = layer_map(THEIRS_TO_OURS)
RANK = 2
SHAPES = {
    "blocks.0.self_attn.q": ((RANK, 6), (5, RANK)),
    "blocks.0.ffn.0": ((RANK, 5), (7, RANK)),
    "patch_embedding": ((RANK, 3, 1, 2, 2), (6, RANK, 1, 1, 1)),
}
Layout = Callable[[str], tuple[str, str]]
LAYOUTS: dict[str, Layout] = {
    "peft": lambda layer: (
        f"base_model.model.{layer}.lora_A.weight",
        f"base_model.model.{layer}.lora_B.weight",
    ),
    "peft with adapter": lambda layer: (
        f"base_model.model.{layer}.lora_A.default.weight",
        f"base_model.model.{layer}.lora_B.default.weight",
    ),
    "diffusers": lambda layer: (
        f"transformer.{layer}.lora_A.weight",
        f"transformer.{layer}.lora_B.weight",
    ),
    "diffusers old": lambda layer: (
        f"transformer.{layer}.lora.down.weight",
        f"transformer.{layer}.lora.up.weight",
    ),
    "original": lambda layer: (
        f"diffusion_model.{layer}.lora_down.weight",
        f"diffusion_model.{layer}.lora_up.weight",
    ),
    "original whole": lambda layer: (
        f"model.diffusion_model.{layer}.lora_A.weight",
        f"model.diffusion_model.{layer}.lora_B.weight",
    ),
    "bare": lambda layer: (f"{layer}.lora_A.weight", f"{layer}.lora_B.weight"),
    "kohya": lambda layer: (
        f"lora_unet_{layer.replace('.', '_')}.lora_down.weight",
        f"lora_unet_{layer.replace('.', '_')}.lora_up.weight",
    ),
}


class Tiny(nn.Module):
    """A linear chain behind a convolution, named as no open network is."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(
            {
                "patch": nn.Conv3d(3, 6, (1, 2, 2), (1, 2, 2)),
                "query": nn.Linear(6, 5),
                "inner": nn.Linear(5, 7),
                "norm": nn.LayerNorm(7),
            }
        )

    def forward(self, video: Tensor) -> Tensor:
        x = self.layers["patch"](video).flatten(2).transpose(1, 2)
        return self.layers["norm"](self.layers["inner"](self.layers["query"](x)))


def network(dtype: torch.dtype = torch.float64) -> Tiny:
    torch.manual_seed(0)
    tiny = Tiny().to(dtype)
    with torch.no_grad():
        for parameter in tiny.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    return tiny


def weights_of(tiny: Tiny) -> dict[str, Tensor]:
    return dict(tiny.named_parameters())


def snapshot(tiny: Tiny) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in tiny.named_parameters()}


def factors(seed: int = 0) -> dict[str, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return {
        layer: (torch.randn(down, generator=generator), torch.randn(up, generator=generator))
        for layer, (down, up) in SHAPES.items()
    }


def tensors_of(layout: str, seed: int = 0, alpha: float | None = None) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for layer, (down, up) in factors(seed).items():
        down_key, up_key = LAYOUTS[layout](layer)
        tensors |= {down_key: down, up_key: up}
        if alpha is not None:
            stem = down_key.rsplit(".lora", 1)[0]
            tensors[f"{stem}.alpha"] = torch.tensor(alpha)
    return tensors


def write(folder: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "style.safetensors"
    save_file(tensors, path, metadata)
    return path


def by_hand(base: dict[str, Tensor], strength: float, seed: int = 0) -> dict[str, Tensor]:
    """The weights after a LoRA, written out element by element."""
    merged = {name: value.clone() for name, value in base.items()}
    for layer, (down, up) in factors(seed).items():
        weight = merged[f"{THEIRS_TO_OURS[layer]}.weight"].view(up.shape[0], -1)
        for row in range(up.shape[0]):
            for rank in range(RANK):
                weight[row] += strength * float(up[row, rank]) * down[rank].flatten().double()
    return merged


def assert_equal(tiny: Tiny, wanted: dict[str, Tensor]) -> None:
    for name, parameter in tiny.named_parameters():
        # float64 sums of two products, in another order
        torch.testing.assert_close(parameter.detach(), wanted[name], rtol=1e-12, atol=1e-12)


# Merging.


@pytest.mark.parametrize("alpha", [None, 0.5])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_merged_weights_equal_the_sum_written_by_hand(
    tmp_path: Path, layout: str, alpha: float | None
) -> None:
    tiny = network()
    strength = 0.8 * (1.0 if alpha is None else alpha / RANK)
    wanted = by_hand(snapshot(tiny), strength)
    lora = read_lora(write(tmp_path, tensors_of(layout, alpha=alpha)), KEYS)
    merge_loras(weights_of(tiny), [(lora, 0.8)])
    assert_equal(tiny, wanted)


def test_merged_network_computes_what_a_network_with_side_paths_does(tmp_path: Path) -> None:
    tiny, video = network(), torch.randn(1, 3, 2, 4, 4, dtype=torch.float64)
    patch, query, inner, norm = (tiny.layers[name] for name in ("patch", "query", "inner", "norm"))
    side = {layer: [part.double() for part in pair] for layer, pair in factors().items()}
    strength = 1.5 * 0.5 / RANK
    with torch.no_grad():
        down, up = side["patch_embedding"]
        low = functional.conv3d(video, down, stride=(1, 2, 2))
        x = (patch(video) + strength * functional.conv3d(low, up)).flatten(2).transpose(1, 2)
        for module, layer in ((query, "blocks.0.self_attn.q"), (inner, "blocks.0.ffn.0")):
            down, up = side[layer]
            x = module(x) + strength * (x @ down.T) @ up.T
        wanted, before = norm(x), tiny(video)
        lora = read_lora(write(tmp_path, tensors_of("original", alpha=0.5)), KEYS)
        merge_loras(weights_of(tiny), [(lora, 1.5)])
        torch.testing.assert_close(tiny(video), wanted, rtol=1e-10, atol=1e-10)
        assert float((wanted - before).abs().max()) > 0.1


def test_several_loras_add_up_and_opposite_scales_cancel(tmp_path: Path) -> None:
    tiny = network()
    first = read_lora(write(tmp_path / "1", tensors_of("bare")), KEYS)
    second = read_lora(write(tmp_path / "2", tensors_of("kohya", seed=1, alpha=1.0)), KEYS)
    wanted = by_hand(by_hand(snapshot(tiny), 0.5), -2.0 * 1.0 / RANK, seed=1)
    base = snapshot(tiny)
    merge_loras(weights_of(tiny), [(first, 0.5), (second, -2.0)])
    assert_equal(tiny, wanted)
    merge_loras(weights_of(tiny), [(first, -0.5), (second, 2.0)])
    assert_equal(tiny, base)


def test_sum_is_rounded_to_the_weights_dtype_once(tmp_path: Path) -> None:
    tiny = network(torch.bfloat16)
    loras = [
        (read_lora(write(tmp_path / str(seed), tensors_of("bare", seed=seed)), KEYS), 0.01)
        for seed in range(4)
    ]
    wanted = {name: value.double() for name, value in snapshot(tiny).items()}
    for seed in range(4):
        wanted = by_hand(wanted, 0.01, seed=seed)
    merge_loras(weights_of(tiny), loras)
    for name, parameter in tiny.named_parameters():
        assert parameter.dtype == torch.bfloat16
        assert torch.equal(parameter.detach(), wanted[name].bfloat16()), name


def test_whole_differences_of_weights_and_biases_are_added(tmp_path: Path) -> None:
    tiny = network()
    wanted = by_hand(snapshot(tiny), 0.5)
    generator = torch.Generator().manual_seed(3)
    extra = {
        "diffusion_model.blocks.0.norm3.diff": ("layers.norm.weight", 7),
        "diffusion_model.blocks.0.norm3.diff_b": ("layers.norm.bias", 7),
        "diffusion_model.blocks.0.ffn.0.diff_b": ("layers.inner.bias", 7),
    }
    tensors = tensors_of("original")
    for key, (name, size) in extra.items():
        tensors[key] = torch.randn(size, generator=generator)
        wanted[name] += 0.5 * tensors[key]
    lora = read_lora(write(tmp_path, tensors), KEYS)
    merge_loras(weights_of(tiny), [(lora, 0.5)])
    assert_equal(tiny, wanted)


# Alpha beside the tensors.


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_alpha_of_the_metadata_counts_for_layers_without_one(tmp_path: Path, prefix: str) -> None:
    settings = {f"{prefix}lora_alpha": 3, f"{prefix}use_dora": False, f"{prefix}alpha_pattern": {}}
    metadata = {"lora_adapter_metadata": json.dumps(settings)}
    path = write(tmp_path, tensors_of("diffusers"), metadata)
    tiny = network()
    wanted = by_hand(snapshot(tiny), 3 / RANK)
    merge_loras(weights_of(tiny), [(read_lora(path, KEYS), 1.0)])
    assert_equal(tiny, wanted)
    own = write(tmp_path, tensors_of("diffusers", alpha=0.5), metadata)
    strengths = {layer.strength for layer in read_lora(own, KEYS).layers.values()}
    assert strengths == {0.5 / RANK}


def test_alpha_of_pefts_file_counts_for_the_peft_layout_only(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 8, "r": 2}')
    for layout, strength in (("peft", 8 / RANK), ("bare", 1.0)):
        lora = read_lora(write(tmp_path, tensors_of(layout)), KEYS)
        assert {layer.strength for layer in lora.layers.values()} == {strength}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "needs use_dora"),
        ({"use_rslora": True, "lora_alpha": 1}, "needs use_rslora"),
        ({"alpha_pattern": {"q": 1}}, "needs alpha_pattern"),
        ({"lora_alpha": "many"}, "lora_alpha 'many' is not a number"),
        ([1], "not a table"),
    ],
)
def test_settings_that_are_not_known_are_refused(
    tmp_path: Path, settings: object, message: str
) -> None:
    metadata = {"lora_adapter_metadata": json.dumps(settings)}
    path = write(tmp_path, tensors_of("diffusers"), metadata)
    with pytest.raises(WeightsError, match=message):
        read_lora(path, KEYS)


# Names.


def test_every_tensor_must_belong_to_a_layer(tmp_path: Path) -> None:
    tensors = tensors_of("original")
    tensors["diffusion_model.blocks.9.self_attn.q.lora_down.weight"] = torch.ones(2, 6)
    with pytest.raises(WeightsError) as caught:
        read_lora(write(tmp_path, tensors), KEYS)
    assert str(caught.value) == (
        "style.safetensors does not fit this network: 1 of 7 tensors belong to no layer of it"
        " ('diffusion_model.blocks.9.self_attn.q.lora_down.weight')"
    )


@pytest.mark.parametrize(
    "key",
    [
        "blocks.0.self_attn.q.weight",
        "blocks.0.self_attn.q.dora_scale",
        "blocks.0.self_attn.q.lora_magnitude_vector.weight",
        "blocks.0.self_attn.q.lora_B.bias",
        "blocks.0.self_attn.q.lora_A",
        "lora_te_blocks_0_self_attn_q.lora_down.weight",
        "transformer_2.blocks.0.self_attn.q.lora_A.weight",
        ".lora_A.weight",
    ],
)
def test_name_that_is_none_of_the_layouts_is_refused(tmp_path: Path, key: str) -> None:
    path = write(tmp_path, {**tensors_of("bare"), key: torch.ones(2, 6)})
    with pytest.raises(WeightsError, match="1 of 7 tensors belong to no layer"):
        read_lora(path, KEYS)


def test_two_names_of_one_tensor_are_refused(tmp_path: Path) -> None:
    tensors = tensors_of("bare")
    tensors["transformer.blocks.0.ffn.0.lora_down.weight"] = torch.ones(RANK, 5)
    with pytest.raises(WeightsError, match="mean the same"):
        read_lora(write(tmp_path, tensors), KEYS)


def test_underscored_name_of_two_layers_is_not_guessed() -> None:
    key_map: KeyMap = layer_map({"a.b_c": "first", "a_b.c": "second", "d.e": "third"})
    assert [key_map(name) for name in ("a.b_c", "a_b.c", "a_b_c", "d_e", "d-e")] == [
        "first",
        "second",
        None,
        "third",
        None,
    ]


# Tensors.


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("blocks.0.ffn.0.lora_A.weight", None, "has no down factor"),
        ("blocks.0.ffn.0.lora_B.weight", None, "has no up factor"),
        ("blocks.0.ffn.0.lora_B.weight", torch.ones(7, 3), r"\(7, 3\) and \(2, 5\) that cannot"),
        ("blocks.0.ffn.0.lora_B.weight", torch.ones(7), r"\(7,\) and \(2, 5\) that cannot"),
        ("blocks.0.ffn.0.lora_A.weight", torch.ones(2), r"and \(2,\) that cannot"),
        ("blocks.0.ffn.0.lora_B.weight", torch.ones(7, 2, 3), r"\(7, 2, 3\) and"),
        ("blocks.0.ffn.0.alpha", torch.ones(2), r"an alpha of shape \(2,\)"),
        ("blocks.0.ffn.0.alpha", torch.tensor(math.nan), "not finite"),
        ("blocks.0.ffn.0.lora_A.weight", torch.full((2, 5), math.inf), "not finite"),
        ("blocks.0.ffn.0.alpha", torch.tensor(2), "is torch.int64"),
    ],
)
def test_factors_that_do_not_fit_are_refused_by_name(
    tmp_path: Path, key: str, value: Tensor | None, message: str
) -> None:
    tensors = tensors_of("bare")
    tensors.pop(key, None)
    if value is not None:
        tensors[key] = value
    with pytest.raises(WeightsError, match=message):
        read_lora(write(tmp_path, tensors), KEYS)


def test_lora_of_another_size_changes_no_weight_at_all(tmp_path: Path) -> None:
    tiny = network()
    base = snapshot(tiny)
    good = read_lora(write(tmp_path / "1", tensors_of("bare")), KEYS)
    tensors = tensors_of("bare")
    tensors["blocks.0.ffn.0.lora_A.weight"] = torch.ones(RANK, 6)
    larger = read_lora(write(tmp_path / "2", tensors), KEYS)
    with pytest.raises(WeightsError, match=r"'layers.inner.weight' is \(7, 6\), .* \(7, 5\)"):
        merge_loras(weights_of(tiny), [(good, 1.0), (larger, 1.0)])
    elsewhere = read_lora(write(tmp_path / "3", tensors_of("bare")), lambda layer: f"x.{layer}")
    with pytest.raises(WeightsError, match=r"the network has no 'x.blocks.0.ffn.0.weight'"):
        merge_loras(weights_of(tiny), [(good, 1.0), (elsewhere, 1.0)])
    for name, parameter in tiny.named_parameters():
        assert torch.equal(parameter, base[name])


@pytest.mark.parametrize("name", ["style.pt", "style.bin", "style.safetensors"])
def test_pickled_lora_is_refused_under_any_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(pickle.dumps({"x": [1.0] * 100}))
    with pytest.raises(WeightsError, match=rf"{name} is .*not a safetensors file") as caught:
        read_lora(tmp_path / name, KEYS)
    assert "only .safetensors files are opened" in caught.value.hint


def test_missing_and_empty_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"style.safetensors is missing in"):
        read_lora(tmp_path / "style.safetensors", KEYS)
    with pytest.raises(WeightsError, match="holds no tensor"):
        read_lora(write(tmp_path, {}), KEYS)


# The option's text.


@pytest.mark.parametrize(
    ("text", "path", "scale"),
    [
        ("style.safetensors", "style.safetensors", 1.0),
        ("style.safetensors:0.8", "style.safetensors", 0.8),
        ("a b/style.safetensors:-1", "a b/style.safetensors", -1.0),
        ("style:2e-1", "style", 0.2),
        ("C:\\style.safetensors", "C:\\style.safetensors", 1.0),
        ("C:\\style.safetensors:0.5", "C:\\style.safetensors", 0.5),
        ("a:b/style", "a:b/style", 1.0),
    ],
)
def test_path_and_scale_are_split_at_a_last_number(text: str, path: str, scale: float) -> None:
    assert parse_lora(text) == (Path(path), scale)


@pytest.mark.parametrize(
    "text", ["", ":0.5", "style.safetensors:nan", "x:inf", "x.safetensors:o.8"]
)
def test_scale_that_is_no_number_is_refused_with_what_to_type(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_lora(text)
    assert "--lora PATH:SCALE" in caught.value.hint
