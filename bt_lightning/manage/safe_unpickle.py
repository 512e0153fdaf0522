"""A pickle, run by a machine that knows no code, within bounds that nothing in it can move.

A pickle is a program. Here every name in it stands for an inert `Node`, every call makes another
one, and what each instruction adds is counted before it is made. So neither what it names nor
what it claims of sizes reaches Python. Source: `pickletools`, the standard's description.
"""

from __future__ import annotations

import pickle as codes
from struct import Struct
from typing import TYPE_CHECKING, Any, Final

from bt_lightning.manage.pickle_interpreter import OPAQUE, Machine, TooLargeError

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_BYTES: Final = 20_000_000
"""Of a pickle."""
_MOST_STEPS: Final = 1_500_000
"""Instructions: what fifty thousand tensors take."""
_U1, _U2, _U4, _U8 = (Struct(f"<{form}") for form in "BHIQ")
_I4, _F8 = Struct("<i"), Struct(">d")
_CODES: Final[dict[bytes, tuple[Callable[[Machine, Any], None], Any]]] = {
    codes.MARK: (Machine.mark, None),
    codes.POP: (Machine.pop, None),
    codes.POP_MARK: (Machine.pop_mark, None),
    codes.DUP: (Machine.dup, None),
    codes.PROTO: (Machine.skip, 1),
    codes.FRAME: (Machine.skip, 8),
    codes.NONE: (Machine.constant, None),
    codes.NEWTRUE: (Machine.constant, True),
    codes.NEWFALSE: (Machine.constant, False),
    codes.EMPTY_TUPLE: (Machine.constant, ()),
    codes.EMPTY_SET: (Machine.constant, OPAQUE),
    codes.BININT: (Machine.number, _I4),
    codes.BININT1: (Machine.number, _U1),
    codes.BININT2: (Machine.number, _U2),
    codes.BINFLOAT: (Machine.number, _F8),
    codes.LONG1: (Machine.whole, _U1),
    codes.LONG4: (Machine.whole, _U4),
    codes.INT: (Machine.written_number, None),
    codes.LONG: (Machine.written_number, None),
    codes.FLOAT: (Machine.written_float, None),
    codes.STRING: (Machine.written_text, None),
    codes.UNICODE: (Machine.written_unicode, None),
    codes.SHORT_BINUNICODE: (Machine.text, _U1),
    codes.BINUNICODE: (Machine.text, _U4),
    codes.BINUNICODE8: (Machine.text, _U8),
    codes.SHORT_BINSTRING: (Machine.old_text, _U1),
    codes.BINSTRING: (Machine.old_text, _U4),
    codes.SHORT_BINBYTES: (Machine.blob, _U1),
    codes.BINBYTES: (Machine.blob, _U4),
    codes.BINBYTES8: (Machine.blob, _U8),
    codes.BYTEARRAY8: (Machine.blob, _U8),
    codes.EMPTY_LIST: (Machine.empty_list, None),
    codes.EMPTY_DICT: (Machine.empty_dict, None),
    codes.LIST: (Machine.list_of_mark, None),
    codes.TUPLE: (Machine.tuple_of_mark, None),
    codes.DICT: (Machine.dict_of_mark, None),
    codes.FROZENSET: (Machine.set_of_mark, None),
    codes.TUPLE1: (Machine.tuple_of, 1),
    codes.TUPLE2: (Machine.tuple_of, 2),
    codes.TUPLE3: (Machine.tuple_of, 3),
    codes.APPEND: (Machine.append, None),
    codes.APPENDS: (Machine.appends, None),
    codes.ADDITEMS: (Machine.pop_mark, None),
    codes.SETITEM: (Machine.set_item, None),
    codes.SETITEMS: (Machine.set_items, None),
    codes.GLOBAL: (Machine.named, None),
    codes.STACK_GLOBAL: (Machine.named_by_stack, None),
    codes.EXT1: (Machine.extension, _U1),
    codes.EXT2: (Machine.extension, _U2),
    codes.EXT4: (Machine.extension, _I4),
    codes.REDUCE: (Machine.call, None),
    codes.NEWOBJ: (Machine.call, None),
    codes.NEWOBJ_EX: (Machine.call_with_words, None),
    codes.OBJ: (Machine.call_of_mark, None),
    codes.INST: (Machine.call_of_line, None),
    codes.BUILD: (Machine.build, None),
    codes.PERSID: (Machine.kept_elsewhere_by_line, None),
    codes.BINPERSID: (Machine.kept_elsewhere, None),
    codes.PUT: (Machine.put_by_line, None),
    codes.BINPUT: (Machine.put, _U1),
    codes.LONG_BINPUT: (Machine.put, _U4),
    codes.MEMOIZE: (Machine.memoize, None),
    codes.GET: (Machine.get_by_line, None),
    codes.BINGET: (Machine.get, _U1),
    codes.LONG_BINGET: (Machine.get, _U4),
}
_STOP: Final = codes.STOP[0]
_STEPS: Final = [_CODES.get(bytes((code,))) for code in range(256)]


def unpickle(data: bytes) -> Any:
    """The value of a pickle: numbers, short texts, lists, tuples, and `Node`s for all else.

    Raises:
        TooLargeError: it is larger, or makes more, than is looked into.
        Exception: of any kind, where it is no pickle.
    """
    if len(data) > MOST_BYTES:
        msg = f"{len(data)} bytes, and at most {MOST_BYTES} are read"
        raise TooLargeError(msg)
    machine = Machine(data)
    for _ in range(_MOST_STEPS):
        code = data[machine.at]
        machine.at += 1
        step = _STEPS[code]
        if step is not None:
            step[0](machine, step[1])
        elif code == _STOP:
            return machine.stack[-1]
        else:
            msg = f"the unknown instruction {code}"
            raise ValueError(msg)
    msg = f"more than {_MOST_STEPS} instructions"
    raise TooLargeError(msg)
