"""`weights:` of a Truss on this machine: each source whole below its mount location.

In come the list of a `config.yaml` and credentials; out come folders of verified files, hard-linked
to a cache whose files are named by the SHA-256 of their bytes. No terminal, no torch. Start reading
at `pull`, then `weight_source`, `blob_cache` and `mount_directory`.
"""

from __future__ import annotations
