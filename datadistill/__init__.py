"""Dataset distillation: a labelled dataset becomes a handful of synthetic images that train a network.

import datadistill as dd

real = dd.load("mnist")
run = dd.distill(real, dd.methods.DD(steps=1, epochs=3), budget="5m")
score = dd.evaluate(run.distilled, real)
run.distilled.save("ten-images.safetensors")
"""

__version__ = "0.2.0"

from importlib import import_module
from typing import TYPE_CHECKING, Any

# It sets what PyTorch reads when it is loaded, which all else does.
from datadistill.utils import before_torch  # noqa: F401

if TYPE_CHECKING:
    from datadistill.api import *  # noqa: F403
    from datadistill.api import __all__ as __all__
else:

    def __getattr__(name: str) -> Any:
        """What the package offers, loaded when it is first asked for: the program answers Ctrl-C before that."""
        api = import_module("datadistill.api")
        if name not in api.__all__:
            raise AttributeError(f"module 'datadistill' has no attribute '{name}'")
        return getattr(api, name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *import_module("datadistill.api").__all__})
