"""A script that answers questions in a child process, which what it is asked may bring down."""

from __future__ import annotations

import json
import select
import subprocess
import sys

HANG_S = 60


class ChildServer:
    """Sends lines of JSON to a script and reads its answers; starts it again when it has died."""

    def __init__(self, script, log=subprocess.DEVNULL):
        self._script = script
        self._log = log
        self._child = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()

    def end(self):
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
        self._child = None

    def ask(self, question):
        """What came of it; ``signal`` where the child died, ``hang`` where it had to be killed."""
        if self._child is None or self._child.poll() is not None:
            self.end()
            self._child = subprocess.Popen(
                [sys.executable, str(self._script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
            )
        self._child.stdin.write(json.dumps(question) + "\n")
        self._child.stdin.flush()
        ready, _, _ = select.select([self._child.stdout], [], [], HANG_S)
        line = self._child.stdout.readline() if ready else ""
        if line:
            return json.loads(line)
        answer = {"signal": -self._child.wait()} if ready else {"hang": HANG_S}
        self.end()
        return answer
