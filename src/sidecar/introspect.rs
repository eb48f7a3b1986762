//! Introspection (RFC 7662) by whoever is on this machine: what a token says, if it is good at this moment. Who holds it, whoever asks sees by
//! its `cnf`.

use axum::{Json, body::Bytes, extract::State, http::HeaderMap};
use serde_json::{Value, json};
use std::sync::Arc;

use super::{
    Sidecar,
    body::{Unread, is_of},
};
use crate::{
    claims::token_type,
    clock::Moment,
    verify::{Challenge, Refusal},
};

pub(super) async fn introspect(
    State(sidecar): State<Arc<Sidecar>>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<Value>, Unread> {
    is_of(&headers, "application/x-www-form-urlencoded")?;
    let mut tokens = form_urlencoded::parse(&body).filter(|(name, _)| name == "token");
    let (Some((_, token)), None) = (tokens.next(), tokens.next()) else {
        return Err(Unread::Malformed("`token` is required, once"));
    };
    let known = sidecar.verifier.introspect(&token, &Moment::now());
    let known = sidecar.note(known.map_err(|why| Refusal::of(why, Challenge::Bearer)));
    let answer = known.map_or(json!({"active": false}), |known| {
        let mut answer = json!(known.claims());
        answer["active"] = Value::Bool(true);
        answer["token_type"] = token_type(known.form(), known.claims().cnf.as_ref()).into();
        answer
    });
    Ok(Json(answer))
}
