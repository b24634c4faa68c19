"""What MkDocs makes pages of: the repository's files where they are, so that links hold here and there.

A notebook becomes a page with its outputs, and each module of the library a page of its docstrings.
"""

import json
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from gcflow import MODULES

ROOT = Path(__file__).parent.parent
SHOWN = ("*.md", "*/README.md", "docs/**/*", "examples/*.*", "params.yaml", "CITATION.cff", "Dockerfile")


def on_config(config: MkDocsConfig) -> None:
    """The modules come last."""
    config.nav = [*(config.nav or []), {"Modules": [f"docs/modules/{name}.md" for name in MODULES]}]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The theme's files, and these in place of a folder of documentation."""
    found = [file for file in files if file.src_dir != config.docs_dir]
    pages = {f"docs/modules/{name}.md": f"# gcflow.{name}\n\n::: gcflow.{name}\n" for name in MODULES}
    paths = (path for pattern in SHOWN for path in sorted(ROOT.glob(pattern)) if path.is_file())
    for path in (str(path.relative_to(ROOT)) for path in paths):
        found.append(File(path, str(ROOT), config.site_dir, use_directory_urls=False))
        if path.endswith(".ipynb"):
            pages[path.replace(".ipynb", ".md")] = _notebook(json.loads((ROOT / path).read_text("utf-8")))
    return Files([*found, *(File.generated(config, path, content=text) for path, text in pages.items())])


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Where the repository has the notebook, the pages have its page."""
    return markdown.replace(".ipynb)", ".md)")


def _notebook(document: dict[str, Any]) -> str:
    parts = []
    for cell in document["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            if picture := output.get("data", {}).get("image/png"):
                parts.append(f"![](data:image/png;base64,{''.join(picture.split())})")
            else:
                parts.append(f"```text\n{''.join(output['text'])}```")
    return "\n\n".join(parts)
