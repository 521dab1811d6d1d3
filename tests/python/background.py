"""Runs a program on a terminal, takes the terminal away from it as a shell does with a background job, and ends it.

usage: background.py PROGRAM ARGUMENT...
When the program has written its prompt (`> `), another group of processes gets the terminal, and the program gets SIGTERM. Prints the exit
status of the program: negative for a signal, 99 if the program was stopped in place of ended.
"""

import os
import pty
import select
import signal
import sys
import time

PATIENCE = 60.0
STOPPED = 99


def shell():
    """What the first process of the terminal does."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    program = os.fork()
    if program == 0:
        os.setpgid(0, 0)
        os.tcsetpgrp(0, os.getpid())
        signal.signal(signal.SIGTTOU, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
        os.environ["TERM"] = "xterm"
        os.execv(sys.argv[1], sys.argv[1:])
    signal.sigwait([signal.SIGUSR1])
    os.tcsetpgrp(0, os.getpgrp())
    os.kill(program, signal.SIGTERM)
    _, status = os.waitpid(program, os.WUNTRACED)
    if os.WIFSTOPPED(status):
        os.kill(program, signal.SIGKILL)
        return STOPPED
    return os.waitstatus_to_exitcode(status) & 0xFF


def main():
    first, terminal = pty.fork()
    if first == 0:
        try:
            os._exit(shell())
        finally:
            os._exit(1)
    written, asked, end = b"", False, time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                written += os.read(terminal, 65536)
            except OSError:
                break
        if not asked and b"> " in written:
            asked = True
            # the editor of lines is in place behind its prompt
            time.sleep(0.3)
            os.kill(first, signal.SIGUSR1)
        ended, status = os.waitpid(first, os.WNOHANG)
        if ended:
            print(os.waitstatus_to_exitcode(status))
            return
    else:
        os.kill(first, signal.SIGKILL)
    _, status = os.waitpid(first, 0)
    print(os.waitstatus_to_exitcode(status))


main()
