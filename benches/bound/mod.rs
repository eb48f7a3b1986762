//! Credentials that are bound to a key (DPoP, RFC 9449).

use remit::{
    clock::{Clock as _, SystemClock},
    id::LeaseId,
    jose::SigningKey,
};
use serde_json::json;

use crate::stand::{Result, SERVICE, Stand};

/// A request to mint one that lives so many seconds: it comes with a proof of its own.
pub(crate) fn mint(stand: &Stand, task: &str, key: &SigningKey, ttl: u32) -> Result<reqwest::Request> {
    let url = stand.url(&format!("/v1/tasks/{task}/credentials"));
    let jti = LeaseId::random().map_err(|_| "no random bytes")?;
    let proof = key.prove(&json!({"jti": jti, "htm": "POST", "htu": url, "iat": SystemClock.now().timestamp()}))?;
    let asked = json!({"credentials": [{"resource": SERVICE, "privilege": "read", "ttl": ttl}]});
    Ok(stand.client.post(url).bearer_auth(&stand.evidence[1]).header("dpop", proof).json(&asked).build()?)
}
