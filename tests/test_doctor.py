"""Claim: `doctor` says what works on this machine because it tried it, and tells no secret."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch
from launcher import Fault, Launcher

from streamdit_cli.app import main


def test_doctor_tries_what_a_video_needs_and_shows_no_secret(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "canary-4711")
    monkeypatch.setenv("STREAMDIT_THREADS", "3")
    monkeypatch.delenv("STREAMDIT_MODEL", raising=False)
    assert main(["doctor", "--json", "-"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and "canary" not in out
    record = json.loads(out)
    assert record["versions"]["torch"] == torch.__version__
    assert record["attention"]["math on cpu"] == "works"
    assert record["attention"]["cudnn_attention on cpu"].startswith("no: ")
    assert set(record["encoders"].values()) == {"works"}
    assert record["environment"]["STREAMDIT_THREADS"] == "3"
    assert record["model"]["name"].startswith("shapes")
    assert os.path.expanduser("~") not in json.dumps(record["folders"])
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[:2] == ["encoders", "libx264"] for line in lines)
    assert "\x1b" not in "".join(lines)


def test_doctor_says_by_its_exit_code_what_is_missing(
    launcher: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = launcher.run(["doctor"], cwd=tmp_path, faults=[Fault("encode", "no space", times=0)])
    assert ended.code == 6
    out = ended.stdout.decode()
    assert re.search(r"libx264 in \.mp4 +no: \[Errno 28\] No space left on device", out)
    code = "import os; os.environ['STREAMDIT_MODEL'] = './no'"
    ended = launcher.run(["doctor"], cwd=tmp_path, code=code)
    assert ended.code == 5 and "./no" in ended.errors[0]
    assert not list(tmp_path.iterdir())
