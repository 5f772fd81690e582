"""From the Hub comes what a checkpoint needs, once it is known that it can be streamed, and nothing else."""

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.utils._paths import filter_repo_objects
from huggingface_hub.utils._validators import validate_repo_id

from klotski.errors import CheckpointError, ModelError
from klotski.executors.base import why_not_here
from klotski.executors.task import find_checkpoint, find_shape, has_shape_only
from klotski.weights import find_local, resolve
from tests.architectures import save_checkpoint
from tests.conf.test_at_hand import config
from tests.engine import run_engine

REPO = "author/some-moe"
NEEDED = {"config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"}
OTHERS = ("consolidated.safetensors", "adapter_model.safetensors", "adapter_config.json", "original/params.json")


class Hub:
    """A hub with one repository; snapshots are laid out as the client's cache is."""

    def __init__(self, cache: Path) -> None:
        self.files = cache / "remote"
        self.snapshot = cache / f"models--{REPO.replace('/', '--')}" / "snapshots" / "0"
        self.is_online = True
        self.fetched: set[str] = set()
        (self.snapshot.parents[1] / "refs").mkdir(parents=True)
        (self.snapshot.parents[1] / "refs" / "main").write_text("0")

    def fill(self, shard_size: str = "10GB") -> None:
        """A repository as people upload them."""
        save_checkpoint("mixtral", self.files, shard_size)
        (self.files / "original").mkdir()
        for name in (*OTHERS, "tokenizer.json", "chat_template.jinja"):
            (self.files / name).write_text("{}")

    def download(self, repo_id: str, *, allow_patterns: list[str], ignore_patterns: list[str], **_: Any) -> str:
        """As `snapshot_download`."""
        validate_repo_id(repo_id)
        if not self.is_online:
            raise huggingface_hub.errors.OfflineModeIsEnabled("the Hub cannot be reached")
        assert repo_id == REPO
        names = [str(file.relative_to(self.files)) for file in self.files.rglob("*") if file.is_file()]
        for name in filter_repo_objects(names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns):
            self.fetched.add(name)
            (self.snapshot / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.files / name, self.snapshot / name)
        return str(self.snapshot)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.download)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return hub


def test_the_files_of_a_checkpoint_are_fetched_and_no_others(hub: Hub) -> None:
    hub.fill()
    assert resolve(REPO) == hub.snapshot
    assert hub.fetched == NEEDED | {"model.safetensors"}


def test_of_shards_those_are_fetched_that_the_index_names(hub: Hub) -> None:
    hub.fill(shard_size="200KB")
    (hub.files / "model-00099-of-00099.safetensors").touch()
    resolve(REPO)
    index = json.loads((hub.files / "model.safetensors.index.json").read_text())
    assert hub.fetched == NEEDED | {"model.safetensors.index.json", *index["weight_map"].values()}


def test_a_quantized_checkpoint_is_refused_before_its_weights_are_fetched(hub: Hub) -> None:
    hub.fill()
    settings = json.loads((hub.files / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "fp8"}
    (hub.files / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=r"quantized weights \(fp8\)"):
        resolve(REPO)
    assert hub.fetched == NEEDED


def test_a_checkpoint_in_another_format_is_refused_before_its_weights_are_fetched(hub: Hub) -> None:
    hub.fill()
    (hub.files / "model.safetensors").rename(hub.files / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor"):
        resolve(REPO)
    assert hub.fetched == NEEDED


@pytest.mark.parametrize("how", ["dry_run=true", "executor=simulate"])
def test_neither_a_dry_run_nor_a_prediction_fetches_weights(hub: Hub, how: str, tmp_path: Path) -> None:
    hub.fill(shard_size="200KB")
    (hub.files / "tokenizer.json").unlink()
    synthetic = ("workload=synthetic", "workload.num_requests=2", "workload.output_tokens=2")
    run_engine(tmp_path / "run", "model=custom", f"model.path={REPO}", *synthetic, how)
    assert not [name for name in hub.fetched if name.endswith(".safetensors")]


def test_a_snapshot_that_was_fetched_with_a_filter_is_here(hub: Hub) -> None:
    """Whatever else the repository has; and not before all shards have come."""
    hub.fill(shard_size="200KB")
    asked = config("model=olmoe", f"model.path={REPO}")
    assert find_local(REPO) is None
    hub.download(REPO, allow_patterns=["config.json", "*.index.json"], ignore_patterns=[])
    assert find_local(REPO) is None
    assert "are not on this machine" in str(why_not_here(asked))
    hub.download(REPO, allow_patterns=["model-*"], ignore_patterns=[])
    assert find_local(REPO) == hub.snapshot
    assert why_not_here(asked) is None
    hub.is_online = False
    assert find_checkpoint(asked) == find_shape(asked) == hub.snapshot
    assert not has_shape_only(asked, hub.snapshot)


def test_what_is_not_here_and_cannot_be_fetched_is_said_with_the_reason(hub: Hub) -> None:
    hub.is_online = False
    with pytest.raises(
        CheckpointError, match=rf"model.path={REPO} is not a folder here and could not be fetched \(the"
    ):
        resolve(REPO)
    with pytest.raises(CheckpointError, match="is neither a folder nor a hub id"):
        resolve("a b")
