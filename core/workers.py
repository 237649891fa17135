"""Batches on a CPU: one a core, each computed by a single thread.

That is faster for small tensors than several threads on one batch, and it keeps ATen from cutting
tensors at places that depend on the number of cores, after which the last bits of a sample would
differ from machine to machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

__all__ = ["each_on_one_thread"]

In = TypeVar("In")
Out = TypeVar("Out")


def each_on_one_thread(
    compute: Callable[[In], Out], batches: Iterable[In], device: torch.device
) -> Iterator[Out]:
    """``compute`` over batches, in order; on a GPU simply one after another."""
    if device.type != "cpu":
        yield from map(compute, batches)
        return
    cores = torch.get_num_threads()
    pool = ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield from pool.map(compute, batches)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(cores)
