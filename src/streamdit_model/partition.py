"""How a moving buffer is cut into chunks, and the noise level of every latent frame.

The numbers of the paper's section 3.2 and nothing else: no latents, no network. A buffer of B
latent frames holds K clean reference frames and N chunks of c frames, B = K + N*c; it moves on by
one chunk after s micro steps, so every chunk is denoised in T = s*N steps.

Order rule: index 0 = head = oldest = cleanest = next to leave; last index = tail = newest noise.
The paper says that tau increases with the frame index, that references sit at the beginning and
that new noise enters at the beginning; these cannot all hold, and only this order streams. So tau
never increases along the frame axis.

Time rule: tau runs from 0 (noise) to 1 (data); velocity points to data.

Levels are integers k of T; tau = gamma(k/T) from one float64 table that is exactly 0 and 1 at its
ends, and every step is a difference of its entries. A growing buffer is aligned to the tail: a
chunk always sits at the slot of its level.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from streamdit_model.errors import ConfigError
from streamdit_model.gamma import apply_gamma

__all__ = ["ChunkMix", "Partition", "PartitionRow", "training_tau"]

_LETTERS = {"K": "num_reference", "N": "num_chunks", "c": "chunk_size", "s": "micro_steps"}
_LARGEST = 1_000_000  # latent frames or steps; a typing error must not fill the memory


@dataclass(frozen=True, kw_only=True, slots=True)
class PartitionRow:
    """One chunk (or the references) of a full buffer over one cycle, as numbers to be shown.

    Args:
        chunk: 0 = oldest; None for the row of the reference frames.
        frames: slots of its frames in the buffer.
        levels: integer level at micro steps 0 .. s-1; T for references.
        tau: tau at the same micro steps.
    """

    chunk: int | None
    frames: tuple[int, ...]
    levels: tuple[int, ...]
    tau: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Partition:
    """A buffer cut into K reference frames and N chunks of c frames, moved by s micro steps.

    Args:
        num_reference: K, clean latent frames at the head, input only; 0 or more.
        num_chunks: N, 1 or more.
        chunk_size: c, latent frames in a chunk, 1 or more.
        micro_steps: s, denoising steps before the buffer moves on by one chunk, 1 or more.
        gamma: "linear", "power" or "shift".
        gamma_parameter: exponent of "power", amount of "shift"; 1.0 for "linear".

    Raises:
        ConfigError: a number out of range, or a gamma whose steps vanish in float32.

    Paper: eq. 7 and Table 1.
    """

    num_reference: int = 0
    num_chunks: int
    chunk_size: int
    micro_steps: int
    gamma: str = "linear"
    gamma_parameter: float = 1.0

    def __post_init__(self) -> None:
        for letter, name in _LETTERS.items():
            value = getattr(self, name)
            least = 0 if letter == "K" else 1
            if type(value) is not int or value < least:
                raise ConfigError(
                    f"{name} {value!r} is not a whole number of at least {least} ({letter})"
                )
        for name in ("buffer_length", "total_steps"):
            if getattr(self, name) > _LARGEST:
                raise ConfigError(f"{name} {getattr(self, name)} is more than {_LARGEST}")
        if not bool((self.gamma_table().diff().float() > 0).all()):
            raise ConfigError(
                f"gamma {self.gamma} {self.gamma_parameter} has a step of 0 in {self.total_steps}"
            )

    @classmethod
    def uniform(
        cls,
        *,
        buffer_length: int,
        total_steps: int,
        gamma: str = "linear",
        gamma_parameter: float = 1.0,
    ) -> "Partition":
        """One chunk that fills the buffer: ordinary clip generation.

        Paper: Table 1, uniform. As a sampler it needs s = T; the s = 1 of the table counts levels.
        """
        return cls(
            num_chunks=1,
            chunk_size=buffer_length,
            micro_steps=total_steps,
            gamma=gamma,
            gamma_parameter=gamma_parameter,
        )

    @classmethod
    def diagonal(
        cls,
        *,
        buffer_length: int,
        micro_steps: int = 1,
        gamma: str = "linear",
        gamma_parameter: float = 1.0,
    ) -> "Partition":
        """Every latent frame is a chunk of its own, with a level of its own.

        Paper: Table 1, diagonal (c = 1; s = 1 in the table).
        """
        return cls(
            num_chunks=buffer_length,
            chunk_size=1,
            micro_steps=micro_steps,
            gamma=gamma,
            gamma_parameter=gamma_parameter,
        )

    @classmethod
    def from_buffer(
        cls, *, buffer_length: int, chunk_size: int, total_steps: int, num_reference: int = 0
    ) -> "Partition":
        """Cut a buffer of B frames denoised in T steps of linear gamma; N and s follow.

        Raises:
            ConfigError: B - K is not a multiple of c, or T not of N.

        Paper: eq. 7.
        """
        chunks = _count_chunks(buffer_length, chunk_size, num_reference)
        if total_steps % chunks:
            raise ConfigError(
                f"total steps {total_steps} is not a multiple of the number of chunks {chunks}"
            )
        return cls(
            num_reference=num_reference,
            num_chunks=chunks,
            chunk_size=chunk_size,
            micro_steps=total_steps // chunks,
        )

    @classmethod
    def from_text(cls, text: str) -> "Partition":
        """Read a partition written as "K=0,N=8,c=2,s=1": all four letters, in any order."""
        example = "write it like K=0,N=8,c=2,s=1"
        values: dict[str, Any] = {}
        for item in text.split(","):
            letter, equals, digits = (part.strip() for part in item.partition("="))
            if not equals:
                raise ConfigError(f"partition part {item!r} has no =", hint=example)
            if letter not in _LETTERS:
                known = ", ".join(_LETTERS)
                raise ConfigError(f"partition letter {letter!r} is not one of {known}", example)
            if _LETTERS[letter] in values:
                raise ConfigError(f"partition letter {letter} is given twice in {text!r}", example)
            if not (digits.isascii() and digits.isdigit() and len(digits) <= 9):
                raise ConfigError(f"partition {letter}={digits} is not a whole number", example)
            values[_LETTERS[letter]] = int(digits)
        missing = [letter for letter, name in _LETTERS.items() if name not in values]
        if missing:
            raise ConfigError(f"partition {text!r} lacks {', '.join(missing)}", hint=example)
        return cls(**values)

    @property
    def buffer_length(self) -> int:
        """B = K + N*c, latent frames. Paper: eq. 7."""
        return self.num_reference + self.num_chunks * self.chunk_size

    @property
    def total_steps(self) -> int:
        """T = s*N, network calls that every latent frame sees. Paper: eq. 7."""
        return self.micro_steps * self.num_chunks

    def gamma_table(self) -> Tensor:
        """Return tau at every level k of T: float64 (T+1,), exactly 0 first and exactly 1 last."""
        time = torch.arange(self.total_steps + 1, dtype=torch.float64) / self.total_steps
        return apply_gamma(time, self.gamma, self.gamma_parameter)

    def segment_levels(self) -> Tensor:
        """Return tau at the borders of the N segments: float64 (N+1,), from 0 to 1."""
        return self.gamma_table()[:: self.micro_steps]

    def level(self, chunk: int, micro_step: int) -> int:
        """Return the level k of a chunk at the start of a micro step, 0 .. T-1.

        The chunk is 0 = oldest .. N-1 = newest, the micro step 0 .. s-1.
        """
        if not 0 <= chunk < self.num_chunks:
            raise ConfigError(f"chunk {chunk} is not in 0 .. {self.num_chunks - 1}")
        if not 0 <= micro_step < self.micro_steps:
            raise ConfigError(f"micro step {micro_step} is not in 0 .. {self.micro_steps - 1}")
        return self.micro_steps * (self.num_chunks - 1 - chunk) + micro_step

    def levels(
        self,
        micro_step: int,
        num_chunks_present: int | None = None,
        num_reference_present: int | None = None,
    ) -> tuple[int, ...]:
        """Return the level of every latent frame present, 0 .. T; references are at T.

        Args:
            micro_step: 0 .. s; s is the end of the cycle.
            num_chunks_present: 1 .. N; None = N. With fewer, the buffer is growing.
            num_reference_present: 0 .. K; None = K in a full buffer and 0 in a growing one, which
                has emitted nothing yet.

        Raises:
            ConfigError: a number out of range, or references in a growing buffer.
        """
        present = self.num_chunks if num_chunks_present is None else num_chunks_present
        full = present == self.num_chunks
        reference = num_reference_present
        if reference is None:
            reference = self.num_reference if full else 0
        for name, value, least, most in (
            ("micro step", micro_step, 0, self.micro_steps),
            ("number of chunks present", present, 1, self.num_chunks),
            ("number of reference frames present", reference, 0, self.num_reference),
        ):
            if not least <= value <= most:
                raise ConfigError(f"{name} {value} is not in {least} .. {most}")
        if reference and not full:
            raise ConfigError(
                f"{reference} reference frames present with {present} of {self.num_chunks} chunks; "
                "a growing buffer has none"
            )
        levels = [self.total_steps] * reference
        for place in reversed(range(present)):
            levels += [self.micro_steps * place + micro_step] * self.chunk_size
        return tuple(levels)

    def tau(
        self,
        micro_step: int,
        num_chunks_present: int | None = None,
        num_reference_present: int | None = None,
    ) -> Tensor:
        """Return tau of every latent frame present, float32 (frames,); arguments as `levels`.

        Paper: eq. 5 to 7 and section 3.2.
        """
        levels = self.levels(micro_step, num_chunks_present, num_reference_present)
        return self.gamma_table()[list(levels)].float()

    def delta_tau(
        self,
        micro_step: int,
        num_chunks_present: int | None = None,
        num_reference_present: int | None = None,
    ) -> Tensor:
        """Return the step of every latent frame present, float32 (frames,); 0 for references.

        Arguments as `levels`; the micro step is 0 .. s-1. Paper: eq. 6.
        """
        self.level(0, micro_step)
        before = self.levels(micro_step, num_chunks_present, num_reference_present)
        after = self.levels(micro_step + 1, num_chunks_present, num_reference_present)
        table = self.gamma_table()
        return (table[list(after)] - table[list(before)]).float()

    def rows(self) -> list[PartitionRow]:
        """Describe a full buffer over one cycle, oldest first: one row for each chunk.

        References, if any, make the first row.
        """
        table = self.gamma_table().tolist()
        size, steps = self.chunk_size, range(self.micro_steps)
        rows = []
        if self.num_reference:
            frames = tuple(range(self.num_reference))
            levels, tau = (self.total_steps,) * len(steps), (1.0,) * len(steps)
            rows.append(PartitionRow(chunk=None, frames=frames, levels=levels, tau=tau))
        for chunk in range(self.num_chunks):
            first = self.num_reference + chunk * size
            levels = tuple(self.level(chunk, step) for step in steps)
            tau = tuple(table[level] for level in levels)
            frames = tuple(range(first, first + size))
            rows.append(PartitionRow(chunk=chunk, frames=frames, levels=levels, tau=tau))
        return rows


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkMix:
    """The mix of chunk sizes that a model is trained on.

    Args:
        sizes: chunk sizes in latent frames.
        probabilities: one for each size, above 0, summing to 1.

    Raises:
        ConfigError: lengths that differ, a size below 1, or probabilities that do not sum to 1.

    Paper: Table 3, sizes [1, 2, 4, 8, 16].
    Choice: the 4B probabilities are not given; 0.3 for the uniform scheme is the best "T2V mix
    ratio" of Table 4, and the rest is shared evenly.
    """

    sizes: tuple[int, ...] = (1, 2, 4, 8, 16)
    probabilities: tuple[float, ...] = (0.175, 0.175, 0.175, 0.175, 0.3)

    def __post_init__(self) -> None:
        if len(self.sizes) != len(self.probabilities):
            raise ConfigError(
                f"{len(self.sizes)} chunk sizes with {len(self.probabilities)} probabilities"
            )
        if any(type(size) is not int or size < 1 for size in self.sizes):
            raise ConfigError(f"chunk sizes {self.sizes} are not whole numbers of at least 1")
        total = math.fsum(self.probabilities)
        if not all(share > 0 for share in self.probabilities) or abs(total - 1) > 1e-9:
            raise ConfigError(
                f"chunk probabilities {self.probabilities} are not all above 0 with sum 1: {total}"
            )

    def draw(self, uniform: float) -> int:
        """Return the chunk size at a place in [0, 1) of the cumulated probabilities."""
        if not 0 <= uniform < 1:
            raise ConfigError(f"uniform draw {uniform} is not in [0, 1)")
        border = 0.0
        for size, share in zip(self.sizes, self.probabilities, strict=True):
            border += share
            if uniform < border:
                return size
        return self.sizes[-1]


def training_tau(
    uniforms: Tensor | Sequence[float],
    *,
    buffer_length: int,
    chunk_size: int,
    num_reference: int = 0,
    gamma: str = "linear",
    gamma_parameter: float = 1.0,
) -> Tensor:
    """Draw tau for one training window: each chunk anywhere in its own segment of time.

    Chunk j (0 = oldest) gets gamma(t) with t uniform in [(N-1-j)/N, (N-j)/N), independently of the
    others; the c frames of a chunk share it. With c = B this is one tau ~ U(0, 1) for the window,
    which is ordinary flow matching. A growing buffer of n chunks takes the last n*c entries.

    Args:
        uniforms: float64 draws in [0, 1), (num_chunks,), oldest chunk first.
        buffer_length: B, latent frames.
        chunk_size: c, latent frames.
        num_reference: K; their tau is 1.
        gamma: as in `Partition`, like `gamma_parameter`.

    Returns:
        tau, float32 (B,).

    Raises:
        ConfigError: sizes that do not divide, or draws of another number or outside [0, 1).

    Paper: eq. 8 and eq. 9.
    """
    num_chunks = _count_chunks(buffer_length, chunk_size, num_reference)
    draws = torch.as_tensor(uniforms, dtype=torch.float64, device="cpu")
    if draws.shape != (num_chunks,):
        raise ConfigError(f"uniforms of shape {tuple(draws.shape)} for {num_chunks} chunks")
    if not bool(((draws >= 0) & (draws < 1)).all()):
        raise ConfigError(f"uniforms {draws.tolist()} are not all in [0, 1)")
    segment = torch.arange(num_chunks - 1, -1, -1, dtype=torch.float64)
    tau = apply_gamma((segment + draws) / num_chunks, gamma, gamma_parameter)
    references = torch.ones(num_reference, dtype=torch.float64)
    return torch.cat([references, tau.repeat_interleave(chunk_size)]).float()


def _count_chunks(buffer_length: int, chunk_size: int, num_reference: int) -> int:
    """Return N of B = K + N*c."""
    frames = buffer_length - num_reference
    if num_reference < 0 or not 1 <= chunk_size <= frames:
        raise ConfigError(
            f"buffer length {buffer_length} cannot hold {num_reference} reference frames "
            f"and a chunk of {chunk_size}"
        )
    if frames % chunk_size:
        less = f" less {num_reference} reference frames" if num_reference else ""
        raise ConfigError(
            f"buffer length {buffer_length}{less} is not a multiple of chunk size {chunk_size}"
        )
    return frames // chunk_size
