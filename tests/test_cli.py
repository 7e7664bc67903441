"""Claim: exit codes are API, errors are one line with a hint, and stdout holds only what was asked.

The refusals run in a process that cannot import torch: they come before any model is loaded.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import streamdit_cli
from streamdit_cli import app as app_module
from streamdit_cli import console
from streamdit_cli.app import COMMANDS, ExitCode, load_command, main
from streamdit_cli.errors import (
    DownloadError,
    InputError,
    MissingWeights,
    OutputError,
    Stopped,
    UsageError,
)
from streamdit_cli.options import parse_device, parse_guidance, parse_seconds, parse_seed
from streamdit_cli.video import probe
from streamdit_model import Stream
from streamdit_model.errors import (
    ConfigError,
    DeviceError,
    NumericsError,
    StreamDiTError,
    WeightsError,
)

WORDS = ["-p", "a red circle"]
NO_LENGTHS = [
    *("nan", "-1", "0", "1e999", "-inf", "infinity", "1:60", "1:2:3:4", ":", "1:", "1_0"),
    *("1:-5", "-1:30", "s", "0x10", "366d", "999999999"),
]
RUN_ALL_WITHOUT_TORCH = """
import contextlib, io, json, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "numpy"}:
            raise ImportError("refused: " + name)
sys.meta_path.insert(0, Refuse())
from streamdit_cli.app import main
ends = []
for words in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(words)
    ends.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(ends))
"""

# Name of the case -> (command line, exit code, words of the message).
REFUSALS: dict[str, tuple[list[str], int, str]] = {
    "no prompt": (["generate", "-o", "new.mp4"], 2, "prompt"),
    "empty prompt": (["generate", "-p", "", "-o", "new.mp4"], 2, "prompt"),
    "blank prompt": (["generate", "-p", " \t", "-o", "new.mp4"], 2, "prompt"),
    "unknown model": (["generate", *WORDS, "-m", "shape"], 2, "did you mean shapes?"),
    "model path that is not there": (["generate", *WORDS, "-m", "./no"], 2, "./no"),
    "model without weights": (["generate", *WORDS, "-m", "paper-4b"], 5, "no weights"),
    "folder that is no model": (["generate", *WORDS, "-m", "folder.mp4"], 5, "not a model"),
    "nan seconds": (["generate", *WORDS, "--seconds", "nan"], 2, "'nan'"),
    "negative seconds": (["generate", *WORDS, "--seconds", "-3"], 2, "'-3'"),
    "no seconds": (["generate", *WORDS, "--seconds", "0"], 2, "'0'"),
    "absurd seconds": (["generate", *WORDS, "--seconds", "1e300"], 2, "366 days"),
    "words for seconds": (["generate", *WORDS, "--seconds", "long"], 2, "'long'"),
    "negative frames": (["generate", *WORDS, "--num-frames", "-1"], 2, "--num-frames"),
    "seconds and frames": (
        ["generate", *WORDS, "--seconds", "1", "--num-frames", "1"],
        2,
        "--num-frames",
    ),
    "negative seed": (["generate", *WORDS, "--seed", "-1"], 2, "'-1'"),
    "seed above 63 bits": (["generate", *WORDS, "--seed", str(2**63)], 2, "2**63 - 1"),
    "nan guidance": (["generate", *WORDS, "--guidance-scale", "nan"], 2, "'nan'"),
    "no such device": (["generate", *WORDS, "--device", "tpu"], 2, "'tpu'"),
    "no such dtype": (["generate", *WORDS, "--dtype", "float16"], 2, "'float32'"),
    "no threads": (["generate", *WORDS, "--threads", "0"], 2, "--threads"),
    "size that is none": (["generate", *WORDS, "--size", "big"], 2, "'big'"),
    "unknown container": (["generate", *WORDS, "-o", "new.avi"], 2, ".mp4"),
    "no container": (["generate", *WORDS, "-o", "new"], 2, ".mp4"),
    "codec that does not fit": (["generate", *WORDS, "-o", "n.mp4", "--codec", "ffv1"], 2, ".mp4"),
    "existing file": (["generate", *WORDS, "-o", "old.mp4"], 6, "old.mp4 exists"),
    "folder as file": (["generate", *WORDS, "-o", "folder.mp4"], 6, "folder"),
    "missing folder": (["generate", *WORDS, "-o", "no/new.mp4"], 6, "no does not exist"),
    "unknown option": (["generate", "--promt", "x"], 2, "--prompt"),
    "unknown command": (["genrate"], 2, "Did you mean 'generate'?"),
    "value left out": (["generate", "--seconds"], 2, "--seconds"),
    "missing prompt file": (["generate", "-p", "@no.txt"], 4, "no.txt"),
    "partition and target": (["info", "x", "--partition", "K=0,N=8,c=2,s=1"], 2, "--partition"),
    "info of nothing": (["info", "no-such-thing"], 2, "no-such-thing"),
    "info of no video": (["info", "old.mp4"], 4, "old.mp4"),
    "no training recipe": (["train", "--config", "no.toml", "-o", "run"], 2, "no.toml"),
}


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, str]]:
    """Every refusal run once, with a shapes model in place, in one process without torch."""
    folder = tmp_path_factory.mktemp("refusals")
    (folder / "old.mp4").write_bytes(b"not a video")
    (folder / "folder.mp4").mkdir()
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    command_lines = [words for words, _, _ in REFUSALS.values()]
    environment = {**os.environ, "STREAMDIT_MODEL": str(folder / "model")}
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL_WITHOUT_TORCH],
        input=json.dumps(command_lines),
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        timeout=120,
        check=True,
    )
    assert (folder / "old.mp4").read_bytes() == b"not a video"
    assert sorted(path.name for path in folder.iterdir()) == ["folder.mp4", "model", "old.mp4"]
    return dict(zip(REFUSALS, map(tuple, json.loads(done.stdout)), strict=True))


@pytest.mark.parametrize("case", REFUSALS)
def test_bad_input_is_refused_in_one_line_before_torch(
    case: str, refusals: dict[str, tuple[int, str, str]]
) -> None:
    code, out, err = refusals[case]
    lines = err.splitlines()
    assert code == REFUSALS[case][1], err
    assert out == ""
    assert lines[0].startswith("error: ")
    assert REFUSALS[case][2] in lines[0], lines[0]
    assert all(line.startswith("hint: ") for line in lines[1:])
    assert len(lines) <= 2


# What a command may raise -> (exit code, first line on standard error).
ENDS: list[tuple[BaseException, int, str]] = [
    (UsageError("bad x", "try y"), 2, "error: bad x"),
    (typer.BadParameter("bad x"), 2, "error: Invalid value: bad x"),
    (InputError("bad x"), 4, "error: bad x"),
    (DownloadError("bad x"), 5, "error: bad x"),
    (MissingWeights("bad x"), 5, "error: bad x"),
    (OutputError("bad x"), 6, "error: bad x"),
    (ConfigError("bad x", "try y"), 2, "error: bad x"),
    (WeightsError("bad x"), 5, "error: bad x"),
    (DeviceError("bad x"), 7, "error: bad x"),
    (NumericsError("bad x"), 8, "error: bad x"),
    (StreamDiTError("bad x"), 1, "error: unexpected StreamDiTError: bad x"),
    (MemoryError(), 7, "error: out of memory: no message"),
    (RuntimeError("DefaultCPUAllocator: can't allocate\nmore"), 7, "error: out of memory: Def"),
    (Stopped(2, "kept 1.0 s"), 130, "kept 1.0 s"),
    (Stopped(15, "kept 1.0 s"), 143, "kept 1.0 s"),
    (Stopped(1, "kept 1.0 s"), 129, "kept 1.0 s"),
    (KeyboardInterrupt(), 130, ""),
    (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141, ""),
    (typer.Exit(3), 3, ""),
    (SystemExit(3), 3, ""),
    (SystemExit("text"), 1, ""),
    (ZeroDivisionError("by\nzero"), 1, "error: unexpected ZeroDivisionError: by"),
    (OSError(errno.EIO, "Input/output error"), 1, "error: unexpected OSError"),
]


@pytest.fixture
def end_with(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException | None], None]:
    """Register a command `ends` that raises what it is told to."""

    def register(error: BaseException | None) -> None:
        def ends() -> None:
            """End as told."""
            if error is not None:
                raise error

        module = types.ModuleType("streamdit_cli.ends")
        module.ends, module.EXAMPLES = ends, ()  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "streamdit_cli.ends", module)
        monkeypatch.setitem(COMMANDS, "ends", "End as told.")

    return register


@pytest.mark.parametrize(("error", "code", "line"), ENDS, ids=lambda value: repr(value)[:40])
def test_every_end_has_its_exit_code_and_one_line(
    error: BaseException,
    code: int,
    line: str,
    end_with: Callable[[BaseException | None], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    end_with(error)
    assert main(["ends"]) == code
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert (lines[:1] or [""])[0].startswith(line)
    assert line or not lines
    assert len(lines) <= 2 and all(other.startswith("hint: ") for other in lines[1:])


def test_command_that_ends_well_returns_0_and_says_nothing(
    end_with: Callable[[BaseException | None], None], capsys: pytest.CaptureFixture[str]
) -> None:
    end_with(None)
    assert main(["ends"]) == ExitCode.OK
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("words", [["--debug", "ends"], ["ends", "--debug"]])
def test_debug_shows_the_traceback_wherever_it_stands(
    words: list[str],
    end_with: Callable[[BaseException | None], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    end_with(ZeroDivisionError("\x1b[31mred"))
    assert main(words) == ExitCode.UNEXPECTED
    err = capsys.readouterr().err
    assert "Traceback (most recent call last):" in err
    assert "raise error" in err
    assert "\x1b" not in err


def test_exit_codes_are_the_documented_table() -> None:
    table = {
        "OK": 0,
        "UNEXPECTED": 1,
        "USAGE": 2,
        "PARTIAL": 3,
        "INPUT": 4,
        "WEIGHTS": 5,
        "OUTPUT": 6,
        "DEVICE": 7,
        "NUMERICS": 8,
        "HANGUP": 129,
        "INTERRUPTED": 130,
        "PIPE_CLOSED": 141,
        "TERMINATED": 143,
    }
    assert {code.name: int(code) for code in ExitCode} == table


def test_help_is_on_stdout_and_names_every_command() -> None:
    done = CliRunner().invoke(app_module.app, ["--help"])
    assert done.exit_code == 0
    assert done.stderr == ""
    assert all(f" {name} " in done.stdout for name in COMMANDS)
    assert "-h" in done.stdout


def test_no_arguments_show_the_help_and_count_as_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == ExitCode.USAGE
    out, err = capsys.readouterr()
    assert "Commands" in out + err
    assert "error" not in err


def test_version_is_one_line_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("streamdit ") and out.count("\n") == 1
    assert "torch 2." in out
    assert err == ""


@pytest.mark.parametrize("name", COMMANDS)
def test_command_help_begins_with_its_line_and_ends_with_examples(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = load_command(name)
    assert (command.help or "").splitlines()[0] == COMMANDS[name]
    assert main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert "--debug" in out
    assert f"streamdit {name}" in out[out.index("Examples") :]


def test_underscores_in_options_mean_hyphens(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--num_frames", "-1"]) == ExitCode.USAGE
    assert "--num-frames" in capsys.readouterr().err


def test_completion_offers_commands_and_models() -> None:
    environment = {
        **os.environ,
        "_STREAMDIT_COMPLETE": "complete_bash",
        "COMP_WORDS": "streamdit generate -m paper",
        "COMP_CWORD": "3",
    }
    command = [sys.executable, "-m", "streamdit_cli"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["paper-4b"]
    environment.update(COMP_WORDS="streamdit gen", COMP_CWORD="1")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["generate"]


def test_closed_streams_are_not_a_crash(tmp_path: Path) -> None:
    """`>&-` on both: nothing can be said, and the exit code still tells."""
    program = f"{sys.executable} -m streamdit_cli info no-such-model >&- 2>&-"
    done = subprocess.run(["bash", "-c", program], cwd=tmp_path, timeout=60, check=False)
    assert done.returncode == ExitCode.USAGE


def test_reader_that_leaves_ends_a_table_quietly_with_141(tmp_path: Path) -> None:
    """A partition too long for the pipe's buffer, and a reader that reads nothing."""
    run = f"{sys.executable} -m streamdit_cli info --partition K=0,N=400,c=1,s=4 --json -"
    program = f"{run} 2>err | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(int(ExitCode.PIPE_CLOSED))
    assert (tmp_path / "err").read_text() == ""


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90.0),
        ("1.5", 1.5),
        ("90s", 90.0),
        ("2m", 120.0),
        ("1h", 3600.0),
        ("1:30", 90.0),
        ("01:02:03", 3723.0),
        (" 5 ", 5.0),
        ("inf", math.inf),
        ("0.01", 0.01),
    ],
)
def test_length_is_read_as_people_write_it(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", NO_LENGTHS)
def test_length_that_is_none_is_refused(text: str) -> None:
    for words in (text, f" {text}", text.upper(), f"{text} x"):
        with pytest.raises(typer.BadParameter):
            parse_seconds(words)


@pytest.mark.parametrize("text", ["", " ", "5 s m", "1: 30", "\u0665"])
def test_length_with_odd_letters_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        parse_seconds(text)


@pytest.mark.parametrize(
    ("parse", "good", "bad"),
    [
        (parse_seed, ["0", str(2**63 - 1)], ["-1", str(2**63), "1.0", "", "\u0665", "1" * 5000]),
        (parse_device, ["cpu", "cuda", "cuda:1", "mps"], ["", "gpu", "cuda:", "cuda:x", "cpu\n"]),
        (parse_guidance, ["0", "1", "7.5", "100"], ["", "-1", "nan", "inf", "101", "x"]),
    ],
)
def test_option_values_are_read_or_refused(
    parse: Callable[[str], object], good: list[str], bad: list[str]
) -> None:
    assert all(str(parse(text)) in (text, f"{text}.0") for text in good)
    for text in bad:
        with pytest.raises(typer.BadParameter):
            parse(text)


def test_info_json_is_json_on_stdout_and_in_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["info", "--partition", "K=1,N=2,c=3,s=2", "--json"]
    assert main([*words, "-"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    record = json.loads(out)
    assert (record["buffer_length"], record["total_steps"]) == (7, 4)
    assert [row["tau"] for row in record["rows"]] == [[1.0, 1.0], [0.5, 0.75], [0.0, 0.25]]
    path = tmp_path / "partition.json"
    assert main([*words, str(path)]) == 0
    assert json.loads(path.read_text()) == record
    assert main([*words, str(path)]) == ExitCode.OUTPUT
    assert main([*words, str(path), "-y"]) == 0
    assert main([*words, str(tmp_path / "no" / "x.json")]) == ExitCode.OUTPUT


def test_info_draws_the_partition_oldest_chunk_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--partition", "K=0,N=4,c=2,s=1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "B=8" in lines[0] and "T=4" in lines[0]
    assert [line.split()[2] for line in lines[2:]] == ["0.75", "0.5", "0.25", "0"]
    assert lines[2].split()[-1] == "leaves"


def test_info_of_a_preset_without_weights_counts_its_parameters(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["info", "paper-4b", "--json", "-"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["folder"] is None
    assert 4.0e9 < record["parameters"]["transformer"] < 4.3e9
    assert main(["info", "paper-4b"]) == 0
    assert "no weights" in capsys.readouterr().out


def test_info_of_a_run_shows_how_far_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [{"step": step, "stage": "base", "loss": 1 / step} for step in (10, 20)]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 30, "sta'
    (tmp_path / "metrics.jsonl").write_text(text)
    assert main(["info", str(tmp_path)]) == 0
    assert "stage base, step 20, loss 0.05" in capsys.readouterr().out


def test_python_loads_by_name_and_writes_a_video(tiny_model: Path, tmp_path: Path) -> None:
    model = streamdit_cli.load(str(tiny_model), device="cpu", dtype="float32")
    path = tmp_path / "video.mp4"
    with Stream(model, "a red circle", seed=1, num_frames=20, synchronous=True) as stream:
        assert streamdit_cli.write_video(stream, path, fps=model.config.fps) == 20
    assert probe(path).num_frames == 20
    with pytest.raises(OutputError, match="exists"):
        streamdit_cli.write_video(Stream(model, seed=1, num_frames=1), path, fps=16.0)
    with pytest.raises(OutputError, match="no frames"):
        streamdit_cli.write_video([], tmp_path / "none.mp4", fps=16.0)
    assert [entry.name for entry in tmp_path.iterdir()] == ["video.mp4"]


def test_info_of_a_model_and_of_its_video(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", str(tiny_model), "--json", "-"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["kind"], record["name"], record["dtypes"]) == ("model", "tiny", ["float32"])
    assert main(["info", str(tiny_model)]) == 0
    assert "K=0 N=4 c=2 s=1" in capsys.readouterr().out
    path = tmp_path / "video.mp4"
    words = ["generate", *WORDS, "-m", str(tiny_model), "--seconds", "0.5", "--seed", "7"]
    assert main([*words, "-o", str(path)]) == 0
    assert capsys.readouterr().out == ""
    assert main(["info", str(path)]) == 0
    out = capsys.readouterr().out
    assert "0.50 s, 8 frames at 16 FPS" in out
    assert "a red circle" in out
    assert main(["info", str(path), "--json", "-"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["kind"], record["num_frames"], record["record"]["seed"]) == ("video", 8, "7")


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_progress_measures_first_frame_rate_and_realtime_factor() -> None:
    clock = Clock()
    progress = console.Progress(10.0, 16.0, quiet=True, clock=clock)
    assert progress.first_frame_seconds is None
    assert progress.frames_per_second is None
    for frames in (8, 16, 24):
        clock.now += 0.25
        progress.update(frames)
    assert progress.first_frame_seconds == 0.25
    assert progress.frames_per_second == 32.0
    assert progress.realtime_factor == 2.0


def test_progress_off_a_terminal_is_a_plain_line_each_few_seconds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    progress = console.Progress(60.0, 16.0, clock=clock)
    for frames in range(8, 8 * 41, 8):
        clock.now += 0.5
        progress.update(frames, step_ms=12.0)
    progress.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 4  # 20 s, one each 5 s
    assert err.splitlines()[-1].startswith("15.5/60.0 s  16.0 FPS  1.00x realtime  first frame 0.5")
    assert "\x1b" not in err and "\r" not in err


def test_what_the_library_logs_is_said_once_and_safely(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log = logging.getLogger("streamdit_model.checkpoint")
    try:
        console.configure()
        console.configure(verbose=True)
        log.warning("set aside %s", "\x1b[2Jx")
        log.info("looked at 3")
        console.configure()
        log.info("looked at 4")
    finally:
        console.configure()
    assert capsys.readouterr() == ("", "warning: set aside \\x1b[2Jx\nlooked at 3\n")


def test_quiet_silences_status_but_not_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    console.configure(quiet=True, verbose=True)
    try:
        console.status("status")
        console.detail("detail")
        console.summary("summary")
        console.warn("careful")
        console.hint("do this")
        progress = console.Progress(None, 16.0)
        progress.update(8)
        progress.close()
    finally:
        console.configure()
    assert capsys.readouterr() == ("", "warning: careful\nhint: do this\n")
