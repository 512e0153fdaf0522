"""Recipes of definitions, from which both ours and those of truss are made.

A recipe is `Made(class name, arguments)`; an enum's member is `Member(class name, its name)`.
"""

from __future__ import annotations

import types
from dataclasses import MISSING, dataclass, fields
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from hypothesis import strategies as st
from truss.base import truss_config
from truss_train import definitions as theirs

from bt_lightning import truss_definitions as ours
from bt_lightning.truss_definitions import validators

PRIVATE = {
    "LatestCheckpoint": "_BasetenLatestCheckpoint",
    "NamedCheckpoint": "_BasetenNamedCheckpoint",
    "LoopsCheckpointRef": "_LoopsCheckpoint",
}
"""Classes that truss makes by functions only, by our names."""


@dataclass(frozen=True)
class Made:
    kind: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Member:
    kind: str
    name: str


def of_truss(name: str) -> Any:
    """The class of truss that ours of that name stands for."""
    name = PRIVATE.get(name, name)
    return getattr(theirs, name, None) or getattr(truss_config, name)


def of_ours(name: str) -> Any:
    return getattr(ours, name)


def make(recipe: Any, look_up: Any) -> Any:
    """What a recipe describes, of the classes that `look_up` gives."""
    match recipe:
        case Made():
            return look_up(recipe.kind)(**make(recipe.arguments, look_up))
        case Member():
            return look_up(recipe.kind)[recipe.name]
        case list():
            return [make(item, look_up) for item in recipe]
        case dict():
            return {name: make(item, look_up) for name, item in recipe.items()}
    return recipe


TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8)
VISIBLE = TEXT.filter(str.strip)
PART = st.text(st.sampled_from("abz09-_.@ "), min_size=1, max_size=8).filter(
    lambda text: text not in {".", ".."}
)
VISIBLE_PART = PART.filter(lambda text: text[0] != ".")
RULED = {
    validators.Text: VISIBLE,
    validators.Name: VISIBLE,
    validators.Id: PART,
    validators.CheckpointName: st.lists(VISIBLE_PART, min_size=1, max_size=3).map("/".join)
    | st.just("."),
    validators.FilePath: VISIBLE,
    validators.AbsolutePath: TEXT.map("/{}".format),
    validators.Memory: st.sampled_from(["2Gi", "512Mi", "1.5G", "1000", "1e9", "3Ti", "64k"]),
}
SOURCES = st.sampled_from(
    ["hf://a/b", "hf://a/b@main", "s3://b/x", "gs://b", "azure://a/c", "r2://a.b", "https://x/y"]
)
"""Not `bt://`, the one thing that is taken here and not there."""


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Recipes of good values of a field."""
    if hint in RULED:
        return RULED[hint]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return st.integers(1, 10**6) if arguments[0] is int else SOURCES
    if origin in {Union, types.UnionType}:
        return st.one_of([values(option) for option in arguments])
    if origin is list:
        return st.lists(values(arguments[0]), max_size=2)
    if origin is dict:
        names = VISIBLE.filter(lambda text: "=" not in text)
        return st.dictionaries(names, values(arguments[1]), max_size=2)
    if origin is Literal:
        return st.sampled_from(arguments)
    if hint in {str, int, bool, types.NoneType}:
        return {str: TEXT, int: st.integers(-9, 9), bool: st.booleans()}.get(hint, st.none())
    if issubclass(hint, Enum):
        return st.sampled_from([Member(hint.__name__, member.name) for member in hint])
    return recipes(hint)


def recipes(kind: type) -> st.SearchStrategy[Made]:
    """Recipes of good objects of a class of ours."""
    special = {
        ours.CheckpointRef: lambda: st.one_of([recipes(of_ours(name)) for name in PRIVATE]),
        ours.Checkpoint: lambda: st.one_of(
            [recipes(ours.FullCheckpoint), recipes(ours.WhisperCheckpoint)]
        ),
        ours.DockerAuth: _docker_auth,
        ours.WeightsAuth: _weights_auth,
    }
    if kind in special:
        return special[kind]()
    hints = get_type_hints(kind, include_extras=True)
    parts: dict[bool, dict[str, Any]] = {True: {}, False: {}}
    for item in fields(kind):
        needed = item.default is MISSING and item.default_factory is MISSING
        parts[needed][item.name] = values(hints[item.name])
    arguments = st.fixed_dictionaries(parts[True], optional=parts[False])
    return arguments.filter(fits_together).map(lambda given: Made(kind.__name__, given))


def fits_together(given: dict[str, Any]) -> bool:
    """Whether arguments that are good one by one are good together."""
    if given.get("enabled") and given.get("checkpoints") == []:
        return False
    if given.get("checkpoints") and given.get("loops_checkpoint_ids"):
        return False
    if given.get("enable_cache") is not None and given.get("cache_config") is not None:
        return False
    mounts = [made.arguments["mount_location"].rstrip("/") for made in given.get("weights", [])]
    if len(set(mounts)) < len(mounts):
        return False
    inner = given.get("auth")
    return not (given.get("auth_secret_name") and inner and "auth_secret_name" in inner.arguments)


def _docker_auth() -> st.SearchStrategy[Made]:
    def part(method: str) -> st.SearchStrategy[Made]:
        name = f"{method.lower()}_docker_auth"
        kind = get_args(get_type_hints(ours.DockerAuth)[name])[0]
        return st.builds(
            lambda registry, inner: Made(
                "DockerAuth",
                {
                    "auth_method": Member("DockerAuthType", method),
                    "registry": registry,
                    name: inner,
                },
            ),
            VISIBLE,
            recipes(kind),
        )

    return st.one_of([part(member.name) for member in ours.DockerAuthType])


def _weights_auth() -> st.SearchStrategy[Made]:
    needed = {
        "CUSTOM_SECRET": ["auth_secret_name"],
        "AWS_OIDC": ["aws_oidc_role_arn", "aws_oidc_region"],
        "GCP_OIDC": ["gcp_oidc_service_account", "gcp_oidc_workload_id_provider"],
        "AWS_ASSUME_ROLE": ["aws_assume_role_arn", "aws_assume_role_region"],
    }

    def part(method: str) -> st.SearchStrategy[Made]:
        spelled = st.sampled_from([Member("WeightsAuthMethod", method), method, method.lower()])
        arguments = {"auth_method": spelled, **dict.fromkeys(needed[method], VISIBLE)}
        return st.fixed_dictionaries(arguments).map(lambda given: Made("WeightsAuth", given))

    return st.one_of([part(method) for method in needed])
