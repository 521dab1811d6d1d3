"""Runs a program on a terminal of its own and types what a script says.

usage: terminal.py COLUMNS PROGRAM ARGUMENT...    with a JSON list of steps on standard input:
  {"wait": "text"}    read until the text was written (since the last wait)
  {"send": "text"}    type the text
  {"signal": 15}      send the signal to the program
At the end stands one JSON object: what was written, the exit status (negative: a signal), and whether the terminal is as it was (it echoes and
waits for lines). A text that does not come within 60 seconds ends the program and fails.
"""

import fcntl
import json
import os
import pty
import select
import signal
import struct
import sys
import termios
import time

PATIENCE = 60.0


def main():
    steps = json.load(sys.stdin)
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm"
        os.environ.pop("NO_COLOR", None)
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 40, int(sys.argv[1]), 0, 0))
        os.execv(sys.argv[2], sys.argv[2:])
    written = ""
    seen = 0
    missing = None

    def read(seconds):
        """What was written meanwhile is appended; False at the end."""
        nonlocal written
        ready, _, _ = select.select([terminal], [], [], seconds)
        if not ready:
            return True
        try:
            data = os.read(terminal, 65536)
        except OSError:  # Linux says so when the program has ended
            return False
        written += data.decode("utf-8", "replace")
        return bool(data)

    for step in steps:
        if "signal" in step:
            os.kill(pid, step["signal"])
            continue
        if "send" in step:
            os.write(terminal, step["send"].encode())
            continue
        end = time.monotonic() + PATIENCE
        goes_on = True
        while step["wait"] not in written[seen:]:
            if not goes_on or time.monotonic() > end:
                missing = step["wait"]
                break
            goes_on = read(0.2)
        if missing is not None:
            break
        seen = written.index(step["wait"], seen) + len(step["wait"])
    end = time.monotonic() + PATIENCE
    while missing is None and read(0.2):
        if time.monotonic() > end:
            missing = "(the end of the program)"
    if missing is not None:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    lines = termios.ECHO | termios.ICANON
    usual = termios.tcgetattr(terminal)[3] & lines == lines
    report = {"written": written, "status": os.waitstatus_to_exitcode(status), "missing": missing, "usual": usual}
    json.dump(report, sys.stdout)


main()
