"""What is said of files, and by whom. Paths are text, relative to the project's root where they lie in it."""

from typing import Literal, NamedTuple

# content: of a safetensors file of ours, as `gcflow.weights.content_hash` defines it.
Algorithm = Literal["md5", "sha256", "content"]
Kind = Literal["damaged", "stray", "missing", "older"]


class Voucher(NamedTuple):
    """Somebody knows a hash of a file.

    path: a file, or a directory, whose md5 is that of its listing as DVC makes it. by: the file that says so, which is
    the same if its header or its name tells. reader: empty if this is said of the file as it should be; else the file
    that was made from it, which may have been another version.
    """

    path: str
    algorithm: Algorithm
    expected: str
    by: str
    reader: str = ""


class Remark(NamedTuple):
    """Something other than its hash is wrong with a file. by: the file that tells, which may be the same."""

    path: str
    kind: Kind
    text: str
    by: str


Statement = Voucher | Remark
