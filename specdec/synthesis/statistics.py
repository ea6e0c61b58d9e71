"""What a run did, in figures: those of the data (the same for the same answers) and those of this run's
speed."""

import array
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from specdec.synthesis.conversation import Regenerated


@dataclass
class RunStatistics:
    """Counts one run as it goes. Memory grows by 8 bytes a request (latencies), for exact percentiles."""

    total: int
    before: int
    answered: int = 0
    retries: int = 0
    tokens: int = 0
    prompts_differ: int = 0
    counts_differ: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)
    ended: float | None = None
    latencies: "array.array[float]" = field(default_factory=lambda: array.array("d"))

    def add(self, made: Regenerated) -> None:
        """Counts one finished row."""
        self.answered += 1
        self.tokens += sum(len(segment["token_ids"]) for segment in made.segments)
        self.latencies.extend(answer.seconds for answer in made.answers)
        self.prompts_differ += made.prompts_differ
        self.counts_differ += made.counts_differ

    def add_failure(self, kind: str, message: str) -> None:
        """Counts one failed row, and keeps the first message of its kind."""
        self.failures[kind] += 1
        self.examples.setdefault(kind, message)

    def seconds(self) -> float:
        """Of this run, so far or to its end; above 0."""
        return max((self.ended or time.monotonic()) - self.began, 1e-9)

    @property
    def done(self) -> int:
        """Rows that need no more work in this run."""
        return self.before + self.answered + self.failures.total()

    def line(self) -> str:
        """Progress for people: rows, speed, failures, time left."""
        seconds = self.seconds()
        here = self.answered + self.failures.total()
        left = f"{(self.total - self.done) * seconds / here:.0f} s left" if here else "time left not known yet"
        return (
            f"{self.done}/{self.total} rows, {self.tokens / seconds:.0f} tokens/s, "
            f"{self.failures.total()} failed, {left}"
        )

    def last_lines(self) -> list[str]:
        """The end of a run for people: progress, and what they should know."""
        lines = [self.line()]
        if self.failures:
            lines.append(f"failed, and asked again by the next run: {self.failure_summary()}")
        if self.prompts_differ:
            lines.append(
                f"warning: the server rendered {self.prompts_differ} prompts to other tokens than the base's "
                "own tokenizer and template: is it the same base?"
            )
        if self.counts_differ:
            lines.append(f"warning: {self.counts_differ} answers were said in other tokens than re-made")
        return lines

    def failure_summary(self) -> str:
        """`http_400 x 3 (HTTP 400: ...); timeout x 1 (...)`, the most frequent first."""
        return "; ".join(f"{kind} x {n} ({self.examples[kind]})" for kind, n in self.failures.most_common())

    def figures(self) -> dict[str, Any]:
        """This run's speed. Null where nothing was asked."""
        seconds = self.seconds()
        return {
            "rows_before": self.before,
            "rows_answered": self.answered,
            "requests": len(self.latencies),
            "retries": self.retries,
            "failures": dict(sorted(self.failures.items())),
            "prompts_rendered_differently": self.prompts_differ,
            "token_counts_differ": self.counts_differ,
            "seconds": round(seconds, 3),
            "answer_tokens": self.tokens,
            "tokens_per_second": round(self.tokens / seconds, 2) if self.answered else None,
            "latency_seconds": percentiles(self.latencies),
        }


@dataclass
class DataStatistics:
    """Counts the rows of one output file."""

    rows: int = 0
    missing: int = 0
    turns: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    finish_reasons: Counter[str] = field(default_factory=Counter)
    token_ids_from: Counter[str] = field(default_factory=Counter)

    def add(self, row: dict[str, Any]) -> None:
        """Counts one row that is written."""
        self.rows += 1
        self.turns += len(row["segments"])
        self.token_ids_from[row["token_ids_from"]] += 1
        for segment in row["segments"]:
            self.prompt_tokens += len(segment["prompt_token_ids"])
            self.answer_tokens += len(segment["token_ids"])
            self.finish_reasons[segment["finish_reason"]] += 1

    def figures(self) -> dict[str, Any]:
        """The same rows give the same figures."""
        return {
            "rows": self.rows,
            "rows_missing": self.missing,
            "turns": self.turns,
            "prompt_tokens": self.prompt_tokens,
            "answer_tokens": self.answer_tokens,
            "finish_reasons": dict(sorted(self.finish_reasons.items())),
            "token_ids_from": dict(sorted(self.token_ids_from.items())),
        }


def percentiles(values: Sequence[float], wanted: Sequence[int] = (50, 90, 99)) -> dict[str, float] | None:
    """Nearest-rank percentiles by name (`p50`), or None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    return {f"p{p}": round(ordered[min(len(ordered) * p // 100, len(ordered) - 1)], 4) for p in wanted}
