"""`BTCheckpointIO` alone, as a plugin of a Trainer and of Fabric."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch
from state_tools import same

from bt_lightning import BTCheckpointIO
from bt_lightning.localdir.list_and_verify_checkpoints import verify
from bt_lightning.path_layout import MANIFEST

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:Trainer already configured with model summary"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks"),
    pytest.mark.filterwarnings("ignore:.*isinstance\\(treespec:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.* before .*optimizer.step"),
]


def _trainer(folder, *callbacks, io=None, **options):
    from lightning.pytorch import Trainer

    defaults = {
        "max_epochs": 1,
        "limit_train_batches": 2,
        "limit_val_batches": 1,
        "limit_test_batches": 1,
    }
    return Trainer(
        default_root_dir=folder,
        plugins=[io or BTCheckpointIO()],
        callbacks=list(callbacks),
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{**defaults, **options},
    )


def _model():
    from lightning.pytorch.demos.boring_classes import BoringModel

    torch.manual_seed(3)
    return BoringModel()


def test_a_training_writes_committed_directories_and_goes_on_from_one(tmp_path):
    from lightning.pytorch.callbacks import ModelCheckpoint

    trainer = _trainer(tmp_path, ModelCheckpoint(tmp_path, save_last=True))
    trainer.fit(_model())
    (best,) = [path for path in tmp_path.iterdir() if path.name.startswith("epoch=0")]
    assert verify(best).step == 2
    assert verify(best).resumable
    resumed = _trainer(tmp_path, ModelCheckpoint(tmp_path, save_last=True), max_epochs=2)
    resumed.fit(_model(), ckpt_path=str(best))
    assert resumed.global_step == 4
    assert resumed.current_epoch == 2


def test_a_training_in_two_parts_ends_where_one_in_one_part_does(tmp_path):
    whole = _model()  # seeds the data of the training that follows, too
    _trainer(tmp_path / "a", max_epochs=2, enable_checkpointing=False).fit(whole)
    trainer = _trainer(tmp_path / "b", enable_checkpointing=False)
    trainer.fit(_model())
    trainer.save_checkpoint(tmp_path / "middle")
    resumed = _trainer(tmp_path / "c", max_epochs=2, enable_checkpointing=False)
    second = _model()
    resumed.fit(second, ckpt_path=tmp_path / "middle")
    same(dict(whole.state_dict()), dict(second.state_dict()))


@pytest.mark.parametrize("choice", ["best", "last", "path"])
def test_a_test_loads_the_checkpoint_that_is_asked_for(choice, tmp_path):
    from lightning.pytorch.callbacks import ModelCheckpoint

    trainer = _trainer(tmp_path, ModelCheckpoint(tmp_path, save_last=True))
    model = _model()
    trainer.fit(model)
    trained = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.nn.init.zeros_(model.layer.weight)
    path = trainer.checkpoint_callback.best_model_path if choice == "path" else choice
    trainer.test(model, ckpt_path=path, verbose=False)
    same(trained, dict(model.state_dict()))


def test_model_checkpoint_prunes_directories_as_it_does_files(tmp_path):
    from lightning.pytorch.callbacks import ModelCheckpoint

    callback = ModelCheckpoint(tmp_path, save_top_k=1, every_n_train_steps=1, monitor=None)
    _trainer(tmp_path, callback).fit(_model())
    assert [path.name for path in tmp_path.iterdir()] == ["epoch=0-step=2.ckpt"]


def test_the_last_checkpoint_may_be_a_link(tmp_path):
    from lightning.pytorch.callbacks import ModelCheckpoint

    trainer = _trainer(tmp_path, ModelCheckpoint(tmp_path, save_last="link"))
    trainer.fit(_model())
    assert (tmp_path / "last.ckpt").is_symlink()
    resumed = _trainer(tmp_path, max_epochs=2, enable_checkpointing=False)
    resumed.fit(_model(), ckpt_path=tmp_path / "last.ckpt")
    assert resumed.global_step == 4


def test_a_stock_checkpoint_is_gone_on_from(tmp_path):
    from lightning.fabric.plugins import TorchCheckpointIO

    stock = _trainer(tmp_path, io=TorchCheckpointIO(), enable_checkpointing=False)
    stock.fit(_model())
    stock.save_checkpoint(tmp_path / "stock.ckpt")
    assert (tmp_path / "stock.ckpt").is_file()
    resumed = _trainer(tmp_path, max_epochs=2, enable_checkpointing=False)
    resumed.fit(_model(), ckpt_path=tmp_path / "stock.ckpt")
    assert resumed.global_step == 4


def test_a_training_goes_on_from_a_url(tmp_path):
    import fsspec

    url = "memory://bucket/state/middle"
    trainer = _trainer(tmp_path, enable_checkpointing=False)
    trainer.fit(_model())
    trainer.save_checkpoint(url)
    resumed = _trainer(tmp_path, max_epochs=2, enable_checkpointing=False)
    resumed.fit(_model(), ckpt_path=url)
    assert resumed.global_step == 4
    fsspec.filesystem("memory").rm("/bucket/state", recursive=True)


def test_weights_alone_are_saved_as_such(tmp_path):
    trainer = _trainer(tmp_path, enable_checkpointing=False)
    trainer.fit(_model())
    trainer.save_checkpoint(tmp_path / "weights", weights_only=True)
    manifest = verify(tmp_path / "weights")
    assert not manifest.resumable
    assert "optimizer_states" not in BTCheckpointIO().load_checkpoint(tmp_path / "weights")


def test_hyperparameters_come_back_with_the_checkpoint(tmp_path):
    from lightning.pytorch.demos.boring_classes import BoringModel

    class Model(BoringModel):
        def __init__(self, lr, sizes, name):
            super().__init__()
            self.save_hyperparameters()

    trainer = _trainer(tmp_path, enable_checkpointing=False)
    trainer.fit(Model(0.1, (1, 2), name=None))
    trainer.save_checkpoint(tmp_path / "one")
    back = BTCheckpointIO().load_checkpoint(tmp_path / "one")
    same({"lr": 0.1, "sizes": (1, 2), "name": None}, back["hyper_parameters"])


def test_fabric_saves_and_loads_a_state_in_place(tmp_path):
    from lightning.fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=1, plugins=[BTCheckpointIO()])
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    model, optimizer = fabric.setup(model, optimizer)
    fabric.backward(model(torch.ones(1, 2)).sum())
    optimizer.step()
    state = {"model": model, "optimizer": optimizer, "step": 7, "notes": {1: (2,)}}
    fabric.save(tmp_path / "one", state)
    assert verify(tmp_path / "one").step == 7
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.nn.init.zeros_(model.weight)
    state["step"] = 0
    rest = fabric.load(tmp_path / "one", state)
    assert rest == {}
    assert state["step"] == 7
    assert state["notes"] == {1: (2,)}
    same(before, dict(model.state_dict()))


def test_fabric_loads_without_a_state_of_its_own(tmp_path):
    from lightning.fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=1, plugins=[BTCheckpointIO()])
    fabric.save(tmp_path / "one", {"a": torch.ones(2), "b": [1]})
    same({"a": torch.ones(2), "b": [1]}, fabric.load(tmp_path / "one"))


@pytest.mark.parametrize(
    ("state", "weights"),
    [
        ({"model": {"w": torch.ones(2)}, "ema": {"w": torch.zeros(2)}, "iteration": 5}, {"w"}),
        ({"net": {"w": torch.ones(2)}, "hparams": {"lr": 1}, "iter_num": 5}, {"w"}),
        ({"state_dict": {"a": torch.ones(2)}, "model": {"w": torch.ones(2)}, "step": 5}, {"a"}),
        ({"one": {"w": torch.ones(2)}, "two": {"w": torch.ones(2)}, "step_count": 5}, set()),
    ],
)
def test_fabric_states_have_their_weights_where_weights_are_and_their_step(
    state, weights, tmp_path
):
    """Whatever the user of Fabric calls the model and the steps in the state."""
    from lightning.fabric import Fabric
    from safetensors.torch import load_file

    fabric = Fabric(accelerator="cpu", devices=1, plugins=[BTCheckpointIO()])
    fabric.save(tmp_path / "one", state)
    assert verify(tmp_path / "one").step == 5
    file = tmp_path / "one" / "model.safetensors"
    assert (set(load_file(file)) if file.exists() else set()) == weights
    same(state, fabric.load(tmp_path / "one"))


def test_a_model_and_its_optimizer_of_fabric_lie_apart(tmp_path):
    from lightning.fabric import Fabric
    from safetensors.torch import load_file

    fabric = Fabric(accelerator="cpu", devices=1, plugins=[BTCheckpointIO()])
    model = torch.nn.Linear(2, 2)
    model, optimizer = fabric.setup(model, torch.optim.Adam(model.parameters()))
    fabric.backward(model(torch.ones(1, 2)).sum())
    optimizer.step()
    fabric.save(tmp_path / "one", {"model": model, "optimizer": optimizer})
    weights = load_file(tmp_path / "one" / "model.safetensors")
    same(dict(model.state_dict()), weights)
    assert not set(weights) & set(load_file(tmp_path / "one" / "optimizer.safetensors"))


def _tunable():
    from lightning.pytorch.demos.boring_classes import BoringModel
    from torch.utils.data import DataLoader

    class Model(BoringModel):
        def __init__(self):
            super().__init__()
            self.lr, self.batch_size = 0.1, 1

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=self.lr)

        def train_dataloader(self):
            return DataLoader(torch.ones(64, 32), batch_size=self.batch_size)

    torch.manual_seed(3)
    return Model()


_TUNING = {"limit_train_batches": 8, "limit_val_batches": 0, "enable_checkpointing": False}


def test_the_tuner_finds_what_it_finds_without_the_plugin(tmp_path):
    """Lightning saves, loads and removes files of its own by it, under names with a dot."""
    from lightning.fabric.plugins import TorchCheckpointIO
    from lightning.pytorch.tuner import Tuner

    found = []
    for io in (TorchCheckpointIO(), BTCheckpointIO()):
        model = _tunable()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        tuner = Tuner(_trainer(tmp_path, io=io, **_TUNING))
        rates = tuner.lr_find(model, num_training=8, max_lr=0.5).results
        size = tuner.scale_batch_size(model, max_trials=2, steps_per_trial=1)
        same(before, dict(model.state_dict()))
        found.append((rates, size))
    assert found[0] == found[1]
    assert list(tmp_path.glob(".*")) == []


def test_the_finders_in_a_fit_do_as_without_the_plugin(tmp_path):
    from lightning.fabric.plugins import TorchCheckpointIO
    from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder

    found = []
    for io in (TorchCheckpointIO(), BTCheckpointIO()):
        finders = [
            BatchSizeFinder(max_trials=2, steps_per_trial=1),
            LearningRateFinder(num_training_steps=8),
        ]
        trainer, model = _trainer(tmp_path, *finders, io=io, **_TUNING), _tunable()
        trainer.fit(model)
        found.append((trainer.global_step, model.lr, model.batch_size, model.state_dict()))
    assert found[0][:3] == found[1][:3]
    same(dict(found[0][3]), dict(found[1][3]))
    assert list(tmp_path.glob(".*")) == []


@pytest.mark.thorough
def test_the_older_namespace_takes_the_plugin_as_well(tmp_path):
    """A script that imports only `pytorch_lightning` has a Trainer of another class tree."""
    script = f"""
        import sys, warnings
        warnings.simplefilter("ignore")
        from pytorch_lightning import Trainer
        from pytorch_lightning.demos.boring_classes import BoringModel
        from bt_lightning import BTCheckpointIO

        def trainer(epochs):
            return Trainer(
                default_root_dir={str(tmp_path)!r}, plugins=[BTCheckpointIO()], accelerator="cpu",
                max_epochs=epochs, limit_train_batches=2, limit_val_batches=0, logger=False,
                enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
            )

        first = trainer(1)
        first.fit(BoringModel())
        first.save_checkpoint({str(tmp_path / "one")!r})
        second = trainer(2)
        second.fit(BoringModel(), ckpt_path={str(tmp_path / "one")!r})
        assert "lightning.pytorch" not in sys.modules
        print("steps", second.global_step)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, check=False, timeout=110, capture_output=True, text=True)
    assert done.stdout.strip().endswith("steps 4"), done.stderr
    assert (tmp_path / "one" / MANIFEST).exists()


def test_attribute_dicts_of_the_other_namespace_are_loaded_too(place):
    """A run that moves from `pytorch_lightning` to `lightning` must keep its hyperparameters."""
    from state_tools import crafted

    for home in ("lightning.fabric.utilities.data", "lightning_fabric.utilities.data"):
        node = {"$": "attributedict", "class": f"{home}:AttributeDict", "v": [["lr", 0.1]]}
        assert BTCheckpointIO().load_checkpoint(crafted(place, node))["value"] == {"lr": 0.1}
