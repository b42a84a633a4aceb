"""Counter of live tensor bytes."""

import threading
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeVar

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

Answer = TypeVar("Answer")


class LiveBytes:
    """While entered, counts the bytes of tensors that PyTorch's operations make, until they die.

    Threads that `map_on_cores` starts are counted too. What operations use inside themselves is not seen, nor are
    tensors that were there before. Counting slows every operation down.

    Attributes:
        live: bytes now.
        peak: the most there were at once.
    """

    def __init__(self) -> None:
        self.live = self.peak = 0
        # A tensor may die, and so be subtracted, in the middle of an addition by the same thread.
        self._lock = threading.RLock()
        self._known = WeakIdKeyDictionary()
        self._entered: list[tuple[Any, Any]] = []

    def __enter__(self) -> "LiveBytes":
        mode = _Mode(self)
        mode.__enter__()  # type: ignore[no-untyped-call]
        self._entered.append((mode, _counting.set(self)))
        return self

    def __exit__(self, *error: Any) -> None:
        mode, token = self._entered.pop()
        _counting.reset(token)
        mode.__exit__(*error)

    def add(self, storage: Any) -> None:
        """Count a storage, once."""
        with self._lock:
            if storage in self._known:
                return
            count = storage.nbytes()
            self._known[storage] = count
            self.live += count
            self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._remove, count)

    def _remove(self, count: int) -> None:
        with self._lock:
            self.live -= count


_counting: ContextVar[LiveBytes | None] = ContextVar("counting", default=None)


class _Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, counter: LiveBytes) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._counter = counter

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Otherwise PyTorch loads its compiler at the first call, which takes longer than to plan a run.
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and id(leaf.untyped_storage()) not in given:
                self._counter.add(leaf.untyped_storage())
        return result


def counted(function: Callable[[Any], Answer]) -> Callable[[Any], Answer]:
    """Wrapper that counts live bytes in worker threads as well."""
    counter = _counting.get()
    if counter is None:
        return function

    def watched(item: Any) -> Answer:
        with _Mode(counter):
            return function(item)

    return watched
