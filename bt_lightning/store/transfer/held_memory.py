"""The files of a checkpoint that workers of a killed run hold in memory, as a copy to read first.

A save that was under way when the trainer was killed may have overwritten some of it.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final, TypeVar

from bt_lightning.localdir.held_images import held_images, open_held_image
from bt_lightning.path_layout import DOT_DIR
from bt_lightning.store.transfer.copy_first_reader import CopyFirstReader

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from bt_lightning.file_entries import FileEntry
    from bt_lightning.manifest import Manifest
    from bt_lightning.store.interface import ReadProgress
    from bt_lightning.store.transfer.checkpoint_reader import CheckpointReader

_Reader = TypeVar("_Reader", bound="CheckpointReader")
_MOST_TARGETS: Final = 1024
"""What preadv(2) takes at once (IOV_MAX)."""
_STEP_BYTES: Final = 1024 * 1024
"""Is hashed while the CPU's cache still holds it."""


class HeldMemory:
    """A `NearCopy` in the memory of other processes."""

    name = "the memory of the killed run's worker"

    def __init__(self, places: Mapping[str, tuple[int, int]], descriptors: Sequence[int]) -> None:
        """`places`: descriptor and offset by the digest of each file; owns the descriptors."""
        self._places = dict(places)
        self._descriptors = list(descriptors)

    @classmethod
    def of(cls, root: Path, manifest: Manifest) -> HeldMemory | None:
        """What is held of a checkpoint for the runs of a directory; None if nothing is."""
        wanted = {entry.xxh3_128: entry.size for entry in manifest.files if entry.size}
        places: dict[str, tuple[int, int]] = {}
        descriptors = []
        for image in held_images(root):
            own = {
                digest: at
                for digest, (at, size) in image.files.items()
                if wanted.get(digest) == size
            }
            if own.keys() - places.keys():
                with contextlib.suppress(OSError, ValueError):  # then it ends just now
                    descriptor = open_held_image(image)
                    descriptors.append(descriptor)
                    end = os.fstat(descriptor).st_size
                    places |= {
                        digest: (descriptor, at)
                        for digest, at in own.items()
                        if at + wanted[digest] <= end
                    }
        held = cls(places, descriptors)
        if places:
            return held
        held.close()
        return None

    def has(self, entry: FileEntry) -> bool:
        """Whether the file was in memory."""
        return entry.xxh3_128 in self._places

    def expect(self, entry: FileEntry, offset: int, size: int) -> None:
        """It is there already."""

    def read_into(
        self,
        entry: FileEntry,
        offset: int,
        targets: Sequence[memoryview],
        on_progress: ReadProgress = int,
    ) -> None:
        """Copy the range out of the memory.

        Raises:
            OSError: the memory ends before it.
        """
        descriptor, start = self._places[entry.xxh3_128]
        done = 0
        for step in _steps(targets):
            size = sum(map(len, step))
            if os.preadv(descriptor, step, start + offset + done) != size:
                msg = f"{self.name} ends before {entry.path} does"
                raise OSError(msg)
            done += size
            on_progress(done)

    def close(self) -> None:
        """Close the descriptors."""
        self._places.clear()
        while self._descriptors:
            os.close(self._descriptors.pop())


def with_held_memory(whole: _Reader, root: Path | None) -> _Reader | CopyFirstReader:
    """`whole`, or a reader that takes what is held for the runs of `root` from memory."""
    held = None if root is None else HeldMemory.of(root, whole.manifest)
    return whole if held is None else CopyFirstReader(whole, held)


def root_of(checkpoint: Path) -> Path | None:
    """The checkpoint directory that a local checkpoint lies in."""
    return next((each for each in checkpoint.parents if (each / DOT_DIR).is_dir()), None)


def _steps(targets: Sequence[memoryview]) -> Iterator[list[memoryview]]:
    """The parts of `targets`, in order, each so many and so large as to be read at once."""
    step: list[memoryview] = []
    room = _STEP_BYTES
    for target in targets:
        at = 0
        while at < len(target):
            part = target[at : at + room]
            step.append(part)
            at, room = at + len(part), room - len(part)
            if not room or len(step) == _MOST_TARGETS:
                yield step
                step, room = [], _STEP_BYTES
    if step:
        yield step
