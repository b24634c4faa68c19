"""What a repository should have besides code, and whether it agrees with itself."""

import importlib.metadata
import re
import subprocess
import tomllib

import pytest
import yaml
from projects import ROOT

import gcflow

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Licences whose code may be used from a program under Apache-2.0.
PERMISSIVE = re.compile(
    r"MIT|BSD|Apache|PSF|Python Software Foundation|MPL|Mozilla|ISC|HPND|CMU|OpenLDAP|OLDAP|Public Domain|Unlicense"
)
# Used as separate programs or libraries by the tests alone, never shipped.
ONLY_IN_TESTS = {"psycopg2-binary", "dvc-ssh"}


def named(requirement):
    return re.match(r"[A-Za-z0-9._-]+", requirement)[0]


DIRECT = [
    named(requirement)
    for requirement in [
        *PROJECT["dependencies"],
        *(r for group in PROJECT["optional-dependencies"].values() for r in group),
    ]
    if not requirement.startswith("gcflow")
]


@pytest.mark.parametrize("name", DIRECT)
def test_a_dependency_has_a_licence_that_fits(name):
    metadata = importlib.metadata.metadata(name)
    classifiers = [c for c in metadata.get_all("Classifier") or [] if c.startswith("License")]
    words = " ".join([metadata.get("License-Expression") or "", (metadata.get("License") or "")[:200], *classifiers])
    assert PERMISSIVE.search(words) or name in ONLY_IN_TESTS, f"{name}: {words}"


@pytest.mark.parametrize("name", DIRECT)
def test_a_dependency_has_its_reason_in_the_readme_and_its_version_in_the_lock(name):
    readme = (ROOT / "README.md").read_text()
    table = readme[readme.index("## Why each dependency") : readme.index("## Citing")]
    rows = [
        cell.strip() for line in table.splitlines() if line.startswith("|") for cell in line.split("|")[1].split(",")
    ]
    assert name in rows or name.startswith(("types-", "pandas-stubs"))
    lock = (ROOT / "requirements.lock").read_text().splitlines()
    assert any(line.split("==")[0] == name.lower().replace("_", "-") for line in lock)


def test_make_help_lists_every_target():
    text = (ROOT / "Makefile").read_text()
    listed = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    targets = set(re.findall(r"^\.PHONY: ([a-z-]+)$", text, re.MULTILINE))
    assert {line.split()[0] for line in listed.splitlines()} == targets
    wanted = "reproduce test lint format ui report plan doctor sync bench"
    assert targets >= set(wanted.split())


def test_versions_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == importlib.metadata.version("gcflow") == gcflow.__version__
    assert citation["license"] == PROJECT["license"] == "Apache-2.0"
    assert f"## {gcflow.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def test_the_hooks_before_a_commit_are_the_linters_commands():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    lint = (ROOT / "Makefile").read_text()
    for hook in hooks:
        program = hook["entry"].removeprefix(".venv/bin/").removesuffix(" --fix")
        # What it writes is compared by a test, not by the linters.
        assert program in lint or program == "gcflow stages", hook["entry"]


def test_contributing_fits_on_a_screen():
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) <= 40
