"""The stage on a tiny pipeline and a real registry: the champion beside the drafters of the run."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from specdec.config import load_params
from specdec.drafters import load_drafter
from specdec.evaluation import Bootstrap, Plan, champion
from specdec.evaluation import evaluate as measure
from specdec.evaluation.champion import same_drafter
from specdec.io import read_jsonl, sha256_file
from specdec.report import Report, write_evaluation
from specdec.targets import Target
from specdec.tracking.register import register
from specdec.tracking.rival import reigning
from specdec.tracking.store import connect
from stages import compare
from tests.stages.measured import DRAFTERS, make_project, work_in, write_base_with_record, write_drafter
from tests.tiny import write_base
from tests.tracking.example import write_figures

NAME = "specdec-base"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, base_folder: Path) -> Path:
    """Made once: measuring takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        made = make_project(tmp_path_factory.mktemp("measured") / "project", base_folder, patch)
        measure_all(made)
    return made


@pytest.fixture
def project(tmp_path: Path, measured: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(measured, tmp_path / "project")
    work_in(tmp_path / "project", monkeypatch)
    return tmp_path / "project"


def measure_all(project: Path) -> None:
    """What `evaluate` leaves for the comparison."""
    target = Target.from_pretrained(project / "models/base", device="cpu")
    rows = list(read_jsonl(project / "data/prompts/test.jsonl"))
    for name in DRAFTERS:
        drafter = load_drafter(project / "models/drafters" / name, target)
        found = measure(target, drafter, rows, Plan(8, 1, Bootstrap(100, 0.9, 0)), print)
        folder = project / "reports" / name
        write_evaluation(Report(name, found.main_figures(0.9), {}, {}, [], found.all_figures()), found, folder)
        write_figures(project, name)


def promote(project: Path, speedups: dict[str, float]) -> None:
    for name, speedup in speedups.items():
        write_figures(project, name, speedup=speedup)
    register(load_params(), lambda _line: None)


def compared() -> tuple[dict[str, Any], dict[str, Any]]:
    """(the record of the champion, the rows by name) after the stage."""
    compare.main()
    found = json.loads(Path("comparison/comparison.json").read_text())
    return found["champion"], {row["name"]: row for row in found["rows"]}


def test_no_champion_yet(project: Path) -> None:
    told, rows = compared()
    words = f"no champion yet: no version of {NAME} is promoted"
    prompts = sha256_file(project / "data/prompts/test.jsonl")
    expected = {"model": NAME, "version": None, "sha256": None, "row": None, "told": words, "prompts": prompts}
    assert told == expected
    assert set(rows) == {*DRAFTERS, "prompt lookup"}
    assert not any("to_champion" in row for row in rows.values())
    assert "No champion yet" in Path("comparison/report.html").read_text()


def test_one_of_the_run_is_not_measured_again(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    promote(project, {"one": 1.3, "two": 1.5})

    def fail(*_: Any) -> None:
        raise AssertionError("measured")

    monkeypatch.setattr(compare, "measure_champion", fail)
    told, rows = compared()
    assert told["row"] == "two"
    assert told["version"] == "2"
    assert told["sha256"] == sha256_file(project / "models/drafters/two/model.safetensors")
    assert told["told"] == f"champion = two: the same bytes are version 2 of {NAME}"
    assert set(rows) == {*DRAFTERS, "prompt lookup"}
    assert "to_champion" in rows["one"]
    assert "to_champion" not in rows["two"]


def test_an_older_one_is_measured_beside_plain_decoding(project: Path) -> None:
    """The champion is what `one` was: its acceptance must be what `evaluate` found of these very bytes."""
    promote(project, {"one": 1.5, "two": 1.3})
    before = json.loads((project / "reports/one/ways.json").read_text())["ways"]["chain of 2"]
    weights = sha256_file(project / "models/drafters/one/model.safetensors")
    write_drafter(project / "models/drafters/one", project / "models/base", seed=7)
    measure_all(project)
    told, rows = compared()
    assert (told["model"], told["version"], told["sha256"]) == (NAME, "1", weights)
    assert told["row"] == "champion (version 1)"
    assert told["prompts"] == sha256_file(project / "data/prompts/test.jsonl")
    assert row_counts_in_registration(project)
    assert set(rows) == {*DRAFTERS, "prompt lookup", told["row"]}
    row = rows[told["row"]]
    assert row["way"] == "chain of 2"
    assert row["figures"]["acceptance_length"] == before["acceptance_length"]
    assert row["figures"]["lossless"] is True
    assert row["figures"]["prompts"] == 8
    for name in (*DRAFTERS, "prompt lookup"):
        for key in ("to_champion", "speed_to_champion"):
            assert rows[name][key]["p_value"] is not None
    ours = rows["two"]["figures"]
    for key, figure in (("to_champion", "acceptance_length"), ("speed_to_champion", "speedup")):
        difference = ours[figure]["value"] - row["figures"][figure]["value"]
        assert rows["two"][key]["difference"]["value"] == pytest.approx(difference)
    page = Path("comparison/report.html").read_text()
    assert weights in page
    assert told["row"] in page


def row_counts_in_registration(project: Path) -> bool:
    """The figures that the drafters of the run have to beat are those of this file."""
    name = load_params().register_.model_name or NAME
    found = reigning(connect(project), name, project, "these")
    (row,) = [
        row
        for row in json.loads(Path("comparison/comparison.json").read_text())["rows"]
        if row["name"] == "champion (version 1)"
    ]
    assert found is not None
    assert set(found.categories) == set(row["figures"]["categories"]) != set()
    return found.conditions == "these" and found.speedup == row["figures"]["speedup"]["value"]


def test_it_is_measured_in_the_settings_of_the_evaluation(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    promote(project, {"one": 1.5})
    write_drafter(project / "models/drafters/one", project / "models/base", seed=7)
    content = yaml.safe_load(Path("params.yaml").read_text())
    content["evaluate"] |= {"dtype": "bfloat16", "max_new_tokens": 5, "repeats": 2, "seed": 3}
    Path("params.yaml").write_text(yaml.safe_dump(content))
    asked: list[Any] = []
    real = compare.measure_champion

    def spy(*given: Any) -> Any:
        asked.append((*given, real(*given)))
        return asked[-1][-1]

    def load(folder: Path, target: Target) -> Any:
        assert target.dtype == torch.bfloat16
        return load_drafter(folder, target)

    monkeypatch.setattr(compare, "measure_champion", spy)
    monkeypatch.setattr(champion, "load_drafter", load)
    compare.main()
    ((_, _, base, dtype, rows, plan, _, entrant),) = asked
    assert (str(base), dtype) == ("models/base", "bfloat16")
    assert rows == list(read_jsonl(Path("data/prompts/test.jsonl")))
    assert plan == Plan(5, 2, Bootstrap(100, 0.9, 3))
    assert {len(prompt.seconds) for prompt in entrant.prompts} == {2}
    assert max(len(prompt.token_ids) for prompt in entrant.prompts) == 5
    assert set(entrant.measured) == {"no drafter", "chain of 2"}


def test_one_for_another_base_is_not_measured(project: Path, tmp_path: Path) -> None:
    promote(project, {"one": 1.5, "two": 1.3})
    write_base(tmp_path / "base", seed=5)
    write_base_with_record(project, tmp_path / "base")
    for seed, name in enumerate(DRAFTERS):
        write_drafter(project / "models/drafters" / name, project / "models/base", seed)
    measure_all(project)
    told, rows = compared()
    assert (told["version"], told["row"]) == ("1", None)
    assert told["told"].startswith(
        f"the champion, version 1 of {NAME}, was not measured: it was trained for another base: its weights ("
    )
    assert set(rows) == {*DRAFTERS, "prompt lookup"}
    assert "it was trained for another base" in Path("comparison/report.html").read_text()


def test_one_of_another_tokenizer_or_template(project: Path) -> None:
    promote(project, {"one": 1.5, "two": 1.3})
    record = json.loads(Path("models/base/specdec.json").read_text())
    for part in ("tokenizer", "chat_template"):
        identity = record["identity"] | {part: "0" * 64}
        Path("models/base/specdec.json").write_text(json.dumps(record | {"identity": identity}))
        for name in DRAFTERS:
            file = Path("models/drafters") / name / "specdec.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | {"base": identity}))
        told, _ = compared()
        assert told["row"] is None
        assert f"its {part.replace('_', ' ')} (" in told["told"]
        assert "differ from those of models/base (000000000000)" in told["told"]


def test_an_mlflow_that_is_away_stops_nothing(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    told, rows = compared()
    assert "MLflow at http://127.0.0.1:9 does not answer" in told["told"]
    assert set(rows) == {*DRAFTERS, "prompt lookup"}


def test_a_damaged_one_is_told(project: Path) -> None:
    promote(project, {"one": 1.5, "two": 1.3})
    for weights in Path("mlartifacts").rglob("artifacts/drafter/model.safetensors"):
        weights.unlink()
        weights.write_bytes(b"torn")
    told, _ = compared()
    assert told["row"] is None
    assert f"the champion of {NAME} was not compared: models:/{NAME}/1 is damaged in " in told["told"]
    assert "is damaged" in told["told"]


def test_the_same_drafter_is_the_same_bytes_base_and_draft_length(project: Path, tmp_path: Path) -> None:
    drafters = {name: Path("models/drafters") / name for name in DRAFTERS}
    assert same_drafter(drafters["two"], drafters) == "two"

    def copy() -> Path:
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        return Path(shutil.copytree(drafters["two"], tmp_path / "copy"))

    record = json.loads((copy() / "specdec.json").read_text())
    (tmp_path / "copy/specdec.json").write_text(json.dumps(record | {"specdec": "0.0", "data": {"train": "x"}}))
    assert same_drafter(tmp_path / "copy", drafters) == "two", "where it came from is no difference"
    for change in ({"draft_tokens": 1}, {"base": {}}):
        (copy() / "specdec.json").write_text(json.dumps(record | change))
        assert same_drafter(tmp_path / "copy", drafters) is None
    (copy() / "config.json").write_text("{}")
    assert same_drafter(tmp_path / "copy", drafters) is None


def test_dvc_compares_before_it_promotes() -> None:
    """The registry is no dependency, so the order is what makes the champion the one before this run."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert {"metrics/compared.json": {"cache": False}} in stages["compare"]["outs"]
    assert "metrics/compared.json" in stages["register"]["deps"]
    assert "comparison" not in stages["register"]["deps"], "a moved alias would promote once more"
    assert stages["compare"]["meta"]["exclusive"], "it measures time"
    needed = {"data/prompts/test.jsonl", "models/base", "models/drafters", "reports", "specdec/tracking/champion.py"}
    assert needed <= set(stages["compare"]["deps"])
