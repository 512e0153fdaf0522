"""Lets the callback join each Trainer of `transformers` below a job.

Python imports this module when it starts, as its folder is first in the `PYTHONPATH` of the job,
and runs the `sitecustomize` that it hides behind it. Only the import of `transformers.trainer` is
looked for, and nothing of ours is imported before it. Whatever Python runs below the job reads it.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys

_WATCHED = "transformers.trainer"
_HERE = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - pathlib costs 5 ms


class _Watch:
    """A finder that looks for one module, lets the others find it, and is gone."""

    def find_spec(
        self, name: str, path: object = None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != _WATCHED:
            return None
        sys.meta_path.remove(self)
        found = (
            each.find_spec(name, path, target)  # type: ignore[arg-type]
            for each in list(sys.meta_path)
        )
        spec = next((one for one in found if one is not None), None)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_join(module: object) -> None:
                load(module)  # type: ignore[arg-type]
                _join()

            spec.loader.exec_module = load_and_join  # type: ignore[method-assign]
        return spec


def _join() -> None:
    try:
        from bt_lightning.hf.automatic_callback import join_trainers
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "bt_lightning":
            raise
        text = "bt_lightning is not installed for this Python: its Trainers save by themselves\n"
        sys.stderr.write(text)
        return
    join_trainers()


def _run_hidden() -> None:
    """Run the `sitecustomize` that Python would have found without this one."""
    places = [one for one in sys.path if os.path.abspath(one or os.curdir) != _HERE]  # noqa: PTH100
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", places)
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules["sitecustomize"] = module  # as its own imports expect
        spec.loader.exec_module(module)


if os.environ.get("BT_LIGHTNING") == "1":
    sys.meta_path.insert(0, _Watch())
_run_hidden()
