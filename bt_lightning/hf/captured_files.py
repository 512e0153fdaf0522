"""Takes what a Trainer writes of a checkpoint: large values as they are, small files as bytes.

The Trainer's own code runs, and that of its subclasses, with a folder of ours to write to. Calls of
`torch.save` and of safetensors that name a file there are noted instead of carried out. Whatever
writes in another way writes a file there, which is read back: it costs time, and nothing else.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from bt_lightning.localdir.atomic_directory import temporary
from bt_lightning.snapshot.folder_files import SafetensorsFile, TorchFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bt_lightning.snapshot.folder_files import Content

_SAVERS: Final = (
    ("safetensors.torch", "save_file"),
    ("transformers.modeling_utils", "safe_save_file"),
    ("peft.peft_model", "safe_save_file"),
    ("accelerate.utils.other", "safe_save_file"),
)
"""Modules that hold `safetensors.torch.save_file`, and its name there."""
_LARGE: Final = 1 << 20
"""Bytes of tensors from which a value is copied beside training; others are pickled at once."""
_DEPTH: Final = 16


class CapturedWrites:
    """What one call of `_save_checkpoint` writes; used on the thread that calls it."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        """The folder in which the Trainer makes its `checkpoint-<step>`."""
        self._thread = threading.get_ident()
        self._noted: dict[Path, Content] = {}

    def files(self, name: str) -> dict[str, Content]:
        """The files of the folder `name`, by their posix path in it, in the order of the paths."""
        folder = self.run_dir / name
        found: dict[str, Content] = {
            path.relative_to(folder).as_posix(): path.read_bytes() for path in _files(folder)
        }
        for path, content in self._noted.items():
            if path.is_relative_to(folder):
                found[path.relative_to(folder).as_posix()] = content
        return dict(sorted(found.items()))

    def beside(self, name: str) -> dict[str, bytes]:
        """The files that were written outside of the folder `name`, by their path in `run_dir`."""
        paths = [p for p in _files(self.run_dir) if not p.is_relative_to(self.run_dir / name)]
        return {path.relative_to(self.run_dir).as_posix(): path.read_bytes() for path in paths}

    def has(self, path: Path) -> bool:
        """Whether an absolute path is one of ours, on the thread that writes."""
        return threading.get_ident() == self._thread and path.is_relative_to(self.run_dir)

    def note(self, file: object, make: Callable[[], Content]) -> bool:
        """Note what is to be in a file, if it is one of ours."""
        if not isinstance(file, str | os.PathLike):
            return False
        path = Path(os.path.abspath(file))  # noqa: PTH100 - links are not followed
        if not self.has(path):
            return False
        self._noted[path] = make()
        return True


@contextlib.contextmanager
def capture_writes(place: Path) -> Iterator[CapturedWrites]:
    """Yield the capture of what is written in this block; its folder is gone after it.

    Args:
        place: an absolute directory, in which the folder is made.
    """
    with temporary(place) as folder, contextlib.ExitStack() as patches:
        patches.enter_context(_no_progress_bar())
        noting = CapturedWrites(folder)
        patches.enter_context(_replaced("torch", "save", lambda save: _torch_save(save, noting)))
        original = getattr(sys.modules.get("safetensors.torch"), "save_file", None)
        for module, name in _SAVERS:
            if getattr(sys.modules.get(module), name, None) is original is not None:
                patches.enter_context(
                    _replaced(module, name, lambda save: _safetensors_save(save, noting))
                )
        yield noting


@contextlib.contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Of `transformers`, for files that are not written yet."""
    logging = sys.modules.get("transformers.utils.logging")
    if logging is None or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


@contextlib.contextmanager
def _replaced(
    module: str, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    holder = sys.modules[module]
    original = getattr(holder, name)
    setattr(holder, name, make(original))
    try:
        yield
    finally:
        setattr(holder, name, original)


def _torch_save(original: Callable[..., Any], noting: CapturedWrites) -> Callable[..., Any]:
    def save(obj: object, f: Any, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs or not noting.note(f, lambda: _torch_content(obj, original)):
            return original(obj, f, *args, **kwargs)
        return None

    return save


def _safetensors_save(original: Callable[..., Any], noting: CapturedWrites) -> Callable[..., Any]:
    def save_file(tensors: Any, filename: Any, metadata: Any = None) -> Any:
        def content() -> Content:
            return SafetensorsFile(dict(tensors), dict(metadata or {}))

        return None if noting.note(filename, content) else original(tensors, filename, metadata)

    return save_file


def _torch_content(value: object, save: Callable[..., Any]) -> Content:
    if _is_large(value):
        return TorchFile(_containers_copied(value))  # the caller may change them after its call
    return torch_file_bytes(value, save)


def torch_file_bytes(value: object, save: Callable[..., Any] = torch.save) -> bytes:
    """The bytes of the file that `torch.save` writes."""
    buffer = io.BytesIO()
    save(value, buffer)
    return buffer.getvalue()


def _is_large(value: object) -> bool:
    """Whether nested dictionaries and sequences hold many bytes of tensors."""
    size = 0
    for tensor in _tensors(value):
        size += tensor.nbytes
        if size >= _LARGE:
            return True
    return False


def _tensors(value: object, depth: int = 0) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif depth < _DEPTH and isinstance(value, dict | list | tuple):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _tensors(each, depth + 1)


def _containers_copied(value: Any, depth: int = 0) -> Any:
    """The same tensors and values in dictionaries and lists of our own."""
    if depth >= _DEPTH:
        return value
    if type(value) in {dict, list}:
        if isinstance(value, dict):
            return {key: _containers_copied(each, depth + 1) for key, each in value.items()}
        return [_containers_copied(each, depth + 1) for each in value]
    if isinstance(value, dict):  # an OrderedDict of weights, with attributes of its own
        copied = value.copy()
        for key, each in value.items():
            copied[key] = _containers_copied(each, depth + 1)
        return copied
    return value


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
