"""`specdec profile ...`, `specdec generate ...`. Our own errors end in one line and their exit code."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from specdec.config import load_params, profile_names, use_profile
from specdec.errors import SpecdecError

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
def check() -> None:
    """Checks params.yaml, and says which drafters it asks for."""
    params = load_params()
    print(f"params.yaml is valid: drafters {', '.join(params.drafters)}")


@app.command()
def generate(
    prompt: str,
    base: Annotated[Path, typer.Option(help="The base's checkpoint folder.")] = Path("models/base"),
    drafter: Annotated[Path, typer.Option(help="The drafter's folder.")] = Path("models/drafters/medusa"),
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 128,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Of the sampling.")] = None,
) -> None:
    """Answers a prompt with the drafter, streaming, and says what was accepted."""
    from specdec.data.prompts import prompt_ids
    from specdec.decoding import steps
    from specdec.drafters import load_drafter
    from specdec.targets import Target

    target = Target.from_pretrained(base)
    loaded = load_drafter(drafter, target)
    ids = prompt_ids(target.tokenizer, [{"role": "user", "content": prompt}])
    made: list[int] = []
    shown, accepted, count = "", 0, -1  # the first step reads the prompt and drafts nothing
    for step in steps(target, loaded, ids, max_new_tokens, temperature, seed=seed):
        made += step.token_ids
        text = target.tokenizer.decode(made, skip_special_tokens=True)
        if not text.endswith("\ufffd"):  # else a character is not whole yet
            print(text[len(shown) :], end="", flush=True)
            shown = text
        accepted, count = accepted + step.accepted, count + 1
    length = 1 + accepted / max(1, count)
    print(f"\n\n{len(made)} tokens in {count} verification steps, acceptance length {length:.2f}", file=sys.stderr)


def main() -> None:
    """The entry point of the `specdec` command."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # read when transformers is imported, later
    try:
        app()
    except SpecdecError as error:
        print(f"specdec: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
