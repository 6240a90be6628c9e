"""Check where models of Azure and Bedrock are reached: the version of an API, and a region."""

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from domain.shared.errors import InvalidField

# Parameters of a model that say how its provider is reached. They are not sent as options of a call.
CONNECTION_PARAMETERS: Final[Mapping[str, tuple[str, ...]]] = {"azure": ("api_version",), "bedrock": ("region",)}
# Versions of Azure's v1 API. A dated version is for an address of one deployment.
AZURE_V1_VERSIONS: Final = frozenset({"v1", "preview", "latest"})
_AZURE_VERSION: Final = re.compile(r"20\d\d-\d\d-\d\d(-preview)?|v1|preview|latest")
_AWS_REGION: Final = re.compile(r"[a-z]{2,3}(-[a-z]{2,20}){1,3}-\d{1,2}")
# Hosts of Bedrock that name their region: public ones, those for FIPS, and interface endpoints of a VPC.
_BEDROCK_HOST: Final = re.compile(
    r"(?:[a-z0-9-]+\.)?bedrock-runtime(?:-fips)?\.([a-z0-9-]+)\.(?:vpce\.)?(?:amazonaws\.com(?:\.cn)?|api\.aws)"
)


def check_connection(provider: str, base_url: str | None, parameters: Mapping[str, Any]) -> None:
    """Check the address and the connection parameters of a model. Errors: `invalid_field`."""
    if provider == "azure":
        _check_azure(base_url or "", parameters)
    elif provider == "bedrock":
        _check_bedrock(base_url, parameters)


def has_address(provider: str, base_url: str | None, parameters: Mapping[str, Any]) -> bool:
    """Tell whether the address of a model is known that has no default."""
    return base_url is not None or (provider == "bedrock" and "region" in parameters)


def find_aws_region(base_url: str | None, parameters: Mapping[str, Any]) -> str | None:
    """Return the region of a model of Bedrock: the parameter, or else the one that its address names."""
    if isinstance(region := parameters.get("region"), str):
        return region
    match = _BEDROCK_HOST.fullmatch(urlsplit(base_url or "").hostname or "")
    return None if match is None else match[1]


def _check_azure(base_url: str, parameters: Mapping[str, Any]) -> None:
    if "/deployments" in urlsplit(base_url).path:
        raise InvalidField(
            "base_url",
            "must be the address of the resource, for example https://NAME.openai.azure.com: `model` is the "
            "deployment, and `api_version` is a parameter.",
        )
    if (version := parameters.get("api_version")) is None:
        if "api_version" in parameters:
            raise InvalidField("parameters.api_version", "must be a version. Leave it out for the v1 API.")
        return
    if not isinstance(version, str) or not _AZURE_VERSION.fullmatch(version):
        raise InvalidField(
            "parameters.api_version", "must be a version of Azure OpenAI, for example 2024-10-21 or preview."
        )
    if version not in AZURE_V1_VERSIONS and base_url.rstrip("/").endswith("/v1"):
        raise InvalidField(
            "parameters.api_version", "has no effect on an address that ends in /v1. Leave one of the two out."
        )


def _check_bedrock(base_url: str | None, parameters: Mapping[str, Any]) -> None:
    if "region" in parameters:
        region = parameters["region"]
        if not isinstance(region, str) or not _AWS_REGION.fullmatch(region):
            raise InvalidField("parameters.region", "must be a region of AWS, for example eu-central-1.")
    elif base_url is None:
        raise InvalidField("parameters.region", "is required for Bedrock, for example eu-central-1.")
    elif find_aws_region(base_url, parameters) is None:
        raise InvalidField("parameters.region", "is required, as base_url does not name a region.")
