"""Write docs/sbom.cdx.json (CycloneDX): the packages that `mrg` needs, with versions and licenses.

pip install cyclonedx-python-lib
python .ci/sbom.py    # in an environment with mrg[dicom,nlg,qlora,smollm,tensorboard]
"""

from __future__ import annotations

import json
import re
import sys
from importlib import metadata
from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = {"dicom", "nlg", "pretrained", "qlora", "smollm", "tensorboard"}


def name_of(text: str) -> str:
    """A package's name in its normalized form."""
    return re.sub(r"[-_.]+", "-", text).lower()


def requirements(name: str, extras: set[str]) -> dict[str, set[str]]:
    """Packages that one needs here, with the extras of each; those of other systems are left out."""
    found: dict[str, set[str]] = {}
    for line in metadata.requires(name) or []:
        required = Requirement(line)
        if required.marker is None or any(required.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            found.setdefault(name_of(required.name), set()).update(required.extras)
    return found


def closure() -> dict[str, set[str]]:
    """All installed packages that `mrg` needs with its extras, and what each needs."""
    found: dict[str, set[str]] = {}
    left = [("mrg", EXTRAS)]
    seen: set[tuple[str, frozenset[str]]] = set()
    while left:
        name, extras = left.pop()
        if (name, frozenset(extras)) in seen:
            continue
        seen.add((name, frozenset(extras)))
        try:
            needs = requirements(name, extras)
        except metadata.PackageNotFoundError:
            print(f"{name} is not installed and is left out.", file=sys.stderr)
            continue
        found.setdefault(name, set()).update(needs)
        left.extend(needs.items())
    return found


def license_of(name: str) -> str:
    """License of a package: its SPDX expression, its classifiers, or the first line of its field."""
    about = metadata.metadata(name)
    if expression := about.get("License-Expression"):
        return str(expression)
    kinds = [row.rpartition(" :: ")[2] for row in about.get_all("Classifier") or [] if row.startswith("License ::")]
    kinds = [kind for kind in kinds if kind != "OSI Approved"]
    return " AND ".join(kinds) or str(about.get("License") or "").strip().partition("\n")[0][:60] or "not declared"


def main() -> None:
    """Write the list."""
    needs = closure()
    needs = {name: {other for other in others if other in needs} for name, others in needs.items()}
    make, bom = LicenseFactory(), Bom()
    components = {}
    for name in sorted(needs):
        version = metadata.version(name).partition("+")[0]
        given = license_of(name)
        components[name] = Component(
            name=name, version=version, bom_ref=f"{name}@{version}",
            type=ComponentType.APPLICATION if name == "mrg" else ComponentType.LIBRARY,
            licenses=[] if given == "not declared" else [make.make_from_string(given)],
            purl=None if name == "mrg" else PackageURL("pypi", name=name, version=version),
        )  # fmt: skip
    bom.metadata.component = components["mrg"]
    bom.components.update(component for name, component in components.items() if name != "mrg")
    for name, others in sorted(needs.items()):
        bom.register_dependency(components[name], [components[other] for other in sorted(others)])
    content = json.loads(JsonV1Dot6(bom).output_as_string())
    # Neither a time nor a random number: the same environment gives the same file.
    content.pop("serialNumber", None)
    content["metadata"].pop("timestamp", None)
    (ROOT / "docs/sbom.cdx.json").write_text(json.dumps(content, indent=1) + "\n")
    without = [name for name in components if license_of(name) == "not declared"]
    print(f"{len(components)} packages; without a declared license: {', '.join(without) or 'none'}")


if __name__ == "__main__":
    main()
