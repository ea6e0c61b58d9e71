"""`specdec versions`: what the registry holds, as a table."""

from rich.table import Table

from specdec.tracking.release import Version


def table_of(name: str, versions: list[Version]) -> Table:
    table = Table(title=name, title_justify="left")
    for column in ("version", "drafter", "aliases", "acceptance length", "speedup", "gates", "made (UTC)"):
        table.add_column(column)
    for v in versions:
        gates = "; ".join(v.missed) or "passed"
        table.add_row(v.number, v.drafter, ", ".join(v.aliases), v.acceptance_length, v.speedup, gates, v.made)
    return table
