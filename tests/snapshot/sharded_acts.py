"""What ranks do in tests of sharded states; imported by the processes of `sharded_ranks.run`."""

from __future__ import annotations

import threading

import sharded_ranks
import torch

ROUNDS = 3


def all_ways(rank, root):
    """`saves_and_steps` with and without what keeps a snapshot of one step."""
    return {
        "plain": saves_and_steps(root / f"{rank}-plain"),
        "fused": saves_and_steps(root / f"{rank}-fused", fused=True),
        "unguarded": saves_and_steps(root / f"{rank}-unguarded", guarded=False),
        "neither": saves_and_steps(root / f"{rank}-neither", guarded=False, detected=False),
    }


def saves_and_steps(root, *, fused=False, guarded=True, detected=True):
    """Save, then train three steps; the copy begins only when a step waits for it, or after them.

    Returns for each round whether the committed bytes are those at the save, and the errors.
    """
    from bt_lightning.snapshot import copy_and_torn_check

    net, optimizer = sharded_ranks.build("fsdp2", 64)
    if fused:
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, fused=True)
        sharded_ranks.step(net, optimizer)
    saving = sharded_ranks.RankSaving(root, [optimizer])
    gate = threading.Event()
    finish, settle = copy_and_torn_check.Capture.finish, saving.saver._guard._finish_copy

    def gated(self):
        assert gate.wait(60)
        finish(self)
        if not detected:
            self.torn = False

    def held():
        gate.set()
        settle()

    copy_and_torn_check.Capture.finish = gated
    saving.saver._guard._finish_copy = held
    if not guarded:
        saving.saver._guard.close()
    equal, errors = [], []
    for number in range(1, ROUNDS + 1):
        state = sharded_ranks.full_state(net, [optimizer], number)
        wanted = sharded_ranks.local_bytes(state)
        gate.clear()
        record = saving.save(state, f"checkpoint-{number}")
        assert record.snapshot == "lazy"
        for seed in range(3):
            sharded_ranks.step(net, optimizer, 3 * number + seed)
        gate.set()
        for what in saving.outcomes():
            if isinstance(what, bytes):
                found = saving.tensors(f"checkpoint-{number}")
                assert len(found) > 10
                equal.append(all(wanted[name] == data for name, data in found.items()))
            else:
                errors.append(type(what).__name__)
    saving.close()
    copy_and_torn_check.Capture.finish = finish
    return equal, errors


class Lora(torch.nn.Module):
    """A frozen base with a trained adapter."""

    def __init__(self, base):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = torch.nn.Linear(base.in_features, 2, bias=False)
        self.b = torch.nn.Linear(2, base.out_features, bias=False)

    def forward(self, hidden):
        return self.base(hidden) + self.b(self.a(hidden))


class Wrapped(torch.nn.Module):
    """What names have to survive: see `test_local_shards`."""

    def __init__(self):
        super().__init__()
        from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

        self.embed = torch.nn.Embedding(11, 6)
        self.checked = checkpoint_wrapper(torch.nn.Linear(6, 6))
        self.lora = Lora(torch.nn.Linear(6, 6))
        self.norm = torch.nn.BatchNorm1d(6)
        self.out = torch.nn.Linear(6, 11, bias=False)
        self.out.weight = self.embed.weight
        self.scale = torch.nn.Parameter(torch.zeros(1))
        self.register_buffer("mask", torch.ones(2), persistent=False)

    def forward(self, tokens):
        return self.out(self.norm(self.lora(self.checked(self.embed(tokens))))) * (1 + self.scale)


def names_and_layouts(rank):
    """What `test_local_shards` compares."""
    from torch.distributed.checkpoint.state_dict import (
        get_model_state_dict,
        get_optimizer_state_dict,
    )

    from bt_lightning.snapshot.local_shards import is_dtensor, live_state

    found = {}
    fully_shard = sharded_ranks.fsdp2()
    torch.manual_seed(1)
    net = Wrapped()
    compiled = Wrapped()
    compiled.lora = torch.compile(compiled.lora)
    for each in (net, compiled):
        fully_shard(each.lora)
        fully_shard(each)
    optimizer = torch.optim.AdamW(
        [each for each in net.parameters() if each.requires_grad], lr=1e-2, foreach=False
    )
    state = live_state(net, [optimizer])
    found["before"] = len(state["optimizer_states"][0]["state"]), len(optimizer.state)
    net(torch.arange(4)).sum().backward()
    optimizer.step()
    state = live_state(net, [optimizer])
    found["weights"] = [sorted(state["state_dict"]), sorted(live_state(compiled, [])["state_dict"])]
    found["weights of torch"] = [sorted(get_model_state_dict(each)) for each in (net, compiled)]
    own = state["optimizer_states"][0]
    of_torch = get_optimizer_state_dict(net, optimizer)
    found["state"] = _names(own), own["param_groups"][0]["params"]
    found["state of torch"] = _names(of_torch), of_torch["param_groups"][0]["params"]
    net.eval()
    with torch.no_grad():
        net(torch.arange(4))
    found["unsharded"] = not all(map(is_dtensor, net.parameters()))
    weights = live_state(net, [optimizer])["state_dict"]
    found["resharded"] = all(is_dtensor(dict(net.named_parameters())[n]) for n in ("scale",))
    assert is_dtensor(weights["scale"])
    found["layouts"] = _compared_layouts(rank)
    found["partial"] = _refusal_of_partial()
    found["under way"] = _part_under_way()
    found["hidden"] = [_refusal(net, {"callbacks": {"average": Hides(net.scale)}})]
    found["hidden"].append(_refusal(net, {"callbacks": {"average": net.scale}}))
    return found


def _part_under_way():
    """Whether a part whose collective has not ended is waited for."""
    from torch.distributed.device_mesh import init_device_mesh

    from bt_lightning.snapshot.local_shards import stored_part

    tensor = dist_tensor()
    whole = torch.arange(6.0)
    cut = tensor.distribute_tensor(whole, init_device_mesh("cpu", (2,)), [tensor.Shard(0)])
    under_way = cut.redistribute(placements=[tensor.Replicate()], async_op=True)
    part = stored_part(under_way, "average")
    return type(part) is torch.Tensor and torch.equal(part, whole)


class Hides:
    """A value that only pickle can store."""

    def __init__(self, held):
        self.held = held


def _refusal(net, more):
    """Why a state with this cannot be saved; the name of the shard if it can."""
    from bt_lightning.errors import UnsupportedStateError
    from bt_lightning.session.ranks import Ranks

    exchange = sharded_ranks.exchange_of(Ranks.of_process_group(), 20.0)
    try:
        writer = sharded_ranks.writer_of(exchange)
        writer.take({**sharded_ranks.full_state(net, []), **more})
        return sorted(name for name in writer._planned.plan.structure.tensors if "average" in name)
    except UnsupportedStateError as error:
        return str(error)
    finally:
        exchange.close()


def _names(state):
    return sorted(f"{name}.{key}" for name, entry in state["state"].items() for key in entry)


def _compared_layouts(rank):
    """How many parts have the box that our layouts give them, of odd shapes on two meshes."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    from bt_lightning.snapshot.local_shards import layout_of

    tensor = dist_tensor()
    count = 0
    for mesh_shape in ((2,), (1, 2), (2, 1)):
        mesh = init_device_mesh("cpu", mesh_shape)
        for shape in ((5,), (1,), (4, 3), (3, 5, 2), (0, 3), (7, 1)):
            for dim in range(-1, len(shape)):
                whole = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
                places = [tensor.Replicate()] * (len(mesh_shape) - 1)
                where = [*places, tensor.Shard(dim)]
                held = tensor.distribute_tensor(whole, mesh, where)
                layout = layout_of(held)
                assert layout.ranks == tuple(range(dist.get_world_size()))
                box = layout.box(shape, rank)
                cut = whole
                for at, (begin, size) in enumerate(zip(box.offsets, box.sizes, strict=True)):
                    cut = cut.narrow(at, begin, size)
                assert torch.equal(cut, held.to_local()), (mesh_shape, shape, where)
                count += 1
    assert layout_of(torch.ones(2)) is None
    return count


def dist_tensor():
    try:
        from torch.distributed import tensor

        _ = tensor.distribute_tensor
    except (ImportError, AttributeError):  # before torch 2.5
        import torch.distributed._tensor as tensor
    return tensor


def _refusal_of_partial():
    from torch.distributed.device_mesh import init_device_mesh

    from bt_lightning.errors import UnsupportedStateError
    from bt_lightning.snapshot.local_shards import layout_of

    tensor = dist_tensor()
    partial = tensor.DTensor.from_local(
        torch.ones(2), init_device_mesh("cpu", (2,)), [tensor.Partial()]
    )
    try:
        layout_of(partial, "weight")
    except UnsupportedStateError as error:
        return str(error)
    return ""


def save_kinds(rank, kinds, root):
    """A save of each kind of model: what `test_shard_files` compares."""
    return {kind: _save_kind(rank, kind, root / kind) for kind in kinds}


def _save_kind(rank, kind, root):
    import math

    import torch.distributed as dist

    from bt_lightning.snapshot.local_shards import live_state
    from bt_lightning.tensor_files.tensor_headers import BITS

    net, optimizer = sharded_ranks.build(kind, 64)
    saving = sharded_ranks.RankSaving(root / f"rank-{rank}", [optimizer])
    counts = sharded_ranks.Collectives()
    encoded_here = _groups_encoded_on_this_thread()
    # generators differ over ranks, as they do in training
    own = {"rng": torch.get_rng_state(), "rank": rank}
    with counts.counted():
        saving.writer.begin(live_state(net, [optimizer]))
        encoded_here.clear()
        saving.save(sharded_ranks.full_state(net, [optimizer], 1, own), "first")
        saving.save(sharded_ranks.full_state(net, [optimizer], 2, own), "second")
        outcomes = saving.outcomes()
    assert all(isinstance(what, bytes) for what in outcomes), outcomes
    encoded = list(encoded_here)
    state = sharded_ranks.full_state(net, [optimizer], 2, own)
    wanted = sharded_ranks.local_bytes(state)
    snapshot = saving.writer.take(state)
    whole = root / "whole"
    for path, pieces in snapshot.files.items():
        (whole / path).parent.mkdir(parents=True, exist_ok=True)
        (whole / path).write_bytes(b"".join(pieces()))
    again = sharded_ranks.writer_of(saving.exchange).take(state)
    same = all(
        b"".join(pieces()) == (whole / path).read_bytes() for path, pieces in again.files.items()
    )
    committed = root / f"rank-{rank}" / "second"
    same = same and all(
        (committed / path).read_bytes() == (whole / path).read_bytes() for path in snapshot.files
    )
    plan = saving.writer._planned.plan
    unique = sum(
        math.prod(each.shape) * BITS[each.dtype] // 8 for each in plan.structure.tensors.values()
    )
    dist.barrier()
    found = {
        "collectives": counts.found,
        "encoded in saves": encoded,
        "files": sorted(snapshot.files),
        "fingerprint": snapshot.fingerprint,
        "same": same,
        "sizes": plan.sizes,
        "planned": saving.writer.planned_bytes,
        "unique": unique,
        "written": (whole / snapshot_path(snapshot)).stat().st_size,
        "stock": _read_by_stock(net, optimizer, whole, wanted),
        "origin": dict(saving.writer.facts(state, snapshot).origin.get("shards", {})),
    }
    saving.close()
    return found


def _groups_encoded_on_this_thread():
    """A list that gets the path of each group that this thread encodes from now on."""
    from bt_lightning.snapshot.shard_encoding import ShardEncoder

    found, here, encode = [], threading.get_ident(), ShardEncoder._fragment

    def noted(self, value, path):
        if threading.get_ident() == here:
            found.append(path)
        return encode(self, value, path)

    ShardEncoder._fragment = noted
    return found


def snapshot_path(snapshot):
    (path,) = [path for path in snapshot.files if path.startswith("shard-")]
    return path


def _read_by_stock(net, optimizer, folder, wanted):
    """Names that torch's own reader fills with other bytes; None for a torch without it."""
    import torch.distributed.checkpoint as dcp

    try:
        from torch.distributed.checkpoint import HuggingFaceStorageReader
    except ImportError:
        return None
    from bt_lightning.snapshot.local_shards import live_state

    state = live_state(net, [optimizer])
    weights = {name: each for name, each in state["state_dict"].items() if name != "head.weight"}
    asked = {"state_dict": {name: torch.zeros_like(each) for name, each in weights.items()}}
    entries = state["optimizer_states"][0]["state"]
    asked["optimizer_0"] = {
        "state": {
            name: {key: torch.zeros_like(each) for key, each in entry.items()}
            for name, entry in entries.items()
        }
    }
    dcp.load(asked, storage_reader=HuggingFaceStorageReader(str(folder)))
    found = sharded_ranks.local_bytes(
        {"state_dict": asked["state_dict"], "optimizer_states": [asked["optimizer_0"]]}
    )
    assert len(found) > 20
    return [name for name, data in found.items() if data != wanted[name]]


def fsdp1_saves(rank, root):
    """A save of FSDP1 with and without a mesh: what `test_fsdp1_shards` compares."""
    return {mesh: _fsdp1_save(rank, root / str(mesh), mesh=mesh) for mesh in (False, True)}


def _fsdp1_save(rank, root, *, mesh):
    from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType

    from bt_lightning.snapshot.local_shards import live_state

    net, optimizer = _fsdp1(mesh)
    before = live_state(net, [optimizer])["optimizer_states"][0]
    sharded_ranks.step(net, optimizer)
    saving = sharded_ranks.RankSaving(root / str(rank), [optimizer])
    saving.writer.begin(live_state(net, [optimizer]))
    for number in range(1, 6):
        state = sharded_ranks.full_state(net, [optimizer], number)
        saving.save(state, f"checkpoint-{number}")
        sharded_ranks.step(net, optimizer, number)
    outcomes = saving.outcomes()
    assert all(isinstance(what, bytes) for what in outcomes), outcomes
    found = saving.tensors("checkpoint-5")
    torch.manual_seed(3)
    alone = sharded_ranks.Net(64)
    trained = torch.optim.AdamW(alone.parameters(), lr=1e-2, foreach=False)
    for seed in (0, 1, 2, 3, 4):
        sharded_ranks.step(alone, trained, seed)
    with FullyShardedDataParallel.state_dict_type(net, StateDictType.SHARDED_STATE_DICT):
        names = sorted(net.state_dict())
    boxes = saving.writer._planned.boxes
    wanted = {f"state_dict.{name}": each for name, each in alone.state_dict().items()}
    close = []
    for name, box in boxes.items():
        if name in wanted:
            cut = wanted[name]
            for at, (begin, size) in enumerate(zip(box.offsets, box.sizes, strict=True)):
                cut = cut.narrow(at, begin, size)
            part = torch.frombuffer(bytearray(found[name]), dtype=cut.dtype).reshape(cut.shape)
            close.append((name, bool(torch.allclose(part, cut, atol=1e-5))))
    saving.close()
    return {
        "before": before["state"],
        "names": sorted(state["state_dict"]) == names,
        "groups": state["optimizer_states"][0]["param_groups"][0]["params"][:2],
        "close": close,
        "tensors": len(boxes),
        "kinds": sorted({type(each).__name__ for each in state["state_dict"].values()}),
        "kept": len(saving.saver._cache.fragments),
    }


def exchange_rounds(rank):
    """Another structure, an unfrozen one, and states that do not fit."""
    from bt_lightning.session.ranks import Ranks
    from bt_lightning.snapshot.local_shards import live_state

    net, optimizer = sharded_ranks.build("fsdp2")
    ranks = Ranks.of_process_group()
    exchange = sharded_ranks.exchange_of(ranks, 10.0)
    writer = sharded_ranks.writer_of(exchange)
    found = {}
    prints = [writer.take(sharded_ranks.full_state(net, [optimizer])).fingerprint for _ in "ab"]
    found["agreements"] = exchange._agreements
    later = torch.optim.SGD([net.scale], lr=1.0, momentum=0.5)  # as a callback that unfreezes
    net.scale.grad = torch.ones_like(net.scale)
    later.step()
    writer.begin(live_state(net, [optimizer, later]))
    prints.append(writer.take(sharded_ranks.full_state(net, [optimizer, later])).fingerprint)
    found["after another optimizer"] = exchange._agreements
    prints.append(writer.take(sharded_ranks.full_state(net, [optimizer])).fingerprint)
    found["back again"] = exchange._agreements
    found["prints"] = prints

    found |= _odd_rounds(rank, net, optimizer, exchange)
    impatient = sharded_ranks.exchange_of(ranks, 0.5)
    odd = {**sharded_ranks.full_state(net, [optimizer]), "state_dict": {"odd": torch.ones(7)}}
    odd["optimizer_states"] = []
    found["absent"] = refused(odd, impatient) if rank == 0 else ""
    impatient.close()
    exchange.close()
    return found


def refused(state, exchange):
    """Why a state cannot be saved; empty if it can."""
    from bt_lightning.errors import CheckpointError

    try:
        sharded_ranks.writer_of(exchange).take(state)
    except CheckpointError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _odd_rounds(rank, net, optimizer, exchange):
    """Saves that ranks cannot make, or not all alike."""
    found = {}

    def state_with(odd=None):
        state = sharded_ranks.full_state(net, [optimizer])
        state["state_dict"] |= {} if odd is None else {"odd": odd}
        return state

    partial = partial_tensor(net.scale.device_mesh)
    found["other shapes"] = refused(state_with(torch.ones(2 + rank)), exchange)
    state = state_with(partial if rank == 1 else None)
    found["cannot what is known"] = refused(state, exchange)
    found["after that"] = refused(state_with(torch.ones(5)), exchange)
    for unable in (0, 1):
        state = state_with(partial if rank == unable else torch.ones(2))
        found[f"rank {unable} cannot"] = refused(state, exchange)
    for alone in (0, 1):
        state = state_with(torch.ones(2) if rank == alone else None)
        found[f"rank {alone} alone"] = refused(state, exchange)
        found[f"after {alone} alone"] = refused(state_with(torch.ones(3 + alone)), exchange)
    state = state_with()
    entry = state["optimizer_states"][0]["state"]["up.weight"]
    entry["own"] = torch.zeros_like(entry["exp_avg"].to_local())
    found["own state"] = refused(state, exchange)
    if rank == 1:  # it fails before it has a state
        exchange.counts[0] += 1
        exchange.refuse(OSError("the reader is gone"))
    else:
        found["before"] = refused(state_with(torch.ones(6)), exchange)
    return found


def partial_tensor(mesh):
    """A DTensor that no boxes describe."""
    tensor = dist_tensor()
    return tensor.DTensor.from_local(torch.ones(2), mesh, [tensor.Partial()])


def fsdp1_goes_on(rank, root, mesh):
    """A training that goes on from a committed checkpoint, and one that was not interrupted.

    Also the same checkpoint in FSDP2, and FSDP2's in FSDP1.
    """
    import torch.distributed as dist

    from bt_lightning.snapshot.local_shards import live_state

    found = {}
    net, optimizer = _fsdp1(mesh)
    sharded_ranks.step(net, optimizer)
    commit_parts(rank, root, "one", net, [optimizer])
    sharded_ranks.step(net, optimizer, 5)
    wanted = sharded_ranks.part_bytes(live_state(net, [optimizer]))

    again, optimizer = _fsdp1(mesh, seed=8)
    _load(root / "one", again, [optimizer])
    sharded_ranks.step(again, optimizer, 5)
    found["equal"] = sharded_ranks.part_bytes(live_state(again, [optimizer])) == wanted
    found["names"] = len(wanted)

    other, optimizer = sharded_ranks.build("fsdp2", 64)
    _load(root / "one", other, [optimizer])
    sharded_ranks.step(other, optimizer, 5)
    commit_parts(rank, root, "two", other, [optimizer])
    last, optimizer = _fsdp1(mesh, seed=9)
    _load(root / "two", last, [optimizer])
    if not mesh:
        mine = sharded_ranks.part_bytes(live_state(last, [optimizer]))
        found["from fsdp2"] = [name for name in wanted if mine[name] != wanted[name]]
    dist.barrier()
    return found


def fsdp1_extra_states(rank, root):
    """What a module of FSDP1 keeps besides tensors, saved and loaded."""
    net, _ = _fsdp1(mesh=False, kind=Counting)
    net.module.seen = {"n": 3, "t": torch.ones(2)}
    commit_parts(rank, root, "one", net, [])
    again, _ = _fsdp1(mesh=False, seed=8, kind=Counting)
    _load(root / "one", again, [])
    return again.module.seen["n"], again.module.seen["t"].tolist()


class Counting(sharded_ranks.Net):
    """A module with an extra state."""

    seen: object = None

    def get_extra_state(self):
        return self.seen

    def set_extra_state(self, state):
        self.seen = state


def _fsdp1(mesh, seed=3, kind=sharded_ranks.Net):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel

    torch.manual_seed(seed)
    options = {"device_mesh": init_device_mesh("cpu", (2,))} if mesh else {}
    net = FullyShardedDataParallel(
        kind(64), use_orig_params=True, device_id=torch.device("cpu"), **options
    )
    return net, torch.optim.AdamW(net.parameters(), lr=1e-2, foreach=False)


def _load(folder, net, optimizers):
    from bt_lightning.session.load_in_place import LoadInPlace
    from bt_lightning.store.transfer.files_reader import DirectoryReader

    with DirectoryReader(folder) as reader:
        LoadInPlace(reader).fill(net, optimizers)


def commit_parts(rank, root, name, net, optimizers):
    """Commit the parts of all ranks as one checkpoint, by rank 0."""
    import torch.distributed as dist

    from bt_lightning.localdir.commit import commit
    from bt_lightning.session.ranks import Ranks

    exchange = sharded_ranks.exchange_of(Ranks.of_process_group())
    writer = sharded_ranks.writer_of(exchange)
    state = sharded_ranks.full_state(net, optimizers)
    snapshot = writer.take(state)
    parts = root / f"{name}-parts"
    for path, pieces in snapshot.files.items():
        (parts / path).parent.mkdir(parents=True, exist_ok=True)
        (parts / path).write_bytes(b"".join(pieces()))
    dist.barrier()
    if rank == 0:
        files = {
            path.relative_to(parts).as_posix(): (lambda path=path: iter([path.read_bytes()]))
            for path in sorted(parts.rglob("*"))
            if path.is_file()
        }
        facts = writer.facts(state, snapshot)
        commit(root / name, root, files, lambda entries: facts.manifest(name, 1, entries))
    dist.barrier()
    exchange.close()
