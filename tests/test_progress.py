"""Waiting is told, and only while it lasts."""

import time

from specdec.progress import while_waiting


def test_lines_come_while_the_block_lasts_and_stop_with_it() -> None:
    said: list[str] = []
    with while_waiting(said.append, "fetching", every=0.02):
        time.sleep(0.1)
    count = len(said)
    assert count >= 2
    assert said[0] == "fetching (0 s)"
    time.sleep(0.06)
    assert len(said) == count
