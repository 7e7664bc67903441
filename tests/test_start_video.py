"""Claim: a stream goes on from an image or a video, whose last frame is the one before its first.

The start fills the buffer as if it had been streamed, is not emitted, and leaves no seam in the
decoder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_open import tiny_open
from tiny_streams import CHUNK_FRAMES, frames_of, md5s, patched, tiny_model
from torch import Tensor

from streamdit_model import ConfigError, Partition, PromptEvent, Stream, load
from streamdit_model.flow_matching import interpolate, keyed_noise
from streamdit_model.known_frames import start_frames
from streamdit_model.sampling import Window
from streamdit_model.shapes import Clip, render
from streamdit_model.stream_state import StreamState
from streamdit_model.video_input import VideoInput
from streamdit_model.weights import Model

SHAPES = Path(__file__).parents[1] / "presets" / "shapes"
REFERENCES = Partition(num_reference=1, num_chunks=3, chunk_size=2, micro_steps=2)


def video(frames: int, side: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randint(0, 256, (frames, side, side, 3), generator=generator).to(torch.uint8)


def stream(model: Any, first_video: Tensor, **options: Any) -> Stream:
    options = {"seed": 5, "num_frames": 30, "synchronous": True, **options}
    return Stream(model, options.pop("prompts", "a cat"), first_video=first_video, **options)


def wanted(model: Any) -> int:
    """Video frames that fill the buffer and what the encoder looks back on."""
    return 4 * (model.config.partition.buffer_length + model.autoencoder.encoder_lead_in)


def test_image_is_shown_as_a_still_and_of_a_long_video_the_end_counts() -> None:
    model = tiny_model()
    length = wanted(model)
    image, shown = video(1), video(length + 9)
    assert torch.equal(start_frames(model, image), image.expand(length, -1, -1, -1))
    assert torch.equal(start_frames(model, shown), shown[9:])
    short = start_frames(model, shown[:3])
    assert torch.equal(short[-3:], shown[:3])
    assert torch.equal(short[:-3], shown[:1].expand(length - 3, -1, -1, -1))
    assert md5s(stream(model, shown)) == md5s(stream(model, shown[9:]))
    assert md5s(stream(model, shown)) != md5s(stream(model, shown[8:-1]))
    assert md5s(stream(model, image)) != md5s(stream(model, shown[:3]))


@pytest.mark.parametrize("partition", [None, REFERENCES])
def test_start_moves_through_the_buffer_on_its_way_to_itself(
    partition: Partition | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(partition)
    partition, noise = model.config.partition, keyed_noise([5], *model.config.frame_shape)
    length, shown = partition.buffer_length, video(wanted(model))
    clean = VideoInput(model, iter([shown])).latents(0, wanted(model) // 4)[:, :, -length:]
    velocity, firsts = Model.velocity, []

    def watched(self: Model, window: Window) -> Tensor:
        known = min(max(0, -window.first_frame), window.latents.shape[2])
        if known:
            first = window.first_frame
            born = torch.stack([noise(first + place, 0) for place in range(known)], dim=2)
            given = clean[:, :, first + length : first + length + known]
            expected = interpolate(given, born, window.tau[0, :known])
            assert torch.equal(window.latents[:, :, :known], expected)
        assert window.latents.shape[2] == length  # the buffer is full from the first step on
        firsts.append((window.first_frame, known))
        return velocity(self, window)

    monkeypatch.setattr(Model, "velocity", watched)
    chunks = list(stream(model, shown, num_frames=2 * CHUNK_FRAMES))
    assert [chunk.first_frame for chunk in chunks] == [0, CHUNK_FRAMES]
    steps = partition.micro_steps
    assert len(firsts) == (partition.num_chunks + 2) * steps
    assert firsts[0] == (-length, length)
    assert firsts[partition.num_chunks * steps] == (
        -partition.num_reference,
        partition.num_reference,
    )


def test_stream_is_decoded_as_the_end_of_the_start() -> None:
    model, emitted = tiny_model(), []
    shown = video(wanted(model))
    decode = model.autoencoder.decode_step

    def watched(latents: Tensor, state: Any) -> Any:
        emitted.append(latents)
        return decode(latents, state)

    with patched(model.autoencoder, "decode_step", watched):
        made = frames_of(stream(model, shown, num_frames=24))
    whole = model.autoencoder.decode(torch.cat(emitted, dim=2))[0].clamp(0, 1) * 255
    assert whole.shape[1] == len(shown) + 24
    # float32 sums of another order may move a value across the rounding to whole numbers
    assert (made - whole[:, -24:].permute(1, 2, 3, 0)).abs().max() <= 0.5 + 1e-3


def test_motion_goes_on_where_the_video_ended() -> None:
    model = load(SHAPES)
    clip = Clip(color="red", background="navy", shape="square", size="large", motion="circling")
    prompt = "a large red square circling on a navy background"
    shown = render(clip, 72, 64)
    made = frames_of(stream(model, shown, prompts=prompt, num_frames=8)).float()
    errors = {
        shift: float((made - render(clip, 8, 64, first_frame=72 + shift)).abs().mean())
        for shift in range(-24, 25, 4)
    }
    assert min(errors, key=errors.__getitem__) == 0, errors


def test_threads_give_the_frames_of_the_synchronous_stream_behind_a_start() -> None:
    model = tiny_model()
    events = [PromptEvent("a cat"), PromptEvent("a dog", 1.0)]
    expected = list(stream(model, video(5), prompts=events))
    threaded = list(stream(model, video(5), prompts=events, synchronous=False))
    assert md5s(threaded) == md5s(expected)
    assert [chunk.receipts for chunk in threaded] == [chunk.receipts for chunk in expected]
    first = [(r.kind, r.chunk) for r in expected[0].receipts]
    assert first == [("applied", 0), ("complete", 0)]
    alone = Stream(model, events, seed=5, num_frames=30, synchronous=True)
    assert not set(md5s(expected)) & set(md5s(alone))


@pytest.mark.parametrize("partition", [None, REFERENCES])
def test_stream_behind_a_start_resumes_after_every_chunk(partition: Partition | None) -> None:
    model = tiny_model(partition)
    running = stream(model, video(20))
    states, expected = [through_json(running.state())], []
    for chunk in running:
        expected += md5s([chunk])
        states.append(through_json(running.state()))
    for done, state in enumerate(states):
        assert ("opening" in state[0]) == (done == 0)  # nobody has to keep the video
        resumed = Stream.resume(model, state, synchronous=True)
        assert md5s(resumed) == expected[done:]
        assert resumed.plan["start"] == "video"


def through_json(state: StreamState) -> StreamState:
    return state[0], json.loads(json.dumps(state[1]))


@pytest.mark.parametrize(("sampler", "decoder"), [("rolling", "small"), ("guided", "full")])
def test_open_weights_go_on_with_whole_chunks(tmp_path: Path, sampler: str, decoder: str) -> None:
    model = tiny_open(tmp_path, sampler, decoder=decoder)
    whole = 4 * model.config.partition.chunk_size
    shown, how = video(30, side=32), {"num_frames": 2 * whole + 1}
    found = list(stream(model, shown, **how))
    assert [len(chunk.frames) for chunk in found] == [whole, whole, 1]
    assert [chunk.seconds for chunk in found] == [0, whole / 16, 2 * whole / 16]
    assert md5s(found) != md5s(stream(model, shown[:-1], **how))


@pytest.mark.parametrize(
    ("first_video", "options", "message"),
    [
        (video(0), {}, "no frames"),
        (video(3)[0], {}, "shape .16, 16, 3."),
        (video(3, side=8), {}, "shape .3, 8, 8, 3."),
        (video(3).float(), {}, "float32"),
        (video(3), {"source": [video(3)]}, "exclude each other"),
        (video(3), {"start": "ramp"}, "start 'ramp' has no effect"),
    ],
)
def test_start_that_cannot_be_is_refused(
    first_video: Tensor, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        stream(tiny_model(), first_video, **options)
