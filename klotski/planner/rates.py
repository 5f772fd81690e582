"""What a machine does in a second, as far as a plan is concerned."""

from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["NOMINAL", "NOMINAL_GPU", "Rates"]

MEASURED = "measured "  # how the reason of a rate begins that was found on this machine


class Rates(NamedTuple):
    """What a machine reaches, and why it is held to: `reason` of all, `reasons` of those that have another.

    `disk`: bytes a second at which blocks come from disk; `start`: seconds that a disk at rest takes longer for a
    block than one that is at work already. `link`: bytes a second from CPU memory to a GPU, and `back` from there;
    None: arithmetic happens in CPU memory. `below`: bytes a second of keys and values that the cores look at in CPU
    memory below a GPU; `cores`: operations a second at which they multiply experts there, and `cores_product`: bytes a
    second of these on their way into a product. `memory`: bytes a second of cached keys and of the head's weights;
    `product`: of an expert's weights on their way into a product, beside what its rows take. `compute`: operations a
    second at which experts are multiplied; `dense_share`: of these, what a layer's dense part reaches, with all that
    goes on between its products. `turn`, `step`: seconds of a batch's turn in a layer and of an expert's turn, whatever
    their size; `between`: of the pipeline's own, from one operation to the next; `wake`: what an operation takes longer
    once the cores have waited for so long that they rest.
    """

    disk: float
    compute: float
    reason: str
    dense_share: float = 0.75
    memory: float = 2e10
    product: float = 2e10
    turn: float = 6e-3
    step: float = 5e-4
    between: float = 0.0
    wake: float = 0.0
    start: float = 3e-3
    link: float | None = None
    back: float | None = None
    below: float = 2e10
    cores: float = 4e11
    cores_product: float = 2e10
    reasons: Mapping[str, str] = {}

    def why(self, name: str) -> str:
        """The reason of one of them."""
        return self.reasons.get(name, self.reason)

    @property
    def measured(self) -> list[str]:
        """Names of the rates that were measured on this machine; the others are nominal, set or assumed."""
        numbers = (name for name in self._fields if name not in ("reason", "reasons"))
        return [name for name in numbers if self.why(name).startswith(MEASURED)]

    def because(self, reason: str, **known: float) -> "Rates":
        """These, but for what is known better, which has this reason."""
        changed = self._replace(reasons={**self.reasons, **dict.fromkeys(known, reason)})
        return changed._replace(**known)  # type: ignore[arg-type]  # whose fields are no strings

    def in_short(self) -> str:
        """The reason of those that most turns on, or their reasons."""
        whose = {"disk": "the disk's", "compute": "arithmetic's"}
        if self.link is not None:
            whose = {"link": "the link's"} | whose
        if len({self.why(name) for name in whose}) == 1:
            return self.why("disk")
        return ", ".join(f"{who} {self.why(name)}" for name, who in whose.items())


NOMINAL = Rates(1.6e9, 4e11, "nominal: two cores and an NVMe drive")
"""Where nothing is known. What rates decide is a ratio, bytes moved for arithmetic done, and a plan that is best at
this one is near the best at others."""
NOMINAL_GPU = Rates(
    disk=NOMINAL.disk,
    compute=1e14,
    reason="assumed: a GPU behind PCIe 4",
    memory=8e11,
    product=8e11,
    turn=1e-3,
    step=1e-4,
    between=2.5e-5,
    link=2.5e10,
    back=2.5e10,
    below=5e10,
    cores=1e12,
    cores_product=5e10,
)
"""Where nothing is known of a GPU: about an RTX 4090's, as in conf/hw. None of it has been measured on one."""
