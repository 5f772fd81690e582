"""What is said of a plan: the paper's inequalities, the paragraph, the tables, the rates that it rests on."""

import json
import socket
from io import StringIO
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given
from rich.console import Console

from klotski import schema
from klotski.app import config_folder
from klotski.core import OnDemand, Prefetch, Request, Residents
from klotski.executors import planning
from klotski.executors.planning import SETTINGS, choose_rates, find_terms, hardware_file
from klotski.planner import NOMINAL, Budget, Costs, Demand, ModelFacts, Plan, Rates, Wishes, explain, show_plan
from klotski.planner.conditions import Condition, Conditions, inequalities
from klotski.planner.memory import Candidate
from klotski.planner.rates import NOMINAL_GPU
from klotski.planner.search import Appraiser
from klotski.planner.table import REACHES, machine
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
    assert written["rates"] == NOMINAL._asdict() | {"measured": []}
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
    assert choose_rates(config(), NOMINAL)._replace(reasons={}) == NOMINAL
    assert choose_rates(config(), known)._replace(reasons={}) == known
    both = choose_rates(config("hw.disk_bandwidth=2GB/s", "hw.compute_rate=1TFLOP/s"), known)
    assert both[:3] == (2e9, 1e12, "as set")
    disk = choose_rates(config("hw.disk_bandwidth=2GB/s"), known)
    assert disk[:3] == (2e9, 2e11, "the disk's as set, arithmetic's measured by 3 earlier runs")
    compute = choose_rates(config("hw.compute_rate=300GFLOP/s"), known)
    assert compute[:3] == (1e9, 3e11, "the disk's measured by 3 earlier runs, arithmetic's as set")


def test_each_rate_has_its_own_reason() -> None:
    known = Rates(1e9, 2e11, "nominal").because("measured by 3 earlier runs", disk=3e9, turn=1e-3)
    rates = choose_rates(config("hw.memory_bandwidth=30GB/s", "hw.expert_overhead=1ms"), known)
    whys = {name: rates.why(name) for name in ("disk", "turn", "compute", "memory", "product", "step")}
    assert whys == {
        "disk": "measured by 3 earlier runs",
        "turn": "measured by 3 earlier runs",
        "compute": "nominal",
        "memory": "as set",
        "product": "as memory's",
        "step": "as set",
    }
    assert rates.reason == "the disk's measured by 3 earlier runs, arithmetic's nominal"


def test_what_the_command_line_sets_of_a_certain_machine_is_said_to_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    override = "hw.link_bandwidth=50GB/s"
    assert choose_rates(config("hw=rtx4090"), NOMINAL).reason == "of hw=rtx4090"
    monkeypatch.setattr(planning, "is_overridden", lambda key: key == "hw.link_bandwidth")
    rates = choose_rates(config("hw=rtx4090", override), NOMINAL)
    assert (rates.link, rates.why("link"), rates.why("back")) == (5e10, "as set", "of hw=rtx4090")
    assert rates.reason == "the link's as set, the disk's of hw=rtx4090, arithmetic's of hw=rtx4090"


def test_a_gpu_of_which_nothing_is_known_has_a_link_and_what_is_free_of_it() -> None:
    requests = [Request("one", (3, 4), 5, 0)]
    terms = find_terms(config(), "bfloat16", model(), requests, None, (10**10, "90% of what is free"))
    assert terms.rates.link == NOMINAL_GPU.link
    assert terms.rates.why("link") == NOMINAL_GPU.reason
    assert terms.budget.reason == "90% of what is free"
    assert terms.budget.host > 0


def test_dense_parts_keep_their_share_in_float32() -> None:
    rates = choose_rates(config("hw=rtx4090"), NOMINAL, "float32")
    assert rates.compute == 6e13
    assert rates.dense_share == pytest.approx(0.75)


def test_the_table_has_a_row_for_each_value_of_the_machine() -> None:
    gpu = choose_rates(config("hw=rtx4090"), NOMINAL)
    cores = Rates(1e9, 2e11, "nominal").because("measured", wake=1.5e-3)
    facts = model(experts=(8, 8))
    text = shown(explained(Question(facts, MANY, rates=cores), 20_000), facts)
    rows = {line.split("│")[1].strip(): line for line in text.splitlines() if line.count("│") > 2}
    assert "1.5 ms" in rows["after a long wait"] and "measured" in rows["after a long wait"]
    assert "nominal" in rows["a batch's turn in a layer"]
    assert "into the GPU" not in rows and "memory below, of cached keys" not in rows
    below = {name: (value, why) for name, value, why in machine(gpu)}
    assert below["memory below, of cached keys"] == ("50GB/s", "of hw=rtx4090")
    assert below["between operations"] == ("20 us", "of hw=rtx4090")
    assert len(below) == len(REACHES), "dense parts too, and no cores that rest"


def test_what_a_run_measured_is_read_back_as_it_was(tmp_path: Path) -> None:
    rates = NOMINAL.because("measured by this run", disk=1.23e9, compute=3.21e11, turn=1.2345e-3, step=2e-8)
    written = read_file(hardware_file(rates, Budget(3_093_299_200, "as set", 612_345_678), "none"), tmp_path)
    assert (written.hw.device_memory, written.hw.runtime_memory) == ("3093299200B", "612345678B")
    assert (written.hw.host, written.hw.gpu, written.hw.link_bandwidth) == (socket.gethostname(), "none", "auto")
    again = choose_rates(written, NOMINAL)
    for name in SETTINGS:
        value = getattr(rates, name)
        assert getattr(again, name) == (pytest.approx(value, rel=0.005, abs=1e-7) if value is not None else None), name


def test_what_was_not_measured_is_not_said_to_be(tmp_path: Path) -> None:
    rates = NOMINAL.because("measured by this run", disk=1.23e9)
    lines = hardware_file(rates, Budget(10**9, "as set", 0), "none").splitlines()
    assert "disk_bandwidth: 1.23GB/s  # measured by this run" in lines
    assert f"memory_bandwidth: 20GB/s  # {NOMINAL.reason}" in lines
    assert "runtime_memory: 0B" in lines


def test_of_a_gpu_the_file_has_the_link_and_the_memory_below(tmp_path: Path) -> None:
    rates = NOMINAL_GPU.because("measured by this run", link=2.2e10)
    budget = Budget(24 * 10**9, "as set", 10**8, 10**11)
    written = read_file(hardware_file(rates, budget, "NVIDIA GeForce RTX 4090"), tmp_path)
    assert (written.hw.gpu, written.hw.host_memory) == ("NVIDIA GeForce RTX 4090", "100000000000B")
    again = choose_rates(written, NOMINAL)
    assert (again.link, again.below) == (2.2e10, NOMINAL_GPU.below)


def read_file(text: str, folder: Path) -> RunConfig:
    """The config with hardware of a file that a run left."""
    (folder / "hw").mkdir()
    (folder / "hw" / "measured.yaml").write_text(text)
    return config("hw=measured", f"hydra.searchpath=[file://{folder}]")
