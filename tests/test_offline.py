"""Claim: after a pull no command makes a connection, and no output ever holds the token.

Every command runs in a fresh process that cannot make a socket, with a canary for a token in its
environment and in the file where the Hub's tools keep it.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hub_bench import NO_SOCKETS, TOKEN, Bench, bench, downloader
from launcher import Ended, Fault
from loopback_hub import Repo
from tiny_training import DISTILL, TRAIN

from streamdit_cli.app import COMMANDS

__all__ = ["bench", "downloader"]  # fixtures for the tests here

NAME = "owner/model"
SHA = "a" * 40
# Where the system lets us, there is no network at all: a user and a network namespace of our own.
NO_NETWORK = NO_SOCKETS + "import ctypes; ctypes.CDLL(None).unshare(0x10000000 | 0x40000000)\n"
MADE = ["-p", "a", "--num-frames", "1", "-y", "-o"]
CASES = {
    "generate": [["generate", "-m", NAME, *MADE, "a.mp4", "--json", "a.jsonl", "-v"]],
    "batch": [["batch", "p.txt", "-m", NAME, "-o", "out", "--json", "b.jsonl"]],
    "v2v": [["v2v", "a.mp4", "-m", NAME, *MADE, "b.mp4"]],  # what generate made
    "train": [["train", "--config", str(TRAIN), "-o", "run", "--dry-run"]],
    "distill": [["distill", "--config", str(DISTILL), "--teacher", "none", "-o", "student"]],
    "evaluate": [["evaluate", "-m", NAME, "--prompts", "1", "--seconds", "4"]],
    "bench": [["bench", "-m", NAME, "--seconds", "0.1"]],
    "info": [["info", NAME]],
    "models": [["models", "list"], ["models", "pull", NAME, "-v"]],
    "doctor": [["doctor"]],
}
REFUSED = {"distill": 2}  # its teacher is not there; trained ones are the slow test's


def pulled(bench: Bench, tiny_model: Path) -> Bench:
    """Pull a model of our own, then take the hub away and put the token everywhere."""
    files = {path.name: path.read_bytes() for path in tiny_model.iterdir()}
    bench.hub.repos[NAME] = Repo(SHA, files, plain=frozenset({"config.json"}))
    ended = bench.pull(name=NAME)
    assert ended.code == 0, ended.stderr
    bench.hub.forget()
    bench.environment |= {"HF_TOKEN": TOKEN, "STREAMDIT_MODEL": NAME}
    (bench.folder / "home" / "token").write_text(TOKEN)
    (bench.folder / "p.txt").write_text("a --f 1\n")
    return bench


def assert_no_token(bench: Bench, ended: Ended) -> None:
    assert "canary" not in ended.stderr + ended.stdout.decode(errors="replace")
    for path in bench.folder.rglob("*"):
        if path.is_file() and path.name != "token":
            assert b"canary" not in path.read_bytes(), path


def test_every_command_has_a_case() -> None:
    assert CASES.keys() == COMMANDS.keys()


def test_every_command_works_without_a_network_and_tells_no_token(
    bench: Bench, tiny_model: Path
) -> None:
    pulled(bench, tiny_model)
    for name, lines in CASES.items():
        for words in lines:
            ended = bench.run(*words, "--debug", code=NO_NETWORK)
            assert ended.code == REFUSED.get(name, 0), f"{words}: {ended.stderr}"
            assert "a connection" not in ended.stderr
            assert_no_token(bench, ended)
    removed = bench.run("models", "remove", NAME, code=NO_NETWORK)
    assert removed.code == 0, removed.stderr
    assert bench.hub.asked == []


@pytest.mark.slow
def test_training_and_distillation_work_without_a_network_and_tell_no_token(bench: Bench) -> None:
    bench.environment["HF_TOKEN"] = TOKEN
    where = ["--device", "cpu", "--threads", "1"]
    train = ["train", "--config", str(TRAIN), "-o", "run", *where]
    distill = ["distill", "--config", str(DISTILL), "--teacher", "run", "-o", "student", *where]
    for words in (train, distill):
        ended = bench.run(*words, code=NO_NETWORK)
        assert ended.code == 0, ended.stderr
        assert_no_token(bench, ended)
    assert bench.hub.asked == []


@pytest.mark.parametrize(
    ("site", "kind"),
    [
        ("load", "no memory"),
        ("velocity", "nan"),
        ("decode", "oom"),
        ("encode", "io error"),
        ("file write", "no space"),
        ("rename", "io error"),
    ],
)
def test_error_anywhere_tells_no_token(
    bench: Bench, tiny_model: Path, site: str, kind: str
) -> None:
    bench.environment["HF_TOKEN"] = TOKEN
    words = ["generate", "-m", str(tiny_model), "-p", "a", "--num-frames", "1", "-o", "a.mp4"]
    ended = bench.launcher.run(
        [*words, "-v", "--debug"],
        cwd=bench.folder,
        code=bench.code(NO_NETWORK),
        faults=[Fault(site, kind, times=0)],
    )
    assert ended.code not in (0, 98, 99), ended.stderr
    assert "Traceback" in ended.stderr
    assert_no_token(bench, ended)
