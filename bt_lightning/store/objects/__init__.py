"""Objects that no job published, each read at one version: buckets, folders, https URLs.

In come the URL of a folder or of one object, and credentials; out go the objects below it and their
bytes. Nothing here trusts a listing: paths are checked by the caller, numbers are bounded here.
Start reading at `pinned_object`, then `open_objects`.
"""

from __future__ import annotations
