"""Python, its packages and the device."""

import shutil
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata

from gcflow.errors import GcflowError
from gcflow.pipeline.doctor.asking import output
from gcflow.pipeline.doctor.check import Check, Verdict, one_line, size

EXTRAS = ("", "pipeline")


def check_python() -> Iterator[Check]:
    """Python's version against what the package requires."""
    from packaging.specifiers import SpecifierSet

    version = sys.version.split()[0]
    required = metadata.metadata("gcflow")["Requires-Python"]
    if SpecifierSet(required).contains(version, prereleases=True):
        yield Check("Python", "OK", version)
    else:
        yield Check("Python", "broken", f"{version}, required is {required}", "make PYTHON=python3.11 .venv/complete")


def check_packages(requirements: Iterable[str] | None = None) -> Iterator[Check]:
    """Every installed version against the package's requirements, or against those given."""
    from packaging.requirements import Requirement

    listed = metadata.requires("gcflow") or [] if requirements is None else requirements
    parsed = [Requirement(line) for line in listed]
    ours = [item for item in parsed if item.marker is None or any(item.marker.evaluate({"extra": e}) for e in EXTRAS)]
    problems: dict[str, str] = {}
    verdict: Verdict = "OK"
    for item in ours:
        wanted = f"'{item.name}{item.specifier}'"
        try:
            version = metadata.version(item.name)
        except metadata.PackageNotFoundError:
            problems[wanted], verdict = f"{item.name} is not installed", "missing"
            continue
        if not item.specifier.contains(version, prereleases=True):
            problems[wanted] = f"{item.name} {version} is not {item.specifier}"
            verdict = "broken" if verdict == "OK" else verdict
    found = ", ".join(problems.values()) or f"all {len(ours)} that gcflow requires"
    yield Check("packages", verdict, found, f"python -m pip install {' '.join(problems)}" if problems else "")


def _nvidia(field: str) -> str:
    """What NVIDIA's driver says of its first GPU; empty where there is none."""
    if shutil.which("nvidia-smi") is None:
        return ""
    try:
        lines = output("nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader").splitlines()
    except GcflowError:
        return ""
    return lines[0].strip() if lines else ""


def check_device(choice: str, slow_on_cpu: bool) -> Iterator[Check]:
    """Torch, and a small product on the device that would be used.

    Args:
        choice: `auto`, or a torch device.
        slow_on_cpu: the target trains networks that are made for a GPU.
    """
    import torch

    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    driver = _nvidia("driver_version")
    yield Check("torch", "OK", f"{torch.__version__}, {built}" + (f", driver {driver}" if driver else ""))
    name = choice if choice != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    try:
        ones = torch.ones(64, 64, device=name)
        total = float((ones @ ones).sum())
    except Exception as error:
        yield Check("device", "broken", f"{name}: {one_line(error)}", "give --device cpu, or look at nvidia-smi")
        return
    if total != 64**3:
        yield Check("device", "broken", f"{name}: a product of ones sums to {total:g}", "this hardware miscomputes")
    elif ones.device.type == "cuda":
        free, memory = torch.cuda.mem_get_info(ones.device)
        kind = torch.cuda.get_device_properties(ones.device).name
        with torch.cuda.device(ones.device):
            bf16 = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bf16"
        yield Check("device", "OK", f"{name}: {kind}, {size(free)} of {size(memory)} free, {bf16}")
    elif ones.device.type != "cpu":
        yield Check("device", "OK", name)
    else:
        from gcflow.archives.images import available_cores

        found = f"CPU, {available_cores()} cores, {torch.get_num_threads()} threads"
        unused = _nvidia("name") if choice == "auto" else ""
        if unused:
            mend = "install the build of torch for this driver: https://pytorch.org/get-started/locally"
            yield Check("device", "warning", f"{found}; torch cannot use this {unused}", mend, needed=False)
        elif slow_on_cpu:
            mend = "run it on a machine with a GPU, or take --scale embedded"
            yield Check("device", "warning", f"{found}: the target's runs would take weeks", mend, needed=False)
        else:
            yield Check("device", "OK", found)
