"""Weights of the Hugging Face Hub, `hf://owner/repository[@revision]`, at one commit.

`huggingface_hub` lists and downloads, resumes, and sends its token to the Hub only. It compares
sizes; the SHA-256 of large files, and git's digest of small ones, are compared here.
"""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any, Final

from bt_lightning.errors import (
    CheckpointCorruptError,
    CheckpointError,
    CheckpointNotFoundError,
    InvalidSettingError,
    StorePermanentError,
    StoreTransientError,
)
from bt_lightning.store.interface import redact
from bt_lightning.store.secrets import with_spellings
from bt_lightning.weights.file_digests import GIT, SHA256
from bt_lightning.weights.weight_source import MOST_FILES, WeightFile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

_NAME: Final = re.compile(r"hf://([^/@]+/)?[^/@]+(@.+)?")
_MISSING: Final = ("RepositoryNotFoundError", "RevisionNotFoundError", "EntryNotFoundError")
_REFUSED: Final = frozenset({401, 403})
_SERVER_ERROR: Final = 500
_TRANSIENT: Final = frozenset({408, 425, 429})
_LONGEST_TEXT: Final = 500


class HubSource:
    """A repository of models at one commit."""

    large_at_once = 4

    def __init__(self, url: str, token: str | None = None) -> None:
        """`token`; without it, what `huggingface_hub` finds (`$HF_TOKEN`, a login).

        Raises:
            InvalidSettingError: `url` names no repository, or the package is not installed.
        """
        if not _NAME.fullmatch(url):
            msg = f"{url} names no repository, expected hf://owner/repository or with @revision"
            raise InvalidSettingError(msg)
        try:
            import huggingface_hub
        except ImportError as error:
            msg = f"{url} needs the package huggingface_hub: pip install bt-lightning[hf]"
            raise InvalidSettingError(msg) from error
        self._repo, _, revision = url.partition("://")[2].partition("@")
        self._hub, self._token = huggingface_hub, token
        self._secrets = with_spellings([token] if token else [])
        self._api = huggingface_hub.HfApi(token=token)
        found = self._call(lambda: self._api.model_info(self._repo, revision=revision or None))
        self._commit: str = found.sha

    @property
    def name(self) -> str:
        """The repository at its commit."""
        return f"hf://{self._repo}@{self._commit}"

    def files(self) -> list[WeightFile]:
        """The tree of the commit."""
        found: list[WeightFile] = self._call(self._listed)
        return found

    def fetch(
        self, file: WeightFile, folder: Path, on_bytes: Callable[[int], object]
    ) -> tuple[Path, Mapping[str, str]]:
        """Download by `huggingface_hub`, which goes on with what it left in `folder`."""
        self._call(
            lambda: self._hub.hf_hub_download(
                self._repo,
                file.path,
                revision=self._commit,
                local_dir=folder,
                token=self._token,
                **_reporting(self._hub, on_bytes),
            )
        )
        return folder / file.path, file.expected

    def _listed(self) -> list[WeightFile]:
        found: list[WeightFile] = []
        tree = self._api.list_repo_tree(self._repo, recursive=True, revision=self._commit)
        for one in tree:
            if isinstance(one, self._hub.hf_api.RepoFolder):
                continue
            lfs = one.lfs
            kind, digest = (SHA256, lfs.sha256) if lfs is not None else (GIT, one.blob_id)
            size = lfs.size if lfs is not None else one.size
            found.append(WeightFile(one.path, size, f"{kind} {digest} {size}", {kind: digest}))
            if len(found) > MOST_FILES:
                break  # refused by whoever checks the listing
        return found

    def _call(self, act: Callable[[], Any]) -> Any:
        """Call `huggingface_hub`, and translate what it raises."""
        try:
            return act()
        except CheckpointError:
            raise
        except Exception as error:  # noqa: BLE001 - of two HTTP clients, and of the Hub
            raise self._translated(error) from None  # its text may hold a signed URL

    def _translated(self, error: Exception) -> Exception:
        names = {kind.__name__ for kind in type(error).__mro__}
        said = redact(str(error), self._secrets).strip().replace("\n", " ")[:_LONGEST_TEXT]
        text = f"reading hf://{self._repo}: {type(error).__name__}: {said}"
        status = getattr(getattr(error, "response", None), "status_code", None)
        if "GatedRepoError" in names or status in _REFUSED:
            advice = "name a secret with a token as auth_secret_name, or set HF_TOKEN"
            return StorePermanentError(f"{text}; if the repository is private or gated, {advice}")
        if names.intersection(_MISSING):
            return CheckpointNotFoundError(text)
        if isinstance(error, OSError) and error.errno is not None and status is None:
            return error  # of the disk
        if "size" in said and "consistency" in said.lower():
            return CheckpointCorruptError(text)
        passing = status is None or status >= _SERVER_ERROR or status in _TRANSIENT
        return (StoreTransientError if passing else StorePermanentError)(text)


def _reporting(hub: Any, on_bytes: Callable[[int], object]) -> dict[str, Any]:
    """The argument for a class of progress bars that draws nothing, and reports."""
    if "tqdm_class" not in inspect.signature(hub.hf_hub_download).parameters:
        return {}  # an older version

    class Reporting(hub.utils.tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            on_bytes(int(n or 0))
            return None

    return {"tqdm_class": Reporting}
