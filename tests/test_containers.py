"""Claim: every container holds the frames it was given, in order, in constant memory."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_CHUNK, TINY_FPS

from streamdit_cli.errors import InputError, OutputError, UsageError
from streamdit_cli.output import check_output, open_writer
from streamdit_cli.pictures import numbered
from streamdit_cli.video import probe, read_video
from streamdit_cli.video_encoder import check_encoder


def moving(num_frames: int) -> torch.Tensor:
    """Frames (n, 32, 32, 3) of few colours that differ from each other."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (num_frames, 2, 2, 3), generator=generator, dtype=torch.uint8)
    return coarse.repeat_interleave(16, 1).repeat_interleave(16, 2)


def write(path: str, frames: torch.Tensor, **settings: Any) -> str:
    """Write frames as the product does, a chunk at a time; returns what the place is called."""
    height, width = frames.shape[1:3]
    writer = open_writer(path, width=width, height=height, fps=TINY_FPS, **settings)
    try:
        for chunk in frames.split(TINY_CHUNK):
            writer.write(chunk)
        writer.close()
    finally:
        writer.abort()
    return writer.place


def errors(found: list[torch.Tensor], frames: torch.Tensor) -> torch.Tensor:
    """Mean absolute error of each frame, and of each against the next one, in steps of 255."""
    return torch.stack(
        [
            (one.int() - two.int()).abs().float().mean()
            for one, two in zip(found, frames, strict=False)
        ]
    )


def webp_frames(path: Path, folder: Path) -> list[torch.Tensor]:
    """The pictures of an animated WebP, each decoded alone: PyAV reads no animation."""
    data, place, found = path.read_bytes(), 12, []
    assert (data[:4], data[8:12]) == (b"RIFF", b"WEBP")
    assert struct.unpack("<I", data[4:8])[0] == len(data) - 8
    while place < len(data):
        kind, (size,) = data[place : place + 4], struct.unpack("<I", data[place + 4 : place + 8])
        if kind == b"ANMF":
            picture = b"WEBP" + data[place + 24 : place + 8 + size]
            one = folder / "one.webp"
            one.write_bytes(b"RIFF" + struct.pack("<I", len(picture)) + picture)
            found += list(read_video(one))
        place += 8 + size + size % 2
    return found


@pytest.mark.parametrize(("suffix", "tolerance"), [(".webm", 6.0), (".gif", 1.0), (".webp", 6.0)])
def test_frames_come_back_in_order(suffix: str, tolerance: float, tmp_path: Path) -> None:
    """Tolerances: VP9 and WebP lose colour detail at the edges; a GIF has 256 exact colours."""
    frames = moving(40)
    path = tmp_path / f"a{suffix}"
    write(str(path), frames, metadata={"prompt": "x"})
    found = webp_frames(path, tmp_path) if suffix == ".webp" else list(read_video(path))
    assert len(found) == len(frames)
    assert errors(found, frames).max() < tolerance
    assert errors(found[1:], frames).min() > 2 * tolerance
    if suffix == ".webm":
        assert probe(path).record == {"prompt": "x"} and probe(path).fps == TINY_FPS
        assert (probe(path).color_space, probe(path).color_range) == (1, 1)
    if suffix == ".gif":  # its frames last 6 or 7 hundredths of a second
        assert 100 / 7 <= probe(path).fps <= 100 / 6


def test_every_frame_of_a_gif_has_a_palette_of_its_own(tmp_path: Path) -> None:
    """Colours that no earlier frame has are shown as they are."""
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1)
    red, blue = torch.tensor([1, 0, 0]), torch.tensor([0, 0, 1])
    frames = torch.cat([levels * red.to(torch.uint8), levels * blue.to(torch.uint8)])
    write(str(tmp_path / "a.gif"), frames)
    assert errors(list(read_video(tmp_path / "a.gif")), frames).max() < 0.5


@pytest.mark.parametrize("suffix", [".webm", ".gif"])
def test_cut_file_plays_up_to_the_cut(suffix: str, tmp_path: Path) -> None:
    frames = moving(40)
    path = tmp_path / f"a{suffix}"
    write(str(path), frames)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    found = list(read_video(path))
    assert 16 <= len(found) < 40
    assert errors(found[:16], frames).max() < 6


def test_pictures_are_exact(tmp_path: Path) -> None:
    frames = moving(11)
    write(f"{tmp_path}/frames/", frames, metadata={"prompt": "a star"})
    write(f"{tmp_path}/p-%03d.png", frames)
    for index, frame in enumerate(frames):
        for path in (tmp_path / "frames" / f"{index:06d}.png", tmp_path / f"p-{index:03d}.png"):
            (found,) = read_video(path)
            assert torch.equal(found, frame)
    assert len(os.listdir(tmp_path / "frames")) == 11 and len(os.listdir(tmp_path)) == 12
    assert b'tEXtComment\0{"prompt": "a star"}' in (tmp_path / "frames/000000.png").read_bytes()


def test_pictures_never_replace_others_unasked(tmp_path: Path) -> None:
    pattern = f"{tmp_path}/p-%d.png"
    write(pattern, moving(2))
    with pytest.raises(OutputError, match=r"p-0\.png exists"):
        write(pattern, moving(2))
    write(pattern, moving(3).flip(0), overwrite=True)
    assert torch.equal(next(read_video(tmp_path / "p-0.png")), moving(3)[2])
    (tmp_path / "p-0.png").unlink()
    (tmp_path / "p-1.png").write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"File exists; 0\.1 s are kept"):
        write(pattern, moving(3))
    assert (tmp_path / "p-1.png").read_bytes() == b"mine"


def test_folder_of_no_pictures_is_removed(tmp_path: Path) -> None:
    writer = open_writer(f"{tmp_path}/frames/", width=32, height=32, fps=TINY_FPS)
    writer.close()
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.png", "has no place for one number"),
        ("%d-%d.png", "has no place for one number"),
        ("%s.png", "has no place for one number"),
        ("%d/a.png", "number in the name of a folder"),
        ("no/a-%d.png", "the folder .*no does not exist"),
        ("no/frames/", "the folder .*no does not exist"),
        ("a.avi", "has no known container"),
    ],
)
def test_output_that_cannot_be_is_refused(name: str, message: str, tmp_path: Path) -> None:
    for check in (check_output, write_nothing):
        with pytest.raises((UsageError, OutputError), match=message):
            check(f"{tmp_path}/{name}")
    assert not os.listdir(tmp_path)


def write_nothing(path: str) -> None:
    open_writer(path, width=32, height=32, fps=TINY_FPS)


def test_numbers_have_their_place() -> None:
    assert numbered("a/p-%04d.mp4", 7) == Path("a/p-0007.mp4")
    assert numbered("100%%-%d.mp4", 12) == Path("100%-12.mp4")


def test_encoder_that_this_build_lacks_is_refused_with_a_way_out() -> None:
    with pytest.raises(UsageError, match="has no encoder none") as refused:
        check_encoder("none")
    assert "-o out.mp4" in str(refused.value.hint)


def test_video_of_other_settings_is_not_taken_over(tmp_path: Path) -> None:
    from streamdit_cli.output import reserve

    write(str(tmp_path / "a.mp4"), moving(20))
    for num_frames, width, message in ((30, 32, "20 frames; 30 are needed"), (16, 64, "settings")):
        place = reserve(str(tmp_path / "b.mp4"))
        settings = {"width": width, "height": 32, "fps": TINY_FPS, "metadata": {}}
        with pytest.raises(InputError, match=message):
            place.start(**settings, taken=(tmp_path / "a.mp4", num_frames))
        place.release()
    assert os.listdir(tmp_path) == ["a.mp4"]
