"""Who asks, and what the Roles of the cluster let a service account do."""

from __future__ import annotations

from typing import NamedTuple

from tests.kube.cluster import Cluster, Object, Place, Trouble

_GROUP = "rbac.authorization.k8s.io"


class Account(NamedTuple):
    """A service account."""

    namespace: str
    name: str


class Asked(NamedTuple):
    """A request, as RBAC sees it."""

    verb: str
    group: str
    resource: str
    namespace: str | None


Rule = tuple[str, str, str]
"""Group, resource and verb."""


def authorize(cluster: Cluster, account: Account, asked: Asked) -> None:
    """Raises Trouble, 403."""
    wanted = (asked.group, asked.resource, asked.verb)
    if asked.namespace is None or wanted not in granted(cluster, account, asked.namespace):
        who = f"system:serviceaccount:{account.namespace}:{account.name}"
        place = f' in API group "{asked.group}" in the namespace "{asked.namespace}"'
        raise Trouble(
            403,
            "Forbidden",
            f'User "{who}" cannot {asked.verb} resource "{asked.resource}"{place}',
        )


def granted(cluster: Cluster, account: Account, namespace: str) -> set[Rule]:
    """What it may do there, by Roles: a rule for each resource and verb."""
    found: set[Rule] = set()
    for binding in cluster.select(Place(_GROUP, "rolebindings", namespace)):
        if any(_is(account, subject) for subject in binding["subjects"]):
            for role in cluster.select(Place(_GROUP, "roles", namespace)):
                if role["metadata"]["name"] == binding["roleRef"]["name"]:
                    found |= rules_of(role)
    return found


def rules_of(role: Object) -> set[Rule]:
    """Each by itself."""
    return {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def _is(account: Account, subject: Object) -> bool:
    return subject["kind"] == "ServiceAccount" and account == Account(
        subject["namespace"], subject["name"]
    )
