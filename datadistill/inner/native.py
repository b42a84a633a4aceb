"""Fast layers on a CPU for small networks and small batches: built once from `cpp/`, then loaded.

Without a C++ compiler, or with `DATADISTILL_NATIVE=0` in the environment, PyTorch's own operations do the same work.
"""

import hashlib
import itertools
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datadistill.models.alexcifarnet import LocalResponseNorm

FLAGS = ("-O3", "-march=native", "-std=c++20", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math")


@cache
def build() -> str:
    """Build the operations, unless they lie in the cache, and load them.

    Returns:
        Nothing, or why they cannot be had, in a few words.
    """
    try:
        compiler, target = _place()
        if not _is_whole(target):
            _compile(compiler, target)
        torch.ops.load_library(str(target))  # type: ignore[no-untyped-call]
    except _CannotBeHad as reason:
        return str(reason)
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or "").strip().splitlines() or ["no reason given"]
        return f"the C++ compiler failed: {next((line for line in lines if 'error' in line), lines[-1])}"
    except (OSError, RuntimeError) as error:
        return f"they could not be built or loaded: {' '.join(str(error).split())}"
    return ""


def must_build() -> bool:
    """Whether `build` would take its quarter of a minute."""
    try:
        return not _is_whole(_place()[1])
    except (_CannotBeHad, OSError, RuntimeError):
        return False


def ready() -> bool:
    """Whether the operations can be used without waiting for a compiler."""
    return not must_build() and not build()


class _CannotBeHad(Exception):
    """Why the operations cannot be built here."""


@cache
def _place() -> tuple[str, Path]:
    """The compiler, and where its library lies: under a name for everything that it depends on."""
    if os.environ.get("DATADISTILL_NATIVE", "1") == "0":
        raise _CannotBeHad("DATADISTILL_NATIVE is 0")
    if not re.search(r"\bavx512f\b", _processor()):
        raise _CannotBeHad("they are known to be faster with AVX-512 alone")
    compilers = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    compiler = next((path for name in compilers if name and (path := shutil.which(name))), None)
    if sys.platform not in ("linux", "darwin") or compiler is None:
        raise _CannotBeHad("there is no C++ compiler")
    version = subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout
    names = (*_flags(compiler), str(torch.__version__), _processor())
    facts = [*_sources().values(), version, *(name.encode() for name in names)]
    digest = hashlib.blake2b(b"\0".join(facts), digest_size=8).hexdigest()
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return compiler, Path(root) / "datadistill" / f"native-{digest}.so"


@cache
def _flags(compiler: str) -> tuple[str, ...]:
    """With threads where the compiler's are PyTorch's: two pools of threads would fight for the cores."""
    macros = subprocess.run([compiler, "-dM", "-E", "-x", "c++", os.devnull], capture_output=True, check=False).stdout
    return FLAGS if b"__clang__" in macros or sys.platform != "linux" else (*FLAGS, "-fopenmp")


@cache
def _sources() -> dict[str, bytes]:
    """The files to compile, by name and in order; the one that is not a header includes the others."""
    folder = resources.files("datadistill") / "inner" / "cpp"
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir(), key=lambda file: file.name)}


def _processor() -> str:
    """The processor, as far as machine code depends on it: a home folder may be shared between machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.platform() + platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


def _sum_of(target: Path) -> Path:
    return target.with_suffix(".sum")


def _is_whole(target: Path) -> bool:
    """Whether the library is what the compiler wrote: loading half a library ends the process."""
    if not (target.exists() and _sum_of(target).exists()):
        return False
    if hasattr(os, "getuid") and target.stat().st_uid != os.getuid():
        raise _CannotBeHad(f"{target} belongs to somebody else")
    return _sum_of(target).read_text() == hashlib.blake2b(target.read_bytes()).hexdigest()


def _compile(compiler: str, target: Path) -> None:
    from torch.utils.cpp_extension import include_paths, library_paths

    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        source, built, written = (Path(folder) / name for name in ("operations.cpp", "native.so", "native.sum"))
        for name, content in _sources().items():
            (Path(folder) / name).write_bytes(content)
        headers = [word for path in include_paths() for word in ("-isystem", path)]
        libraries = [word for path in library_paths() for word in (f"-L{path}", f"-Wl,-rpath,{path}")]
        names = ("-ltorch", "-ltorch_cpu", "-lc10")
        command = [compiler, *_flags(compiler), *headers, str(source), *libraries, *names, "-o", str(built)]
        subprocess.run(command, capture_output=True, text=True, check=True)
        written.write_text(hashlib.blake2b(built.read_bytes()).hexdigest())
        # Whoever builds at the same time may write other bytes; a sum that does not fit is built again, later.
        os.replace(built, target)
        os.replace(written, _sum_of(target))


def fitted(module: nn.Module) -> nn.Module:
    """The same module, its layers changed in place to call the operations here where they apply."""
    for layer in module.modules():
        other = _LAYERS.get(type(layer))
        if other is not None:
            layer.__class__ = other
    for sequence in module.modules():
        if isinstance(sequence, _Sequential):
            for layer, following in itertools.pairwise(sequence):
                if isinstance(layer, _Conv2d) and isinstance(following, _GroupNorm):
                    layer.channels_last = True
    return module


class _Conv2d(nn.Conv2d):
    channels_last = False
    """Whether the answer is to have channels as its innermost dimension in memory, as normalisation reads it."""

    def forward(self, input: Tensor) -> Tensor:
        if (
            isinstance(self.padding, str)
            or self.padding_mode != "zeros"
            or self.stride != (1, 1)
            or self.dilation != (1, 1)
            or self.groups != 1
            or self.kernel_size == (1, 1)
            or not _is_plain(input)
            or input.shape[1] != self.in_channels
            or self.weight.dtype != torch.float32
            or any(n + 2 * p < k for n, p, k in zip(input.shape[2:], self.padding, self.kernel_size, strict=True))
        ):
            return super().forward(input)
        return torch.ops.datadistill.conv2d.default(  # type: ignore[no-any-return]
            input, self.weight, self.bias, *self.padding, self.channels_last
        )


class _Linear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        if (
            not _is_plain(input, 2)
            or input.shape[1] != self.in_features
            or self.weight.dtype != torch.float32
            or self.weight.numel() == 0
            or torch.is_autocast_enabled("cpu")
        ):
            return super().forward(input)
        return torch.ops.datadistill.linear.default(input, self.weight, self.bias)  # type: ignore[no-any-return]


class _MaxPool2d(nn.MaxPool2d):
    def forward(self, input: Tensor) -> Any:
        kernel, stride, padding = _pair(self.kernel_size), _pair(self.stride), _pair(self.padding)
        if (
            not _is_plain(input)
            or any(one != other for one, other in (kernel, stride, padding))
            or _pair(self.dilation) != (1, 1)
            or self.ceil_mode
            or self.return_indices
            or 2 * padding[0] > kernel[0]
            or any(n + 2 * padding[0] < kernel[0] for n in input.shape[2:])
        ):
            return super().forward(input)
        return torch.ops.datadistill.max_pool2d.default(input, kernel[0], stride[0], padding[0])


class _LocalResponseNorm(LocalResponseNorm):
    def forward(self, images: Tensor) -> Tensor:
        if not _is_plain(images) or self.beta != 0.75 or self.alpha < 0:
            return super().forward(images)
        neighbours = self.n // 2, (self.n - 1) // 2
        return torch.ops.datadistill.local_response_norm.default(images, self.alpha / self.n, *neighbours)  # type: ignore[no-any-return]


class _GroupNorm(nn.GroupNorm):
    def fits(self, input: Tensor) -> bool:
        """Whether the operation can take the place of PyTorch's."""
        return (
            (_is_plain(input) or _is_plain(input, dtype=torch.float64))
            and input.shape[1] == self.num_channels
            and (not self.affine or self.weight.dtype == input.dtype)
            and not torch.is_autocast_enabled("cpu")
        )

    def fused(self, input: Tensor, relu: bool, pool: bool) -> Tensor:
        """This layer, and after it ReLU and 2x2 average pooling if asked for."""
        return torch.ops.datadistill.group_norm.default(  # type: ignore[no-any-return]
            input, self.weight, self.bias, self.num_groups, self.eps, relu, pool
        )

    def forward(self, input: Tensor) -> Tensor:
        return self.fused(input, False, False) if self.fits(input) else super().forward(input)


class _Sequential(nn.Sequential):
    """Layers in turn, but normalisation, ReLU and 2x2 average pooling as one operation.

    Not where somebody watches what functions are called, as `kinks.widened` does to ReLU, or hooks into a layer.
    """

    def forward(self, input: Any) -> Any:
        layers: list[Any] = list(self)
        while layers:
            norm, count = layers[0], 1
            if isinstance(norm, _GroupNorm) and not torch._C._is_torch_function_mode_enabled():
                count = 1 + _followers(layers[1:3], input)
            if count > 1 and norm.fits(input) and not any(map(_has_hooks, layers[:count])):
                input = norm.fused(input, True, count == 3)
            else:
                count, input = 1, norm(input)
            del layers[:count]
        return input


def _followers(layers: list[nn.Module], images: Any) -> int:
    """How many of these layers normalisation takes along: none, ReLU, or ReLU and pooling."""
    if not layers or type(layers[0]) is not nn.ReLU:
        return 0
    return 1 + (len(layers) > 1 and _halves(layers[1], images))


def _halves(layer: nn.Module, images: Tensor) -> bool:
    """Whether a layer takes the mean of every 2x2 pixels, and none are left over."""
    return (
        type(layer) is nn.AvgPool2d
        and _pair(layer.kernel_size) == _pair(layer.stride) == (2, 2)
        and _pair(layer.padding) == (0, 0)
        and layer.divisor_override in (None, 4)
        and all(n % 2 == 0 for n in images.shape[2:])
    )


def _has_hooks(layer: nn.Module) -> bool:
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(layer, name) for name in names)


_LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: _Conv2d,
    nn.GroupNorm: _GroupNorm,
    nn.Linear: _Linear,
    nn.MaxPool2d: _MaxPool2d,
    nn.Sequential: _Sequential,
    LocalResponseNorm: _LocalResponseNorm,
}


def _is_plain(images: Tensor, dimensions: int = 4, dtype: torch.dtype = torch.float32) -> bool:
    """Float32, or another type, in a CPU's memory."""
    return images.dtype == dtype and images.is_cpu and images.dim() == dimensions and images.numel() > 0


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return (value[0], value[0]) if len(value) == 1 else (value[0], value[1])
