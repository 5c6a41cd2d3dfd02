"""What a terminal shows while something takes longer than two seconds; nothing where there is none.

counting    a bar: so many of so many
waiting     a spinner with the seconds so far, for work that cannot be counted
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as Left


def log_console() -> Console:
    """The console that rsbdali's log is written to, so that its lines come out above a bar; else standard error."""
    handlers = logging.getLogger("rsbdali").handlers
    found = next((handler.console for handler in handlers if isinstance(handler, RichHandler)), None)
    return found or Console(stderr=True)


@contextmanager
def counting(what: str, console: Console | None = None) -> Iterator[Callable[[int, int], None]]:
    """Gives a function (done, in all) that moves the bar."""
    console = console or log_console()
    if not console.is_terminal:  # a bar that is disabled still ends with an empty line before rich 14.1
        yield lambda _done, _total: None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), Left())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)

        def advance(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield advance


@contextmanager
def waiting(what: str, console: Console | None = None) -> Iterator[None]:
    """Shows that work goes on, and for how long."""
    console = console or log_console()
    if not console.is_terminal:
        yield
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        bar.add_task(what, total=None)
        yield
