"""Files and names of tensors, of groups and of single ones."""

from __future__ import annotations

import torch

from bt_lightning.path_layout import STATE, WEIGHTS
from bt_lightning.snapshot.encoding_cache import Fragment
from bt_lightning.snapshot.shared_tensors import TensorNames, WeightNames


def identity(tensor):
    return (tensor.device, tensor.data_ptr())


def group(name, tensor):
    ref = {"file": "state", "name": name}
    files = {WEIGHTS: {}, STATE: {name: tensor}}
    return Fragment(
        lambda _: True, "", files, {identity(tensor): ref}, frozenset({tensor.data_ptr()})
    )


def test_a_name_or_a_tensor_of_a_group_is_nobody_elses():
    mine, other = torch.ones(2), torch.ones(2)
    names = TensorNames(WeightNames())
    names.add(("a",), group("a.b", mine))
    assert not names.fits(group("a.b", other))
    assert not names.fits(group("c", mine))
    assert names.fits(group("c", other))
    assert names.find(identity(mine)) == {"file": "state", "name": "a.b"}
    assert names.find(identity(other)) is None
    assert names.store(other, ("a", "b")) == {"file": "state", "name": "a.b'"}


def test_what_was_named_since_a_mark_is_forgotten():
    kept, single, grouped = torch.ones(2), torch.ones(2), torch.ones(2)
    names = TensorNames(WeightNames())
    names.remember(identity(kept), names.store(kept, ("kept",)))
    mark = names.savepoint()
    names.remember(identity(single), names.store(single, ("gone",)))
    names.add(("group",), group("group.gone", grouped))
    names.roll_back(mark)
    assert list(names.single[STATE]) == ["kept"]
    assert not names.fragments
    assert names.find(identity(kept)) == {"file": "state", "name": "kept"}
    assert names.find(identity(single)) is None
    assert names.find(identity(grouped)) is None
