"""What cannot be meant is refused in one sentence that names the setting and says what exists."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from klotski import app, schema
from klotski.errors import ConfigError
from klotski.refusals import explain
from tests.cli.process import only_sentence, run_klotski

GROUPS = ["executor", "hw", "model", "pipeline", "placement", "workload"]
PIPELINE = ["n_batches", "batch_size", "prefill_tokens", "prefetch", "hot_experts", "on_demand", "order"]
MODEL = ["dtype", "name", "path"]


def refusal(*overrides: str) -> str:
    """The sentence, without the second that a process takes; that the command ends with it is tested below."""
    schema.register(app.config_folder())
    with initialize_config_dir(version_base="1.3", config_dir=str(app.config_folder())):
        try:
            schema.load(compose("config", overrides=list(overrides)))
        except ConfigError as error:
            sentence = str(error)
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            sentence = str(explain(error, overrides))
        else:
            pytest.fail(f"{overrides} was accepted")
    assert "\n" not in sentence
    return sentence


def command_refusal(tmp_path: Path, *overrides: str) -> str:
    """What `python -m klotski` says, and nothing besides."""
    return only_sentence(run_klotski(*overrides, f"hydra.run.dir={tmp_path / 'run'}", cwd=tmp_path))


@pytest.mark.parametrize(
    ("override", "key", "existing"),
    [
        ("pipelin=klotski", "pipelin", GROUPS),
        ("+pipelin=klotski", "pipelin", GROUPS),
        ("+foo=1", "foo", GROUPS),
        ("++foo.bar=1", "foo", GROUPS),
        ("pipeline.n_batch=2", "pipeline.n_batch", PIPELINE),
        ("+pipeline.n_batch=2", "pipeline.n_batch", PIPELINE),
        ("++pipeline.n_batch=2", "pipeline.n_batch", PIPELINE),
        ("model.dtyp=float32", "model.dtyp", MODEL),
        ("+model.foo.bar=1", "model.foo", MODEL),
        ("+workload.max_token=8", "workload.max_token", ["max_tokens", "limit", "path"]),
        ("hydra.runn.dir=x", "hydra.runn", ["run", "sweep"]),
    ],
)
def test_a_key_that_does_not_exist(override: str, key: str, existing: list[str]) -> None:
    sentence = refusal(override)
    assert sentence.startswith(f"{key} is not a setting; ")
    listed = sentence.partition("there are ")[2].split(", ")
    assert set(existing) <= set(listed)


@pytest.mark.parametrize(
    ("override", "meant"), [("pipelin=klotski", "pipeline"), ("+model.pth=x", "path"), ("pipeline=klotsky", "klotski")]
)
def test_what_was_probably_meant_is_said(override: str, meant: str) -> None:
    assert f"did you mean {meant}?" in refusal(override)


@pytest.mark.parametrize(
    ("override", "existing"),
    [
        ("model=mixtrl", ["custom", "mixtral", "tiny"]),
        ("hw=h200x9", ["auto", "cpu"]),
        ("placement=some", ["greedy", "none"]),
        ("pipeline=klotsky", ["klotski", "overlap", "sequential"]),
        ("executor=jax", ["auto", "torch"]),
        ("workload=csv", ["jsonl", "prompts", "synthetic"]),
        ("experiment=nope", ["strategies"]),
    ],
)
def test_an_option_that_does_not_exist(override: str, existing: list[str]) -> None:
    sentence = refusal(override)
    assert sentence.startswith(f"{override.lstrip('+')} is not an option; ")
    assert set(existing) <= set(sentence.partition("there are ")[2].split(", "))


@pytest.mark.parametrize(
    ("override", "existing"),
    [
        ("model.dtype=float16", ["auto", "float32", "bfloat16"]),
        ("placement.residents=all", ["none", "greedy"]),
        ("pipeline.prefetch=everything", ["none", "layer", "hot"]),
        ("pipeline.on_demand=never", ["lazy", "eager"]),
        ("pipeline.order=random", ["index", "hot_first", "arrival"]),
    ],
)
def test_a_value_that_is_none_of_those_that_exist(override: str, existing: list[str]) -> None:
    key, _, value = override.partition("=")
    sentence = refusal(override)
    assert key in sentence
    assert value in sentence
    assert all(each in sentence for each in existing)


@pytest.mark.parametrize(
    "override",
    [
        "workload.limit=abc",
        "workload.limit=1.5",
        "workload.max_tokens=[1]",
        "workload.max_tokens=0",
        "workload.temperature=hot",
        "workload.temperature=-1",
        "workload.temperature=nan",
        "workload.temperature=inf",
        "workload.seed=null",
        "model.path=null",
        "model.path.file=x",
        "pipeline.n_batches=[1]",
        "pipeline.n_batches=0",
        "pipeline.batch_size=1.5",
        "pipeline.prefill_tokens=0",
        "pipeline.prefill_tokens=some",
        "pipeline.hot_experts=many",
        "hw.threads=-2",
        "prometheus=some",
        "prometheus=0",
        "prometheus=-9400",
        "prometheus=65536",
    ],
)
def test_a_value_of_the_wrong_type_or_out_of_range(override: str) -> None:
    key = override.partition("=")[0]
    assert refusal(override).startswith(".".join(key.split(".")[:2]))


@pytest.mark.parametrize("size", ["abc", "-1", "2.5XB", "0", "''", "null", "GB", "1GB2", "nan", f"1{'0' * 400}"])
@pytest.mark.parametrize("key", ["hw.device_memory"])
def test_a_size_that_is_none(key: str, size: str) -> None:
    assert refusal(f"{key}={size}").startswith(key)


@pytest.mark.parametrize("size", ["abc", "-1", "2.5XB", "null"])
def test_what_the_process_takes_by_itself_is_a_size_too(size: str) -> None:
    assert refusal(f"hw.runtime_memory={size}").startswith("hw.runtime_memory")


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (("pipeline=sequential", "pipeline.order=arrival"), ("pipeline.order=arrival", "pipeline.on_demand=lazy")),
        (("pipeline=sequential", "pipeline.prefetch=hot"), ("pipeline.prefetch=hot", "pipeline.on_demand=lazy")),
    ],
)
def test_settings_that_exclude_each_other(overrides: tuple[str, ...], named: tuple[str, ...]) -> None:
    sentence = refusal(*overrides)
    assert all(each in sentence for each in named)
    assert "set pipeline." in sentence, "says the way out"


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (("workload=jsonl",), "workload.path"),
        (("model=custom",), "model.path"),
        (("model.path=",), "model.path"),
        (("~pipeline",), "pipeline.name"),
    ],
)
def test_a_value_that_is_missing(overrides: tuple[str, ...], key: str) -> None:
    sentence = refusal(*overrides)
    assert sentence.startswith(f"{key} has no value")
    assert f"set {key}=" in sentence


@pytest.mark.parametrize("override", ["foo", "model.path", "foo=[1", "a b", "pipeline.n_batches=${now"])
def test_an_override_that_is_none(override: str) -> None:
    sentence = refusal(override)
    assert sentence.startswith(f"'{override}' is not an override")
    assert "GROUP=OPTION" in sentence


@pytest.mark.parametrize("override", ["pipeline=null", "model=5", "+experiment=null", "workload=1.5"])
def test_an_option_that_is_not_a_name(override: str) -> None:
    assert refusal(override).startswith(f"{override.lstrip('+')} is not an option")


def test_an_option_added_where_there_is_one() -> None:
    assert refusal("+pipeline=overlap") == "+pipeline adds a second option; write pipeline=OPTION, without the +"


def test_several_values_outside_a_sweep(tmp_path: Path) -> None:
    sentence = command_refusal(tmp_path, "pipeline=sequential,overlap")
    assert sentence == "pipeline=sequential,overlap is more than one value; add -m for one run with each"


@pytest.mark.parametrize("value", ["${nowhere.at_all}", "${oc.env:SURELY_NOT_SET}", "${workload.path}"])
def test_a_reference_that_leads_nowhere(value: str) -> None:
    assert refusal(f"workload.path={value}").startswith("workload.path")


@pytest.mark.parametrize(
    "overrides",
    [
        ("pipelin=klotski",),
        ("+foo=1",),
        ("+model.foo=1",),
        ("pipeline=klotsky",),
        ("pipeline=null",),
        ("workload.limit=abc",),
        ("model.dtype=float16",),
        ("hw.device_memory=2.5XB",),
        ("pipeline=sequential", "pipeline.order=arrival"),
        ("workload=jsonl",),
        ("foo",),
    ],
)
def test_the_command_ends_with_that_sentence_and_nothing_else(overrides: tuple[str, ...], tmp_path: Path) -> None:
    assert command_refusal(tmp_path, *overrides) == refusal(*overrides)


def test_a_run_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    sentence = only_sentence(run_klotski(f"hydra.run.dir={tmp_path / 'file' / 'run'}", cwd=tmp_path))
    assert "hydra.run.dir" in sentence
    assert str(tmp_path / "file") in sentence


def test_an_option_of_a_sweep_that_does_not_exist(tmp_path: Path) -> None:
    folder = f"hydra.sweep.dir={tmp_path / 'sweep'}"
    finished = run_klotski("-m", "pipeline=overlap,klotsky", folder, cwd=tmp_path)
    assert only_sentence(finished).startswith("pipeline=klotsky is not an option; ")
    assert "klotski, overlap, sequential" in finished.err


def test_each_refused_run_of_a_sweep_says_why(tmp_path: Path) -> None:
    folder = f"hydra.sweep.dir={tmp_path / 'sweep'}"
    finished = run_klotski("-m", "hw.device_memory=abc,0", folder, cwd=tmp_path)
    assert finished.status == 1
    first, second = finished.err.splitlines()
    assert first.startswith("hw.device_memory=abc ")
    assert second.startswith("hw.device_memory=0 ")
