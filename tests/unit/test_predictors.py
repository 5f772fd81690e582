"""Who will be hot: what each predictor learns, and from what."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from klotski.core import Prediction, Routing
from klotski.pipeline import Predictor, RoutingTable, create_predictor
from tests.unit.fakes import examples

EXPERTS = (4, 0, 4)
"""Two layers with experts, and one without between them."""


def routing(choices: Sequence[Sequence[int]], experts: int = 4) -> Routing:
    """Of one batch: the experts of each token."""
    array = np.array(choices)
    return Routing(tuple(np.bincount(array.ravel(), minlength=experts).tolist()), array)


def group(*routings: Routing) -> dict[int, Routing]:
    """What the batches of a group chose, by their indices."""
    return dict(enumerate(routings))


def predictor(prediction: Prediction, experts: Sequence[int] = EXPERTS) -> Predictor:
    return create_predictor(prediction, RoutingTable(experts))


def hottest(predictor: Predictor, layer: int) -> int:
    return int(np.argmax(predictor.scores(layer)))


def teach(predictor: Predictor, sweeps: int = 20) -> None:
    """A token of expert 0 goes on to 3, one of 1 to 2; twice as many begin with 0."""
    for _ in range(sweeps):
        predictor.observe(0, group(routing([[0], [0], [1]])))
        predictor.observe(2, group(routing([[3], [3], [2]])))


@pytest.mark.parametrize("prediction", list(Prediction))
def test_a_predictor_scores_every_expert_or_none(prediction: Prediction) -> None:
    one = predictor(prediction)
    for layer, count in enumerate(EXPERTS):
        assert len(one.scores(layer)) in (0, count)
    teach(one)
    for layer, count in enumerate(EXPERTS):
        assert len(one.scores(layer)) == (0 if prediction is Prediction.none else count)


def test_popularity_goes_by_what_most_tokens_used_whatever_they_used_before() -> None:
    one = predictor(Prediction.popularity)
    teach(one)
    one.observe(0, group(routing([[1], [1], [1]])))
    assert hottest(one, 2) == 3


def test_correlation_goes_by_what_this_groups_tokens_have_just_used() -> None:
    one = predictor(Prediction.correlation)
    teach(one)
    one.observe(0, group(routing([[1], [1], [1]])))
    assert hottest(one, 2) == 2
    one.observe(0, group(routing([[0]]), routing([[0]])))
    assert hottest(one, 2) == 3


def test_of_the_first_layer_correlation_goes_by_how_the_sweep_before_ended() -> None:
    one = predictor(Prediction.correlation)
    for _ in range(10):
        for first, last in ((0, 1), (3, 2)):  # 1 in the last layer is followed by 3 in the first, and 2 by 0
            one.observe(0, group(routing([[first]])))
            one.observe(2, group(routing([[last]])))
    assert hottest(one, 0) == 0
    one.observe(2, group(routing([[1]])))
    assert hottest(one, 0) == 3


def test_a_batch_that_came_for_one_that_ended_teaches_nothing_of_what_follows_the_last_layer() -> None:
    one = predictor(Prediction.correlation)
    one.observe(0, {0: routing([[0]])})
    one.observe(2, {0: routing([[1]])})
    one.observe(0, {1: routing([[2]])})
    assert not one.table.pairs[0].any()


def test_what_a_group_favours_is_hot_whatever_others_did_before_it() -> None:
    one = predictor(Prediction.correlation)
    teach(one)
    for _ in range(8):  # of this group, tokens go on to 1, whatever they used
        one.observe(0, group(routing([[3]])))
        one.observe(2, group(routing([[1]])))
    one.observe(0, group(routing([[2]])))
    assert hottest(one, 2) == 1


def test_two_rows_say_more_than_either() -> None:
    one = predictor(Prediction.correlation, (3, 4))
    for _ in range(10):
        one.observe(0, group(routing([[0, 2], [0, 2], [1, 2], [1, 2], [0, 1]], 3)))
        one.observe(1, group(routing([[0], [2], [1], [2], [2]])))
    one.observe(0, group(routing([[0, 1]], 3)))
    assert hottest(one, 1) == 2


def test_correlation_of_what_was_never_seen_is_popularity() -> None:
    one = predictor(Prediction.correlation)
    teach(one)
    one.observe(0, group(routing([[2], [2]])))
    assert hottest(one, 2) == 3


def test_each_token_of_a_group_is_followed_by_itself_over_batches_of_any_size() -> None:
    one = predictor(Prediction.correlation)
    for _ in range(5):
        one.observe(0, group(routing([[0], [1]]), routing([[2]])))
        one.observe(2, group(routing([[1], [2]]), routing([[3]])))
    for before, after in ((0, 1), (1, 2), (2, 3)):
        one.observe(0, group(routing([[before]])))
        assert hottest(one, 2) == after


def test_a_layer_that_sees_a_prompts_last_token_alone_teaches_no_pairs() -> None:
    one = predictor(Prediction.correlation)
    one.observe(0, group(routing([[0], [1], [1]])))
    one.observe(2, group(routing([[3]])))
    assert not one.table.pairs[2].any()
    assert one.table.shares[2].tolist() == [0, 0, 0, 1]


def test_one_prompt_does_not_outweigh_the_steps_that_follow() -> None:
    for prediction in (Prediction.popularity, Prediction.correlation):
        one = predictor(prediction)
        one.observe(0, group(routing([[0]] * 1000)))
        one.observe(2, group(routing([[3]] * 1000)))
        for _ in range(20):
            one.observe(0, group(routing([[0]])))
            one.observe(2, group(routing([[1]])))
        one.observe(0, group(routing([[0]])))
        assert hottest(one, 2) == 1


def test_lookahead_believes_the_router_and_until_it_was_asked_correlation() -> None:
    one = predictor(Prediction.lookahead)
    teach(one)
    one.observe(0, group(routing([[1], [1]])))
    assert hottest(one, 2) == 2
    one.foresee(2, [[0, 2.0, 0, 0], [3.0, 0, 0, 0], None])
    assert one.scores(2) == [3.0, 2.0, 0, 0]
    one.foresee(0, [[0, 0, 0, 5.0]])
    assert hottest(one, 2) == 2, "what was foreseen of another sweep is no longer true"
    one.foresee(0, [None])


def test_chance_is_the_same_until_the_layer_was_seen_and_the_same_in_every_run() -> None:
    one, other = predictor(Prediction.random), predictor(Prediction.random)
    first = list(one.scores(0))
    assert one.scores(0) == first == other.scores(0)
    teach(one, 1)
    assert one.scores(0) != first


@given(st.lists(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=9), max_size=12))
@examples(60)
def test_scores_stay_bounded_and_never_negative(sweeps: list[list[tuple[int, int]]]) -> None:
    one = predictor(Prediction.correlation)
    for tokens in sweeps:
        for layer in (0, 2, 0):
            one.observe(layer, group(routing(tokens)))
        scores = np.array(one.scores(2))
        assert (scores >= 0).all()
        # As many votes as there are choices, whatever was seen.
        assert scores.sum() == pytest.approx(2 * len(tokens))


class TestTable:
    def test_it_begins_with_what_another_had_learned(self) -> None:
        one = predictor(Prediction.correlation)
        teach(one)
        table = RoutingTable(EXPERTS)
        assert table.recall(one.table.arrays())
        other = create_predictor(Prediction.correlation, table)
        assert hottest(other, 0) == 0
        other.observe(0, group(routing([[1]])))
        assert hottest(other, 2) == 2

    def test_what_it_recalls_stays_with_the_one_that_learned_it(self) -> None:
        one, table = predictor(Prediction.correlation), RoutingTable(EXPERTS)
        teach(one)
        before = {name: values.copy() for name, values in one.table.arrays().items()}
        table.recall(one.table.arrays())
        teach(create_predictor(Prediction.correlation, table))
        assert all((values == before[name]).all() for name, values in one.table.arrays().items())

    @pytest.mark.parametrize("experts", [(4, 4, 4), (4, 0), (4, 0, 8)])
    def test_it_recalls_nothing_of_a_model_of_another_shape(self, experts: tuple[int, ...]) -> None:
        one, table = predictor(Prediction.correlation), RoutingTable(experts)
        teach(one)
        assert not table.recall(one.table.arrays())
        assert not any(shares.any() for shares in table.shares)

    def test_it_counts_the_tokens_of_its_own_run_alone(self) -> None:
        one, table = predictor(Prediction.correlation), RoutingTable(EXPERTS)
        teach(one, sweeps=3)
        table.recall(one.table.arrays())
        assert one.table.summary()["tokens"] == [[6, 3, 0, 0], [], [0, 0, 3, 6]]
        assert table.summary()["tokens"] == [[0] * 4, [], [0] * 4]

    def test_stability_is_the_share_of_the_hottest_that_stay_so(self) -> None:
        table = RoutingTable((4,))
        for choices in ([[0, 1]], [[0, 2]], [[0, 2]]):
            table.observe(0, group(routing(choices)))
        assert table.summary()["top_k"] == 2
        assert table.summary()["stability"] == [(0.5 + 1.0) / 2]

    def test_a_layer_seen_once_has_no_stability(self) -> None:
        table = RoutingTable((4, 0))
        table.observe(0, group(routing([[0, 1]])))
        assert table.summary()["stability"] == [None, None]
