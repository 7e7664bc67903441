"""A model folder loads strictly or not at all, comes back bit for bit, and is saved atomically."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from file_faults import count_file_operations, die_at, fail_from, file_operations, in_child
from safetensors.torch import load_file, save_file
from tiny_folders import (
    PARTS,
    assert_loads_as,
    changed,
    model_folder,
    save_tiny,
    tiny_config,
    tiny_modules,
    tiny_states,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from streamdit_model.errors import ConfigError, DeviceError, WeightsError
from streamdit_model.sampling import Window
from streamdit_model.text import TextEncoder
from streamdit_model.transformer import FrameText, StreamDiT
from streamdit_model.weights import ModelConfig, describe, load, meta_modules, read_config, save

__all__ = ["model_folder"]  # a fixture for the tests here


# Round trips.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("max_shard_bytes", [10**9, 2000])
def test_model_comes_back_bit_for_bit(
    tmp_path: Path, dtype: torch.dtype, max_shard_bytes: int
) -> None:
    folder = save_tiny(tmp_path / "m", dtype=dtype, max_shard_bytes=max_shard_bytes)
    assert_loads_as(folder, 0)
    assert read_config(folder) == tiny_config()
    assert (folder / "transformer.safetensors.index.json").exists() == (max_shard_bytes == 2000)


def test_float16_files_are_read(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m", dtype=torch.float16)
    assert set(describe(folder)["dtypes"]) == {"float16"}
    assert load(folder).transformer.head.weight.dtype == torch.float32
    assert_loads_as(folder, 0)  # eight bits of mantissa near 1 are exact in float16 too


def test_shards_are_not_larger_than_asked_and_hold_everything_once(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m", max_shard_bytes=1500)
    index = json.loads((folder / "transformer.safetensors.index.json").read_text())
    shards = sorted(folder.glob("transformer-*.safetensors"))
    assert len(shards) > 1 and {p.name for p in shards} == set(index["weight_map"].values())
    names: list[str] = []
    for shard in shards:
        tensors = load_file(shard)
        names += tensors
        assert len(tensors) == 1 or sum(t.nbytes for t in tensors.values()) <= 1500
    assert sorted(names) == sorted(tiny_states()["transformer"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_loaded_model_computes_what_the_saved_one_did(
    model_folder: Path, dtype: torch.dtype
) -> None:
    model = load(model_folder, dtype=dtype)
    config, states = tiny_config(), tiny_states()
    own = StreamDiT(config.transformer).to(dtype)
    own.load_state_dict(states["transformer"])
    text = TextEncoder(config.text).to(dtype)
    text.load_state_dict(states["text"])
    latents = torch.randn(1, 2, 4, 2, 4, generator=torch.Generator().manual_seed(1))
    tau = torch.tensor([[0.5, 0.5, 0.0, 0.0]])
    slots = torch.arange(4)
    with torch.no_grad():
        keys = own.text_keys(text.encode(["a star"]))
        expected = own(latents.to(dtype), tau, slots, FrameText(keys, torch.zeros(1).long()))
        keys = model.transformer.text_keys(model.text_encoder.encode(["a star"]))
        frame_text = FrameText(keys, torch.zeros(1).long())
        window = Window(latents=latents, tau=tau, slots=slots, first_frame=0, text=frame_text)
        found = model.velocity(window)
    assert found.dtype == torch.float32 and found.shape == latents.shape
    assert torch.equal(found, expected.float())
    assert bool(found.abs().max() > 0)


def test_loaded_model_is_in_evaluation_without_gradients(model_folder: Path) -> None:
    state = torch.random.get_rng_state()
    model = load(model_folder)
    assert torch.equal(torch.random.get_rng_state(), state)
    for part in (model.transformer, model.autoencoder, model.text_encoder):
        assert not part.training
        for name, parameter in part.named_parameters():
            assert not parameter.requires_grad and parameter.device.type == "cpu", name


def test_loaded_model_outlives_its_files(model_folder: Path) -> None:
    def load_and_cut() -> None:
        model = load(model_folder, dtype=torch.bfloat16)  # as in the files: nothing to convert
        for path in model_folder.iterdir():
            os.truncate(path, 0)
        for part in (model.transformer, model.autoencoder, model.text_encoder):
            assert all(bool(value.isfinite().all()) for value in part.state_dict().values())

    assert in_child(load_and_cut) == 0


class Recorder(TorchDispatchMode):
    """Notes the name of every operation."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


def test_loading_draws_nothing() -> None:
    # A draw on the meta device imports the compiler, seconds before the first frame.
    with Recorder() as recorder:
        modules = meta_modules(tiny_config())
    assert not [name for name in recorder.names if "normal" in name or "uniform" in name]
    tensors = [tensor for module in modules.values() for tensor in module.state_dict().values()]
    assert tensors and all(tensor.is_meta for tensor in tensors)


def test_saving_gives_readable_files_and_the_card(tmp_path: Path) -> None:
    folder = tmp_path / "m"

    def save_with_mask() -> None:
        os.umask(0o022)
        save_tiny(folder, card="# tiny\n")

    assert in_child(save_with_mask) == 0
    files = {path.name: oct(path.stat().st_mode & 0o777) for path in folder.iterdir()}
    names = {"README.md", "config.json", *(f"{part}.safetensors" for part in PARTS)}
    assert files == dict.fromkeys(names, "0o644")
    assert (folder / "README.md").read_text() == "# tiny\n"


def test_saving_replaces_a_model_but_no_other_folder(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m", seed=1, max_shard_bytes=1500)
    save_tiny(folder, seed=2)
    assert_loads_as(folder, 2)
    assert not list(folder.glob("*-of-*"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(WeightsError, match="not empty and holds no model"):
        save_tiny(tmp_path / "mine")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "mine"]


def test_describe_counts_without_reading_tensors(model_folder: Path) -> None:
    facts = describe(model_folder)
    counts = {p: sum(x.numel() for x in m.parameters()) for p, m in tiny_modules().items()}
    assert facts["parameters"] == {**counts, "total": sum(counts.values())}
    values = sum(t.numel() for state in tiny_states().values() for t in state.values())
    assert facts["bytes"]["total"] == 2 * values
    assert facts["dtypes"] == ["bfloat16"] and facts["name"] == "tiny"
    assert ModelConfig.from_dict(facts["config"]) == tiny_config()
    assert json.loads(json.dumps(facts)) == facts


# Strictness of config.json.


def test_configuration_survives_json() -> None:
    config = tiny_config()
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("widht", 1, "unknown key 'widht'; did you mean width"),
        ("transformer.num_head", 1, "transformer.num_head'; did you mean num_heads"),
        ("partition.zzzzzz", 1, "allowed are num_reference"),
        ("height", 16.0, "height is 16.0; it must be a whole number"),
        ("height", "16", "height is '16'; it must be a whole number"),
        ("height", True, "height is true; it must be a whole number"),
        ("height", 2**40, "of at most 1048576"),
        ("fps", "fast", "fps is 'fast'; it must be a finite number"),
        ("fps", float("nan"), "fps is nan; it must be a finite number"),
        ("fps", 0, "fps 0.0 is not in 0.001 to 240"),
        ("distilled", 1, "distilled is 1; it must be true or false"),
        ("distilled", True, "guidance_scale 3.0 of a distilled model is not 1"),
        ("start", "jump", "it must be 'ramp' or 'clip'"),
        ("strength", 1.5, "strength 1.5 is not in 0 to 1"),
        ("name", "Tiny/..", "name 'Tiny/..'"),
        ("name", "tiny\x1b[31m", r"tiny\\x1b"),
        ("text", None, "text is null; it must be a table"),
        ("text", [1], "text is a list; it must be a table"),
        ("transformer.grid", 4, "transformer.grid is 4; it must be a list"),
        ("transformer.grid", [4, 2], "transformer.grid has 2 entries; it must have 3"),
        ("transformer.grid", [4, 2, 4.5], r"transformer.grid\[2\] is 4.5"),
        ("transformer.grid", [4, 2, 8], r"transformer.grid \(4, 2, 8\) is not \(4, 2, 4\)"),
        ("transformer.mask_wrapped", 1, "true or false or 'time'"),
        ("transformer.window", "all", "transformer.window is 'all'; it must be a list"),
        ("transformer.num_heads", 3, "transformer: width 8 is not a multiple of num_heads 3"),
        ("transformer.latent_channels", 3, "latent_channels 3 is not 2"),
        ("transformer.text_width", 9, "text_width 9 is not 8 of text.width"),
        ("autoencoder.widths", [4] * 257, "has 257 entries, at most 256"),
        ("autoencoder.widths", [4, 4], "autoencoder: 2 stages"),
        ("partition.num_chunks", 0, "partition: num_chunks 0"),
        ("format", "streamdit-model-2", "streamdit-model-1"),
    ],
)
def test_configuration_value_that_does_not_fit_is_refused_by_name(
    path: str, value: object, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig.from_dict(changed(path, value))


@pytest.mark.parametrize("path", ["fps", "transformer.width", "partition.num_chunks", "format"])
def test_missing_key_is_named(path: str) -> None:
    table = tiny_config().to_dict()
    *outer, last = path.split(".")
    del (table[outer[0]] if outer else table)[last]
    with pytest.raises(ConfigError, match=f"{path} is missing|streamdit-model-1"):
        ModelConfig.from_dict(table)


def test_whole_number_serves_as_a_float_and_null_as_no_window() -> None:
    config = ModelConfig.from_dict(changed("fps", 24))
    assert config.fps == 24.0 and type(config.fps) is float
    assert ModelConfig.from_dict(changed("transformer.window", None)).transformer.window is None


# Strictness of tensors.


def rewrite(path: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = {name: value.clone() for name, value in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)


def rename_one(tensors: dict[str, Tensor]) -> None:
    tensors["head.weihgt"] = tensors.pop("head.weight")


def add_one(tensors: dict[str, Tensor]) -> None:
    tensors["\x1b[31mextra"] = torch.zeros(1)


def turn_one(tensors: dict[str, Tensor]) -> None:
    tensors["modulation.weight"] = tensors["modulation.weight"].T.contiguous()


def make_integer(tensors: dict[str, Tensor]) -> None:
    tensors["head.bias"] = tensors["head.bias"].to(torch.int64)


def make_double(tensors: dict[str, Tensor]) -> None:
    tensors["head.bias"] = tensors["head.bias"].double()


def make_nan(tensors: dict[str, Tensor]) -> None:
    tensors["head.bias"][3] = float("nan")


def make_infinite(tensors: dict[str, Tensor]) -> None:
    tensors["head.bias"][0] = -float("inf")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename_one, "'head.weight' is missing; 'head.weihgt' is unknown"),
        (add_one, r"'\\x1b\[31mextra' is unknown"),
        (turn_one, r"'modulation.weight' is \(8, 48\), expected \(48, 8\)"),
        (make_integer, r"'head.bias' is torch.int64, expected torch.float32"),
        (make_double, r"'head.bias' is torch.float64, expected torch.float32"),
        (make_nan, "'head.bias' holds values that are not finite"),
        (make_infinite, "'head.bias' holds values that are not finite"),
        (dict.clear, "transformer .* has 0 tensors"),
    ],
)
def test_tensor_that_does_not_fit_is_named(
    model_folder: Path, change: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    rewrite(model_folder / "transformer.safetensors", change)
    with pytest.raises(WeightsError, match=message) as raised:
        load(model_folder)
    assert "\x1b" not in str(raised.value)


def test_only_the_first_few_problems_are_listed(model_folder: Path) -> None:
    (model_folder / "config.json").write_text(json.dumps(changed("transformer.depth", 5)))
    with pytest.raises(WeightsError, match=r"and [0-9]+ more") as raised:
        load(model_folder)
    assert len(str(raised.value)) < 600 and "same training run" in raised.value.hint


@pytest.mark.parametrize("part", [0, 1, 2])
def test_state_that_does_not_fit_is_never_written(tmp_path: Path, part: int) -> None:
    states = tiny_states()
    states[PARTS[part]].popitem()
    with pytest.raises(WeightsError, match=f"{PARTS[part]} state does not fit"):
        save(tmp_path / "m", tiny_config(), *(states[name] for name in PARTS))
    states = tiny_states()
    next(iter(states[PARTS[part]].values())).view(-1)[0] = float("nan")
    with pytest.raises(WeightsError, match="not finite"):
        save(tmp_path / "m", tiny_config(), *(states[name] for name in PARTS))
    assert list(tmp_path.iterdir()) == []


def test_value_beyond_float16_is_refused_when_saving_float16(tmp_path: Path) -> None:
    states = tiny_states()
    states["text"]["norm.weight"][0] = 1e6
    with pytest.raises(WeightsError, match=r"'norm\.weight' holds values that are not"):
        save(tmp_path / "m", tiny_config(), *(states[p] for p in PARTS), dtype=torch.float16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.int8])
def test_dtype_that_models_do_not_run_in_is_refused(model_folder: Path, dtype: torch.dtype) -> None:
    with pytest.raises(ConfigError, match=f"dtype {dtype}"):
        load(model_folder, dtype=dtype)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_device_is_a_device_error(model_folder: Path) -> None:
    with pytest.raises(DeviceError, match="no CUDA GPU"):
        load(model_folder, device="cuda")
    with pytest.raises(DeviceError, match="'teapot' is not a device"):
        load(model_folder, device="teapot")


# Atomic saving.


Files = dict[str, bytes]


def files_of(folder: Path) -> Files | None:
    if not folder.exists():
        return None
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def old_and_new(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Files, Files]:
    """Return the folder of an old model, its files, and those of the model that replaces it."""
    folder = tmp_path_factory.mktemp("models")
    old, new = save_tiny(folder / "old", seed=1), save_tiny(folder / "new", seed=2)
    old_files, new_files = files_of(old), files_of(new)
    assert old_files is not None and new_files is not None and old_files != new_files
    assert_loads_as(old, 1)
    assert_loads_as(new, 2)
    return old, old_files, new_files


def save_new(folder: Path) -> None:
    save_tiny(folder, seed=2)


def count_replacement(old: Path, folder: Path) -> list[str]:
    shutil.copytree(old, folder)
    names = count_file_operations(lambda: save_new(folder))
    assert names.count("rename") == 2 and len(names) >= 20
    return names


def assert_next_save_is_whole(folder: Path, new: Files) -> None:
    save_new(folder)
    assert files_of(folder) == new
    assert [path.name for path in folder.parent.iterdir()] == ["m"]


def test_full_disk_at_any_file_operation_keeps_the_old_model(
    tmp_path: Path, old_and_new: tuple[Path, Files, Files]
) -> None:
    old, old_files, new_files = old_and_new
    for number in range(1, len(count_replacement(old, tmp_path / "count")) + 1):
        folder = tmp_path / str(number) / "m"
        shutil.copytree(old, folder)
        failed = False
        with file_operations(fail_from(number, once=True)):
            try:
                save_new(folder)
            except OSError as error:
                assert error.errno == errno.ENOSPC
                failed = True
        assert files_of(folder) in ((old_files, new_files) if failed else (new_files,))
        assert_next_save_is_whole(folder, new_files)


def test_death_at_any_file_operation_leaves_a_whole_model(
    tmp_path: Path, old_and_new: tuple[Path, Files, Files]
) -> None:
    old, old_files, new_files = old_and_new
    seen: list[str] = []
    for number in range(1, len(count_replacement(old, tmp_path / "count")) + 1):
        folder = tmp_path / str(number) / "m"
        shutil.copytree(old, folder)

        def save_and_die(folder: Path = folder, number: int = number) -> None:
            with file_operations(die_at(number)):
                save_new(folder)

        assert in_child(save_and_die) == 77
        found = files_of(folder)
        assert found in (None, old_files, new_files)
        seen.append("none" if found is None else "old" if found == old_files else "new")
        if found is None:  # between the two renames: the next save puts the old one back first
            with file_operations(fail_from(4, once=False)), pytest.raises(OSError, match="space"):
                save_new(folder)
            assert files_of(folder) == old_files
        assert_next_save_is_whole(folder, new_files)
    assert seen == sorted(seen, key=["old", "none", "new"].index)
    assert seen.count("none") == 1 and seen[0] == "old" and seen[-1] == "new"
