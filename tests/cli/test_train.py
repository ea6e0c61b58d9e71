"""`specdec train`: from conversations or token ids to a drafter, and what it says when it cannot."""

import gzip
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file
from transformers.utils import logging
from typer.main import get_command

from specdec.cli.app import app, main
from specdec.cli.options import in_options, of_method, of_training
from specdec.config.defaults import METHOD_DEFAULTS, TRAINING_DEFAULTS
from specdec.data.conversations import parse_row
from specdec.data.rendering import render
from specdec.decoding import generate
from specdec.drafters import load_drafter
from specdec.serving.vllm import VLLM_PYTHON
from specdec.targets import Target
from tests.serving.states_server import Stand
from tests.tiny import write_base

ROOT = Path(__file__).resolve().parents[2]
FILES = ("config.json", "model.safetensors", "specdec.json")
SHORT = ("--max-length", 64, "--batch-size", 2, "--lr", 1e-2)
Rows = list[dict[str, Any]]


@dataclass
class Ran:
    code: int
    out: str
    err: str


Specdec = Callable[..., Ran]


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    precision, threads = torch.get_float32_matmul_precision(), torch.get_num_threads()
    torch.set_num_threads(1)
    logging.disable_progress_bar()  # the command sets it in the environment, which is read at the first import
    yield
    if not constants.HF_HUB_DISABLE_PROGRESS_BARS:  # or there are none anyway, and asking for them is a warning
        logging.enable_progress_bar()
    torch.set_float32_matmul_precision(precision)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "base"
    write_base(folder, max_position_embeddings=2048)
    return folder


@pytest.fixture(scope="module")
def target(base: Path) -> Target:
    return Target.from_pretrained(base, device="cpu")


@pytest.fixture
def specdec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Specdec]:
    """Runs the command in this process: importing torch takes longer than training."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("SPECDEC_")]:
        monkeypatch.delenv(name)

    def run(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["specdec", "train", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        return Ran(code, *capsys.readouterr())

    before = signal.getsignal(signal.SIGTERM)
    yield run
    signal.signal(signal.SIGTERM, before)


def refused(ran: Ran, code: int = 2) -> str:
    """The one line that a run which could not go on has said."""
    assert ran.code == code, ran
    [line] = ran.err.splitlines()
    assert line.startswith("specdec: error: ")
    return line


def done(ran: Ran) -> str:
    assert (ran.code, ran.err) == (0, ""), ran
    return ran.out


def texts(count: int) -> list[tuple[str, str]]:
    return [(f"question {i}?", f"answer {'abc'[i % 3] * 6} of {i}") for i in range(count)]


def sharegpt(count: int = 16) -> Rows:
    return [{"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]} for q, a in texts(count)]


def messages(count: int = 16) -> Rows:
    return [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in texts(count)
    ]


def anteater(count: int = 16) -> Rows:
    return [
        {
            "system": "",
            "mask": "User",
            "dataset": "open_platypus_commercial",
            "conversations": [
                {"from": "User", "value": q, "label": None},
                {"from": "Assistant", "value": a, "label": "quality:6"},
            ],
        }
        for q, a in texts(count)
    ]


def token_rows(target: Target, count: int = 16) -> Rows:
    """What `synthesize` writes, but for the text, which says something else than the ids."""
    found = render(target.tokenizer, [parse_row(row) for row in messages(count)], target.stop_ids)
    return [
        {
            "messages": [{"role": "user", "content": "Ä"}, {"role": "assistant", "content": "ö"}],
            "segments": r["segments"],
        }
        for r in found
    ]


def write(file: Path, rows: Rows) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "data.jsonl", sharegpt())


def record(folder: Path) -> Any:
    return json.loads((folder / "specdec.json").read_text())


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


# What goes in


@pytest.mark.parametrize("mode", METHOD_DEFAULTS)
def test_every_kind_of_file_gives_the_same_drafter(
    specdec: Specdec, base: Path, target: Target, tmp_path: Path, mode: str
) -> None:
    """Token ids are taken as they are, whatever the text beside them says."""
    evaluation = write(tmp_path / "eval.jsonl", messages(4))
    ids = token_rows(target)
    kinds = {"sharegpt": sharegpt(), "ids": ids}
    if mode == "medusa":  # the reader knows no method
        kinds |= {"messages": messages(), "anteater": anteater()}
        kinds["ids-alone"] = [{"segments": row["segments"]} for row in ids]
    quick = () if mode == "medusa" else ("--unroll-steps", 2)
    made: dict[str, tuple[bytes, Any]] = {}
    for name, rows in kinds.items():
        file = write(tmp_path / f"{name}.jsonl", rows)
        torch.manual_seed(len(made))  # whatever this process did before
        out = done(specdec("--model", base, "--data", file, "--eval-data", evaluation, "--mode", mode, *SHORT, *quick,
                           "--output-dir", name))  # fmt: skip
        assert (f"{file}: 16 rows, 16 conversations with answers, rendered by the chat template" in out) == (
            not name.startswith("ids")
        )
        made[name] = (tmp_path / name / "model.safetensors").read_bytes(), record(tmp_path / name)["validation"]
        assert not (tmp_path / f"{name}.work").exists()
    assert all(found == made["sharegpt"] for found in made.values())
    drafter = load_drafter(tmp_path / "ids", target)
    assert drafter.method == mode
    prompt = ids[0]["segments"][0]["prompt_token_ids"]
    made_fast, plain = generate(target, drafter, prompt, 60), generate(target, None, prompt, 60)
    assert made_fast.token_ids == plain.token_ids
    assert made_fast.steps > 0


def test_ids_that_no_text_gives_are_trained_on(
    specdec: Specdec, base: Path, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop token in the middle of an answer, halves of characters: decoding and encoding would lose them."""
    from specdec import training

    taken: list[Any] = []
    real = training.train

    def spying(*given: Any) -> Any:
        taken.append(given[2])
        return real(*given)

    monkeypatch.setattr(training, "train", spying)
    odd = [255, 200, 2, 0, 5, 255, 2]
    assert target.tokenizer.encode(target.tokenizer.decode(odd)) != odd
    rows = [{"segments": [{"prompt_token_ids": [1, 4, 9, 5], "token_ids": odd, "finish_reason": "stop"}]}] * 3
    file = write(tmp_path / "ids.jsonl", rows)
    done(specdec("--model", base, "--data", file, "--eval-data", file, "--mode", "medusa", *SHORT,
                 "--output-dir", "out"))  # fmt: skip
    [[row]] = taken
    assert row.token_ids[:33].tolist() == [1, 4, 9, 5, *odd] * 3
    assert row.loss_mask[:33].tolist() == ([False] * 4 + [True] * 7) * 3


def test_an_array_and_a_text_that_says_segments_are_conversations(
    specdec: Specdec, base: Path, tmp_path: Path
) -> None:
    rows = messages()
    rows[0]["messages"][0]["content"] = "segments"
    file = tmp_path / "data.json"
    file.write_text(json.dumps(rows))
    out = done(specdec("--model", base, "--data", file, "--eval-share", 0.3, "--mode", "medusa", *SHORT,
                       "--output-dir", "out"))  # fmt: skip
    assert f"{file}: 16 rows, 16 conversations with answers" in out


def test_rows_that_are_no_conversation_are_told(specdec: Specdec, base: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "data.jsonl", [{"messages": []}, *sharegpt(), {"messages": [{"role": "user"}]}])
    out = done(specdec("--model", base, "--data", file, "--eval-share", 0.3, "--mode", "medusa", *SHORT,
                       "--output-dir", "out"))  # fmt: skip
    assert "18 rows (1 x no conversation, 1 x text is not a string), 16 conversations with answers" in out


# The command line


@pytest.mark.parametrize("spelling", ["-", "_"])
@pytest.mark.parametrize("mode", ["medusa", "eagle"])
def test_the_commands_of_nvidias_example(
    specdec: Specdec, base: Path, target: Target, tmp_path: Path, mode: str, spelling: str
) -> None:
    file = write(tmp_path / "train.jsonl", anteater(60))
    own = {"medusa": ["--medusa-num-heads", "2", "--medusa-num-layers", "1"], "eagle": ["--eagle-num-layers", "1"]}
    command = ["--model", str(base), "--data", str(file), "--mode", mode, "--num-epochs", "1", "--lr", "1e-5"]
    command += ["--save-steps", "1000", "--output-dir", "drafter", *own[mode]]
    length = {"max_length": 64} if spelling == "_" else {}  # the default's rows of 2048 take their time
    command += ["--training-seq-len", "64"] if length else []
    out = done(specdec(*("--" + part[2:].replace("-", spelling) if part[:2] == "--" else part for part in command)))
    assert out.splitlines()[-2].startswith("validation acceptance length 1.")
    assert out.splitlines()[-1].startswith("drafter is ready: specdec generate --base ")
    assert {file.name for file in tmp_path.iterdir()} == {"train.jsonl", "drafter"}
    assert {file.name for file in (tmp_path / "drafter").iterdir()} == set(FILES)
    settings = record(tmp_path / "drafter")["settings"]
    assert settings["training"] == {**TRAINING_DEFAULTS, "learning_rate": 1e-5, "save_steps": 1000, **length}
    assert settings["num_layers"] == 1
    assert settings.get("num_heads") == (2 if mode == "medusa" else None)
    prompt = [1, 4, 70, 71, 2, 5]
    drafter = load_drafter(tmp_path / "drafter", target)
    assert generate(target, drafter, prompt, 40).token_ids == generate(target, None, prompt, 40).token_ids


SHARED = {
    "--num-epochs": ("epochs", 2.0),
    "--lr": ("learning_rate", 0.002),
    "--save-steps": ("save_steps", 2),
    "--max-length": ("max_length", 72),
    "--batch-size": ("rows_per_step", 4),
    "--rows-per-pass": ("rows_per_pass", 2),
    "--dtype": ("dtype", "bfloat16"),
    "--features": ("features", "cached"),
    "--early-stopping": ("early_stopping", 7),
    "--seed": ("seed", 5),
}
OWN = {
    "medusa": {
        "--loss": ("loss", "overlap"),
        "--medusa-num-heads": ("num_heads", 3),
        "--medusa-num-layers": ("num_layers", 2),
    },
    "eagle": {
        "--loss": ("loss", "hybrid"),
        "--eagle-num-layers": ("num_layers", 2),
        "--draft-tokens": ("draft_tokens", 4),
        "--unroll-steps": ("unroll_steps", 2),
    },
    "eagle3": {
        "--loss": ("loss", "cross_entropy"),
        "--draft-tokens": ("draft_tokens", 2),
        "--unroll-steps": ("unroll_steps", 3),
        "--draft-vocab-size": ("draft_vocab_size", 20),
    },
}
OTHERS = {"--model", "--data", "--eval-data", "--eval-share", "--mode", "--output-dir", "--warm-start"}


def test_no_option_is_left_out_below() -> None:
    command = get_command(app)
    options = {option.opts[0] for option in command.commands["train"].params}  # type: ignore[attr-defined]
    assert options == OTHERS | SHARED.keys() | {name for own in OWN.values() for name in own}


def test_help_shows_the_default_of_every_option(
    specdec: Specdec, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Not written down a second time: another default is another line of help."""
    monkeypatch.setenv("COLUMNS", "250")
    lines = done(specdec("--help")).splitlines()
    found = [re.search(r"(--[a-z0-9-]+).*\[default: \(?(.*?)\)?\]", line) for line in lines]
    shown = {option[1]: option[2] for option in found if option}
    assert shown == {
        "--mode": "eagle3",
        "--eval-data": "none",
        "--eval-share": "0.05",
        **{option: str(TRAINING_DEFAULTS[setting]) for option, (setting, _) in SHARED.items()},
        "--max-length": "2048, or what the base takes",
        "--warm-start": "none",
        "--early-stopping": "never",
        "--loss": "kl",
        "--draft-tokens": "eagle 3, eagle3 3",
        "--unroll-steps": "eagle 3, eagle3 7",
        "--draft-vocab-size": "eagle3 all",
        "--medusa-num-heads": "medusa 2",
        "--medusa-num-layers": "medusa 1",
        "--eagle-num-layers": "eagle 1",
    }


def test_a_default_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TRAINING_DEFAULTS, "learning_rate", 0.5)
    monkeypatch.setitem(METHOD_DEFAULTS["eagle"], "loss", "hybrid")
    assert of_training("lr", help="").show_default == "0.5"
    assert of_method("loss").show_default == "medusa kl, eagle hybrid, eagle3 kl"


@pytest.mark.parametrize("mode", METHOD_DEFAULTS)
def test_every_option_is_in_the_drafters_record(
    specdec: Specdec, base: Path, data: Path, tmp_path: Path, mode: str
) -> None:
    given = SHARED | OWN[mode]
    options = [part for name, (_, value) in given.items() for part in (name, value)]
    common = ("--model", base, "--data", data, "--mode", mode, "--eval-share", 0.3, *options)
    done(specdec(*common, "--output-dir", "first"))
    done(specdec(*common, "--output-dir", "second", "--warm-start", "first"))
    settings, found = dict(METHOD_DEFAULTS[mode]), record(tmp_path / "second")
    settings.update(OWN[mode].values())
    training = {**TRAINING_DEFAULTS, **dict(SHARED.values()), "warm_start": "first"}
    dimensions = found["settings"].pop("dimensions", {})
    assert not any(dimensions.values())
    settings.pop("dimensions", None)
    assert found["settings"] == {**settings, "training": training}
    assert found["draft_tokens"] == settings.get("draft_tokens", settings.get("num_heads"))
    assert found["data"]["train"]["file"] == "data.jsonl"
    assert found["data"]["validation"] == {"share": 0.3}
    assert found["validation"]["acceptance_length"] >= 1
    config = json.loads((tmp_path / "second" / "config.json").read_text())
    assert config["num_hidden_layers"] == settings.get("num_layers", 1)


def test_the_seed_decides_all_that_is_random(specdec: Specdec, base: Path, data: Path, tmp_path: Path) -> None:
    """The same one gives the same bytes, whatever torch drew before (`test_every_kind_of_file...`)."""
    for seed in (3, 4):
        torch.manual_seed(0)
        done(specdec("--model", base, "--data", data, "--eval-data", data, "--mode", "eagle", *SHORT, "--lr", 1e-9,
                     "--unroll-steps", 1, "--seed", seed, "--output-dir", f"out-{seed}"))  # fmt: skip
    first, other = (load_file(tmp_path / f"out-{seed}" / "model.safetensors")["fc.weight"] for seed in (3, 4))
    assert (first - other).abs().mean() > 0.01


# Interrupted


def _command(arguments: list[str], folder: str, log: str) -> None:
    """In a child: the command, with what it says in a file."""
    os.chdir(folder)
    written = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(written, stream)
    torch.set_num_threads(1)
    sys.argv = ["specdec", "train", *arguments]
    main()


@pytest.mark.soak
def test_killed_and_run_again_gives_the_same_bytes(specdec: Specdec, base: Path, data: Path, tmp_path: Path) -> None:
    """By SIGKILL, then by SIGTERM; the third run ends. In a run with noise, at the same output folder."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["specdec.cli.train", "specdec.training", "specdec.targets"])
    command = [
        "--model",
        str(base),
        "--data",
        str(data),
        "--eval-share",
        "0.3",
        "--mode",
        "eagle",
        "--unroll-steps",
        "1",
    ]
    command += [
        "--max-length",
        "64",
        "--batch-size",
        "2",
        "--num-epochs",
        "8",
        "--save-steps",
        "6",
        "--output-dir",
        "out",
    ]
    done(specdec(*command))
    (tmp_path / "out").rename(tmp_path / "whole")
    for number, moment, code in ((signal.SIGKILL, 6, -signal.SIGKILL), (signal.SIGTERM, 12, 130)):
        child = context.Process(target=_command, args=(command, str(tmp_path), f"log-{moment}"))
        child.start()
        while child.is_alive() and not [*(tmp_path / "out.work").glob(f"*/checkpoint-{moment}/complete")]:
            time.sleep(0.005)
        assert child.pid
        os.kill(child.pid, number)
        child.join(20)
        said = (tmp_path / f"log-{moment}").read_text()
        assert child.exitcode == code, said
        assert not (tmp_path / "out").exists()
        assert "Traceback" not in said
    assert "going on from checkpoint-" in said
    assert said.splitlines()[-1] == (
        "specdec: error: interrupted: run the same command again, it goes on from its last checkpoint"
    )
    assert "going on from checkpoint-" in done(specdec(*command))
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert {file.name for file in tmp_path.iterdir()} == {"data.jsonl", "log-6", "log-12", "out", "whole"}


def test_a_loss_that_is_not_finite(specdec: Specdec, base: Path, data: Path, tmp_path: Path) -> None:
    """The work stays. Other data, under the same name, does not go on from it."""
    evaluation = write(tmp_path / "eval.jsonl", messages(4))
    command = ("--model", base, "--data", data, "--eval-data", evaluation, "--mode", "medusa", "--max-length", 64,
               "--lr", 1e30, "--num-epochs", 9, "--save-steps", 1, "--output-dir", "out")  # fmt: skip
    assert "the loss is nan at step 2: lower the learning rate" in refused(specdec(*command))
    assert not (tmp_path / "out").exists()
    again = specdec(*command)
    assert "going on from checkpoint-1" in again.out
    assert "the loss is nan at step 2" in refused(again)
    assert len([*(tmp_path / "out.work").iterdir()]) == 1
    write(evaluation, messages(5))
    assert "going on" not in specdec(*command).out
    assert len([*(tmp_path / "out.work").iterdir()]) == 2


@pytest.mark.soak
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_two_processes_end_behind_the_same_step_and_go_on_to_the_same_bytes(
    specdec: Specdec, base: Path, data: Path, tmp_path: Path, number: int
) -> None:
    """Told twice: as a flow tells each process, and the one that started them passes it on."""
    command = ["--model", str(base), "--data", str(data), "--eval-share", "0.3", "--mode", "eagle", "--max-length",
               "64", "--batch-size", "2", "--num-epochs", "30", "--save-steps", "30",
               "--output-dir", "out"]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if name != "LOCAL_RANK"}
    environment |= {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "SPECDEC_PROCESSES": "2",
    }

    def start() -> subprocess.Popen[str]:
        full = [sys.executable, "-m", "specdec", "train", *command]
        pipe = subprocess.PIPE
        return subprocess.Popen(full, cwd=tmp_path, env=environment, stdout=pipe, stderr=pipe, text=True)

    with start() as process:
        out, err = process.communicate(timeout=200)
    assert (process.returncode, err) == (0, "")
    (tmp_path / "out").rename(tmp_path / "whole")
    with start() as process:
        work = tmp_path / "out.work"
        while process.poll() is None and not [*work.glob("*/checkpoint-30/complete")]:
            time.sleep(0.005)
        for told in [*psutil.Process(process.pid).children(), psutil.Process(process.pid)]:
            told.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, (out, err)
    assert err.splitlines() == [
        "specdec: told to end: training ends behind its step, with a checkpoint; once more ends it at once",
        "specdec: error: interrupted: run the same command again, it goes on from its last checkpoint",
    ]
    ended = re.search(r"step (\d+): ended as told, with a checkpoint\n\Z", out)
    assert ended, out
    with start() as process:
        out, err = process.communicate(timeout=200)
    assert (process.returncode, err) == (0, "")
    assert f"going on from checkpoint-{ended[1]}\n" in out
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.soak
def test_two_processes_write_once(specdec: Specdec, base: Path, data: Path, tmp_path: Path) -> None:
    command = ["--model", str(base), "--data", str(data), "--eval-share", "0.3", "--mode", "eagle3", "--max-length",
               "64", "--batch-size", "2", "--unroll-steps", "2", "--save-steps", "2", "--output-dir"]  # fmt: skip
    out = done(specdec(*command, "one"))

    def together(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if name != "LOCAL_RANK"}
        environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        return subprocess.run(
            [sys.executable, "-m", "specdec", "train", *arguments],
            cwd=tmp_path,
            env={**environment, "SPECDEC_PROCESSES": "2"},
            capture_output=True,
            text=True,
            timeout=120,
        )

    ran = together(*command, "two")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.replace("two", "one").splitlines()[-4:] == out.splitlines()[-4:]
    assert len(ran.stdout.splitlines()) == len(out.splitlines())
    refusal = together(*command, "three", "--draft-vocab-size", "100000")
    assert refusal.returncode == 2
    assert len(refusal.stderr.splitlines()) == 1
    assert refusal.stderr.startswith("specdec: error: --draft-vocab-size is 100000")
    assert {file.name for file in tmp_path.iterdir()} == {"data.jsonl", "one", "two"}
    assert {file.name for file in (tmp_path / "two").iterdir()} == set(FILES)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-4)


# At a finished drafter


def test_the_same_command_again_has_nothing_to_do(
    specdec: Specdec, base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("--model", base, "--data", data, "--eval-share", 0.3, "--mode", "medusa", *SHORT, "--num-epochs", 0.1)
    done(specdec(*command, "--output-dir", "out"))
    before = contents(tmp_path / "out")
    said = "out is finished: trained with these settings on this data; there is nothing to do\n"
    with monkeypatch.context() as patched:
        patched.setattr(Target, "from_pretrained", None)  # nothing is loaded
        assert done(specdec(*command, "--output-dir", "out")) == said
        patched.setenv("RANK", "1")
        assert done(specdec(*command, "--output-dir", "out")) == ""
    assert contents(tmp_path / "out") == before

    again = (*command, "--warm-start", "out", "--output-dir", "second")
    done(specdec(*again))
    assert done(specdec(*again)).startswith("second is finished")
    weights = tmp_path / "out" / "model.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(b"others")
    assert refused(specdec(*again)).endswith(
        "second is there already, trained with other weights to go on from: delete it, or name another folder with "
        "--output-dir"
    )
    weights.write_bytes(kept)


def test_what_the_base_decided_is_the_same_again(specdec: Specdec, data: Path, tmp_path: Path) -> None:
    """The rows' length is the base's, as nothing else was said."""
    write_base(tmp_path / "short", max_position_embeddings=96)
    command = ("--model", "short", "--data", data, "--eval-data", data, "--mode", "medusa", "--num-epochs", 0.1)
    done(specdec(*command, "--output-dir", "out"))
    assert done(specdec(*command, "--output-dir", "out")).startswith("out is finished")
    line = refused(specdec(*command, "--max-length", 64, "--output-dir", "out"))
    assert "out is there already, trained with --max-length 96: delete it" in line


def test_another_command_at_a_finished_folder_is_refused(
    specdec: Specdec, base: Path, data: Path, tmp_path: Path
) -> None:
    given = {"--model": base, "--data": data, "--eval-share": 0.3, "--mode": "medusa", "--max-length": 64,
             "--batch-size": 2, "--num-epochs": 0.1, "--output-dir": "out"}  # fmt: skip

    def run(**changes: object) -> Ran:
        options = given | {f"--{name.replace('_', '-')}": value for name, value in changes.items()}
        return specdec(*(part for pair in options.items() for part in pair))

    done(run())
    before = contents(tmp_path / "out")
    write_base(tmp_path / "other", seed=1)
    more = write(tmp_path / "more.jsonl", sharegpt(20))
    for changes, told in (
        ({"batch_size": 4}, "--batch-size 2"),
        ({"learning_rate": 0.5}, "--learning-rate 0.001"),
        ({"early_stopping": 2, "medusa_num_heads": 3}, "--medusa-num-heads 2, no --early-stopping"),
        ({"mode": "eagle"}, "--mode medusa"),
        ({"model": "other"}, "another base"),
        ({"data": more}, "other data, or another split of it"),
        ({"eval_data": more}, "other data, or another split of it"),
        ({"eval_share": 0.2}, "other data, or another split of it"),
        ({"warm_start": "out"}, "no --warm-start, other weights to go on from"),
    ):
        line = refused(run(**changes))
        assert (
            f"out is there already, trained with {told}: delete it, or name another folder with --output-dir" in line
        )
    assert contents(tmp_path / "out") == before


# What is refused, in one line, with nothing left behind


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("max_length is 9, of rows within max_length: raise it", "--L is 9, of rows within --L: raise it"),
        ("loss: too high", "--loss: too high"),
        ("the loss is nan: see a/max_length, x.max_length and max_length.txt", None),
        ("a file says draft_tokens is 0", None),
        ("draft_tokens is 0", "--draft is 0"),
    ],
)
def test_settings_in_messages_are_called_by_their_options(message: str, told: str | None) -> None:
    options = {"max_length": "--L", "loss": "--loss", "draft_tokens": "--draft"}
    assert in_options(message, options) == (told or message)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"--mode": "hydra"}, "--mode 'hydra': choose one of medusa, eagle, eagle3"),
        ({"--eagle-num-layers": 1}, "--eagle-num-layers: not an option of --mode medusa"),
        (
            {"--draft-tokens": 2, "--unroll-steps": 1},
            "--draft-tokens, --unroll-steps: not an option of --mode medusa",
        ),
        ({"--mode": "eagle", "--medusa-num-heads": 2}, "--medusa-num-heads: not an option of --mode eagle"),
        ({"--mode": "eagle", "--medusa-num-layers": 2}, "--medusa-num-layers: not an option of --mode eagle"),
        ({"--mode": "eagle", "--draft-vocab-size": 20}, "--draft-vocab-size: not an option of --mode eagle"),
        ({"--mode": "eagle3", "--eagle-num-layers": 1}, "--eagle-num-layers: not an option of --mode eagle3"),
        (
            {"--mode": "eagle3", "--draft-vocab-size": 999},
            "error: --draft-vocab-size is 999, and base has 262 tokens",
        ),
        ({"--mode": "eagle3", "--draft-vocab-size": 200}, "hold 20 different tokens only: ask for 20 at most"),
        ({"--medusa-num-heads": 0}, "error: --medusa-num-heads: input should be greater than 0 (it is 0)"),
        (
            {"--loss": "mse"},
            "error: --loss: input should be 'cross_entropy', 'kl', 'overlap' or 'hybrid' (it is 'mse')",
        ),
        ({"--lr": 0}, "error: --lr: input should be greater than 0"),
        ({"--learning-rate": 0}, "error: --learning-rate: input should be greater than 0"),
        ({"--lr": "nan"}, "error: --lr: input should be a finite number"),
        ({"--num-epochs": -1}, "error: --num-epochs: input should be greater than 0"),
        ({"--features": "disk"}, "error: --features: input should be 'online', 'cached' or 'vllm'"),
        ({"--dtype": "int8"}, "error: --dtype: input should be 'float32', 'bfloat16' or 'float16'"),
        ({"--max-length": 4096}, "error: --max-length is 4096, and base takes 2048 positions at most"),
        (
            {"--batch-size": 4, "--rows-per-pass": 3},
            "error: --batch-size is 4, no multiple of --rows-per-pass 3 x 1 processes",
        ),
        ({"--model": "no/such/model"}, "'no/such/model' is neither a folder here nor a model on the hub"),
        ({"--model": "."}, "holds no *.safetensors"),
        ({"--data": "nothing.jsonl"}, "nothing.jsonl is no file"),
        ({"--data": "."}, ". is no file"),
        ({"--eval-data": "nothing.jsonl"}, "nothing.jsonl is no file"),
        ({"--output-dir": "data.jsonl"}, "data.jsonl is there already: delete it, or name another folder"),
        ({"--output-dir": "."}, "is there already"),
        ({"--output-dir": "no/such/folder"}, "no/such/folder cannot be written: name a folder in one that is there"),
        ({"--warm-start": "nothing"}, "nothing is no drafter: config.json is missing"),
        (
            {"--eval-share": 0.001},
            "data.jsonl: of 16 conversations, split by their first question, none is left for validation: ",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    specdec: Specdec, base: Path, data: Path, tmp_path: Path, change: dict[str, object], says: str
) -> None:
    options = {"--model": base, "--data": data, "--mode": "medusa", "--max-length": 64, "--eval-share": 0.3,
               "--output-dir": "out", **change}  # fmt: skip
    before = data.read_bytes()
    assert says in refused(specdec(*(part for pair in options.items() for part in pair)))
    assert contents(tmp_path) == {"data.jsonl": before}


def test_features_out_of_vllm(
    specdec: Specdec, base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The vLLM is played; `tests/vllm` has a real one."""
    command = ("--model", base, "--data", data, "--mode", "eagle3", "--max-length", 64, "--eval-share", 0.3)
    monkeypatch.setenv(VLLM_PYTHON, str(tmp_path / "python"))
    line = refused(specdec(*command, "--features", "vllm", "--output-dir", "out"))
    assert "--features is vllm, and vLLM is not installed for" in line
    stand = Stand(Target.from_pretrained(base, device="cpu"))
    stand.take_over(monkeypatch)
    done(specdec(*command, "--features", "vllm", "--output-dir", "theirs"))
    done(specdec(*command, "--features", "cached", "--output-dir", "ours"))
    assert len(stand.servers) == 1
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "theirs"))
    for name, weight in ours.items():
        torch.testing.assert_close(theirs[name], weight, rtol=0, atol=1e-3)
    assert not (tmp_path / "theirs.work").exists()


ID_ROW = {"segments": [{"prompt_token_ids": [1, 4], "token_ids": [9, 9, 2]}]}
QUESTION = {"messages": [{"role": "user", "content": "hi"}]}


def id_row(**changes: object) -> dict[str, Any]:
    return {"segments": [{**ID_ROW["segments"][0], **changes}]}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([], "data.jsonl has no answers in its 0 rows: "),
        ([QUESTION, QUESTION], "data.jsonl has no answers in its 2 rows: let the base give some"),
        ([{"text": "hi"}], "data.jsonl has no answers in its 1 rows (1 x no conversation): "),
        (b"\x89PNG\xff\n", "data.jsonl has no answers in its 1 rows (1 x not JSON): "),
        (gzip.compress(b"{}", mtime=0), "data.jsonl is compressed with gzip: decompress it"),
        ([id_row(token_ids=[])], "data.jsonl has no answers: "),
        ([{"segments": []}], "none is left for"),
        ([id_row(token_ids=[9, 262])], "data.jsonl holds the token 262, and base has 262: another base answered"),
        ([id_row(prompt_token_ids=[1, 999])], "data.jsonl holds the token 999, and base has 262"),
        ([ID_ROW, id_row(token_ids=[9, -1])], "data.jsonl: row 2 has no `segments` of token ids"),
        ([ID_ROW, id_row(token_ids=[9, 2**70])], "data.jsonl: row 2 has no `segments` of token ids"),
        ([ID_ROW, id_row(token_ids="99")], "data.jsonl: row 2 has no `segments` of token ids"),
        ([ID_ROW, QUESTION], "data.jsonl: row 2 has no `segments` of token ids"),
        ([{**ID_ROW, "messages": [{"role": "user"}]}], "data.jsonl: row 1 has no `segments` of token ids"),
        (json.dumps(ID_ROW).encode() + b'\n{"segments": [{"pro', "data.jsonl: row 2 is not JSON: it is cut short"),
    ],
)
def test_data_that_teaches_nothing(
    specdec: Specdec, base: Path, data: Path, tmp_path: Path, content: Rows | bytes, says: str
) -> None:
    write(data, content) if isinstance(content, list) else data.write_bytes(content)
    evaluation = () if "none is left" in says else ("--eval-data", write(tmp_path / "eval.jsonl", sharegpt(4)))
    command = ("--model", base, "--data", data, *evaluation, "--mode", "medusa", "--max-length", 64)
    assert says in refused(specdec(*command, "--output-dir", "out"))
    assert {file.name for file in tmp_path.iterdir()} <= {"data.jsonl", "eval.jsonl"}


@pytest.mark.parametrize("rows", [[QUESTION], [id_row(token_ids=[])], [id_row(token_ids=[9, 999])]])
def test_data_for_validation_is_named_by_its_own_file(
    specdec: Specdec, base: Path, data: Path, tmp_path: Path, rows: Rows
) -> None:
    evaluation = write(tmp_path / "eval.jsonl", rows)
    command = ("--model", base, "--data", data, "--eval-data", evaluation, "--mode", "medusa", "--max-length", 64)
    line = refused(specdec(*command, "--output-dir", "out"))
    assert str(evaluation) in line
    assert str(data) not in line


def test_answers_behind_max_length_teach_nothing(specdec: Specdec, base: Path, data: Path) -> None:
    command = ("--model", base, "--data", data, "--eval-data", data, "--mode", "medusa", "--max-length", 8)
    assert "no training row has an answer token within --max-length: raise it" in refused(
        specdec(*command, "--output-dir", "out")
    )


def test_answers_of_another_base_and_a_drafter_for_a_base_are_refused(
    specdec: Specdec, base: Path, data: Path, tmp_path: Path
) -> None:
    common = ("--mode", "medusa", "--output-dir", "out")
    write(tmp_path / "theirs.jsonl", [ID_ROW, {**ID_ROW, "base": {"weights": "f" * 64}}])
    line = refused(specdec("--model", base, "--data", tmp_path / "theirs.jsonl", *common))
    assert "theirs.jsonl: row 2 was answered by another base (ffffffffffff) than base (" in line
    done(
        specdec("--model", base, "--data", data, "--eval-data", data, *SHORT, "--mode", "medusa", "--output-dir", "d")
    )
    line = refused(specdec("--model", "d", "--data", data, *common))
    assert line == "specdec: error: d is a medusa drafter, and no base: name the model it drafts for"


def test_rows_are_no_longer_than_the_base_unless_they_are_asked_for(
    specdec: Specdec, data: Path, tmp_path: Path
) -> None:
    write_base(tmp_path / "short", max_position_embeddings=96)
    common = ("--model", "short", "--data", data, "--eval-data", data, "--mode", "medusa", "--num-epochs", 0.1)
    assert "rows of 96" in done(specdec(*common, "--output-dir", "out"))
    line = refused(specdec(*common, "--max-length", 97, "--output-dir", "other"))
    assert line == "specdec: error: --max-length is 97, and short takes 96 positions at most"


def test_a_drafter_of_another_method_or_base_is_no_start(
    specdec: Specdec, base: Path, data: Path, tmp_path: Path
) -> None:
    common = ("--data", data, "--eval-data", data, *SHORT)
    done(specdec("--model", base, *common, "--mode", "medusa", "--output-dir", "medusa"))
    again = ("--warm-start", "medusa", "--output-dir", "out")
    line = refused(specdec("--model", base, *common, "--mode", "eagle", *again))
    assert "--warm-start: medusa is a medusa drafter, and this is eagle" in line
    line = refused(specdec("--model", base, *common, "--mode", "medusa", "--medusa-num-heads", 3, *again))
    assert "--warm-start: the config.json of medusa has another num_heads" in line
    line = refused(specdec("--model", base, *common, "--mode", "medusa", "--warm-start", "models:/x", *again[2:]))
    assert "models:/x: write models:/NAME@ALIAS" in line
    write_base(tmp_path / "other", seed=1)
    line = refused(specdec("--model", "other", *common, "--mode", "medusa", *again))
    assert "medusa was trained for another base: its weights" in line
    assert {file.name for file in tmp_path.iterdir()} == {"data.jsonl", "medusa", "other"}
