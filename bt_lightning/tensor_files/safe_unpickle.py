"""A bounded unpickler that runs no code: the pickle becomes plain, inert values.

A pickle is a program. Here every name in it becomes an inert `PickledValue`, every call makes
another one, and the memory of each instruction is counted before it is used. So neither its names
nor its claimed sizes reach Python. Source: `pickletools`, the standard's description.
"""

from __future__ import annotations

import pickle as codes
from struct import Struct
from typing import TYPE_CHECKING, Any, Final

from bt_lightning.tensor_files.pickle_interpreter import OPAQUE, PickleInterpreter, TooLargeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from bt_lightning.tensor_files.pickle_interpreter import PickledValue

MOST_BYTES: Final = 20_000_000
"""Bytes of the largest pickle that is read."""
_MAX_STEPS: Final = 1_500_000
"""Instructions: enough for fifty thousand tensors."""
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
    codes.LONG1: (PickleInterpreter.long_number, _U1),
    codes.LONG4: (PickleInterpreter.long_number, _U4),
    codes.INT: (PickleInterpreter.number_line, None),
    codes.LONG: (PickleInterpreter.number_line, None),
    codes.FLOAT: (PickleInterpreter.float_line, None),
    codes.STRING: (PickleInterpreter.text_line, None),
    codes.UNICODE: (PickleInterpreter.unicode_line, None),
    codes.SHORT_BINUNICODE: (PickleInterpreter.text, _U1),
    codes.BINUNICODE: (PickleInterpreter.text, _U4),
    codes.BINUNICODE8: (PickleInterpreter.text, _U8),
    codes.SHORT_BINSTRING: (PickleInterpreter.python2_text, _U1),
    codes.BINSTRING: (PickleInterpreter.python2_text, _U4),
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
    codes.GLOBAL: (PickleInterpreter.global_by_line, None),
    codes.STACK_GLOBAL: (PickleInterpreter.global_by_stack, None),
    codes.EXT1: (PickleInterpreter.extension, _U1),
    codes.EXT2: (PickleInterpreter.extension, _U2),
    codes.EXT4: (PickleInterpreter.extension, _I4),
    codes.REDUCE: (PickleInterpreter.call, None),
    codes.NEWOBJ: (PickleInterpreter.call, None),
    codes.NEWOBJ_EX: (PickleInterpreter.call_with_keywords, None),
    codes.OBJ: (PickleInterpreter.call_of_mark, None),
    codes.INST: (PickleInterpreter.call_of_line, None),
    codes.BUILD: (PickleInterpreter.build, None),
    codes.PERSID: (PickleInterpreter.persistent_id_line, None),
    codes.BINPERSID: (PickleInterpreter.persistent_id, None),
    codes.PUT: (PickleInterpreter.put_by_line, None),
    codes.BINPUT: (PickleInterpreter.put, _U1),
    codes.LONG_BINPUT: (PickleInterpreter.put, _U4),
    codes.MEMOIZE: (PickleInterpreter.memoize, None),
    codes.GET: (PickleInterpreter.get_by_line, None),
    codes.BINGET: (PickleInterpreter.get, _U1),
    codes.LONG_BINGET: (PickleInterpreter.get, _U4),
}
_STOP: Final = codes.STOP[0]
_INSTRUCTIONS: Final = [_CODES.get(bytes((code,))) for code in range(256)]


def unpickle(data: bytes) -> Any:
    """The value of a pickle: numbers, short texts, lists, tuples, and `PickledValue` for the rest.

    Raises:
        TooLargeError: it exceeds a limit.
        Exception: of any kind, if it is no pickle.
    """
    return unpickle_with_storages(data)[0]


def unpickle_with_storages(data: bytes) -> tuple[Any, list[PickledValue]]:
    """The value of a pickle, and the torch storages that it refers to. Raises as `unpickle`."""
    if len(data) > MOST_BYTES:
        msg = f"{len(data)} bytes, and at most {MOST_BYTES} are read"
        raise TooLargeError(msg)
    interpreter = PickleInterpreter(data)
    for _ in range(_MAX_STEPS):
        code = data[interpreter.at]
        interpreter.at += 1
        instruction = _INSTRUCTIONS[code]
        if instruction is not None:
            instruction[0](interpreter, instruction[1])
        elif code == _STOP:
            return interpreter.stack[-1], interpreter.storages
        else:
            msg = f"the unknown instruction {code}"
            raise ValueError(msg)
    msg = f"more than {_MAX_STEPS} instructions"
    raise TooLargeError(msg)
