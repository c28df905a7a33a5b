"""`fermata`, the command: a caption a verb: parse, call one function, present. Heavy imports inside."""

from worker.cli.entry import main

__all__ = ["main"]
