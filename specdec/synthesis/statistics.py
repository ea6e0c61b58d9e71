"""What a run did, in figures: those of the data (the same for the same answers) and those of this run's
speed."""

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from specdec.synthesis.answer import Answer
from specdec.synthesis.conversation import Regenerated
from specdec.synthesis.histogram import Histogram


@dataclass
class LaneStatistics:
    """Counts the requests of one server. Rows that were lost with it count too: it did answer them.

    last_answer: when, on the monotonic clock. refused: request fields that it does not take.
    """

    url: str
    requests: int = 0
    retries: int = 0
    tokens: int = 0
    set_aside: int = 0
    last_answer: float = 0.0
    refused: tuple[str, ...] = ()
    latencies: Histogram = field(default_factory=Histogram)

    def add(self, answer: Answer, tokens: int) -> None:
        """Counts one answered request."""
        self.requests += 1
        self.tokens += tokens
        self.last_answer = time.monotonic()
        self.latencies.add(answer.seconds)

    def figures(self, all_tokens: int, in_flight: int) -> dict[str, Any]:
        """share: of the answer tokens of all servers. in_flight: what the limit came to."""
        return {
            "requests": self.requests,
            "retries": self.retries,
            "answer_tokens": self.tokens,
            "share": round(self.tokens / all_tokens, 4) if all_tokens else None,
            "set_aside": self.set_aside,
            "fields_refused": list(self.refused),
            "in_flight": in_flight,
            "latency_seconds": self.latencies.percentiles(),
        }


@dataclass
class RunStatistics:
    """Counts one run as it goes. Memory does not grow with the rows."""

    total: int
    before: int
    answered: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    continued: int = 0
    prompts_differ: int = 0
    counts_differ: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    latencies: Histogram = field(default_factory=Histogram)
    lanes: dict[str, dict[str, Any]] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)
    ended: float | None = None

    def add(self, made: Regenerated) -> None:
        """Counts one finished row."""
        self.answered += 1
        self.tokens += sum(len(segment["token_ids"]) for segment in made.segments)
        for answer in made.answers:
            self.latencies.add(answer.seconds)
            self.continued += answer.pieces > 1
        self.prompts_differ += made.prompts_differ
        self.counts_differ += made.counts_differ

    def add_failure(self, kind: str, message: str) -> None:
        """Counts one failed row, and keeps the first message of its kind."""
        self.failures[kind] += 1
        self.examples.setdefault(kind, message)

    def end(self, lanes: Iterable[tuple[LaneStatistics, int]]) -> None:
        """Stops the clock. lanes: of each server its counts, and the requests in flight that its limit came to."""
        self.ended = time.monotonic()
        lanes = list(lanes)
        tokens = sum(lane.tokens for lane, _ in lanes)
        self.lanes = {lane.url: lane.figures(tokens, in_flight) for lane, in_flight in lanes}

    def seconds(self) -> float:
        """Of this run, so far or to its end; above 0."""
        return max((self.ended or time.monotonic()) - self.began, 1e-9)

    @property
    def here(self) -> int:
        """Rows that this run is through with."""
        return self.answered + self.dropped.total() + self.failures.total()

    @property
    def done(self) -> int:
        """Rows that need no more work in this run."""
        return self.before + self.here

    def line(self) -> str:
        """Progress for people: rows, speed, failures, time left."""
        return f"{self.done}/{self.total} rows, {self.speed()}"

    def speed(self) -> str:
        """`1234 tokens/s, 0 failed, 56 s left`."""
        seconds, here = self.seconds(), self.here
        left = f"{_time((self.total - self.done) * seconds / here)} left" if here else "time left not known yet"
        return f"{self.tokens / seconds:.0f} tokens/s, {self.failures.total()} failed, {left}"

    def last_lines(self) -> list[str]:
        """The end of a run for people: progress, and what they should know."""
        lines = [self.line()]
        if self.failures:
            lines.append(f"failed, and asked again by the next run: {self.failure_summary()}")
        if self.dropped:
            lines.append(f"dropped, as cut_off says: {self.dropped.total()} rows")
        if self.prompts_differ:
            lines.append(
                f"warning: the server rendered {self.prompts_differ} prompts to other tokens than the base's "
                "own tokenizer and template: is it the same base?"
            )
        if self.counts_differ:
            lines.append(
                f"warning: of {self.counts_differ} answers the server counted other tokens than their text gives"
            )
        if len(self.lanes) > 1:
            shares = ", ".join(f"{url} {figures['share'] or 0:.0%}" for url, figures in self.lanes.items())
            lines.append(f"answer tokens by server: {shares}")
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
            "rows_dropped": dict(sorted(self.dropped.items())),
            "requests": sum(lane["requests"] for lane in self.lanes.values()),
            "retries": sum(lane["retries"] for lane in self.lanes.values()),
            "failures": dict(sorted(self.failures.items())),
            "answers_continued": self.continued,
            "prompts_rendered_differently": self.prompts_differ,
            "token_counts_differ": self.counts_differ,
            "seconds": round(seconds, 3),
            "answer_tokens": self.tokens,
            "tokens_per_second": round(self.tokens / seconds, 2) if self.answered else None,
            "latency_seconds": self.latencies.percentiles(),
            "servers": self.lanes,
        }


def _time(seconds: float) -> str:
    """`42 s`, `12 min`, `3.5 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


@dataclass
class DataStatistics:
    """Counts the rows of one output file, whichever run they were answered in.

    missing: rows that have no answer and can be asked again; failures: why, by the last word on each.
    """

    rows: int = 0
    missing: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    turns: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    finish_reasons: Counter[str] = field(default_factory=Counter)
    token_ids_from: Counter[str] = field(default_factory=Counter)
    temperatures: Counter[float] = field(default_factory=Counter)

    def add(self, row: dict[str, Any]) -> None:
        """Counts one row that is written."""
        self.rows += 1
        self.turns += len(row["segments"])
        self.token_ids_from[row["token_ids_from"]] += 1
        self.temperatures[row["sampling"]["temperature"]] += 1
        for segment in row["segments"]:
            self.prompt_tokens += len(segment["prompt_token_ids"])
            self.answer_tokens += len(segment["token_ids"])
            self.finish_reasons[segment["finish_reason"]] += 1

    def add_missing(self, failure: str | None) -> None:
        """Counts one row without an answer; None: it was not asked."""
        self.missing += 1
        if failure:
            self.failures[failure] += 1

    def figures(self) -> dict[str, Any]:
        """The same rows give the same figures."""
        return {
            "rows": self.rows,
            "rows_missing": self.missing,
            "failures": dict(sorted(self.failures.items())),
            "rows_dropped": dict(sorted(self.dropped.items())),
            "turns": self.turns,
            "prompt_tokens": self.prompt_tokens,
            "answer_tokens": self.answer_tokens,
            "finish_reasons": dict(sorted(self.finish_reasons.items())),
            "token_ids_from": dict(sorted(self.token_ids_from.items())),
            "temperatures": {f"{value:g}": n for value, n in sorted(self.temperatures.items())},
        }
