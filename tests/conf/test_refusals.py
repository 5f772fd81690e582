"""What cannot be meant is refused in one sentence that names the setting and says what exists."""

import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from klotski import app, schema
from klotski.assets import TINY
from klotski.errors import ConfigError
from klotski.refusals import advise, check_paths, explain
from tests.cli.process import only_sentence, run_klotski, run_python, short_requests
from tests.engine import read_lines

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


ODD = [
    "=",
    ",",
    "'",
    '"',
    " ",
    "(",
    ")",
    "{",
    "}",
    "[",
    "]",
    "$",
    "#",
    "\\",
    "\\\\",
    "é",
    "~",
    ":",
    ";",
    "&",
    "!",
    "|",
    "*",
    "?",
]
NAMES = [
    *(f"/data/a{character}b" for character in ODD),
    *ODD,
    *(f"/data/{character}" for character in ODD),
    *(
        "a=b, c",
        "${x}",
        "a${",
        "\\${x}",
        "\\\\${now:%Y}",
        "${a ${b}}",
        'it\'s "so"',
        "1_000",
        "1e3",
        "null",
        "true",
        "[a]",
        "{a:b}",
    ),
    *("glob(*)", "choice(a,b)", "range(1,2)", " a ", "a\tb", "日本"),
]


def value_of(override: str, key: str) -> Any:
    """What Hydra reads for a key."""
    group = ["workload=jsonl"] * key.startswith("workload")
    schema.register(app.config_folder())
    with initialize_config_dir(version_base="1.3", config_dir=str(app.config_folder())):
        config = compose("config", overrides=[*group, override], return_hydra_config=True)
    value: Any = config
    for part in key.split("."):
        value = value[part]
    return value


@pytest.mark.parametrize("path", NAMES)
def test_the_form_that_is_advised_is_read_as_the_path_that_was_meant_also_by_the_jobs_of_a_sweep(path: str) -> None:
    (argument,) = shlex.split(advise("write", f"model.path={path}").removeprefix("write "))
    check_paths([argument])
    assert value_of(argument, "model.path") == path
    override = OverridesParser.create().parse_override(argument)
    assert not override.is_sweep_override()
    of_a_job = f"{override.get_key_element()}={override.get_value_element_as_str()}"
    assert value_of(of_a_job, "model.path") == path


@pytest.mark.parametrize(
    "key", ["workload.path", "history", "model.shape", "hw.gpu", "hydra.run.dir", "hydra.sweep.dir"]
)
@pytest.mark.parametrize("value", ["a=b", "{a", "a#b", "é", "~/a", "(a)", "a'b"])
def test_a_value_that_is_no_override_is_advised_in_a_form_that_is_one(key: str, value: str) -> None:
    sentence = refusal(f"{key}={value}")
    assert sentence.startswith(f"'{key}={value}' is not an override")
    argument = shlex.split(sentence.rpartition(" as ")[2])[0]
    assert value_of(argument, key) == value


@pytest.mark.parametrize("override", ["pipeline=null", "model=5", "+experiment=null", "workload=1.5"])
def test_an_option_that_is_not_a_name(override: str) -> None:
    assert refusal(override).startswith(f"{override.lstrip('+')} is not an option")


def test_an_option_added_where_there_is_one() -> None:
    assert refusal("+pipeline=overlap") == "+pipeline adds a second option; write pipeline=OPTION, without the +"


def test_several_values_outside_a_sweep(tmp_path: Path) -> None:
    sentence = command_refusal(tmp_path, "pipeline=sequential,overlap")
    assert sentence == "pipeline=sequential,overlap is more than one value; add -m for one run with each"


@pytest.mark.parametrize(
    ("overrides", "key", "value"),
    [
        (("model.path=/data/a,b",), "model.path", "/data/a,b"),
        (("hw.device_memory=1GB,2GB",), "hw.device_memory", "1GB,2GB"),
        (("model.path=choice(a,b)",), "model.path", "choice(a,b)"),
        (("-m", "hydra.sweep.dir=a, b"), "hydra.sweep.dir", "a, b"),
    ],
)
def test_several_values_that_may_be_meant_as_one(
    overrides: tuple[str, ...], key: str, value: str, tmp_path: Path
) -> None:
    sentence = only_sentence(run_klotski(*overrides, cwd=tmp_path))
    assert sentence.startswith(f"{key}={value} is more than one value")
    assert value_of(shlex.split(sentence.rpartition(" write ")[2])[0], key) == value


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        ("${nowhere.at_all}", "${nowhere.at_all}"),
        ("${oc.env:SURELY_NOT_SET}", "${oc.env:SURELY_NOT_SET}"),
        ("${workload.path}", "${workload.path}"),
        ('"a b${"', "a b${"),
    ],
)
def test_a_reference_that_leads_nowhere_may_be_meant_as_a_name(value: str, meant: str) -> None:
    override = f"workload.path={value}"
    with pytest.raises((HydraException, OmegaConfBaseException)) as error:
        value_of(override, "workload.path")
    sentence = str(explain(error.value, ["hw=auto", override]))
    assert sentence.startswith("workload.path: ")
    assert value_of(shlex.split(sentence.rpartition(" write ")[2])[0], "workload.path") == meant


@pytest.mark.parametrize("key", ["model.path", "workload.path", "history", "hydra.run.dir", "hydra.sweep.dir"])
@pytest.mark.parametrize("name", ["a,b", "choice(a,b)", "a\\ b", "1_000", "1e3", "true", "null", "[a]", "{a: b}"])
def test_a_path_that_is_there_and_would_be_misread(
    key: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    with pytest.raises(ConfigError) as error:
        check_paths(["-m", f"{key}={name}"])
    argument = shlex.split(str(error.value).rpartition(" write ")[2])[0]
    check_paths([argument])
    assert value_of(argument, key) == name


@pytest.mark.parametrize(
    "override", ["model.path=a,b", "model.path=a\\ b", "model.path='a'", "workload.limit=1_000", "-m"]
)
def test_what_is_escaped_quoted_or_swept_over_is_read_by_hydras_rules(
    override: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    check_paths([override])


@pytest.mark.parametrize(
    "override",
    [r'hydra.run.dir="\${now:%Y}"', r'hydra.sweep.dir="a\${b}"', "hydra.run.dir=a${b}", "hydra.sweep.dir=${b}"],
)
def test_a_runs_folder_has_no_reference_in_its_name(override: str, tmp_path: Path) -> None:
    arguments = ["-m"] * ("sweep" in override)
    sentence = only_sentence(run_klotski(*arguments, override, "dry_run=true", cwd=tmp_path))
    assert sentence.startswith("a run's folder cannot have ${ in its path")
    assert not list(tmp_path.iterdir())


def test_a_run_in_a_folder_with_a_reference_in_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "a${b}"
    folder.mkdir()
    assert "cannot have ${ in its path" in only_sentence(run_klotski("dry_run=true", cwd=folder))


@pytest.mark.parametrize("arguments", [[], ["-m"]])
def test_all_paths_of_a_run_may_have_any_characters(arguments: list[str], tmp_path: Path) -> None:
    odd = tmp_path / "".join(character for character in ODD)
    shutil.copytree(TINY, odd / "model")
    requests = short_requests(odd / "requests [red] :x:.jsonl", 2)
    run = odd / "run [" / "red]"  # which rich would take for markup
    key = "hydra.sweep.dir" if arguments else "hydra.run.dir"
    paths = {"model.path": odd / "model", "workload.path": requests, "history": odd / "history", key: run}
    words = " ".join(advise("", f"{name}={path}") for name, path in paths.items())
    command = f"{shlex.quote(sys.executable)} -m klotski model=custom workload=jsonl {words} {' '.join(arguments)}"
    finished = run_python(
        "-c", f'import subprocess, sys; sys.exit(subprocess.call(["sh", "-c", {command!r}]))', cwd=tmp_path
    )
    assert finished.status == 0, finished.err
    files = run / "0" if arguments else run
    assert len(read_lines(files / "results.jsonl")) == 2
    assert str(files) in finished.out
    assert sorted(each.name for each in odd.iterdir()) == sorted(["model", requests.name, "history", "run ["])


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
