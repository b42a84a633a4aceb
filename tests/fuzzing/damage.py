"""What happens to files: in their bytes, in what they say, and in what lies in their place."""

import io
import json
import os
import re
import socket
import struct
import warnings
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image

from datadistill.pretraining.facts import parse_facts
from datadistill.pretraining.pool import Pool, PoolFacts
from datadistill.utils.files import digest_of
from datadistill.utils.schema import read_header

ODD = (
    *("null", "true", "0", "-1", "1", "2", "3.5", "-0.0", "1e-320", "1e308", "1e999", "-1e999", "NaN", "Infinity"),
    *("18446744073709551616", "1" + "0" * 400, "9" * 5000, "[]", "{}", "[[1]]", "[NaN]", '[""]', '{"a": {}}', '""'),
    *(
        '"x"',
        '"nan"',
        r'"\ud800"',
        r'"\u0000"',
        r'"\u001b[31m\n"',
        '"../../up"',
        '"net.py:f"',
        '"/dev/zero"',
        '"hf:a/b"',
    ),
    *('"' + "x" * 200_000 + '"', "[" * 3000 + "]" * 3000, '{"a":' * 3000 + "1" + "}" * 3000, "[" * 100_000),
)
"""JSON that nobody expects."""


class Evil:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran",)


def damage(folder: Path, others: list[Path], rng: Random) -> None:
    """Spoil one to three of a folder's files, or one by another's content."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
        if not files:
            return
        path = rng.choice(files)
        kind = rng.random()
        if kind < 0.08:
            _put(path, rng.choice(sorted(_PLACES)))
        elif kind < 0.12 and others:
            path.write_bytes(rng.choice(others).read_bytes())
        elif kind < 0.6:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                _say(path, rng)
        else:
            path.write_bytes(spoilt(path.read_bytes(), rng))


def spoilt(whole: bytes, rng: Random) -> bytes:
    """Bytes that were cut, changed, moved about, filled up, or replaced."""
    content = bytearray(whole)
    for _ in range(rng.choice((1, 1, 2, 4))):
        # At the beginning and the end of a file lies what says how it is read.
        edge = rng.choice((len(content), min(len(content), 64), len(content)))
        at = rng.randrange(max(1, edge))
        at = len(content) - at if rng.random() < 0.2 else at
        kind = rng.choice(("cut", "flip", "flip", "insert", "size", "zero", "twice", "swap", "more", "noise", "empty"))
        piece = slice(at, at + rng.choice((1, 4, 16, 300)))
        if kind == "cut":
            del content[at:]
        elif kind == "flip" and at < len(content):
            content[at] ^= rng.randrange(1, 256)
        elif kind == "insert":
            content[at:at] = rng.randbytes(rng.choice((1, 8)))
        elif kind == "size":
            number = rng.choice((0, 1, 2**31 - 1, 2**32 - 1, 2**40, 2**63, 2**64 - 1))
            size = struct.pack(rng.choice("<>") + "Q", number)[: rng.choice((4, 8))]
            content[at : at + len(size)] = size
        elif kind == "zero":
            content[piece] = bytes(len(content[piece]))
        elif kind == "twice":
            content[at:at] = content[piece]
        elif kind == "swap":
            other = rng.randrange(max(1, len(content)))
            content[piece] = content[other : other + len(content[piece])]
        elif kind == "more":
            content += rng.randbytes(99)
        elif rng.random() < 0.2:
            content = bytearray(rng.randbytes(64) if kind == "noise" else b"")
    return bytes(content)


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # names of sockets are short
    with suppress(OSError), socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(here)


_PLACES: dict[str, Callable[[Path], None]] = {
    "device": lambda path: path.symlink_to("/dev/zero"),
    "fifo": _fifo,
    "folder": lambda path: path.mkdir(),
    "gone": lambda path: None,
    "loop": lambda path: path.symlink_to(path.name),
    "nowhere": lambda path: path.symlink_to("no/such/file"),
    "socket": _socket,
    "strange": lambda path: path.symlink_to("/etc/passwd"),
}


def _put(path: Path, kind: str) -> None:
    """Something else than a file in its place."""
    path.unlink()
    _PLACES[kind](path)


def _say(path: Path, rng: Random) -> None:
    """What a file says, changed in the file's own language; bytes where it has none that is known."""
    say = next((say for suffix, say in _LANGUAGES.items() if path.name.endswith(suffix)), None)
    try:
        content = path.read_bytes()
        path.write_bytes(spoilt(content, rng) if say is None else say(content, rng))
    except Exception:  # it was spoilt before
        path.write_bytes(spoilt(path.read_bytes(), rng))


def _text(content: bytes, rng: Random) -> bytes:
    return odd_json(content.decode(), rng).encode()


def _lines(content: bytes, rng: Random) -> bytes:
    lines = content.decode().splitlines()
    number = rng.randrange(len(lines))
    lines[number] = odd_json(lines[number], rng)
    return "\n".join(lines).encode()


def odd_json(text: str, rng: Random) -> str:
    """JSON with a value that is odd, gone, new, or another's."""
    document = json.loads(text)
    places = list(_places(document))
    if not places or rng.random() < 0.05:
        return rng.choice(ODD)
    box, key = rng.choice(places)
    kind = rng.choice(("odd", "odd", "odd", "gone", "new", "swap", "twice"))
    if kind == "gone":
        del box[key]
    elif kind == "new" and isinstance(box, dict):
        box["new"] = "@"
    elif kind == "swap":
        other, name = rng.choice(places)
        box[key], other[name] = other[name], box[key]
    elif kind == "twice" and isinstance(box, list):
        box.append(box[key])
    else:
        box[key] = "@"
    with suppress(RecursionError, ValueError):  # a swap may have made a ring
        return json.dumps(document).replace('"@"', rng.choice(ODD))
    return text


def _places(document: Any) -> Any:
    """Every container with every key of it."""
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in list(items):
        yield document, key
        yield from _places(value)


def _toml(content: bytes, rng: Random) -> bytes:
    lines = content.decode().splitlines()
    numbers = [number for number, line in enumerate(lines) if re.match(r"\w+ *=", line)]
    number = rng.choice(numbers)
    value = rng.choice([odd for odd in ODD if odd != "null"] + ["nan", "inf", "1979-05-27", "[1, 'a']", "{a = 1}"])
    lines[number] = rng.choice((lines[number].partition("=")[0] + "= " + value, "", "new = 1", lines[number - 1]))
    return "\n".join(lines).encode()


def odd_tensor(tensor: torch.Tensor, rng: Random) -> torch.Tensor:
    """A tensor of another shape, type or content."""
    kinds = (torch.float16, torch.float64, torch.int32, torch.int64, torch.uint8, torch.bool, torch.bfloat16)
    values = (float("nan"), float("inf"), -1.0, 0.0, 1e38, -1e-3)
    kind = rng.choice(("type", "value", "all", "flat", "more", "fewer", "none", "turned", "one", "twice"))
    if kind == "type":
        return tensor.to(rng.choice(kinds))
    if kind in ("value", "all"):
        changed = tensor.clone()
        changed.view(-1)[: 1 if kind == "value" else None] = torch.tensor(rng.choice(values)).to(tensor.dtype)
        return changed
    changes = {
        "flat": lambda: tensor.flatten(),
        "more": lambda: tensor[None],
        "fewer": lambda: tensor[:-1],
        "none": lambda: tensor[:0],
        "turned": lambda: tensor.mT if tensor.dim() > 1 else tensor.flip(0),
        "one": lambda: torch.tensor(0.5),
        "twice": lambda: torch.cat([tensor, tensor]),
    }
    return changes[kind]().contiguous()


def _safetensors(content: bytes, rng: Random) -> bytes:
    tensors, metadata = safetensors.torch.load(content), _metadata(content)
    name = rng.choice(sorted(tensors))
    kind = rng.choice(("tensor", "tensor", "metadata", "metadata", "gone", "new"))
    if kind == "tensor":
        tensors[name] = odd_tensor(tensors[name], rng)
    elif kind == "gone":
        del tensors[name]
    elif kind == "new":
        tensors[rng.choice(("new", name + ".new", "../up", "\x1b[31m"))] = tensors[name].clone()
    elif metadata:
        key = rng.choice(sorted(metadata))
        metadata[key] = odd_json(metadata[key], rng) if metadata[key].startswith("{") else rng.choice(ODD)
    if rng.random() < 0.7:
        _sign(tensors, metadata)
    return safetensors.torch.save(tensors, metadata)


def _metadata(content: bytes) -> dict[str, str]:
    (length,) = struct.unpack("<Q", content[:8])
    return dict(json.loads(content[8 : 8 + length]).get("__metadata__", {}))


def _sign(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Make checksums right again, so that what comes after them is tried."""
    with suppress(Exception):
        if "checkpoint" in metadata:
            metadata["sha256"] = digest_of(tensors, json.dumps(json.loads(metadata["checkpoint"])))
        elif "kept" in metadata:
            facts = {name: metadata[name] for name in ("state", "kept", "more")}
            metadata["sha256"] = digest_of(tensors, json.dumps(facts))
        elif "datadistill-pool" in metadata:
            facts = parse_facts(PoolFacts, read_header(metadata, "datadistill-pool", 1), ["start"])
            metadata["sha256"] = Pool(facts, tensors).digest
        elif "seconds" in metadata:
            metadata["sha256"] = digest_of(tensors, metadata["seconds"])


def _pickle(content: bytes, rng: Random) -> bytes:
    whole = torch.load(io.BytesIO(content), weights_only=True)
    deep: Any = []
    for _ in range(500):
        deep = [deep]
    values: list[Any] = [
        *(None, "text", 3, -1, 0, 1e39, float("nan"), 10**30, "x" * 100_000, "\ud800", [], {}, (), deep, Evil(), True),
        *(torch.tensor(float("nan")), torch.ones(2, 2).to_sparse(), torch.ones(3, dtype=torch.complex64)),
        *(
            torch.zeros(1).expand(1 << 20, 1, 8, 8),
            torch.ones(2, requires_grad=True),
            torch.nn.Parameter(torch.ones(1)),
        ),
    ]

    def changed(item: Any, depth: int) -> Any:
        if isinstance(item, torch.Tensor) and rng.random() < 0.7:
            return odd_tensor(item.detach(), rng)
        if depth == 0 or not isinstance(item, list | tuple | dict) or not item or rng.random() < 0.2:
            return rng.choice(values)
        if isinstance(item, dict):
            key = rng.choice(sorted(item, key=str))
            return {**item, key: changed(item[key], depth - 1)}
        number, kind = rng.randrange(len(item)), type(item)
        return kind(changed(one, depth - 1) if index == number else one for index, one in enumerate(item))

    buffer = io.BytesIO()
    torch.save(changed(whole, 4), buffer, _use_new_zipfile_serialization=rng.random() < 0.7)
    return buffer.getvalue()


def odd_array(array: np.ndarray, rng: Random) -> np.ndarray:
    """An array of another shape, type or content."""
    kind = rng.choice(("u1", "i2", "i8", "f2", "f4", "f8", "b", "U2", "S2", "c8", "M8[s]", "O", ">f4", "f16", "evil"))
    how = rng.choice(("type", "value", "flat", "more", "none", "fewer", "one"))
    with np.errstate(all="ignore"):
        if kind == "evil":
            return np.array([Evil()] * 3, dtype=object)
        if how == "type" or array.dtype.kind not in "fiub":
            return array.astype(kind, copy=True)
        if how == "value":
            changed = array.copy()
            changed.flat[0] = np.array(rng.choice((np.nan, np.inf, -1, 1e30, 256, 0.5))).astype(array.dtype)
            return changed
    changes = {"flat": array.reshape(-1), "more": array[None], "none": array[:0], "fewer": array[:-1], "one": array[:1]}
    return changes[how]


def _npz(content: bytes, rng: Random) -> bytes:
    with np.load(io.BytesIO(content)) as file:
        arrays = {name: file[name] for name in file}
    name = rng.choice(sorted(arrays))
    if arrays[name].dtype.kind == "U" and arrays[name].ndim == 0:
        arrays[name] = np.array(odd_json(str(arrays[name]), rng))
    elif rng.random() < 0.2:
        arrays[rng.choice(("new", "x", "../up"))] = arrays.pop(name)
    else:
        arrays[name] = odd_array(arrays[name], rng)
    buffer = io.BytesIO()
    (np.savez_compressed if rng.random() < 0.5 else np.savez)(buffer, **arrays)
    return buffer.getvalue()


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _picture(content: bytes, rng: Random) -> bytes:
    """A picture of another kind, or a PNG whose header or chunks are hostile."""
    kind = rng.choice(("claims", "bomb", "text", "profile", "mode", "mode", "postscript", "script"))
    if kind == "mode":
        picture = Image.open(io.BytesIO(content)).convert(rng.choice(("1", "L", "LA", "P", "RGBA", "CMYK", "I", "F")))
        if rng.random() < 0.3:
            picture = picture.resize((rng.choice((1, 7, 300)), rng.choice((1, 8))))
        buffer = io.BytesIO()
        picture.save(buffer, rng.choice(("TIFF", "PNG" if picture.mode not in ("CMYK", "F") else "TIFF")))
        return buffer.getvalue()
    if kind == "postscript":
        return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(x) (w) file\nshowpage\n"
    if kind == "script":
        return b"#!/bin/sh\nmkdir ran\n"
    edge = {"bomb": 8000, "claims": rng.choice((0, 1, 2**31 - 1, 2**32 - 1, 60_000))}.get(kind, 8)
    depth, colour = rng.choice(((8, 0), (8, 2), (16, 2), (16, 0), (1, 0), (8, 3), (3, 9)))
    header = struct.pack(">IIBBBBB", edge, edge, depth, colour, 0, 0, rng.choice((0, 1)))
    large = zlib.compress(bytes(1 << 27)) if kind in ("text", "profile", "bomb") else zlib.compress(bytes(300))
    extra = {"text": _chunk(b"zTXt", b"a\0\0" + large), "profile": _chunk(b"iCCP", b"a\0\0" + large)}.get(kind, b"")
    image = _chunk(b"IDAT", large if kind == "bomb" else zlib.compress(bytes(300)))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + extra + image + _chunk(b"IEND", b"")


_LANGUAGES: dict[str, Callable[[bytes, Random], bytes]] = {
    ".json": _text,
    ".jsonl": _lines,
    ".toml": _toml,
    ".safetensors": _safetensors,
    ".pt": _pickle,
    ".pth": _pickle,
    ".npz": _npz,
    ".png": _picture,
    ".jpg": _picture,
    ".gif": _picture,
}
"""By the end of a file's name."""
