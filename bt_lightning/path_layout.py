"""Names and paths of a checkpoint, on disk and in a store; no other module defines them."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

import xxhash

from bt_lightning.errors import CheckpointCorruptError, InvalidSettingError

MANIFEST: Final = "bt_manifest.json"
"""The file whose presence under its final name makes a directory a committed checkpoint."""
WEIGHTS: Final = "model.safetensors"
STATE: Final = "optimizer.safetensors"
TREE: Final = "trainer.json"
LEFTOVERS: Final = "leftovers.pt"
BASE: Final = "base.json"
"""Names the tensors of the weights that are not in the checkpoint."""
SHARDS: Final = "shards.json"
"""The index of a sharded checkpoint: which rank's file has which box of which tensor."""
MOST_RANKS: Final = 100_000
"""Ranks of a sharded checkpoint: their numbers have five digits in names of files."""
ADAPTER_CONFIG: Final = "adapter_config.json"
ADAPTER: Final = "adapter_model.safetensors"
"""As `peft` names the files of an adapter."""
MARKER: Final = "bt_publishing.json"
"""In a store: the folder is being written or deleted, so a later start may sweep it."""
PUBLISHING: Final = b"{}\n"
DELETING: Final = b'{"deleting": true}\n'
"""Contents of the marker."""
PROTECTION: Final = "bt_protected.json"
"""Beside a manifest: the checkpoint must not be deleted."""
DOT_DIR: Final = ".bt_lightning"
"""Folder, beside the checkpoints, of temporaries, trash, locks and records."""
MANIFESTS_INDEX: Final = f"{DOT_DIR}-manifests"
"""In a store, beside the checkpoints of a node: the index of their manifests."""

_PLAIN: Final = re.compile(r"[\w-][\w.-]{0,254}(?:/[\w-][\w.-]{0,254})*", re.ASCII)
"""Relative paths that are neither unsafe nor hidden, as nearly all are; others are looked at."""
_UNSAFE: Final = re.compile(r"[\x00-\x1f\x7f\\]")
_SLUG: Final = re.compile(r"[^A-Za-z0-9._-]+")
_DIGEST: Final = re.compile(r"[0-9a-f]{32}")
_FILE_OF_RANK: Final = re.compile(
    r"shard-([0-9]{5,9})-of-[0-9]{5,9}\.safetensors|ranks/([0-9]{5,9})\.json"
    r"|checkpoint/(?:bf16_)?zero_pp_rank_([0-9]{1,9})_mp_rank_00_(?:model|optim)_states\.pt",
    re.ASCII,
)
_PART_RECORD: Final = re.compile(r"part-([0-9]{5,9})\.json", re.ASCII)
_MAX_PART: Final = 255
_PROJECTS: Final = "training_projects"
_MANIFEST_KEY: Final = re.compile(
    rf"{_PROJECTS}/([^/]+)/jobs/([^/]+)/rank-(0|[1-9][0-9]{{0,8}})/(.+)/{re.escape(MANIFEST)}",
    re.DOTALL,
)


def safe_parts(path: str) -> bool:
    """Whether `path` is relative, posix, free of control characters, and stays under its root."""
    if _PLAIN.fullmatch(path):
        return True
    if not path or _UNSAFE.search(path):
        return False
    try:
        lengths = [len(part.encode()) for part in path.split("/")]
    except UnicodeEncodeError:
        return False  # a lone surrogate: no file system can name it
    return not {"", ".", ".."}.intersection(path.split("/")) and max(lengths) <= _MAX_PART


def check_checkpoint_id(checkpoint_id: str) -> str:
    """Return `checkpoint_id` if it is a relative posix path that stays under its root.

    No part may start with a dot: such folders hold temporaries, and Baseten lists what it sees.

    Raises:
        InvalidSettingError: the id is empty, absolute, has `..`, a dot part or control characters.
    """
    if hidden(checkpoint_id) or not safe_parts(checkpoint_id):
        msg = (
            f"checkpoint id {checkpoint_id!r} cannot be used: expected a relative path such as"
            " 'checkpoint-20' or 'a/checkpoint-7', without '..', dot folders or control characters"
        )
        raise InvalidSettingError(msg)
    return checkpoint_id


def check_member(path: object) -> str:
    """Return the path of a file inside a checkpoint, as a manifest names it, if it stays inside.

    Raises:
        CheckpointCorruptError: the path is no text, is absolute, or leaves the checkpoint.
    """
    if not isinstance(path, str) or not safe_parts(path):
        msg = f"a manifest names the file {path!r}, which is not a path inside the checkpoint"
        raise CheckpointCorruptError(msg)
    if path in {MANIFEST, MARKER, PROTECTION}:
        msg = f"a manifest names the file {path!r}, which is not data of a checkpoint"
        raise CheckpointCorruptError(msg)
    return path


def shard_file(rank: int, world_size: int) -> str:
    """The file of a rank's boxes in a sharded checkpoint."""
    return f"shard-{rank:05d}-of-{world_size:05d}.safetensors"


def rank_file(rank: int) -> str:
    """The file of what is a rank's own in a sharded checkpoint."""
    return f"ranks/{rank:05d}.json"


def rank_of_shard(path: str) -> int | None:
    """The rank that wrote a file of what ranks saved in parts, by its path; None for others."""
    found = _FILE_OF_RANK.fullmatch(path)
    return None if found is None else int(next(filter(None, found.groups())))


def part_file(rank: int) -> str:
    """The record of a rank's part of a save, where the parts are gathered."""
    return f"part-{rank:05d}.json"


def slug(text: str) -> str:
    """`text` with each run of characters that some store refuses in a name replaced by `-`."""
    return _SLUG.sub("-", text).strip("-.") or "job"


def unique_name_of_path(path: bytes, most: int) -> str:
    """A name for a normalized, absolute path: `most` characters of its last part, and a hash."""
    name = path.rpartition(b"/")[2].decode(errors="replace")
    return f"{slug(name)[:most]}-{xxhash.xxh32_hexdigest(path)}"


def job_prefix(project: str, job: str, node_rank: int) -> str:
    """Key prefix of one node of one job, as Baseten lays out its bucket.

    `project` may hold `/` (Baseten's project names may): it stays one path part.
    """
    return f"{jobs_prefix(project, job)}/rank-{node_rank}"


def jobs_prefix(project: str | None = None, job: str | None = None) -> str:
    """Key prefix of one job, of all jobs of a project, or of all projects.

    Raises:
        InvalidSettingError: a name is too long for a folder.
    """
    if project is None:
        return _PROJECTS
    jobs = f"{_PROJECTS}/{_part(project, 'project')}/jobs"
    return jobs if job is None else f"{jobs}/{_part(job, 'job')}"


@lru_cache(1024)
def _part(name: str, what: str) -> str:
    part = slug(name)
    if len(part) > _MAX_PART:
        msg = (
            f"the {what} {name[:50]!r}... has {len(part)} characters, expected {_MAX_PART} at most"
        )
        raise InvalidSettingError(msg)
    return part


def committed_at(key: str) -> tuple[str, str, int, str] | None:
    """Project, job, node rank and folder of the manifest key `key`; None for other keys."""
    found = _MANIFEST_KEY.fullmatch(key)
    if found is None:
        return None
    project, job, rank, folder = found.groups()
    if not safe_parts(folder) or hidden(folder):
        return None  # a bucket takes any key; no checkpoint's folder has such a name
    return project, job, int(rank), folder


def node_of(folder: str) -> tuple[str, str, int] | None:
    """Project, job and node rank of a store's folder `.../rank-<node>`; None for others."""
    found = committed_at(f"{folder}/-/{MANIFEST}")
    return None if found is None or "/" in found[3] else found[:3]


def store_folder(checkpoint_id: str, number: int) -> str:
    """Folder of a checkpoint in the store; `number` counts generations of one id from 1."""
    return checkpoint_id if number == 1 else f"{checkpoint_id}@{number}"


def lease_folder(prefix: str) -> str:
    """Folder of the publisher's leases for `prefix` in a store."""
    return under(prefix, f"{DOT_DIR}-lease")


def parts_folder(prefix: str) -> str:
    """Folder in a store in which the parts of sharded saves of the job at `prefix` meet."""
    return under(prefix, f"{DOT_DIR}-parts")


def rank_of_part_record(name: str) -> int | None:
    """The rank that `part_file` made `name` from; None for other names."""
    found = _PART_RECORD.fullmatch(name)
    return None if found is None else int(found.group(1))


def run_folder(prefix: str) -> str:
    """Folder of the runner's leases for the job and node at `prefix` in a store."""
    return under(prefix, f"{DOT_DIR}-run")


def hidden(folder: str) -> bool:
    """Whether a part of the path begins with a dot: no checkpoint's does."""
    return folder.startswith(".") or "/." in folder


def trash_folder(prefix: str) -> str:
    """Folder of the trash of the job at `prefix` in a store."""
    return under(prefix, f"{DOT_DIR}-trash")


def is_digest(text: str) -> bool:
    """Whether `text` is the digest of a manifest: a removal is asked for under that name."""
    return _DIGEST.fullmatch(text) is not None


def removals_folder(prefix: str) -> str:
    """Folder of removal requests, by digest, for the job at `prefix` in a store."""
    return under(prefix, f"{DOT_DIR}-remove")


def manifests_index(prefix: str) -> str:
    """Key of the index of the manifests of the job and node at `prefix` in a store."""
    return under(prefix, MANIFESTS_INDEX)


def files_mark(prefix: str) -> str:
    """Key of the mark that names the directory whose job files the store has."""
    return under(prefix, f"{DOT_DIR}-files")


def jobs_of_path(project: str, name_of_path: str) -> str:
    """Folder of the names of jobs that nobody named, by the path that they began in."""
    return f"{_PROJECTS}/{_part(project, 'project')}/{DOT_DIR}-paths/{name_of_path}"


def folders_of(path: str) -> list[str]:
    """Every folder that `path` lies in, below the root, the innermost first."""
    found = []
    while "/" in path:
        path = path.rpartition("/")[0]
        found.append(path)
    return found


def part_name(name: str) -> str:
    """Temporary name of a file of a folder store while it is written."""
    return f".{name}.part"


def generation_of(folder: str, checkpoint_id: str) -> int | None:
    """The generation that `store_folder` made `folder` from; None if it is of another id."""
    if folder == checkpoint_id:
        return 1
    name, _, number = folder.rpartition("@")
    return int(number) if name == checkpoint_id and number.isascii() and number.isdigit() else None


def plain_folder(url: str) -> str | None:
    """The path of a store that is a local folder; None for a URL of another scheme.

    A relative path without `./` is refused: it may be a URL without its scheme, and would silently
    become a folder of the working directory.

    Raises:
        InvalidSettingError: `url` is such a path, or empty.
    """
    scheme, separator, rest = url.partition("://")
    path = rest if separator else url
    if separator and scheme not in {"file", "local"}:
        return None
    if path and (separator or path.startswith(("/", "./", "../")) or path in {".", ".."}):
        return path
    shown = url.rpartition("@")[2].removeprefix("~/")  # the part before @ may be a secret
    msg = (
        f"the store {shown!r} is neither a URL nor an absolute path: write its scheme, as in"
        f" s3://bucket/folder, or ./{shown} for a folder of the working directory"
    )
    raise InvalidSettingError(msg)


def under(prefix: str, folder: str) -> str:
    """Key of `folder` below `prefix`, which may be empty."""
    return f"{prefix}/{folder}" if prefix else folder
