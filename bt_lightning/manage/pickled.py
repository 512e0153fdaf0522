"""The tensors of `.ckpt`, `.pt` and DCP metadata files, read without running any of their code.

A pickle is a program; here every name in it stands for an inert object of ours, and every call
makes another one. Nothing is imported, no attribute of a real object is touched.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
import zlib
from typing import IO, TYPE_CHECKING, Any, Final

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.manage.tensors import Header, Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

MAX_PICKLE_BYTES: Final = 20_000_000
"""Names and shapes of a few hundred thousand tensors."""
_WORDS: Final = {
    "Float": "F32",
    "Double": "F64",
    "Half": "F16",
    "BFloat16": "BF16",
    "Long": "I64",
    "Int": "I32",
    "Short": "I16",
    "Char": "I8",
    "Byte": "U8",
    "Bool": "BOOL",
    "ComplexFloat": "C64",
    "float32": "F32",
    "float64": "F64",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "complex64": "C64",
}
_BYTES: Final = {
    **dict.fromkeys(("F64", "I64", "C64"), 8),
    **dict.fromkeys(("F32", "I32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16"), 2),
}
_MOST: Final = 300_000
"""Objects that are looked at for tensors: a small pickle can hold one object very often."""


class _Inert:
    """What an object of a pickle becomes: its arguments, its state, and what was put into it."""

    full = ""
    """Module and name of its class."""

    def __new__(cls, *args: Any, **_: Any) -> Self:
        made = super().__new__(cls)
        made.args = args
        made.state = None
        made.items = []
        return made

    args: tuple[Any, ...]
    state: Any
    items: list[Any]

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __call__(self, *args: Any) -> _Inert:
        return _Inert(*args)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items.append((key, value))

    def append(self, item: Any) -> None:
        self.items.append(item)

    add = append


class _Reader(pickle._Unpickler):  # noqa: SLF001 - has no public name, and is in every Python
    """The unpickler that is written in Python: the one in C sets aside what sizes in a file say."""

    def find_class(self, module: str, name: str) -> type[_Inert]:
        """Look nothing up: every name is a class of ours."""
        return type("Named", (_Inert,), {"full": f"{module}.{name}"})

    def persistent_load(self, pid: Any) -> _Inert:
        """Take a storage for what the file says of it: type, key, device, elements."""
        return _Storage(*pid) if isinstance(pid, tuple) else _Storage(pid)


class _Storage(_Inert):
    pass


def parse_zip(file: IO[bytes], where: str) -> Header:
    """The tensors of a file that `torch.save` wrote: `.ckpt`, `.pt`, `.bin`.

    Raises:
        CheckpointCorruptError: it is none, or of the format before torch 1.6.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            names = [i for i in archive.infolist() if i.filename.rpartition("/")[2] == "data.pkl"]
            if not names or names[0].file_size > MAX_PICKLE_BYTES:
                msg = f"{where} has no data.pkl of at most {MAX_PICKLE_BYTES} bytes"
                raise CheckpointCorruptError(msg)
            with archive.open(names[0]) as member:
                data = member.read(MAX_PICKLE_BYTES)
    except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, ValueError) as error:
        msg = f"{where} is no zip file as torch.save writes it: {error}"
        raise CheckpointCorruptError(msg) from error
    return parse_pickle(data, where)


def parse_pickle(data: bytes, where: str) -> Header:
    """The tensors of one pickle: `data.pkl` of a torch file, or `.metadata` of a DCP folder.

    Raises:
        CheckpointCorruptError: it is none.
    """
    try:
        root = _Reader(
            io.BytesIO(data)
        ).load()  # no name of the file reaches Python: see find_class
        found = list(_walk(root))
    except Exception as error:
        msg = f"{where} holds no pickle that can be read: {type(error).__name__}: {error}"
        raise CheckpointCorruptError(msg) from error
    return Header(tuple(sorted(found, key=lambda tensor: tensor.name)), {})


def _walk(root: Any) -> Iterator[Tensor]:
    waiting: list[tuple[str, Any]] = [("", root)]
    for _ in range(_MOST):
        if not waiting:
            return
        path, value = waiting.pop()
        tensor = _tensor(path, value)
        if tensor is not None:
            yield tensor
        else:
            waiting += [(f"{path}.{name}" if path else name, v) for name, v in _children(value)]


def _children(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [(str(name), child) for name, child in value.items() if isinstance(name, str | int)]
    if isinstance(value, list | tuple):
        return [(str(index), child) for index, child in enumerate(value)]
    if isinstance(value, _Inert):
        if value.full.endswith("checkpoint.metadata.Metadata") and isinstance(value.state, dict):
            return _children(value.state.get("state_dict_metadata"))
        pairs = [item for item in value.items if isinstance(item, tuple) and len(item) == 2]  # noqa: PLR2004
        return _children(dict(pairs)) if pairs else _children(value.state)
    return []


def _tensor(path: str, value: Any) -> Tensor | None:
    """The tensor that a call of torch would make of `value`; None if it is no such call."""
    try:
        return _rebuilt(path, value) if isinstance(value, _Inert) else None
    except (IndexError, AttributeError, TypeError, KeyError, ValueError):
        return None


def _rebuilt(path: str, value: _Inert) -> Tensor | None:
    kind, args = value.full.rpartition(".")[2], value.args
    if kind in {"_rebuild_parameter", "_rebuild_parameter_with_state"}:
        return _rebuilt(path, args[0])
    if kind == "_rebuild_from_type_v2":
        inner = _Inert(*args[2])
        inner.full = args[0].full
        return _rebuilt(path, inner)
    if kind in {"_rebuild_tensor", "_rebuild_tensor_v2"}:
        return _made(path, args[0].args[1], args[2])
    if kind == "_rebuild_tensor_v3":
        return _made(path, args[6], args[2])
    if kind == "TensorStorageMetadata":
        return _made(path, value.state["properties"].state[0], value.state["size"].args[0])
    return None


def _made(path: str, named: Any, shape: Any) -> Tensor:
    word = getattr(named, "full", "").rpartition(".")[2].removesuffix("Storage")
    dtype = _WORDS.get(word, word or "?")
    sides = tuple(int(side) for side in shape)
    return Tensor(path, dtype, sides, math.prod(sides) * _BYTES.get(dtype, 1))
