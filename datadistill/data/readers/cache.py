"""Decoded images in the user's cache: one file for each folder and way of reading it, checked before it is trusted."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import PIL
import torch

from datadistill.data.download import cache_folder
from datadistill.data.options import Options
from datadistill.data.readers.image_files import Decoded, Pictures, decode
from datadistill.utils.errors import DamagedFileError, DatadistillError, require
from datadistill.utils.files import digest_of, read_tensors, who_else, write_tensors
from datadistill.utils.progress import Bar

CACHED_FROM = 1000
"""Fewer images are decoded every time: that takes a second."""

_VERSION = 2


def decode_once(pictures: Pictures, options: Options, say: Callable[[str], None], bar: Bar) -> Decoded:
    """Decoded images, from the cache where they are many and known.

    The cache holds one file for each place and each way of reading it, so it does not grow when files change. It
    is used if the state of all files is the same and its checksum is right, and is made again otherwise.

    Args:
        pictures: what to decode.
        options: how.
        say: is told if the cache is damaged, cannot be written, or could be somebody else's.
        bar: shows progress.
    """
    if len(pictures.names) < CACHED_FROM:
        return decode(pictures, options, bar)
    path = _path(pictures.place, options)
    trouble = who_else(path)
    if trouble:
        say(f"decoded pictures are neither kept nor taken from the cache: {trouble}")
        return decode(pictures, options, bar)
    state = _digest(pictures.state, *pictures.names, str(options), PIL.__version__, str(_VERSION))
    if path.is_file():
        try:
            known = _read(path, state, len(pictures.names))
            if known is not None:
                return known
        except DatadistillError as error:
            say(f"the cache is made again: {error}")
    decoded = decode(pictures, options, bar)
    more = [decoded.white, decoded.remarks]
    facts = {"state": state, "kept": json.dumps(decoded.kept), "more": json.dumps(more)}
    tensors = {"pixels": decoded.pixels}
    try:
        write_tensors(path, tensors, {**facts, "sha256": digest_of(tensors, json.dumps(facts))})
    except DatadistillError as error:
        say(f"going on without a cache: {error}")
    return decoded


def _read(path: Path, state: str, count: int) -> Decoded | None:
    """Content of the cache, or None where it belongs to other files.

    Raises:
        DamagedFileError: it is not what was written.
    """
    tensors, metadata = read_tensors(path)
    facts = {name: metadata.get(name, "") for name in ("state", "kept", "more")}
    if digest_of(tensors, json.dumps(facts)) != metadata.get("sha256"):
        raise DamagedFileError(f"{path} is damaged: its checksum differs")
    if facts["state"] != state:
        return None
    try:
        kept, (white, remarks) = tuple(json.loads(facts["kept"])), json.loads(facts["more"])
        pixels = tensors["pixels"]
        require(pixels.dtype == torch.uint8 and pixels.dim() == 4 and len(pixels) == len(kept), "it has other pixels")
        require(all(0 <= index < count for index in kept), "it has other images")
        return Decoded(pixels, kept, white, tuple(remarks))
    except (DamagedFileError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise DamagedFileError(f"{path} is damaged: it holds something else") from error


def _path(place: str, options: Options) -> Path:
    return cache_folder().with_name("decoded") / f"{_digest(place, str(options))[:32]}.safetensors"


def _digest(*texts: str) -> str:
    found = hashlib.sha256()
    for text in texts:
        found.update(hashlib.sha256(text.encode(errors="surrogateescape")).digest())
    return found.hexdigest()
