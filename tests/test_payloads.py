"""Claim: nothing that comes as weights, a preset or a recipe runs code, on any way in.

Each payload is given to the command line in a fresh process under an audit hook, which tells of
every code object, process and unpickled name that comes from outside.
"""

from __future__ import annotations

import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from launcher import Ended, Launcher

AUDIT = """
import os, sys
folder = {folder!r}
def hook(event, args):
    found = event in ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "os.fork")
    found = found or event == "pickle.find_class"
    if event == "exec":
        found = getattr(args[0], "co_filename", "").startswith(folder)
    if event == "import":
        found = str(args[1] or "").startswith(folder)
    if found:
        os.write(2, ("AUDIT " + event + " " + repr(args)[:200] + "\\n").encode())
sys.addaudithook(hook)
"""
CODE = "import os\nos.mkdir({marker!r})\n"


class Payload:
    """Leaves a mark when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (os.mkdir, (str(self.marker),))


Case = Callable[[Path, Path, Path], list[str]]
"""case(folder, model folder, marker) -> words of a command line"""


def run_of(model: object) -> list[str]:
    return ["generate", "-m", str(model), "-p", "a", "--num-frames", "1", "-o", "a.mp4"]


def pickled(suffix: str, protocol: int | str) -> Case:
    """A file by itself."""

    def case(folder: Path, model: Path, marker: Path) -> list[str]:
        path = folder / f"model{suffix}"
        write_pickle(path, Payload(marker), protocol)
        return run_of(path)

    return case


def in_place_of_weights(protocol: int | str) -> Case:
    """A pickle, or torch's zip of one, under the name of weights."""

    def case(folder: Path, model: Path, marker: Path) -> list[str]:
        write_pickle(model / "transformer.safetensors", Payload(marker), protocol)
        return run_of(model)

    return case


def write_pickle(path: Path, payload: Payload, protocol: int | str) -> None:
    if isinstance(protocol, int):
        path.write_bytes(pickle.dumps(payload, protocol=protocol))
    else:
        torch.save(payload, path)


def zip_of_code(folder: Path, model: Path, marker: Path) -> list[str]:
    with zipfile.ZipFile(model / "text.safetensors", "w") as file:
        file.writestr("__main__.py", CODE.format(marker=str(marker)))
    return run_of(model)


def distributed_checkpoint(folder: Path, model: Path, marker: Path) -> list[str]:
    shutil.rmtree(model)
    model.mkdir()
    for name in (".metadata", "__0_0.distcp"):
        write_pickle(model / name, Payload(marker), 2)
    return run_of(model)


def foreign_code(folder: Path, model: Path, marker: Path) -> list[str]:
    """A repository as `trust_remote_code` takes it."""
    for name in ("modeling.py", "__init__.py", "sitecustomize.py", "torch.py"):
        (model / name).write_text(CODE.format(marker=str(marker)))
    (model / "config.json").write_text(
        '{"auto_map": {"AutoModel": "modeling.Model"}, "custom_pipeline": "modeling"}'
    )
    return run_of(model)


def pickle_beside(folder: Path, model: Path, marker: Path) -> list[str]:
    (model / "transformer.safetensors").unlink()
    write_pickle(model / "transformer.bin", Payload(marker), "zip")
    return run_of(model)


def lora(folder: Path, model: Path, marker: Path) -> list[str]:
    write_pickle(folder / "lora.safetensors", Payload(marker), 2)
    words = [*run_of("rolling-1.3b"), "--random-weights", "--size", "64x64"]
    return [*words, "--lora", str(folder / "lora.pt")]


def recipe(folder: Path, model: Path, marker: Path) -> list[str]:
    text = f'"__import__" = "os"\nseed = "!!python/object/apply:os.mkdir [{marker}]"\n'
    (folder / "evil.toml").write_text(text)
    return ["train", "--config", str(folder / "evil.toml"), "-o", "run"]


def teacher(folder: Path, model: Path, marker: Path) -> list[str]:
    write_pickle(folder / "teacher.pt", Payload(marker), "zip")
    recipe = Path(__file__).parent / "tiny-distill.toml"
    where = ["--teacher", str(folder / "teacher.pt"), "-o", "run"]
    return ["distill", "--config", str(recipe), *where]


CASES: dict[str, tuple[Case, int]] = {
    "pt": (pickled(".pt", "zip"), 5),
    "pth": (pickled(".pth", 2), 5),
    "ckpt": (pickled(".ckpt", 4), 5),
    "bin": (pickled(".bin", 0), 5),
    "pickle as safetensors": (in_place_of_weights(2), 5),
    "old pickle as safetensors": (in_place_of_weights(0), 5),
    "torch zip as safetensors": (in_place_of_weights("zip"), 5),
    "zip of code as safetensors": (zip_of_code, 5),
    "pickle beside the config": (pickle_beside, 5),
    "distributed checkpoint": (distributed_checkpoint, 5),
    "repository with code": (foreign_code, 5),
    "lora": (lora, 5),
    "teacher": (teacher, 5),
    "recipe": (recipe, 2),
}


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of a good model."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def run(launcher: Launcher, folder: Path, words: list[str], *, code: str = "") -> Ended:
    hook = AUDIT.format(folder=str(folder))
    return launcher.run(words, cwd=folder, code=hook + code, seconds=120)


@pytest.mark.parametrize("name", CASES)
def test_payload_never_runs(launcher: Launcher, model: Path, tmp_path: Path, name: str) -> None:
    case, code = CASES[name]
    marker = tmp_path / "marker"
    ended = run(launcher, tmp_path, case(tmp_path, model, marker))
    assert ended.code == code, ended.stderr
    assert len(ended.errors) == 1
    assert "AUDIT" not in ended.stderr
    assert not marker.exists()


def test_code_beside_good_weights_is_never_imported(
    launcher: Launcher, model: Path, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    for name in ("modeling.py", "sitecustomize.py", "safetensors.py"):
        for folder in (tmp_path, model):
            (folder / name).write_text(CODE.format(marker=str(marker)))
    write_pickle(model / "extra.pt", Payload(marker), "zip")
    ended = run(launcher, tmp_path, run_of(model))
    assert ended.code == 0, ended.stderr
    assert "AUDIT" not in ended.stderr
    assert not marker.exists()


def test_the_hook_sees_what_it_looks_for(launcher: Launcher, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    (tmp_path / "evil.py").write_text(CODE.format(marker=str(marker)))
    write_pickle(tmp_path / "evil.pt", Payload(tmp_path / "other"), 2)
    code = f"sys.path.insert(0, {str(tmp_path)!r}); import evil, pickle\n"
    code += f"pickle.load(open({str(tmp_path / 'evil.pt')!r}, 'rb'))\n"
    ended = run(launcher, tmp_path, ["--version"], code=code)
    assert ended.code == 0
    assert {line.split()[1] for line in ended.stderr.splitlines() if "AUDIT" in line} >= {
        "exec",
        "pickle.find_class",
    }
    assert marker.exists() and (tmp_path / "other").exists()
