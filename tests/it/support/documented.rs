//! What the OpenAPI document says of an answer: no test of any kind gets one that is not in there.

use reqwest::Method;
use serde_json::Value;
use std::{collections::BTreeSet, sync::LazyLock};

use super::Answer;

static DOCUMENT: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(&remit::http::document()).expect("the document is JSON"));

/// The operations of the document: method, path, and what is said of them.
pub(crate) fn operations() -> impl Iterator<Item = (String, &'static str, &'static Value)> {
    let paths = DOCUMENT["paths"].as_object().expect("paths").iter();
    let of = |item: &'static Value| item.as_object().expect("a path").iter();
    paths.flat_map(move |(path, item)| of(item).map(move |(method, said)| (method.to_uppercase(), path.as_str(), said)))
}

/// What is said of an operation's answers with this status.
pub(crate) fn response(operation: &'static Value, status: u16) -> Option<&'static Value> {
    let response = operation["responses"].get(status.to_string())?;
    Some(match response["$ref"].as_str() {
        Some(reference) => DOCUMENT.pointer(&reference[1..]).expect("what a reference leads to"),
        None => response,
    })
}

/// The names of all members that an operation takes in its body, however deep.
pub(crate) fn taken(operation: &'static Value) -> BTreeSet<&'static str> {
    let (mut names, mut seen, mut left) =
        (BTreeSet::new(), BTreeSet::new(), vec![&operation["requestBody"]["content"]]);
    while let Some(next) = left.pop() {
        match next {
            Value::Object(members) => {
                names.extend(
                    members.get("properties").and_then(Value::as_object).into_iter().flatten().map(|(name, _)| &**name),
                );
                if let Some(reference) = next["$ref"].as_str().filter(|reference| seen.insert(*reference)) {
                    left.push(DOCUMENT.pointer(&reference[1..]).expect("what a reference leads to"));
                }
                left.extend(members.iter().filter(|(name, _)| !name.starts_with("example")).map(|(_, value)| value));
            }
            Value::Array(values) => left.extend(values),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
    names
}

/// The codes of errors that can be in an answer.
pub(crate) fn codes(response: &'static Value) -> Vec<&'static str> {
    response["x-remit-codes"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Asserts that the document knows the answer: its operation, status and code.
#[track_caller]
pub(super) fn check(method: &Method, path: &str, answer: &Answer) {
    // As it was sent: the client takes `..` out.
    let sent = reqwest::Url::parse(&format!("http://localhost{path}")).expect("a URL");
    let path = sent.path();
    // HEAD is GET without the body.
    let method = if method == Method::HEAD { &Method::GET } else { method };
    let fits = |template: &str| {
        let (wanted, given) = (template.split('/'), path.split('/'));
        wanted.clone().count() == given.clone().count()
            && wanted
                .zip(given)
                .all(|(wanted, given)| wanted == given || (wanted.starts_with('{') && !given.is_empty()))
    };
    let status = answer.status.as_u16();
    let known: Vec<_> = operations().filter(|(_, template, _)| fits(template)).collect();
    let Some((_, _, operation)) = known.iter().find(|(known, ..)| known == method.as_str()) else {
        let expected = if known.is_empty() { 404 } else { 405 };
        assert_eq!(status, expected, "{method} {path} is no operation of the document");
        return;
    };
    let response = response(operation, status);
    let response = response.unwrap_or_else(|| panic!("{method} {path} answers {status}, which is not documented"));
    let body: Value = serde_json::from_str(&answer.text).unwrap_or_default();
    if let Some(code) = body["code"].as_str().or(body["error"].as_str()) {
        assert!(codes(response).contains(&code), "{method} {path} answers {status} {code}, which is not documented");
    }
}
