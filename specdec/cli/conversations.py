"""What `specdec train` learns from: conversations that the chat template renders, or token ids as they are."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from specdec.errors import DataError

Say = Callable[[str], None]


def split_rows(
    data: Path, eval_data: Path | None, eval_share: float, target: Any, say: Say
) -> dict[str, tuple[str, list[dict[str, Any]]]]:
    """{split: (its file, rows with `segments`)}. Without eval_data, eval_share of the data is held back.

    Raises DataError for rows that teach nothing, or that another base answered.
    """
    file, rows = str(data), _read(data, target, say)
    if eval_data:
        found = _read(eval_data, target, say)
        return {"train": (file, rows), "validation": (str(eval_data), found)}
    split: dict[str, list[dict[str, Any]]] = {"train": [], "validation": []}
    for row in rows:
        place = int(hashlib.sha256(_opening(row).encode(errors="surrogatepass")).hexdigest()[:12], 16) / 16**12
        split["validation" if place < eval_share else "train"].append(row)
    for name, part in split.items():
        if not part:
            raise DataError(
                f"{file}: of {len(rows)} conversations, split by their first question, none is left for {name}: name "
                "--eval-data, or set --eval-share"
            )
    return {name: (file, part) for name, part in split.items()}


def _opening(row: dict[str, Any]) -> str:
    """What decides the split: conversations that begin with the same question sit on one side."""
    asked = (m["content"] for m in row.get("messages") or [] if m["role"] == "user")
    return next(asked, json.dumps(row["segments"][0]["prompt_token_ids"]))


def _read(file: Path, target: Any, say: Say) -> list[dict[str, Any]]:
    """Rows with `segments`: the file's own, or what the chat template makes of its conversations."""
    from specdec.data.conversations import RowCount, read_conversations
    from specdec.data.rendering import render

    if _has_segments(file):
        return list(_token_rows(file, target))
    count = RowCount()
    rows = list(render(target.tokenizer, read_conversations(file, count), target.stop_ids))
    bad = ", ".join(f"{n} x {kind}" for kind, n in count.bad.most_common())
    left = f" ({bad})" if bad else ""
    if not rows:
        raise DataError(
            f"{file} has no answers in its {count.rows} rows{left}: let the base give some with `specdec synthesize`"
        )
    say(f"{file}: {count.rows} rows{left}, {len(rows)} conversations with answers, rendered by the chat template")
    return rows


def _has_segments(file: Path) -> bool:
    """Whether the first row has token ids."""
    from specdec.data.conversations import BadRow, load_row
    from specdec.data.rows import read_rows

    first = next((row for _, row in read_rows(file)), b"")
    try:
        return "segments" in load_row(first)
    except BadRow:
        return False


def _token_rows(file: Path, target: Any) -> Iterator[dict[str, Any]]:
    """The rows that have an answer. Raises DataError for one that `specdec synthesize` could not have written."""
    from specdec.data.conversations import BadRow, load_row
    from specdec.data.rows import read_rows

    for number, line in read_rows(file):
        try:
            row = load_row(line)
        except BadRow as error:
            raise DataError(f"{file}: row {number} is {error}: it is cut short or damaged, make it again") from None
        if not _is_token_row(row):
            raise DataError(f"{file}: row {number} has no `segments` of token ids, as the first has: make it again")
        answered_by = row.get("base")
        if isinstance(answered_by, dict) and answered_by.get("weights") not in (None, target.identity.weights):
            raise DataError(
                f"{file}: row {number} was answered by another base ({str(answered_by['weights'])[:12]}) than "
                f"{target.name} ({target.identity.weights[:12]}): let this one answer, with `specdec synthesize`"
            )
        if row["segments"]:
            yield row


def _is_token_row(row: dict[str, Any]) -> bool:
    segments, messages = row.get("segments"), row.get("messages") or []
    parts = ("prompt_token_ids", "token_ids")
    return (
        isinstance(segments, list)
        and all(isinstance(s, dict) and all(_are_ids(s.get(part)) for part in parts) for s in segments)
        and isinstance(messages, list)
        and all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in messages)
        and all(isinstance(m["content"], str) for m in messages)
    )


def _are_ids(value: Any) -> bool:
    return (
        isinstance(value, list)
        and {*map(type, value)} <= {int}
        and min(value, default=0) >= 0
        and max(value, default=0) < 2**31
    )
