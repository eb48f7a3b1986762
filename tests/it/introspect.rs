//! RFC 7662: whether a token is alive, for those who may ask.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    both,
    support::{GIT, GIT_TOKEN, REGISTRY_TOKEN, RESPONDER, VIEWER, claims, part},
};

both! {
    async fn a_service_learns_what_the_token_says(stand) {
        let (task, token) = stand.task_with_token().await;
        let answer = stand.introspect(&token).await;
        let mut expected = claims(&token);
        expected["active"] = true.into();
        expected["token_type"] = "Bearer".into();
        assert_eq!(answer, expected);
        assert_eq!((&answer["urn:remit:task"]["id"], &answer["aud"]), (&json!(task), &json!(GIT)));
    }

    /// Unknown, foreign, revoked and garbage are one answer, to the octet.
    async fn there_is_one_inactive_answer(stand) {
        let (task, token) = stand.task_with_token().await;
        let ask = async |bearer: &str, token: &str| stand.form("/oauth2/introspect", Some(bearer), &[("token", token)]).await;
        let inactive = r#"{"active":false}"#;
        let foreign = ask(REGISTRY_TOKEN, &token).await;
        assert_eq!((foreign.status, &*foreign.text), (StatusCode::OK, inactive));
        let forged = {
            let mut claims = claims(&token);
            claims["scope"] = "write".into();
            stand.issuer.key.sign("at+jwt", &claims).unwrap()
        };
        let [header, payload, signature]: [&str; 3] = token.split('.').collect::<Vec<_>>().try_into().unwrap();
        let swapped = format!("{header}.{payload}.{}", signature.chars().rev().collect::<String>());
        for bad in ["", "x", "a.b.c", &forged, &swapped, &stand.evidence(), &format!("{token} "), &format!("{token}=")] {
            let answer = ask(GIT_TOKEN, bad).await;
            if bad.is_empty() {
                answer.oauth_refused(400, "invalid_request");
            } else {
                assert_eq!((answer.status, &*answer.text), (StatusCode::OK, inactive), "{bad}");
            }
        }
        stand.revoke(&task).await.expect(StatusCode::OK);
        assert_eq!(ask(GIT_TOKEN, &token).await.text, inactive);
    }

    /// A token whose header names the other kind of credential is looked up among the other kind's keys.
    async fn one_kind_is_never_accepted_as_another(stand) {
        let (_, token) = stand.task_with_token().await;
        let mut header = part(&token, 0);
        header["typ"] = "JWT".into();
        let encode = |value: &Value| base64::Engine::encode(&base64::prelude::BASE64_URL_SAFE_NO_PAD, value.to_string());
        let rest = token.split_once('.').unwrap().1;
        assert_eq!(stand.introspect(&format!("{}.{rest}", encode(&header))).await, json!({"active": false}));
    }

    async fn only_services_and_operators_ask(stand) {
        let (_, token) = stand.task_with_token().await;
        let ask = async |bearer: Option<&str>| stand.form("/oauth2/introspect", bearer, &[("token", &token)]).await;
        ask(None).await.oauth_refused(401, "invalid_client");
        ask(Some("wrong")).await.oauth_refused(401, "invalid_client");
        ask(Some(&stand.evidence())).await.oauth_refused(401, "invalid_client");
        ask(Some(&token)).await.oauth_refused(401, "invalid_client");
        for operator in [VIEWER, RESPONDER] {
            assert_eq!(ask(Some(operator)).await.expect(StatusCode::OK)["active"], true);
        }
        let two = stand.client.post(stand.url("/oauth2/introspect")).header("authorization", format!("Bearer {VIEWER}")).header("authorization", "Bearer x");
        crate::support::Answer::of(two.form(&[("token", &token)]).send().await.unwrap()).await.oauth_refused(400, "invalid_request");
        stand.form("/oauth2/introspect", Some(VIEWER), &[("token", &token), ("token", &token)]).await.oauth_refused(400, "invalid_request");
        stand.call(Method::GET, "/oauth2/introspect", Some(VIEWER), None).await.oauth_refused(405, "invalid_request");
    }
}
