"""Claim: a download is verified, restartable and quiet, and offline means no connection at all.

A hub on the loopback answers real HTTP; each command line runs in a fresh process, since the Hub's
library reads its environment once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import time
from typing import Any

import pytest
from hub_bench import (
    DECODER,
    NETWORK,
    NO_SLEEP,
    NO_SOCKETS,
    OTHER_SHA,
    PIECES,
    SHA,
    TOKEN,
    Bench,
    assert_refused,
    assert_whole,
    bench,
    downloader,
    weights,
)
from launcher import until
from loopback_hub import Repo
from tiny_presets import pin, write_preset

__all__ = ["bench", "downloader"]  # fixtures for the tests here


def test_download_is_exactly_the_named_files_by_commit(bench: Bench) -> None:
    files = bench.add()
    ended = bench.pull()
    assert ended.code == 0, ended.stderr
    assert_whole(bench, files)
    assert "tiny is complete and verified: 260.0 kB" in ended.stderr
    asked = {one.path for one in bench.hub.asked if "/resolve/" in one.path}
    assert asked == {f"/owner/tiny/resolve/{SHA}/{path}" for path in files}
    assert sum(one.sent for one in bench.hub.gets()) == sum(map(len, files.values()))
    kept = [path for path in bench.cache.rglob("*") if path.is_file() and "blobs" in path.parts]
    assert {path.name for path in kept} == {
        hashlib.sha256(data).hexdigest() for data in files.values()
    }


def test_warm_start_makes_no_request(bench: Bench) -> None:
    bench.add()
    assert bench.pull().code == 0
    bench.hub.forget()
    again = bench.pull(code=NO_SOCKETS)
    assert again.code == 0, again.stderr
    assert again.stderr.count("checking ") == 2  # pull again verifies
    listed = bench.run("models", "list", "--json", "-", code=NO_SOCKETS)
    assert [one["downloaded"] for one in json.loads(listed.stdout)] == ["yes"]
    shown = bench.run("info", "tiny", "--json", "-", code=NO_SOCKETS)
    here = [file["path_here"] for file in json.loads(shown.stdout)["files"]]
    assert here == [str(bench.local(NETWORK)), str(bench.local(DECODER))]
    made = bench.run("generate", "-p", "x", "-m", "tiny", code=NO_SOCKETS)
    assert "names no file of its text_encoder" in made.errors[0]
    assert bench.hub.asked == []


@pytest.mark.parametrize("how", ["--offline", "HF_HUB_OFFLINE"])
def test_offline_pull_makes_no_connection_and_says_what_to_type(bench: Bench, how: str) -> None:
    files = bench.add()
    options = ["--offline"] if how == "--offline" else []
    if not options:
        bench.environment["HF_HUB_OFFLINE"] = "1"
    ended = bench.pull(*options, code=NO_SOCKETS)
    assert_refused(ended, "2 files, 260.0 kB are missing", how, "streamdit models pull tiny")
    assert ended.seconds < 20  # of a shared machine; nothing waits
    made = bench.run("generate", "-p", "x", "-m", "tiny", *options, code=NO_SOCKETS)
    assert_refused(made, "tiny is not downloaded: 260.0 kB", "streamdit models pull tiny")
    assert bench.hub.asked == []
    bench.environment.pop("HF_HUB_OFFLINE", None)
    assert bench.pull().code == 0
    bench.hub.forget()
    bench.environment["HF_HUB_OFFLINE"] = "1"
    assert bench.pull(code=NO_SOCKETS).code == 0
    assert bench.hub.asked == []
    assert_whole(bench, files)


def test_cut_connection_goes_on_where_it_ended(bench: Bench) -> None:
    files = bench.add()
    bench.hub.repos["owner/tiny"].faults[NETWORK] = ("cut", 2)
    ended = bench.pull(code=NO_SLEEP + PIECES)
    assert ended.code == 0, ended.stderr
    assert_whole(bench, files)
    gets = bench.hub.gets(NETWORK)
    assert [one.start for one in gets] == [0, 100_000, 150_000]
    assert sum(one.sent for one in gets) == len(files[NETWORK])
    assert ended.stderr.count("the connection broke") == 2
    assert "Error while downloading" not in ended.stderr


def test_server_that_cannot_go_on_is_one_line_and_the_next_pull_begins_anew(bench: Bench) -> None:
    files = bench.add()
    bench.hub.repos["owner/tiny"].faults[NETWORK] = ("range", 2)
    assert_refused(bench.pull(code=NO_SLEEP + PIECES), "HTTP 416", "streamdit models pull tiny")
    assert bench.pull().code == 0
    assert_whole(bench, files)


def test_wrong_bytes_are_fetched_once_more(bench: Bench) -> None:
    files = bench.add()
    bench.hub.repos["owner/tiny"].faults[NETWORK] = ("flip", 1)
    ended = bench.pull()
    assert ended.code == 0, ended.stderr
    assert "arrived wrong (sha256 " in ended.stderr
    assert_whole(bench, files)
    assert len(bench.hub.gets(NETWORK)) == 2


def test_bytes_wrong_twice_are_refused_and_not_kept(bench: Bench) -> None:
    bench.add()
    bench.hub.repos["owner/tiny"].faults[NETWORK] = ("flip", 9)
    assert_refused(bench.pull(), "arrived wrong twice: sha256", NETWORK)
    assert len(bench.hub.gets(NETWORK)) == 2
    left = [path for path in bench.cache.rglob("*") if path.is_file() and path.stat().st_size > 999]
    assert left == []
    made = bench.run("generate", "-p", "x", "-m", "tiny", "--offline")
    assert "not downloaded" in made.errors[0]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("gone", ["is not in the repository", NETWORK]),
        ("page", ["proxy or a login page", "in a browser"]),
        ("busy", ["HTTP 429", "wait some minutes"]),
        ("short", ["arrived wrong twice", "length"]),
    ],
)
def test_fault_of_a_file_is_one_line(bench: Bench, fault: str, words: list[str]) -> None:
    files = bench.add()
    bench.hub.repos["owner/tiny"].faults[NETWORK] = (fault, 99)
    assert_refused(bench.pull(code=NO_SLEEP), *words)
    bench.hub.repos["owner/tiny"].faults.clear()
    assert bench.pull().code == 0
    assert_whole(bench, files)


def test_busy_hub_is_asked_again(bench: Bench) -> None:
    files = bench.add()
    bench.hub.repos["owner/tiny"].faults[NETWORK] = ("busy", 2)
    ended = bench.pull(code=NO_SLEEP)
    assert ended.code == 0, ended.stderr
    assert_whole(bench, files)


@pytest.mark.parametrize(
    ("refused", "words"),
    [
        ((401, "RepoNotFound"), ["owner/tiny is not on", "HTTP 401", "HF_TOKEN"]),
        ((403, "GatedRepo"), ["terms to be accepted", "/owner/tiny", "hf auth login"]),
        ((404, "RevisionNotFound"), ["has not the pinned commit any more"]),
        ((403, ""), ["refuses access", "HTTP 403"]),
        ((500, ""), ["HTTP 500", "later: streamdit models pull tiny"]),
    ],
)
def test_refusal_of_a_repository_is_one_line(
    bench: Bench, refused: tuple[int, str], words: list[str]
) -> None:
    bench.add()
    bench.add("open", known=False)
    for name in ("tiny", "open"):  # by its files, and by the question for its commit
        bench.hub.repos[f"owner/{name}"].refused = refused
        ended = bench.pull(name=name, code=NO_SLEEP)
        assert_refused(ended, *(word.replace("tiny", name) for word in words))
    assert not bench.lock("open").exists()


def test_silent_server_ends_in_time(bench: Bench) -> None:
    bench.add()
    bench.environment["HF_HUB_DOWNLOAD_TIMEOUT"] = "1"
    bench.hub.repos["owner/tiny"].faults[NETWORK] = ("stall", 99)
    ended = bench.pull(code=NO_SLEEP)
    assert_refused(ended, "does not answer in time", "HF_HUB_DOWNLOAD_TIMEOUT")
    assert ended.seconds < 60


def test_dead_server_is_one_line(bench: Bench) -> None:
    bench.add()
    bench.environment["HF_ENDPOINT"] = "http://127.0.0.1:9"  # discard; nobody listens
    words = ["the connection to http://127.0.0.1:9 failed", "HF_ENDPOINT"]
    assert_refused(bench.pull(code=NO_SLEEP), *words)


def test_slow_server_is_waited_for(bench: Bench) -> None:
    files = bench.add()
    bench.environment["HF_HUB_DOWNLOAD_TIMEOUT"] = "1"
    bench.hub.repos["owner/tiny"].faults[NETWORK] = ("slow", 1)  # 1.3 s in all
    ended = bench.pull()
    assert ended.code == 0, ended.stderr
    assert_whole(bench, files)
    assert len(bench.hub.gets(NETWORK)) == 1


def test_pointer_in_place_of_weights_is_called_one(bench: Bench) -> None:
    files = bench.add()
    text = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64
    bench.hub.repos["owner/tiny"].files[NETWORK] = text
    assert_refused(bench.pull(), "a Git LFS pointer", f"instead of {len(files[NETWORK])}")


def test_full_disk_is_noticed_before_the_download(bench: Bench) -> None:
    bench.add()
    code = "import shutil\nclass Usage: free = 100_000\nshutil.disk_usage = lambda path: Usage\n"
    ended = bench.pull(code=code)
    assert_refused(ended, "260.0 kB in 2 files do not fit", "100.0 kB are free", "HF_HOME")
    assert bench.hub.asked == []


def test_disk_that_fills_up_is_one_line_and_whole_files_are_kept(bench: Bench) -> None:
    files = bench.add()
    bench.preset("tiny", dict(reversed(files.items())))  # the small one first
    limits = {"RLIMIT_FSIZE": 100_000}
    code = bench.code("import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n")
    words = ["models", "pull", "tiny"]
    ended = bench.launcher.run(words, cwd=bench.folder, code=code, limits=limits)
    assert_refused(ended, "the disk of", "HF_HOME")
    assert bench.local(DECODER).read_bytes() == files[DECODER]
    assert bench.pull().code == 0
    assert_whole(bench, files)
    assert len(bench.hub.gets(DECODER)) == 1


def test_open_pins_are_looked_up_printed_and_held(bench: Bench) -> None:
    files = bench.add(known=False)
    ended = bench.pull()
    assert ended.code == 0, ended.stderr
    assert_whole(bench, files)
    for word in (SHA, *(hashlib.sha256(data).hexdigest() for data in files.values())):
        assert word in ended.stderr
    repo = bench.hub.repos["owner/tiny"]
    bench.hub.repos["owner/tiny"] = Repo(OTHER_SHA, {**files, NETWORK: weights(3, 200_000)})
    assert bench.pull(code=NO_SOCKETS).code == 0  # nothing is looked up again
    assert bench.run("models", "remove", "tiny").code == 0
    assert not bench.local(NETWORK).exists()
    assert_refused(bench.pull(), "has not the pinned commit any more")
    bench.hub.repos["owner/tiny"] = repo
    assert bench.pull().code == 0
    assert_whole(bench, files)


def test_open_pins_need_the_network_once(bench: Bench) -> None:
    bench.add(known=False)
    ended = bench.pull("--offline", code=NO_SOCKETS)
    assert_refused(ended, "2.0 kB are missing", "streamdit models pull tiny")


def test_series_of_shards_is_taken_whole_or_not_at_all(bench: Bench) -> None:
    names = [f"transformer/model-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)]
    files = {name: weights(index, 5000) for index, name in enumerate(names)}
    extra = {"transformer/model.safetensors.index.json": b"{}", "model-x-of-y.safetensors": b"x"}
    bench.hub.repos["owner/tiny"] = Repo(SHA, {**files, **extra})
    entry = pin("transformer/model-*-of-*.safetensors", None)
    source = {"part": "transformer", "repo": "owner/tiny", "revision": "", "files": [entry]}
    write_preset(bench.folder, "tiny", [source])
    missing = bench.hub.repos["owner/tiny"].files.pop(names[1])
    ended = bench.pull()
    assert ended.code == 5
    assert "no whole series" in ended.errors[0]
    bench.hub.repos["owner/tiny"].files[names[1]] = missing
    ended = bench.pull()
    assert ended.code == 0, ended.stderr
    assert_whole(bench, files)
    assert len(bench.hub.gets()) == 3


def test_file_that_is_not_the_pinned_one_is_refused_before_the_download(bench: Bench) -> None:
    data = weights(1, 5000)
    bench.hub.repos["owner/tiny"] = Repo(SHA, {NETWORK: data})
    entry = {**pin(NETWORK, weights(2, 5000)), "size": 0, "about": 5000}
    source = {"part": "transformer", "repo": "owner/tiny", "revision": SHA, "files": [entry]}
    write_preset(bench.folder, "tiny", [source])
    assert_refused(bench.pull(), "is not the file that is pinned: 5000 bytes")
    assert bench.hub.gets() == []


def test_files_of_other_tools_are_taken_by_their_hash(bench: Bench) -> None:
    files = bench.add()
    other = bench.folder / "other" / "models" / "unet"
    other.mkdir(parents=True)
    (other / "wrong.safetensors").write_bytes(weights(9, len(files[NETWORK])))
    (other / "renamed.safetensors").write_bytes(files[NETWORK])
    (other / "gone.safetensors").symlink_to(other / "nothing")
    ended = bench.pull("--look-in", str(bench.folder / "other"))
    assert ended.code == 0, ended.stderr
    assert "1 files taken" in ended.stderr
    assert_whole(bench, files)
    assert bench.hub.gets(NETWORK) == []
    assert len(bench.hub.gets(DECODER)) == 1
    assert (other / "renamed.safetensors").read_bytes() == files[NETWORK]
    assert bench.pull(code=NO_SOCKETS).code == 0
    nowhere = bench.pull("--look-in", str(bench.folder / "no"))
    assert (nowhere.code, len(nowhere.errors)) == (4, 1)


def test_files_of_other_tools_are_enough_without_a_connection(bench: Bench) -> None:
    files = bench.add()
    other = bench.folder / "other"
    other.mkdir()
    for index, data in enumerate(files.values()):
        (other / str(index)).write_bytes(data)
    ended = bench.pull("--offline", "--look-in", str(other), code=NO_SOCKETS)
    assert ended.code == 0, ended.stderr
    assert_whole(bench, files)


def test_flipped_bit_in_the_cache_is_found_and_only_that_file_fetched(bench: Bench) -> None:
    files = bench.add()
    assert bench.pull().code == 0
    blob = bench.local(DECODER).resolve()
    blob.write_bytes(files[DECODER][:-1] + bytes([files[DECODER][-1] ^ 4]))
    listed = bench.run("models", "list", "--json", "-")
    assert json.loads(listed.stdout)[0]["downloaded"] == "yes, not verified"
    made = bench.run("generate", "-p", "x", "-m", "tiny", "--offline")
    assert_refused(made, "were not verified", "streamdit models pull tiny")
    bench.hub.forget()
    ended = bench.pull()
    assert ended.code == 0, ended.stderr
    assert "is not what it must be" in ended.stderr
    assert_whole(bench, files)
    assert [one.path.endswith(DECODER) for one in bench.hub.gets()] == [True]


def test_terms_are_accepted_once(bench: Bench) -> None:
    bench.add(extra='accept_licence = "for research, says one page"')
    ended = bench.pull()
    assert (ended.code, bench.hub.asked) == (2, [])
    assert "for research, says one page" in ended.errors[0]
    assert "streamdit models pull tiny --accept-license" in ended.stderr
    assert bench.pull("--accept-license").code == 0
    assert bench.pull(code=NO_SOCKETS).code == 0
    bench.add(extra='accept_licence = "for nobody, says it now"')
    assert bench.pull().code == 2  # other terms, asked anew
    bench.add("plain")
    assert bench.pull("--accept-license", name="plain").code == 2  # nothing to accept


def test_token_goes_to_the_hub_and_into_no_output(bench: Bench) -> None:
    bench.add()
    bench.environment["HF_TOKEN"] = TOKEN
    bench.hub.repos["owner/tiny"].faults[NETWORK] = ("cut", 1)
    ends = [bench.pull("-v", code=NO_SLEEP)]
    bench.hub.repos["owner/tiny"].refused = (403, "GatedRepo")
    bench.run("models", "remove", "tiny")
    ends.append(bench.pull("-v", "--debug"))
    assert [end.code for end in ends] == [0, 5]
    assert {one.token for one in bench.hub.gets()} == {f"Bearer {TOKEN}"}
    for end in ends:
        assert "canary" not in end.stderr + end.stdout.decode()
    for path in (bench.folder / "home").rglob("*"):
        assert not (path.is_file() and TOKEN.encode() in path.read_bytes()), path


def test_killed_pull_keeps_whole_files_and_its_rest_is_swept_up_later(bench: Bench) -> None:
    files = bench.add()
    bench.preset("tiny", dict(reversed(files.items())))  # the small one first
    kill_while_fetching(bench)
    (rest,) = bench.cache.rglob("*.incomplete")
    old = time.time() - 7200
    os.utime(rest, (old, old))
    ended = bench.pull()
    assert ended.code == 0, ended.stderr
    assert "of an interrupted download" in ended.stderr
    assert not rest.exists()
    assert_whole(bench, files)
    assert len(bench.hub.gets(DECODER)) == 1  # at most one file is fetched again


def kill_while_fetching(bench: Bench) -> None:
    """Kill a pull that has half of the large file."""
    bench.hub.repos["owner/tiny"].faults[NETWORK] = ("stall", 1)
    case = bench.launcher.start(["models", "pull", "tiny"], cwd=bench.folder, code=bench.code(""))
    until(lambda: any(bench.cache.rglob("*.incomplete")) and not taken(bench))
    case.send(signal.SIGKILL)
    assert case.wait() == -signal.SIGKILL
    bench.hub.release.set()


def test_interrupted_pull_says_so_and_leaves_nothing_half(bench: Bench) -> None:
    bench.add()
    bench.hub.repos["owner/tiny"].faults[NETWORK] = ("stall", 1)
    words = ["models", "pull", "tiny"]
    with open(bench.folder / "said", "w+b") as said:
        case = bench.launcher.start(
            words, cwd=bench.folder, code=bench.code(""), stderr=said.fileno()
        )
        until(lambda: any(bench.cache.rglob("*.incomplete")) and not taken(bench))
        case.send(signal.SIGINT)
        assert case.wait() == 130
    text = (bench.folder / "said").read_text()
    assert "go on with streamdit models pull tiny" in text
    assert "error:" not in text
    assert not list(bench.cache.rglob("*.incomplete"))


def taken(bench: Bench) -> int:
    """How many stalls are left to happen."""
    return bench.hub.repos["owner/tiny"].faults[NETWORK][1]


@pytest.mark.slow
def test_pull_killed_thirty_times_ends_right(bench: Bench) -> None:
    files = bench.add()
    draw = random.Random(0)
    ends: list[int] = []
    for _ in range(30):
        bench.hub.repos["owner/tiny"].faults = {
            NETWORK: ("slow", 1),
            DECODER: ("slow", 1),
        }
        words = ["models", "pull", "tiny"]
        case = bench.launcher.start(words, cwd=bench.folder, code=bench.code(""))
        time.sleep(draw.uniform(0.2, 3.0))
        with contextlib.suppress(ProcessLookupError):
            case.send(signal.SIGKILL)
        code = case.wait()
        ends.append(code)
        for path, data in files.items():  # never anything but whole files under their names
            assert not bench.local(path).exists() or bench.local(path).read_bytes() == data
        if code == 0:
            assert_whole(bench, files)
            shutil.rmtree(bench.folder / "home")
    assert set(ends) <= {0, -signal.SIGKILL}
    assert ends.count(-signal.SIGKILL) > 5
    bench.hub.repos["owner/tiny"].faults = {}
    assert bench.pull().code == 0
    assert_whole(bench, files)


def test_two_pulls_at_once_both_end_right(bench: Bench) -> None:
    files = bench.add()
    bench.hub.repos["owner/tiny"].faults[NETWORK] = ("slow", 1)
    words = ["models", "pull", "tiny"]
    cases = [bench.launcher.start(words, cwd=bench.folder, code=bench.code("")) for _ in range(2)]
    assert [case.wait() for case in cases] == [0, 0]
    assert_whole(bench, files)


def test_remove_keeps_what_another_pulled_model_needs(bench: Bench) -> None:
    files = bench.add()
    shared = {
        "part": "autoencoder",
        "repo": "owner/tiny",
        "revision": SHA,
        "files": [pin(DECODER, files[DECODER])],
    }
    write_preset(bench.folder, "other", [shared])
    assert bench.pull().code == 0
    assert bench.pull(name="other").code == 0
    assert len(bench.hub.gets(DECODER)) == 1
    ended = bench.run("models", "remove", "tiny")
    assert "tiny: 200.0 kB set free; 60.0 kB are kept" in ended.stderr
    assert not bench.local(NETWORK).exists()
    assert bench.local(DECODER).read_bytes() == files[DECODER]
    assert "60.0 kB set free" in bench.run("models", "remove", "other").stderr
    assert "0 bytes set free" in bench.run("models", "remove", "other").stderr
    blobs = [path for path in bench.cache.rglob("*") if path.is_file() and "blobs" in path.parts]
    assert blobs == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda record: {**record, "format": "other"},
        lambda record: {**record, "revisions": {"owner/tiny": "main"}},
        lambda record: {**record, "files": {"owner/tiny": {"../../x.safetensors": [1, "0" * 64]}}},
        lambda record: [record],
        lambda record: "cut" + json.dumps(record)[:50],
    ],
)
def test_spoiled_lock_file_is_refused_in_one_line(bench: Bench, spoil: Any) -> None:
    bench.add()
    record = {"format": "streamdit-lock-1", "accepted": "", "revisions": {}, "files": {}}
    record = spoil({**record, "checked": {}})
    bench.lock().parent.mkdir(parents=True)
    bench.lock().write_text(record if isinstance(record, str) else json.dumps(record))
    assert_refused(bench.pull(), str(bench.lock()), "delete it")
    assert bench.hub.asked == []


def test_cache_that_cannot_be_written_is_one_line(bench: Bench) -> None:
    bench.add()
    (bench.folder / "home").mkdir()
    (bench.folder / "home" / "hub").write_text("a file where the folder has to be")
    assert_refused(bench.pull(), "cannot be used", "HF_HOME")


def test_progress_counts_bytes_in_our_own_words(bench: Bench) -> None:
    bench.add()
    ended = bench.pull()
    assert re.search(r"^\d+\.\d kB of 260\.0 kB", ended.stderr, re.MULTILINE)
    assert "it/s" not in ended.stderr and "%|" not in ended.stderr
    assert bench.pull("-q").stderr == ""
