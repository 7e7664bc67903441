"""Claim: a video can be spoken to while it is made, and what was said makes it again, bit by bit.

Real processes: a terminal, a FIFO, a growing file, a pipe; and a viewer that never blocks.
"""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY_CHUNK, TINY_FPS, TINY_SIDE
from launcher import Case, Fault, Launcher, until

from streamdit_cli.errors import InputError, UsageError
from streamdit_cli.line_source import LONGEST_LINE, LineSource, check_line_source
from streamdit_cli.pacing import Pace
from streamdit_cli.script import read_script
from streamdit_cli.video import probe, read_video

RAW_FRAME = TINY_SIDE * TINY_SIDE * 3
# A chunk takes this long, so that there is time to speak.
SLOW = Fault("velocity", "sleep", times=0, seconds=0.1)


def words(model: Path, *more: str) -> list[str]:
    return ["generate", "-m", str(model), "--seed", "5", "-p", "a star", *more]


def records(path: Path, kind: str) -> list[dict[str, Any]]:
    """The records of one kind, also while the file grows."""
    lines = path.read_text().splitlines() if path.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("}")]
    return [line for line in found if line["record"] == kind]


def md5s(path: Path) -> list[str]:
    return [line["md5"] for line in records(path, "chunk")]


def pixels(path: Path) -> list[bytes]:
    return [frame.numpy().tobytes() for frame in read_video(path)]


@contextmanager
def running(launcher: Launcher, command: list[str], **settings: Any) -> Iterator[Case]:
    """Run a command line; kills it when the test is over."""
    case = launcher.start(command, **settings)
    try:
        yield case
    finally:
        if case.is_running:
            case.send(signal.SIGKILL)
            case.wait()


# The clock.


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_frames_leave_at_their_time_minus_the_lead() -> None:
    clock = Clock()
    pace = Pace(10.0, 0.5, clock=clock)
    assert pace.delay(0) == pace.delay(1000) == 0.0  # nothing has begun
    pace.left(0)
    assert [pace.delay(frame) for frame in (1, 5, 6, 15)] == pytest.approx([0.0, 0.0, 0.1, 1.0])
    clock.now += 0.75
    assert [pace.delay(frame) for frame in (12, 15)] == pytest.approx([0.0, 0.25], abs=1e-9)


def test_a_late_frame_moves_the_schedule_and_is_never_made_up_by_a_burst() -> None:
    clock = Clock()
    pace = Pace(10.0, 0.5, clock=clock)
    pace.left(0)
    clock.now += 0.9
    pace.left(9)  # in time: the schedule stays
    assert pace.delay(15) == pytest.approx(0.1)
    clock.now += 10.0
    pace.left(10)  # 9.9 s late: frame 20 is due a second from now
    assert pace.delay(20) == pytest.approx(0.5)
    clock.now += 0.5
    assert pace.delay(20) == 0.0


# Lines.


class Heard:
    """What a source hands over."""

    def __init__(self, name: str) -> None:
        self.lines: list[str] = []
        self.problems: list[str] = []
        self.ended = threading.Event()
        self.source = LineSource(
            name,
            on_line=self.lines.append,
            on_end=self.ended.set,
            on_problem=self.problems.append,
        )


def test_a_fifo_is_read_again_when_its_writer_has_gone(tmp_path: Path) -> None:
    fifo = tmp_path / "p"
    os.mkfifo(fifo)
    heard = Heard(str(fifo))
    heard.source.start()
    for line in ("a red star\n", "# no\n\n  a blue ring  \n", "no end"):
        fifo.write_text(line)
        until(lambda line=line: line.strip().split("\n")[-1].strip() in heard.lines)
    fifo.write_bytes(b"\xff\n" + b"x" * (LONGEST_LINE + 70_000) + b"\nlast\n")
    until(lambda: "last" in heard.lines)
    fifo.unlink()
    os.mkfifo(fifo)
    fifo.write_text("anew\n")
    until(lambda: "anew" in heard.lines)
    heard.source.stop()
    assert heard.lines == ["a red star", "a blue ring", "no end", "last", "anew"]
    assert len(heard.problems) == 2 and not heard.ended.is_set()


def test_a_file_is_followed_from_its_last_line_on_and_when_it_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("old\nnewest\n# a comment\nhalf")
    heard = Heard(str(path))
    heard.source.start()
    until(lambda: heard.lines == ["newest"])
    with path.open("a") as file:
        file.write(" a line\n")
        file.flush()
        until(lambda: heard.lines[1:] == ["half a line"])
    path.write_text("cut\n")
    until(lambda: heard.lines[2:] == ["cut"])
    heard.source.stop()


def test_places_without_lines_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        check_line_source(str(tmp_path / "no"))
    with pytest.raises(InputError, match="neither a FIFO nor a file"):
        check_line_source(str(tmp_path))


# The options.


@pytest.mark.parametrize(
    ("more", "code", "part"),
    [
        (["--prompts-from", "no"], 4, "prompts cannot come from no"),
        (["--interactive", "--prompts-from", "-"], 2, "already reads standard input"),
        (["--interactive", "-p", "-"], 2, "read once"),
        (["--lead", "1"], 2, "--lead has no effect without --realtime"),
        (["--lead", "-1", "--realtime"], 2, "from 0 to 60"),
        (["--transition", "blend"], 2, "no effect on one prompt"),
        (["-p", "b", "--transition-seconds", "1"], 2, "no effect without a blend"),
        (["--script", "a.toml"], 2, "--script and -p exclude"),
        (["-p", "[0s: b] [2s: c]"], 2, "stands alone"),
        (["--from", "no.mp4"], 4, "no.mp4 cannot be read"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    more: list[str], code: int, part: str, launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    command = [*words(tiny_model, "-o", "a.mp4"), *more]
    ended = launcher.run(command, cwd=tmp_path, faults=[Fault("load", "SIGKILL")])
    assert ended.code == code, ended.stderr
    assert len(ended.errors) == 1 and part in ended.errors[0]
    assert not list(tmp_path.iterdir())


# Scripts.


def test_a_script_gives_the_length_and_its_changes_have_receipts(
    launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "s.toml").write_text(
        '[[stage]]\nprompt = "a star"\nseconds = 1\n'
        '[[stage]]\nprompt = "a ring"\nseconds = 3\ntransition = "chunks"\n'
    )
    base = ["generate", "-m", str(tiny_model), "--seed", "5"]
    command = [*base, "--script", "s.toml", "-o", "a.mp4", "--json", "a.jsonl"]
    ended = launcher.run(command, cwd=tmp_path)
    assert ended.code == 0, ended.stderr
    video = probe(tmp_path / "a.mp4")
    assert video.seconds == 4.0
    timeline = json.loads(video.record["timeline"])
    assert timeline[1] == {"prompt": "a ring", "at": 1.0, "transition": "chunks"}
    found = records(tmp_path / "a.jsonl", "prompt")
    assert [(line["kind"], line["prompt"], line["at"]) for line in found] == [
        ("applied", "a ring", 1.0),
        ("complete", "a ring", 1.0),
    ]
    assert found[0]["seconds"] == 1.0 and found[1]["seconds"] > 1.0
    assert found[0]["wall_seconds"] > 0 and abs(found[0]["time"] - time.time()) < 600
    assert "prompt applied at 1.0 s of video" in ended.stderr
    assert "prompt complete at" in ended.stderr
    inline = [*base, "-p", "[0s: a star] [1s-4s: a ring]", "--transition", "chunks"]
    inline += ["-o", "b.mp4", "--json", "b.jsonl"]
    assert launcher.run(inline, cwd=tmp_path).code == 0
    assert md5s(tmp_path / "b.jsonl") == md5s(tmp_path / "a.jsonl")
    shown = tmp_path / "info.txt"
    with shown.open("wb") as file:
        launcher.run(["info", "a.mp4"], cwd=tmp_path, stdout=file.fileno())
    assert "0.0 s  a star" in shown.read_text()
    assert "1.0 s  a ring (chunks)" in shown.read_text()


# A FIFO, and the video made again.


def test_live_prompts_are_logged_embedded_and_replayed_bit_by_bit(
    launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    command = words(tiny_model, "--prompts-from", "fifo", "-o", "a.mkv", "--codec", "ffv1")
    command += ["--transition", "blend", "--transition-seconds", "1", "--json", "a.jsonl"]
    log = tmp_path / "a.prompts.jsonl"
    with running(launcher, command, cwd=tmp_path, faults=[SLOW]) as case:
        until(lambda: len(md5s(tmp_path / "a.jsonl")) > 1)
        for count, line in enumerate(("a ring\n", "a square\n"), 2):
            fifo.write_text(line)
            until(lambda count=count: log.read_text().count("\n") == count)
        fifo.write_text(":save s.state\n")
        until((tmp_path / "s.state").exists)
        fifo.write_text(":quit\n")
        assert case.wait() == 0
    made = md5s(tmp_path / "a.jsonl")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["prompt"] for line in lines] == ["a star", "a ring", "a square"]
    assert lines[1]["transition"] == "blend" and len(lines[1]["position"]) == 2
    video = probe(tmp_path / "a.mkv")
    assert json.loads(video.record["timeline"]) == lines
    assert read_script(str(log)).prompts == ["a star", "a ring", "a square"]
    assert video.num_frames == len(made) * TINY_CHUNK
    # From the file, and from the log.
    again = ["generate", "--from", "a.mkv", "-m", str(tiny_model)]
    again += ["-o", "b.mkv", "--codec", "ffv1", "--json", "b.jsonl"]
    ended = launcher.run(again, cwd=tmp_path)
    assert ended.code == 0, ended.stderr
    assert md5s(tmp_path / "b.jsonl") == made
    assert pixels(tmp_path / "b.mkv") == pixels(tmp_path / "a.mkv")
    script = ["generate", "-m", str(tiny_model), "--seed", "5", "--script", log.name]
    script += ["--num-frames", str(video.num_frames), "-o", "c.mp4", "--json", "c.jsonl"]
    assert launcher.run(script, cwd=tmp_path).code == 0
    assert md5s(tmp_path / "c.jsonl") == made


def test_what_is_typed_wins_over_what_the_file_says(
    launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    first = words(tiny_model, "-p", "b", "--num-frames", "20", "--threads", "2", "-o", "a.mp4")
    assert launcher.run([*first, "--start", "clip"], cwd=tmp_path).code == 0
    again = ["generate", "--from", "a.mp4", "-m", str(tiny_model), "-o", "b.mp4"]
    ended = launcher.run([*again, "--seed", "6", "--seconds", "0.5"], cwd=tmp_path)
    assert ended.code == 0, ended.stderr
    one, other = (probe(tmp_path / name) for name in ("a.mp4", "b.mp4"))
    assert (other.num_frames, other.record["seed"]) == (8, "6")
    same = ("prompt", "start", "threads", "dtype", "timeline")
    assert [one.record[key] for key in same] == [other.record[key] for key in same]


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"seed": None}, "does not say how it was made"),
        ({"seed": "-1"}, "seed: '-1' is not a whole number"),
        ({"model": "../evil"}, "which is no preset"),
        ({"threads": "99999"}, "threads: '99999'"),
        ({"dtype": "float8"}, "dtype: 'float8' is not one of"),
        ({"timeline": "[" * 100_000}, "timeline is not a list"),
        ({"timeline": '[{"prompt": "a", "evil": 1}]'}, "unknown key 'evil'"),
        ({"timeline": '["a"]'}, "a stage must be a table"),
        ({"prompt": "a\x1b[31m"}, "control character 0x1b"),
        ({"lora": "/x.safetensors"}, "was made with a LoRA"),
    ],
)
def test_hostile_metadata_is_refused_in_one_line(
    changes: dict[str, str | None], part: str, tmp_path: Path
) -> None:
    import torch

    from streamdit_cli.output import open_writer
    from streamdit_cli.repeat import Settings, repeat

    record = {"prompt": "a", "seed": "1", "model": "shapes"} | changes
    path = tmp_path / "a.mkv"
    metadata = {key: value for key, value in record.items() if value is not None}
    writer = open_writer(str(path), width=16, height=16, fps=16.0, metadata=metadata)
    writer.write(torch.zeros(2, 16, 16, 3, dtype=torch.uint8))
    writer.close()
    with pytest.raises((InputError, UsageError), match=part) as caught:
        repeat(Settings(), path, set())
    assert "\n" not in str(caught.value)


# A viewer.


def read_frames(reader: int, count: int) -> list[float]:
    """Read rgb24 frames without ever letting the writer wait; returns when each was whole."""
    times: list[float] = []
    size = 0
    while len(times) < count:
        data = os.read(reader, 1 << 16)
        if not data:
            break
        size += len(data)
        times += [time.monotonic()] * (size // RAW_FRAME - len(times))
    return times


def test_frames_arrive_no_earlier_than_their_time_minus_the_lead(
    launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    command = words(tiny_model, "--seconds", "4", "-o", "-", "--pipe-format", "rgb24")
    command += ["--realtime", "--lead", "0.25"]
    reader, writer = os.pipe()
    with running(launcher, command, cwd=tmp_path, stdout=writer):
        os.close(writer)
        times = read_frames(reader, 4 * TINY_FPS)
    os.close(reader)
    assert len(times) == 4 * TINY_FPS
    # A reader may get the first frame late, never early: a tenth of a second is for that.
    early = [number / TINY_FPS - 0.25 - 0.1 - (at - times[0]) for number, at in enumerate(times)]
    assert max(early) <= 0
    assert times[-1] - times[0] < 30


def test_a_prompt_is_in_the_picture_two_seconds_after_it_was_written(
    launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    """Frames that left before it, and four chunks: three in hand and the one in the making."""
    command = words(tiny_model, "--interactive", "-o", "-", "--pipe-format", "rgb24")
    command += ["--json", "a.jsonl"]
    (stdin, typing), (reader, writer) = os.pipe(), os.pipe()
    with running(launcher, command, cwd=tmp_path, stdin=stdin, stdout=writer):
        os.close(writer)
        seen = len(read_frames(reader, 3 * TINY_FPS))
        os.write(typing, b"a ring\n")

        def changes() -> list[dict[str, Any]]:
            found = records(tmp_path / "a.jsonl", "prompt")
            return [line for line in found if line["prompt"] == "a ring"]

        drain = threading.Thread(target=read_frames, args=(reader, 10**6), daemon=True)
        drain.start()
        until(changes)
    drain.join()
    for descriptor in (stdin, typing, reader):
        os.close(descriptor)
    assert changes()[0]["kind"] == "applied"
    assert changes()[0]["seconds"] - seen / TINY_FPS <= 4 * TINY_CHUNK / TINY_FPS


def test_ctrl_c_ends_a_paced_video_at_once_and_keeps_its_prompts_in_it(
    launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "p.txt").write_text("a ring\n")
    command = words(tiny_model, "--realtime", "--prompts-from", "p.txt", "-o", "a.mp4")
    with running(launcher, [*command, "--json", "a.jsonl"], cwd=tmp_path) as case:
        until(lambda: len(md5s(tmp_path / "a.jsonl")) >= 2)
        began = time.monotonic()
        case.send(signal.SIGINT)
        assert case.wait() == 130
        assert time.monotonic() - began < 4
    video = probe(tmp_path / "a.mp4")
    assert video.num_frames == len(md5s(tmp_path / "a.jsonl")) * TINY_CHUNK
    assert [stage["prompt"] for stage in json.loads(video.record["timeline"])] == [
        "a star",
        "a ring",
    ]
    assert (video.color_space, video.color_range, video.fps) == (1, 1, TINY_FPS)
    assert len(pixels(tmp_path / "a.mp4")) == video.num_frames
    left = {"p.txt", "a.mp4", "a.jsonl", "a.prompts.jsonl"}
    assert {path.name for path in tmp_path.iterdir()} == left


# A terminal.


class Terminal:
    """A pseudo-terminal in which a command line runs, with everything that it shows."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        self.before = termios.tcgetattr(self.slave)
        self.text = ""

    def type(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def look(self) -> str:
        while select.select([self.master], [], [], 0)[0]:
            with suppress(OSError):
                self.text += os.read(self.master, 1 << 16).decode(errors="replace")
                continue
            break
        return self.text

    def sees(self, words: str) -> bool:
        return words in self.look()


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    found = Terminal()
    yield found
    os.close(found.master)
    os.close(found.slave)


def test_typed_lines_are_prompts_and_the_terminal_is_left_as_it_was(
    terminal: Terminal, launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    command = words(tiny_model, "--interactive", "-o", "-", "--pipe-format", "rgb24")
    reader, writer = os.pipe()
    tty = {"stdin": terminal.slave, "stderr": terminal.slave}
    with running(launcher, command, cwd=tmp_path, stdout=writer, **tty) as case:
        os.close(writer)
        counted: list[int] = []
        drain = threading.Thread(target=lambda: counted.append(len(read_frames(reader, 10**6))))
        drain.start()
        until(lambda: terminal.sees("every line is the new prompt"))
        terminal.type("a blue ring\n")
        until(lambda: terminal.sees("after the start: a blue ring"), 60)
        terminal.type(":help\n")
        until(lambda: terminal.sees(":save FILE"))
        terminal.type(":stat\n")
        until(lambda: terminal.sees("did you mean :stats?"))
        terminal.type(":pause\n")
        until(lambda: terminal.sees("paused"))
        terminal.type(":stats\n")
        until(lambda: terminal.sees("s of video in"))
        terminal.type(":resume\nbad \x07\n")
        until(lambda: terminal.sees("the prompt stays as it is"))
        until(lambda: "after the start: a blue ring" in terminal.look().split("complete at")[-1])
        case.send(signal.SIGINT)
        assert case.wait() == 130
    drain.join()
    os.close(reader)
    assert counted[0] > 0 and counted[0] % TINY_CHUNK == 0
    assert termios.tcgetattr(terminal.slave) == terminal.before
    assert "FPS (" in terminal.look() and "ended by SIGINT" in terminal.text
    assert "Traceback" not in terminal.text
    # No live line was drawn over what was typed.
    assert "x realtime  first frame" not in terminal.text


def test_the_end_of_typing_ends_only_a_video_that_nothing_else_would_end(
    launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    for more, frames in (([], None), (["--num-frames", "40"], 40)):
        reader, writer = os.pipe()
        os.write(writer, b"a ring\na square\n")
        os.close(writer)
        command = words(tiny_model, "--interactive", "-y", "-o", "a.mp4", *more)
        ended = launcher.run(command, cwd=tmp_path, stdin=reader)
        os.close(reader)
        assert ended.code == 0, ended.stderr
        log = (tmp_path / "a.prompts.jsonl").read_text()
        assert [json.loads(line)["prompt"] for line in log.splitlines()][1:] == [
            "a ring",
            "a square",
        ]
        found = probe(tmp_path / "a.mp4").num_frames
        assert found == frames if frames else found % TINY_CHUNK == 0 < found
        assert "no more prompts can come" in ended.stderr
