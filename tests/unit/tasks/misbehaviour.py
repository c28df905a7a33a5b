"""Functions for a child process that end in every way an engine can. They run in the child, never in the tests."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

from tasks.engines.report import Report
from tasks.finish import Finish
from tasks.formats import Format
from tasks.kind import AudioInfo, EngineUnavailable, InvalidInput, Output, Usage


def echo(report: Report, **arguments: Any) -> dict[str, Any]:
    return {"pid": os.getpid(), "cwd": str(Path.cwd()), **arguments}


def surroundings(report: Report) -> dict[str, Any]:
    """What the child can see of its parent."""
    descriptors = {}
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            descriptors[entry.name] = str(entry.readlink())
    return {"descriptors": descriptors, "environment": dict(os.environ), "group": os.getpgid(0), "pid": os.getpid()}


def one_output(report: Report, name: str, escape: str = "") -> Output:
    path = Path(escape) if escape else report.workdir / f"{name}.wav"
    path.write_bytes(b"sound")
    return Output(name, path, "audio/wav", AudioInfo(5, 1, 1), 5, "00", Usage(Decimal("0.1"), Decimal(5)))


def finish_then_abort(report: Report, outputs: int) -> None:
    for number in range(outputs):
        report.finished(one_output(report, f"song-{number}"))
    os.abort()


def finish_and_look(report: Report, outputs: int) -> list[bool]:
    """Whether each output was counted by the time that `finished` returned."""
    seen = []
    for number in range(outputs):
        output = one_output(report, f"song-{number}")
        report.finished(output)
        seen.append(output.path.with_suffix(".counted").exists())
    return seen


def finish_outside(report: Report, path: str) -> None:
    report.finished(one_output(report, "song", path))


def refuse(report: Report) -> None:
    raise InvalidInput("voice: there is no voice in it")


def be_unavailable(report: Report) -> None:
    class OursIsAway(EngineUnavailable):
        """An engine's own error, which the worker has never imported."""

    raise OursIsAway("busy")


def fail_with_a_secret(report: Report) -> None:
    raise KeyError("the secret")


def return_what_is_no_json(report: Report) -> object:
    return report


def leave(report: Report) -> None:
    sys.exit(3)


def segfault(report: Report) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def write_a_minute_of_ogg_at_once(report: Report) -> None:
    """The crash in libsndfile that makes us write in blocks."""
    import numpy
    import soundfile

    noise = numpy.random.default_rng(1).standard_normal((44_100 * 90, 2)).astype("float32") * 0.1
    soundfile.write(report.workdir / "all-at-once.ogg", noise, 44_100, format="OGG", subtype="VORBIS")


def write_a_minute_and_a_half(report: Report, audio_format: Format) -> None:
    """The same sound by our own writer."""
    import numpy

    from tasks.engines.writing import OutputFile

    noise = numpy.random.default_rng(1).standard_normal((44_100 * 90, 2), dtype=numpy.float32) * numpy.float32(0.1)
    with OutputFile(report, "noise", Finish(audio_format), 44_100, 2) as file:
        file.write(noise)
        file.hand_over()


def take_memory(report: Report, megabytes: int) -> int:
    return len(bytearray(megabytes * 1024**2))


def take_memory_in_numpy(report: Report, megabytes: int) -> int:
    import numpy

    return int(numpy.ones(megabytes * 1024**2, "uint8").sum())


def hold_memory(report: Report, megabytes: int) -> None:
    """More than it may hold, for as long as it is let."""
    held = bytearray(b"x") * (megabytes * 1024**2)
    report.progress(0.5, str(len(held)))
    while True:
        time.sleep(1)


def hold_memory_in_a_program(report: Report, megabytes: int) -> None:
    """Itself it holds next to nothing."""
    source = f"import time; held = bytearray(b'x') * ({megabytes} * 1024**2); time.sleep(600)"
    program = subprocess.Popen([sys.executable, "-c", source])
    report.progress(0.5, str(program.pid))
    while True:
        time.sleep(1)


def keep_memory(report: Report, megabytes: int) -> int:
    """As a model that stays loaded after its run."""
    _kept.append(bytearray(b"x") * (megabytes * 1024**2))
    return os.getpid()


_kept: list[bytearray] = []


def throw_bad_alloc(report: Report) -> None:
    """How a C++ library ends when it gets no memory."""
    os.write(2, b"terminate called after throwing an instance of 'std::bad_alloc'\n")
    os.abort()


def write_a_big_file(report: Report, megabytes: int) -> None:
    (report.workdir / "big").write_bytes(bytes(megabytes * 1024**2))


def burn(report: Report) -> None:
    report.progress(0.5, str(os.getpid()))
    while True:
        pass


def burn_with_a_descendant(report: Report) -> None:
    """Like an engine that starts a program of its own, which it would leave behind."""
    program = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    report.progress(0.5, f"{os.getpid()} {program.pid}")
    while True:
        time.sleep(1)


def tell(report: Report, fractions: list[float]) -> None:
    for fraction in fractions:
        report.progress(fraction, "x" * 10_000)


def chatter(report: Report) -> None:
    os.write(2, b"a library's warning\n" * 100)
    os.write(1, b"a library's banner\n" * 100)


def threads(report: Report) -> int:
    import numpy

    numpy.ones((256, 256)) @ numpy.ones((256, 256))
    return len(list(Path("/proc/self/task").iterdir())) - threading.active_count()


# In the place of `tasks.engines.reading.examine`


def segfault_at_a_file(report: Report, path: Path, limits: dict[str, Any]) -> None:
    segfault(report)


def burn_at_a_file(report: Report, path: Path, limits: dict[str, Any]) -> None:
    burn(report)


def take_all_memory_at_a_file(report: Report, path: Path, limits: dict[str, Any]) -> None:
    take_memory(report, 1024)


def fail_at_a_file(report: Report, path: Path, limits: dict[str, Any]) -> None:
    raise KeyError("a bug")


def crash_the_first_time(report: Report, path: Path, limits: dict[str, Any]) -> dict[str, Any]:
    from tasks.engines.reading import examine

    seen = path.with_suffix(".seen")
    if not seen.exists():
        seen.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return examine(report, path, limits)


def change_while_reading(report: Report, path: Path, limits: dict[str, Any]) -> dict[str, Any]:
    from tasks.engines import reading

    reading._check_header = lambda *_: os.utime(path, (1, 1))
    return reading.examine(report, path, limits)


def end_when_asked(report: Report) -> None:
    """A well-behaved model: looks between its steps whether it is still wanted."""
    report.progress(1.0, "running")
    while not report.stop_asked:
        time.sleep(0.005)
    raise EngineUnavailable("stopped")
