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
_FORMATS = {
    b"\x1f\x8b": "compressed with gzip: decompress it (`gzip -dc`)",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: decompress it (`zstd -dc`)",
    b"BZh": "compressed with bzip2: decompress it (`bzip2 -dc`)",
    b"\xfd7zXZ\x00": "compressed with xz: decompress it (`xz -dc`)",
    b"PK\x03\x04": "a zip archive: unpack it",
    b"PAR1": "Parquet: convert it to JSONL (`datasets.Dataset.from_parquet(file).to_json(out)`)",
    b"\xff\xfe": "UTF-16 text: convert it to UTF-8 (`iconv -f UTF-16 -t UTF-8`)",
    b"\xfe\xff": "UTF-16 text: convert it to UTF-8 (`iconv -f UTF-16 -t UTF-8`)",
}
_OPEN_OBJECT = re.compile(rb'\{[ \t]*\r?\n\s*"')  # no row of JSONL goes on in the next line
# A whole string, a bracket or a comma; and last a quote that opens a string whose end has not been read yet.
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{},]|"', re.DOTALL)
_DEEPER = {b"[": 1, b"{": 1, b"]": -1, b"}": -1}


def read_rows(file: Path, name: str = "") -> Iterator[tuple[int, bytes]]:
    """(line number, row) of JSONL, without blank lines; (number of the element, row) of an array. From 1.

    name: what errors call the file, if not by its path.
    Raises DataError when the file is a Git LFS pointer or otherwise no such JSON as a whole, and when an array does
    not end where the file does.
    """
    name = name or str(file)
    with file.open("rb") as stream:
        head = stream.read(BLOCK)
        content = head.removeprefix(_BOM).lstrip()
        _check_format(head, content, name)
        if content.startswith(b"["):
            stream.seek(head.index(b"[") + 1)
            yield from _elements(stream, name)
        else:
            stream.seek(0)
            yield from _lines(stream)


def _check_format(head: bytes, content: bytes, name: str) -> None:
    """Names what would only be so many bad rows. content: the head without what may stand before the first row."""
    if content.startswith(SIGNATURE):
        raise DataError(f"{name} is a Git LFS pointer and not the data: fetch it with `git lfs pull`")
    found = next((what for magic, what in _FORMATS.items() if head.startswith(magic)), None)
    if found:
        raise DataError(f"{name} is {found}; what is read is JSONL, or one JSON array")
    if _OPEN_OBJECT.match(content):
        raise DataError(
            f"{name} holds a JSON object written over several lines: convert it to JSONL, each row on a line of its "
            "own (`jq -c`), or to one JSON array of rows"
        )


def _lines(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(stream, 1):
        if line.removeprefix(_BOM).strip():
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
