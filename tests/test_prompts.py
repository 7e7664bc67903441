"""Claim: every frame sees the prompt it should, from the micro step it should, and it is reported.

The velocity itself is asked: at every micro step the keys that each frame would read are compared
with the keys of the prompts.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_stream import Counted, no_thread_is_left, stream, through_json, whole
from tiny_streams import CHUNK_SECONDS, md5s, patched, tiny_model

from streamdit_model import ConfigError, Partition, PromptEvent, Receipt, Stream, VideoChunk
from streamdit_model.prompt_timeline import PromptTimeline
from streamdit_model.sampling import Window
from streamdit_model.transformer import FrameText
from streamdit_model.weights import Model

__all__ = ["no_thread_is_left"]  # a fixture for all tests here

CAT, DOG, BALL = "a cat", "a dog", "a red ball"
NUM_CHUNKS, SIZE, STEPS = 4, 2, 2  # of the tiny model
WARM_UP = (NUM_CHUNKS - 1) * STEPS


@dataclass(frozen=True)
class Seen:
    """What one frame saw: its prompt, and in a blend the second one and its share."""

    first: str | None
    second: str | None = None
    weight: float = 0.0


class Recorder:
    """The velocity of a model, with a note of what every latent frame saw at every call.

    Args:
        act: called with the number of the call, from 0, before it.
    """

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        model: Model,
        prompts: Sequence[str | None],
        act: Callable[[int], None] = lambda call: None,
    ) -> None:
        self.calls: list[dict[int, Seen]] = []
        self._act = act
        self._velocity = Model.velocity
        self._keys = {
            prompt: model.transformer.text_keys(model.text_encoder.encode([prompt or ""]))
            for prompt in prompts
        }
        recorder = self
        monkeypatch.setattr(Model, "velocity", lambda self, window: recorder(self, window))

    def __call__(self, model: Model, window: Window) -> torch.Tensor:
        self._act(len(self.calls))
        text = window.text
        assert isinstance(text, FrameText)
        names = [self._name(text, index) for index in range(text.keys.num_prompts)]
        frames = range(window.latents.shape[2])
        self.calls.append({window.first_frame + f: self._seen(text, names, f) for f in frames})
        return self._velocity(model, window)

    def _name(self, text: FrameText, index: int) -> str | None:
        """Return the prompt whose keys stand at an index."""
        row, mask = text.keys.keys[0][index], text.keys.mask
        length = row.shape[1] if mask is None else int(mask[index].sum())
        for prompt, keys in self._keys.items():
            if keys.length == length and torch.equal(keys.keys[0][0], row[:, :length]):
                return prompt
        raise AssertionError("the velocity saw a prompt that nobody gave")

    def _seen(self, text: FrameText, names: list[str | None], frame: int) -> Seen:
        def index(tensor: torch.Tensor) -> int:
            return int(tensor[0] if tensor.dim() == 1 else tensor[0, frame])

        first = names[index(text.first)]
        if text.second is None or text.weight is None:
            return Seen(first)
        return Seen(first, names[index(text.second)], float(text.weight[0, frame]))

    def at(self, chunk: int, micro_step: int) -> dict[int, Seen]:
        """Return what was seen at a micro step of the cycle of a chunk."""
        return self.calls[WARM_UP + chunk * STEPS + micro_step]


def same(seen: dict[int, Seen]) -> Seen:
    """Return what all frames saw alike."""
    (only,) = set(seen.values())
    return only


def events_of(chunks: Sequence[VideoChunk]) -> list[tuple[int, str, str | None, int, float]]:
    """Return each receipt with the chunk it came with."""
    return [
        (chunk.number, receipt.kind, receipt.event.prompt, receipt.chunk, receipt.seconds)
        for chunk in chunks
        for receipt in chunk.receipts
    ]


def wait_until(condition: Callable[[], bool]) -> None:
    """Return when another thread has come so far."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# The transitions, at the level of what the velocity saw.


def test_replace_changes_all_frames_between_two_micro_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model()
    recorder = Recorder(monkeypatch, model, [CAT, DOG])
    script = [PromptEvent(CAT), PromptEvent(DOG, position=(3, 1))]
    chunks = list(stream(model, script, num_frames=whole(8)))
    change = WARM_UP + 3 * STEPS + 1
    assert {same(seen) for seen in recorder.calls[:change]} == {Seen(CAT)}
    assert {same(seen) for seen in recorder.calls[change:]} == {Seen(DOG)}
    assert [chunk.prompt for chunk in chunks] == [CAT] * 3 + [DOG] * 5


@pytest.mark.parametrize("micro_step", [0, 1])
def test_chunks_gives_the_new_prompt_to_frames_not_yet_begun(
    monkeypatch: pytest.MonkeyPatch, micro_step: int
) -> None:
    model = tiny_model()
    recorder = Recorder(monkeypatch, model, [CAT, DOG])
    script = [PromptEvent(CAT), PromptEvent(DOG, transition="chunks", position=(3, micro_step))]
    chunks = list(stream(model, script, num_frames=whole(9)))
    # In cycle 3 chunk 6 is at the tail; before its first micro step it is not begun.
    first_new = 6 if micro_step == 0 else 7
    for seen in recorder.calls:
        for frame, what in seen.items():
            assert what == Seen(DOG if frame >= first_new * SIZE else CAT)
    assert [chunk.prompt for chunk in chunks] == [CAT] * first_new + [DOG] * (9 - first_new)
    assert set(recorder.at(4, 0).values()) == {Seen(CAT), Seen(DOG)}


def test_blend_moves_all_frames_by_one_step_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    recorder = Recorder(monkeypatch, model, [CAT, DOG])
    seconds = 3.5 * CHUNK_SECONDS  # four chunks
    script = [PromptEvent(CAT), PromptEvent(DOG, 2 * CHUNK_SECONDS, "blend", seconds)]
    chunks = list(stream(model, script, num_frames=whole(8)))
    for step in range(STEPS):
        assert same(recorder.at(1, step)) == Seen(CAT)
        for chunk, weight in ((2, 0.25), (3, 0.5), (4, 0.75)):
            assert same(recorder.at(chunk, step)) == Seen(CAT, DOG, weight)
        assert same(recorder.at(5, step)) == Seen(DOG)
    assert [chunk.prompt for chunk in chunks] == [CAT] * 3 + [DOG] * 5


def test_a_third_prompt_finishes_the_blend_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    recorder = Recorder(monkeypatch, model, [CAT, DOG, BALL])
    script = [
        PromptEvent(CAT),
        PromptEvent(DOG, 1 * CHUNK_SECONDS, "blend", 4 * CHUNK_SECONDS),
        PromptEvent(BALL, 2 * CHUNK_SECONDS, "blend", 2 * CHUNK_SECONDS),
    ]
    list(stream(model, script, num_frames=whole(5)))
    assert same(recorder.at(1, 1)) == Seen(CAT, DOG, 0.25)
    assert same(recorder.at(2, 0)) == Seen(DOG, BALL, 0.5)
    assert same(recorder.at(3, 0)) == Seen(BALL)
    third = [*script[:2], replace(script[2], transition="chunks")]
    recorder.calls.clear()
    list(stream(model, third, num_frames=whole(5)))
    assert set(recorder.at(2, 0).values()) == {Seen(DOG), Seen(BALL)}


def test_a_blend_over_several_prompts_leaves_every_frame_with_two(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model()
    recorder = Recorder(monkeypatch, model, [CAT, DOG, BALL])
    script = [
        PromptEvent(CAT),
        PromptEvent(DOG, 1 * CHUNK_SECONDS, "chunks"),
        PromptEvent(BALL, 2 * CHUNK_SECONDS, "blend", 2 * CHUNK_SECONDS),
    ]
    list(stream(model, script, num_frames=whole(4)))
    assert recorder.at(2, 0) == {
        **{frame: Seen(CAT, BALL, 0.5) for frame in range(4, 8)},
        **{frame: Seen(DOG, BALL, 0.5) for frame in range(8, 12)},
    }


@pytest.mark.parametrize("start", ["ramp", "clip"])
@pytest.mark.parametrize("transition", ["replace", "chunks", "blend"])
def test_all_events_of_second_0_are_replacements(
    monkeypatch: pytest.MonkeyPatch, start: str, transition: str
) -> None:
    model = tiny_model(start=start)
    recorder = Recorder(monkeypatch, model, [CAT, DOG])
    script = [PromptEvent(CAT), PromptEvent(DOG, 0.0, transition)]
    chunks = list(stream(model, script, num_frames=whole(2)))
    assert {same(seen) for seen in recorder.calls} == {Seen(DOG)}
    assert events_of(chunks) == [
        (0, "applied", CAT, 0, 0.0),
        (0, "applied", DOG, 0, 0.0),
        (0, "complete", DOG, 0, 0.0),
    ]


def test_no_prompt_is_the_empty_text_and_comes_before_the_first_event(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model()
    recorder = Recorder(monkeypatch, model, [None, CAT])
    script = [PromptEvent(CAT, CHUNK_SECONDS), PromptEvent(None, 2 * CHUNK_SECONDS)]
    chunks = list(stream(model, script, num_frames=whole(3)))
    assert [same(recorder.at(chunk, 0)).first for chunk in range(3)] == [None, CAT, None]
    assert [chunk.prompt for chunk in chunks] == [None, CAT, None]
    assert md5s(chunks[:1]) == md5s(stream(model, None, num_frames=whole(1)))


# Scripts.


@pytest.mark.parametrize(
    ("seconds", "chunk"), [(0.01, 1), (0.5, 1), (0.51, 2), (1.0, 2), (1.2, 3), (1.5, 3)]
)
def test_a_scripted_prompt_applies_at_the_chunk_that_starts_at_or_after_it(
    monkeypatch: pytest.MonkeyPatch, seconds: float, chunk: int
) -> None:
    model = tiny_model()
    recorder = Recorder(monkeypatch, model, [CAT, DOG])
    running = stream(model, [PromptEvent(DOG, seconds), PromptEvent(CAT)], num_frames=whole(5))
    list(running)
    assert same(recorder.at(chunk - 1, STEPS - 1)) == Seen(CAT)
    assert same(recorder.at(chunk, 0)) == Seen(DOG)
    assert [event.position for event in running.log()] == [(-1, 0), (chunk, 0)]
    assert [event.seconds for event in running.log()] == [0.0, seconds]


def test_the_stream_waits_for_a_scripted_prompt_whose_encoding_is_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model()
    script = [PromptEvent(CAT), PromptEvent(DOG, CHUNK_SECONDS)]
    expected = md5s(stream(model, script, num_frames=whole(4)))
    recorder = Recorder(monkeypatch, model, [CAT, DOG])
    allowed = threading.Event()

    def late(call: int, keys: Any) -> Any:
        assert call == 1 or allowed.wait(60)
        return keys

    slow = Counted(model.transformer.text_keys, late)
    with patched(model.transformer, "text_keys", slow):
        running = stream(model, script, num_frames=whole(4), synchronous=False, chunks_ahead=3)
        chunks = [next(running)]
        time.sleep(0.2)
        # Chunk 1 is not begun without its prompt.
        assert len(recorder.calls) == WARM_UP + STEPS
        allowed.set()
        chunks += running
    assert md5s(chunks) == expected
    assert same(recorder.at(1, 0)) == Seen(DOG)


def test_each_prompt_is_encoded_once() -> None:
    model = tiny_model()
    script = [
        PromptEvent([CAT, DOG, None][number % 3], number * CHUNK_SECONDS, transition)
        for number, transition in enumerate(["replace", "chunks", "blend"] * 4)
    ]
    for synchronous in (True, False):
        encode = Counted(model.text_encoder.encode)
        text_keys = Counted(model.transformer.text_keys)
        with (
            patched(model.text_encoder, "encode", encode),
            patched(model.transformer, "text_keys", text_keys),
        ):
            running = stream(model, script, num_frames=whole(13), synchronous=synchronous)
            list(running)
        assert len(running.log()) == 12
        assert (encode.calls, text_keys.calls) == (3, 3)


@pytest.mark.parametrize("transition", ["replace", "chunks", "blend"])
def test_memory_of_prompts_does_not_grow_with_their_number(transition: str) -> None:
    model = tiny_model()
    script = [PromptEvent(f"cat {n}", n * CHUNK_SECONDS, transition) for n in range(20)]
    running = stream(model, script, num_frames=whole(20))
    list(running)
    assert len(running.log()) == 20
    assert len(running._keys._keys) <= 8
    cut = running.state()[1]["timeline"]["cut"]
    assert len(cut["segments"]) <= NUM_CHUNKS + 1
    assert len(cut["owners"]) <= NUM_CHUNKS and len(cut["incomplete"]) <= NUM_CHUNKS


# Live prompts and their replay.


@pytest.mark.parametrize("transition", ["replace", "chunks", "blend"])
def test_a_live_prompt_applies_between_two_micro_steps_and_is_logged(
    monkeypatch: pytest.MonkeyPatch, transition: str
) -> None:
    model = tiny_model()
    holder: list[Stream] = []

    def act(call: int) -> None:
        if call == WARM_UP + 3 * STEPS:  # while the first micro step of chunk 3 is made
            holder[0].prompt(PromptEvent(DOG, 99.0, transition, CHUNK_SECONDS * 3))

    recorder = Recorder(monkeypatch, model, [CAT, DOG], act)
    holder.append(stream(model, CAT, num_frames=whole(9)))
    chunks = list(holder[0])
    assert same(recorder.at(3, 0)) == Seen(CAT)
    if transition == "replace":
        assert same(recorder.at(3, 1)) == Seen(DOG)
    elif transition == "blend":
        assert same(recorder.at(3, 1)).weight == pytest.approx(1 / 3)
    else:
        assert same(recorder.at(3, 1)) == Seen(CAT)
        assert set(recorder.at(4, 0).values()) == {Seen(CAT), Seen(DOG)}
    event = PromptEvent(DOG, 3 * CHUNK_SECONDS, transition, CHUNK_SECONDS * 3, (3, 1))
    log = holder[0].log()
    assert log == [PromptEvent(CAT, position=(-1, 0)), event]
    replayed = stream(model, log, num_frames=whole(9))
    again = list(replayed)
    assert md5s(again) == md5s(chunks)
    assert [chunk.receipts for chunk in again] == [chunk.receipts for chunk in chunks]
    assert replayed.log() == log


@pytest.mark.parametrize("start", ["ramp", "clip"])
@pytest.mark.parametrize("transition", ["replace", "chunks", "blend"])
def test_a_live_prompt_during_the_start_replays(
    monkeypatch: pytest.MonkeyPatch, start: str, transition: str
) -> None:
    model = tiny_model(start=start)
    holder: list[Stream] = []

    def act(call: int) -> None:
        if call == 2 and holder:
            holder.pop().prompt(PromptEvent(DOG, transition=transition))

    recorder = Recorder(monkeypatch, model, [CAT, DOG], act)
    running = stream(model, CAT, num_frames=whole(6))
    holder.append(running)
    chunks = list(running)
    assert [event.position for event in running.log()] == [(-1, 0), (-1, 3)]
    first = recorder.calls[:3], recorder.calls[3:]
    assert {same(seen) for seen in first[0]} == {Seen(CAT)}
    assert any(what != Seen(CAT) for seen in first[1] for what in seen.values())
    assert md5s(stream(model, running.log(), num_frames=whole(6))) == md5s(chunks)


def test_live_prompts_at_any_time_replay_from_the_log() -> None:
    model = tiny_model()
    running = stream(model, CAT, num_frames=whole(12), synchronous=False)
    words, chunks = [DOG, BALL, None, CAT, "a blue cow"], []
    for chunk in running:
        chunks.append(chunk)
        if chunk.number % 2 == 0 and words:
            transition = ("replace", "chunks", "blend")[chunk.number // 2 % 3]
            running.prompt(PromptEvent(words[0], transition=transition))
            running._keys.wait(words.pop(0))
    assert len(running.log()) == 6
    for options in ({"synchronous": True}, {"synchronous": False}):
        again = list(stream(model, running.log(), num_frames=whole(12), **options))
        assert md5s(again) == md5s(chunks)
        assert [chunk.receipts for chunk in again] == [chunk.receipts for chunk in chunks]


def test_a_state_keeps_live_prompts_applied_ahead_and_those_still_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_model()
    recorder = Recorder(monkeypatch, model, [CAT, DOG])
    running = stream(model, CAT, num_frames=whole(10), synchronous=False, chunks_ahead=4)
    next(running)
    wait_until(lambda: len(recorder.calls) == WARM_UP + 5 * STEPS)  # it cannot go further ahead
    running.prompt(PromptEvent(DOG, transition="blend"))
    running._keys.wait(DOG)
    next(running)
    wait_until(lambda: len(running.log()) == 2)
    assert running.log()[1].position == (5, 0)  # chunks 0 and 1 are delivered
    state = running.state()
    assert md5s(Stream.resume(model, through_json(state))) == md5s(running)
    waiting = stream(model, CAT, num_frames=whole(4))
    next(waiting)
    waiting.prompt(DOG)
    resumed = Stream.resume(model, waiting.state(), synchronous=True)
    assert md5s(resumed) == md5s(waiting)
    assert [event.prompt for event in resumed.log()] == [CAT, DOG]


def test_log_lines_are_json_and_come_back() -> None:
    event = PromptEvent(None, 1.5, "blend", 0.5, (3, 1))
    assert PromptEvent(**json.loads(json.dumps(event.to_record()))) == event


# Receipts.


def first_pure(calls: list[dict[int, Seen]], prompt: str, num_chunks: int = 11) -> list[int]:
    """Return the first chunk all of whose micro steps saw one prompt alone, if there is one."""
    pure = []
    for chunk in range(num_chunks):
        what = {seen[chunk * SIZE] for seen in calls if chunk * SIZE in seen}
        pure += [chunk] if what == {Seen(prompt)} else []
    return pure[:1]


@pytest.mark.parametrize(
    ("transition", "seconds"),
    [("replace", 1.6), ("chunks", 1.6), ("blend", 0.0), ("blend", 0.5), ("blend", 1.6)],
)
@pytest.mark.parametrize("position", [(-1, 0), (-1, 1), (-1, 2), (0, 0), (2, 0), (2, 1)])
def test_receipts_name_the_chunks_at_which_a_prompt_applied_and_was_complete(
    monkeypatch: pytest.MonkeyPatch, transition: str, position: tuple[int, int], seconds: float
) -> None:
    model = tiny_model()
    recorder = Recorder(monkeypatch, model, [CAT, DOG])
    script = [PromptEvent(CAT), PromptEvent(DOG, 0.0, transition, seconds, position)]
    chunks = list(stream(model, script, num_frames=whole(11)))
    expected = [(0, "applied", CAT), (max(position[0], 0), "applied", DOG)]
    expected += [(c, "complete", p) for p in (CAT, DOG) for c in first_pure(recorder.calls, p)]
    found = events_of(chunks)
    assert sorted(entry[:3] for entry in found) == sorted(expected)
    assert (DOG, "complete") in {(prompt, kind) for _, kind, prompt in expected}
    assert all(e[0] == e[3] and e[4] == e[3] * CHUNK_SECONDS for e in found)


def test_receipts_of_a_clip_start_count_only_the_steps_that_made_a_chunk() -> None:
    model = tiny_model(start="clip")
    script = [PromptEvent(CAT), PromptEvent(DOG, position=(-1, 3))]
    chunks = list(stream(model, script, num_frames=whole(5)))
    # Chunk 3 is noise when the clip ends, so all its steps come later; chunk 2 took steps 0 and 1
    # of the clip, before the change.
    assert events_of(chunks) == [
        (0, "applied", CAT, 0, 0.0),
        (0, "applied", DOG, 0, 0.0),
        (3, "complete", DOG, 3, 3 * CHUNK_SECONDS),
    ]


def test_an_event_that_is_overtaken_is_never_complete() -> None:
    model = tiny_model()
    script = [
        PromptEvent(CAT),
        PromptEvent(DOG, 2 * CHUNK_SECONDS),
        PromptEvent(BALL, 3 * CHUNK_SECONDS),
        PromptEvent(CAT, 10 * CHUNK_SECONDS, "chunks"),
        PromptEvent(DOG, 11 * CHUNK_SECONDS, "chunks"),
    ]
    found = events_of(list(stream(model, script, num_frames=whole(16))))
    assert [(number, prompt) for number, kind, prompt, *_ in found if kind == "complete"] == [
        (0, CAT),
        (6, BALL),
        (13, CAT),
        (14, DOG),
    ]
    assert [number for number, kind, *_ in found if kind == "applied"] == [0, 2, 3, 10, 11]


def test_receipts_carry_the_positioned_event() -> None:
    first, *_ = next(stream(tiny_model(), CAT, num_frames=8)).receipts
    assert first == Receipt(PromptEvent(CAT, position=(-1, 0)), "applied", 0, 0.0)


# What is refused.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("",), "prompt is empty"),
        (("a", -1.0), "seconds -1.0"),
        (("a", float("nan")), "seconds nan"),
        (("a", 0.0, "fade"), "transition 'fade' is not one of replace, chunks, blend"),
        (("a", 0.0, "blend", float("inf")), "transition_seconds inf"),
        (("a", 0.0, "replace", 1.0, (-2, 0)), "before the start"),
        (("a", 0.0, "replace", 1.0, (0, -1)), "before the start"),
    ],
)
def test_a_bad_event_is_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PromptEvent(*arguments)


def test_a_bad_live_prompt_is_refused_and_the_stream_goes_on() -> None:
    model = tiny_model()
    running = stream(model, CAT, num_frames=whole(3), synchronous=False)
    first = next(running)
    for bad in (" ", "a \ud800"):
        with pytest.raises(ConfigError):
            running.prompt(bad)
    assert md5s([first, *running]) == md5s(stream(model, CAT, num_frames=whole(3)))


# The timeline alone, over many scripts.

EVENTS = st.lists(
    st.builds(
        PromptEvent,
        st.sampled_from([CAT, DOG, BALL, None]),
        st.sampled_from([0.0, 0.4, 1.0, 1.5, 3.1]),
        st.sampled_from(["replace", "chunks", "blend"]),
        st.sampled_from([0.0, 0.5, 1.7]),
        st.sampled_from([None, None, (-1, 2), (0, 1), (2, 0), (4, 1)]),
    ),
    max_size=6,
)


def play(timeline: PromptTimeline, first_chunk: int, cut_at: int | None = None) -> Any:
    """Run a timeline through the cycles of a full buffer, as the denoiser does."""
    partition = Partition(num_chunks=3, chunk_size=2, micro_steps=2)
    said, cut = [], None
    ready = {"is_ready": lambda prompt: True, "wait": lambda prompt: None}
    for chunk in range(first_chunk, 9):
        first = chunk * partition.chunk_size
        chunks = [first, first + 2, first + 4]
        for micro_step in range(partition.micro_steps):
            position = (chunk, micro_step) if chunk else (-1, micro_step)
            timeline.advance(position, chunks[-1] + 2 * micro_step, **ready)
            timeline.observe(chunks)
            said.append((chunk, timeline.view(first, partition.buffer_length)))
        said.append((chunk, timeline.emit(chunk, first)))
        if chunk == cut_at:
            cut = timeline.cut()
    return said, cut


@settings(max_examples=150, deadline=None)
@given(events=EVENTS, cut_at=st.integers(0, 7))
def test_a_timeline_goes_on_from_any_cut_and_shows_two_prompts_at_most(
    events: list[PromptEvent], cut_at: int
) -> None:
    timeline = PromptTimeline(events, chunk_seconds=0.5)
    said, cut = play(timeline, 0, cut_at)
    record = json.loads(json.dumps(timeline.record(cut)))
    resumed = PromptTimeline.from_record(record, chunk_seconds=0.5)
    assert play(resumed, cut_at + 1)[0] == [entry for entry in said if entry[0] > cut_at]
    assert resumed.log() == timeline.log()
    replayed = PromptTimeline(timeline.log(), chunk_seconds=0.5)
    assert play(replayed, 0)[0] == said
    for _, view in said:
        if not isinstance(view, tuple):
            assert (view.second is None) == (view.weight == 0.0) and 0 <= view.weight < 1
