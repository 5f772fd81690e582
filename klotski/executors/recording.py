"""Writes down what routers say, on its way to the predictor."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from klotski.core import Routing
from klotski.pipeline import Predictor

__all__ = ["RecordingPredictor"]


class RecordingPredictor(Predictor):
    """Predicts as another does, and hands on a line for `routing.jsonl` of all that it hears."""

    def __init__(self, predictor: Predictor, write: Callable[[Mapping[str, Any]], None]) -> None:
        super().__init__(predictor.table)
        self._predictor = predictor
        self._write = write

    def observe(self, layer: int, routings: Mapping[int, Routing]) -> None:
        """Write down what the routers of a layer said of each batch."""
        for batch, routing in routings.items():
            assert routing.choices is not None, "a model's own routers say what each token chose"
            self._write({"batch": batch, "layer": layer, "choices": routing.choices.tolist()})
        self._predictor.observe(layer, routings)

    def foresee(self, layer: int, outlooks: Sequence[Sequence[float] | None]) -> None:
        """Pass it on."""
        self._predictor.foresee(layer, outlooks)

    def scores(self, layer: int) -> Sequence[float]:
        """As the other says."""
        return self._predictor.scores(layer)
