"""No file in a model folder can run, block, or fill the memory; each ends in a WeightsError."""

import ast
import json
import os
import random
import re
import resource
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from file_faults import flip_bit, in_child
from safetensors.torch import load_file, save_file
from tiny_folders import (
    PARTS,
    assert_loads_as,
    changed,
    model_folder,
    save_tiny,
)

from streamdit_model.errors import WeightsError
from streamdit_model.storage import read_header
from streamdit_model.weights import describe, load, load_states, read_config

__all__ = ["model_folder"]  # a fixture for the tests here


# Files that are missing, foreign or hostile.


@pytest.mark.parametrize("name", ["config.json", *(f"{part}.safetensors" for part in PARTS)])
def test_missing_file_is_named(model_folder: Path, name: str) -> None:
    (model_folder / name).unlink()
    for read in (describe, load):
        with pytest.raises(WeightsError, match=f"{name} is missing in"):
            read(model_folder)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="nowhere"):
        load(tmp_path / "nowhere")


class Payload:
    """Leaves a mark when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (os.mkdir, (str(self.marker),))


@pytest.mark.parametrize("protocol", [0, 2, 4, "zip"])
@pytest.mark.parametrize("name", [f"{part}.safetensors" for part in PARTS])
def test_payload_in_place_of_weights_never_runs(
    model_folder: Path, tmp_path: Path, name: str, protocol: int | str
) -> None:
    import pickle

    payload = Payload(tmp_path / "marker")
    if protocol == "zip":
        torch.save(payload, model_folder / name)
        assert zipfile.is_zipfile(model_folder / name)
    else:
        assert isinstance(protocol, int)
        (model_folder / name).write_bytes(pickle.dumps(payload, protocol=protocol))
    for read in (describe, load, load_states):
        with pytest.raises(WeightsError, match=f"{name} is .*not a safetensors file"):
            read(model_folder)
    assert not (tmp_path / "marker").exists()
    pickle.loads(pickle.dumps(payload))  # the payload does work where it is run
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin", ".PT"])
def test_pickle_beside_the_config_is_not_opened_and_named(
    model_folder: Path, tmp_path: Path, suffix: str
) -> None:
    torch.save(Payload(tmp_path / "marker"), model_folder / f"transformer{suffix}")
    (model_folder / "transformer.safetensors").unlink()
    with pytest.raises(WeightsError, match=f"transformer{suffix}' is not opened") as raised:
        load(model_folder)
    assert "only .safetensors" in raised.value.hint
    with pytest.raises(WeightsError, match=f"transformer{suffix} is not a model folder"):
        load(model_folder / f"transformer{suffix}")
    assert not (tmp_path / "marker").exists()


def test_code_and_foreign_files_in_a_model_folder_are_ignored(
    model_folder: Path, tmp_path: Path
) -> None:
    code = f"import os\nos.mkdir({str(tmp_path / 'marker')!r})\n"
    for name in ("modeling.py", "__init__.py", "sitecustomize.py"):
        (model_folder / name).write_text(code)
    torch.save(Payload(tmp_path / "marker"), model_folder / "extra.distcp")
    (model_folder / "model.safetensors").write_bytes(b"junk")
    load(model_folder)
    assert not (tmp_path / "marker").exists()


def test_fifo_in_place_of_a_file_does_not_block(model_folder: Path) -> None:
    for name in ("text.safetensors", "config.json"):
        (model_folder / name).unlink()
        os.mkfifo(model_folder / name)
        with pytest.raises(WeightsError, match=f"{name} is not a regular file"):
            load(model_folder)


def test_links_of_a_download_cache_are_followed(model_folder: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    model_folder.rename(blobs)
    snapshot.mkdir()
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(path)
    assert_loads_as(snapshot, 0)


@pytest.mark.parametrize(
    "name",
    [
        "../outside.safetensors",
        "/etc/passwd",
        "text-00001-of-00002.safetensors",
        "transformer-00001-of-00002.safetensors/../../x",
        "transformer-00001-of-00002.pt",
        "transformer-1-of-2.safetensors",
        "transformer-00001-of-00002.safetensors\n",
        7,
        None,
    ],
)
def test_index_that_names_another_file_is_refused(tmp_path: Path, name: object) -> None:
    folder = save_tiny(tmp_path / "m", max_shard_bytes=1500)
    index = folder / "transformer.safetensors.index.json"
    table = json.loads(index.read_text())
    table["weight_map"]["head.weight"] = name
    index.write_text(json.dumps(table))
    with pytest.raises(WeightsError, match="which is not a shard"):
        load(folder)


def test_index_and_shards_that_disagree_are_refused(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m", max_shard_bytes=1500)
    index = folder / "transformer.safetensors.index.json"
    table = json.loads(index.read_text())
    first, second = sorted(set(table["weight_map"].values()))[:2]
    for change in ({"head.weight": first}, {"head.weight": second}, {"new": first}):
        weight_map = {**table["weight_map"], **change}
        if weight_map == table["weight_map"]:
            continue
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(WeightsError, match="not hold the tensors that its index says"):
            load(folder)
    index.write_text(json.dumps(table))
    (folder / second).unlink()
    with pytest.raises(WeightsError, match=f"{second} is missing"):
        load(folder)
    save_file({"x": torch.zeros(1)}, folder / "transformer.safetensors")
    with pytest.raises(WeightsError, match="has both"):
        load(folder)


# Headers.


def raw_file(header: bytes | dict[str, Any], data: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(header).encode() if isinstance(header, dict) else header
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape: object, start: object, end: object, dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


HOSTILE = {
    "empty": b"",
    "short": b"\x02\0\0\0",
    "no header": raw_file(b""),
    "header past the end": raw_file(b"{}", length=100),
    "header of 2 ** 63 bytes": raw_file(b"{}", length=2**63),
    "header of 9 MB": raw_file(b"{" + b" " * 9 * 2**20 + b"}"),
    "leading space": raw_file(b" {}"),
    "a list": raw_file(b"[]"),
    "not UTF-8": raw_file(b'{"\xff": 1}'),
    "not JSON": raw_file(b"{]"),
    "key twice": raw_file(b'{"a":' + json.dumps(entry([], 0, 4)).encode() + b',"a":1}', b"0000"),
    "deep": raw_file(b'{"a":' * 30_000),
    "too many objects": raw_file(b'{"a":[' + b"{}," * 200_000 + b"{}]}"),
    "too many strings": raw_file(b'{"a":["' + b'","' * 200_000 + b'"]}'),
    "too many tensors": raw_file({f"t{n}": entry([0], 0, 0) for n in range(20_001)}),
    "entry is no object": raw_file({"a": 1}),
    "entry lacks a field": raw_file({"a": {"dtype": "F32", "shape": []}}),
    "unknown dtype": raw_file({"a": entry([1], 0, 4, "Q7")}, b"0000"),
    "dtype is a list": raw_file({"a": entry([1], 0, 4, ["F32"])}, b"0000"),
    "negative size": raw_file({"a": entry([-1], 0, 4)}, b"0000"),
    "size is true": raw_file({"a": entry([True], 0, 4)}, b"0000"),
    "size is a float": raw_file({"a": entry([1.0], 0, 4)}, b"0000"),
    "shape overflows": raw_file({"a": entry([2**40, 2**40, 0], 0, 0)}),
    "shape of thousands of digits": raw_file(b'{"a":{"shape":[' + b"9" * 5000 + b"]}}"),
    "many dimensions": raw_file({"a": entry([1] * 17, 0, 4)}, b"0000"),
    "offsets reversed": raw_file({"a": entry([1], 4, 0)}, b"0000"),
    "offsets of the wrong size": raw_file({"a": entry([1], 0, 8)}, b"00000000"),
    "one offset": raw_file({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}, b"0000"),
    "gap": raw_file({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, b"0" * 12),
    "overlap": raw_file({"a": entry([2], 0, 8), "b": entry([1], 4, 8)}, b"0" * 8),
    "trailing bytes": raw_file({"a": entry([1], 0, 4)}, b"00000"),
    "cut": raw_file({"a": entry([2], 0, 8)}, b"0000"),
    "zip": b"PK\x03\x04" + b"\0" * 60,
    "pickle": b"\x80\x04\x95" + b"\0" * 60,
    "nan": raw_file(b'{"a":{"shape":[NaN]}}'),
}


@pytest.mark.parametrize("raw", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_header_is_a_weights_error(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "text.safetensors"
    path.write_bytes(raw)
    with pytest.raises(WeightsError, match=r"text\.safetensors") as raised:
        read_header(path)
    assert len(str(raised.value)) < 300 and "\n" not in str(raised.value)


SEVEN_MB = 7 * 2**20


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":[' + b"9.9," * (SEVEN_MB // 4) + b"1]}",
        b'{"a":[' + b"99999," * (SEVEN_MB // 6) + b"1]}",
        b"{" + b",".join(b'"%d":1' % n for n in range(SEVEN_MB // 11)) + b"}",
        b'{"a":[' + b'{"":0},' * (SEVEN_MB // 7) + b"1]}",
    ],
    ids=["floats", "integers", "keys", "objects"],
)
def test_large_hostile_header_takes_little_memory(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "text.safetensors"
    path.write_bytes(raw_file(header))

    def read_within_memory() -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + 200 * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        with pytest.raises(WeightsError):
            read_header(path)

    assert in_child(read_within_memory) == 0


def test_header_of_a_good_file_is_read_as_safetensors_reads_it(model_folder: Path) -> None:
    for part in PARTS:
        path = model_folder / f"{part}.safetensors"
        expected = {n: (t.dtype, tuple(t.shape), t.nbytes) for n, t in load_file(path).items()}
        found = {n: (e.dtype, e.shape, e.size_bytes) for n, e in read_header(path).items()}
        assert found == expected


def mutated(raw: bytes, draw: random.Random) -> bytes:
    """Return a safetensors file with a few changes in its length or header."""
    length = struct.unpack("<Q", raw[:8])[0]
    header, data = bytearray(raw[8 : 8 + length]), raw[8 + length :]
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(header))
        kind = draw.randrange(7)
        if kind == 0:
            header[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            header[at] = draw.choice(b'{}[]",:0123456789-.eE \\ntfN\x00\xff')
        elif kind == 2:
            header[at:at] = bytes(draw.choice(b'{}[]",:0123456789-') for _ in range(3))
        elif kind == 3:
            del header[at : at + draw.randint(1, 30)]
        elif kind == 4:
            words = [(b"F32", b"F16"), (b"BF16", b"F64"), (b"[", b"[0,"), (b":", b"::")]
            words += [(b"head", b"tail"), (b"weight", b"bias"), (b"shape", b"dtype")]
            old, new = draw.choice(words)
            header = bytearray(bytes(header).replace(old, new, draw.randint(1, 3)))
        elif kind == 5:
            end = min(len(header), at + draw.randint(1, 60))
            header[at:at] = header[at:end]
        else:
            data = data[: draw.randrange(len(data) + 1)] + bytes(draw.randint(0, 4))
        if not header:
            return raw_file(b"", data)
    wrong = draw.random() < 0.2
    return raw_file(bytes(header), data, draw.randrange(2 * length) if wrong else None)


def check_mutations(folder: Path, count: int, seed: int) -> None:
    draw = random.Random(seed)
    path = folder / "text.safetensors"
    good = path.read_bytes()
    expected = load_states(folder)[1]["text"]
    refused = 0
    for number in range(count):
        path.write_bytes(mutated(good, draw))
        try:
            found = load_states(folder)[1]["text"]
        except WeightsError:
            refused += 1
            continue
        same = found.keys() == expected.keys()
        assert same and all(torch.equal(found[n], t) for n, t in expected.items()), number
    path.write_bytes(good)
    assert refused > 0.8 * count


def test_mutated_header_loads_identically_or_is_a_weights_error(model_folder: Path) -> None:
    check_mutations(model_folder, 200, seed=1)


@pytest.mark.slow
def test_ten_thousand_mutated_headers_load_identically_or_are_weights_errors(
    model_folder: Path,
) -> None:
    check_mutations(model_folder, 10_000, seed=2)


def test_damaged_config_or_index_loads_or_is_a_weights_error(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m", max_shard_bytes=1500)
    draw = random.Random(3)
    for path in (folder / "config.json", folder / "text.safetensors.index.json"):
        good = path.read_bytes()
        for _ in range(100):
            flip_bit(path, draw.randrange(len(good) * 8))
            try:
                load_states(folder)
            except WeightsError as error:
                assert "\n" not in str(error) and len(str(error)) < 600
            path.write_bytes(good)
    assert_loads_as(folder, 0)


# Hostile configurations.


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "{",
        '{"format": "streamdit-model-1"',
        '{"format": 1, "format": 1}',
        '{"format": "streamdit-model-1", "fps": NaN}',
        '{"format": "streamdit-model-1", "fps": 1e999}',
        '{"format": "streamdit-model-1", "fps": ' + "9" * 5000 + "}",
        "[" * 200_000,
        '{"a":' * 200_000,
        "\ud800",
        "\ufeff{}",
        " " * (5 * 2**20),
    ],
    ids=range(14),
)
def test_hostile_config_file_is_a_weights_error(model_folder: Path, text: str) -> None:
    (model_folder / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    for read in (read_config, describe, load):
        with pytest.raises(WeightsError, match=r"config\.json"):
            read(model_folder)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("transformer.depth", 2**20),
        ("text.depth", 2**20),
        ("autoencoder.encoder_blocks", [2**20, 1, 1]),
        ("transformer.mlp_width", 2**20),
        ("transformer.tau_width", 2**20),
        ("text.max_bytes", 2**20),
        ("autoencoder.widths", [2**20, 4, 4]),
    ],
)
def test_gigantic_configuration_is_refused_before_memory_is_taken(
    model_folder: Path, path: str, value: object
) -> None:
    (model_folder / "config.json").write_text(json.dumps(changed(path, value)))
    with pytest.raises(WeightsError, match=r"does not fit config|config\.json wants 10485"):
        load(model_folder)


# The source itself.

FORBIDDEN_IMPORTS = {"pickle", "dill", "joblib", "marshal", "shelve", "yaml", "cloudpickle"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_NAMES = {"trust_remote_code", "weights_only"}


def forbidden_in(source: str) -> list[str]:
    """Return what could run data as code."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = {alias.name.split(".")[0] for alias in node.names}
            found += sorted(names & FORBIDDEN_IMPORTS)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += sorted({node.module.split(".")[0]} & FORBIDDEN_IMPORTS)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found += sorted({node.func.id} & FORBIDDEN_CALLS)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            dotted = f"{node.value.id}.{node.attr}"
            found += [dotted] if dotted in ("torch.load", "torch.save", "hub.load") else []
            found += sorted({node.attr} & FORBIDDEN_NAMES)
        if isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
            own = node.args and re.match(r"f?'streamdit_(cli|model)\.", ast.unparse(node.args[0]))
            found += [] if own else ["import_module"]
        elif isinstance(node, ast.keyword) and node.arg in FORBIDDEN_NAMES:
            found.append(node.arg)
    return found


def test_source_holds_nothing_that_could_run_data_as_code() -> None:
    files = sorted((Path(__file__).parents[1] / "src").rglob("*.py"))
    assert len(files) >= 10
    assert {str(path): forbidden_in(path.read_text()) for path in files} == {
        str(path): [] for path in files
    }


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from yaml import load",
        "import joblib.numpy_pickle",
        "torch.load(path)",
        "torch.save(x, path)",
        "eval('1')",
        "exec(text)",
        "f(trust_remote_code=True)",
        "importlib.import_module(name)",
        "__import__(name)",
    ],
)
def test_source_scan_sees_what_it_forbids(line: str) -> None:
    assert forbidden_in(line)
    assert not forbidden_in("importlib.import_module(f'streamdit_cli.{name}')")
