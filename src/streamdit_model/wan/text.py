"""The text encoder of Wan models: umT5-XXL, a prompt in, 512 rows for the cross-attention out.

Encoder and tokenizer are computed by transformers, which is imported only when one is built, so
that everything else works without it. Sizes, weights and the tokenizer's file are loaded here and
never fetched. Rows past the end of a prompt are zero, and the networks attend to them as well:
they were trained so.
"""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from streamdit_model.errors import ConfigError, NumericsError, WeightsError
from streamdit_model.storage import quoted, read_bytes
from streamdit_model.text import TextCondition, normalize_prompt
from streamdit_model.wan.text_weights import WanTextConfig, read_encoder, tensor_names

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import UMT5EncoderModel

__all__ = [
    "WanTextEncoder",
    "WanTokenizer",
    "build_encoder",
    "clean_prompt",
    "load_text_encoder",
    "load_tokenizer",
    "padded_condition",
]

_PADDING = "<pad>", 0
_END = "</s>", 1
_MAX_TOKENIZER_BYTES = 64 * 2**20
_NEEDED = "the text encoder of Wan models needs the package transformers"
_INSTALL = 'pip install "streamdit[wan]"'


def clean_prompt(prompt: str) -> str:
    """Return a prompt as Wan models were trained to read it.

    HTML entities are resolved twice, and every run of whitespace becomes one space. Before that,
    if the package ftfy happens to be installed, it repairs wrongly decoded text and makes curly
    quotes and full-width letters plain, as it did in training.

    Raises:
        ConfigError: the text cannot be written as UTF-8.
    """
    cleaned = normalize_prompt(html.unescape(html.unescape(_repaired(prompt))))
    try:
        cleaned.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"prompt has a character that is not Unicode text at position {error.start}",
            hint="type the prompt in UTF-8",
        ) from None
    return cleaned


def _repaired(prompt: str) -> str:
    try:
        import ftfy  # pyright: ignore[reportMissingImports]
    except ImportError:
        return prompt
    return ftfy.fix_text(prompt)


class WanTokenizer:
    """Cut a prompt into token ids.

    Args:
        tokenizer: with padding 0 and end 1; its own padding and truncation are switched off.
        max_tokens: ids of a prompt, the end included.
    """

    def __init__(self, tokenizer: "Tokenizer", max_tokens: int) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens

    def ids(self, prompt: str) -> list[int]:
        """Return the ids of a prompt after `clean_prompt`, cut to max_tokens, the end last.

        Choice: the end is put by us, so that a file with or without that rule gives the same ids.
        """
        return [*self._pieces(prompt)[: self._max_tokens - 1], _END[1]]

    def truncated(self, prompt: str) -> bool:
        """Say whether the prompt is longer than the encoder reads."""
        return len(self._pieces(prompt)) >= self._max_tokens

    def _pieces(self, prompt: str) -> list[int]:
        return self._tokenizer.encode(clean_prompt(prompt), add_special_tokens=False).ids


def load_tokenizer(path: Path, config: WanTextConfig) -> WanTokenizer:
    """Load a `tokenizer.json` of umT5.

    Raises:
        ConfigError: transformers, which brings the tokenizers, is not installed.
        WeightsError: the file is missing, damaged, or not a tokenizer of this encoder.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise ConfigError(_NEEDED, hint=_INSTALL) from None
    try:
        raw = read_bytes(path, _MAX_TOKENIZER_BYTES)
    except OSError as error:
        raise WeightsError(f"{path.name} cannot be read: {error.strerror}") from error
    try:
        tokenizer = Tokenizer.from_buffer(raw)
    except Exception as error:  # tokenizers raises nothing narrower
        raise WeightsError(
            f"{path.name} is not a tokenizer: {quoted(str(error))}",
            hint="take tokenizer.json of google/umt5-xxl",
        ) from None
    for text, number in (_PADDING, _END):
        found = tokenizer.token_to_id(text)
        if found != number:
            raise WeightsError(
                f"{path.name} gives {text} the id {found}, the encoder was trained with {number}",
                hint="take tokenizer.json of google/umt5-xxl",
            )
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    if size > config.vocabulary:
        raise WeightsError(
            f"{path.name} has {size} ids, the text encoder knows {config.vocabulary}"
        )
    return WanTokenizer(tokenizer, config.max_tokens)


def build_encoder(config: WanTextConfig) -> "UMT5EncoderModel":
    """Build the encoder on the meta device, in evaluation mode: shapes without memory.

    Raises:
        ConfigError: transformers is not installed.
    """
    try:
        from transformers import UMT5Config, UMT5EncoderModel
    except ImportError:
        raise ConfigError(_NEEDED, hint=_INSTALL) from None
    settings: dict[str, Any] = {
        "vocab_size": config.vocabulary,
        "d_model": config.width,
        "d_kv": config.head_width,
        "d_ff": config.mlp_width,
        "num_layers": config.depth,
        "num_heads": config.num_heads,
        "relative_attention_num_buckets": config.num_buckets,
        "relative_attention_max_distance": config.max_distance,
        "dropout_rate": 0.0,
        "layer_norm_epsilon": 1e-6,
        "feed_forward_proj": "gated-gelu",
        "is_encoder_decoder": False,
        "use_cache": False,
        "pad_token_id": _PADDING[1],
        "eos_token_id": _END[1],
        "attn_implementation": "eager",  # the order of operations that Wan's own encoder has
    }
    with torch.device("meta"):
        module = UMT5EncoderModel(UMT5Config(**settings))
    module.set_input_embeddings(module.shared)  # one embedding, whatever the version ties itself
    return module.eval().requires_grad_(False)


class WanTextEncoder:
    """Encode prompts one by one; the result of a prompt does not depend on its neighbours.

    Args:
        config: the sizes.
        tokenizer: cuts prompts into ids.
        module: the encoder with its weights, on one device.
    """

    def __init__(
        self, config: WanTextConfig, tokenizer: WanTokenizer, module: "UMT5EncoderModel"
    ) -> None:
        self.config = config
        self._tokenizer = tokenizer
        self._module: UMT5EncoderModel | None = module

    @property
    def module(self) -> "UMT5EncoderModel":
        """The encoder.

        Raises:
            WeightsError: it was freed.
        """
        if self._module is None:
            raise WeightsError("the text encoder was freed", hint="load it again")
        return self._module

    @property
    def device(self) -> torch.device:
        """Where the weights are and the result of `encode` will be."""
        return self.module.shared.weight.device

    def truncated(self, prompt: str) -> bool:
        """Say whether the prompt is longer than the encoder reads."""
        return self._tokenizer.truncated(prompt)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> TextCondition:
        """Encode prompts to max_tokens rows each.

        Args:
            prompts: at least one, cleaned here; "" is the null prompt of guidance.

        Returns:
            tokens (prompts, max_tokens, width), zero past the end of a prompt; the mask says which
            rows are real, it is not for the attention.

        Raises:
            ConfigError: no prompt, or one that cannot be written as UTF-8.
            NumericsError: a result that is not finite.
            WeightsError: the encoder was freed, or gives nothing but zeros.

        Choice: only the real tokens are computed. A masked one reaches no other row, so this is
        the masked computation of all rows, in a small part of its time.
        """
        if not prompts:
            raise ConfigError("no prompt to encode, at least one is needed")
        rows = [self._rows(prompt) for prompt in prompts]
        conditions = [padded_condition(row, self.config.max_tokens) for row in rows]
        return TextCondition(
            torch.cat([condition.tokens for condition in conditions]),
            torch.cat([condition.mask for condition in conditions]),
        )

    def _rows(self, prompt: str) -> Tensor:
        """Return the real rows of one prompt, (tokens, width)."""
        ids = torch.tensor([self._tokenizer.ids(prompt)], device=self.device)
        rows = self.module(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
        if not bool(rows.isfinite().all()):
            raise NumericsError(
                f"the text encoder gives values that are not finite in {rows.dtype}",
                hint="use --dtype float32",
            )
        if not bool(rows.any()):
            raise WeightsError("the text encoder gives nothing but zeros", hint="load it again")
        return rows

    def move(self, device: torch.device | str) -> None:
        """Move the weights: to the CPU to make room on a GPU, and back to encode there."""
        _move(self.module, self.device, torch.device(device))

    def free(self) -> None:
        """Give the memory of the weights back, also when someone still holds the module.

        Afterwards the encoder can only be thrown away; calling this again does nothing.
        """
        if self._module is None:
            return
        _move(self._module, self.device, torch.device("meta"))
        self._module = None


def padded_condition(rows: Tensor, max_tokens: int) -> TextCondition:
    """Return real rows (tokens, width) as the condition of one prompt, zero past their end."""
    length = rows.shape[0]
    tokens = functional.pad(rows, (0, 0, 0, max_tokens - length))
    mask = torch.arange(max_tokens, device=rows.device) < length
    return TextCondition(tokens[None], mask[None])


def load_text_encoder(
    paths: Sequence[Path],
    tokenizer_path: Path,
    config: WanTextConfig,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
) -> WanTextEncoder:
    """Load umT5 from safetensors files and a tokenizer's file.

    Args:
        paths: the files of the encoder, all of them, in the transformers or in Wan's own layout.
        tokenizer_path: its `tokenizer.json`.
        config: the sizes, `UMT5_XXL` for all Wan models.
        dtype: of the weights and the result, bfloat16, float32 or float64.
        device: where the weights go, tensor by tensor.

    Raises:
        ConfigError: transformers is not installed, another dtype, or no file.
        WeightsError: a file is missing, damaged, a pickle, or does not fit the sizes.
    """
    tokenizer = load_tokenizer(tokenizer_path, config)
    module = build_encoder(config)
    state = read_encoder(paths, config, dtype, torch.device(device))
    assert state.keys() == tensor_names(config).keys()
    state["encoder.embed_tokens.weight"] = state["shared.weight"]
    module.load_state_dict(state, strict=True, assign=True)
    module.set_input_embeddings(module.shared)
    return WanTextEncoder(config, tokenizer, module)


def _move(module: nn.Module, before: torch.device, after: torch.device) -> None:
    """Move weights, and give what they leave behind on a GPU back to it."""
    module.to(device=after)
    if before.type == "cuda" and after != before:
        torch.cuda.empty_cache()
