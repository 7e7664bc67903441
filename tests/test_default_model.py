"""Claim: without -m the best model that is here runs, and finding out costs next to nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_presets import pin, write_preset

from streamdit_cli import default_model as chooser
from streamdit_cli import presets
from streamdit_cli.app import main
from streamdit_cli.default_model import REAL_VIDEO, default_model
from streamdit_cli.model_source import FolderModel, find_source, real_video_advice

SHA = "d" * 40
DATA = b"some weights"
NEEDED = 9_200_000_000  # bytes: the smallest profile of the preset


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "STREAMDIT_MODEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def pulled(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`rolling-1.3b` with one small file, pulled and verified; returns the file."""
    monkeypatch.setattr(presets, "_presets_folder", lambda: tmp_path)
    source = {"part": "transformer", "repo": "a/b", "revision": SHA}
    write_preset(tmp_path, REAL_VIDEO, [{**source, "files": [pin("x.safetensors", DATA)]}])
    file = home / "hub" / "models--a--b" / "snapshots" / SHA / "x.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(DATA)
    assert main(["models", "pull", REAL_VIDEO, "--offline", "--quiet"]) == 0
    return file


def with_gpu(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """Let torch say that there is a GPU with so many bytes free."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2 * free))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")


def test_real_video_is_the_default_where_it_is_pulled_and_fits(
    pulled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpu(monkeypatch, NEEDED)
    assert default_model() == default_model("cuda:0") == REAL_VIDEO
    assert default_model("cpu") == "shapes"
    with_gpu(monkeypatch, NEEDED - 1)
    assert default_model() == "shapes"
    with_gpu(monkeypatch, NEEDED)
    monkeypatch.setenv("STREAMDIT_MODEL", "./mine")
    assert default_model() == "./mine"


def test_files_that_are_not_verified_are_no_default(
    pulled: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpu(monkeypatch, NEEDED)
    lock = home / "streamdit" / f"{REAL_VIDEO}.lock.json"
    lock.write_text("spoiled")
    assert default_model() == "shapes"
    lock.unlink()
    assert default_model() == "shapes"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_default_is_shapes(pulled: Path) -> None:
    assert default_model() == "shapes"


def test_generate_takes_the_default(
    pulled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_gpu(monkeypatch, NEEDED)
    assert main(["generate", "-p", "x", "-o", str(pulled.parent / "a.mp4"), "--dry-run"]) == 0
    assert f"{REAL_VIDEO}, 832x480" in capsys.readouterr().err


def test_choosing_shapes_imports_no_torch(home: Path) -> None:
    code = "import sys\nfrom streamdit_cli.default_model import default_model\n"
    code += "assert default_model() == 'shapes'\nassert 'torch' not in sys.modules\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# What the embedded model does not know.


def test_prompt_outside_the_world_of_shapes_says_how_to_get_real_video() -> None:
    source = find_source(None)
    advice = real_video_advice(source, ["a red star bouncing", "a cat on a sofa"])
    for word in ("'a cat on a sofa'", "streamdit generate -m rolling-1.3b", "about 14.7 GB"):
        assert word in advice
    assert "a CUDA GPU of 12 GB" in advice and "\n" not in advice
    for prompts in ([], ["a red star bouncing"], ["large blue ring", "a green square"]):
        assert real_video_advice(source, prompts) == ""


def test_other_models_are_not_told_what_shapes_knows(tiny_model: Path) -> None:
    assert real_video_advice(FolderModel(folder=tiny_model), ["a cat"]) == ""
    random = find_source(REAL_VIDEO, random_weights=True)
    assert real_video_advice(random, ["a cat"]) == ""


def test_advice_is_given_once_by_generate_and_not_for_a_shape(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["generate", "--num-frames", "1", "-y", "-q", "-o", str(tmp_path / "a.mp4")]
    assert main([*words, "-p", "a cat"]) == 0
    assert capsys.readouterr().err.count("-m rolling-1.3b") == 1
    assert main([*words, "-p", "a red star"]) == 0
    assert "rolling-1.3b" not in capsys.readouterr().err


def test_the_default_that_is_named_exists() -> None:
    assert REAL_VIDEO in presets.preset_names()
    estimates = [profile["estimate"] for profile in presets.find_preset(REAL_VIDEO)["profiles"]]
    assert min(estimates) * chooser.GIGABYTE == NEEDED
