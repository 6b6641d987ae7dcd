"""docs/packages.md, the README of maekernels and the Hub's card, by their own snippets; files that GitHub reads."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from maekernels import __main__ as command
from maekernels import _selfcheck, layers

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "packages.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
FORMS = ["bug", "score", "slow"]
WORKFLOWS = ["lint", "tests", "wheels"]


def snippets(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_what_the_page_shows_of_the_command_is_what_it_prints(capsys):
    assert command.main([]) == 0
    told = capsys.readouterr().out
    (shown,) = re.findall(r"^```text\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    for line in shown.splitlines():
        start = line[:15].rstrip()  # the rest is that of a machine
        assert line == "..." or any(found.startswith(start) for found in told.splitlines()), line
    assert f"within {_selfcheck.TOLERANCE:.0e} of the largest value" in PAGE


def test_make_knows_every_target_that_is_named():
    texts = [PAGE, *((ROOT / ".github" / "workflows" / f"{name}.yml").read_text() for name in WORKFLOWS)]
    named = {target for text in texts for target in re.findall(r"(?:`|run: )make ([a-z-]+)", text)}
    assert named >= {"install", "wheel", "hub", "test-hub", "test-builds", "check", "demo"}
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())["jobs"]
    named |= {target for group in jobs["test"]["strategy"]["matrix"]["target"] for target in group.split()}
    known = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
    assert named <= known


def test_layers_that_the_page_names():
    for name in layers.__all__:
        assert f"`{name}`" in PAGE


def test_the_snippet_of_the_package(monkeypatch):
    (code,) = snippets((ROOT / "kernels" / "README.md").read_text())
    names: dict = {}
    exec(smaller(code), names)
    assert names["visible"].shape == (2, 7, 96)
    assert names["prediction"].grad.shape == names["prediction"].shape


def test_the_hubs_card_shows_the_same_steps():
    def lines(text: str) -> list[str]:
        plain = re.sub(r", device=device|maekernels\.(?=\w+\()", "", "".join(snippets(text)))
        steps = re.findall(r"^(?:video|mean|keep|visible|prediction|masked_mse).*$", plain, re.MULTILINE)
        return [line.partition("  #")[0] for line in steps]

    card = lines((ROOT / "kernels" / "hub" / "CARD.md").read_text())
    assert card == lines((ROOT / "kernels" / "README.md").read_text())
    assert len(card) == 6


def smaller(code: str) -> str:
    """The snippet with a clip of 4 frames of 16 x 16 pixels in patches of 2 x 4 x 4: 32 of them."""
    for old, new in (
        ("(2, 16, 224, 224, 3)", "(2, 4, 16, 16, 3)"),
        ("1568, 314", "32, 7"),
        ("(2, 16, 16)", "(2, 4, 4)"),
        ("1536", "96"),
    ):
        assert old in code
        code = code.replace(old, new)
    return code


def test_citation_is_of_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (cited["version"], cited["license"]) == (project["version"], project["license"])


@pytest.mark.parametrize("form", FORMS)
def test_forms_ask_for_commands_that_there_are(form):
    text = (ROOT / ".github" / "ISSUE_TEMPLATE" / f"{form}.yml").read_text()
    parts = yaml.safe_load(text)["body"]
    assert len({part["id"] for part in parts}) == len(parts)
    modules = re.findall(r"python -m ([\w.]+)", text)
    assert "maekernels" in modules
    for module in modules:
        assert importlib.util.find_spec(module), module
    for script in re.findall(r"python ([\w/]+\.py)", text):
        assert (ROOT / script).exists(), script


def test_every_form_and_workflow_is_named_here():
    for folder, names in (("ISSUE_TEMPLATE", [*FORMS, "config"]), ("workflows", WORKFLOWS)):
        found = {path.stem for path in (ROOT / ".github" / folder).iterdir()}
        assert found == set(names)
