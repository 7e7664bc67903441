"""Claim: a pipe carries nothing but video, every player reads it, and it never hangs or crashes.

Rows of the reliability bar: 2 (signals), 12 (broken pipe), 13 (slow reader), 14 (only media), 15
(same seed, same frames in file and pipe).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_CHUNK, TINY_FPS, TINY_SIDE
from launcher import Case, Fault, Launcher

from streamdit_cli.errors import OutputError, UsageError
from streamdit_cli.output import open_writer
from streamdit_cli.pipe import Pipe
from streamdit_cli.video import probe, read_video

HEADER = b"YUV4MPEG2 W32 H32 F16:1 Ip A0:0 C420jpeg XYSCSS=420JPEG XCOLORRANGE=LIMITED\n"
FRAME = len(b"FRAME\n") + TINY_SIDE * TINY_SIDE * 3 // 2
RAW_FRAME = TINY_SIDE * TINY_SIDE * 3
SIGNALS = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}
# A signal ends a run within 2 seconds; a machine busy with other work gets as much again.
SIGNAL_SECONDS = 4.0

needs_ffmpeg = pytest.mark.skipif(not shutil.which("ffmpeg"), reason="ffmpeg is the reader")


def words(model: Path, seconds: float | str, *more: str) -> list[str]:
    length = ["--seconds", str(seconds), "--seed", "5"]
    return ["generate", "-m", str(model), "-p", "a star", *length, "-o", "-", *more]


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def md5s(path: Path) -> list[str]:
    return [line["md5"] for line in records(path) if line["record"] == "chunk"]


def y4m_frames(data: bytes) -> int:
    """Parse y4m by hand; returns the number of frames and allows not one stray byte."""
    assert data.startswith(HEADER)
    body = data[len(HEADER) :]
    assert len(body) % FRAME == 0
    assert all(body[place : place + 6] == b"FRAME\n" for place in range(0, len(body), FRAME))
    return len(body) // FRAME


@contextmanager
def piped(launcher: Launcher, command: list[str], **settings: Any) -> Iterator[tuple[Case, int]]:
    """Run a command line into a pipe; gives the case and the descriptor to read."""
    reader, writer = os.pipe()
    try:
        case = launcher.start(command, stdout=writer, **settings)
    finally:
        os.close(writer)
    try:
        yield case, reader
    finally:
        os.close(reader)
        if case.is_running:
            case.send(signal.SIGKILL)
            case.wait()


def read_all(descriptor: int) -> bytes:
    data = bytearray()
    while part := os.read(descriptor, 1 << 16):
        data += part
    return bytes(data)


def leave(reader: int) -> None:
    """Close the reading end, and keep its number taken."""
    nowhere = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nowhere, reader)
    os.close(nowhere)


# What is in the pipe.


def test_y4m_has_exactly_its_frames_whatever_libraries_print(
    launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    chatter = [Fault(site, "chatter", times=0) for site in ("load", "velocity", "decode")]
    command = words(tiny_model, 2.1, "-v")
    ended = launcher.run(command, cwd=tmp_path, faults=chatter)
    assert ended.code == 0, ended.stderr
    assert y4m_frames(ended.stdout) == round(2.1 * TINY_FPS)
    for kind in ("print", "write", "puts", "a child", "warnings", "logging"):
        assert f"chatter of {kind}" in ended.stderr
    quiet = launcher.run(words(tiny_model, 2.1, "-q"), cwd=tmp_path)
    assert (quiet.code, quiet.stderr) == (0, "")
    assert quiet.stdout == ended.stdout


def test_rgb24_and_nut_and_file_hold_the_same_frames_as_the_stream(
    launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    raw = launcher.run(
        words(tiny_model, 2, "--pipe-format", "rgb24", "--json", "raw.jsonl"), cwd=tmp_path
    )
    assert len(raw.stdout) == 32 * RAW_FRAME
    parts = torch.frombuffer(bytearray(raw.stdout), dtype=torch.uint8).split(TINY_CHUNK * RAW_FRAME)
    found = [hashlib.md5(part.numpy().tobytes()).hexdigest() for part in parts]
    assert found == md5s(tmp_path / "raw.jsonl")
    nut = launcher.run(
        words(tiny_model, 2, "--pipe-format", "nut", "--json", "nut.jsonl"), cwd=tmp_path
    )
    (tmp_path / "a.nut").write_bytes(nut.stdout)
    frames = torch.stack(list(read_video(tmp_path / "a.nut")))
    assert frames.numpy().tobytes() == raw.stdout
    assert probe(tmp_path / "a.nut").record["prompt"] == "a star"
    # The longer video begins with the same frames, and the sink does not matter.
    file = [word if word != "-" else "a.mp4" for word in words(tiny_model, 3, "--json", "f.jsonl")]
    assert launcher.run(file, cwd=tmp_path).code == 0
    assert md5s(tmp_path / "nut.jsonl") == found == md5s(tmp_path / "f.jsonl")[: len(found)]


@needs_ffmpeg
@pytest.mark.parametrize("form", ["y4m", "nut"])
def test_ffmpeg_reads_the_pipe_with_no_flags(
    form: str, launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    ended = launcher.run(words(tiny_model, 2, "--pipe-format", form), cwd=tmp_path)
    command = ["ffmpeg", "-v", "warning", "-i", "-", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run(command, input=ended.stdout, capture_output=True, check=True)
    assert len(done.stdout) == 32 * RAW_FRAME
    raw = launcher.run(words(tiny_model, 2, "--pipe-format", "rgb24"), cwd=tmp_path).stdout
    if form == "nut":
        assert done.stdout == raw
        assert done.stderr == b""


@needs_ffmpeg
def test_printed_ffmpeg_line_reads_rgb24(
    launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    ended = launcher.run(words(tiny_model, 2, "--pipe-format", "rgb24"), cwd=tmp_path)
    line = re.search(r"ffmpeg -f rawvideo .*", ended.stderr)
    assert line is not None
    subprocess.run(
        ["bash", "-c", f"{line[0]} -v error"], input=ended.stdout, check=True, cwd=tmp_path
    )
    assert probe(tmp_path / "out.mp4").num_frames == 32


def test_y4m_pixels_are_bt601_as_its_readers_assume(tmp_path: Path) -> None:
    """An independent path: the planes in the pipe against the equations of BT.601."""
    colours = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [30, 90, 160]])
    frames = colours.to(torch.uint8).repeat_interleave(16, 0).expand(1, 16, -1, 3).contiguous()
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    writer = open_writer(str(fifo), width=80, height=16, fps=TINY_FPS)
    writer.write(frames)
    writer.close()
    data = read_all(reader)
    os.close(reader)
    body = bytearray(data[data.index(b"FRAME\n") + 6 :])
    y, u, v = torch.frombuffer(body, dtype=torch.uint8).split([80 * 16, 40 * 8, 40 * 8])
    rgb = colours.double() / 255
    luma = rgb @ torch.tensor([0.299, 0.587, 0.114], dtype=torch.double)
    expected = {
        "y": (16 + 219 * luma, y.view(16, 80)[8, 8::16]),
        "u": (128 + 224 * (rgb[:, 2] - luma) / 1.772, u.view(8, 40)[4, 4::8]),
        "v": (128 + 224 * (rgb[:, 0] - luma) / 1.402, v.view(8, 40)[4, 4::8]),
    }
    for plane, (wanted, found) in expected.items():  # integer arithmetic of the conversion: 1
        assert (found.double() - wanted).abs().max() <= 1, plane


# Who reads it, and how it ends.


def test_fifo_is_written_directly(launcher: Launcher, tiny_model: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.mp4")
    command = [word if word != "-" else "fifo.mp4" for word in words(tiny_model, 2)]
    case = launcher.start(command, cwd=tmp_path)
    assert y4m_frames((tmp_path / "fifo.mp4").read_bytes()) == 32
    assert case.wait() == 0
    assert [path.name for path in tmp_path.iterdir()] == ["fifo.mp4"]


def test_terminal_is_refused_with_a_hint(
    launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    master, terminal = pty.openpty()
    try:
        ended = launcher.run(words(tiny_model, 2), cwd=tmp_path, stdout=terminal)
        assert ended.code == 2
        assert "terminal" in ended.errors[0] and "-o out.mp4" in ended.stderr.splitlines()[-1]
        assert "loading" not in ended.stderr
        with pytest.raises(UsageError, match="terminal"):
            open_writer(os.ttyname(terminal), width=32, height=32, fps=TINY_FPS)
        os.set_blocking(master, False)
        with pytest.raises(BlockingIOError):
            os.read(master, 1)
    finally:
        os.close(master)
        os.close(terminal)


@pytest.mark.parametrize(
    "size", [0, 1, len(HEADER), len(HEADER) + FRAME - 1, len(HEADER) + FRAME + 1]
)
def test_reader_that_leaves_ends_the_run_quietly(
    size: int, launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    """As `| head -c N`, before the first byte, in the header, and on both sides of a frame."""
    with (
        open(tmp_path / "err", "wb") as err,
        piped(launcher, words(tiny_model, "inf", "-q"), cwd=tmp_path, stderr=err.fileno()) as (
            case,
            reader,
        ),
    ):
        taken = b""
        while len(taken) < size and (part := os.read(reader, size - len(taken))):
            taken += part
        assert len(taken) == size
        leave(reader)
        assert case.wait() == 141
    assert (tmp_path / "err").read_bytes() == b""


def test_summary_says_what_a_reader_who_left_had(
    launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    with piped(launcher, words(tiny_model, "inf", "--json", "a.jsonl"), cwd=tmp_path) as (
        case,
        reader,
    ):
        os.read(reader, 1)
        leave(reader)
        assert case.wait() == 141
    summary = records(tmp_path / "a.jsonl")[-1]
    assert summary["record"] == "summary" and summary["ended"] == "BrokenPipeError"
    assert summary["output"] == "standard output"


def test_closed_stdout_is_a_reader_who_left(
    launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    ended = launcher.run(words(tiny_model, 2, "-q"), cwd=tmp_path, stdout=-1)
    assert (ended.code, ended.stderr) == (141, "")


def test_full_device_is_an_output_error(
    launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    with open("/dev/full", "wb") as full:
        ended = launcher.run(words(tiny_model, "inf"), cwd=tmp_path, stdout=full.fileno())
    assert ended.code == 6
    assert len(ended.errors) == 1 and "No space left on device" in ended.errors[0]
    command = [word if word != "-" else "/dev/full" for word in words(tiny_model, "inf")]
    named = launcher.run(command, cwd=tmp_path)
    assert named.code == 6 and "/dev/full: No space left" in named.errors[0]


def test_block_device_and_socket_are_no_outputs(tmp_path: Path) -> None:
    with pytest.raises((UsageError, OutputError)):
        open_writer("/dev/loop0", width=32, height=32, fps=TINY_FPS)


def test_reader_that_stops_and_goes_on_gets_every_byte(
    launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    whole = launcher.run(words(tiny_model, 12), cwd=tmp_path).stdout
    command = words(tiny_model, 12, "--json", "a.jsonl")
    with piped(launcher, command, cwd=tmp_path) as (case, reader):
        fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
        began = os.read(reader, 100)
        case.settle()
        before = resident(case.pid)
        time.sleep(1.0)
        # 4 frames and 2 MB; nothing may be made while nobody reads.
        assert resident(case.pid) - before <= 2 * 2**20 + 4 * RAW_FRAME
        assert len(md5s(tmp_path / "a.jsonl")) <= 2
        data = began + read_all(reader)
        assert case.wait() == 0
    assert data == whole


def resident(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("name", SIGNALS)
def test_signal_ends_a_run_whose_reader_has_stopped(
    name: str, launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    with piped(launcher, words(tiny_model, "inf"), cwd=tmp_path) as (case, reader):
        os.read(reader, 100)
        case.settle()
        began = time.monotonic()
        case.send(getattr(signal, name))
        assert case.wait() == SIGNALS[name]
        assert time.monotonic() - began <= SIGNAL_SECONDS


@pytest.mark.parametrize("number", [5, 60])
@pytest.mark.parametrize("name", SIGNALS)
def test_signal_leaves_whole_frames_in_the_pipe(
    name: str, number: int, launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    command = words(tiny_model, "inf", "--json", "a.jsonl")
    fault = Fault("encode", name, number)
    with piped(launcher, command, cwd=tmp_path, faults=[fault]) as (case, reader):
        data = read_all(reader)
        assert case.wait() == SIGNALS[name]
    frames = y4m_frames(data)
    assert frames >= number
    assert records(tmp_path / "a.jsonl")[-1]["num_frames"] == frames


@pytest.mark.slow
@pytest.mark.parametrize("number", range(1, 80, 4))
@pytest.mark.parametrize("name", SIGNALS)
def test_signal_leaves_whole_frames_in_the_pipe_at_20_points(
    name: str, number: int, launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    test_signal_leaves_whole_frames_in_the_pipe(name, number, launcher, tiny_model, tmp_path)


def test_stdout_may_be_a_file(launcher: Launcher, tiny_model: Path, tmp_path: Path) -> None:
    with open(tmp_path / "a.y4m", "wb") as file:
        case = launcher.start(words(tiny_model, 2), cwd=tmp_path, stdout=file.fileno())
        assert case.wait() == 0
    assert y4m_frames((tmp_path / "a.y4m").read_bytes()) == 32


def test_json_on_stderr_has_one_record_a_line(
    launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    ended = launcher.run(words(tiny_model, 2, "-q", "--json", "-"), cwd=tmp_path)
    lines = [json.loads(line) for line in ended.stderr.splitlines()]
    assert [line["record"] for line in lines] == ["header", *["chunk"] * 4, "summary"]
    assert y4m_frames(ended.stdout) == 32


def test_real_shell_pipe_into_head_ends_with_141(tiny_model: Path, tmp_path: Path) -> None:
    """The installed program itself, cold, as a user types it."""
    words = f"generate -m {tiny_model} --no-prompt --seconds inf -q -o -"
    program = f"{sys.executable} -m streamdit_cli {words} 2>err | head -c 5000 | wc -c"
    program += "; echo ${PIPESTATUS[0]}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "-c", program],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        timeout=120,
        check=True,
    )
    assert done.stdout.split() == ["5000", "141"]
    assert (tmp_path / "err").read_text() == ""


def test_pipe_gives_up_only_after_the_time_it_was_given() -> None:
    reader, writer = os.pipe()
    pipe = Pipe(writer, "a pipe")
    pipe.hurry(60)
    assert not pipe.is_late
    pipe.hurry(0)
    assert pipe.is_late
    assert pipe.write(b"x" * 100) == 100  # there is room: nothing is given up
    pipe.close()
    pipe.close()
    assert os.read(reader, 1000) == b"x" * 100
    os.close(reader)
