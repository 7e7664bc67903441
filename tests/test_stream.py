"""Claim: a stream is a function of model, prompts and seed, and of nothing else.

Not of threads, of its length, of the reader's pace, or of having been stopped and resumed; it holds
little ahead, keeps what it made before an error, and never lets a bad value become a frame.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_streams import CHUNK_FRAMES, CHUNK_SECONDS, frames_of, md5s, patched, tiny_model
from torch import Tensor

import streamdit_model
from streamdit_model import (
    ConfigError,
    NumericsError,
    Partition,
    PromptEvent,
    Stream,
    VideoChunk,
    WeightsError,
    load_state,
    save_state,
)
from streamdit_model.latent_streams import stream_latents
from streamdit_model.stream_state import StreamState
from streamdit_model.weights import Model

NUM_CHUNKS = 12
SCRIPT = (
    PromptEvent("a cat"),
    PromptEvent("a dog", seconds=1.3, transition="blend", transition_seconds=1.4),
    PromptEvent("a red ball", seconds=3.0, transition="chunks"),
    PromptEvent(None, seconds=4.5),
)
FIXED = Partition(num_reference=1, num_chunks=3, chunk_size=2, micro_steps=2)
VARIANTS = {
    "ramp": {},
    "clip": {"start": "clip"},
    "guided": {"guidance_scale": 3.0},
    "clip-guided-renoise": {"start": "clip", "guidance_scale": 2.0, "stepper": "renoise"},
    "references": {"partition": FIXED},
    "clip-references": {"partition": FIXED, "start": "clip"},
    "diagonal": {"partition": Partition.diagonal(buffer_length=4)},
}


def stream(model: Model, prompts: Any = SCRIPT, **options: Any) -> Stream:
    options = {"seed": 5, "synchronous": True, **options}
    return Stream(model, prompts, **options)


def whole(num_chunks: int = NUM_CHUNKS) -> int:
    return num_chunks * CHUNK_FRAMES


def worker_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("streamdit-")]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    if worker_threads():
        gc.collect()
    deadline = time.monotonic() + 60
    while worker_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert worker_threads() == []


class Counted:
    """Count the calls of a function, and let a test act at a call."""

    def __init__(self, function: Any, act: Any = None) -> None:
        self.function, self.act, self.calls = function, act, 0

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.calls += 1
        result = self.function(*args, **options)
        return result if self.act is None else self.act(self.calls, result)


# The same frames.


@pytest.mark.parametrize("variant", VARIANTS)
def test_threads_give_the_frames_of_the_synchronous_stream(variant: str) -> None:
    model = tiny_model(**VARIANTS[variant])
    frames = whole(8) - 3
    expected = list(stream(model, num_frames=frames))
    threaded = list(stream(model, num_frames=frames, synchronous=False))
    assert md5s(threaded) == md5s(expected)
    assert [chunk.receipts for chunk in threaded] == [chunk.receipts for chunk in expected]
    assert [chunk.prompt for chunk in threaded] == [chunk.prompt for chunk in expected]


def test_a_stream_differs_by_seed_by_prompt_and_by_start() -> None:
    model = tiny_model()
    options = [{}, {"seed": 6}, {"prompts": "a cow"}, {"start": "clip"}, {"guidance_scale": 2.0}]
    firsts = {md5s([next(stream(model, **option))])[0] for option in options}
    assert len(firsts) == len(options)


def test_chunks_tell_their_place_in_the_video() -> None:
    chunks = list(stream(tiny_model(), num_frames=19))
    assert [chunk.number for chunk in chunks] == [0, 1, 2]
    assert [chunk.first_frame for chunk in chunks] == [0, 8, 16]
    assert [chunk.seconds for chunk in chunks] == [0.0, CHUNK_SECONDS, 2 * CHUNK_SECONDS]
    assert [tuple(chunk.frames.shape) for chunk in chunks] == [
        (8, 16, 16, 3),
        (8, 16, 16, 3),
        (3, 16, 16, 3),
    ]
    assert {chunk.frames.dtype for chunk in chunks} == {torch.uint8}
    assert all(chunk.statistics["denoise_ms"] > 0 for chunk in chunks)
    assert all(chunk.statistics["decode_ms"] > 0 for chunk in chunks)


@pytest.mark.parametrize("synchronous", [True, False])
def test_frames_do_not_depend_on_the_number_asked_for(synchronous: bool) -> None:
    model = tiny_model()
    endless = stream(model, synchronous=synchronous)
    expected = frames_of([next(endless) for _ in range(4)])
    endless.close()
    for count in (1, 7, 8, 9, 16, 31, 32):
        frames = frames_of(stream(model, num_frames=count, synchronous=synchronous))
        assert len(frames) == count
        assert torch.equal(frames, expected[:count])


def test_frames_depend_neither_on_chunks_ahead_nor_on_the_pace_of_the_reader() -> None:
    model = tiny_model()
    expected = md5s(stream(model, num_frames=whole(6)))
    for ahead in (1, 2, 5):
        pieces = []
        for chunk in stream(model, num_frames=whole(6), synchronous=False, chunks_ahead=ahead):
            time.sleep(0.02 if chunk.number % 2 else 0)
            pieces.append(chunk)
        assert md5s(pieces) == expected


def test_decoded_stream_equals_the_whole_clip_decoded_at_once() -> None:
    model = tiny_model()
    latents = torch.cat(list(stream_latents(model, ["a cat"], [5], 4)), dim=2)
    video = model.autoencoder.decode(latents)[0].clamp(0, 1).permute(1, 2, 3, 0) * 255
    frames = frames_of(stream(model, "a cat", num_frames=whole(4)))
    # float32 sums of another order may move a value across the rounding to whole numbers
    assert (frames - video).abs().max() <= 0.5 + 1e-3


@pytest.mark.parametrize("variant", ["ramp", "clip-guided-renoise"])
def test_a_stream_in_a_batch_agrees_with_the_stream_alone(variant: str) -> None:
    model = tiny_model(**VARIANTS[variant])
    prompts, seeds = ["a cat", None, "a long red dog"], [5, 6, 7]
    batch = torch.cat(list(stream_latents(model, prompts, seeds, 5)), dim=2)
    assert batch.shape == (3, 4, 10, 2, 2)
    for index, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        alone = torch.cat(list(stream_latents(model, [prompt], [seed], 5)), dim=2)
        # float32: batched matrix products add in another order
        torch.testing.assert_close(batch[index : index + 1], alone, rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match="3 prompts and 2 seeds"):
        next(stream_latents(model, prompts, [1, 2], 5))


def test_latents_of_a_stream_alone_are_those_behind_its_frames() -> None:
    model = tiny_model()
    latents = torch.cat(list(stream_latents(model, ["a cat"], [5], 3)), dim=2)
    video, _ = model.autoencoder.decode_step(latents, None)
    frames = (video[0].clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 3, 0)
    assert torch.equal(frames, frames_of(stream(model, "a cat", num_frames=whole(3))))


# Stopping and going on.


def through_json(state: StreamState) -> StreamState:
    return state[0], json.loads(json.dumps(state[1]))


@pytest.mark.parametrize("variant", VARIANTS)
def test_state_after_every_chunk_resumes_with_the_same_frames(variant: str) -> None:
    model = tiny_model(**VARIANTS[variant])
    frames = NUM_CHUNKS * model.config.partition.chunk_size * 4
    running, states, expected = stream(model, num_frames=frames), [], []
    states.append(through_json(running.state()))
    for chunk in running:
        expected.append(chunk)
        states.append(through_json(running.state()))
    other = tiny_model(**VARIANTS[variant])
    for done, state in enumerate(states):
        resumed = Stream.resume(other, state, synchronous=True)
        # All the way from a place in a blend, elsewhere until every chunk of the buffer is new.
        rest = list(resumed if done == 4 else islice(resumed, 5))
        assert md5s(rest) == md5s(expected[done : done + len(rest)])
        assert len(rest) == min(8 if done == 4 else 5, NUM_CHUNKS - done)
        assert [(c.number, c.first_frame, c.prompt, c.receipts) for c in rest] == [
            (c.number, c.first_frame, c.prompt, c.receipts)
            for c in expected[done : done + len(rest)]
        ]
        assert resumed.log() == running.log()[: len(resumed.log())]


def test_state_of_a_threaded_stream_is_that_of_the_chunk_delivered_last() -> None:
    model = tiny_model()
    expected = md5s(stream(model, num_frames=whole()))
    running = stream(model, num_frames=whole(), synchronous=False, chunks_ahead=4)
    for done, _ in enumerate(running, start=1):
        time.sleep(0.01)  # lets the stages run ahead
        state = through_json(running.state())
        assert md5s(Stream.resume(model, state)) == expected[done:]


def test_state_of_a_resumed_stream_resumes_again() -> None:
    model = tiny_model()
    expected = md5s(stream(model, num_frames=whole(6)))
    made: list[str] = []
    state = stream(model, num_frames=whole(6)).state()
    for _ in range(6):
        resumed = Stream.resume(model, through_json(state), synchronous=True)
        made += md5s([next(resumed)])
        state = resumed.state()
        again = Stream.resume(model, through_json(state)).state()
        assert again[1] == state[1]
        assert all(torch.equal(again[0][name], tensor) for name, tensor in state[0].items())
    assert made == expected


def test_a_finished_stream_goes_on_to_a_longer_one_without_a_missing_frame() -> None:
    model = tiny_model()
    expected = frames_of(stream(model, num_frames=40))
    short = stream(model, num_frames=13)
    assert torch.equal(frames_of(short), expected[:13])
    middle = Stream.resume(model, through_json(short.state()), num_frames=15)
    assert torch.equal(frames_of(middle), expected[13:15])
    rest = list(Stream.resume(model, through_json(middle.state()), num_frames=40))
    assert torch.equal(frames_of(rest), expected[15:])
    assert [chunk.first_frame for chunk in rest] == [15, 16, 24, 32]
    endless = Stream.resume(model, short.state(), num_frames=None, synchronous=True)
    assert torch.equal(frames_of([next(endless), next(endless)]), expected[13:24])
    assert list(Stream.resume(model, short.state())) == []


FRESH_PROCESS = """
import sys
from tiny_streams import md5s, tiny_model
from streamdit_model import Stream, load_state
print(*md5s(Stream.resume(tiny_model(), load_state(sys.argv[1]))))
"""


def test_a_fresh_process_goes_on_from_the_file_with_the_same_frames(tmp_path: Path) -> None:
    model = tiny_model()
    running = stream(model, num_frames=whole(8))
    chunks = [next(running) for _ in range(4)]  # a blend is in progress
    running.save_state(tmp_path / "state")
    expected = md5s(running)
    done = subprocess.run(
        [sys.executable, "-c", FRESH_PROCESS, tmp_path / "state"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert (done.returncode, done.stdout.split()) == (0, expected), done.stderr
    assert len(chunks) + len(expected) == 8


def test_another_model_or_another_plan_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_model()
    running = stream(model, num_frames=whole(2))
    next(running)
    state = running.state()
    with pytest.raises(WeightsError, match="another model"):
        Stream.resume(tiny_model(seed=1), state)
    other_plan = state[0], {**state[1], "plan": {**running.plan, "threads": "64"}}
    with pytest.raises(ConfigError, match="threads 64 is now"):
        Stream.resume(model, other_plan)
    assert not caplog.records
    resumed = Stream.resume(model, other_plan, exact=False)
    assert "threads 64 is now" in caplog.text
    assert md5s(resumed) == md5s(running)


def test_plan_names_what_decides_about_the_bits() -> None:
    plan = stream(tiny_model(), num_frames=1, start="clip").plan
    wanted = {"machine", "device", "dtype", "threads", "torch", "compile", "stepper", "start"}
    assert set(plan) == wanted
    assert (plan["device"], plan["dtype"], plan["start"]) == ("cpu", "float32", "clip")
    assert plan["torch"] == torch.__version__ and plan["threads"] == str(torch.get_num_threads())


def state_file(folder: Path) -> Path:
    running = stream(tiny_model(), num_frames=whole(3))
    next(running)
    running.save_state(folder / "state")
    return folder / "state"


def test_a_state_file_gives_back_the_state(tmp_path: Path) -> None:
    running = stream(tiny_model(), num_frames=13)
    list(running)
    tensors, record = running.state()
    save_state(tmp_path / "state", (tensors, record))
    found, found_record = load_state(tmp_path / "state")
    assert found_record == json.loads(json.dumps(record))
    assert found.keys() == tensors.keys() and "rest" in found
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_a_changed_bit_of_a_state_file_is_noticed(tmp_path: Path) -> None:
    path = state_file(tmp_path)
    good = path.read_bytes()
    for place in range(0, 8 * len(good), max(1, 8 * len(good) // 200)):
        bad = bytearray(good)
        bad[place // 8] ^= 1 << place % 8
        path.write_bytes(bad)
        with pytest.raises(WeightsError):
            load_state(path)
    for length in (0, 7, 8, 100, len(good) - 1):
        path.write_bytes(good[:length])
        with pytest.raises(WeightsError):
            load_state(path)
    with pytest.raises(WeightsError, match="missing"):
        load_state(tmp_path / "nothing")


def test_a_state_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = state_file(tmp_path)
    before = path.read_bytes()
    longer = stream(tiny_model(), num_frames=whole(3))
    list(longer)

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with patched(streamdit_model.stream_state.os, "replace", refuse), pytest.raises(OSError):
        longer.save_state(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# Little ahead, and orderly ends.


def test_a_slow_reader_slows_the_model_down(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    velocity = Counted(Model.velocity)
    monkeypatch.setattr(Model, "velocity", lambda self, window: velocity(self, window))
    partition = model.config.partition
    start = (partition.num_chunks - 1) * partition.micro_steps
    for ahead in (1, 3):
        velocity.calls = 0
        running = stream(model, synchronous=False, chunks_ahead=ahead)
        for taken in range(1, 5):
            next(running)
            deadline = time.monotonic() + 60
            limit = start + (taken + ahead) * partition.micro_steps
            while velocity.calls < limit and time.monotonic() < deadline:
                time.sleep(0.005)
            time.sleep(0.05)
            assert velocity.calls == limit
        running.close()


def test_close_ends_the_threads_and_the_iteration() -> None:
    running = stream(tiny_model(), synchronous=False)
    next(running)
    assert len(worker_threads()) == 3
    running.close()
    assert not [name for name in worker_threads() if "text" not in name]
    assert list(running) == []
    running.close()
    running.prompt("too late")
    assert running.state()[1]["chunks"] == 1


def test_close_wakes_a_reader_that_waits() -> None:
    model = tiny_model()
    asked, release = threading.Event(), threading.Event()

    def block(_: int, keys: Any) -> Any:
        asked.set()
        release.wait(60)
        return keys

    with patched(model.transformer, "text_keys", Counted(model.transformer.text_keys, block)):
        running = stream(model, synchronous=False)
        found: list[object] = []
        reader = threading.Thread(target=lambda: found.append(list(running)))
        reader.start()
        assert asked.wait(60)
        closer = threading.Thread(target=running.close)
        closer.start()
        release.set()
        closer.join(60)
        reader.join(60)
    assert found == [[]] and not reader.is_alive() and not closer.is_alive()


def test_an_abandoned_stream_ends_its_threads() -> None:
    running = stream(tiny_model(), synchronous=False)
    for _ in running:
        break
    assert worker_threads()
    del running
    gc.collect()
    assert not [name for name in worker_threads() if "text" not in name]


def test_a_stream_is_closed_by_its_context() -> None:
    with stream(tiny_model(), synchronous=False) as running:
        next(running)
    assert list(running) == []


def test_an_endless_stream_ends_with_its_process() -> None:
    code = "from tiny_streams import tiny_model\nfrom streamdit_model import Stream\n"
    code += "stream = Stream(tiny_model(), 'a cat', seed=1)\nprint(len(next(stream).frames))\n"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "8\n", "")


# Errors.


def read_until_error(running: Stream) -> tuple[list[VideoChunk], BaseException]:
    chunks: list[VideoChunk] = []
    with pytest.raises(Exception) as caught:
        for chunk in running:
            chunks.append(chunk)
    assert list(running) == []
    return chunks, caught.value


@pytest.mark.parametrize("synchronous", [True, False])
@pytest.mark.parametrize("place", ["velocity", "decode", "text"])
def test_an_error_anywhere_comes_after_the_chunks_made_before_it(
    place: str, synchronous: bool
) -> None:
    model = tiny_model()
    expected = md5s(stream(model, num_frames=whole(8)))

    def fail(call: int, result: Any) -> Any:
        if call == at:
            raise MemoryError("injected")
        return result

    start = 3 * 2
    owner, name, at = {
        "velocity": (model.transformer, "forward", start + 3 * 2 + 2),
        "decode": (model.autoencoder, "decode_step", 4),
        "text": (model.text_encoder, "encode", 2),  # "a dog", wanted from chunk 3 on
    }[place]
    with patched(owner, name, Counted(getattr(owner, name), fail)):
        chunks, error = read_until_error(stream(model, num_frames=None, synchronous=synchronous))
    assert isinstance(error, MemoryError)
    assert md5s(chunks) == expected[:3]


@pytest.mark.parametrize("synchronous", [True, False])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", ["latents", "video"])
def test_a_value_that_is_not_finite_never_becomes_a_frame(
    place: str, bad: float, synchronous: bool
) -> None:
    model = tiny_model()
    expected = md5s(stream(model, num_frames=whole(6)))
    for good in (0, 1, 4):
        call = 3 * 2 + good * 2 + 2 if place == "latents" else good + 1

        def spoil(number: int, result: Any, call: int = call) -> Any:
            tensor: Tensor = result if isinstance(result, Tensor) else result[0]
            if number == call:
                tensor[:, 0, 0, 0, 0] = bad
            return result

        owner = model.transformer if place == "latents" else model.autoencoder
        name = "forward" if place == "latents" else "decode_step"
        with patched(owner, name, Counted(getattr(owner, name), spoil)):
            running = stream(model, num_frames=whole(6), synchronous=synchronous)
            chunks, error = read_until_error(running)
        assert isinstance(error, NumericsError)
        assert md5s(chunks) == expected[:good]
        assert f"chunk {good} " in str(error) and "seed 5" in str(error)
        assert "micro step" in str(error)
        if place == "latents":
            assert "micro step 1 on" in str(error)


def test_the_error_of_a_bad_start_says_so() -> None:
    model = tiny_model()

    def spoil(call: int, result: Tensor) -> Tensor:
        return result * float("nan") if call == 4 else result

    with patched(model.transformer, "forward", Counted(model.transformer.forward, spoil)):
        chunks, error = read_until_error(stream(model))
    assert not chunks
    assert "chunk 0 are not finite from micro step 1 of the start on" in str(error)


def test_a_stream_resumes_from_before_an_error_as_if_it_had_not_been() -> None:
    model = tiny_model()
    expected = md5s(stream(model, num_frames=whole(6)))

    def spoil(call: int, result: Any) -> Any:
        return (result[0] * float("nan"), result[1]) if call == 3 else result

    with patched(model.autoencoder, "decode_step", Counted(model.autoencoder.decode_step, spoil)):
        running = stream(model, num_frames=whole(6), synchronous=False)
        chunks, _ = read_until_error(running)
    assert md5s(chunks) + md5s(Stream.resume(model, running.state())) == expected


# What is refused.


def test_guidance_is_refused_on_a_distilled_model() -> None:
    model = tiny_model(distilled=True)
    expected = md5s(stream(model, num_frames=8))
    assert md5s(stream(model, num_frames=8, guidance_scale=1.0)) == expected
    for options in ({"guidance_scale": 2.0}, {"guidance_scale": 0.0}, {"negative_prompt": "mud"}):
        with pytest.raises(ConfigError, match="baked in"):
            stream(model, **options)


def test_guidance_is_the_models_own_unless_told() -> None:
    model = tiny_model(guidance_scale=3.0)
    own = md5s(stream(model, num_frames=8))
    assert md5s(stream(model, num_frames=8, guidance_scale=3.0)) == own
    plain = md5s(stream(model, num_frames=8, guidance_scale=1.0))
    assert plain == md5s(stream(tiny_model(), num_frames=8))
    assert plain != own
    assert md5s(stream(model, num_frames=8, negative_prompt="mud")) not in (own, plain)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 0}, "number of frames 0"),
        ({"num_frames": -3}, "number of frames -3"),
        ({"seed": -1}, "seed -1"),
        ({"start": "slide"}, "start 'slide'"),
        ({"chunks_ahead": 0}, "chunks ahead 0"),
        ({"guidance_scale": float("nan")}, "guidance scale nan"),
        ({"guidance_scale": -1.0}, "guidance scale -1"),
        ({"negative_prompt": "mud"}, "no effect"),
        ({"prompts": " "}, "prompt is empty"),
        ({"prompts": "a \ud800"}, "not Unicode"),
    ],
)
def test_a_value_out_of_range_is_refused_before_anything_runs(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        stream(tiny_model(), **options)


def test_the_library_is_imported_without_torch_until_it_is_used() -> None:
    code = "import sys, streamdit_model\nassert 'torch' not in sys.modules\n"
    code += "streamdit_model.Stream\nassert 'torch' in sys.modules\n"
    code += "[getattr(streamdit_model, name) for name in streamdit_model.__all__]"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        streamdit_model.nothing  # noqa: B018
