"""The text encoder reads bytes, ignores padding, and encodes a prompt once."""

import pytest
import torch

from streamdit_model.errors import ConfigError
from streamdit_model.text import PromptCache, TextConfig, TextEncoder, normalize_prompt

TINY = TextConfig(width=32, byte_width=16, depth=2, num_heads=2, max_bytes=24)


def tiny_encoder(**changes: int) -> TextEncoder:
    torch.manual_seed(0)
    sizes = {"width": 32, "byte_width": 16, "depth": 2, "num_heads": 2, "max_bytes": 24}
    return TextEncoder(TextConfig(**{**sizes, **changes})).eval()


def test_null_prompt_is_exactly_one_real_token() -> None:
    condition = tiny_encoder().encode([""])
    assert condition.tokens.shape == (1, 1, 32)
    assert condition.mask.tolist() == [[True]]


@pytest.mark.parametrize(("num_bytes", "tokens"), [(1, 1), (3, 1), (4, 2), (7, 2), (8, 3)])
def test_begin_byte_and_prompt_are_merged_four_to_a_token(num_bytes: int, tokens: int) -> None:
    condition = tiny_encoder().encode(["x" * num_bytes])
    assert condition.tokens.shape[1] == tokens
    assert condition.mask.all()


def test_tokens_of_a_prompt_do_not_depend_on_the_batch_around_it() -> None:
    encoder = tiny_encoder().double()
    prompts = ["", "a red star", "a large blue circle", "ab"]
    together = encoder.encode(prompts)
    for index, prompt in enumerate(prompts):
        alone = encoder.encode([prompt])
        real = together.mask[index]
        assert int(real.sum()) == alone.tokens.shape[1]
        # float64 sums over other paddings differ in order only
        torch.testing.assert_close(
            together.tokens[index][real], alone.tokens[0], rtol=0, atol=1e-12
        )


def test_every_byte_reaches_every_token() -> None:
    encoder = tiny_encoder()
    first, second = encoder.encode(["abcdefghijk"]).tokens, encoder.encode(["abcdefghijX"]).tokens
    assert bool(((first - second).abs().amax(dim=-1) > 1e-4).all())


def test_order_of_bytes_matters() -> None:
    encoder = tiny_encoder()
    difference = encoder.encode(["abcd"]).tokens - encoder.encode(["dcba"]).tokens
    assert bool((difference.abs() > 1e-3).any())


def test_place_of_a_token_matters() -> None:
    encoder = tiny_encoder()
    first = encoder.encode(["abcdefgDEFG"]).tokens[0]
    second = encoder.encode(["abcDEFGdefg"]).tokens[0]
    assert bool(((first[1] - second[2]).abs() > 1e-3).any())


def test_padding_of_the_last_token_has_no_influence() -> None:
    encoder = tiny_encoder()
    before = encoder.encode(["ab", "abcdefgh"]).tokens
    with torch.no_grad():
        encoder.byte_embedding.weight[-1] = 100.0
    after = encoder.encode(["ab", "abcdefgh"])
    assert torch.equal(after.tokens[after.mask], before[after.mask])


def test_whitespace_is_folded_and_case_is_kept() -> None:
    assert normalize_prompt("  a \t red\n star ") == "a red star"
    assert normalize_prompt("A Red") == "A Red"
    encoder = tiny_encoder()
    same = encoder.encode(["  a  red\nstar "]).tokens
    assert torch.equal(same, encoder.encode(["a red star"]).tokens)
    assert not torch.equal(same, encoder.encode(["A red star"]).tokens)


def test_long_prompt_is_said_to_be_truncated_and_cut_at_a_whole_character() -> None:
    encoder = tiny_encoder()
    assert not encoder.truncated("x" * 24)
    assert encoder.truncated("x" * 25)
    assert not encoder.truncated(" " * 90 + "x" * 24)
    cut = encoder.prompt_bytes("x" * 23 + "\u00e9" + "y")
    assert cut == b"x" * 23
    assert encoder.encode(["z" * 500]).tokens.shape[1] == TINY.max_tokens


def test_any_language_can_be_read() -> None:
    prompt = "\u8d64\u3044\u661f \U0001f31f"
    assert tiny_encoder().prompt_bytes(prompt).decode() == prompt
    assert bool(tiny_encoder().encode([prompt]).tokens.isfinite().all())


def test_text_that_is_not_unicode_is_refused_with_its_position() -> None:
    with pytest.raises(ConfigError, match="position 2"):
        tiny_encoder().encode(["ab\udc80"])


def test_no_prompt_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one"):
        tiny_encoder().encode([])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 33}, "33 is not a multiple of num_heads 2"),
        ({"byte_width": 15}, "15 is not a multiple of num_heads 2"),
        ({"depth": 0}, "depth 0"),
        ({"max_bytes": 0}, "max_bytes 0"),
    ],
)
def test_impossible_sizes_are_refused_with_the_number(
    changes: dict[str, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_encoder(**changes)


def test_all_parameters_receive_gradients_under_bfloat16_autocast() -> None:
    encoder = tiny_encoder().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        condition = encoder.encode(["", "a small red star", "two"])
        loss = (condition.tokens.float() ** 3 * condition.mask[..., None]).mean()
    loss.backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and float(parameter.grad.abs().sum()) > 0, name


def test_bfloat16_encoder_gives_bfloat16_tokens_near_the_float32_ones() -> None:
    exact = tiny_encoder().encode(["a red star"]).tokens
    rounded = tiny_encoder().bfloat16().encode(["a red star"]).tokens
    assert rounded.dtype == torch.bfloat16
    # three layers of bfloat16, eight bits each, on tokens of size one
    torch.testing.assert_close(rounded.float(), exact, rtol=0, atol=0.15)


def test_prompt_cache_encodes_each_prompt_once_and_forgets_the_oldest() -> None:
    encoder = tiny_encoder()
    seen: list[torch.Tensor] = []
    encoder.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    cache = PromptCache(encoder, size=2)
    first = cache("one")
    assert cache(" one ") is first and len(seen) == 1
    cache("two")
    cache("one")
    cache("three")
    assert len(cache) == 2 and len(seen) == 3
    assert cache("one") is first and len(seen) == 3
    cache("two")
    assert len(seen) == 4


def test_prompt_cache_gives_one_prompt_without_gradients() -> None:
    encoder = tiny_encoder().train()
    condition = PromptCache(encoder)("a red star")
    assert condition.tokens.shape[0] == 1 and not condition.tokens.requires_grad
    torch.testing.assert_close(condition.tokens, encoder.encode(["a red star"]).tokens)
    with pytest.raises(ConfigError, match="size 0"):
        PromptCache(encoder, size=0)
