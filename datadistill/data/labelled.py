"""Labelled: one split of a dataset as it is published, in pixels."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from datadistill.utils.errors import DamagedFileError, explain_os_error
from datadistill.utils.files import check_file

Counts = tuple[int, ...]
"""Images of each class."""

ADVICE = "put the official file there, or delete it to have it fetched again"


@dataclass(frozen=True, eq=False)
class Labelled:
    """Pixels and labels.

    Attributes:
        pixels: 8 bit.
        labels: class indices.
    """

    pixels: UInt8[Tensor, "n h w c"]
    labels: Int64[Tensor, "n"]

    def checked(self, counts: Counts, where: Path) -> "Labelled":
        """The split itself, if every class has as many images as it should.

        Args:
            counts: images of each class.
            where: what an error names.

        Raises:
            DamagedFileError: a label is out of range, or a class has another number of images.
        """
        if len(self.labels) != sum(counts):
            raise damaged(where, f"it holds {len(self.labels):,} images instead of {sum(counts):,}")
        if int(self.labels.min()) < 0 or int(self.labels.max()) >= len(counts):
            raise damaged(where, f"its labels are not the {len(counts)} classes")
        if torch.bincount(self.labels, minlength=len(counts)).tolist() != list(counts):
            raise damaged(where, "its classes have other numbers of images than the official ones")
        return self


def damaged(where: Path, why: str) -> DamagedFileError:
    """The error for a file, or a folder of files, that is not what it should be."""
    return DamagedFileError(f"{where} is damaged or not official: {why}; {ADVICE}")


def read_bytes(path: Path, most: int) -> bytes:
    """A file's content.

    Args:
        path: the file.
        most: as many bytes as it may have.

    Raises:
        DamagedFileError: it is larger, or no file.
        DatadistillError: it cannot be read.
    """
    check_file(path)
    try:
        if path.stat().st_size > most:
            raise damaged(path, f"it is larger than {most:,} bytes")
        return path.read_bytes()
    except OSError as error:
        raise explain_os_error(error, f"read {path}") from error


def check_digest(content: bytes, digest: str, where: Path) -> None:
    """Compare with a checksum, hexadecimal: a SHA-256 that we took, or an MD5 where that is what authors publish.

    Raises:
        DamagedFileError: it differs.
    """
    name = "MD5" if len(digest) == 32 else "SHA-256"
    if hashlib.new(name.lower().replace("-", ""), content, usedforsecurity=False).hexdigest() != digest:
        raise damaged(where, f"its {name} differs")
