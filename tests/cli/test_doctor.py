"""`specdec doctor`: what is there, what each engine can do, and what the settings lack."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from specdec.cli.app import main

ROOT = Path(__file__).resolve().parents[2]


def fake_python(folder: Path, version: str = "0.32.0", gpus: int = 0, there: bool = True) -> Path:
    """A python that says of its vLLM what it is told to."""
    python = folder / "vllm-python"
    found = json.dumps({"version": version, "torch": "2.13.0", "gpus": gpus})
    told = f"echo '{found}'" if there else "exit 3"
    python.write_text(f'#!/bin/sh\ncase "$2" in *metadata*) {told};; *) exit {0 if there else 1};; esac\n')
    python.chmod(0o755)
    return python


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the committed settings and no vLLM."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPECDEC_VLLM_PYTHON", str(fake_python(tmp_path, there=False)))
    for name in ("SPECDEC_SERVER_URLS", "SPECDEC_API_KEY", "CXX"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def settings(project: Path, section: str = "synthesize", **changes: object) -> None:
    content = yaml.safe_load((project / "params.yaml").read_text())
    content[section] |= changes
    (project / "params.yaml").write_text(yaml.safe_dump(content))


def doctor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    monkeypatch.setattr("sys.argv", ["specdec", "doctor"])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert err == ""
    return int(ended.value.code or 0), out


def rows(out: str, section: str) -> dict[str, str]:
    """{name: what} of a section."""
    lines = iter(out.splitlines())
    assert section in lines, "and what stands before it is gone"
    found = {}
    for line in lines:
        if not line.startswith("  "):
            break
        name, _, what = line.strip().partition("  ")
        found[name] = what.strip()
    return found


def missing(out: str) -> list[str]:
    return [line.removeprefix("missing: ") for line in out.splitlines() if line.startswith("missing: ")]


def test_the_machine_and_no_vllm(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    import transformers

    code, out = doctor(monkeypatch, capsys)
    assert code == 0, "the settings ask for transformers"
    assert "\x1b" not in out
    own = rows(out, "specdec")
    assert (own["torch"], own["transformers"]) == (torch.__version__, transformers.__version__)
    assert "GiB" in rows(out, "machine")["memory"]
    assert {"C++ compiler", "git"} == set(rows(out, "tools"))
    vllm = rows(out, "vLLM")
    assert vllm["found"] == f"not installed for {project}/vllm-python"
    assert vllm["to do"].startswith(
        "`pip install vllm` into a virtual environment of its own, and SPECDEC_VLLM_PYTHON"
    )
    assert rows(out, "transformers serve")["drafters"].startswith("no")
    assert rows(out, "settings") == {"params.yaml": "has all that it needs here"}


@pytest.mark.parametrize(
    ("gpus", "where", "seeds"), [(0, "the CPU", "no: "), (1, "1 GPU", "yes"), (2, "2 GPUs", "yes")]
)
def test_vllm(
    gpus: int,
    where: str,
    seeds: str,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    python = fake_python(project, gpus=gpus)
    monkeypatch.setenv("SPECDEC_VLLM_PYTHON", str(python))
    settings(project, engine="vllm")
    code, out = doctor(monkeypatch, capsys)
    assert code == 0
    vllm = rows(out, "vLLM")
    assert vllm["found"] == f"vLLM 0.32.0 (torch 2.13.0, on {where}) of {python}"
    assert (vllm["synthesis"], vllm["drafters"]) == ("yes", "yes: medusa, eagle, eagle3")
    assert vllm["seeds"].startswith(seeds)


def test_vllm_that_is_too_old(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    python = fake_python(project, version="0.9.1")
    monkeypatch.setenv("SPECDEC_VLLM_PYTHON", str(python))
    settings(project, engine="auto")
    code, out = doctor(monkeypatch, capsys)
    assert code == 1
    assert rows(out, "vLLM")["synthesis"].startswith("no: up to 0.10")
    told, benchmark = missing(out)
    assert benchmark.startswith("benchmark.engine is auto, and vLLM 0.9.1 ")
    assert told.startswith("synthesize.engine is auto, here vllm (vLLM is installed for ")
    assert told.endswith(f"gives no token ids: `{python} -m pip install --upgrade vllm`")


def test_settings_that_want_a_vllm(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings(project, engine="vllm")
    code, out = doctor(monkeypatch, capsys)
    assert code == 1
    assert rows(out, "settings") == {"params.yaml": "1 missing"}
    (told,) = missing(out)
    assert told.startswith(f"synthesize.engine is vllm, and vLLM is not installed for {project}/vllm-python: `pip")
    monkeypatch.setenv("SPECDEC_SERVER_URLS", "http://localhost:8000/v1")
    assert doctor(monkeypatch, capsys)[0] == 0, "servers that run need none"


@pytest.mark.parametrize(
    ("section", "changes", "told"),
    [
        ("benchmark", {"engine": "vllm"}, "benchmark.engine is vllm, and vLLM is not installed for "),
        ("register", {"require_engine": True}, "register.require_engine is true, and vLLM is not installed for "),
        ("benchmark", {"engine": "none"}, ""),
    ],
)
def test_a_benchmark_that_wants_a_vllm(
    section: str,
    changes: dict[str, object],
    told: str,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings(project, section, **changes)
    code, out = doctor(monkeypatch, capsys)
    assert code == (1 if told else 0)
    assert [line[: len(told)] for line in missing(out)] == [told] * code


def test_a_mix_of_temperatures_wants_vllm(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mix = {"temperatures": [{"temperature": 0.0, "share": 0.5}, {"temperature": 1.0, "share": 0.5}]}
    sampling = yaml.safe_load((project / "params.yaml").read_text())["synthesize"]["sampling"]
    settings(project, engine="auto", sampling=sampling | mix)
    monkeypatch.delenv("SPECDEC_VLLM_PYTHON")
    monkeypatch.setattr("sys.executable", str(fake_python(project, there=False)))
    code, out = doctor(monkeypatch, capsys)
    assert code == 1
    assert missing(out)[0].startswith("synthesize.sampling.temperatures: `transformers serve` samples all")


def test_what_else_the_settings_need(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(project))  # no git, no compiler
    monkeypatch.setattr("transformers.utils.import_utils.is_serve_available", lambda: False)
    monkeypatch.setattr("specdec.cli.doctor.PIPELINE", ("dvc", "no-such-package"))
    code, out = doctor(monkeypatch, capsys)
    assert code == 1
    assert rows(out, "tools") == {
        "C++ compiler": "none (c++, g++, clang++): decoding cannot be compiled; all else works",
        "git": "not installed",
    }
    git, engine, pipeline = missing(out)
    assert git.startswith("clone_data.url is embedded, a git repository, and git is not installed")
    expected = (
        "synthesize.engine is transformers, and its server is not installed: `pip install 'transformers[serving]'`"
    )
    assert engine == expected
    assert pipeline.startswith("stages and registration need no-such-package: ")


def test_settings_that_are_not_there_or_not_valid(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings(project, engine="sglang", dtype="int8")
    code, out = doctor(monkeypatch, capsys)
    assert code == 1
    assert [line.partition(": ")[2].split(":")[0] for line in missing(out)] == [
        "synthesize.engine",
        "synthesize.dtype",
    ]
    (project / "params.yaml").unlink()
    code, out = doctor(monkeypatch, capsys)
    assert code == 0
    assert rows(out, "settings") == {"params.yaml": "not here: nothing was held against it"}
