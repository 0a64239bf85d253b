"""Where the results of a command go: text and no markup, whatever brackets a name has."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

PIPE_WIDTH = 10_000  # a pipe has no width: nothing is cut or folded


def console() -> "Console":
    """Where results go. What it prints is text and no markup, whatever brackets a name has."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else PIPE_WIDTH
    return Console(width=width, markup=False, emoji=False)


def folded(table: "Table") -> "Table":
    """A table of which a terminal folds what is too long for it, and cuts nothing."""
    for column in table.columns:
        column.overflow = "fold"
    return table
