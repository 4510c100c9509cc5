"""What a reader has asked to see: everything of it stands in the URL, so that it can be kept, sent and reloaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import urlencode

from nas.dashboard.studies import Study

PAGES: dict[str, str] = {
    "sweeps": "Sweeps",
    "front": "Front",
    "architecture": "Architecture",
    "latency": "Latency model",
    "search": "Search",
    "card": "Card",
}
Value = str | int | Iterable[str] | None


@dataclass(frozen=True)
class Pin:
    """A candidate that a reader has put aside: a trial of a study, or one of its report's models.

    Args:
        study: The study's key.
        index: Of the trial, or of the model in the report.
        measured: Whether it is a model of the report.
    """

    study: str
    index: int
    measured: bool = False

    def __str__(self) -> str:
        return f"{'m' if self.measured else 't'}{self.index}@{self.study}"

    @classmethod
    def read(cls, text: str) -> Pin | None:
        """Read what ``str`` wrote; None where it is something else."""
        head, _, study = text.partition("@")
        if not study or head[:1] not in ("m", "t") or not head[1:].isascii() or not head[1:].isdigit():
            return None
        return cls(study, int(head[1:]), head[0] == "m")


@dataclass(frozen=True)
class View:
    """A page and its options.

    Args:
        page: A key of `PAGES`.
        options: Name and value, names may repeat.
    """

    page: str
    options: tuple[tuple[str, str], ...] = ()

    def get(self, name: str, default: str = "") -> str:
        """The last value of an option."""
        return next((value for key, value in reversed(self.options) if key == name), default)

    def all(self, name: str) -> tuple[str, ...]:
        """All values of an option, without repeats."""
        return tuple(dict.fromkeys(value for key, value in self.options if key == name))

    def chosen(self, name: str, known: Iterable[str], default: str = "") -> str:
        """An option's value where it is one of the known, else the default."""
        value = self.get(name)
        return value if value in set(known) else default

    def link(self, page: str | None = None, **changes: Value) -> str:
        """The URL of this view with some options changed; None removes an option. Other pages keep only the studies."""
        page = page or self.page
        kept = [(k, v) for k, v in self.options if k not in changes and (page == self.page or k == "study")]
        for name, value in changes.items():
            if value is not None:
                many = [str(value)] if isinstance(value, str | int) else [str(item) for item in value]
                kept.extend((name, item) for item in many)
        query = urlencode(kept)
        return f"/{page}" + (f"?{query}" if query else "")

    @property
    def query(self) -> str:
        """The options as a URL's query."""
        return urlencode(self.options)

    @property
    def pins(self) -> tuple[Pin, ...]:
        """The candidates put aside, two at most."""
        pins = (Pin.read(text) for text in self.all("pin"))
        return tuple(pin for pin in pins if pin is not None)[-2:]

    def pin(self, pin: Pin) -> str:
        """The URL with one more candidate put aside; the older of two makes room."""
        others = [str(other) for other in self.pins if other != pin]
        return self.link(pin=[*others[-1:], str(pin)])

    def unpin(self, pin: Pin) -> str:
        """The URL without a candidate."""
        return self.link(pin=[str(other) for other in self.pins if other != pin])

    def studies(self, known: Mapping[str, Study]) -> list[Study]:
        """The studies that the view names; the one that was active last where it names none."""
        named = [known[key] for key in self.all("study") if key in known]
        if named or not known:
            return named
        return [max(known.values(), key=lambda study: (study.last_active or 0.0, study.key))]
