"""Files beside the weights that are the same at each save: they are written once, and then known.

A tokenizer takes tens of milliseconds, a configuration a few. What it would write is known by what
the object holds; one that holds something else is written anew.
"""

from __future__ import annotations

import contextlib
import os
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import xxhash

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bt_lightning.hf.captured_files import CapturedWrites

_METHOD: Final = "save_pretrained"
_BACKEND: Final = "_tokenizer"
"""Attribute of a fast tokenizer: an object of Rust, which takes long to look at."""


class ConstantFiles:
    """What the objects of one training have written; used on its training thread."""

    def __init__(self) -> None:
        self._known: dict[str, dict[str, bytes]] = {}
        """Digest of an object -> path in its folder -> content."""

    @contextlib.contextmanager
    def used_in(self, writes: CapturedWrites, trainer: Any) -> Iterator[None]:
        """In this block, objects that are known need not write their files again."""
        kinds = {type(one) for one in _owners(trainer)}
        with contextlib.ExitStack() as patches:
            for kind in kinds:
                patches.enter_context(self._knowing(kind, writes))
            yield

    @contextlib.contextmanager
    def _knowing(self, kind: type, writes: CapturedWrites) -> Iterator[None]:
        own, original = vars(kind).get(_METHOD), getattr(kind, _METHOD)

        def save_pretrained(owner: Any, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
            place = Path(os.path.abspath(save_directory))  # noqa: PTH100 - links are not followed
            key = _digest(owner) if writes.has(place) and not (args or kwargs) else None
            if key is None:
                return original(owner, save_directory, *args, **kwargs)
            known = self._known.get(key)
            if known is None:
                before = _stamps(place)
                result = original(owner, save_directory)
                after = _stamps(place)
                changed = [name for name, stamp in after.items() if before.get(name) != stamp]
                self._known[key] = {name: (place / name).read_bytes() for name in changed}
                return result
            for name, content in known.items():
                writes.note(place / name, _giving(content))
            return tuple(str(place / name) for name in known)

        setattr(kind, _METHOD, save_pretrained)
        try:
            yield
        finally:
            if own is None:
                delattr(kind, _METHOD)
            else:
                setattr(kind, _METHOD, own)


def _owners(trainer: Any) -> Iterator[Any]:
    """What writes files beside the weights of a Trainer's model."""
    model, processing = trainer.model, trainer.processing_class
    found = [
        processing,
        getattr(processing, "tokenizer", None),
        getattr(trainer.data_collator, "tokenizer", None),
        getattr(model, "config", None),
        getattr(model, "generation_config", None),
    ]
    return (one for one in found if hasattr(type(one), _METHOD))


def _giving(content: bytes) -> Callable[[], bytes]:
    return lambda: content


def _digest(owner: Any) -> str | None:
    """Of all that an object holds; None if that cannot be said."""
    held = dict(vars(owner))
    backend = held.pop(_BACKEND, None)
    try:
        if backend is not None:
            held["backend"] = (len(owner), backend.truncation, backend.padding)
        data = pickle.dumps((type(owner).__qualname__, held))
    except Exception:  # noqa: BLE001 - objects of scripts raise anything
        return None
    return xxhash.xxh3_128_hexdigest(data)


def _stamps(folder: Path) -> dict[str, tuple[int, int]]:
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        return {
            one.name: (one.stat().st_mtime_ns, one.stat().st_size)
            for one in entries
            if one.is_file()
        }
