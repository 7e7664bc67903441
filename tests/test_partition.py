"""A partition refuses what cannot be cut, says why, and can be written, read and shown."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from streamdit_model.errors import ConfigError
from streamdit_model.partition import ChunkMix, Partition, training_tau

STUDENT = Partition(num_chunks=8, chunk_size=2, micro_steps=1)
TEACHER = Partition(num_chunks=8, chunk_size=2, micro_steps=16)

INVALID = [
    ({"num_chunks": 0}, "num_chunks 0 .* at least 1"),
    ({"chunk_size": -1}, "chunk_size -1 .* at least 1"),
    ({"micro_steps": 0}, "micro_steps 0 .* at least 1"),
    ({"micro_steps": 1.5}, "micro_steps 1.5 .* whole number"),
    ({"num_chunks": True}, "num_chunks True .* whole number"),
    ({"num_reference": -1}, "num_reference -1 .* at least 0"),
    ({"gamma": "cosine"}, "'cosine' is unknown; linear, power and shift are known"),
    ({"gamma_parameter": 2.0}, "linear takes no parameter but 1.0: 2.0"),
    ({"gamma": "power", "gamma_parameter": 0.0}, "0.0 is not a finite number above 0"),
    ({"gamma": "shift", "gamma_parameter": float("nan")}, "nan is not a finite number"),
    ({"gamma": "power", "gamma_parameter": 60.0}, "power 60.0 has a step of 0 in 128"),
    ({"num_chunks": 999_999}, "buffer_length 1999998 is more than 1000000"),
]


@pytest.mark.parametrize(("numbers", "message"), INVALID)
def test_invalid_partition_is_refused_with_its_numbers(
    numbers: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(TEACHER, **numbers)


@pytest.mark.parametrize(
    ("length", "size", "steps", "reference", "message"),
    [
        (16, 3, 128, 0, "buffer length 16 is not a multiple of chunk size 3"),
        (16, 2, 128, 1, "buffer length 16 less 1 reference frames is not a multiple .* size 2"),
        (16, 2, 100, 0, "total steps 100 is not a multiple of the number of chunks 8"),
        (4, 8, 8, 0, "buffer length 4 cannot hold 0 reference frames and a chunk of 8"),
        (4, 0, 8, 0, "buffer length 4 cannot hold 0 reference frames and a chunk of 0"),
        (4, 2, 8, 4, "buffer length 4 cannot hold 4 reference frames and a chunk of 2"),
    ],
)
def test_buffer_that_does_not_divide_is_refused_with_both_numbers(
    length: int, size: int, steps: int, reference: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Partition.from_buffer(
            buffer_length=length, chunk_size=size, total_steps=steps, num_reference=reference
        )


def test_buffer_that_does_not_divide_is_refused_in_training_too() -> None:
    with pytest.raises(ConfigError, match="buffer length 16 is not a multiple of chunk size 3"):
        training_tau([0.5] * 5, buffer_length=16, chunk_size=3)
    with pytest.raises(ConfigError, match=r"\(7,\) for 8 chunks"):
        training_tau([0.5] * 7, buffer_length=16, chunk_size=2)
    with pytest.raises(ConfigError, match=r"not all in \[0, 1\)"):
        training_tau([1.0], buffer_length=16, chunk_size=16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, None, None), r"micro step 3 is not in 0 \.\. 2"),
        ((-1, None, None), r"micro step -1 is not in 0 \.\. 2"),
        ((0, 0, None), r"number of chunks present 0 is not in 1 \.\. 4"),
        ((0, 5, None), r"number of chunks present 5 is not in 1 \.\. 4"),
        ((0, 4, 3), r"number of reference frames present 3 is not in 0 \.\. 2"),
        ((0, 3, 1), "1 reference frames present with 3 of 4 chunks"),
    ],
)
def test_levels_of_frames_that_cannot_be_present_are_refused(
    arguments: tuple[int, int | None, int | None], message: str
) -> None:
    partition = Partition(num_reference=2, num_chunks=4, chunk_size=2, micro_steps=2)
    with pytest.raises(ConfigError, match=message):
        partition.tau(*arguments)


def test_end_of_a_cycle_has_levels_but_no_step() -> None:
    assert TEACHER.levels(16)[0] == 128
    with pytest.raises(ConfigError, match=r"micro step 16 is not in 0 \.\. 15"):
        TEACHER.delta_tau(16)
    with pytest.raises(ConfigError, match=r"chunk 8 is not in 0 \.\. 7"):
        TEACHER.level(8, 0)


@pytest.mark.parametrize(
    ("sizes", "probabilities", "message"),
    [
        ((1, 2), (1.0,), "2 chunk sizes with 1 probabilities"),
        ((1, 0), (0.5, 0.5), "not whole numbers of at least 1"),
        ((1, 2), (0.5, 0.6), "sum 1: 1.1"),
        ((1, 2), (1.0, 0.0), "not all above 0"),
    ],
)
def test_invalid_mix_is_refused(
    sizes: tuple[int, ...], probabilities: tuple[float, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        ChunkMix(sizes=sizes, probabilities=probabilities)


def test_partition_is_read_from_text_in_any_order() -> None:
    assert Partition.from_text("K=0,N=8,c=2,s=1") == STUDENT
    assert Partition.from_text(" s = 16 , c=2,K=0, N=8") == TEACHER


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("K=0,N=8,c=2", "lacks s"),
        ("", "has no ="),
        ("N=8,c=2,s=1", "lacks K"),
        ("K=0,N=8,c=2,s=1,B=16", "letter 'B' is not one of K, N, c, s"),
        ("K=0,N=8,C=2,s=1", "letter 'C' is not one of"),
        ("K=0,N=8,c=2,s=1,s=2", "letter s is given twice"),
        ("K=0,N=8,c=two,s=1", "c=two is not a whole number"),
        ("K=0,N=8,c=2.0,s=1", "c=2.0 is not a whole number"),
        ("K=-1,N=8,c=2,s=1", "K=-1 is not a whole number"),
        ("K=0,N=99999999999,c=2,s=1", "N=99999999999 is not a whole number"),
        ("K=0,N=8,c=,s=1", "c= is not a whole number"),
        ("K=0,N=0,c=2,s=1", "num_chunks 0"),
        ("K=0;N=8", "K=0;N=8 is not a whole number"),
    ],
)
def test_partition_text_that_is_wrong_is_refused_clearly(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Partition.from_text(text)
    assert "\n" not in str(caught.value)


def test_rows_describe_references_and_chunks_oldest_first() -> None:
    rows = Partition(num_reference=1, num_chunks=2, chunk_size=2, micro_steps=2).rows()
    assert [(row.chunk, row.frames) for row in rows] == [(None, (0,)), (0, (1, 2)), (1, (3, 4))]
    assert [row.levels for row in rows] == [(4, 4), (2, 3), (0, 1)]
    assert [row.tau for row in rows] == [(1.0, 1.0), (0.5, 0.75), (0.0, 0.25)]


def test_growing_buffer_is_aligned_to_the_tail() -> None:
    for present in range(1, 9):
        for step in range(16):
            full, growing = TEACHER.tau(step), TEACHER.tau(step, present)
            assert torch.equal(growing, full[-2 * present :])
            assert torch.equal(
                TEACHER.delta_tau(step, present), TEACHER.delta_tau(step)[-2 * present :]
            )
