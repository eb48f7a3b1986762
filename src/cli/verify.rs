//! `remit verify`: what a service would say to a token.

use clap::Args;
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};
use std::{io::Read as _, path::PathBuf};
use url::Url;

use super::{
    Output,
    client::{Caller, Client, Target, fetch},
    connection::token_in,
    exit::Failure,
    show::{self, say},
};
use crate::{
    claims::Confirmation,
    clock::{Clock, Moment, Time},
    id::Location,
    jose::MAX_TOKEN,
    task::CredentialType,
    verify::{
        FollowTerms, Follower, Following, KeySet, Presented, Refused, Rejected, StatusList, Token, Trouble, Verified,
        Verifier,
    },
};

/// Checks form, signature, issuer, times and audience; with --feed, --introspect or --status-list also whether it was revoked.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Verify {
    /// The token; `-` or nothing reads it from standard input, where no other process can see it.
    #[arg(default_value = "-", hide_default_value = true)]
    token: String,
    /// The broker, as it stands in `iss`.
    #[arg(long, value_name = "URL")]
    issuer: String,
    /// The service, as it stands in `aud`.
    #[arg(long, value_name = "URI")]
    audience: Location,
    /// The broker's keys [default: /jwks of the issuer, and /spiffe/bundle for JWT-SVIDs]
    #[arg(long, value_name = "URL|FILE")]
    jwks: Option<String>,
    /// The header `DPoP` that came with the token: it has to fit the token, --method and --uri.
    #[arg(long, value_name = "JWT", requires = "uri")]
    proof: Option<String>,
    /// The method of the request that they came with.
    #[arg(long, default_value = "GET", requires = "proof")]
    method: String,
    /// Its URI, as the service knows itself.
    #[arg(long, value_name = "URL", requires = "proof")]
    uri: Option<String>,
    /// The certificate, in PEM, that the client showed on the TLS connection that the token came over.
    #[arg(long, value_name = "FILE", conflicts_with = "proof")]
    certificate: Option<PathBuf>,
    /// Look into the status list that the token names: it shows a revoke within ten seconds.
    #[arg(long, conflicts_with = "introspect")]
    status_list: bool,
    /// Look into all that is revoked, as the broker's feed has it: it shows a revoke, and a lock, at once.
    #[arg(long, conflicts_with_all = ["introspect", "status_list", "jwks"])]
    feed: bool,
    /// Ask the broker, as a service: it shows a revoke at once.
    #[arg(long, requires = "service_token_file")]
    introspect: bool,
    /// The token by which the broker knows the service.
    #[arg(long, value_name = "FILE")]
    service_token_file: Option<PathBuf>,
}

const EXAMPLES: &str = "Examples:
  remit mint token TASK --resource https://git.example.com --privilege read |
    remit verify --issuer https://broker.example.com --audience https://git.example.com
  remit verify - --issuer https://broker.example.com --audience https://git.example.com \\
    --introspect --service-token-file git.token < token";

impl Verify {
    pub(super) async fn run(self, output: Output, clock: &dyn Clock) -> Result<(), Failure> {
        let token = self.token()?;
        let now = clock.now();
        let verified = match self.check(token.expose_secret(), now).await? {
            Ok(verified) => verified,
            // What is known is too old by now, or is not understood.
            Err(Rejected::Denied(why)) if why.is_doubt() => return Err(Failure::OutOfReach(why.to_string())),
            Err(why) => return refuse(output, &why.to_string()),
        };
        if self.status_list
            && let Err(why) = self.listed(&verified, now).await?
        {
            return refuse(output, &why.to_string());
        }
        let introspection = match &self.service_token_file {
            Some(file) if self.introspect => Some(self.introspect(token.expose_secret(), token_in(file)?).await?),
            _ => None,
        };
        if introspection.as_ref().is_some_and(|answer| answer["active"] != true) {
            return refuse(output, "the broker says it is not active: revoked, ended, or not for this service");
        }
        let heard = match &introspection {
            Some(answer) => Heard::Broker(answer),
            None if self.status_list => Heard::StatusList,
            None if self.feed => Heard::Feed,
            None => Heard::Nothing,
        };
        say(&accepted(&verified, &heard, output, now));
        Ok(())
    }

    fn token(&self) -> Result<SecretString, Failure> {
        if self.token != "-" {
            return Ok(self.token.trim().into());
        }
        let mut text = String::new();
        let most = MAX_TOKEN as u64 + 2;
        let read = std::io::stdin().lock().take(most).read_to_string(&mut text);
        read.map_err(|error| Failure::Input(format!("standard input: {error}")))?;
        match text.trim() {
            "" => Err(Failure::Input("standard input holds no token".to_owned())),
            token => Ok(token.into()),
        }
    }

    /// The outer error says that it could not be checked, the inner one that it was and why it is no good.
    async fn check(&self, token: &str, now: Time) -> Result<Result<Verified, Rejected>, Failure> {
        let form = match Token::parse(token) {
            Ok(outside) => outside.form(),
            Err(why) => return Ok(Err(why.into())),
        };
        let shown = self.certificate.as_deref().map(|file| {
            CertificateDer::from_pem_file(file)
                .map_err(|_| Failure::Input(format!("{} holds no certificate in PEM", file.display())))
        });
        let shown = shown.transpose()?;
        let presented = match (&self.proof, &self.uri, &shown) {
            (Some(proof), Some(uri), _) => Presented::Dpop { token, proof, method: &self.method, uri },
            (_, _, Some(certificate)) => Presented::Certificate { token, certificate },
            _ => Presented::Bearer(token),
        };
        if self.feed {
            let verifier = self.following().await?;
            let now = Moment { wall: now, ..Moment::now() };
            return Ok(verifier.verify_presented(presented, &now));
        }
        let document = self.keys(form).await?;
        let bad_keys = |why: Refused| Failure::OutOfReach(format!("the keys of {}: {why}", self.issuer));
        let verifier = Verifier::offline_until_expiry(&self.issuer, self.audience.clone());
        let verifier = match form {
            CredentialType::AccessToken => {
                verifier.with_access_keys(KeySet::from_jwks(document.as_bytes()).map_err(bad_keys)?)
            }
            CredentialType::Jwt => verifier.with_svid_keys(KeySet::from_bundle(document.as_bytes()).map_err(bad_keys)?),
        };
        Ok(verifier.verify_presented(presented, now).map_err(Rejected::from))
    }

    /// A verifier that knows what is revoked now.
    async fn following(&self) -> Result<Verifier<Following>, Failure> {
        let out_of_reach = |why: Trouble| Failure::OutOfReach(format!("the revocation feed of {}: {why}", self.issuer));
        let token = self.service_token_file.as_deref().map(token_in).transpose()?;
        let service_token = token.map(|token| token.expose_secret().to_owned());
        let terms = FollowTerms { service_token, ..FollowTerms::of(&self.issuer) };
        let follower = Follower::new(&terms).map_err(out_of_reach)?;
        follower.learn().await.map_err(out_of_reach)?;
        Ok(Verifier::following(follower.feed(), self.audience.clone()))
    }

    /// The document with the keys of this form.
    async fn keys(&self, form: CredentialType) -> Result<String, Failure> {
        let path = match form {
            CredentialType::AccessToken => "/jwks",
            CredentialType::Jwt => "/spiffe/bundle",
        };
        let place = match &self.jwks {
            Some(place) => place.clone(),
            None => format!("{}{path}", self.issuer.trim_end_matches('/')),
        };
        match Url::parse(&place) {
            Ok(url) => fetch(&url).await,
            Err(_) if self.jwks.is_some() => {
                std::fs::read_to_string(&place).map_err(|error| Failure::Input(format!("{place}: {error}")))
            }
            Err(error) => Err(Failure::Input(format!("--issuer: {error}"))),
        }
    }

    /// What the status list that the token names says of it.
    async fn listed(&self, verified: &Verified, now: Time) -> Result<Result<(), Refused>, Failure> {
        let uri = &verified.claims().status.status_list.uri;
        let out_of_reach = |why: &dyn std::fmt::Display| Failure::OutOfReach(format!("{uri}: {why}"));
        let list = fetch(&Url::parse(uri).map_err(|why| out_of_reach(&why))?).await?;
        let document = self.keys(CredentialType::AccessToken).await?;
        let keys = KeySet::of_status_lists(document.as_bytes()).map_err(|why| out_of_reach(&why))?;
        // A list that is no good says nothing of the token, and is no reason to accept it.
        let list = StatusList::read(&list, &keys, uri, now).map_err(|why| out_of_reach(&why))?;
        Ok(list.check(verified, now))
    }

    async fn introspect(&self, token: &str, service: SecretString) -> Result<Value, Failure> {
        let target: Target = self.issuer.parse().map_err(|rule| Failure::Input(format!("--issuer: {rule}")))?;
        let client = Client::new(target, Caller::Service, Some(service))?;
        Ok(client.form("/oauth2/introspect", &[("token", token)]).await?.json)
    }
}

fn refuse(output: Output, why: &str) -> Result<(), Failure> {
    say(&match output {
        Output::Json => json!({"accepted": false, "why": why}).to_string(),
        Output::Text => format!("not accepted: {why}"),
    });
    Err(Failure::NotAccepted)
}

/// Who was asked whether the token was revoked.
enum Heard<'a> {
    /// The broker, which answered this.
    Broker(&'a Value),
    /// The status list, in which it is not.
    StatusList,
    /// The feed, by which nothing stands against it.
    Feed,
    /// Nobody.
    Nothing,
}

fn accepted(verified: &Verified, heard: &Heard<'_>, output: Output, now: Time) -> String {
    let claims = verified.claims();
    if output == Output::Json {
        let mut answer = json!({"accepted": true, "typ": verified.form().typ(), "claims": claims});
        match heard {
            Heard::Broker(introspection) => answer["introspection"] = (*introspection).clone(),
            Heard::StatusList => answer["status_list"] = json!({"ended": false}),
            Heard::Feed => answer["feed"] = json!({"revoked": false}),
            Heard::Nothing => {}
        }
        return answer.to_string();
    }
    let time = |seconds| match chrono::DateTime::from_timestamp(seconds, 0) {
        Some(time) => format!("{}  ({})", time.format("%Y-%m-%dT%H:%M:%SZ"), show::relative(time, now)),
        None => seconds.to_string(),
    };
    let revoked = match heard {
        Heard::Broker(_) => "active, says the broker",
        Heard::StatusList => "no, says the status list",
        Heard::Feed => "no, says the feed",
        Heard::Nothing => "not asked: keys alone show no revoke; --introspect asks the broker",
    };
    let claims_json = json!(claims);
    let bound_to = match &claims.cnf {
        Some(Confirmation::Key(key)) => format!("the key {key}, which came with a proof"),
        Some(Confirmation::Certificate(thumbprint)) => format!("the certificate {thumbprint}, which its client showed"),
        None => "nothing: whoever has it may use it".to_owned(),
    };
    let facts = show::facts(&[
        ("subject", show::text(&claims_json, "sub")),
        ("holder", show::text(&claims_json, "client_id")),
        ("may", format!("{} at {}", claims.scope, claims.aud)),
        ("task", claims.task.id.to_string()),
        ("owner", show::text(&claims_json["urn:remit:task"], "owner")),
        ("kind", format!("{}, attested by {}", claims.task.kind.as_str(), claims.task.attestor)),
        ("sandbox", show::text(&claims_json["urn:remit:task"], "sandbox")),
        ("minted", time(claims.iat)),
        ("expires", time(claims.exp)),
        ("lease", claims.jti.to_string()),
        ("bound to", bound_to),
        ("revoked", revoked.to_owned()),
    ]);
    format!("accepted ({})\n{facts}", verified.form().typ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::SystemClock,
        jose::SigningKey,
        verify::{
            Denial,
            follow::tests::{AUDIENCE, Broker, TASK},
        },
    };

    fn verify(jwks: &std::path::Path) -> Verify {
        Verify {
            token: "-".to_owned(),
            issuer: "http://127.0.0.1:8420".to_owned(),
            audience: "http://127.0.0.1:9000".parse().unwrap(),
            jwks: Some(jwks.to_string_lossy().into_owned()),
            proof: None,
            certificate: None,
            method: "GET".to_owned(),
            uri: None,
            status_list: false,
            feed: false,
            introspect: false,
            service_token_file: None,
        }
    }

    #[tokio::test]
    async fn a_token_is_checked_with_keys_from_a_file() {
        let now: Time = "2026-11-20T10:00:00Z".parse().unwrap();
        let key = SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap();
        let mut jwk = serde_json::to_value(key.public()).unwrap();
        jwk["use"] = "sig".into();
        jwk["remit_purpose"] = "access_token".into();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("jwks.json");
        std::fs::write(&path, json!({ "keys": [jwk] }).to_string()).unwrap();
        let at = now.timestamp();
        let claims = json!({
            "iss": "http://127.0.0.1:8420", "sub": "spiffe://localhost/unix/1", "client_id": "spiffe://localhost/unix/1",
            "aud": "http://127.0.0.1:9000", "exp": at + 60, "iat": at, "nbf": at, "jti": "0".repeat(32), "scope": "read",
            "authorization_details": [], "status": {"status_list": {"idx": 7, "uri": "http://127.0.0.1:8420/status-lists/0"}},
            "urn:remit:task": {"id": "task_01jd0000000000000000000000", "owner": "o",
            "kind": "service", "attestor": "unix", "declared_at": at, "generation": 1, "authority_hash": "h",
            "expires_at": at + 60}});
        let token = key.sign("at+jwt", &claims).unwrap();
        let verified = verify(&path).check(&token, now).await.unwrap().unwrap();
        let shown = accepted(&verified, &Heard::Nothing, Output::Text, now);
        assert!(shown.contains("read at http://127.0.0.1:9000") && shown.contains("in 1 min 0 s"), "{shown}");
        assert!(!shown.contains(&token));
        let late = now + chrono::TimeDelta::seconds(60);
        assert!(verify(&path).check(&token, late).await.unwrap().is_err());
        assert!(verify(&path).check("not.a.token", now).await.unwrap().is_err());
    }

    #[tokio::test]
    async fn the_feed_says_what_is_revoked() {
        let broker = Broker::start().await;
        let verify = Verify {
            issuer: broker.url.clone(),
            audience: AUDIENCE.parse().unwrap(),
            jwks: None,
            feed: true,
            ..verify("".as_ref())
        };
        let (token, now) = (broker.good_token(), SystemClock.now());
        let verified = verify.check(&token, now).await.unwrap().unwrap();
        assert!(accepted(&verified, &Heard::Feed, Output::Text, now).contains("no, says the feed"));
        broker.revoke(&json!({ "task": TASK }));
        assert_eq!(verify.check(&token, now).await.unwrap().unwrap_err(), Rejected::Denied(Denial::Revoked));
        broker.break_down();
        assert!(matches!(verify.check(&token, now).await, Err(Failure::OutOfReach(_))));
    }

    #[tokio::test]
    async fn keys_that_are_not_there_are_bad_input_and_not_a_bad_token() {
        let key = SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap();
        let mut verify = verify("/nonexistent/jwks".as_ref());
        verify.token = key.sign("at+jwt", &json!({})).unwrap();
        assert!(matches!(verify.run(Output::Text, &SystemClock).await, Err(Failure::Input(_))));
    }
}
