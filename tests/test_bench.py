"""Claim: `bench` measures what it says, compares equal work, and every number of it is finite."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from streamdit_cli.app import main


def numbers(value: Any) -> list[float]:
    """Every number of a record."""
    if isinstance(value, dict):
        return [number for item in value.values() for number in numbers(item)]
    if isinstance(value, list):
        return [number for item in value for number in numbers(item)]
    return [value] if isinstance(value, int | float) else []


def test_bench_prints_tables_and_writes_every_number_finite(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "speed.json"
    words = ["bench", "-m", str(tiny_model), "--seconds", "0.4", "--compare", "fifo,clip"]
    assert main([*words, "--threads", "1", "--dtype", "float32", "--json", str(path)]) == 0
    output = capsys.readouterr()
    print(output.out, output.err)
    record = json.loads(path.read_text(), parse_constant=lambda text: pytest.fail(text))
    assert all(math.isfinite(number) for number in numbers(record))
    print(json.dumps(record, indent=1))
