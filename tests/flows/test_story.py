"""A drafter's life, against real MLflow and Prefect servers; what it is trained to is written by a script."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from safetensors.torch import load_file

from specdec.tracking.checkpoints import fetch_drafter
from tests.flows.conftest import Toy, make_toy
from tests.flows.counting import Counting, serving
from tests.tracking.example import REPOSITORY, mlflow_tables, settings, write_json, write_results
from tests.tracking.mlflow_server import MlflowServer

pytestmark = pytest.mark.soak

NAME = "specdec-base"

# "Trains" and "evaluates": the drafter's weights and figures are those that `plan.json` names; with further prompts
# it becomes as good as the plan says a training on them makes it.
TRAIN = """
import json, shutil, sys
from pathlib import Path
import yaml
from specdec.data.further_prompts import read_further_prompts
from specdec.io import sha256_file
from specdec.tracking.champion import champion_to_go_on_from
from tests.tracking.example import write_drafter, write_figures, write_json

plan = json.loads(Path("plan.json").read_text())
stated = yaml.safe_load(Path("params.yaml").read_text())["prepare_prompts"]["further_prompts"]
asked = [c for file in stated for c in read_further_prompts(Path(file["path"]), file["sha256"])]
if asked:
    plan = plan["further"]
identity = json.loads(Path("models/base/specdec.json").read_text())["identity"]
write_drafter(Path("."), "one", plan["weights"])
record = Path("models/drafters/one/specdec.json")
record.write_text(json.dumps(json.loads(record.read_text()) | {"base": identity}))
write_figures(Path("."), "one", plan["length"], plan["speedup"])
test = Path("data/prompts/test.jsonl")
test.write_text("".join(f"{c.category}\\n" for c in asked) or "old\\n")
if "champion" in plan:  # the stage `compare` measures it on this run's prompts
    model, _, version = champion_to_go_on_from(Path("."))[0].removeprefix("models:/").rpartition("/")
    about = {"model": model, "version": version, "row": "champion", "prompts": sha256_file(test)}
    row = {"name": "champion", "figures": {"speedup": {"value": plan["champion"]}, "categories": {}}}
    write_json(Path("comparison/comparison.json"), {"champion": about, "rows": [row]})
"""


@dataclass
class Story:
    toy: Toy
    client: MlflowClient

    @property
    def root(self) -> Path:
        return self.toy.root

    def plan(self, weights: str, length: float, speedup: float, **further: Any) -> None:
        plan = {"weights": weights, "length": length, "speedup": speedup, **further}
        write_json(self.root / "plan.json", plan)

    def run(self, *command: str) -> tuple[int, str]:
        """A Python module with its arguments, as a user runs it."""
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=self.root,
            env=self.toy.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=180,
        )
        return done.returncode, done.stdout

    def aliases(self) -> dict[str, str]:
        return {alias: str(v) for alias, v in self.client.get_registered_model(NAME).aliases.items()}

    def decision(self) -> str:
        return str(json.loads((self.root / "registry.json").read_text())["versions"]["one"]["reason"])

    def weights(self, version: str) -> str:
        """What a version carries, as text."""
        folder = fetch_drafter(f"models:/{NAME}/{version}", self.root / "fetched")
        numbers = load_file(folder / "model.safetensors")["blocks.0.layers.0.weight"].flatten().tolist()
        return bytes(int(n) for n in numbers).decode().strip()


@pytest.fixture
def mlflow_server(tmp_path: Path) -> Iterator[str]:
    server = MlflowServer(tmp_path / "mlflow", mlflow_tables())
    try:
        server.start()
        yield server.url
    finally:
        server.end()


@pytest.fixture
def story(
    tmp_path: Path,
    prepared: Path,
    prefect_home: Path,
    prefect_server: str,
    mlflow_server: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Story:
    toy = make_toy(tmp_path / "project", prepared, prefect_home, prefect_server)
    (toy.root / "mlflow.db").unlink()
    write_results(toy.root, ("one",))
    one = {"one": settings()["drafters"]["one"]}
    (toy.root / "params.yaml").write_text(yaml.safe_dump(settings(drafters=one)))
    (toy.root / "train.py").write_text(TRAIN)
    made = ["metrics/train/one.json", "metrics/evaluate/one.json", "metrics/engine/one.json"]
    made += ["models/drafters/one", "reports/one", "data/prompts/test.jsonl"]
    for path in made:
        shutil.rmtree(toy.root / path) if (toy.root / path).is_dir() else (toy.root / path).unlink()
    toy.stages(
        train={
            "cmd": "python train.py",
            "deps": ["train.py", "plan.json", "models/base/specdec.json"],
            "params": ["prepare_prompts", "drafters"],
            "outs": made,
        },
        register={
            "cmd": "python -m stages.register",
            "deps": made,
            "params": ["register"],
            "outs": [{"registry.json": {"cache": False}}],
        },
    )
    environment = {**toy.environment, "MLFLOW_TRACKING_URI": mlflow_server, "PYTHONPATH": str(REPOSITORY)}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    monkeypatch.chdir(toy.root)
    return Story(replace(toy, environment=environment), MlflowClient(mlflow_server))


def test_the_story(story: Story) -> None:
    pipeline, cli = "flows.pipeline", "specdec"

    # The first is promoted.
    story.plan("first", 1.8, 1.3)
    code, output = story.run(pipeline)
    assert code == 0, output
    assert story.aliases() == {"champion": "1"}
    assert story.weights("1") == "first"

    # A worse one is refused, with the reason.
    story.plan("worse", 1.7, 1.2)
    code, output = story.run(pipeline)
    assert code == 0, output
    assert story.aliases() == {"champion": "1", "challenger": "2"}
    assert story.decision() == "not promoted: better_than_champion 1.200 (missed 1.300)"
    code, output = story.run(cli, "promote", "2")
    assert code != 0
    assert "version 2 of specdec-base misses a gate: better_than_champion 1.200" in " ".join(output.split())

    # A better one is promoted, and the one before is kept.
    story.plan("better", 2.0, 1.5)
    code, output = story.run(pipeline)
    assert code == 0, output
    assert story.aliases() == {"champion": "3", "previous": "1", "challenger": "2"}

    # Back, and forth again.
    code, output = story.run(cli, "rollback")
    assert code == 0, output
    assert (story.aliases()["champion"], story.aliases()["previous"]) == ("1", "3")
    code, output = story.run(cli, "promote", "3")
    assert code == 0, output
    assert (story.aliases()["champion"], story.aliases()["previous"]) == ("3", "1")

    # The base is fine-tuned: what was trained for the old one is refused.
    record = story.root / "models/base/specdec.json"
    base = json.loads(record.read_text())
    base["identity"]["weights"] = "f" * 64
    write_json(record, base)
    code, output = story.run(cli, "promote", "1")
    assert code != 0
    assert "version 1 of specdec-base was trained on another base" in " ".join(output.split())
    code, output = story.run(cli, "check", "models/drafters/one", "--base", "models/base")
    assert code != 0
    assert "for another base" in " ".join(output.split())
    story.plan("tuned", 1.9, 1.4, further={"weights": "on latest", "length": 2.1, "speedup": 1.35, "champion": 1.25})
    code, output = story.run(pipeline)
    assert code == 0, output
    assert story.aliases()["champion"] == "4", story.decision()

    # Served, it is accepted as promised: 0.5 and 0.3 by position. The server starts anew: no drop.
    counting = Counting([0.5, 0.3])
    with serving(counting) as url:
        look = ("flows.watch", url, "--every", "0", "--latest", "latest.jsonl", "--looks")
        code, output = story.run(*look, "6")
        assert code == 0, output
        assert "acceptance length 1.800 (promised 1.800)" in output
        counting.start_anew()
        code, output = story.run(*look, "3")
        assert (code, "has started anew" in output, "a drop" in output) == (0, True, False), output

        # Served acceptance falls: a retraining with the latest prompts, whose drafter is promoted by the gates.
        (story.root / "latest.jsonl").write_text('{"prompt": "What is new?", "category": "news"}\n')
        counting.rates = [0.3, 0.1]
        code, output = story.run(*look, "60")
    assert code == 0, output
    assert f"a drop: {url} accepts 1.400 tokens a step; version 4 of {NAME} promised 1.800" in output
    assert counting.looks < 60, "the alarm came before the last look"
    assert story.aliases()["champion"] == "5", story.decision()
    assert story.aliases()["previous"] == "4"
    assert story.weights("5") == "on latest"
    stated = yaml.safe_load((story.root / "params.yaml").read_text())
    assert [f["path"] for f in stated["prepare_prompts"]["further_prompts"]] == ["latest.jsonl"]
    assert stated["drafters"]["one"]["training"]["warm_start"] == f"models:/{NAME}/4"
    assert "latest: news" in (story.root / "data/prompts/test.jsonl").read_text()

    # What was served is in MLflow, by position over time.
    (run,) = story.client.search_runs(["1"], "tags.`specdec.version` = '4' and tags.`specdec.watch.url` LIKE 'http%'")
    history = story.client.get_metric_history(run.info.run_id, "watch/rate/position_1")
    assert history[0].value == pytest.approx(0.5)
    assert history[-1].value == pytest.approx(0.3)
    assert story.client.get_metric_history(run.info.run_id, "watch/alarm")[-1].value == 1
