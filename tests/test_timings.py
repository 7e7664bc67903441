"""Claim: the arithmetic of a measurement is right on samples whose answer is known."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streamdit_model import timings

FINITE = st.floats(0.001, 1e6)


@given(st.lists(FINITE, min_size=1, max_size=50), st.floats(0, 1))
def test_quantile_is_that_of_torch(samples: list[float], share: float) -> None:
    expected = torch.quantile(torch.tensor(samples, dtype=torch.float64), share).item()
    assert math.isclose(timings.quantile(samples, share), expected, rel_tol=1e-12)


def test_quantile_of_nothing_or_beyond_is_refused() -> None:
    for samples, share in (([], 0.5), ([1.0], 1.5), ([1.0], -0.1)):
        with pytest.raises(ValueError, match="quantile"):
            timings.quantile(samples, share)


def test_summary_orders_its_quantiles_and_counts() -> None:
    found = timings.summary([float(number) for number in reversed(range(101))])
    assert found == {"count": 101, "median": 50.0, "p90": 90.0, "p99": 99.0, "max": 100.0}


def test_half_spread_is_a_share_of_the_median() -> None:
    assert timings.half_spread([9.0, 10.0, 12.0]) == pytest.approx(0.15)
    assert timings.half_spread([7.0]) == timings.half_spread([0.0, 0.0]) == 0.0


def test_shares_sum_to_one() -> None:
    assert timings.shares({"a": 1.0, "b": 3.0}) == {"a": 0.25, "b": 0.75}
    assert timings.shares({"a": 0.0}) == {"a": 0.0}


def test_ratio_in_turns_does_not_see_what_slows_both_down() -> None:
    noise = [1.0, 7.0, 2.0, 30.0]
    found = timings.ratio([2 * factor for factor in noise], noise)
    assert found == {"median": 2.0, "low": 2.0, "high": 2.0}
    assert timings.ratio([1.0, 9.0], [1.0, 3.0]) == {"median": 2.0, "low": 1.0, "high": 3.0}
    with pytest.raises(ValueError):
        timings.ratio([1.0], [1.0, 2.0])


def test_gaps_are_between_arrivals() -> None:
    assert timings.gaps([1.0, 1.5, 3.0]) == [0.5, 1.5]
    assert timings.gaps([1.0]) == []


def test_viewer_one_chunk_behind_waits_only_for_chunks_later_than_that() -> None:
    on_time = [0.5 * number for number in range(9)]
    assert timings.late_chunks(on_time, 0.5) == 0
    one_late = [0.0, 0.5, 1.9, 2.0, 2.5, 3.0]  # due at 1.5; from then on everything is 0.4 s later
    assert timings.late_chunks(one_late, 0.5) == 1
    assert timings.late_chunks([float(number) for number in range(6)], 0.5) == 4
    assert timings.late_chunks([], 0.5) == 0


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_slope_of_a_line_is_its_slope(slope: float, level: float) -> None:
    times = [3.0 * number + number % 2 for number in range(40)]
    values = [level + slope * time / 3600 for time in times]
    found = timings.slope_per_hour(times, values)
    assert found is not None and math.isclose(found, slope, rel_tol=1e-6, abs_tol=1e-3)


def test_slope_of_a_short_run_is_not_told() -> None:
    assert timings.slope_per_hour([0.0, 59.0], [1.0, 2.0]) is None
    assert timings.slope_per_hour([0.0], [1.0]) is None
    exact = Fraction(3600, 60)
    assert timings.slope_per_hour([0.0, 60.0], [1.0, 2.0]) == float(exact)


def test_warm_up_ends_with_five_times_within_two_percent() -> None:
    steady = [9.0, 5.0, 1.0, 1.01, 1.0, 1.019, 1.0]
    assert timings.is_steady(steady, least=7)
    assert not timings.is_steady(steady, least=8)
    assert not timings.is_steady([*steady, 1.03], least=7)
    assert not timings.is_steady([1.0] * 4, least=1)
