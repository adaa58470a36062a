"""The process between an owner and its embedded server: when the owner goes, the server goes.

Run as a script, `python embedded_guard.py LOCK_FILE SERVER CONFIG [TEMPORARY_FOLDER …]`, with a
pipe from the owner as standard input. It takes the folder's lock and says so on standard output,
starts the server, starts it again when it dies by itself, and stops it (and removes the temporary
folders) when the pipe closes: the kernel closes it however the owner ended, SIGKILL included.
Should the guard itself be killed, Linux ends the server (PR_SET_PDEATHSIG).
This module knows no Redis and imports only what a bare interpreter has.

Exit codes: 0 stopped as asked, 73 the directory is in use, 70 the server cannot be kept running.
"""

import ctypes
import fcntl
import os
import selectors
import signal
import sys
import time
from types import FrameType

IN_USE = 73
CANNOT_RUN = 70
LOCK_MS = 2_000
"""How long to wait for the lock: a server whose owner has just died is still on its way out."""
STOP_MS = 5_000
"""How long a server may take to write its last data before it is killed."""
MAX_DEATHS = 3
"""Deaths of the server within `DEATH_WINDOW_MS` after which the guard gives up."""
DEATH_WINDOW_MS = 60_000
_PR_SET_PDEATHSIG = 1


def take_lock(path: str) -> int:
    """Lock `path`; the server inherits the descriptor, so the lock lives as long as it does."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + LOCK_MS / 1000
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                sys.exit(IN_USE)
            time.sleep(0.02)
        else:
            os.set_inheritable(lock, True)
            return lock


def start_server(server: str, config: str) -> int:
    """Fork and run the server; return its process id."""
    guard = os.getpid()
    # Loaded before the fork: the child must only make system calls.
    prctl = getattr(ctypes.CDLL(None), "prctl", None)  # Linux has it
    pid = os.fork()
    if pid:
        return pid
    try:
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != guard:
                os._exit(1)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.execv(server, [server, config])
    finally:
        os._exit(CANNOT_RUN)


def stop_server(pid: int) -> None:
    """Ask the server to end, wait, and kill it if it does not."""
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_MS / 1000
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return
        time.sleep(0.01)


def _ignore(number: int, frame: FrameType | None) -> None:
    """Do nothing: the signal is there to wake the selector."""


def watch(server: str, config: str) -> int:
    """Keep the server running until standard input closes; return the exit code."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, _ignore)
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopping.append(number))
    # The owner decides when to stop: a Ctrl-C meant for it must not take the data away first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    selector = selectors.DefaultSelector()
    selector.register(0, selectors.EVENT_READ)
    selector.register(woken, selectors.EVENT_READ)
    deaths: list[float] = []
    pid = start_server(server, config)
    while True:
        ready = {key.fd for key, _ in selector.select()}
        if woken in ready:
            os.read(woken, 512)
        dead = os.waitpid(pid, os.WNOHANG) != (0, 0)
        if 0 in ready or stopping:
            if not dead:
                stop_server(pid)
            return 0
        if dead:
            now = time.monotonic()
            deaths = [at for at in deaths if now - at < DEATH_WINDOW_MS / 1000] + [now]
            if len(deaths) >= MAX_DEATHS:
                return CANNOT_RUN
            pid = start_server(server, config)


def main(lock: str, server: str, config: str, *temporary: str) -> int:
    """Guard one server until its owner is gone; return the exit code."""
    take_lock(lock)
    # The lock outlives a server, so from here on whoever answers at the address is our own.
    os.write(1, b"locked\n")
    code = watch(server, config)
    if code == 0:
        import shutil  # after the work: it is slow to import

        for folder in temporary:
            shutil.rmtree(folder, ignore_errors=True)
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
