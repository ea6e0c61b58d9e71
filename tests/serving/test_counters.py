"""What a vLLM says of its drafts, and what is made of it."""

import http.server
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specdec.errors import ServerError
from specdec.serving.counters import Counters, parse_counters, read_counters

# As vLLM 0.32 writes it, with two engines (data parallel).
TEXT = """\
# HELP vllm:spec_decode_num_drafts_total Number of spec decoding drafts.
# TYPE vllm:spec_decode_num_drafts_total counter
vllm:spec_decode_num_drafts_total{engine="0",model_name="/m, {odd}"} 100.0
vllm:spec_decode_num_drafts_total{engine="1",model_name="/m, {odd}"} 20.0
vllm:spec_decode_num_drafts_created{engine="0",model_name="/m"} 1.78e+09
vllm:spec_decode_num_draft_tokens_total{engine="0",model_name="/m"} 300.0
vllm:spec_decode_num_draft_tokens_total{engine="1",model_name="/m"} 60.0
vllm:spec_decode_num_accepted_tokens_total{engine="0",model_name="/m"} 9.0e+01
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="/m",position="0"} 60.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="/m",position="2"} 10.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="/m",position="1"} 20.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="1",model_name="/m",position="0"} 5.0
vllm:generation_tokens_total{engine="0",model_name="/m"} 210.0
python_gc_objects_collected_total{generation="0"} 7.0
"""

whole = st.integers(0, 10**9)
counters = st.builds(Counters, whole, whole, whole, st.lists(whole, max_size=5).map(tuple), whole)


def test_engines_are_added_up_and_positions_ordered() -> None:
    found = parse_counters(TEXT)
    assert found == Counters(120, 360, 90, (65, 20, 10), 210)
    assert found.acceptance_length == 1 + 90 / 120
    assert found.position_rates == [65 / 120, 20 / 120, 10 / 120]


def test_a_server_without_a_drafter_has_drafted_nothing() -> None:
    assert parse_counters("vllm:generation_tokens_total 5.0\n") == Counters(generated=5)
    assert (Counters().acceptance_length, Counters().position_rates) == (1.0, [])


@given(counters, counters)
def test_what_came_in_between(before: Counters, more: Counters) -> None:
    """Also where the server has met further positions since."""
    after = before + more
    width = len(after.accepted_at)
    padded = more.accepted_at + (0,) * (width - len(more.accepted_at))
    assert after - before == Counters(more.drafts, more.drafted, more.accepted, padded, more.generated)


@pytest.mark.parametrize(
    "now", [Counters(9, 30, 9, (5,), 50), Counters(10, 30, 9, (4,), 50), Counters(10, 30, 9, (5,), 49), Counters()]
)
def test_a_counter_that_falls_is_another_server(now: Counters) -> None:
    with pytest.raises(ValueError, match="started anew"):
        now - Counters(10, 30, 9, (5,), 50)


@pytest.fixture
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    status, text = request.param

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = text.encode()
            self.send_response(status if self.path == "/metrics" else 404)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("url", [(200, TEXT)], indirect=True)
def test_of_a_server(url: str) -> None:
    assert read_counters(url).drafts == 120


@pytest.mark.parametrize("url", [(404, "")], indirect=True)
def test_a_server_without_counters(url: str) -> None:
    with pytest.raises(ServerError, match=r"HTTP 404: is it a vLLM server"):
        read_counters(url)


def test_no_server() -> None:
    with pytest.raises(ServerError, match=r"no server answers at http://127\.0\.0\.1:9/metrics"):
        read_counters("http://127.0.0.1:9")
