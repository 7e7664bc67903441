"""Claim: of every input the right frames come out, at the right size, upright and in true colours.

Rows of the reliability bar: 13 (malformed video), 14 (odd sizes, variable frame rates), 15 (large
pictures), 16 (decoders), 17 (addresses).
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numbered_video import number_of, numbered, seen_at, steady, write_numbered

from streamdit_cli.errors import InputError, UsageError
from streamdit_cli.frame_clock import FrameClock
from streamdit_cli.input_container import VIDEO_DECODERS
from streamdit_cli.video_input import VideoInput, open_video

SIZE = (64, 32)
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def numbers(path: Path, fps: float | None, **words: Any) -> list[int]:
    with open_video(str(path), size=SIZE, fps=fps, **words) as video:
        return [number_of(frame) for frame in video]


def run_clock(times: list[Fraction], ends: Fraction, fps: Fraction) -> list[int]:
    """The whole output of a clock, each frame lasting until the next one."""
    clock: FrameClock[int] = FrameClock(fps)
    shown: list[int] = []
    for number, (time, until) in enumerate(zip(times, [*times[1:], ends], strict=True)):
        shown += clock.arrive(time, until - time, number)
    return shown + list(clock.finish())


@given(
    steps=st.lists(st.integers(3, 200), min_size=1, max_size=40),
    fps=st.sampled_from([Fraction(16), Fraction(24), Fraction(30000, 1001), Fraction(60)]),
)
@settings(max_examples=60, deadline=None)
def test_clock_shows_the_latest_frame_that_has_begun_for_any_timestamps(
    steps: list[int], fps: Fraction
) -> None:
    times = [Fraction(0)]
    for step in steps:
        times.append(times[-1] + Fraction(step, 1000))
    *times, end = times
    assert run_clock(times, end, fps) == seen_at(times, end + Fraction(1, 1000), fps)


def test_clock_returns_a_frame_when_it_arrives_if_nothing_can_change_it() -> None:
    clock: FrameClock[int] = FrameClock(Fraction(30))
    for number in range(5):
        duration = Fraction(1, 30)
        assert list(clock.arrive(number * duration, duration, number)) == [number]


def test_clock_goes_on_where_the_timestamps_jump_back_or_far_ahead() -> None:
    clock: FrameClock[int] = FrameClock(Fraction(10))
    tenth = Fraction(1, 10)
    shown: list[int] = []
    for number, time in enumerate([0, 1, 2, -500, -499, 10**9, 10**9 + 1]):
        shown += clock.arrive(time * tenth, tenth, number)
    assert shown + list(clock.finish()) == [0, 1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("fps", [30, 16, 24, 60, 7.5, None])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_output_has_the_frames_that_the_timestamps_say(
    tmp_path: Path, suffix: str, fps: float | None
) -> None:
    path = write_numbered(tmp_path / f"in{suffix}", steady(31))
    rate = Fraction(fps or 30)
    assert numbers(path, fps) == seen_at(steady(31), Fraction(31, 30), rate)


@pytest.mark.parametrize("suffix", [".webm", ".nut", ".ts", ".y4m", ".avi"])
def test_every_container_gives_each_frame_once_at_its_own_rate(tmp_path: Path, suffix: str) -> None:
    path = write_numbered(tmp_path / f"in{suffix}", steady(20))
    assert numbers(path, 30) == list(range(20))


def test_variable_frame_rate_is_resampled_by_time_and_not_by_count(tmp_path: Path) -> None:
    steps = [Fraction(n, 1000) for n in [33] * 20 + [100] * 10 + [8] * 30 + [700, 41, 33]]
    times = [sum(steps[:number], Fraction(0)) for number in range(len(steps))]
    path = write_numbered(tmp_path / "in.mkv", times)
    shown = numbers(path, 16)
    expected = seen_at(times, times[-1] + Fraction(1, 30), Fraction(16))
    assert abs(len(shown) - len(expected)) <= 1
    assert shown == expected[: len(shown)]


def test_first_frame_is_time_zero_wherever_the_timestamps_begin(tmp_path: Path) -> None:
    times = [time + 7 for time in steady(20)]
    path = write_numbered(tmp_path / "in.mkv", times)
    assert numbers(path, 15) == list(range(0, 20, 2))


def test_seconds_end_the_output_to_the_frame(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "in.mp4", steady(60))
    assert numbers(path, 16, seconds=0.5) == seen_at(steady(60), Fraction(1, 2), Fraction(16))
    with open_video(str(path), size=SIZE, fps=16, seconds=0.5) as video:
        assert video.num_frames == 8


def test_skipped_frames_change_none_of_those_that_follow(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "in.mp4", steady(40))
    whole = numbers(path, 16)
    with open_video(str(path), size=SIZE, fps=16) as video:
        assert video.skip(9) == 9
        assert [number_of(frame) for frame in video] == whole[9:]
    with open_video(str(path), size=SIZE, fps=16) as video:
        assert video.skip(1000) == len(whole)


def test_frames_are_decoded_only_when_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_numbered(tmp_path / "in.y4m", steady(200))
    with open(path, "rb") as file:
        copy = os.dup(file.fileno())
        monkeypatch.setattr(os, "dup", lambda _: copy)
        video = open_video("-", size=SIZE, fps=30)
        next(video)
        first = os.lseek(file.fileno(), 0, os.SEEK_CUR)
        assert [number_of(next(video)) for _ in range(100)] == list(range(1, 101))
        later = os.lseek(file.fileno(), 0, os.SEEK_CUR)
    size = path.stat().st_size
    assert first < size / 3
    assert size / 3 < later < size * 2 / 3


def test_frames_are_uint8_and_know_where_they_come_from(tmp_path: Path) -> None:
    path = write_numbered(tmp_path / "in.mp4", steady(30), width=96, height=64)
    with open_video(str(path), size=(40, 24), fps=16) as video:
        frame = next(video)
        assert (frame.shape, frame.dtype) == ((1, 24, 40, 3), torch.uint8)
        assert (video.source_size, video.source_fps, video.fps) == ((96, 64), 30, 16)
        assert video.duration == pytest.approx(1.0, abs=1 / 30)
        assert (video.num_frames, video.rotation, video.has_audio) == (16, 0, False)


# Colours


def plane_video(
    path: Path,
    pixels: str,
    planes: list[int],
    *,
    tags: tuple[int, int] | None,
    size: tuple[int, int] = (32, 32),
) -> Path:
    """A video of one colour, given as code values of its planes, with matrix and range tags."""
    with av.open(str(path), "w") as file:
        video: Any = file.add_stream("ffv1", rate=10)
        video.width, video.height = size
        video.pix_fmt = pixels
        if tags is not None:
            video.codec_context.colorspace, video.codec_context.color_range = tags
        frame = av.VideoFrame(*size, pixels)
        for plane, value in zip(frame.planes, planes, strict=True):
            two = "10" in pixels
            data = value.to_bytes(2, "little") if two else bytes([value])
            plane.update(data * (plane.buffer_size // len(data)))
        frame.pts = 0
        if tags is not None:
            frame.colorspace, frame.color_range = tags
        file.mux(video.encode(frame))
        file.mux(video.encode(None))
    return path


def to_yuv(
    rgb: tuple[int, int, int], red: float, blue: float, *, full: bool, bits: int = 8
) -> list[int]:
    """Code values of a colour, by the definition of a matrix with these two weights."""
    r, g, b = (part / 255 for part in rgb)
    y = red * r + (1 - red - blue) * g + blue * b
    u, v = (b - y) / (2 - 2 * blue), (r - y) / (2 - 2 * red)
    unit, most = 1 << (bits - 8), (1 << bits) - 1
    if full:
        return [
            min(most, round(part)) for part in (most * y, *(128 * unit + most * c for c in (u, v)))
        ]
    return [round(unit * part) for part in (16 + 219 * y, 128 + 224 * u, 128 + 224 * v)]


WEIGHTS = {1: (0.2126, 0.0722), 6: (0.299, 0.114), 5: (0.299, 0.114), 9: (0.2627, 0.0593)}
PATCHES = [RED, GREEN, BLUE, WHITE, (0, 0, 0), (200, 120, 40), (30, 90, 160), (128, 128, 128)]


def middle(path: Path, **words: Any) -> list[int]:
    with open_video(str(path), size=(16, 16), fps=10, **words) as video:
        return next(video)[0, 8, 8].tolist()


@pytest.mark.parametrize("pixels", ["yuv420p", "yuv444p", "yuv422p", "yuv420p10le"])
@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", [1, 6, 9])
def test_tagged_colours_are_right_within_two_levels(
    tmp_path: Path, matrix: int, full: bool, pixels: str
) -> None:
    for rgb in PATCHES[:: 1 if pixels == "yuv420p" else 3]:
        bits = 10 if "10" in pixels else 8
        planes = to_yuv(rgb, *WEIGHTS[matrix], full=full, bits=bits)
        path = plane_video(tmp_path / "in.mkv", pixels, planes, tags=(matrix, 1 + full))
        worst = max(abs(a - b) for a, b in zip(middle(path), rgb, strict=True))
        assert worst <= 2, f"{rgb} became {middle(path)}"


@pytest.mark.parametrize(("size", "matrix"), [((64, 64), 6), ((1280, 64), 1), ((64, 720), 1)])
def test_untagged_colours_are_taken_for_what_the_size_suggests(
    tmp_path: Path, size: tuple[int, int], matrix: int
) -> None:
    planes = to_yuv((200, 120, 40), *WEIGHTS[matrix], full=False)
    path = plane_video(tmp_path / "in.mkv", "yuv420p", planes, tags=None, size=size)
    found = middle(path, fit="stretch")
    assert max(abs(a - b) for a, b in zip(found, (200, 120, 40), strict=True)) <= 2


def still(path: Path, array: np.ndarray[Any, Any], pixels: str, codec: str) -> Path:
    with av.open(str(path), "w") as file:
        video: Any = file.add_stream(codec, rate=10)
        video.height, video.width = array.shape[:2]
        video.pix_fmt = pixels
        frame = av.VideoFrame.from_ndarray(array, format=pixels)
        frame.pts = 0
        file.mux(video.encode(frame))
        file.mux(video.encode(None))
    return path


def test_what_is_transparent_lies_over_black(tmp_path: Path) -> None:
    picture = np.zeros((32, 32, 4), np.uint8)
    picture[...] = (200, 100, 50, 128)
    path = still(tmp_path / "in.png", picture, "rgba", "png")
    assert middle(path) == [100, 50, 25]


def test_grey_pictures_are_full_range(tmp_path: Path) -> None:
    path = still(tmp_path / "in.png", np.full((32, 32), 250, np.uint8), "gray", "png")
    assert middle(path) == [250, 250, 250]


@pytest.mark.parametrize("size", [(33, 17), (1, 1), (9, 5), (63, 31)])
def test_odd_sizes_are_fitted(tmp_path: Path, size: tuple[int, int]) -> None:
    planes = to_yuv((200, 120, 40), *WEIGHTS[6], full=False)
    path = plane_video(tmp_path / "in.mkv", "yuv420p", planes, tags=(6, 1), size=size)
    assert max(abs(a - b) for a, b in zip(middle(path), (200, 120, 40), strict=True)) <= 2


# Shapes


def quadrants(width: int, height: int) -> np.ndarray[Any, Any]:
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2] = RED
    picture[: height // 2, width // 2 :] = GREEN
    picture[height // 2 :, : width // 2] = BLUE
    picture[height // 2 :, width // 2 :] = WHITE
    return picture


def corners(frame: torch.Tensor) -> list[tuple[int, int, int]]:
    """The pure colours of the corners: top left, top right, bottom left, bottom right."""
    picture = frame[0]
    height, width = picture.shape[:2]
    places = [(row, column) for row in (2, height - 3) for column in (2, width - 3)]
    found = ((picture[row, column] > 127).int() * 255 for row, column in places)
    return [tuple(colour.tolist()) for colour in found]  # type: ignore[misc]


@pytest.fixture
def shape_video(tmp_path: Path) -> Path:
    """One frame of 96x48 with a colour in each quarter, as mp4."""
    path = tmp_path / "shape.mp4"
    with av.open(str(path), "w") as file:
        video: Any = file.add_stream("libx264", rate=10, options={"crf": "5"})
        video.width, video.height, video.pix_fmt = 96, 48, "yuv444p"
        frame = av.VideoFrame.from_ndarray(quadrants(96, 48), format="rgb24")
        frame.pts = 0
        file.mux(video.encode(frame.reformat(format="yuv444p")))
        file.mux(video.encode(None))
    return path


def turn(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Write a display matrix (a, b, c, d) into the track header of an mp4."""
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4 + 4 + 20 + 8 + 8
    a, b, c, d = (number << 16 for number in matrix)
    struct.pack_into(">9i", data, place, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("matrix", "expected", "rotation"),
    [
        ((1, 0, 0, 1), [RED, GREEN, BLUE, WHITE], 0),
        ((0, 1, -1, 0), [BLUE, RED, WHITE, GREEN], 270),  # a quarter clockwise, as phones say
        ((-1, 0, 0, -1), [WHITE, BLUE, GREEN, RED], 180),
        ((0, -1, 1, 0), [GREEN, WHITE, RED, BLUE], 90),
    ],
)
def test_a_turned_phone_video_stands_upright(
    shape_video: Path,
    matrix: tuple[int, int, int, int],
    expected: list[tuple[int, int, int]],
    rotation: int,
) -> None:
    turn(shape_video, matrix)
    upright = (96, 48) if rotation % 180 == 0 else (48, 96)
    with open_video(str(shape_video), size=upright, fps=10) as video:
        frame = next(video)
        assert (video.rotation, frame.shape[1:3]) == (rotation, upright[::-1])
        assert corners(frame) == expected


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="ffmpeg is the oracle")
@pytest.mark.parametrize("matrix", [(0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)])
def test_rotation_agrees_with_ffmpeg(
    shape_video: Path, tmp_path: Path, matrix: tuple[int, int, int, int]
) -> None:
    turn(shape_video, matrix)
    oracle = tmp_path / "oracle.png"
    words = ["ffmpeg", "-loglevel", "error", "-i", str(shape_video), "-frames:v", "1", str(oracle)]
    subprocess.run(words, check=True)
    with open_video(str(oracle), size=(48, 48), fps=10, fit="stretch") as video:
        expected = corners(next(video))
    with open_video(str(shape_video), size=(48, 48), fps=10, fit="stretch") as video:
        assert corners(next(video)) == expected


def test_crop_cuts_both_sides_alike_and_keeps_the_shape(shape_video: Path) -> None:
    with open_video(str(shape_video), size=(48, 48), fps=10, fit="crop") as video:
        frame = next(video)[0]
    expected = quadrants(96, 48)[:, 24:72]
    assert (torch.from_numpy(expected).int() - frame.int()).abs().float().mean() < 4


def test_pad_shows_all_of_it_between_two_equal_black_bars(shape_video: Path) -> None:
    with open_video(str(shape_video), size=(48, 48), fps=10, fit="pad") as video:
        frame = next(video)[0]
    assert frame[:12].max() == 0
    assert frame[-12:].max() == 0
    assert corners(frame[None, 12:36]) == [RED, GREEN, BLUE, WHITE]


def test_stretch_shows_all_of_it_in_every_size(shape_video: Path) -> None:
    with open_video(str(shape_video), size=(48, 48), fps=10, fit="stretch") as video:
        assert corners(next(video)) == [RED, GREEN, BLUE, WHITE]


def test_pixels_that_are_not_square_are_made_square(tmp_path: Path) -> None:
    path = tmp_path / "in.y4m"
    luma = [to_yuv(rgb, *WEIGHTS[6], full=False) for rgb in (RED, GREEN, BLUE, WHITE)]
    codes = np.zeros((3, 48, 48), np.uint8)
    for number, code in enumerate(luma):
        rows = slice(0, 24) if number < 2 else slice(24, 48)
        columns = slice(0, 24) if number % 2 == 0 else slice(24, 48)
        codes[:, rows, columns] = np.array(code)[:, None, None]
    header = b"YUV4MPEG2 W48 H48 F10:1 A2:1 C444\n"
    path.write_bytes(header + b"FRAME\n" + codes.tobytes())
    with open_video(str(path), size=(48, 48), fps=10, fit="pad") as opened:
        frame = next(opened)[0]
    assert frame[:12].max() == 0
    assert corners(frame[None, 12:36]) == [RED, GREEN, BLUE, WHITE]


def test_a_size_that_changes_on_the_way_is_fitted_too(tmp_path: Path) -> None:
    parts = [
        write_numbered(tmp_path / f"{width}.ts", steady(10), width=width, height=width // 2)
        for width in (64, 128)
    ]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    shown = numbers(joined, 30)
    assert shown[:10] == list(range(10))
    assert shown[-10:] == list(range(10))


def test_an_image_is_one_frame_or_as_long_as_is_wanted(tmp_path: Path) -> None:
    path = still(tmp_path / "in.png", numbered(77, 64, 32), "rgb24", "png")
    assert numbers(path, 16) == [77]
    assert numbers(path, 16, seconds=1.5) == [77] * 24


# What cannot be read


def y4m(header: bytes, frames: int = 1) -> bytes:
    return b"YUV4MPEG2 " + header + b"\n" + (b"FRAME\n" + bytes(384)) * frames


MALFORMED = {
    "empty.mp4": (b"", "is empty"),
    "noise.mp4": (bytes(range(256)) * 40, "is not a video"),
    "words.txt": (b"a red circle\n" * 200, "is not a video"),
    "list.ffconcat": (b"ffconcat version 1.0\nfile /etc/passwd\n", "is not a video"),
    "list.m3u8": (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "is not a video"),
    "no frames.y4m": (y4m(b"W16 H16 F25:1", frames=0), "shows nothing"),
    "no rate.y4m": (y4m(b"W16 H16 F0:0"), "frame rate '0:0'"),
    "fast.y4m": (y4m(b"W16 H16 F1000:1"), "frame rate '1000:1'"),
    "huge.y4m": (y4m(b"W60000 H60000 F25:1"), "is not a video"),
    "large.y4m": (y4m(b"W5000 H5000 F25:1"), "at most 4096x2304"),
    "negative.y4m": (y4m(b"W-16 H16 F25:1"), "is not a video"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_no_video_is_refused_in_one_line_with_a_hint(tmp_path: Path, name: str) -> None:
    data, expected = MALFORMED[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=expected) as caught:
        open_video(str(tmp_path / name), size=SIZE, fps=16)
    assert "\n" not in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize(
    "name",
    [
        *("missing.mp4", "http://localhost/x.mp4", "rtsp://camera/1", "concat:a.mp4|b.mp4"),
        *(
            "subfile,,start,0,end,9,,:a.mp4",
            "pipe:0",
            "data:text/plain,x",
            "a\0b",
            "/dev/null",
            ".",
        ),
    ],
)
def test_only_regular_files_are_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_numbered(tmp_path / "a.mp4", steady(2))
    monkeypatch.setattr(av, "open", lambda *_, **__: pytest.fail("was given to libav"))
    with pytest.raises(InputError) as caught:
        open_video(name, size=SIZE, fps=16)
    assert caught.value.hint


def test_music_without_pictures_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "in.m4a"
    with av.open(str(path), "w", format="mp4") as file:
        audio: Any = file.add_stream("aac", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(
            np.zeros((1, 4800), np.float32), format="fltp", layout="mono"
        )
        frame.sample_rate = 48000
        file.mux(audio.encode(frame))
        file.mux(audio.encode(None))
    with pytest.raises(InputError, match="sound but no video"):
        open_video(str(path), size=SIZE, fps=16)


def test_a_decoder_that_is_not_on_the_list_is_not_used(tmp_path: Path) -> None:
    assert "jpeg2000" not in VIDEO_DECODERS
    path = still(tmp_path / "in.mov", numbered(1, 64, 32), "rgb24", "jpeg2000")
    with pytest.raises(InputError, match="codec jpeg2000 is not accepted"):
        open_video(str(path), size=SIZE, fps=16)


def cut(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


@pytest.mark.parametrize("suffix", [".mkv", ".y4m", ".webm", "fragmented.mp4", "faststart.mp4"])
def test_a_video_that_is_cut_off_gives_its_frames_and_a_warning(
    tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = {"fragmented.mp4": "frag_keyframe+empty_moov", "faststart.mp4": "faststart"}
    options = {"movflags": flags[suffix]} if suffix in flags else {}
    path = write_numbered(
        tmp_path / f"in{suffix}", steady(90), width=128, height=64, options=options
    )
    with open_video(str(cut(path, 0.6)), size=SIZE, fps=30) as video:
        shown = [number_of(frame) for frame in video]
        assert 5 <= len(shown) < 89
        assert shown[: len(shown) - 2] == list(range(len(shown) - 2))
        assert "cut off" in video.damage or "cannot be read further" in video.damage
    said = capsys.readouterr().err
    assert said.count("warning:") == 1
    assert "after" in said


def test_frames_before_a_damaged_place_are_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_numbered(tmp_path / "in.nut", steady(60))
    data = bytearray(path.read_bytes())
    half = len(data) // 2
    data[half : half + 300] = bytes(value ^ 0x55 for value in data[half : half + 300])
    path.write_bytes(data)
    with open_video(str(path), size=SIZE, fps=30) as video:
        first = [number_of(next(video)) for _ in range(20)]
        list(video)
        assert first == list(range(20))
        assert video.damage
    assert "warning:" in capsys.readouterr().err


def test_a_ribbon_is_not_enlarged_without_bounds(tmp_path: Path) -> None:
    path = plane_video(tmp_path / "in.mkv", "gray", [0], tags=None, size=(8192, 2))
    with pytest.raises(InputError, match="too long to be cut") as caught:
        list(open_video(str(path), size=SIZE, fps=16))
    assert "--fit pad" in caught.value.hint
    assert len(list(open_video(str(path), size=SIZE, fps=16, fit="pad"))) >= 1


def test_raw_frames_need_both_their_size_and_their_rate(tmp_path: Path) -> None:
    path = tmp_path / "in.rgb"
    path.write_bytes(b"".join(numbered(number, 64, 32).tobytes() for number in range(5)))
    for words in ({"input_size": (64, 32)}, {"input_fps": 30.0}, {"input_size": (64, 32)}):
        with pytest.raises(UsageError, match="needs --input-"):
            open_video(str(path), size=SIZE, fps=30, **words)
    with pytest.raises(UsageError, match="out of range"):
        open_video(str(path), size=SIZE, fps=30, input_size=(64, 32), input_fps=0.0)
    assert numbers(path, 30, input_size=(64, 32), input_fps=30.0) == list(range(5))


@pytest.fixture(autouse=True)
def inputs_are_closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close what a test left open."""
    made: list[VideoInput] = []
    initial = VideoInput.__init__

    def remember(self: VideoInput, *words: Any, **named: Any) -> None:
        initial(self, *words, **named)
        made.append(self)

    monkeypatch.setattr(VideoInput, "__init__", remember)
    yield
    for video in made:
        if not video._is_closed:
            video.close()
