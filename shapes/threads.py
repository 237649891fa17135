"""One thread for the small matrices of matching.

A match is thousands of products of matrices of some hundred rows. A second thread makes them hardly
faster (8.8 seconds instead of 9.4 a pair), but where other programs hold the cores, threads that
wait for each other without sleeping take many times the processor time: 76 seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits

__all__ = ["one_thread"]


@contextmanager
def one_thread() -> Iterator[None]:
    """BLAS and OpenMP with one thread, and as they were afterwards; also a decorator."""
    with threadpool_limits(limits=1):
        yield
