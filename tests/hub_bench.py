"""A hub on the loopback, a folder for everything, and command lines in fresh processes there."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import pytest
from launcher import Ended, Launcher
from loopback_hub import LoopbackHub, Repo
from tiny_presets import pin, write_preset

SHA = "a" * 40
OTHER_SHA = "b" * 40
NETWORK = "transformer/diffusion_pytorch_model.safetensors"
DECODER = "vae/diffusion_pytorch_model.safetensors"
TOKEN = "hf_canary0123456789abcdef"
NO_SOCKETS = "import socket\ndef no(*a, **k): raise AssertionError('a connection')\n"
NO_SOCKETS += "socket.socket = socket.create_connection = no\n"
NO_SLEEP = "import time; time.sleep = lambda seconds: None\n"
# The library goes on after the last whole piece; 10 MB are too much for a test.
PIECES = "import huggingface_hub.constants as c; c.DOWNLOAD_CHUNK_SIZE = 10_000\n"
# What the Hub's library needs and what reads none of its environment, loaded once for all cases.
BEFOREHAND = ("httpx2", "httpx", "tqdm.auto", "yaml", "filelock", "fsspec", "streamdit_cli.hub")
# What may not be inherited from whoever runs the tests.
UNSET = [
    *("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"),
    *("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HF_HUB_ETAG_TIMEOUT"),
]


def weights(seed: int, size: int) -> bytes:
    """Return bytes that differ from file to file."""
    return random.Random(seed).randbytes(size)


@dataclass
class Bench:
    """A hub, a folder for everything, and how to run a command line there."""

    hub: LoopbackHub
    launcher: Launcher
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def cache(self) -> Path:
        return self.folder / "home" / "hub"

    def code(self, more: str) -> str:
        """Return what a process does before the command line."""
        variables = {
            "HF_HOME": str(self.folder / "home"),
            "HF_ENDPOINT": self.hub.address,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DOWNLOAD_TIMEOUT": "10",
            "NO_PROXY": "127.0.0.1",
            **self.environment,
        }
        return (
            "import os\n"
            f"for name in {UNSET!r}: os.environ.pop(name, None)\n"
            f"os.environ.update({variables!r})\n"
            "import pathlib, streamdit_cli.presets as presets\n"
            f"presets._presets_folder = lambda: pathlib.Path({str(self.folder)!r})\n{more}"
        )

    def run(self, *words: str, code: str = "") -> Ended:
        """Run `streamdit WORDS`."""
        return self.launcher.run(words, cwd=self.folder, code=self.code(code), seconds=90)

    def pull(self, *options: str, name: str = "tiny", code: str = "") -> Ended:
        """Run `streamdit models pull`."""
        return self.run("models", "pull", name, *options, code=code)

    def add(self, name: str = "tiny", *, known: bool = True, extra: str = "") -> dict[str, bytes]:
        """Make a repository of two files and a preset of it; returns the files."""
        files = {NETWORK: weights(1, 200_000), DECODER: weights(2, 60_000)}
        others = {"model.pt": b"\x80\x02pickle", "run.py": b"raise SystemExit", "README.md": b"#"}
        self.hub.repos[f"owner/{name}"] = Repo(SHA, {**files, **others})
        self.preset(name, files, known=known, extra=extra)
        return files

    def preset(
        self, name: str, files: dict[str, bytes], *, known: bool = True, extra: str = ""
    ) -> None:
        """Write a preset of files."""
        parts = zip(("transformer", "autoencoder"), files.items(), strict=False)
        sources = [
            {
                "part": part,
                "repo": f"owner/{name}",
                "revision": SHA if known else "",
                "files": [pin(path, data if known else None)],
            }
            for part, (path, data) in parts
        ]
        write_preset(self.folder, name, sources, extra=extra)

    def local(self, path: str, name: str = "tiny", sha: str = SHA) -> Path:
        """Return where a file lies in the cache."""
        return self.cache / f"models--owner--{name}" / "snapshots" / sha / path

    def lock(self, name: str = "tiny") -> Path:
        return self.folder / "home" / "streamdit" / f"{name}.lock.json"


@pytest.fixture(scope="module")
def downloader() -> Iterator[Launcher]:
    preloaded = tuple(name for name in BEFOREHAND if find_spec(name.split(".")[0]))
    with Launcher(preloaded) as server:
        yield server


@pytest.fixture
def bench(tmp_path: Path, downloader: Launcher) -> Iterator[Bench]:
    with LoopbackHub() as hub:
        yield Bench(hub, downloader, tmp_path)


def assert_whole(bench: Bench, files: dict[str, bytes], name: str = "tiny") -> None:
    for path, data in files.items():
        assert bench.local(path, name).read_bytes() == data


def assert_refused(ended: Ended, *words: str) -> None:
    """One line says what is wrong, one what to type, and nothing goes to standard output."""
    assert ended.code == 5, ended.stderr
    assert len(ended.errors) == 1
    assert ended.stdout == b""
    assert "Traceback" not in ended.stderr
    hints = [line for line in ended.stderr.splitlines() if line.startswith("hint:")]
    assert len(hints) == 1
    for word in words:
        assert word in ended.errors[0] + hints[0]
