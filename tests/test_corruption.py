"""Claim: damage to downloaded weights is noticed, whatever of them is hit."""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path

import pytest
from file_faults import flip_bit
from tiny_folders import save_tiny

from streamdit_cli.app import main
from streamdit_cli.cache import read_lock
from streamdit_cli.catalogue import find_files, survey
from streamdit_cli.errors import DownloadError, MissingWeights
from streamdit_cli.presets import find_model, find_repository

NAME = "owner/model"
SHA = "e" * 40


@pytest.fixture
def pulled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sharded model of our own in the Hub's cache, hashed and in order; returns its folder."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "STREAMDIT_MODEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    folder = tmp_path / "home" / "hub" / "models--owner--model" / "snapshots" / SHA
    folder.parent.mkdir(parents=True)
    save_tiny(folder, max_shard_bytes=1500)
    lock = read_lock(NAME)
    lock.revisions[NAME] = SHA
    lock.files[NAME] = {path.name: _pin(path) for path in folder.iterdir()}
    lock.save()
    assert pull() == 0
    return folder


def _pin(path: Path) -> tuple[int, str]:
    data = path.read_bytes()
    return len(data), hashlib.sha256(data).hexdigest()


def pull() -> int:
    return main(["models", "pull", NAME, "--offline", "--quiet"])


def damage(path: Path, draw: random.Random) -> bool:
    """Flip a bit of a file, cut it, or delete it; returns whether size and time are as they were.

    A disk that rots changes a file without its time, and a half of the flips does so too.
    """
    before = path.stat()
    kind = draw.choice(["flip", "flip", "cut", "delete"])
    if kind == "delete":
        path.unlink()
    elif kind == "cut":
        os.truncate(path, draw.randrange(before.st_size))
    else:
        flip_bit(path, draw.randrange(8 * before.st_size))
        if draw.random() < 0.5:
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
            return True
    return False


def assert_noticed(folder: Path, times: int) -> None:
    """Damage one file after the other, each time from whole files."""
    draw = random.Random(0)
    whole = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    hit = set()
    for _ in range(times):
        path = folder / draw.choice(sorted(whole))
        hit.add(path.name)
        is_silent = damage(path, draw)
        preset = find_repository(NAME)
        assert preset is not None
        if is_silent:
            assert survey(preset).state == "yes"  # only its bytes tell
        else:
            with pytest.raises(MissingWeights):
                find_files(preset)
            with pytest.raises(MissingWeights):
                find_model(NAME)
        assert pull() == 5
        assert not (is_silent and path.exists())  # what was hashed and is wrong is not kept
        path.write_bytes(whole[path.name])
        assert pull() == 0
        assert find_model(NAME)[0] == folder
    assert len(hit) > len(whole) / 2


def test_damage_to_a_downloaded_model_is_noticed(pulled: Path) -> None:
    assert_noticed(pulled, 20)


@pytest.mark.slow
def test_damage_to_a_downloaded_model_is_noticed_two_hundred_times(pulled: Path) -> None:
    assert_noticed(pulled, 200)


def test_every_byte_of_the_lock_file_counts(pulled: Path) -> None:
    """A damaged lock file is refused, or asks for files that are not there, or means the same."""
    lock = read_lock(NAME)
    text = lock.path.read_bytes()
    meant = lock.revisions, lock.files, lock.checked
    draw = random.Random(1)
    outcomes = set()
    for _ in range(200):
        lock.path.write_bytes(text)
        flip_bit(lock.path, draw.randrange(8 * len(text)))
        try:
            found = read_lock(NAME)
            if (found.revisions, found.files, found.checked) == meant:
                outcomes.add("the same")
                continue
            with pytest.raises((MissingWeights, DownloadError)):
                preset = find_repository(NAME)
                assert preset is not None
                find_files(preset)
            outcomes.add("missing")
        except DownloadError:
            outcomes.add("refused")
    assert {"refused", "missing"} <= outcomes
