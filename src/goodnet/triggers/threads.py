"""Work on a CPU, one thread a core, each with single-threaded kernels.

No barrier stands after every kernel, so a busy machine costs its share and no more: two threads a kernel, beside one
other busy process on two cores, were measured 20 times slower than alone. What a thread computes does not hang on the
others, so results do not depend on how many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

_T = TypeVar("_T")
_R = TypeVar("_R")


def in_threads(work: Callable[[_T], _R], items: Sequence[_T], *, stop: Callable[[], None] = lambda: None) -> list[_R]:
    """`work` of each item, in the order of items, in as many threads as torch uses.

    `stop` is called when one of them, or the user, has raised, so that the others can end early; then it is raised.
    """
    threads = torch.get_num_threads()
    if len(items) == 0:
        return []
    with ThreadPoolExecutor(min(threads, len(items)), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            return list(pool.map(work, items))
        except BaseException:
            stop()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        finally:
            torch.set_num_threads(threads)
