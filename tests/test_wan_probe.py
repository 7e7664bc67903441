"""Claim: a probe tells which convention a network follows, whatever it follows."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from tiny_open import written_preset
from torch import Tensor

from streamdit_cli import presets
from streamdit_cli.app import main
from streamdit_cli.part import PartFile
from streamdit_cli.video_encoder import VideoEncoder
from streamdit_model.errors import ConfigError, NumericsError
from streamdit_model.partition import Partition
from streamdit_model.sampling import Velocity, Window
from streamdit_model.shapes import draw_clip, render
from streamdit_model.wan.probe import CONVENTIONS, OURS, probe
from streamdit_model.wan.rolling import rolling_partition

CLEAN = torch.randn(1, 3, 12, 4, 6, generator=torch.Generator().manual_seed(0))


class Knows:
    """The velocity, in our convention, of a network that knows the clip and where it is."""

    def __init__(self, clean: Tensor) -> None:
        self.clean = clean
        self.calls = 0

    def __call__(self, window: Window) -> Tensor:
        self.calls += 1
        frames = window.slots + window.first_frame
        left = (1 - window.tau).clamp(min=0.05)[:, None, :, None, None]
        return (self.clean[:, :, frames] - window.latents) / left


def of_order(velocity: Velocity) -> Velocity:
    def call(window: Window) -> Tensor:
        turned = replace(window, latents=window.latents.flip(2), tau=window.tau.flip(1))
        return velocity(turned).flip(2)

    return call


# A network of each convention: what CONVENTIONS turns into one of ours.
NETWORKS: dict[str, Callable[[Velocity], Velocity]] = {
    OURS: lambda velocity: velocity,
    "sign flipped": lambda velocity: lambda window: -velocity(window),
    "tau reversed": lambda velocity: lambda w: velocity(replace(w, tau=1 - w.tau)),
    "time unscaled": lambda velocity: (
        lambda w: velocity(replace(w, tau=1 - 1000 * (1 - w.tau.double())))
    ),
    "order reversed": of_order,
}


@pytest.mark.parametrize("num_levels", [4, 5])
def test_ours_is_right_at_every_level_and_every_other_is_worse(num_levels: int) -> None:
    partition = rolling_partition(num_levels, chunk_size=2)
    velocity = Knows(CLEAN)
    found = probe(velocity, CLEAN, partition, text=None)
    assert found.fits and found.best == OURS and found.beaten_at == ()
    assert found.taus == tuple(sorted(partition.tau(0)[::2].tolist()))
    assert max(found.errors[OURS]) < 1e-10
    for name, errors in found.errors.items():
        assert name == OURS or min(errors) > 1e-3, name
    assert velocity.calls == len(CONVENTIONS)  # the rest of the clip fills no second window


@pytest.mark.parametrize("name", [name for name in CONVENTIONS if name != OURS])
def test_network_of_another_convention_is_named(name: str) -> None:
    network = NETWORKS[name](Knows(CLEAN))
    found = probe(network, CLEAN, rolling_partition(4, chunk_size=3), text=None)
    assert not found.fits
    assert found.best == name
    assert max(found.errors[name]) < 1e-4  # float32 times 1000
    assert found.beaten_at


def test_networks_and_conventions_undo_each_other() -> None:
    assert NETWORKS.keys() == CONVENTIONS.keys()
    window = Window(
        latents=CLEAN[:, :, :4] * 0.5,
        tau=torch.tensor([[0.9, 0.5, 0.2, 0.0]]),
        slots=torch.arange(4),
        first_frame=2,
        text="kept",
    )
    expected = Knows(CLEAN)(window)
    for name, convention in CONVENTIONS.items():
        again = convention(NETWORKS[name](Knows(CLEAN)))(window)
        torch.testing.assert_close(again, expected, rtol=1e-3, atol=1e-5, check_dtype=False)


def test_error_is_the_mean_over_windows_and_references_do_not_count() -> None:
    partition = Partition(num_reference=1, num_chunks=2, chunk_size=1, micro_steps=1)
    windows: list[Window] = []

    def half_right(window: Window) -> Tensor:
        windows.append(window)
        share = 1.0 if window.first_frame else 0.5
        return Knows(CLEAN * share)(window)

    found = probe(half_right, CLEAN[:, :, :6], partition, text="words")
    assert found.taus == (0.0, 0.5)
    first = CLEAN[:, :, :3]
    for index, frame in ((0, 2), (1, 1)):  # the newest has the lowest tau
        wrong = 0.25 * first[:, :, frame].square().mean() / first.square().mean() / 2
        assert found.errors[OURS][index] == pytest.approx(float(wrong), rel=1e-5)
    assert [window.first_frame for window in windows[:: len(CONVENTIONS)]] == [0, 3]
    assert {window.text for window in windows} == {"words"}


def test_clip_that_fills_no_window_and_values_that_are_not_finite_are_refused() -> None:
    partition = rolling_partition(4)
    with pytest.raises(ConfigError, match="11 latent frames do not fill a window of 12"):
        probe(Knows(CLEAN), CLEAN[:, :, :11], partition, text=None)
    with pytest.raises(NumericsError, match="not finite"):
        probe(lambda window: window.latents * float("nan"), CLEAN, partition, text=None)


# The command.


@pytest.fixture
def shapes_video(tmp_path: Path) -> Path:
    """A video of moving shapes, 48 x 24 pixels, 30 frames a second, 2 s."""
    target = PartFile(tmp_path / "clip.mkv", overwrite=False, describe=str)
    encoder = VideoEncoder(
        target, ".mkv", "ffv1", width=48, height=24, fps=Fraction(30), metadata={}
    )
    for frame in render(draw_clip(0, 0), 60, 48)[:, 12:36]:
        encoder.encode(frame.contiguous())
    encoder.finish(flush=True)
    return target.finish()


def test_shipped_model_follows_our_conventions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--probe", "shapes", "--json", "-"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["fits"] is True and record["best"] == OURS
    assert len(record["tau"]) == 8
    assert min(map(sum, record["errors"].values())) == sum(record["errors"][OURS])


def test_random_model_is_no_fit_and_says_so_with_exit_5(
    tiny_model: Path, shapes_video: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["doctor", "--probe", str(tiny_model), "--video", str(shapes_video)]
    assert main(command) == 5
    out, err = capsys.readouterr()
    assert "verdict: " in out and all(name in out for name in CONVENTIONS)
    (line,) = [line for line in err.splitlines() if line.startswith("error:")]
    assert "convention" in line or "unclear" in line


@pytest.mark.parametrize("sampler", ["rolling", "guided"])
def test_random_weights_try_the_machinery_and_claim_nothing(
    sampler: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(presets, "_presets_folder", lambda: tmp_path)
    written_preset(tmp_path, "tiny", sampler=sampler)
    assert main(["doctor", "--probe", "tiny", "--random-weights", "--json", "-"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["fits"] is None and "random weights" in record["verdict"]
    assert all(len(errors) == len(record["tau"]) for errors in record["errors"].values())


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--video", "a.mp4"], 2, "--video has no effect without --probe"),
        (["--random-weights"], 2, "--random-weights has no effect without --probe"),
        (["--probe", "shapes", "--random-weights"], 2, "is for open weights only"),
        (["--probe", "shapes", "--video", "no.mp4"], 4, "no.mp4"),
        (["--probe", "rolling-1.3b"], 5, "is not downloaded"),
    ],
)
def test_probe_that_cannot_be_made_is_one_line(
    words: list[str],
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert main(["doctor", *words]) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and said in lines[0]


def test_video_shorter_than_a_window_is_refused(
    shapes_video: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--probe", "shapes", "--video", str(shapes_video)]) == 4
    assert "2.0 s of video; shapes-64 needs" in capsys.readouterr().err
