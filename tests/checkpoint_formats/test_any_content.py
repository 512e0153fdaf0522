"""Whatever lies in a folder: an answer, no other error; and names say what people mean by them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bt_lightning.checkpoint_formats.folder_view import FolderView
from bt_lightning.checkpoint_formats.names_in_paths import (
    epoch_of_name,
    metrics_of_name,
    step_of_name,
)
from bt_lightning.checkpoint_formats.results import Incomplete, Whole
from bt_lightning.checkpoint_formats.single_files import recognize_file
from bt_lightning.checkpoint_formats.table import recognize

NAMES = st.sampled_from(
    (
        *("trainer_state.json", "training_args.bin", "optimizer.pt", "rng_state.pth", "latest"),
        *("model.safetensors", "model.safetensors.index.json", "config.json", "modules.json"),
        *("adapter_config.json", "adapter_model.safetensors", "model_index.json", "a.ckpt"),
        *(".metadata", "__0_0.distcp", "global_step2/mp_rank_00_model_states.pt", "meta.pt"),
        *("random_states_0.pkl", "optimizer.bin", "model-00001-of-00002.safetensors", "x/y.bin"),
    )
)
CONTENTS = st.binary(max_size=40) | st.sampled_from(
    (
        *(b"{}", b"[]", b"7", b'{"global_step": 3}', b'{"global_step": -1, "epoch": "x"}'),
        *(b'{"weight_map": {"a": "model.safetensors"}}', b'{"weight_map": {"a": 3}}'),
        *(b'{"architectures": []}', b'{"unet": ["diffusers", "U"]}', b'[{"path": "1_Pooling"}]'),
        *(b"\x02\0\0\0\0\0\0\0{}", b"\x80\x04}.", b"PK\x03\x04", b"global_step2\n", b"../..\n"),
        b"PK\x05\x06" + bytes(18),
    )
)


def view_of(name, contents):
    return FolderView(
        name=name,
        files={path: len(data) for path, data in contents.items()},
        read=lambda path, start, count: contents[path][start : start + count],
        times={path: index for index, path in enumerate(sorted(contents))},
    )


@given(st.sampled_from(["checkpoint-3", "out", "a.ckpt"]), st.dictionaries(NAMES, CONTENTS))
def test_any_folder_gets_an_answer(name, contents):
    view = view_of(name, contents)
    found = recognize(view)
    assert found is None or isinstance(found, Whole | Incomplete)
    if found is not None:
        assert set(found.files) <= contents.keys()
    for path in contents:
        one = recognize_file(view, path)
        assert one is None or one.files == (path,)


@pytest.mark.parametrize(
    ("name", "step", "epoch", "metrics"),
    [
        ("epoch=3-step=48-val_loss=0.25", 48, 3, {"val_loss": 0.25}),
        ("epoch=03-val_acc=-1.5e-3-v1", 0, 3, {"val_acc": -0.0015}),
        ("checkpoint-1200", 1200, 0, {}),
        ("global_step40", 40, 0, {}),
        ("step_000100", 100, 0, {}),
        ("000100", 100, 0, {}),
        ("model_epoch_7", 0, 7, {}),
        ("ckpt-5", 5, 0, {}),
        ("last-v2", 0, 0, {}),
        ("llama-7b", 0, 0, {}),
        ("footstep-3", 0, 0, {}),
    ],
)
def test_names(name, step, epoch, metrics):
    assert (step_of_name(name), epoch_of_name(name), metrics_of_name(name)) == (
        *(step, epoch),
        metrics,
    )
