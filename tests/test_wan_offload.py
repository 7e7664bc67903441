"""Claim: blocks that rest in CPU memory give the same bits, and two of them are on the device."""

from __future__ import annotations

import threading
from typing import cast

import pytest
import torch
from live_memory import LiveMemory
from tiny_wan import condition, noise, text_of, tiny_wan
from torch import Tensor, nn

from streamdit_model.frame_text import FrameText
from streamdit_model.wan.offload import TravellingBlocks
from streamdit_model.wan.transformer import WanTransformer

CPU = torch.device("cpu")
FRAMES = 3


def passed(network: WanTransformer, seed: int = 3) -> Tensor:
    latents = noise(1, 4, FRAMES, 4, 4, seed=seed, dtype=network.head.weight.dtype)
    tau = torch.tensor([[0.1, 0.5, 0.9]])
    place = network.head.weight.device
    seen = text_of(network, 0) if place.type == "cpu" else None
    assert seen is not None
    with torch.inference_mode():
        return network(latents, tau, torch.arange(FRAMES), seen)


def travelling(network: WanTransformer) -> TravellingBlocks:
    """Offload a network from the CPU to the CPU: the copies are real, the device is the same."""
    network.requires_grad_(False).offload_blocks(CPU)
    return cast(TravellingBlocks, network._travelling)


@pytest.mark.parametrize("depth", [1, 2, 3, 6])
def test_travelling_blocks_give_equal_bits(depth: int) -> None:
    still, moving = (tiny_wan(depth=depth).requires_grad_(False) for _ in range(2))
    travelling(moving)
    for seed in range(3):  # the first block waits in one place or the other
        assert torch.equal(passed(moving, seed), passed(still, seed))
        one, other = (network.text_keys(condition(2, seed)) for network in (moving, still))
        assert all(map(torch.equal, (*one.keys, *one.values), (*other.keys, *other.values)))


def test_two_blocks_are_on_the_device_and_a_pass_takes_no_memory_for_weights() -> None:
    still, moving = (tiny_wan(depth=6).requires_grad_(False) for _ in range(2))
    blocks = travelling(moving)
    one = sum(parameter.nbytes for parameter in moving.blocks[0].parameters())
    assert blocks.num_bytes == 2 * one
    places = {tensor.data_ptr() for place in blocks._places for tensor in place.values()}
    seen: list[int] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        owners = [
            number
            for number, block in enumerate(moving.blocks)
            if any(parameter.data_ptr() in places for parameter in block.parameters())
        ]
        assert all(p.data_ptr() in places for p in module.parameters())
        assert sorted(x for x in blocks._held if x is not None) == sorted(
            {owners[0], (owners[0] + 1) % 6}
        )
        seen.extend(owners)
        assert not any(tensor.data_ptr() in places for tensor in moving.state_dict().values())

    for block in moving.blocks:
        block.register_forward_pre_hook(look)
    peaks = []
    for network in (still, moving):
        with LiveMemory() as live:
            passed(network)
        peaks.append(live.peak)
    assert seen == list(range(6))
    assert peaks[1] <= peaks[0] + 64
    assert not any(p.data_ptr() in places for p in moving.parameters())


def test_an_error_in_a_block_leaves_all_weights_at_home() -> None:
    network = tiny_wan(depth=4)
    before = [parameter.clone() for parameter in network.parameters()]
    blocks = travelling(network)
    expected = passed(network)

    def fail(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        raise RuntimeError("no memory")

    handle = network.blocks[2].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="no memory"):
        passed(network)
    handle.remove()
    places = {tensor.data_ptr() for place in blocks._places for tensor in place.values()}
    assert not any(p.data_ptr() in places for p in network.parameters())
    assert all(map(torch.equal, network.parameters(), before))
    assert torch.equal(passed(network), expected)


def test_threads_take_turns() -> None:
    network = tiny_wan(depth=5)
    travelling(network)
    expected, keys = passed(network), network.text_keys(condition(2))
    wrong: list[str] = []

    def run() -> None:
        for _ in range(5):
            found = network.text_keys(condition(2))
            if not all(map(torch.equal, found.keys, keys.keys)):
                wrong.append("keys")

    thread = threading.Thread(target=run)
    thread.start()
    for _ in range(5):
        assert torch.equal(passed(network), expected)
    thread.join()
    assert not wrong


@pytest.mark.gpu
def test_blocks_travel_to_a_gpu_with_equal_bits() -> None:
    device = torch.device("cuda")
    still, moving = (
        tiny_wan(depth=6, width=280, num_heads=2, mlp_width=400).float().requires_grad_(False)
        for _ in range(2)
    )
    still.to(device)
    moving.offload_blocks(device)
    assert all(p.device.type == "cpu" for p in moving.blocks.parameters())
    results = []
    with torch.inference_mode():
        for network in (still, moving):
            found = condition(2, dtype=torch.float32)
            text = type(found)(found.tokens.to(device), found.mask.to(device))
            keys = network.text_keys(text)
            assert all(x.is_cuda for x in keys.keys)
            seen = FrameText(keys, torch.zeros(1, dtype=torch.long, device=device))
            latents = noise(1, 4, FRAMES, 4, 4, dtype=torch.float32).to(device)
            tau = torch.tensor([[0.1, 0.5, 0.9]], device=device)
            for _ in range(4):
                results.append(network(latents, tau, torch.arange(FRAMES), seen).cpu())
    assert all(torch.equal(result, results[0]) for result in results)
