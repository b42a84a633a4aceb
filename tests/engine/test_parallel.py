import threading

import torch

from datadistill.engine.parallel import map_on_cores

CPU = torch.device("cpu")


def test_in_order_on_several_threads_and_the_setting_is_given_back() -> None:
    torch.set_num_threads(2)
    seen = set()

    def square(x: int) -> tuple[int, int]:
        seen.add(threading.get_ident())
        return x * x, torch.get_num_threads()

    assert map_on_cores(square, range(8), CPU) == [(x * x, 1) for x in range(8)]
    assert threading.get_ident() not in seen
    assert torch.get_num_threads() == 2


def test_too_few_items_are_computed_here() -> None:
    torch.set_num_threads(2)
    assert map_on_cores(lambda x: threading.get_ident(), [1], CPU) == [threading.get_ident()]


def test_an_error_is_raised_and_the_setting_given_back() -> None:
    torch.set_num_threads(2)
    try:
        map_on_cores(lambda x: 1 // x, [1, 0, 2], CPU)
    except ZeroDivisionError:
        assert torch.get_num_threads() == 2
    else:
        raise AssertionError("no error")
