"""What follows from all that is said of files and from their hashes: which are not what they should be."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from gcflow.pipeline.verify.hashing import Digests, inode
from gcflow.pipeline.verify.recorded import DIRECTORY, listing_md5
from gcflow.pipeline.verify.statements import Kind, Remark, Statement, Voucher
from gcflow.pipeline.versions import LOCK


class Reason(NamedTuple):
    """Why a file is not what it should be. by: who tells. what: a sentence, or the hash that was found and expected."""

    by: str
    what: str
    found: str = ""
    expected: str = ""


class Finding(NamedTuple):
    """A file that is not what it should be. also: other names of the same bytes.

    kind: `damaged`: other bytes than were written there. `missing`: gone, while what was made with it is there.
    `stray`: should not be there. `older`: whole, but made with other settings, or from other files, than there are now.
    """

    kind: Kind
    path: str
    also: tuple[str, ...]
    reasons: tuple[Reason, ...]


class Comparison:
    """What is known of hashes, and what there is.

    hashes: path to a file's hashes. members: path of a directory to the files in it, by their path in it.
    """

    def __init__(self, hashes: Mapping[str, Digests], members: Mapping[str, Mapping[str, str]]) -> None:
        self.hashes, self.members = hashes, members

    def differs(self, voucher: Voucher) -> str:
        """The hash that a file or directory has, if it is not the one that it should have; else empty."""
        found = self.hashes.get(voucher.path, {}).get(voucher.algorithm, "")
        if voucher.path in self.members and voucher.expected.endswith(DIRECTORY):
            files = self.members[voucher.path]
            found = listing_md5({name: self.hashes.get(path, {}).get("md5", "") for name, path in files.items()})
        elif voucher.path in self.members:
            found = "a folder"
        return found if found != voucher.expected else ""


class Judge:
    """Decides by what is said of files and by their hashes.

    Args:
        root: what paths are relative to.
        statements: what is said.
        comparison: of the files' hashes.
        unreadable: path to why a file cannot be read.
    """

    def __init__(
        self, root: Path, statements: Iterable[Statement], comparison: Comparison, unreadable: Mapping[str, str]
    ) -> None:
        self.root, self.comparison = root, comparison
        failures = (Remark(path, "damaged", f"cannot be read ({why})", path) for path, why in unreadable.items())
        self.statements = [*statements, *failures]
        self.readers: dict[str, list[Voucher]] = defaultdict(list)
        for said in self.statements:
            if isinstance(said, Voucher) and said.reader:
                self.readers[said.path].append(said)

    def findings(self) -> list[Finding]:
        """Every file that is not what it should be; hard links of the same bytes are one finding."""
        first = self._wrong(set())
        # What a damaged file says of others does not count. Damage is certain if none says it that may be damaged.
        certain = ((path, r) for path, reasons in first.items() for _, r in reasons)
        wrong = self._wrong({path for path, r in certain if r.by == path or r.by not in self.comparison.hashes})
        # Of a directory and its files only those are named that explain the others.
        folders = {path for path in wrong if path in self.comparison.members and _within(path, wrong)}
        inner = {path for path in wrong if str(Path(path).parent) in wrong.keys() - folders}
        wrong = {path: reasons for path, reasons in wrong.items() if path not in folders | inner}
        liars = {path for path, reasons in wrong.items() if any(kind == "damaged" for kind, _ in reasons)}
        merged: dict[object, list[str]] = defaultdict(list)
        for path, reasons in wrong.items():
            file = self.root / path
            same = inode(file) if reasons[0][0] == "damaged" and file.is_file() else path
            merged[same].append(path)
        found = []
        for paths in merged.values():
            # Of those who tell the same one is enough.
            why = {reason._replace(by=""): reason for path in reversed(paths) for _, reason in reversed(wrong[path])}
            kind = wrong[paths[0]][0][0]
            found.append(Finding(kind, paths[0], tuple(paths[1:]), tuple(reversed(why.values()))))
        return [self._with_readers(finding, liars) for finding in found] + self._older(wrong, liars)

    def _wrong(self, liars: set[str]) -> dict[str, list[tuple[Kind, Reason]]]:
        """The files that others than those made from them say are wrong, with the reasons."""
        wrong: dict[str, list[tuple[Kind, Reason]]] = defaultdict(list)
        for said in self.statements:
            if said.by in liars and said.by != said.path:
                continue
            if isinstance(said, Remark):
                if said.kind != "older":
                    wrong[said.path].append((said.kind, Reason(said.by, said.text)))
            elif not said.reader and (found := self.comparison.differs(said)):
                wrong[said.path].append(("damaged", Reason(said.by, said.algorithm, found, said.expected)))
        return dict(wrong)

    def _with_readers(self, finding: Finding, liars: set[str]) -> Finding:
        """With how many files were made from the bytes that should be there."""
        said = [voucher for path in (finding.path, *finding.also) for voucher in self.readers[path]]
        files = {each.by for each in said if each.by not in {*liars, LOCK} and self.comparison.differs(each)}
        if not files:
            return finding
        count = f"{len(files)} files that were" if len(files) > 1 else "a file that was"
        known = Reason(min(files), f"{count} made from it know another hash, too")
        return finding._replace(reasons=(*finding.reasons, known))

    def _older(self, wrong: Mapping[str, object], liars: set[str]) -> list[Finding]:
        reasons: dict[str, dict[Reason, None]] = defaultdict(dict)
        for said in self.statements:
            if said.by in liars:
                continue
            if isinstance(said, Remark):
                if said.kind == "older" and said.path not in liars:
                    reasons[said.path][Reason(said.by, said.text)] = None
            elif (
                said.reader not in {"", *liars}
                and not self._touched(said.path, wrong)
                and self.comparison.differs(said)
            ):
                reasons[said.reader][Reason(said.by, f"made from another version of {said.path}")] = None
        return [Finding("older", path, (), tuple(why)) for path, why in reasons.items()]

    def _touched(self, path: str, wrong: Mapping[str, object]) -> bool:
        return path in wrong or (path in self.comparison.members and _within(path, wrong))


def _within(directory: str, paths: Iterable[str]) -> bool:
    return any(path.startswith(f"{directory}/") for path in paths)
