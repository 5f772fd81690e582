"""Whether a run is carried out or predicted, and what is said of it: by the GPU, the weights, the machine at hand."""

import socket
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from klotski import app, schema
from klotski.assets import SHAPES
from klotski.errors import ConfigError
from klotski.executors import base, create
from klotski.executors.base import why_not_here
from klotski.executors.devices import CpuDevice, CudaDevice, find_device
from klotski.executors.simulate import SimulatedExecutor
from klotski.executors.torch import TorchExecutor
from klotski.schema import RunConfig
from tests.architectures import save_checkpoint


def config(*overrides: str) -> RunConfig:
    schema.register(app.config_folder())
    with initialize_config_dir(version_base="1.3", config_dir=str(app.config_folder())):
        return schema.load(compose("config", list(overrides)))


def install(patch: pytest.MonkeyPatch, *names: str, usable: bool = True) -> None:
    """Make it a machine with these GPUs, of 25.8 GB each; `usable`: by torch, too."""
    patch.setattr(base, "find_gpus", lambda: [(name, 25_757_220_864) for name in names])
    patch.setattr("torch.cuda.is_available", lambda: usable)
    patch.setattr("torch.cuda.device_count", lambda: len(names))
    patch.setattr("torch.cuda.get_device_name", lambda index: names[index])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The override for a model whose weights are here."""
    return f"model.path={save_checkpoint('mixtral', tmp_path_factory.mktemp('model'))}"


def test_with_weights_and_such_a_gpu_it_runs(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "NVIDIA T400", "NVIDIA GeForce RTX 4090")
    asked = config("hw=rtx4090", "model=mixtral", model)
    assert why_not_here(asked) is None
    assert isinstance(create(asked), TorchExecutor)
    assert isinstance(create(config("hw=rtx4090", "model=mixtral", model, "executor=torch")), TorchExecutor)
    device = find_device(asked.hw.gpu)
    assert isinstance(device, CudaDevice)
    assert device.place.index == 1


@pytest.mark.parametrize(
    ("gpus", "usable"), [([], True), (["NVIDIA GeForce RTX 3090"], True), (["NVIDIA GeForce RTX 4090"], False)]
)
def test_without_that_gpu_it_is_predicted_and_says_so(
    gpus: list[str], usable: bool, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, *gpus, usable=usable)
    lacking = "hw=rtx4090 is another machine than this one, which has no GeForce RTX 4090 that torch can use"
    asked = config("hw=rtx4090", "model=mixtral", model)
    assert why_not_here(asked) == f"{lacking}; there the same command runs, and hw=auto executor=torch runs here"
    assert isinstance(create(asked), SimulatedExecutor)
    with pytest.raises(ConfigError, match=rf"^{lacking}; set hw=auto to run here, or executor=simulate to predict$"):
        create(config("hw=rtx4090", "model=mixtral", model, "executor=torch"))


def test_without_weights_and_gpu_both_are_said_to_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    said = str(why_not_here(config("hw=rtx4090", "model=mixtral")))
    assert "no GeForce RTX 4090" in said
    assert "the weights of mistralai/Mixtral-8x7B-v0.1 are not here either" in said


def test_without_weights_alone_it_is_predicted_and_torch_fetches_them(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "NVIDIA GeForce RTX 4090")
    said = str(why_not_here(config("hw=rtx4090", "model=mixtral")))
    assert said.startswith("the weights of mistralai/Mixtral-8x7B-v0.1 are not on this machine; executor=torch fetches")
    assert isinstance(create(config("hw=rtx4090", "model=mixtral", "executor=torch")), TorchExecutor)


def test_made_up_weights_are_always_here(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "NVIDIA GeForce RTX 4090")
    assert why_not_here(config("hw=rtx4090", "model=mixtral", "model.load_format=dummy")) is None


def test_a_budget_beyond_the_card_is_refused_before_anything_is_loaded(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, "NVIDIA GeForce RTX 4090")
    for hw in ("rtx4090", "auto"):
        with pytest.raises(ConfigError, match=r"^hw\.device_memory=24\.5GiB is more than the 25\.8GB of the GPU"):
            create(config(f"hw={hw}", "hw.device_memory=24.5GiB", "model=mixtral", model))
    assert isinstance(create(config("hw=cpu", "hw.device_memory=24.5GiB", "model=mixtral", model)), TorchExecutor)


def test_the_habits_of_another_implementation_are_only_predicted(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "NVIDIA GeForce RTX 3090")
    said = why_not_here(config("hw=published/rtx3090", "model=mixtral", model))
    assert said == "hw=rtx3090_published is another machine than this one; hw=auto executor=torch runs here"


def test_a_gpu_is_left_alone_where_that_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "NVIDIA GeForce RTX 4090")
    assert isinstance(find_device(config("hw=cpu").hw.gpu), CpuDevice)
    assert isinstance(find_device(config("hw=auto").hw.gpu), CudaDevice)
    install(monkeypatch, "NVIDIA GeForce RTX 4090", usable=False)
    assert isinstance(find_device(config("hw=auto").hw.gpu), CpuDevice)


@pytest.mark.parametrize(("host", "runs"), [(socket.gethostname(), True), ("elsewhere", False)])
def test_what_was_measured_runs_where_it_was_and_is_predicted_anywhere_else(host: str, runs: bool, model: str) -> None:
    measured = config("hw=laptop", "hw.elsewhere=false", f"hw.host={host}", "model=custom", model)
    assert isinstance(create(measured), TorchExecutor if runs else SimulatedExecutor)


@pytest.mark.parametrize("is_file", [True, False])
def test_of_a_config_alone_a_run_is_predicted(is_file: bool, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_bytes((SHAPES / "olmoe-1b-7b" / "config.json").read_bytes())
    asked = config("model=custom", f"model.path={file if is_file else tmp_path}")
    assert "is a config without weights" in str(why_not_here(asked))
    assert isinstance(create(asked), SimulatedExecutor)
    save_checkpoint("mixtral", tmp_path)
    assert isinstance(create(asked), TorchExecutor)
