"""Hardware that cannot be is refused by its key, and what is meant by a GPU's name is found."""

import re
from functools import cache

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from klotski import app, schema
from klotski.errors import ConfigError
from klotski.planner.hardware import is_gpu
from klotski.schema.hardware import OF_A_GPU, OF_CORES, OF_EACH, PLAUSIBLE, HwConfig

HW = app.config_folder() / "hw"
NUMBERS = {
    str(file.relative_to(HW).with_suffix("")): {
        key: str(value) for key, value in yaml.safe_load(file.read_text()).items() if key in PLAUSIBLE
    }
    for file in sorted(HW.rglob("*.yaml"))
}
CASES = [(option, key, text) for option, numbers in NUMBERS.items() for key, text in numbers.items()]
EIGHTFOLD = {  # of these, no machine has eight times as much: bytes were taken for bits
    "device_memory": {"h100", "h200", "h800", "published/h800"},
    "link_bandwidth": NUMBERS.keys() - {"t4", "published/rtx3090"},
    "link_bandwidth_back": NUMBERS.keys() - {"t4", "published/rtx3090"},
    "memory_bandwidth": {"rtx5090", "a100_40gb", "h100", "h800", "h200", "published/h800"},
    "compute_rate": {"h100", "h200"},
    "compute_rate_float32": {"rtx5090"},
}


@cache
def composed(option: str) -> DictConfig:
    schema.register(app.config_folder())
    with initialize_config_dir(version_base="1.3", config_dir=str(app.config_folder())):
        config = compose("config", overrides=[f"hw={option}"])
    assert isinstance(config, DictConfig)
    return config


def load(option: str, **values: str) -> HwConfig:
    """The hardware of an option with other values."""
    config = composed(option).copy()
    for key, value in values.items():
        OmegaConf.update(config, f"hw.{key}", value)
    return schema.load(config).hw


def refused(option: str, key: str, value: str) -> bool:
    """Whether a value is refused, by its key and as it was written."""
    try:
        load(option, **{key: value})
    except ConfigError as error:
        assert str(error).startswith(f"hw.{key}" + (" has no value" if value == "auto" else f"={value} ")), error
        return True
    return False


def times(factor: int, text: str) -> str:
    return re.sub(r"^[0-9.]+", lambda match: f"{factor * float(match[0]):g}", text)


@pytest.mark.parametrize(("option", "key", "text"), CASES)
def test_what_cannot_be_is_refused_by_its_key(option: str, key: str, text: str) -> None:
    assert refused(option, key, "auto"), "nothing is made up for what is missing"
    assert refused(option, key, f"-{text}")
    assert refused(option, key, re.sub("[A-Za-z/]+$", "", text)), "without a unit"
    assert refused(option, key, times(10**6, text)), "a unit that is two steps too large"
    if text.endswith("B/s"):
        assert refused(option, key, text.replace("B/s", "b/s"))
    assert refused(option, key, times(8, text)) == (option in EIGHTFOLD.get(key, set()))


def test_every_file_of_a_certain_machine_says_all_of_it() -> None:
    assert {option for option, numbers in NUMBERS.items() if not numbers} == {"auto", "cpu"}
    for option, numbers in NUMBERS.items():
        assert not numbers or numbers.keys() >= {*OF_EACH, *(OF_CORES if option == "laptop" else OF_A_GPU)}


def test_every_number_has_its_source() -> None:
    for option, numbers in NUMBERS.items():
        lines = (HW / f"{option}.yaml").read_text().splitlines()
        for key in numbers:
            (line,) = (line for line in lines if line.startswith(f"{key}:"))
            assert "  # " in line or option.startswith("published/"), f"{option}: {line}"


@pytest.mark.parametrize(
    ("option", "key", "value"),
    [
        ("rtx4090", "device_memory", "24TB"),
        ("rtx4090", "device_memory", "24000GiB"),
        ("rtx4090", "host_memory", "128"),
        ("auto", "host_memory", "128"),
        ("auto", "device_memory", "24"),
        ("auto", "device_memory", "100TB"),
        ("auto", "runtime_memory", "600"),
        ("auto", "runtime_memory", "600GB"),
        ("rtx4090", "disk_bandwidth", "40GB/s"),
        ("rtx4090", "link_bandwidth", "200GB/s"),
        ("laptop", "memory_bandwidth", "4TB/s"),
        ("laptop", "compute_rate", "2PFLOP/s"),
    ],
)
def test_what_no_machine_has(option: str, key: str, value: str) -> None:
    assert refused(option, key, value)


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("rtx4090", {"device_memory": "1.6MB", "runtime_memory": "0"}),
        ("rtx4090", {"device_memory": "80GB", "link_bandwidth": "50GB/s", "host_memory": "3MB"}),
        ("h200", {"device_memory": "24GB"}),
        ("h200", {"gpu": "GH200 480GB", "link_bandwidth": "400GB/s", "link_bandwidth_back": "300GB/s"}),
        ("auto", {"device_memory": "200KB", "runtime_memory": "512000000B"}),
        ("cpu", {"device_memory": "24TB"}),
    ],
)
def test_what_may_be_asked(option: str, values: dict[str, str]) -> None:
    assert load(option, **values)


def test_a_link_needs_somewhere_to_lead() -> None:
    with pytest.raises(ConfigError, match=r"^hw\.gpu=none leaves hw\.link_bandwidth=25GB/s nowhere to lead"):
        load("rtx4090", gpu="none")


@pytest.mark.parametrize(
    ("option", "found"),
    [
        ("rtx3090", "NVIDIA GeForce RTX 3090"),
        ("rtx4090", "NVIDIA GeForce RTX 4090"),
        ("rtx4090", "GeForce RTX 4090"),
        ("rtx5090", "NVIDIA GeForce RTX 5090"),
        ("a5000", "NVIDIA RTX A5000"),
        ("a100_40gb", "NVIDIA A100-SXM4-40GB"),
        ("a100_40gb", "NVIDIA A100-PCIE-40GB"),
        ("a100_40gb", "NVIDIA A100 80GB PCIe"),
        ("h800", "NVIDIA H800"),
        ("h800", "NVIDIA H800 PCIe"),
        ("h100", "NVIDIA H100 80GB HBM3"),
        ("h200", "NVIDIA H200"),
        ("h200", "NVIDIA H200 NVL"),
        ("t4", "Tesla T4"),
    ],
)
def test_a_card_is_known_by_the_name_that_its_driver_has(option: str, found: str) -> None:
    assert is_gpu(load(option).gpu, found)


@pytest.mark.parametrize(
    ("option", "found"),
    [
        ("rtx3090", "NVIDIA GeForce RTX 3090 Ti"),
        ("rtx4090", "NVIDIA GeForce RTX 4090 Laptop GPU"),
        ("rtx4090", "NVIDIA GeForce RTX 4090 D"),
        ("a5000", "NVIDIA RTX A5000 Laptop GPU"),
        ("a100_40gb", "NVIDIA A10"),
        ("h100", "NVIDIA GH100"),
        ("h200", "NVIDIA H20"),
        ("h200", "NVIDIA GH200 480GB"),
        ("t4", "NVIDIA T400"),
    ],
)
def test_another_card_is_not_taken_for_it(option: str, found: str) -> None:
    assert not is_gpu(load(option).gpu, found)
