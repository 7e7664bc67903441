"""Claim: a model of open weights is loaded in the largest way that fits, or refused with one."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from tiny_open import written_preset

from streamdit_cli import presets
from streamdit_cli.app import main
from streamdit_cli.errors import UsageError
from streamdit_cli.making import explained
from streamdit_cli.memory_plan import (
    Asked,
    MemoryPlan,
    Where,
    free_memory,
    look_around,
    plan_memory,
)
from streamdit_cli.open_options import parse_vram
from streamdit_cli.schema import check_preset
from streamdit_cli.video import probe
from streamdit_model.errors import DeviceError

STREAMING = ("rolling-1.3b", "rolling-forcing-1.3b", "skyreels-df-1.3b", "skyreels-df-14b")
CARD = "NVIDIA GeForce RTX 4090"


def planned(
    name: str = "rolling-1.3b",
    gigabytes: float | None = None,
    device: str = "cuda",
    has_text: bool = True,
    **asked: Any,
) -> MemoryPlan:
    """Plan a shipped preset on a device with so much free; no such device is needed."""
    room = None if gigabytes is None else round(gigabytes * 10**9)
    where = Where(device=torch.device(device), dtype=torch.bfloat16, name=CARD, room=room)
    preset = presets.find_preset(name)
    return plan_memory(preset, where, Asked(**asked), num_prompts=1, has_text=has_text)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", STREAMING)
def test_vram_chooses_the_largest_profile_of_such_a_card(name: str, device: str) -> None:
    for vram, chosen in ((8, 12), (12, 12), (15.9, 12), (16, 16), (24, 24), (80, 24)):
        plan = planned(name, vram, device, vram=vram)
        assert plan.profile["vram"] == chosen
        if vram >= 12 and device == "cuda":
            assert plan.fits


@pytest.mark.parametrize("name", STREAMING)
def test_without_vram_the_largest_profile_that_fits_is_taken(name: str) -> None:
    for free, chosen in ((None, 24), (140, 24), (24.5, 24), (15.5, 16), (11.2, 12), (2, 12)):
        plan = planned(name, free)
        if name == "skyreels-df-14b" and free == 140:
            assert plan.offload == "text"
        if name == "skyreels-df-14b" and free == 15.5:
            assert (plan.decoder, plan.offload, plan.config.width) == ("small", "cpu", 960)
        assert plan.profile["vram"] in ((12, 16) if free == 11.2 else (chosen,))
        assert plan.fits == (free != 2)


def test_what_was_asked_for_wins_over_the_profile() -> None:
    plan = planned(gigabytes=100, vram=12, size=(640, 352), decoder="full", offload="none")
    assert (plan.config.width, plan.config.height) == (640, 352)
    assert (plan.decoder, plan.offload, plan.profile["vram"]) == ("full", "none", 12)
    assert plan.config.context is not None and plan.config.context.frames_held == 12
    assert plan.is_context_shorter and not planned(vram=24).is_context_shorter
    small = planned(gigabytes=6, size=(64, 64))
    assert (small.profile["vram"], small.decoder, small.fits) == (24, "full", True)


def test_text_encoder_runs_on_the_gpu_where_it_fits_alone() -> None:
    assert planned(gigabytes=12, vram=12).text_device.type == "cpu"
    assert planned(gigabytes=16, vram=16).text_device.type == "cuda"
    assert planned(device="cpu").text_device.type == "cpu"
    alone = planned(gigabytes=16, vram=16)
    assert alone.need == alone.estimate.text_phase > alone.estimate.video_phase
    assert planned(gigabytes=16, vram=16, has_text=False).need == alone.estimate.video_phase


def asked_by(option: str, asked: Asked) -> dict[str, Any]:
    """Return what a line of options asks for, with what was asked for before."""
    words = option.split()
    pairs = dict(zip(words[::2], words[1::2], strict=True))
    if "--vram" in pairs:
        return {"vram": float(pairs["--vram"]), "size": asked.size}
    found: dict[str, Any] = {"vram": asked.vram, "size": asked.size}
    found |= {"decoder": pairs.get("--decoder", asked.decoder)}
    found |= {"offload": pairs.get("--offload", asked.offload)}
    if "--size" in pairs:
        width, height = pairs["--size"].split("x")
        found["size"] = (int(width), int(height))
    return found


@pytest.mark.parametrize("name", STREAMING)
@pytest.mark.parametrize(
    ("gigabytes", "asked"),
    [
        (18, {"offload": "none"}),
        (10, {"decoder": "full"}),
        (7, {}),
        (4, {}),
        (4.2, {"vram": 4.2, "decoder": "full"}),
    ],
)
def test_refusal_names_an_option_that_fits(
    name: str, gigabytes: float, asked: dict[str, Any]
) -> None:
    plan = planned(name, gigabytes, **asked)
    assert not plan.fits
    with pytest.raises(DeviceError, match=rf"{name} needs about [0-9.]+ GB, {CARD} has") as caught:
        plan.require_room()
    option, _, words = caught.value.hint.partition(" fits: about ")
    assert words.endswith("GB")
    assert planned(name, gigabytes, **asked_by(option, plan.asked)).fits


def test_refusal_without_a_way_out_says_so() -> None:
    with pytest.raises(DeviceError) as caught:
        planned("skyreels-df-14b", 1.0).require_room()
    assert "-m shapes" in caught.value.hint


def test_message_of_exhausted_memory_names_options_that_need_less() -> None:
    plan = planned(vram=24)
    told = explained(torch.OutOfMemoryError("CUDA out of memory"), "1.5 s are kept", plan.hint)
    assert isinstance(told, DeviceError) and "1.5 s are kept" in str(told)
    assert "--decoder small" in told.hint and "--offload cpu" in told.hint
    least = planned(vram=12, offload="cpu", size=(64, 64))
    assert "--decoder" not in least.hint and "--offload" not in least.hint


def test_plan_is_one_line_and_a_4090_is_told_what_to_expect(
    capsys: pytest.CaptureFixture[str],
) -> None:
    planned(gigabytes=24, vram=24).say()
    lines = capsys.readouterr().err.strip().splitlines()
    assert "profile of 24 GB: 832x480, decoder full, offload text, context of 21" in lines[0]
    assert f"needs about 19.6 GB of 24.0 GB, {CARD}" in " ".join(lines)
    assert "expect 5 to 8 FPS" in " ".join(lines)
    planned("skyreels-df-1.3b", gigabytes=24, vram=24).say()
    assert "expect" not in capsys.readouterr().err


def test_memory_of_this_machine_is_known_and_vram_limits_it() -> None:
    free = free_memory()
    assert free is None or 10**8 < free < 10**14
    assert look_around("cpu", "float32", None).device.type == "cpu"
    assert look_around("cpu", "float32", 12.0).room == 12 * 10**9


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"context_frames": 10}, "multiple of 3 from 6 to 21"),
        ({"context_frames": 24}, "multiple of 3 from 6 to 21"),
        ({"estimate": 12.5}, "does not fit"),
        ({"vram": 16}, "rising"),
    ],
)
def test_profile_that_cannot_be_is_refused(change: dict[str, Any], part: str) -> None:
    preset = copy.deepcopy(presets.find_preset("rolling-1.3b"))
    check_preset(preset, Path("rolling-1.3b.toml"))
    preset["profiles"][0] |= change
    with pytest.raises(UsageError, match=part):
        check_preset(preset, Path("rolling-1.3b.toml"))


def test_vram_is_read_from_words() -> None:
    assert [parse_vram(word) for word in ("auto", "12", "11.5", "24GB", "24 gb")] == [
        *(0.0, 12.0, 11.5, 24.0, 24.0)
    ]
    for word in ("", "0", "-1", "nan", "inf", "much", "1e9"):
        with pytest.raises(typer.BadParameter):
            parse_vram(word)


# The command line.


def test_command_says_profile_and_need_and_offload_leaves_the_frames_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(presets, "_presets_folder", lambda: tmp_path)
    written_preset(tmp_path, "tiny")
    words = ["generate", "-m", "tiny", "--random-weights", "-p", "x", "--seed", "1"]
    words += ["--num-frames", "5", "--device", "cpu", "--vram", "12"]
    paths = [tmp_path / f"{offload}.mp4" for offload in ("none", "cpu")]
    for path in paths:
        assert main([*words, "--offload", path.stem, "-o", str(path)]) == 0
        said = " ".join(capsys.readouterr().err.split())
        assert f"profile of 12 GB: 32x32, decoder full, offload {path.stem}, context of 21" in said
        assert "needs about 801.0 MB of 12.0 GB" in said
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert probe(paths[0]).record["weights"] == "random"


def test_command_refuses_before_it_loads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.mp4"
    words = ["generate", "-m", "rolling-1.3b", "--random-weights", "-p", "x", "-o", str(path)]
    assert main([*words, "--device", "cpu", "--vram", "5", "--dtype", "bfloat16", "--quiet"]) == 7
    error = " ".join(capsys.readouterr().err.split())
    assert "rolling-1.3b needs about 9.1 GB, the memory of this machine has 5.0 GB" in error
    assert "--size" in error and not path.exists()


@pytest.mark.parametrize("option", [["--vram", "12"], ["--offload", "cpu"]])
def test_options_of_memory_are_refused_by_a_model_of_our_own(
    tiny_model: Path, tmp_path: Path, option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out.mp4"
    assert main(["generate", "-m", str(tiny_model), "-p", "x", "-o", str(path), *option]) == 2
    assert f"{option[0]} is for open weights only" in capsys.readouterr().err
    assert not path.exists()


@pytest.mark.gpu
def test_vram_holds_a_gpu_to_what_was_asked_for() -> None:
    device = torch.device("cuda:0")
    preset = presets.find_preset("rolling-1.3b")
    where = look_around("cuda:0", None, 12.0)
    asked = Asked(vram=12.0)
    try:
        plan_memory(preset, where, asked, num_prompts=1, has_text=False).require_room()
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(13 * 10**9, dtype=torch.uint8, device=device)
        torch.empty(9 * 10**9, dtype=torch.uint8, device=device)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
        torch.cuda.empty_cache()
