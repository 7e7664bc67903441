"""Claim: `-m` downloads what it names once, a repository of ours is held to, and nothing else is.

A hub on the loopback counts what is asked of it; each command line runs in a fresh process.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hub_bench import (
    NO_SOCKETS,
    OTHER_SHA,
    SHA,
    Bench,
    assert_refused,
    assert_whole,
    bench,
    downloader,
)
from launcher import Ended
from loopback_hub import Repo
from tiny_folders import save_tiny

from streamdit_cli.cache import cache_folder
from streamdit_cli.errors import DownloadError
from streamdit_cli.repository import (
    Repository,
    check_model_files,
    known_repositories,
    parse_repository,
)

__all__ = ["bench", "downloader"]  # fixtures for the tests here

NAME = "owner/model"
PARTS = ["autoencoder.safetensors", "text.safetensors", "transformer.safetensors"]
HOSTILE = {
    "model.pt": b"\x80\x04payload",
    "run.py": b"raise SystemExit",
    "../../escaped.safetensors": b"x",
    "/etc/escaped.safetensors": b"x",
    "transformer.safetensors/../up.safetensors": b"x",
    "more/transformer.safetensors": b"x",
    "transformer-00001-of-00002.pt": b"x",
    "README.md": b"---\nlicense: mit\n---\n",
}


def folder_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def publish(bench: Bench, tiny_model: Path, *, sha: str = SHA, **changes: Any) -> dict[str, bytes]:
    """Put a model folder with much beside it on the hub; returns the files of the model."""
    files = folder_files(tiny_model)
    plain = frozenset({"config.json", "README.md", "run.py"})
    repo = Repo(sha, {**files, **HOSTILE}, plain=plain, refs=("v1",), card={"license": "mit"})
    for key, value in changes.items():
        setattr(repo, key, value)
    bench.hub.repos[NAME] = repo
    return files


def make(bench: Bench, *options: str, name: str = NAME, code: str = "") -> Ended:
    """Run `streamdit generate` for one frame."""
    words = ["generate", "-m", name, "-p", "a", "--num-frames", "1", "--seed", "1", "-y"]
    return bench.run(*words, "--dtype", "float32", "-o", "a.mp4", *options, code=code)


def local(bench: Bench, sha: str = SHA) -> Path:
    return bench.cache / "models--owner--model" / "snapshots" / sha


# A repository of our own layout.


def test_first_use_downloads_a_model_and_the_second_makes_no_request(
    bench: Bench, tiny_model: Path
) -> None:
    files = publish(bench, tiny_model)
    first = make(bench)
    assert first.code == 0, first.stderr
    assert (bench.folder / "a.mp4").is_file()
    size = sum(map(len, files.values())) - len(files["config.json"])
    for word in (SHA, "licence: mit", f"fetching {size / 1e3:.1f} kB in 3 files", "are free in"):
        assert word in first.stderr
    asked = {one.path.split("/resolve/")[-1] for one in bench.hub.gets()}
    assert asked == {f"{SHA}/{name}" for name in files}
    assert folder_files(local(bench)) == files
    bench.hub.forget()
    again = make(bench, code=NO_SOCKETS)
    assert again.code == 0, again.stderr
    assert make(bench, "--offline", code=NO_SOCKETS).code == 0
    assert bench.hub.asked == []


@pytest.mark.parametrize("how", ["--offline", "HF_HUB_OFFLINE", "--dry-run", "STREAMDIT_MODEL"])
def test_nothing_is_downloaded_unless_a_model_is_named_to_be_run(
    bench: Bench, tiny_model: Path, how: str
) -> None:
    publish(bench, tiny_model)
    bench.add()
    for name in (NAME, "tiny"):
        words = ["generate", "-p", "a", "-m", name]
        if how.startswith("--"):
            words.append(how)
        elif how == "STREAMDIT_MODEL":
            words = words[:-2]
            bench.environment[how] = name
        else:
            bench.environment[how] = "1"
        ended = bench.run(*words, code=NO_SOCKETS)
        hint = "HF_HUB_OFFLINE=0 " if how == "HF_HUB_OFFLINE" else ""
        assert_refused(ended, f"{name} is not downloaded", f"hint: {hint}streamdit models pull")
    assert bench.hub.asked == []


def test_first_use_of_a_preset_is_a_pull(bench: Bench) -> None:
    files = bench.add()
    ended = make(bench, name="tiny")
    assert_whole(bench, files)
    assert "tiny is not downloaded: 260.0 kB, licence: " in ended.stderr
    assert f"fetching it to {bench.cache}" in ended.stderr
    assert "tiny is complete and verified" in ended.stderr
    assert "tiny names no file of its " in ended.errors[0]  # its files are not weights
    bench.hub.forget()
    assert "names no file" in make(bench, name="tiny", code=NO_SOCKETS).errors[0]
    assert bench.hub.asked == []


def test_output_that_exists_is_refused_before_a_download(bench: Bench) -> None:
    bench.add()
    (bench.folder / "a.mp4").write_bytes(b"mine")
    ended = bench.run("generate", "-m", "tiny", "-p", "a", "-o", "a.mp4")
    assert (ended.code, bench.hub.asked) == (6, [])


def test_terms_are_asked_for_before_a_first_use_downloads(bench: Bench) -> None:
    bench.add(extra='accept_licence = "for research, says one page"')
    ended = make(bench, name="tiny")
    assert (ended.code, bench.hub.asked) == (2, [])
    assert "streamdit models pull tiny --accept-license" in ended.stderr


def test_commit_is_held_to_until_the_model_is_removed(bench: Bench, tiny_model: Path) -> None:
    files = publish(bench, tiny_model)
    assert bench.pull(name=NAME).code == 0
    lock = json.loads((bench.folder / "home/streamdit/owner%2Fmodel.lock.json").read_text())
    assert lock["revisions"] == {NAME: SHA}
    hashes = {path: hashlib.sha256(data).hexdigest() for path, data in files.items()}
    assert {path: pin[1] for path, pin in lock["files"][NAME].items()} == hashes
    publish(bench, tiny_model, sha=OTHER_SHA)
    assert bench.pull(name=NAME, code=NO_SOCKETS).code == 0
    listed = bench.run("models", "list", "--json", "-", code=NO_SOCKETS)
    assert json.loads(listed.stdout)[-1]["downloaded"] == "yes"
    assert bench.run("info", NAME, code=NO_SOCKETS).code == 0
    removed = bench.run("models", "remove", NAME, code=NO_SOCKETS)
    assert "set free" in removed.stderr
    assert not local(bench).exists()
    assert bench.pull(name=NAME).code == 0
    assert folder_files(local(bench, OTHER_SHA)) == files


@pytest.mark.parametrize("revision", ["v1", SHA])
def test_tag_and_commit_are_revisions(bench: Bench, tiny_model: Path, revision: str) -> None:
    files = publish(bench, tiny_model)
    name = f"{NAME}@{revision}"
    ended = bench.pull(name=name)
    assert ended.code == 0, ended.stderr
    assert folder_files(local(bench)) == files
    assert make(bench, name=name, code=NO_SOCKETS).code == 0
    both = bench.pull(name=NAME)  # the same files: nothing large is fetched again
    assert both.code == 0, both.stderr
    assert len(bench.hub.gets("transformer.safetensors")) == 1
    kept = bench.run("models", "remove", name)
    assert "are kept, other models use them" in kept.stderr
    assert make(bench, code=NO_SOCKETS).code == 0


def test_revision_that_is_not_there_is_one_line(bench: Bench, tiny_model: Path) -> None:
    publish(bench, tiny_model)
    ended = bench.pull(name=f"{NAME}@v2")
    assert_refused(ended, f"{NAME} has no revision v2")


def test_shards_are_taken_whole_with_their_index(bench: Bench) -> None:
    save_tiny(bench.folder / "sharded", max_shard_bytes=1500)
    files = folder_files(bench.folder / "sharded")
    plain = frozenset(path for path in files if path.endswith(".json"))
    bench.hub.repos[NAME] = Repo(SHA, files, plain=plain)
    ended = bench.pull(name=NAME)
    assert ended.code == 0, ended.stderr
    assert folder_files(local(bench)) == files
    assert bench.run("info", NAME, code=NO_SOCKETS).code == 0
    shard = next(path for path in files if "transformer-00002" in path)
    repo = Repo(OTHER_SHA, {key: data for key, data in files.items() if key != shard}, plain=plain)
    bench.hub.repos["owner/torn"] = repo
    assert_refused(
        bench.pull(name="owner/torn"), "owner/torn is not a model of streamdit", "shards"
    )


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (b"{}", ["format"]),
        (b'{"auto_map": {"AutoModel": "run.Model"}}', ["format"]),
        (b"[" * 5000, ["config.json"]),
        (None, ["owner/model is not a model of streamdit: it has no config.json"]),
    ],
)
def test_repository_of_another_kind_is_refused_before_its_weights_are_fetched(
    bench: Bench, tiny_model: Path, config: bytes | None, words: list[str]
) -> None:
    files = publish(bench, tiny_model)
    held = bench.hub.repos[NAME].files
    held.pop("config.json")
    if config is not None:
        held["config.json"] = config
    ended = make(bench)
    assert ended.code == 5, ended.stderr
    assert len(ended.errors) == 1 and all(word in ended.errors[0] for word in words)
    assert "Traceback" not in ended.stderr
    assert not any(bench.hub.gets(name) for name in files if name != "config.json")
    assert not (bench.folder / "a.mp4").exists()


def test_small_file_that_is_not_what_git_has_is_refused(bench: Bench, tiny_model: Path) -> None:
    publish(bench, tiny_model)
    bench.hub.repos[NAME].faults["config.json"] = ("flip", 9)
    assert_refused_without_hint(bench.pull(name=NAME), "is not the file that the Hub describes")
    assert not (local(bench) / "config.json").exists()


def assert_refused_without_hint(ended: Ended, words: str) -> None:
    assert ended.code == 5 and words in ended.errors[0] and "Traceback" not in ended.stderr


def test_folder_that_exists_is_never_looked_for_on_the_hub(bench: Bench, tiny_model: Path) -> None:
    publish(bench, tiny_model)
    (bench.folder / "owner").mkdir()
    (bench.folder / NAME).symlink_to(tiny_model)
    for name in (NAME, f"./{NAME}"):
        assert make(bench, name=name, code=NO_SOCKETS).code == 0
    missing = make(bench, name="./owner/other", code=NO_SOCKETS)
    assert missing.code == 2 and "there is no folder" in missing.errors[0]
    (bench.folder / NAME).unlink()
    absent = make(bench, name="owner/other")
    assert_refused(absent, "owner/other is not on", "./owner/other")


# Names, without a process.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("owner/name", ("owner/name", "")),
        ("Owner-1/na_me.v2@v1.0", ("Owner-1/na_me.v2", "v1.0")),
        (f"a/b@{SHA}", ("a/b", SHA)),
        ("a/b@refs/pr/1", ("a/b", "refs/pr/1")),
    ],
)
def test_name_of_a_repository_is_read_and_written(text: str, expected: tuple[str, str]) -> None:
    found = parse_repository(text)
    assert found == Repository(repo=expected[0], revision=expected[1])
    assert found is not None and found.text == text


@pytest.mark.parametrize(
    "text",
    [
        *("name", "a/b/c", "../a", "./a/b", "/a/b", "a/..", "~/a", "$HOME/a", "", "a\\b/c"),
        *("a/b@", "a/b@../x", "a/b@x/../y", "a/b@-x", "a/b@x@y", "a/b?x", "a/b#x", "https://a/b"),
        *("a--b/c", "a/b--c", "a..b/c", "-a/b", "a/.b", "a/b.git", "a/b ", "a/b\n", "a/\u00e9"),
        "a/" + "b" * 97,
    ],
)
def test_what_is_no_name_of_a_repository_is_none(text: str) -> None:
    assert parse_repository(text) is None


def test_only_the_files_of_a_model_are_chosen() -> None:
    assert check_model_files(NAME, [*HOSTILE, "config.json", *PARTS]) == [
        "config.json",
        "transformer.safetensors",
        "autoencoder.safetensors",
        "text.safetensors",
    ]


@pytest.mark.parametrize(
    "names",
    [
        [],
        PARTS,
        ["config.json", *PARTS[1:]],
        ["config.json", *PARTS, "text.safetensors.index.json"],
        ["config.json", *PARTS, "text-00001-of-00001.safetensors"],
        ["config.json", *PARTS[1:], "autoencoder-00001-of-00001.safetensors"],
        ["config.json", *PARTS[1:], "autoencoder.safetensors.index.json"],
        [
            *("config.json", *PARTS[1:], "autoencoder.safetensors.index.json"),
            "autoencoder-00001-of-00003.safetensors",
            "autoencoder-00003-of-00003.safetensors",
        ],
    ],
)
def test_files_that_are_no_model_are_refused(names: list[str]) -> None:
    with pytest.raises(DownloadError, match="owner/model is not a model of streamdit"):
        check_model_files(NAME, names)


def test_lock_files_of_presets_are_no_repositories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.delenv("HUGGINGFACE_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert known_repositories() == []
    (tmp_path / "streamdit").mkdir()
    for name in ("rolling-1.3b", "b%2Fa@refs%2Fpr%2F1", "a%2Fb", "a%2F..%2Fb"):
        (cache_folder().parent / "streamdit" / f"{name}.lock.json").write_text("{}")
    assert known_repositories() == ["a/b", "b/a@refs/pr/1"]
