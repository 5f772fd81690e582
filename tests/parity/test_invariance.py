"""Tokens do not depend on how the run was arranged."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.architectures import save_checkpoint
from tests.engine import read_results, run_engine, write_requests
from tests.parity.test_architectures import unequal_requests
from tests.reference import plain_generate

REQUESTS = unequal_requests(10)
STRATEGIES = st.one_of(
    st.tuples(
        st.just("lazy"), st.just("none"), st.sampled_from(["index", "hot_first"]), st.sampled_from(["1", "2", "auto"])
    ),
    st.tuples(
        st.just("eager"),
        st.sampled_from(["none", "layer", "hot"]),
        st.sampled_from(["index", "hot_first", "arrival"]),
        st.sampled_from(["1", "3", "auto"]),
    ),
)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with TemporaryDirectory() as name:
        save_checkpoint("mixtral", Path(name) / "model")
        write_requests(Path(name) / "requests.jsonl", REQUESTS)
        yield Path(name)


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, list[int]]:
    return plain_generate(folder / "model", REQUESTS)


# An arrangement that fails says enough as it is; to look for a simpler one would take minutes.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow], phases=PHASES)
@given(
    strategy=STRATEGIES,
    n_batches=st.sampled_from([1, 2, 5]),
    batch_size=st.sampled_from([1, 2, 4]),
    prefill_tokens=st.sampled_from(["1", "9", "20", "auto"]),
    placement=st.sampled_from(["none", "greedy", "usage", "lru", "lfu"]),
    predictor=st.sampled_from(["correlation", "lookahead", "popularity", "random", "none"]),
    memory=st.sampled_from(["2.2MB", "2.7MB", "20MB"]),
)
def test_tokens_are_the_same_for_any_arrangement(
    folder: Path,
    expected: dict[str, list[int]],
    strategy: tuple[str, str, str, str],
    n_batches: int,
    batch_size: int,
    prefill_tokens: str,
    placement: str,
    predictor: str,
    memory: str,
) -> None:
    on_demand, prefetch, order, hot_experts = strategy
    with TemporaryDirectory() as run:
        run_engine(
            Path(run),
            "model=custom",
            f"model.path={folder / 'model'}",
            f"hw.device_memory={memory}",
            "hw.runtime_memory=0",
            f"placement={placement}",
            f"pipeline.predictor={predictor}",
            f"pipeline.n_batches={n_batches}",
            f"pipeline.batch_size={batch_size}",
            f"pipeline.prefill_tokens={prefill_tokens}",
            f"pipeline.on_demand={on_demand}",
            f"pipeline.prefetch={prefetch}",
            f"pipeline.order={order}",
            f"pipeline.hot_experts={hot_experts}",
            "workload=jsonl",
            f"workload.path={folder / 'requests.jsonl'}",
        )
        assert read_results(Path(run)) == expected


def test_sampled_tokens_depend_on_seed_and_request_alone(folder: Path, tmp_path: Path) -> None:
    def sample(name: str, seed: int, batch_size: int) -> dict[str, list[int]]:
        return read_results(
            run_engine(
                tmp_path / name,
                "model=custom",
                f"model.path={folder / 'model'}",
                f"pipeline.batch_size={batch_size}",
                "workload=jsonl",
                f"workload.path={folder / 'requests.jsonl'}",
                "workload.temperature=1.0",
                f"workload.seed={seed}",
            )
        )

    first = sample("first", seed=1, batch_size=2)
    assert sample("again", seed=1, batch_size=5) == first
    assert sample("other", seed=2, batch_size=2) != first
