"""The published repository's README: what it holds, of what it was made, whose text it is."""

from collections import Counter

from specdec.data.pydocs.packages import licence, versions
from specdec.data.pydocs.rows import Row

CARD = """---
language: en
license: other
license_name: those of the documented projects (listed in the dataset's README)
task_categories: [text-generation]
---
# Documentation of the installed Python and its libraries, as conversations

{rows} conversations in the row schema of Daring-Anteater, for training a small base model and its drafters
offline.

## How it was made
`specdec.data.pydocs` read docstrings, signatures and doctests from source files that were already
installed, and Python's language reference from `pydoc_data.topics`. Questions and the frames of the answers
are templates; the text within them is the projects' own, cut at sentence ends.

## Categories
| category | conversations |
|---|---|
{table}

## Made from
{made_from}

## Licence
The text belongs to the projects above and stays under their licences (Python's text: the PSF License). It was
collected from an installation for use beside it; check those licences before you pass it on.

Fingerprint: {fingerprint}
"""


def card(rows: list[Row], mark: str) -> str:
    """The README of ``rows``, with the fingerprint ``mark`` by which `publish` knows them again."""
    counts = Counter(row["dataset"] for row in rows)
    table = "\n".join(f"| {name} | {count} |" for name, count in sorted(counts.items()))
    made_from = "\n".join(f"- {name} {version} ({licence(name)})" for name, version in versions().items())
    return CARD.format(rows=len(rows), table=table, made_from=made_from, fingerprint=mark)
