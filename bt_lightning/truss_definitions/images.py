"""The container image of a job, and the login to its registry."""

from __future__ import annotations

from enum import Enum
from typing import Final

from typing_extensions import override

from bt_lightning.errors import InvalidSettingError
from bt_lightning.truss_definitions.definition import Definition
from bt_lightning.truss_definitions.validators import Name, Text


class SecretReference(Definition):
    """A secret of the platform, by name; definitions never hold its value."""

    name: Name


class DockerAuthType(str, Enum):
    """How to authenticate to a registry."""

    GCP_SERVICE_ACCOUNT_JSON = "GCP_SERVICE_ACCOUNT_JSON"
    AWS_IAM = "AWS_IAM"
    AWS_OIDC = "AWS_OIDC"
    GCP_OIDC = "GCP_OIDC"
    REGISTRY_SECRET = "REGISTRY_SECRET"
    AWS_ASSUME_ROLE = "AWS_ASSUME_ROLE"


class AWSIAMDockerAuth(Definition):
    """An AWS access key."""

    access_key_secret_ref: SecretReference
    secret_access_key_secret_ref: SecretReference


class AWSOIDCDockerAuth(Definition):
    """An AWS role, assumed by OpenID Connect."""

    role_arn: Text
    region: Text


class AWSAssumeRoleDockerAuth(Definition):
    """An AWS role that Baseten assumes."""

    role_arn: Text
    region: Text


class GCPOIDCDockerAuth(Definition):
    """A Google Cloud service account, used by OpenID Connect."""

    service_account: Text
    workload_identity_provider: Text


class GCPServiceAccountJSONDockerAuth(Definition):
    """The key file of a Google Cloud service account."""

    service_account_json_secret_ref: SecretReference


class RegistrySecretDockerAuth(Definition):
    """User and password for any registry."""

    secret_ref: SecretReference


class DockerAuth(Definition):
    """Login to the registry of an image: the one part that `auth_method` names."""

    auth_method: DockerAuthType
    registry: Text
    aws_iam_docker_auth: AWSIAMDockerAuth | None = None
    aws_oidc_docker_auth: AWSOIDCDockerAuth | None = None
    aws_assume_role_docker_auth: AWSAssumeRoleDockerAuth | None = None
    gcp_oidc_docker_auth: GCPOIDCDockerAuth | None = None
    gcp_service_account_json_docker_auth: GCPServiceAccountJSONDockerAuth | None = None
    registry_secret_docker_auth: RegistrySecretDockerAuth | None = None

    @override
    def _check(self) -> None:
        needed = _PARTS[self.auth_method]
        given = [name for name in _PARTS.values() if getattr(self, name) is not None]
        if given != [needed]:
            msg = (
                f"DockerAuth has {' and '.join(given) or 'no part'}, expected {needed} and no"
                f" other, since auth_method is {self.auth_method.value}"
            )
            raise InvalidSettingError(msg)


class Image(Definition):
    """The container image that a job runs in."""

    base_image: Text
    docker_auth: DockerAuth | None = None


_PARTS: Final = {kind: f"{kind.value.lower()}_docker_auth" for kind in DockerAuthType}
