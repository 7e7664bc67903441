"""Claim: a preset of open weights says exactly what is fetched, and what is not known about it.

Nothing here makes a connection; downloads are tested in `test_hub.py`.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_presets import PRESETS, pin, preset_text

from streamdit_cli import cache, presets
from streamdit_cli.app import main
from streamdit_cli.cache import Lock, needed_files, parts_of, size_words
from streamdit_cli.errors import MissingWeights, UsageError
from streamdit_cli.model_source import find_source
from streamdit_cli.schema import check_preset

OPEN = [
    *("rolling-1.3b", "rolling-forcing-1.3b", "skyreels-df-1.3b", "skyreels-df-14b"),
    *("wan-1.3b", "wan-14b", "wan-5b"),
]
STREAMING = [name for name in OPEN if not name.startswith("wan-")]
DATA = b"some weights"
SOURCE = {"part": "transformer", "repo": "a/b", "revision": "1" * 40}
TEXT = preset_text("case", [{**SOURCE, "files": [pin("x.safetensors", DATA)]}])
REFUSE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "numpy", "huggingface_hub", "transformers"}:
            raise ImportError("refused: " + name)
sys.meta_path.insert(0, Refuse())
from streamdit_cli.app import main
assert main(["models", "list"]) == 0
assert main(["models", "--help"]) == 0
assert main(["info", "rolling-1.3b"]) == 0
assert main(["models", "pull", "rolling-1.3b", "--offline"]) == 5
assert main(["generate", "-p", "x", "-m", "rolling-1.3b", "--offline"]) == 5
"""


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "STREAMDIT_MODEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "hub"


def files_of(name: str) -> list[dict[str, Any]]:
    sources = presets.find_preset(name)["weights"]["sources"]
    return [{**source, **file} for source in sources for file in source["files"]]


def checked(text: str, tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "case.toml"
    path.write_text(text, encoding="utf-8")
    preset = presets.read_toml(path)
    check_preset(preset, path)
    return preset


@pytest.mark.parametrize("name", OPEN)
def test_every_file_is_pinned_or_said_to_be_unverified(name: str) -> None:
    weights = presets.find_preset(name)["weights"]
    gaps = [file for file in files_of(name) if not all(map(file.get, ("revision", "size")))]
    gaps += [file for file in files_of(name) if not file["sha256"]]
    assert bool(gaps) == weights.get("unverified", False) == bool(weights.get("reason"))
    for file in files_of(name):
        assert re.fullmatch(r"[0-9a-f]{40}|", file["revision"])
        assert re.fullmatch(r"[0-9a-f]{64}|", file["sha256"])
        assert file["path"].endswith((".safetensors", "tokenizer.json"))


def test_presets_agree_about_the_files_they_share() -> None:
    pins: dict[tuple[str, str], tuple[str, int, str]] = {}
    for name in OPEN:
        for file in files_of(name):
            value = (file["revision"], file["size"], file["sha256"])
            assert pins.setdefault((file["repo"], file["path"]), value) == value
    shared = [file for file in files_of("wan-1.3b") if file["part"] == "text_encoder"]
    assert sum(file["size"] for file in shared) == 11_361_851_208


@pytest.mark.parametrize("name", OPEN)
def test_preset_has_a_network_of_the_size_it_states(name: str) -> None:
    """Parameters of patch, text and time embeddings, of the layers, and of the head."""
    net = presets.find_preset(name)["network"]
    width, patch = net["width"], net["patch"][0] * net["patch"][1] * net["patch"][2]
    square = width * width + width
    patches = net["latent_channels"] * patch
    embeddings = patches * width + width
    embeddings += net["text_width"] * width + width + square
    embeddings += net["time_width"] * width + width + square + 6 * square
    mlp = 2 * width * net["mlp_width"] + width + net["mlp_width"]
    layer = 8 * square + 4 * width + 2 * width + mlp + 6 * width
    head = width * patches + patches + 2 * width
    fps = 2 * width + square + 6 * square if net["fps_embedding"] else 0
    assert embeddings + net["layers"] * layer + head + fps == net["parameters"]
    assert sum(net["rope_axes"]) * net["heads"] == width


def test_levels_of_the_rolling_models_are_those_of_upstream() -> None:
    """t = 1000 * 5u / (1 + 4u), as the reference implementation's schedule has them."""
    expected = {
        "rolling-1.3b": [1000, 937.5, 833.333, 625],
        "rolling-forcing-1.3b": [1000, 952.381, 882.353, 769.231, 555.556],
    }
    for name, levels in expected.items():
        sampler = presets.find_preset(name)["sampler"]
        shift = sampler["shift"]
        steps = [step / 1000 for step in sampler["timesteps"]]
        warped = [1000 * shift * u / (1 + (shift - 1) * u) for u in steps]
        assert warped == pytest.approx(levels, abs=5e-4)
        context = presets.find_preset(name)["context"]
        kept = context["sink_frames"] + context["working_frames"]
        window = sampler["num_chunks"] * sampler["chunk_size"]
        assert kept + window == context["attended_frames"]


@pytest.mark.parametrize("name", STREAMING)
def test_profiles_fit_their_cards_and_hold_what_must_be_there(name: str) -> None:
    preset = presets.find_preset(name)
    net = preset["network"]
    assert [profile["vram"] for profile in preset["profiles"]] == [12, 16, 24]
    for profile in preset["profiles"]:
        tokens = profile["width"] // 16 * (profile["height"] // 16)
        context = profile["context_frames"] * tokens * net["layers"] * net["width"] * 2 * 2
        parameters = net["parameters"] * 2
        if profile["offload"] == "cpu":  # two layers at a time
            parameters = 2 * parameters // net["layers"]
        assert (parameters + context) / 1e9 < profile["estimate"] <= 0.92 * profile["vram"]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("1" * 40, "main", "revision must be a commit of 40"),
        ("1" * 40, "1" * 7, "revision must be a commit of 40"),
        ("1" * 40, "", "is empty"),
        ("size = 12", "size = 0", "neither a size nor `about`"),
        ("size = 12", "size = -1", "whole number from 0"),
        ("size = 12", "size = true", "whole number from 0"),
        ("size = 12", "size = 12\nabout = 13", "`about` says nothing"),
        ("size = 12", "sise = 12", "did you mean size?"),
        ("x.safetensors", "x.pt", "plain path of a .safetensors"),
        ("x.safetensors", "../x.safetensors", "plain path"),
        ("x.safetensors", "/x.safetensors", "plain path"),
        ("x.safetensors", "a/../x.safetensors", "plain path"),
        ("x.safetensors", "$HOME.safetensors", "plain path"),
        ("x.safetensors", "x*.safetensors", "plain path"),
        ("x.safetensors", "x-*-of-*.safetensors", "a series, which has no size"),
        ('repo = "a/b"', 'repo = "https://example.org/a"', "OWNER/NAME"),
        ('repo = "a/b"', 'repo = "../b"', "OWNER/NAME"),
        ('part = "transformer"', 'part = "code"', "must be one of transformer"),
        ("[weights]", '[weights]\nfolder = "x"', "exactly one of"),
        ("[weights]", "[weights]\nunverified = true", "unverified and reason must go"),
        ("fps = 16", "fps = nan", "video.fps is nan"),
        ("fps = 16", "fps = 0", "number from 1 to 240"),
        ("fps = 16", "", "fps missing"),
        ("[video]", "[vidio]", "did you mean video?"),
        ("[sampler]", "[sample]", "did you mean sampler?"),
        ("timesteps = [1000, 750, 500, 250]", "timesteps = [1000]", "1 timesteps for 4 chunks"),
        ("timesteps = [1000, 750, 500, 250]", "", "timesteps missing"),
        ('name = "case"', 'name = "other"', "name is 'other', not 'case'"),
        ("\nmeasured", '\nrefuse = "why"\nmeasured', "sampler says nothing"),
        ('stepper = "renoise"', 'stepper = "ddim"', "must be one of renoise"),
        ("layers = 30", "layers = 30.5", "whole number"),
        ("patch = [1, 2, 2]", "patch = [1, 2]", "a list of 3 to 3"),
        ("patch = [1, 2, 2]", "patch = 3", "a list of 3 to 3"),
        ("fps_embedding = false", "fps_embedding = 0", "true or false"),
    ],
)
def test_preset_that_is_not_exact_is_refused(
    old: str, new: str, words: str, tmp_path: Path
) -> None:
    assert old in TEXT
    with pytest.raises(UsageError, match=re.escape(words)):
        checked(TEXT.replace(old, new, 1), tmp_path)


def test_preset_that_names_a_file_twice_is_refused(tmp_path: Path) -> None:
    source = {**SOURCE, "files": [pin("x.safetensors", DATA)] * 2}
    with pytest.raises(UsageError, match="stands there twice"):
        checked(preset_text("case", [source]), tmp_path)


def test_open_pin_is_filled_from_the_lock_unless_the_preset_says_more(tmp_path: Path) -> None:
    series = {**SOURCE, "revision": "", "files": [pin("y-*-of-*.safetensors", None)]}
    preset = checked(preset_text("case", [series]), tmp_path)
    lock = Lock(path=tmp_path / "lock")
    (file,) = needed_files(preset, lock)
    assert (file.is_pinned, file.bytes) == (False, 1000)
    shards = {f"y-0000{i}-of-00002.safetensors": (i, str(i) * 64) for i in (2, 1)}
    lock.revisions["a/b"] = "2" * 40
    lock.files["a/b"] = {**shards, "other.safetensors": (9, "9" * 64)}
    files = needed_files(preset, lock)
    assert [file.path for file in files] == sorted(shards)
    assert all(file.is_pinned and file.revision == "2" * 40 for file in files)
    assert parts_of(files)["transformer"] == [file.local for file in files]
    pinned = checked(TEXT, tmp_path)  # a newer preset, with pins of its own
    assert needed_files(pinned, lock)[0].revision == "1" * 40


def test_blob_that_links_to_a_shared_store_is_taken_out_and_the_store_left_alone(
    tmp_path: Path,
) -> None:
    preset = checked(TEXT, tmp_path)
    (file,) = needed_files(preset, Lock(path=tmp_path / "lock"))
    stored = tmp_path / "store"
    stored.write_bytes(DATA)
    blob = file.folder / "blobs" / file.sha256
    for folder in (blob.parent, file.local.parent):
        folder.mkdir(parents=True)
    blob.symlink_to(stored)
    file.local.symlink_to(os.path.relpath(blob, file.local.parent))
    assert cache.fault(file.local, file) == ""
    assert cache.discard(file) == 0
    assert not file.local.exists() and not blob.is_symlink()
    assert stored.read_bytes() == DATA
    assert cache.discard(file) == 0


def test_cache_is_where_the_hubs_library_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("huggingface_hub")
    cases = [
        {},
        {"XDG_CACHE_HOME": str(tmp_path / "xdg")},
        {"HF_HOME": str(tmp_path / "hf")},
        {"HF_HOME": "~/hf", "HUGGINGFACE_HUB_CACHE": "$HOME/old"},
        {"HF_HOME": "~/hf", "HF_HUB_CACHE": "~/$USER_OF_NOTHING/cache"},
    ]
    code = "import importlib, json, os, sys\nimport huggingface_hub.constants as c\n"
    code += "for case in json.load(sys.stdin):\n"
    code += "    os.environ.update(case); importlib.reload(c); print(c.HF_HUB_CACHE)\n"
    code += "    [os.environ.pop(key) for key in case]\n"
    clean = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(cases),
        env=clean,
        capture_output=True,
        text=True,
        check=True,
    )
    theirs = done.stdout.splitlines()
    for name in ("HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for case, expected in zip(cases, theirs, strict=True):
        with monkeypatch.context() as patch:
            for key, value in case.items():
                patch.setenv(key, value)
            assert str(cache.cache_folder()) == expected


def test_list_and_info_and_refusals_need_neither_torch_nor_the_hubs_library() -> None:
    done = subprocess.run([sys.executable, "-c", REFUSE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_list_shows_size_licence_place_and_state(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "list"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    rows = {line.split()[0]: line for line in out.splitlines()}
    assert set(rows) == {"model", *presets.preset_names()}
    for word in ("about 14.7 GB", "Apache-2.0", "a CUDA GPU of 12 GB", "no"):
        assert word in rows["rolling-1.3b"]
    assert "in the package" in rows["shapes"]
    assert "no weights" in rows["paper-4b"]
    assert main(["models", "list", "--json", "-"]) == 0
    records = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert records["wan-1.3b"]["bytes"] == 17_584_993_885
    assert records["wan-1.3b"]["exact"] and not records["rolling-1.3b"]["exact"]


@pytest.mark.parametrize("name", OPEN)
def test_info_shows_what_a_model_is_and_what_was_not_verified(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    preset = presets.find_preset(name)
    assert main(["info", name]) == 0
    out = capsys.readouterr().out
    size = size_words(sum(file["size"] or file["about"] for file in files_of(name)))
    video = f"{preset['video']['width']}x{preset['video']['height']}"
    for word in (size, preset["licence"], video, preset["needs"], *preset["not_verified"]):
        assert word in out
    assert re.search(r"^downloaded +no$", out, re.MULTILINE)
    for profile in preset.get("profiles", []):
        assert f"on {profile['vram']} GB" in out


@pytest.mark.parametrize("name", STREAMING)
def test_model_that_is_not_downloaded_says_how_big_it_is_and_what_to_type(name: str) -> None:
    with pytest.raises(MissingWeights, match=r"is not downloaded: about \d\d\.\d GB") as caught:
        find_source(name)
    assert presets.find_preset(name)["licence"] in str(caught.value)
    assert caught.value.hint == f"streamdit models pull {name}"


def test_open_weights_are_refused_where_a_model_folder_is_needed() -> None:
    with pytest.raises(UsageError, match="is no model folder"):
        presets.find_model("rolling-1.3b")


@pytest.mark.parametrize("name", [name for name in OPEN if name not in STREAMING])
def test_model_trained_with_one_level_for_all_frames_does_not_generate(name: str) -> None:
    with pytest.raises(UsageError, match="one noise level for all frames"):
        presets.find_model(name)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["list", "rolling-1.3b"], "NAME has no effect on models list"),
        (["list", "--offline"], "--offline has no effect"),
        (["pull"], "needs the NAME"),
        (["pull", "rolling-1.3b", "--json", "-"], "--json has no effect"),
        (["remove", "rolling-1.3b", "--look-in", "x"], "--look-in has no effect"),
        (["pull", "roling-1.3b"], "did you mean rolling-1.3b?"),
        (["pull", "shapes"], "it is in the package"),
        (["remove", "paper-4b"], "there are no weights"),
        (["push", "rolling-1.3b"], "'push'"),
    ],
)
def test_words_without_a_meaning_are_refused(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err


def test_shipped_presets_are_those_of_this_test() -> None:
    shipped = {path.stem for path in PRESETS.glob("*.toml")}
    assert shipped == {*OPEN, "shapes", "paper-4b"}
