"""A template for the page of `dvc plots` that needs no network: DVC's own loads Vega from the internet.

    dvc plots show --html-template "$(python workflow/offline_plots.py)"

Vega comes from Snakemake's package, which carries it for its reports. Writes below .dvc/tmp and says where.
"""

import sys
from pathlib import Path

from snakemake.assets import Assets

PAGE = "<!doctype html><meta charset='utf-8'><title>DVC plots</title>{}<body>{{plot_divs}}</body>"

packages = ("vega/vega.js", "vega-lite/vega-lite.js", "vega-embed/vega-embed.js")
scripts = "".join(f"<script>{Assets.get_content(name)}</script>" for name in packages)
path = Path(__file__).parent.parent / ".dvc" / "tmp" / "plots.html"
path.parent.mkdir(exist_ok=True)
path.write_text(PAGE.format(scripts), "utf-8")
sys.stdout.write(f"{path}\n")
