"""Makes gcp_instance.schema.json: an instance of Compute Engine, from the API's discovery document.

pip download --no-deps google-api-python-client==2.202.0 && unzip google_api_python_client-*.whl
python make_gcp_schema.py googleapiclient/discovery_cache/documents/compute.v1.json > gcp_instance.schema.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = "Instance"


def strict(value: dict[str, Any]) -> dict[str, Any]:
    """A value of the discovery document as a JSON schema without other keys; what only answers hold is left out."""
    if "$ref" in value:
        return {"$ref": f"#/definitions/{value['$ref']}"}
    if value.get("type") == "any":
        return {}
    if value.get("format") in ("int64", "uint64"):  # too long for a JSON number; either form is accepted
        return {"type": ["string", "integer"]}
    schema = {key: value[key] for key in ("type", "enum") if key in value}
    if "items" in value:
        schema["items"] = strict(value["items"])
    if "properties" in value:
        settable = (
            pair for pair in value["properties"].items() if "[Output Only]" not in pair[1].get("description", "")
        )
        schema |= {"properties": {key: strict(child) for key, child in sorted(settable)}, "additionalProperties": False}
    elif "additionalProperties" in value:
        schema["additionalProperties"] = strict(value["additionalProperties"])
    return schema


def references(schema: Any) -> set[str]:
    if isinstance(schema, list):
        return set().union(*(references(each) for each in schema))
    if not isinstance(schema, dict):
        return set()
    own = {schema["$ref"].rpartition("/")[2]} if "$ref" in schema else set()
    return own.union(*(references(each) for each in schema.values()))


def main(document: Path) -> None:
    schemas = json.loads(document.read_text(encoding="utf-8"))["schemas"]
    definitions: dict[str, Any] = {}
    missing = {ROOT}
    while missing:
        definitions |= {name: strict(schemas[name]) for name in missing}
        missing = references(definitions) - set(definitions)
    schema = {"$ref": f"#/definitions/{ROOT}", "definitions": dict(sorted(definitions.items()))}
    sys.stdout.write(json.dumps(schema, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
