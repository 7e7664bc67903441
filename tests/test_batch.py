"""Claim: `batch` makes each video of a file once, whatever ends it, and says which it could not.

Row 12 of the reliability bar: a batch that dies goes on, without duplicates, with equal frames.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_CHUNK
from launcher import Ended, Fault, Launcher, until
from tiny_open import written_preset

from streamdit_cli import presets
from streamdit_cli.app import main
from streamdit_cli.errors import OutputError
from streamdit_cli.ledger import Entry, Ledger, read_ledgers
from streamdit_cli.loaded_model import MOST_TEXTS, LoadedModel
from streamdit_cli.video import md5_of, probe, read_video
from streamdit_model.wan import loading

PROMPTS = "a red star --f 24\na blue circle --d 5 --f 17\na green square --f 24\n# none\na --f 9\n"
NAMES = ["0001-a-red-star.mp4", "0002-a-blue-circle.mp4", "0003-a-green-square.mp4", "0004-a.mp4"]
LEDGER = "batch.jsonl"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "p.txt").write_text(PROMPTS)
    return tmp_path


@pytest.fixture(scope="module")
def made(launcher: Launcher, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a batch that nothing disturbed; to load the model again would kill it."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "p.txt").write_text(PROMPTS)
    ended = batch(launcher, tiny_model, folder, faults=[Fault("load", "SIGKILL", number=2)])
    assert ended.code == 0, ended.stderr
    return folder / "out"


@pytest.fixture(scope="module")
def whole(made: Path) -> dict[str, str]:
    """Its frames: file name -> md5."""
    return frames(made)


@pytest.fixture
def finished(made: Path, folder: Path) -> Path:
    """A folder with the file of prompts and a copy of that output."""
    shutil.copytree(made, folder / "out")
    return folder


def words(model: Path, *more: str) -> list[str]:
    return ["batch", "p.txt", "-o", "out", "-m", str(model), *more]


def batch(launcher: Launcher, model: Path, folder: Path, *more: str, **settings: Any) -> Ended:
    return launcher.run(words(model, *more), cwd=folder, **settings)


def frames(folder: Path) -> dict[str, str]:
    return {
        path.name: md5_of(torch.stack(list(read_video(path))))
        for path in sorted(folder.glob("*.mp4"))
    }


def ledger(folder: Path, name: str = LEDGER) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out" / name).read_text().splitlines()]


def states(folder: Path, state: str) -> list[str]:
    return [line["name"] for line in ledger(folder) if line["record"] == state]


def stamps(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in sorted((folder / "out").glob("*.mp4"))}


def num_lines(folder: Path) -> int:
    path = folder / "out" / LEDGER
    return path.read_bytes().count(b"\n") if path.exists() else 0


# What is made.


def test_every_line_is_a_video_with_what_it_asks_for(
    launcher: Launcher, tiny_model: Path, folder: Path, whole: dict[str, str]
) -> None:
    ended = batch(launcher, tiny_model, folder, "--json", "r.jsonl")
    assert ended.code == 0 and ended.stdout == b"", ended.stderr
    assert frames(folder / "out") == whole and list(whole) == NAMES
    assert "[2/4, about" in ended.stderr and "4 of 4 videos are there in out" in ended.stderr
    found = [probe(folder / "out" / name) for name in NAMES]
    assert [video.num_frames for video in found] == [24, 17, 24, 9]
    assert [video.record["seed"] for video in found] == ["0", "5", "0", "0"]
    assert [video.record["prompt"] for video in found][:2] == ["a red star", "a blue circle"]
    header, *items, summary = map(json.loads, (folder / "r.jsonl").read_text().splitlines())
    assert (header["record"], header["videos"], header["to_make"]) == ("header", 4, 4)
    assert [item["line"] for item in items] == [1, 2, 3, 5]
    assert {item["ended"] for item in items} == {"done"}
    assert (summary["ended"], summary["made"], summary["failed"]) == ("complete", 4, 0)


def test_video_is_the_one_that_generate_makes(
    launcher: Launcher, tiny_model: Path, folder: Path, whole: dict[str, str]
) -> None:
    command = ["generate", "-m", str(tiny_model), "-p", "a blue circle", "--seed", "5"]
    ended = launcher.run([*command, "--num-frames", "17", "-o", "b.mp4"], cwd=folder)
    assert ended.code == 0
    assert frames(folder)["b.mp4"] == whole["0002-a-blue-circle.mp4"]


def test_model_is_loaded_once_and_not_at_all_where_all_is_there(
    launcher: Launcher, tiny_model: Path, finished: Path
) -> None:
    before = stamps(finished)
    assert list(before) == NAMES
    again = batch(launcher, tiny_model, finished, faults=[Fault("load", "SIGKILL")])
    assert again.code == 0 and "4 of 4 videos are there" in again.stderr
    assert stamps(finished) == before


def test_each_prompt_is_made_with_each_seed_but_a_line_keeps_its_own(
    launcher: Launcher, tiny_model: Path, folder: Path
) -> None:
    (folder / "p.txt").write_text("a --f 2\nb --f 2 --d 9\n")
    ended = batch(launcher, tiny_model, folder, "--seeds", "1-3", "--name", "{slug}-{seed}.mp4")
    assert ended.code == 0, ended.stderr
    found = frames(folder / "out")
    assert list(found) == ["a-1.mp4", "a-2.mp4", "a-3.mp4", "b-9.mp4"]
    assert len(set(found.values())) == 4


@pytest.mark.parametrize(("lines", "is_said"), [("a --d 9\n", True), ("a --d 9\nb\n", False)])
def test_seeds_that_no_line_takes_are_told(
    launcher: Launcher, tiny_model: Path, folder: Path, lines: str, is_said: bool
) -> None:
    (folder / "p.txt").write_text(lines)
    ended = batch(launcher, tiny_model, folder, "--seeds", "1-3", "--dry-run")
    assert ended.code == 0
    assert ("--seeds has no effect" in ended.stderr) == is_said


def test_dry_run_shows_the_list_and_makes_nothing(
    launcher: Launcher, tiny_model: Path, folder: Path
) -> None:
    ended = batch(launcher, tiny_model, folder, "--dry-run", faults=[Fault("load", "SIGKILL")])
    assert ended.code == 0
    lines = ended.stdout.decode().splitlines()
    assert [line.split()[:2] for line in lines] == [["make", name] for name in NAMES]
    assert "4 of 4 videos would be made in out; nothing was made" in ended.stderr
    assert [path.name for path in folder.iterdir()] == ["p.txt"]


# What is there already.


def test_only_what_changed_is_made_again(
    launcher: Launcher, tiny_model: Path, finished: Path
) -> None:
    folder, before = finished, stamps(finished)
    (folder / "p.txt").write_text("new --f 3\n" + PROMPTS.replace("green", "grey"))
    ended = batch(launcher, tiny_model, folder)
    assert ended.code == 0, ended.stderr
    after = stamps(folder)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"0001-new.mp4", "0004-a-grey-square.mp4"}
    assert states(folder, "done")[-2:] == ["0001-new.mp4", "0004-a-grey-square.mp4"]


@pytest.mark.parametrize("change", [["--seconds", "1"], ["-n", "x"], ["--codec", "ffv1"]])
def test_other_settings_never_replace_a_video_unasked(
    change: list[str], launcher: Launcher, tiny_model: Path, folder: Path
) -> None:
    (folder / "p.txt").write_text("a\n")
    first = ["--num-frames", "3", "--name", "{slug}.mkv"]
    assert batch(launcher, tiny_model, folder, *first).code == 0
    before = (folder / "out" / "a.mkv").read_bytes()
    changed = [*(first[2:] if "--seconds" in change else first), *change]
    refused = batch(launcher, tiny_model, folder, *changed, faults=[Fault("load", "SIGKILL")])
    expected = (2, "baked in") if "-n" in change else (6, "out has a.mkv, made with other settings")
    assert refused.code == expected[0] and expected[1] in refused.errors[0]
    assert (folder / "out" / "a.mkv").read_bytes() == before
    if "-n" not in change:
        assert batch(launcher, tiny_model, folder, *changed, "-y").code == 0
        assert (folder / "out" / "a.mkv").read_bytes() != before
        assert sorted(path.name for path in (folder / "out").iterdir()) == ["a.mkv", LEDGER]


def test_removed_and_changed_files_are_noticed(
    launcher: Launcher, tiny_model: Path, finished: Path, whole: dict[str, str]
) -> None:
    folder = finished
    (folder / "out" / NAMES[1]).unlink()
    assert batch(launcher, tiny_model, folder).code == 0
    assert frames(folder / "out") == whole
    (folder / "out" / NAMES[1]).write_bytes(b"mine")
    refused = batch(launcher, tiny_model, folder)
    assert refused.code == 6 and NAMES[1] in refused.errors[0]
    assert (folder / "out" / NAMES[1]).read_bytes() == b"mine"


def test_no_skip_makes_everything_again(
    launcher: Launcher, tiny_model: Path, finished: Path, whole: dict[str, str]
) -> None:
    before = stamps(finished)
    assert batch(launcher, tiny_model, finished, "--no-skip").code == 0
    assert all(stamp > before[name] for name, stamp in stamps(finished).items())
    assert frames(finished / "out") == whole


def test_the_same_line_twice_is_two_videos_and_both_are_skipped(
    launcher: Launcher, tiny_model: Path, folder: Path
) -> None:
    (folder / "p.txt").write_text("a --f 2\na --f 2\n")
    assert batch(launcher, tiny_model, folder, "--name", "{slug}.mp4").code == 0
    assert list(frames(folder / "out")) == ["a-2.mp4", "a.mp4"]
    again = batch(launcher, tiny_model, folder, "--name", "{slug}.mp4")
    assert again.code == 0 and len(states(folder, "done")) == 2


# What goes wrong.


def test_bad_item_is_told_and_the_rest_goes_on(
    launcher: Launcher, tiny_model: Path, folder: Path, whole: dict[str, str]
) -> None:
    """The velocity is not finite in one chunk of the second video."""
    calls = 4 + 24 // TINY_CHUNK + 4  # of the first video, and some of the second
    spoiled = [Fault("velocity", "nan", number=calls)]
    ended = batch(launcher, tiny_model, folder, faults=spoiled)
    assert ended.code == 3, ended.stderr
    assert len(ended.errors) == 1 and f"{NAMES[1]} (line 2)" in ended.errors[0]
    assert states(folder, "failed") == [NAMES[1]] and len(states(folder, "done")) == 3
    again = batch(launcher, tiny_model, folder, faults=[Fault("load", "SIGKILL")])
    assert again.code == 3 and "1 failed before: --retry-failed" in again.stderr
    assert batch(launcher, tiny_model, folder, "--retry-failed").code == 0
    assert frames(folder / "out") == whole


def test_out_of_memory_in_one_item_does_not_end_the_batch(
    launcher: Launcher, tiny_model: Path, folder: Path
) -> None:
    ended = batch(launcher, tiny_model, folder, faults=[Fault("decode", "oom")])
    assert ended.code == 3 and "out of memory" in ended.errors[0]
    assert states(folder, "failed") == NAMES[:1] and states(folder, "done") == NAMES[1:]


def test_full_disk_ends_the_batch_and_the_next_run_goes_on(
    launcher: Launcher, tiny_model: Path, folder: Path, whole: dict[str, str]
) -> None:
    full = [Fault("file write", "no space", number=8, times=0)]
    ended = batch(launcher, tiny_model, folder, faults=full)
    assert ended.code == 6 and len(ended.errors) == 1
    assert not states(folder, "failed")
    assert batch(launcher, tiny_model, folder).code == 0
    assert frames(folder / "out") == whole


def test_ledger_on_a_full_disk_is_an_error_and_stays_whole(tmp_path: Path) -> None:
    """The limit of file sizes stands for a full disk; row 9."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Ledger(tmp_path, (1, 1)) as book:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (400, before[1]))
            with pytest.raises(OutputError, match="File too large"):
                for number in range(10):
                    book.write("done", f"{number}", "a.mp4", {})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    lines = (tmp_path / LEDGER).read_text().splitlines()
    assert len(lines) > 1 and all(json.loads(line) for line in lines)


@pytest.mark.parametrize(
    ("text", "more", "code", "part"),
    [
        ("a\nb --s 2\n", [], 4, "line 2: --s is not taken"),
        ("a\nb --w 64 --h 64\n", [], 4, "line 2: tiny has not the size 64x64"),
        ("a\nb --g 3\n", [], 4, "line 2: --guidance-scale has no effect"),
        ("a\nb --output ../x.mp4\n", [], 4, "line 2: output is a path"),
        ("a\n", ["--guidance-scale", "3"], 2, "baked in"),
        ("a\n", ["--seconds", "inf"], 2, "has an end"),
        ("a\n", ["--seconds", "2", "--num-frames", "3"], 2, "exclude each other"),
        ("a\n", ["--name", "{slug.__class__}.mp4"], 2, "no field"),
        ("a\n", ["--codec", "ffv1"], 2, "ffv1 does not go into .mp4"),
        ("a\n", ["--seeds", "3-1"], 2, "backwards"),
        ("a\n", ["--shard", "3/2"], 2, "shares are 1/2 to 2/2"),
        ("a\n", ["-m", "./nothing"], 2, "there is no folder"),
        ("a\n", ["-m", "."], 5, "is not a model"),
        ("a\n", ["-o", "p.txt"], 6, "p.txt cannot be made"),
        ("# none\n", [], 4, "holds no prompt"),
    ],
)
def test_what_is_wrong_is_said_before_weights_are_loaded(
    text: str,
    more: list[str],
    code: int,
    part: str,
    launcher: Launcher,
    tiny_model: Path,
    folder: Path,
) -> None:
    (folder / "p.txt").write_text(text)
    ended = batch(launcher, tiny_model, folder, *more, faults=[Fault("load", "SIGKILL")])
    assert ended.code == code, ended.stderr
    assert len(ended.errors) == 1 and part in ended.errors[0]
    assert [path.name for path in folder.iterdir()] == ["p.txt"]


# Ends.


def start_and(
    launcher: Launcher, model: Path, folder: Path, number: int, when: int, *more: str
) -> int:
    """Run a slow batch, send a signal when so many chunks or ends are in its ledger."""
    slow = [Fault("velocity", "sleep", times=0, seconds=0.02)]
    case = launcher.start(words(model, *more), cwd=folder, faults=slow)
    path = folder / "out" / LEDGER
    until(lambda: path.exists() and path.read_text().count('"begun"') >= when)
    case.send(number)
    return case.wait()


def test_ctrl_c_ends_the_video_properly_and_the_next_run_goes_on(
    launcher: Launcher, tiny_model: Path, folder: Path, whole: dict[str, str]
) -> None:
    (folder / "p.txt").write_text(PROMPTS.replace("--f 17", "--f 17000"))
    slow = [Fault("velocity", "sleep", times=0, seconds=0.02)]
    reader, writer = os.pipe()
    case = launcher.start(words(tiny_model), cwd=folder, faults=slow, stderr=writer)
    os.close(writer)
    part = folder / "out" / NAMES[1].replace(".mp4", ".part.mp4")
    until(lambda: part.exists() and part.stat().st_size > 5000)
    case.send(signal.SIGINT)
    assert case.wait() == 130
    with os.fdopen(reader) as err:
        text = err.read()
    assert "error:" not in text and "1 of 4 videos are there; the same command goes on" in text
    assert list(frames(folder / "out")) == NAMES[:2]  # it plays
    assert states(folder, "stopped") == [NAMES[1]]
    (folder / "p.txt").write_text(PROMPTS)
    refused = batch(launcher, tiny_model, folder)  # another length is another video
    assert refused.code == 6
    assert batch(launcher, tiny_model, folder, "-y").code == 0
    assert frames(folder / "out") == whole


def test_stopped_video_is_made_again_and_replaced(
    launcher: Launcher, tiny_model: Path, folder: Path, whole: dict[str, str]
) -> None:
    assert start_and(launcher, tiny_model, folder, signal.SIGTERM, 3) == 143
    assert len(states(folder, "stopped")) == 1
    assert batch(launcher, tiny_model, folder).code == 0
    assert frames(folder / "out") == whole


KILLS = [pytest.param(3, id="some"), pytest.param(20, id="all", marks=pytest.mark.slow)]


@pytest.mark.parametrize("count", KILLS)
def test_killed_batch_goes_on_without_duplicates_and_with_equal_frames(
    count: int, launcher: Launcher, tiny_model: Path, folder: Path, whole: dict[str, str]
) -> None:
    choose = random.Random(count)
    for _ in range(count):
        slow = [Fault("velocity", "sleep", times=0, seconds=0.01)]
        case = launcher.start(words(tiny_model, "--no-skip"), cwd=folder, faults=slow)
        lines = num_lines(folder) + choose.randrange(1, 8)
        until(lambda lines=lines: num_lines(folder) >= lines)
        case.send(signal.SIGKILL)
        case.wait()
    ended = batch(launcher, tiny_model, folder)
    assert ended.code == 0, ended.stderr
    assert frames(folder / "out") == whole
    assert sorted(path.name for path in (folder / "out").iterdir()) == [*NAMES, LEDGER]


@pytest.mark.parametrize("record", ["begun", "done"])
def test_kill_beside_a_ledger_line_loses_and_repeats_no_video(
    record: str, launcher: Launcher, tiny_model: Path, folder: Path, whole: dict[str, str]
) -> None:
    """Before `done` is written the video has its name already; after half of it, it is torn."""
    code = f"""
import json, os, streamdit_cli.ledger as module
append = module.Ledger._append
def torn(self, said):
    if said["record"] == {record!r} and said["line"] == 2:
        os.write(self._descriptor, json.dumps(said).encode()[:30])
        os.kill(os.getpid(), 9)
    append(self, said)
module.Ledger._append = torn
"""
    assert batch(launcher, tiny_model, folder, code=code).code == -signal.SIGKILL
    made = stamps(folder)
    assert batch(launcher, tiny_model, folder).code == 0
    assert frames(folder / "out") == whole
    assert {name: stamps(folder)[name] for name in made} == made  # none was made twice
    assert all("record" in line for line in ledger(folder))


# Several processes.


def test_shares_together_are_the_whole_with_equal_frames(
    launcher: Launcher, tiny_model: Path, folder: Path, whole: dict[str, str]
) -> None:
    cases = [
        launcher.start(words(tiny_model, "--shard", f"{number}/3"), cwd=folder)
        for number in (1, 2, 3)
    ]
    assert [case.wait() for case in cases] == [0, 0, 0]
    assert frames(folder / "out") == whole
    made = [
        line["name"]
        for number in (1, 2, 3)
        for line in ledger(folder, f"batch-{number}-of-3.jsonl")
        if line["record"] == "done"
    ]
    assert sorted(made) == NAMES
    again = batch(launcher, tiny_model, folder, faults=[Fault("load", "SIGKILL")])
    assert again.code == 0 and "4 of 4" in again.stderr


@pytest.mark.parametrize(
    "variables",
    [
        {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"},
        {
            "SLURM_ARRAY_TASK_ID": "6",
            "SLURM_ARRAY_TASK_MIN": "5",
            "SLURM_ARRAY_TASK_COUNT": "2",
            "SLURM_ARRAY_TASK_STEP": "1",
        },
    ],
)
def test_torchrun_and_arrays_say_the_share(
    variables: dict[str, str], launcher: Launcher, tiny_model: Path, folder: Path
) -> None:
    code = f"import os; os.environ.update({variables!r})"
    ended = batch(launcher, tiny_model, folder, "--dry-run", code=code)
    assert ended.code == 0, ended.stderr
    lines = ended.stdout.decode().splitlines()
    assert [line.split()[1] for line in lines] == [NAMES[1], NAMES[3]]


def test_second_run_of_a_share_is_refused_and_harms_nothing(
    launcher: Launcher, tiny_model: Path, folder: Path, whole: dict[str, str]
) -> None:
    slow = [Fault("velocity", "sleep", times=0, seconds=0.02)]
    case = launcher.start(words(tiny_model), cwd=folder, faults=slow)
    until((folder / "out" / LEDGER).exists)
    refused = batch(launcher, tiny_model, folder)
    assert refused.code == 6, refused.stderr
    assert f"written by process {case.pid}" in refused.errors[0]
    assert case.wait() == 0
    assert frames(folder / "out") == whole


def test_the_whole_and_a_share_at_once_make_no_video_twice(
    launcher: Launcher, tiny_model: Path, folder: Path, whole: dict[str, str]
) -> None:
    slow = [Fault("velocity", "sleep", times=0, seconds=0.02)]
    case = launcher.start(words(tiny_model), cwd=folder, faults=slow)
    until((folder / "out" / LEDGER).exists)
    share = batch(launcher, tiny_model, folder, "--shard", "1/2")
    assert case.wait() in (0, 3) and share.code in (0, 3), share.stderr
    assert not share.errors
    assert frames(folder / "out") == whole
    lines = [*ledger(folder), *ledger(folder, "batch-1-of-2.jsonl")]
    assert sorted(line["name"] for line in lines if line["record"] == "done") == NAMES


def test_item_that_another_process_makes_is_left_to_it(
    launcher: Launcher, tiny_model: Path, folder: Path, whole: dict[str, str]
) -> None:
    """This process holds the unfinished file, as another run does."""
    import fcntl

    part = folder / "out" / NAMES[0].replace(".mp4", ".part.mp4")
    part.parent.mkdir()
    with Ledger(part.parent, (1, 9)) as other:
        other.write("begun", "key", NAMES[0], {})
    with open(part, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        ended = batch(launcher, tiny_model, folder)
        assert ended.code == 3 and not ended.errors, ended.stderr
        message = f"warning: {NAMES[0]} is left out: out/{part.name} is being written by process"
        assert f"{message} {os.getpid()}" in ended.stderr
    assert batch(launcher, tiny_model, folder).code == 0
    assert frames(folder / "out") == whole and not part.exists()


# The ledger and the model by themselves.


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe",
        b"null",
        b"[1]",
        b'{"record": "done"}',
        b'{"record": "done", "item": "k", "name": "../../a.mp4", "bytes": 1, "when": 1}',
        b'{"record": "done", "item": "k", "name": "", "bytes": 1, "when": 1}',
        b'{"record": "done", "item": ["k"], "name": "a.mp4", "bytes": 1, "when": 1}',
        b'{"record": "done", "item": "k", "name": "a.mp4", "bytes": "1", "when": 1}',
        b'{"record": "won", "item": "k", "name": "a.mp4", "bytes": 1, "when": 1}',
        b"[" * 70_000,
    ],
)
def test_line_that_is_no_entry_is_passed_over(line: bytes, tmp_path: Path) -> None:
    good = b'{"record": "done", "item": "x", "name": "x.mp4", "bytes": 5, "when": 2}'
    (tmp_path / LEDGER).write_bytes(line + b"\n" + good + b"\n")
    assert read_ledgers(tmp_path) == {
        "x": Entry(state="done", name="x.mp4", size=5, when=2.0),
    }


def test_last_entry_of_all_ledgers_counts(tmp_path: Path) -> None:
    with Ledger(tmp_path, (1, 2)) as first, Ledger(tmp_path, (2, 2)) as second:
        second.write("done", "k", "a.mp4", {"bytes": 7})
        first.write("failed", "k", "a.mp4", {"error": "no", "bytes": 3})
        with pytest.raises(OutputError, match=r"batch-1-of-2.jsonl is being written"):
            Ledger(tmp_path, (1, 2))
    entry = read_ledgers(tmp_path)["k"]
    assert (entry.state, entry.size, entry.error) == ("failed", 3, "no")
    assert read_ledgers(tmp_path / "nothing") == {}


class Counting:
    """A source of open weights that notes what it is asked to encode."""

    def __init__(self) -> None:
        self.metadata: dict[str, str] = {}
        self.loads: list[Sequence[str]] = []

    def read_config(self, *, size: Any = None, start: Any = None) -> int:
        return 0

    def load(self, *, prompts: Sequence[str], **_: Any) -> Any:
        self.loads.append(prompts)
        return type("Loaded", (), {"config": 0})()


def test_open_weights_make_every_size_with_one_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, with a preset of tiny networks; `generate` makes the same frames."""
    monkeypatch.setattr(presets, "_presets_folder", lambda: tmp_path / "presets")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "presets").mkdir()
    written_preset(tmp_path / "presets", "tiny")
    lines = '{"prompt": "x", "num_frames": 5}\n{"prompt": "y", "num_frames": 5, "size": "48x16"}\n'
    (tmp_path / "p.jsonl").write_text(lines)
    common = ["-m", "tiny", "--random-weights", "--quiet"]
    loads = []
    monkeypatch.setattr(loading, "random_wan", _counted(loading.random_wan, loads))
    assert main(["batch", "p.jsonl", "-o", "out", *common]) == 0
    assert len(loads) == 1
    words = ["generate", "-p", "y", "--seed", "0", "--num-frames", "5", "--size", "48x16"]
    assert main([*words, *common, "-o", "y.mp4"]) == 0
    assert frames(tmp_path / "out")["0002-y.mp4"] == frames(tmp_path)["y.mp4"]
    assert probe(tmp_path / "out" / "0001-x.mp4").width == 32


def _counted(call: Callable[..., Any], calls: list[int]) -> Callable[..., Any]:
    def counted(*args: Any, **settings: Any) -> Any:
        calls.append(1)
        return call(*args, **settings)

    return counted


def test_open_weights_get_the_texts_of_the_items_to_come_in_few_loads() -> None:
    texts = [[f"prompt {number}", ""] for number in range(1000)]
    source = Counting()
    model = LoadedModel(source, texts)  # type: ignore[arg-type]
    for each in texts:
        model.load(prompts=each, size=None, device=None, dtype=None, threads=None)
    assert [len(prompts) for prompts in source.loads] == [MOST_TEXTS, MOST_TEXTS, 203]
    assert set().union(*source.loads) == {text for each in texts for text in each}
