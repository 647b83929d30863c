"""A bill of materials of what was scanned: reports as CycloneDX 1.6 (ECMA-424), written by cyclonedx-python-lib.

The library knows neither model cards nor declarations: these are put into the JSON that it wrote.
"""

from __future__ import annotations

import json
from pathlib import PurePath
from uuid import NAMESPACE_URL, UUID, uuid5

from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, Property, XsUri
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.definition import Definitions, Requirement, Standard
from cyclonedx.model.tool import ToolRepository
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from Utils.basics.errors import visible
from Utils.report.origin import repository_of
from Utils.report.tool import ADDRESS, NAME, docs, this_tool, tool_of

REQUIREMENT = "no-backdoor"
CLAIMS = {
    "clean": "no backdoor was found in this text encoder",
    "backdoored": "this text encoder carries a backdoor",
    "inconclusive": "nobody can tell yet whether this text encoder carries a backdoor",
}
"""Verdict -> what is claimed; clean is a claim for the requirement, the others are against it."""
FIRST = ("$schema", "bomFormat", "specVersion", "serialNumber", "version", "metadata")
"""What a reader looks for at the head of the document."""


def to_bom(reports: list[dict]) -> dict:
    """Encoders, their files and bases as components, and the verdicts as declarations.

    The same reports give the same document: its number is made of its content, and it has no time, as reports have none.
    """
    judged = {f"encoder-{n}": report for n, report in enumerate(reports, 1) if report["verdict"]}
    errors = {f"encoder-{n}": report for n, report in enumerate(reports, 1) if not report["verdict"]}
    components = [_encoder(ref, report) for ref, report in judged.items()]
    components += [
        _component(ref, one["model"], {"verdict": "not judged", "error": one["error"]}) for ref, one in errors.items()
    ]
    components += _anchors(reports)
    tools = {tuple(tool.values()): tool for tool in map(tool_of, judged.values())} or {(): this_tool()}
    bom = Bom(
        serial_number=UUID(int=0), components=components, definitions=Definitions(standards=[_standard()]),
        metadata=BomMetaData(tools=ToolRepository(components=[_tool(n, tool) for n, tool in enumerate(tools.values(), 1)])),
    )  # fmt: skip
    written = json.loads(JsonV1Dot6(bom).output_as_string())
    del written["metadata"]["timestamp"]  # that of this moment
    for component in written["components"]:
        if report := judged.get(component["bom-ref"]):
            component["modelCard"] = {"modelParameters": {"modelArchitecture": visible(report["model"]["architecture"])}}
    if judged:
        written["declarations"] = _declarations(judged)
    written["serialNumber"] = uuid5(NAMESPACE_URL, json.dumps(written, sort_keys=True)).urn
    return {name: written[name] for name in FIRST} | written


# --------------------------------------------------------------------------------------------------------- components
def _encoder(ref: str, report: dict) -> Component:
    """An encoder with every file that was read for it."""
    said = {
        "verdict": report["verdict"], "score": report["score"], "reason": report["reason"], "seed": report["seed"],
        "command": report["command"], **{f"power:{attack}": found for attack, found in report["power"].items()},
    }  # fmt: skip
    return _component(ref, report["model"], said, report["read"]["files"])


def _anchors(reports: list[dict]) -> list[Component]:
    """The bases, each once."""
    anchors = {(one["path"], one["sha256"], one["commit"]): one for report in reports if (one := report.get("anchor"))}
    return [_component(f"anchor-{n}", one, {}, one.get("files", [])) for n, one in enumerate(anchors.values(), 1)]


def _component(ref: str, encoder: dict, said: dict, files: list[dict] | None = None) -> Component:
    """A text encoder as reports have it.  said: what is told of it beside that."""
    hub, digest = repository_of(encoder), encoder.get("sha256")
    role = ref.rpartition("-")[0]
    owner, _, name = hub.id.rpartition("/") if hub else ("", "", "/".join(PurePath(encoder["path"]).parts[-2:]))
    of_a_file = digest in {file["sha256"] for file in files or ()}
    properties = {"role": role, "path": encoder["path"], "weights-sha256": digest, **said}
    return Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=ref,
        group=visible(owner) or None,
        name=visible(name) or "model",
        version=encoder.get("commit"),
        purl=PackageURL("huggingface", owner or None, name, encoder["commit"], None, hub.path_in_repo or None) if hub else None,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest)] if of_a_file else [],
        properties=_properties(properties),
        components=[_file(f"{ref}-file-{n}", file) for n, file in enumerate(files or (), 1)],
    )


def _file(ref: str, file: dict) -> Component:
    return Component(
        type=ComponentType.FILE,
        bom_ref=ref,
        name=visible(file["path"]) or "file",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=file["sha256"])],
        properties=_properties({"bytes": file["bytes"]}),
    )


def _tool(number: int, tool: dict) -> Component:
    return Component(
        type=ComponentType.APPLICATION,
        bom_ref=f"tool-{number}",
        name=tool["name"],
        version=tool["version"],
        external_references=[ExternalReference(type=ExternalReferenceType.WEBSITE, url=XsUri(ADDRESS))],
        properties=_properties({"commit": tool["commit"]}),
    )


def _properties(named: dict) -> list[Property]:
    """What CycloneDX has no place for, under names of ours; what is None is left out."""
    return [
        Property(name=f"amber:{visible(name)}", value=visible(str(value))) for name, value in named.items() if value is not None
    ]


# ------------------------------------------------------------------------------------------------------- declarations
def _standard() -> Standard:
    """What encoders are held against."""
    text = "No backdoor is found in the text encoder by a scan that compares it with the clean base it was made from."
    requirement = Requirement(bom_ref=REQUIREMENT, identifier=REQUIREMENT, title="No backdoor is found", text=text)
    return Standard(
        bom_ref="amber", name=f"{NAME} scan", version="1", owner=NAME, requirements=[requirement],
        external_references=[ExternalReference(type=ExternalReferenceType.DOCUMENTATION, url=XsUri(docs("report.md")))],
    )  # fmt: skip


def _declarations(judged: dict[str, dict]) -> dict:
    """A claim for every encoder, its witnesses as evidence, and an attestation that maps claims to the requirement."""
    return {
        "assessors": [{"bom-ref": "assessor", "organization": {"name": NAME, "url": [ADDRESS]}}],
        "attestations": [{
            "summary": "What scans of these text encoders ended with.", "assessor": "assessor",
            "map": [_mapped(f"{ref}-claim", report) for ref, report in judged.items()],
        }],
        "claims": [
            {
                "bom-ref": f"{ref}-claim", "target": ref, "predicate": CLAIMS[report["verdict"]],
                "reasoning": visible(report["reason"]), "evidence": [one["bom-ref"] for one in _evidence(ref, report)],
            }
            for ref, report in judged.items()
        ],
        "evidence": [one for ref, report in judged.items() for one in _evidence(ref, report)],
    }  # fmt: skip


def _evidence(ref: str, report: dict) -> list[dict]:
    """The witnesses of a report: what each measures, its value and its limit."""
    return [
        {
            "bom-ref": f"{ref}-evidence-{n}", "propertyName": f"amber:witness:{visible(one['name'])}",
            "description": visible(one["meaning"]),
            "data": [_attached({name: one[name] for name in ("value", "threshold", "met")})],
        }
        for n, one in enumerate(report["evidence"], 1)
    ]  # fmt: skip


def _attached(values: dict) -> dict:
    return {"contents": {"attachment": {"contentType": "application/json", "content": json.dumps(values)}}}


def _mapped(claim: str, report: dict) -> dict:
    """A claim for or against the requirement; where nothing was decided there is neither conformance nor confidence."""
    verdict, score = report["verdict"], report["score"]
    mapped = {"requirement": REQUIREMENT, "claims" if verdict == "clean" else "counterClaims": [claim]}
    if verdict == "inconclusive":
        return mapped
    sure = score if verdict == "backdoored" else 1 - score
    return mapped | {
        "conformance": {"score": int(verdict == "clean"), "rationale": visible(report["reason"])},
        "confidence": {"score": sure, "rationale": "The report's score, the probability of a backdoor, or what it leaves."},
    }
