"""A pickle, run by a machine that knows no code, within bounds that nothing in it can move.

A pickle is a program. Here every name in it stands for an inert `Node`, every call makes another
one, and what each instruction adds is counted before it is made. So neither what it names nor
what it claims of sizes reaches Python. Source: `pickletools`, the standard's description.
"""

from __future__ import annotations

import pickle as codes
from struct import Struct
from typing import TYPE_CHECKING, Any, Final

from bt_lightning.manage.pickle_interpreter import OPAQUE, PickleInterpreter, TooLargeError

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_BYTES: Final = 20_000_000
"""Of a pickle."""
_MOST_STEPS: Final = 1_500_000
"""Instructions: what fifty thousand tensors take."""
_U1, _U2, _U4, _U8 = (Struct(f"<{form}") for form in "BHIQ")
_I4, _F8 = Struct("<i"), Struct(">d")
_CODES: Final[dict[bytes, tuple[Callable[[PickleInterpreter, Any], None], Any]]] = {
    codes.MARK: (PickleInterpreter.mark, None),
    codes.POP: (PickleInterpreter.pop, None),
    codes.POP_MARK: (PickleInterpreter.pop_mark, None),
    codes.DUP: (PickleInterpreter.dup, None),
    codes.PROTO: (PickleInterpreter.skip, 1),
    codes.FRAME: (PickleInterpreter.skip, 8),
    codes.NONE: (PickleInterpreter.constant, None),
    codes.NEWTRUE: (PickleInterpreter.constant, True),
    codes.NEWFALSE: (PickleInterpreter.constant, False),
    codes.EMPTY_TUPLE: (PickleInterpreter.constant, ()),
    codes.EMPTY_SET: (PickleInterpreter.constant, OPAQUE),
    codes.BININT: (PickleInterpreter.number, _I4),
    codes.BININT1: (PickleInterpreter.number, _U1),
    codes.BININT2: (PickleInterpreter.number, _U2),
    codes.BINFLOAT: (PickleInterpreter.number, _F8),
    codes.LONG1: (PickleInterpreter.whole, _U1),
    codes.LONG4: (PickleInterpreter.whole, _U4),
    codes.INT: (PickleInterpreter.written_number, None),
    codes.LONG: (PickleInterpreter.written_number, None),
    codes.FLOAT: (PickleInterpreter.written_float, None),
    codes.STRING: (PickleInterpreter.written_text, None),
    codes.UNICODE: (PickleInterpreter.written_unicode, None),
    codes.SHORT_BINUNICODE: (PickleInterpreter.text, _U1),
    codes.BINUNICODE: (PickleInterpreter.text, _U4),
    codes.BINUNICODE8: (PickleInterpreter.text, _U8),
    codes.SHORT_BINSTRING: (PickleInterpreter.old_text, _U1),
    codes.BINSTRING: (PickleInterpreter.old_text, _U4),
    codes.SHORT_BINBYTES: (PickleInterpreter.blob, _U1),
    codes.BINBYTES: (PickleInterpreter.blob, _U4),
    codes.BINBYTES8: (PickleInterpreter.blob, _U8),
    codes.BYTEARRAY8: (PickleInterpreter.blob, _U8),
    codes.EMPTY_LIST: (PickleInterpreter.empty_list, None),
    codes.EMPTY_DICT: (PickleInterpreter.empty_dict, None),
    codes.LIST: (PickleInterpreter.list_of_mark, None),
    codes.TUPLE: (PickleInterpreter.tuple_of_mark, None),
    codes.DICT: (PickleInterpreter.dict_of_mark, None),
    codes.FROZENSET: (PickleInterpreter.set_of_mark, None),
    codes.TUPLE1: (PickleInterpreter.tuple_of, 1),
    codes.TUPLE2: (PickleInterpreter.tuple_of, 2),
    codes.TUPLE3: (PickleInterpreter.tuple_of, 3),
    codes.APPEND: (PickleInterpreter.append, None),
    codes.APPENDS: (PickleInterpreter.appends, None),
    codes.ADDITEMS: (PickleInterpreter.pop_mark, None),
    codes.SETITEM: (PickleInterpreter.set_item, None),
    codes.SETITEMS: (PickleInterpreter.set_items, None),
    codes.GLOBAL: (PickleInterpreter.named, None),
    codes.STACK_GLOBAL: (PickleInterpreter.named_by_stack, None),
    codes.EXT1: (PickleInterpreter.extension, _U1),
    codes.EXT2: (PickleInterpreter.extension, _U2),
    codes.EXT4: (PickleInterpreter.extension, _I4),
    codes.REDUCE: (PickleInterpreter.call, None),
    codes.NEWOBJ: (PickleInterpreter.call, None),
    codes.NEWOBJ_EX: (PickleInterpreter.call_with_words, None),
    codes.OBJ: (PickleInterpreter.call_of_mark, None),
    codes.INST: (PickleInterpreter.call_of_line, None),
    codes.BUILD: (PickleInterpreter.build, None),
    codes.PERSID: (PickleInterpreter.kept_elsewhere_by_line, None),
    codes.BINPERSID: (PickleInterpreter.kept_elsewhere, None),
    codes.PUT: (PickleInterpreter.put_by_line, None),
    codes.BINPUT: (PickleInterpreter.put, _U1),
    codes.LONG_BINPUT: (PickleInterpreter.put, _U4),
    codes.MEMOIZE: (PickleInterpreter.memoize, None),
    codes.GET: (PickleInterpreter.get_by_line, None),
    codes.BINGET: (PickleInterpreter.get, _U1),
    codes.LONG_BINGET: (PickleInterpreter.get, _U4),
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
    machine = PickleInterpreter(data)
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
