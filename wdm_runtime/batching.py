"""How many tiles a call of this engine, on this machine, should take: measured once."""

from __future__ import annotations

from collections.abc import Callable

from wdm_runtime.engines.watched import WatchedEngine
from wdm_runtime.errors import EngineError
from wdm_runtime.machine import available_bytes, resident_bytes
from wdm_runtime.remembered import Remembered
from wdm_runtime.timing import feeds_of, timed_call

BATCHES = (1, 2, 4, 8)
_NAME = "batch"  # of the number that is kept
# A larger batch has to be clearly faster a tile: it takes memory, and waits until members fill it.
_WORTH_IT = 0.95
_CALLS = 2
_BUDGET_S = 1.0  # of calls; where one more batch would exceed it, the smaller one stays


def fastest_batch(
    single: WatchedEngine, open_for: Callable[[int], WatchedEngine], known: Remembered
) -> tuple[int, WatchedEngine, str]:
    """The batch with the least time a tile, and the engine opened for it.

    Batches double as long as that is faster a tile, memory allows and the calls take no more than
    a second. The result is kept in the user's cache folder.

    Parameters
    ----------
    single
        The engine, opened for one tile a call; closed if another is returned.
    open_for
        Opens it for a batch.
    known
        What was found before, of this engine.

    Returns
    -------
    Batch, engine, and what was found in one sentence.
    """
    remembered = known.get(_NAME)
    if remembered in BATCHES:
        batch = int(remembered)
        text = f"Batch {batch} measured fastest here."
        if batch == 1:
            return 1, single, text
        try:
            larger = open_for(batch)
        except EngineError as error:  # what else the device holds may leave no room today
            return 1, single, f"{text} It cannot be had now: {' '.join(str(error).split())}"
        single.close()
        return batch, larger, text
    batch, engine, ms, failed = _measured(single, open_for)
    times = ", ".join(f"{value:.1f} ms at {size}" for size, value in ms.items())
    text = f"Batch {batch} is the fastest: a tile takes {times}."
    if failed:  # for the time being perhaps: measured anew next time
        return batch, engine, f"{text} {failed}"
    known.put({_NAME: batch})
    return batch, engine, text


def _measured(
    single: WatchedEngine, open_for: Callable[[int], WatchedEngine]
) -> tuple[int, WatchedEngine, dict[int, float], str]:
    """Batch, its engine, the time a tile takes at each batch tried [ms], and what failed."""
    best, engine, failed = 1, single, ""
    ms = {1: _ms_a_tile(single, 1)}
    spent_s = 1e-3 * ms[1] * (1 + _CALLS)
    for batch in BATCHES[1:]:
        expected_s = 1e-3 * ms[best] * batch * (1 + _CALLS)
        if spent_s + expected_s > _BUDGET_S or not _room_to_double():
            break
        larger = None
        try:
            larger = open_for(batch)
            ms[batch] = _ms_a_tile(larger, batch)
        except EngineError as error:  # a device without the memory for it, or no plan
            failed = f"Batch {batch} was not measured: {' '.join(str(error).split())}"
            if larger is not None:
                larger.close()
            break
        except BaseException:
            for one in (engine, larger):
                if one is not None:
                    one.close()
            raise
        spent_s += 1e-3 * ms[batch] * batch * (1 + _CALLS)
        if ms[batch] > _WORTH_IT * ms[best]:
            larger.close()
            break
        engine.close()
        best, engine = batch, larger
    return best, engine, ms, failed


def _ms_a_tile(engine: WatchedEngine, batch: int) -> float:
    """The best of a few calls after a warm-up."""
    feeds = feeds_of(engine.inputs, batch)
    engine.run(feeds)
    return 1e3 * min(timed_call(engine, feeds) for _ in range(_CALLS)) / batch


def _room_to_double() -> bool:
    """Whether more memory is free than this process holds.

    That is an upper bound of what doubling the batch adds.
    """
    free, held = available_bytes(), resident_bytes()
    return free is None or held is None or free > held
