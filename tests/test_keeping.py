"""Claim: a stream that is kept goes on with the same frames, after any end, in any process."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_CHUNK, TINY_FPS
from launcher import Case, Fault, Launcher, until

from streamdit_cli.keeping import read_kept
from streamdit_cli.part import state_path
from streamdit_cli.video import probe, read_video

FFV1 = ("--codec", "ffv1")
SEED = ("--seed", "5")


def words(model: Path, *more: str) -> list[str]:
    return ["generate", "-m", str(model), "-p", "a star", *SEED, *more]


def frames_of(*paths: Path) -> torch.Tensor:
    return torch.stack([frame for path in paths for frame in read_video(path)])


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(
    launcher: Launcher, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> torch.Tensor:
    """The frames of six seconds that nothing interrupts, exact."""
    folder = tmp_path_factory.mktemp("whole")
    ended = launcher.run(words(tiny_model, "--seconds", "6", "-o", "whole.mkv", *FFV1), cwd=folder)
    assert ended.code == 0, ended.stderr
    return frames_of(folder / "whole.mkv")


# --save-state and --resume-state


def test_stream_goes_on_from_its_end_bit_for_bit(
    launcher: Launcher, tiny_model: Path, tmp_path: Path, whole: torch.Tensor
) -> None:
    made = 3 * TINY_FPS + 1  # inside a chunk
    first = words(tiny_model, "--num-frames", str(made), "-o", "a.mkv", *FFV1)
    ended = launcher.run([*first, "--save-state", "s.state"], cwd=tmp_path)
    assert ended.code == 0, ended.stderr
    assert read_kept(tmp_path / "s.state").num_frames == made
    rest = str(len(whole) - made)
    again = ["generate", "--resume-state", "s.state", "--num-frames", rest, "-o", "b.mkv", *FFV1]
    ended = launcher.run([*again, "--json", "b.jsonl"], cwd=tmp_path)
    assert ended.code == 0, ended.stderr
    assert torch.equal(frames_of(tmp_path / "a.mkv", tmp_path / "b.mkv"), whole)
    record = probe(tmp_path / "b.mkv").record
    assert (record["first_frame"], record["prompt"], record["seed"]) == (str(made), "a star", "5")
    lines = [line for line in records(tmp_path / "b.jsonl") if line["record"] == "chunk"]
    assert lines[0]["first_frame"] == made
    assert sum(line["num_frames"] for line in lines) == len(whole) - made


@pytest.mark.parametrize("number", [2, 5])
def test_stream_stopped_by_ctrl_c_goes_on_bit_for_bit(
    launcher: Launcher, tiny_model: Path, tmp_path: Path, whole: torch.Tensor, number: int
) -> None:
    command = words(tiny_model, "--seconds", "6", "-o", "a.mkv", *FFV1, "--save-state", "s.state")
    stop = [Fault("decode", "SIGINT", number=number)]
    ended = launcher.run(command, cwd=tmp_path, faults=stop)
    assert ended.code == 130, ended.stderr
    first = frames_of(tmp_path / "a.mkv")
    assert 0 < len(first) < len(whole)
    ended = launcher.run(
        ["generate", "--resume-state", "s.state", "-o", "b.mkv", *FFV1], cwd=tmp_path
    )
    assert ended.code == 0, ended.stderr
    assert torch.equal(frames_of(tmp_path / "a.mkv", tmp_path / "b.mkv"), whole)


@pytest.mark.parametrize(
    "fault",
    [
        Fault("decode", "nan", number=9),
        Fault("file write", "no space", number=20, times=0),
        Fault("encode", "io error", number=TINY_CHUNK * 2 + 3, times=0),
    ],
    ids=lambda fault: f"{fault.site} {fault.kind}",
)
def test_state_fits_the_frames_that_reached_the_file(
    launcher: Launcher, tiny_model: Path, tmp_path: Path, whole: torch.Tensor, fault: Fault
) -> None:
    command = words(tiny_model, "--seconds", "6", "-o", "a.mkv", *FFV1, "--save-state", "s.state")
    ended = launcher.run(command, cwd=tmp_path, faults=[fault])
    assert ended.code in (6, 8), ended.stderr
    path = next(tmp_path.glob("a*.mkv"))
    first = frames_of(path)
    assert read_kept(tmp_path / "s.state").num_frames == len(first) > 0
    again = ["generate", "--resume-state", "s.state", "-o", "b.mkv", *FFV1]
    assert launcher.run(again, cwd=tmp_path).code == 0
    assert torch.equal(frames_of(path, tmp_path / "b.mkv"), whole)


def test_state_is_written_on_the_way(
    launcher: Launcher, tiny_model: Path, tmp_path: Path, whole: torch.Tensor
) -> None:
    command = words(tiny_model, "--seconds", "inf", "-o", "a.mkv", *FFV1)
    case = launcher.start([*command, "--save-state", "s.state", "--save-every", "1"], cwd=tmp_path)
    until(lambda: (tmp_path / "s.state").exists())
    case.send(signal.SIGKILL)
    case.wait()
    made = read_kept(tmp_path / "s.state").num_frames
    assert made > 0 and made % TINY_FPS == 0
    again = ["generate", "--resume-state", "s.state", "--seconds", "1", "-o", "b.mkv", *FFV1]
    assert launcher.run(again, cwd=tmp_path).code == 0
    if made + TINY_FPS <= len(whole):
        assert torch.equal(frames_of(tmp_path / "b.mkv"), whole[made : made + TINY_FPS])


def test_new_prompts_hold_from_the_state_on(
    launcher: Launcher, tiny_model: Path, tmp_path: Path, whole: torch.Tensor
) -> None:
    command = words(tiny_model, "--seconds", "2", "-o", "a.mkv", *FFV1, "--save-state", "s.state")
    assert launcher.run(command, cwd=tmp_path).code == 0
    again = ["generate", "--resume-state", "s.state", "--seconds", "4", *FFV1, "-p", "a moon"]
    for name in ("b.mkv", "c.mkv"):
        assert launcher.run([*again, "-o", name], cwd=tmp_path).code == 0
    changed = frames_of(tmp_path / "b.mkv")
    assert torch.equal(changed, frames_of(tmp_path / "c.mkv"))
    assert not torch.equal(changed, whole[2 * TINY_FPS :])
    assert probe(tmp_path / "b.mkv").record["prompt"] == "a moon"


@pytest.mark.parametrize(
    ("more", "code", "part"),
    [
        (["--seed", "6"], 2, "--seed 6 contradicts the state, which has 5"),
        (["--start", "clip"], 2, "--start clip contradicts"),
        (["--negative-prompt", "x"], 2, "--negative-prompt x contradicts"),
        (["--no-prompt"], 2, "--no-prompt begins a stream of its own"),
        (["--continue"], 2, "exclude each other"),
        (["-m", "shapes"], 5, "another model than"),
        (["--dtype", "bfloat16"], 2, "dtype float32 is now bfloat16"),
        (["--threads", "3"], 2, "threads 1 is now 3"),
        ([], 2, "made to its end, 2 frames"),
    ],
)
def test_what_contradicts_the_state_is_refused_in_one_line(
    launcher: Launcher, tiny_model: Path, tmp_path: Path, more: list[str], code: int, part: str
) -> None:
    command = words(tiny_model, "--num-frames", "2", "-o", "a.mkv", "--save-state", "s.state")
    command += ["--threads", "1", "--dtype", "float32", "--start", "ramp"]
    assert launcher.run(command, cwd=tmp_path).code == 0
    length = ["--num-frames", "2"] if more else []
    again = ["generate", "--resume-state", "s.state", "-o", "b.mkv", *length, *more]
    ended = launcher.run(again, cwd=tmp_path)
    assert ended.code == code, ended.stderr
    assert len(ended.errors) == 1 and part in ended.errors[0]
    assert not list(tmp_path.glob("b*"))


def test_state_never_replaces_a_file_unasked(
    launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "s.state").write_text("mine")
    command = words(tiny_model, "--num-frames", "2", "-o", "a.mkv", "--save-state", "s.state")
    ended = launcher.run(command, cwd=tmp_path)
    assert ended.code == 6 and "s.state exists" in ended.stderr
    assert (tmp_path / "s.state").read_text() == "mine"
    assert os.listdir(tmp_path) == ["s.state"]


def test_file_that_is_no_state_is_refused(launcher: Launcher, tmp_path: Path) -> None:
    (tmp_path / "s.state").write_bytes(b"x" * 100)
    for name, code in (("s.state", 5), ("none", 4)):
        ended = launcher.run(["generate", "--resume-state", name, "-o", "b.mkv"], cwd=tmp_path)
        assert ended.code == code and len(ended.errors) == 1, ended.stderr
