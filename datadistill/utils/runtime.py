"""The machine: device, memory and versions. Nothing here knows about datasets or networks."""

import ctypes
import hashlib
import io
import platform
import sys

import numpy as np
import torch

from datadistill.utils.errors import RequestError, unknown_name

if sys.platform != "win32":
    import resource

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Tell glibc to keep the large blocks that PyTorch frees instead of returning them.

    By default every large tensor is mapped, faulted in page by page, and unmapped again, which costs
    more than the arithmetic of a small network. The setting holds for the whole process, so only
    programs call it, before their first large tensor: our command line does. The process keeps more
    memory at its peak.

    Returns:
        Whether the setting was made (glibc on Linux) or there was nothing to set.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL("libc.so.6")
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 512 << 20))
    return all(libc.mallopt(option, value) == 1 for option, value in settings)


def print_anything() -> None:
    """Let standard output spell what its encoding lacks as escape sequences instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def resolve_device(name: str | torch.device) -> torch.device:
    """The device for `auto`, `cpu`, `cuda`, `cuda:1` or `mps`; `auto` takes CUDA where there is one, else the CPU.

    A device with a number becomes the current one, because CUDA graphs are captured there.

    Raises:
        RequestError: the name is unknown or the device is not available.
    """
    if not isinstance(name, str | torch.device):
        raise RequestError(f"device is {name!r:.60}, but must be a name such as cpu or cuda:1")
    available = {
        "auto": True,
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    given = str(name)
    name, colon, number = given.lower().partition(":")
    if name not in available:
        raise unknown_name("device", given, available)
    if not available[name]:
        raise RequestError(f"device '{name}' is not available here: use --device cpu")
    if colon and name == "cuda":
        there = torch.cuda.device_count()
        if not number.isascii() or not number.isdigit() or int(number) >= there:
            raise RequestError(f"there is no device 'cuda:{number}': the last one here is cuda:{there - 1}")
        torch.cuda.set_device(int(number))
        return torch.device("cuda", int(number))
    if colon and number != "0":
        raise RequestError(f"there is no device '{name}:{number}': write {name}")
    if name == "auto":
        name = "cuda" if available["cuda"] else "cpu"
    return torch.device(name)


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: of the device's allocator on CUDA, else of the process (0 on Windows: unknown)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is what PyTorch or Python raise when memory runs out."""
    words = ["allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED"]
    words += ["bad_alloc", "could not create a primitive", "could not create a memory"]  # C++ and oneDNN
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


def versions() -> dict[str, str]:
    """The versions a result depends on."""
    from datadistill import __version__

    return {
        "datadistill": __version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def stream(seed: int, *path: str | int) -> torch.Generator:
    """A CPU generator for one purpose, such as `stream(seed, "batch", 17)`.

    Every draw's generator is made afresh from the seed and the purpose, so no generator state has to be
    stored, a resumed run draws what an uninterrupted one draws, and adding a draw shifts no other. Two purposes share a
    generator with probability 2^-32 (PyTorch's CPU generator takes 32 bits of its seed).
    """
    text = "/".join(str(part) for part in (seed, *path))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
