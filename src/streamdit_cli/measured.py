"""What `bench` found: from samples to one record for programs, and from it to tables for people.

Every number of the record is finite, or null where the machine does not tell or the run was too
short to say. Times are in milliseconds where a name ends in `_ms`, else in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from streamdit_model import timings

if TYPE_CHECKING:
    from streamdit_model.whole_streams import Switch, Whole

__all__ = ["Samples", "comparison_rows", "measure_rows", "record_of", "rounded", "stage_rows"]

MEGABYTE = 1e6
RATES = ("network", "with decode", "with encode")
TEXT, NETWORK = "text encoding", "network step"
_DIGITS = 6


@dataclass(kw_only=True)
class Samples:
    """All that was taken, one entry of each list for each repetition.

    Args:
        video_fps: frames in a second of the video.
        chunk_frames: video frames of a chunk.
        micro_steps: network steps of a chunk.
        stages: by stage, the milliseconds of every time it ran.
        network_fps: frames a second of the network alone.
        decoded, encoded: whole streams without and with a file.
        warm: seconds to the first frame of later streams.
        cold: parts of the wait for the first frame of all: `start`, `load`, `stream`.
        switches: changes of the prompt; None where one was never complete.
        ceiling: operations a second of large matrix products.
        network_flops, decode_flops: operations of one chunk.
    """

    video_fps: float
    chunk_frames: int
    micro_steps: int
    stages: list[dict[str, list[float]]] = field(default_factory=list)
    network_fps: list[float] = field(default_factory=list)
    decoded: list[Whole] = field(default_factory=list)
    encoded: list[Whole] = field(default_factory=list)
    warm: list[float] = field(default_factory=list)
    cold: dict[str, float | None] = field(default_factory=dict)
    switches: list[Switch | None] = field(default_factory=list)
    ceiling: list[float] = field(default_factory=list)
    network_flops: int = 0
    decode_flops: int = 0


def record_of(samples: Samples) -> dict[str, Any]:
    """Return the numbers of a measurement, by what they are about."""
    rates = {
        "network": samples.network_fps,
        "with decode": [whole.fps for whole in samples.decoded],
        "with encode": [whole.fps for whole in samples.encoded],
    }
    fps = {name: _spread(rates[name]) for name in RATES}
    known = [part for part in samples.cold.values() if part is not None]
    return {
        "stages": _stages(samples),
        "fps": fps,
        "realtime_factor": {name: fps[name]["median"] / samples.video_fps for name in RATES},
        "first_frame": {
            "cold": {**samples.cold, "total": math.fsum(known)},
            "warm": _spread(samples.warm),
        },
        "prompt_switch": _switch(samples.switches),
        "chunks": _chunks(samples),
        "memory": _memory(samples.encoded),
        "compute": _compute(samples),
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    """Return the middle, the ends and the number of a few repetitions."""
    middle = timings.median(values)
    return {"median": middle, "low": min(values), "high": max(values), "count": len(values)}


def _stages(samples: Samples) -> dict[str, dict[str, Any]]:
    """Return each stage; shares are of what a chunk takes, and text is read once a prompt."""
    totals: dict[str, float] = {}
    found: dict[str, dict[str, Any]] = {}
    for name in samples.stages[0]:
        turns = [turn[name] for turn in samples.stages]
        times = [one for turn in turns for one in turn]
        spread = timings.half_spread([timings.median(turn) for turn in turns])
        found[name] = {**timings.summary(times), "spread": spread, "share": None}
        if name != TEXT:
            totals[name] = math.fsum(times)
    for name, share in timings.shares(totals).items():
        found[name]["share"] = share
    return found


def _switch(switches: Sequence[Switch | None]) -> dict[str, Any] | None:
    """Return the prompt switches; None where none was complete."""
    whole = [switch for switch in switches if switch is not None]
    if not whole:
        return None
    names = ("applied", "applied_video", "complete", "complete_video")
    return {name: _spread([getattr(switch, name) for switch in whole]) for name in names}


def _chunks(samples: Samples) -> dict[str, Any]:
    """Return how evenly chunks arrived, in the streams that were encoded."""
    seconds = samples.chunk_frames / samples.video_fps
    turns = [timings.gaps(whole.arrivals) for whole in samples.encoded]
    gaps = [1000 * gap for turn in turns for gap in turn]
    found = timings.summary(gaps)
    quarters = [(turn[: -(-len(turn) // 4)], turn[-(-len(turn) // 4) * -1 :]) for turn in turns]
    flat = [timings.median(last) / timings.median(first) for first, last in quarters]
    return {
        "gap_ms": found,
        "p99_over_p50": found["p99"] / found["median"],
        "late": sum(timings.late_chunks(whole.arrivals, seconds) for whole in samples.encoded),
        "last_quarter_over_first": timings.median(flat),
    }


def _memory(runs: Sequence[Whole]) -> dict[str, Any]:
    """Return the peak, before the ceiling was measured, and the slope of the longest stream."""
    longest = max(runs, key=lambda whole: whole.seconds)
    peak = runs[0].peak
    times = longest.arrivals[len(longest.arrivals) // 4 :]
    used = longest.memory[len(longest.memory) // 4 :]
    slope = timings.slope_per_hour(times, used) if len(times) == len(used) else None
    return {
        "peak_mb": None if peak is None else peak / MEGABYTE,
        "slope_mb_per_hour": None if slope is None else slope / MEGABYTE,
        "slope_over_seconds": times[-1] - times[0],
    }


def _compute(samples: Samples) -> dict[str, Any]:
    """Return the arithmetic of the network and how much of the machine it makes use of."""
    steps = [one for turn in samples.stages for one in turn[NETWORK]]
    reached = samples.network_flops / samples.micro_steps / (1e-3 * timings.median(steps))
    ceiling = timings.median(samples.ceiling)
    frames = samples.chunk_frames * 1e12
    return {
        "tflop_per_frame": samples.network_flops / frames,
        "decode_tflop_per_frame": samples.decode_flops / frames,
        "tflop_per_step": samples.network_flops / samples.micro_steps / 1e12,
        "tflops": reached / 1e12,
        "matmul_tflops": {key: _scaled(key, v) for key, v in _spread(samples.ceiling).items()},
        "share_of_matmul": reached / ceiling,
    }


def _scaled(key: str, value: float) -> float:
    return value if key == "count" else value / 1e12


def rounded(value: Any) -> Any:
    """Return a record with its numbers to six digits; nothing else is changed."""
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    return value


def stage_rows(record: Mapping[str, Any]) -> list[list[str]]:
    """Return a row for each stage: name, median, p90, p99, share, samples, spread."""
    rows = []
    for name, stage in record["stages"].items():
        times = [f"{stage[key]:.2f} ms" for key in ("median", "p90", "p99")]
        share = "once a prompt" if stage["share"] is None else f"{stage['share']:.1%}"
        rows.append([name, *times, share, str(stage["count"]), f"+-{stage['spread']:.1%}"])
    return rows


def measure_rows(record: Mapping[str, Any]) -> list[list[str]]:
    """Return a row for everything else: what it is, and its value in words."""
    first, chunks, compute = record["first_frame"], record["chunks"], record["compute"]
    cold = first["cold"]
    parts = [f"{key} {cold[key]:.2f}" for key in ("start", "load", "stream") if cold[key]]
    rows = [
        [f"FPS, {name}", f"{_range(found, '.2f')}, {record['realtime_factor'][name]:.2f}x realtime"]
        for name, found in record["fps"].items()
    ]
    gap = chunks["gap_ms"]
    times = ", ".join(f"{key} {gap[key]:.0f}" for key in ("median", "p90", "p99", "max"))
    return [
        *rows,
        ["first frame, cold", f"{cold['total']:.2f} s ({', '.join(parts)})"],
        ["first frame, model loaded", f"{_range(first['warm'], '.2f')} s"],
        *_switch_rows(record["prompt_switch"]),
        ["time between chunks", f"{times} ms; p99 is {chunks['p99_over_p50']:.2f} of the median"],
        ["chunks a viewer waits for", f"{chunks['late']} of {gap['count']}"],
        ["last quarter over first", f"{chunks['last_quarter_over_first']:.3f} of the time a chunk"],
        *_memory_rows(record["memory"]),
        [
            "arithmetic a frame",
            f"{1000 * compute['tflop_per_frame']:.4g} GFLOP, "
            f"decoding {1000 * compute['decode_tflop_per_frame']:.4g}",
        ],
        [
            "arithmetic a second",
            f"{compute['tflops']:.4g} TFLOP/s, {compute['share_of_matmul']:.1%} of the "
            f"{compute['matmul_tflops']['median']:.4g} of a large matrix product",
        ],
    ]


def _range(found: Mapping[str, float], form: str) -> str:
    """Write a middle with its ends and its number."""
    low, high = (format(found[key], form) for key in ("low", "high"))
    return f"{found['median']:{form}} ({low} to {high} in {found['count']})"


def _switch_rows(switch: Mapping[str, Any] | None) -> list[list[str]]:
    if switch is None:
        return [["prompt switch", "never complete"]]
    words = {"applied": "prompt switch, first chunk touched", "complete": "all of it new"}
    return [
        [
            title if key == "applied" else f"prompt switch, {title}",
            f"{_range(switch[key], '.2f')} s, {switch[f'{key}_video']['median']:.2f} s of video",
        ]
        for key, title in words.items()
    ]


def _memory_rows(memory: Mapping[str, Any]) -> list[list[str]]:
    peak, slope = memory["peak_mb"], memory["slope_mb_per_hour"]
    span = f"{memory['slope_over_seconds']:.0f} s"
    grows = f"unknown: {span} of {timings.SHORTEST_SLOPE:.0f} s that it takes to say"
    if slope is not None:
        grows = f"{slope:+.1f} MB an hour, over {span}"
    return [
        ["memory, peak", "unknown" if peak is None else f"{peak:.0f} MB"],
        ["memory, slope", grows],
    ]


def comparison_rows(comparison: Mapping[str, Any]) -> list[list[str]]:
    """Return a row for each way: partition, ms a frame, chunk, arithmetic, ratios to ours."""
    rows = []
    for name, way in comparison.items():
        ratio = "1"
        if "ratio" in way:
            ends = way["ratio"]
            ratio = f"{ends['median']:.2f} ({ends['low']:.2f} to {ends['high']:.2f})"
        rows.append(
            [
                name,
                way["partition"],
                f"{way['ms_per_frame']:.2f} ms +-{way['spread']:.1%}",
                ratio,
                f"{way.get('flop_ratio', 1.0):.2f}",
                f"{way['chunk_frames']} in {way['chunk_ms']:.0f} ms",
            ]
        )
    return rows
