"""Claim: whatever ends a run, the file on disk plays, holds what was reported, and harms no other.

Rows of the reliability bar: 1 (SIGKILL), 2 (signals), 4 (memory), 5 (not finite), 9 (disk full),
11 (out of memory), 27 (two processes), 28 (the n-th failure).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_CHUNK, TINY_FPS
from hypothesis import given, settings
from hypothesis import strategies as st
from launcher import Case, Ended, Fault, Launcher, until

from streamdit_cli.errors import InputError, OutputError
from streamdit_cli.output import GROWING, free_name, open_writer
from streamdit_cli.part import PartFile, part_path
from streamdit_cli.video import md5_of, probe, read_video

# Row 1: at most one second and one chunk of what was reported is lost by a kill.
LOST_FRAMES = TINY_FPS + TINY_CHUNK
SIGNALS = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}
H264 = (".mp4", ".mov", ".mkv")
# Red, green, blue, their complements, white, black and two greys.
PATCHES = torch.tensor(
    [
        [255, 0, 0], [0, 255, 0], [0, 0, 255], [0, 255, 255], [255, 0, 255], [255, 255, 0],
        [255, 255, 255], [0, 0, 0], [64, 64, 64], [200, 100, 50],
    ],
    dtype=torch.uint8,
)  # fmt: skip
PATCH_SIDE = 16

linux = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc")


def patches(num_frames: int = 4) -> torch.Tensor:
    """Frames (n, 16, 160, 3) of flat colours; flat, so that 4:2:0 loses nothing."""
    row = PATCHES.repeat_interleave(PATCH_SIDE, 0)
    return row.expand(num_frames, PATCH_SIDE, -1, 3).contiguous()


def moving(num_frames: int) -> torch.Tensor:
    """Frames (n, 32, 32, 3) that differ from each other."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (num_frames, 4, 4, 3), generator=generator, dtype=torch.uint8)
    return coarse.repeat_interleave(8, 1).repeat_interleave(8, 2)


def write(path: Path | str, frames: torch.Tensor, **settings: Any) -> None:
    """Write frames as the product does, a chunk at a time."""
    height, width = frames.shape[1:3]
    writer = open_writer(str(path), width=width, height=height, fps=TINY_FPS, **settings)
    try:
        for chunk in frames.split(TINY_CHUNK):
            writer.write(chunk)
        writer.close()
    finally:
        writer.abort()


def words(model: Path, seconds: float | str = 4, *more: str) -> list[str]:
    return ["generate", "-m", str(model), "-p", "a star", "--seconds", str(seconds), *more]


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def reported(path: Path) -> int:
    """Frames that the records of a run say are there."""
    if not path.exists():
        return 0
    chunks = [line for line in records(path) if line["record"] == "chunk"]
    return max((line["first_frame"] + line["num_frames"] for line in chunks), default=0)


def num_frames(path: Path) -> int:
    """Frames that really decode, by PyAV and, where it is installed, by ffmpeg."""
    count = sum(1 for _ in read_video(path))
    if shutil.which("ffprobe"):
        command = "ffprobe -v quiet -count_frames -show_entries stream=nb_read_frames -of csv=p=0"
        done = subprocess.run([*command.split(), path], capture_output=True, text=True, check=True)
        assert int(done.stdout.strip().strip(",")) == count
    return count


def boxes(path: Path) -> list[str]:
    """The kinds of the outermost boxes of an mp4."""
    data, place, kinds = path.read_bytes(), 0, []
    while place < len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, place + 8)
        kinds.append(kind.decode())
        place += length
    assert place == len(data)
    return kinds


def is_ordinary(path: Path) -> bool:
    """Whether an mp4 has been ended, so that it has no fragments any more."""
    try:
        return boxes(path) == ["ftyp", "free", "mdat", "moov"]
    except (AssertionError, OSError, struct.error):
        return False


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# What a file holds.


def test_finished_mp4_is_an_ordinary_one_with_a_key_frame_each_second(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write(path, moving(40))
    assert num_frames(path) == 40
    assert is_ordinary(path)
    if shutil.which("ffprobe"):
        command = "ffprobe -v error -show_entries packet=pts,dts,flags -of json"
        done = subprocess.run([*command.split(), path], capture_output=True, check=True)
        packets = json.loads(done.stdout)["packets"]
        keys = [index for index, packet in enumerate(packets) if "K" in packet["flags"]]
        assert keys[0] == 0
        assert all(after - key <= TINY_FPS for key, after in itertools.pairwise([*keys, 40]))
        assert all(packet["pts"] == packet["dts"] for packet in packets)  # no B-frames


def test_unfinished_mp4_is_fragmented_and_plays(tmp_path: Path) -> None:
    writer = open_writer(str(tmp_path / "a.mp4"), width=32, height=32, fps=TINY_FPS)
    for chunk in moving(64).split(8):
        writer.write(chunk)
    until(lambda: writer.frames_written == 64)
    try:
        assert [path.name for path in tmp_path.iterdir()] == ["a.part.mp4"]
        assert sum(1 for _ in read_video(tmp_path / "a.part.mp4")) >= 64 - TINY_FPS - 1
    finally:
        writer.abort()


@pytest.mark.parametrize("suffix", H264)
def test_colours_are_bt709_and_the_tags_say_so(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    write(path, patches())
    info = probe(path)
    tags = (info.color_space, info.color_primaries, info.color_transfer, info.color_range)
    assert tags == (1, 1, 1, 1)  # BT.709 three times, limited range
    assert info.pixels == "yuv420p"
    middle = torch.stack(list(read_video(path)))[:, PATCH_SIDE // 2, PATCH_SIDE // 2 :: PATCH_SIDE]
    # 8-bit limited range keeps a colour within 2, and x264 at crf 18 a flat patch within 1 more.
    assert (middle.int() - PATCHES.int()).abs().max() <= 3


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="compares with ffmpeg's own pixels")
def test_stored_luma_and_chroma_are_those_of_bt709(tmp_path: Path) -> None:
    """An independent path: the planes as ffmpeg decodes them, against the equations of BT.709."""
    path = tmp_path / "a.mp4"
    write(path, patches())
    command = ["ffmpeg", "-v", "error", "-i", path, "-frames:v", "1", "-f", "rawvideo", "-"]
    planes = subprocess.run(command, capture_output=True, check=True).stdout
    width, height = PATCH_SIDE * len(PATCHES), PATCH_SIDE
    y, u, v = torch.frombuffer(bytearray(planes), dtype=torch.uint8).split(
        [width * height, width * height // 4, width * height // 4]
    )
    rgb = PATCHES.double() / 255
    luma = rgb @ torch.tensor([0.2126, 0.7152, 0.0722], dtype=torch.double)
    expected = {
        "y": 16 + 219 * luma,
        "u": 128 + 224 * (rgb[:, 2] - luma) / 1.8556,
        "v": 128 + 224 * (rgb[:, 0] - luma) / 1.5748,
    }
    found = {
        "y": y.view(height, width)[PATCH_SIDE // 2, PATCH_SIDE // 2 :: PATCH_SIDE],
        "u": u.view(height // 2, -1)[PATCH_SIDE // 4, PATCH_SIDE // 4 :: PATCH_SIDE // 2],
        "v": v.view(height // 2, -1)[PATCH_SIDE // 4, PATCH_SIDE // 4 :: PATCH_SIDE // 2],
    }
    for plane, values in expected.items():  # half a step of rounding, 1.5 of x264 at crf 18
        assert (found[plane].double() - values).abs().max() <= 2, plane


def test_ffv1_is_lossless(tmp_path: Path) -> None:
    frames = moving(20)
    write(tmp_path / "a.mkv", frames, codec="ffv1")
    assert torch.equal(torch.stack(list(read_video(tmp_path / "a.mkv"))), frames)


def test_record_of_a_video_is_read_back(tmp_path: Path) -> None:
    record = {"prompt": 'a "red" [star] \u2605 ' + "x" * 200, "seed": "7"}
    for suffix in GROWING:
        write(tmp_path / f"a{suffix}", moving(8), metadata=record)
        info = probe(tmp_path / f"a{suffix}")
        assert info.record == record
        assert info.title.startswith('a "red" [star] \u2605 xx')
        assert len(info.title) <= 80


def test_file_name_is_a_name_and_never_a_protocol(tmp_path: Path) -> None:
    for name in ("http:x.mp4", "a %d 100%.mp4", "\u00fc.mp4", "-.mp4", "a.part.mp4"):
        write(tmp_path / name, moving(8))
        assert probe(tmp_path / name).num_frames == 8


# What `generate` leaves.


def test_frames_in_a_lossless_file_are_the_frames_of_the_stream(
    launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    more = ["--seed", "5", "-o", "a.mkv", "--codec", "ffv1", "--json", "a.jsonl"]
    ended = launcher.run(words(tiny_model, 2.3, *more), cwd=tmp_path)
    assert ended.code == 0, ended.stderr
    header, *chunks, summary = records(tmp_path / "a.jsonl")
    frames = torch.stack(list(read_video(tmp_path / "a.mkv")))
    assert len(frames) == round(2.3 * TINY_FPS) == summary["num_frames"]
    assert [md5_of(part) for part in frames.split(TINY_CHUNK)] == [c["md5"] for c in chunks]
    assert [chunk["number"] for chunk in chunks] == list(range(5))
    assert [chunk["seconds"] for chunk in chunks] == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert header["seed"] == "5" and header["model"] == "tiny" and header["prompt"] == "a star"
    assert summary["ended"] == "complete" and summary["output"] == "a.mkv"
    record = probe(tmp_path / "a.mkv").record
    assert {key: header[key] for key in record} == record
    assert {"streamdit", "torch", "av", "dtype", "threads", "start"} <= record.keys()


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (["--seconds", "0.01"], 1),
        (["--seconds", "0.3"], 5),
        (["--seconds", "0:01"], 16),
        (["--num-frames", "1"], 1),
        (["--num-frames", "9"], 9),
    ],
)
def test_length_is_right_to_the_frame(
    length: list[str], expected: int, launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    command = ["generate", "-m", str(tiny_model), "--no-prompt", *length, "-o", "a.mp4", "-q"]
    ended = launcher.run(command, cwd=tmp_path)
    assert (ended.code, ended.stderr, ended.stdout) == (0, "", b"")
    assert num_frames(tmp_path / "a.mp4") == expected


def test_file_without_a_name_is_called_after_the_prompt_and_never_replaces(
    launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    for _ in range(2):
        assert launcher.run(words(tiny_model, 0.5), cwd=tmp_path).code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-star-2.mp4", "a-star.mp4"]


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=300))
def test_free_name_is_one_plain_name(prompt: str) -> None:
    name = free_name(prompt)
    assert name.isascii() and name.endswith(".mp4") and len(name) <= 80
    assert set(name[:-4]) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") and name[0] != "-"
    assert name.split(".")[0] not in {"con", "nul", "com1", "lpt9"}


# Ends: kill -9, signals, no memory, not finite, disk full.


def kill_points(count: int) -> list[Fault]:
    """Places all over a run of 64 frames at which the process is killed."""
    draw = random.Random(1)
    calls = {"encode": 64, "velocity": 11, "file write": 8, "decode": 8, "rename": 1}
    sites = itertools.cycle(calls)
    return [Fault(s := next(sites), "SIGKILL", draw.randint(1, calls[s])) for _ in range(count)]


def described(part: Path) -> str:
    """What the next run says an unfinished file holds."""
    try:
        return f"{probe(part).seconds:.1f} s of video"
    except InputError:
        return "no video yet"


def check_killed(fault: Fault, launcher: Launcher, model: Path, folder: Path) -> None:
    command = words(model, 4, "-o", "a.mp4", "--json", "a.jsonl")
    ended = launcher.run(command, cwd=folder, faults=[fault])
    assert ended.code == -signal.SIGKILL, ended.stderr
    part = folder / "a.part.mp4"
    assert sorted(path.name for path in folder.iterdir()) == ["a.jsonl", "a.part.mp4"]
    promised = reported(folder / "a.jsonl") - LOST_FRAMES
    assert promised <= 0 or num_frames(part) >= promised
    holds, before = described(part), sha(part)
    again = launcher.run(words(model, 1, "-o", "a.mp4"), cwd=folder)
    assert again.code == 6
    assert f"a.part.mp4 is left from a run that did not end: {holds}" in again.errors[0]
    assert sha(part) == before
    replaced = launcher.run(words(model, 1, "-o", "a.mp4", "-y"), cwd=folder)
    assert replaced.code == 0, replaced.stderr
    assert f"warning: replacing a.part.mp4, {holds}" in replaced.stderr
    assert num_frames(folder / "a.mp4") == 16
    assert not part.exists()


@pytest.mark.parametrize("fault", kill_points(5), ids=lambda f: f"{f.site} {f.number}")
def test_killed_run_leaves_a_file_that_plays(
    fault: Fault, launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    check_killed(fault, launcher, tiny_model, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("fault", kill_points(50), ids=lambda f: f"{f.site} {f.number}")
def test_killed_run_leaves_a_file_that_plays_at_50_points(
    fault: Fault, launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    check_killed(fault, launcher, tiny_model, tmp_path)


def check_stopped(name: str, fault: Fault, launcher: Launcher, model: Path, folder: Path) -> None:
    command = words(model, "inf", "-o", "a.mp4", "--json", "a.jsonl")
    ended = launcher.run(command, cwd=folder, faults=[fault])
    assert ended.code == SIGNALS[name], ended.stderr
    assert "Traceback" not in ended.stderr and not ended.errors
    summary = records(folder / "a.jsonl")[-1]
    assert (summary["record"], summary["ended"]) == ("summary", name)
    assert f"ended by {name}: " in ended.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["a.jsonl", "a.mp4"]
    assert num_frames(folder / "a.mp4") == reported(folder / "a.jsonl") == summary["num_frames"]
    assert is_ordinary(folder / "a.mp4")


def signal_points(count: int) -> list[tuple[str, Fault]]:
    """For each signal, places in an endless run at which it comes."""
    draw = random.Random(2)
    sites = itertools.cycle(("encode", "velocity", "decode", "file write"))
    return [
        (name, Fault(next(sites), name, draw.randint(4, 20)))
        for name in SIGNALS
        for _ in range(count)
    ]


@pytest.mark.parametrize(("name", "fault"), signal_points(2), ids=str)
def test_signal_ends_the_file_properly(
    name: str, fault: Fault, launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    check_stopped(name, fault, launcher, tiny_model, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "fault"), signal_points(20), ids=str)
def test_signal_ends_the_file_properly_at_20_points(
    name: str, fault: Fault, launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    check_stopped(name, fault, launcher, tiny_model, tmp_path)


@pytest.mark.parametrize("name", SIGNALS)
def test_signal_while_loading_leaves_nothing(
    name: str, launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    ended = launcher.run(words(tiny_model, 4), cwd=tmp_path, faults=[Fault("load", name)])
    assert ended.code == SIGNALS[name]
    assert "Traceback" not in ended.stderr and not ended.errors
    assert not list(tmp_path.iterdir())


def start_and_hang(seconds: float, launcher: Launcher, model: Path, folder: Path) -> Case:
    """Run an endless stream whose 13th chunk takes long, up to there."""
    hang = Fault("velocity", "sleep", 16, seconds=seconds)
    command = words(model, "inf", "-o", "a.mp4", "--json", "a.jsonl")
    case = launcher.start(command, cwd=folder, faults=[hang])
    until(lambda: reported(folder / "a.jsonl") >= 80)
    case.settle()
    return case


def send_two(first: int, second: int, case: Case, folder: Path) -> None:
    """Send two signals; the video waits for the chunk in the making, then does not."""
    case.send(first)
    case.settle()
    assert not (folder / "a.mp4").exists()
    case.send(second)
    until((folder / "a.mp4").exists)
    assert num_frames(folder / "a.mp4") >= 80


@linux
def test_second_signal_ends_the_video_before_the_chunk_in_the_making(
    launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    case = start_and_hang(8, launcher, tiny_model, tmp_path)
    send_two(signal.SIGTERM, signal.SIGINT, case, tmp_path)
    assert case.wait() == 143  # the first signal is the one that counts


@linux
def test_third_signal_kills_and_the_file_plays(
    launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    case = start_and_hang(60, launcher, tiny_model, tmp_path)
    send_two(signal.SIGINT, signal.SIGINT, case, tmp_path)
    case.settle()  # it waits for the one call of the model that is running
    case.send(signal.SIGINT)
    assert case.wait(30) == -signal.SIGINT
    assert num_frames(tmp_path / "a.mp4") >= 80


def test_ignored_hangup_stays_ignored(launcher: Launcher, tiny_model: Path, tmp_path: Path) -> None:
    """`nohup streamdit generate ...` goes on when its terminal closes."""
    fault = Fault("encode", "SIGHUP", 10)
    command = words(tiny_model, 2, "-o", "a.mp4")
    ended = launcher.run(command, cwd=tmp_path, faults=[fault], ignored=["SIGHUP"])
    assert ended.code == 0
    assert num_frames(tmp_path / "a.mp4") == 32


@pytest.mark.parametrize("kind", ["nan", "inf"])
@pytest.mark.parametrize(
    ("site", "number", "chunk"),
    # Call 4 of the velocity makes chunk 0, and the spoiled number stands at the tail: it reaches
    # the next chunk to leave by attention.
    [("velocity", 1, 0), ("velocity", 7, 4), ("decode", 1, 0), ("decode", 4, 3)],
)
def test_frame_that_is_not_finite_never_reaches_the_file(
    kind: str,
    site: str,
    number: int,
    chunk: int,
    launcher: Launcher,
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    more = ["-o", "a.mkv", "--codec", "ffv1", "--seed", "3", "--json"]
    ended = launcher.run(
        words(tiny_model, 3, *more, "a.jsonl"), cwd=tmp_path, faults=[Fault(site, kind, number)]
    )
    assert ended.code == 8, ended.stderr
    assert f"chunk {chunk} " in ended.errors[0] and "seed 3" in ended.errors[0]
    assert len(ended.errors) == 1 and "Traceback" not in ended.stderr
    good = launcher.run(words(tiny_model, 3, "-y", *more, "good.jsonl"), cwd=tmp_path)
    assert good.code == 0
    same = [line["md5"] for line in records(tmp_path / "good.jsonl")[1:-1]][:chunk]
    assert [line["md5"] for line in records(tmp_path / "a.jsonl")[1:-1]] == same


@pytest.mark.parametrize("kind", ["oom", "cpu oom", "no memory"])
@pytest.mark.parametrize(("site", "number", "least"), [
    ("load", 1, 0), ("velocity", 8, 24), ("decode", 5, 32), ("encode", 40, 38),
])  # fmt: skip
def test_out_of_memory_keeps_what_was_made_and_names_a_flag(
    kind: str,
    site: str,
    number: int,
    least: int,
    launcher: Launcher,
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    ended = launcher.run(
        words(tiny_model, 10, "-o", "a.mp4"), cwd=tmp_path, faults=[Fault(site, kind, number)]
    )
    assert ended.code == 7, ended.stderr
    assert ended.errors[0].startswith("error: out of memory") and len(ended.errors) == 1
    assert "GiB" in ended.errors[0] and "Traceback" not in ended.stderr
    assert "--dtype" in ended.stderr.splitlines()[-1]
    if least:
        assert num_frames(tmp_path / "a.mp4") >= least
        assert "kept in a.mp4" in ended.errors[0]
    else:
        assert not list(tmp_path.iterdir())


def check_full(ended: Ended, folder: Path, suffix: str) -> None:
    """What must hold after a run that the disk stopped, whenever that was."""
    assert ended.code in (0, 6), ended.stderr
    assert "Traceback" not in ended.stderr
    if ended.code == 0:
        assert num_frames(folder / f"a{suffix}") == 32
        return
    part = folder / f"a.part{suffix}"
    assert len(ended.errors) == 1 and not (folder / f"a{suffix}").exists()
    if "nothing was kept" in ended.errors[0]:
        assert not part.exists()
    elif "is complete but cannot be named" in ended.errors[0]:
        assert num_frames(part) == 32
    else:
        kept = num_frames(part)
        assert f"; {kept / TINY_FPS:.1f} s are kept in {part.name}" in ended.errors[0]
        assert kept > 0


def check_file_limit(
    suffix: str, limit: int, launcher: Launcher, model: Path, folder: Path
) -> None:
    (folder / "other.mp4").write_bytes(b"another file")
    command = words(model, 2, "-o", f"a{suffix}")
    ended = launcher.run(command, cwd=folder, limits={"RLIMIT_FSIZE": limit})
    check_full(ended, folder, suffix)
    assert ended.code == 0 or "File too large" in ended.errors[0]
    assert (folder / "other.mp4").read_bytes() == b"another file"


@pytest.mark.parametrize("suffix", GROWING)
@pytest.mark.parametrize("limit", [1, 1224, 12000])  # 1224 is inside the metadata of a mov
def test_full_disk_keeps_what_is_whole(
    suffix: str, limit: int, launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    check_file_limit(suffix, limit, launcher, tiny_model, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", GROWING)
@pytest.mark.parametrize("limit", [int(700 * 1.15**n) for n in range(30)])
def test_full_disk_keeps_what_is_whole_at_30_sizes(
    suffix: str, limit: int, launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    check_file_limit(suffix, limit, launcher, tiny_model, tmp_path)


def check_nth(fault: Fault, launcher: Launcher, model: Path, folder: Path) -> None:
    ended = launcher.run(words(model, 2, "-o", "a.mp4"), cwd=folder, faults=[fault])
    check_full(ended, folder, ".mp4")
    rerun = launcher.run(words(model, 2, "-o", "a.mp4", "-y"), cwd=folder)
    assert rerun.code == 0 and num_frames(folder / "a.mp4") == 32


@pytest.mark.parametrize("times", [1, 0], ids=["once", "for ever"])
@pytest.mark.parametrize(("site", "number"), [("file write", 1), ("file write", 5), ("rename", 1)])
def test_failed_write_is_one_line_and_the_rerun_succeeds(
    site: str, number: int, times: int, launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    check_nth(Fault(site, "io error", number, times), launcher, tiny_model, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 0], ids=["once", "for ever"])
@pytest.mark.parametrize("number", range(1, 20))
def test_nth_failed_write_is_one_line_and_the_rerun_succeeds(
    number: int, times: int, launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    check_nth(Fault("file write", "no space", number, times), launcher, tiny_model, tmp_path)


# One file, one process.


def test_existing_file_is_replaced_only_at_the_end_and_only_if_asked(
    launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    old = tmp_path / "a.mp4"
    old.write_bytes(b"old")
    refused = launcher.run(words(tiny_model, 1, "-o", "a.mp4"), cwd=tmp_path)
    assert refused.code == 6 and "a.mp4 exists" in refused.errors[0]
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    command = words(tiny_model, 1, "-o", "a.mp4", "--overwrite")
    killed = launcher.run(command, cwd=tmp_path, faults=[Fault("encode", "SIGKILL", 9)])
    assert killed.code == -signal.SIGKILL and old.read_bytes() == b"old"
    failed = launcher.run(command, cwd=tmp_path, faults=[Fault("file write", "no space", 2)])
    assert failed.code == 6 and old.read_bytes() == b"old"
    assert launcher.run(command, cwd=tmp_path).code == 0
    assert num_frames(old) == 16


def test_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    writer = open_writer(str(tmp_path / "a.mp4"), width=32, height=32, fps=TINY_FPS)
    writer.write(moving(8))
    (tmp_path / "a.mp4").write_bytes(b"someone else's")
    with pytest.raises(OutputError, match=r"a\.mp4 was made by someone else meanwhile"):
        writer.close()
    assert (tmp_path / "a.mp4").read_bytes() == b"someone else's"
    assert num_frames(tmp_path / "a.part.mp4") == 8


def test_part_file_replaced_by_another_process_is_noticed(tmp_path: Path) -> None:
    writer = open_writer(str(tmp_path / "a.mp4"), width=32, height=32, fps=TINY_FPS)
    writer.write(moving(8))
    (tmp_path / "a.part.mp4").unlink()
    (tmp_path / "a.part.mp4").write_bytes(b"theirs")
    with pytest.raises(OutputError, match="replaced by another process"):
        writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["a.part.mp4"]
    assert (tmp_path / "a.part.mp4").read_bytes() == b"theirs"


@pytest.mark.parametrize("more", [[], ["-y"]], ids=["", "overwrite"])
def test_second_process_is_refused_and_told_by_whom(
    more: list[str], launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    command = words(tiny_model, "inf", "-o", "a.mp4", "--json", "a.jsonl")
    first = launcher.start(command, cwd=tmp_path)
    until(lambda: reported(tmp_path / "a.jsonl"))
    second = launcher.run(words(tiny_model, 1, "-o", "a.mp4", *more), cwd=tmp_path)
    assert second.code == 6
    assert f"a.part.mp4 is being written by process {first.pid}" in second.errors[0]
    first.send(signal.SIGINT)
    assert first.wait() == 130
    assert num_frames(tmp_path / "a.mp4") == reported(tmp_path / "a.jsonl")


def check_race(faults: list[Fault], launcher: Launcher, model: Path, folder: Path) -> None:
    command = words(model, 1, "-o", "a.mp4", "-q")
    cases = [launcher.start(command, cwd=folder, faults=faults) for _ in range(2)]
    assert sorted(case.wait() for case in cases) == [0, 6]
    assert [path.name for path in folder.iterdir()] == ["a.mp4"]
    assert num_frames(folder / "a.mp4") == 16


@pytest.mark.parametrize("faults", [[], [Fault("lock", "yes", times=0)]], ids=["lock", "no lock"])
def test_of_two_processes_exactly_one_makes_the_file(
    faults: list[Fault], launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    for index in range(3):
        (tmp_path / str(index)).mkdir()
        check_race(faults, launcher, tiny_model, tmp_path / str(index))


@pytest.mark.slow
@pytest.mark.parametrize("faults", [[], [Fault("lock", "yes", times=0)]], ids=["lock", "no lock"])
def test_of_two_processes_exactly_one_makes_the_file_50_times(
    faults: list[Fault], launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    for index in range(50):
        (tmp_path / str(index)).mkdir()
        check_race(faults, launcher, tiny_model, tmp_path / str(index))


def test_part_file_without_frames_is_removed(tmp_path: Path) -> None:
    writer = open_writer(str(tmp_path / "a.mp4"), width=32, height=32, fps=TINY_FPS)
    assert [path.name for path in tmp_path.iterdir()] == ["a.part.mp4"]
    writer.close()
    assert not list(tmp_path.iterdir())
    part = PartFile(tmp_path / "b.mp4", overwrite=False, describe=str)
    assert part_path(tmp_path / "b.mp4").exists()
    part.discard()
    assert not list(tmp_path.iterdir())


# Memory.


def resident(pid: int) -> int:
    """Memory of a process that is its own or shared, in bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def soak(frames: int, launcher: Launcher, model: Path, folder: Path) -> list[tuple[int, int, int]]:
    """Make a long video; returns (frames done, resident bytes, open files) along the way."""
    command = ["generate", "-m", str(model), "-p", "a star", "--num-frames", str(frames)]
    command += ["-o", "a.mp4", "--json", "a.jsonl", "-q"]
    case = launcher.start(command, cwd=folder)
    samples: list[tuple[int, int, int]] = []
    step = frames // 60
    for mark in range(step, frames - step, step):
        until(lambda mark=mark: reported_fast(folder / "a.jsonl") >= mark)
        files = len(os.listdir(f"/proc/{case.pid}/fd"))
        samples.append((mark, resident(case.pid), files))
    assert case.wait(120) == 0
    return samples


def reported_fast(path: Path) -> int:
    """Frames reported so far, from the last whole line only."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 1000))
            lines = file.read().split(b"\n")[:-1]
        line = json.loads(lines[-1])
        return line.get("first_frame", 0) + line.get("num_frames", 0)
    except (OSError, IndexError, ValueError):
        return 0


@linux
def test_memory_does_not_grow_with_the_length(
    launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    """3,000 frames; keeping a tensor of each frame (3 KB) in the last 2,000 would be 6 MB."""
    samples = soak(3000, launcher, tiny_model, tmp_path)
    late = [(size, files) for frames, size, files in samples if frames >= 1000]
    assert len(late) >= 10
    # The allocator's arenas still settle by a megabyte or two in so short a run.
    assert late[-1][0] - late[0][0] <= 3 * 2**20
    assert len({files for _, files in late}) == 1


@pytest.mark.slow
def test_memory_does_not_grow_over_an_hour_of_video(
    launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    samples = soak(57600, launcher, tiny_model, tmp_path)
    late = [(frames, size) for frames, size, _ in samples if frames >= 5000]
    mean_frames = sum(frames for frames, _ in late) / len(late)
    mean_size = sum(size for _, size in late) / len(late)
    slope = sum((f - mean_frames) * (size - mean_size) for f, size in late) / sum(
        (f - mean_frames) ** 2 for f, _ in late
    )
    assert slope * 57600 <= 8 * 2**20
    first_minute = max(size for frames, size, _ in samples if frames <= 1920)
    assert max(size for _, size, _ in samples) <= first_minute + 16 * 2**20
    assert len({files for _, _, files in samples[1:]}) == 1
    assert num_frames(tmp_path / "a.mp4") == 57600
