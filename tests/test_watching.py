"""Claim: what goes on in a video can be seen while it is made and afterwards, in the terminal.

The health of a stream and of a file, a contact sheet and a preview, each through the real command
line.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import pty
import re
import struct
import termios
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from launcher import Ended, Fault, Launcher
from torch import Tensor

from streamdit_cli.app import main
from streamdit_cli.contact_sheet import MOST_TILES, ContactSheet
from streamdit_cli.output import open_writer
from streamdit_cli.preview import half_blocks
from streamdit_cli.video import probe, read_video
from streamdit_model.shapes import FPS, draw_clip, render
from streamdit_model.stream import VideoChunk

SHOWS_PICTURES = "import os; os.environ.pop('NO_COLOR', 0); os.environ['TERM'] = 'xterm-256color'; "


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def generate(
    launcher: Launcher, model: Path, folder: Path, *more: str, prompts: str = "a", **settings: Any
) -> Ended:
    """Run `generate` with a tiny model."""
    words = [word for prompt in prompts for word in ("-p", prompt)]
    command = ["generate", "-m", str(model), "--seed", "3", *words, *more]
    return launcher.run(command, cwd=folder, **settings)


def save_video(path: Path, video: Tensor, metadata: dict[str, str] | None = None) -> Path:
    """Write frames to a file."""
    side = video.shape[1]
    writer = open_writer(str(path), width=side, height=side, fps=FPS, metadata=metadata)
    writer.write(video)
    writer.close()
    return path


def health_of(path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Return what `info --health` says of a file."""
    assert main(["info", str(path), "--health", "--json", "-"]) == 0
    return json.loads(capsys.readouterr().out)


# Health.


def test_health_of_a_stream_is_recorded_by_windows_and_prompts(
    launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    more = ["--seconds", "10", "-o", "a.mp4", "--health", "a.jsonl"]
    ended = generate(launcher, tiny_model, tmp_path, *more, prompts="ab")
    assert ended.code == 0, ended.stderr
    *windows, summary = lines_of(tmp_path / "a.jsonl")
    assert {window["record"] for window in windows} == {"window"}
    assert [window["first_frame"] for window in windows] == [
        sum(earlier["num_frames"] for earlier in windows[:index]) for index in range(len(windows))
    ]
    assert sum(window["num_frames"] for window in windows) == 160
    changes = [window for window in windows if window["begins_with"] == "prompt"]
    assert [window["prompt"] for window in changes] == ["b"]
    assert (summary["record"], summary["num_frames"]) == ("summary", 160)
    assert summary["num_prompt_changes"] == 1
    assert "health: 10.0 s" in ended.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault("decode", "SIGINT", number=12), 130),
        (Fault("decode", "nan", number=12), 8),
        (Fault("encode", "no space", number=40), 6),
    ],
)
def test_health_is_complete_at_every_ordered_end(
    fault: Fault, code: int, launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    """Every window in the file is of frames that are in the video."""
    more = ["--seconds", "20", "-o", "a.mp4", "--health", "a.jsonl", "--contact-sheet", "a.png"]
    ended = generate(launcher, tiny_model, tmp_path, *more, faults=[fault])
    assert ended.code == code, ended.stderr
    *windows, summary = lines_of(tmp_path / "a.jsonl")
    (video,) = tmp_path.glob("a*.mp4")
    frames = probe(video).num_frames
    assert sum(window["num_frames"] for window in windows) <= frames
    if code != 6:
        assert sum(window["num_frames"] for window in windows) == frames < 320
    assert summary["record"] == "summary"
    assert (tmp_path / "a.png").exists()
    assert not (tmp_path / "a.part.png").exists()


def test_full_disk_under_the_records_ends_the_video_properly(
    launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    more = ["--seconds", "20", "-o", "a.mkv", "--health", "/dev/full", "-y"]
    ended = generate(launcher, tiny_model, tmp_path, *more)
    assert ended.code == 6
    assert ended.errors == ["error: --health /dev/full: No space left on device"]
    assert 64 <= probe(tmp_path / "a.mkv").num_frames < 320


@pytest.mark.parametrize("name", ["a.jsonl", "a.png"])
def test_file_of_a_watcher_never_replaces_one(
    name: str, launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / name).write_text("mine")
    more = ["--num-frames", "1", "-o", "a.mp4", "--health", "a.jsonl", "--contact-sheet", "a.png"]
    faults = [Fault("load", "SIGKILL")]
    ended = generate(launcher, tiny_model, tmp_path, *more, faults=faults)
    assert ended.code == 6
    assert len(ended.errors) == 1 and f"{name} exists" in ended.errors[0]
    assert (tmp_path / name).read_text() == "mine"
    assert not list(tmp_path.glob("*.part.*")) and not (tmp_path / "a.mp4").exists()
    assert generate(launcher, tiny_model, tmp_path, *more, "-y").code == 0
    assert (tmp_path / name).read_bytes() != b"mine"


def test_refused_run_leaves_no_file_of_a_watcher(
    launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    ended = generate(launcher, tiny_model, tmp_path, "--size", "64x64", "--contact-sheet", "a.png")
    assert ended.code == 2
    assert not list(tmp_path.iterdir())
    ended = generate(launcher, tiny_model, tmp_path, "--contact-sheet", "a.jpg")
    assert ended.code == 2 and "does not end in .png" in ended.errors[0]
    assert not list(tmp_path.iterdir())


def test_info_finds_no_fault_in_a_good_video_and_each_in_a_bad_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After x264, as any video is; the good one changes its prompt and has chunks of 8 frames."""
    good = torch.cat([render(draw_clip(1, index), 6 * FPS, 64) for index in (0, 1)])
    facts = {"chunk_frames": "8", "prompts": json.dumps([["one", 0.0], ["two", 6.0]])}
    record = health_of(save_video(tmp_path / "good.mp4", good, facts), capsys)
    assert record["summary"]["flagged_windows"] == {}
    assert record["summary"]["num_prompt_changes"] == 1
    assert [window["prompt"] for window in record["windows"]] == ["one", "one", "two", "two"]
    bad = good.clone()
    bad[20:50] = bad[20].clone()
    bad[100:110] = 0
    bad[120:] -= (20 * ((torch.arange(72) // 8) % 2))[:, None, None, None].byte().minimum(bad[120:])
    found = health_of(save_video(tmp_path / "bad.mp4", bad, facts), capsys)["summary"]
    assert set(found["flagged_windows"]) == {"frozen", "black", "seam"}
    assert main(["info", str(tmp_path / "bad.mp4"), "--health"]) == 0
    out = capsys.readouterr().out
    assert "frozen in 1 window from 0.0 s" in out.splitlines()[0]
    assert any("black" in line and "seam" not in line for line in out.splitlines()[2:])


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"chunk_frames": "-3", "prompts": '[["x", "nan"]]'},
        {"chunk_frames": "9" * 5000, "prompts": "[" * 5000},
        {"chunk_frames": "0", "prompts": '{"x": 1}'},
    ],
)
def test_info_watches_a_video_of_another_tool(
    facts: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever its metadata says: seams are not looked for, and the prompt is unknown."""
    video = render(draw_clip(1, 2), 40, 32)
    record = health_of(save_video(tmp_path / "a.mp4", video, facts), capsys)
    assert record["chunk_frames"] is None
    assert [window["seam"] for window in record["windows"]] == [None]
    assert [window["prompt"] for window in record["windows"]] == [None]
    assert record["summary"]["num_frames"] == 40


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--health"], 2),
        (["shapes", "--health"], 2),
        (["--partition", "K=0,N=4,c=2,s=1", "--health"], 2),
        (["no.mp4", "--health"], 2),
        (["text.mp4", "--health"], 4),
    ],
)
def test_health_of_what_is_no_video_is_refused(
    words: list[str],
    code: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.mp4").write_text("no video")
    assert main(["info", *words]) == code
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ")


# Contact sheet.


def test_contact_sheet_shows_a_frame_of_every_second(
    launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    """Lossless video, so that its frames are those of the sheet: 3 tiles in 2 columns."""
    more = ["--seconds", "2.5", "-o", "a.mkv", "--codec", "ffv1", "--contact-sheet", "a.png"]
    ended = generate(launcher, tiny_model, tmp_path, *more)
    assert ended.code == 0, ended.stderr
    assert "contact sheet of 3 frames -> a.png" in ended.stderr
    (sheet,) = read_video(tmp_path / "a.png")
    frames = list(read_video(tmp_path / "a.mkv"))
    assert sheet.shape == (76, 76, 3)
    assert torch.equal(sheet[4:36, 4:36], frames[0])
    assert torch.equal(sheet[4:36, 40:72], frames[16])
    assert torch.equal(sheet[40:72, 4:36], frames[32])
    assert bool((sheet[:4] == sheet[0, 0]).all()) and bool((sheet[40:72, 40:72] == 24).all())


@pytest.mark.parametrize("num_frames", [1, 48, 49, 200, 1000])
def test_contact_sheet_of_any_length_has_evenly_spread_tiles(
    num_frames: int, tmp_path: Path
) -> None:
    """Each frame is its number, at one frame a second; the length is not known before."""
    sheet = ContactSheet(str(tmp_path / "a.png"), overwrite=False)
    sheet.begin(1.0, None)  # type: ignore[arg-type]
    for first in range(0, num_frames, 7):
        numbers = torch.arange(first, min(first + 7, num_frames))
        frames = torch.stack([numbers // 256, numbers % 256, numbers * 0], dim=1).byte()
        frames = frames[:, None, None].expand(-1, 2, 2, 3)
        sheet.chunk(VideoChunk(0, frames, first, float(first), None, [], {}))
    sheet.end()
    sheet.close()
    (picture,) = read_video(tmp_path / "a.png")
    tiles = picture[4::6, 4::6].int()
    shown = [int(tile[0] * 256 + tile[1]) for tile in tiles.reshape(-1, 3) if tile[2] == 0]
    assert shown[0] == 0 and len(shown) <= MOST_TILES
    assert len(shown) == num_frames or len(shown) >= MOST_TILES // 2
    steps = {later - earlier for earlier, later in itertools.pairwise(shown)}
    assert len(steps) <= 1
    assert num_frames - shown[-1] <= max(steps, default=1)


# Preview.


def test_preview_without_a_terminal_is_refused(
    launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    ended = generate(launcher, tiny_model, tmp_path, "--preview", "--num-frames", "1")
    assert ended.code == 2
    assert len(ended.errors) == 1 and "--preview needs a terminal" in ended.errors[0]
    quiet = generate(launcher, tiny_model, tmp_path, "--preview", "-q", "--num-frames", "1")
    assert quiet.code == 2 and "exclude each other" in quiet.errors[0]
    assert not list(tmp_path.iterdir())


def test_preview_shows_pictures_above_the_progress_and_takes_them_away(
    launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    seen: list[bytes] = []

    def read() -> None:
        while True:
            try:
                seen.append(os.read(master, 65536))
            except OSError:
                return

    reader = threading.Thread(target=read)
    reader.start()
    command = ["generate", "-m", str(tiny_model), "-p", "a", "--seconds", "8", "-o", "a.mp4"]
    slow = "import streamdit_cli.preview as p; p.PAUSE = 0.0"
    case = launcher.start(
        [*command, "--preview"], cwd=tmp_path, stderr=slave, code=SHOWS_PICTURES + slow
    )
    assert case.wait() == 0
    os.close(slave)
    reader.join()
    os.close(master)
    text = b"".join(seen).decode()
    pictures = re.findall(r"(?:(?:\x1b\[[0-9;]*m|\u2580)+\x1b\[K\r?\n)+", text)
    assert pictures
    assert all(picture.count("\n") == 20 for picture in pictures)  # square, 40 columns of 2 pixels
    assert all(picture.count("\u2580") == 20 * 40 for picture in pictures)
    assert "0 s  " in text.split(pictures[0])[1]
    assert "\x1b[20A\x1b[J" in text.split(pictures[-1])[1]
    assert text.split("\x1b[J")[-1].count("\u2580") == 0
    assert "8.0 s of video" in text.split("\x1b[J")[-1]
    assert probe(tmp_path / "a.mp4").num_frames == 128


def test_half_blocks_hold_two_pixels_in_a_character() -> None:
    red, blue = (255, 0, 0), (0, 0, 255)
    rows = [[red, red, blue], [blue, blue, red]]
    assert half_blocks(rows, has_all_colours=True) == [
        "\x1b[38;2;255;0;0;48;2;0;0;255m\u2580\u2580\x1b[38;2;0;0;255;48;2;255;0;0m\u2580\x1b[0m"
    ]
    assert half_blocks([[red], [blue]], has_all_colours=False) == [
        "\x1b[38;5;196;48;5;21m\u2580\x1b[0m"
    ]
