"""The Wan transformer equals the published classes, and its own additions equal plain passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_transformer import close, randomize
from tiny_wan import (
    TINY,
    condition,
    masked_forward,
    noise,
    text_of,
    tiny_wan,
    tiny_wan_config,
    zero_padded,
)
from torch import Tensor

from streamdit_model.errors import ConfigError
from streamdit_model.frame_text import FrameText
from streamdit_model.text import TextCondition
from streamdit_model.wan.config import WAN_CONFIGS
from streamdit_model.wan.context import ContextRing, ContextSizes
from streamdit_model.wan.keys import rename
from streamdit_model.wan.rotary import rotate, rotation
from streamdit_model.wan.transformer import WanTransformer, timestep_embedding

FRAMES, HEIGHT, WIDTH = 5, 4, 6
TOKENS = HEIGHT * WIDTH // 4
RELATIVE = 1e-5  # float32, and the oracle's angles of the timestep are float32


def oracle(name: str, **changes: Any) -> torch.nn.Module:
    """Return a diffusers network of our tiny shape, every parameter redrawn."""
    models = pytest.importorskip("diffusers")
    heads = TINY["num_heads"]
    model = getattr(models, name)(
        patch_size=(1, 2, 2),
        num_attention_heads=heads,
        attention_head_dim=TINY["width"] // heads,
        in_channels=TINY["latent_channels"],
        out_channels=TINY["latent_channels"],
        text_dim=TINY["text_width"],
        freq_dim=TINY["time_width"],
        ffn_dim=TINY["mlp_width"],
        num_layers=TINY["depth"],
        rope_max_seq_len=32,
        **changes,
    )
    randomize(model, seed=5)
    return model.eval()


def ours(model: torch.nn.Module, **changes: Any) -> WanTransformer:
    """Return our network with the oracle's weights, moved through the key map."""
    network = WanTransformer(tiny_wan_config(**changes))
    network.load_state_dict(rename(model.state_dict(), network.config))
    return network.eval()


def latents(batch: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return noise(batch, TINY["latent_channels"], FRAMES, HEIGHT, WIDTH, dtype=dtype)


def prompts(network: WanTransformer, batch: int) -> FrameText:
    keys = network.text_keys(condition(batch, dtype=torch.float32))
    return FrameText(keys, torch.arange(batch))


def equal(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=RELATIVE * float(expected.abs().max()))


# Parity with the published classes


@torch.no_grad()
@pytest.mark.parametrize("times", [(1000.0, 555.556), (937.5, 0.0)])
def test_one_time_for_all_frames_equals_the_diffusers_wan(times: tuple[float, float]) -> None:
    reference = oracle("WanTransformer3DModel")
    network, time = ours(reference), torch.tensor(times)
    text = zero_padded(condition(2, dtype=torch.float32))
    expected = reference(latents(2), time, text).sample
    found = network.noise_direction(
        latents(2), time[:, None], torch.arange(FRAMES), prompts(network, 2)
    )
    equal(found, expected)


@torch.no_grad()
def test_time_per_frame_equals_the_diffusers_wan_with_a_time_per_token() -> None:
    reference = oracle("WanTransformer3DModel")
    network = ours(reference)
    time = torch.tensor([[0.0, 625.0, 833.333, 937.5, 1000.0], [3.5, 20.0, 100.0, 500.0, 999.0]])
    text = zero_padded(condition(2, dtype=torch.float32))
    expected = reference(latents(2), time.repeat_interleave(TOKENS, dim=1), text).sample
    found = network.noise_direction(latents(2), time, torch.arange(FRAMES), prompts(network, 2))
    equal(found, expected)


@torch.no_grad()
@pytest.mark.parametrize(("fps", "index"), [(16, 0), (24, 1)])
def test_time_per_frame_with_fps_equals_the_diffusers_skyreels(fps: int, index: int) -> None:
    reference = oracle("SkyReelsV2Transformer3DModel", inject_sample_info=True)
    network = ours(reference, fps=fps)
    time = torch.tensor([[20, 216, 470, 995, 999]])
    text = zero_padded(condition(1, dtype=torch.float32))
    expected = reference(latents(1), time, text, enable_diffusion_forcing=True, fps=[index]).sample
    found = network.noise_direction(latents(1), time, torch.arange(FRAMES), prompts(network, 1))
    equal(found, expected)


@torch.no_grad()
def test_one_time_without_fps_equals_the_diffusers_skyreels() -> None:
    reference = oracle("SkyReelsV2Transformer3DModel")
    network, time = ours(reference), torch.tensor([470.0, 999.0])
    text = zero_padded(condition(2, dtype=torch.float32))
    expected = reference(latents(2), time, text).sample
    found = network.noise_direction(
        latents(2), time[:, None], torch.arange(FRAMES), prompts(network, 2)
    )
    equal(found, expected)


def test_rotation_of_a_full_size_head_equals_the_diffusers_table() -> None:
    wan = pytest.importorskip("diffusers.models.transformers.transformer_wan")
    table = wan.WanRotaryPosEmbed(128, (1, 2, 2), 32)
    cosine, sine = table(torch.zeros(1, 16, 7, 6, 10))
    found = rotation(torch.arange(7), 3, 5, 128, torch.device("cpu"), torch.float32)
    torch.testing.assert_close(found.cosine.flatten(0, 1), cosine[0, :, 0, 0::2].float())
    torch.testing.assert_close(found.sine.flatten(0, 1), sine[0, :, 0, 1::2].float())


# Attention windows


def same_window(slots: list[int], shifted: bool) -> Tensor:
    """Say which tokens of windows of (2, 2, 2) share one, by counting borders between them.

    The buffer is 5 frames of 2 x 3 tokens. A shift of 1 moves borders before 2 and 4 to 1, 3 and 5;
    an axis that one window covers has none.
    """
    frames, columns = ({1, 3, 5}, {1, 3}) if shifted else ({2, 4}, {2})
    cells = [
        (sum(slot >= border for border in frames), sum(x >= border for border in columns))
        for slot in slots
        for _ in range(HEIGHT // 2)
        for x in range(WIDTH // 2)
    ]
    return torch.tensor([[one == other for other in cells] for one in cells])


@torch.no_grad()
@pytest.mark.parametrize("slots", [[0, 1, 2, 3, 4], [2, 3, 4]])
def test_windows_equal_a_pass_in_which_other_windows_are_hidden(slots: list[int]) -> None:
    network = tiny_wan(window=(2, 2, 2), buffer_length=FRAMES)
    x, tau = latents(2, torch.float64)[:, :, : len(slots)], torch.rand(2, len(slots)).double()
    text, masks = (
        text_of(network, 0, 3),
        [same_window(slots, shifted) for shifted in (False, True, False)],
    )
    expected = masked_forward(network, x, tau, torch.tensor(slots), text, masks)
    close(network(x, tau, torch.tensor(slots), text), expected)


@torch.no_grad()
def test_windows_hide_absent_frames_and_take_no_context() -> None:
    network, text = tiny_wan(window=(2, 2, 2), buffer_length=FRAMES), text_of(tiny_wan(), 0)
    x, tau, slots = latents(1, torch.float64), torch.full((1, 1), 0.5), torch.arange(FRAMES)
    found = network(x, tau, slots, text, slots[None] >= 3)
    close(found[:, :, 3:], network(x[:, :, 3:], tau, slots[3:], text))
    ring = ContextRing(network.config, ContextSizes(chunk=1, sink=1, span=9), 1, TOKENS)
    ring.admit()
    with pytest.raises(ConfigError, match="takes no context"):
        network(x, tau, slots, text, context=ring.for_window(5))
    with pytest.raises(ConfigError, match="not slots of a buffer of 5"):
        network(x, tau, slots + 1, text)


# Conventions and arguments


@torch.no_grad()
def test_velocity_is_the_negated_noise_direction_at_a_thousand_times_one_minus_tau() -> None:
    network = tiny_wan()
    tau = torch.tensor([[1.0, 0.375, 1 / 6, 0.0625, 0.0]], dtype=torch.float64)
    time = torch.tensor([[0.0, 625.0, 2500 / 3, 937.5, 1000.0]], dtype=torch.float64)
    rest = (torch.arange(FRAMES), text_of(network, 0))
    x = latents(1, torch.float64)
    close(network(x, tau, *rest), -network.noise_direction(x, time, *rest))


@torch.no_grad()
def test_only_differences_of_positions_count_however_large_they_are() -> None:
    network, x = tiny_wan(), latents(1, torch.float64)
    tau, text = torch.full((1, 1), 0.3), text_of(network, 0)
    near = network(x, tau, torch.arange(FRAMES), text)
    far = network(x, tau, torch.arange(FRAMES) + 100_000, text)
    other = network(x, tau, torch.tensor([0, 1, 2, 3, 5]), text)
    close(near, far, 1e-8)  # angles of 100,000 radians lose five digits
    assert (near - other).abs().max() > 1e-4


@torch.no_grad()
def test_absent_frames_are_as_if_they_were_not_there() -> None:
    network, x, text = tiny_wan(), latents(2, torch.float64), text_of(tiny_wan(), 0, 1)
    tau = torch.rand(2, FRAMES, generator=torch.Generator().manual_seed(1))
    present = torch.arange(FRAMES) >= torch.tensor([[2], [0]])
    found = network(x, tau, torch.arange(FRAMES), text, present)
    alone = network(x[:1, :, 2:], tau[:1, 2:], torch.arange(2, FRAMES), text_of(network, 0))
    whole = network(x[1:], tau[1:], torch.arange(FRAMES), text_of(network, 1))
    close(found[:1, :, 2:], alone)
    close(found[1:], whole)


@torch.no_grad()
def test_prompt_per_frame_and_blend_reach_their_frames() -> None:
    network, x = tiny_wan(), latents(1, torch.float64)
    for block in network.blocks:
        block.attention.output.weight.zero_()  # type: ignore[union-attr]
    keys, tau, positions = text_of(network, 0).keys, torch.full((1, 1), 0.5), torch.arange(FRAMES)
    one, two = (network(x, tau, positions, FrameText(keys, torch.tensor([k]))) for k in (0, 1))
    split = FrameText(keys, torch.tensor([[0, 0, 1, 1, 1]]))
    expected = torch.cat([one[:, :, :2], two[:, :, 2:]], dim=2)
    close(network(x, tau, positions, split), expected)
    share = torch.tensor([[0.0, 0.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
    blend = FrameText(keys, torch.tensor([0]), torch.tensor([1]), share)
    close(network(x, tau, positions, blend), expected)


def test_gradients_with_checkpointed_blocks_are_the_same() -> None:
    gradients = []
    for checkpoint_blocks in (False, True):
        network = tiny_wan(fps=16)
        network.checkpoint_blocks = checkpoint_blocks
        x = latents(1, torch.float64).requires_grad_()
        out = network(x, torch.full((1, 1), 0.4), torch.arange(FRAMES), text_of(network, 0))
        out.square().sum().backward()
        gradients.append([x.grad, *(parameter.grad for parameter in network.parameters())])
    for plain, checkpointed in zip(*gradients, strict=True):
        assert plain is not None and torch.equal(plain, checkpointed)  # type: ignore[arg-type]


def test_timestep_embedding_begins_with_cosines_and_ends_at_a_ten_thousandth() -> None:
    found = timestep_embedding(torch.tensor([0.0, 1000.0]), 256)
    assert found[0, :128].eq(1).all() and found[0, 128:].eq(0).all()
    slowest = torch.tensor(1000.0 * 10_000 ** -(127 / 128), dtype=torch.float64)
    close(found[1, [0, 127]], torch.stack([torch.tensor(1000.0).double().cos(), slowest.cos()]))


def test_rotation_keeps_lengths_and_turns_neighbouring_channels() -> None:
    table = rotation(torch.tensor([0, 3]), 1, 1, 14, torch.device("cpu"), torch.float64)
    x = noise(1, 1, 2, 1, 14)
    turned = rotate(x, table)
    close(turned[:, :, 0], x[:, :, 0])
    close(turned.norm(dim=-1), x.norm(dim=-1))
    first = torch.view_as_complex(x[0, 0, 1, 0, :2])
    expected = first * torch.polar(torch.ones(()).double(), torch.tensor(3.0).double())
    close(turned[0, 0, 1, 0, :2], torch.view_as_real(expected))


# Refusals and sizes


def test_inputs_that_do_not_fit_are_refused() -> None:
    network = tiny_wan()
    text, x, tau = text_of(network, 0), latents(1, torch.float64), torch.zeros(1, FRAMES)
    positions = torch.arange(FRAMES)
    with pytest.raises(ConfigError, match="3 channels"):
        network(x[:, :3], tau, positions, text)
    with pytest.raises(ConfigError, match="4 x 5 are not whole patches of 2 x 2"):
        network(x[..., :5], tau, positions, text)
    with pytest.raises(ConfigError, match="5 latent frames with 4 positions"):
        network(x, tau, positions[:4], text)
    with pytest.raises(ConfigError, match=r"times of shape \(1, 3\)"):
        network(x, tau[:, :3], positions, text)
    long = TextCondition(noise(1, 9, TINY["text_width"]), torch.ones(1, 9, dtype=torch.bool))
    with pytest.raises(ConfigError, match="9 tokens; the model reads 7"):
        network.text_keys(long)
    with pytest.raises(ConfigError, match="3 wide"):
        network.text_keys(TextCondition(noise(1, 5, 3), torch.ones(1, 5, dtype=torch.bool)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 0}, "depth is 0"),
        ({"num_heads": 3}, "not a multiple of num_heads"),
        ({"num_heads": 7}, "4 wide"),
        ({"patch": (2, 2, 2)}, "patch is"),
        ({"time_width": 15}, "time_width is 15"),
        ({"fps": 0}, "fps is 0"),
        ({"window": (2, 2, 2)}, "given together or not"),
        ({"window": (2, 0, 2), "buffer_length": 4}, "window is"),
        ({"window": (2, 2, 2), "buffer_length": 0}, "buffer_length is 0"),
    ],
)
def test_configuration_that_cannot_work_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_wan_config(**changes)


FPS_PARAMETERS = 2 * 1536 + (1536 * 1536 + 1536) + (1536 * 9216 + 9216)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("wan-1.3b", 1_418_996_800),
        ("wan-14b", 14_288_491_584),
        ("wan-5b", 4_999_787_712),
        ("skyreels-df-1.3b", 1_418_996_800 + FPS_PARAMETERS),
        ("skyreels-df-14b", 14_288_491_584),
    ],
)
def test_full_size_network_has_the_published_number_of_parameters(
    name: str, parameters: int
) -> None:
    with torch.device("meta"):
        network = WanTransformer(WAN_CONFIGS[name])
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert WAN_CONFIGS[name].head_width == 128


def test_drawn_weights_make_a_finite_velocity_that_depends_on_everything() -> None:
    with torch.device("meta"):
        network = WanTransformer(tiny_wan_config(fps=24))
    network.to_empty(device="cpu")
    network.init_weights(torch.Generator().manual_seed(0))
    out = network(latents(1), torch.full((1, 1), 0.5), torch.arange(FRAMES), prompts(network, 1))
    out.square().sum().backward()
    assert out.isfinite().all()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
