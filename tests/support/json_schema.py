"""Holds a document to a JSON Schema as docs/json has them: the keywords that stand in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SCHEMAS = ROOT / "docs" / "json"

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
_NOTES = {"$schema", "$id", "$defs", "title", "description", "default", "format"}
_CHECKED = {
    "$ref", "anyOf", "const", "enum", "type", "properties", "required", "items",
    "additionalProperties", "contentEncoding", "minItems", "maxItems", "prefixItems",
}  # fmt: skip


def require_valid(document: dict[str, Any]) -> None:
    """Fail unless ``document`` is what the file for its member ``schema`` describes, no more."""
    name = document["schema"].removeprefix("pgrecall/").replace("/", ".")
    schema = json.loads((SCHEMAS / f"{name}.schema.json").read_text(encoding="utf-8"))
    problems = violations(document, schema, schema, "$")
    assert problems == [], problems


def violations(value: Any, schema: dict[str, Any], root: dict[str, Any], at: str) -> list[str]:
    """What is wrong with ``value``; members that the schema does not know are wrong here."""
    unknown = set(schema) - _NOTES - _CHECKED
    assert not unknown, f"the validator does not know {unknown}"
    if "$ref" in schema:
        target = root["$defs"][schema["$ref"].removeprefix("#/$defs/")]
        return violations(value, target, root, at)
    if "anyOf" in schema:
        found = [violations(value, one, root, at) for one in schema["anyOf"]]
        return [] if [] in found else [problem for problems in found for problem in problems]
    if "const" in schema and value != schema["const"]:
        return [f"{at} is {value!r}, not {schema['const']!r}"]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{at} is {value!r}, none of {schema['enum']}"]
    if "type" in schema:
        is_bool = isinstance(value, bool) and schema["type"] != "boolean"
        if is_bool or not isinstance(value, _TYPES[schema["type"]]):
            return [f"{at} is {value!r}, no {schema['type']}"]
    if isinstance(value, dict):
        return _members(value, schema, root, at)
    if isinstance(value, list):
        return _elements(value, schema, root, at)
    return []


def _members(
    value: dict[str, Any], schema: dict[str, Any], root: dict[str, Any], at: str
) -> list[str]:
    properties = schema.get("properties", {})
    rest = schema.get("additionalProperties", False)
    problems = [f"{at} has no {name}" for name in schema.get("required", []) if name not in value]
    for name, member in value.items():
        where = f"{at}.{name}"
        if name in properties:
            problems += violations(member, properties[name], root, where)
        elif isinstance(rest, dict):
            problems += violations(member, rest, root, where)
        elif not rest:
            problems.append(f"{where} is not described")
    return problems


def _elements(value: list[Any], schema: dict[str, Any], root: dict[str, Any], at: str) -> list[str]:
    first = schema.get("prefixItems", [])
    items = schema.get("items", {})
    problems = []
    if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
        problems.append(f"{at} has {len(value)} elements")
    for number, element in enumerate(value):
        wanted = first[number] if number < len(first) else items
        if wanted is False:
            problems.append(f"{at}[{number}] is not described")
        else:
            problems += violations(element, wanted, root, f"{at}[{number}]")
    return problems
