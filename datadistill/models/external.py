"""Networks from outside the package: a user's own code, by module or by file, and those of timm and torchvision.

A network that is named `package.module:function` or `net.py:function` is code. It is loaded only where the user names
it; a name that was read from a file never loads anything (`models.gate`).
"""

import hashlib
import importlib
import random
import re
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from datadistill.utils.errors import RequestError, brief, how_to_install, unknown_name

ModelFactory = Callable[..., nn.Module]

LIBRARIES = ("timm", "torchvision")
"""Libraries whose networks have names here, as in `timm:resnet18`; both come with the extra `vision`."""


def is_code(name: str) -> bool:
    """Whether a network's name says where its code lies."""
    return ":" in name and name.partition(":")[0].lower() not in LIBRARIES


def canonical(name: str) -> str:
    """A network's name as results hold it; a file is named from the present folder where it lies in it."""
    source, colon, function = name.rpartition(":")
    if not is_code(name):
        return name.lower()
    if not source.endswith(".py"):
        return name
    path = Path(source).resolve()
    here = Path.cwd()
    return f"{(path.relative_to(here) if path.is_relative_to(here) else path).as_posix()}{colon}{function}"


def same_code(one: str, other: str) -> bool:
    """Whether two names of code are of one function; where a file lies does not count, nor whether it is named as one.

    `net.py:f`, `/elsewhere/net.py:f`, `net:f` and `package.net:f` are one, but `a.net:f` and `b.net:f` are two modules.
    """
    (source, _, function), (other_source, _, other_function) = one.rpartition(":"), other.rpartition(":")
    if function != other_function:
        return False
    if not source.endswith(".py") and not other_source.endswith(".py"):
        return source == other_source
    return _stem(source) == _stem(other_source)


def _stem(source: str) -> str:
    """The name of a module without its package, or of a file without its folder."""
    return Path(source).stem if source.endswith(".py") else source.rpartition(".")[2]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """While entered, whatever draws from global random numbers draws the same; they are given back as they were."""
    ours, numpys = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(ours)
            np.random.set_state(numpys)  # noqa: NPY002


def load_factory(name: str) -> Any:
    """What `package.module:function`, `net.py:function`, `timm:NAME` or `torchvision:NAME` stands for.

    Raises:
        RequestError: there is no such thing, or loading it failed.
    """
    source, _, function = name.rpartition(":")
    if not is_code(name):
        return _from_library(*name.lower().split(":", 1))
    if not re.fullmatch(r"[^\W\d]\w*", function):
        raise RequestError(f"'{name}' names no function: write package.module:function or net.py:function")
    module = _from_file(Path(source)) if source.endswith(".py") else _from_module(source)
    if not hasattr(module, function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise unknown_name(f"function of {source}", function, known)
    return getattr(module, function)


def _from_file(path: Path) -> types.ModuleType:
    try:
        source = path.read_bytes()
    except OSError as error:
        raise RequestError(
            f"there is no file {path} to take the network from: give its place with --model PATH.py:FUNCTION"
        ) from error
    digest = hashlib.sha256(str(path.resolve()).encode() + source).hexdigest()
    name = f"{path.stem}_{digest[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    module = types.ModuleType(name)
    module.__file__ = str(path)
    # Classes look for their module there, for instance when a network is copied.
    sys.modules[name] = module
    try:
        with _importing(str(path), path.resolve().parent):
            exec(compile(source, str(path), "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _from_module(name: str) -> types.ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise RequestError(f"'{name}' is no module: write package.module:function or net.py:function")
    with _importing(name, Path.cwd()):
        return importlib.import_module(name)


@contextmanager
def _importing(what: str, folder: Path) -> Iterator[None]:
    """While entered, modules in a folder can be imported; whatever goes wrong is one sentence."""
    sys.path.append(str(folder))
    try:
        with seeded(0):  # what a module draws when it is loaded is the same for every process
            yield
    except (Exception, SystemExit) as error:  # whatever a user's code raises
        raise RequestError(f"{what} could not be loaded: {brief(error)}") from error
    finally:
        sys.path.remove(str(folder))


def _from_library(library: str, name: str) -> ModelFactory:
    if not re.fullmatch(r"[a-z]\w*(\.\w+)?", name):
        raise RequestError(f"'{name}' is no network of {library}: write for instance {library}:resnet18")
    try:
        module = importlib.import_module("timm" if library == "timm" else "torchvision.models")
    except Exception as error:  # a wheel that does not fit PyTorch fails in its own ways
        raise RequestError(
            f"{library} cannot be imported here ({brief(error)}): {how_to_install(library)} gets it, in the version "
            "that belongs to your PyTorch"
        ) from error

    def build(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
        timms = library == "timm"
        make = partial(module.create_model, pretrained=False, in_chans=in_channels) if timms else module.get_model
        given = {"num_classes": num_classes} | ({} if timms else {"weights": None})
        size = "img_size" if timms else "image_size"
        try:
            with warnings.catch_warnings(action="ignore"):  # of initial weights, which are drawn anew here
                try:
                    network = make(name, **given, **{size: image_size})
                except TypeError as error:
                    if size not in str(error):
                        raise
                    network = make(name, **given)  # convolutional networks take any size, and none as an argument
        except Exception as error:  # an unknown name, in the words of the library
            raise RequestError(f"{library} makes no network {name}: {brief(error)}") from error
        assert isinstance(network, nn.Module)
        return network

    return build
