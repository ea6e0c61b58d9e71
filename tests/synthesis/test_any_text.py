"""Whatever a conversation holds, its user and system turns come out as they went in."""

from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from specdec.io import read_jsonl
from specdec.synthesis import Recipe, assemble, synthesize
from specdec.synthesis.journal import Journal
from tests.settings import sampling
from tests.synthesis.conftest import BASE, known
from tests.synthesis.scripted import TOKENS, Messages

STRANGE = [
    "\u2028",
    "\u2029",
    "\x85",
    "\r\n",
    "\n",
    "\r",
    "\x00",
    "\x0b\x0c",
    "\t ",
    "\ufeff",
    "\u202e",
    '"\\',
    "🦊",
    "é",
    "[DONE]",
]
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.lists(
    st.sampled_from([*STRANGE, "a", " "]), max_size=6
).map("".join)


@st.composite
def conversations(draw: Any) -> list[dict[str, str]]:
    """An optional system turn, then user turns with or without an old answer behind each."""
    turns = draw(
        st.lists(st.tuples(texts, st.none() | texts), min_size=1, max_size=draw(st.sampled_from([2, 2, 6, 50])))
    )
    system = [("system", draw(texts))] if draw(st.booleans()) else []
    asked = [
        pair for user, old in turns for pair in [("user", user), *([("assistant", old)] if old is not None else [])]
    ]
    return [{"role": role, "content": content} for role, content in [*system, *asked]]


def echo(messages: Messages, *_seed: int) -> str:
    """An answer as strange as the question."""
    return f"<{messages[-1]['content']}>"


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(drawn=st.lists(conversations(), min_size=1, max_size=12))
@example(drawn=[[{"role": "system", "content": ""}, {"role": "user", "content": ""}]])
@example(drawn=[[{"role": "user", "content": "".join(STRANGE)}] * 50])
def test_turns_come_out_as_they_went_in(drawn: Any, scripted: Any, endpoint: Any, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("any")
    rows = [{"id": f"{n:064d}", "category": "ä\u2028", "messages": messages} for n, messages in enumerate(drawn)]
    recipe = Recipe(sampling(max_tokens=4096), None, BASE, TOKENS)
    server = scripted(says=echo)
    with Journal.open(folder / "j.jsonl", {}) as journal:
        options: dict[str, Any] = {"max_failed_share": 0.0, "concurrency": 16, "say": lambda _line: None}
        synthesize(lambda: rows, journal, [known(endpoint(server))], recipe, **options)
        assemble(journal, rows, 1, folder / "out.jsonl")
    server.stop()
    made = list(read_jsonl(folder / "out.jsonl"))
    assert [row["id"] for row in made] == [row["id"] for row in rows]
    for row, out in zip(rows, made, strict=True):
        asked = [m for m in row["messages"] if m["role"] != "assistant"]
        assert [m for m in out["messages"] if m["role"] != "assistant"] == asked
        roles = [role for m in asked for role in ([m["role"], "assistant"] if m["role"] == "user" else [m["role"]])]
        assert [m["role"] for m in out["messages"]] == roles
        answers = [m["content"] for m in out["messages"] if m["role"] == "assistant"]
        assert answers == [f"<{m['content']}>" for m in asked if m["role"] == "user"]
        assert [TOKENS.text(s["token_ids"]) for s in out["segments"]] == answers
        assert out["category"] == "ä\u2028"
