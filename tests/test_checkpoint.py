"""A checkpoint is whole or absent, every damage is noticed, and what comes back is what went in."""

import errno
import json
import logging
import os
import random
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from file_faults import (
    count_file_operations,
    die_at,
    fail_from,
    file_operations,
    flip_bit,
    in_child,
)
from torch import Tensor

from streamdit_model.checkpoint import (
    keep_last,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from streamdit_model.errors import ConfigError, WeightsError

Tensors = dict[str, dict[str, Tensor]]
RECORD: dict[str, Any] = {
    "losses": [0.1, 1e-300, -0.0, 3],
    "seed": 2**127 - 1,
    "prompt": "a \u2605 in \ud800",
    "nothing": None,
    "done": {"stage": True, "": []},
}


def tensors_of(step: int) -> Tensors:
    generator = torch.Generator().manual_seed(step)
    return {
        "model": {
            "weight": torch.randn(3, 5, generator=generator),
            "half": torch.randn(4, generator=generator).bfloat16(),
            "step": torch.tensor(step),
        },
        "random": {"cpu": torch.randint(0, 256, (40,), generator=generator, dtype=torch.uint8)},
    }


def save(folder: Path, step: int) -> Path:
    return save_checkpoint(folder, step, tensors_of(step), {"step": step})


def assert_holds(path: Path, step: int) -> None:
    tensors, record = load_checkpoint(path)
    assert record == {"step": step}
    expected = tensors_of(step)
    assert tensors.keys() == expected.keys()
    for stem, group in expected.items():
        assert tensors[stem].keys() == group.keys()
        for name, tensor in group.items():
            assert tensors[stem][name].dtype == tensor.dtype
            assert torch.equal(tensors[stem][name], tensor)


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int64, torch.float32, torch.bfloat16, torch.float64]
)
@pytest.mark.parametrize("shape", [(), (0,), (7,), (2, 0, 3), (2, 3, 4)])
def test_tensors_come_back_bit_for_bit(
    tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    count = int(torch.tensor(shape).prod()) if shape else 1
    raw = torch.arange(count * dtype.itemsize).mul(37).to(torch.uint8)
    if dtype == torch.bool:
        raw = raw % 2
    tensor = raw.view(dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)
    path = save_checkpoint(tmp_path, 1, {"t": {"x": tensor}}, {})
    found = load_checkpoint(path)[0]["t"]["x"]
    assert found.dtype == dtype and found.shape == shape
    assert (
        found.numpy(force=True).tobytes() == tensor.numpy(force=True).tobytes()
        if (dtype != torch.bfloat16)
        else torch.equal(found.view(torch.int16), tensor.view(torch.int16))
    )


def test_nan_in_a_tensor_is_kept(tmp_path: Path) -> None:
    tensor = torch.tensor([float("nan"), float("inf"), -0.0])
    found = load_checkpoint(save_checkpoint(tmp_path, 0, {"t": {"x": tensor}}, {}))[0]["t"]["x"]
    assert torch.equal(found.view(torch.int32), tensor.view(torch.int32))


def test_views_and_shared_tensors_come_back_equal(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    group = {"base": base, "again": base, "row": base[1], "turned": base.T, "part": base[:, 2:4]}
    found = load_checkpoint(save_checkpoint(tmp_path, 0, {"t": group}, {}))[0]["t"]
    assert all(torch.equal(found[name], tensor) for name, tensor in group.items())


def test_record_comes_back_equal(tmp_path: Path) -> None:
    assert load_checkpoint(save_checkpoint(tmp_path, 3, {}, RECORD))[1] == RECORD


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), r"record.a\[1\] is nan"),
        (float("inf"), r"record.a\[1\] is inf"),
        ((1, 2), r"record.a\[1\] is a tuple"),
        (torch.zeros(1), r"record.a\[1\] is a Tensor"),
        ({1: 2}, r"record.a\[1\] has the key 1"),
        (b"raw", r"record.a\[1\] is a bytes"),
        (1 << 300, "256 bits"),
    ],
)
def test_record_value_that_would_change_is_refused_with_its_place(
    tmp_path: Path, value: object, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        save_checkpoint(tmp_path, 1, {}, {"a": [0, value]})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stem", ["", "../up", "a/b", ".hidden", "a.b", "x" * 65, "a\n"])
def test_file_stem_that_is_no_plain_name_is_refused(tmp_path: Path, stem: str) -> None:
    with pytest.raises(ConfigError, match="plain name"):
        save_checkpoint(tmp_path, 1, {stem: {}}, {})


def test_negative_step_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="step -1"):
        save(tmp_path, -1)


def test_checkpoint_of_the_same_step_is_never_overwritten(tmp_path: Path) -> None:
    path = save(tmp_path, 5)
    with pytest.raises(WeightsError, match="step-00000005 is there already"):
        save_checkpoint(tmp_path, 5, {}, {"other": 1})
    assert_holds(path, 5)


def test_files_get_the_mode_that_the_user_asked_for(tmp_path: Path) -> None:
    def save_with_mask() -> None:
        os.umask(0o027)
        save(tmp_path, 1)

    assert in_child(save_with_mask) == 0
    modes = {
        path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "step-00000001").iterdir()
    }
    assert set(modes.values()) == {0o640}, modes


def test_newest_is_the_largest_step_and_none_in_an_empty_or_missing_folder(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "none") is None
    assert newest_checkpoint(tmp_path) is None
    for step in (9, 100_000_000, 10, 2):
        save(tmp_path, step)
    (tmp_path / "step-99999999999.partial-1").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    assert newest_checkpoint(tmp_path) == tmp_path / "step-100000000"


def test_manifest_is_written_last_and_everything_is_flushed_before_the_rename(
    tmp_path: Path,
) -> None:
    seen: list[str] = []

    def watch(number: int, name: str, arguments: tuple[Any, ...]) -> None:
        if name == "fsync":
            seen.append("fsync " + Path(os.readlink(f"/proc/self/fd/{arguments[0]}")).name)
        elif name == "rename":
            seen.append("rename")
        elif name == "open" and len(arguments) > 1 and arguments[1] == "x":
            seen.append("write " + Path(arguments[0]).name)

    with file_operations(watch):
        save(tmp_path, 1)
    partial = f"step-00000001.partial-{os.getpid()}"
    assert seen == [
        "fsync model.safetensors",
        "fsync random.safetensors",
        "write record.json",
        "fsync record.json",
        "write manifest.json",
        "fsync manifest.json",
        f"fsync {partial}",
        "rename",
        f"fsync {tmp_path.name}",
    ]


def assert_old_or_new_is_whole(folder: Path) -> None:
    newest = newest_checkpoint(folder)
    assert newest is not None and newest.name in ("step-00000001", "step-00000002")
    assert_holds(newest, int(newest.name[-1]))
    assert not list(folder.glob("*.damaged*"))
    save(folder, 3)
    assert newest_checkpoint(folder) == folder / "step-00000003"
    assert not list(folder.glob("*.partial-*"))


@pytest.fixture(scope="module")
def operations_of_a_save(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("count")
    save(folder, 1)
    return count_file_operations(lambda: save(folder, 2))


@pytest.mark.parametrize("once", [True, False])
def test_full_disk_at_any_file_operation_keeps_the_old_checkpoint(
    tmp_path: Path, operations_of_a_save: list[str], once: bool
) -> None:
    assert len(operations_of_a_save) >= 15
    for number in range(1, len(operations_of_a_save) + 1):
        folder = tmp_path / str(number)
        save(folder, 1)
        with file_operations(fail_from(number, once=once)):
            try:
                silent = save(folder, 2)
            except OSError as error:
                assert error.errno == errno.ENOSPC
                silent = None
        if silent is not None:  # a folder that was there already need not be made
            assert (number, operations_of_a_save[0]) == (1, "mkdir")
            assert_holds(silent, 2)
        assert_old_or_new_is_whole(folder)


def test_death_at_any_file_operation_leaves_a_whole_checkpoint(
    tmp_path: Path, operations_of_a_save: list[str]
) -> None:
    last_old = 0
    for number in range(1, len(operations_of_a_save) + 1):
        folder = tmp_path / str(number)
        save(folder, 1)

        def save_and_die(folder: Path = folder, number: int = number) -> None:
            with file_operations(die_at(number)):
                save(folder, 2)

        assert in_child(save_and_die) == 77
        if not (folder / "step-00000002").exists():
            last_old = number
        assert_old_or_new_is_whole(folder)
    # only after the rename does the new one exist
    assert operations_of_a_save[last_old - 1] == "rename"


def test_death_while_old_checkpoints_are_removed_hides_them_whole(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        for step in (1, 2, 3):
            save(folder, step)

    fill(tmp_path / "count")
    operations = count_file_operations(lambda: keep_last(tmp_path / "count", 1))
    assert [name for name in operations if name != "open"] == ["rename", "rmtree"] * 2
    for number in range(1, len(operations) + 1):
        folder = tmp_path / str(number)
        fill(folder)

        def keep_and_die(folder: Path = folder, number: int = number) -> None:
            with file_operations(die_at(number)):
                keep_last(folder, 1)

        assert in_child(keep_and_die) == 77
        for path in folder.glob("step-????????"):
            assert_holds(path, int(path.name[-1]))
        save(folder, 4)
        assert not list(folder.glob("*.partial-*"))


@pytest.mark.parametrize("limit", range(0, 600, 20))
def test_file_size_limit_is_an_os_error_and_keeps_the_old_checkpoint(
    tmp_path: Path, limit: int
) -> None:
    save(tmp_path, 1)

    def save_under_limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            save(tmp_path, 2)
        except OSError as error:
            assert error.errno == errno.EFBIG

    assert in_child(save_under_limit) == 0
    largest = max(path.stat().st_size for path in (tmp_path / "step-00000001").iterdir())
    assert (tmp_path / "step-00000002").exists() == (limit >= largest)
    assert_old_or_new_is_whole(tmp_path)


def test_partial_folder_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    living = tmp_path / f"step-00000007.partial-{os.getppid()}"
    foreign = tmp_path / "mine.partial-999999999"
    gone = tmp_path / "step-00000007.partial-999999999"
    for folder in (living, foreign, gone):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
    save(tmp_path, 8)
    assert living.exists() and foreign.exists() and not gone.exists()


def test_every_single_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    files = sorted(path.iterdir())
    draw = random.Random(1)
    flips = [(file, draw.randrange(file.stat().st_size * 8)) for file in files * 50]
    assert len(flips) == 200
    for file, bit in flips:
        flip_bit(file, bit)
        with pytest.raises(WeightsError, match=r"manifest|not what was saved|is missing"):
            load_checkpoint(path)
        flip_bit(file, bit)
    assert_holds(path, 1)


@pytest.mark.slow
def test_every_bit_of_the_manifest_and_record_is_noticed(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    for file in (path / "manifest.json", path / "record.json"):
        for bit in range(file.stat().st_size * 8):
            flip_bit(file, bit)
            with pytest.raises(WeightsError):
                load_checkpoint(path)
            flip_bit(file, bit)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def empty(path: Path) -> None:
    os.truncate(path, 0)


@pytest.mark.parametrize("damage", [truncate, lengthen, empty, os.unlink])
@pytest.mark.parametrize(
    "name", ["model.safetensors", "random.safetensors", "record.json", "manifest.json"]
)
def test_damaged_newest_is_set_aside_with_a_warning_and_the_older_taken(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], None],
    name: str,
) -> None:
    save(tmp_path, 1)
    damage(save(tmp_path, 2) / name)
    with caplog.at_level(logging.WARNING, logger="streamdit_model"):
        assert newest_checkpoint(tmp_path) == tmp_path / "step-00000001"
    assert len(caplog.records) == 1 and name in caplog.text
    assert (tmp_path / "step-00000002.damaged").is_dir()
    save(tmp_path, 2)
    assert newest_checkpoint(tmp_path) == tmp_path / "step-00000002"


def test_second_damaged_checkpoint_of_a_step_is_set_aside_beside_the_first(tmp_path: Path) -> None:
    for _ in range(2):
        (save(tmp_path, 2) / "record.json").unlink()
        assert newest_checkpoint(tmp_path) is None
    assert {path.name for path in tmp_path.iterdir()} == {
        "step-00000002.damaged",
        "step-00000002.damaged-2",
    }


def test_files_of_two_checkpoints_are_never_mixed(tmp_path: Path) -> None:
    old, new = save(tmp_path, 1), save(tmp_path, 2)
    shutil.copy(old / "model.safetensors", new / "model.safetensors")
    with pytest.raises(WeightsError, match=r"step-00000002/model.safetensors is not what was"):
        load_checkpoint(new)


def test_renamed_checkpoint_is_not_taken_for_another_step(tmp_path: Path) -> None:
    save(tmp_path, 1).rename(tmp_path / "step-00000009")
    with pytest.raises(WeightsError, match="another step"):
        load_checkpoint(tmp_path / "step-00000009")


@pytest.mark.parametrize(
    "change",
    [
        {"format": "streamdit-checkpoint-2"},
        {"step": True},
        {"step": "1"},
        {"files": {}},
        {"files": []},
        {"files": {"record.json": {"size": 1}}},
        {"files": {"record.json": {"size": 1, "sha256": ""}, "../record.json": {}}},
        {"more": 1},
    ],
)
def test_manifest_with_a_wrong_field_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    path = save(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, **change}, indent=1))
    with pytest.raises(WeightsError, match=r"manifest\.json"):
        load_checkpoint(path)


def test_manifest_that_was_written_anew_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 1) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=4))
    with pytest.raises(WeightsError, match=r"manifest\.json is damaged"):
        load_checkpoint(path.parent)


def test_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="step-00000001 is missing"):
        load_checkpoint(tmp_path / "step-00000001")


def test_file_that_the_system_refuses_is_an_os_error_and_nothing_is_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path, 1)

    def refuse(*arguments: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("hashlib.file_digest", refuse)
    with pytest.raises(OSError, match="Input/output"):
        newest_checkpoint(tmp_path)
    assert path.is_dir()


@pytest.mark.parametrize(
    ("number", "every", "left"),
    [(1, None, [6]), (2, None, [5, 6]), (9, None, [1, 2, 3, 4, 5, 6]), (1, 2, [2, 4, 6])],
)
def test_keep_last_keeps_the_newest_and_every_nth_step(
    tmp_path: Path, number: int, every: int | None, left: list[int]
) -> None:
    for step in range(1, 7):
        save(tmp_path, step)
    keep_last(tmp_path, number, every)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{n:08d}" for n in left]


@pytest.mark.parametrize(("number", "every"), [(0, None), (-1, None), (1, 0)])
def test_keep_last_refuses_to_remove_everything(
    tmp_path: Path, number: int, every: int | None
) -> None:
    save(tmp_path, 1)
    with pytest.raises(ConfigError, match="at least 1"):
        keep_last(tmp_path, number, every)
    assert_holds(tmp_path / "step-00000001", 1)


def test_loaded_tensors_can_be_changed_and_outlive_their_files(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    tensors, _ = load_checkpoint(path)
    tensors["model"]["weight"].zero_()
    assert_holds(path, 1)
    save(tmp_path, 2)
    keep_last(tmp_path, 1)
    assert torch.equal(tensors["random"]["cpu"], tensors_of(1)["random"]["cpu"])
