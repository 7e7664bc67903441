"""Claim: `generate` makes exactly what the words ask for, or says in one line why it cannot."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import typer
from conftest import TINY_FPS, tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st
from launcher import Fault, Launcher

from streamdit_cli.errors import InputError, TerminalError, UsageError
from streamdit_cli.plan import Wishes, check_wishes, make_plan
from streamdit_cli.prompts import LONGEST_PROMPT, equal_parts, read_prompt_file, read_prompts
from streamdit_cli.video import probe
from streamdit_cli.video_options import parse_size
from streamdit_model.weights import ModelConfig


def wishes(**changes: Any) -> Wishes:
    nothing = {field.name: None for field in dataclasses.fields(Wishes)}
    return Wishes(**{**nothing, "prompts": ["a star"], "seed": 1, **changes})


def teacher() -> ModelConfig:
    """A model that takes guidance."""
    return dataclasses.replace(tiny_config(), distilled=False, guidance_scale=3.0)


# Prompts.


def test_prompts_come_from_words_files_and_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes("\ufeff# comment\r\n\r\n a red star \r\n\u00fc \u2605\n".encode())
    reader, writer = os.pipe()
    os.write(writer, b"from a pipe\n")
    os.close(writer)
    with os.fdopen(reader) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        found = read_prompts([" a star ", f"@{path}", "-"])
    assert found == ["a star", "a red star", "\u00fc \u2605", "from a pipe"]
    assert read_prompts(None, no_prompt=True) == []


@pytest.mark.parametrize(
    ("words", "no_prompt", "part"),
    [
        (None, False, "no prompt"),
        ([], False, "no prompt"),
        (["x"], True, "exclude each other"),
        (["  "], False, "empty"),
        (["-", "-"], False, "once"),
        (["a\x00b"], False, "0x00"),
        (["a\x1b[31m"], False, "0x1b"),
        (["a\udcff"], False, "not UTF-8"),
        (["x" * (LONGEST_PROMPT + 1)], False, str(LONGEST_PROMPT)),
    ],
)
def test_prompt_that_is_none_is_refused(
    words: list[str] | None, no_prompt: bool, part: str
) -> None:
    with pytest.raises(UsageError, match=part):
        read_prompts(words, no_prompt=no_prompt)


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"", "holds no prompt"),
        (b"# only a comment\n\n", "holds no prompt"),
        (b"good\nbad \xff\n", "line 2 is not UTF-8"),
        (b"good\nbad\x07\n", "line 2 has the control character 0x07"),
        (b"x" * (LONGEST_PROMPT + 1), "line 1 has"),
        (b"x\n" * 100_001, "100000 lines"),
        (b"x" * (10 * 2**20 + 1), "larger than"),
    ],
)
def test_prompt_file_is_refused_with_its_line(data: bytes, part: str, tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes(data)
    with pytest.raises(InputError, match=part):
        read_prompt_file(path)
    for missing in (tmp_path / "no.txt", tmp_path, tmp_path / ("x" * 300)):
        with pytest.raises(InputError, match="cannot be read"):
            read_prompt_file(missing)


@settings(deadline=None, max_examples=200)
@given(st.one_of(st.binary(max_size=300), st.text(max_size=100).map(str.encode)))
def test_any_prompt_file_is_read_or_refused(data: bytes) -> None:
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"prompts-{os.getpid()}.txt"
    path.write_bytes(data)
    try:
        prompts = read_prompt_file(path)
        assert prompts and all(prompt.strip() == prompt != "" for prompt in prompts)
    except InputError as error:
        assert "\n" not in str(error)
    finally:
        path.unlink()


def test_prompts_share_the_length_equally() -> None:
    assert equal_parts(["a"], float("inf")) == [("a", 0.0)]
    assert equal_parts(["a", "b", "c"], 6.0) == [("a", 0.0), ("b", 2.0), ("c", 4.0)]
    with pytest.raises(UsageError, match="2 prompts"):
        equal_parts(["a", "b"], float("inf"))


# Size, length, guidance.


def test_size_is_read_or_refused() -> None:
    assert parse_size("640x480") == parse_size(" 640*480 ") == parse_size("640X480") == (640, 480)
    for bad in (
        "",
        "640",
        "0x10",
        "-1x2",
        "1e2x4",
        "99999x1",
        "1x2x3",
        "\u0664x\u0664",
        "x",
        "nan",
    ):
        with pytest.raises(typer.BadParameter):
            parse_size(bad)


@pytest.mark.parametrize(
    ("seconds", "frames"),
    [(None, 160), (0.001, 1), (0.5, 8), (2.03, 32), (2.04, 33), (36000.0, 576000), ("inf", None)],
)
def test_seconds_are_rounded_to_frames(seconds: float | str | None, frames: int | None) -> None:
    value = None if seconds is None else float(seconds)
    plan = make_plan(wishes(seconds=value), tiny_config())
    assert plan.num_frames == frames
    assert plan.seconds == (None if frames is None else frames / TINY_FPS)


def test_parts_are_parts_of_the_frames_that_are_made() -> None:
    plan = make_plan(wishes(prompts=["a", "b"], num_frames=32), tiny_config())
    assert plan.events == [("a", 0.0), ("b", 1.0)]
    assert plan.metadata["prompt"] == "a | b"
    assert "seed 1" in plan.line and "2.0 s" in plan.line and "2 prompts" in plan.line


@pytest.mark.parametrize(
    ("asked", "config", "part"),
    [
        ({"size": (64, 32)}, tiny_config(), "64x32; allowed: 32x32"),
        ({"guidance_scale": 4.0}, tiny_config(), "--guidance-scale .* baked in"),
        ({"negative_prompt": "blur"}, tiny_config(), "--negative-prompt .* baked in"),
        ({"negative_prompt": "blur", "guidance_scale": 1.0}, teacher(), "guidance scale 1"),
    ],
)
def test_wish_that_the_model_cannot_fulfil_is_refused(
    asked: dict[str, Any], config: ModelConfig, part: str
) -> None:
    with pytest.raises(UsageError, match=part):
        make_plan(wishes(**asked), config)


def test_wish_that_the_model_can_fulfil_is_planned() -> None:
    asked = wishes(size=(32, 32), guidance_scale=5.0, negative_prompt="blur", seconds=1.0)
    plan = make_plan(asked, teacher())
    assert plan.metadata["guidance_scale"] == "5" and plan.metadata["negative_prompt"] == "blur"
    assert make_plan(wishes(guidance_scale=1.0), tiny_config()).num_frames == 160


@pytest.mark.parametrize(
    "asked",
    [
        {"seconds": 1.0, "num_frames": 16},
        {"prompts": ["a", "b"], "seconds": float("inf")},
        {"negative_prompt": " "},
    ],
)
def test_wishes_that_exclude_each_other_are_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(TerminalError):
        check_wishes(wishes(**asked))


# The command.


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (["--size", "64x64"], "has not the size 64x64; allowed: 32x32"),
        (["--guidance-scale", "3"], "baked in"),
        (["-n", "blur"], "baked in"),
        (["--device", "cuda:63"], ""),
    ],
)
def test_refusal_by_the_configuration_loads_no_weights_and_leaves_nothing(
    more: list[str], part: str, launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    command = ["generate", "-m", str(tiny_model), "-p", "a", "-o", "a.mp4", *more]
    faults = [] if "--device" in more else [Fault("load", "SIGKILL")]
    ended = launcher.run(command, cwd=tmp_path, faults=faults)
    assert ended.code == (7 if "--device" in more else 2), ended.stderr
    assert len(ended.errors) == 1 and part in ended.errors[0]
    assert not list(tmp_path.iterdir())


def test_dry_run_says_the_plan_and_makes_nothing(
    launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    command = ["generate", "-m", str(tiny_model), "-p", "a", "--seed", "9", "--dry-run"]
    ended = launcher.run(command, cwd=tmp_path, faults=[Fault("load", "SIGKILL")])
    assert ended.code == 0
    assert "tiny, 32x32 at 16 FPS, 10.0 s, seed 9 -> a.mp4; nothing was made" in ended.stderr
    assert not list(tmp_path.iterdir())
    (tmp_path / "a.mp4").touch()
    refused = launcher.run([*command, "-o", "a.mp4"], cwd=tmp_path)
    assert refused.code == 6 and "a.mp4 exists" in refused.errors[0]


def test_seed_is_chosen_printed_and_gives_the_same_frames_again(
    launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    command = ["generate", "-m", str(tiny_model), "-p", "a", "-p", "b", "--seconds", "2", "-o", "-"]
    first = launcher.run(command, cwd=tmp_path)
    seed = first.stderr.split("seed ")[1].split()[0]
    assert launcher.run([*command, "--seed", seed], cwd=tmp_path).stdout == first.stdout
    assert launcher.run(command, cwd=tmp_path).stdout != first.stdout
    one_prompt = [*command[:5], *command[7:], "--seed", seed]
    other = launcher.run(one_prompt, cwd=tmp_path).stdout
    half = len(first.stdout) // 2 - 1000
    assert other[:half] == first.stdout[:half] and other != first.stdout


def test_pipe_format_for_a_file_is_a_warning(
    launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    command = ["generate", "-m", str(tiny_model), "--no-prompt", "--num-frames", "1", "-q"]
    command += ["-o", "a.mp4", "--pipe-format", "nut"]
    ended = launcher.run(command, cwd=tmp_path)
    assert (ended.code, ended.stderr) == (
        0,
        "warning: --pipe-format nut has no effect on the file a.mp4\n",
    )


def test_network_gets_the_threads_asked_for_or_leaves_one_core(
    launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    """Without `OMP_NUM_THREADS`, which the tests set, one core is left to decoding and encoding."""
    command = ["generate", "-m", str(tiny_model), "--no-prompt", "--num-frames", "1", "-q", "-y"]
    found = []
    for more in (["--threads", "3"], []):
        code = "import os, torch; torch.set_num_threads(6); os.environ.pop('OMP_NUM_THREADS')"
        launcher.run([*command, *more, "-o", "a.mp4"], cwd=tmp_path, code=code)
        found.append(probe(tmp_path / "a.mp4").record["threads"])
    assert found == ["3", "5"]


def test_long_prompt_is_cut_with_a_warning(
    launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    command = ["generate", "-m", str(tiny_model), "-p", "a" * 100, "--num-frames", "1", "-q"]
    ended = launcher.run([*command, "-o", "a.mp4"], cwd=tmp_path)
    assert ended.code == 0
    assert "warning: tiny reads only 64 bytes of the prompt" in ended.stderr
    assert probe(tmp_path / "a.mp4").record["prompt"] == "a" * 100


def test_records_never_replace_a_file(launcher: Launcher, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("mine")
    command = ["generate", "-m", str(tiny_model), "-p", "a", "--num-frames", "1", "-o", "a.mp4"]
    ended = launcher.run([*command, "--json", "a.jsonl"], cwd=tmp_path)
    assert ended.code == 6 and "--json a.jsonl exists" in ended.errors[0]
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
    assert (tmp_path / "a.jsonl").read_text() == "mine"
    missing = launcher.run([*command, "--json", "no/a.jsonl"], cwd=tmp_path)
    assert missing.code == 6


def test_handlers_of_signals_are_put_back(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, as a program that calls `main` sees it."""
    from streamdit_cli.app import main

    monkeypatch.chdir(tmp_path)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    command = ["generate", "-m", str(tiny_model), "--no-prompt", "--num-frames", "1", "-q"]
    assert main(command) == 0
    assert main([*command, "-o", "video.mp4"]) == 6
    after = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    assert after == before
    assert [path.name for path in tmp_path.iterdir()] == ["video.mp4"]
