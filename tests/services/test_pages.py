"""The documentation as pages, made by MkDocs as `make docs` does."""

import json
import re
import subprocess
import sys

import pytest
from projects import ROOT, environment


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Their folder; MkDocs fails at a link or an anchor of the repository's Markdown that leads nowhere."""
    folder = tmp_path_factory.mktemp("pages") / "pages"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder]
    result = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return folder


def test_every_markdown_file_is_a_page_that_loads_nothing_from_elsewhere(pages):
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        page = pages / re.sub(r"README\.md$", "index.md", name).replace(".md", ".html")
        assert not re.search(r'<(script|link|img)[^>]+(src|href)="(https?:)?//', page.read_text()), name


def test_the_tutorial_is_a_page_with_its_outputs_and_a_module_one_of_its_docstrings(pages):
    tutorial = (pages / "docs/tutorial.html").read_text()
    outputs = [o for cell in notebook()["cells"] for o in cell.get("outputs", [])]
    assert tutorial.count("data:image/png") == sum("data" in output for output in outputs) == 4
    assert 'href="tutorial.html"' in (pages / "docs/library.html").read_text()
    assert "EDM's deterministic sampler" in (pages / "docs/modules/sampling.html").read_text()


def notebook():
    return json.loads((ROOT / "docs/tutorial.ipynb").read_text())
