"""Files that others publish, and where they are looked for: public models, and networks of features."""

from pathlib import Path

from gcflow.download import download
from gcflow.errors import GcflowError
from gcflow.files import sha256_of
from gcflow.pipeline.folders import pretrained_path
from gcflow.pipeline.params import Params
from gcflow.pipeline.prepare import Phases
from gcflow.pipeline.progress import say


def find_published(archives: Path, name: str, url: str, sha256: str | None, fetch: bool) -> Path:
    """The file `name` in the folder `archives`, downloaded if it is missing and `fetch` is set.

    Raises:
        GcflowError: it is missing (the message says what to fetch and where to put it), or has another sha256.
    """
    path = archives / name
    if not path.exists():
        if not fetch:
            raise GcflowError(f"{path}: missing; fetch {url} to there, or give --download")
        phases = Phases(name)
        with phases.stack:
            download(url, path, report=phases)
    if sha256 is not None and (found := sha256_of(path)) != sha256:
        raise GcflowError(
            f"{path}: sha256 is {found}, expected {sha256}; another version, or damaged: fetch {url} again"
        )
    return path


def import_pretrained(params: Params, name: str, archives: Path, fetch: bool) -> None:
    """Writes checkpoints/<name>.safetensors from the pickle of a public EDM model, without running code of it.

    Raises:
        GcflowError: params.yaml has no such model, or its file is missing or another.
    """
    from gcflow.edm import import_edm

    entry = params.named("pretrained", name, params.pretrained)
    source = find_published(params.root / archives, entry.pickle, entry.url, entry.sha256, fetch)
    out = pretrained_path(params.root, name)
    model = import_edm(source, out, None, False)
    for note in model.notes:
        say(f"  note: {note}")
    say(f"  {out}: {model.spec.network.architecture}, {model.spec.preconditioning} preconditioning")
