"""What a verb shows: one JSON document on stdout, or tables for people. No word of a customer steers a terminal."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from worker.store.ops import Pause

#: Wider than any table of ours: what is piped is never cut or wrapped.
_PIPED_WIDTH = 10_000


def present(document: object, as_json: bool, parts: Iterable[RenderableType], code: int = 0) -> int:
    """Show a value as JSON, or as these parts, which may be a generator; returns the exit code."""
    write(as_json_text(document) if as_json else rendered(parts))
    return code


def as_json_text(document: object) -> str:
    """The document in ASCII: the same bytes in every locale, and nothing that a terminal would obey."""
    import msgspec

    return json.dumps(msgspec.to_builtins(document), indent=2) + "\n"


def write(text: str) -> bool:
    """Write to stdout; whether anybody reads it. One who has seen enough is no error, and what was done stays done."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # What is left in the buffer would fail again when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def say(text: str) -> None:
    """One line to the person, on stderr."""
    try:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def rendered(parts: Iterable[RenderableType]) -> str:
    """Rich renderables as text, in colour only for a terminal."""
    from rich.console import Console

    terminal = sys.stdout.isatty()
    console = Console(
        file=io.StringIO(),
        force_terminal=terminal,
        width=None if terminal else _PIPED_WIDTH,
        highlight=False,
        markup=False,
        emoji=False,
    )
    for part in parts:
        console.print(part)
    file = console.file
    assert isinstance(file, io.StringIO)
    return "".join(f"{row.rstrip()}\n" for row in file.getvalue().splitlines())


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[str] = ()) -> Table:
    """A table of plain words; the columns named in `right` hold numbers."""
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for place, column in enumerate(columns):
        # The first names the row: it is copied, so it stays whole on a narrow terminal.
        made.add_column(column, justify="right" if column in right else "left", overflow="fold", no_wrap=place == 0)
    for row in rows:
        made.add_row(*(Text(cell(value)) for value in row))
    return made


def pause_words(pause: Pause) -> str:
    """What is paused, why, by whom and since when."""
    who = ", ".join(cell(one) for one in (pause.actor, pause.at) if one is not None)
    return f"{pause.scope} {pause.name}: {pause.reason or 'no reason given'}{f' ({who})' if who else ''}"


def facts(pairs: Iterable[tuple[str, object]]) -> Table:
    """Names and values, one a line; values of None are left out."""
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    made.add_column(style="bold")
    made.add_column(overflow="fold")
    for name, value in pairs:
        if value is not None:
            made.add_row(name, Text(cell(value)))
    return made


def cell(value: object) -> str:
    """A value as people read it: thousands apart, times in UTC, nothing for None, every control character visible."""
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:,.1f}"
        case datetime():
            return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
        case _:
            return visible(str(value))


def visible(text: str) -> str:
    """Text with every control, bidirectional and invisible character written out."""
    return "".join(sign if sign.isprintable() else _escaped(sign) for sign in text)


def verbatim(text: str) -> str:
    """A document as it is; on a terminal with its control characters written out."""
    if not sys.stdout.isatty():
        return text
    return "".join(sign if sign in "\n\t" else visible(sign) for sign in text)


def length(seconds: float) -> str:
    """Seconds as people say them: 12.5 s, 2:05, 1:02:03."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def size(count: int) -> str:
    """Bytes as people say them."""
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def _escaped(sign: str) -> str:
    return sign.encode("unicode_escape", "surrogatepass").decode()
