"""Prints the installed versions as a lock.

Without gcflow itself, and without what torch brings for one platform only (CUDA libraries, the local version of a CPU
build), so that one lock serves CPU and GPU machines: torch pins those itself. Triton is for Linux alone.
"""

import re
import sys
from importlib.metadata import distributions

PLATFORM_ONLY = re.compile(r"^(nvidia-.*|cuda-.*)$")

versions = {d.metadata["Name"].lower().replace("_", "-"): d.version.split("+")[0] for d in distributions()}
for name in sorted(versions):
    if name not in ("gcflow", "pip") and not PLATFORM_ONLY.match(name):
        marker = "; platform_system == 'Linux'" if name == "triton" else ""
        sys.stdout.write(f"{name}=={versions[name]}{marker}\n")
