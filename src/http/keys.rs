//! Public documents: server metadata (RFC 8414), keys of access tokens and
//! status lists (RFC 7517), keys of JWT-SVIDs (SPIFFE bundle).

use axum::{
    Json,
    extract::State,
    http::{HeaderName, HeaderValue, header},
};
use serde_json::{Value, json};
use std::sync::Arc;

use crate::{
    broker::{Broker, PublicKeys},
    claims::Purpose,
    lease::Use,
};

type Document = ([(HeaderName, HeaderValue); 1], Json<Value>);

fn cacheable(broker: &Broker, document: Value) -> Document {
    let max_age = broker.jwks_max_age();
    let header =
        HeaderValue::from_str(&format!("public, max-age={max_age}")).unwrap_or(HeaderValue::from_static("no-cache"));
    ([(header::CACHE_CONTROL, header)], Json(document))
}

async fn keys(broker: &Broker, purpose: Use) -> (Vec<Value>, usize) {
    // `use` does not tell what stands in `/jwks` apart, so a member of our own does; whoever does not know it goes by `typ`.
    let (word, signs) = match purpose {
        Use::AccessToken => ("sig", Some(Purpose::AccessToken)),
        Use::JwtSvid => ("jwt-svid", None),
        Use::StatusList => ("sig", Some(Purpose::StatusList)),
    };
    let PublicKeys { keys, sequence } = broker.public_keys(purpose).await;
    let keys = keys.into_iter().filter_map(|key| {
        let mut jwk = serde_json::to_value(key.jwk).ok()?;
        let members = jwk.as_object_mut()?;
        members.insert("use".into(), word.into());
        if let Some(signs) = signs {
            members.insert(Purpose::MEMBER.into(), json!(signs));
        }
        Some(jwk)
    });
    (keys.collect(), sequence)
}

pub(super) async fn jwks(State(broker): State<Arc<Broker>>) -> Document {
    let (mut all, _) = keys(&broker, Use::AccessToken).await;
    all.extend(keys(&broker, Use::StatusList).await.0);
    cacheable(&broker, json!({"keys": all}))
}

pub(super) async fn bundle(State(broker): State<Arc<Broker>>) -> Document {
    let (keys, sequence) = keys(&broker, Use::JwtSvid).await;
    let hint = broker.jwks_max_age();
    cacheable(&broker, json!({"spiffe_sequence": sequence, "spiffe_refresh_hint": hint, "keys": keys}))
}

/// Every member whose default would be wrong is stated.
pub(super) async fn metadata(State(broker): State<Arc<Broker>>) -> Document {
    let issuer = broker.issuer();
    cacheable(
        &broker,
        json!({
            "issuer": issuer,
            "jwks_uri": format!("{issuer}/jwks"),
            "token_endpoint": format!("{issuer}/oauth2/token"),
            "token_endpoint_auth_methods_supported": ["none"],
            "introspection_endpoint": format!("{issuer}/oauth2/introspect"),
            "introspection_endpoint_auth_methods_supported": ["Bearer"],
            "grant_types_supported": ["urn:ietf:params:oauth:grant-type:token-exchange", "client_credentials"],
            // Required, and never an empty array (RFC 8414 sections 2 and 3.2). Without an authorization endpoint this is the one
            // response type that promises nothing.
            "response_types_supported": ["none"],
            "scopes_supported": ["read", "write", "secret"],
            "authorization_details_types_supported": ["remit:task", "remit:declaration"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
            "request_uri_parameter_supported": false,
            "remit_tasks_endpoint": format!("{issuer}/v1/tasks"),
            "remit_spiffe_bundle_uri": format!("{issuer}/spiffe/bundle"),
        }),
    )
}
