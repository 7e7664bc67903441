"""What a batch is to make: the lines of a prompt file joined to the words of the command line.

An item is known by its key, the hash of everything that decides about its frames, so that it is
found again wherever in the file it stands. Which files may be replaced is decided here, before
anything is made.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamdit_cli.batch_file import MOST_LINES, PromptLine, refuse_lines
from streamdit_cli.errors import InputError, OutputError, TerminalError, UsageError
from streamdit_cli.file_names import NameTemplate, check_file_name, unique_name
from streamdit_cli.ledger import Entry
from streamdit_cli.output import check_container
from streamdit_cli.part import part_path
from streamdit_cli.plan import Plan, Wishes, check_wishes, make_plan
from streamdit_model.errors import StreamDiTError

if TYPE_CHECKING:
    from streamdit_cli.model_source import FolderModel
    from streamdit_cli.open_weights import OpenModel

    Source = FolderModel | OpenModel

__all__ = [
    "ITEM_WORD",
    "Item",
    "Origin",
    "assign_names",
    "has_video",
    "is_ours",
    "origin_of",
    "plan_items",
]

ITEM_WORD = "batch_item"  # in the metadata of a video
_SHOWN = 3
_READ = 2**20  # bytes at a time


@dataclass(frozen=True, kw_only=True)
class Item:
    """One video of a batch.

    Args:
        index: from 1, over all lines and seeds.
        line: of the prompt file.
        plan: what is to be made.
        key: 32 hexadecimal digits; the same frames have the same key.
        wanted: the file name asked for.
        name: the file name it has; empty before `assign_names`.
        is_made: whether its video is there, whole.
    """

    index: int
    line: int
    plan: Plan
    key: str
    wanted: str
    name: str = ""
    is_made: bool = False

    @property
    def prompt(self) -> str:
        """Its words in one line."""
        return " | ".join(prompt for prompt, _ in self.plan.events)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What decides about frames beside an item's own words, as text for a hash."""

    weights: str
    words: Mapping[str, str]


def origin_of(source: Source, loading: Mapping[str, Any], *, codec: str) -> Origin:
    """Return what all items of a run have in common; reads every byte of a model folder.

    Args:
        source: of the model.
        loading: the device and dtype decided for it.
        codec: as the option says, empty for none.

    Raises:
        InputError: a file of the model cannot be read.

    Choice: versions, dtype and kind of device belong to it, threads and the machine do not: those
    only round differently, and an array of jobs may run on machines that are not all the same.
    """
    from streamdit_cli.open_weights import OpenModel

    digest = hashlib.sha256()
    if isinstance(source, OpenModel):
        for file in sorted(source.files, key=lambda file: file.key):
            digest.update(f"{file.part} {file.sha256} ".encode())
        for text in source.loras:
            from streamdit_model.wan.lora import parse_lora

            _add_file(digest, parse_lora(text)[0])
    else:
        for path in sorted(source.folder.iterdir()):
            if path.name == "config.json" or ".safetensors" in path.suffixes:
                digest.update(path.name.encode(errors="replace"))
                _add_file(digest, path)
    versions = {name: importlib.metadata.version(name) for name in ("streamdit", "torch", "av")}
    device = loading["device"].partition(":")[0]
    words = {**versions, **source.metadata, "device": device, "codec": codec}
    words["dtype"] = loading["dtype"]
    return Origin(weights=digest.hexdigest(), words=words)


def _add_file(digest: Any, path: Path) -> None:
    try:
        with open(path, "rb") as file:
            while data := file.read(_READ):
                digest.update(data)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def plan_items(
    lines: Sequence[PromptLine],
    seeds: Sequence[int],
    common: Wishes,
    source: Source,
    origin: Origin,
    template: NameTemplate,
    title: str,
) -> list[Item]:
    """Join lines, seeds and the words of the command line; a line's own words go first.

    Args:
        lines: of the prompt file.
        seeds: each prompt is made with each of them, but for lines that say their seed.
        common: wishes of the command line, without prompts.
        source: of the model; its configuration is read, no weights.
        origin: see `origin_of`.
        template: of names.
        title: of the prompt file, for messages.

    Raises:
        UsageError: what the command line asks for cannot be.
        InputError: lines that ask for what cannot be, or too many items.
    """
    _check(common, source)
    items: list[Item] = []
    wrong: list[tuple[int, str]] = []
    seen: Counter[str] = Counter()
    configs: dict[Any, tuple[Any, str]] = {}
    for line in lines:
        try:
            for wishes, output in _wishes(line, seeds, common):
                place = wishes.size, wishes.start
                if place not in configs:
                    config = source.read_config(size=wishes.size, start=wishes.start)
                    configs[place] = config, _hash([config.to_dict(), asdict(origin)])
                plan = make_plan(wishes, configs[place][0])
                fields = {
                    "index": len(items) + 1,
                    "line": line.number,
                    "seed": wishes.seed,
                    "slug": " ".join(line.prompts),
                    "stem": Path(title).stem,
                    "model": plan.config.name,
                }
                wanted = output or check_file_name(template.name(fields), "its name")
                key = _key(plan, configs[place][1], Path(wanted).suffix.lower())
                seen[key] += 1
                if seen[key] > 1:  # the same video wanted again is an item of its own
                    key = _hash([key, seen[key]])
                items.append(
                    Item(index=len(items) + 1, line=line.number, plan=plan, key=key, wanted=wanted)
                )
        except (TerminalError, StreamDiTError) as error:
            wrong.append((line.number, str(error)))
        if len(items) > MOST_LINES:
            raise InputError(f"{title} and --seeds ask for more than {MOST_LINES} videos")
    refuse_lines(title, wrong)
    return items


def _check(common: Wishes, source: Source) -> None:
    """Refuse words of the command line that no line can mend, with the error they have there."""
    check_wishes(common)
    if common.seconds == float("inf"):
        raise UsageError("--seconds inf: a video of a batch has an end")
    make_plan(
        replace(common, prompts=["a"]), source.read_config(size=common.size, start=common.start)
    )


def _wishes(line: PromptLine, seeds: Sequence[int], common: Wishes) -> Iterator[tuple[Wishes, str]]:
    """Yield the wishes of a line with each seed, and the file name that it asks for."""
    said = dict(line.settings)
    output = said.pop("output", "")
    if output:
        check_file_name(output, "output")
    if "seconds" in said or "num_frames" in said:
        said = {"seconds": None, "num_frames": None, **said}
    for seed in [said.pop("seed")] if "seed" in said else seeds:
        wishes = replace(common, prompts=list(line.prompts), seed=seed, **said)
        check_wishes(wishes)
        yield wishes, output


def _key(plan: Plan, common: str, suffix: str) -> str:
    """Return the hash of everything that decides about the frames and the file of an item."""
    asked, scale = asdict(plan.wishes), plan.wishes.guidance_scale
    asked["seconds"], asked["num_frames"] = None, plan.num_frames
    asked["guidance_scale"] = plan.config.guidance_scale if scale is None else scale
    return _hash([common, asked, plan.events, suffix])


def _hash(said: object) -> str:
    raw = json.dumps(said, sort_keys=True, default=str).encode("ascii")
    return hashlib.sha256(raw).hexdigest()[:32]


def assign_names(
    items: Sequence[Item],
    entries: Mapping[str, Entry],
    folder: Path,
    *,
    overwrite: bool,
    codec: str | None = None,
) -> list[Item]:
    """Give every item its file name.

    Items whose video is there keep its name; the others get the one they want, with a number where
    two want the same. The same lines give the same names in every shard of a new batch.

    Args:
        items: of the whole batch, not of a share.
        entries: of all ledgers.
        folder: of the batch; it may not exist.
        overwrite: files that other settings or other programs made may be replaced.
        codec: must fit the container that each name ends in.

    Raises:
        UsageError: a name and the codec do not fit.
        OutputError: files that this batch did not make are in the way.
    """
    for suffix in {Path(item.wanted).suffix for item in items}:
        check_container(suffix, codec)
    there = [item for item in items if has_video(item, entries, folder)]
    kept = {item.index: entries[item.key].name for item in there}
    taken = {name.lower(): 1 for name in kept.values()}
    named = [
        replace(
            item,
            name=kept.get(item.index) or unique_name(item.wanted, taken),
            is_made=item.index in kept,
        )
        for item in items
    ]
    if not overwrite:
        _refuse_foreign(named, entries, folder)
    return named


def _refuse_foreign(items: Sequence[Item], entries: Mapping[str, Entry], folder: Path) -> None:
    """Refuse names that are taken by files which no run of this batch made."""
    there = set(os.listdir(folder)) if folder.is_dir() else set()
    begun = {entry.name for entry in entries.values()}
    foreign = []
    for item in items:
        part = part_path(Path(item.name)).name
        is_foreign = item.name in there and not (item.is_made or is_ours(item, entries, folder))
        if is_foreign or (part in there and item.name not in begun):
            foreign.append(item.name if is_foreign else part)
    if foreign:
        more = f" and {len(foreign) - _SHOWN} more" if len(foreign) > _SHOWN else ""
        raise OutputError(
            f"{folder} has {', '.join(foreign[:_SHOWN])}{more}, made with other settings or by "
            "another program",
            "another folder with -o, other names with --name, or replace them with -y",
        )


def is_ours(item: Item, entries: Mapping[str, Entry], folder: Path) -> bool:
    """Whether the file of an item is what a run of this batch left there, whole or not."""
    entry = entries.get(item.key)
    if entry is None or entry.name != item.name:
        return False
    if entry.state == "begun":
        return _is_of(item, folder / item.name)
    return entry.size > 0 and _size(folder / item.name) == entry.size


def has_video(item: Item, entries: Mapping[str, Entry], folder: Path) -> bool:
    """Whether the video of an item is there, whole.

    Its ledger says so, or, where a run was killed before that, the video itself.
    """
    entry = entries.get(item.key)
    if entry is None:
        return False
    path = folder / entry.name
    if entry.state == "done":
        return entry.size > 0 and _size(path) == entry.size
    return entry.state == "begun" and _is_of(item, path, num_frames=item.plan.num_frames)


def _size(path: Path) -> int:
    """Return the bytes of a file, -1 where there is none."""
    try:
        return path.stat().st_size if path.is_file() else -1
    except OSError:
        return -1


def _is_of(item: Item, path: Path, *, num_frames: int | None = None) -> bool:
    """Whether a video says that it is of an item, and has so many frames."""
    from streamdit_cli.video import probe

    try:
        found = probe(path) if path.is_file() else None
    except InputError:
        return False
    if found is None or found.record.get(ITEM_WORD) != item.key:
        return False
    return num_frames is None or found.num_frames == num_frames
