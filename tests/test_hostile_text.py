"""Claim: text made to harm cannot crash the terminal, move its cursor, or hide words.

Names, prompts, presets, recipes and messages all come from outside. Each case ends in a value or in
one of our own errors, and what is printed holds no control or bidirectional character.
"""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path

import pytest
import tomli
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamdit_cli import console, presets
from streamdit_cli.app import ExitCode, main
from streamdit_cli.errors import InputError, MissingWeights, UsageError
from streamdit_cli.output import free_name
from streamdit_cli.prompts import read_prompts

CASES = 200
ALL_CASES = 20_000
NASTY = [
    "\x1b[31mred\x1b[0m",
    "\x1b]52;c;ZXZpbA==\x07",
    "\x9b31m",
    "\x90q\x9c",
    "abc\rdef",
    "one\ntwo\u2028three",
    "\u202emp4.exe",
    "\u2066x\u2069",
    "\ufeffbom",
    "a\x00b",
    "\udc80\udcff",
    "\ud800",
    "\U000e0041tag",
    "[red]x[/red]",
    "a cat [/] sits",
    "[link=file:///etc/passwd]x[/link]",
    "\\[bold]\\",
    "\x7f\x08\x08",
]
# What a terminal shows is free of these, wherever it came from.
FORBIDDEN = {"Cc", "Cs", "Zl", "Zp"}
BIDI = {*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C, 0xFEFF}

outside_text = st.one_of(
    st.text(max_size=60),
    st.text(alphabet=st.characters(codec=None), max_size=60),  # lone surrogates too
    st.sampled_from(NASTY),
    st.lists(st.sampled_from(NASTY), max_size=4).map(" ".join),
)
toml_scalars = st.one_of(
    st.text(max_size=20).map(json.dumps),
    st.integers().map(str),
    st.sampled_from(["nan", "inf", "-inf", "1e999", "9" * 5000, "0x" + "f" * 40, "1979-05-27"]),
    st.sampled_from(["true", "[]", "[[]]", "{}", "[" * 3000, '"\\u001b"', '"\\u202e"', "'''"]),
)
preset_keys = st.sampled_from(
    ["name", "summary", "licence", "needs", "measured", "weights.folder", "weights.none", "model.x"]
)
preset_lines = st.one_of(
    st.tuples(preset_keys, toml_scalars).map(" = ".join),
    st.tuples(st.text(max_size=10), toml_scalars).map(" = ".join),
    st.text(max_size=40),
    st.sampled_from(["[weights]", "[weights", "a." * 2000 + "b = 1", "folder = '../x'", "\ufeff"]),
)
preset_files = st.lists(preset_lines, max_size=8).map("\n".join)


def visible(text: str) -> bool:
    """Whether a text can be shown on a terminal without harm; line ends are allowed."""
    return all(
        character == "\n"
        or (unicodedata.category(character) not in FORBIDDEN and ord(character) not in BIDI)
        for character in text
    )


def check_safe(text: str) -> None:
    shown = console.safe(text)
    assert visible(shown)
    assert "\n" not in shown
    assert console.safe(shown) == shown
    shown.encode("utf-8")


def check_printed(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    for say in (console.status, console.warn, console.hint, console.summary, console.plain):
        say(text)
    console.error(text, text)
    console.table(text, ["column", text], [[text, text]], stderr=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert visible(err)
    lines = err.split("\n")
    assert lines.count(console.safe(text)) >= 3
    assert f"warning: {console.safe(text)}" in lines
    assert f"error: {console.safe(text)}" in lines


def check_preset_file(text: str, folder: Path) -> None:
    """A preset is read and found right, or refused with one visible line."""
    path = folder / "case.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        preset = presets.read_toml(path)
        presets.check_preset(preset, path)
    except UsageError as error:
        check_safe(str(error))
        return
    assert preset["name"] == "case"
    inside = (folder / preset["weights"].get("folder", "x")).resolve()
    assert inside.parent == folder.resolve()


def check_change(text: str) -> None:
    """A change of `--set` is made, or refused; it never touches another key."""
    try:
        changed = presets.apply_set({"kept": 1}, [f"key={text}"])
    except UsageError as error:
        check_safe(str(error))
        return
    assert set(changed) == {"kept", "key"}
    assert changed["kept"] == 1


def check_name(name: str) -> None:
    """A model name is found or refused; nothing else happens."""
    try:
        presets.find_model(name)
    except (UsageError, MissingWeights) as error:
        check_safe(str(error))


def check_prompt(text: str, folder: Path) -> None:
    """A prompt, alone or in a file, is taken as Unicode text or refused with one visible line."""
    path = folder / "prompts.txt"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    for word in (f"@{path}", text):
        if word == "-":  # standard input
            continue
        try:
            found = read_prompts([word])
        except (UsageError, InputError) as error:
            check_safe(str(error))
            continue
        assert found
        for prompt in found:
            assert prompt.strip()
            prompt.encode("utf-8")
            name = free_name(prompt)
            assert re.fullmatch(r"[a-z0-9-]{1,80}\.mp4", name)


def check_command_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["info", "--", *words])
    out, err = capsys.readouterr()
    assert code in {ExitCode.OK, ExitCode.USAGE, ExitCode.INPUT, ExitCode.WEIGHTS}
    assert visible(out)
    assert visible(err)
    assert "Traceback" not in err


# The fixtures used here keep nothing between two cases.
calm = settings(
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
few = settings(calm, max_examples=CASES)
many = settings(calm, max_examples=ALL_CASES, derandomize=False)


@few
@given(outside_text)
def test_safe_text_holds_no_control_or_bidi_character(text: str) -> None:
    check_safe(text)


@few
@given(text=outside_text)
def test_printed_text_is_visible_and_literal(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    check_printed(text, capsys)


@few
@given(text=preset_files)
def test_preset_file_is_read_or_refused(
    text: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    check_preset_file(text, tmp_path_factory.getbasetemp())


@few
@given(st.one_of(outside_text, toml_scalars))
def test_set_changes_one_key_or_is_refused(text: str) -> None:
    check_change(text)


@few
@given(outside_text)
def test_model_name_is_found_or_refused(name: str) -> None:
    check_name(name)


@few
@given(text=outside_text)
def test_prompt_is_taken_or_refused(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    check_prompt(text, tmp_path_factory.getbasetemp())


@few
@given(words=st.lists(outside_text, max_size=2))
def test_command_line_ends_with_a_code_and_visible_text(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    check_command_line(words, capsys)


@pytest.mark.slow
@many
@given(text=outside_text, file=preset_files, change=st.one_of(outside_text, toml_scalars))
def test_hostile_text_in_full_count(
    text: str,
    file: str,
    change: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    check_safe(text)
    check_printed(text, capsys)
    check_preset_file(file, tmp_path_factory.getbasetemp())
    check_change(change)
    check_name(text)
    check_prompt(text, tmp_path_factory.getbasetemp())
    check_command_line([text], capsys)


@pytest.mark.parametrize("text", NASTY)
def test_nasty_text_is_shown_as_it_is_written(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    console.status(f"prompt {text}")
    assert capsys.readouterr().err == f"prompt {console.safe(text)}\n"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"a = 1\nb = '\xff'", "line 2: not UTF-8"),
        (b"a = " + b"[" * 5000, "too deep"),
        (b"a." * 5000 + b"b = 1", "too deep"),
        (b"a = " + b"9" * 5000, "is not TOML"),
        (b"a = 99999999999999999999", "more than 64 bits"),
        (b"[a]\nb = [1.0, nan]", "a.b is nan"),
        (b"a = inf", "a is inf"),
        (b"a = ", "is not TOML"),
        (b"a = 1\na = 2", "is not TOML"),
        (b"#" * 1_000_001, "larger than"),
    ],
)
def test_bad_toml_is_refused_in_one_line(data: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(data)
    with pytest.raises(UsageError) as refused:
        presets.read_toml(path)
    assert words in str(refused.value)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_toml_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "bom.toml"
    path.write_bytes(b"\xef\xbb\xbfa = 1")
    assert presets.read_toml(path) == {"a": 1}
    with pytest.raises(tomli.TOMLDecodeError):
        tomli.loads(path.read_text(encoding="utf-8"))


def test_missing_toml_is_refused_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nothing\.toml cannot be read"):
        presets.read_toml(tmp_path / "nothing.toml")
