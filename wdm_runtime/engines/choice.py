"""Which engine works here: the one that is asked for, or the fastest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from wdm_runtime.engines.families import AUTO_ORDER, FAMILIES
from wdm_runtime.errors import EngineError, MissingDependencyError, NoDeviceError

AUTO = "auto"
ENGINES = (AUTO, *FAMILIES)
PRECISIONS = (AUTO, "fp32", "fp16", "bf16")


@dataclass(frozen=True)
class Choice:
    """An engine and a precision that work here.

    ``graph`` is the precision of the graph it takes, ``why`` one line for the user, and ``works``
    has all precisions that the engine computes in here, best first.
    """

    kind: str
    precision: str
    graph: str
    why: str
    works: tuple[str, ...]


def select(
    engine: str = AUTO,
    precision: str = AUTO,
    rejected: Mapping[tuple[str, str], str] | None = None,
) -> Choice:
    """Find an engine that works here.

    Parameters
    ----------
    engine
        One of `ENGINES`; ``"auto"`` takes the fastest that works.
    precision
        One of `PRECISIONS`; ``"auto"`` takes the engine's best.
    rejected
        Engines and precisions that ``"auto"`` passes over, and why.

    Raises
    ------
    EngineError
        A name is unknown, or what was asked for by name cannot be had; never another instead.
    MissingDependencyError
        The engine that was asked for is not installed.
    """
    check_known(engine, ENGINES, "--engine")
    check_known(precision, PRECISIONS, "--precision")
    if engine == AUTO:
        return _best(precision, rejected or {})
    works = FAMILIES[engine].probe()
    if precision != AUTO and precision not in works:
        raise EngineError(
            f"--precision got '{precision}'; engine '{engine}' does {', '.join(works)} on this "
            f"machine{_lack(engine, precision)}. Choose one of them, or --precision auto."
        )
    chosen = works[0] if precision == AUTO else precision
    return _choice(engine, chosen, works, "as asked for.")


def _lack(engine: str, precision: str) -> str:
    """Why an engine that works does not in a precision, where more can be said."""
    reason = FAMILIES[engine].lacks.get(precision)
    return f": {reason}" if reason else ""


def _one_line(text: str) -> str:
    """Libraries' messages may have several."""
    return " ".join(text.split())


def _best(precision: str, rejected: Mapping[tuple[str, str], str]) -> Choice:
    """The first of the order that works, and what came before it and does not."""
    works: dict[str, tuple[str, ...]] = {}
    missing: dict[str, str] = {}
    for kind, candidate in AUTO_ORDER:
        if precision not in (AUTO, candidate):
            continue
        if (kind, candidate) in rejected:
            missing.setdefault(kind, _one_line(rejected[kind, candidate]))  # the first says most
            continue
        if kind not in works:
            try:
                works[kind] = FAMILIES[kind].probe()
            except NoDeviceError:
                works[kind], missing[kind] = (), ""  # nobody expects it: not worth a word
            except MissingDependencyError as error:
                works[kind] = ()
                itself = error.package.replace("_", "-") == kind
                what = "is not installed" if itself else f"lacks {error.package}"
                missing[kind] = f"{kind} {what} ({error.install})."
            except EngineError as error:
                works[kind] = ()
                missing[kind] = _one_line(str(error))
        if candidate in works[kind]:
            best = "the fastest that works here" if precision == AUTO else f"fastest in {candidate}"
            why = " ".join([f"{best}.", *_once(missing)])
            return _choice(kind, candidate, works[kind], why)
        lack = _lack(kind, candidate)
        missing.setdefault(kind, f"{kind} does not compute in {candidate} on this machine{lack}.")
    wanted, remedy = (
        ("", "") if precision == AUTO else (f" in {precision}", " Or choose another --precision.")
    )
    reasons = " ".join(_once(missing))
    raise EngineError(f"No engine works here{wanted}. {reasons}{remedy}")


def _once(missing: Mapping[str, str]) -> list[str]:
    """Reasons, each once: what one driver lacks several engines miss."""
    return list(dict.fromkeys(filter(None, missing.values())))


@dataclass(frozen=True)
class Finding:
    """An engine with the precisions that work here, best first, or what is in the way."""

    kind: str
    precisions: tuple[str, ...]
    problem: str | None


def survey() -> tuple[Finding, ...]:
    """Every engine, asked as `select` asks it."""

    def ask(kind: str) -> Finding:
        try:
            return Finding(kind, FAMILIES[kind].probe(), None)
        except (EngineError, MissingDependencyError) as error:
            return Finding(kind, (), str(error))

    return tuple(ask(kind) for kind in FAMILIES)


def _choice(kind: str, precision: str, works: tuple[str, ...], reason: str) -> Choice:
    graph = FAMILIES[kind].graphs[precision]
    return Choice(kind, precision, graph, f"engine: {kind} in {precision}, {reason}", works)


def check_known(value: str, known: tuple[str, ...], what: str) -> None:
    """Refuse a name that is none of those known."""
    if value not in known:
        raise EngineError(
            f"{what} got '{value}'; expected one of {', '.join(known)}. Choose one of them."
        )
