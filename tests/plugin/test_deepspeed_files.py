"""What is taken of DeepSpeed's saves, what of it may be loaded, and what is refused; without it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from bt_lightning.errors import (
    CheckpointCorruptError,
    CheckpointMismatchError,
    InvalidSettingError,
    UnsafeLoadError,
)
from bt_lightning.lightning_plugin.deepspeed_checks import (
    deepspeed_reason,
    refuse_engine,
    refuse_other_size,
)
from bt_lightning.lightning_plugin.deepspeed_files import guarded_loads, take_files
from bt_lightning.localdir.digest import digest_file
from bt_lightning.manifest import Manifest
from bt_lightning.path_layout import rank_of_shard

if TYPE_CHECKING:
    from pathlib import Path

STATES = "checkpoint/mp_rank_00_model_states.pt"


class Odd:
    """A class that no file may name by itself."""


class Writer:
    """As DeepSpeed's checkpoint engines are called."""

    def makedirs(self, path: Any, *, exist_ok: bool = False) -> None:
        path.mkdir(parents=True, exist_ok=exist_ok)


class Engine:
    """Saves as DeepSpeed does: states by its checkpoint engine, small files by itself."""

    def __init__(self, state: Any) -> None:
        self.checkpoint_engine: Any = Writer()
        self.state = state

    def save_checkpoint(self, folder: str, tag: str, client_state: dict[str, Any]) -> None:
        from pathlib import Path

        place = Path(folder) / tag
        self.checkpoint_engine.makedirs(place, exist_ok=True)
        assert not self.checkpoint_engine.preserves_storage_sharing()
        self.checkpoint_engine.save({**self.state, **client_state}, str(Path(folder) / STATES))
        assert self.checkpoint_engine.commit(tag)
        (Path(folder) / "latest").write_text(tag)


def test_states_are_taken_with_their_live_tensors_and_not_written(tmp_path: Path) -> None:
    flat = torch.arange(1000.0)
    views = {"one": flat[:500], "other": flat[500:990]}
    engine = Engine({"module": views, "part": torch.zeros(4000)[:10], "n": torch.Size([2])})
    before = engine.checkpoint_engine
    files = take_files(engine, tmp_path, {"epoch": 3})
    assert engine.checkpoint_engine is before
    assert set(files) == {STATES, "latest"}
    assert files["latest"] == b"checkpoint"
    state: Any = files[STATES].state
    assert state["epoch"] == 3
    assert state["n"] == torch.Size([2])
    assert state["module"]["one"].data_ptr() == flat.data_ptr()
    assert state["part"].untyped_storage().nbytes() == 40, "not all that it is a view of"
    assert not (tmp_path / STATES).exists()


def saved(folder: Path, value: Any) -> dict[str, Any]:
    file = folder / STATES
    file.parent.mkdir(parents=True)
    torch.save(value, file)
    return {STATES: digest_file(file, STATES)}


def test_a_file_that_differs_from_the_manifest_is_not_unpickled(tmp_path: Path) -> None:
    files = saved(tmp_path, {"a": torch.ones(3)})
    load = torch.load
    with guarded_loads(tmp_path, files, (), trusted=False):
        assert torch.load(tmp_path / STATES, weights_only=False)["a"].sum() == 3
        (tmp_path / "more.pt").write_bytes(b"")
        with pytest.raises(CheckpointCorruptError, match=r"names no more\.pt"):
            torch.load(tmp_path / "more.pt", weights_only=False)
        with pytest.raises(CheckpointCorruptError, match="is none of its files"):
            torch.load(tmp_path.parent / "elsewhere.pt", weights_only=False)
        torch.save({"a": torch.zeros(3)}, tmp_path / STATES)
        with pytest.raises(CheckpointCorruptError, match="are not those that were saved"):
            torch.load(tmp_path / STATES, weights_only=False)
    assert torch.load is load


def test_only_a_caller_who_says_so_gets_classes_that_a_file_names(tmp_path: Path) -> None:
    files = saved(tmp_path, {"odd": Odd()})
    with (
        guarded_loads(tmp_path, files, (), trusted=False),
        pytest.raises(UnsafeLoadError, match="weights_only=False"),
    ):
        torch.load(tmp_path / STATES, weights_only=False)
    with guarded_loads(tmp_path, files, (Odd,), trusted=False):
        assert isinstance(torch.load(tmp_path / STATES)["odd"], Odd)
    with guarded_loads(tmp_path, None, (), trusted=True):
        assert isinstance(torch.load(tmp_path / STATES)["odd"], Odd)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ({}, None),
        ({"config": {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}}, None),
        ({"config": {"zero_optimization": {"offload_param": {"device": "nvme"}}}}, "NVMe"),
        ({"exclude_frozen_parameters": True}, "exclude_frozen_parameters"),
        ({"load_full_weights": True}, "load_full_weights"),
    ],
)
def test_what_cannot_be_saved_is_known_before_the_fit(words: Any, reason: str | None) -> None:
    found = deepspeed_reason(SimpleNamespace(**words))
    assert (found is None) == (reason is None)
    assert reason is None or reason in str(found)


def test_engines_that_save_in_another_way_are_refused() -> None:
    stock = type("TorchCheckpointEngine", (), {})()
    refuse_engine(SimpleNamespace(checkpoint_engine=stock, has_moe_layers=False))
    with pytest.raises(InvalidSettingError, match="mixture of experts"):
        refuse_engine(SimpleNamespace(checkpoint_engine=stock, has_moe_layers=True))
    with pytest.raises(InvalidSettingError, match="by Nebula"):
        refuse_engine(SimpleNamespace(checkpoint_engine=type("Nebula", (), {})()))
    pipeline = type("PipelineEngine", (), {"checkpoint_engine": stock})()
    with pytest.raises(InvalidSettingError, match="pipeline"):
        refuse_engine(pipeline)


def test_another_number_of_ranks_is_refused_with_the_ways_on() -> None:
    manifest = Manifest(
        step=1,
        epoch=0,
        created_at="2026-01-01T00:00:00+00:00",
        checkpoint_id="step=1",
        generation=1,
        files=(),
        origin={"format": "deepspeed", "deepspeed": {"stage": 2, "world_size": 4}},
    )
    assert manifest.has_parts
    assert not manifest.is_sharded
    refuse_other_size(manifest, 4)
    with pytest.raises(CheckpointMismatchError, match="of 4 ranks, and this run has 2"):
        refuse_other_size(manifest, 2)


def test_files_of_deepspeed_are_known_by_their_ranks() -> None:
    zero = "checkpoint/zero_pp_rank_12_mp_rank_00_"
    assert rank_of_shard(f"{zero}optim_states.pt") == 12
    assert rank_of_shard(f"{zero}model_states.pt") == 12
    assert rank_of_shard("checkpoint/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt") == 0
    assert rank_of_shard(STATES) is None
    assert rank_of_shard("ranks/00003.json") == 3
