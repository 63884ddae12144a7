"""A bar on stderr for what takes long: on a terminal alone, after two seconds, and gone when it is done."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

DELAY = 2.0  # seconds; what is done by then needs no bar

_is_open = threading.Lock()  # two bars would overwrite each other


class ProgressBar:
    """Where something long says how far it is. Called with what is done, and of how much.

    Args:
        progress: Of rich; None shows nothing.
        task: Of it.
    """

    def __init__(self, progress: Progress | None = None, task: TaskID | None = None) -> None:
        self._progress, self._task = progress, task

    def __call__(self, done: int, total: int) -> None:
        """Say how far it is.

        Args:
            done: So many parts.
            total: Of so many.
        """
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, total=total)

    def rename(self, text: str) -> None:
        """Say what is done now."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=text)


@contextmanager
def progress_bar(text: str, *, shown: bool = True) -> Iterator[ProgressBar]:
    """Show a bar while something is done. Inside of another one it shows nothing.

    Args:
        text: What is done, in a few words.
        shown: Whether bars are wanted at all.

    Yields:
        What to call as it goes on; until then the bar shows that it does.
    """
    if not shown or not sys.stderr.isatty() or not _is_open.acquire(blocking=False):
        yield ProgressBar()
        return
    try:
        with _delayed(text) as bar:
            yield bar
    finally:
        _is_open.release()


@contextmanager
def _delayed(text: str) -> Iterator[ProgressBar]:
    from rich.console import Console
    from rich.progress import Progress

    progress = Progress(console=Console(file=sys.stderr), transient=True)
    bar = ProgressBar(progress, progress.add_task(text, total=None))
    # A single step may take long, so the bar does not wait for the next one.
    timer = threading.Timer(DELAY, progress.start)
    timer.daemon = True
    timer.start()
    try:
        yield bar
    finally:
        timer.cancel()
        timer.join()
        if progress.live.is_started:
            progress.stop()
