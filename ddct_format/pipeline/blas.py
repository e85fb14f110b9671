"""Matrix products on one thread each: tensors and bands are what is worked on in parallel.

Threads inside a product of small matrices mostly wait for one another, and OpenBLAS lets them wait busily. How many
there are is a setting of the process, so it is put back when nobody packs any more.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

__all__ = ["one_blas_thread"]

_lock = threading.Lock()
_limit = ExitStack()
_users = 0


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """A block in which numpy's products take one thread each, in all of the process.

    Blocks may overlap, in any number of threads: the first to begin sets the limit, the last to end lifts it. Torch's
    own arithmetic does not go through numpy's library and keeps its threads.
    """
    from threadpoolctl import threadpool_limits  # other commands than packing start without it

    global _users
    with _lock:
        if not _users:
            _limit.enter_context(threadpool_limits(1, user_api="blas"))
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                _limit.close()
