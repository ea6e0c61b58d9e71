"""`specdec synthesize` against a scripted server: what it takes, what it writes, what it says when it cannot."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from specdec.io import read_jsonl
from tests.cli.process import run
from tests.synthesis.scripted import KEY, Scripted

ROOT = Path(__file__).resolve().parents[2]
WRONG = "sk-wrong-7788"

Ran = "subprocess.CompletedProcess[str]"


@pytest.fixture
def server() -> Iterator[Scripted]:
    running = Scripted(lambda _last, _n: "ok")
    yield running
    running.stop()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows: list[dict[str, Any]] = [
        {"conversations": [{"from": "human", "value": f"question {i}"}, {"from": "gpt", "value": "old"}]}
        for i in range(6)
    ]
    rows[0]["conversations"].append({"from": "human", "value": "and then?"})
    rows.append(rows[1])  # a row that stands twice
    file = tmp_path / "conversations.json"
    file.write_text(json.dumps(rows))
    return file


@pytest.fixture
def specdec(tmp_path: Path) -> Callable[..., Any]:
    """Runs the command; keywords change its environment."""

    def ask(*arguments: object, **environment: str) -> Any:
        ran = run(tmp_path, "synthesize", *arguments, **{"SPECDEC_API_KEY": KEY, **environment})
        assert KEY not in ran.stdout + ran.stderr
        assert WRONG not in ran.stdout + ran.stderr
        assert "Traceback" not in ran.stderr
        return ran

    return ask


def refused(ran: Any, code: int = 2) -> str:
    """The one line that a run which could not go on has said."""
    assert ran.returncode == code, ran.stdout + ran.stderr
    [line] = ran.stderr.splitlines()
    assert line.startswith("specdec: error: ")
    return str(line)


def test_the_options_of_nvidias_example(specdec: Any, server: Scripted, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    ran = specdec(
        "--data_path", data, "--output_path", out, "--max_tokens", 33, "--temperature", 0.0, "--model", "base",
        "--url", f"{server.url}/v1", "--system_prompt", "Be brief.", "--metrics", tmp_path / "figures.json",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    rows = list(read_jsonl(out))
    asked = [[m["content"] for m in row["messages"] if m["role"] == "user"] for row in rows]
    assert asked == [["question 0", "and then?"], *([f"question {i}"] for i in range(1, 6)), ["question 1"]]
    assert all(row["messages"][0] == {"role": "system", "content": "Be brief."} for row in rows)
    assert all(row["segments"][0]["token_ids"] for row in rows)
    assert {body["max_tokens"] for body in server.bodies[1:]} == {33}
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (figures["data"]["rows"], figures["last_run"]["requests"]) == (7, 8)
    assert {f.name for f in tmp_path.iterdir()} == {"out.jsonl", "out.jsonl.journal", "figures.json", data.name}


def test_it_needs_neither_the_pipeline_nor_torch(server: Scripted, data: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from specdec.cli.app import app\n"
        f"app(['synthesize', '--data', {str(data)!r}, '--output', 'out.jsonl', '--url', {server.url!r}],"
        " standalone_mode=False)\n"
        "print(sorted({'dvc', 'mlflow', 'prefect', 'torch', 'transformers'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SPECDEC_API_KEY": KEY}
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == "[]"


def test_a_system_prompt_is_for_conversations_without_one(specdec: Any, server: Scripted, tmp_path: Path) -> None:
    user = {"role": "user", "content": "hi"}
    rows = [{"messages": [user]}, {"messages": [{"role": "system", "content": "Own."}, user]}]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("--data", "data.jsonl", "--output", "out.jsonl", "--url", server.url, "--system-prompt", "Given.")
    assert specdec(*options).returncode == 0
    made = [row["messages"][:-1] for row in read_jsonl(tmp_path / "out.jsonl")]
    assert made == [[{"role": "system", "content": "Given."}, user], [{"role": "system", "content": "Own."}, user]]


def test_the_environment_names_what_the_command_line_does_not(
    specdec: Any, server: Scripted, data: Path, tmp_path: Path
) -> None:
    options = ("--data", data, "--output", "out.jsonl")
    told = {"SPECDEC_SERVER_URLS": server.url, "SPECDEC_SERVER_MODEL": "another"}
    assert "another" in refused(specdec(*options, **told))
    ran = specdec(*options, **{**told, "SPECDEC_SERVER_MODEL": "base", "SPECDEC_CONCURRENCY": "1"})
    assert ran.returncode == 0, ran.stderr


def test_a_mix_of_temperatures(specdec: Any, server: Scripted, data: Path, tmp_path: Path) -> None:
    ran = specdec(
        "--data", data, "--output", "out.jsonl", "--url", server.url, "--samples", 2,
        "--temperature", 0, "--temperature", 0.7,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    rows = list(read_jsonl(tmp_path / "out.jsonl"))
    assert [row["sample"] for row in rows] == [0, 1] * 7
    for one, other in zip(rows[::2], rows[1::2], strict=True):
        assert {one["sampling"]["temperature"], other["sampling"]["temperature"]} == {0.0, 0.7}


def test_what_failed_is_asked_again_with_resume(specdec: Any, server: Scripted, data: Path, tmp_path: Path) -> None:
    server.plan = lambda last, _n: "400" if last == "question 3" else "ok"
    options = ("--data", data, "--output", "out.jsonl", "--url", server.url)
    first = specdec(*options)
    assert "1 of 7 rows failed" in refused(first)
    assert not (tmp_path / "out.jsonl").exists()
    assert "go on with --resume" in refused(specdec(*options))
    server.plan = lambda _last, _n: "ok"
    before = server.answered
    again = specdec(*options, "--resume")
    assert again.returncode == 0, again.stderr
    assert len(list(read_jsonl(tmp_path / "out.jsonl"))) == 7
    assert server.answered - before < 8, "what was answered is not asked again"
    server.stop()
    before = (tmp_path / "out.jsonl").read_bytes()
    assert "7 rows, 7 of them answered before" in specdec(*options, "--resume").stdout, "and no server is asked"
    assert (tmp_path / "out.jsonl").read_bytes() == before
    assert "max_tokens was 512 and is 9" in refused(specdec(*options, "--resume", "--max-tokens", 9))
    (tmp_path / "out.jsonl.journal").unlink()
    assert "is there already" in refused(specdec(*options))


def test_failures_within_the_budget_keep_the_journal(
    specdec: Any, server: Scripted, data: Path, tmp_path: Path
) -> None:
    server.plan = lambda last, _n: "400" if last == "question 3" else "ok"
    ran = specdec("--data", data, "--output", "out.jsonl", "--url", server.url, "--max-failed-share", 0.5)
    assert ran.returncode == 0
    assert len(list(read_jsonl(tmp_path / "out.jsonl"))) == 6
    assert "1 rows have no answer: --resume asks for them again" in ran.stdout


@pytest.fixture
def begun(specdec: Any, server: Scripted, data: Path, tmp_path: Path) -> Path:
    """The journal of a run that failed at one row."""
    server.plan = lambda last, _n: "400" if last == "question 3" else "ok"
    refused(specdec("--data", data, "--output", "out.jsonl", "--url", server.url))
    return tmp_path / "out.jsonl.journal"


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        ({"--url": "http://127.0.0.1:9"}, 75, "http://127.0.0.1:9"),
        ({"--url": "localhost:8000"}, 2, "begins with http:// or https://"),
        ({"--url": "http://me:secret@localhost:1"}, 2, "give the key in SPECDEC_API_KEY"),
        ({"--model": "another"}, 2, "another"),
        ({"--max-tokens": "99"}, 2, "max_tokens was 512 and is 99"),
        ({"--temperature": "0.5"}, 2, "was begun with other settings"),
        ({"--system-prompt": "Be rude."}, 2, "system_prompt was None and is 'Be rude.'"),
        ({"--data": "no-such-file"}, 2, "no-such-file is no file"),
        ({"--top-p": "0.5"}, 2, "command line: at temperature 0 alone --top-p, --top-k and --min-p have no effect"),
        ({"--temperature": "3"}, 2, "error: --temperature: input should be less than or equal to 2 (it is 3.0)"),
        ({"--cut-off": "guess"}, 2, "error: --cut-off: input should be 'keep', 'drop' or 'continue'"),
        ({"--cut-off": "continue"}, 2, "sampling.cut_off was 'keep' and is 'continue'"),
    ],
)
def test_bad_input_is_one_line_and_the_journal_stays(
    change: dict[str, str], code: int, says: str, specdec: Any, server: Scripted, data: Path, begun: Path
) -> None:
    before = begun.read_bytes()
    server.plan = lambda _last, _n: "ok"
    options = {"--data": str(data), "--output": "out.jsonl", "--url": server.url, **change}
    line = refused(specdec(*(part for pair in options.items() for part in pair), "--resume"), code)
    assert says in line
    assert begun.read_bytes() == before


@pytest.mark.parametrize(
    ("action", "code", "says"), [("html", 2, "a web page came instead of JSON"), ("500", 75, "HTTP 500")]
)
def test_a_server_that_is_none(
    action: str, code: int, says: str, specdec: Any, server: Scripted, data: Path, begun: Path
) -> None:
    before = begun.read_bytes()
    server.plan = lambda _last, _n: action
    assert says in refused(specdec("--data", data, "--output", "out.jsonl", "--url", server.url, "--resume"), code)
    assert begun.read_bytes() == before


def test_a_wrong_key(specdec: Any, server: Scripted, data: Path, begun: Path) -> None:
    before = begun.read_bytes()
    options = ("--data", data, "--output", "out.jsonl", "--url", server.url, "--resume")
    assert "SPECDEC_API_KEY is wrong" in refused(specdec(*options, SPECDEC_API_KEY=WRONG))
    assert "set SPECDEC_API_KEY" in refused(specdec(*options, SPECDEC_API_KEY=""))
    assert begun.read_bytes() == before
    assert KEY.encode() not in before


def test_a_data_file_that_changed(specdec: Any, server: Scripted, data: Path, begun: Path) -> None:
    before = begun.read_bytes()
    data.write_text(data.read_text().replace("question 5", "question 55"))
    line = refused(specdec("--data", data, "--output", "out.jsonl", "--url", server.url, "--resume"))
    assert "sha256 of the data was" in line
    assert begun.read_bytes() == before


def test_a_context_longer_than_the_servers(specdec: Any, server: Scripted, data: Path, tmp_path: Path) -> None:
    server.context = 2000
    data.write_text(data.read_text().replace("question 3", "question " + "3" * 2000))
    line = refused(specdec("--data", data, "--output", "out.jsonl", "--url", server.url))
    assert "too_long x 1" in line
    assert "maximum context length is 2000 tokens" in line
    assert (tmp_path / "out.jsonl.journal").exists()


def test_rows_that_are_no_conversation_are_told(specdec: Any, server: Scripted, tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"messages": [{"role": "user", "content": "hi"}]}\n{"messages": []}\n')
    ran = specdec("--data", "data.jsonl", "--output", "out.jsonl", "--url", server.url)
    assert ran.returncode == 0
    assert "1 of 2 rows are no conversation and get no answer: lines 2 (no conversation)" in ran.stdout
    (tmp_path / "data.jsonl").write_text('{"messages": []}\n')
    line = refused(specdec("--data", "data.jsonl", "--output", "other.jsonl", "--url", server.url))
    assert "data.jsonl has no conversation in its 1 rows (1 x no conversation)" in line


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        ({"--url": "http://127.0.0.1:9"}, 75, "http://127.0.0.1:9"),
        ({"--max-model-len": "100"}, 2, "--max-model-len needs --base"),
        ({"--output": "no/such/folder/out.jsonl"}, 2, "name a file in a folder that is there"),
        ({"--metrics": "."}, 2, "cannot be written"),
        ({"--output": "."}, 2, "cannot be written"),
        ({"--data": "."}, 2, ". is no file"),
    ],
)
def test_what_is_refused_at_once_leaves_nothing(
    change: dict[str, str], code: int, says: str, specdec: Any, server: Scripted, data: Path, tmp_path: Path
) -> None:
    options = {"--data": str(data), "--output": "out.jsonl", "--url": server.url, **change}
    assert says in refused(specdec(*(part for pair in options.items() for part in pair)), code)
    assert [file.name for file in tmp_path.iterdir()] == [data.name]


def test_a_server_without_token_ids_needs_the_base(
    specdec: Any, server: Scripted, data: Path, tmp_path: Path
) -> None:
    server.gives_ids = False
    line = refused(specdec("--data", data, "--output", "out.jsonl", "--url", server.url))
    assert "gives no token ids: name the base's folder" in line
    assert [file.name for file in tmp_path.iterdir()] == [data.name]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_interrupted_it_says_how_to_go_on(number: int, server: Scripted, data: Path, tmp_path: Path) -> None:
    server.delay = 0.5
    command = [sys.executable, "-c", "from specdec.cli import main; main()", "synthesize", "--data", str(data)]
    running = subprocess.Popen(
        [*command, "--output", "out.jsonl", "--url", server.url, "--concurrency", "1"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "SPECDEC_API_KEY": KEY},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 20
    while server.answered < 4 and time.monotonic() < deadline:  # the probe, and a row of two turns for certain
        time.sleep(0.01)
    running.send_signal(number)
    _, told = running.communicate(timeout=20)
    assert (running.returncode, told.splitlines()) == (
        130,
        ["specdec: interrupted: run the same command with --resume, it goes on from here"],
    )
    assert (tmp_path / "out.jsonl.journal").exists()


def test_a_closed_pipe_does_not_end_the_run(server: Scripted, data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from specdec.cli import main; main()", "synthesize", "--data", str(data)]
    running = subprocess.Popen(
        [*command, "--output", "out.jsonl", "--url", server.url],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "SPECDEC_API_KEY": KEY},
        stdout=subprocess.PIPE,
    )
    assert running.stdout
    running.stdout.close()
    assert running.wait(60) == 0
    assert len(list(read_jsonl(tmp_path / "out.jsonl"))) == 7


def test_a_data_file_that_changes_meanwhile(specdec: Any, server: Scripted, data: Path, tmp_path: Path) -> None:
    def plan(_last: str, _n: int) -> str:
        data.write_text(data.read_text() + " ")
        return "ok"

    server.plan = plan
    line = refused(specdec("--data", data, "--output", "out.jsonl", "--url", server.url))
    assert "changed while it was answered: restore it" in line
    assert not (tmp_path / "out.jsonl").exists()
