"""The code under test without one of its waits, each in turn: found in its source, none is listed.

A wait is a call that makes a stream or a host thread wait, or records what is waited for, a choice
of the stream that work and memory belong to, or what keeps memory from being handed out.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
from dataclasses import dataclass
from types import CodeType

from bt_lightning.restore import load_to_device
from bt_lightning.snapshot import (
    copy_and_torn_check,
    cuda_copies,
    device_sources,
    device_streams,
    tensor_digests,
)

MODULES = (
    copy_and_torn_check,
    cuda_copies,
    device_sources,
    device_streams,
    load_to_device,
    tensor_digests,
)
_CALLS = {
    *("record", "wait_event", "wait_stream", "synchronize"),
    *("guard", "wait", "_wait_for_devices"),
}
_CHOICES = {"on_stream", "_on_device"}
_HOLDS = {"_held"}


@dataclass(frozen=True)
class MissingWait:
    """One wait that is left out: where it stands, and what it is."""

    module: object
    function: tuple[str, ...]
    """The names of the class, if any, and of the function."""
    number: int
    text: str

    def __str__(self) -> str:
        return f"{self.module.__name__.rpartition('.')[2]}.{'.'.join(self.function)}: {self.text}"

    @contextlib.contextmanager
    def applied(self):
        """Everybody runs the function without the wait while the block runs."""
        function = self.module
        for name in self.function:
            function = getattr(function, name)
        function = inspect.unwrap(function)
        tree = ast.parse(inspect.getsource(self.module))
        _Removal(self.number).visit(tree)
        code = compile(
            ast.fix_missing_locations(tree), self.module.__file__, "exec", dont_inherit=True
        )
        for name in self.function:
            inner = [one for one in code.co_consts if isinstance(one, CodeType)]
            code = next(one for one in inner if one.co_name == name)
        kept, function.__code__ = function.__code__, code
        try:
            yield
        finally:
            function.__code__ = kept


class _Removal(ast.NodeTransformer):
    """Counts the waits of a module in order, and leaves out the one with a number."""

    def __init__(self, number=None) -> None:
        self.found = []
        self._number = number
        self._names = ()

    def visit_ClassDef(self, node):
        return self._within(node)

    def visit_FunctionDef(self, node):
        return self._within(node)

    def visit_Expr(self, node):
        called = node.value.func if isinstance(node.value, ast.Call) else None
        is_wait = isinstance(called, ast.Attribute) and called.attr in _CALLS
        return ast.Pass() if is_wait and self._is_removed(node) else node

    def visit_Assign(self, node):
        target = node.targets[0]
        is_hold = isinstance(target, ast.Attribute) and target.attr in _HOLDS
        return ast.Pass() if is_hold and self._is_removed(node) else node

    def visit_With(self, node):
        for item in list(node.items):
            call = item.context_expr
            is_choice = isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)
            if is_choice and call.func.attr in _CHOICES and self._is_removed(call):
                item.context_expr = ast.parse("memoryview(b'')", mode="eval").body
        return self.generic_visit(node)

    def _within(self, node):
        before, self._names = self._names, (*self._names, node.name)
        try:
            return self.generic_visit(node)
        finally:
            self._names = before

    def _is_removed(self, node):
        self.found.append((self._names, ast.unparse(node)))
        return len(self.found) - 1 == self._number


def missing_waits():
    """Each wait of the modules."""
    for module in MODULES:
        removal = _Removal()
        removal.visit(ast.parse(inspect.getsource(module)))
        for number, (names, text) in enumerate(removal.found):
            yield MissingWait(module, names, number, text)
