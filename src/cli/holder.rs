//! A workload's own key on the command line: proofs that it holds it (RFC 9449), for the broker and for whoever takes a bound token.

use reqwest::{
    Request, Response,
    header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE},
};
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;
use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use super::exit::Failure;
use crate::{
    clock::{Clock as _, SystemClock},
    id::{LeaseId, sha256_base64url},
    jose::{Invalid, SigningKey},
    key_file,
};

const HEADER: &str = "dpop";
const NONCE: &str = "dpop-nonce";

/// Whoever holds a key.
#[derive(Debug, Clone)]
pub(super) struct Holder {
    key: Arc<SigningKey>,
    /// What the broker wants to see in the next proof.
    nonce: Arc<Mutex<Option<String>>>,
}

impl Holder {
    /// With the key in a file, which is made where there is none.
    pub(super) fn of(path: &Path) -> Result<Self, Failure> {
        let (key, is_new) = key_file::load_or_create(path).map_err(Failure::Input)?;
        if is_new {
            // A name that was mistyped is no key that anything is bound to.
            eprintln!("made a new key in {}", path.display());
        }
        Ok(Self { key: Arc::new(key), nonce: Arc::default() })
    }

    /// A proof for a request.
    pub(super) fn proof(
        &self,
        method: &str,
        uri: &str,
        token: Option<&str>,
        nonce: Option<&str>,
    ) -> Result<String, Failure> {
        let stopped = |why: &str| Failure::Stopped(format!("no proof: {why}"));
        let jti = LeaseId::random().map_err(|_| stopped("the system gives no random bytes"))?;
        let mut claims = json!({"jti": jti, "htm": method, "htu": uri, "iat": SystemClock.now().timestamp()});
        if let Some(token) = token {
            claims["ath"] = sha256_base64url(token.as_bytes()).into();
        }
        if let Some(nonce) = nonce {
            claims["nonce"] = nonce.into();
        }
        self.key.prove(&claims).map_err(|Invalid(why)| stopped(why))
    }

    /// Puts a proof on a request to the broker that is called `issuer`; over a socket its URI says nothing of that.
    pub(super) fn prove(
        &self,
        mut request: Request,
        issuer: &str,
        token: Option<&SecretString>,
    ) -> Result<Request, Failure> {
        let uri = format!("{issuer}{}", request.url().path());
        let nonce = self.nonce.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let token = token.map(ExposeSecret::expose_secret);
        let proof = self.proof(request.method().as_str(), &uri, token, nonce.as_deref())?;
        let proof = HeaderValue::from_str(&proof).map_err(|error| Failure::Stopped(error.to_string()))?;
        request.headers_mut().insert(HEADER, proof);
        Ok(request)
    }

    /// Whether the answer asks for another proof, with the nonce that it brings along.
    pub(super) fn is_asked_again(&self, response: &Response) -> bool {
        let text =
            |headers: &HeaderMap, name| headers.get(name).and_then(|value| value.to_str().ok().map(str::to_owned));
        if let Some(nonce) = text(response.headers(), NONCE) {
            *self.nonce.lock().unwrap_or_else(PoisonError::into_inner) = Some(nonce);
        }
        let challenge = text(response.headers(), WWW_AUTHENTICATE.as_str());
        challenge.is_some_and(|challenge| challenge.contains("use_dpop_nonce"))
    }
}
