"""Every method on every family of bases: packed states, layers that are read, training, saving, decoding."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from specdec.config import DrafterSettings
from specdec.data.packing import Sequence
from specdec.decoding import generate
from specdec.drafters import METHODS, Tree, load_drafter, new_drafter
from specdec.targets import Target
from tests.drafters.examples import answer_features, fit, greedy_answers
from tests.settings import eagle3_settings, eagle_settings, medusa_settings
from tests.targets.families import FAMILIES, WINDOW, write_family

SETTINGS: dict[str, Callable[[], DrafterSettings]] = {
    "medusa": medusa_settings,
    "eagle": eagle_settings,
    "eagle3": eagle3_settings,
}
LIMIT = 32


@dataclass(frozen=True)
class Base:
    """A family's base and what it answers; the answer to `prompt` is `answer`."""

    target: Target
    sequences: list[Sequence]
    prompt: list[int]
    answer: list[int]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Two only wait for each other where models are this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


BOLD = ("llama-2", "llama-3.1", "mistral", "phi-1", "phi-2", "phi-3", "qwen-1.5", "qwen-2", "qwen-2.5")


@pytest.fixture(
    scope="module",
    params=[pytest.param(f, marks=[] if f in BOLD else [pytest.mark.soak]) for f in FAMILIES],
)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = tmp_path_factory.mktemp("families") / request.param
    write_family(folder, request.param)
    target = Target.from_pretrained(folder, device="cpu")
    sequences = greedy_answers(target, count=3, limit=LIMIT)
    first = sequences[0]
    return Base(target, sequences, *(first.token_ids[m].tolist() for m in (~first.loss_mask, first.loss_mask)))


def some_ids(target: Target, rows: int, length: int) -> Tensor:
    return torch.randint(6, target.vocab_size, (rows, length), generator=torch.Generator().manual_seed(0))


def test_plain_decoding_equals_transformers(base: Base) -> None:
    assert len(base.prompt) > WINDOW
    assert len(base.answer) > 2 * WINDOW
    ids = torch.tensor([base.prompt])
    own = base.target.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=LIMIT, do_sample=False)
    assert own[0, len(base.prompt) :].tolist() == base.answer


def test_documents_of_a_packed_row_do_not_see_each_other(base: Base) -> None:
    target = base.target
    lengths = ((2 * WINDOW + 3, 1, 3 * WINDOW), (WINDOW - 1, 4 * WINDOW, 5))
    ids = some_ids(target, 2, sum(lengths[0]))
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in lengths])
    layers = tuple(range(target.num_layers + 1))
    packed = target.forward(ids, positions=positions, layers=layers)
    for i, row in enumerate(lengths):
        alone = [target.forward(document[None], layers=layers) for document in ids[i].split(row)]
        for name in ("hidden", "auxiliary"):
            wanted = torch.cat([getattr(output, name)[0] for output in alone])
            torch.testing.assert_close(getattr(packed, name)[i], wanted, rtol=1e-4, atol=1e-4)


def test_layers_are_counted_as_transformers_counts(base: Base) -> None:
    target, body = base.target, base.target.model.base_model
    ids = some_ids(target, 2, 3 * WINDOW)
    output = target.forward(ids, layers=tuple(range(target.num_layers + 1)))
    assert output.auxiliary is not None
    *layers, last = output.auxiliary.chunk(target.num_layers + 1, -1)
    own = target.model(ids, output_hidden_states=True).hidden_states
    for layer, wanted in zip(layers, own[:-1], strict=True):
        torch.testing.assert_close(layer, wanted)
    names = ("norm", "final_layernorm", "final_layer_norm")
    norm = next(getattr(body, name) for name in names if hasattr(body, name))
    torch.testing.assert_close(norm(last), output.hidden)
    assert not torch.allclose(last, output.hidden)


def test_a_rolled_back_cache_is_as_if_never_written(base: Base) -> None:
    target = base.target
    ids = some_ids(target, 1, 4 * WINDOW)
    whole = target.forward(ids).hidden
    cache = target.new_cache()
    target.forward(ids[:, :WINDOW], cache=cache)
    for start in range(WINDOW, 4 * WINDOW, 3):
        target.forward(ids[:, :5], cache=cache)  # what is not going to stay
        cache.crop(start - cache.get_seq_length())
        read = target.forward(ids[:, start : start + 3], cache=cache).hidden
        torch.testing.assert_close(read, whole[:, start : start + 3], rtol=1e-4, atol=1e-4)


def test_a_tree_is_read_as_its_paths_are(base: Base) -> None:
    """At every length around the sliding windows; then one path stays, and the cache is as if it alone were read."""
    target = base.target
    ids = some_ids(target, 1, 4 * WINDOW)
    target.check_trees()
    parents = [None, 0, 0, 1, 1, 2, 3, 3, 6, 8]
    ways: list[list[int]] = []
    for node, parent in enumerate(parents):
        ways.append([*(ways[parent] if parent is not None else []), node])
    sees = torch.zeros(len(ways), len(ways), dtype=torch.bool)
    for node, way in enumerate(ways):
        sees[node, way] = True
    tree = some_ids(target, 2, len(ways))[:1]
    for context in range(WINDOW - 3, 2 * WINDOW + 3, 3):
        cache = target.new_cache()
        target.forward(ids[:, :context], cache=cache)
        read = target.forward_tree(tree, sees, cache, (1, target.num_layers))
        for way in ways:
            alone = torch.cat([ids[:, :context], tree[:, way]], 1)
            wanted = target.forward(alone, layers=(1, target.num_layers))
            torch.testing.assert_close(read.hidden[0, way[-1]], wanted.hidden[0, -1], rtol=1e-4, atol=1e-4)
            assert read.auxiliary is not None
            assert wanted.auxiliary is not None
            torch.testing.assert_close(read.auxiliary[0, way[-1]], wanted.auxiliary[0, -1], rtol=1e-4, atol=1e-4)
        kept = ways[-1][:-1]
        target.keep(cache, context, torch.tensor(kept))
        fresh = target.new_cache()
        target.forward(torch.cat([ids[:, :context], tree[:, kept]], 1), cache=fresh)
        for layer, whole in zip(cache.layers, fresh.layers, strict=True):
            torch.testing.assert_close(layer.keys, whole.keys, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(layer.values, whole.values, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_trained_drafts_and_changes_no_token(base: Base, tmp_path: Path, method: str) -> None:
    drafter = new_drafter(base.target, SETTINGS[method]())
    losses = fit(drafter, answer_features(base.target, drafter, base.sequences), 25, 5e-3)
    assert losses[-1] < 0.7 * losses[0]
    drafter.save_pretrained(tmp_path / "drafter")
    loaded = load_drafter(tmp_path / "drafter", base.target)
    made = generate(base.target, loaded, base.prompt, LIMIT)
    assert made.token_ids == base.answer
    assert made.accepted > 0
    tree = generate(base.target, loaded, base.prompt, LIMIT, tree=Tree(4, 3, 16))
    assert tree.token_ids == base.answer
    assert tree.accepted > 0
