"""Weights that are mounted before a job starts."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final

from typing_extensions import override

from bt_lightning.errors import InvalidSettingError
from bt_lightning.truss_definitions.definition import Definition
from bt_lightning.truss_definitions.validators import AbsolutePath
from bt_lightning.uri import is_bt, parse

if TYPE_CHECKING:
    from collections.abc import Mapping

_BUCKETS: Final = ("azure", "cw", "gs", "r2", "s3")
_SCHEMES: Final = (*_BUCKETS, "bt", "hf", "https")


def check_weights_url(value: str) -> str | None:
    """The rule for `source`: what was expected and what to do, or None."""
    scheme, separator, rest = value.partition("://")
    if not separator or scheme not in _SCHEMES:
        schemes = ", ".join(f"{name}://" for name in _SCHEMES)
        return f"expected a URL that begins with one of {schemes}: write where the weights lie"
    if not rest or rest.startswith("/"):
        return f"expected {scheme}:// and a name: write the bucket, repository or host"
    if scheme in _BUCKETS and "@" in rest:
        return "expected no '@': only repositories of hf:// and jobs of bt:// have revisions"
    if is_bt(value):
        try:
            parse(value)
        except InvalidSettingError as error:
            return error.message
    return None


class WeightsAuthMethod(str, Enum):
    """How to authenticate to the source of weights."""

    CUSTOM_SECRET = "CUSTOM_SECRET"
    AWS_OIDC = "AWS_OIDC"
    GCP_OIDC = "GCP_OIDC"
    AWS_ASSUME_ROLE = "AWS_ASSUME_ROLE"


class WeightsAuth(Definition):
    """Login to the source of weights: exactly the fields that `auth_method` needs."""

    _lax: ClassVar[bool] = True

    aws_oidc_role_arn: str | None = None
    aws_oidc_region: str | None = None
    gcp_oidc_service_account: str | None = None
    gcp_oidc_workload_id_provider: str | None = None
    aws_assume_role_arn: str | None = None
    aws_assume_role_region: str | None = None
    auth_method: WeightsAuthMethod
    auth_secret_name: str | None = None

    @classmethod
    @override
    def _normalised(cls, values: Mapping[Any, object]) -> Mapping[Any, object]:
        method = values.get("auth_method")
        return {**values, "auth_method": method.upper()} if type(method) is str else values

    @override
    def _check(self) -> None:
        needed = _NEEDED[self.auth_method]
        others = {name for names in _NEEDED.values() for name in names}.difference(needed)
        missing = [name for name in needed if not getattr(self, name)]
        unfit = sorted(name for name in others if getattr(self, name))
        if missing or unfit:
            msg = (
                f"WeightsAuth has {' and '.join(unfit) or 'no ' + ' and no '.join(missing)},"
                f" expected {' and '.join(needed)} and no other, since auth_method is"
                f" {self.auth_method.value}"
            )
            raise InvalidSettingError(msg)


class WeightsSource(Definition):
    """Weights from a URL, mounted read-only.

    `bt://` is accepted, as Baseten documents it, although truss 0.18 refuses it.
    """

    _lax: ClassVar[bool] = True

    source: Annotated[str, check_weights_url]
    """A URL; `hf://owner/repository` and `bt://project` may have an `@revision`."""
    mount_location: AbsolutePath
    auth: WeightsAuth | None = None
    auth_secret_name: str | None = None
    allow_patterns: list[str] | None = None
    """Shell patterns of files; None means all."""
    ignore_patterns: list[str] | None = None

    @override
    def _check(self) -> None:
        if self.auth_secret_name and self.auth is not None and self.auth.auth_secret_name:
            msg = (
                "WeightsSource has auth_secret_name both itself and in auth, expected it once:"
                " leave one out"
            )
            raise InvalidSettingError(msg)


_NEEDED: Final = {
    WeightsAuthMethod.CUSTOM_SECRET: ("auth_secret_name",),
    WeightsAuthMethod.AWS_OIDC: ("aws_oidc_role_arn", "aws_oidc_region"),
    WeightsAuthMethod.GCP_OIDC: ("gcp_oidc_service_account", "gcp_oidc_workload_id_provider"),
    WeightsAuthMethod.AWS_ASSUME_ROLE: ("aws_assume_role_arn", "aws_assume_role_region"),
}
