"""`specdec serve`: the command that it makes of a folder or a version, what it refuses, that nothing stays behind."""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from specdec.cli.app import main
from specdec.drafters import new_drafter
from specdec.targets import Target
from specdec.tracking.register import register
from tests.settings import eagle3_settings
from tests.tracking.example import (
    IDENTITY,
    mlflow_tables,
    params,
    register_settings,
    write_drafter,
    write_json,
    write_results,
)

NAME = "specdec-base"
KEY = "sk-serve-1234"
FAKE = """
import json, os, subprocess, sys, time
if os.environ.get("FAKE_MODE") == "dies":
    open("started", "w").close()
    print("RuntimeError: out of imaginary memory", file=sys.stderr, flush=True)
    sys.exit(3)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
keys = {name: os.environ.get(name) for name in ("VLLM_API_KEY", "SPECDEC_SERVE_KEY")}
with open("started.part", "w") as file:
    json.dump({"pids": [os.getpid(), child.pid], "arguments": sys.argv[1:], "keys": keys}, file)
os.rename("started.part", "started")
print("the fake is up", flush=True)
time.sleep(600)
"""

Serve = Callable[..., tuple[int, str, str]]


def fake_python(folder: Path, version: str = "0.32.0", there: bool = True) -> Path:
    """A python whose vLLM is the fake."""
    (folder / "fake.py").write_text(FAKE)
    python = folder / "vllm-python"
    found = json.dumps({"version": version, "torch": "2.13.0", "gpus": 0})
    python.write_text(
        f"""#!/bin/sh
case "$1$2" in
-c*metadata*) {f"echo '{found}'" if there else "exit 3"};;
-c*cuda*) exit 1;;
-c*) exit {0 if there else 1};;
-m*) shift; exec {shlex.quote(sys.executable)} {shlex.quote(str(folder / "fake.py"))} "$@";;
esac
"""
    )
    python.chmod(0o755)
    return python


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished pipeline, nothing registered, in the working directory; vLLM is a fake one."""
    names = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "DVC_ROOT", "SPECDEC_SERVE_KEY", "VLLM_API_KEY")
    for name in (*names, "SPECDEC_EXECUTION", "FAKE_MODE"):
        monkeypatch.delenv(name, raising=False)
    root = tmp_path / "project"
    root.mkdir()
    shutil.copy(mlflow_tables(), root / "mlflow.db")
    write_results(root)
    monkeypatch.chdir(root)
    monkeypatch.setenv("SPECDEC_VLLM_PYTHON", str(fake_python(tmp_path)))
    return root


@pytest.fixture
def serve(project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Serve:
    """Runs the command in this process: (exit code, stdout, stderr). What it starts by mistake ends at once."""
    monkeypatch.setenv("FAKE_MODE", "dies")

    def run(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        monkeypatch.setattr("sys.argv", ["specdec", "serve", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), *capfd.readouterr()

    return run


def option(line: str, name: str) -> str | None:
    """Of a command line that was printed."""
    words = shlex.split(line)
    return words[words.index(name) + 1] if name in words else None


def speculative(line: str) -> dict[str, object] | None:
    text = option(line, "--speculative-config")
    return json.loads(text) if text else None


def chains(lengths: dict[str, int | None], method: str = "medusa") -> dict[str, object]:
    """The content of speculative_config.json."""
    folder = "models/drafters/somewhere-else"
    return {
        size: n and {"method": method, "model": folder, "num_speculative_tokens": n} for size, n in lengths.items()
    }


def refused(serve: Serve, *arguments: str) -> str:
    """The one line of an error; nothing was printed or started."""
    code, out, err = serve(*arguments)
    assert (code, out) == (2, "")
    line = err.splitlines()[-1]
    assert line.startswith("specdec: error: ")
    assert not Path("started").exists()
    return line.removeprefix("specdec: error: ")


def test_a_folder(serve: Serve, project: Path, tmp_path: Path) -> None:
    code, out, err = serve("models/drafters/one", "--dry-run", "--dtype", "bfloat16", "--max-model-len", "512")
    assert code == 0
    words = shlex.split(out)
    start = words.index(str(tmp_path / "vllm-python"))
    assert "VLLM_CPU_KVCACHE_SPACE=1" in words[:start], "the environment is part of the command"
    assert words[start + 1 : start + 5] == [
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        f"{project}/models/base",
    ]
    assert "--host 127.0.0.1 --port 8000 --dtype bfloat16 --max-model-len 512" in out
    assert option(out, "--served-model-name") == "tiny/base"
    own = {"method": "medusa", "model": f"{project}/models/drafters/one", "num_speculative_tokens": 1}
    assert speculative(out) == own
    assert "the drafter's own chain: nothing measured" in err
    assert not (project / "started").exists()


@pytest.mark.parametrize(
    ("what", "version"), [([], 1), (["champion"], 1), (["challenger"], 2), (["2"], 2), ([f"models:/{NAME}/1"], 1)]
)
@pytest.mark.parametrize("bundled", [True, False])
def test_a_version(what: list[str], version: int, bundled: bool, serve: Serve, project: Path) -> None:
    register(params(register=register_settings(bundle_base=bundled)), lambda _line: None)
    code, out, err = serve(*what, "--dry-run")
    assert code == 0, err
    fetched = project / f".specdec/serving/{NAME}-{version}"
    assert (speculative(out) or {})["model"] == str(fetched / "drafter")
    assert option(out, "--model") == str(fetched / "base" if bundled else project / "models/base")
    assert f"models:/{NAME}/{version}, drafting 1 a step" in err


def test_the_settings_that_a_version_carries(serve: Serve, project: Path) -> None:
    report = project / "reports/one"
    write_drafter(project, "one", weights="one")
    write_json(report / "speculative_config.json", chains({"1": None, "4": 1}))
    register(params(), lambda _line: None)
    code, out, err = serve("1", "--dry-run", "--concurrency", "3")
    assert code == 0
    assert speculative(out) is None
    assert "WITHOUT a drafter: none is the fastest, predicted by the evaluation at 1 sequence at once" in err
    _, out, err = serve("1", "--dry-run", "--concurrency", "100")
    assert (speculative(out) or {})["num_speculative_tokens"] == 1
    assert "predicted by the evaluation at 4 sequences at once" in err
    write_json(project / "engine/one/speculative_config.json", chains({"2": 1, "8": None}))
    register(params(), lambda _line: None)
    _, out, err = serve("1", "--dry-run")
    assert speculative(out) == {
        "method": "medusa",
        "model": f"{project}/.specdec/serving/{NAME}-1/drafter",
        "num_speculative_tokens": 1,
    }
    assert "measured in vLLM at 2 sequences at once" in err, "the smallest number, where all are larger"
    assert speculative(serve("1", "--dry-run", "--concurrency", "8")[1]) is None
    # Of a folder of this project, its report is at hand.
    assert "measured in vLLM at 2" in serve("models/drafters/one", "--dry-run")[2]


def test_what_the_command_line_says_wins(serve: Serve, project: Path) -> None:
    write_json(project / "reports/one/speculative_config.json", chains({"1": None}))
    _, out, err = serve("models/drafters/one", "--dry-run", "--draft-tokens", "1")
    assert (speculative(out) or {})["num_speculative_tokens"] == 1
    assert "as --draft-tokens says" in err
    write_json(project / "reports/one/speculative_config.json", chains({"1": 1}))
    _, out, err = serve("models/drafters/one", "--dry-run", "--no-drafter")
    assert speculative(out) is None
    assert "without a drafter, as --no-drafter says" in err
    told = refused(serve, "models/drafters/one", "--draft-tokens", "2")
    assert told == f"--draft-tokens is 2, and {project}/models/drafters/one drafts 1 at most: its heads"
    assert "exclude each other" in refused(serve, "models/drafters/one", "--draft-tokens", "1", "--no-drafter")


def test_further_arguments_of_vllm(serve: Serve, project: Path) -> None:
    further = ["--", "--enforce-eager", "--served-model-name", "mine"]
    _, out, _ = serve("models/drafters/one", "--dry-run", *further)
    assert out.strip().endswith("--enforce-eager --served-model-name mine"), "the last name counts"
    register(params(), lambda _line: None)
    code, out, _ = serve("--dry-run", *further)
    assert code == 0, "without naming a version"
    assert out.strip().endswith("--enforce-eager --served-model-name mine")
    for argument in ("--api-key", "--api_key", "--api-k"):
        told = refused(serve, "models/drafters/one", "--", argument, KEY)
        assert told == f"{argument.replace('_', '-')} can be seen in the process list: set SPECDEC_SERVE_KEY instead"
        assert KEY not in refused(serve, "models/drafters/one", "--", f"{argument}={KEY}")
    assert "HF_TOKEN instead" in refused(serve, "models/drafters/one", "--", f"--hf-token={KEY}")
    assert refused(serve, "models/drafters/one", "--", "--port=1").startswith("--port cannot stand behind `--`")


def test_the_base_that_is_not_there(serve: Serve, project: Path, tmp_path: Path) -> None:
    register(params(), lambda _line: None)
    (project / "models/base").rename(tmp_path / "moved")
    drafter = f"{project}/.specdec/serving/{NAME}-1/drafter"
    told = refused(serve, "1")
    assert (
        told == f"the base of {drafter} did not come with it, and {project}/models/base is none: name it with --base"
    )
    code, out, _ = serve("1", "--base", str(tmp_path / "moved"), "--dry-run")
    assert (code, option(out, "--model")) == (0, str(tmp_path / "moved"))
    assert "is no base: config.json is missing" in refused(serve, "1", "--base", str(tmp_path))


def test_another_base(serve: Serve, project: Path, tmp_path: Path) -> None:
    register(params(), lambda _line: None)
    shutil.copytree(project / "models/base", tmp_path / "fits")
    record = {
        "source": "embedded",
        "revision": None,
        "name": "tiny/base",
        "identity": IDENTITY | {"weights": "f" * 64},
    }
    write_json(project / "models/base/specdec.json", record)
    told = refused(serve, "1")
    assert f"cannot be served with {project}/models/base: " in told
    assert "base.weights is aaaaaaaaaaaa, wanted ffffffffffff" in told
    assert told.endswith("for another base: name its own with --base")
    assert serve("1", "--base", str(tmp_path / "fits"), "--dry-run")[0] == 0
    assert refused(serve, "1", "--base", "models/base") == told
    (tmp_path / "fits/specdec.json").unlink()
    assert "holds no *.safetensors" in refused(serve, "1", "--base", str(tmp_path / "fits"))


def test_a_drafter_that_is_damaged(serve: Serve, project: Path) -> None:
    weights = project / "models/drafters/one/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    told = refused(serve, "models/drafters/one")
    assert "models/drafters/one/model.safetensors is damaged" in told
    weights.unlink()
    assert "model.safetensors is missing" in refused(serve, "models/drafters/one")
    (project / "models/drafters/one/specdec.json").unlink()
    assert "specdec.json is missing" in refused(serve, "models/drafters/one")


def test_layer_ids_that_are_wrong(serve: Serve, target: Target, base_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "d"
    drafter = new_drafter(target, eagle3_settings({"aux_layers": [0, 1, 2]}))
    drafter.save_pretrained(folder, {"base": target.identity.as_dict()})
    code, out, err = serve(str(folder), "--base", str(base_folder), "--dry-run")
    assert code == 0, err
    assert speculative(out) == {"method": "eagle3", "model": str(folder), "num_speculative_tokens": 3}
    config = json.loads((folder / "config.json").read_text())
    config["eagle_aux_hidden_state_layer_ids"] = [0, 1, 9]
    write_json(folder / "config.json", config)
    assert "eagle_aux_hidden_state_layer_ids" in refused(serve, str(folder), "--base", str(base_folder))


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"one": null}', '{"1": 3}', "other method", "no number", "more than its heads"]
)
def test_serving_settings_that_are_none(content: str, serve: Serve, project: Path) -> None:
    file = project / "reports/one/speculative_config.json"
    contents = {
        "other method": json.dumps(chains({"1": 1}, method="eagle")),
        "no number": json.dumps({"1": {"method": "medusa"}}),
        "more than its heads": json.dumps(chains({"1": 2})),
    }
    file.write_text(contents.get(content, content))
    told = refused(serve, "models/drafters/one")
    assert told.startswith(f"{file} {'is not of' if content in contents else 'is damaged'}")
    assert serve("models/drafters/one", "--draft-tokens", "1", "--dry-run")[0] == 0


def test_what_is_no_drafter(serve: Serve, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refused(serve, "./nothing").startswith("./nothing is no folder: name one with a drafter, an alias")
    there = f"models:/{NAME}@nobody is not in the registry: "
    assert refused(serve, "nobody").startswith(there)
    (project / "mlflow.db").unlink()
    assert "there is no registry yet" in refused(serve)
    assert not (project / "mlflow.db").exists()
    assert "int8" in refused(serve, "models/drafters/one", "--dtype", "int8")
    monkeypatch.chdir(tmp_path)
    assert "params.yaml is not there" in refused(serve)


def test_no_vllm(serve: Serve, project: Path, tmp_path: Path) -> None:
    fake_python(tmp_path, there=False)
    told = refused(serve, "models/drafters/one")
    assert told.startswith(f"vLLM is not installed for {tmp_path}/vllm-python: `pip install vllm` into")
    fake_python(tmp_path, version="0.9.1")
    assert "vLLM 0.9.1" in (told := refused(serve, "models/drafters/one"))
    assert "is too old for these drafters" in told


def test_a_port_in_use(serve: Serve) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        told = refused(serve, "models/drafters/one", "--port", str(port))
        assert told.startswith(f"port {port} of 127.0.0.1 cannot be used (Address already in use): stop what listens")
        assert serve("models/drafters/one", "--port", str(port), "--dry-run")[0] == 0, "nothing is started there"
    assert "cannot be used" in refused(serve, "models/drafters/one", "--host", "no-such-host.invalid")


def test_a_server_that_dies(serve: Serve) -> None:
    code, _, err = serve("models/drafters/one", "--port", str(free_port()))
    assert code == 3
    last = err.splitlines()[-2:]
    assert last[0] == "RuntimeError: out of imaginary memory"
    assert last[1] == "specdec: error: vLLM ended with exit code 3: its last lines above say why"


def test_a_key_that_is_none(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECDEC_SERVE_KEY", "sk two words")
    told = refused(serve, "models/drafters/one")
    assert told.startswith("SPECDEC_SERVE_KEY holds a space")
    assert "two words" not in told


def test_the_key_is_not_printed(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECDEC_SERVE_KEY", KEY)
    code, out, err = serve("models/drafters/one", "--dry-run")
    assert code == 0
    assert KEY not in out + err
    assert "takes the key from VLLM_API_KEY" in err


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.parametrize(
    ("number", "variable"), [(signal.SIGTERM, "SPECDEC_SERVE_KEY"), (signal.SIGINT, "VLLM_API_KEY")]
)
def test_it_serves_until_it_is_told_to_stop(number: signal.Signals, variable: str, project: Path) -> None:
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "specdec",
        "serve",
        "models/drafters/one",
        "--port",
        str(port),
        "--host",
        "0.0.0.0",
    ]
    path = os.pathsep.join(filter(None, [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, variable: KEY, "PYTHONPATH": path}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        started = json.loads(_wait_for(project / "started", process).read_text())
        tree = psutil.Process(process.pid).children(recursive=True)
        assert {p.pid for p in tree} > set(started["pids"])
        assert started["keys"] == {"VLLM_API_KEY": KEY, "SPECDEC_SERVE_KEY": None}
        assert not any(KEY in word for p in tree for word in p.cmdline())
        process.send_signal(number)
        out, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "the fake is up" in out
    assert out.splitlines()[-1] == "specdec: stopped"
    assert KEY not in out
    assert not [p for p in tree if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def _wait_for(file: Path, process: "subprocess.Popen[str]") -> Path:
    deadline = time.monotonic() + 90
    while not file.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return file
