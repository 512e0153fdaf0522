"""What the instructions of a pickle do here: values without code, counted before they are made.

Each instruction is a method with one operand, None where it has none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from bt_lightning.errors import CheckpointCorruptError

if TYPE_CHECKING:
    from struct import Struct

_MOST_MEMORY: Final = 64_000_000
"""Bytes that values may take beside small numbers, as they are reckoned here."""
_LONGEST_TEXT: Final = 4096
_LONGEST_LINE: Final = 65536
_LONGEST_NUMBER: Final = 32
_NODE: Final = 120
_TEXT: Final = 60
_HIGHEST_MEMO: Final = 2**32


class TooLargeError(CheckpointCorruptError):
    """Raised when a file describes more than is looked into."""


class PickledValue:
    """What an object of a pickle becomes: its class, its arguments, its state, its entries."""

    __slots__ = ("args", "full", "pairs", "state")

    def __init__(self, full: str = "", args: Any = ()) -> None:
        self.full = full
        """Module and name, of a class; of an object, those of its class."""
        self.args = args
        self.state: Any = None
        self.pairs: list[Any] | None = None
        """Keys and values in turn. Not hashed: keys may be chosen to collide."""


class Opaque:
    """Stands for what is not kept."""

    __slots__ = ()


OPAQUE: Final = Opaque()
"""For what tells nothing of tensors: bytes, sets, huge numbers."""
LONG: Final = Opaque()
"""For a text that is too long to be a name."""


class PickleInterpreter:
    """One run over `data`; `at` is where the next byte is read."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0
        self.stack: list[Any] = []
        self._push = self.stack.append
        self._pop = self.stack.pop
        self._marks: list[int] = []
        self._memo: list[Any] = []
        self._scattered: dict[int, Any] = {}
        self._room = _MOST_MEMORY

    def skip(self, size: int) -> None:
        """Pass over bytes, which must be there: a size that is only claimed takes no memory."""
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
        self._room -= size
        if self._room < 0:
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

    def whole(self, layout: Struct) -> None:
        size = self._read(layout)
        if size > _LONGEST_NUMBER:
            self.skip(size)
            self._push(OPAQUE)
        else:
            self._charge(_TEXT)
            self._push(int.from_bytes(self._take(size), "little", signed=True))

    def written_number(self, _: None) -> None:
        line = self._line().rstrip(b"L")
        self._charge(_TEXT)
        self._push(int(line) if len(line) <= _LONGEST_NUMBER else OPAQUE)

    def written_float(self, _: None) -> None:
        self._push(float(self._line()))

    def text(self, layout: Struct) -> None:
        size = self._read(layout)
        if size > _LONGEST_TEXT:
            self.skip(size)
            self._push(LONG)
            return
        text = self._take(size).decode("utf-8", "surrogatepass")
        self._charge(_TEXT + (size if text.isascii() else 4 * size))
        self._push(text)

    def old_text(self, layout: Struct) -> None:
        """Of Python 2."""
        self._short(self._take(self._read(layout)), "latin-1")

    def written_text(self, _: None) -> None:
        self._short(self._line().strip(b"'\""), "latin-1")

    def written_unicode(self, _: None) -> None:
        self._short(self._line(), "raw-unicode-escape")

    def _short(self, data: bytes, encoding: str) -> None:
        self._charge(_TEXT + 4 * len(data))
        self._push(LONG if len(data) > _LONGEST_TEXT else data.decode(encoding))

    def blob(self, layout: Struct) -> None:
        self.skip(self._read(layout))
        self._push(OPAQUE)

    def empty_list(self, _: None) -> None:
        self._made([])

    def empty_dict(self, _: None) -> None:
        self._made(PickledValue())

    def list_of_mark(self, _: None) -> None:
        self._made(self._since_mark())

    def tuple_of_mark(self, _: None) -> None:
        self._made(tuple(self._since_mark()))

    def tuple_of(self, count: int) -> None:
        made = tuple(self.stack[-count:])
        del self.stack[-count:]
        self._made(made)

    def dict_of_mark(self, _: None) -> None:
        made = PickledValue()
        made.pairs = self._since_mark()
        self._made(made)

    def set_of_mark(self, _: None) -> None:
        self.pop_mark(None)
        self._push(OPAQUE)

    def _made(self, value: Any) -> None:
        self._charge(_NODE)
        self._push(value)

    def append(self, _: None) -> None:
        self._put([self._pop()])

    def appends(self, _: None) -> None:
        self._put(self._since_mark())

    def _put(self, values: list[Any]) -> None:
        held = self.stack[-1]
        if isinstance(held, list):
            held += values

    def set_item(self, _: None) -> None:
        value = self._pop()
        self._set([self._pop(), value])

    def set_items(self, _: None) -> None:
        self._set(self._since_mark())

    def _set(self, pairs: list[Any]) -> None:
        held = self.stack[-1]
        if isinstance(held, PickledValue):
            if held.pairs is None:
                held.pairs = []
                self._charge(_NODE)
            held.pairs += pairs

    def named(self, _: None) -> None:
        module, name = self._line(), self._line()
        self._name(module.decode(), name.decode())

    def named_by_stack(self, _: None) -> None:
        name, module = self._pop(), self._pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            msg = "a name that is no text"
            raise TypeError(msg)
        self._name(module, name)

    def _name(self, module: str, name: str) -> None:
        self._charge(_NODE + _TEXT + 4 * len(module + name))
        self._push(PickledValue(f"{module}.{name}"))

    def extension(self, layout: Struct) -> None:
        """A name by a number that programs agree on; which one is not known."""
        self._read(layout)
        self._made(PickledValue())

    def call(self, _: None) -> None:
        args = self._pop()
        self._object(self._pop(), args)

    def call_with_words(self, _: None) -> None:
        self._pop()
        self.call(None)

    def call_of_mark(self, _: None) -> None:
        what, *args = self._since_mark()
        self._object(what, tuple(args))

    def call_of_line(self, _: None) -> None:
        self.named(None)
        self._object(self._pop(), tuple(self._since_mark()))

    def _object(self, what: Any, args: Any) -> None:
        self._charge(_NODE)
        self._push(PickledValue(what.full if isinstance(what, PickledValue) else "", args))

    def kept_elsewhere(self, _: None) -> None:
        """A storage: what the file says of it, its type, key, device, elements."""
        self._made(PickledValue("", self._pop()))

    def kept_elsewhere_by_line(self, _: None) -> None:
        self._line()
        self._made(PickledValue())

    def build(self, _: None) -> None:
        state, held = self._pop(), self.stack[-1]
        if isinstance(held, PickledValue):
            held.state = state

    def put(self, layout: Struct) -> None:
        self._keep(self._read(layout))

    def put_by_line(self, _: None) -> None:
        self._keep(int(self._line()[:_LONGEST_NUMBER]))

    def memoize(self, _: None) -> None:
        self._keep(len(self._memo) + len(self._scattered))

    def _keep(self, number: int) -> None:
        if number == len(self._memo):
            self._memo.append(self.stack[-1])
        elif 0 <= number < len(self._memo):
            self._memo[number] = self.stack[-1]
        elif 0 <= number < _HIGHEST_MEMO:
            self._charge(_NODE)
            self._scattered[number] = self.stack[-1]
        else:
            msg = f"a value kept as number {number}"
            raise ValueError(msg)

    def get(self, layout: Struct) -> None:
        self._known(self._read(layout))

    def get_by_line(self, _: None) -> None:
        self._known(int(self._line()[:_LONGEST_NUMBER]))

    def _known(self, number: int) -> None:
        is_in_order = 0 <= number < len(self._memo)
        self._push(self._memo[number] if is_in_order else self._scattered[number])
