"""The objects of an Ignition 3.x config: member -> type. Source: coreos.github.io/ignition, specification 3.0 to 3.5.

``str int bool`` JSON types; another word: an object of this table; ``[x]`` a list of them; ``!`` required.
"""

from __future__ import annotations

from typing import Final

_NODE: Final = {"path": "str!", "overwrite": "bool", "user": "owner", "group": "owner"}

OBJECTS: Final[dict[str, dict[str, str]]] = {
    "config": {
        "ignition": "ignition!",
        "kernelArguments": "arguments",
        "passwd": "passwd",
        "storage": "storage",
        "systemd": "systemd",
    },
    "ignition": {
        "version": "str!",
        "config": "merge",
        "proxy": "proxy",
        "security": "security",
        "timeouts": "timeouts",
    },
    "merge": {"merge": "[resource]", "replace": "resource"},
    "proxy": {"httpProxy": "str", "httpsProxy": "str", "noProxy": "[str]"},
    "security": {"tls": "tls"},
    "tls": {"certificateAuthorities": "[resource]"},
    "timeouts": {"httpResponseHeaders": "int", "httpTotal": "int"},
    "arguments": {"shouldExist": "[str]", "shouldNotExist": "[str]"},
    "resource": {
        "source": "str",
        "compression": "str",
        "httpHeaders": "[header]",
        "verification": "verification",
    },
    "header": {"name": "str!", "value": "str"},
    "verification": {"hash": "str"},
    "passwd": {"users": "[user]", "groups": "[group]"},
    "user": {
        "name": "str!",
        "uid": "int",
        "gecos": "str",
        "homeDir": "str",
        "shell": "str",
        "primaryGroup": "str",
        "groups": "[str]",
        "passwordHash": "str",
        "sshAuthorizedKeys": "[str]",
        **dict.fromkeys(("noCreateHome", "noLogInit", "noUserGroup", "shouldExist", "system"), "bool"),
    },
    "group": {"name": "str!", "gid": "int", "passwordHash": "str", "shouldExist": "bool", "system": "bool"},
    "systemd": {"units": "[unit]"},
    "unit": {"name": "str!", "contents": "str", "enabled": "bool", "mask": "bool", "dropins": "[dropin]"},
    "dropin": {"name": "str!", "contents": "str"},
    "storage": {
        "directories": "[directory]",
        "disks": "[disk]",
        "files": "[file]",
        "filesystems": "[filesystem]",
        "links": "[link]",
        "luks": "[luks]",
        "raid": "[raid]",
    },
    "owner": {"id": "int", "name": "str"},
    "directory": {**_NODE, "mode": "int"},
    "file": {**_NODE, "mode": "int", "contents": "resource", "append": "[resource]"},
    "link": {**_NODE, "hard": "bool", "target": "str"},
    "disk": {"device": "str!", "wipeTable": "bool", "partitions": "[partition]"},
    "partition": {
        **dict.fromkeys(("guid", "label", "typeGuid"), "str"),
        **dict.fromkeys(("number", "sizeMiB", "startMiB"), "int"),
        **dict.fromkeys(("resize", "shouldExist", "wipePartitionEntry"), "bool"),
    },
    "filesystem": {
        "device": "str!",
        **dict.fromkeys(("format", "label", "path", "uuid"), "str"),
        "mountOptions": "[str]",
        "options": "[str]",
        "wipeFilesystem": "bool",
    },
    "raid": {"name": "str!", "level": "str", "devices": "[str]", "options": "[str]", "spares": "int"},
    "luks": {
        "name": "str!",
        **dict.fromkeys(("device", "label", "uuid"), "str"),
        **dict.fromkeys(("openOptions", "options"), "[str]"),
        **dict.fromkeys(("discard", "wipeVolume"), "bool"),
        "keyFile": "resource",
        "clevis": "clevis",
        "cex": "cex",
    },
    "cex": {"enabled": "bool"},
    "clevis": {"custom": "pin", "tang": "[tang]", "threshold": "int", "tpm2": "bool"},
    "pin": {"config": "str", "needsNetwork": "bool", "pin": "str"},
    "tang": {"url": "str", "thumbprint": "str", "advertisement": "str"},
}

VERSIONS: Final = ("3.0.0", "3.1.0", "3.2.0", "3.3.0", "3.4.0", "3.5.0")
