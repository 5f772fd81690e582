"""What there is to see, for who sees it for the first time."""

from rich.console import Group, RenderableType
from rich.text import Text

from monitor.draw import BUBBLE

__all__ = ["STORY", "story"]

STORY = (
    "A sweep takes all batches through all layers. Blocks of weights (a layer's dense part, or one expert) arrive on a "
    "lane, each once for all batches; compute works with what is here, the most wanted experts first. Where it has to "
    f"wait for a block ({BUBBLE}), time is lost: the fuller its row, the better the transfers are hidden."
)
PANELS = (
    ("Overview", "how far the run is, how fast, and what holds it up"),
    ("Lanes", "what works side by side: arithmetic, and each way that blocks take"),
    ("Batches", "where in the model each batch of sequences is"),
    ("Timeline", f"the last sweeps from left to right: {BUBBLE} is time that was lost"),
    ("Experts", "which experts tokens choose, and whether that was foreseen"),
    ("Resources", "memory that the plan gives out, and what this machine does now"),
    ("Sweep", "of several runs by one command: what came of each so far"),
    ("Log", "what the run has said"),
)


def story() -> RenderableType:
    """The model, why it waits, and where to look."""
    why = (
        "A mixture-of-experts model is mostly experts, of which each token uses a few. They do not fit where the "
        "arithmetic is done, so that they come and go while the run goes on. "
    )
    rows = [Text.assemble((f"{number} {name:10}", "bold"), what) for number, (name, what) in enumerate(PANELS, start=1)]
    return Group(Text(why + STORY), Text(), *rows, Text(), Text("w: back to the run   ?: all keys", "dim"))
