"""Claim: what is written can be typed, and what ships is what is described.

Every `streamdit` line in a document, a help text or the CI script is parsed by the real commands;
presets and recipes load; the wheel holds the presets and runs from anywhere.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import option_reference
import pytest
import tomli
import typer

from streamdit_cli import app as app_module
from streamdit_cli.app import COMMANDS, ExitCode, load_command
from streamdit_cli.batch_file import read_batch_file
from streamdit_cli.presets import find_preset, preset_names, read_toml
from streamdit_cli.script import read_script
from streamdit_model.model_config import ModelConfig

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
RECIPES = sorted((ROOT / "presets" / "train").glob("*.toml"))
FIRST_COMMAND = (
    "pip install . && streamdit generate "
    '--prompt "a large red star bouncing on a navy background" --seconds 10 -o star.mp4'
)
DEVELOPER_COMMAND = 'pip install -e ".[dev]" && pytest'
LARGEST_WHEEL = 40_000_000  # bytes
LARGEST_PICTURE = 2_000_000


def commands_on(page: Path) -> list[list[str]]:
    """Return the words of every `streamdit` command in a page's code."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += re.findall(r"^(?: {4}|\t)(.*)$", prose, re.MULTILINE)
    lines += re.findall(r"`([^`\n]+)`", prose)
    return [words for line in lines if "streamdit " in line for words in commands_of(line)]


def commands_of(line: str) -> list[list[str]]:
    """Return the words of the `streamdit` commands of a shell line: no pipes, no redirections."""
    lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    commands: list[list[str]] = [[]]
    skip = False
    for word in lexer:
        if set(word) <= set("|&;()"):
            commands.append([])
        elif set(word) <= set("<>&"):
            skip = True  # and the file's name
            if commands[-1][-1:] in (["1"], ["2"]):
                commands[-1].pop()
        elif skip:
            skip = False
        elif commands[-1] or "=" not in word:  # not NAME=value before a command
            commands[-1].append(word)
    return [words for words in commands if words[:1] == ["streamdit"] and len(words) > 1]


def parse(words: list[str]) -> None:
    """Parse a command line with the command it names, without running it.

    A name alone is a mention; a line with `...` or brackets shows a form. Both are followed to the
    name of the command only.
    """
    name, rest = words[1], words[2:]
    if name.startswith("-"):
        assert name in {"--help", "-h", "--version", "--install-completion", "--debug"}
        return
    assert name in COMMANDS, f"{shlex.join(words)}: there is no command {name}"
    forms = {"--help", "-h"}
    if rest and not any(word in forms or re.search(r"\.\.\.|[\[\]{}]", word) for word in rest):
        load_command(name).make_context(name, rest)


def test_shell_lines_are_cut_into_commands() -> None:
    line = "$ A=1 streamdit info x 2> err | tee y && streamdit --help  # end"
    assert commands_of(line) == [["streamdit", "info", "x"], ["streamdit", "--help"]]
    assert commands_of('pip install . && streamdit info "a | b" > out') == [
        ["streamdit", "info", "a | b"]
    ]
    with pytest.raises(AssertionError, match="no command restyle"):
        parse(["streamdit", "restyle"])
    with pytest.raises(typer.BadParameter):
        parse(["streamdit", "generate", "--seconds", "long"])


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_commands_in_documents_parse(page: Path) -> None:
    for words in commands_on(page):
        try:
            parse(words)
        except typer.BadParameter.__bases__[0] as error:
            raise AssertionError(f"{shlex.join(words)}: {error.format_message()}") from None


def test_reference_of_options_is_what_the_commands_say() -> None:
    assert option_reference.PAGE.read_text(encoding="utf-8") == option_reference.reference(), (
        "run: python tests/option_reference.py"
    )


def test_blocks_of_the_python_page_run_from_top_to_bottom(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 6
    (tmp_path / "page.py").write_text("\n".join(blocks), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "page.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "guidance is baked in" in done.stdout
    assert (tmp_path / "ring.mp4").stat().st_size > 1000


def block_on(page: str, language: str, folder: Path) -> str:
    """Write the one block of a language on a page to a file; return its name."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    (block,) = re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    path = folder / f"example.{'txt' if language == 'text' else language}"
    path.write_text(block, encoding="utf-8")
    return str(path)


def test_example_scripts_on_the_page_of_generate_are_scripts(tmp_path: Path) -> None:
    script = read_script(block_on("generate.md", "toml", tmp_path))
    stages = [(stage.at, stage.transition, stage.transition_seconds) for stage in script.stages]
    assert stages == [(0.0, None, None), (4.0, "blend", 1.0), (8.0, None, None)]
    script = read_script(block_on("generate.md", "jsonl", tmp_path))
    assert [(stage.at, stage.transition) for stage in script.stages] == [
        (0.0, None),
        (4.0, "chunks"),
    ]


def test_example_prompt_files_on_the_page_of_batch_are_prompt_files(tmp_path: Path) -> None:
    lines = read_batch_file(block_on("batch.md", "text", tmp_path))
    assert [line.settings for line in lines] == [{}, {"seed": 5}, {"seed": 7, "num_frames": 48}]
    single, pair = read_batch_file(block_on("batch.md", "jsonl", tmp_path))
    assert single.settings == {"seed": 1, "seconds": 4.0}
    assert len(pair.prompts) == 2
    assert pair.settings == {"seconds": 8.0, "output": "switch.mp4"}
    lines = read_batch_file(block_on("batch.md", "csv", tmp_path))
    assert [line.settings for line in lines] == [{"seed": 1, "seconds": 4.0}, {"seed": 2}]


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_in_help_parse_and_are_two_or_three(name: str) -> None:
    examples = sys.modules[load_command(name).callback.__module__].EXAMPLES
    assert 2 <= len(examples) <= 3
    for example in examples:
        words = commands_of(example)[0]
        assert words[1] == name
        parse(words)


def test_examples_of_the_app_parse() -> None:
    for example in app_module.EXAMPLES:
        parse(commands_of(example)[0])


def test_readme_first_screen_has_the_two_commands_and_the_honest_line() -> None:
    first_screen = "\n".join((ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:45])
    assert FIRST_COMMAND in first_screen
    assert DEVELOPER_COMMAND in first_screen
    assert "2507.03745" in first_screen
    assert "no weights" in first_screen
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", first_screen)
    assert pictures
    for picture in pictures:
        assert 0 < (ROOT / picture).stat().st_size < LARGEST_PICTURE


def test_ci_runs_the_commands_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert FIRST_COMMAND.split(" && ")[1] in script
    assert 'pip install --quiet -e ".[dev]"' in script
    assert "pip install --quiet ." in script
    assert "\npytest" in script
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_documents_have_no_gaps_left_to_fill() -> None:
    for page in PAGES:
        assert not re.search(r"@@|\bNN\b|TODO|FIXME", page.read_text(encoding="utf-8")), page.name


def test_links_between_documents_lead_somewhere() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_changelog_and_citation_have_the_version() -> None:
    project = tomli.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"version: {project['version']}\n" in (ROOT / "CITATION.cff").read_text("utf-8")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "## [Unreleased]" in changelog or f"## [{project['version']}]" in changelog


def test_exit_codes_are_documented() -> None:
    pages = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    cells = re.findall(r"^\|([\d /,`]+)\|", pages, re.MULTILINE)
    rows = {int(code) for cell in cells for code in re.findall(r"\d+", cell)}
    assert rows >= {int(code) for code in ExitCode}


@pytest.mark.parametrize("name", preset_names())
def test_preset_loads_and_its_configuration_is_exact(name: str) -> None:
    preset = find_preset(name)
    if "model" in preset:
        config = ModelConfig.from_dict(preset["model"])
        assert config.name == name
        for section, values in preset["model"].items():  # complete, not filled up by defaults
            if isinstance(values, dict):
                assert set(values) == set(config.to_dict()[section])


def test_paper_preset_has_the_schedule_of_the_paper() -> None:
    """Section 4.2: N = 8 chunks of 2 latents of 16x64x64 with 8 channels, one step each."""
    config = ModelConfig.from_dict(find_preset("paper-4b")["model"])
    partition = config.partition
    assert (partition.buffer_length, partition.total_steps) == (16, 8)
    assert (partition.chunk_size, partition.micro_steps) == (2, 1)
    assert config.transformer.grid == (16, 64, 64)
    assert config.transformer.latent_channels == config.autoencoder.latent_channels == 8
    assert (config.width, config.height, config.fps) == (512, 512, 16.0)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipe_is_toml(path: Path) -> None:
    assert read_toml(path)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_holds_both_packages_the_presets_and_their_weights(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src").rglob("*.py")}
    assert modules <= names
    for path in (ROOT / "presets").rglob("*"):
        if path.is_file() and not path.name.startswith("."):
            assert f"streamdit_cli/{path.relative_to(ROOT).as_posix()}" in names
    assert not any(name.startswith(("tests/", "weights/", "docs/")) for name in names)
    assert wheel.stat().st_size < LARGEST_WHEEL


def test_wheel_finds_its_presets_away_from_the_checkout(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import streamdit_cli.presets as presets\n"
        "assert presets.__file__.startswith(%r), presets.__file__\n"
        "assert presets._presets_folder().is_relative_to(%r)\n"
        "print(presets.preset_names())\n"
    )
    site = str(tmp_path / "site")
    environment = {**os.environ, "PYTHONPATH": site}
    done = subprocess.run(
        [sys.executable, "-c", code % (site, site)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(preset_names())
