"""What is frozen, and what trains, is in a resumed run as in the uninterrupted one."""

from __future__ import annotations

from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

OLD = tuple(map(int, version("lightning").split(".")[:2])) < (2, 6)
needs_26 = pytest.mark.skipif(
    OLD, reason="Lightning before 2.6 starts an epoch again that is resumed in its middle"
)

EPOCH = {"every_n_epochs": 1}
TRAIN_END = {"every_n_epochs": 1, "save_on_train_epoch_end": True}
MID = {"every_n_train_steps": 3}


def finetuned(runs: ModuleType) -> Any:
    """A module whose optimizer has the parameters of its head."""
    import torch

    class Finetuned(runs.Net):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.backbone = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8))
            self.net = torch.nn.Sequential(self.backbone, self.net)

        def configure_optimizers(self) -> Any:
            wanted = [p for p in self.parameters() if p.requires_grad]
            return torch.optim.AdamW(wanted, lr=self.lr)

    return Finetuned


def unfreezing(epoch: int, *, train_bn: bool = True) -> Any:
    from lightning.pytorch.callbacks import BackboneFinetuning

    return BackboneFinetuning(epoch, lambda _: 1.5, 0.1, train_bn=train_bn)


def by_parts(epoch: int) -> Any:
    """Freezes all of it, statistics as well, and unfreezes one layer more in each epoch."""
    from lightning.pytorch.callbacks import BaseFinetuning

    class ByParts(BaseFinetuning):
        def freeze_before_training(self, pl_module: Any) -> None:
            self.freeze(pl_module.backbone, train_bn=False)

        def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
            parts = {0: [], 1: pl_module.backbone[1:], 2: pl_module.backbone[:1]}.get(epoch, [])
            if len(parts):
                self.unfreeze_and_add_param_group(parts, optimizer, lr=1e-2)

    return ByParts()


def by_hand(epoch: int) -> Any:
    """A user's own callback: in the first epochs the backbone is frozen and in eval mode."""
    from lightning.pytorch.callbacks import Callback

    class ByHand(Callback):
        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            pl_module.backbone.eval().requires_grad_(False)

        on_train_start = on_fit_start

        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == epoch:
                pl_module.backbone.train().requires_grad_()

    return ByHand()


def case(name: str, make: Any, save: dict[str, Any], *stops: int, **options: Any) -> Any:
    mid = any(stop % 8 != 1 for stop in stops)
    what = (make, save, stops, {"stateful": True} if mid else {}, options)
    return pytest.param(what, id=name, marks=(needs_26,) if mid else ())


CASES = [
    case("backbone-before", partial(unfreezing, 2), EPOCH, 9),
    case("backbone-at_it", partial(unfreezing, 1), TRAIN_END, 9),
    case("backbone-after", partial(unfreezing, 1), EPOCH, 17, 25, max_epochs=4),
    case("backbone-in_its_epoch", partial(unfreezing, 1), MID, 10, 14, 20),
    case("backbone-without_bn", partial(unfreezing, 1, train_bn=False), EPOCH, 17),
    case("parts", partial(by_parts, 1), EPOCH, 9, 17, 25, max_epochs=4),
    case("parts-middle", partial(by_parts, 1), MID, 7, 14, 20),
    case("by_hand", partial(by_hand, 1), EPOCH, 17),
    case("by_hand-train_end", partial(by_hand, 1), TRAIN_END, 9, 17),
    case("by_hand-before", partial(by_hand, 1), MID, 7),
    case("by_hand-validated_in_the_middle", partial(by_hand, 1), MID, 14, val_check_interval=3),
]


@pytest.mark.filterwarnings("ignore:The provided params to be frozen already exist")
@pytest.mark.filterwarnings("ignore:Found .* in eval mode at the start of training")
@pytest.mark.parametrize("what", CASES)
def test_what_trains_is_resumed(runs: ModuleType, tmp_path: Path, what: Any) -> None:
    callback, save, stops, loader, options = what
    make = finetuned(runs)
    options = {"save": {"save_top_k": -1, **save}, "loader_options": loader, **options}
    reference = runs.fit(tmp_path / "reference", callback(), make=make, **options)
    for number, stop in enumerate(stops):
        seed, module = 1 + 100 * number, partial(make, stop)
        assert runs.fit(tmp_path / "run", callback(), seed=seed, make=module, **options).stopped
    resumed = runs.fit(tmp_path / "run", callback(), seed=99, make=make, **options)
    assert 0 < resumed.first_step <= stops[-1]
    assert flags(resumed.module) == flags(reference.module)
    assert resumed.outcome == reference.outcome


def flags(module: Any) -> dict[str, list[str]]:
    """What trains, by its names."""
    modules = dict(module.named_modules())
    return {
        "trained": [name for name, p in module.named_parameters() if p.requires_grad],
        "modes": [name for name, part in modules.items() if part.training],
        "tracking": [n for n, part in modules.items() if getattr(part, "track_running_stats", 0)],
    }
