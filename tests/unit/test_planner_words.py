"""What is said of a plan: the paper's inequalities, the paragraph, the tables, the rates that it rests on."""

import json
from io import StringIO

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given
from rich.console import Console

from klotski import schema
from klotski.app import config_folder
from klotski.core import OnDemand, Prefetch, Residents
from klotski.executors.planning import choose_rates
from klotski.planner import NOMINAL, Costs, Demand, ModelFacts, Plan, Rates, Wishes, explain, show_plan
from klotski.planner.conditions import Condition, Conditions, inequalities
from klotski.planner.memory import Candidate
from klotski.planner.search import Appraiser
from klotski.schema import RunConfig
from tests.unit.fakes import examples
from tests.unit.questions import QUESTIONS, SHARES, Question, model

BOTH = {"dense": 10**7, "expert": 10**7, "dense_flops": 10**8, "expert_flops": 10**8}
MANY = Demand([(16, 16)] * 256)


def config(*overrides: str) -> RunConfig:
    schema.register(config_folder())
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return schema.load(compose("config", list(overrides)))


def explained(question: Question, budget: int) -> Plan:
    plan = question.plan(budget)
    return explain(plan, question.terms(budget))


def shown(plan: Plan, facts: ModelFacts) -> str:
    console = Console(file=StringIO(), width=200)
    show_plan(plan, facts, console)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_the_inequalities_have_the_papers_sides() -> None:
    """Where nothing stays and every expert is used, they follow from the parts of the cost model alone."""
    facts = model(experts=(8, 8), **BOTH)
    wishes = Wishes(n_batches=4, batch_size=16, residents=Residents.none)
    question = Question(facts, MANY, wishes)
    costs = Costs(facts, MANY, wishes=wishes)
    router, hot, first, whole = question.plan(10**9).conditions.each
    arrival = 10**7 / NOMINAL.disk
    expert = costs.experts(64, 16) / 16
    assert router.transfer == 0
    assert hot.compute == router.compute > costs.attention(costs.pace(MANY.group(4, 16), 256).decodes) / 4
    assert hot.transfer == pytest.approx(2 * arrival)
    assert first.compute == pytest.approx(hot.compute + 2 * expert)
    assert first.transfer == pytest.approx(3 * arrival)
    assert whole.compute == pytest.approx(hot.compute + 8 * expert, rel=1e-3)
    assert whole.transfer == pytest.approx(9 * arrival, rel=1e-3)


def test_what_is_violated_binds_and_otherwise_the_tightest() -> None:
    loose, tight, broken = (Condition(number, "", 1.0, side) for number, side in ((5, 0.2), (6, 0.9), (7, 1.1)))
    assert Conditions((Condition(4, "", 0.0, 0.0), loose, tight), 3).binding == (tight,)
    assert Conditions((loose, broken, tight), None).binding == (broken,)


@given(QUESTIONS, SHARES)
@examples(60)
def test_the_smallest_n_meets_all_inequalities_and_fewer_do_not(question: Question, share: float) -> None:
    plan = question.plan(question.budget(share))
    appraiser = Appraiser(question.terms(plan.budget))
    slots = plan.expert_slots - plan.cached_slots

    def meets_all(n: int) -> bool:
        choice = Candidate(n, plan.batch_size, plan.prefill_tokens, slots)
        fits = appraiser.need(choice) <= appraiser.room
        return fits and all(each.holds for each in inequalities(appraiser, choice))

    batches = -(-len(question.demand.lengths) // plan.batch_size)
    smallest = plan.conditions.smallest_n
    assert not any(meets_all(n) for n in range(1, smallest or batches + 1))
    assert smallest is None or meets_all(smallest)


def test_what_stays_need_not_be_hidden() -> None:
    plan = Question(model(), MANY).plan(10**9)
    assert all(each.holds and not each.transfer for each in plan.conditions.each)
    assert plan.conditions.smallest_n == 1


@pytest.mark.parametrize(
    ("rates", "experts", "pace", "most"),
    [
        (Rates(1e8, 4e12, "test"), 256, "The disk sets the pace", "a disk twice as fast would bring most"),
        (Rates(1e11, 1e9, "test"), 256, "Arithmetic sets the pace", "arithmetic twice as fast would bring most"),
        (Rates(1e8, 4e12, "test"), 32, "The disk sets the pace", "1GB more memory would bring most"),
    ],
)
def test_a_plan_says_what_binds_and_what_would_bring_most(rates: Rates, experts: int, pace: str, most: str) -> None:
    facts = model(experts=(experts, experts), **BOTH)
    said = explained(Question(facts, MANY, rates=rates), 300_000_000).explanation
    assert said.startswith(pace)
    assert most in said
    assert "is predicted to take" in said
    assert said.endswith("(test).")


def test_a_plan_of_which_everything_stays_says_so() -> None:
    said = explained(Question(model(), MANY), 10**9).explanation
    assert "every block stays in memory" in said
    assert "all of the 10 blocks stay" in said


def test_a_plan_without_overlap_says_so() -> None:
    wishes = Wishes(1, prefetch=Prefetch.none, on_demand=OnDemand.lazy)
    said = explained(Question(model(experts=(16, 16), **BOTH), MANY, wishes), 200_000_000).explanation
    assert "take turns" in said
    assert "One batch shares each arrival" in said


@given(QUESTIONS, SHARES)
@examples(20)
def test_every_plan_can_be_explained_shown_and_written(question: Question, share: float) -> None:
    plan = explained(question, question.budget(share))
    text = shown(plan, question.facts)
    assert plan.explanation
    assert "predicted" in text
    written = json.loads(json.dumps(plan.as_dict()))
    assert written["explanation"] == plan.explanation
    assert written["predicted_seconds"] == plan.forecast.seconds > 0
    assert written["rates"] == NOMINAL._asdict()
    assert set(written["conditions"]) == {"4", "5", "6", "7", "binding", "smallest_n"}


def test_tables_have_every_decision_and_what_was_set() -> None:
    facts = model(experts=(8, 8))
    wishes = Wishes(n_batches=3, batch_size=5, hot_experts=4, prefill_tokens=40, expert_slots=6)
    text = shown(explained(Question(facts, MANY, wishes), 20_000), facts)
    rows = {line.split("│")[1].strip(): line for line in text.splitlines() if line.count("│") > 2}
    for name, value in {
        "n batches": 3,
        "batch size": 5,
        "prefill tokens": 40,
        "expert slots": 6,
        "hot experts": 4,
    }.items():
        assert f" {value} " in rows[name]
        assert "as set" in rows[name]
    assert "(7) a whole layer hides all that it reads" in rows
    assert "cached keys and values" in rows


def test_rates_are_those_that_are_set_or_known_or_nominal() -> None:
    known = Rates(1e9, 2e11, "measured by 3 earlier runs")
    assert choose_rates(config(), NOMINAL) == NOMINAL
    assert choose_rates(config(), known) == known
    both = choose_rates(config("hw.disk_bandwidth=2GB/s", "hw.compute_rate=1TFLOP/s"), known)
    assert both == Rates(2e9, 1e12, "as set")
    disk = choose_rates(config("hw.disk_bandwidth=2GB/s"), known)
    assert disk == Rates(2e9, 2e11, "the disk's as set, arithmetic's measured by 3 earlier runs")
    compute = choose_rates(config("hw.compute_rate=300GFLOP/s"), known)
    assert compute == Rates(1e9, 3e11, "arithmetic's as set, the disk's measured by 3 earlier runs")
