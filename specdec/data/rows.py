"""The rows of a file of JSON, as bytes: one a line (JSONL), or the elements of one array.

An array is cut at its commas without being understood: a row that is not JSON is the reader's to count, like a bad
line, and the rows behind it are still found. One row is held at a time.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from specdec.data.lfs import SIGNATURE
from specdec.errors import DataError

BLOCK = 1 << 20  # bytes read at a time
LONGEST = 1 << 28  # bytes of an array's row: beyond it a quote or a bracket is missing
_BOM = b"\xef\xbb\xbf"
# A whole string, a bracket or a comma; and last a quote that opens a string whose end has not been read yet.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{},]|"', re.DOTALL)
_DEEPER = {b"[": 1, b"{": 1, b"]": -1, b"}": -1}


def read_rows(file: Path, name: str = "") -> Iterator[tuple[int, bytes]]:
    """(line number, row) of JSONL, without blank lines; (number of the element, row) of an array. From 1.

    name: what errors call the file, if not by its path.
    Raises DataError when the file is a Git LFS pointer, or an array that does not end where the file does.
    """
    name = name or str(file)
    with file.open("rb") as stream:
        head = stream.read(BLOCK)
        content = head.removeprefix(_BOM).lstrip()
        if content.startswith(SIGNATURE):
            raise DataError(f"{name} is a Git LFS pointer and not the data: fetch it with `git lfs pull`")
        if content.startswith(b"["):
            stream.seek(head.index(b"[") + 1)
            yield from _elements(stream, name)
        else:
            stream.seek(0)
            yield from _lines(stream)


def _lines(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(stream, 1):
        if line.strip():
            yield number, line


def _elements(stream: BinaryIO, name: str) -> Iterator[tuple[int, bytes]]:
    """The stream stands behind the array's opening bracket.

    buffer: from the first byte of the row being read; it has been looked through up to `place`, which is `depth`
    brackets deep.
    """
    buffer, place, depth, number = b"", 0, 1, 1
    while block := stream.read(BLOCK):
        buffer += block
        begin = 0
        while (token := _TOKEN.search(buffer, place)) and token[0] != b'"':
            place = token.end()
            depth += _DEEPER.get(token[0], 0)
            if depth == 0:
                last = buffer[begin : token.start()]
                if last.strip() or number > 1:  # `[]` has no row, `[{...},]` an empty one
                    yield number, last
                return _expect_nothing(buffer[place:], stream, name, number)
            if depth == 1 and token[0] == b",":
                yield number, buffer[begin : token.start()]
                begin, number = place, number + 1
        place = token.start() if token else len(buffer)
        buffer, place = buffer[begin:], place - begin
        if len(buffer) > LONGEST:
            raise DataError(
                f"{name}: row {number} does not end within {LONGEST:,} bytes: a quote or bracket is missing"
            )
    raise DataError(f"{name} ends in the middle of its array, at row {number}: it is cut short, fetch it again")


def _expect_nothing(rest: bytes, stream: BinaryIO, name: str, number: int) -> None:
    while rest:
        if rest.strip():
            raise DataError(f"{name} goes on behind the end of its array, at row {number}: a bracket is wrong there")
        rest = stream.read(BLOCK)
