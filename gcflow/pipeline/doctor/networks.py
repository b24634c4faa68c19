"""Published networks: Inception, and the models that runs start from."""

from collections.abc import Iterator
from pathlib import Path

from gcflow.errors import GcflowError
from gcflow.pipeline.doctor.check import Check, Target, refusal, size


def check_inception(target: Target) -> Iterator[Check]:
    """Inception's weights, each file once."""
    from gcflow.inception import INCEPTION_SHA256, INCEPTION_URL, Inception
    from gcflow.pipeline.folders import extractor_path
    from gcflow.pipeline.schema import InceptionNetwork

    wanted: dict[tuple[Path, str | None], str] = {}
    for name in target.stages.datasets:
        settings = target.params.dataset(name).features
        if isinstance(settings, InceptionNetwork) and target.stages.features(name) in target.needed:
            made = extractor_path(target.params.root, name, settings.kind)
            path = made if made.exists() else target.archives / settings.weights
            wanted.setdefault((path, settings.sha256), name)
    for (path, sha256), name in wanted.items():
        if not path.exists():
            mend = f"put {INCEPTION_URL} there, or: gcflow features {name} --download"
            yield Check("Inception", "missing", str(path), mend)
            continue
        try:
            network = Inception.load(path, "cpu", sha256)
        except GcflowError as error:
            refused = refusal("Inception", error)
            yield refused._replace(mend=refused.mend or f"fetch {INCEPTION_URL} again")
            continue
        found = f"{path}, sha256 {network.sha256[:12]}…"
        if network.sha256 == INCEPTION_SHA256 or sha256:
            yield Check("Inception", "OK", f"{found} as {'params.yaml says' if sha256 else 'published'}")
        else:
            mend = f"fetch {INCEPTION_URL}, whose sha256 is {INCEPTION_SHA256[:12]}…"
            yield Check("Inception", "warning", f"{found} is not the published file's", mend, needed=False)


def check_models(target: Target) -> Iterator[Check]:
    """Weights that runs start from and that no run makes."""
    from gcflow.files import opened_tensors
    from gcflow.pipeline.folders import pretrained_path

    names = [name for name in target.params.pretrained if target.stages.pretrained(name) in target.needed]
    for name in names:
        made, subject = pretrained_path(target.params.root, name), f"model {name}"
        try:
            if made.exists():
                with opened_tensors(made, "np") as file:
                    yield Check(subject, "OK", f"{made}, {len(file.keys())} tensors")
            else:
                yield _model(target, name)
        except GcflowError as error:
            yield refusal(subject, error)
    files = {file for run in target.runs for file in target.params.needed_files(run).values()}
    made_here = {out for stage in target.needed for out in stage.outs}
    for needed in sorted(files - made_here):
        if not (target.params.root / needed).exists():
            mend = "put it there (gcflow import-edm makes one), or list it under pretrained in params.yaml"
            yield Check("model", "missing", needed, mend)


def _model(target: Target, name: str) -> Check:
    from gcflow.archives.index import DAMAGED
    from gcflow.files import sha256_of

    entry, subject = target.params.pretrained[name], f"model {name}"
    path = target.archives / entry.pickle
    if not path.exists():
        return Check(subject, "missing", str(path), f"put {entry.url} there, or: gcflow pretrained {name} --download")
    with path.open("rb") as file:
        start = file.read(1)
        file.seek(max(0, path.stat().st_size - 1))
        end = file.read()
    if start in (b"", b"<") or (start == b"\x80" and end != b"."):
        return Check(subject, "broken", f"{path} is no whole pickle ({size(path.stat().st_size)})", DAMAGED)
    if entry.sha256 is not None and (found := sha256_of(path)) != entry.sha256:
        return Check(subject, "broken", f"{path}: sha256 is {found[:12]}…, expected {entry.sha256[:12]}…", DAMAGED)
    return Check(subject, "OK", f"{path}, {size(path.stat().st_size)}")
