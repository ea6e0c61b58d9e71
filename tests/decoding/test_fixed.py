"""Decoding in passes of fixed shapes: the same tokens, one compiled form, one wait for the device in a step."""

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from specdec.decoding import GREEDY, Generation, generate, steps
from specdec.drafters import DraftState, Draw, Sampling, StaticTree, Tree
from specdec.drafters.prompt_lookup import PromptLookup
from specdec.errors import ConfigError
from specdec.targets import Target
from tests.drafters.test_trees import CHOICES, moved, observed

PROMPTS = [[1, 4, 30, 41, 52, 63, 2, 5], [1, 4, 100, 2, 5], [1, 4, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 2, 5]]
STATIC = StaticTree.of([(0,), (1,), (0, 0), (0, 1)])
FORMS: dict[str, Any] = {"chain": None, "dynamic tree": Tree(2, 2, 5), "static tree": STATIC}
LIMIT = 30
SAMPLED = Sampling(0.8, top_k=20, top_p=0.9)
# Each drafter, each form, greedy and with draws; a dynamic tree draws nothing.
COMPILED = [
    ("medusa", "chain", GREEDY),
    ("medusa", "dynamic tree", GREEDY),
    ("medusa", "static tree", SAMPLED),
    ("eagle", "chain", SAMPLED),
    ("eagle", "dynamic tree", GREEDY),
    ("eagle of two layers", "static tree", GREEDY),
    ("eagle3", "chain", GREEDY),
    ("eagle3", "dynamic tree", SAMPLED),
    ("eagle3, draft vocabulary", "static tree", SAMPLED),
    ("eagle3, draft vocabulary", "chain", SAMPLED),
    ("eagle3, norms", "chain", GREEDY),
]
# Each method, each form, drawn and not.
FEW = [COMPILED[1], COMPILED[3], COMPILED[6], COMPILED[8]]
EACH = [case if case in FEW else pytest.param(*case, marks=pytest.mark.soak) for case in COMPILED]


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """torch.compile without the compiler behind it: the graphs that it was given."""
    graphs: list[Any] = []
    compile_with: Any = torch.compile

    def keep(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    def compiled(function: Any, **choices: Any) -> Any:
        return compile_with(function, backend=keep, fullgraph=True, **choices)

    monkeypatch.setattr(torch, "compile", compiled)
    torch._dynamo.reset()
    yield graphs
    torch._dynamo.reset()


def fresh(target: Target) -> Target:
    """What is compiled stays with it."""
    return Target(target.model, target.tokenizer, target.identity, target.name)


def check_compiled(
    target: Target,
    choice: str,
    prompts: list[list[int]],
    length: int,
    form: str = "chain",
    sampling: Sampling = GREEDY,
) -> list[Generation]:
    """Compiled, in one fixed cache, each prompt gives what it gives uncompiled in a growing one."""
    drafter, tree = moved(target, choice), FORMS[form]
    drafter.target = mine = fresh(target)
    wanted = [generate(mine, drafter, prompt, LIMIT, sampling, seed=5, tree=tree) for prompt in prompts]
    mine.compile()
    drafter.compile_drafting()
    cache = mine.fixed_cache(length, (tree.nodes if tree else drafter.draft_tokens) + 1)
    for prompt, plain in zip(prompts, wanted, strict=True):
        assert generate(mine, drafter, prompt, LIMIT, sampling, seed=5, tree=tree, cache=cache) == plain
        cache.reset()
    return wanted


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.8, top_k=20)], ids=["greedy", "sampled"])
@pytest.mark.parametrize(("choice", "form"), [*itertools.product(CHOICES, FORMS), ("lookup", "chain")])
def test_a_fixed_cache_changes_no_token(target: Target, choice: str, form: str, sampling: Sampling) -> None:
    drafter = PromptLookup(5) if choice == "lookup" else moved(target, choice)
    cache = target.fixed_cache(60, 6)
    for prompt in PROMPTS:
        choices: dict[str, Any] = {"tree": FORMS[form], "seed": 3}
        wanted = generate(target, drafter, prompt, LIMIT, sampling, **choices)
        assert generate(target, drafter, prompt, LIMIT, sampling, cache=cache, **choices) == wanted
        cache.reset()


@pytest.mark.parametrize(("choice", "form", "sampling"), EACH)
def test_compiled_it_drafts_and_says_the_same_in_one_form(
    target: Target, compiler: list[Any], choice: str, form: str, sampling: Sampling
) -> None:
    check_compiled(target, choice, PROMPTS, 60, form, sampling)
    assert len(compiler) == 2, "one form of the base's pass and one of the drafter's, for all prompts and steps"


@pytest.mark.parametrize(("choice", "form", "sampling"), EACH)
def test_compiled_it_drafts_the_same_behind_whatever_was_accepted(
    target: Target, compiler: list[Any], choice: str, form: str, sampling: Sampling
) -> None:
    """A prompt, then one to all of the drafts accepted, in turn."""
    drafter, tree = moved(target, choice), FORMS[form]
    ids = torch.randint(6, target.vocab_size, (60,), generator=torch.Generator().manual_seed(0)).tolist()
    nodes, depth = (tree.nodes, tree.depth) if tree else (drafter.draft_tokens, drafter.draft_tokens)
    drafter.compile_drafting()
    ours, theirs = DraftState(fixed=target.fixed_cache(70, nodes + 1)), DraftState()
    draws: list[Draw | None] = [None, None]
    if not sampling.greedy and not isinstance(tree, Tree):
        draws = [Draw(sampling, torch.Generator().manual_seed(3)) for _ in range(2)]
    read = 0
    with torch.inference_mode():
        for more in (20, 1, depth + 1, 2, depth + 1, 1, 3):
            made = []
            for state, draw in zip((ours, theirs), draws, strict=True):
                observed(target, drafter, ids[: read + more + 1], state, read)
                made.append(drafter.propose(state, depth, tree, draw))
            read += more
            assert made[0].token_ids.tolist() == made[1].token_ids.tolist()
            assert len(made[0].token_ids) == nodes
            for mine, plain in ((made[0].parents, made[1].parents), (made[0].laws, made[1].laws)):
                assert (mine is None) == (plain is None)
                if mine is not None:
                    torch.testing.assert_close(mine, plain)
    assert len(compiler) == 1


@pytest.mark.parametrize(("choice", "form", "sampling"), EACH)
def test_compiled_it_ends_where_the_context_does(
    target: Target, compiler: list[Any], choice: str, form: str, sampling: Sampling
) -> None:
    prompt = [6 + i % 200 for i in range(target.max_positions - 12)]
    (made,) = check_compiled(target, choice, [prompt], target.max_positions, form, sampling)
    assert len(made.token_ids) <= 12


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own compiler
@pytest.mark.parametrize(("choice", "form", "sampling"), COMPILED)
def test_the_real_compiler_says_the_same(target: Target, choice: str, form: str, sampling: Sampling) -> None:
    check_compiled(target, choice, PROMPTS, 60, form, sampling)


def test_a_cache_that_is_too_short_is_refused(target: Target) -> None:
    cache = target.fixed_cache(20, 4)
    with pytest.raises(ConfigError, match="may take 38 tokens, and the fixed cache has room for 20: make"):
        generate(target, None, PROMPTS[0], 30, cache=cache)
    with pytest.raises(ConfigError, match="may take 21 tokens, and the fixed cache has room for 20: make"):
        generate(target, None, PROMPTS[0], 13, cache=cache)
    assert len(generate(target, None, PROMPTS[0], 12, cache=cache).token_ids) == 12


def test_a_cache_with_something_in_it_is_refused(target: Target) -> None:
    """The prompt would be read behind another one."""
    for cache in (target.fixed_cache(60, 4), target.new_cache()):
        held = len(PROMPTS[0]) + len(generate(target, None, PROMPTS[0], 5, cache=cache).token_ids) - 1
        with pytest.raises(ConfigError, match=f"the cache holds {held} positions already: reset it"):
            generate(target, None, PROMPTS[1], 5, cache=cache)


@pytest.mark.parametrize("form", FORMS)
def test_drafts_that_its_step_does_not_take_are_refused(target: Target, form: str) -> None:
    drafter = moved(target, "eagle")
    count = drafter.draft_tokens if FORMS[form] is None else FORMS[form].nodes
    said = rf"a pass reads {count + 1} tokens \({count} drafts\), and the fixed cache takes {count}: make it"
    with pytest.raises(ConfigError, match=said):
        generate(target, drafter, PROMPTS[0], 5, tree=FORMS[form], cache=target.fixed_cache(60, count))
    generate(target, drafter, PROMPTS[0], 5, tree=FORMS[form], cache=target.fixed_cache(60, count + 1))


class _Waits(TorchDispatchMode):
    """Counts what a GPU would have to be waited for: numbers that go to the host, shapes that depend on them."""

    NAMES = ("item", "_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2")

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = operator.overloadpacket.__name__
        by_mask = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in self.NAMES or by_mask:
            self.seen[name] += 1
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("form", "sampling"),
    [
        ("chain", Sampling()),
        ("chain", Sampling(0.8)),
        ("dynamic tree", Sampling()),
        ("dynamic tree", Sampling(0.8)),
        ("static tree", Sampling()),
        ("static tree", Sampling(0.8)),
    ],
    ids=str,
)
@pytest.mark.parametrize("choice", CHOICES)
def test_a_step_waits_once_for_the_device(
    target: Target, monkeypatch: pytest.MonkeyPatch, choice: str, form: str, sampling: Sampling
) -> None:
    """When it has verified: all that the host has to know comes at once."""
    drafter = moved(target, choice)
    waits = _Waits()
    listed = torch.Tensor.tolist

    def tolist(tensor: Tensor) -> Any:
        waits.seen["tolist"] += 1
        return listed(tensor)

    made = steps(target, drafter, PROMPTS[0], LIMIT, sampling, seed=0, tree=FORMS[form])
    next(made)
    monkeypatch.setattr(torch.Tensor, "tolist", tolist)
    with waits:
        count = len(list(made))
    assert count > 5
    assert dict(waits.seen) == {"tolist": count}
