"""Claim: `bench` measures what it says, compares equal work, and every number of it is finite."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_CHUNK, TINY_FPS, tiny_config
from launcher import Fault, Launcher

from streamdit_cli import machine
from streamdit_cli.app import main
from streamdit_cli.measured import Samples, record_of, rounded
from streamdit_cli.random_model import RandomModel
from streamdit_model import measuring
from streamdit_model.measuring import STAGES, StageClock
from streamdit_model.whole_streams import Switch, Whole

CPU = torch.device("cpu")
RECORD_KEYS = [
    *("model", "weights", "video", "partition", "guidance_scale", "prompts_known_before"),
    *("environment", "settings", "stages", "fps", "realtime_factor", "first_frame"),
    *("prompt_switch", "chunks", "memory", "compute", "compare", "minutes"),
]


@pytest.fixture
def small_matmul() -> Iterator[None]:
    """A ceiling that takes a moment; how high it is, no test asks."""
    before = measuring.MATMUL_SIZE["cpu"]
    measuring.MATMUL_SIZE["cpu"] = 32
    yield
    measuring.MATMUL_SIZE["cpu"] = before


def numbers(value: Any) -> list[float]:
    """Every number of a record."""
    if isinstance(value, dict):
        return [number for item in value.values() for number in numbers(item)]
    if isinstance(value, list):
        return [number for item in value for number in numbers(item)]
    return [value] if isinstance(value, int | float) else []


@pytest.mark.usefixtures("small_matmul")
def test_bench_prints_tables_and_writes_every_number_finite(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "speed.json"
    words = ["bench", "-m", str(tiny_model), "--seconds", "0.1", "--compare", "fifo,clip"]
    assert main([*words, "--dtype", "float32", "--json", str(path)]) == 0
    output = capsys.readouterr()
    record = json.loads(path.read_text(), parse_constant=lambda text: pytest.fail(text))
    assert list(record) == RECORD_KEYS
    assert all(math.isfinite(number) for number in numbers(record))
    assert list(record["stages"]) == list(STAGES)
    for stage in record["stages"].values():
        assert stage["count"] >= 6 and 0 < stage["median"] <= stage["p90"] <= stage["p99"]
    times = [stage["share"] for stage in record["stages"].values()]
    assert times[0] is None and sum(times[1:]) == pytest.approx(1, abs=1e-5)
    assert list(record["fps"]) == ["network", "with decode", "with encode"]
    assert record["prompt_switch"]["complete_video"]["median"] * TINY_FPS % TINY_CHUNK == 0
    assert record["compare"]["fifo"]["flop_ratio"] == 2.0
    assert record["compare"]["clip"]["flop_ratio"] == 1.0
    assert record["compare"]["fifo"]["partition"] == "K=0,N=8,c=1,s=1"
    for text in (*STAGES, "FPS, with encode", "load average", "fifo", "of a large matrix product"):
        assert text in output.out
    assert "nan" not in output.out.lower() and "inf" not in output.out.lower().replace("info", "")
    assert "p99 needs more" in output.err and not list(tmp_path.glob("*.mp4"))


@pytest.mark.usefixtures("small_matmul")
def test_bench_of_random_weights_needs_only_a_configuration_and_takes_any_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(tiny_config().to_dict()))
    words = ["bench", "-m", str(folder), "--seconds", "0.1", "--dtype", "float32", "--json", "-"]
    assert main([*words, "--random-weights", "--size", "48x16"]) == 0
    output = capsys.readouterr()
    record = json.loads(output.out)
    assert record["weights"] == "random" and record["compare"] is None
    assert record["video"] == {"width": 48, "height": 16, "fps": 16.0}
    assert "the video shows nothing" in output.err


def test_random_weights_are_the_same_each_time_and_none_is_zero(tmp_path: Path) -> None:
    config = replace(tiny_config(), name="sizes")
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    source = RandomModel(name=str(tmp_path))
    how: dict[str, Any] = {"prompts": (), "size": None, "device": "cpu", "dtype": "float32"}
    one, other = (source.load(**how, threads=None) for _ in range(2))
    assert one.config == config
    for part, same in zip(one.parts, other.parts, strict=True):
        for value, again in zip(part.parameters(), same.parameters(), strict=True):
            assert torch.equal(value, again) and bool((value != 0).all())
        for buffer in part.buffers():
            assert bool(buffer.isfinite().all())


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--seconds", "inf"], 2, "a measurement has an end"),
        (["--compare", "fifo,magic"], 2, "'magic' is not known; allowed: fifo, clip"),
        (["--size", "640"], 2, "is not a size"),
        (["--size", "64x64"], 2, "tiny has not the size 64x64; allowed: 32x32"),
        (["--guidance-scale", "3"], 2, "guidance is baked in"),
        (["--random-weights", "--size", "33x32"], 2, "width 33 is not a multiple of 8"),
        (["--json", "no/such/folder/speed.json"], 6, "cannot be written"),
        (["--json", "."], 6, "cannot be written"),
        (["--json", "taken.json"], 6, "exists"),
        (["-m", "./nothing"], 2, "there is no folder"),
    ],
)
def test_bench_refuses_before_anything_is_measured(
    words: list[str],
    code: int,
    message: str,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.json").write_text("mine")
    assert main(["bench", "-m", str(tiny_model), *words]) == code
    output = capsys.readouterr()
    assert message in output.err and output.out == "" and "warming up" not in output.err
    assert (tmp_path / "taken.json").read_text() == "mine"


@pytest.mark.parametrize(("kind", "code"), [("SIGINT", 130), ("oom", 7), ("nan", 8)])
def test_bench_that_is_ended_says_why_and_leaves_no_file(
    kind: str, code: int, launcher: Launcher, tiny_model: Path, tmp_path: Path
) -> None:
    words = ["bench", "-m", str(tiny_model), "--dtype", "float32", "--json", "speed.json"]
    setup = f"import tempfile; tempfile.tempdir = {str(tmp_path)!r}"
    ended = launcher.run(words, cwd=tmp_path, faults=[Fault("velocity", kind, 3)], code=setup)
    assert ended.code == code and ended.stdout == b""
    assert len(ended.errors) == (0 if kind == "SIGINT" else 1)
    assert not list(tmp_path.iterdir())


def whole(arrivals: list[float], memory: list[int]) -> Whole:
    """A stream whose chunks of 8 frames came at these times, the first one not counted."""
    frames, seconds = 8 * (len(arrivals) - 1), arrivals[-1] - arrivals[0]
    return Whole(frames=frames, seconds=seconds, arrivals=arrivals, memory=memory, peak=500_000_000)


def known_samples() -> Samples:
    """Two repetitions of 100 s in which every figure is known."""
    arrivals = [0.25 * number for number in range(401)]
    grown = [300_000_000 + round(8e6 * time / 3600) for time in arrivals]
    stages = {STAGES[0]: [5.0], STAGES[1]: [100.0] * 2, STAGES[2]: [30.0], STAGES[3]: [20.0]}
    return Samples(
        video_fps=16.0,
        chunk_frames=8,
        micro_steps=2,
        stages=[stages, {name: [1.1 * time for time in times] for name, times in stages.items()}],
        network_fps=[40.0, 44.0],
        decoded=[whole(arrivals, []), whole(arrivals, [])],
        encoded=[whole(arrivals, grown), whole(arrivals[:9], grown[:9])],
        warm=[0.5, 0.7, 0.6],
        cold={"start": None, "load": 2.0, "stream": 1.0},
        switches=[None, Switch(applied=0.1, applied_video=0.5, complete=1.0, complete_video=4.0)],
        ceiling=[4e12, 5e12, 6e12],
        network_flops=int(21e10),
        decode_flops=int(8e9),
    )


def test_record_of_known_samples_holds_the_known_figures() -> None:
    record = record_of(known_samples())
    stages = record["stages"]
    assert [stages[name]["share"] for name in STAGES] == [
        None,
        *(pytest.approx(share) for share in (0.8, 0.12, 0.08)),
    ]
    assert stages["decode"]["median"] == pytest.approx(31.5)
    assert stages["decode"]["spread"] == pytest.approx(1.5 / 31.5)
    assert record["fps"]["network"] == {"median": 42.0, "low": 40.0, "high": 44.0, "count": 2}
    assert record["fps"]["with encode"]["median"] == 32.0
    assert record["realtime_factor"]["with encode"] == 2.0
    assert record["first_frame"]["cold"] == {"start": None, "load": 2.0, "stream": 1.0, "total": 3}
    assert record["prompt_switch"]["complete_video"]["median"] == 4.0
    assert record["chunks"]["gap_ms"]["count"] == 408
    assert record["chunks"]["p99_over_p50"] == record["chunks"]["last_quarter_over_first"] == 1.0
    assert record["chunks"]["late"] == 0
    assert record["memory"]["peak_mb"] == 500.0
    assert record["memory"]["slope_mb_per_hour"] == pytest.approx(8.0, rel=1e-3)
    # 105 GFLOP a step in 105 ms is 1 TFLOP/s, a fifth of the ceiling.
    compute = record["compute"]
    assert compute["tflops"] == pytest.approx(1.0)
    assert compute["share_of_matmul"] == pytest.approx(0.2)
    assert compute["tflop_per_frame"] == pytest.approx(21e10 / 8 / 1e12)


def test_record_of_a_short_run_says_what_it_cannot_know() -> None:
    samples = known_samples()
    samples.encoded = samples.encoded[1:]
    samples.switches = [None]
    samples.encoded[0].peak = None
    record = record_of(samples)
    assert record["prompt_switch"] is None
    assert record["memory"]["peak_mb"] is record["memory"]["slope_mb_per_hour"] is None


def test_rounding_keeps_six_digits_and_everything_that_is_no_number() -> None:
    found = rounded({"a": 123.456789, "b": [1e-9 / 3], "c": 12345678, "d": None, "e": "1.23456789"})
    assert found == {
        "a": 123.457,
        "b": [3.33333e-10],
        "c": 12345678,
        "d": None,
        "e": "1.23456789",
    }


def test_stage_clock_returns_what_was_done_and_a_time_for_each() -> None:
    clock = StageClock(CPU)
    assert [clock.time("add", lambda: 1 + 1) for _ in range(3)] == [2, 2, 2]
    clock.add("add", [7.0])
    times = clock.milliseconds("add")
    assert len(times) == 4 and times[-1] == 7.0 and min(times) >= 0
    assert clock.milliseconds("never") == []
    clock.reset()
    assert clock.milliseconds("add") == []


def test_matmul_ceiling_gives_a_figure_for_each_run() -> None:
    found = measuring.matmul_flops_per_second(CPU, torch.float32, size=16)
    assert len(found) == measuring.MATMUL_RUNS and min(found) > 0


def test_process_knows_its_memory_and_age_where_the_system_tells() -> None:
    resident, peak, age = (
        machine.resident_bytes(),
        machine.peak_bytes(),
        machine.seconds_since_start(),
    )
    if Path("/proc/self/statm").exists():
        assert resident is not None and peak is not None and age is not None
        assert 2**20 < resident <= peak * 1.1 and 0 < age < 86400


def test_preset_that_nobody_trained_can_be_measured_at_any_size(
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = RandomModel(name="paper-4b").read_config(size=(896, 512))
    assert config.transformer.grid == (16, 64, 112) and config.transformer.width == 3072
    assert (config.width, config.height) == (896, 512)
    assert main(["bench", "-m", "paper-4b"]) == 5
    assert "paper-4b has no weights" in capsys.readouterr().err
