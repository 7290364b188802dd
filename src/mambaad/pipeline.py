"""Work done ahead by threads, handed over in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def ahead(
    function: Callable[[_Item], _Result],
    items: Iterable[_Item],
    *,
    workers: int,
    limit: int | Callable[[], int],
) -> Generator[_Result, None, None]:
    """``map(function, items)``, of which threads have the next results ready.

    Items are taken in the caller's thread, only as many as the limit allows. The first exception,
    in the order of the items, is raised. When the generator is closed, items not yet begun are
    given up and the threads have ended.

    Args:
        function: Called from several threads at once if there are several.
        items: May be endless.
        workers: Number of threads, at least 1.
        limit: How many items may be begun and not yet handed over, at least 1; a function is
            asked each time.
    """
    waiting: deque[Future[_Result]] = deque()
    pool = ThreadPoolExecutor(workers, "mambaad-ahead")
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            most = limit if isinstance(limit, int) else limit()
            # one out for one in, so that what is ready does not stop the threads
            if waiting[0].done():
                yield waiting.popleft().result()
            while len(waiting) >= most:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
