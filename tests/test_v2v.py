"""Claim: `v2v` gives a frame for every frame of any input, and `--start` goes on from its last one.

Every command line runs in a process of its own, with a tiny model.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from conftest import TINY_FPS, TINY_SIDE
from launcher import Ended, Fault, Launcher, until
from numbered_video import number_of, numbered, steady, write_numbered
from PIL import Image
from torch import Tensor

from streamdit_cli.video import probe, read_video
from streamdit_cli.video_input import open_video

SIZE: dict[str, Any] = {"width": TINY_SIDE, "height": TINY_SIDE}
EXACT = ("--codec", "ffv1")
FRAMES = 27  # of the input at the rate of the model: neither whole chunks nor whole latent frames


def edit(model: Path, source: object, *more: str) -> list[str]:
    return ["v2v", str(source), "-m", str(model), "-p", "a star", "--seed", "5", *more]


def start(model: Path, *more: str) -> list[str]:
    return ["generate", "-m", str(model), "-p", "a star", "--seed", "5", *more]


def frames_of(path: Path) -> Tensor:
    return torch.stack(list(read_video(path)))


def packets(path: Path, kind: str) -> list[bytes]:
    with av.open(str(path)) as container:
        stream = next(iter(getattr(container.streams, kind)))
        return [bytes(packet) for packet in container.demux(stream) if packet.size]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video with sound, at the rate and of the size of the model."""
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    return write_numbered(path, steady(FRAMES, TINY_FPS), fps=TINY_FPS, sound="aac", **SIZE)


@pytest.fixture(scope="module")
def edited(launcher: Launcher, tiny_model: Path, clip: Path) -> Path:
    """The clip, edited without loss; its record beside it."""
    path = clip.with_name("edited.mkv")
    words = edit(tiny_model, clip, "-o", path.name, *EXACT, "--json", "edited.jsonl")
    ended = launcher.run(words, cwd=path.parent)
    assert ended.code == 0, ended.stderr
    assert f"from {clip} (32x32, 16 FPS) at strength 0.5," in ended.stderr
    return path


def refused(ended: Ended, code: int, *said: str) -> None:
    assert ended.code == code, ended.stderr
    assert all(words in ended.stderr for words in said), ended.stderr


# The input.


def test_edit_has_every_frame_of_the_input_and_its_sound_packet_for_packet(
    edited: Path, clip: Path
) -> None:
    video = probe(edited)
    assert (video.num_frames, video.seconds) == (FRAMES, FRAMES / TINY_FPS)
    said, kept = packets(clip, "audio"), packets(edited, "audio")
    assert kept in [said[first:][: len(kept)] for first in (0, 1)]  # the encoder primes with one
    assert len(kept) * 1024 / 48000 == pytest.approx(FRAMES / TINY_FPS, abs=2 * 1024 / 48000)
    record = video.record
    assert (record["input"], record["strength"], record["fps"]) == ("clip.mp4", "0.5", "16")
    assert (record["prompt"], record["seed"]) == ("a star", "5")
    assert str(clip.parent) not in json.dumps(record)
    header = json.loads(edited.with_name("edited.jsonl").read_text().splitlines()[0])
    assert (header["input"], header["strength"], header["seconds"]) == (
        "clip.mp4",
        "0.5",
        FRAMES / TINY_FPS,
    )


def test_edit_of_a_pipe_into_a_pipe_has_the_frames_of_the_edit_of_a_file(
    launcher: Launcher, tiny_model: Path, tmp_path: Path, edited: Path
) -> None:
    raw = torch.stack([frame[0] for frame in open_tiny(edited.with_name("clip.mp4"))])
    (tmp_path / "in.rgb").write_bytes(raw.numpy().tobytes())
    reader, writer = os.pipe()
    sender = threading.Thread(target=send, args=(writer, tmp_path / "in.rgb"))
    sender.start()
    words = edit(tiny_model, "-", "--input-size", "32x32", "--input-fps", "16")
    ended = launcher.run([*words, "-o", "-", "--pipe-format", "rgb24"], cwd=tmp_path, stdin=reader)
    os.close(reader)
    sender.join()
    assert ended.code == 0, ended.stderr
    assert "to the end of the input" in ended.stderr
    got = torch.frombuffer(bytearray(ended.stdout), dtype=torch.uint8)
    assert torch.equal(got.view(-1, TINY_SIDE, TINY_SIDE, 3), frames_of(edited))


def open_tiny(path: Path) -> Any:
    return open_video(str(path), size=(TINY_SIDE, TINY_SIDE), fps=TINY_FPS)


def send(descriptor: int, path: Path) -> None:
    with os.fdopen(descriptor, "wb") as pipe:
        pipe.write(path.read_bytes())


def test_y4m_goes_through_from_standard_input_to_standard_output(
    launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    write_numbered(tmp_path / "in.y4m", steady(FRAMES, TINY_FPS), fps=TINY_FPS, **SIZE)
    with (tmp_path / "in.y4m").open("rb") as file:
        words = edit(tiny_model, "-", "-o", "-")
        ended = launcher.run(words, cwd=tmp_path, stdin=file.fileno())
    assert ended.code == 0, ended.stderr
    assert ended.stdout.startswith(b"YUV4MPEG2 W32 H32 F16:1 ")
    assert ended.stdout.count(b"FRAME\n") == FRAMES


@pytest.mark.parametrize(
    ("more", "count"),
    [(["--seconds", "1"], 16), (["--num-frames", "9"], 9), (["--seconds", "9"], 27)],
)
def test_length_is_exact_and_never_longer_than_the_input(
    launcher: Launcher, tiny_model: Path, tmp_path: Path, edited: Path, more: list[str], count: int
) -> None:
    clip = edited.with_name("clip.mp4")
    ended = launcher.run(edit(tiny_model, clip, *more, "-o", "a.mkv", *EXACT), cwd=tmp_path)
    assert ended.code == 0, ended.stderr
    short, whole = frames_of(tmp_path / "a.mkv"), frames_of(edited)
    assert len(short) == count
    assert torch.equal(short, whole) == (count == FRAMES)  # a shorter input ends with a still


def test_rate_of_the_source_keeps_every_frame_and_that_of_the_model_keeps_the_time(
    launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    write_numbered(tmp_path / "in.mp4", steady(30, 30), width=64, height=32)
    for name, more, count, fps in (("a", ["--fps", "source"], 30, 30), ("b", [], 16, 16)):
        words = edit(tiny_model, "in.mp4", *more, "-o", f"{name}.mp4", "--no-metadata")
        assert launcher.run(words, cwd=tmp_path).code == 0
        video = probe(tmp_path / f"{name}.mp4")
        assert (video.num_frames, video.fps, video.seconds) == (count, fps, 1.0)
        assert "seed" not in video.record


def test_prompts_over_time_are_in_the_time_of_the_output(
    launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    write_numbered(tmp_path / "in.mp4", steady(40, 20), fps=20, **SIZE)
    words = edit(tiny_model, "in.mp4", "-p", "a ring", "--fps", "source", "--json", "a.jsonl")
    assert launcher.run([*words, "-o", "a.mp4"], cwd=tmp_path).code == 0
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    chunks = [line for line in lines if line["record"] == "chunk"]
    assert [chunk["seconds"] for chunk in chunks] == [0.0, 0.4, 0.8, 1.2, 1.6]
    assert lines[0]["prompts"] == json.dumps([["a star", 0.0], ["a ring", 1.0]])


def test_damaged_input_gives_the_frames_before_the_damage_and_exit_code_3(
    launcher: Launcher, tiny_model: Path, tmp_path: Path, edited: Path
) -> None:
    write_numbered(tmp_path / "whole.y4m", steady(FRAMES, TINY_FPS), fps=TINY_FPS, **SIZE)
    whole = (tmp_path / "whole.y4m").read_bytes()
    (tmp_path / "in.y4m").write_bytes(whole[: len(whole) - 100])
    ended = launcher.run(edit(tiny_model, "in.y4m", "-o", "a.mp4"), cwd=tmp_path)
    refused(ended, 3, "in.y4m: it is cut off")
    assert probe(tmp_path / "a.mp4").num_frames == FRAMES - 1


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["--strength", "0.1"], 2, "0.25, 0.5, 0.75, 1"),
        (["--strength", "0"], 2, "above 0 and at most 1"),
        (["--input-size", "32x32"], 2, "add --input-fps"),
        (["--size", "64x64"], 2, "allowed: 32x32"),
        (["--seconds", "1", "--num-frames", "3"], 2, "exclude each other"),
    ],
)
def test_options_that_cannot_be_are_refused_before_weights_are_loaded(
    launcher: Launcher,
    tiny_model: Path,
    tmp_path: Path,
    clip: Path,
    more: list[str],
    code: int,
    said: str,
) -> None:
    no_weights = [Fault("load", "oom", times=0)]
    words = edit(tiny_model, clip, *more, "-o", "a.mp4")
    refused(launcher.run(words, cwd=tmp_path, faults=no_weights), code, said)
    assert not list(tmp_path.iterdir())


def test_input_that_is_none_is_refused_and_leaves_nothing(
    launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    reader, writer = os.openpty()
    words = edit(tiny_model, "-", "-o", "a.mp4")
    refused(launcher.run(words, cwd=tmp_path, stdin=writer), 4, "standard input is a terminal")
    os.close(reader)
    os.close(writer)
    words = edit(tiny_model, "none.mp4", "-o", "a.mp4")
    refused(launcher.run(words, cwd=tmp_path), 4, "none.mp4 is not there")
    words = edit(tiny_model, "-", "--interactive", "-o", "a.mp4")
    refused(launcher.run(words, cwd=tmp_path), 2, "--prompts-from FIFO")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("asked", "used"), [("0.6", "0.5"), ("0.25", "0.25"), ("1", "1")])
def test_nearest_strength_of_the_model_is_used_and_shown(
    launcher: Launcher, tiny_model: Path, tmp_path: Path, clip: Path, asked: str, used: str
) -> None:
    words = edit(tiny_model, clip, "--strength", asked, "--dry-run", "-o", "a.mp4")
    ended = launcher.run(words, cwd=tmp_path)
    refused(ended, 0, f"at strength {used},", "nothing was made")
    assert not list(tmp_path.iterdir())


# How it ends, and who speaks meanwhile.


def test_ctrl_c_ends_an_edit_of_a_pipe_that_has_stopped_to_give(
    launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    reader, writer = os.pipe()
    words = edit(tiny_model, "-", "--input-size", "32x32", "--input-fps", "16", "-o", "a.mkv")
    case = launcher.start(words, cwd=tmp_path, stdin=reader)
    os.close(reader)
    os.write(writer, bytes(3 * TINY_SIDE**2) * 20)  # too few for any chunk to be whole
    until(lambda: (tmp_path / "a.part.mkv").exists())
    case.settle()
    case.send(signal.SIGINT)
    assert case.wait(20) == 130
    os.close(writer)
    assert 0 < probe(tmp_path / "a.mkv").num_frames <= 20


def test_prompt_from_a_fifo_changes_an_edit_that_ends_with_its_input(
    launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "prompts")
    reader, writer = os.pipe()
    raw = ["--input-size", "32x32", "--input-fps", "16"]
    words = ["v2v", "-", *raw, "-m", str(tiny_model), "--prompts-from", "prompts", "--seed", "5"]
    case = launcher.start([*words, "-o", "a.mp4"], cwd=tmp_path, stdin=reader)
    os.close(reader)
    os.write(writer, bytes(3 * TINY_SIDE**2) * 40)
    with (tmp_path / "prompts").open("w") as fifo:
        fifo.write("a blue ring\n")
    until(lambda: "a blue ring" in read(tmp_path / "a.prompts.jsonl"))
    for _ in range(4):
        os.write(writer, bytes(3 * TINY_SIDE**2) * 20)
    os.close(writer)
    assert case.wait() == 0
    video = probe(tmp_path / "a.mp4")
    assert video.num_frames == 120
    assert "a blue ring" in video.record["timeline"]


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


# --start


def test_stream_goes_on_from_the_last_frames_of_a_long_video(
    launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    write_numbered(tmp_path / "in.mkv", steady(90, TINY_FPS), fps=TINY_FPS, **SIZE)
    words = start(tiny_model, "--start", "in.mkv", "--num-frames", "21")
    ended = launcher.run([*words, "-o", "a.mkv", *EXACT], cwd=tmp_path)
    assert ended.code == 0, ended.stderr
    assert "from in.mkv (32x32, 5.6 s)," in ended.stderr
    assert probe(tmp_path / "a.mkv").record["start_video"] == "in.mkv"
    kept = launcher.run(
        [*words, "--keep-start", "-o", "b.mkv", *EXACT, "--json", "b.jsonl"], cwd=tmp_path
    )
    assert kept.code == 0, kept.stderr
    both, alone = frames_of(tmp_path / "b.mkv"), frames_of(tmp_path / "a.mkv")
    assert len(alone) == 21
    assert len(both) == 90 + 21
    assert [number_of(frame) for frame in both[:90]] == list(range(90))
    with open_tiny(tmp_path / "in.mkv") as video:
        assert torch.equal(both[:90], torch.cat(list(video)))
    assert torch.equal(both[90:], alone)
    assert probe(tmp_path / "b.mkv").record["first_frame"] == "-90"
    lines = [json.loads(line) for line in (tmp_path / "b.jsonl").read_text().splitlines()]
    assert [line["first_frame"] for line in lines if line["record"] == "chunk"] == [0, 8, 16]
    again = ["generate", "--from", "b.mkv", "-m", str(tiny_model), "-o", "c.mkv", *EXACT]
    refused(launcher.run(again, cwd=tmp_path), 4, "'in.mkv'", "--start FILE --keep-start")
    again += ["--start", "in.mkv", "--keep-start"]
    assert launcher.run(again, cwd=tmp_path).code == 0
    assert torch.equal(frames_of(tmp_path / "c.mkv"), both)


def test_start_image_decides_the_frames_and_is_kept_as_one_frame(
    launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    for name, number in (("a.png", 85), ("b.png", 170)):
        Image.fromarray(numbered(number, TINY_SIDE, TINY_SIDE)).save(tmp_path / name)
        words = start(tiny_model, "--start", name, "--keep-start", "--num-frames", "8")
        ended = launcher.run([*words, "-o", f"{name}.mkv", *EXACT], cwd=tmp_path)
        assert ended.code == 0, ended.stderr
    one, other = frames_of(tmp_path / "a.png.mkv"), frames_of(tmp_path / "b.png.mkv")
    assert (number_of(one[0]), number_of(other[0])) == (85, 170)
    assert len(one) == 9
    assert not torch.equal(one[1:], other[1:])


def test_stream_behind_a_start_video_can_be_kept_and_gone_on_with(
    launcher: Launcher, tiny_model: Path, tmp_path: Path, clip: Path
) -> None:
    begin = start(tiny_model, "--start", str(clip), *EXACT)
    for name, more in (
        ("whole.mkv", ["--num-frames", "30"]),
        ("a.mkv", ["--num-frames", "13", "--keep-start", "--save-state", "a.state"]),
    ):
        ended = launcher.run([*begin, *more, "-o", name], cwd=tmp_path)
        assert ended.code == 0, ended.stderr
    rest = ["generate", "--resume-state", "a.state", "--num-frames", "17", *EXACT]
    ended = launcher.run([*rest, "-o", "b.mkv"], cwd=tmp_path)
    assert ended.code == 0, ended.stderr
    both = torch.cat([frames_of(tmp_path / "a.mkv")[FRAMES:], frames_of(tmp_path / "b.mkv")])
    assert torch.equal(both, frames_of(tmp_path / "whole.mkv"))
    refused(launcher.run([*rest, "--start", "a.png", "-o", "c.mkv"], cwd=tmp_path), 2, "goes on")


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["--start", "none.png"], 4, "none.png is not there"),
        (["--keep-start"], 2, "--start FILE --keep-start"),
        (["--start", "clip", "--keep-start"], 2, "needs a file"),
        (["--start", "-", "--keep-start"], 2, "standard input"),
    ],
)
def test_start_that_cannot_be_is_refused(
    launcher: Launcher, tiny_model: Path, tmp_path: Path, more: list[str], code: int, said: str
) -> None:
    refused(launcher.run(start(tiny_model, *more, "-o", "a.mp4"), cwd=tmp_path), code, said)
    assert not list(tmp_path.iterdir())
