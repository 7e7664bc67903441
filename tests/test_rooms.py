"""Claim: every line of code is in its room. Who may import what, read from the source itself."""

from __future__ import annotations

import ast
import resource
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
MODEL = sorted((SOURCE / "streamdit_model").rglob("*.py"))
CLI = sorted((SOURCE / "streamdit_cli").rglob("*.py"))
LONGEST_FILE = 450
HELP_SECONDS = 0.5  # of processor time; 0.2 is the aim

IMPORTERS = {
    "av": {
        "streamdit_cli/video.py",
        "streamdit_cli/video_encoder.py",
        "streamdit_cli/video_input.py",  # what somebody else made, and its parts
        "streamdit_cli/decoded_input.py",
        "streamdit_cli/input_container.py",
        "streamdit_cli/picture_fit.py",
        "streamdit_cli/audio_track.py",
    },
    "rich": {"streamdit_cli/console.py"},
    "tomli": {"streamdit_cli/presets.py"},
    "huggingface_hub": {"streamdit_cli/hub.py"},
    "numpy": {
        "streamdit_model/flow_matching.py",
        "streamdit_cli/picture_fit.py",  # frames are arrays until they have the model's size
    },
    "transformers": {"streamdit_model/wan/text.py"},
}
NEVER_IMPORTED = {"click", "pickle", "dill", "joblib", "shelve", "marshal", "argparse", "tomllib"}
NEVER_IN_MODEL = {"typer", "rich", "av", "tomli", "huggingface_hub", "streamdit_cli", "argparse"}
NEVER_CALLED = {"eval", "exec", "compile", "torch.load", "torch.save", "pickle.load"}
COMMANDS = (
    "generate",
    "v2v",
    "batch",
    "train",
    "distill",
    "evaluate",
    "bench",
    "info",
    "models",
    "doctor",
)

REFUSE_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "numpy", "transformers", "huggingface_hub"}:
            raise ImportError("refused: " + name)
sys.meta_path.insert(0, Refuse())
"""


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def room(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def imports(path: Path) -> Iterator[str]:
    """Every module a file imports when it runs; what only a type checker sees does not count."""
    pending: list[ast.AST] = [tree(path)]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending += node.orelse
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{room(path)} line {node.lineno}: a relative import"
            module = node.module or ""
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)
        pending += ast.iter_child_nodes(node)


def imports_at_top(path: Path) -> set[str]:
    """Every module that is imported as soon as a file is."""
    names = set()
    for node in tree(path).body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return names


def packages(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


def names_used(path: Path) -> Iterator[tuple[int, str]]:
    """Every name and dotted name of a file with its line."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Name | ast.Attribute):
            yield node.lineno, ast.unparse(node)


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("package", IMPORTERS)
def test_package_has_its_importers_only(package: str) -> None:
    found = {room(path) for path in MODEL + CLI if package in packages(path)}
    assert found <= IMPORTERS[package]


@pytest.mark.parametrize("path", MODEL + CLI, ids=room)
def test_file_imports_nothing_forbidden_and_runs_no_code_from_data(path: Path) -> None:
    assert not packages(path) & NEVER_IMPORTED
    calls = {ast.unparse(node.func) for node in ast.walk(tree(path)) if isinstance(node, ast.Call)}
    assert not calls & NEVER_CALLED
    assert not any("trust_remote_code" in name for _, name in names_used(path))
    if "importlib.import_module" in calls:
        assert room(path) == "streamdit_cli/app.py"


@pytest.mark.parametrize("path", MODEL, ids=room)
def test_library_prints_nothing_and_reads_no_environment(path: Path) -> None:
    assert not packages(path) & NEVER_IN_MODEL
    words = {"print", "input", "os.environ", "os.getenv", "sys.exit", "sys.argv", "breakpoint"}
    for line, name in names_used(path):
        assert name not in words, f"{room(path)} line {line}: {name}"
        assert not name.endswith(".cuda") or name == "torch.cuda", f"{room(path)} line {line}"


@pytest.mark.parametrize("command", COMMANDS)
def test_command_imports_no_other_command(command: str) -> None:
    others = {f"streamdit_cli.{other}" for other in COMMANDS if other != command}
    assert not set(imports(SOURCE / "streamdit_cli" / f"{command}.py")) & others


def test_support_modules_import_no_command_and_not_the_app() -> None:
    above = {f"streamdit_cli.{name}" for name in (*COMMANDS, "app")}
    for path in CLI:
        if path.stem not in {"__main__", "app"}:
            assert not set(imports(path)) & above, room(path)


def test_modules_form_layers_without_a_circle() -> None:
    names = {room(path)[:-3].replace("/", "."): path for path in MODEL + CLI}
    above = {
        name: {other for other in imports_at_top(path) if other in names and other != name}
        for name, path in names.items()
    }
    while above:
        bottom = {name for name, others in above.items() if not others & above.keys()}
        assert bottom, f"these import each other: {', '.join(sorted(above))}"
        above = {name: others for name, others in above.items() if name not in bottom}


@pytest.mark.parametrize("path", MODEL + CLI, ids=room)
def test_file_is_one_readable_room(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.isascii()
    assert text.count("\n") <= LONGEST_FILE
    assert ast.get_docstring(tree(path))
    names = {
        target.id
        for node in tree(path).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    assert "__all__" in names or path.name == "__init__.py"


@pytest.mark.parametrize("path", MODEL + CLI, ids=room)
def test_all_lists_names_that_exist(path: Path) -> None:
    defined = {node.name for node in tree(path).body if hasattr(node, "name")}
    for node in tree(path).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        defined |= {target.id for target in targets if isinstance(target, ast.Name)}
        if isinstance(node, ast.Import | ast.ImportFrom):
            defined |= {alias.asname or alias.name for alias in node.names}
    promised = next(
        (
            ast.literal_eval(node.value)
            for node in tree(path).body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        ),
        [],
    )
    if path.name != "__init__.py":  # those may fetch a name when it is asked for
        assert set(promised) <= defined


def test_help_and_version_and_usage_errors_need_no_torch() -> None:
    code = (
        REFUSE_TORCH
        + "from streamdit_cli.app import COMMANDS, main\n"
        + "assert main(['--help']) == 0\n"
        + "assert main(['--version']) == 0\n"
        + "assert main(['nothing']) == 2\n"
        + "for name in COMMANDS:\n"
        + "    assert main([name, '--help']) == 0, name\n"
        + "    assert main([name, '--no-such-option']) == 2, name\n"
        + "assert 'torch' not in sys.modules\n"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_importing_the_cli_says_nothing_and_needs_no_torch() -> None:
    modules = [room(path)[:-3].replace("/", ".") for path in CLI if path.stem != "__main__"]
    lines = "\n".join(f"import {module.removesuffix('.__init__')}" for module in modules)
    done = python(REFUSE_TORCH + lines)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_importing_the_library_says_nothing_and_touches_nothing(tmp_path: Path) -> None:
    modules = [room(path)[:-3].replace("/", ".").removesuffix(".__init__") for path in MODEL]
    code = "import os, threading, torch\n"
    code += "state, threads = torch.random.get_rng_state(), torch.get_num_threads()\n"
    code += "before = dict(os.environ)\n"
    code += "\n".join(f"import {module}" for module in modules)
    code += "\nassert dict(os.environ) == before and threading.active_count() == 1\n"
    code += "assert torch.equal(state, torch.random.get_rng_state())\n"
    code += "assert threads == torch.get_num_threads() and not torch.cuda.is_initialized()\n"
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


def test_help_takes_less_than_half_a_second() -> None:
    """Processor time of the best of three: the machine may be busy with something else."""
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "streamdit_cli", "--help"]
        subprocess.run(command, capture_output=True, timeout=60, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) < HELP_SECONDS
