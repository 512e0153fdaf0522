"""The tensors of `.ckpt`, `.pt` and DCP metadata files, read without running any of their code.

A hostile file may be made to take gigabytes or hours: all that is read or made here has a bound,
and a file beyond it is refused as too large.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from itertools import islice
from typing import IO, TYPE_CHECKING, Any, Final

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.tensor_files.pickle_interpreter import LONG, PickledValue, TooLargeError
from bt_lightning.tensor_files.safe_unpickle import MOST_BYTES, unpickle
from bt_lightning.tensor_files.tensor_headers import MOST_SIDES, Header, Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator

_DTYPES: Final = {
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
_DTYPE_BYTES: Final = {
    **dict.fromkeys(("F64", "I64", "C64"), 8),
    **dict.fromkeys(("F32", "I32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16"), 2),
}
_MAX_DIRECTORY: Final = 6_000_000
"""Bytes of a zip file's list of members: one for each of some fifty thousand storages."""
_MAX_VALUES: Final = 1_500_000
_MAX_CONTAINERS: Final = 200_000
_MAX_NAME: Final = 4096
_MAX_NAME_CHARS: Final = 4_000_000
_MAX_DEPTH: Final = 200
_MAX_WRAPPERS: Final = 8
_MAX_DTYPE_NAME: Final = 40
_MOST_ELEMENTS: Final = 2**63


class _BoundedFile:
    """A file whose reads are limited to `max_bytes` each."""

    def __init__(self, file: IO[bytes], max_bytes: int) -> None:
        self._file, self.max_bytes = file, max_bytes
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(self.max_bytes + 1 if size < 0 else min(size, self.max_bytes + 1))
        if len(data) > self.max_bytes:
            msg = f"a part of more than {self.max_bytes} bytes"
            raise TooLargeError(msg)
        return data


def parse_zip(file: IO[bytes], where: str) -> Header:
    """The tensors of a file that `torch.save` wrote: `.ckpt`, `.pt`, `.bin`.

    Raises:
        CheckpointCorruptError: it is not such a file, of a format before torch 1.6, or too large.
    """
    _, data = read_zip(file, where)
    return parse_pickle(data, where)


def read_zip(file: IO[bytes], where: str) -> tuple[dict[str, tuple[int, int]], bytes]:
    """The members of a file that `torch.save` wrote, name -> (offset, bytes), and its `data.pkl`.

    Raises:
        CheckpointCorruptError: it is not such a file, of a format before torch 1.6, or too large
            (`TooLargeError`).
    """
    bounded = _BoundedFile(file, _MAX_DIRECTORY)
    try:
        with zipfile.ZipFile(bounded) as archive:
            bounded.max_bytes = MOST_BYTES
            data = _data_of(archive)
            members = {m.filename: (m.header_offset, m.file_size) for m in archive.infolist()}
    except TooLargeError as error:
        raise _too_large(where, error) from error
    except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, ValueError) as error:
        msg = f"{where} is no zip file as torch.save writes it: {error}"
        raise CheckpointCorruptError(msg) from error
    return members, data


def _data_of(archive: zipfile.ZipFile) -> bytes:
    names = [info for info in archive.infolist() if info.filename.rpartition("/")[2] == "data.pkl"]
    if not names:
        msg = "it has no data.pkl"
        raise ValueError(msg)
    if names[0].file_size > MOST_BYTES:
        msg = f"a data.pkl of {names[0].file_size} bytes, and at most {MOST_BYTES} are read"
        raise TooLargeError(msg)
    if names[0].compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        msg = "its data.pkl is packed in a way that torch.save does not use"
        raise ValueError(msg)  # other methods allocate what the file claims
    with archive.open(names[0]) as member:
        return member.read(MOST_BYTES)


def parse_pickle(data: bytes, where: str) -> Header:
    """The tensors of one pickle: `data.pkl` of a torch file, or `.metadata` of a DCP folder.

    Raises:
        CheckpointCorruptError: it is no pickle, or too large.
    """
    try:
        found = list(_walk(unpickle(data)))
    except TooLargeError as error:
        raise _too_large(where, error) from error
    except Exception as error:
        msg = f"{where} holds no pickle that can be read: {type(error).__name__}: {error}"
        raise CheckpointCorruptError(msg) from error
    return Header(tuple(sorted(found, key=lambda tensor: tensor.name)), {})


def _too_large(where: str, error: TooLargeError) -> CheckpointCorruptError:
    return TooLargeError(f"{where} is too large to look into: it has {error}")


def _walk(root: Any) -> Iterator[Tensor]:
    """Yield every tensor below `root`, named by its path; cycles are not followed."""
    stack = [("", id(root), _children(root))]
    entered = {id(root)}
    entries = named = 0
    for _ in range(_MAX_VALUES):
        path, own, children = stack[-1]
        found = next(children, None)
        if found is None:
            entered.remove(own)
            stack.pop()
            if not stack:
                return
            continue
        name, value = found
        if not isinstance(value, PickledValue | list | tuple) or id(value) in entered:
            continue
        below = _below(path, name)
        tensor = _tensor(below, value)
        if tensor is None:
            stack.append((below, id(value), _children(value)))
            entered.add(id(value))
            entries += 1
        else:
            named += len(below)
            yield tensor
        _check_bounds(len(stack), entries, named)
    msg = f"more than {_MAX_VALUES} values"
    raise TooLargeError(msg)


def _below(path: str, name: Any) -> str:
    if name is LONG or len(path) + len(str(name)) >= _MAX_NAME:
        msg = f"a name of more than {_MAX_NAME} characters"
        raise TooLargeError(msg)
    return f"{path}.{name}" if path else str(name)


def _check_bounds(depth: int, entries: int, named: int) -> None:
    if depth > _MAX_DEPTH:
        msg = f"values nested more than {_MAX_DEPTH} deep"
        raise TooLargeError(msg)
    if entries > _MAX_CONTAINERS:
        msg = f"more than {_MAX_CONTAINERS} lists and objects"
        raise TooLargeError(msg)
    if named > _MAX_NAME_CHARS:
        msg = f"names of more than {_MAX_NAME_CHARS} characters"
        raise TooLargeError(msg)


def _children(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, list | tuple):
        return iter(enumerate(value))
    if not isinstance(value, PickledValue):
        return iter(())
    if value.full.endswith("checkpoint.metadata.Metadata") and isinstance(
        value.state, PickledValue
    ):
        return _pairs(_entry(value.state, "state_dict_metadata"))
    return _pairs(value) if value.pairs else _children_of_state(value.state)


def _children_of_state(state: Any) -> Iterator[tuple[Any, Any]]:
    return _pairs(state) if isinstance(state, PickledValue) else _children(state)


def _pairs(value: Any) -> Iterator[tuple[Any, Any]]:
    flat = value.pairs if isinstance(value, PickledValue) and value.pairs else []
    for name, inner in zip(islice(flat, 0, None, 2), islice(flat, 1, None, 2), strict=False):
        if isinstance(name, str | int) or name is LONG:
            yield name, inner


def _entry(value: Any, key: str) -> Any:
    return next((inner for name, inner in _pairs(value) if name == key), None)


def _tensor(path: str, value: Any) -> Tensor | None:
    """The tensor that a torch call in `value` would rebuild; None if there is no such call."""
    try:
        return _tensor_of_rebuild_call(path, value) if isinstance(value, PickledValue) else None
    except (IndexError, AttributeError, TypeError, KeyError, ValueError):
        return None


def _tensor_of_rebuild_call(path: str, value: PickledValue) -> Tensor | None:
    full, args = value.full, value.args
    for _ in range(_MAX_WRAPPERS):
        kind = full.rpartition(".")[2]
        if kind in {"_rebuild_parameter", "_rebuild_parameter_with_state"}:
            full, args = args[0].full, args[0].args
        elif kind == "_rebuild_from_type_v2":
            full, args = args[0].full, args[2]
        else:
            break
    if kind in {"_rebuild_tensor", "_rebuild_tensor_v2"}:
        return _make_tensor(path, args[0].args[1], args[2])
    if kind == "_rebuild_tensor_v3":
        return _make_tensor(path, args[6], args[2])
    if kind == "TensorStorageMetadata":
        properties, size = _entry(value.state, "properties"), _entry(value.state, "size")
        return _make_tensor(path, properties.state[0], size.args[0])
    return None


def _make_tensor(path: str, named: Any, shape: Any) -> Tensor | None:
    if not isinstance(shape, list | tuple) or len(shape) > MOST_SIDES:
        return None
    if not all(isinstance(side, int) and 0 <= side < _MOST_ELEMENTS for side in shape):
        return None
    type_name = getattr(named, "full", "").rpartition(".")[2].removesuffix("Storage")
    dtype = _DTYPES.get(type_name, type_name[:_MAX_DTYPE_NAME] or "?")
    return Tensor(path, dtype, tuple(shape), math.prod(shape) * _DTYPE_BYTES.get(dtype, 1))
