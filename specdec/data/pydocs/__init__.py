"""Conversations made from the documentation that is already on this machine.

    python -c "from pathlib import Path; from specdec.data import pydocs; print(pydocs.publish(Path('docs')))"

Docstrings and signatures of Python's standard library and of the installed libraries named in
``packages.PACKAGES`` are read from their source files with ``ast`` (third-party code is never imported);
built-in objects, which have no source, are asked for ``__doc__``; the language reference comes from
``pydoc_data.topics``. Every answer is a fixed frame around real text: "`join` is a function of the module
`os.path`. ...".

The same set of installed packages always gives the same rows in the same order. The way of a row:

    sources, syntax, builtin_objects -> Entry -> docstrings -> Doc -> questions -> rows -> harvest -> repository
    topics --------------------------------------------------------------------> rows
"""

from specdec.data.pydocs.docstrings import Doc, parse
from specdec.data.pydocs.harvest import conversations
from specdec.data.pydocs.packages import versions
from specdec.data.pydocs.repository import fingerprint, publish

__all__ = ["Doc", "conversations", "fingerprint", "parse", "publish", "versions"]
