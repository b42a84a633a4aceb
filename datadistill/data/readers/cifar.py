"""CIFAR's binary version: records of one or two label bytes and 32x32 pixels, one channel after the other.

CIFAR-10     class, red, green, blue
CIFAR-100    superclass, class, red, green, blue
"""

import io
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from datadistill.data.labelled import Counts, Labelled, check_digest, damaged, read_bytes

SIZE = 32
PIXELS = 3 * SIZE * SIZE
_MOST_PACKED = 256 * 2**20
"""More than either official archive has."""


@dataclass(frozen=True)
class Binary:
    """Layout of a CIFAR in the binary version.

    Attributes:
        train: the files of the training split.
        test: the file of the test split.
        label_bytes: bytes of a record before its pixels, of which the last is the class.
        counts: images of each class in each split.
        sha256: checksums of the files, training first; empty where they are not known.
    """

    train: tuple[str, ...]
    test: str
    label_bytes: int
    counts: tuple[Counts, Counts]
    sha256: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All files, the test split's last."""
        return (*self.train, self.test)

    @property
    def record(self) -> int:
        """Bytes of an image with its labels."""
        return self.label_bytes + PIXELS

    @property
    def sizes(self) -> tuple[int, ...]:
        """Bytes of each file."""
        train = sum(self.counts[0]) // len(self.train) * self.record
        return (*[train] * len(self.train), sum(self.counts[1]) * self.record)

    def read(self, paths: tuple[Path, ...]) -> tuple[Labelled, Labelled]:
        """A training and a test split from files, in the order of `names`.

        Raises:
            DamagedFileError: truncated, altered, or another file.
            DatadistillError: it cannot be read at all.
        """
        contents = [read_bytes(path, size) for path, size in zip(paths, self.sizes, strict=True)]
        for content, size, path in zip(contents, self.sizes, paths, strict=True):
            if len(content) != size:
                raise damaged(path, f"it has {len(content):,} bytes instead of {size:,}")
        return self._splits(contents, paths)

    def read_archive(self, paths: tuple[Path, ...], folder: str, md5: str) -> tuple[Labelled, Labelled]:
        """A training and a test split from the official archive; nothing is extracted to disk.

        Args:
            paths: the archive.
            folder: where the files lie in it.
            md5: its checksum.

        Raises:
            DamagedFileError: truncated, altered, or another file.
            DatadistillError: it cannot be read at all.
        """
        (path,) = paths
        packed = read_bytes(path, _MOST_PACKED)
        check_digest(packed, md5, path)
        wanted = {f"{folder}/{name}": size for name, size in zip(self.names, self.sizes, strict=True)}
        found: dict[str, bytes] = {}
        try:
            with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as archive:
                for member in archive:
                    if member.isreg() and member.size == wanted.get(member.name):
                        content = archive.extractfile(member)
                        assert content is not None
                        found[member.name] = content.read()
        except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error) as error:
            raise damaged(path, f"it cannot be unpacked ({error})") from error
        if missing := [name for name, size in wanted.items() if len(found.get(name, b"")) != size]:
            raise damaged(path, f"there is no {missing[0]} of {wanted[missing[0]]:,} bytes in it")
        return self._splits([found[name] for name in wanted], (path,) * len(wanted))

    def _splits(self, contents: list[bytes], paths: tuple[Path, ...]) -> tuple[Labelled, Labelled]:
        for content, sha256, path in zip(contents, self.sha256, paths, strict=bool(self.sha256)):
            check_digest(content, sha256, path)
        where = paths[0] if paths[0] == paths[-1] else paths[0].parent
        train, test = self._images(contents[:-1]), self._images(contents[-1:])
        return train.checked(self.counts[0], where), test.checked(self.counts[1], where)

    def _images(self, contents: list[bytes]) -> Labelled:
        rows = np.concatenate([np.frombuffer(content, np.uint8) for content in contents]).reshape(-1, self.record)
        return from_planes(rows[:, self.label_bytes :], rows[:, self.label_bytes - 1])


def from_planes(planes: np.ndarray, labels: np.ndarray) -> Labelled:
    """Images whose rows hold one channel after the other."""
    pixels = torch.from_numpy(planes).reshape(-1, 3, SIZE, SIZE).permute(0, 2, 3, 1)
    return Labelled(pixels, torch.from_numpy(labels.astype(np.int64)))
