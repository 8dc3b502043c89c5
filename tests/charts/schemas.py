"""Schemas of kinds that the bundle of schemas lacks, for the fields that our charts write.

Written from the projects' own definitions, and narrower: what our charts do not use is refused.
"""

from __future__ import annotations

from typing import Any, Final

_TEXT: Final = {"type": "string"}
_LABELS: Final = {"type": "object", "additionalProperties": _TEXT}


def _object(fields: dict[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "required": list(required)}


def _list(item: Any) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": 1}


_SELECTOR: Final = _object(
    {
        "matchLabels": _LABELS,
        "matchExpressions": _list(
            _object({"key": _TEXT, "operator": _TEXT, "values": _list(_TEXT)}, "key", "operator")
        ),
    }
)
_TAGGED: Final = _list(_object({"tags": _LABELS}, "tags")) | {
    "x-kubernetes-validations": [
        {
            "message": "empty tags",
            "rule": "self.all(x, x.tags.all(k, k != '' && x.tags[k] != ''))",
        }
    ]
}
_IMAGE: Final = _TEXT | {
    "maxLength": 30,
    "x-kubernetes-validations": [
        {
            "message": "a family that is supported",
            "rule": "self.find('^[^@]+') in ['al2', 'al2023', 'bottlerocket']",
        }
    ],
}
_VOLUME: Final = _object(
    {"volumeSize": _TEXT, "volumeType": {"enum": ["gp3", "io2"]}, "encrypted": {"type": "boolean"}},
    "volumeSize",
)

WRITTEN: Final[dict[str, Any]] = {
    # aws/karpenter-provider-aws: pkg/apis/crds/karpenter.k8s.aws_ec2nodeclasses.yaml
    "karpenter.k8s.aws_v1_EC2NodeClass": _object(
        {
            "spec": _object(
                {
                    "role": _TEXT | {"minLength": 1},
                    "amiSelectorTerms": _list(_object({"alias": _IMAGE}, "alias")),
                    "subnetSelectorTerms": _TAGGED,
                    "securityGroupSelectorTerms": _TAGGED,
                    "blockDeviceMappings": _list(
                        _object(
                            {
                                "deviceName": _TEXT,
                                "rootVolume": {"type": "boolean"},
                                "ebs": _VOLUME,
                            }
                        )
                    ),
                    "metadataOptions": _object(
                        {
                            "httpTokens": {"enum": ["required", "optional"]},
                            "httpPutResponseHopLimit": {"type": "integer"},
                        }
                    ),
                },
                "role", "amiSelectorTerms", "subnetSelectorTerms", "securityGroupSelectorTerms",
            )
        },
        "spec",
    ),
    # spiffe/spire-controller-manager: config/crd/bases/spire.spiffe.io_clusterspiffeids.yaml
    "spire.spiffe.io_v1alpha1_ClusterSPIFFEID": _object(
        {
            "spec": _object(
                {
                    "className": _TEXT,
                    "spiffeIDTemplate": _TEXT,
                    "namespaceSelector": _SELECTOR,
                    "podSelector": _SELECTOR,
                    "ttl": _TEXT,
                },
                "spiffeIDTemplate",
            )
        },
        "spec",
    ),
}  # fmt: skip

_DURATION: Final = _TEXT | {"pattern": r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"}


def complete(name: str, schema: Any) -> Any:
    """The bundle has the Gateway API of 1.1; with 1.2 its routes got time limits."""
    if name == "gateway.networking.k8s.io_v1_HTTPRoute":
        rules = schema["properties"]["spec"]["properties"]["rules"]["items"]
        limits = _object({"request": _DURATION, "backendRequest": _DURATION})
        rules["properties"]["timeouts"] = limits
    return schema
