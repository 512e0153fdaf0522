"""What nobody should find in a store, for Hypothesis: words, manifests, headers, pickles."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile

import xxhash
from hypothesis import strategies as st

WORDS = st.sampled_from(
    [
        "..", "../x", "/etc/passwd", "a/../../b", "\x1b]0;x\x07", "\u202e", "\udcff", "%2e%2e",
        "bt://", "bt://p@", "bt://p@j/", "bt://p@j/../..", "bt://p/c-1/../../x", "BT://P", "s3://",
        "file://", "nope://x", "c-1@1", "c-1@9999999999999999999", "rank-0/c-1", "rank-x/c-1", ".",
        "latest", "~", "$HOME", "*", "**", "[", "c-1\n", " ", "-" * 300, "x" * 5000, "💥", "C:\\x",
        "CON", "nul.", "a:b", "\\\\host\\share", "c-1 ", "=1+1", "[red]x[/red]", "%s%n",
    ]
)  # fmt: skip


def can_be_an_argument(word):
    """Whether the system can hand it to a program: bytes, none of them 0."""
    try:
        return b"\0" not in os.fsencode(word)
    except UnicodeEncodeError:
        return False


arguments = (WORDS | st.text(max_size=20) | st.binary(max_size=20).map(os.fsdecode)).filter(
    can_be_an_argument
)
_leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([-1, 2**31, 2**63, 10**400, 1e308, float("nan"), float("inf")])
    | WORDS.filter(lambda word: "\udcff" not in word)
    | st.text(max_size=8)
)
values = _leaves | st.recursive(
    _leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


def _places(value, at=()):
    """The way to every part of a JSON tree."""
    yield at
    if not isinstance(value, dict | list):
        return
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _places(inner, (*at, key))


def signed(said):
    """The bytes of a manifest, with the digest that it should have."""
    said.pop("digest", None)
    canonical = json.dumps(said, sort_keys=True, separators=(",", ":")).encode("ascii")
    return json.dumps({**said, "digest": xxhash.xxh3_128_hexdigest(canonical)}).encode()


@st.composite
def manifests(draw, whole):
    """The manifest of bytes `whole` with up to three parts made into something else.

    Its own digest is made right again: what is wrong must be found by what it says.
    """
    said = json.loads(whole)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from([at for at in _places(said) if at]))
        inner = said
        for key in place[:-1]:
            inner = inner[key]
        if isinstance(inner, dict) and draw(st.booleans()) and draw(st.booleans()):
            del inner[place[-1]]
        else:
            inner[place[-1]] = draw(values)
    return signed(said)


_numbers = st.integers(-9, 48) | st.sampled_from([2**31, 2**63, 2**64, 2**70, -(2**63)])
_entry = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "U8", "F4", "BF16", "X", "", "\x1b[31m"]) | values,
        "shape": st.lists(_numbers, max_size=3) | values,
        "data_offsets": st.lists(_numbers, min_size=2, max_size=2) | values,
        "more": values,
    },
)
_right = st.sampled_from([("F32", [2], 8), ("U8", [], 1), ("F16", [0, 3], 0)])


@st.composite
def _fitting(draw):
    """Tensors side by side, as they should be, but for their names."""
    entries, end = {}, 0
    for name in draw(st.lists(st.text(max_size=6) | WORDS, max_size=4, unique=True)):
        dtype, shape, size = draw(_right)
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    return entries


@st.composite
def safetensors(draw):
    """Bytes that begin as a safetensors file does: headers right, wrong, cut, and too long."""
    said = draw(
        _fitting()
        | st.dictionaries(st.text(max_size=5) | WORDS, _entry | values, max_size=4)
        | values
    )
    head = json.dumps(said).encode()
    head = draw(st.just(head) | st.binary(max_size=30) | st.just(head[:-1]) | st.just(b"\xff{}"))
    length = draw(st.just(len(head)) | st.integers(0, 2**64 - 1) | st.integers(0, 60))
    return length.to_bytes(8, "little") + head + b"x" * draw(st.integers(0, 40))


class Named:
    """An object of a class, as pickles have them; its state is whatever was given."""

    def __init__(self, state):
        self.state = state

    def __reduce__(self):
        return (os.path.join, ("a", "b"), self.state)


_objects = st.recursive(
    _leaves | st.binary(max_size=8) | st.builds(Named, _leaves),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=4), inner, max_size=3)
        | st.builds(Named, inner)
    ),
    max_leaves=8,
)


@st.composite
def pickles(draw):
    """Pickles of any protocol, bare or in a zip file as torch has it, some of them damaged."""
    data = pickle.dumps(draw(_objects), protocol=draw(st.integers(0, 5)))
    if draw(st.booleans()):
        at = draw(st.integers(0, len(data) - 1))
        data = data[:at] + draw(st.binary(max_size=4)) + data[at + draw(st.integers(0, 4)) :]
    if draw(st.booleans()):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(draw(st.sampled_from(["a/data.pkl", "data.pkl", "../data.pkl"])), data)
        data = file.getvalue()[: draw(st.just(10**6) | st.integers(0, 300))]
    return data
