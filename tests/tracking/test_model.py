"""The registered model loads on its own and generates speculatively."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from specdec.config import MedusaSettings
from specdec.decoding import generate
from specdec.drafters import Sampling, load_drafter, new_drafter
from specdec.io import write_json
from specdec.targets import Target
from specdec.targets.embedded import EmbeddedSettings
from specdec.targets.embedded.model import new_model
from specdec.targets.embedded.tokenizer import train_tokenizer
from specdec.targets.identity import compute_identity
from specdec.tracking.model import requirements
from specdec.tracking.register import register
from specdec.tracking.store import Store, locate
from tests.tracking.example import params, register_settings, settings

TINY = EmbeddedSettings(
    vocab_size=320,
    hidden_size=64,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    intermediate_size=96,
    max_positions=256,
    tie_embeddings=False,
    max_tokens=128,
    steps=1,
)

LOAD_ELSEWHERE = """
import json, sys, mlflow
assert "specdec" not in sys.modules
model = mlflow.pyfunc.load_model("models:/specdec-tiny@champion")
params = {"max_new_tokens": 12, "temperature": 1.0, "top_k": 20, "seed": 3}
out = model.predict(["What is open?"], params=params)
out += model.predict([{"messages": json.loads(sys.argv[1])}], params=params)
import specdec
print(json.dumps({"rows": out, "code": specdec.__file__}))
"""


def make_base(folder: Path) -> Target:
    """An untrained Llama with a real tokenizer and chat template, sharp enough to answer what it is asked."""
    model = new_model(TINY)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)
    tokenizer = train_tokenizer(iter(["What is open? It opens a file."] * 4), TINY.vocab_size, 256)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    identity = compute_identity(folder).as_dict()
    record = {"source": "embedded", "revision": None, "name": "tiny", "identity": identity}
    write_json(folder / "specdec.json", record)
    return Target.from_pretrained(folder, device="cpu")


@pytest.fixture
def real_drafter(project: Path) -> Path:
    """The project's drafter `one` becomes a real checkpoint for a real base."""
    target = make_base(project / "models/base")
    heads = MedusaSettings.model_validate(settings()["drafters"]["one"])
    torch.manual_seed(0)
    drafter = new_drafter(target, heads)
    provenance = {"base": target.identity.as_dict(), "data": {"train": "0" * 64}}
    drafter.save_pretrained(project / "models/drafters/one", provenance)
    return project


def load_elsewhere(root: Path, folder: Path, messages: object) -> dict[str, Any]:
    """What the model says in a process that knows nothing but the store's address."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", LOAD_ELSEWHERE, json.dumps(messages)],
        cwd=folder,
        env={**kept, "MLFLOW_TRACKING_URI": locate(root).uri},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def only_one(bundle_base: bool) -> dict[str, object]:
    one = {"one": settings()["drafters"]["one"]}
    return {"drafters": one, "register": register_settings(bundle_base=bundle_base)}


def test_it_loads_without_the_project_and_generates(real_drafter: Path, store: Store, tmp_path: Path) -> None:
    register(params(**only_one(bundle_base=True)), lambda line: None)
    (real_drafter / "models").rename(tmp_path / "moved")
    chat = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "What is open?"}]
    result = load_elsewhere(real_drafter, tmp_path, chat)
    target = Target.from_pretrained(tmp_path / "moved/base", device="cpu")
    drafter = load_drafter(tmp_path / "moved/drafters/one", target)
    for messages, row in zip([chat[1:], chat], result["rows"], strict=True):
        ids = target.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        expected = generate(target, drafter, ids, 12, Sampling(1.0, top_k=20), seed=3)
        assert row == {
            "text": target.tokenizer.decode(expected.token_ids, skip_special_tokens=True),
            "tokens": len(expected.token_ids),
            "steps": expected.steps,
            "acceptance_length": expected.acceptance_length,
        }
    assert result["rows"][0]["text"] != result["rows"][1]["text"]
    assert str(real_drafter / "mlartifacts") in result["code"]


def test_a_base_that_is_not_bundled_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from specdec.tracking.speculative_model import _base

    here, told = tmp_path / "here", tmp_path / "told"
    for folder in (here, told):
        write_json(folder / "config.json", {})
    reference = {"name": "tiny", "path": str(here), "source": "embedded", "revision": None}
    assert _base({"base": str(told)}, reference) == told
    assert _base({}, reference) == here
    monkeypatch.setenv("SPECDEC_BASE", str(told))
    assert _base({}, reference) == told
    monkeypatch.delenv("SPECDEC_BASE")
    with pytest.raises(FileNotFoundError, match=r"tiny is not in .*SPECDEC_BASE"):
        _base({}, {**reference, "path": str(tmp_path / "gone")})


def test_requirements_are_pinned_and_name_no_local_build() -> None:
    pins = dict(line.split("==") for line in requirements())
    assert pins["torch"].count(".") == 2
    assert "+" not in "".join(pins.values())
    assert {"mlflow", "transformers", "safetensors"} <= set(pins)


@pytest.mark.parametrize(
    "rows",
    [
        pd.DataFrame({"question": ["hi"]}),
        pd.DataFrame([[{"role": "user", "content": "hi"}]]),
        pd.DataFrame({"messages": [[{"role": "user"}]]}),
        pd.DataFrame({"messages": [[]]}),
        pd.DataFrame({"prompt": ["a"], "messages": [[]]}),
    ],
)
def test_rows_that_are_no_prompts_are_refused(rows: pd.DataFrame) -> None:
    from specdec.tracking.speculative_model import conversations

    with pytest.raises(ValueError, match="prompt"):
        conversations(rows)


def test_every_parameter_of_the_answer_can_be_given() -> None:
    """MLflow passes on what the signature names, and nothing else."""
    from specdec.tracking.model import _signature
    from specdec.tracking.speculative_model import DEFAULTS

    assert {spec.name: spec.default for spec in _signature().params} == DEFAULTS
