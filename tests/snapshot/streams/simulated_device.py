"""A CUDA device for tests: real bytes, and torch's own operations, in any legal order.

Tensors say that they are on `cuda:0`. What torch is asked to do with them becomes work on the
current stream, with the bytes that it reads and writes. Memory comes from an allocator that hands
out what was freed as early as torch's may: to the stream that it was allocated for, at once.
"""

from __future__ import annotations

import contextlib
import itertools
import weakref
from collections import defaultdict
from dataclasses import dataclass

import torch
from happens_before import HostThread, Orders, SimulatedEvent, SimulatedStream, Span
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

from bt_lightning.snapshot import device_streams

torch._C._ensureCUDADeviceGuardSet()  # as for torch's own fake tensors, where there is no CUDA
CUDA = torch.device("cuda", 0)
_VIEWS = (torch.ops.aten.detach.default, torch.ops.aten.alias.default)


@dataclass(eq=False)
class _Memory:
    """What one tensor and its views have: bytes that go back to the allocator with the last."""

    owner: int


class SimulatedTensor(torch.Tensor):
    @staticmethod
    def __new__(cls, device, bytes_, memory):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            bytes_.shape,
            strides=bytes_.stride(),
            storage_offset=bytes_.storage_offset(),
            dtype=bytes_.dtype,
            device=CUDA,
        )

    def __init__(self, device, bytes_, memory) -> None:
        self.simulated = device
        self.bytes_ = bytes_
        """What the memory has, as a tensor of the host: only for work to look at."""
        self.memory = memory

    def __repr__(self) -> str:
        return f"SimulatedTensor{tuple(self.shape)}"

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.Tensor.data_ptr:
            return args[0].bytes_.data_ptr()
        if func is torch.Tensor.untyped_storage:
            return args[0].bytes_.untyped_storage()
        if func is torch.Tensor.__getitem__:
            tensor, index = args
            return SimulatedTensor(tensor.simulated, tensor.bytes_[index], tensor.memory)
        if func is torch.Tensor.contiguous and not args[0].bytes_.is_contiguous():
            return args[0].simulated.empty(args[0].shape, args[0].dtype).copy_(args[0])
        if func is torch.Tensor.copy_:
            return _device_of(args).transfer(*args, **kwargs)
        return super().__torch_function__(func, types, args, kwargs)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _device_of((args, kwargs or {})).dispatch(func, args, kwargs or {})


def _device_of(values):
    return next(v.simulated for v in tree_flatten(values)[0] if isinstance(v, SimulatedTensor))


def _plain(values):
    return tree_map(lambda v: v.bytes_ if isinstance(v, SimulatedTensor) else v, values)


def span(tensor):
    """The addresses between the first byte and the last of a tensor, or a view of memory."""
    if not isinstance(tensor, torch.Tensor):
        tensor = torch.frombuffer(tensor, dtype=torch.uint8)
    plain = _plain(tensor)
    last = sum((n - 1) * step for n, step in zip(plain.shape, plain.stride(), strict=True))
    size = (last + 1) * plain.element_size() if plain.numel() else 0
    owner = tensor.memory.owner if isinstance(tensor, SimulatedTensor) else 0
    return Span(plain.data_ptr(), plain.data_ptr() + size, owner)


def _spans(values):
    return [span(v) for v in tree_flatten(values)[0] if isinstance(v, torch.Tensor)]


class SimulatedDevice:
    """One device, and what `device_streams` asks of it."""

    def __init__(self, choices, **options) -> None:
        self.orders = Orders(choices, **options)
        self.free_bytes = 2**40
        self.full_on = None
        """A stream for which there is no memory."""
        self._streams = itertools.count(1)
        self._owners = itertools.count(1)
        self._free = defaultdict(list)

    # torch's operations

    def empty(self, shape, dtype=torch.float32):
        stream = self.orders.host.stream
        if stream is self.full_on:
            raise device_streams.DeviceMemoryError
        size = max(1, torch.Size(shape).numel() * dtype.itemsize)
        usable = [one for one in self._free[stream.name] if one.numel() >= size]
        whole = usable[-1] if usable else torch.zeros(size, dtype=torch.uint8)
        self._free[stream.name] = [o for o in self._free[stream.name] if o is not whole]
        memory = _Memory(next(self._owners))
        weakref.finalize(memory, self._free[stream.name].append, whole)
        count = torch.Size(shape).numel() * dtype.itemsize
        bytes_ = whole[:count].view(dtype).view(shape)
        return SimulatedTensor(self, bytes_, memory)

    def full(self, shape, value, dtype=torch.float32):
        return self.empty(shape, dtype).fill_(value)

    def dispatch(self, func, args, kwargs):
        plain_args, plain_kwargs = _plain(args), _plain(kwargs)
        schema = func._schema
        if not schema.is_mutable and (func.is_view or func in _VIEWS):
            first = next(a for a in tree_flatten(args)[0] if isinstance(a, SimulatedTensor))
            views = func(*plain_args, **plain_kwargs)
            return tree_map(lambda v: SimulatedTensor(self, v, first.memory), views)
        assert func is not torch.ops.aten._local_scalar_dense.default, "the host would wait"
        if schema.is_mutable:
            written = [a for a, s in zip(args, schema.arguments, strict=False) if _is_written(s)]
            written += [
                kwargs[s.name] for s in schema.arguments if _is_written(s) and s.name in kwargs
            ]
            self._kernel(func, lambda: func(*plain_args, **plain_kwargs), (args, kwargs), written)
            return written[0] if schema.returns else None
        like = func(*plain_args, **plain_kwargs)  # its values are of no use: only shape and dtype
        assert isinstance(like, torch.Tensor), func
        found = self.empty(like.shape, like.dtype)
        target = found.bytes_
        self._kernel(
            func, lambda: target.copy_(func(*plain_args, **plain_kwargs)), (args, kwargs), [found]
        )
        return found

    def transfer(self, target, source, non_blocking=False):
        """A copy; between the host and the device, both may go on unless it is blocking."""
        to, from_ = _plain((target, source))
        self._kernel("copy", lambda: to.copy_(from_), [source], [target])
        if not non_blocking and type(target) is not type(source):
            self.orders.host.stream.synchronize()
        return target

    def _kernel(self, name, act, reads, writes):
        stream = self.orders.host.stream
        reads, writes = _spans(reads), _spans(writes)
        self.orders.enqueue(stream, str(name), lambda: _undispatched(act), reads, writes)

    # host threads

    @contextlib.contextmanager
    def thread(self, name="copy"):
        """The block is run by another host thread, which was started here."""
        training = self.orders.host
        self.orders.host = HostThread(name, training.done_before, self.orders.default_stream)
        with self:
            other = self.orders.host
            try:
                yield other
            finally:
                self.orders.host = training
                training.done_before |= other.done_before  # what it waited for is done by now

    def __enter__(self):
        self._mode = _OnDevice(self)
        self._mode.__enter__()
        return self

    def __exit__(self, *exc):
        self._mode.__exit__(*exc)

    # device_streams

    def install(self, monkeypatch):
        """Take the place of CUDA."""
        for name in ("new_stream", "current_stream", "new_event", "on_stream"):
            monkeypatch.setattr(device_streams, name, getattr(self, name))
        monkeypatch.setattr(device_streams, "on_device", lambda _: contextlib.nullcontext())
        monkeypatch.setattr(device_streams, "free_bytes", lambda _: self.free_bytes)
        monkeypatch.setattr(device_streams, "register_host", lambda *_: 0)
        monkeypatch.setattr(device_streams, "unregister_host", lambda _: None)
        monkeypatch.setattr(
            device_streams, "pinned_bytes", lambda size: torch.zeros(size, dtype=torch.uint8)
        )

    def new_stream(self, _=CUDA):
        return SimulatedStream(f"stream {next(self._streams)}", self.orders)

    def current_stream(self, _=CUDA):
        return self.orders.host.stream

    def default_stream(self):
        return self.orders.default_stream

    def new_event(self, *, blocking=False):
        return SimulatedEvent(self.orders)

    @contextlib.contextmanager
    def on_stream(self, stream):
        host = self.orders.host
        before, host.stream = host.stream, stream
        try:
            yield
        finally:
            host.stream = before


class _OnDevice(TorchFunctionMode):
    """Tensors that are made on `cuda` are those of the simulated device."""

    def __init__(self, device) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.empty and str(kwargs.get("device", "")).startswith("cuda"):
            return self._device.empty(args[0], kwargs["dtype"])
        if func is torch.Tensor.to and len(args) > 1 and args[1] == CUDA:
            if isinstance(args[0], SimulatedTensor):
                return args[0]
            return self._device.transfer(self._device.empty(args[0].shape, args[0].dtype), args[0])
        return func(*args, **kwargs)


def _is_written(argument):
    return argument.alias_info is not None and argument.alias_info.is_write


def _undispatched(act):
    with torch._C.DisableTorchFunction(), torch.no_grad(), torch.inference_mode(False):
        act()
