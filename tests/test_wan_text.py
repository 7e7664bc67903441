"""Wan's text encoder: prompts cleaned, cut and encoded as transformers does, from either layout."""

from __future__ import annotations

import ast
import pickle
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from streamdit_model.errors import ConfigError, NumericsError, WeightsError
from streamdit_model.wan import text as wan_text
from streamdit_model.wan.text import (
    WanTextEncoder,
    build_encoder,
    clean_prompt,
    load_text_encoder,
    load_tokenizer,
)
from streamdit_model.wan.text_weights import (
    UMT5_XXL,
    WanTextConfig,
    num_parameters,
    read_encoder,
    tensor_names,
)

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

TINY = WanTextConfig(
    vocabulary=32,
    width=24,
    head_width=8,
    num_heads=2,
    mlp_width=40,
    depth=3,
    num_buckets=8,
    max_distance=12,
    max_tokens=20,
)
LETTERS = "abcdefghijklmnopqrst"
PROMPTS = ["a cat", "", "jib  &amp;amp; tag\n of", "bad cafe " * 4, "abcdefghij" * 5]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def without_ftfy(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is claimed here of cleaning must not depend on what else is installed."""
    monkeypatch.setitem(sys.modules, "ftfy", None)


def tiny_tokenizer() -> Any:
    """A unigram tokenizer of single letters and the mark of a word's start, with umT5's ids."""
    pieces = ["<pad>", "</s>", "<unk>", "\u2581", *LETTERS, "\u2581a", "at"]
    scores = [(piece, -float(number)) for number, piece in enumerate(pieces)]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram(scores, unk_id=2))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return tokenizer


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tiny_tokenizer().save(str(path))
    return path


@pytest.fixture(scope="module")
def oracle() -> Any:
    """transformers' class as its own defaults build it, every parameter redrawn."""
    config = transformers.UMT5Config(
        vocab_size=32,
        d_model=24,
        d_kv=8,
        d_ff=40,
        num_layers=3,
        num_heads=2,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=12,
    )
    model = transformers.UMT5EncoderModel(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5 + 0.1)
    return model


@pytest.fixture(scope="module")
def state(oracle: Any) -> dict[str, Tensor]:
    """The oracle's tensors in the transformers layout, the embedding once."""
    return {
        name: value for name, value in oracle.state_dict().items() if "embed_tokens" not in name
    }


def original(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {tensor_names(TINY)[name][0]: value for name, value in state.items()}


def write(folder: Path, state: dict[str, Tensor], name: str = "model.safetensors") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: value.clone().contiguous() for key, value in state.items()}, folder / name)
    return folder / name


@pytest.fixture
def encoder(tmp_path: Path, state: dict[str, Tensor], tokenizer_file: Path) -> WanTextEncoder:
    return load_text_encoder([write(tmp_path, state)], tokenizer_file, TINY, torch.float32)


# Cleaning.


@pytest.mark.parametrize(
    ("prompt", "cleaned"),
    [
        ("a cat", "a cat"),
        ("  a\t\tred \n cat\u00a0\u3000 ", "a red cat"),
        ("salt &amp; pepper", "salt & pepper"),
        ("salt &amp;amp; pepper", "salt & pepper"),
        ("salt &amp;amp;amp; pepper", "salt &amp; pepper"),
        ("&lt;b&gt;&nbsp;bold &#39;x&#39;", "<b> bold 'x'"),
        ("Case And\u0301 Stay", "Case And\u0301 Stay"),
        ("", ""),
    ],
)
def test_prompt_is_cleaned_of_entities_and_whitespace_only(prompt: str, cleaned: str) -> None:
    assert clean_prompt(prompt) == cleaned


def test_wrongly_decoded_prompt_is_repaired_first_when_ftfy_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "def fix_text(text):\n    return text.replace('#', '  &amp;amp;  ')\n"
    (tmp_path / "ftfy.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "ftfy", raising=False)
    assert clean_prompt("salt#pepper") == "salt & pepper"
    monkeypatch.setitem(sys.modules, "ftfy", None)
    assert clean_prompt("salt#pepper") == "salt#pepper"


def test_prompt_that_is_no_unicode_text_is_refused() -> None:
    with pytest.raises(ConfigError, match="at position 2"):
        clean_prompt("a \udc80")


# Tokens.


@pytest.mark.parametrize("prompt", PROMPTS)
def test_ids_equal_those_of_transformers(tokenizer_file: Path, prompt: str) -> None:
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer_file), pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    wanted = fast(clean_prompt(prompt), padding="max_length", truncation=True, max_length=20)
    ids = load_tokenizer(tokenizer_file, TINY).ids(prompt)
    assert ids == wanted.input_ids[: sum(wanted.attention_mask)]
    assert ids[-1] == 1


def test_ids_do_not_depend_on_what_the_file_says_of_padding_cutting_and_the_end(
    tokenizer_file: Path, tmp_path: Path
) -> None:
    other = tiny_tokenizer()
    other.enable_padding(length=9, pad_id=0, pad_token="<pad>")
    other.enable_truncation(4, direction="left")
    other.post_processor = tokenizers.processors.Sequence([])
    other.save(str(tmp_path / "tokenizer.json"))
    for prompt in PROMPTS:
        ids = load_tokenizer(tmp_path / "tokenizer.json", TINY).ids(prompt)
        assert ids == load_tokenizer(tokenizer_file, TINY).ids(prompt)


def test_prompt_is_called_truncated_from_one_piece_too_many_on(tokenizer_file: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_file, TINY)
    fits, cut = "c" * 18, "c" * 19  # with the mark of a word's start and the end: 20, 21
    assert not tokenizer.truncated(fits) and tokenizer.truncated(cut)
    assert len(tokenizer.ids(fits)) == len(tokenizer.ids(cut)) == 20


def test_tokenizer_with_other_ids_is_refused(tmp_path: Path) -> None:
    other = tokenizers.Tokenizer(
        tokenizers.models.Unigram([("<unk>", 0.0), ("<pad>", -1.0), ("</s>", -1.0)], unk_id=0)
    )
    other.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(WeightsError, match=r"gives <pad> the id 1, .* with 0"):
        load_tokenizer(tmp_path / "tokenizer.json", TINY)


def test_tokenizer_with_more_ids_than_the_encoder_is_refused(tokenizer_file: Path) -> None:
    with pytest.raises(WeightsError, match="has 26 ids, the text encoder knows 25"):
        load_tokenizer(tokenizer_file, replace(TINY, vocabulary=25))


@pytest.mark.parametrize("content", [b"", b"{}", b"\x80\x04.", b'{"model": {"type": "BPE"}}'])
def test_damaged_tokenizer_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"^tokenizer.json is not a tokenizer: .*$") as caught:
        load_tokenizer(path, TINY)
    assert caught.value.hint
    path.unlink()
    with pytest.raises(WeightsError, match=r"tokenizer.json is missing in"):
        load_tokenizer(path, TINY)


# Encoding.


def test_rows_equal_the_masked_computation_of_transformers(
    encoder: WanTextEncoder, oracle: Any, tokenizer_file: Path
) -> None:
    lists = [load_tokenizer(tokenizer_file, TINY).ids(prompt) for prompt in PROMPTS]
    ids = torch.tensor([row + [0] * (TINY.max_tokens - len(row)) for row in lists])
    mask = torch.arange(TINY.max_tokens) < torch.tensor([[len(row)] for row in lists])
    with torch.no_grad():
        wanted = oracle(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    condition = encoder.encode(PROMPTS)
    assert condition.tokens.shape == (len(PROMPTS), TINY.max_tokens, TINY.width)
    assert torch.equal(condition.mask, mask)
    assert int(mask.sum(dim=1).max()) > TINY.max_distance  # every bucket of positions is used
    wanted = torch.where(mask[..., None], wanted, torch.zeros(()))
    torch.testing.assert_close(condition.tokens, wanted, rtol=1e-5, atol=1e-5)
    assert not condition.tokens[~mask].any()


def test_prompt_has_the_same_bits_alone_and_among_others(encoder: WanTextEncoder) -> None:
    together = encoder.encode(PROMPTS).tokens
    for index, prompt in enumerate(PROMPTS):
        assert torch.equal(encoder.encode([prompt]).tokens[0], together[index])


def straight_line(weights: dict[str, Tensor], ids: list[int]) -> Tensor:
    """umT5 written down once more, on Wan's own names, for one prompt without padding."""

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * weight

    def bucket(distance: int) -> int:
        half, exact = TINY.num_buckets // 2, TINY.num_buckets // 4
        far = abs(distance)
        if far >= exact:
            ratio = torch.tensor(far / exact).log() / torch.tensor(TINY.max_distance / exact).log()
            far = min(exact + int(float(ratio) * (half - exact)), half - 1)
        return far + (half if distance > 0 else 0)

    x = weights["token_embedding.weight"][ids]
    places = range(len(ids))
    buckets = torch.tensor([[bucket(key - query) for key in places] for query in places])
    for index in range(TINY.depth):
        layer = f"blocks.{index}"
        y = norm(x, weights[f"{layer}.norm1.weight"])
        q, k, v = (
            (y @ weights[f"{layer}.attn.{name}.weight"].T).unflatten(1, (TINY.num_heads, -1))
            for name in "qkv"
        )
        bias = weights[f"{layer}.pos_embedding.embedding.weight"][buckets]  # query, key, head
        shares = (torch.einsum("qmd,kmd->qkm", q, k) + bias).softmax(dim=1)
        attended = torch.einsum("qkm,kmd->qmd", shares, v).flatten(1)
        x = x + attended @ weights[f"{layer}.attn.o.weight"].T
        y = norm(x, weights[f"{layer}.norm2.weight"])
        gate = y @ weights[f"{layer}.ffn.gate.0.weight"].T
        gate = 0.5 * gate * (1 + ((2 / torch.pi) ** 0.5 * (gate + 0.044715 * gate**3)).tanh())
        inner = gate * (y @ weights[f"{layer}.ffn.fc1.weight"].T)
        x = x + inner @ weights[f"{layer}.ffn.fc2.weight"].T
    return norm(x, weights["norm.weight"])


def test_original_layout_means_the_encoder_written_on_its_names(
    tmp_path: Path, state: dict[str, Tensor], tokenizer_file: Path
) -> None:
    weights = original(state)
    assert not weights.keys() & state.keys()
    encoder = load_text_encoder([write(tmp_path, weights)], tokenizer_file, TINY, torch.float32)
    wide = {name: value.double() for name, value in weights.items()}
    for prompt in PROMPTS:
        ids = load_tokenizer(tokenizer_file, TINY).ids(prompt)
        rows = encoder.encode([prompt]).tokens[0, : len(ids)]
        torch.testing.assert_close(rows.double(), straight_line(wide, ids), rtol=1e-5, atol=1e-5)


def test_both_layouts_whole_or_in_shards_give_the_same_bits(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    keys = sorted(state)
    for name, tensors in (("same", state), ("original", original(state))):
        whole = write(tmp_path / name, tensors)
        order = sorted(tensors)
        shards = [
            write(tmp_path / name, {key: tensors[key] for key in order[part::3]}, f"{part}.st")
            for part in range(3)
        ]
        for paths in ([whole], shards):
            read = read_encoder(paths, TINY, torch.float32, CPU)
            assert sorted(read) == keys
            assert all(torch.equal(read[key], state[key]) for key in keys)


def test_weights_arrive_in_the_asked_dtype_and_results_with_them(
    tmp_path: Path, state: dict[str, Tensor], tokenizer_file: Path, encoder: WanTextEncoder
) -> None:
    half = {name: value.bfloat16() for name, value in state.items()}
    path = write(tmp_path / "half", half)
    loaded = load_text_encoder([path], tokenizer_file, TINY, torch.bfloat16)
    tokens = loaded.encode(["a cat"]).tokens
    assert tokens.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in loaded.module.parameters()} == {torch.bfloat16}
    # eight bits of mantissa through three layers
    torch.testing.assert_close(
        tokens.float(), encoder.encode(["a cat"]).tokens, rtol=0.1, atol=0.15
    )
    with pytest.raises(ConfigError, match=r"torch.float16 .* bfloat16, float32, float64"):
        read_encoder([path], TINY, torch.float16, CPU)


def test_full_size_has_the_stated_tensors_parameters_and_bytes() -> None:
    assert len(tensor_names(UMT5_XXL)) == 242
    assert num_parameters(UMT5_XXL) == 5_680_910_336
    headers = 4_935_812_536 + 4_983_103_192 + 1_442_935_480 - 2 * num_parameters(UMT5_XXL)
    assert 0 < headers < 3 * 20_000  # of the three published files
    module = build_encoder(UMT5_XXL)
    assert sum(parameter.numel() for parameter in module.parameters()) == 5_680_910_336
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    assert shapes.pop("encoder.embed_tokens.weight") == (256_384, 4096)
    assert shapes == {name: shape for name, (_, shape) in tensor_names(UMT5_XXL).items()}
    assert {parameter.device.type for parameter in module.parameters()} == {"meta"}


# Refusals.


def test_file_that_fits_no_layout_is_refused_by_missing_and_unexpected_names(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    mixed = dict(original(state))
    mixed["blocks.0.attn.query.weight"] = mixed.pop("blocks.0.attn.q.weight")
    with pytest.raises(WeightsError) as caught:
        read_encoder([write(tmp_path, mixed)], TINY, torch.float32, CPU)
    assert str(caught.value) == (
        "text encoder weights fit no known layout; nearest is the original one: 1 missing"
        " ('blocks.0.attn.q.weight'), 1 unexpected ('blocks.0.attn.query.weight')"
    )
    half = {name: value for name, value in state.items() if "block.2" not in name}
    with pytest.raises(WeightsError, match=r"transformers one: 10 missing \('encoder.block.2"):
        read_encoder([write(tmp_path, half)], TINY, torch.float32, CPU)
    both = {**state, **original(state)}
    with pytest.raises(WeightsError, match=r"nearest is the transformers one: 32 unexpected"):
        read_encoder([write(tmp_path, both)], TINY, torch.float32, CPU)


def test_wrong_shape_dtype_and_value_are_refused_by_name(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    name = "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"
    changes = {
        r"is \(2, 8\), expected \(8, 2\)": state[name].T,
        "is torch.int64, allowed are bfloat16, float32, float16": state[name].long(),
        "not finite": torch.full_like(state[name], float("nan")),
    }
    for message, value in changes.items():
        path = write(tmp_path, {**state, name: value})
        with pytest.raises(WeightsError, match=f"{name}' .*{message}"):
            read_encoder([path], TINY, torch.float32, CPU)


def test_tensor_in_two_files_and_missing_files_are_refused(
    tmp_path: Path, state: dict[str, Tensor]
) -> None:
    first, second = write(tmp_path, state, "1.st"), write(tmp_path, state, "2.st")
    with pytest.raises(WeightsError, match=r"stands in both 1.st and 2.st"):
        read_encoder([first, second], TINY, torch.float32, CPU)
    with pytest.raises(WeightsError, match=r"3.st is missing in"):
        read_encoder([tmp_path / "3.st"], TINY, torch.float32, CPU)
    with pytest.raises(ConfigError, match="at least one is needed"):
        read_encoder([], TINY, torch.float32, CPU)


@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
def test_pickle_is_refused_under_any_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(pickle.dumps({"token_embedding.weight": [1.0] * 100}))
    with pytest.raises(WeightsError, match="not a safetensors file") as caught:
        read_encoder([tmp_path / name], TINY, torch.float32, CPU)
    assert "only .safetensors files are opened" in caught.value.hint


def test_zero_embeddings_and_overflow_are_noticed(
    tmp_path: Path, state: dict[str, Tensor], tokenizer_file: Path
) -> None:
    zeros = {**state, "shared.weight": torch.zeros_like(state["shared.weight"])}
    encoder = load_text_encoder([write(tmp_path, zeros)], tokenizer_file, TINY, torch.float32)
    with pytest.raises(WeightsError, match="nothing but zeros"):
        encoder.encode(["a cat"])
    name = "encoder.final_layer_norm.weight"
    large = {**state, name: torch.full_like(state[name], 3e38)}
    encoder = load_text_encoder([write(tmp_path, large)], tokenizer_file, TINY, torch.float32)
    with pytest.raises(NumericsError, match=r"not finite in torch.float32"):
        encoder.encode(["a cat"])


def test_no_prompt_is_refused(encoder: WanTextEncoder) -> None:
    with pytest.raises(ConfigError, match="no prompt to encode"):
        encoder.encode([])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("depth", 0, "depth 0 is not at least 1"),
        ("num_buckets", 6, "num_buckets 6 is not a multiple of 4"),
        ("max_distance", 2, "max_distance 2 is not above"),
    ],
)
def test_impossible_sizes_are_refused(field: str, value: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(TINY, **{field: value})


# Memory, and the package that may be absent.


def test_freed_encoder_holds_no_weights_and_says_so(encoder: WanTextEncoder) -> None:
    module = encoder.module
    assert module.shared is module.encoder.embed_tokens
    references = [weakref.ref(parameter) for parameter in module.parameters()]
    encoder.free()
    assert {parameter.device.type for parameter in module.parameters()} == {"meta"}
    assert not any(reference() for reference in references)
    encoder.free()
    with pytest.raises(WeightsError, match="the text encoder was freed"):
        encoder.encode(["a cat"])


def test_moved_encoder_has_one_embedding_and_gives_the_same_bits(encoder: WanTextEncoder) -> None:
    before = encoder.encode(PROMPTS).tokens
    encoder.move("cpu")
    assert encoder.device == CPU
    assert encoder.module.shared.weight is encoder.module.encoder.embed_tokens.weight
    assert torch.equal(encoder.encode(PROMPTS).tokens, before)


def test_missing_transformers_is_one_line_that_names_the_extra(
    tmp_path: Path, tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match="needs the package transformers") as caught:
        build_encoder(TINY)
    assert caught.value.hint == 'pip install "streamdit[wan]"'
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ConfigError, match="needs the package transformers"):
        load_text_encoder([tmp_path / "model.safetensors"], tokenizer_file, TINY)


def test_transformers_is_not_imported_with_the_module() -> None:
    assert wan_text.__file__ is not None
    tree = ast.parse(Path(wan_text.__file__).read_text(encoding="utf-8"))
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert top and not any("transformers" in ast.unparse(node) for node in top)
    assert not any("tokenizers" in ast.unparse(node) for node in top)
