"""Prefect logs a traceback for every exception; ours say in one line what a person can do."""

import logging

from specdec.errors import SpecdecError


def hide_ours() -> None:
    """Other exceptions keep theirs."""
    for name in ("prefect.task_runs", "prefect.flow_runs", "prefect.task_engine", "prefect.flow_engine"):
        logging.getLogger(name).addFilter(_shorten)


def _shorten(record: logging.LogRecord) -> bool:
    if record.exc_info and isinstance(record.exc_info[1], SpecdecError):
        record.exc_info = None
    return True
