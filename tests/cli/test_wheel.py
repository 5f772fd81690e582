"""The package as it is installed: not in a checkout, and started from anywhere."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.architectures import save_checkpoint
from tests.cli.process import PATIENCE, short_requests

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a new virtual environment that has the wheel, and sees the dependencies of this one."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    wheels = folder / "wheels"
    run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), str(ROOT)], folder)
    (wheel,) = wheels.glob("*.whl")
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    programs = folder / "venv" / "bin"
    run([*pip, "--python", str(programs / "python"), "install", "--no-deps", "--no-index", str(wheel)], folder)
    # A folder named in a .pth is searched after the environment's own, and its own .pth files, which
    # an editable install of the checkout would lie in, are not read.
    (packages,) = (folder / "venv").glob("lib/python*/site-packages")
    found = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (packages / "dependencies.pth").write_text("".join(f"{path}\n" for path in found))
    return programs


def run(command: list[str], cwd: Path) -> str:
    """A command that has to succeed, without this checkout on its path; its standard output."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP"))}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_what_is_imported_is_what_was_installed(installed: Path, tmp_path: Path) -> None:
    where = run([str(installed / "python"), "-c", "import klotski; print(klotski.__file__)"], tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent)


def test_the_installed_command_brings_its_configs(installed: Path, tmp_path: Path) -> None:
    printed = run([str(installed / "klotski"), "--cfg", "job", "pipeline=overlap"], tmp_path)
    assert "prefetch: layer" in printed
    assert run([str(installed / "klotski"), "--help"], tmp_path).count("sequential")


def test_the_installed_command_runs_the_model_in_the_package(installed: Path, tmp_path: Path) -> None:
    run([str(installed / "klotski"), "model=tiny", "workload.limit=2", "workload.max_tokens=4"], tmp_path)
    (folder,) = (tmp_path / "outputs").glob("*/*")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert (metrics["status"], metrics["num_requests"]) == ("ok", 2)


def test_the_installed_module_runs_a_checkpoint(installed: Path, tmp_path: Path) -> None:
    model = save_checkpoint("mixtral", tmp_path / "model")
    requests = short_requests(tmp_path / "requests.jsonl", 2)
    run(
        [
            *(str(installed / "python"), "-m", "klotski"),
            *("model=custom", f"model.path={model}", "hw.device_memory=3MB", "hw.runtime_memory=0"),
            *("workload=jsonl", f"workload.path={requests}", f"hydra.run.dir={tmp_path / 'run'}"),
        ],
        tmp_path,
    )
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["status"] == "ok"
