"""Every block of code and every command on every page is run by a test, or at least parsed.

Run: the blocks of the pages in `RUN_COMMANDS` (all that are marked `sh`), in `RUN_PYTHON` (each block of Python has its
test) and in `SHOWN` (what a command prints, files). The tests named there do it; this one holds that they exist, that
they name the page, and that a page has no more blocks than have a test.

Parsed, by the command's own parser and without running it: commands in blocks that are not marked, on pages that are
not in `RUN_COMMANDS`, and in running text. Their arguments are then known to be right, what they do is not: README,
data.md and benchmarks/README.md name folders, URLs and GPUs that no test has. Of `make` the target is looked for, of
`pip` the extra, of a shell script the stages. Flags in running text alone are looked for in all parsers.

Blocks indented by four columns show how files lie; they hold no commands.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import re
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import pytest
import tyro
from torch.distributed.run import get_args_parser

from diffmavil.config import Config, FinetuneConfig
from diffmavil.config.cli import parse_train
from diffmavil.config.finetune_cli import FinetuneOptions
from diffmavil.config.presets import preset
from diffmavil.data.csv_table import read_csv

ROOT = Path(__file__).parents[1]
PAGES = {
    str(page.relative_to(ROOT)): page.read_text()
    for pattern in ("*.md", "docs/**/*.md", "recipes/**/README.md", "benchmarks/*.md", "kernels/**/*.md")
    for page in sorted(ROOT.glob(pattern))
}
HISTORY = {"CHANGELOG.md", "benchmarks/LOG.md"}
"""Tell of what was, with names that may be gone."""

RECIPE = "tests/recipes/test_recipes.py::test_a_recipe_by_its_own_commands"
FEATURES = "tests/evaluation/test_features_page.py::test_the_page_of_features"
RUN_COMMANDS = {
    "docs/data.md": "tests/recipes/test_data_page.py::test_preparing_as_the_page_does",
    "docs/exchange.md": "tests/recipes/test_exchange_page.py::done",
    "docs/features.md": FEATURES,
    "docs/report.md": "tests/reporting/test_report_docs.py::test_the_commands_of_the_page",
    "docs/whole-way.md": "tests/recipes/test_whole_way.py::test_the_whole_way",
    **{page: RECIPE for page in PAGES if re.fullmatch(r"recipes/[^/]+/README\.md", page)},
}
RUN_PYTHON = {
    "README.md": (
        "tests/evaluation/test_features_page.py::test_the_readme_s_example",
        "tests/integrations/test_integrations_page.py::test_the_readme_s_line",
    ),
    "docs/exchange.md": (
        "tests/recipes/test_exchange_page.py::test_the_snippet_of_a_graph",
        "tests/recipes/test_exchange_page.py::test_the_snippet_of_transformers",
    ),
    "docs/features.md": (FEATURES,) * 7,
    "docs/integrations.md": (
        "tests/integrations/test_integrations_page.py::test_one_line",
        "tests/integrations/test_integrations_page.py::test_one_line",
        "tests/integrations/test_integrations_page.py::test_in_a_fork",
    ),
    "docs/kernels.md": (
        "tests/bench/test_kernels_page.py::test_the_example_is_the_loss_of_a_foreign_mae_with_its_gradients",
    ),
    "docs/packages.md": ("tests/packages/test_kernel_hub.py::test_the_snippet_of_the_page",),
    "kernels/README.md": ("tests/packages/test_packages_page.py::test_the_snippet_of_the_package",),
    "kernels/hub/CARD.md": ("tests/packages/test_packages_page.py::test_the_hubs_card_shows_the_same_steps",),
}
SHOWN = {
    ("docs/packages.md", "text"): (
        "tests/packages/test_packages_page.py::test_what_the_page_shows_of_the_command_is_what_it_prints"
    ),
    ("docs/whole-way.md", "yaml"): "tests/test_words.py::test_settings_in_a_file",
    ("docs/whole-way.md", "csv"): "tests/test_words.py::test_a_table_with_two_labels",
}
NOT_OURS = {"git clone <this repository> && cd diffmavil"}
"""Lines of blocks that cannot be parsed: the address is not known here."""
OTHER_FLAGS = {"--no-build-isolation", "--target", "--rehearse", "--shutdown-timeout"}
"""Those of pip, benchmarks/gpu.sh and torchrun."""
PLACEHOLDERS = {"python -m diffmavil.X"}


class Block(NamedTuple):
    page: str
    line: int
    kind: str
    text: str


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, without their indent."""
    found = []
    for match in re.finditer(r"^( *)```(\S*)\n(.*?)^\1```$", PAGES[page], re.MULTILINE | re.DOTALL):
        text = re.sub(f"^{match[1]}", "", match[3], flags=re.MULTILINE)
        found.append(Block(page, PAGES[page].count("\n", 0, match.start()) + 1, match[2], text))
    return found


def parsed_blocks() -> Iterator[Block]:
    """Those with commands that no other test runs."""
    for page in PAGES:
        for block in blocks(page):
            if block.kind == "" or (block.kind == "sh" and page not in RUN_COMMANDS):
                yield block


def inline(page: str) -> list[str]:
    """What stands in running text as code."""
    text = re.sub(r"^( *)```.*?^\1```$", "", PAGES[page], flags=re.MULTILINE | re.DOTALL)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text)]


@pytest.mark.parametrize("page", PAGES)
def test_every_block_has_a_test(page: str) -> None:
    kinds = [block.kind for block in blocks(page)]
    assert kinds.count("python") == len(RUN_PYTHON.get(page, ())), f"{page}: a test for each block in RUN_PYTHON"
    if page in RUN_COMMANDS:
        assert "sh" in kinds, f"{page}: has no commands that a test runs"
    others = {kind for kind in kinds if kind not in ("", "sh", "python")}
    assert others == {kind for there, kind in SHOWN if there == page}, f"{page}: a test for each kind in SHOWN"


def test_tests_that_are_named_exist_and_name_their_page() -> None:
    named = [*RUN_COMMANDS.items(), *((page, test) for (page, _), test in SHOWN.items())]
    named += [(page, test) for page, tests in RUN_PYTHON.items() for test in tests]
    for page, test in named:
        file, _, function = test.partition("::")
        code = (ROOT / file).read_text()
        defined = {node.name for node in ast.walk(ast.parse(code)) if isinstance(node, ast.FunctionDef)}
        assert function in defined, test
        assert Path(page).name in code, f"{test} does not name {page}"


def test_blocks_without_a_fence_hold_no_commands() -> None:
    for page, text in PAGES.items():
        for line in re.findall(r"^ {4,}(.+)$", re.sub(r"^( *)```.*?^\1```$", "", text, flags=re.M | re.S), re.M):
            assert not re.match(r"(python|make|torchrun|pip|import) |from \S+ import ", line), f"{page}: {line}"


class Parsed(Exception):
    """The command's own parser has taken its arguments."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that has the recipes and benchmarks, and no runs, becomes the current one."""
    for folder in ("recipes", "benchmarks"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)


def stopping(parse: Callable[..., Any], *instead: Any) -> Callable[..., Any]:
    """The parser, which ends the command with `Parsed`; `instead` of what follows its first argument."""

    def parsing(first: Any, *more: Any, **named: Any) -> None:
        parse(first, *(instead or more), **named)
        raise Parsed

    return parsing


def any_weights(source: str) -> Config:
    """The config of weights that fine-tuning starts from, which are not there."""
    config = preset("diffmavil-base")
    return replace(config, model=replace(config.model, audio=replace(config.model.audio, mean=-4.3, std=4.6)))


def only_parse(module: str, arguments: list[str]) -> None:
    """Hand arguments to a command, and stop it where it has parsed them. Fails if it refuses them."""
    command = importlib.import_module(module)
    if not hasattr(command, "main"):
        assert not arguments, f"{module} takes no arguments"
        return
    with pytest.MonkeyPatch.context() as patch:
        for name in ("parse_flags", "parse_train", "parse_finetune"):
            if parse := getattr(command, name, None):
                instead = [any_weights] if name == "parse_finetune" else []
                patch.setattr(command, name, stopping(parse, *instead))
        patch.setattr(argparse.ArgumentParser, "parse_args", stopping(argparse.ArgumentParser.parse_args))
        patch.setattr(sys, "argv", [module, *arguments])
        with pytest.raises(Parsed):
            command.main(*([arguments] if inspect.signature(command.main).parameters else []))


def check(words: list[str]) -> None:
    """A command of a page, as a shell would split it."""
    while "=" in words[0]:  # a variable of the environment
        words = words[1:]
    program, arguments = words[0], words[1:]
    if program == "torchrun":
        launched, _ = get_args_parser().parse_known_args(arguments)
        assert launched.module
        only_parse(launched.training_script, launched.training_script_args)
    elif program == "python" and arguments[0] == "-m":
        only_parse(arguments[1], arguments[2:])
    elif program == "python":
        assert (ROOT / arguments[0]).is_file(), arguments[0]
        only_parse(arguments[0].removesuffix(".py").replace("/", "."), arguments[1:])
    elif program == "make":
        known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        targets = {word for word in arguments if "=" not in word}
        assert targets
        assert targets <= known, targets - known
    elif program == "benchmarks/gpu.sh":
        (stages,) = re.findall(r"^every=\((.*)\)$", (ROOT / program).read_text(), re.MULTILINE)
        assert set(arguments) <= {*stages.split(), "all", "--rehearse"}
    elif program == "pip":
        check_installed(arguments)
    else:
        raise AssertionError(f"nothing here knows {program!r}: name a test that runs it, or parse it")


def check_installed(arguments: list[str]) -> None:
    """Of `pip install`: folders that there are, extras of ours, packages that an extra names in this version."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = {re.split(r"[\[<>=]", need)[0]: need for needs in extras.values() for need in needs}
    assert arguments[0] == "install"
    for word in arguments[1:]:
        ours = re.fullmatch(r"(?:\.|diffmavil)\[(.+)\]", word)
        if ours:
            assert set(ours[1].split(",")) <= extras.keys(), word
        elif word.startswith("git+URL#subdirectory="):
            assert (ROOT / word.partition("=")[2] / "pyproject.toml").exists()
        elif word.startswith("."):
            assert (ROOT / word / "pyproject.toml").exists(), word
        elif not word.startswith("-"):
            name, _, version = word.partition("==")
            assert name in wanted, word
            assert version.rpartition(".")[0] in wanted[name], f"{word}, but {wanted[name]}"


@pytest.mark.parametrize("block", list(parsed_blocks()), ids=lambda block: f"{block.page}:{block.line}")
def test_commands_that_are_not_run_are_understood(block: Block, place: None) -> None:
    lines = block.text.replace("\\\n", " ").splitlines()
    assert lines
    for line in lines:
        words = shlex.split(line, comments=True)
        if words and line not in NOT_OURS:
            check(words)


@pytest.mark.parametrize("page", sorted(PAGES.keys() - HISTORY))
def test_commands_in_running_text_are_understood(page: str, place: None) -> None:
    for code in inline(page):
        script = re.match(r"benchmarks/\w+\.(py|sh)", code)
        if script:
            assert (ROOT / script[0]).is_file(), code
        if re.match(r"(python|make|torchrun|pip install|benchmarks/gpu\.sh) ", code) and code not in PLACEHOLDERS:
            words = shlex.split(code.replace(" ...", ""))
            check([word for word in words if word != "--help"])


def test_what_cannot_be_understood_is_noticed(place: None) -> None:
    for wrong in (
        "python -m diffmavil.train diffmavil-small --data.rooot /data",
        "python -m diffmavil.finetune --from runs/mine --head.epoch 3",
        "torchrun --nproc-per-node 8 -m diffmavil.evaluate --run-folder runs/mine",
        "python benchmarks/kernels.py --ops masked_mse",
    ):
        with pytest.raises((SystemExit, ValueError)):
            check(shlex.split(wrong))
    for wrong in (
        "make tests",
        "pip install '.[trainer]'",
        "pip install torchcodec==0.12.0",
        "bash run",
        "python -m x",
    ):
        with pytest.raises((AssertionError, ModuleNotFoundError)):
            check(shlex.split(wrong))


def settings(options: Any, before: str = "") -> Iterator[str]:
    """Dotted names of all settings, as flags have them; what is on has a `no-` name besides."""
    hints = get_type_hints(options, include_extras=True)
    for field in fields(options):
        name, kind = field.name.replace("_", "-"), hints[field.name]
        notes = getattr(kind, "__metadata__", ())
        name = next((note.name for note in notes if getattr(note, "name", None)), name)
        plain = get_type_hints(options)[field.name]
        if is_dataclass(plain):
            yield from settings(plain, before if tyro.conf.OmitArgPrefixes in notes else f"{before}{name}.")
        yield from (f"{before}{name}", f"{before}no-{name}")


def flags() -> set[str]:
    """Every flag of every command: from the dataclasses that are its options, or its calls of argparse."""
    known = {f"--{name}" for options in (FinetuneConfig, FinetuneOptions) for name in settings(options)}
    for file in (ROOT / "diffmavil").glob("[a-z]*.py"):
        module = importlib.import_module(f"diffmavil.{file.stem}")
        own = [one for one in vars(module).values() if is_dataclass(one) and one.__module__ == module.__name__]
        known |= {f"--{name}" for options in own for name in settings(options)}
    for folder in ("diffmavil", "diffmavil/config", "benchmarks", "kernels/hub"):
        for file in (ROOT / folder).glob("*.py"):
            known |= set(re.findall(r'"(--[a-z-]+)"', file.read_text()))
    return known


def test_flags_in_running_text_exist() -> None:
    known = flags() | OTHER_FLAGS
    unknown = [
        (page, code)
        for page in sorted(PAGES.keys() - HISTORY)
        for code in inline(page)
        for flag in re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", code)
        if flag not in known
    ]
    assert unknown == []


def test_settings_in_a_file(tmp_path: Path) -> None:
    (block,) = (block for block in blocks("docs/whole-way.md") if block.kind == "yaml")
    (tmp_path / "settings.yaml").write_text(block.text)
    name, config, _ = parse_train(["--config", str(tmp_path / "settings.yaml")])
    assert (name, config.model.modalities, config.train.steps) == ("diffmavil-tiny", "audio", 2000)


def test_a_table_with_two_labels(tmp_path: Path) -> None:
    (block,) = (block for block in blocks("docs/whole-way.md") if block.kind == "csv")
    (tmp_path / "table.csv").write_text(block.text)
    for name in ("street.wav", "yard.wav"):
        (tmp_path / name).touch()
    found = read_csv(tmp_path / "table.csv")
    assert found.classes == ["bark", "rain", "siren"]
    assert [len(clip.labels) for clip in found.clips] == [2, 1, 1]
