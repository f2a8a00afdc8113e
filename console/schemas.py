"""YAML files that people write: a value changed on the command line, and pydantic's errors as sentences."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from console import UserError


def explained(error: ValidationError, model: type[BaseModel], source: str, whole: str) -> str:
    """Return one message that names every wrong key: what is wrong with it, what was received, what is known there.

    Args:
        error: What validation of `model` raised.
        model: The class of the whole file.
        source: The file, in front of the message.
        whole: What the message calls the file's content where no key is to blame, e.g. "the recipe".
    """
    schema = model.model_json_schema()
    return "\n  ".join([f"{source}:", *(_sentence(one, schema, whole) for one in error.errors())])


def set_value(content: dict[str, Any], change: str) -> None:
    """Apply one `a.b.c=value` to what a YAML file holds; the value is YAML. Keys are not checked.

    Raises:
        UserError: If it is no such change, or the value is no YAML.
    """
    key, equals, value = change.partition("=")
    if not equals or not all(part for part in key.split(".")):
        raise UserError(f"--set takes KEY=VALUE such as training.batch_size=4; received {change!r}")
    *parents, last = key.strip().split(".")
    for parent in parents:
        if not isinstance(content.get(parent), dict):
            content[parent] = {}
        content = content[parent]
    try:
        content[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"--set {change}: the value can't be read as YAML: {error}") from None


def _sentence(error: Any, schema: dict[str, Any], whole: str) -> str:
    """Turn one pydantic error into: key, what is wrong, what was received."""
    keys, known = _place(error["loc"], schema)
    key = ".".join(keys) or whole
    if error["type"] == "extra_forbidden":
        close = difflib.get_close_matches(keys[-1], known, n=1, cutoff=0.7)
        hint = f", did you mean {close[0]!r}?" if close else ""
        return f"unknown key {key}{hint} (known here: {', '.join(known)})"
    if error["type"] == "missing":
        return f"{key} is missing"
    if error["type"] == "union_tag_not_found":
        return f"{key}.name is missing"
    if error["type"] == "union_tag_invalid":
        return f"{key}.name: expected one of {error['ctx']['expected_tags']}; received {error['ctx']['tag']!r}"
    return f"{key}: {error['msg'].removeprefix('Value error, ')}; received {error['input']!r}"


def _place(location: Sequence[str | int], schema: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Return the keys that a user writes for a place in a file, and the field names known at the last of them."""
    node: dict[str, Any] = schema
    keys: list[str] = []
    known: list[str] = []
    for part in map(str, location):
        if alternative := node.get("discriminator", {}).get("mapping", {}).get(part):
            # The tag of a union is a part of its own: 'schedule.plateau.factor' where users write 'schedule.factor'.
            node = _resolve(schema, {"$ref": alternative})
            continue
        keys.append(part)
        known = sorted(node.get("properties", {}))
        # A mapping's values, `output_losses.NAME`, have one schema for all names; `False` and `True` are none.
        value = node.get("properties", {}).get(part, node.get("additionalProperties", node.get("items")))
        node = _resolve(schema, value if isinstance(value, dict) else {})
    return keys, known


def _resolve(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    """Follow a JSON schema's reference, past `null` alternatives; of a list, return the schema of the list."""
    node = next((n for n in node.get("anyOf", []) if "$ref" in n or "items" in n), node)
    return schema["$defs"][node["$ref"].rsplit("/", 1)[1]] if "$ref" in node else node
