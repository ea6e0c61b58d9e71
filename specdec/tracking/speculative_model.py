"""The registered model, as code: MLflow copies this file beside the artifacts and runs it to load them.

`mlflow.pyfunc.load_model("models:/specdec-<base>@champion").predict(["..."])` needs no checkout of this
repository (the package travels with the model) and unpickles nothing.
"""

import json
import os
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

DEFAULTS: dict[str, Any] = {"max_new_tokens": 128, "temperature": 0.0, "top_k": 0, "top_p": 1.0, "seed": 0}


class SpeculativeModel(PythonModel):
    """A base and its drafter. Rows in: a prompt or a conversation; rows out: text and how it was drafted."""

    def load_context(self, context: PythonModelContext) -> None:
        """Loads both; refuses a base, tokenizer or chat template that the drafter was not trained for."""
        from specdec.drafters import load_drafter
        from specdec.targets import Target

        reference = json.loads(Path(context.artifacts["reference"]).read_text())
        settings = context.model_config or {}
        base = _base(context.artifacts, reference)
        self.target = Target.from_pretrained(
            base, dtype=settings.get("dtype", reference["dtype"]), device=settings.get("device")
        )
        self.drafter = load_drafter(Path(context.artifacts["drafter"]), self.target)

    def predict(
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> list[dict[str, Any]]:
        """One answer a row: text, tokens, steps, acceptance_length (tokens emitted per step of the base)."""
        options = {**DEFAULTS, **(params or {})}
        return [self._answer(messages, options) for messages in conversations(model_input)]

    def _answer(self, messages: list[dict[str, str]], options: dict[str, Any]) -> dict[str, Any]:
        from specdec.decoding import generate
        from specdec.drafters import Sampling

        options = dict(options)
        sampling = Sampling(*(options.pop(name) for name in ("temperature", "top_k", "top_p")))
        tokenizer = self.target.tokenizer
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        answer = generate(self.target, self.drafter, list(prompt), options.pop("max_new_tokens"), sampling, **options)
        return {
            "text": tokenizer.decode(answer.token_ids, skip_special_tokens=True),
            "tokens": len(answer.token_ids),
            "steps": answer.steps,
            "acceptance_length": answer.acceptance_length,
        }


def conversations(rows: pd.DataFrame) -> list[list[dict[str, str]]]:
    """The chat messages of each row: a string, `{"prompt": str}` or `{"messages": [{"role", "content"}]}`.

    Raises ValueError for anything else: MLflow makes a table of what it gets, and drops what does not fit.
    """
    return [_messages(name, cell) for name, cell in zip(_columns(rows), rows.iloc[:, 0], strict=True)]


def _columns(rows: pd.DataFrame) -> list[str]:
    if rows.shape[1] != 1:
        raise ValueError(f"give one column, `prompt` or `messages`, not {[str(c) for c in rows.columns]}")
    return [str(rows.columns[0])] * len(rows)


def _messages(column: str, cell: Any) -> list[dict[str, str]]:
    if isinstance(cell, str) and column in ("0", "prompt", "inputs"):
        return [{"role": "user", "content": cell}]
    messages = [dict(m) for m in cell] if column == "messages" and not isinstance(cell, str) else []
    if messages and all(set(m) == {"role", "content"} for m in messages):
        return messages
    raise ValueError(
        'each row must be a string, {"prompt": "..."} or {"messages": [{"role": "...", "content": "..."}]}, '
        f"and one is {str(cell)[:80]!r} in column {column!r}"
    )


def _base(artifacts: dict[str, str], reference: dict[str, Any]) -> Path:
    """The base's folder: inside the model, where `SPECDEC_BASE` says, where it was, or from the hub."""
    told = os.environ.get("SPECDEC_BASE")
    places = [artifacts.get("base"), told, reference["path"]]
    found = next((Path(p) for p in places if p and (Path(p) / "config.json").is_file()), None)
    if found is not None:
        return found
    if told or reference["revision"] is None:
        raise FileNotFoundError(
            f"the base {reference['name']} is not in {told or reference['path']}: set SPECDEC_BASE to its "
            "folder, or register with `register.bundle_base: true`"
        )
    from huggingface_hub import snapshot_download

    from specdec.targets.fetch import PATTERNS

    return Path(snapshot_download(reference["source"], revision=reference["revision"], allow_patterns=PATTERNS))


set_model(SpeculativeModel())
