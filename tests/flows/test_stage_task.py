"""How a stage's failure is explained."""

import pytest

from flows.stage_task import StageFailed, explanation, stage_code
from specdec.errors import EX_TEMPFAIL

DVC = "ERROR: failed to reproduce 'x': failed to run: python -m stages.x, exited with 75"


def test_the_code_is_read_from_what_dvc_says() -> None:
    assert stage_code(["exited with 3 friends", DVC], 255) == 75
    assert stage_code(["ERROR: failed to reproduce 'x': failed to run: x, exited with -9"], 255) == -9
    assert stage_code(["ERROR: no such file"], 255) == 255


def test_the_stages_own_error_comes_first_whole() -> None:
    lines = [
        "working",
        "specdec: error: first",
        "working",
        "specdec: error: a.b: unknown key",
        "c: missing",
        DVC,
    ]
    assert explanation(lines) == "a.b: unknown key\nc: missing"


def test_without_one_the_last_lines_are_shown() -> None:
    shown = explanation([f"line {i}" for i in range(30)])
    assert shown.startswith("its last lines were\n  line 20\n")
    assert shown.endswith("line 29")
    assert "(none)" in explanation([])


@pytest.mark.parametrize(("code", "exit_code"), [(2, 2), (75, EX_TEMPFAIL), (130, 130), (1, 2), (-9, 2)])
def test_what_the_flow_exits_with(code: int, exit_code: int) -> None:
    error = StageFailed("train@medusa", code, ["specdec: error: no"])
    assert error.exit_code == exit_code
    assert str(error) == f"train@medusa failed (exit code {code}): no"
