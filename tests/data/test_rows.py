"""Rows of JSONL and of one array are the same rows, whatever is in them and wherever a block of bytes ends."""

import bz2
import gzip
import json
import lzma
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specdec.data import rows as module
from specdec.data.rows import read_rows
from specdec.errors import DataError

TEXT = st.text() | st.text('[]{},"\\: \n\r\t\ud800é', max_size=30)
VALUE = st.recursive(
    st.none() | st.booleans() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=12,
)


def elements(tmp_path: Path, content: bytes) -> list[tuple[int, bytes]]:
    file = tmp_path / "rows"
    file.write_bytes(content)
    return list(read_rows(file))


@settings(deadline=None, max_examples=60)
@given(st.lists(VALUE), st.sampled_from([None, 1]), st.integers(1, 40), st.booleans())
def test_an_array_gives_its_elements(
    tmp_path_factory: pytest.TempPathFactory, values: list[Any], indent: int | None, block: int, ascii_only: bool
) -> None:
    written = json.dumps(values, indent=indent, ensure_ascii=ascii_only).encode(errors="surrogatepass")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        found = elements(tmp_path_factory.getbasetemp(), b" \n" * (block - 1 > 2) + written + b"\n " * 30)
    assert [number for number, _ in found] == list(range(1, len(values) + 1))
    read = [json.dumps(json.loads(row.decode(errors="surrogatepass"))) for _, row in found]
    assert read == [json.dumps(value) for value in values]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.dictionaries(TEXT, TEXT), min_size=1), st.data())
def test_a_cut_array_is_never_a_shorter_one(
    tmp_path_factory: pytest.TempPathFactory, values: list[Any], data: st.DataObject
) -> None:
    written = json.dumps(values).encode()
    cut = data.draw(st.integers(1, len(written) - 1))
    with pytest.raises(DataError, match="ends in the middle of its array, at row"):
        elements(tmp_path_factory.getbasetemp(), written[:cut])


def test_lines(tmp_path: Path) -> None:
    assert elements(tmp_path, b'{"a": 1}\n\n \n[2]\n3') == [(1, b'{"a": 1}\n'), (4, b"[2]\n"), (5, b"3")]
    assert elements(tmp_path, b"") == []


def test_a_byte_order_mark_is_no_row(tmp_path: Path) -> None:
    """On a line of its own, and where two files with one were joined."""
    mark = b"\xef\xbb\xbf"
    found = elements(tmp_path, mark + b"\n{}\n" + mark + b"\r\n" + mark + b"{}\n")
    assert [(number, json.loads(row)) for number, row in found] == [(2, {}), (4, {})]


OTHERS = [
    (gzip.compress(b"{}\n", mtime=0), "is compressed with gzip: decompress it"),
    (b"\x28\xb5\x2f\xfd" + bytes(20), "is compressed with zstd: decompress it"),
    (bz2.compress(b"{}\n"), "is compressed with bzip2: decompress it"),
    (lzma.compress(b"{}\n"), "is compressed with xz: decompress it"),
    (b"PK\x03\x04" + bytes(20), "is a zip archive: unpack it"),
    (b"PAR1" + bytes(20), "is Parquet: convert it to JSONL"),
    ('{"a": 1}\n'.encode("utf-16"), "is UTF-16 text: convert it to UTF-8"),
    ('\ufeff{"a": 1}\n'.encode("utf-16-be"), "is UTF-16 text: convert it to UTF-8"),
    (json.dumps({"a": [1]}, indent=2).encode(), "holds a JSON object written over several lines"),
    (b'\xef\xbb\xbf\r\n{ \r\n\t"a": 1}', "holds a JSON object written over several lines"),
]


@pytest.mark.parametrize(("content", "what"), OTHERS, ids=[what for _, what in OTHERS])
def test_another_format_is_named(tmp_path: Path, content: bytes, what: str) -> None:
    with pytest.raises(DataError, match=rf"rows {re.escape(what)}") as caught:
        elements(tmp_path, content)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b'{\n{"a": 1}\n', b'{"a":\n', b"{}\n", b"{"])
def test_a_broken_first_line_is_a_row(tmp_path: Path, content: bytes) -> None:
    assert elements(tmp_path, content)


def test_one_broken_row_does_not_take_the_others(tmp_path: Path) -> None:
    found = elements(tmp_path, b'\xef\xbb\xbf[{"a": tru}, {"b": "\xff"}, , {"c": NaN},]')
    assert found == [(1, b'{"a": tru}'), (2, b' {"b": "\xff"}'), (3, b" "), (4, b' {"c": NaN}'), (5, b"")]


def test_nothing_in_an_array(tmp_path: Path) -> None:
    assert elements(tmp_path, b" [ \n] ") == []


@pytest.mark.parametrize("content", [b'[{"a": 1}] {"b": 2}', b'[{"a": ]}, {"b": 2}]', b"[1]" + b" " * 99 + b"]"])
def test_what_stands_behind_the_array(tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 16)
    with pytest.raises(DataError, match="goes on behind the end of its array, at row 1"):
        elements(tmp_path, content)


def test_a_missing_quote_is_told_before_the_memory_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 100)
    monkeypatch.setattr(module, "LONGEST", 1000)
    with pytest.raises(DataError, match="row 2 does not end within 1,000 bytes"):
        elements(tmp_path, b'[{"a": 1}, {"a: "' + b"x" * 5000 + b'"}]')
