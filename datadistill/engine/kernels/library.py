"""Our C++ operations: compiled once by the compiler that is there, measured once against PyTorch's, then loaded.

Without a compiler, or with `DATADISTILL_NATIVE=0` in the environment, PyTorch's own operations do the same work.
"""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from datadistill.engine.kernels.choice import Measured, measure
from datadistill.utils.errors import reason_of
from datadistill.utils.files import who_else

_FLAGS = ("-O3", "-mtune=native", "-std=c++20", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math")
_HEADERS = ("-DAT_PER_OPERATOR_HEADERS",)  # only the declarations that are used: saves a tenth of the compiler's time
_LIBRARY, _FACTS = "operations.so", "measured.json"
_ISA_FLAGS = {
    "AVX2": ("-mavx2", "-mfma", "-mf16c"),
    "AVX512": ("-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mavx512cd", "-mfma", "-mf16c"),
}


@cache
def build() -> str:
    """Build and measure the operations, unless that has been done on this machine, and load them.

    Returns:
        Nothing, or why they cannot be had, in a few words.
    """
    try:
        compiler, folder = _place()
        if _is_whole(folder):
            _load(folder)
        else:
            _make(compiler, folder)
    except _CannotBeHad as reason:
        return str(reason)
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or "").strip().splitlines() or ["no reason given"]
        return f"the C++ compiler failed: {next((line for line in lines if 'error' in line), lines[-1])}"
    except (OSError, RuntimeError, ValueError) as error:
        return f"they could not be built or loaded: {reason_of(error)}"
    return ""


def must_build() -> bool:
    """Whether `build` would take its half a minute."""
    if build.cache_info().currsize:  # in this process it has given its answer
        return False
    try:
        return not _is_whole(_place()[1])
    except (_CannotBeHad, OSError, RuntimeError):
        return False


def ready() -> bool:
    """Whether the operations can be used without waiting for a compiler."""
    return not must_build() and not build()


def prepare(say: Callable[[str], None]) -> None:
    """Build the operations if need be, and say so: a sentence for the wait, and one where they cannot be had."""
    if must_build():
        say("building operations for this processor and measuring them, once; this takes about half a minute.")
    trouble = build()
    if trouble and not is_switched_off():
        say(f"going on with PyTorch's own operations: {trouble}.")


def is_switched_off() -> bool:
    """Whether somebody asked for PyTorch's own operations by `DATADISTILL_NATIVE=0`."""
    return os.environ.get("DATADISTILL_NATIVE", "1") == "0"


def instruction_set() -> str:
    """The instructions that PyTorch's operations and ours use, such as `AVX2`."""
    name = torch.backends.cpu.get_cpu_capability()
    return "NEON" if name == "DEFAULT" and platform.machine() in ("aarch64", "arm64") else name


def measured() -> dict[str, Measured]:
    """What was measured of each operation when the library was built; nothing while there is none."""
    return _measured() if ready() else {}


@cache
def _measured() -> dict[str, Measured]:
    facts = json.loads((_place()[1] / _FACTS).read_text())
    return {name: Measured(**values) for name, values in facts["operations"].items()}


class _CannotBeHad(Exception):
    """Why the operations cannot be built here."""


@cache
def _place() -> tuple[str, Path]:
    """The compiler, and the folder of its library: under a name for everything that it depends on."""
    if is_switched_off():
        raise _CannotBeHad("DATADISTILL_NATIVE is 0")
    compilers = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    compiler = next((path for name in compilers if name and (path := shutil.which(name))), None)
    if sys.platform not in ("linux", "darwin") or compiler is None:
        raise _CannotBeHad("there is no C++ compiler")
    version = subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout
    names = (*_flags(compiler), str(torch.__version__), _processor())
    folder = resources.files("datadistill.engine.kernels")
    python = [(folder / name).read_bytes() for name in ("choice.py", "layers.py")]  # what was measured, and how
    facts = [*_sources().values(), *python, version, *(name.encode() for name in names)]
    digest = hashlib.blake2b(b"\0".join(facts), digest_size=8).hexdigest()
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return compiler, Path(root) / "datadistill" / f"native-{digest}"


@cache
def _flags(compiler: str) -> tuple[str, ...]:
    """With threads where the compiler's are PyTorch's: two pools of threads would fight for the cores."""
    isa = instruction_set()
    vectors = (*_ISA_FLAGS.get(isa, ()), f"-DCPU_CAPABILITY={isa}", f"-DCPU_CAPABILITY_{isa}")
    macros = subprocess.run([compiler, "-dM", "-E", "-x", "c++", os.devnull], capture_output=True, check=False).stdout
    threads = () if b"__clang__" in macros or sys.platform != "linux" else ("-fopenmp",)
    return (*_FLAGS, *_HEADERS, *vectors, *threads)


@cache
def _sources() -> dict[str, bytes]:
    """The files to compile, by name and in order; the one that is not a header includes the others."""
    folder = resources.files("datadistill.engine.kernels") / "csrc"
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir(), key=lambda file: file.name)}


def _processor() -> str:
    """The processor, as far as machine code and speed depend on it: a home folder may be shared between machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.platform() + platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


def _is_whole(folder: Path) -> bool:
    """Whether the library is what the compiler wrote: loading half a library ends the process.

    Raises:
        _CannotBeHad: somebody else could have written it.
    """
    files = [folder / _LIBRARY, folder / _FACTS]
    links = (f"{path} is a link" for path in (folder, *files) if path.is_symlink())
    trouble = next(links, "") or next(filter(None, map(who_else, (folder, *files))), "")
    if trouble:
        raise _CannotBeHad(f"{trouble}, so that they are not loaded from there")
    try:
        return bool(json.loads((folder / _FACTS).read_text())["library"] == _digest(folder))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _digest(folder: Path) -> str:
    return hashlib.blake2b((folder / _LIBRARY).read_bytes()).hexdigest()


def _load(folder: Path) -> None:
    torch.ops.load_library(str(folder / _LIBRARY))  # type: ignore[no-untyped-call]


def _make(compiler: str, folder: Path) -> None:
    """Compile, load, measure, and keep: in a folder that nobody else may write to, which takes its place as a whole."""
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as place:
        made = Path(place)
        _compile(compiler, made)
        _load(made)
        document: dict[str, Any] = {"library": _digest(made), "instruction_set": instruction_set()}
        document["operations"] = {name: found._asdict() for name, found in measure().items()}
        (made / _FACTS).write_text(json.dumps(document, indent=2))
        for path in made.iterdir():  # whatever the umask is
            path.chmod(0o700 if path.name == _LIBRARY else 0o600)
        if not _is_whole(folder):  # else somebody else was faster: theirs is as good
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):
                made.rename(folder)


def _compile(compiler: str, folder: Path) -> None:
    from torch.utils.cpp_extension import include_paths, library_paths

    for name, content in _sources().items():
        (folder / name).write_bytes(content)
    headers = [word for path in include_paths() for word in ("-isystem", path)]
    libraries = [word for path in library_paths() for word in (f"-L{path}", f"-Wl,-rpath,{path}")]
    names = ("-ltorch", "-ltorch_cpu", "-lc10")
    command = [compiler, *_flags(compiler), *headers, str(folder / "operations.cpp"), *libraries, *names]
    subprocess.run([*command, "-o", str(folder / _LIBRARY)], capture_output=True, text=True, check=True)
