"""`specdec export`: there and back again, and what is refused before anything is written."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from specdec.cli.app import main
from specdec.drafters import Drafter, new_drafter
from specdec.targets import Target
from tests.export import folders
from tests.settings import medusa_settings


@pytest.fixture
def place(base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the base in it, in which the command runs."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models/base").symlink_to(base_folder)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["specdec", "export", *line.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    ours = [line for line in err.splitlines() if line and not line.startswith("Loading weights")]
    return int(ended.value.code or 0), out, "\n".join(ours)


def drafter_for(layout: str, target: Target) -> Drafter:
    if layout == "medusa":
        return folders.medusa(target, 1, bias=False)
    width = {"dimensions": {"hidden_size": 48, "num_attention_heads": 3}} if layout == "sglang" else {}
    return folders.eagle3(target, aux_layers=[1] if layout == "sglang" else [1, 2], **width)


START = {
    "medusa": "",
    "speculators": "start: vllm serve d/there\n",
    "sglang": "start: python -m sglang.launch_server --config d/there/sglang.yaml\n",
    "trtllm": "start: trtllm-serve models/base --config d/there/trtllm.yaml\n",
}


@pytest.mark.parametrize("layout", START)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_there_and_back_again(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], layout: str, dtype: str
) -> None:
    """To the byte, in the type that the weights have; ours again is a drafter that says where it comes from."""
    target = Target.from_pretrained("models/base", dtype=dtype, device="cpu")
    drafter_for(layout, target).to(getattr(torch, dtype)).save_pretrained(place / "d/ours")
    code, out, err = run(monkeypatch, capsys, f"d/ours --output d/there --to {layout}")
    assert (code, err) == (0, "")
    assert out.startswith("d/there: ")
    assert out.partition("\n")[2] == START[layout]
    code, _, err = run(monkeypatch, capsys, f"d/there --from {layout} --to vllm --output d/back")
    assert (code, err) == (0, "")
    for file in ("model.safetensors", "config.json"):
        assert (place / "d/back" / file).read_bytes() == (place / "d/ours" / file).read_bytes()
    record = json.loads((place / "d/back/specdec.json").read_text())
    assert record["base"] == target.identity.as_dict()
    assert record["source"]["layout"]


def test_a_drafter_of_ours_keeps_its_record(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = Target.from_pretrained("models/base", device="cpu")
    drafter = new_drafter(target, medusa_settings())
    drafter.save_pretrained(place / "ours", {"data": {"sha256": "of the data"}})
    code, _, err = run(monkeypatch, capsys, "ours --to vllm --output again")
    assert (code, err) == (0, "")
    for file in (place / "ours").iterdir():
        assert (place / "again" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("ours --to onnx --output there", "--to is 'onnx': choose one of vllm, speculators, medusa, sglang, trtllm"),
        ("ours --to medusa --from onnx --output there", "--from is 'onnx': choose one of speculators, medusa, "),
        ("ours --to medusa --output taken", "--output taken is there already: remove it, or name another folder"),
        ("ours --to medusa --output ours", "--output ours is there already"),
        ("none --to medusa --output there", "none is no drafter: config.json is missing"),
        ("ours --to medusa --base none --output there", "none is not there: name a model's folder"),
        ("ours --to trtllm --output there", "TensorRT-LLM takes EAGLE-3 alone, and this drafter is Medusa"),
        (
            "ours --to vllm --from speculators --output there",
            "a drafter of specdec, in vLLM's layout, and not in spec",
        ),
        ("theirs --to vllm --from speculators --output there", "in the layout of the original Medusa, and not of sp"),
    ],
)
def test_what_is_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str, told: str
) -> None:
    """In one line, with an exit code, and nothing is written."""
    heads = folders.medusa(Target.from_pretrained("models/base", device="cpu"), 1)
    heads.save_pretrained(place / "ours")
    folders.write(place / "theirs", folders.medusa_original(heads))
    (place / "taken").mkdir()
    before = sorted(path.name for path in place.iterdir())
    capsys.readouterr()
    code, out, err = run(monkeypatch, capsys, line)
    assert (code, out) == (2, "")
    assert err.startswith("specdec: error: ")
    assert told in err
    assert "\n" not in err
    assert sorted(path.name for path in place.iterdir()) == before
    assert (place / "ours/config.json").exists()


def test_a_drafter_of_another_base(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drafter = folders.medusa(Target.from_pretrained("models/base", device="cpu"), 1)
    drafter.save_pretrained(place / "ours")
    record = json.loads((place / "ours/specdec.json").read_text())
    record["base"]["weights"] = "0" * 64
    (place / "ours/specdec.json").write_text(json.dumps(record))
    code, _, err = run(monkeypatch, capsys, "ours --to medusa --output there")
    assert code == 2
    assert "ours was trained for another base" in err
    assert not (place / "there").exists()
    assert load_file(place / "ours/model.safetensors")
