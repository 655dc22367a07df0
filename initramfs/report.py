"""Where an image's bytes are: a table by component, raw and packed, with a budget to hold."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

MIB = 1 << 20
MODULES = "modules"
"""The component that a budget leaves out: another kernel brings others."""


@dataclass(frozen=True)
class Row:
    """A component: files, bytes of their contents, and its share of the packed image in bytes."""

    component: str
    files: int
    raw: int
    packed: int


@dataclass(frozen=True)
class Report:
    """The sizes of one image in bytes. `packed` is the file that is booted; the rows' shares add up to it.

    A share is what the component packs to alone, scaled so that all add up: what components have in common is spread
    over them.
    """

    board: str
    rows: Sequence[Row]
    raw: int
    packed: int
    budget: int = 0
    largest: Sequence[tuple[str, int]] = field(default_factory=tuple)

    @property
    def without_modules(self) -> int:
        """The packed size less the kernel modules' share."""
        return self.packed - sum(row.packed for row in self.rows if row.component == MODULES)

    def fits(self) -> bool:
        """Whether the image is within its budget, if it has one."""
        return not self.budget or self.without_modules <= self.budget

    def text(self) -> str:
        """The table, ready to print."""
        lines = [f"{self.board + ': component':<24}{'files':>7}{'raw KiB':>12}{'packed KiB':>12}{'share':>8}"]
        for row in sorted(self.rows, key=lambda row: -row.packed):
            share = row.packed / self.packed if self.packed else 0
            lines.append(
                f"{row.component:<24}{row.files:>7}{row.raw / 1024:>12.1f}{row.packed / 1024:>12.1f}{share:>8.1%}"
            )
        files = sum(row.files for row in self.rows)
        lines.append(f"{'total':<24}{files:>7}{self.raw / 1024:>12.1f}{self.packed / 1024:>12.1f}{1:>8.0%}")
        budget = f" of {self.budget / MIB:.2f} allowed" if self.budget else ""
        lines.append(f"without kernel modules: {self.without_modules / MIB:.2f} MiB{budget}")
        if not self.fits():
            lines.append(f"over its budget by {(self.without_modules - self.budget) / 1024:.0f} KiB")
        return "\n".join(lines) + "\n"

    def json(self) -> str:
        """The same as JSON."""
        return json.dumps(asdict(self) | {"without_modules": self.without_modules}, indent=1) + "\n"


def parse(text: str) -> Report:
    """Read what `Report.json` wrote. Raises ValueError, KeyError, TypeError for anything else."""
    table = json.loads(text)
    table.pop("without_modules")
    table["rows"] = tuple(Row(**row) for row in table["rows"])
    table["largest"] = tuple((name, size) for name, size in table["largest"])
    return Report(**table)


def shares(alone: Mapping[str, int], packed: int) -> dict[str, int]:
    """Scale what each component packs to alone so that the sum is `packed`, to the byte."""
    total = sum(alone.values())
    if not total:
        return dict.fromkeys(alone, 0)
    scaled = {name: packed * size // total for name, size in alone.items()}
    largest = max(scaled, key=lambda name: scaled[name])
    scaled[largest] += packed - sum(scaled.values())
    return scaled
