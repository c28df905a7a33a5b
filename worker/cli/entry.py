"""`fermata`: every verb by name. Runs one and turns what it raises into a line and an exit code.

Exit codes: 0 done · 1 the answer is no · 2 bad usage, input or settings · 3 a server can't be reached · 70 a bug of
ours. A reader of our output that goes away is no error.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of

import cyclopts

from worker.cli import accounts, artifacts, jobs, keys, operating, plans, prices, processes, voices, webhooks
from worker.cli.failures import INTERRUPTED, explain
from worker.compiled import build_here


def _version() -> str:
    try:
        version = version_of("fermata-worker")
    except PackageNotFoundError:
        version = "unknown"
    return f"{version}, {build_here()}"


app = cyclopts.App(
    name="fermata",
    help="Metering for paid AI-music jobs.",
    version=_version,
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
for group in (accounts.app, artifacts.app, jobs.app, keys.app, prices.app, plans.app, voices.app, webhooks.app):
    app.command(group)
operating.add_to(app)
processes.add_to(app)


def main() -> None:
    """The entry point of the command `fermata`."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a name never stops a report
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run the verb that the arguments name; returns its exit code and raises nothing."""
    try:
        build_here()  # nothing runs on a compiled module whose source says something else
        code = app(arguments, exit_on_error=False, print_error=False)
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit:
        raise
    except Exception as error:
        return explain(error)
    return code if isinstance(code, int) else 0
