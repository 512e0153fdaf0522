"""No file makes a load run code, unless the caller asks for it with `weights_only=False`."""

from __future__ import annotations

import io as streams
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import warnings

import pytest
import torch
from state_tools import ALLOWED, Color, Foreign, Pair, Plain, Point, crafted, seal, tree_of

from bt_lightning import BTCheckpointIO, CheckpointCorruptError, UnsafeLoadError
from bt_lightning import UnsupportedStateError as Unsupported
from bt_lightning.path_layout import LEFTOVERS, MANIFEST, TREE

FORMS = {
    "class": {},
    "enum": {"name": "A", "value": None},
    "namedtuple": {"v": ["touch pwned"]},
    "dataclass": {"v": [["args", "touch pwned"]]},
    "attributedict": {"v": [["a", 1]]},
}
NAMES = ["os:system", "subprocess:Popen", "builtins:eval", "builtins:type", "posix:system", "", ":"]


@pytest.fixture
def bomb(tmp_path, monkeypatch):
    """A module that leaves a file when it is imported, and classes that no file may reach."""
    folder = tmp_path / "modules"
    folder.mkdir()
    mark = tmp_path / "imported"
    source = f"""
        open({str(mark)!r}, "w").close()
        import dataclasses, enum, typing
        class Kind(enum.Enum):
            A = 1
        @dataclasses.dataclass
        class Data:
            args: object = None
        class Pair(typing.NamedTuple):
            a: int
    """
    (folder / "bomb_module.py").write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(folder)
    yield mark
    sys.modules.pop("bomb_module", None)


@pytest.mark.parametrize("weights_only", [None, True])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", FORMS)
def test_a_name_of_code_is_not_a_class(kind, name, weights_only, place, monkeypatch):
    monkeypatch.chdir(place.parent)
    crafted(place, {"$": kind, "class": name, **FORMS[kind]})
    with pytest.raises(UnsafeLoadError):
        BTCheckpointIO().load_checkpoint(place, weights_only=weights_only)
    assert not (place.parent / "pwned").exists()


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("name", ["Kind", "Data", "Pair", "missing"])
def test_a_module_that_a_file_names_is_not_imported(kind, name, place, bomb):
    crafted(place, {"$": kind, "class": f"bomb_module:{name}", **FORMS[kind]})
    with pytest.raises(UnsafeLoadError, match=r"value is of the class bomb_module:"):
        BTCheckpointIO().load_checkpoint(place)
    assert not bomb.exists()
    assert "bomb_module" not in sys.modules


def test_a_class_of_a_module_that_is_imported_already_is_still_not_trusted(place):
    import decimal

    crafted(place, {"$": "namedtuple", "class": "decimal:DecimalTuple", "v": [0, [1], 2]})
    assert isinstance(decimal.Decimal(1).as_tuple(), decimal.DecimalTuple)
    with pytest.raises(UnsafeLoadError, match=r"add_safe_globals\(\[DecimalTuple\]\)"):
        BTCheckpointIO().load_checkpoint(place)


def test_a_factory_of_a_defaultdict_is_a_known_class_or_nothing(place):
    for factory in ({"$": "class", "class": "os:system"}, {"$": "class", "class": "builtins:exec"}):
        crafted(place, {"$": "defaultdict", "factory": factory, "v": []})
        with pytest.raises(UnsafeLoadError):
            BTCheckpointIO().load_checkpoint(place)


def test_the_type_of_a_config_is_a_known_class(place, bomb):
    node = {
        "$": "omegaconf",
        "class": "DictConfig",
        "v": {},
        "type": "bomb_module:Data",
        "flags": {},
    }
    with pytest.raises(UnsafeLoadError):
        BTCheckpointIO().load_checkpoint(crafted(place, node))
    assert not bomb.exists()


@pytest.mark.parametrize(
    "known", ["builtins:dict", "collections:deque", "torch.nn.modules.linear:Linear"]
)
@pytest.mark.parametrize("kind", ["enum", "namedtuple", "dataclass"])
def test_a_known_class_is_used_as_what_it_is_only(kind, known, place):
    """Otherwise a file could build objects of `torch.nn` with a state of its choice."""
    crafted(place, {"$": kind, "class": known, **FORMS[kind]})
    with pytest.raises(CheckpointCorruptError):
        BTCheckpointIO().load_checkpoint(place)


def test_the_table_of_known_classes_holds_what_we_put_there_and_no_more():
    """`vars(torch.optim.lr_scheduler)` holds what that module imports, too: `functools.partial`."""
    from bt_lightning.snapshot.class_allowlist import _table

    homes = {name.partition(":")[0].partition(".")[0] for name in _table()}
    assert homes == {"builtins", "collections", "torch"}


def test_no_module_of_torch_is_imported_because_a_file_names_it():
    """`getattr(torch, "onnx")` would: torch imports some of its parts when they are first named."""
    script = """
        import sys
        from bt_lightning import CheckpointCorruptError
        from bt_lightning.restore.decode_tree import Decoder
        from bt_lightning.snapshot.class_allowlist import ClassTable
        names = ["onnx", "_inductor", "_export", "_dynamo"]
        lazy = [name for name in names if f"torch.{name}" not in sys.modules]
        assert lazy
        for name in lazy:
            for kind in ("torch.dtype", "torch.layout", "torch.memory_format"):
                try:
                    Decoder({}, None, ClassTable()).decode({"$": kind, "v": f"torch.{name}"}, "x")
                except CheckpointCorruptError:
                    pass
            assert f"torch.{name}" not in sys.modules, name
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=100)


# --- leftovers ---


class _Bomb:
    def __reduce__(self):
        return (os.mkdir, (os.environ["BOMB_FOLDER"],))


@pytest.fixture
def pickle_bomb(tmp_path, monkeypatch):
    target = tmp_path / "exploded"
    monkeypatch.setenv("BOMB_FOLDER", str(target))
    stream = streams.BytesIO()
    torch.save({"value": _Bomb()}, stream)
    return stream.getvalue(), target


@pytest.mark.parametrize("weights_only", [None, True])
def test_leftovers_are_not_opened_unasked(weights_only, place, pickle_bomb, monkeypatch):
    content, target = pickle_bomb
    crafted(place, {"$": "leftover", "v": "value"}, leftovers=content)

    def forbidden(*_, **__):
        pytest.fail("a pickle was opened")

    monkeypatch.setattr(torch, "load", forbidden)
    with pytest.raises(UnsafeLoadError, match=r"value .* lies in leftovers\.pt"):
        BTCheckpointIO().load_checkpoint(place, weights_only=weights_only)
    assert not target.exists()


def test_leftovers_that_nothing_names_are_not_opened_either(place, pickle_bomb):
    content, target = pickle_bomb
    crafted(place, 5, leftovers=content)
    assert BTCheckpointIO().load_checkpoint(place) == {"value": 5}
    assert not target.exists()


def test_leftovers_are_loaded_on_request_which_runs_them(place, pickle_bomb):
    """This shows that the bomb of these tests is a live one."""
    content, target = pickle_bomb
    crafted(place, {"$": "leftover", "v": "value"}, leftovers=content)
    BTCheckpointIO().load_checkpoint(place, weights_only=False)
    assert target.is_dir()


def test_leftovers_are_verified_before_a_byte_of_them_is_run(place, pickle_bomb):
    content, target = pickle_bomb
    crafted(place, {"$": "leftover", "v": "value"}, leftovers=b"harmless")
    (place / LEFTOVERS).write_bytes(content)
    with pytest.raises(CheckpointCorruptError, match=LEFTOVERS):
        BTCheckpointIO().load_checkpoint(place, weights_only=False)
    assert not target.exists()


def test_leftovers_that_the_manifest_does_not_name_are_not_run(place, pickle_bomb):
    content, target = pickle_bomb
    crafted(place, {"$": "leftover", "v": "value"})
    (place / LEFTOVERS).write_bytes(content)
    with pytest.raises(CheckpointCorruptError):
        BTCheckpointIO().load_checkpoint(place, weights_only=False)
    assert not target.exists()


def test_any_importable_class_is_known_on_request(place):
    io = BTCheckpointIO()
    with pytest.warns(UserWarning, match=r"loading value \(Color\)"):
        io.save_checkpoint({"value": Color.RED}, place)
    assert io.load_checkpoint(place, weights_only=False)["value"] is Color.RED
    with pytest.raises(UnsafeLoadError):
        io.load_checkpoint(place, weights_only=True)


@pytest.mark.parametrize(
    "name", ["os:system", "no_such_module:X", "os:nothing", "", ".x:y", "a..b:c"]
)
def test_even_on_request_a_name_must_lead_to_a_class(name, place):
    crafted(place, {"$": "class", "class": name})
    with pytest.raises((UnsafeLoadError, CheckpointCorruptError)):
        BTCheckpointIO().load_checkpoint(place, weights_only=False)


# --- allowing ---


@pytest.mark.parametrize("value", [Color.GREEN, Point(1, 2), Pair(1), Plain(3)], ids=repr)
def test_safe_globals_of_torch_count(value, place, safe_globals):
    safe_globals([type(value)])
    io = BTCheckpointIO()
    io.save_checkpoint({"value": value}, place)
    assert io.load_checkpoint(place)["value"] == value


def test_a_class_is_allowed_by_whoever_builds_the_plugin(place):
    BTCheckpointIO(ALLOWED).save_checkpoint({"value": Plain(3)}, place)
    assert BTCheckpointIO([Plain]).load_checkpoint(place)["value"] == Plain(3)
    with pytest.raises(UnsafeLoadError, match=r"^value is of the class state_tools:Plain"):
        BTCheckpointIO([Color]).load_checkpoint(place)


def test_the_refusal_says_which_class_where_and_what_to_do(place):
    BTCheckpointIO(ALLOWED).save_checkpoint({"callbacks": {"Mine": {"x": [Plain(3)]}}}, place)
    with pytest.raises(UnsafeLoadError) as caught:
        BTCheckpointIO().load_checkpoint(place)
    for word in (
        "callbacks.Mine.x",
        "state_tools:Plain",
        "add_safe_globals([Plain])",
        "weights_only=False",
    ):
        assert word in str(caught.value)
    assert isinstance(caught.value, pickle.UnpicklingError)


# --- hyperparameters: what is not loaded must not stop a resume ---


@pytest.mark.filterwarnings("ignore:saved with pickle")
@pytest.mark.filterwarnings("ignore:loading .* needs")
@pytest.mark.parametrize("section", ["hyper_parameters", "datamodule_hyper_parameters"])
def test_a_hyperparameter_that_is_not_allowed_is_left_out_and_named(section, place):
    state = {
        "state_dict": {"w": torch.ones(1)},
        section: {"lr": 0.1, "net": {"kind": Foreign()}, "c": Color.RED},
    }
    BTCheckpointIO().save_checkpoint(state, place)
    with pytest.warns(UserWarning, match=rf"{section}\.net\.kind, {section}\.c\."):
        back = BTCheckpointIO().load_checkpoint(place)
    assert back["state_dict"]["w"].tolist() == [1]
    assert back[section]["lr"] == 0.1
    for hole, name in ((back[section]["net"]["kind"], "net.kind"), (back[section]["c"], "c")):
        assert f"{section}.{name} was not loaded" in repr(hole)
        for use in (
            lambda h: h.value,
            lambda h: h(),
            lambda h: h[0],
            iter,
            len,
            bool,
            pickle.dumps,
        ):
            with pytest.raises(UnsafeLoadError, match=f"{section}.{name} was not loaded"):
                use(hole)


@pytest.mark.filterwarnings("ignore:saved with pickle")
@pytest.mark.filterwarnings("ignore:loading .* needs")
@pytest.mark.parametrize("value", [Foreign(), Color.RED], ids=["leftover", "class"])
@pytest.mark.parametrize(
    "section", ["callbacks", "state_dict", "hyper_parameters_of_mine", "hparams_type"]
)
def test_anything_else_that_is_not_allowed_stops_the_load(section, value, place):
    BTCheckpointIO().save_checkpoint({section: {"x": value}}, place)
    with pytest.raises(UnsafeLoadError, match=rf"{section}\.x"):
        BTCheckpointIO().load_checkpoint(place)


@pytest.mark.filterwarnings("ignore:saved with pickle")
def test_a_hyperparameter_beyond_pickle_is_dropped_with_a_warning_that_names_it(place):
    io = BTCheckpointIO()
    with pytest.warns(UserWarning, match=r"hyper_parameters\.fn"):
        io.save_checkpoint(
            {"hyper_parameters": {"fn": lambda: 1, "ok": Foreign(2), "lr": 1}}, place
        )
    back = io.load_checkpoint(place, weights_only=False)["hyper_parameters"]
    assert back["ok"] == Foreign(2)
    assert back["lr"] == 1
    with pytest.raises(UnsafeLoadError, match=r"hyper_parameters\.fn .* could not be pickled"):
        back["fn"]()


def test_the_warning_does_not_promise_what_was_dropped(place):
    """There is no leftovers.pt, so no load will ever give this value back."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        BTCheckpointIO().save_checkpoint({"hyper_parameters": {"fn": lambda: 1}}, place)
    assert not (place / LEFTOVERS).exists()
    text = " ".join(str(item.message) for item in caught)
    assert "hyper_parameters.fn" in text
    assert "in leftovers.pt" not in text
    assert "loads them" not in text


@pytest.mark.parametrize("section", ["callbacks", "hyper_parameters_of_my_callback"])
def test_anything_else_beyond_pickle_is_refused_by_name_and_leaves_no_trace(section, place):
    with pytest.raises(Unsupported, match=rf"^{section}\.lock is a _thread\.lock"):
        BTCheckpointIO().save_checkpoint(
            {section: {"lock": threading.Lock(), "a": Foreign()}}, place
        )
    assert list(place.parent.iterdir()) == []


@pytest.mark.filterwarnings("ignore:left out of")
def test_a_checkpoint_with_a_hole_can_be_saved_again(place, tmp_path):
    """`load, change, save` must not fail for a hyperparameter that nobody needs."""
    io = BTCheckpointIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        io.save_checkpoint({"hyper_parameters": {"x": Foreign(), "lr": 1}}, place)
        io.save_checkpoint(io.load_checkpoint(place), tmp_path / "again")
    assert io.load_checkpoint(tmp_path / "again")["hyper_parameters"]["lr"] == 1


# --- the warning at the first save ---


def test_what_will_not_come_back_by_itself_is_named_once(tmp_path):
    io = BTCheckpointIO()
    state = {"a": {"b": Foreign()}, "c": [Color.RED, Color.GREEN], "d": 1}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for name in ("one", "two", "two"):
            io.save_checkpoint(state, tmp_path / name)
    texts = [str(item.message) for item in caught]
    assert len(texts) == 2
    assert "a.b (state_tools.Foreign)" in texts[0]
    assert "c.0 (Color)" in texts[1]


def test_a_state_that_comes_back_by_itself_warns_of_nothing(place):
    BTCheckpointIO(ALLOWED).save_checkpoint({"a": [Color.RED, Plain(), {1: (2,)}]}, place)


@pytest.mark.filterwarnings("ignore:saved with pickle")
def test_the_manifest_lists_what_is_in_the_leftovers(place):
    import json

    BTCheckpointIO().save_checkpoint({"a": {"b": Foreign()}}, place)
    manifest = json.loads((place / MANIFEST).read_bytes())
    assert manifest["leftovers"] == [["a.b", "state_tools.Foreign"]]
    assert tree_of(place)["a"]["b"] == {"$": "leftover", "v": "a.b"}


def test_a_config_without_omegaconf_installed_is_a_hole_in_the_hyperparameters(place, monkeypatch):
    """A machine that only resumes need not have it."""
    from omegaconf import OmegaConf

    io = BTCheckpointIO()
    io.save_checkpoint({"hyper_parameters": OmegaConf.create({"a": 1}), "epoch": 3}, place)
    monkeypatch.setitem(sys.modules, "omegaconf", None)
    with pytest.warns(UserWarning, match="left out of"):
        assert io.load_checkpoint(place)["epoch"] == 3


def test_sealed_copies_of_honest_checkpoints_load(place):
    """The tampering helpers of these tests must not be what is refused."""
    BTCheckpointIO().save_checkpoint({"a": torch.ones(3)}, place)
    (place / MANIFEST).unlink()
    seal(place)
    assert BTCheckpointIO().load_checkpoint(place)["a"].tolist() == [1, 1, 1]
    assert (place / TREE).exists()
