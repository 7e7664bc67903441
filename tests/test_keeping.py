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
from streamdit_cli.segments import unnumbered
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
        Fault("file write", "no space", number=8, times=0),
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


@pytest.fixture(scope="module")
def ended_state(
    launcher: Launcher, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The state of a video of two frames that was made to its end."""
    folder = tmp_path_factory.mktemp("ended")
    command = words(tiny_model, "--num-frames", "2", "-o", "a.mkv", "--save-state", "s.state")
    command += ["--threads", "1", "--dtype", "float32", "--start", "ramp"]
    assert launcher.run(command, cwd=folder).code == 0
    return folder / "s.state"


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
    launcher: Launcher, ended_state: Path, tmp_path: Path, more: list[str], code: int, part: str
) -> None:
    length = ["--num-frames", "2"] if more else []
    again = ["generate", "--resume-state", str(ended_state), "-o", "b.mkv", *length, *more]
    ended = launcher.run(again, cwd=tmp_path)
    assert ended.code == code, ended.stderr
    assert len(ended.errors) == 1 and part in ended.errors[0]
    assert not list(tmp_path.iterdir())


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


def test_info_says_what_a_state_is(launcher: Launcher, tiny_model: Path, tmp_path: Path) -> None:
    command = words(tiny_model, "--num-frames", "9", "-o", "a.mp4", "--save-state", "s.state")
    assert launcher.run(command, cwd=tmp_path).code == 0
    ended = launcher.run(["info", "s.state", "--json", "i.json"], cwd=tmp_path)
    assert ended.code == 0, ended.stderr
    record = json.loads((tmp_path / "i.json").read_text())
    assert (record["kind"], record["num_frames"], record["length"]) == ("state", 9, 9)
    assert (record["prompts"], record["seed"], record["model"]) == ([["a star", 0.0]], 5, "tiny")
    assert record["plan"]["device"] == "cpu" and record["seconds"] == 9 / TINY_FPS
    table = launcher.run(["info", "s.state"], cwd=tmp_path).stdout.decode()
    assert "a star" in table and "9 frames" in table


# --continue


def killed(
    launcher: Launcher, command: list[str], folder: Path, done: Any, faults: tuple[Fault, ...] = ()
) -> None:
    """Run a command line until something holds, and kill it."""
    case: Case = launcher.start(command, cwd=folder, faults=faults)
    until(done)
    case.send(signal.SIGKILL)
    assert case.wait() == -signal.SIGKILL


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm"])
def test_killed_video_goes_on_to_the_frames_of_one_that_was_not(
    launcher: Launcher, tiny_model: Path, tmp_path: Path, name: str
) -> None:
    """Killed by itself at two moments, the second one while it goes on."""
    command = words(tiny_model, "--seconds", "7", "--save-every", "1")
    assert launcher.run([*command, "-o", f"whole-{name}"], cwd=tmp_path).code == 0
    expected = frames_of(tmp_path / f"whole-{name}")
    encoded = 3 * TINY_FPS + 7  # late enough that a state is there, however slow the disk
    fault = Fault("encode", "SIGKILL", number=encoded)
    ended = launcher.run([*command, "-o", name], cwd=tmp_path, faults=[fault])
    assert ended.code == -signal.SIGKILL
    part = tmp_path / name.replace(".", ".part.")
    made = read_kept(state_path(part)).num_frames
    assert made in (TINY_FPS, 2 * TINY_FPS, 3 * TINY_FPS)
    ended = launcher.run([*command, "-o", name], cwd=tmp_path)
    assert ended.code == 6 and "--continue" in ended.stderr
    again = ["generate", "-o", name, "--continue"]
    fault = Fault("encode", "SIGKILL", number=encoded)
    assert launcher.run(again, cwd=tmp_path, faults=[fault]).code == -signal.SIGKILL
    assert part.exists()
    more = tmp_path / name.replace(".", ".more.part.")
    assert read_kept(state_path(more)).num_frames >= made + TINY_FPS
    made = read_kept(state_path(more)).num_frames
    ended = launcher.run([*again, "--json", "r.jsonl"], cwd=tmp_path)
    assert ended.code == 0, ended.stderr
    assert torch.equal(frames_of(tmp_path / name), expected)
    lines = [line for line in records(tmp_path / "r.jsonl") if line["record"] == "chunk"]
    assert lines[0]["first_frame"] == made
    assert probe(tmp_path / name).record == probe(tmp_path / f"whole-{name}").record
    assert sorted(os.listdir(tmp_path)) == sorted([name, f"whole-{name}", "r.jsonl"])


def test_video_without_end_goes_on_after_a_kill_from_outside_and_ends_with_ctrl_c(
    launcher: Launcher, tiny_model: Path, tmp_path: Path, whole: torch.Tensor
) -> None:
    command = words(tiny_model, "--seconds", "inf", "--save-every", "0.5", "-o", "a.mkv", *FFV1)
    state = tmp_path / "a.part.mkv.state"
    killed(launcher, command, tmp_path, state.exists)
    before = sum(1 for _ in read_video(tmp_path / "a.part.mkv"))
    stop = [Fault("encode", "SIGINT", number=2 * TINY_FPS)]
    again = ["generate", "-o", "a.mkv", "--continue"]
    ended = launcher.run(again, cwd=tmp_path, faults=stop)
    assert ended.code == 130, ended.stderr
    made = frames_of(tmp_path / "a.mkv")
    common = min(len(made), len(whole))
    assert common >= TINY_FPS and torch.equal(made[:common], whole[:common])
    left = set(os.listdir(tmp_path)) - {"a.mkv"}
    assert left == (set() if len(made) >= before else {"a.part.mkv", "a.part.mkv.state"})


@pytest.fixture(scope="module")
def cut_short(
    launcher: Launcher, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> bytes:
    """What a killed command left of a video, before there was a state."""
    folder = tmp_path_factory.mktemp("cut")
    kill = [Fault("encode", "SIGKILL", number=20)]
    launcher.run(words(tiny_model, "-o", "a.mp4"), cwd=folder, faults=kill)
    return (folder / "a.part.mp4").read_bytes()


@pytest.mark.parametrize(
    ("more", "code", "part"),
    [
        (["-o", "b.mp4"], 4, "there is no b.part.mp4 to go on with"),
        (["-o", "a.mp4"], 4, "has no state a.part.mp4.state"),
        ([], 2, "--continue needs the name of the video"),
    ],
)
def test_video_that_cannot_be_gone_on_with_is_left_alone(
    launcher: Launcher, cut_short: bytes, tmp_path: Path, more: list[str], code: int, part: str
) -> None:
    (tmp_path / "a.part.mp4").write_bytes(cut_short)
    ended = launcher.run(["generate", "--continue", *more], cwd=tmp_path)
    assert ended.code == code and len(ended.errors) == 1 and part in ended.errors[0]
    assert (tmp_path / "a.part.mp4").read_bytes() == cut_short
    assert os.listdir(tmp_path) == ["a.part.mp4"]


def test_new_video_of_the_name_removes_the_state_of_the_old_one(
    launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    command = words(tiny_model, "--seconds", "3", "--save-every", "0.5", "-o", "a.mp4")
    kill = [Fault("encode", "SIGKILL", number=TINY_FPS + 8)]
    launcher.run(command, cwd=tmp_path, faults=kill)
    assert (tmp_path / "a.part.mp4.state").exists()
    launcher.run([*words(tiny_model, "-o", "a.mp4"), "-y"], cwd=tmp_path, faults=kill)
    assert os.listdir(tmp_path) == ["a.part.mp4"]


# --segment


def test_segments_are_the_stream_one_after_another(
    launcher: Launcher, tiny_model: Path, tmp_path: Path, whole: torch.Tensor
) -> None:
    command = words(tiny_model, "--num-frames", "61", "--segment", "1.25", *FFV1)
    ended = launcher.run([*command, "-o", "part-%03d.mkv"], cwd=tmp_path)
    assert ended.code == 0, ended.stderr
    names = [f"part-{number:03d}.mkv" for number in range(4)]
    assert sorted(os.listdir(tmp_path)) == names
    assert torch.equal(frames_of(*(tmp_path / name for name in names)), whole[:61])
    infos = [probe(tmp_path / name) for name in names]
    assert [info.num_frames for info in infos] == [20, 20, 20, 1]
    assert [info.record["first_frame"] for info in infos] == ["0", "20", "40", "60"]
    assert [info.record["first_seconds"] for info in infos] == ["0", "1.25", "2.5", "3.75"]
    if shutil.which("ffmpeg"):
        (tmp_path / "list").write_text("".join(f"file {name}\n" for name in names))
        line = "ffmpeg -v error -f concat -i list -c copy joined.mkv"
        subprocess.run(line.split(), cwd=tmp_path, check=True)
        assert torch.equal(frames_of(tmp_path / "joined.mkv"), whole[:61])


def test_segments_without_end_are_ended_by_a_signal(
    launcher: Launcher, tiny_model: Path, tmp_path: Path, whole: torch.Tensor
) -> None:
    stop = [Fault("encode", "SIGTERM", number=TINY_FPS + 9)]
    command = words(tiny_model, "--seconds", "inf", "--segment", "1s", "-o", "%d.mp4")
    ended = launcher.run([*command, "--save-state", "s"], cwd=tmp_path, faults=stop)
    assert ended.code == 143, ended.stderr
    names = sorted(path for path in tmp_path.glob("*.mp4"))
    counts = [probe(path).num_frames for path in names]
    assert len(names) >= 2 and set(counts[:-1]) == {TINY_FPS}
    assert read_kept(tmp_path / "s").num_frames == sum(counts)
    assert not list(tmp_path.glob("*.part*"))


@pytest.mark.parametrize(
    ("name", "there", "code", "part"),
    [
        ("part.mp4", "", 2, "write -o part-%04d.mp4"),
        ("-", "", 2, "--segment needs video files"),
        ("p-%d.png", "", 2, "--segment needs video files"),
        ("p-%d.mp4", "p-7.mp4", 6, "p-7.mp4 exists"),
        ("p-%d.mp4", "p-3.part.mp4", 6, "p-3.part.mp4 exists"),
    ],
)
def test_segments_are_refused_before_anything_is_made(
    launcher: Launcher,
    tiny_model: Path,
    tmp_path: Path,
    name: str,
    there: str,
    code: int,
    part: str,
) -> None:
    if there:
        (tmp_path / there).touch()
    command = words(tiny_model, "--seconds", "1", "--segment", "1", "-o", name)
    ended = launcher.run(command, cwd=tmp_path)
    assert ended.code == code and part in ended.stderr, ended.stderr
    assert os.listdir(tmp_path) == ([there] if there else [])


# --no-metadata


def test_video_without_metadata_names_neither_prompt_nor_seed(
    launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    command = words(tiny_model, "--num-frames", "9", "--no-metadata")
    for name in ("a.mp4", "a.mkv", "a.webm", "a-%d.png"):
        assert launcher.run([*command, "-o", name], cwd=tmp_path).code == 0
    for path in tmp_path.iterdir():
        assert not re.search(rb"a star|seed|streamdit", path.read_bytes()), path
        assert probe(path).record == {}


def test_files_of_a_segmented_stream_share_one_name_for_what_lies_beside_them() -> None:
    assert unnumbered("part-%04d.mp4") == "part.mp4"
    assert unnumbered("live/%d.mkv") == str(Path("live/segments.mkv"))
