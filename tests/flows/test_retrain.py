"""What a retraining states in params.yaml, and what it refuses before it changes anything."""

from pathlib import Path

import pytest
import yaml

from flows.retrain import prompt_files, state_in_params
from specdec.config import load_params
from specdec.errors import DataError
from specdec.io import sha256_file, write_jsonl
from tests.tracking.example import write_settings

CHAMPION = ("models:/specdec-base/4", "medusa")


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_settings(tmp_path)
    return tmp_path / "params.yaml"


def asked(path: str, *questions: str) -> Path:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(Path(path), [{"prompt": q} for q in questions])
    return Path(path)


def state(params: Path, latest: Path, champion: tuple[str, str] | None = CHAMPION) -> list[tuple[str, str]]:
    state_in_params(params, latest, prompt_files(latest), champion)
    return [(f.path, f.sha256) for f in load_params(params).prepare_prompts.further_prompts]


def test_the_file_with_its_hash_and_the_champion_to_go_on_from(params: Path) -> None:
    latest = asked("latest.jsonl", "Why?")
    assert state(params, latest) == [("latest.jsonl", sha256_file(latest))]
    drafters = load_params(params).drafters
    assert {d.training.warm_start for d in drafters.values()} == {CHAMPION[0]}


def test_a_drafter_of_another_method_begins_anew(params: Path) -> None:
    state(params, asked("latest.jsonl", "Why?"), ("models:/specdec-base/4", "eagle3"))
    assert {d.training.warm_start for d in load_params(params).drafters.values()} == {None}
    state(params, asked("latest.jsonl", "Why?"), None)
    assert {d.training.warm_start for d in load_params(params).drafters.values()} == {None}


def test_a_changed_file_gives_way_and_others_stay(params: Path) -> None:
    asked("other.jsonl", "How?")
    other = state(params, Path("other.jsonl"))
    before = state(params, asked("latest.jsonl", "Why?"))
    after = state(params, asked("latest.jsonl", "Why not?"))
    assert len(before) == len(after) == 2
    assert before[0] == after[0] == other[0]
    assert before[1] != after[1]


def test_of_a_folder_what_lies_there_now(params: Path) -> None:
    """A window that moves on: the file of May is gone, and stated no more."""
    asked("latest/may.jsonl", "Why?")
    asked("latest/june.jsonl", "How?")
    (Path("latest") / "README").write_text("no prompts")
    assert [path for path, _ in state(params, Path("latest"))] == ["latest/june.jsonl", "latest/may.jsonl"]
    Path("latest/may.jsonl").unlink()
    asked("latest/july.jsonl", "When?")
    assert [path for path, _ in state(params, Path("latest/"))] == ["latest/july.jsonl", "latest/june.jsonl"]


def test_everything_else_in_params_stays(params: Path) -> None:
    before = yaml.safe_load(params.read_text())
    state(params, asked("latest.jsonl", "Why?"), None)
    after = yaml.safe_load(params.read_text())
    assert after["prepare_prompts"].pop("further_prompts")
    before["prepare_prompts"].pop("further_prompts")
    assert after == before


def test_comments_and_layout_stay(params: Path) -> None:
    committed = (Path(__file__).resolve().parents[2] / "params.yaml").read_text()
    params.write_text(committed)
    hashed = sha256_file(asked("latest.jsonl", "Why?"))
    state(params, Path("latest.jsonl"))
    stated = f'further_prompts: [{{"path": "latest.jsonl", "sha256": "{hashed}"}}]      # beside the dataset'
    expected = committed.replace("further_prompts: []      # beside the dataset", stated)
    first = expected.index("warm_start: null")  # Medusa's: EAGLE-3 begins anew
    expected = expected[:first] + expected[first:].replace("null", f'"{CHAMPION[0]}"', 1)
    assert params.read_text() == expected
    state(params, Path("latest.jsonl"))
    assert params.read_text() == expected, "stating the same again changes nothing"


def test_blocks_and_empty_values_are_replaced_and_comments_behind_them_stay(params: Path) -> None:
    text = yaml.safe_dump(yaml.safe_load(params.read_text()), sort_keys=False)
    block = "further_prompts:\n  - path: latest.jsonl\n    sha256: " + "a" * 64 + "  # of May\n\n  # below\n"
    params.write_text(text.replace("further_prompts: []\n", block).replace("warm_start: null", "warm_start:"))
    assert params.read_text().count("# of May") == 1
    latest = asked("latest.jsonl", "Why?")
    assert state(params, latest) == [("latest.jsonl", sha256_file(latest))]
    after = params.read_text()
    assert "# of May\n\n  # below\n" in after
    assert f'warm_start: "{CHAMPION[0]}"\n' in after


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "there is no file or folder of prompts latest"),
        ("", "is empty"),
        ("{}\n", "row 1 of .* holds no prompt"),
    ],
)
def test_what_holds_no_prompts_changes_nothing(params: Path, content: str | None, words: str) -> None:
    before = params.read_bytes()
    if content is not None:
        Path("latest").write_text(content)
    with pytest.raises(DataError, match=words):
        state(params, Path("latest"))
    assert params.read_bytes() == before


def test_an_empty_folder_is_named(params: Path) -> None:
    Path("latest").mkdir()
    with pytest.raises(DataError, match=r"latest holds no file of prompts \(\*\.jsonl, \*\.json\)"):
        prompt_files(Path("latest"))
