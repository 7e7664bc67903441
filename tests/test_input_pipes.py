"""Claim: a video that is still being made can be edited as it arrives, from any pipe, to its end.

Rows of the reliability bar: 13 (input that breaks off), D11 (nothing piles up).
"""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numbered_video import number_of, numbered, steady, write_numbered

from streamdit_cli.errors import InputError
from streamdit_cli.video_input import VideoInput, open_video

SIZE = (64, 32)
RAW = {"input_size": SIZE, "input_fps": 30.0}
HEADER = b"YUV4MPEG2 W64 H32 F30:1 C444\n"
# A frame that has arrived is given out within this time, on a machine that is busy otherwise.
SOON = 3.0


@pytest.fixture
def as_stdin() -> Iterator[Callable[[int], None]]:
    """Puts a descriptor in the place of standard input."""
    before = os.dup(0)

    def put(descriptor: int) -> None:
        os.dup2(descriptor, 0)
        os.close(descriptor)

    yield put
    os.dup2(before, 0)
    os.close(before)


@pytest.fixture
def pipe(as_stdin: Callable[[int], None]) -> Iterator[int]:
    """The end of a pipe that is written to, while standard input is the other one."""
    reader, writer = os.pipe()
    as_stdin(reader)
    yield writer
    try:
        os.close(writer)
    except OSError:  # the test closed it
        return


def frame_bytes(number: int) -> bytes:
    """A frame of y4m that carries a number: grey, full range is not needed for it."""
    luma = numbered(number, *SIZE)[..., 0].tobytes()
    return b"FRAME\n" + luma + bytes([128]) * (2 * SIZE[0] * SIZE[1])


def numbers(video: VideoInput) -> list[int]:
    with video:
        return [number_of(frame) for frame in video]


@pytest.mark.parametrize("suffix", [".y4m", ".nut", ".ts", ".mkv", ".webm", "frag.mp4", ".rgb"])
def test_every_format_that_streams_is_read_from_another_process(
    tmp_path: Path, as_stdin: Callable[[int], None], suffix: str
) -> None:
    path = tmp_path / f"in{suffix}"
    if suffix == ".rgb":
        path.write_bytes(b"".join(numbered(number, *SIZE).tobytes() for number in range(20)))
    else:
        options = {"movflags": "frag_keyframe+empty_moov"} if suffix == "frag.mp4" else {}
        write_numbered(path, steady(20), options=options)
    copy = (
        "import sys, time\n"
        f"for block in iter(lambda file=open({str(path)!r}, 'rb'): file.read(3000), b''):\n"
        "    sys.stdout.buffer.write(block); sys.stdout.buffer.flush(); time.sleep(0.001)\n"
    )
    with subprocess.Popen([sys.executable, "-c", copy], stdout=subprocess.PIPE) as sender:
        assert sender.stdout is not None
        as_stdin(os.dup(sender.stdout.fileno()))
        sender.stdout.close()
        raw: dict[str, Any] = RAW if suffix == ".rgb" else {}
        video = open_video("-", size=SIZE, fps=30, **raw)
        assert (video.name, video.duration, video.num_frames) == ("standard input", None, None)
        assert video.source_fps == pytest.approx(30, abs=0.1)
        assert numbers(video) == list(range(20))
        assert not video.damage


def test_a_frame_is_given_out_before_the_next_one_is_sent(pipe: int) -> None:
    os.write(pipe, HEADER + frame_bytes(0))
    with open_video("-", size=SIZE, fps=30) as video:
        assert number_of(next(video)) == 0
        for number in range(1, 6):
            os.write(pipe, frame_bytes(number))
            began = time.monotonic()
            assert number_of(next(video)) == number
            assert time.monotonic() - began < SOON


def test_a_raw_frame_is_given_out_before_the_next_one_is_sent(pipe: int) -> None:
    os.write(pipe, numbered(0, *SIZE).tobytes())
    with open_video("-", size=SIZE, fps=30, **RAW) as video:
        assert number_of(next(video)) == 0
        os.write(pipe, numbered(1, *SIZE).tobytes())
        assert number_of(next(video)) == 1


def test_closing_ends_a_read_that_waits_for_a_silent_sender(pipe: int) -> None:
    os.write(pipe, HEADER + frame_bytes(0))
    video = open_video("-", size=SIZE, fps=30)
    shown: list[int] = []
    reader = threading.Thread(target=lambda: shown.extend(map(number_of, video)), daemon=True)
    reader.start()
    time.sleep(0.3)
    video.close()
    reader.join(SOON)
    assert not reader.is_alive()
    assert shown == [0]


def test_a_sender_that_dies_in_a_frame_leaves_the_frames_before(
    pipe: int, capsys: pytest.CaptureFixture[str]
) -> None:
    os.write(pipe, HEADER + b"".join(map(frame_bytes, range(5))) + frame_bytes(5)[:500])
    os.close(pipe)
    video = open_video("-", size=SIZE, fps=30)
    assert numbers(video) == [0, 1, 2, 3, 4]
    assert "cut off after 5 frames" in video.damage
    assert "warning: standard input:" in capsys.readouterr().err


def test_an_mp4_with_its_index_at_the_end_is_explained(tmp_path: Path, pipe: int) -> None:
    path = tmp_path / "in.mp4"
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    with av.open(str(path), "w") as file:  # large enough that no buffer holds all of it
        stream: Any = file.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 256, 256, "yuvj420p"
        for _ in range(20):
            picture = av.VideoFrame.from_ndarray(noise, format="rgb24")
            file.mux(stream.encode(picture.reformat(format="yuvj420p")))
        file.mux(stream.encode(None))
    data = path.read_bytes()
    assert len(data) > 300_000
    sender = threading.Thread(target=send, args=(pipe, data), daemon=True)
    sender.start()
    with pytest.raises(InputError, match="index at the end") as caught:
        open_video("-", size=SIZE, fps=30)
    assert "faststart" in caught.value.hint


def send(descriptor: int, data: bytes) -> None:
    """Write until all of it is read, or the reader has gone."""
    try:
        for place in range(0, len(data), 4096):
            os.write(descriptor, data[place : place + 4096])
    except BrokenPipeError:
        pass
    os.close(descriptor)


def test_a_file_as_standard_input_may_have_its_index_anywhere(
    tmp_path: Path, as_stdin: Callable[[int], None]
) -> None:
    path = write_numbered(tmp_path / "in.mp4", steady(10))
    as_stdin(os.open(path, os.O_RDONLY))
    assert numbers(open_video("-", size=SIZE, fps=30)) == list(range(10))


@pytest.mark.parametrize(("data", "reason"), [(b"", "is empty"), (b"hello\n" * 99, "not a video")])
def test_standard_input_without_video_is_refused(pipe: int, data: bytes, reason: str) -> None:
    os.write(pipe, data)
    os.close(pipe)
    with pytest.raises(InputError, match=reason) as caught:
        open_video("-", size=SIZE, fps=30)
    assert caught.value.hint


def test_a_terminal_is_no_video(as_stdin: Callable[[int], None]) -> None:
    controller, terminal = pty.openpty()
    as_stdin(terminal)
    with pytest.raises(InputError, match="is a terminal"):
        open_video("-", size=SIZE, fps=30)
    os.close(controller)
