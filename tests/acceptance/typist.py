"""A `fermata` for the shells of tests that type many lines: `python -m tests.acceptance.typist FOLDER`.

Puts a command of that name into the folder. Each call hands its arguments, environment, folder and streams to this
process, which forks as the zygote does and runs the command line's own `main`: only importing our modules was done
once. Says a line when it can be called; ends with its stdin.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
from pathlib import Path

from tests.acceptance.zygote import be_fermata, code_of, end_with, take_over

_CALL = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as typist:
    typist.connect({path!r})
    told = json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]).encode()
    socket.send_fds(typist, [len(told).to_bytes(4)], [0, 1, 2])
    typist.sendall(told)
    answer = typist.recv(4)
sys.exit(int.from_bytes(answer, signed=True) if answer else 70)
"""


def main() -> None:
    """Serve calls until stdin ends."""
    folder = Path(sys.argv[1])
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(folder / "typist"))
        door.listen()
        command = folder / "fermata"
        command.write_text(_CALL.format(python=sys.executable, path=str(folder / "typist")))
        command.chmod(0o755)
        os.write(1, b"ready\n")
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who answer by themselves
        while door in select.select([door, sys.stdin], [], [])[0]:
            call, _ = door.accept()
            ours = os.getpid()
            if os.fork() == 0:
                _answer(call, ours)
            call.close()


def _answer(call: socket.socket, parent: int) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    begin, streams, _, _ = socket.recv_fds(call, 4, 3)
    told = b""
    while len(told) < int.from_bytes(begin):
        told += call.recv(65_536)
    arguments, environment, folder = json.loads(told)

    def act() -> None:
        end_with(parent)
        os.chdir(folder)
        take_over(streams, environment)
        for stream in streams:
            os.close(stream)  # else whoever reads them would wait for our children too
        # New ones: ours remember what sort of file was there before.
        sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
        be_fermata(arguments)

    call.sendall(code_of(act).to_bytes(4, signed=True))
    os._exit(0)


if __name__ == "__main__":
    main()
