"""The `specdec` command. Our own errors end in one line and their exit code."""

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from specdec.cli.options import OWN, TRAINING, given, naming_options, of_method, of_training, spellings
from specdec.config import load_params, profile_names, use_profile
from specdec.errors import ConfigError, SpecdecError, disk_is_full, tell_error

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
profile = typer.Typer(no_args_is_help=True, help="Named settings, laid over params.yaml.")
app.add_typer(profile, name="profile")


@app.callback()
def _root() -> None:
    """Make, prove, ship and keep drafters for speculative decoding."""


@profile.command("list")
def list_profiles() -> None:
    """The profiles of this repository."""
    for name in profile_names():
        print(name)


@profile.command("use")
def use(name: str) -> None:
    """Writes profiles/NAME.yaml over params.yaml; `git diff params.yaml` shows what changed."""
    written = use_profile(name)
    params = load_params()
    print(
        f"params.yaml {'now is' if written else 'is still'} {name}: "
        f"base {params.fetch_base.source}, data {params.clone_data.url}"
    )


@app.command()
def check(
    drafter: Annotated[Path | None, typer.Argument(help="A drafter's folder.", show_default="params.yaml")] = None,
    base: Annotated[
        Path | None,
        typer.Option(help="The drafter's base; its config.json is enough.", show_default="models/base"),
    ] = None,
) -> None:
    """Checks params.yaml; or a drafter's folder: is it what vLLM serves? Exit code 1 when it is not."""
    if drafter is not None:
        from specdec.cli.check import check_drafter

        checked = check_drafter(drafter, base or Path("models/base"))
        print("\n".join(checked.findings or [checked.summary]))
        raise typer.Exit(1 if checked.findings else 0)
    if base is not None:
        raise ConfigError("--base: name the drafter's folder that is to be checked against it")
    params = load_params()
    print(f"params.yaml is valid: drafters {', '.join(params.drafters)}")


@app.command()
def synthesize(
    context: typer.Context,
    data: Annotated[Path, typer.Option("--data", "--data-path", "--data_path", help="Conversations: JSONL or JSON.")],
    output: Annotated[Path, typer.Option("--output", "--output-path", "--output_path", help="JSONL to write.")],
    url: Annotated[
        str, typer.Option(envvar="SPECDEC_SERVER_URLS", help="Servers, comma-separated.")
    ] = "http://localhost:8000/v1",
    model: Annotated[
        str | None, typer.Option(envvar="SPECDEC_SERVER_MODEL", help="The model's name there, if it serves several.")
    ] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "--max_tokens", min=1, help="Of one answer.")] = 512,
    temperature: Annotated[
        list[float] | None, typer.Option(help="0 is greedy. Given several times: a mix in equal shares.")
    ] = None,
    top_p: Annotated[float, typer.Option(help="Nucleus.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="0: the whole vocabulary.")] = 0,
    min_p: Annotated[float, typer.Option(help="Least share of the most likely token's probability.")] = 0.0,
    samples: Annotated[int, typer.Option(min=1, help="Answers to one conversation.")] = 1,
    cut_off: Annotated[str, typer.Option(help="Answers that --max-tokens cut: keep, drop or continue.")] = "keep",
    system_prompt: Annotated[
        str | None, typer.Option("--system-prompt", "--system_prompt", help="For conversations that have none.")
    ] = None,
    base: Annotated[
        Path | None, typer.Option(help="The base's folder: its tokenizer checks lengths and token ids.")
    ] = None,
    max_model_len: Annotated[int | None, typer.Option(min=1, help="Tokens of prompt and answer together.")] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(
            envvar="SPECDEC_CONCURRENCY", min=1, help="Requests in flight to each server; else found by trying."
        ),
    ] = None,
    max_failed_share: Annotated[float, typer.Option(min=0, max=1, help="Above it the run stops.")] = 0.01,
    metrics: Annotated[Path | None, typer.Option(help="JSON file for the figures of the run.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the journal of an earlier run.")] = False,
) -> None:
    """Lets a model answer the conversations of a file. The key, if any, is in SPECDEC_API_KEY."""
    from specdec.cli.synthesize import Request, answer_file, plain

    values = temperature or [0.0]
    sampling = {
        "samples": samples,
        "temperatures": [{"temperature": value, "share": 1 / len(values)} for value in values],
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "max_tokens": max_tokens,
        "cut_off": cut_off,
    }
    request = Request(
        data=data,
        output=output,
        urls=url,
        model=model,
        base=base,
        system_prompt=system_prompt,
        sampling=sampling,
        max_model_len=max_model_len,
        max_failed_share=max_failed_share,
        concurrency=concurrency,
        metrics=metrics,
        resume=resume,
        options=spellings(context),
    )
    try:
        answer_file(request, plain)
    except KeyboardInterrupt:
        journal = output.with_name(f"{output.name}.journal")
        how = "with --resume, it goes on from here" if journal.exists() else "again"
        print(f"specdec: interrupted: run the same command {how}", file=sys.stderr)
        raise typer.Exit(130) from None


@app.command()
def train(
    context: typer.Context,
    model: Annotated[str, typer.Option("--model", "--model-name-or-path", "--model_name_or_path", help="The base.")],
    data: Annotated[
        Path, typer.Option("--data", "--data-path", "--data_path", help="What `synthesize` wrote, or conversations.")
    ],
    output_dir: Annotated[Path, typer.Option("--output-dir", "--output_dir", help="The drafter's folder.")],
    mode: Annotated[str, typer.Option(help="medusa, eagle or eagle3.")] = "eagle3",
    eval_data: Annotated[
        Path | None,
        typer.Option("--eval-data", "--eval_data", help="Conversations for validation.", show_default="none"),
    ] = None,
    eval_share: Annotated[float, typer.Option(min=0.001, max=0.5, help="Held back for it otherwise.")] = 0.05,
    num_epochs: Annotated[
        float | None, of_training("num_epochs", "--num-epochs", "--num_epochs", help="Over the data.")
    ] = None,
    lr: Annotated[
        float | None, of_training("lr", "--lr", "--learning-rate", help="Its peak; a cosine down to 0.")
    ] = None,
    save_steps: Annotated[
        int | None, of_training("save_steps", "--save-steps", "--save_steps", help="Each is validated.")
    ] = None,
    max_length: Annotated[
        int | None,
        of_training(
            "max_length",
            "--max-length",
            "--training-seq-len",
            "--training_seq_len",
            help="Of a packed row.",
            but=", or what the base takes",
        ),
    ] = None,
    batch_size: Annotated[
        int | None, of_training("batch_size", "--batch-size", "--rows-per-step", help="Packed rows in one step.")
    ] = None,
    rows_per_pass: Annotated[
        int | None, of_training("rows_per_pass", help="Packed rows that a process takes at once.")
    ] = None,
    dtype: Annotated[str | None, of_training("dtype", help="Of the base: float32, bfloat16 or float16.")] = None,
    features: Annotated[
        str | None, of_training("features", help="online; or cached, vllm: run the base once, there in vLLM.")
    ] = None,
    warm_start: Annotated[
        str | None, of_training("warm_start", help="Drafter to go on from: a folder, or models:/NAME@ALIAS.")
    ] = None,
    early_stopping: Annotated[
        int | None, of_training("early_stopping", help="Validations without a better one.", nothing="never")
    ] = None,
    seed: Annotated[int | None, of_training("seed", help="Of all that is random.")] = None,
    loss: Annotated[str | None, of_method("loss", help="kl, overlap, hybrid or cross_entropy.")] = None,
    draft_tokens: Annotated[int | None, of_method("draft_tokens", help="The chain that is drafted.")] = None,
    unroll_steps: Annotated[int | None, of_method("unroll_steps", help="Draft positions trained.")] = None,
    draft_vocab_size: Annotated[
        int | None, of_method("draft_vocab_size", help="Most frequent answer tokens.", nothing="all")
    ] = None,
    medusa_num_heads: Annotated[
        int | None, of_method("medusa_num_heads", "--medusa-num-heads", "--medusa_num_heads")
    ] = None,
    medusa_num_layers: Annotated[
        int | None, of_method("medusa_num_layers", "--medusa-num-layers", "--medusa_num_layers")
    ] = None,
    eagle_num_layers: Annotated[
        int | None, of_method("eagle_num_layers", "--eagle-num-layers", "--eagle_num_layers")
    ] = None,
) -> None:
    """Trains a drafter on a frozen base. Several processes on this machine: SPECDEC_PROCESSES."""
    from specdec.cli.train import Request, train_drafter

    request = Request(
        model=model,
        data=data,
        eval_data=eval_data,
        eval_share=eval_share,
        mode=mode,
        output=output_dir,
        own=given(context, OWN),
        training={TRAINING[name]: value for name, value in given(context, TRAINING).items()},
        options=spellings(context),
        command=["-m", "specdec", *sys.argv[1:]],
    )
    try:
        train_drafter(request, lambda line: print(line, flush=True))
    except KeyboardInterrupt:
        saved = any(output_dir.parent.glob(f"{output_dir.name}.work/*/checkpoint-*/complete"))
        how = "it goes on from its last checkpoint" if saved else "it begins anew (no step was saved yet)"
        _fail(f"interrupted: run the same command again, {how}", 130)


@app.command()
def evaluate(
    model: Annotated[Path, typer.Option("--model", "--base", help="The base's folder.")],
    drafter: Annotated[Path, typer.Option(help="The drafter's folder: ours, or one trained elsewhere.")],
    prompts: Annotated[Path, typer.Option(help="JSONL or JSON: rows of turns, messages, question or prompt.")],
    output: Annotated[Path | None, typer.Option(help="Folder for the report.")] = None,
    max_prompts: Annotated[int | None, typer.Option(min=1, help="So many, of each category in turn.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of one answer.")] = 128,
    repeats: Annotated[int, typer.Option(min=1, help="Timed passes over the prompts.")] = 2,
    temperature: Annotated[list[float] | None, typer.Option(help="Beside 0, which is always measured.")] = None,
    draft_length: Annotated[list[int] | None, typer.Option(min=1, help="A chain beside the drafter's own.")] = None,
    tree: Annotated[list[str] | None, typer.Option(help="A dynamic tree: DEPTH,WIDTH,NODES, as 5,4,20.")] = None,
    static_nodes: Annotated[list[int] | None, typer.Option(min=1, help="A static tree of so many nodes.")] = None,
    calibration: Annotated[Path | None, typer.Option(help="Prompts on which static trees are searched.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16; lossless to the token in float32.")] = (
        "float32"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Of the sampling and the intervals.")] = 0,
) -> None:
    """Measures a drafter on a file of prompts: acceptance, speedup, whether the output stays the same."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from specdec.cli.evaluate import Request, evaluate_drafter, plan_of, table

    with naming_options({"tree": "--tree", "temperature": "--temperature", "temperatures": "--temperature"}):
        plan = plan_of(
            max_new_tokens,
            repeats,
            seed,
            temperature or [],
            draft_length or [],
            tree or [],
            static_nodes or [],
        )
        request = Request(model, drafter, prompts, calibration, max_prompts, dtype, output, plan)
        found = evaluate_drafter(request, lambda line: print(line, file=sys.stderr, flush=True))
    header, *rows = table(found)
    shown = Table(*header, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        shown.add_row(*map(escape, row))
    Console(width=None if sys.stdout.isatty() else 160).print(shown)
    print(f"{len(found.prompts)} prompts; greedy output {_same(found.lossless)}")
    for note in found.notes:
        print(note)
    if output:
        print(f"report: {output / 'report.html'}")


def _same(lossless: bool) -> str:
    return "equal to plain decoding, token for token" if lossless else "DIFFERS from plain decoding"


@app.command()
def generate(
    prompt: str,
    base: Annotated[Path, typer.Option(help="The base's checkpoint folder.")] = Path("models/base"),
    drafter: Annotated[Path, typer.Option(help="The drafter's folder.")] = Path("models/drafters/medusa"),
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="0: the whole vocabulary.")] = 0,
    top_p: Annotated[float, typer.Option(help="Nucleus.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Of the sampling.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends the answer.")] = None,
    tree: Annotated[
        str | None, typer.Option(help="Draft trees: DEPTH,WIDTH,NODES, as 5,4,20. Otherwise chains.")
    ] = None,
) -> None:
    """Answers a prompt with the drafter, streaming, and says what was accepted."""
    from specdec.data.prompts import prompt_ids
    from specdec.decoding import Stop, steps
    from specdec.drafters import Sampling
    from specdec.drafters.trees import parse_tree
    from specdec.export import load_any
    from specdec.targets import Target

    with naming_options({name: f"--{name.replace('_', '-')}" for name in ("tree", "temperature", "top_k", "top_p")}):
        shape = parse_tree(tree) if tree else None
        sampling = Sampling(temperature, top_k, top_p)
    target = Target.from_pretrained(base)
    loaded, _ = load_any(drafter, target)
    ids = prompt_ids(target.tokenizer, [{"role": "user", "content": prompt}])
    ends = Stop(target.stop_ids, tuple(stop or ()), target.tokenizer)
    made: list[int] = []
    shown, accepted, count = "", 0, -1  # the first step reads the prompt and drafts nothing
    for step in steps(target, loaded, ids, max_new_tokens, sampling, seed=seed, tree=shape, stop=ends):
        made += step.token_ids
        text = target.tokenizer.decode(made, skip_special_tokens=True)
        if not text.endswith("\ufffd"):  # else a character is not whole yet
            print(text[len(shown) :], end="", flush=True)
            shown = text
        accepted, count = accepted + step.accepted, count + 1
    length = 1 + accepted / max(1, count)
    print(f"\n\n{len(made)} tokens in {count} verification steps, acceptance length {length:.2f}", file=sys.stderr)


@app.command()
def export(
    drafter: Annotated[Path, typer.Argument(help="The drafter's folder: ours, or one trained elsewhere.")],
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    to: Annotated[str, typer.Option(help="vllm, speculators, medusa, sglang or trtllm.")],
    base: Annotated[Path, typer.Option(help="The base's checkpoint folder, as the engine finds it.")] = Path(
        "models/base"
    ),
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="vllm, speculators, medusa, modelopt, sglang or trtllm.",
            show_default="what the folder looks like",
        ),
    ] = None,
) -> None:
    """Writes a drafter in another engine's layout, with its launch settings; or another's in ours (--to vllm)."""
    from specdec.cli.export import Request, export_drafter

    print(export_drafter(Request(drafter, base, to, output, source)))


@app.command()
def certify(
    base: Annotated[Path, typer.Option(help="The base's checkpoint folder.")] = Path("models/base"),
    drafter: Annotated[Path, typer.Option(help="The drafter's folder.")] = Path("models/drafters/medusa"),
    prompts: Annotated[Path, typer.Option(help='JSONL of {"messages"} or {"turns"}.')] = Path(
        "data/prompts/test.jsonl"
    ),
    max_prompts: Annotated[int, typer.Option(min=1, help="So many, of each category in turn.")] = 20,
    max_new_tokens: Annotated[int, typer.Option(min=3, help="Of one answer.")] = 64,
    tokens: Annotated[int, typer.Option(min=1, help="Sampled for each way of drafting.")] = 4000,
    dtype: Annotated[str, typer.Option(help="Of deployment: compared too, beside float32.")] = "bfloat16",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    output: Annotated[Path | None, typer.Option(help="JSON file for the certificate.")] = None,
) -> None:
    """Shows that the base answers with the drafter as it does without. Exit code 1 when it does not."""
    from specdec.cli.certify import Request, certify_files

    request = Request(base, drafter, prompts, max_prompts, max_new_tokens, tokens, seed, dtype, output)
    made = certify_files(request, lambda line: print(line, file=sys.stderr, flush=True))
    print(made.as_text(), end="")
    if not made.passed:
        raise typer.Exit(1)


@app.command()
def serve(
    what: Annotated[
        str | None,
        typer.Argument(
            help="An alias or version of this project's model, models:/NAME@ALIAS, or a drafter's folder.",
            show_default="champion",
        ),
    ] = None,
    arguments: Annotated[list[str] | None, typer.Argument(help="Behind `--`: further arguments of vLLM.")] = None,
    base: Annotated[
        Path | None, typer.Option(help="The base's folder.", show_default="the version's, or models/base")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Sequences at once, for which the chain is chosen.")] = 1,
    draft_tokens: Annotated[
        int | None, typer.Option(min=1, help="The chain to draft.", show_default="as measured, or predicted")
    ] = None,
    drafter: Annotated[bool, typer.Option("--drafter/--no-drafter", help="With it, or the base alone.")] = True,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0: all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16.", show_default="the base's own")
    ] = None,
    max_model_len: Annotated[
        int | None, typer.Option(min=1, help="Tokens of prompt and answer together.", show_default="the base's own")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the command, and start nothing.")] = False,
) -> None:
    """Serves a drafter with its base through vLLM. The key for clients, if any, is in SPECDEC_SERVE_KEY."""
    from specdec.cli.serve import Request, prepare
    from specdec.cli.serve import serve as serve_in_vllm
    from specdec.serving.deployment import shell_line

    further = list(arguments or [])
    if what is not None and what.startswith("-"):  # `specdec serve -- --enforce-eager`
        further.insert(0, what)
        what = None
    request = Request(
        what, base, concurrency, draft_tokens, drafter, host, port, dtype, max_model_len, tuple(further)
    )
    try:
        launch = prepare(request, _tell)
        if dry_run:
            print(shell_line(launch))
            if "VLLM_API_KEY" in launch.environment:
                _tell("the command takes the key from VLLM_API_KEY, which is not shown")
        else:
            serve_in_vllm(request, launch, _tell)
    except KeyboardInterrupt:
        print("\nspecdec: stopped", file=sys.stderr)  # behind ^C, or half a line of vLLM
        raise typer.Exit(130) from None


@app.command()
def versions() -> None:
    """The versions of this project's registered model, newest first: aliases, figures, gates."""
    from rich.console import Console

    from specdec.cli.release import table_of
    from specdec.tracking.release import list_versions
    from specdec.tracking.store import project_root

    name, found = list_versions(project_root())
    Console(width=None if sys.stdout.isatty() else 160).print(table_of(name, found))


@app.command()
def promote(
    version: Annotated[int, typer.Argument(min=1, help="As `specdec versions` counts them.")],
    force: Annotated[bool, typer.Option("--force", help="In spite of a missed gate, or another base.")] = False,
) -> None:
    """Makes a version the champion; the one before it stays as `previous`."""
    from specdec.tracking.release import promote_by_hand
    from specdec.tracking.store import project_root

    promote_by_hand(project_root(), str(version), force, print)


@app.command()
def rollback(
    force: Annotated[bool, typer.Option("--force", help="In spite of another base.")] = False,
) -> None:
    """Makes `previous` the champion again."""
    from specdec.tracking.release import rollback as go_back
    from specdec.tracking.store import project_root

    go_back(project_root(), force, print)


@app.command()
def clean(
    keep: Annotated[
        int, typer.Option(min=1, help="Versions that stay, the newest; as many runs with files, and journals.")
    ] = 5,
    keep_caches: Annotated[int, typer.Option(min=0, help="Feature caches that stay, the last used.")] = 2,
    yes: Annotated[bool, typer.Option("--yes", help="Remove what is shown, without a question.")] = False,
) -> None:
    """Shows what old versions, runs and caches take, and why they can go; removes them when told to."""
    from rich.console import Console

    from specdec.cli.clean import alone, look, remove_all, show
    from specdec.cli.dvc_cache import check_idle
    from specdec.tracking.store import project_root

    root = project_root()
    with alone(root):
        found = look(root, keep, keep_caches)
        show(found, Console(width=None if sys.stdout.isatty() else 160))
        if not found.removals:
            return
        if not yes and not (sys.stdin.isatty() and typer.confirm("Remove them?")):
            print("nothing was removed" + ("" if sys.stdin.isatty() else ": --yes does"))
            return
        check_idle(root)  # a `dvc repro` may have begun while the question was open
        if left := remove_all(found, _tell):
            raise SpecdecError(f"{left} of {len(found.removals)} are left: the lines above say why")


@app.command()
def doctor() -> None:
    """What this machine has: engines, versions, GPUs, tools. Exit code 1 where params.yaml needs more."""
    from rich.console import Console

    from specdec.cli.doctor import examine, show

    found = examine()
    show(found, Console(soft_wrap=True))
    raise typer.Exit(1 if found.problems else 0)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    """The entry point of the `specdec` command."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # read when transformers is imported, later
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        app()
    except SpecdecError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:
        if not disk_is_full(error):
            raise
        _fail("the disk is full: free some space and run the same command again", 2)


def _interrupt(_signum: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # whoever sends it twice still gets the line and the exit code
    raise KeyboardInterrupt


def _fail(message: str, code: int) -> None:
    tell_error(message, code)
    sys.exit(code)
