"""How much memory a model of open Wan weights needs, worked out before anything is loaded.

Weights are counted on real networks of the meta device, the context and the text keys by exact
arithmetic. What a pass makes and forgets is a formula: with q tokens in the window, k keys of
context, width d, e bytes a value and f = 4 / e, one block holds at most, in units of q d e,

    attention  the largest of 6 + 2f (+1 for a cast), 7 + 2k/q + (2f + 1) k/q, 10 + 4k/q
    MLP        3 + 2 (MLP width) / d + 2k/q

beside rotations, modulations and one copy of the text keys. The largest of the two and of noisy
and clean passes counts. Guidance calls twice, one after the other: it adds its text keys only.

A decoder works on u, the four frames of its finest channels: the full one on 3 + 2.5f of them (with
straight ways 2 + 5f), the small one on 2.3. Between calls it remembers exact amounts. A stream
keeps that memory for the chunk delivered last and for `CHUNKS_AHEAD` more.

Margin: measured as the live tensors of all operators, in float32 and bfloat16, at tiny and at full
size, the formulas of network and decoders are not below and at most 12 % above, that of the text
encoder 30 %. What operators take inside themselves, and what an allocator cannot use, is in
`RESERVE` and `SLACK`; these two are choices that nobody measured.

Reference: open-weights.md 2.6; `tests/test_wan_memory.py` measures.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import nn

from streamdit_model.autoencoder import TIME_FACTOR
from streamdit_model.blocks import MODULATIONS
from streamdit_model.wan.config import WanConfig
from streamdit_model.wan.loading import TEXT_DTYPE, build_autoencoder, on_meta
from streamdit_model.wan.model_config import WanModelConfig
from streamdit_model.wan.offload import Offload
from streamdit_model.wan.text_weights import WanTextConfig, num_parameters
from streamdit_model.wan.tiny import BLOCKS, DECODER_SPLITS, TinyAutoencoderConfig
from streamdit_model.wan.transformer import WanTransformer
from streamdit_model.wan.vae_config import WanAutoencoderConfig

__all__ = [
    "GIGA",
    "MemoryEstimate",
    "decoder_state_bytes",
    "decoder_work_bytes",
    "estimate_memory",
    "network_work_bytes",
    "text_work_bytes",
]

GIGA = 10**9
RESERVE = 800_000_000
"""Bytes of a process before any tensor: the CUDA context, kernels, workspaces. Choice: a guess."""

SLACK = 0.1
"""Share of what is made and forgotten that an allocator cannot use again. Choice: a guess."""

CHUNKS_AHEAD = 2  # of a stream, as it is opened by default
BLOCKS_RESIDENT = 2  # of an offloaded network: the one that runs and the one that arrives
_FLOAT = 4  # bytes of float32, in which some steps compute whatever the dtype is


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryEstimate:
    """Bytes on the device of the networks.

    Args:
        transformer, decoder, text_encoder: weights; of an offloaded network those at one time. 0
            of a text encoder that is never there.
        context: keys and values of the ring.
        text_keys: cross-attention keys and values of the prompts.
        network_work: what a pass makes and forgets.
        decoder_state: what all chunks in the making keep of the decoder.
        decoder_work: what decoding makes and forgets.
        text_work: what encoding a prompt makes and forgets.
        keeps_text: whether the text encoder stays beside the rest.
        num_prompts: whose keys are counted.
    """

    transformer: int
    decoder: int
    text_encoder: int
    context: int
    text_keys: int
    network_work: int
    decoder_state: int
    decoder_work: int
    text_work: int
    keeps_text: bool
    num_prompts: int

    @property
    def text_phase(self) -> int:
        """Bytes while prompts are encoded, before the network comes; 0 without an encoder."""
        if not self.text_encoder:
            return 0
        return RESERVE + self.text_encoder + round(self.text_work * (1 + SLACK))

    @property
    def video_phase(self) -> int:
        """Bytes while video is made: network and decoder run side by side."""
        held = self.transformer + self.decoder + self.context + self.text_keys + self.decoder_state
        if self.keeps_text:
            held += self.text_encoder
        return RESERVE + held + round((self.network_work + self.decoder_work) * (1 + SLACK))

    @property
    def peak(self) -> int:
        """The larger of the two phases."""
        return max(self.text_phase, self.video_phase)


def estimate_memory(
    config: WanModelConfig,
    *,
    dtype: torch.dtype,
    offload: Offload = "text",
    has_text_encoder: bool = True,
    num_prompts: int = 1,
) -> MemoryEstimate:
    """Return the memory that a stream of a model needs on its device.

    Args:
        config: the model, with its size, decoder and context.
        dtype: of network and decoder.
        offload: see `Offload`; on a CPU nothing can leave, so "cpu" is "text" there.
        has_text_encoder: False where it is never on the device: random weights, or a GPU that is
            too small for it.
        num_prompts: whose keys are kept, the null text of guidance included.
    """
    network = config.transformer
    blocks, rest = _network_bytes(network, dtype)
    weights = (
        rest + (min(BLOCKS_RESIDENT, network.depth) if offload == "cpu" else network.depth) * blocks
    )
    keys = text_key_bytes(network, dtype)
    chunk = config.partition.chunk_size
    return MemoryEstimate(
        transformer=weights,
        decoder=_bytes_of(_autoencoder_values(config.autoencoder), dtype),
        text_encoder=num_parameters(config.text) * TEXT_DTYPE.itemsize if has_text_encoder else 0,
        context=context_bytes(config, dtype),
        text_keys=num_prompts * keys,
        network_work=_stream_work_bytes(config, dtype) + keys,
        decoder_state=(CHUNKS_AHEAD + 1)
        * decoder_state_bytes(config.autoencoder, config.height, config.width, dtype),
        decoder_work=decoder_work_bytes(
            config.autoencoder, config.height, config.width, dtype, latent_frames=chunk
        ),
        text_work=text_work_bytes(config.text) if has_text_encoder else 0,
        keeps_text=offload == "none",
        num_prompts=num_prompts,
    )


def context_bytes(config: WanModelConfig, dtype: torch.dtype) -> int:
    """Return the bytes of the context ring of one stream; 0 without a context."""
    if config.context is None:
        return 0
    network, tokens = config.transformer, _tokens(config)
    return 2 * network.depth * config.context.frames_held * tokens * network.width * dtype.itemsize


def text_key_bytes(config: WanConfig, dtype: torch.dtype) -> int:
    """Return the bytes of the cross-attention keys and values of one prompt."""
    return 2 * config.depth * config.text_length * config.width * dtype.itemsize


def network_work_bytes(
    config: WanConfig, dtype: torch.dtype, *, frames: int, context_frames: int, tokens: int
) -> int:
    """Return what one pass makes and forgets, by the formula of this file.

    Args:
        config: of the network.
        dtype: of its weights.
        frames: latent frames of the window.
        context_frames: latent frames of context that it reads.
        tokens: of a latent frame.
    """
    size, past = dtype.itemsize, context_frames / frames
    precise = _FLOAT / size
    turned = 2 * precise + (0 if size == _FLOAT else 1)  # a rotation: two halves, joined, cast
    attention = max(
        6 + turned,
        7 + 2 * past + turned * past if past else 0,
        10 + 4 * past,
    )
    mlp = 3 + 2 * config.mlp_width / config.width + 2 * past
    unit = frames * tokens * config.width * size
    rotations = (frames + context_frames) * tokens * config.head_width * _FLOAT
    modulations = 4 * frames * MODULATIONS * config.width * size
    return round(unit * max(attention, mlp)) + rotations + modulations


def decoder_state_bytes(
    config: WanAutoencoderConfig | TinyAutoencoderConfig,
    height: int,
    width: int,
    dtype: torch.dtype,
) -> int:
    """Return the bytes that a decoder remembers between two calls of one stream.

    Args:
        config: of the autoencoder.
        height, width: of the video in pixels.
        dtype: of its weights.
    """
    area = height // config.space_factor * (width // config.space_factor)
    values = 0
    if isinstance(config, TinyAutoencoderConfig):
        for index in range(len(DECODER_SPLITS)):
            values += BLOCKS * config.decoder_widths[index] * area * 4**index
        return values * dtype.itemsize
    stages = config.decoder_stages
    values += (config.latent_channels + 4 * stages[0].inputs) * area  # the first layer, the middle
    for index, stage in enumerate(stages):
        channels = [stage.inputs] + [stage.outputs] * (2 * stage.blocks - 1)
        if stage.changes_time:
            channels.append(stage.outputs)
        values += sum(channels) * area * 4**index
    values += stages[-1].outputs * area * 4 ** (len(stages) - 1)
    return 2 * values * dtype.itemsize  # two frames of each layer


def decoder_work_bytes(
    config: WanAutoencoderConfig | TinyAutoencoderConfig,
    height: int,
    width: int,
    dtype: torch.dtype,
    *,
    latent_frames: int,
) -> int:
    """Return what decoding a chunk makes and forgets beside its states, by this file's formula.

    Args:
        config: of the autoencoder.
        height, width: of the video in pixels.
        dtype: of its weights.
        latent_frames: of a chunk; their video is held while the last one is decoded.
    """
    area = height // config.pixel_patch * (width // config.pixel_patch)
    video = TIME_FACTOR * latent_frames * 3 * height * width * dtype.itemsize
    if isinstance(config, TinyAutoencoderConfig):
        channels, times = config.decoder_widths[-1], 2.3
    else:
        channels = config.decoder_stages[-1].outputs
        precise = _FLOAT / dtype.itemsize
        times = 2 + 5 * precise if config.straight_ways else 3 + 2.5 * precise
    work = round(times * TIME_FACTOR * channels * area * dtype.itemsize)
    return max(work + video, video + 2 * _FLOAT * video // dtype.itemsize)


def text_work_bytes(config: WanTextConfig) -> int:
    """Return what encoding the longest prompt makes and forgets.

    Two matrices of attention scores in float32, and six rows of the MLP.
    """
    scores = config.num_heads * config.max_tokens**2 * _FLOAT
    return 2 * scores + 6 * config.max_tokens * config.mlp_width * TEXT_DTYPE.itemsize


def _stream_work_bytes(config: WanModelConfig, dtype: torch.dtype) -> int:
    """Return the work of the largest pass of a stream, and its latents."""
    partition, context = config.partition, config.context
    window, chunk = partition.buffer_length, partition.chunk_size
    passes = [(window, 0)]
    if context is not None:
        seen = max(context.span - window, context.sink)
        passes = [(window, min(seen, context.frames_held)), (chunk, context.last_chunks * chunk)]
    work = max(
        network_work_bytes(
            config.transformer, dtype, frames=frames, context_frames=past, tokens=_tokens(config)
        )
        for frames, past in passes
    )
    channels, height, width = config.frame_shape
    histories = 10 if config.stepper == "unipc" else 6
    return work + histories * channels * window * height * width * _FLOAT


def _tokens(config: WanModelConfig) -> int:
    """Return the tokens of a latent frame."""
    _, height, width = config.frame_shape
    _, rows, columns = config.transformer.patch
    return height // rows * (width // columns)


def _network_bytes(config: WanConfig, dtype: torch.dtype) -> tuple[int, int]:
    """Return the bytes of one block, and of everything that is in no block."""
    block, rest = _network_values(config)
    return _bytes_of(block, dtype), _bytes_of(rest, dtype)


@lru_cache(maxsize=32)
def _network_values(config: WanConfig) -> tuple[int, int]:
    """Return the parameters of a block and of the rest; blocks are all alike."""
    one, two = (
        _values(on_meta(lambda depth=depth: WanTransformer(replace(config, depth=depth))))
        for depth in (1, 2)
    )
    return two - one, 2 * one - two


@lru_cache(maxsize=32)
def _autoencoder_values(config: WanAutoencoderConfig | TinyAutoencoderConfig) -> int:
    return _values(on_meta(lambda: build_autoencoder(config)))


def _values(module: nn.Module) -> int:
    return sum(tensor.numel() for tensor in module.state_dict().values())


def _bytes_of(values: int, dtype: torch.dtype) -> int:
    return values * dtype.itemsize
