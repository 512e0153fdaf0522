"""Private names of Lightning for signal handlers.

Lightning's own handler of SIGTERM runs a collective inside the handler (2.6): ranks that receive
the signal at different moments deadlock. The methods that it registers are replaced on the
instance, so that Lightning still registers, composes and restores handlers as usual. Source:
`_SignalConnector` of 2.4 and 2.6.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightning.pytorch import Trainer

_METHODS = ("register_signal_handlers", "_sigterm_notifier_fn", "_slurm_sigusr_handler_fn")


def hook_signals(
    trainer: Trainer,
    before: Callable[[], None],
    on_sigterm: Callable[[int, Any], None],
    on_requeue: Callable[[int, Any], None],
) -> None:
    """Let Lightning register these handlers instead of its own, after calling `before`."""
    connector = trainer._signal_connector
    register = type(connector).register_signal_handlers

    def register_signal_handlers() -> None:
        before()
        register(connector)

    handlers = (register_signal_handlers, on_sigterm, on_requeue)
    vars(connector).update(zip(_METHODS, handlers, strict=True))


def unhook_signals(trainer: Trainer) -> None:
    """Undo `hook_signals`; idempotent. Lightning restores the handlers at the end of a run."""
    for name in _METHODS:
        vars(trainer._signal_connector).pop(name, None)


def forward(trainer: Trainer, signum: int) -> None:
    """Send a signal to the ranks that this process launched."""
    launcher = trainer.strategy.launcher
    if launcher is not None:
        launcher.kill(signum)


def requeue(trainer: Trainer, signum: int) -> None:
    """Run Lightning's own handler of SLURM's signal: save `hpc_ckpt_N.ckpt`, requeue the job."""
    connector = trainer._signal_connector
    type(connector)._slurm_sigusr_handler_fn(connector, signum, None)  # type: ignore[arg-type]


def ended_by_signal(trainer: Trainer, code: int) -> SystemExit:
    """The exception that Lightning raises at the end of a run by SIGTERM, with an exit status."""
    trainer._signal_connector.received_sigterm = True
    module = sys.modules[type(trainer.fit_loop).__module__]
    error: SystemExit = module.SIGTERMException()
    error.code = code
    return error
