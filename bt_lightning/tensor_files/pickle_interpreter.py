"""The instructions of a pickle, carried out without code: values are counted before they are made.

Each instruction is a method with one operand, None if it has none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from bt_lightning.errors import CheckpointCorruptError

if TYPE_CHECKING:
    from struct import Struct

_MOST_MEMORY: Final = 64_000_000
"""Bytes that values may take, small numbers excepted, by the estimates below."""
_LONGEST_TEXT: Final = 4096
_LONGEST_LINE: Final = 65536
_LONGEST_NUMBER: Final = 32
_VALUE_BYTES: Final = 120
_TEXT_BYTES: Final = 60
_HIGHEST_MEMO: Final = 2**32


class TooLargeError(CheckpointCorruptError):
    """Raised when a file describes more than the limits here allow."""


class PickledValue:
    """An object of a pickle as data: class, arguments, state and entries."""

    __slots__ = ("args", "full", "pairs", "state")

    def __init__(self, full: str = "", args: Any = ()) -> None:
        self.full = full
        """Module and name of the class, or of the object's class."""
        self.args = args
        self.state: Any = None
        self.pairs: list[Any] | None = None
        """Keys and values in turn. Not hashed: keys may be chosen to collide."""


class Opaque:
    """A placeholder for a value that is not kept."""

    __slots__ = ()


OPAQUE: Final = Opaque()
"""For values that do not describe tensors: bytes, sets, huge numbers."""
LONG: Final = Opaque()
"""For a text too long to be a name."""


class PickleInterpreter:
    """One run over the pickle `data`; `at` is the position of the next byte."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.stack: list[Any] = []
        self.storages: list[PickledValue] = []
        """What stands for a torch storage each; `args` are type, key, device and elements."""
        self._push = self.stack.append
        self._pop = self.stack.pop
        self._marks: list[int] = []
        self._memo: list[Any] = []
        self._sparse_memo: dict[int, Any] = {}
        self._memory_left = _MOST_MEMORY

    def skip(self, size: int) -> None:
        """Skip bytes, which must exist: a size that is only claimed takes no memory."""
        if size > len(self.data) - self.at:
            msg = f"it ends within a value of {size} bytes"
            raise ValueError(msg)
        self.at += size

    def _take(self, size: int) -> bytes:
        start = self.at
        self.skip(size)
        return self.data[start : self.at]

    def _line(self) -> bytes:
        end = self.data.index(b"\n", self.at, self.at + _LONGEST_LINE)
        start, self.at = self.at, end + 1
        return self.data[start:end]

    def _read(self, layout: Struct) -> Any:
        (value,) = layout.unpack_from(self.data, self.at)
        self.at += layout.size
        return value

    def _charge(self, size: int) -> None:
        self._memory_left -= size
        if self._memory_left < 0:
            msg = f"values of more than {_MOST_MEMORY} bytes"
            raise TooLargeError(msg)

    def _since_mark(self) -> list[Any]:
        start = self._marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def mark(self, _: None) -> None:
        self._marks.append(len(self.stack))

    def pop(self, _: None) -> None:
        if self._marks and self._marks[-1] == len(self.stack):
            self._marks.pop()
        else:
            self._pop()

    def pop_mark(self, _: None) -> None:
        del self.stack[self._marks.pop() :]

    def dup(self, _: None) -> None:
        self._push(self.stack[-1])

    def constant(self, value: Any) -> None:
        self._push(value)

    def number(self, layout: Struct) -> None:
        self._push(layout.unpack_from(self.data, self.at)[0])
        self.at += layout.size

    def long_number(self, layout: Struct) -> None:
        size = self._read(layout)
        if size > _LONGEST_NUMBER:
            self.skip(size)
            self._push(OPAQUE)
        else:
            self._charge(_TEXT_BYTES)
            self._push(int.from_bytes(self._take(size), "little", signed=True))

    def number_line(self, _: None) -> None:
        line = self._line().rstrip(b"L")
        self._charge(_TEXT_BYTES)
        self._push(int(line) if len(line) <= _LONGEST_NUMBER else OPAQUE)

    def float_line(self, _: None) -> None:
        self._push(float(self._line()))

    def text(self, layout: Struct) -> None:
        size = self._read(layout)
        if size > _LONGEST_TEXT:
            self.skip(size)
            self._push(LONG)
            return
        text = self._take(size).decode("utf-8", "surrogatepass")
        self._charge(_TEXT_BYTES + (size if text.isascii() else 4 * size))
        self._push(text)

    def python2_text(self, layout: Struct) -> None:
        """A str of Python 2."""
        self._push_text(self._take(self._read(layout)), "latin-1")

    def text_line(self, _: None) -> None:
        self._push_text(self._line().strip(b"'\""), "latin-1")

    def unicode_line(self, _: None) -> None:
        self._push_text(self._line(), "raw-unicode-escape")

    def _push_text(self, data: bytes, encoding: str) -> None:
        self._charge(_TEXT_BYTES + 4 * len(data))
        self._push(LONG if len(data) > _LONGEST_TEXT else data.decode(encoding))

    def blob(self, layout: Struct) -> None:
        self.skip(self._read(layout))
        self._push(OPAQUE)

    def empty_list(self, _: None) -> None:
        self._push_value([])

    def empty_dict(self, _: None) -> None:
        self._push_value(PickledValue())

    def list_of_mark(self, _: None) -> None:
        self._push_value(self._since_mark())

    def tuple_of_mark(self, _: None) -> None:
        self._push_value(tuple(self._since_mark()))

    def tuple_of(self, count: int) -> None:
        made = tuple(self.stack[-count:])
        del self.stack[-count:]
        self._push_value(made)

    def dict_of_mark(self, _: None) -> None:
        made = PickledValue()
        made.pairs = self._since_mark()
        self._push_value(made)

    def set_of_mark(self, _: None) -> None:
        self.pop_mark(None)
        self._push(OPAQUE)

    def _push_value(self, value: Any) -> None:
        self._charge(_VALUE_BYTES)
        self._push(value)

    def append(self, _: None) -> None:
        self._extend([self._pop()])

    def appends(self, _: None) -> None:
        self._extend(self._since_mark())

    def _extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target += values

    def set_item(self, _: None) -> None:
        value = self._pop()
        self._extend_pairs([self._pop(), value])

    def set_items(self, _: None) -> None:
        self._extend_pairs(self._since_mark())

    def _extend_pairs(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, PickledValue):
            if target.pairs is None:
                target.pairs = []
                self._charge(_VALUE_BYTES)
            target.pairs += pairs

    def global_by_line(self, _: None) -> None:
        module, name = self._line(), self._line()
        self._push_global(module.decode(), name.decode())

    def global_by_stack(self, _: None) -> None:
        name, module = self._pop(), self._pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            msg = "a name that is no text"
            raise TypeError(msg)
        self._push_global(module, name)

    def _push_global(self, module: str, name: str) -> None:
        self._charge(_VALUE_BYTES + _TEXT_BYTES + 4 * len(module + name))
        self._push(PickledValue(f"{module}.{name}"))

    def extension(self, layout: Struct) -> None:
        """A class by its number in the extension registry, which is not known here."""
        self._read(layout)
        self._push_value(PickledValue())

    def call(self, _: None) -> None:
        args = self._pop()
        self._push_object(self._pop(), args)

    def call_with_keywords(self, _: None) -> None:
        self._pop()
        self.call(None)

    def call_of_mark(self, _: None) -> None:
        what, *args = self._since_mark()
        self._push_object(what, tuple(args))

    def call_of_line(self, _: None) -> None:
        self.global_by_line(None)
        self._push_object(self._pop(), tuple(self._since_mark()))

    def _push_object(self, what: Any, args: Any) -> None:
        self._charge(_VALUE_BYTES)
        self._push(PickledValue(what.full if isinstance(what, PickledValue) else "", args))

    def persistent_id(self, _: None) -> None:
        """A torch storage: type, key, device and number of elements."""
        storage = PickledValue("", self._pop())
        self._push_value(storage)
        self.storages.append(storage)

    def persistent_id_line(self, _: None) -> None:
        self._line()
        self._push_value(PickledValue())

    def build(self, _: None) -> None:
        state, target = self._pop(), self.stack[-1]
        if isinstance(target, PickledValue):
            target.state = state

    def put(self, layout: Struct) -> None:
        self._memo_set(self._read(layout))

    def put_by_line(self, _: None) -> None:
        self._memo_set(int(self._line()[:_LONGEST_NUMBER]))

    def memoize(self, _: None) -> None:
        self._memo_set(len(self._memo) + len(self._sparse_memo))

    def _memo_set(self, number: int) -> None:
        if number == len(self._memo):
            self._memo.append(self.stack[-1])
        elif 0 <= number < len(self._memo):
            self._memo[number] = self.stack[-1]
        elif 0 <= number < _HIGHEST_MEMO:
            self._charge(_VALUE_BYTES)
            self._sparse_memo[number] = self.stack[-1]
        else:
            msg = f"a value kept as number {number}"
            raise ValueError(msg)

    def get(self, layout: Struct) -> None:
        self._memo_get(self._read(layout))

    def get_by_line(self, _: None) -> None:
        self._memo_get(int(self._line()[:_LONGEST_NUMBER]))

    def _memo_get(self, number: int) -> None:
        is_in_order = 0 <= number < len(self._memo)
        self._push(self._memo[number] if is_in_order else self._sparse_memo[number])
