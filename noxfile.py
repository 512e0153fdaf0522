"""Every check of this project. `nox -s demo` shows it, `nox -s tests` proves it, `nox` does all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "virtualenv"  # pip finds the CPU build of torch
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["lint", "types", "tests", "oldest", "smoke", "truss"]

PROJECT = nox.project.load_toml("pyproject.toml")
CONSTRAINTS = "constraints.txt"
OLDEST = "lightning==2.4.0"
CEPH = ("ceph-common", "ceph-mon", "ceph-mgr", "ceph-osd", "radosgw")
AZURITE = "azurite@3"
OF_LIGHTNING = ("tests/plugin", "tests/plain_loop/test_fabric.py")
RADOSGW = {"BT_TEST_S3": "radosgw"}
THIRD_PARTIES = {
    "chemprop": "chemprop==2.3.1",
    "darts": "darts==0.48.1",
    "neuralforecast": "neuralforecast==3.3.0",
    "pytorch_forecasting": "pytorch-forecasting==1.8.0",
    "scvi": "scvi-tools==1.4.2",
}
"""Module -> package: they want different versions of pandas and numpy."""
PINNED_BESIDE_THEM = ("torch==", "torchmetrics==", "lightning==", "pytorch-lightning==")
QUICK = ("tests/pure", "tests/state", "tests/snapshot", "tests/tensor_files", "tests/cli")
QUICK_MARKS = "not slow and not thorough"
TORCH_FREE = ("click", "fsspec", "pyyaml", "rich", "typing-extensions", "xxhash")
"""What the command line needs to say what it can do."""
USE_SOME = (
    "import bt_lightning as bt, pathlib, sys; bt.load_config; assert 'torch' not in sys.modules;"
    "assert pathlib.Path(bt.__file__).with_name('py.typed').exists()"
)
USE_ALL = "import bt_lightning as bt; [getattr(bt, name) for name in bt.__all__]"
WORKERS = os.environ.get("BT_TEST_WORKERS", "3")
SAMPLED = "--sample-matrix=8"
PARALLEL = ("-n", WORKERS, "--dist", "worksteal")  # a module mostly has one worker: one start of it


def _install(session: nox.Session, *groups: str, extras: str = "") -> None:
    """Install torch first, pinned: a later resolver would swap in the CUDA build."""
    session.install("-q", "-c", CONSTRAINTS, "torch")
    needs = nox.project.dependency_groups(PROJECT, *groups) if groups else ()
    session.install("-q", "-c", CONSTRAINTS, f".{extras}", *needs)


def _seed(session: nox.Session) -> str:
    """What the samples of a session are drawn by: another sample for each commit."""
    if not shutil.which("git"):
        return "--sample-seed=none"
    command = ("git", "rev-parse", "--short", "HEAD")
    said = session.run(*command, external=True, silent=True, log=False, success_codes=range(256))
    return f"--sample-seed={str(said).split()[-1]}"  # of no repository: the last word of the error


def _azurite(session: nox.Session) -> dict[str, str]:
    """Install the emulator of Azure where there is npm; elsewhere its tests are skipped."""
    place = Path(session.virtualenv.location, "azurite")
    program = place / "node_modules" / ".bin" / "azurite-blob"
    if not program.exists() and shutil.which("npm"):
        quietly = ("--silent", "--no-audit", "--no-fund", "--fetch-retries=1")
        words = ("install", *quietly, "--prefix", str(place), AZURITE)
        session.run("npm", *words, external=True, silent=True, success_codes=range(256))
    if program.exists():
        return {"BT_TEST_AZURITE": str(program)}
    session.warn("no npm, or it cannot install azurite: the tests of Azure are skipped")
    return {}


@nox.session
def demo(session: nox.Session) -> None:
    """Train, kill -9 in the middle, start again, and compare with an uninterrupted run."""
    _install(session, extras="[demo]")
    session.run("python", "examples/quickstart.py", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests, in parallel, against the newest supported Lightning.

    Of the tests that are marked `matrix` an eighth runs, by a seed; all of them: `nox -s matrix`.
    """
    _install(session, "test", "clouds")
    words = (*PARALLEL, "-m", "not slow", SAMPLED, _seed(session))
    session.run("pytest", *words, *session.posargs, env=_azurite(session))


@nox.session
def quick(session: nox.Session) -> None:
    """Run what needs neither a cloud nor a browser, while you write: 80 s on two cores."""
    _install(session, "test")
    session.run("pytest", *PARALLEL, "-m", QUICK_MARKS, *QUICK, *session.posargs)


@nox.session
def oldest(session: nox.Session) -> None:
    """Run the tests of the plugin against the oldest supported Lightning."""
    session.install("-q", "-c", CONSTRAINTS, "torch")
    session.install("-q", OLDEST, "setuptools<81")
    session.install("-q", ".", *nox.project.dependency_groups(PROJECT, "test"))
    session.install("-q", OLDEST)
    words = (*PARALLEL, "-m", "not slow", _seed(session))
    session.run("pytest", *words, *OF_LIGHTNING, *session.posargs)


@nox.session
def matrix(session: nox.Session) -> None:
    """Run the long tests: each matrix whole, 200 kills at seeded random moments."""
    _install(session, "test")
    others = ("--ignore=tests/exact", "--ignore=tests/ecosystem")
    session.run("pytest", *PARALLEL, "-m", "slow or matrix", *others, *session.posargs)


@nox.session
def exact(session: nox.Session) -> None:
    """Compare killed runs with whole ones, at each boundary; four minutes on two cores."""
    _install(session, "test")
    session.run("pytest", *PARALLEL, "-m", "slow", "tests/exact", *session.posargs)


@nox.session
def ecosystem(session: nox.Session) -> None:
    """Run under torchrun, accelerate, srun and Ray Train, and with TensorBoard; five minutes."""
    _install(session, "test", "ecosystem")
    session.run("pytest", "tests/ecosystem", *session.posargs)
    session.run("pytest", "tests/plugin/test_logger_runs.py", *session.posargs)


@nox.session
def deepspeed(session: nox.Session) -> None:
    """Train with DeepSpeed's engine on the CPU, kill it, resume; its operators are not built."""
    _install(session, "test")
    session.install("-q", "-c", CONSTRAINTS, "setuptools", "wheel")
    words = ("-q", "-c", CONSTRAINTS, "--no-build-isolation", "deepspeed>=0.16")
    session.install(*words, env={"DS_BUILD_OPS": "0"})
    session.run("python", "-c", "import deepspeed", env={"DS_ACCELERATOR": "cpu"})
    session.run("pytest", "tests/plugin/test_deepspeed.py", *session.posargs)


@nox.session
def radosgw(session: nox.Session) -> None:
    """Run the tests of the store against Ceph's gateway; as root, it installs Debian's packages."""
    _install(session, "test")
    session.run("apt-get", "update", "-q", external=True, silent=True)
    words = ("install", "-qy", "--no-install-recommends", *CEPH)
    session.run("apt-get", *words, external=True, silent=True)
    session.run("pytest", *PARALLEL, "-m", "not slow", "tests/store", *session.posargs, env=RADOSGW)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site into `docs/_build/html`; a warning or a broken link is a failure."""
    _install(session, "docs", extras="[hf]")
    words = ("-W", "--keep-going", "-q", *session.posargs, "docs")
    session.run("sphinx-build", "-b", "html", *words, "docs/_build/html")
    session.run("sphinx-build", "-b", "linkcheck", *words, "docs/_build/linkcheck")


@nox.session
def package(session: nox.Session) -> None:
    """Build sdist and wheel, check both, install each alone, and use it; `-- whole`: with torch."""
    session.install("-q", "-c", CONSTRAINTS, *nox.project.dependency_groups(PROJECT, "package"))
    place = Path(session.create_tmp()).absolute()
    dist = place / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", str(dist), silent=True)
    built = next(dist.glob("*.tar.gz")), next(dist.glob("*.whl"))  # the one is made of the other
    session.run("twine", "check", "--strict", *map(str, built))
    whole = "whole" in session.posargs
    for one in built:
        bare = place / one.suffix.strip(".")
        session.run("python", "-m", "venv", "--clear", "--without-pip", str(bare))
        python = str(bare / "bin" / "python")
        pip = ("python", "-m", "pip", "--python", python, "install", "-q", "-c", CONSTRAINTS)
        if whole:
            session.run(*pip, "torch")  # pinned: a later resolver would take the build for CUDA
            session.run(*pip, str(one))
        else:
            session.run(*pip, *TORCH_FREE)
            session.run(*pip, "--no-deps", str(one))
        with session.chdir(bare):  # or the checkout would be imported
            session.run(str(bare / "bin" / "bt-lightning"), "--version", external=True)
            session.run(str(bare / "bin" / "bt-lightning"), "--help", silent=True, external=True)
            session.run(python, "-c", USE_ALL if whole else USE_SOME, external=True)


@nox.session
def lint(session: nox.Session) -> None:
    """Check rules, format, spelling, metadata and layers."""
    session.install("-q", "-c", CONSTRAINTS, *nox.project.dependency_groups(PROJECT, "lint"))
    session.install("-q", "--no-deps", "-e", ".")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("codespell")
    session.run("validate-pyproject", "pyproject.toml")
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """Type-check the package strictly, and the public names as a user would use them."""
    _install(session, "types")
    session.run("mypy")
    session.run("mypy", "--strict", "tests/typing")


@nox.session(python=["3.10", "3.11", "3.12", "3.13"])
def smoke(session: nox.Session) -> None:
    """Run what needs no torch from the built wheel, on every supported Python."""
    session.install("-q", "--no-deps", ".")
    session.install("-q", "-c", CONSTRAINTS, *TORCH_FREE, "hypothesis", "pytest", "pytest-timeout")
    session.run("bt-lightning", "--help")
    session.run("pytest", "tests/pure", "-m", QUICK_MARKS, *session.posargs)


@nox.session
def truss(session: nox.Session) -> None:
    """Compare our definitions with those of truss, which wants an older rich than textual."""
    session.install("-q", "--no-deps", ".")
    session.install("-q", *nox.project.dependency_groups(PROJECT, "truss"))
    session.run("python", "-c", "import truss_train")  # or the tests would be skipped
    session.run("pytest", "tests/truss", "tests/pure/test_config_file.py", *session.posargs)


@nox.session
@nox.parametrize("module", list(THIRD_PARTIES), ids=list(THIRD_PARTIES))
def thirdparty(session: nox.Session, module: str) -> None:
    """Kill scripts of packages that train with Lightning; each package has its own environment."""
    pins = Path(session.create_tmp(), "pins.txt")
    lines = Path(CONSTRAINTS).read_text().splitlines(keepends=True)
    pins.write_text("".join(line for line in lines if line.startswith(PINNED_BESIDE_THEM)))
    session.install("-q", "-c", str(pins), "torch")
    session.install("-q", "-c", str(pins), ".", THIRD_PARTIES[module])
    session.install("-q", "hypothesis>=6.100", "pytest>=8.2", "pytest-timeout>=2.3")
    session.run("python", "-c", f"import {module}")  # or the tests would be skipped
    session.run("pytest", "tests/thirdparty", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure saves and transfers, next to the rivals; above an hour. Rows go to benchmarks/."""
    _install(session, "bench", extras="[demo]")
    session.run("python", "benchmarks/save.py")
    session.run("python", "benchmarks/memmove.py")
    session.run("python", "benchmarks/stall.py", *session.posargs)
    session.run("python", "benchmarks/outage.py")
    session.run("python", "benchmarks/soak.py")
    session.run("python", "benchmarks/transfer.py")
    session.run("python", "benchmarks/durability.py")
    session.run("python", "benchmarks/loads.py")
    session.run("python", "benchmarks/local_loads.py")
    session.run("python", "benchmarks/resume.py")
    session.run("python", "benchmarks/decision.py")
    session.run("python", "benchmarks/cuda_sharded.py")
    session.run("python", "benchmarks/chart.py")
    session.run("python", "benchmarks/transfer_chart.py")
