"""Windows are exact: masked full attention without a mask, on the full grid at every length."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from tiny_transformer import condition, inputs, one_prompt, tiny_transformer
from torch import Tensor
from torch.overrides import TorchFunctionMode

from streamdit_model.frame_text import BlockText, FrameText, PromptRows
from streamdit_model.transformer import StreamDiT, TransformerConfig, paper_4b
from streamdit_model.window_attention import WindowPlan, attend, full_plan, plan_windows

CPU = torch.device("cpu")
WINDOWS = [(4, 2, 2), (3, 4, 3), (8, 3, 1), (5, 2, 3), (2, 8, 8)]  # the token grid is 8 x 4 x 4
WRAPS = [("all", True), ("all", False), ("all", "time"), ("time", True), ("time", False)]


def seen(config: TransformerConfig, slots: range, *, odd: bool) -> Tensor:
    """Tell which token sees which, (tokens, tokens) bool, by padding and rolling the full grid.

    The other route to the same windows: the grid is padded to whole windows and rolled by half a
    window; tokens see each other in the same window and, where wrapping is masked, on the same
    side of the seam.
    """
    assert config.window is not None
    labels = []
    for axis, (size, window) in enumerate(zip(config.token_grid, config.window, strict=True)):
        moved = odd and window < size and (axis == 0 or config.shift == "all")
        apart = config.mask_wrapped is True or (config.mask_wrapped == "time" and axis == 0)
        padded = -(-size // window) * window
        rolled = torch.arange(padded).roll(-(window // 2) if moved else 0)
        label = torch.empty(padded, dtype=torch.long)
        label[rolled] = torch.arange(padded) // window
        if moved and apart:
            label[: window // 2] += padded  # the side of the seam that was rolled to the end
        labels.append(label[:size].tolist())
    triples = [labels[0][slots.start :], labels[1], labels[2]]
    tokens = torch.tensor(list(itertools.product(*triples)))
    return (tokens[:, None] == tokens[None]).all(-1)


class MaskedFull(StreamDiT):
    """The same transformer by full attention and a dense mask."""

    def _layers(self, slots: Tensor, *_: Any) -> list[tuple[WindowPlan, tuple[Tensor, ...]]]:  # type: ignore[override]
        frames = range(int(slots[0]), int(slots[-1]) + 1)
        masks = [seen(self.config, frames, odd=odd)[None, None] for odd in (False, True)]
        return [(full_plan(mask.shape[-1]), (mask,)) for mask in masks]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(("shift", "mask_wrapped"), WRAPS)
@pytest.mark.parametrize("frames", [8, 5])
def test_windows_equal_masked_full_attention(
    window: tuple[int, int, int], shift: str, mask_wrapped: bool | str, frames: int
) -> None:
    choice = {"window": window, "shift": shift, "mask_wrapped": mask_wrapped}
    model = tiny_transformer(**choice)
    full = MaskedFull(model.config).double()
    full.load_state_dict(model.state_dict())
    latents, tau, slots = inputs(model, frames=frames)
    with torch.no_grad():
        ours = model(latents, tau, slots, one_prompt(model))
        theirs = full(latents, tau, slots, one_prompt(full))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_window_options_change_the_result() -> None:
    results = []
    for window, (shift, mask_wrapped) in [(None, WRAPS[0]), *(((4, 2, 2), wrap) for wrap in WRAPS)]:
        choice = {"window": window, "shift": shift, "mask_wrapped": mask_wrapped}
        model = tiny_transformer(**choice)
        with torch.no_grad():
            results.append(model(*inputs(model), one_prompt(model)))
    for one, other in itertools.combinations(results, 2):
        assert (one - other).abs().max() > 1e-3


@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize("frames", range(1, 9))
@pytest.mark.parametrize("window", [(4, 2, 2), (3, 4, 3)])
def test_changing_one_token_changes_exactly_the_outputs_of_its_own_region(
    window: tuple[int, int, int], frames: int, odd: bool
) -> None:
    model = tiny_transformer(window=window)
    block = model.blocks[int(odd)]
    slots = range(8 - frames, 8)
    tokens = frames * 16
    plan, masks = model._layers(torch.tensor(slots), 16, CPU, None)[int(odd)]
    generator = torch.Generator().manual_seed(3)
    x, change = torch.randn(2, tokens, 16, generator=generator, dtype=torch.float64)
    changed = x + torch.diag_embed(change.T).permute(1, 2, 0)  # copy i differs in token i
    copies = torch.cat([x[None], changed]).unflatten(1, (frames, 16))
    modulation = torch.randn(1, frames, 6, 16, generator=generator, dtype=torch.float64)
    rows = torch.randn(2, 1, 2, 3, 8, generator=generator, dtype=torch.float64)
    text = BlockText(PromptRows(*rows, None), None)
    with torch.no_grad():
        position = torch.zeros(frames, 16, 16, dtype=torch.float64)
        out = block(copies, modulation, position, text, plan, masks).flatten(1, 2)
    moved = (out[1:] - out[0]).abs().amax(-1)
    region = seen(model.config, slots, odd=odd)
    assert moved[~region].amax() < 1e-12
    assert moved[region].amin() > 1e-9


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize(("shift", "mask_wrapped"), WRAPS)
def test_shifted_windows_cover_each_token_once(
    window: tuple[int, int, int], shift: str, mask_wrapped: bool | str
) -> None:
    model = tiny_transformer(window=window, shift=shift, mask_wrapped=mask_wrapped)
    for frames in range(1, 9):
        for plan, _ in model._layers(torch.arange(8 - frames, 8), 16, CPU, None):
            assert sum(count * size for count, size in plan.groups) == frames * 16
            if plan.order is None or plan.inverse is None:
                assert plan.order is plan.inverse is None
                continue
            assert torch.equal(plan.order.sort().values, torch.arange(frames * 16))
            assert torch.equal(plan.order[plan.inverse], torch.arange(frames * 16))


def test_windows_of_the_4b_model_are_whole_or_cut_in_half() -> None:
    config = paper_4b()
    assert config.window is not None
    grid, slots = config.token_grid, tuple(range(16))
    even = plan_windows(slots, grid, config.window, (False,) * 3, (False,) * 3, CPU)
    odd = plan_windows(slots, grid, config.window, (True,) * 3, (False,) * 3, CPU)
    assert even.groups == ((8, 8 * 16 * 16),)
    sizes = [f * h * w for f in (4, 8, 4) for h in (8, 16, 8) for w in (8, 16, 8)]
    assert dict((size, count) for count, size in odd.groups) == {
        size: sizes.count(size) for size in sizes
    }


def test_a_window_that_covers_an_axis_is_not_shifted_there() -> None:
    for wrap in (False, True):
        plans = [
            plan_windows(tuple(range(8)), (8, 4, 4), (8, 2, 4), shifted, (wrap,) * 3, CPU)
            for shifted in ((True, True, True), (False, True, False))
        ]
        assert plans[0].groups == plans[1].groups
        assert torch.equal(plans[0].order, plans[1].order)  # type: ignore[arg-type]


def test_full_attention_and_windows_of_whole_frames_leave_the_order_of_tokens() -> None:
    full = tiny_transformer(window=None)
    time = tiny_transformer(window=(4, 4, 4))
    plans = full._layers(torch.arange(8), 16, CPU, None)
    plans += time._layers(torch.arange(8), 16, CPU, None)[:1]
    assert [plan.order for plan, _ in plans] == [None] * 3


class AttentionCalls(TorchFunctionMode):
    """Records the masks and the key lengths of every call of the fused attention."""

    def __init__(self) -> None:
        self.masks: list[Tensor | None] = []
        self.rows: list[tuple[int, int]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            self.masks.append((kwargs or {}).get("attn_mask"))
            self.rows.append((args[1].shape[0], args[1].shape[2]))
        return func(*args, **(kwargs or {}))


def test_windows_run_as_batches_of_equal_size_without_a_mask() -> None:
    model = tiny_transformer(window=(4, 2, 2), depth=2)
    latents, tau, slots = inputs(model, batch=3)
    text = FrameText(model.text_keys(condition(prompts=1)), torch.zeros(1, dtype=torch.long))
    with torch.no_grad(), AttentionCalls() as calls:
        model(latents, tau, slots, text)
    assert calls.masks == [None] * len(calls.masks)
    even, odd = calls.rows[:1], calls.rows[2:-1]  # without the call of each cross-attention
    assert even == [(3 * 8, 16)]
    sizes = [f * h * w for f in (2, 4, 2) for h in (1, 2, 1) for w in (1, 2, 1)]
    assert dict((size, rows) for rows, size in odd) == {
        size: 3 * sizes.count(size) for size in sizes
    }


def test_attention_written_out_equals_the_fused_call() -> None:
    generator = torch.Generator().manual_seed(4)
    query, key, value = torch.randn(3, 2, 3, 7, 8, generator=generator, dtype=torch.float64)
    mask = torch.rand(2, 1, 1, 7, generator=generator) > 0.4
    mask[..., 0] = True
    for hidden in (None, mask):
        with torch.no_grad():
            fused = attend(query, key, value, hidden)
        written = attend(query, key, value, hidden)
        torch.testing.assert_close(written, fused, rtol=0, atol=1e-13)
