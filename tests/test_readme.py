"""The README's commands exist, and .ci/run runs the two that it begins with."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from specdec.cli.app import app
from specdec.config import Params, load_params, profile_names

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
SHELL = "\n".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL))


def test_make_targets_exist() -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    asked = re.findall(r"\bmake (\w+)", SHELL)
    assert {"run", "test"} <= set(asked) <= set(targets)


def test_ci_runs_the_readmes_two_commands() -> None:
    first = re.findall(r"^make (\w+)", SHELL, re.MULTILINE)[:2]
    assert first == ["run", "test"]
    ci = (ROOT / ".ci" / "run").read_text()
    for target in first:
        assert re.search(rf"^make {target}$", ci, re.MULTILINE)


def test_profiles_and_files_exist() -> None:
    assert set(re.findall(r"PROFILE=(\S+)", README)) <= set(profile_names(ROOT / "profiles"))
    for path in re.findall(r"\]\(((?!http)[^)]+)\)", README):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize(
    "page", ["README.md", "docs/data.md", "docs/evaluation.md", "docs/housekeeping.md", "docs/serving.md"]
)
def test_commands_and_their_options_exist(page: str) -> None:
    shell = "\n".join(re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(), re.DOTALL))
    lines = [shlex.split(line, comments=True) for line in shell.splitlines() if line.startswith("specdec ")]
    assert lines
    for _, *words in lines:
        words = words[: words.index("--")] if "--" in words else words  # behind it: an engine's own
        command = get_command(app)
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        options = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, words


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", README, re.DOTALL))
def test_settings_in_the_readme_are_valid(block: str, tmp_path: Path) -> None:
    content = yaml.safe_load((ROOT / "params.yaml").read_text()) | yaml.safe_load(block)
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(content))
    assert isinstance(load_params(file), Params)
