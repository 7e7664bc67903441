"""Claim: the latents that a model trains on are the world's, without what is kept for judging."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from streamdit_model import data
from streamdit_model.autoencoder import Autoencoder, AutoencoderConfig
from streamdit_model.captions import parse
from streamdit_model.data import (
    ClipSet,
    ClipText,
    LatentCache,
    encode_shapes,
    fingerprint,
    is_cache_of,
    is_reserved,
    training_clip,
)
from streamdit_model.errors import WeightsError
from streamdit_model.evaluation import evaluation_clips
from streamdit_model.shapes import HELD_OUT, Clip, SwitchClip, caption, render

CONFIG = AutoencoderConfig(
    latent_channels=4, widths=(8, 8, 4), encoder_blocks=(1, 1, 1), decoder_blocks=(1, 1, 1)
)
CLIPS = ClipSet(number=12, latent_frames=8, resolution=32, switch_share=0.5, seed=3)


def autoencoder(seed: int = 0) -> Autoencoder:
    model = Autoencoder(CONFIG)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole cache; tests that change it take a copy."""
    path = tmp_path_factory.mktemp("cache") / "latents"
    assert encode_shapes(path, autoencoder(), CLIPS)
    return path


def drawn(number: int, switch_share: float) -> tuple[Clip | SwitchClip, ClipText]:
    return data._draw(CLIPS.seed, number, 4 * CLIPS.latent_frames, switch_share)


# What is in it


def test_latents_are_the_encoded_clips_rounded_to_bfloat16(folder: Path) -> None:
    cache = LatentCache.open(folder, autoencoder())
    assert cache.latents.shape == (12, 4, 8, 4, 4)
    assert cache.latents.dtype == torch.bfloat16
    assert (len(cache), cache.num_frames) == (12, 8)
    switches = 0
    for number in range(12):
        clip, text = drawn(number, CLIPS.switch_share)
        assert cache.texts[number] == text
        switches += isinstance(clip, SwitchClip)
        video = render(clip, 32, 32).permute(3, 0, 1, 2)[None].float() / 255
        with torch.no_grad():
            exact = autoencoder().encode(video)[0]
        # Within half a unit of the last of 8 bits, and what a batch of clips rounds differently.
        assert torch.allclose(cache.latents[number].float(), exact, rtol=2**-8, atol=1e-4)
        assert (cache.latents[number].float() - exact).abs().max() > 1e-4
    assert 2 <= switches <= 10


def test_window_is_a_stretch_of_one_clip_in_float32(folder: Path) -> None:
    cache = LatentCache.open(folder, autoencoder())
    window = cache.window(5, 2, 4)
    assert window.dtype == torch.float32
    assert torch.equal(window, cache.latents[5, :, 2:6].float())


def test_switch_is_first_seen_in_the_latent_frame_that_is_written_down() -> None:
    found = 0
    for number in range(40):
        clip, text = drawn(number, 1.0)
        if not isinstance(clip, SwitchClip):
            continue  # its new caption is kept for evaluation
        found += 1
        assert text.switch == clip.frame // 4
        assert 8 <= clip.frame < 4 * CLIPS.latent_frames - 8
        assert parse(text.before[0]) == clip.before.attributes
        assert parse(text.after[0]) == clip.after.attributes
    assert found > 25


def test_every_way_to_say_a_caption_says_the_same() -> None:
    for number in range(60):
        clip, text = drawn(number, 1.0)
        before = clip.before if isinstance(clip, SwitchClip) else clip
        assert text.before[0] == caption(before)
        assert len(text.before) == 7
        assert all(parse(words) == before.attributes for words in text.before)
        if isinstance(clip, SwitchClip):
            assert len(text.after) == 7
            assert all(parse(words) == clip.after.attributes for words in text.after)


# What is not in it


def test_training_shows_no_caption_and_no_pair_that_is_kept_for_evaluation() -> None:
    shown: list[Clip] = []
    for number in range(1500):
        clip, _ = drawn(number, 0.7)
        shown += [clip.before, clip.after] if isinstance(clip, SwitchClip) else [clip]
    assert len(shown) > 2000
    assert not any((clip.color, clip.shape) in HELD_OUT for clip in shown)
    captions = {caption(clip) for clip in shown}
    unseen = evaluation_clips(200, 1_000_003)
    assert not captions & {caption(clip) for clip in unseen}
    assert not any((clip.color, clip.shape) in HELD_OUT for clip in unseen)
    held_out = evaluation_clips(50, 1_000_003, held_out=True)
    assert all((clip.color, clip.shape) in HELD_OUT for clip in held_out)


def test_one_caption_in_ten_is_reserved_whatever_the_clip() -> None:
    clips = [data.draw_clip(0, index) for index in range(3000)]
    reserved = {caption(clip) for clip in clips if is_reserved(clip)}
    captions = {caption(clip) for clip in clips}
    assert 0.07 < len(reserved) / len(captions) < 0.13
    assert all(is_reserved(clip) == (caption(clip) in reserved) for clip in clips)
    assert not any(is_reserved(training_clip(0, number)) for number in range(300))


def test_a_clip_of_the_training_set_is_named_by_seed_and_number() -> None:
    assert training_clip(4, 17) == training_clip(4, 17)
    assert training_clip(4, 17) != training_clip(5, 17)
    assert len({training_clip(4, number) for number in range(50)}) == 50


# Whole, or refused


def test_cache_of_another_autoencoder_is_refused(folder: Path) -> None:
    other = autoencoder(seed=1)
    assert is_cache_of(folder, autoencoder()) and not is_cache_of(folder, other)
    for use in (
        lambda: LatentCache.open(folder, other),
        lambda: encode_shapes(folder, other, CLIPS),
    ):
        with pytest.raises(WeightsError, match="made with another autoencoder"):
            use()


def test_fingerprint_is_that_of_the_weights_as_a_model_folder_holds_them() -> None:
    exact = autoencoder()
    rounded = autoencoder()
    with torch.no_grad():
        for value in rounded.state_dict().values():
            value.copy_(value.bfloat16())
    assert fingerprint(exact.state_dict()) == fingerprint(rounded.state_dict())
    with torch.no_grad():
        rounded.encoder_out.bias[0] += 0.1
    assert fingerprint(exact.state_dict()) != fingerprint(rounded.state_dict())


@pytest.mark.parametrize("harm", ["cut", "gone", "index", "text"])
def test_damaged_cache_is_refused_with_what_to_do(folder: Path, tmp_path: Path, harm: str) -> None:
    copy = tmp_path / "latents"
    shutil.copytree(folder, copy)
    shard, index = copy / "latents-00000.safetensors", copy / "index.json"
    if harm == "cut":
        shard.write_bytes(shard.read_bytes()[:-1])
    elif harm == "gone":
        shard.unlink()
    elif harm == "index":
        index.write_text('{"format": ')
    else:
        shard.write_bytes(shard.read_bytes().replace(b"before", b"behind"))
    with pytest.raises(WeightsError, match="damaged") as error:
        LatentCache.open(copy, autoencoder())
    assert f"delete {copy}" in error.value.hint


def test_folder_without_a_cache_is_refused(tmp_path: Path) -> None:
    assert not is_cache_of(tmp_path, autoencoder())
    with pytest.raises(WeightsError, match="no latent cache"):
        LatentCache.open(tmp_path, autoencoder())


def test_encoding_that_was_stopped_goes_on_and_gives_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "SHARD_CLIPS", 5)
    monkeypatch.setattr(data, "ENCODED_CLIPS", 2)
    path = tmp_path / "latents"
    asked, done = 0, []

    def stop_at_the_fifth() -> bool:
        nonlocal asked
        asked += 1
        return asked == 5

    stopped = encode_shapes(
        path, autoencoder(), CLIPS, on_progress=done.append, should_stop=stop_at_the_fifth
    )
    assert not stopped and done == [5]
    assert not is_cache_of(path, autoencoder())
    first = path / "latents-00000.safetensors"
    written = first.stat().st_mtime_ns
    done.clear()
    assert encode_shapes(path, autoencoder(), CLIPS, on_progress=done.append)
    assert done == [5, 10, 12] and first.stat().st_mtime_ns == written
    found, expected = (LatentCache.open(p, autoencoder()) for p in (path, folder))
    assert found.texts == expected.texts
    assert torch.allclose(found.latents.float(), expected.latents.float(), rtol=2**-7, atol=1e-3)


def test_shard_names_no_path_and_runs_no_code(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert names == {"latents-00000.safetensors", "index.json", "autoencoder.sha256"}
    with safe_open(folder / "latents-00000.safetensors", framework="pt") as file:
        assert list(file.keys()) == ["latents"]
        assert set(file.metadata()) == {"texts"}
