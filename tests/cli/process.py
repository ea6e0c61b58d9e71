"""The command line in this process: a new one takes seconds to import what it needs."""

import contextlib
import io
import os
from pathlib import Path
from subprocess import CompletedProcess
from unittest import mock

import pytest

from specdec.cli.app import main


def run(cwd: Path, *arguments: object, **environment: str) -> "CompletedProcess[str]":
    """`specdec ARGUMENTS` in `cwd`. environment: in place of all variables that are named SPECDEC_...."""
    command = ["specdec", *map(str, arguments)]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SPECDEC_")}
    out, error = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(error),
        mock.patch("sys.argv", command),
        mock.patch.dict(os.environ, {**kept, **environment}, clear=True),
        pytest.raises(SystemExit) as ended,
    ):
        main()
    return CompletedProcess(command, int(ended.value.code or 0), out.getvalue(), error.getvalue())
