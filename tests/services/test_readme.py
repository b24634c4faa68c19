"""Every command of README.md and of the page on the paper's scale, run in order in a clone with a tiny grid."""

import os
import re
import signal
import socket
import subprocess
import time
import urllib.request

import pytest
import yaml
from projects import environment, free_port, tiny_params, write_project
from workflows import ROOT, SCRIPTS, as_a_plan, commit, duplicate, run

PAGES = "\n".join((ROOT / name).read_text() for name in ("README.md", "docs/paper-scale.md"))


def commands(text):
    """The command lines of a page's bash blocks, without their comments."""
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [re.sub(r"\s+#.*$", "", line).strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


# What cannot run as it stands, and what is run instead.
INSTEAD = {
    # It would run this test.
    "make test": "make --dry-run test",
    # The paper's network, at a size that a CPU can time.
    "gcflow bench cifar10": (
        "gcflow bench cifar10 --method ic --steps 1 --rounds 1 --set training.batch=2 --set training.grain=2 "
        "--set network.channels=32 --set training.precision=float32"
    ),
    "gcflow bench digits": "gcflow bench digits --method ic --steps 1 --rounds 1",
}
# Weeks on a cluster or a GPU: planned only, as they are written (`as_a_plan`).
WEEKS = ("snakemake --profile slurm all", "snakemake --profile local table1 --config scale=paper")
# Those that go on until they are stopped, with what they show by then.
ENDLESS = {"make ui": "http://127.0.0.1:5000", "gcflow status --watch": "digits/gc/0"}
# What a machine lacks is no mistake of the command.
MAY_FIND_SOMETHING = {"gcflow doctor --scale paper"}


def grid():
    """The tiny grid, with all that the README names: theory, a denoiser of GC, the claims, the paper's data sets."""
    params, whole = tiny_params(), yaml.safe_load((ROOT / "params.yaml").read_text())
    digits, mixture = params["datasets"]["digits"], params["datasets"]["mixture2d"]
    digits["methods"]["denoiser-gc"] = digits["methods"]["denoiser"] | {
        "coupling": "gc",
        "mu": 1.0,
        "predictor": {"method": "ic"},
    }
    digits["runs"]["denoiser-gc"] = {"label": "Denoiser of GC", "seeds": [0]}
    mixture["theory"] = whole["datasets"]["mixture2d"]["theory"] | {
        "horizons": [3.0],
        "intervals": [16, 64],
        "points": 256,
        "sigmas": [],
        "paths": 8,
    }
    known = {method for entry in (digits, mixture) for method in entry["methods"]}
    claims = yaml.safe_load((ROOT / "claims.yaml").read_text())
    named = {name: {claim.get("lower"), claim.get("higher")} for name, claim in claims["entries"].items()}
    known_claims = {name: claim for name, claim in claims["entries"].items() if named[name] <= known}
    # A round of seeds is enough here.
    params["claims"] = claims | {"entries": known_claims, "most_seeds": 2}
    params["pretrained"] = whole["pretrained"]
    params["datasets"] |= {name: entry for name, entry in whole["datasets"].items() if entry.get("scale") == "paper"}
    return params


@pytest.fixture(scope="module")
def project(finished, tmp_path_factory):
    folder = duplicate(finished, tmp_path_factory.mktemp("readme") / "project")
    # The environment that `make` would install.
    (folder / ".venv").mkdir()
    (folder / ".venv" / "bin").symlink_to(SCRIPTS)
    (folder / ".venv" / "complete").touch()
    os.utime(folder / ".venv" / "complete", (time.time() + 86400,) * 2)
    write_project(folder, grid())
    run(folder, "gcflow", "stages")
    commit(folder, "what the README names")
    return folder


def start(folder, command, programs=SCRIPTS):
    """A command of the README as a process group of its own."""
    return subprocess.Popen(
        ["bash", "-c", command],
        cwd=folder,
        env=environment({"PATH": f"{programs}:{SCRIPTS}:{environment()['PATH']}", "PYTHONUNBUFFERED": "1"}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_there_are_commands_and_none_is_replaced_in_vain():
    found = commands(PAGES)
    assert len(found) > 15
    assert {*INSTEAD, *WEEKS, *ENDLESS, *MAY_FIND_SOMETHING} <= set(found)


@pytest.mark.parametrize("command", [c for c in dict.fromkeys(commands(PAGES)) if c not in ENDLESS])
def test_a_command_does_what_it_says(project, command, tmp_path):
    process = start(project, INSTEAD.get(command, command), as_a_plan(tmp_path) if command in WEEKS else SCRIPTS)
    output, _ = process.communicate()
    assert "Traceback" not in output
    if command in MAY_FIND_SOMETHING:
        assert process.returncode in {0, 2}, output
    else:
        assert process.returncode == 0, f"{command}\n{output}"


@pytest.mark.parametrize("command", ENDLESS)
def test_a_command_that_goes_on_shows_what_it_should(project, command):
    process = start(project, command)
    try:
        assert process.stdout is not None
        seen = ""
        while ENDLESS[command] not in seen:
            line = process.stdout.readline()
            assert line, f"{command} ended:\n{seen}"
            seen += line
        if command == "make ui":
            assert b"MLflow" in page(process, "http://127.0.0.1:5000/")
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate()


def said(output):
    """The lines of a make target, without make's own: that .venv is from the future."""
    return [line for line in output.splitlines() if not line.startswith("make: ")]


def test_the_runs_on_a_server_are_at_its_own_address(project):
    address = "http://me:secret@127.0.0.1:1"
    process = start(project, f"MLFLOW_TRACKING_URI={address} make ui")
    output, _ = process.communicate()
    assert said(output) == ["The runs: http://127.0.0.1:1", "Log in there as me."]


def test_a_port_that_is_taken_is_one_line(project):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = start(project, f"make ui PORT={port}")
        output, _ = process.communicate()
    assert process.returncode != 0
    assert said(output)[0] == f"Port {port} is taken: make ui PORT=5001"


def test_the_password_of_a_database_is_no_argument_of_any_process(project):
    address, port = "sqlite:///file:mlflow.db?uri=true&password=s3cret", free_port()
    process = start(project, f"MLFLOW_TRACKING_URI='{address}' make ui PORT={port}")
    try:
        assert b"MLflow" in page(process, f"http://127.0.0.1:{port}/")
        listed = subprocess.run(["ps", "-wweo", "pgid=,args="], capture_output=True, text=True, check=True).stdout
        ours = [line for line in listed.splitlines() if line.split()[0] == str(process.pid)]
        assert any("mlflow" in line for line in ours)
        # Of the shell to which this test gave it.
        assert not [line for line in ours if "s3cret" in line and "make ui PORT" not in line]
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        output, _ = process.communicate()
    assert "s3cret" not in output


def page(process, address):
    """A page, as soon as there is a server."""
    while True:
        assert process.poll() is None
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                return answer.read()
        except OSError:
            time.sleep(0.2)


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.name
)
def test_every_link_to_a_file_and_every_picture_leads_somewhere(path):
    text = path.read_text()
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name) if name else path
        assert file.exists(), f"{path.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{path.name}: {target}"


def test_every_message_of_the_trouble_table_is_one_that_the_code_says():
    section = (ROOT / "docs" / "troubleshooting.md").read_text()
    messages = re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)
    assert len(messages) >= 8
    sources = [*(ROOT / "gcflow").rglob("*.py"), *(ROOT / "workflow").rglob("*.[ps]*")]
    code = re.sub(r'"\s*\n\s*f?"', "", "\n".join(path.read_text() for path in sources))
    for message in messages:
        pieces = [piece.strip(" :;,…") for piece in re.split(r"…|params\.yaml", message)]
        for piece in filter(None, pieces):
            assert spoken(piece, code), f"{message!r}: nothing says {piece!r}"


def spoken(piece, code):
    """Whether the code holds a text, in which an f-string may have put the numbers and names."""
    words = [re.escape(word) for word in piece.split()]
    hole = r"(?:\{[^{}]*\}|[^\s\"]*)"
    return re.search(r"\s+".join(f"(?:{word}|{hole})" if re.search(r"\d", word) else word for word in words), code)


def test_every_verb_and_make_target_in_the_pages_exists():
    from gcflow.cli import main

    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        text = path.read_text()
        for name in re.findall(r"`make ([a-z-]+)|^make ([a-z-]+)", text, re.MULTILINE):
            assert (name[0] or name[1]) in targets, f"{path.name}: make {name}"
        for name in re.findall(r"(?:`|^)gcflow ([a-z][a-z-]+)", text, re.MULTILINE):
            assert name in main.commands, f"{path.name}: gcflow {name}"
