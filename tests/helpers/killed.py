"""Kill processes at a moment that is the same in every run."""

import os
import re
import signal
import subprocess
import sys

from helpers.project import ROOT


def kill_at(event, pattern, count=1):
    """Kill this process just before it does something for the count-th time.

    Args:
        event: "open" or "os.rename", which is also a replacement: an event of `sys.addaudithook`.
        pattern: A regular expression of the path that is opened, or of the new name.
    """
    left = count

    def hook(name, arguments):
        nonlocal left
        if name == event and re.search(pattern, str(arguments[event == "os.rename"])):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def run_killed(code, *argv, at, **environment):
    """Run code in a new Python process that is killed at a moment given by the arguments of `kill_at`."""
    path = os.pathsep.join(filter(None, [str(ROOT / "tests"), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", f"from helpers.killed import kill_at; kill_at(*{at!r})\n{code}", *map(str, argv)],
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | {"PYTHONPATH": path} | environment,
    )
    assert done.returncode == -signal.SIGKILL, f"{done.returncode}: {done.stdout}{done.stderr}"
