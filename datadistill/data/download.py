"""Location of official files: below the data root, else in the user's cache, else at their authors'."""

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from datadistill.data.labelled import Labelled
from datadistill.utils.errors import DamagedFileError, DatadistillError
from datadistill.utils.files import write_atomically
from datadistill.utils.progress import counting

_PIECE = 2**20
_MOST = 256 * 2**20
"""More than any of the official files has."""

_SECONDS = 30.0
"""How long a host may stay silent."""


@dataclass(frozen=True)
class Layout:
    """One form in which a dataset is published.

    Attributes:
        paths: its files, below a data root.
        read: gives the training and the test split of those files.
    """

    paths: tuple[str, ...]
    read: Callable[[tuple[Path, ...]], tuple[Labelled, Labelled]]


@dataclass(frozen=True)
class Published:
    """A dataset with official files.

    Attributes:
        name: what people type.
        layouts: what it may look like on disk; the first that is whole is read, and the last is what is fetched.
        host: the address below which the files of the last layout are published.
        md5: their published checksums.
    """

    name: str
    layouts: tuple[Layout, ...]
    host: str
    md5: tuple[str, ...]

    def read(self, data_root: Path | None) -> tuple[Labelled, Labelled]:
        """The training and the test split.

        Raises:
            DamagedFileError: a file is not the official one.
            DatadistillError: there are no files, and they cannot be fetched.
        """
        places = _places(data_root)
        for layout, paths in self._whole(places):
            return layout.read(paths)
        wanted = self.layouts[-1]
        paths = tuple(places[-1] / path for path in wanted.paths)
        for path, md5 in zip(paths, self.md5, strict=True):
            if not path.is_file():
                self._fetch(path, md5, places)
        return wanted.read(paths)

    def is_here(self, data_root: Path | None) -> bool:
        """Whether nothing has to be fetched."""
        return any(True for _ in self._whole(_places(data_root)))

    def _whole(self, places: list[Path]) -> Iterator[tuple[Layout, tuple[Path, ...]]]:
        """The layouts that lack no file, and where these lie."""
        for place in places:
            for layout in self.layouts:
                paths = tuple(place / path for path in layout.paths)
                if all(path.is_file() for path in paths):
                    yield layout, paths

    def _fetch(self, path: Path, md5: str, places: list[Path]) -> None:
        """Fetch one file into the cache, once its checksum is right."""
        url = self.host + path.name
        try:
            content = download(url)
        except (OSError, http.client.HTTPException) as error:
            raise DatadistillError(
                f"{self.name} is not in {' or '.join(map(str, places))}, and {url} could not be reached "
                f"({_reason(error)}): put {' and '.join(self.layouts[-1].paths)} from {self.host} there, or name the "
                "folder that has them with --data-root"
            ) from error
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
            raise DamagedFileError(f"what {url} sent is damaged or not the official file (its MD5 differs): try again")
        write_atomically(path, content)


def _places(data_root: Path | None) -> list[Path]:
    """Folders in which files are looked for, in order."""
    return [*([] if data_root is None else [data_root]), cache_folder()]


def cache_folder() -> Path:
    """Folder of fetched files: `datadistill/data` in XDG_CACHE_HOME or ~/.cache.

    Raises:
        DatadistillError: the user has neither.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "datadistill" / "data"
    except RuntimeError as error:
        raise DatadistillError("there is no home folder to keep datasets in: set XDG_CACHE_HOME") from error


def download(url: str) -> bytes:
    """Content at an address, with a progress bar.

    Raises:
        DamagedFileError: it is larger than any official file.
        OSError: it cannot be reached.
        http.client.HTTPException: the host does not speak HTTP.
    """
    # Some hosts turn away what does not name itself.
    request = urllib.request.Request(url, headers={"User-Agent": "datadistill"})
    pieces, total = [], 0
    try:
        opened = urllib.request.urlopen(request, timeout=_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        raise
    with opened as answer:
        pieces_in_all = -(-min(answer.length or _MOST, _MOST) // _PIECE)
        with counting(f"fetching {url} (MiB)", pieces_in_all) as count:
            while piece := answer.read(_PIECE):
                pieces.append(piece)
                total += len(piece)
                if total > _MOST:
                    raise DamagedFileError(f"{url} sends more than the {_MOST:,} bytes that any official file has")
                count()
    return b"".join(pieces)


def _reason(error: Exception) -> str:
    """Reason why a host could not be reached, in words."""
    cause = getattr(error, "reason", error)
    return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
