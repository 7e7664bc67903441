"""Claim: a prompt file is read as its writer meant it, or refused with line number and reason."""

from __future__ import annotations

import os
import string
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st

from streamdit_cli import console
from streamdit_cli.batch import parse_seeds
from streamdit_cli.batch_file import MOST_LINES, PromptLine, read_batch_file
from streamdit_cli.errors import InputError, TerminalError, UsageError
from streamdit_cli.file_names import (
    DEFAULT_TEMPLATE,
    LONGEST_NAME,
    NameTemplate,
    check_file_name,
    unique_name,
)
from streamdit_cli.shards import Shard, find_shard, local_device

VALUES = {"index": 7, "line": 9, "seed": 5, "slug": "a Red *", "stem": "my list", "model": "tiny"}


def read(folder: Path, text: str, suffix: str = ".txt") -> list[PromptLine]:
    path = folder / f"prompts{suffix}"
    path.write_bytes(text.encode())
    return read_batch_file(str(path))


def said(line: PromptLine) -> tuple[tuple[str, ...], dict[str, Any]]:
    return line.prompts, dict(line.settings)


# Lines.


def test_text_has_one_prompt_a_line_with_options_of_musubi_behind_it(tmp_path: Path) -> None:
    text = "\ufeff# a comment\r\n\r\n a red star -- bouncing  --d 5 --w 64 --h 32 --f 48 --g 2.5"
    text += " --n blur, noise\r\na blue circle --seconds=1:30 --start clip --output x.mkv\n"
    first, second = read(tmp_path, text)
    assert (first.number, second.number) == (3, 4)
    settings = {"seed": 5, "size": (64, 32), "num_frames": 48, "guidance_scale": 2.5}
    assert said(first) == (
        ("a red star -- bouncing",),
        {**settings, "negative_prompt": "blur, noise"},
    )
    assert said(second) == (
        ("a blue circle",),
        {"seconds": 90.0, "start": "clip", "output": "x.mkv"},
    )


def test_jsonl_and_csv_say_the_same_as_text(tmp_path: Path) -> None:
    jsonl = '{"prompt": "a star", "seed": 5, "num-frames": "48", "size": null}\n\n'
    jsonl += '{"prompt": ["a", "b"], "seconds": 1.5}'
    table = 'prompt,seed,num_frames\r\n"a star",5,48\r\n\r\n"a, ""b""",,\r\n'
    first, second = read(tmp_path, jsonl, ".jsonl")
    third, fourth = read(tmp_path, table, ".csv")
    assert said(first) == said(third) == (("a star",), {"seed": 5, "num_frames": 48})
    assert said(second) == (("a", "b"), {"seconds": 1.5})
    assert said(fourth) == (('a, "b"',), {})
    assert [line.number for line in (first, second, third, fourth)] == [1, 3, 2, 4]


@pytest.mark.parametrize(("text", "prompts"), [("a\nb\n", 2), ('\n{"prompt": "a"}\n', 1)])
def test_standard_input_is_text_or_jsonl(
    text: str, prompts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    os.write(writer, text.encode())
    os.close(writer)
    with os.fdopen(reader) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        assert len(read_batch_file("-")) == prompts


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("a --s 5", "seed or steps?"),
        ("a --sead 5", "did you mean --seed?"),
        ("a --d", "--d has no value"),
        ("a --d 1 --d 2", "twice"),
        ("a --d -1", "--seed: '-1' is not a whole number"),
        ("a --w 64", "--w and --h belong together"),
        ("a --w 64 --h 64 --size 64x64", "exclude each other"),
        ("a --f 0", "at least 1"),
        ("a --f 10 --seconds 2", "exclude each other"),
        ("a --seconds inf", "has an end"),
        ("a --g nan", "is not a number from 0"),
        ("a --start fast", "allowed: ramp, clip"),
        ("--d 5", "the prompt is empty"),
        ("a\x1b[2J", "control character 0x1b"),
        ("a --d " + "1" * 5000, "5000 letters"),
        ("x" * 9000, "at most 8192"),
    ],
)
def test_wrong_line_of_text_is_refused_with_its_number(
    line: str, part: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, f"a star\n{line}\n")
    assert "prompts.txt line 2: " in str(caught.value) and part in str(caught.value)


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ('{"prompt": "a", "sed": 1}', "unknown key 'sed'; did you mean seed?"),
        ('{"prompt": "a", "seed": true}', "must be text or a number, not true"),
        ('{"prompt": "a", "seed": 1.5}', "not a whole number"),
        ('{"prompt": "a", "seed": NaN}', "NaN is no finite number"),
        ('{"prompt": "a", "seed": 1, "seed": 2}', "twice"),
        ('{"prompt": 5}', "the prompt is no text"),
        ('{"prompt": []}', "the prompt is no text"),
        ('{"prompt": "a", "size": [64, 64]}', "must be text or a number"),
        ('["a"]', "not a JSON object"),
        ('{"prompt": "a"', "not JSON"),
        ("[" * 60_000, "not JSON"),
        ('{"prompt": "\\ud800"}', "not UTF-8"),
    ],
)
def test_wrong_line_of_jsonl_is_refused_with_its_number(
    line: str, part: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, f'{{"prompt": "a"}}\n{line}\n', ".jsonl")
    assert "prompts.jsonl line 2: " in str(caught.value) and part in str(caught.value)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("seed\n5\n", "line 1 has no column prompt"),
        ("prompt,prompt\na,b\n", "line 1 has a column twice"),
        ("prompt,sed\na,5\n", "line 1: unknown key 'sed'"),
        ("prompt,seed\na,5,6\n", "line 2: 3 cells under 2 columns"),
        ("prompt,seed\n,6\n", "line 2: the prompt is empty"),
        ('prompt\n"a\n', "unexpected end of data"),
        ("prompt\n", "holds no prompt"),
    ],
)
def test_wrong_csv_is_refused(text: str, part: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=part):
        read(tmp_path, text, ".csv")


def test_all_wrong_lines_are_found_and_the_first_five_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=r"8 lines of .* are wrong, the first is line 2"):
        read(tmp_path, "a\n" + "b --s 1\n" * 8)
    shown = capsys.readouterr().err.splitlines()
    assert [line.split("line ")[1][0] for line in shown] == ["2", "3", "4", "5", "6"]


def test_file_that_is_no_prompt_file_is_refused(tmp_path: Path) -> None:
    for text, part in (("", "holds no prompt"), ("a\n" * (MOST_LINES + 1), "more than 100000")):
        with pytest.raises(InputError, match=part):
            read(tmp_path, text)
    with pytest.raises(UsageError, match="not a prompt file"):
        read(tmp_path, "[]", ".json")
    (tmp_path / "latin.txt").write_bytes(b"a\n\xff\n")
    with pytest.raises(InputError, match="line 2 is not UTF-8"):
        read_batch_file(str(tmp_path / "latin.txt"))
    for name in (str(tmp_path / "none.txt"), str(tmp_path), "a\0b"):
        with pytest.raises(InputError, match="cannot be read"):
            read_batch_file(name)


@settings(deadline=None, max_examples=150)
@given(
    text=st.text(max_size=200)
    | st.lists(st.sampled_from([*" -=\n\",:{}[]'ab5", "--d", "--n", "prompt", '"seed"'])).map(
        "".join
    ),
    suffix=st.sampled_from([".txt", ".jsonl", ".csv"]),
)
def test_any_text_is_read_or_refused_by_name(
    text: str, suffix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "any"
    folder.mkdir(exist_ok=True)
    console.configure(quiet=True)
    try:
        lines = read(folder, text, suffix)
    except (TerminalError, UnicodeEncodeError):
        return
    for line in lines:
        assert all(prompt.strip() == prompt != "" for prompt in line.prompts)


# Names.


def test_template_fills_its_fields() -> None:
    assert NameTemplate(DEFAULT_TEMPLATE).name(VALUES) == "0007-a-red.mp4"
    text = "{{{stem}}}_{model}_{line}_{seed:03}.mkv"
    assert NameTemplate(text).name(VALUES) == "{my-list}_tiny_9_005.mkv"


@pytest.mark.parametrize(
    "text",
    [
        "{slug.__class__}.mp4",
        "{slug[0]}.mp4",
        "{slug!r}.mp4",
        "{}.mp4",
        "{0}.mp4",
        "{sed}.mp4",
        "{index:999999}.mp4",
        "{index:>{seed}}.mp4",
        "{index:4d}.mp4",
        "{slug:04d}.mp4",
        "{slug.mp4",
        "slug}.mp4",
        "../{slug}.mp4",
        "a/{slug}.mp4",
        "a\\{slug}.mp4",
        "/etc/{slug}.mp4",
        "{slug}",
        "{slug}.txt",
        "{slug}.jsonl",
        ".mp4",
        "..mp4",
        "-{slug}.mp4",
        "{slug}.part.mp4",
        "con.mp4",
        "NUL.x.mp4",
        "a\n.mp4",
        "a\0.mp4",
        "a:{slug}.mp4",
        "a" * 300 + ".mp4",
        "\ud800.mp4",
        "",
    ],
)
def test_template_that_could_leave_the_folder_or_reach_an_object_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        NameTemplate(text)


@settings(deadline=None, max_examples=300)
@given(
    text=st.text(max_size=30)
    | st.lists(st.sampled_from(["{slug}", "{index:02d}", "{", "}", "..", "/", "con", ".mp4"])).map(
        "".join
    ),
    slug=st.text(max_size=300),
)
def test_name_of_any_template_and_prompt_is_one_plain_file(text: str, slug: str) -> None:
    try:
        name = check_file_name(NameTemplate(text).name({**VALUES, "slug": slug}), "name")
    except UsageError:
        return
    assert name == os.path.basename(name) and not name.startswith((".", "-"))
    assert len(name.encode()) <= LONGEST_NAME and name.lower().endswith((".mp4", ".mov", ".mkv"))


def test_names_that_some_system_takes_for_one_get_a_number() -> None:
    taken: dict[str, int] = {}
    names = [unique_name(name, taken) for name in ("a.mp4", "A.mp4", "a.mp4", "a-2.mp4", "a.mkv")]
    assert names == ["a.mp4", "A-2.mp4", "a-3.mp4", "a-2-2.mp4", "a.mkv"]
    assert len({name.lower() for name in names}) == len(names)


# Seeds and shares.


def test_seeds_are_ranges_and_lists() -> None:
    assert list(parse_seeds("1-3,9,2")) == [1, 2, 3, 9]
    for text in ("", "1-", "3-1", "a", "1-99999", "-1", "1--2", "1," + "2" * 30, string.digits * 9):
        with pytest.raises(typer.BadParameter):
            parse_seeds(text)


def test_share_is_said_by_the_option_by_torchrun_or_by_an_array_in_this_order() -> None:
    torchrun = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
    array = {
        "SLURM_ARRAY_TASK_ID": "12",
        "SLURM_ARRAY_TASK_MIN": "10",
        "SLURM_ARRAY_TASK_COUNT": "3",
    }
    assert find_shard("2/3", {**torchrun, **array}) == Shard(2, 3)
    assert find_shard(None, {**torchrun, **array}) == Shard(2, 4)
    assert find_shard(None, array) == Shard(3, 3)
    steps = {**array, "SLURM_ARRAY_TASK_ID": "14", "SLURM_ARRAY_TASK_STEP": "2"}
    assert find_shard(None, steps) == Shard(3, 3)
    assert find_shard(None, {}) == Shard(1, 1)
    assert local_device(torchrun) == 1 and local_device(array) is None


@pytest.mark.parametrize("text", ["0/2", "3/2", "1/0", "a", "1", "1/2/3", "-1/2", "1/9999999"])
def test_share_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        find_shard(text, {})


def test_array_with_gaps_and_broken_variables_are_refused() -> None:
    for task in ("13", "9", "x", ""):
        array = {
            "SLURM_ARRAY_TASK_ID": task,
            "SLURM_ARRAY_TASK_MIN": "10",
            "SLURM_ARRAY_TASK_COUNT": "3",
        }
        with pytest.raises(UsageError):
            find_shard(None, array)
    with pytest.raises(UsageError):
        find_shard(None, {"RANK": "4", "WORLD_SIZE": "4"})


@pytest.mark.parametrize("total", [1, 2, 3, 7])
def test_every_item_belongs_to_exactly_one_share(total: int) -> None:
    shares = [Shard(number + 1, total) for number in range(total)]
    assert all(sum(share.has(index) for share in shares) == 1 for index in range(1, 20))
