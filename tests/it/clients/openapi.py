"""Checks an OpenAPI document and what is said in its name; the document is the file in the first argument.

One line in for each check, one line out: the list of what is wrong, as JSON. A line is `{"document": true}` for the document itself, with
all its examples, or `{"method", "path", "status", "headers", "body"}` for an answer, with the path as it stands in the document.
"""

import json
import sys

from jsonschema import Draft202012Validator, FormatChecker
from openapi_spec_validator import OpenAPIV31SpecValidator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

with open(sys.argv[1]) as file:
    DOCUMENT = json.load(file)
REGISTRY = Registry().with_resource("urn:api", Resource(contents=DOCUMENT, specification=DRAFT202012))


def follow(value):
    """What a reference leads to, or the value itself."""
    if "$ref" not in value:
        return value
    found = DOCUMENT
    for name in value["$ref"].removeprefix("#/").split("/"):
        found = found[name]
    return found


def misfits(schema, value, where):
    """What is wrong with a value, by a schema of the document."""
    # The schema stands in a document of its own, so its references are written out to where they lead.
    schema = json.loads(json.dumps(schema).replace('"#/components/', '"urn:api#/components/'))
    validator = Draft202012Validator(schema, registry=REGISTRY, format_checker=FormatChecker())
    return [f"{where}: {error.json_path}: {error.message}" for error in validator.iter_errors(value)]


def misfit_body(content, kind, body, where):
    """What is wrong with a body of this media type."""
    if kind not in content:
        return [f"{where}: {kind} is not documented, only {list(content)}"]
    found = misfits(content[kind]["schema"], body, where)
    if kind == "text/event-stream":
        for line in body.splitlines():
            if line.startswith("data: "):
                # An event is what the answer would be without events: JSON, or a token as it is.
                as_json = content.get("application/json")
                schema = as_json["schema"] if as_json else {"type": "string", "pattern": r"^[\w-]+(\.[\w-]+){2}$"}
                found += misfits(schema, json.loads(line[6:]) if as_json else line[6:], f"{where}, event")
    return found


def document():
    found = [f"{list(error.absolute_path)}: {error.message}" for error in OpenAPIV31SpecValidator(DOCUMENT).iter_errors()]
    for path, item in DOCUMENT["paths"].items():
        for method, operation in item.items():
            bodies = {status: follow(response) for status, response in operation["responses"].items()}
            if "requestBody" in operation:
                bodies["request"] = operation["requestBody"]
            for name, body in bodies.items():
                where = f"{method} {path} {name}"
                # A 204 has none (RFC 9110 section 15.3.5).
                if name == "204":
                    continue
                if not body["content"]:
                    found.append(f"{where}: no body is documented")
                if name[0] in "45" and "x-remit-codes" not in body and path != "/readyz":
                    found.append(f"{where}: no codes are documented")
                for kind, content in body["content"].items():
                    if not content.get("examples"):
                        found.append(f"{where} {kind}: no example")
                    for title, example in content.get("examples", {}).items():
                        found += misfit_body(body["content"], kind, example["value"], f"{where}, example {title}")
    return found


def answer(seen):
    where = f"{seen['method']} {seen['path']} {seen['status']}"
    operation = DOCUMENT["paths"][seen["path"]][seen["method"].lower()]
    if str(seen["status"]) not in operation["responses"]:
        return [f"{where}: not documented"]
    response = follow(operation["responses"][str(seen["status"])])
    headers = {name.lower(): value for name, value in seen["headers"].items()}
    found = [f"{where}: no header {name}" for name in response["headers"] if name.lower() not in headers]
    if seen["status"] == 204:
        return found + [f"{where}: there is a body"] * bool(seen["body"])
    kind = headers["content-type"].split(";")[0]
    body = json.loads(seen["body"]) if kind.endswith(("/json", "+json")) else seen["body"]
    if "x-remit-codes" in response and body.get("code", body.get("error")) not in response["x-remit-codes"]:
        found.append(f"{where}: the code is not documented: {body}")
    return found + misfit_body(response["content"], kind, body, where)


for line in sys.stdin:
    seen = json.loads(line)
    print(json.dumps(document() if "document" in seen else answer(seen)), flush=True)
