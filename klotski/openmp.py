"""The threads that torch spreads arithmetic over the cores with, and how the others keep out of their way.

OpenMP's threads are bound, one to each core. After some milliseconds of rest they sleep, and Linux may wake both of a
pair on one core, where they take turns until the scheduler looks again: measured on two cores, a product of 0.5 ms
took 3.4 after a rest of 5 ms, bound 0.7, and one of an 88 MB expert 10 after 20 ms, bound 4.9.

The thread that computes is one of them, and what it starts would stay on its core as well: our own threads `roam`.
"""

import os
from collections.abc import MutableMapping
from contextlib import suppress

__all__ = ["roam", "settle"]

SPINS, BOUND_SPINS = "50000", "5000"  # some 4 and 0.4 ms
CHOSEN = ("OMP_PROC_BIND", "OMP_PLACES", "OMP_NUM_THREADS", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")


def given() -> set[int] | None:
    """The cores that this thread may run on; None where a system does not tell (macOS)."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None


GIVEN = given()  # to the process: whoever imports this has not computed yet


def settle(environment: MutableMapping[str, str], *, have_all_cores: bool) -> None:
    """Say how OpenMP's threads behave, but for what their user has chosen; has to be said before torch is loaded.

    `have_all_cores`: whether they are bound, to whole cores: of two threads on one, as processors that count each core
    twice would have, neither gains.

    For how long they spin for more work is a choice between two evils. Unbound and asleep, they come back too late: a
    small expert took 3.8 ms instead of 2.8. But a spin keeps the thread that reads the next block from its core: one
    of 9.4 MB took 5.0 ms instead of 4.2, right behind a product. Bound, they come back in 0.02 ms. And beside other
    busy programs all spinning is at somebody's cost: its usual length made a run of 22 s longer than a minute.
    """
    if have_all_cores and not any(name in environment for name in CHOSEN):
        environment.update(OMP_PROC_BIND="true", OMP_PLACES="cores")
        spins = BOUND_SPINS
    else:
        spins = SPINS
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", spins)


def roam() -> None:
    """Let this thread run on any core that the process was given."""
    if GIVEN is not None:
        with suppress(OSError):  # where it is forbidden, or the cores are no longer ours, it stays where it is
            os.sched_setaffinity(0, GIVEN)
