"""The work of `evaluate`: models are loaded, streams scored, and everything gathered in a record.

What takes long says how far it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from streamdit_cli import console
from streamdit_cli.errors import UsageError
from streamdit_cli.making import load_model
from streamdit_cli.presets import find_model

if TYPE_CHECKING:
    from streamdit_model.evaluation import StreamScore
    from streamdit_model.shapes import Clip
    from streamdit_model.weights import Model

__all__ = ["Scoring", "check_lengths", "score_model", "score_suite"]

GROUPS = {"unseen captions": False, "held-out pairs": True}
PILOT_SECONDS = 4.0  # of the streams on which settings of a baseline are tried


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How many streams, how long, from which seed, and how many side by side."""

    prompts: int
    seconds: float
    seed: int
    batch: int


def check_lengths(seconds: float, minutes: float | None) -> None:
    """Refuse lengths of streams that cannot be judged, before a model is loaded.

    Raises:
        ConfigError: see `check_seconds` and `check_minutes`.
    """
    from streamdit_model.drift import check_minutes
    from streamdit_model.evaluation import check_seconds

    check_seconds(seconds)
    if minutes is not None:
        check_minutes(minutes)


def score_model(
    name: str | None,
    loading: Mapping[str, Any],
    scoring: Scoring,
    guidance_scale: float | None,
    *,
    drift: float | None,
    diversity: int | None,
) -> dict[str, Any]:
    """Score one model, and its autoencoder.

    Args:
        name: of the model, as in `find_model`.
        loading: as in `load_model`.
        scoring: how many streams.
        guidance_scale: None is the model's own.
        drift: minutes of the streams whose ends are compared; None for none.
        diversity: seeds of the prompts that are compared with the world; None for none.
    """
    from streamdit_model.evaluation import autoencoder_report, evaluation_clips, report

    loaded = load_model(find_model(name)[0], **loading)
    seed, prompts, seconds, batch = scoring.seed, scoring.prompts, scoring.seconds, scoring.batch
    _print_cost(loaded, prompts, seconds, batch, guidance_scale)
    record: dict[str, Any] = {
        "model": loaded.config.name,
        "seconds": seconds,
        "seed": seed,
    }
    for group, held_out in GROUPS.items():
        clips = evaluation_clips(prompts, seed + 1_000_003, held_out=held_out)
        scores = _scored(loaded, clips, seconds, seed, batch, guidance_scale, group)
        record[group] = report(scores)
    record["autoencoder"] = autoencoder_report(
        loaded, evaluation_clips(min(prompts, 16), seed + 2_000_003)
    )
    if drift is not None:
        record["drift"] = _drift(loaded, prompts, drift, seed, batch)
    if diversity is not None:
        record["diversity"] = _diversity(loaded, diversity, seed, batch)
    return record


def score_suite(
    teacher: str | None,
    student: str | None,
    against: Sequence[str],
    loading: Mapping[str, Any],
    scoring: Scoring,
) -> dict[str, Any]:
    """Compare the ways to make long video with the same network, see `paper_suite`.

    Args:
        teacher: name of the undistilled model.
        student: name of the one distilled from it; None for none.
        against: `NAME=MODEL` of more undistilled models.
        loading: as in `load_model`.
        scoring: how many streams.

    Raises:
        UsageError: an `against` of another form.
        ConfigError: a teacher that is distilled or a student that is not.
    """
    from streamdit_model.evaluation import evaluation_clips
    from streamdit_model.paper_suite import paper_ways, score_way, suite_report

    named = dict(_named_model(text) for text in against)
    folders = {label: find_model(name)[0] for label, name in named.items()}
    models = {label: load_model(folder, **loading) for label, folder in folders.items()}
    first = load_model(find_model(teacher)[0], **loading)
    second = None if student is None else load_model(find_model(student)[0], **loading)
    clips = evaluation_clips(scoring.prompts, scoring.seed + 1_000_003)
    ways = []
    for way in paper_ways(first, second, models, min(PILOT_SECONDS, scoring.seconds)):
        scores = list(
            score_way(way, clips, scoring.seconds, seed=scoring.seed, batch=scoring.batch)
        )
        ways.append(suite_report(way, scores))
        right = sum(score.is_right() for score in scores)
        console.status(f"{way.name}: {right} of {len(scores)} streams right")
    return {
        "suite": "paper",
        "model": first.config.name,
        "prompts": scoring.prompts,
        "seconds": scoring.seconds,
        "seed": scoring.seed,
        "ways": ways,
    }


def _named_model(text: str) -> tuple[str, str]:
    name, equals, model = text.partition("=")
    if not (name and equals and model):
        raise UsageError(f"--against {text!r} is not NAME=MODEL", "as in diagonal=runs/diagonal")
    return name, model


def _print_cost(
    model: Model, prompts: int, seconds: float, batch: int, guidance_scale: float | None
) -> None:
    """Say how many network calls are ahead, before they are made."""

    partition = model.config.partition
    cycles = seconds * model.config.fps / (4 * partition.chunk_size) + partition.num_chunks - 1
    scale = model.config.guidance_scale if guidance_scale is None else guidance_scale
    calls = cycles * partition.micro_steps * (1 if scale == 1 else 2)
    rounds = -(-prompts // batch) * len(GROUPS)
    console.status(
        f"{prompts} streams of {seconds:g} s in {len(GROUPS)} groups: about "
        f"{calls * rounds:.0f} network calls of {min(batch, prompts)} streams"
    )


def _scored(
    model: Model,
    clips: Sequence[Clip],
    seconds: float,
    seed: int,
    batch: int,
    guidance_scale: float | None,
    name: str,
) -> list[StreamScore]:

    from streamdit_model.evaluation import score_streams

    scores = []
    for item in score_streams(
        model, clips, seconds, seed=seed, batch=batch, guidance_scale=guidance_scale
    ):
        scores.append(item)
        if len(scores) % batch == 0 or len(scores) == len(clips):
            right = sum(score.is_right() for score in scores)
            console.status(f"{name}: {len(scores)} of {len(clips)} streams, {right} right")
    return scores


def _drift(model: Model, prompts: int, minutes: float, seed: int, batch: int) -> dict[str, object]:
    from streamdit_model.drift import drift_report, score_drift
    from streamdit_model.evaluation import evaluation_clips

    clips = evaluation_clips(prompts, seed + 3_000_003)
    scores = []
    for item in score_drift(model, clips, minutes, seed=seed, batch=batch):
        scores.append(item)
        console.status(f"drift: {len(scores)} of {prompts} streams of {minutes:g} minutes")
    return drift_report(scores, minutes)


def _diversity(model: Model, num_seeds: int, seed: int, batch: int) -> dict[str, Any]:
    from streamdit_model.diversity import diversity_report

    record = {}
    for prompt, compared in diversity_report(model, num_seeds, seed=seed, batch=batch):
        record[prompt] = compared
        console.status(f"diversity: {num_seeds} streams of {prompt!r}")
    return record
