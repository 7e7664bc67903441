"""Claim: open weights go from published files to a video, and the stream is the one of the paper.

All networks here are tiny; their layouts, the loader, the stream and the command line are real.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_open import (
    REPO,
    pin_checkpoint,
    tiny_config,
    tiny_open,
    write_checkpoint,
    write_tensors,
    written_preset,
)
from tiny_streams import frames_of
from torch import Tensor, nn

import streamdit_cli
from streamdit_cli import presets
from streamdit_cli.app import main
from streamdit_cli.model_source import find_source
from streamdit_cli.open_weights import OpenModel, open_config
from streamdit_cli.video import probe
from streamdit_model.buffer import StreamBuffer
from streamdit_model.errors import ConfigError, WeightsError
from streamdit_model.flow_matching import keyed_noise
from streamdit_model.frame_text import FrameText
from streamdit_model.partition import Partition
from streamdit_model.prompt_timeline import PromptEvent
from streamdit_model.sampling import Window, cycle, warm_up
from streamdit_model.stream import Stream
from streamdit_model.stream_stages import chunks_of, first_frame_of
from streamdit_model.stream_state import StreamState, is_light
from streamdit_model.wan import loading
from streamdit_model.wan.model import WanModel
from streamdit_model.wan.rolling import RollingVelocity
from streamdit_model.wan.text import WanTextEncoder, load_text_encoder
from streamdit_model.wan.transformer import WanTransformer
from streamdit_model.wan.unipc import UniPCStepper

FIRST, LATER = 9, 12  # video frames of a chunk of three latent frames


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of presets and an empty cache."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "STREAMDIT_MODEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(presets, "_presets_folder", lambda: tmp_path / "presets")
    (tmp_path / "presets").mkdir()
    return tmp_path


@pytest.fixture(scope="module")
def rolling(tmp_path_factory: pytest.TempPathFactory) -> WanModel:
    return tiny_open(tmp_path_factory.mktemp("rolling"))


@pytest.fixture(scope="module")
def guided(tmp_path_factory: pytest.TempPathFactory) -> WanModel:
    return tiny_open(tmp_path_factory.mktemp("guided"), "guided")


def chunks(model: WanModel, num_frames: int, *, prompt: Any = "a cat", **how: Any) -> Any:
    with Stream(
        model, prompt, **{"seed": 3, "num_frames": num_frames, "synchronous": True, **how}
    ) as stream:
        return list(stream)


def made(model: WanModel, num_frames: int, **how: Any) -> Tensor:
    return frames_of(chunks(model, num_frames, **how))


def checkpoint(folder: Path, layout: str = "diffusers", **how: Any) -> Path:
    """Put a tiny checkpoint into the cache, verified, with its preset `tiny`."""
    pytest.importorskip("transformers")
    found = write_checkpoint(folder / "home" / "hub", folder / "presets", "tiny", layout, **how)
    assert main(["models", "pull", "tiny", "--offline", "--quiet"]) == 0
    return found


def loaded(**how: Any) -> WanModel:
    source = find_source("tiny", **how)
    assert isinstance(source, OpenModel)
    where = {"device": "cpu", "dtype": "float32", "threads": None}
    return source.load(prompts=["a cat"], size=None, **where)


# Frames.


def test_first_chunk_is_three_frames_shorter_and_times_say_so(rolling: WanModel) -> None:
    found = chunks(rolling, 50)
    assert [len(chunk.frames) for chunk in found] == [FIRST, LATER, LATER, LATER, 5]
    firsts = [0, 9, 21, 33, 45]
    assert [chunk.first_frame for chunk in found] == firsts
    assert [chunk.seconds for chunk in found] == [frame / 16 for frame in firsts]
    assert found[0].frames.shape[1:] == (32, 32, 3)


@pytest.mark.parametrize("num_frames", [1, 8, 9, 10, 21, 22])
def test_a_stream_runs_no_chunk_more_than_its_frames_need(
    rolling: WanModel, num_frames: int
) -> None:
    needed = chunks_of(rolling, num_frames)
    assert first_frame_of(rolling, needed - 1) < num_frames <= first_frame_of(rolling, needed)
    found = chunks(rolling, num_frames)
    assert len(found) == needed
    assert sum(len(chunk.frames) for chunk in found) == num_frames


def test_frames_do_not_depend_on_the_length_nor_on_threads(rolling: WanModel) -> None:
    long = made(rolling, 45)
    assert torch.equal(made(rolling, 15), long[:15])
    assert torch.equal(made(rolling, 45, synchronous=False), long)
    assert not torch.equal(made(rolling, 15, seed=4), long[:15])


def test_two_streams_of_a_model_share_no_context(rolling: WanModel) -> None:
    alone = made(rolling, 33)
    how = {"seed": 3, "num_frames": 33, "synchronous": True}
    with Stream(rolling, "a cat", **how) as one, Stream(rolling, "a dog", **how) as other:
        pairs = list(zip(one, other, strict=True))
    assert torch.equal(frames_of(pair[0] for pair in pairs), alone)
    assert not torch.equal(frames_of(pair[1] for pair in pairs), alone)


@torch.no_grad()
def test_stream_equals_a_straight_line_run_of_the_rolling_velocity(rolling: WanModel) -> None:
    config = rolling.config
    assert config.context is not None
    velocity = RollingVelocity(rolling.transformer, config.context)
    keys = rolling.transformer.text_keys(rolling.text_encoder.encode(["a cat"]))
    text = FrameText(keys, torch.zeros(1, dtype=torch.long))
    buffer = StreamBuffer(config.partition, 1, *config.frame_shape)
    noise = keyed_noise([3], *config.frame_shape)

    def text_of(first_frame: int, num_frames: int, micro_step: int) -> FrameText:
        return text

    warm_up(buffer, velocity, noise, text_of, "ramp", "renoise")
    latents = [cycle(buffer, velocity, noise, text_of, "renoise") for _ in range(9)]
    video = rolling.autoencoder.decode(torch.cat(latents, dim=2))[0]
    whole = (video.clamp(0, 1) * 255).permute(1, 2, 3, 0)
    found = made(rolling, len(whole)).float()
    assert len(whole) == FIRST + 8 * LATER and float(found.std()) > 1
    # Half a level is the rounding to bytes; the rest is the decoder's float32, chunk by chunk.
    assert float((found - whole).abs().max()) < 0.51


# Prompts.


def test_scripted_prompt_applies_at_the_chunk_that_starts_at_or_after_its_time(
    rolling: WanModel,
) -> None:
    plain = made(rolling, 57)
    events = [PromptEvent("a cat"), PromptEvent("a dog", 22 / 16)]  # one frame into chunk 2
    found = chunks(rolling, 57, prompt=events)
    receipts = {chunk.number: chunk.receipts for chunk in found if chunk.number}
    applied = [r for rest in receipts.values() for r in rest if r.kind == "applied"]
    assert [(r.chunk, r.seconds) for r in applied] == [(3, 33 / 16)]
    switched = frames_of(found)
    assert torch.equal(switched[:33], plain[:33])
    assert not torch.equal(switched[33:45], plain[33:45])
    assert [chunk.prompt for chunk in found] == ["a cat"] * 3 + ["a dog"] * 2


def test_prompt_on_the_first_frame_of_a_chunk_applies_to_it(rolling: WanModel) -> None:
    events = [PromptEvent("a cat"), PromptEvent("a dog", 9 / 16)]
    found = chunks(rolling, 21, prompt=events)
    assert [(r.event.prompt, r.chunk) for r in found[1].receipts if r.kind == "applied"] == [
        ("a dog", 1)
    ]


# Guidance and many steps.


def test_guided_model_takes_scale_and_negative_prompt(guided: WanModel) -> None:
    plain = made(guided, 13)
    assert torch.equal(made(guided, 13, guidance_scale=3.0), plain)
    assert not torch.equal(made(guided, 13, guidance_scale=1.0), plain)
    assert not torch.equal(made(guided, 13, negative_prompt="blur"), plain)


def test_unipc_and_euler_take_other_ways(guided: WanModel) -> None:
    euler = replace(guided, config=replace(guided.config, stepper="euler"))
    assert not torch.equal(made(euler, 13), made(guided, 13))


def test_unipc_in_the_buffer_carries_each_frame_straight_to_its_data() -> None:
    """Where the clean estimate of a frame never changes, every step of any order is exact."""
    partition = Partition(
        num_chunks=3, chunk_size=2, micro_steps=4, gamma="shift", gamma_parameter=8.0
    )
    buffer = StreamBuffer(partition, 1, 1, 1, 1)
    stepper = UniPCStepper(partition)

    def clean_of(first_frame: int, frames: int) -> Tensor:
        numbers = torch.arange(first_frame, first_frame + frames) + 1.0
        return numbers.view(1, 1, -1, 1, 1)

    def velocity(window: Window) -> Tensor:
        clean = clean_of(window.first_frame, window.latents.shape[2])
        return (clean - window.latents) / (1 - window.tau)[:, None, :, None, None]

    how = (keyed_noise([3], 1, 1, 1), lambda first, frames, step: None)
    warm_up(buffer, velocity, *how, stepper=stepper)
    for chunk in range(4):
        emitted = cycle(buffer, velocity, *how, stepper=stepper)
        torch.testing.assert_close(emitted, clean_of(2 * chunk, 2), rtol=1e-4, atol=1e-4)


# States.


def test_guided_stream_resumes_exactly_with_its_history(guided: WanModel) -> None:
    whole = made(guided, 29)
    with Stream(guided, "a cat", seed=3, num_frames=29, synchronous=True) as stream:
        begun = frames_of([next(stream), next(stream)])
        state = stream.state()
    with Stream.resume(guided, state, synchronous=True) as stream:
        rest = frames_of(stream)
    assert torch.equal(torch.cat([begun, rest]), whole)


def interrupted(
    model: WanModel, num_chunks: int, *, full_states: bool
) -> tuple[Tensor, StreamState]:
    """Return the frames of some chunks of a stream, and its state after them."""
    with Stream(
        model, "a cat", seed=3, num_frames=129, synchronous=True, full_states=full_states
    ) as stream:
        return frames_of([next(stream) for _ in range(num_chunks)]), stream.state()


@pytest.mark.parametrize(("num_chunks", "full_states"), [(2, False), (9, True)])
def test_rolling_stream_resumes_exactly_from_what_its_context_was_made_of(
    rolling: WanModel, num_chunks: int, full_states: bool
) -> None:
    """After two chunks none has left the context, and rebuilding gives what was there."""
    begun, state = interrupted(rolling, num_chunks, full_states=full_states)
    assert not is_light(state[1])
    with Stream.resume(rolling, state, synchronous=True) as stream:
        rest = frames_of(stream)
    assert torch.equal(torch.cat([begun, rest]), made(rolling, 129))


def test_rolling_stream_resumes_with_a_rebuilt_context_only_when_that_is_accepted(
    rolling: WanModel,
) -> None:
    begun, state = interrupted(rolling, 9, full_states=False)
    assert is_light(state[1])
    with pytest.raises(ConfigError, match="rebuilt"):
        Stream.resume(rolling, state, synchronous=True)
    with Stream.resume(rolling, state, synchronous=True, exact=False) as stream:
        rest = frames_of(stream)
    assert len(begun) + len(rest) == 129


def test_full_state_knows_the_prompt_its_context_was_made_under(rolling: WanModel) -> None:
    """A prompt that changes just after the state rebuilds the context, resumed or not."""
    prompts = [PromptEvent("a cat"), PromptEvent("a dog", 108 / rolling.config.fps)]
    how = {"seed": 3, "num_frames": 153, "synchronous": True}
    with Stream(rolling, prompts, **how) as stream:
        whole = frames_of(stream)
    for num_chunks in (8, 9, 10):
        with Stream(rolling, prompts, **how, full_states=True) as stream:
            begun = frames_of([next(stream) for _ in range(num_chunks)])
            state = stream.state()
        with Stream.resume(rolling, state, synchronous=True) as stream:
            assert torch.equal(torch.cat([begun, frames_of(stream)]), whole)


# Files.


@pytest.mark.parametrize("decoder", ["full", "small"])
def test_both_layouts_go_through_the_command_line_to_the_same_video(
    folder: Path, decoder: str
) -> None:
    videos = []
    for layout in ("original", "diffusers"):
        checkpoint(folder, layout)
        path = folder / f"{layout}.mp4"
        words = ["generate", "-m", "tiny", "-p", "a cat", "--seconds", "1", "--seed", "3"]
        words += ["--decoder", decoder, "--dtype", "float32", "-o", str(path), "--quiet"]
        assert main(words) == 0
        facts = probe(path)
        assert facts.num_frames == 16
        said = facts.record["weights"], facts.record["decoder"]
        assert said == (f"{REPO}@{'c' * 40}", decoder)
        videos.append(made(loaded(decoder=decoder), 21))
    assert torch.equal(*videos)
    assert len(list((folder / "home" / "streamdit" / "prompts").iterdir())) == 2


def test_guided_weights_with_an_embedding_of_fps_load_from_both_layouts(folder: Path) -> None:
    videos = []
    for layout in ("original", "diffusers"):
        checkpoint(folder, layout, sampler="guided")
        model = loaded()
        assert model.transformer.config.fps == 16
        videos.append(made(model, 13))
        assert not torch.equal(made(model, 13, guidance_scale=1.0), videos[-1])
    assert torch.equal(*videos)


def test_library_loads_open_weights_by_name_as_the_command_line_does(folder: Path) -> None:
    checkpoint(folder)
    model = streamdit_cli.load("tiny", device="cpu", dtype="float32")
    assert isinstance(model, WanModel)
    assert torch.equal(made(model, 9), made(loaded(), 9))


def test_text_encoder_is_freed_at_once_and_a_repeated_prompt_needs_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint(folder)
    encoders = []

    def load(*files: Any) -> WanTextEncoder:
        encoders.append(load_text_encoder(*files))
        return encoders[-1]

    monkeypatch.setattr(loading, "load_text_encoder", load)
    model = loaded()
    assert len(encoders) == 1
    with pytest.raises(WeightsError, match="was freed"):
        encoders[0].encode(["a cat"])
    first = made(model, 9)
    assert len(encoders) == 1

    def refuse(*files: object) -> None:
        raise AssertionError("the text encoder was loaded")

    monkeypatch.setattr(loading, "load_text_encoder", refuse)
    assert torch.equal(made(loaded(), 9), first)
    with pytest.raises(AssertionError, match="was loaded"):
        made(loaded(), 9, prompt="a dog")


Damage = Callable[[dict[str, Tensor]], None]
NETWORK = "net-00001-of-00002.safetensors"


def _missing(tensors: dict[str, Tensor]) -> None:
    del tensors[sorted(tensors)[0]]


def _unknown(tensors: dict[str, Tensor]) -> None:
    tensors["more.weight"] = torch.zeros(1)


def _reshaped(tensors: dict[str, Tensor]) -> None:
    name = sorted(tensors)[0]
    tensors[name] = tensors[name].flatten()[:2].clone()


def _not_finite(tensors: dict[str, Tensor]) -> None:
    tensors[sorted(tensors)[0]].fill_(float("nan"))


def _whole_numbers(tensors: dict[str, Tensor]) -> None:
    name = sorted(tensors)[0]
    tensors[name] = tensors[name].to(torch.int32)


@pytest.mark.parametrize("file", [NETWORK, "vae.safetensors", "text.safetensors"])
@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (_missing, "missing"),
        (_unknown, "unexpected"),
        (_reshaped, "expected"),
        (_not_finite, "not finite"),
        (_whole_numbers, "int32"),
    ],
)
def test_file_that_does_not_fit_is_refused(
    folder: Path, file: str, damage: Damage, part: str
) -> None:
    place = checkpoint(folder)
    tensors = load_file(place / file)
    damage(tensors)
    write_tensors(place / file, tensors)
    pin_checkpoint(place, folder / "presets", "tiny")
    assert main(["models", "pull", "tiny", "--offline", "--quiet"]) == 0
    with pytest.raises(WeightsError, match=part):
        loaded()


def test_tensor_in_two_files_is_refused(folder: Path) -> None:
    place = checkpoint(folder)
    one, other = (place / f"net-0000{n}-of-00002.safetensors" for n in (1, 2))
    tensors = load_file(one)
    name = sorted(tensors)[0]
    write_tensors(other, load_file(other) | {name: tensors[name]})
    pin_checkpoint(place, folder / "presets", "tiny")
    assert main(["models", "pull", "tiny", "--offline", "--quiet"]) == 0
    with pytest.raises(WeightsError, match="stands in both"):
        loaded()


def test_lora_on_the_command_line_equals_merged_weights(folder: Path) -> None:
    place = checkpoint(folder)
    plain = made(loaded(), 21)
    generator = torch.Generator().manual_seed(1)
    down, up = (torch.randn(s, generator=generator) for s in ((2, 24), (24, 2)))
    layer = "blocks.0.attn1.to_q"
    lora = folder / "style.safetensors"
    factors = {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}
    write_tensors(lora, {f"transformer.{name}": value for name, value in factors.items()})
    styled = made(loaded(loras=[f"{lora}:0.5"]), 21)
    files = {path: load_file(path) for path in place.glob("net-*.safetensors")}
    for path, tensors in files.items():
        if f"{layer}.weight" in tensors:
            tensors[f"{layer}.weight"] += 0.5 * up @ down
            write_tensors(path, tensors)
    pin_checkpoint(place, folder / "presets", "tiny")
    assert main(["models", "pull", "tiny", "--offline", "--quiet"]) == 0
    merged = made(loaded(), 21)
    assert not torch.equal(styled, plain)
    assert float((styled.float() - merged.float()).abs().max()) <= 1  # two roundings of a sum


# Random weights and the command line.


@pytest.mark.parametrize("decoder", ["full", "small"])
def test_random_weights_make_a_video_that_says_so(folder: Path, decoder: str) -> None:
    written_preset(folder / "presets", "tiny")
    words = ["generate", "-m", "tiny", "--random-weights", "-p", "x", "--seed", "1", "--quiet"]
    words += ["--size", "48x16", "--num-frames", "11", "--decoder", decoder]
    paths = [folder / f"{number}.mp4" for number in range(2)]
    for path in paths:
        assert main([*words, "-o", str(path)]) == 0
    facts = probe(paths[0])
    assert (facts.width, facts.height, facts.num_frames) == (48, 16, 11)
    assert facts.record["weights"] == "random" and facts.record["decoder"] == decoder
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_guidance_of_open_weights_is_encoded_and_noted(folder: Path) -> None:
    written_preset(folder / "presets", "tiny", sampler="guided")
    words = ["generate", "-m", "tiny", "--random-weights", "-p", "x", "--seed", "1", "--quiet"]
    words += ["--num-frames", "5", "--guidance-scale", "2", "-n", "blur"]
    assert main([*words, "-o", str(folder / "a.mp4")]) == 0
    record = probe(folder / "a.mp4").record
    assert (record["guidance_scale"], record["negative_prompt"]) == ("2", "blur")
    assert record["stepper"] == "unipc"


@pytest.mark.parametrize(
    ("more", "code", "part"),
    [
        (["--size", "40x32"], 2, "width 40 of tiny is not a multiple of 16"),
        (["--size", "32x8"], 2, "height 8 of tiny is not a multiple of 16"),
        (["--start", "clip"], 2, "--start clip does not fit tiny"),
        (["--guidance-scale", "2"], 2, "baked in"),
        (["--lora", "none.safetensors"], 5, "none.safetensors is not a file"),
        (["--lora", "a.safetensors:x"], 2, "is not a number"),
    ],
)
def test_option_that_does_not_fit_open_weights_is_refused_in_one_line(
    folder: Path, more: list[str], code: int, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    written_preset(folder / "presets", "tiny")
    path = folder / "out.mp4"
    words = ["generate", "-m", "tiny", "--random-weights", "-p", "x", "-o", str(path), "--quiet"]
    assert main([*words, *more]) == code
    errors = capsys.readouterr().err.strip().splitlines()
    assert part in errors[0]
    assert not path.exists()


@pytest.mark.parametrize(
    "option", [["--random-weights"], ["--decoder", "small"], ["--lora", "a.safetensors"]]
)
def test_option_of_open_weights_is_refused_by_a_model_of_our_own(
    tiny_model: Path, tmp_path: Path, option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out.mp4"
    assert main(["generate", "-m", str(tiny_model), "-p", "x", "-o", str(path), *option]) == 2
    assert f"{option[0]} is for open weights only" in capsys.readouterr().err
    assert not path.exists()


@pytest.mark.parametrize("more", [[], ["--random-weights"]])
def test_weights_for_training_are_refused_with_the_reason(
    more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "-m", "wan-1.3b", "-p", "x", "--quiet", *more]) == 2
    assert "one noise level for all frames" in capsys.readouterr().err


def test_open_weights_that_are_not_here_are_refused_with_what_to_type(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written_preset(folder / "presets", "tiny")
    assert main(["generate", "-m", "tiny", "-p", "x", "--quiet", "--offline"]) == 5
    assert "models pull tiny" in capsys.readouterr().err


# Shipped presets.


@pytest.fixture
def shipped() -> Iterator[list[dict[str, Any]]]:
    found = [presets.find_preset(name) for name in presets.preset_names()]
    yield [preset for preset in found if "sampler" in preset]


def test_shipped_presets_are_the_networks_they_say(shipped: list[dict[str, Any]]) -> None:
    assert len(shipped) == 4
    for preset in shipped:
        for decoder in ("full", "small"):
            config = open_config(preset, decoder=decoder)
            assert config.frame_shape[1:] == (config.height // 8, config.width // 8)
        with torch.device("meta"), loading.WithoutDraws():
            network: nn.Module = WanTransformer(config.transformer)
        counted = sum(parameter.numel() for parameter in network.parameters())
        assert counted == preset["network"]["parameters"]


def test_levels_of_the_shipped_rolling_presets_are_the_published_ones(
    shipped: list[dict[str, Any]],
) -> None:
    published = {
        "rolling-1.3b": [0, 0.0625, 0.166667, 0.375, 1],
        "rolling-forcing-1.3b": [0, 0.047619, 0.117647, 0.230769, 0.444444, 1],
    }
    configs = {preset["name"]: open_config(preset) for preset in shipped}
    for name, levels in published.items():
        table = configs[name].partition.gamma_table().tolist()
        assert table == pytest.approx(levels, abs=1e-6)
        assert configs[name].context is not None
    skyreels = configs["skyreels-df-1.3b"].partition.gamma_table()
    times = [int(1000 * (1 - tau)) for tau in skyreels.tolist()]
    assert (times[1], times[27:]) == (995, [470, 363, 216, 0])


@pytest.mark.parametrize(
    ("table", "key", "value", "part"),
    [
        ("network", "rope_theta", 5000.0, "rope_theta"),
        ("network", "eps", 1e-5, "eps"),
        ("network", "rope_axes", [6, 2, 4], "rope_axes"),
        ("sampler", "timesteps", [1000, 700, 500, 250], "evenly"),
        ("context", "working_frames", 3, "attended"),
        ("autoencoder", "space_factor", 16, "autoencoder"),
    ],
)
def test_preset_that_says_what_the_networks_do_not_do_is_refused(
    tmp_path: Path, table: str, key: str, value: object, part: str
) -> None:
    from streamdit_cli.errors import UsageError

    preset = written_preset(tmp_path, "tiny")
    open_config(preset)
    preset[table][key] = value
    with pytest.raises(UsageError, match=part):
        open_config(preset)


def test_context_and_guidance_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="guided"):
        replace(tiny_config(tmp_path), distilled=False, guidance_scale=2.0)
