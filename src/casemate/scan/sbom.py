"""Bills of materials of an image: CycloneDX 1.5 and SPDX 2.3, both JSON. Pure: packages in, a document out."""

from __future__ import annotations

import datetime
import hashlib
import re
import uuid
from typing import Any, Final

from casemate.facts.guest_packages import Package

FORMATS: Final = ("cyclonedx", "spdx")
_TYPES: Final = {"deb": "deb", "apk": "apk", "rpm": "rpm"}


def purl(package: Package, distribution: str) -> str:
    """``pkg:deb/debian/bash@5.2-1?arch=amd64`` (package-url)."""
    from urllib.parse import quote

    vendor = quote(distribution or "linux", safe="")
    epoch, version = "", package.version
    if package.kind == "rpm" and ":" in version:
        epoch, _, version = version.partition(":")
    text = f"pkg:{_TYPES[package.kind]}/{vendor}/{quote(package.name, safe='.-')}@{quote(version, safe='.-~')}"
    words = {"arch": package.architecture, "epoch": epoch}
    qualifiers = "&".join(f"{name}={quote(value, safe='')}" for name, value in words.items() if value)
    return f"{text}?{qualifiers}" if qualifiers else text


def build(
    kind: str,
    packages: tuple[Package, ...],
    image: str,
    digest: str,
    distribution: str,
    version: str,
    now: datetime.datetime,
) -> dict[str, Any]:
    """The document.

    Args:
        kind: out of `FORMATS`.
        image: name of the image.
        digest: SHA-256 of the image file in hexadecimal; empty when it is not known.
        distribution: ID of os-release.
        version: of Casemate.
    """
    time = now.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    names = "\n".join(f"{p.name} {p.version} {p.architecture}" for p in packages)
    seed = hashlib.sha256(f"{image}\n{digest}\n{names}".encode()).digest()
    if kind == "cyclonedx":
        return _cyclonedx(packages, image, digest, distribution, version, time, seed)
    if kind == "spdx":
        return _spdx(packages, image, digest, distribution, version, time, seed)
    raise RuntimeError(f"no such bill of materials: {kind!r}")


def _cyclonedx(
    packages: tuple[Package, ...], image: str, digest: str, distribution: str, version: str, time: str, seed: bytes
) -> dict[str, Any]:
    root: dict[str, Any] = {"type": "operating-system", "bom-ref": "image", "name": image}
    if digest:
        root["hashes"] = [{"alg": "SHA-256", "content": digest}]
    components: dict[str, dict[str, Any]] = {}
    for package in packages:
        reference = purl(package, distribution)
        entry: dict[str, Any] = {
            "type": "library",
            "bom-ref": reference,
            "name": package.name,
            "version": package.version,
            "purl": reference,
        }
        if package.source:
            entry["properties"] = [{"name": "casemate:source", "value": package.source}]
        if package.maintainer:
            entry["supplier"] = {"name": package.maintainer}
        components[reference] = entry
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.UUID(bytes=seed[:16], version=4)}",
        "version": 1,
        "metadata": {
            "timestamp": time,
            "tools": {"components": [{"type": "application", "name": "casemate", "version": version}]},
            "component": root,
        },
        "components": list(components.values()),
        "dependencies": [{"ref": "image", "dependsOn": list(components)}],
    }


def _spdx(
    packages: tuple[Package, ...], image: str, digest: str, distribution: str, version: str, time: str, seed: bytes
) -> dict[str, Any]:
    root: dict[str, Any] = {
        "SPDXID": "SPDXRef-Image",
        "name": image,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "primaryPackagePurpose": "OPERATING-SYSTEM",
    }
    if digest:
        root["checksums"] = [{"algorithm": "SHA256", "checksumValue": digest}]
    entries = [root]
    relations = [
        {"spdxElementId": "SPDXRef-DOCUMENT", "relationshipType": "DESCRIBES", "relatedSpdxElement": "SPDXRef-Image"}
    ]
    for number, package in enumerate(packages, 1):
        name = re.sub(r"[^A-Za-z0-9.-]", "-", f"{package.name}-{package.architecture}")
        reference = f"SPDXRef-Package-{number}-{name}"
        entry: dict[str, Any] = {
            "SPDXID": reference,
            "name": package.name,
            "versionInfo": package.version,
            "downloadLocation": "NOASSERTION",
            "filesAnalyzed": False,
            "externalRefs": [
                {
                    "referenceCategory": "PACKAGE-MANAGER",
                    "referenceType": "purl",
                    "referenceLocator": purl(package, distribution),
                }
            ],
        }
        if package.source:
            entry["sourceInfo"] = f"built from {package.source}"
        if package.maintainer:
            entry["supplier"] = f"Organization: {package.maintainer}"
        if package.homepage:
            entry["homepage"] = package.homepage
        entries.append(entry)
        relations.append(
            {"spdxElementId": "SPDXRef-Image", "relationshipType": "CONTAINS", "relatedSpdxElement": reference}
        )
    return {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": image,
        "documentNamespace": f"urn:casemate:sbom:{uuid.UUID(bytes=seed[:16], version=4)}",
        "creationInfo": {"created": time, "creators": [f"Tool: casemate-{version}"]},
        "packages": entries,
        "relationships": relations,
    }
