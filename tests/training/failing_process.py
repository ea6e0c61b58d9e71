"""Two processes of which the second fails as argv[1] says; run by test_launch.py."""

import os
import signal
import sys
import time

from specdec.errors import ConfigError, SpecdecError, TransientError
from specdec.training.launch import launch_processes
from stages import run


def main() -> None:
    launch_processes(sys.argv, 2)
    if sys.argv[1] == "fine":
        print(f"process {os.environ['LOCAL_RANK']} trains {sys.argv[2:]}")
        return
    if sys.argv[1] == "waiting":
        print("waits", flush=True)
    if sys.argv[1] == "waiting" or os.environ["LOCAL_RANK"] == "0":
        time.sleep(60)
    kinds: dict[str, SpecdecError] = {"settings": ConfigError("aux_layers [9]"), "server": TransientError("gone")}
    if sys.argv[1] in kinds:
        raise kinds[sys.argv[1]]
    if sys.argv[1] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    raise RuntimeError("a bug")


if __name__ == "__main__":
    run(main)
