"""What is known of one documented object, wherever it was read."""

from dataclasses import dataclass

MAX_SIGNATURE = 80  # characters


@dataclass(frozen=True)
class Parameter:
    """One parameter of a call: its default as source text and the type it names, '' where there is none."""

    name: str
    default: str = ""
    annotation: str = ""


@dataclass(frozen=True)
class Entry:
    """One documented object. ``kind`` is 'function', 'method', 'class' or 'module'."""

    package: str
    module: str
    name: str
    kind: str
    doc: str
    parameters: tuple[Parameter, ...] | None = None
    members: tuple[str, ...] = ()

    @property
    def signature(self) -> str:
        """The call as one line, without types; '' where it is unknown or too long to be read."""
        if self.parameters is None:
            return ""
        parts = [f"{p.name}={p.default}" if p.default else p.name for p in self.parameters]
        if parts[:1] == ["/"]:  # left of (self, /)
            del parts[0]
        text = f"{self.name.rpartition('.')[2]}({', '.join(parts)})"
        return text if len(text) <= MAX_SIGNATURE else ""
