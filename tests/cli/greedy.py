"""Files that are made to cost whoever looks into them gigabytes or hours, by name."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile

_MARK, _STOP, _LIST, _DICT = b"(", b".", b"]", b"}"
_MANY = 500_000


def _text(text):
    return b"X" + struct.pack("<I", len(text)) + text


def _storage(key=b"0"):
    """The instructions of a tensor's storage, without what numbers its parts."""
    parts = (b"X\x07\x00\x00\x00storage", b"ctorch\nFloatStorage\n", _text(key), _text(b"cpu"))
    return _MARK + b"".join(parts) + b"K\x04" + b"tQ"


def _tensor():
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n" + _MARK + _storage() + b"K\x00" + b"K\x02K\x02\x86"
        b"K\x02K\x01\x86\x89ccollections\nOrderedDict\n)RtR"
    )


def _repeated(value, levels, width):
    """Lists that hold the list before again and again: few bytes, and more paths than atoms."""
    for _ in range(levels):
        value = [value] * width
    return pickle.dumps(value)


def _colliding(number):
    """Integers of one hash, as keys."""
    each = (b"\x8a\x0a" + (n * (2**61 - 1)).to_bytes(10, "little") + b"N" for n in range(number))
    return _DICT + _MARK + b"".join(each) + b"u."


def _named(number, length):
    """One tensor under many long names."""
    names = (_text(f"{n:0{length}}".encode()) + b"h\x00" for n in range(number))
    return _tensor() + b"q\x00" + _DICT + _MARK + b"".join(names) + b"u."


PICKLES = {
    "a size that is claimed": b"\x80\x05\x96" + struct.pack("<Q", 3 * 2**30) + b"x" * 100,
    "bytes of a claimed size": b"\x80\x05\x8e" + struct.pack("<Q", 3 * 2**30),
    "a text of a claimed size": b"\x80\x05\x8d" + struct.pack("<Q", 2**62),
    "a list of itself": _LIST + b"q\x00" + _MARK + b"h\x00" * _MANY + b"e.",
    "a dictionary in itself": _DICT + b"q\x00" + _text(b"k" * 2**20) + b"h\x00s.",
    "a dictionary in itself, of one name": _DICT + b"q\x00" + _text(b"k") + b"h\x00s.",
    "nones": _LIST + _MARK + b"N" * 15_000_000 + b"e.",
    "marks": _MARK * 19_000_000 + _STOP,
    "doubled": _repeated([], 60, 2),
    "a thousandfold": _repeated(1, 5, 1000),
    "a thousandfold, nothing": _repeated([], 3, 1000),
    "deep lists": _LIST * 1_000_000 + b"a" * 999_999 + _STOP,
    "deep tuples": b")" + b"\x85" * 1_400_000 + _STOP,
    "deep empty names": (_DICT + b"X\x00\x00\x00\x00") * 300_000 + b"N" + b"s" * 300_000 + _STOP,
    "wrapped": b"ctorch._utils\n_rebuild_parameter\nq\x00N" + b"\x85h\x00\x85R" * 300_000 + _STOP,
    "a parameter of itself": b"]q\x00ctorch._utils\n_rebuild_parameter\nh\x00\x85RaN.",
    "names of sixty thousand letters": b"".join([b"c" + b"m" * 60_000 + b"\nn\n0"] * 320) + b"N.",
    "keys that collide": _colliding(200_000),
    "floats": _MARK + b"G\x40\x09\x21\xfb\x54\x44\x2d\x18" * 1_400_000 + b"l.",
    "lists": _MARK + _LIST * 1_400_000 + b"l.",
    "dictionaries": _MARK + _DICT * 1_400_000 + b"l.",
    "objects": b"cm\nn\nq\x00" + _MARK + b"h\x00)R" * 480_000 + b"l.",
    "a number of 19 MB": b"\x8b" + struct.pack("<i", 19_000_000) + b"\x7f" * 19_000_000 + _STOP,
    "a written number of 19 MB": b"I" + b"9" * 19_000_000 + b"\n.",
    "a text of 19 MB": _text(b"a" * 18_999_990 + "💥".encode()) + _STOP,
    "texts": _MARK + (_text("💥".encode() * 1000)) * 4800 + b"l.",
    "far numbers to keep": b"N" + b"".join(b"r" + struct.pack("<I", n << 10) for n in range(_MANY)),
    "long names": _named(9000, 2000),
    "many names": _named(200_000, 90),
    "many dimensions": _tensor().replace(
        b"K\x02K\x02\x86", _MARK + b"\x8a\x08" * 1 + b"\xff" * 7 + b"\x7f" + b"t"
    )
    + _STOP,
    "a shape without end": b"ctorch._utils\n_rebuild_tensor_v2\n(" + _storage() + b"K\x00"
    + _MARK + (b"\x8a\x08" + b"\xff" * 7 + b"\x7f") * 200_000 + b"t)\x89NtR.",
}  # fmt: skip


def zipped(data, name="archive/data.pkl", kind=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", kind) as archive:
        archive.writestr(name, data)
    return file.getvalue()


def _members(number):
    """A zip file with that many empty members of one name, written by hand: it takes a moment."""
    data = zipped(b"N.")
    start, size = data.rindex(b"PK\x01\x02"), len(b"archive/data.pkl") + 46
    one = data[start : start + size]
    directory = one * number
    end = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 65535, 65535, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    long_end = struct.pack(
        "<4sQHHIIQQQQ",
        b"PK\x06\x06", 44, 45, 45, 0, 0, number, number, len(directory), start,
    )  # fmt: skip
    there = struct.pack("<4sIQI", b"PK\x06\x07", 0, start + len(directory), 1)
    return data[:start] + directory + long_end + there + end


ZIPS = {
    "a zip that swells": lambda: zipped(b"N" * 60_000_000, kind=zipfile.ZIP_DEFLATED),
    "a zip that lies of its size": lambda: zipped(b"N" * 2**28, kind=zipfile.ZIP_DEFLATED).replace(
        struct.pack("<I", 2**28), struct.pack("<I", 1000)
    ),
    "a zip packed otherwise": lambda: zipped(b"N" * 2**24, kind=zipfile.ZIP_BZIP2),
    "a zip of a million members": lambda: _members(1_000_000),
    "a zip of a hundred thousand members": lambda: _members(95_000),
}


def _headed(text, payload=b""):
    return len(text).to_bytes(8, "little") + text + payload


HEADERS = {
    "a header of a gigabyte": lambda: (2**30).to_bytes(8, "little") + b"{" * 1000,
    "a header of lists": lambda: _headed(b'{"a":' + b"[" * 19_000_000),
    "a header of empty lists": lambda: _headed(b'{"a":[' + b"[]," * 6_000_000 + b"[]]}"),
    "a header of objects": lambda: _headed(b'{"a":[' + b"{}," * 590_000 + b"{}]}"),
    "a header of numbers": lambda: _headed(b'{"a":[' + b"1.5," * 590_000 + b"1]}"),
    "a header of names": lambda: _headed(
        b"{" + b",".join(b'"%06d":{}' % n for n in range(390_000)) + b"}"
    ),
    "a header of texts": lambda: _headed('{"a":"💥'.encode() + b"x" * 19_000_000 + b'"}'),
    "a header of dimensions": lambda: _headed(
        b'{"a":{"dtype":"F32","data_offsets":[0,0],"shape":['
        + b",".join([b"9" * 4000] * 4700)
        + b"]}}"
    ),
}


def tensors(number):
    """A right safetensors file of so many tensors: there is nothing wrong with that."""
    entries = (
        b'"layers.%d.weight":{"dtype":"U8","shape":[1],"data_offsets":[%d,%d]}' % (n, n, n + 1)
        for n in range(number)
    )
    return _headed(b"{" + b",".join(entries) + b"}", b"\0" * number)
