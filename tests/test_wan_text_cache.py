"""A prompt that was encoded once needs no text encoder again; no file on the disk can do harm."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from streamdit_model.errors import ConfigError
from streamdit_model.wan.text import WanTextEncoder, WanTokenizer, build_encoder
from streamdit_model.wan.text_cache import EncoderIdentity, TextCache
from streamdit_model.wan.text_weights import WanTextConfig

tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("transformers")

TINY = WanTextConfig(
    vocabulary=32,
    width=8,
    head_width=4,
    num_heads=2,
    mlp_width=12,
    depth=1,
    num_buckets=8,
    max_distance=12,
    max_tokens=10,
)
IDENTITY = EncoderIdentity(
    file_hashes=("a" * 64, "b" * 64), config=TINY, dtype=torch.bfloat16, device_type="cpu"
)
Factory = Callable[[], WanTextEncoder]


@pytest.fixture(autouse=True)
def without_ftfy(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is claimed here of cleaning must not depend on what else is installed."""
    monkeypatch.setitem(sys.modules, "ftfy", None)


def encoder() -> WanTextEncoder:
    """A tiny encoder, the same each time, whose rows depend on the prompt."""
    pieces = ["<pad>", "</s>", "<unk>", *"abcdefghijklmnopqrst &;"]
    scores = [(piece, -1.0) for piece in pieces]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram(scores, unk_id=2))
    module = build_encoder(TINY).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return WanTextEncoder(TINY, WanTokenizer(tokenizer, TINY.max_tokens), module.bfloat16())


def no_encoder() -> WanTextEncoder:
    raise AssertionError("a text encoder was asked for")


def counting() -> tuple[Factory, list[WanTextEncoder]]:
    made: list[WanTextEncoder] = []

    def make() -> WanTextEncoder:
        made.append(encoder())
        return made[-1]

    return make, made


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def filled(folder: Path, *prompts: str) -> TextCache:
    cache = TextCache(folder, IDENTITY, "cpu", encoder)
    for prompt in prompts:
        cache.encode([prompt])
    return cache


def test_repeated_prompt_needs_no_encoder_and_has_the_same_bits(tmp_path: Path) -> None:
    prompts = ["a cat", "", "a cat", " a   cat\n", "abcdefghij" * 3]
    direct = encoder().encode(prompts)
    missed = TextCache(tmp_path / "new" / "prompts", IDENTITY, "cpu", encoder).encode(prompts)
    cache = TextCache(tmp_path / "new" / "prompts", IDENTITY, "cpu", no_encoder)
    assert all(cache.has(prompt) for prompt in prompts)
    for condition in (missed, cache.encode(prompts)):
        assert torch.equal(condition.tokens, direct.tokens)
        assert torch.equal(condition.mask, direct.mask)
        assert condition.tokens.dtype == torch.bfloat16
    assert len(files(tmp_path / "new" / "prompts")) == 3
    assert not cache.has("a dog")
    with pytest.raises(AssertionError, match="was asked for"):
        cache.encode(["a cat", "a dog"])


def test_prompt_is_cleaned_exactly_once_on_its_way(tmp_path: Path) -> None:
    prompt = "a &amp;amp;amp; b"  # cleaned it is "a &amp; b", which cleaned again is "a & b"
    direct = encoder().encode([prompt]).tokens
    assert not torch.equal(direct, encoder().encode(["a & b"]).tokens)
    assert torch.equal(filled(tmp_path).encode([prompt]).tokens, direct)
    cache = TextCache(tmp_path, IDENTITY, "cpu", no_encoder)
    assert torch.equal(cache.encode([prompt]).tokens, direct)


def test_encoder_is_made_once_for_all_misses(tmp_path: Path) -> None:
    make, made = counting()
    cache = TextCache(tmp_path, IDENTITY, "cpu", make)
    for prompts in (["a", "b"], ["c"], ["a", "d"]):
        cache.encode(prompts)
    assert len(made) == 1
    assert made[0].device == torch.device("cpu")


def test_encoder_is_freed_after_use_when_asked(tmp_path: Path) -> None:
    make, made = counting()
    cache = TextCache(tmp_path, IDENTITY, "cpu", make, after="free")
    modules = []
    for prompt in ("a", "a", "b"):
        cache.encode([prompt])
        modules += [one.module for one in made if one._module is not None]
    assert len(made) == 2 and not modules
    kept = TextCache(tmp_path, IDENTITY, "cpu", make)
    kept.encode(["c"])
    assert made[2].module is not None
    kept.free()
    assert made[2]._module is None


def test_offloaded_encoder_is_made_once_and_moved_out_and_back(tmp_path: Path) -> None:
    moves: list[str] = []

    class Watched(WanTextEncoder):
        def move(self, device: torch.device | str) -> None:
            moves.append(str(device))
            super().move(device)

    def make() -> WanTextEncoder:
        plain = encoder()
        moves.append("made")
        return Watched(TINY, plain._tokenizer, plain.module)

    cache = TextCache(tmp_path, IDENTITY, torch.device("cpu", 0), make, after="offload")
    cache.encode(["a", "b"])
    assert moves == ["made", "cpu"]
    cache.encode(["a"])
    assert moves == ["made", "cpu"]
    cache.encode(["c"])
    assert moves == ["made", "cpu", "cpu:0", "cpu"]


@pytest.mark.parametrize(
    "other",
    [
        replace(IDENTITY, file_hashes=("a" * 64, "c" * 64)),
        replace(IDENTITY, dtype=torch.float32),
        replace(IDENTITY, device_type="cuda"),
        replace(IDENTITY, config=replace(TINY, max_tokens=9)),
        replace(IDENTITY, config=replace(TINY, max_distance=13)),
    ],
)
def test_rows_of_another_encoder_are_not_used(tmp_path: Path, other: EncoderIdentity) -> None:
    filled(tmp_path, "a cat")
    assert not TextCache(tmp_path, other, "cpu", no_encoder).has("a cat")


def test_order_of_the_encoders_files_does_not_matter(tmp_path: Path) -> None:
    filled(tmp_path, "a cat")
    other = replace(IDENTITY, file_hashes=IDENTITY.file_hashes[::-1])
    assert TextCache(tmp_path, other, "cpu", no_encoder).has("a cat")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def flipped(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    place = raw.rindex(load_file(path)["rows"].view(torch.uint8).numpy().tobytes()[:8])
    raw[place] ^= 1
    path.write_bytes(raw)


def pickled(path: Path) -> None:
    path.write_bytes(b"\x80\x04" + b"x" * 200)


def reshaped(path: Path) -> None:
    tensors: dict[str, Tensor] = load_file(path)
    save_file({**tensors, "rows": tensors["rows"].view(-1)}, path)


def retyped(path: Path) -> None:
    tensors: dict[str, Tensor] = load_file(path)
    save_file({**tensors, "rows": tensors["rows"].float()}, path)


def renamed(path: Path) -> None:
    """The whole file of another prompt in this one's place."""
    other = path.parent / IDENTITY.file_name("another")
    filled(path.parent, "another")
    shutil.move(other, path)


def made_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "something").write_text("")


DAMAGE = [cut, emptied, flipped, pickled, reshaped, retyped, renamed]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_damaged_file_is_computed_again_and_replaced(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    wanted = filled(tmp_path).encode(["a cat"]).tokens
    (path,) = files(tmp_path)
    damage(path)
    assert not TextCache(tmp_path, IDENTITY, "cpu", no_encoder).has("a cat")
    make, made = counting()
    again = TextCache(tmp_path, IDENTITY, "cpu", make).encode(["a cat"])
    assert len(made) == 1 and torch.equal(again.tokens, wanted)
    assert TextCache(tmp_path, IDENTITY, "cpu", no_encoder).has("a cat")


@pytest.mark.parametrize("obstacle", ["file for the folder", "folder for the file"])
def test_prompt_is_encoded_when_it_cannot_be_kept_and_one_line_says_so(
    tmp_path: Path, obstacle: str
) -> None:
    folder = tmp_path / "prompts"
    if obstacle == "file for the folder":
        folder.write_text("")
    else:
        filled(folder, "a cat")
        made_a_folder(files(folder)[0])
    lines: list[str] = []
    cache = TextCache(folder, IDENTITY, "cpu", encoder, on_problem=lines.append)
    assert torch.equal(cache.encode(["a cat"]).tokens, encoder().encode(["a cat"]).tokens)
    assert len(lines) == 1 and "\n" not in lines[0]
    assert lines[0].startswith(f"encoded prompts cannot be kept in {folder}: ")


def test_folder_keeps_within_its_limit_what_was_used_last(tmp_path: Path) -> None:
    filled(tmp_path, "a", "b", "c")
    paths = {prompt: tmp_path / IDENTITY.file_name(prompt) for prompt in "abcd"}
    for age, prompt in enumerate("abc"):
        os.utime(paths[prompt], (1000 + age, 1000 + age))
    size = paths["a"].stat().st_size
    cache = TextCache(tmp_path, IDENTITY, "cpu", encoder, max_bytes=3 * size + size // 2)
    cache.encode(["a"])  # used now, so "b" is the one not used for longest
    cache.encode(["d"])
    assert {prompt for prompt in "abcd" if paths[prompt].exists()} == {"a", "c", "d"}
    TextCache(tmp_path, IDENTITY, "cpu", encoder, max_bytes=1).encode(["b"])
    assert files(tmp_path) == [paths["b"]]


def test_only_old_files_in_the_making_are_removed(tmp_path: Path) -> None:
    old = tmp_path / f"{'0' * 64}.safetensors.partial-1"
    young = tmp_path / f"{'0' * 64}.safetensors.partial-2"
    foreign = tmp_path / "notes.txt"
    for path in (old, young, foreign):
        path.write_text("x")
    os.utime(old, (1000, 1000))
    os.utime(foreign, (1000, 1000))
    TextCache(tmp_path, IDENTITY, "cpu", encoder, max_bytes=1).encode(["a"])
    assert files(tmp_path) == sorted(
        [young, foreign, tmp_path / IDENTITY.file_name("a")], key=lambda path: path
    )


def test_wrong_arguments_are_refused_with_what_is_allowed(tmp_path: Path) -> None:
    for value in ("", "A" * 64, "g" * 64, "a" * 63):
        with pytest.raises(ConfigError, match="64 digits of 0-9 and a-f"):
            replace(IDENTITY, file_hashes=(value,))
    with pytest.raises(ConfigError, match="at least one is needed"):
        replace(IDENTITY, file_hashes=())
    with pytest.raises(ConfigError, match="keep, offload, free are known"):
        TextCache(tmp_path, IDENTITY, "cpu", no_encoder, after="drop")
    with pytest.raises(ConfigError, match="is not at least 1"):
        TextCache(tmp_path, IDENTITY, "cpu", no_encoder, max_bytes=0)
    with pytest.raises(ConfigError, match="no prompt to encode"):
        TextCache(tmp_path, IDENTITY, "cpu", no_encoder).encode([])
