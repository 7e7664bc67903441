"""Claim: a script says which prompt holds when, in three forms, and nothing in it is guessed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamdit_cli.errors import InputError, TerminalError, UsageError
from streamdit_cli.script import (
    Script,
    event_record,
    parse_inline,
    parse_script,
    read_script,
)
from streamdit_model.prompt_timeline import PromptEvent

TOML = b"""
# a show
[[stage]]
prompt = "a red star bouncing"
seconds = 3

[[stage]]
prompt = "a blue ring circling"
seconds = 2.5
transition = "blend"
transition_seconds = 1

[[stage]]
prompt = "a green square"
seconds = 2
transition = "chunks"
"""


def events(script: Script, seconds: float = math.inf) -> list[PromptEvent]:
    return script.events(seconds)


def test_three_forms_say_the_same() -> None:
    lines = [
        {"prompt": "a red star bouncing", "at": 0, "seconds": 3},
        {
            "prompt": "a blue ring circling",
            "at": 3,
            "transition": "blend",
            "transition_seconds": 1,
        },
        {"prompt": "a green square", "at": 5.5, "seconds": 2, "transition": "chunks"},
    ]
    jsonl = "\n\n".join(json.dumps(line) for line in lines).encode()
    toml = parse_script(TOML, "a.toml")
    assert events(toml) == events(parse_script(jsonl, "a.jsonl"))
    assert events(toml) == [
        PromptEvent("a red star bouncing", 0.0),
        PromptEvent("a blue ring circling", 3.0, "blend", 1.0),
        PromptEvent("a green square", 5.5, "chunks"),
    ]
    assert toml.seconds == 7.5
    inline = parse_inline(
        "[0s: a red star bouncing] [3s:a blue ring circling][5.5s-7.5s: a square]"
    )
    assert inline is not None and inline.seconds == 7.5
    assert [(event.prompt, event.seconds) for event in events(inline)] == [
        ("a red star bouncing", 0.0),
        ("a blue ring circling", 3.0),
        ("a square", 5.5),
    ]


def test_words_before_the_first_bracket_are_not_lost() -> None:
    script = parse_inline("a red star [0.5m: a blue ring]")
    assert script is not None and script.seconds is None
    assert [(e.prompt, e.seconds) for e in events(script)] == [
        ("a red star", 0),
        ("a blue ring", 30),
    ]
    for ordinary in ("a [red] star", "[16:9] a star", "a star [x: y]", "a star at 3s: it stops"):
        assert parse_inline(ordinary) is None


def test_stages_without_times_share_the_length() -> None:
    script = parse_script(b'{"prompt": "a"}\n{"prompt": "b", "transition": "blend"}', "s")
    assert [event.seconds for event in script.events(8.0, transition="chunks")] == [0.0, 4.0]
    how = [(event.transition, event.transition_seconds) for event in script.events(8.0)]
    assert how == [("replace", 2.0), ("blend", 2.0)]
    given = script.events(8.0, transition="chunks", transition_seconds=0.5)
    assert [(event.transition, event.transition_seconds) for event in given] == [
        ("replace", 2.0),
        ("blend", 0.5),
    ]
    with pytest.raises(UsageError, match="2 prompts"):
        script.events(math.inf)


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"", "holds no stage"),
        (b"# nothing", "holds no stage"),
        (b"stage = 3", "list of tables"),
        (b"title = 'x'", "unknown key 'title'"),
        (b"[[stages]]\nprompt = 'a'", "unknown key 'stages'; did you mean stage"),
        (b"[[stage]]\nprompt = 'a'\n\n[[stage]]\npromt = 'b'", "line 4: .*did you mean prompt"),
        (b"[[stage]]\nseconds = 3", "line 1: prompt must be text"),
        (b"[[stage]]\nprompt = ' '", "prompt is empty"),
        (b"[[stage]]\nprompt = 'a'\nseconds = 0", "more than 0"),
        (b"[[stage]]\nprompt = 'a'\nseconds = -1", "from 0 to"),
        (b"[[stage]]\nprompt = 'a'\nat = true", "at must be seconds"),
        (b"[[stage]]\nprompt = 'a'\ntransition = 'fade'", "'fade' is not known; allowed: replace"),
        (
            b"[[stage]]\nprompt = 'a'\nat = 3\n[[stage]]\nprompt = 'b'\nat = 3",
            "line 4: .* not after",
        ),
        (b"[[stage]]\nprompt = 'a'\nat = 2\n[[stage]]\nprompt = 'b'", "line 4: nothing says when"),
        (b"[[stage]]\nprompt = 'a'\nseconds = 2\n[[stage]]\nprompt = 'b'\nat = 3", "ends at 2 s"),
        (b"[[stage]\nprompt = 'a'", "is not TOML"),
        (b'{"prompt": "a"}\n{"prompt": "b"', "line 2 is not JSON"),
        (b'{"prompt": "a", "prompt": "b"}', "line 1 .*twice"),
        (b'{"prompt": "a"}\n\n[1]', "line 3: a stage must be a table"),
        (b'{"prompt": "a", "at": NaN}', "at must be"),
        (b'{"prompt": "a", "at": 1e999}', "at must be"),
        (b'{"prompt": "a", "position": [1]}', "position must be"),
        (b'{"prompt": "a", "position": [-2, 0]}', "before the start"),
        (b'{"prompt": "a"}\n{"prompt": "\xff"}', "line 2 is not UTF-8"),
        (b'{"prompt": "a\\u0007"}', "control character 0x07"),
        (b'{"a":' * 30_000, "not JSON|too deep"),
        (b'{"prompt": "a", "at": ' + b"9" * 400 + b"}", "at must be"),
        (b'{"prompt": "a"}\n' * 10_002, "more than 10000"),
    ],
)
def test_script_is_refused_with_its_line(data: bytes, part: str) -> None:
    with pytest.raises(InputError, match=part) as caught:
        parse_script(data, "s")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[0s: a star [3s: b]", "no closing bracket"),
        ("[0s: a star", "no closing bracket"),
        ("[0s: ] [3s: b]", "empty"),
        ("[3s: a] [2s: b]", "not after"),
        ("[3s-2s: a]", "ends before it begins"),
        ("[0s-2s: a] [3s: b]", "ends at 2 s"),
        ("[0s: a] and then [3s: b]", "belongs to no stage"),
    ],
)
def test_inline_form_is_refused_in_words(text: str, part: str) -> None:
    with pytest.raises(UsageError, match=part):
        parse_inline(text)


EVENTS = st.lists(
    st.builds(
        PromptEvent,
        st.text("abc [{\u00fc", min_size=1).filter(str.strip).map(str.strip),
        st.just(0.0),
        st.sampled_from(["replace", "chunks", "blend"]),
        st.floats(0, 10),
        st.none() | st.tuples(st.integers(-1, 5), st.integers(0, 5)),
    ),
    min_size=1,
    max_size=5,
)


@settings(deadline=None, max_examples=40)
@given(EVENTS)
def test_lines_of_a_log_come_back_as_a_script(found: list[PromptEvent]) -> None:
    log = [
        PromptEvent(e.prompt, float(index), e.transition, e.transition_seconds, e.position)
        for index, e in enumerate(found)
    ]
    text = "\n".join(json.dumps(event_record(event)) for event in log)
    again = events(parse_script(text.encode(), "s"))
    for one, other in zip(log, again, strict=True):
        assert (one.prompt, one.seconds, one.position) == (
            other.prompt,
            other.seconds,
            other.position,
        )
        assert one.transition == other.transition
        assert one.transition != "blend" or one.transition_seconds == other.transition_seconds


@settings(deadline=None, max_examples=60)
@given(st.one_of(st.binary(max_size=200), st.text(max_size=80).map(str.encode)))
def test_any_bytes_are_a_script_or_refused_in_one_line(data: bytes) -> None:
    for text in (data, b"{" + data, b"[[stage]]\nprompt = 'a'\n" + data):
        try:
            assert parse_script(text, "s").stages
        except InputError as error:
            assert "\n" not in str(error)
    try:
        parse_inline("[0s: a] " + data.decode(errors="replace"))
    except TerminalError as error:
        assert "\n" not in str(error)


def test_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for missing in (tmp_path / "no.toml", tmp_path, tmp_path / ("x" * 300)):
        with pytest.raises(InputError, match="cannot be read"):
            read_script(str(missing))
    (tmp_path / "a.toml").write_bytes(TOML)
    assert read_script(str(tmp_path / "a.toml")) == parse_script(TOML, "a")
