"""Whatever Lightning ships, killed at whatever boundary: as if it had never been killed."""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING, Any

import pytest

from tests.exact.matrix_table import OLD, TOLD, Combination, sample, whole

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

SAMPLED = 10
"""About 20 s."""

pytestmark = [
    pytest.mark.matrix,
    pytest.mark.filterwarnings("ignore:When using the `ThroughputMonitor`"),
    pytest.mark.filterwarnings("ignore:.*ckpt_path=None.* was called without a model"),
    pytest.mark.filterwarnings("ignore:A `OneCycleLR` scheduler is using 'interval'. 'epoch'"),
    pytest.mark.filterwarnings("ignore:ReduceLROnPlateau conditioned on metric val which is not"),
    pytest.mark.filterwarnings("ignore:You requested to overfit but enabled train dataloader"),
    pytest.mark.filterwarnings("ignore:.*AMP with fp16 is not supported on CPU"),
    pytest.mark.filterwarnings("ignore:.*could not find the monitored key"),
    pytest.mark.filterwarnings("ignore:SWA is currently only supported every epoch"),
    pytest.mark.filterwarnings("ignore:.*there is no last checkpoint available"),
]


@pytest.fixture(scope="session")
def uninterrupted(matrix: ModuleType, names: Any, tmp_path_factory: Any) -> Any:
    """What the training of a combination leaves that nobody kills, made once for all boundaries."""

    @cache
    def run(saver: str, callback: str, scheduler: str, option: str) -> Any:
        root = tmp_path_factory.mktemp("whole")
        found = Combination("never", saver, callback, scheduler, option)
        return matrix.once(found, root, 1, None), names(root)

    return run


@pytest.fixture
def check(
    matrix: ModuleType,
    uninterrupted: Any,
    names: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> Any:
    """Compares a combination that is killed twice with the one that nobody kills."""
    return partial(_check, matrix, uninterrupted, names, tmp_path, caplog)


def _check(
    matrix: ModuleType,
    uninterrupted: Any,
    names: Any,
    root: Path,
    caplog: pytest.LogCaptureFixture,
    found: Combination,
) -> None:
    if OLD and found.boundary not in ("epoch_end", "next_epoch"):
        pytest.skip("Lightning before 2.6 resumes otherwise inside an epoch")
    if not matrix.is_shipped(found.callback):
        pytest.skip("this Lightning has no such callback")
    wanted, saved = uninterrupted(found.saver, found.callback, found.scheduler, found.option)
    last, parts = matrix.killed_twice(found, root)
    told = [TOLD[part] for part in (found.callback, found.option) if part in TOLD]
    if any(f"not exact: {line}" in caplog.text for line in told):
        return
    nothing_left = last.began < 0  # a new iterator draws from the generator all the same
    left_out = {"generator"} if nothing_left else set()
    assert {k: v for k, v in last.outcome.items() if k not in left_out} == {
        k: v for k, v in wanted.outcome.items() if k not in left_out
    }
    for part in parts:
        for line, values in part.lines.items():
            assert values == wanted.lines[line], line
    if found.saver == "interval":  # when an interim save is due is a matter of time
        asked_for = {name for name in saved if name.startswith("checkpoint-")}
        assert names(root) >= asked_for
    else:
        assert names(root) == saved


@pytest.mark.parametrize("found", sample(SAMPLED), ids=str)
def test_a_sampled_combination_is_exact(found: Combination, check: Any) -> None:
    check(found)


@pytest.mark.slow
@pytest.mark.parametrize("found", whole(), ids=str)
def test_each_combination_is_exact(found: Combination, check: Any) -> None:
    check(found)
