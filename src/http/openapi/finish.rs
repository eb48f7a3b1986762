//! What is the same everywhere in the document, and what the derives cannot say.

use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

use crate::party::Role;

/// By `operationId`, then by status or `request`, by media type, and by name: what is sent and answered.
const EXAMPLES: &str = include_str!("examples.json");

const SCHEMAS: &str = "#/components/schemas/";

/// The text of the document.
pub(super) fn finished(described: utoipa::openapi::OpenApi) -> String {
    let mut document = serde_json::to_value(described).unwrap_or_default();
    let examples: Value = serde_json::from_str(EXAMPLES).unwrap_or_default();
    write_out(&mut document);
    for operation in operations(&mut document) {
        exemplify(operation, &examples);
        for response in members(operation.get_mut("responses")).map(|(_, response)| response) {
            response["headers"]["x-request-id"] = json!({"$ref": "#/components/headers/RequestId"});
        }
        absent_is_not_null(operation);
        name_roles(operation);
    }
    document["components"]["headers"] = json!({"RequestId": {
        "description": "The id of the request: in the broker's logs, and in the body of an error",
        "schema": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
    }});
    document["components"]["responses"] = name_what_repeats(&mut document);
    drop_unused(&mut document);
    flow(&mut document);
    serde_json::to_string_pretty(&document).unwrap_or_default() + "\n"
}

fn members(value: Option<&mut Value>) -> impl Iterator<Item = (&String, &mut Value)> {
    value.and_then(Value::as_object_mut).into_iter().flatten()
}

fn operations(document: &mut Value) -> impl Iterator<Item = &mut Value> {
    members(document.get_mut("paths")).flat_map(|(_, path)| members(Some(path))).map(|(_, operation)| operation)
}

/// Adds the examples of an operation to the bodies that it takes and gives.
fn exemplify(operation: &mut Value, examples: &Value) {
    let examples = &examples[operation["operationId"].as_str().unwrap_or_default()];
    let add = |body: &mut Value, examples: &Value| {
        for (kind, content) in members(body.get_mut("content")) {
            let Some(examples) = examples[kind.as_str()].as_object() else { continue };
            let named = examples.iter().map(|(name, value)| (name.clone(), json!({"value": value})));
            content["examples"] = Value::Object(named.collect());
        }
    };
    if let Some(body) = operation.get_mut("requestBody") {
        add(body, &examples["request"]);
    }
    for (status, response) in members(operation.get_mut("responses")) {
        add(response, &examples[status.as_str()]);
    }
}

/// Says which roles an operator needs one of: with any of them every operator is a viewer.
fn name_roles(operation: &mut Value) {
    let callers = operation["x-remit-callers"].as_array().cloned().unwrap_or_default();
    let named = |role: Role| callers.contains(&json!(role));
    let roles: Vec<_> = Role::ALL.into_iter().filter(|role| named(Role::Viewer) || named(*role)).collect();
    operation["x-remit-roles"] = json!(roles);
}

/// A body or a parameter that may be left out is described by `required` alone: it can't be sent as null.
fn absent_is_not_null(operation: &mut Value) {
    if let Some(body) = operation.get_mut("requestBody") {
        for schema in members(body.get_mut("content")).filter_map(|(_, content)| content.get_mut("schema")) {
            let or_null = schema["oneOf"].as_array().filter(|parts| parts.contains(&json!({"type": "null"})));
            if let Some(some) = or_null.and_then(|parts| parts.first()).cloned() {
                *schema = some;
            }
        }
    }
    for parameter in operation.get_mut("parameters").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(one) = parameter["schema"]["type"].as_array().and_then(|types| types.first()).cloned() {
            parameter["schema"]["type"] = one;
        }
    }
}

/// Gives refusals that stand in several places a name, and yields them.
fn name_what_repeats(document: &mut Value) -> Value {
    let refusals = |document: &mut Value, each: &mut dyn FnMut(String, &mut Value)| {
        for operation in operations(document) {
            for (status, response) in members(operation.get_mut("responses")) {
                let content = response["content"].as_object().and_then(|content| content.iter().next());
                let Some((kind, content)) = content.filter(|_| status.starts_with(['4', '5'])) else { continue };
                let form = if kind == "application/problem+json" { "problem" } else { "oauth" };
                let kinds = content["examples"].as_object().into_iter().flat_map(Map::keys);
                let kinds = kinds.map(String::as_str).collect::<Vec<_>>().join("-");
                each(format!("{form}.{status}.{kinds}"), response);
            }
        }
    };
    let mut found: BTreeMap<String, (usize, Value)> = BTreeMap::new();
    refusals(document, &mut |name, response| {
        found.entry(name).or_insert_with(|| (0, response.clone())).0 += 1;
    });
    found.retain(|_, (times, _)| *times > 1);
    refusals(document, &mut |name, response| {
        if found.get(&name).is_some_and(|(_, first)| first == response) {
            *response = json!({"$ref": format!("#/components/responses/{name}")});
        }
    });
    found.into_iter().map(|(name, (_, response))| (name, response)).collect()
}

/// What is flattened into an answer is written out where its type, taken for itself, has no room for more: a schema that
/// closes an object closes it for what stands beside it too.
fn write_out(document: &mut Value) {
    let mut schemas = document["components"]["schemas"].clone();
    for schema in members(Some(&mut schemas)).map(|(_, schema)| schema) {
        let Some(parts) = schema["allOf"].as_array() else { continue };
        let named = |part: &Value| part["$ref"].as_str().and_then(|path| path.strip_prefix(SCHEMAS)).map(str::to_owned);
        let parts = parts.iter().map(|part| named(part).map_or(part, |name| &document["components"]["schemas"][name]));
        let parts: Vec<_> = parts.collect();
        if !parts.iter().any(|part| part["additionalProperties"] == false) {
            continue;
        }
        let of = |member: &'static str| parts.iter().map(move |part| &part[member]);
        let properties: Map<_, _> = of("properties").filter_map(Value::as_object).flatten().map(owned).collect();
        let required: Vec<_> = of("required").filter_map(Value::as_array).flatten().cloned().collect();
        *schema = json!({
            "type": "object", "description": schema["description"], "required": required, "properties": properties,
        });
    }
    document["components"]["schemas"] = schemas;
}

fn owned((name, value): (&String, &Value)) -> (String, Value) {
    (name.clone(), value.clone())
}

/// Drops the schemas that nothing leads to.
fn drop_unused(document: &mut Value) {
    let text = document.to_string();
    if let Some(schemas) = document["components"]["schemas"].as_object_mut() {
        schemas.retain(|name, _| text.contains(&format!("\"{SCHEMAS}{name}\"")));
    }
}

/// Lines of a comment are lines of a text editor, not of a paragraph.
fn flow(value: &mut Value) {
    match value {
        Value::Object(object) => {
            for (name, value) in object {
                flow(value);
                if name == "description"
                    && let Value::String(text) = value
                {
                    let paragraphs = text.split("\n\n").map(|paragraph| paragraph.replace('\n', " "));
                    *text = paragraphs.collect::<Vec<_>>().join("\n\n");
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(flow),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
