"""The tables of `evaluate`, from its records."""

from __future__ import annotations

from typing import Any

from streamdit_cli import console

__all__ = ["print_scores", "print_suite"]


def print_scores(record: dict[str, Any]) -> None:
    rows = []
    groups = {name: part for name, part in record.items() if "clips_right" in _keys(part)}
    for name, group in groups.items():
        entries = {"all five": group["clips_right"], **group["attributes"]}
        rows += [[name, attribute, *_percent(entry)] for attribute, entry in entries.items()]
    title = f"{record['model']}, {record['seconds']:g} s streams"
    console.table(title, ["captions", "attribute", "right", "95 % interval"], rows)
    autoencoder = record["autoencoder"]
    speed = record["unseen captions"]["speed"]
    measures = [
        ["right in the first half of windows", f"{record['unseen captions']['first_half']:.1%}"],
        ["right in the last half of windows", f"{record['unseen captions']['last_half']:.1%}"],
        ["speed within a tenth of the world's", "{} ({})".format(*_percent(speed))],
        ["autoencoder PSNR at frame 64", f"{autoencoder['psnr_frame_64']} dB"],
        ["autoencoder PSNR at frame 1000", f"{autoencoder['psnr_frame_1000']} dB"],
        ["edge energy over round-tripped truth", _ratio(record, "edge_energy")],
        ["step at chunk borders over round-tripped truth", _ratio(record, "border_step")],
        ["step at latent borders over round-tripped truth", _ratio(record, "latent_step")],
    ]
    console.table("measures", ["measure", "value"], measures)
    if "drift" in record:
        _print_drift(record["drift"])
    if "diversity" in record:
        _print_diversity(record["diversity"])


def _print_drift(drift: dict[str, Any]) -> None:
    first, last = drift["first_minute"], drift["last_minute"]
    rows = [[name, f"{first[name]:.1%}", f"{last[name]:.1%}", ""] for name in first]
    for name, value in drift.items():
        if isinstance(value, dict) and "interval" in value:
            mean, interval = value["mean"], value["interval"]
            change = "unknown" if mean is None else f"{mean:+.4f}"
            sure = "" if interval is None else f" +- {interval:.4f}"
            rows.append([name.replace("_", " "), "", "", f"{change}{sure} ({value['of']} streams)"])
    title = f"drift: {drift['streams']} streams of {drift['minutes']:g} minutes"
    console.table(title, ["measure", "first minute", "last minute", "change"], rows)


def _print_diversity(diversity: dict[str, Any]) -> None:
    rows = []
    for prompt, compared in diversity.items():
        for name, entry in compared.items():
            p = "too few seen" if entry["p"] is None else f"{entry['p']:.4f}"
            rows.append([prompt, name, p, f"{entry['made']} and {entry['world']}"])
    columns = ["prompt", "quantity", "p (Kolmogorov-Smirnov)", "measured, model and world"]
    console.table("diversity against the world", columns, rows)


def _percent(entry: dict[str, float]) -> tuple[str, str]:
    return f"{entry['share']:.1%}", f"{entry['low']:.1%} to {entry['high']:.1%}"


def _ratio(record: dict[str, Any], name: str) -> str:
    made, truth = record["unseen captions"][name], record["autoencoder"][name]
    return "no object seen" if made is None or not truth else f"{made / truth:.3f}"


def print_suite(record: dict[str, Any]) -> None:
    """Show the ways to make long video, one a line."""
    rows = [
        [
            way["way"],
            f"{way['calls_per_latent_frame']:g}",
            "{} ({})".format(*_percent(way["clips_right"])),
            f"{way['windows']['all'][0]:.0%} to {way['windows']['all'][-1]:.0%}",
            *(f"{_mean(way['windows'][name]):.0%}" for name in ("shape", "motion")),
            *(
                "-" if way[name] is None else f"{way[name]:.2f}"
                for name in ("border_step", "edge_energy")
            ),
        ]
        for way in record["ways"]
    ]
    columns = [
        "way",
        "calls",
        "streams right",
        "windows, first to last",
        "shape",
        "motion",
        "border",
        "edges",
    ]
    title = (
        f"{record['prompts']} streams of {record['seconds']:g} s each, the same captions and seeds"
    )
    console.table(title, columns, rows)
    console.status(
        "calls: of the network for each latent frame; border: step there over the step inside"
    )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _keys(part: object) -> tuple[object, ...]:
    return tuple(part) if isinstance(part, dict) else ()


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
