"""Videos whose frames carry their number in black and white cells, so that a frame can be named."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.audio.resampler import AudioResampler
from numpy.typing import NDArray

COLUMNS, ROWS = 4, 2  # cells; numbers from 0 to 255
CODECS = {
    ".mp4": ("libx264", "yuv420p"),
    ".mkv": ("ffv1", "yuv420p"),
    ".webm": ("libvpx", "yuv420p"),
    ".nut": ("ffv1", "bgr0"),
    ".ts": ("libx264", "yuv420p"),
    ".y4m": ("wrapped_avframe", "yuv420p"),
    ".avi": ("mpeg4", "yuv420p"),
}
MUXERS = {".y4m": "yuv4mpegpipe", ".ts": "mpegts"}
TONE_BEGIN, TONE_END = 1.0, 1.1  # seconds at which a 440 Hz tone is heard, silence else


def numbered(number: int, width: int, height: int) -> NDArray[np.uint8]:
    """A picture `(height, width, 3)` that carries a number."""
    bits = [255 * (number >> place & 1) for place in range(COLUMNS * ROWS)]
    cells = np.array(bits, np.uint8).reshape(ROWS, COLUMNS)
    rows = np.arange(height) * ROWS // height
    columns = np.arange(width) * COLUMNS // width
    return np.repeat(cells[rows][:, columns, None], 3, axis=2)


def number_of(frame: Any) -> int:
    """The number that a frame `(1, height, width, 3)` or `(height, width, 3)` carries."""
    picture = np.asarray(frame).reshape(-1, *frame.shape[-3:])[0]
    height, width = picture.shape[:2]
    cells = [
        picture[(2 * row + 1) * height // (2 * ROWS), (2 * column + 1) * width // (2 * COLUMNS), 1]
        for row in range(ROWS)
        for column in range(COLUMNS)
    ]
    assert all(cell < 64 or cell > 192 for cell in cells), "not a numbered picture"
    return sum(1 << place for place, cell in enumerate(cells) if cell > 128)


def write_numbered(
    path: Path,
    times: Sequence[Fraction],
    *,
    fps: int = 30,
    width: int = 64,
    height: int = 32,
    sound: str | None = None,
    sound_begin: float = 0.0,
    options: dict[str, str] | None = None,
) -> Path:
    """Write a video whose i-th frame begins at the i-th time and carries the number i.

    Args:
        sound: codec of a track with a tone from `TONE_BEGIN` to `TONE_END`.
        sound_begin: second at which the track begins.
    """
    codec, pixels = CODECS[path.suffix]
    with av.open(str(path), "w", format=MUXERS.get(path.suffix), options=options or {}) as file:
        video: Any = file.add_stream(codec, rate=fps)
        video.width, video.height, video.pix_fmt = width, height, pixels
        tick = Fraction(1, fps) if path.suffix in (".y4m", ".avi") else Fraction(1, 30000)
        video.codec_context.time_base = tick
        audio: Any = file.add_stream(sound, rate=48000, layout="stereo") if sound else None
        heard = sound_begin
        for number, time in enumerate(times):
            picture = av.VideoFrame.from_ndarray(numbered(number, width, height), format="rgb24")
            picture.pts, picture.time_base = round(time / tick), tick
            file.mux(video.encode(picture.reformat(format=pixels)))
            until = float(time) + 1 / fps
            if audio is not None and until > heard:
                for frame in _tone(heard, until, audio):
                    file.mux(audio.encode(frame))
                heard = until
        for stream in (video, audio) if audio is not None else (video,):
            file.mux(stream.encode(None))
    return path


def _tone(begin: float, end: float, audio: Any) -> list[Any]:
    first, last = round(begin * 48000), round(end * 48000)
    time = np.arange(first, last) / 48000
    is_heard = (time >= TONE_BEGIN) & (time < TONE_END)
    wave = np.where(is_heard, 0.5 * np.sin(2 * np.pi * 440 * time), 0).astype(np.float32)
    frame = av.AudioFrame.from_ndarray(np.stack([wave, wave]), format="fltp", layout="stereo")
    frame.sample_rate, frame.pts, frame.time_base = 48000, first, Fraction(1, 48000)
    if audio.format.name == "fltp":
        return [frame]
    resampler = AudioResampler(format=audio.format.name, layout="stereo", rate=48000)
    return resampler.resample(frame)


def steady(count: int, fps: int = 30) -> list[Fraction]:
    """Times of frames at a constant rate."""
    return [Fraction(number, fps) for number in range(count)]


def seen_at(times: Sequence[Fraction], end: Fraction, fps: Fraction) -> list[int]:
    """Frame numbers of the output, by the sentence of the documentation and nothing cleverer."""
    count = max(1, int(end * fps + Fraction(1, 2)))
    slack = Fraction(1, 1000)
    return [
        max(number for number, time in enumerate(times) if time <= place / fps + slack)
        for place in range(count)
    ]
