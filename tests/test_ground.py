"""The ground that everything stands on: pinned versions, the environment, and which room may import which."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LOCKS = {build: ROOT / f"requirements-{build}.lock" for build in ("cpu", "gpu", "parity")}
TENSORFLOW_BUILDS = {"tensorflow", "tensorflow-cpu"}

USED_BY_STAGES = {"architectures", "checkpoints", "console", "data"}
MAY_IMPORT = {
    "console": set(),
    "architectures": {"console"},
    "data": {"console"},
    "checkpoints": {"architectures", "console"},
    "evaluation": {"console", "data"},
    "training": USED_BY_STAGES | {"evaluation"},  # scores from counts, to select epochs by what is reported
    "inference": USED_BY_STAGES | {"training"},  # the run's record and the recipes
}
MAY_IMPORT_ALL = {"benchmarks", "tests"}
# `make parity` runs what imports these, in its own environment.
PARITY = {"benchmarks"}
# Only TensorFlow is installed with the project; who runs Keras on another backend brings it along.
BACKENDS = {"tensorflow", "jax", "torch"}
MAY_IMPORT_A_BACKEND = {"training", "inference", "benchmarks", "tests"}
# PyTorch's own files are read by PyTorch where it is there, whatever the backend.
READS_WITH_TORCH = ROOT / "checkpoints" / "state_dicts.py"

PLATFORMS = {
    "Linux, x86-64": {"sys_platform": "linux", "platform_machine": "x86_64", "platform_system": "Linux"},
    "Linux, ARM": {"sys_platform": "linux", "platform_machine": "aarch64", "platform_system": "Linux"},
    "macOS, ARM": {"sys_platform": "darwin", "platform_machine": "arm64", "platform_system": "Darwin"},
    "Windows": {"sys_platform": "win32", "platform_machine": "AMD64", "platform_system": "Windows"},
}


def lines(build: str) -> list[str]:
    """Return the requirements of a lock file, comments left out."""
    return [line for line in LOCKS[build].read_text().splitlines() if line and not line.startswith("#")]


def pinned(build: str, platform: str, python: str) -> dict[str, str]:
    """Return name -> version of what a lock file installs on a platform."""
    environment = PLATFORMS[platform] | {"python_version": python, "python_full_version": f"{python}.0"}
    requirements = [Requirement(line) for line in lines(build)]
    there = [one for one in requirements if one.marker is None or one.marker.evaluate(environment)]
    versions: dict[str, str] = {canonicalize_name(one.name): str(one.specifier) for one in there}
    assert len(versions) == len(there), "a package is pinned twice for one platform"
    return versions


def declared() -> dict[str, set[str]]:
    """Return the distributions that pyproject.toml names: under "" the run-time's, else by extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = {"": project["dependencies"]} | project["optional-dependencies"]
    return {key: {canonicalize_name(Requirement(one).name) for one in group} for key, group in groups.items()}


def sources() -> Iterator[tuple[str, Path]]:
    """Yield (room, file) of all Python files, the room "" for the scripts; no files of hidden folders."""
    for path in sorted(ROOT.rglob("*.py")):
        *folders, _ = path.relative_to(ROOT).parts
        if not any(folder.startswith(".") for folder in folders):
            yield (folders[0] if folders else "", path)


def imported(path: Path) -> set[str]:
    """Return the top-level names that a file imports anywhere, its own room's relative imports left out."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    return names


SOURCES = list(sources())
FILES = [str(path.relative_to(ROOT)) for _, path in SOURCES]
PROVIDERS = importlib.metadata.packages_distributions()
ROOMS = {room for room, _ in SOURCES if room}
SCRIPTS = {path.stem for room, path in SOURCES if not room}


# Versions


@pytest.mark.parametrize("build", LOCKS)
def test_lock_pins_every_package_to_one_version_and_names_no_place(build: str) -> None:
    for line in lines(build):
        assert re.fullmatch(r"[a-z0-9._-]+==[0-9][A-Za-z0-9.+]*( ; .+)?", line), line
    assert "://" not in LOCKS[build].read_text()


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("platform", PLATFORMS)
def test_one_tensorflow_and_otherwise_one_environment(platform: str, python: str) -> None:
    cpu, gpu = (pinned(build, platform, python) for build in ("cpu", "gpu"))
    assert len(TENSORFLOW_BUILDS & set(cpu)) == 1
    assert TENSORFLOW_BUILDS & set(gpu) == {"tensorflow"}
    assert not any(name.startswith("nvidia") for name in cpu)

    def others(versions: dict[str, str]) -> dict[str, str]:
        return {
            name: version
            for name, version in versions.items()
            if name not in TENSORFLOW_BUILDS and not name.startswith("nvidia")
        }

    assert others(cpu) == others(gpu)


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("platform", PLATFORMS)
def test_parity_has_the_same_versions_and_pytorch_for_the_cpu_instead_of_tensorflow(platform: str, python: str) -> None:
    cpu, parity = (pinned(build, platform, python) for build in ("cpu", "parity"))
    assert {name: parity[name] for name in parity.keys() & cpu.keys()} == {
        name: cpu[name] for name in parity.keys() & cpu.keys()
    }
    assert "torch" in parity and not TENSORFLOW_BUILDS & set(parity)
    assert not any(name.startswith(("nvidia", "cuda", "triton")) for name in parity)


@pytest.mark.parametrize("build", LOCKS)
def test_lock_holds_all_that_is_declared(build: str) -> None:
    groups = declared()
    wanted = groups[""] | groups[build] | (groups["dev"] if build != "parity" else set())
    assert wanted <= {canonicalize_name(Requirement(line).name) for line in lines(build)}


@pytest.mark.parametrize(("room", "path"), SOURCES, ids=FILES)
def test_imports_are_declared(room: str, path: Path) -> None:
    extras = ["", *(["dev"] if room in MAY_IMPORT_ALL else []), *(["parity"] if room in PARITY else [])]
    allowed = {name for extra in extras for name in declared()[extra]}
    for name in imported(path) - sys.stdlib_module_names - ROOMS - SCRIPTS - BACKENDS - {"conftest"}:
        # What is not installed here goes by the name of its distribution.
        distributions = {canonicalize_name(one) for one in PROVIDERS.get(name, [name])}
        assert distributions & allowed, f"pyproject.toml does not declare {name} for {room or 'scripts'}"


# Rooms


def test_every_room_says_what_it_may_import() -> None:
    assert ROOMS - MAY_IMPORT_ALL <= set(MAY_IMPORT)


@pytest.mark.parametrize(("room", "path"), SOURCES, ids=FILES)
def test_rooms_import_one_way(room: str, path: Path) -> None:
    rooms = (imported(path) & ROOMS) - {room}
    if room in MAY_IMPORT:
        assert rooms <= MAY_IMPORT[room]
    elif not room:
        assert not rooms & MAY_IMPORT_ALL


def test_scripts_are_imported_by_no_room_and_no_script() -> None:
    importers = [path for room, path in SOURCES if room != "tests" and imported(path) & SCRIPTS]
    assert not importers


def test_backends_are_imported_only_where_their_graph_or_their_distribution_is_needed() -> None:
    importers = {room or path.name for room, path in SOURCES if imported(path) & BACKENDS and path != READS_WITH_TORCH}
    assert importers <= MAY_IMPORT_A_BACKEND
    assert imported(READS_WITH_TORCH) & BACKENDS == {"torch"}


def test_data_and_scores_need_no_network_library() -> None:
    """One process imports all of data (but the loader, which feeds Keras) and of evaluation."""
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for room, path in SOURCES
        if room in {"console", "data", "evaluation"} and path != ROOT / "data" / "loader.py"
    ]
    code = (
        f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\n"
        f"heavy = {BACKENDS | {'keras'}} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# The environment


class Ground:
    """A folder with the Makefile, the lock files and a stand-in for Python that notes how it is called."""

    def __init__(self, folder: Path, version: str = "3.12") -> None:
        self.folder = folder
        for path in (ROOT / "Makefile", *LOCKS.values()):
            shutil.copy(path, folder)
        self.log = folder / "log"
        self.log.touch()
        self.python = folder / "python"
        self.python.write_text(
            "#!/bin/sh\n"
            f'echo "$@" >> "{self.log}"\n'
            'case "$1 $2" in\n'
            f"'-c import sys'*) echo {version};;\n"
            "'-m venv') rm -rf $4; mkdir -p $4/bin; cp \"$0\" $4/bin/python;;\n"
            "'-m pip') test ! -e unreachable;;\n"
            "esac\n"
        )
        self.python.chmod(0o755)

    def make(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run make here, free of what an outer make and the user have set; the log starts anew."""
        self.log.write_text("")
        inherited = {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "TENSORFLOW", "PYTHON"}
        environment = {key: value for key, value in os.environ.items() if key not in inherited}
        return subprocess.run(
            ["make", f"PYTHON={self.python}", *arguments],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    @property
    def calls(self) -> str:
        """How the stand-in was called in the last run."""
        return self.log.read_text()

    @property
    def stamps(self) -> list[str]:
        """What the environment says that it holds."""
        return sorted(path.name for path in self.folder.glob(".venv/.ready-*"))


def test_make_alone_lists_the_targets(tmp_path: Path) -> None:
    ground = Ground(tmp_path)
    done = ground.make()
    assert done.returncode == 0
    assert {"demo", "test", "lint"} <= set(re.findall(r"make (\S+)", done.stdout))
    assert not ground.calls


@pytest.mark.parametrize("version", ["3.10", "3.14", "2.7"])
def test_another_python_gets_a_message(tmp_path: Path, version: str) -> None:
    ground = Ground(tmp_path, version)
    done = ground.make("lint")
    assert done.returncode == 2
    assert "3.11, 3.12 or 3.13" in done.stderr
    assert f"{ground.python}: Python {version}" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_a_python_that_does_not_run_gets_a_message(tmp_path: Path) -> None:
    ground = Ground(tmp_path)
    ground.python.write_text("#!/bin/sh\nexit 127\n")
    done = ground.make("lint")
    assert done.returncode == 2
    assert f"{ground.python}: found, but it does not run" in done.stderr


def test_unknown_tensorflow_build_is_answered_with_the_known(tmp_path: Path) -> None:
    done = Ground(tmp_path).make(".venv", "TENSORFLOW=tpu")
    assert done.returncode == 2
    assert "tpu" in done.stderr and "cpu" in done.stderr and "gpu" in done.stderr


def test_environment_is_made_once_and_again_when_the_lock_changes(tmp_path: Path) -> None:
    ground = Ground(tmp_path)
    assert ground.make("lint").returncode == 0
    assert "-m venv --clear .venv" in ground.calls
    assert "requirements-cpu.lock" in ground.calls

    assert ground.make("lint", "test").returncode == 0
    assert "-m venv" not in ground.calls and "-m pip" not in ground.calls

    os.utime(tmp_path / ".venv/.ready-cpu", (0, 0))
    assert ground.make(".venv").returncode == 0
    assert "-m venv --clear .venv" in ground.calls


def test_interrupted_installation_is_begun_again(tmp_path: Path) -> None:
    ground = Ground(tmp_path)
    (tmp_path / "unreachable").touch()
    assert ground.make("lint").returncode == 2
    assert not ground.stamps

    (tmp_path / "unreachable").unlink()
    assert ground.make("lint").returncode == 0
    assert "-m venv --clear .venv" in ground.calls
    assert ground.stamps == [".ready-cpu"]


@pytest.mark.skipif(sys.platform != "linux", reason="TensorFlow's GPU build runs on Linux alone")
def test_the_two_tensorflow_builds_never_share_an_environment(tmp_path: Path) -> None:
    ground = Ground(tmp_path)
    assert ground.make(".venv").returncode == 0
    assert ground.make(".venv", "TENSORFLOW=gpu").returncode == 0
    assert "-m venv --clear .venv" in ground.calls
    assert "requirements-gpu.lock" in ground.calls
    assert ground.stamps == [".ready-gpu"]

    assert ground.make("test").returncode == 0
    assert "-m venv" not in ground.calls, "the build that is there stays unless another is asked for"

    assert ground.make(".venv", "TENSORFLOW=cpu").returncode == 0
    assert ground.stamps == [".ready-cpu"]


def test_parity_has_an_environment_of_its_own(tmp_path: Path) -> None:
    ground = Ground(tmp_path)
    assert ground.make("parity", "PYTORCH_INDEX=here").returncode == 0
    assert "-m venv --clear .venv-parity" in ground.calls
    assert "-m venv --clear .venv\n" in ground.calls
    assert "--extra-index-url here torch torchvision" in ground.calls
    assert "--requirement requirements-parity.lock" in ground.calls
    assert ground.calls.endswith("-m benchmarks.parity\n-m benchmarks.oggm\n")

    assert ground.make("parity").returncode == 0
    assert ground.calls == "-m benchmarks.parity\n-m benchmarks.oggm\n"

    (tmp_path / ".venv-parity" / ".ready").unlink()
    assert ground.make("parity", "PYTORCH_INDEX=").returncode == 0
    assert "--extra-index-url" not in ground.calls, "pip's own configuration says where PyTorch is"


def test_speed_is_compared_with_pytorch_where_its_environment_is(tmp_path: Path) -> None:
    ground = Ground(tmp_path)
    done = ground.make("bench")
    assert done.returncode == 0
    assert "benchmarks.pytorch" not in ground.calls
    assert "make .venv-parity" in done.stdout

    assert ground.make(".venv-parity", "bench").returncode == 0
    assert "-m benchmarks.pytorch" in ground.calls


# Papers


def test_citation_names_the_papers() -> None:
    citation: dict[str, Any] = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "references"} <= set(citation)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert citation["version"] == version
    for reference in citation["references"]:
        assert {"type", "title", "authors", "year"} <= set(reference)
        assert reference.get("doi") or reference.get("url")
