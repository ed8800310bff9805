"""Decisions about placement and lost work: pure functions, tested without a cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from math import floor

Resources = Mapping[str, float]
SLACK = 1e-6


def copies(bundle: Resources, node: Resources) -> int:
    """How many bundles one node holds; a fraction of a GPU lies on one GPU, so fractions do not add up across them."""
    counts = []
    for name, need in bundle.items():
        if need <= 0:
            continue
        have = node.get(name, 0.0)
        if name == "GPU" and need < 1:
            counts.append(floor(have + SLACK) * floor(1 / need + SLACK))
        else:
            counts.append(floor(have / need + SLACK))
    return min(counts, default=0)


def capacity(bundle: Resources, nodes: Sequence[Resources]) -> int:
    """How many bundles the nodes hold together."""
    return sum(copies(bundle, node) for node in nodes)


def matches(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    """Whether a node with these labels may be taken, as Ray decides it: VALUE, !VALUE, in(A,B), !in(A,B), without spaces."""
    for key, wanted in selector.items():
        plain = wanted.removeprefix("!")
        values = plain[3:-1].split(",") if plain.startswith("in(") else [plain]
        if (labels.get(key) in values) == wanted.startswith("!"):
            return False
    return True


def shortfall(bundle: Resources, count: int, nodes: Sequence[Resources], what: str = "worker", where: str = "") -> str:
    """Why `count` bundles can never be placed on these nodes; empty where they can. `where`: which nodes they are."""
    fits = capacity(bundle, nodes)
    if fits >= count:
        return ""
    need = ", ".join(f"{name} {amount:g}" for name, amount in bundle.items() if amount > 0)
    names = [name for name, amount in bundle.items() if amount > 0]
    have = "; ".join(", ".join(f"{name} {node.get(name, 0):g}" for name in names) for node in nodes) or "none"
    lacking = [name for name in names if not any(node.get(name, 0) + SLACK >= bundle[name] for node in nodes)]
    missing = f"no node has enough {' and '.join(lacking)}" if lacking else f"only {fits} of {count} fit at once"
    return f"one {what} needs {need}, {count} asked for; the {len(nodes)} nodes{where} have {have}: {missing}"


def pool_size(wanted: int, units: int, bundle: Resources, nodes: Sequence[Resources]) -> int:
    """Actors to start: as many as wanted (0: as the nodes hold), and no more than units."""
    return min(wanted or capacity(bundle, nodes), units)


class Loss(Enum):
    """Why a piece of work did not come back."""

    DIED = "its worker died"
    UNREACHABLE = "its worker could not be reached"
    LATE = "it gave no answer in time"
    STORAGE = "reading or writing failed"
    REFUSED = "it cannot be done"
    BUG = "it raised an error"

    @property
    def worth_retrying(self) -> bool:
        return self not in (Loss.REFUSED, Loss.BUG)

    @property
    def takes_the_worker(self) -> bool:
        """Whether another worker takes its place. A dead worker answers fastest of all: it must not stay in the pool."""
        return self in (Loss.DIED, Loss.UNREACHABLE, Loss.LATE)


@dataclass(frozen=True)
class Decision:
    again: bool
    replace: bool
    reason: str


def after_loss(what: str, loss: Loss, attempts: int, limit: int, detail: str = "") -> Decision:
    """Whether work that was lost for the `attempts`-th time is tried again."""
    reason = f"{what}: {loss.value}{f' ({detail})' if detail else ''}"
    if not loss.worth_retrying:
        return Decision(False, False, f"{reason}; not tried again, it would end alike")
    if attempts > limit:
        return Decision(
            False, loss.takes_the_worker, f"{reason}; given up after {attempts} attempts (scale.max_failures={limit})"
        )
    return Decision(True, loss.takes_the_worker, f"{reason}; attempt {attempts + 1} of {limit + 1}")


def after_start(what: str, loss: Loss, attempts: int, limit: int, others: int, detail: str = "") -> Decision:
    """Whether an actor that did not get ready for the `attempts`-th time in a row is started again.

    While `others` work, one that never starts is left out: a bad node must not end the run of the good ones.
    """
    decision = after_loss(what, loss, attempts, limit, detail)
    if decision.again or not others:
        return Decision(decision.again, True, decision.reason)
    return Decision(False, True, f"{decision.reason}; the run goes on with {others} actors")


@dataclass(frozen=True)
class Beat:
    """The last sign of one process at work. Processes of one group wait for each other."""

    group: str
    note: str
    """What it did."""
    age: float
    """Seconds since."""
    allowed: float
    """The age at which it counts as hung."""
    idle: bool = False
    """Whether it has ended a unit and waits for another."""


def hung(beats: Sequence[Beat]) -> list[Beat]:
    """The beats of every group in which nobody has moved within the allowed age.

    Slow work beats, however long it takes. In a group one process may work while the others wait for it in a
    collective: as long as one beats, all are left alone; when none does, nobody can tell whose fault it is. A process that
    waits for its next unit beats, too.
    """
    moving = {beat.group for beat in beats if beat.age <= beat.allowed}
    return [beat for beat in beats if beat.group not in moving]
