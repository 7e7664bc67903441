"""Claim: the sound of an input goes into the output in step with it, and ends where it ends."""

from __future__ import annotations

import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import pytest
from numbered_video import TONE_BEGIN, TONE_END, number_of, steady, write_numbered

from streamdit_cli import audio_track
from streamdit_cli.output import reserve
from streamdit_cli.video import probe
from streamdit_cli.video_input import VideoInput, open_video

SIZE = (64, 32)
FPS = 16
# Packets are cut whole, and encoders smear a beginning over one: 1024 samples at 48 kHz.
PACKET = 0.0225


class Sound(NamedTuple):
    """What is heard in a file, in seconds of its pictures."""

    codec: str
    tone_begin: float
    tone_end: float
    end: float


def hear(path: Path) -> Sound:
    with av.open(str(path)) as file:
        codec = file.streams.audio[0].codec_context.name
        loud: list[float] = []
        end = 0.0
        for frame in file.decode(audio=0):
            assert frame.pts is not None
            samples = np.asarray(frame.to_ndarray(), np.float64)
            if frame.format.is_planar:
                left = samples[0]
            else:
                left = samples[0][::2] / (32768 if "s16" in frame.format.name else 1)
            begin = float(frame.pts * frame.time_base)
            end = begin + frame.samples / frame.sample_rate
            loud += [begin + place / frame.sample_rate for place in np.flatnonzero(abs(left) > 0.1)]
    return Sound(codec, min(loud), max(loud), end)


def write(video: VideoInput, path: Path, frames: int | None = None) -> Path:
    """Write an input as it is, or only its first frames."""
    writer = reserve(str(path)).start(
        width=SIZE[0], height=SIZE[1], fps=float(video.fps), metadata={}, audio=video.audio
    )
    with video:
        for number, frame in enumerate(video):
            if number == frames:
                break
            writer.write(frame)
        writer.close()
    return path


@pytest.fixture(scope="module")
def talking(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes inputs with sound, each once."""
    made: dict[tuple[Any, ...], Path] = {}

    def make(suffix: str, codec: str, seconds: float = 2.0, begin: float = 0.0) -> Path:
        key = (suffix, codec, seconds, begin)
        if key not in made:
            path = tmp_path_factory.mktemp("talking") / f"in{suffix}"
            times = steady(round(seconds * 30))
            made[key] = write_numbered(path, times, sound=codec, sound_begin=begin)
        return made[key]

    return make


@pytest.mark.parametrize(
    ("suffix", "codec", "out"),
    [
        *((".mp4", "aac", ".mp4"), (".mp4", "aac", ".mov"), (".mp4", "aac", ".mkv")),
        *((".mkv", "pcm_s16le", ".mp4"), (".webm", "libopus", ".mov"), (".ts", "aac", ".mkv")),
    ],
)
def test_sound_stays_in_step_with_the_pictures(
    tmp_path: Path, talking: Callable[..., Path], suffix: str, codec: str, out: str
) -> None:
    source = talking(suffix, codec)
    with open_video(str(source), size=SIZE, fps=FPS) as video:
        assert video.has_audio
        path = write(video, tmp_path / f"out{out}")
    sound = hear(path)
    assert sound.tone_begin == pytest.approx(TONE_BEGIN, abs=PACKET)
    assert sound.tone_end == pytest.approx(TONE_END, abs=PACKET)
    assert sound.end == pytest.approx(2.0, abs=2 * PACKET)
    assert probe(path).num_frames == 2 * FPS


@pytest.mark.parametrize(
    ("suffix", "codec", "out", "expected"),
    [
        *((".mp4", "aac", ".mkv", "aac"), (".mkv", "pcm_s16le", ".mp4", "aac")),
        *((".webm", "libopus", ".mp4", "opus"), (".ts", "aac", ".mp4", "aac")),
    ],
)
def test_sound_is_copied_where_the_container_takes_it(
    tmp_path: Path, talking: Callable[..., Path], suffix: str, codec: str, out: str, expected: str
) -> None:
    path = write(
        open_video(str(talking(suffix, codec)), size=SIZE, fps=FPS), tmp_path / f"out{out}"
    )
    assert hear(path).codec == expected


def packets(path: Path) -> list[bytes]:
    with av.open(str(path)) as file:
        return [bytes(packet) for packet in file.demux(audio=0) if packet.size]


def test_copied_packets_are_the_same_bytes(tmp_path: Path, talking: Callable[..., Path]) -> None:
    source = talking(".mp4", "aac")
    path = write(open_video(str(source), size=SIZE, fps=FPS), tmp_path / "out.mp4")
    copied = packets(path)
    assert len(copied) > 80
    assert set(copied) <= set(packets(source))


def test_sound_that_begins_late_stays_late(tmp_path: Path, talking: Callable[..., Path]) -> None:
    source = talking(".mkv", "pcm_s16le", begin=0.7)
    for out in (".mp4", ".mkv"):
        path = write(open_video(str(source), size=SIZE, fps=FPS), tmp_path / f"out{out}")
        assert hear(path).tone_begin == pytest.approx(TONE_BEGIN, abs=PACKET)


@pytest.mark.parametrize("codec", ["aac", "pcm_s16le"])
def test_sound_ends_where_the_video_was_ended_early(
    tmp_path: Path, talking: Callable[..., Path], codec: str
) -> None:
    source = talking(".mp4" if codec == "aac" else ".mkv", codec)
    frames = 20
    path = write(open_video(str(source), size=SIZE, fps=FPS), tmp_path / "out.mp4", frames)
    assert probe(path).num_frames == frames
    assert hear(path).end == pytest.approx(frames / FPS, abs=2 * PACKET)


def test_sound_reaches_the_end_of_a_shortened_input(
    tmp_path: Path, talking: Callable[..., Path]
) -> None:
    source = talking(".mp4", "aac")
    path = write(open_video(str(source), size=SIZE, fps=FPS, seconds=1.5), tmp_path / "out.mp4")
    assert probe(path).num_frames == 24
    assert hear(path).end == pytest.approx(1.5, abs=2 * PACKET)


def test_skipped_frames_take_their_sound_with_them(
    tmp_path: Path, talking: Callable[..., Path]
) -> None:
    video = open_video(str(talking(".mp4", "aac")), size=SIZE, fps=FPS)
    assert video.skip(8) == 8
    path = write(video, tmp_path / "out.mp4")
    assert probe(path).num_frames == 2 * FPS - 8
    assert hear(path).tone_begin == pytest.approx(TONE_BEGIN - 0.5, abs=PACKET)


def test_sound_is_left_out_when_it_is_not_wanted(
    tmp_path: Path, talking: Callable[..., Path]
) -> None:
    video = open_video(str(talking(".mp4", "aac")), size=SIZE, fps=FPS, audio=False)
    assert not video.has_audio
    path = write(video, tmp_path / "out.mp4")
    with av.open(str(path)) as file:
        assert not file.streams.audio


def test_sound_of_a_pipe_is_read_in_the_same_pass(
    tmp_path: Path, talking: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with subprocess_of(talking(".ts", "aac")) as descriptor:
        monkeypatch.setattr(os, "dup", lambda _: descriptor)
        video = open_video("-", size=SIZE, fps=30)
        assert video.has_audio
        path = write(video, tmp_path / "out.mp4")
    assert hear(path).tone_begin == pytest.approx(TONE_BEGIN, abs=PACKET)


class subprocess_of:
    """Another process that writes a file into a pipe; gives the end that is read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> int:
        import subprocess

        self._sender = subprocess.Popen(["cat", str(self._path)], stdout=subprocess.PIPE)
        assert self._sender.stdout is not None
        return os.dup(self._sender.stdout.fileno())

    def __exit__(self, *error: object) -> None:
        assert self._sender.stdout is not None
        self._sender.stdout.close()
        self._sender.wait()


def test_little_sound_waits_while_the_video_advances(talking: Callable[..., Path]) -> None:
    with open_video(str(talking(".mkv", "pcm_s16le", 4.0)), size=SIZE, fps=FPS) as video:
        assert video.audio is not None
        most = 0
        with av.open(os.devnull, "w", format="matroska") as file:
            video.audio.join(file)
            for number, _ in enumerate(video, 1):
                list(video.audio.packets(Fraction(number, FPS)))
                most = max(most, video.audio._waiting_bytes)
    assert most < 48000 * 4  # one second


def test_sound_that_would_fill_the_memory_is_lost_with_a_warning(
    talking: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(audio_track, "MOST_WAITING", 50_000)
    with open_video(str(talking(".mkv", "pcm_s16le")), size=SIZE, fps=FPS) as video:
        assert len(list(video)) == 2 * FPS
        assert video.audio is not None
        assert video.audio._waiting_bytes <= 50_000
    assert capsys.readouterr().err.count("sound is lost") == 1


def test_pictures_are_the_same_with_and_without_sound(
    tmp_path: Path, talking: Callable[..., Path]
) -> None:
    found = []
    for audio in (True, False):
        video = open_video(str(talking(".mp4", "aac")), size=SIZE, fps=FPS, audio=audio)
        path = write(video, tmp_path / f"out-{audio}.mp4")
        with av.open(str(path)) as file:
            found.append(
                [number_of(frame.to_ndarray(format="rgb24")) for frame in file.decode(video=0)]
            )
    assert found[0] == found[1]
    assert len(found[0]) == 2 * FPS
