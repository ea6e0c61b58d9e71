"""A whole evaluation of one drafter: every way to decode with it, beside the base alone and prompt lookup."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from specdec.drafters import Drafter, Medusa, Sampling, StaticTree
from specdec.errors import DataError, ModelError
from specdec.evaluation.forecast import forecast
from specdec.evaluation.measure import EvaluationPrompt, Measurements, PromptMeasurement, Way, encode
from specdec.evaluation.neighbours import watch_neighbours
from specdec.evaluation.plan import LOOKUP, Plan, chain_name, first_ways, plain_name
from specdec.evaluation.prompt_files import FileEvaluation, evaluate_files
from specdec.evaluation.ranks import Rates, rank_rates, search_tree
from specdec.evaluation.ways import measure_ways
from specdec.targets import Target

CALIBRATION_PROMPTS = 32
RANKS = (5, 6)  # depth and width of what is counted for static trees

Say = Callable[[str], None]


@dataclass(frozen=True)
class Evaluation:
    """main: the way that is reported first: greedy, the drafter's own chain. figures[name]: see `summarize`.

    measured: the main way, no drafter and prompt lookup on all prompts. others: the further ways, on their prompts.
    static_trees: by the way's name. notes: what was not measured, and what the times are worth. files: by name.
    """

    main: str
    measured: Measurements
    others: Measurements
    figures: dict[str, dict[str, Any]]
    static_trees: dict[str, StaticTree]
    rates: Rates | None
    skipped: int
    forecast: dict[str, Any] | None
    notes: list[str]
    files: dict[str, FileEvaluation]

    @property
    def lossless(self) -> bool:
        """Every greedy way, every token, of the files too."""
        here = all(found["lossless"] is not False for found in self.figures.values())
        return here and all(file.lossless for file in self.files.values())

    @property
    def prompts(self) -> list[PromptMeasurement]:
        return self.measured[self.main]

    def main_figures(self, confidence: float) -> dict[str, Any]:
        """`metrics/evaluate/D.json`: of the main way; `lossless` is over all greedy ways and the files."""
        return self.figures[self.main] | {
            "lossless": self.lossless,
            "skipped_prompts": self.skipped,
            "confidence": confidence,
            "files": {name: file.brief() for name, file in self.files.items()},
        }

    def speculative_configs(self, method: str, folder: str) -> dict[str, dict[str, Any] | None]:
        """By the number of sequences at once: vLLM's `--speculative-config` with the chain that is predicted to be
        fastest, None where no drafter is. Without a forecast: the drafter's own chain, for one sequence."""
        lengths = {"1": len(self.figures[self.main]["position_rates"])}
        if self.forecast:
            lengths = {size: best["setting"]["tokens"] for size, best in self.forecast["best_chain"].items()}
        return {
            size: {"method": method, "model": folder, "num_speculative_tokens": length} if length else None
            for size, length in lengths.items()
        }

    def all_figures(self) -> dict[str, Any]:
        """`ways.json`: every way's figures, the forms of the static trees, what was not measured, and the files."""
        return {
            "main": self.main,
            "ways": self.figures,
            "static_trees": {name: [list(path) for path in tree.paths] for name, tree in self.static_trees.items()},
            "rank_rates": None if self.rates is None else self.rates.tolist(),
            "forecast": self.forecast,
            "notes": self.notes,
            "files": {name: file.figures for name, file in self.files.items()},
        }


def evaluate(
    target: Target,
    drafter: Drafter,
    rows: list[dict[str, Any]],
    plan: Plan,
    say: Say,
    calibration: list[dict[str, Any]] | None = None,
    files: dict[str, list[dict[str, Any]]] | None = None,
) -> Evaluation:
    """Measures `drafter` on rows `{"id", "category", "messages"[, "further_turns"]}`.

    calibration: other rows, on which static trees are searched; without them the tree has seen the prompts that it is
    measured on, and the notes say so. files: rows of further files, by name, on which the main way, no drafter and
    prompt lookup are measured too. Raises DataError when no prompt of `rows` fits the base.
    """
    prompts, skipped = encode(target, rows, plan.max_new_tokens, say)
    notes: list[str] = []
    if skipped:
        notes.append(
            f"{skipped} of {len(rows)} prompts were left out: they are longer than the {target.max_positions} tokens "
            f"that {target.name} takes"
        )
    statics, rates = _static_trees(target, drafter, prompts, calibration, plan, notes, say)
    first = first_ways(drafter)
    own = first[1]
    with watch_neighbours(target.device, notes):
        measured, figures = measure_ways(target, first, prompts, plan, say)
        further = _further_ways(target, drafter, plan, statics, notes)
        others: Measurements = {}
        if further:
            some = prompts[: plan.ways_prompts]
            if len(some) < len(prompts):
                notes.append(
                    f"ways other than {own.name} and {LOOKUP} were measured on the first {len(some)} prompts"
                )
            again = [*first[:2], *further]
            others, found = measure_ways(target, again, some, plan, say)
            figures |= {name: figure for name, figure in found.items() if name != own.name}
        said = None
        if rates is not None:
            said = forecast(target, drafter, rates, [*first, *further], statics, measured, figures, say)
        others = {way.name: others[way.name] for way in further}
        on_files = evaluate_files(target, drafter, files or {}, plan, notes, say)
    if not figures[own.name]["steps"]:
        notes.append("nothing was drafted: every answer ended with the token that reading its prompt gives")
    return Evaluation(own.name, measured, others, figures, statics, rates, skipped, said, notes, on_files)


def _static_trees(
    target: Target,
    drafter: Drafter,
    prompts: list[EvaluationPrompt],
    calibration: list[dict[str, Any]] | None,
    plan: Plan,
    notes: list[str],
    say: Say,
) -> tuple[dict[str, StaticTree], Rates | None]:
    if not _grows_trees(target, notes):
        return {}, None
    if calibration:
        try:
            others, _ = encode(target, calibration[:CALIBRATION_PROMPTS], plan.max_new_tokens, say)
        except DataError:
            raise DataError(f"no prompt for calibration fits {target.name}: give shorter ones") from None
    else:
        others = prompts[:CALIBRATION_PROMPTS]
        notes.append("ranks were counted on the prompts that are measured: what is predicted has seen them")
    depth = max(RANKS[0], drafter.draft_tokens, *plan.draft_lengths)
    if isinstance(drafter, Medusa):
        depth = min(depth, drafter.num_heads)
    contexts = [prompt.contexts[0] for prompt in others]
    rates = rank_rates(target, drafter, contexts, plan.max_new_tokens, depth, RANKS[1], say)
    statics = {}
    for asked in dict.fromkeys(plan.static_nodes):
        tree = search_tree(rates, asked)
        if len(tree.paths) < asked:
            notes.append(f"a static tree of {asked} nodes has {len(tree.paths)}: no other one was ever right")
        statics[f"static tree of {asked}"] = tree
    return statics, rates


def _further_ways(
    target: Target, drafter: Drafter, plan: Plan, statics: dict[str, StaticTree], notes: list[str]
) -> list[Way]:
    own = drafter.draft_tokens
    ways: list[Way] = []
    for length in dict.fromkeys(plan.draft_lengths):
        if isinstance(drafter, Medusa) and length > drafter.num_heads:
            notes.append(f"a chain of {length} was not measured: the drafter has {drafter.num_heads} heads")
        elif length != own:
            ways.append(Way(chain_name(length), drafter, length))
    if plan.trees and _grows_trees(target, notes):
        ways += [Way(f"tree {tree}", drafter, tree=tree) for tree in dict.fromkeys(plan.trees)]
    ways += [Way(name, drafter, tree=tree) for name, tree in statics.items()]
    for temperature in dict.fromkeys(plan.temperatures):
        if temperature == 0:
            continue
        sampling = Sampling(temperature)
        ways += [
            Way(plain_name(temperature), sampling=sampling),
            Way(chain_name(own, temperature), drafter, own, sampling=sampling),
        ]
    return ways


def _grows_trees(target: Target, notes: list[str]) -> bool:
    try:
        target.check_trees()
    except ModelError as error:
        if f"no trees: {error}" not in notes:
            notes.append(f"no trees: {error}")
        return False
    return True
