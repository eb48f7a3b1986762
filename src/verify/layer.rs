//! A `tower` layer in front of any service over HTTP, axum's and tonic's among them: what gets through has its token's holder and task among
//! the extensions of the request, and the rest is answered here.

use futures_util::future::{Either, Ready, ready};
use http::{HeaderMap, Request, Response, header::AUTHORIZATION};
use std::task::{Context, Poll};
use tower_layer::Layer;
use tower_service::Service;

use super::{
    Following, Presented, Verified, Verifier,
    challenge::{Challenge, Refusal},
};
use crate::clock::Moment;

/// The certificate, in DER, by which the client of a TLS connection has proved to hold its key. Whoever ends TLS puts it into the extensions
/// of the request, so that tokens that are bound to it are accepted. Never what a header says of it.
#[derive(Debug, Clone)]
pub struct PeerCertificate(pub Vec<u8>);

/// Lets through who presents a token that is accepted, and puts [`Verified`] into the extensions of the request. It answers the others: 401
/// with `WWW-Authenticate` (RFC 6750 section 3, RFC 9449 section 7.1), or 503 with `Retry-After` while it cannot tell.
///
/// ```no_run
/// # #[cfg(all(feature = "broker", feature = "follow"))] mod example {
/// use axum::{Extension, Router, routing::get};
/// use remit::verify::{FollowTerms, Follower, Verified, Verifier, VerifyLayer};
///
/// async fn notes(Extension(verified): Extension<Verified>) -> String {
///     format!("{} for {}", verified.claims().client_id, verified.claims().task.id)
/// }
///
/// # async fn serve() -> Result<Router, Box<dyn std::error::Error>> {
/// let follower = Follower::new(&FollowTerms::of("https://broker.example.com"))?;
/// let verifier = Verifier::following(follower.feed(), "https://git.example.com".parse()?);
/// let following = tokio::spawn(follower.run());
/// let app = Router::new().route("/notes", get(notes)).layer(VerifyLayer::new(verifier));
/// # Ok(app) } }
/// ```
#[derive(Debug, Clone)]
pub struct VerifyLayer {
    verifier: Verifier<Following>,
    base: String,
    now: fn() -> Moment,
}

impl VerifyLayer {
    /// In front of the service that the verifier is for. Proofs are for its audience's scheme and authority, and the path of the request.
    #[must_use]
    pub fn new(verifier: Verifier<Following>) -> Self {
        let base = verifier.audience().parts().map(|url| url.origin().ascii_serialization()).unwrap_or_default();
        Self { verifier, base, now: Moment::now }
    }

    /// The same for a service that its clients know by another address than its audience: scheme, authority, and the path that a proxy has
    /// taken away, if any.
    #[must_use]
    pub fn at(self, base: &str) -> Self {
        Self { base: base.trim_end_matches('/').to_owned(), ..self }
    }

    /// Checks what a request presents: what is in its headers, for this method and path, over a connection with this certificate.
    pub(crate) fn check(
        &self,
        headers: &HeaderMap,
        (method, path): (&str, &str),
        certificate: Option<&[u8]>,
    ) -> Result<Verified, Refusal> {
        let Some((scheme, token)) = credentials(headers) else { return Err(Refusal::NOTHING) };
        let now = (self.now)();
        if scheme.eq_ignore_ascii_case("DPoP") {
            let proof = only(headers, "DPoP").ok_or(Refusal::NO_PROOF)?;
            let uri = format!("{}{path}", self.base);
            let presented = Presented::Dpop { token, proof, method, uri: &uri };
            return self.verifier.verify_presented(presented, &now).map_err(|why| Refusal::of(why, Challenge::Proof));
        }
        if !scheme.eq_ignore_ascii_case("Bearer") {
            return Err(Refusal::NOTHING);
        }
        let by_certificate = certificate.and_then(|certificate| {
            self.verifier.verify_presented(Presented::Certificate { token, certificate }, &now).ok()
        });
        match by_certificate {
            Some(verified) => Ok(verified),
            // What is bound is refused here.
            None => self.verifier.verify(token, &now).map_err(|why| Refusal::of(why, Challenge::Bearer)),
        }
    }
}

/// Scheme and token (RFC 9110 section 11.4).
fn credentials(headers: &HeaderMap) -> Option<(&str, &str)> {
    let (scheme, token) = only(headers, AUTHORIZATION.as_str())?.split_once(' ')?;
    Some((scheme, token.trim_start_matches(' ')))
}

/// The value of a header that is there once.
pub(crate) fn only<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

impl<S> Layer<S> for VerifyLayer {
    type Service = VerifyService<S>;

    fn layer(&self, inner: S) -> VerifyService<S> {
        VerifyService { layer: self.clone(), inner }
    }
}

/// A service behind a [`VerifyLayer`].
#[derive(Debug, Clone)]
pub struct VerifyService<S> {
    layer: VerifyLayer,
    inner: S,
}

impl<S, B, R> Service<Request<B>> for VerifyService<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    R: Default,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<Response<R>, S::Error>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let certificate = request.extensions().get().map(|PeerCertificate(certificate)| certificate.as_slice());
        let target = (request.method().as_str(), request.uri().path());
        match self.layer.check(request.headers(), target, certificate) {
            Ok(verified) => {
                // In place of what anybody else may have said.
                request.extensions_mut().insert(verified);
                Either::Left(self.inner.call(request))
            }
            Err(refusal) => Either::Right(ready(Ok(refusal.challenge.answer()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        id::sha256_base64url,
        jose::{SigningKey, Thumbprint},
        verify::feed::tests::{START, Stand, moment},
    };
    use http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
    use serde_json::json;
    use std::{convert::Infallible, future::Future};

    /// Answers with the task that it was told.
    #[derive(Clone)]
    struct Inner;

    impl Service<Request<()>> for Inner {
        type Response = Response<String>;
        type Error = Infallible;
        type Future = Ready<Result<Response<String>, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: Request<()>) -> Self::Future {
            let verified: &Verified = request.extensions().get().unwrap();
            ready(Ok(Response::new(verified.claims().task.id.to_string())))
        }
    }

    struct Door {
        stand: Stand,
        service: VerifyService<Inner>,
    }

    impl Door {
        fn new() -> Self {
            let stand = Stand::new();
            let verifier = Verifier::following(stand.feed.clone(), "https://git.example.com".parse().unwrap());
            let layer = VerifyLayer { now: || moment(START, 0), ..VerifyLayer::new(verifier) };
            Self { stand, service: layer.layer(Inner) }
        }

        fn open() -> Self {
            let door = Self::new();
            door.stand.snapshot(&door.stand.key, 1, &json!([])).unwrap();
            door
        }

        /// Status, body, and what it asks for.
        fn knock(&mut self, headers: &[(&str, &str)], certificate: Option<&[u8]>) -> (u16, String, Vec<String>) {
            let mut request = Request::get("/notes?page=1").body(()).unwrap();
            for (name, value) in headers {
                request.headers_mut().append(http::HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
            }
            if let Some(certificate) = certificate {
                request.extensions_mut().insert(PeerCertificate(certificate.to_vec()));
            }
            let future = std::pin::pin!(self.service.call(request));
            let Poll::Ready(Ok(response)) = future.poll(&mut Context::from_waker(std::task::Waker::noop())) else {
                panic!("it waits for nothing")
            };
            let said = response.headers().get_all(WWW_AUTHENTICATE).iter().chain(response.headers().get(RETRY_AFTER));
            let said = said.map(|value| value.to_str().unwrap().to_owned()).collect();
            (response.status().as_u16(), response.body().clone(), said)
        }
    }

    const TASK: &str = "task_01jd0000000000000000000000";
    const ALGS: &str = "algs=\"ES256 ES384 Ed25519 EdDSA PS256 RS256\"";

    #[test]
    fn who_presents_a_token_that_is_accepted_gets_through() {
        let mut door = Door::open();
        let bearer = format!("bearer {}", door.stand.token(None));
        assert_eq!(door.knock(&[("Authorization", &bearer)], None), (200, TASK.to_owned(), vec![]));
        let nothing = (401, String::new(), vec!["Bearer".to_owned(), format!("DPoP {ALGS}")]);
        for headers in
            [&[][..], &[("Authorization", "Basic eDp5")], &[("Authorization", &bearer), ("Authorization", &bearer)]]
        {
            assert_eq!(door.knock(headers, None), nothing, "{headers:?}");
        }
        let invalid = (401, String::new(), vec!["Bearer error=\"invalid_token\"".to_owned()]);
        for bad in ["Bearer x", "Bearer ", &bearer[..bearer.len() - 2], &format!("{bearer} x")] {
            assert_eq!(door.knock(&[("Authorization", bad)], None), invalid, "{bad}");
        }
    }

    #[test]
    fn what_was_revoked_is_refused_and_what_cannot_be_told_is_for_later() {
        let mut door = Door::new();
        let bearer = format!("Bearer {}", door.stand.token(None));
        let headers = [("Authorization", &*bearer)];
        assert_eq!(door.knock(&headers, None), (503, String::new(), vec!["1".to_owned()]));
        door.stand.snapshot(&door.stand.key, 1, &json!([])).unwrap();
        assert_eq!(door.knock(&headers, None).0, 200);
        let at = START / 1000;
        door.stand.push(&door.stand.key, 1, &json!([{"task": TASK, "at": at, "until": at + 60}])).unwrap();
        let invalid = (401, String::new(), vec!["Bearer error=\"invalid_token\"".to_owned()]);
        assert_eq!(door.knock(&headers, None), invalid);
    }

    #[test]
    fn what_is_bound_comes_with_its_key() {
        let mut door = Door::open();
        let key = SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap();
        let token = door.stand.token(Some(json!({"jkt": key.kid()})));
        let proof = |uri: &str, jti: &str| {
            let ath = sha256_base64url(token.as_bytes());
            key.prove(&json!({"jti": jti, "htm": "GET", "htu": uri, "iat": START / 1000, "ath": ath})).unwrap()
        };
        let with = format!("DPoP {token}");
        let good = proof("https://git.example.com/notes", "1");
        let refused = (401, String::new(), vec![format!("DPoP error=\"invalid_token\", {ALGS}")]);
        let authorization = ("Authorization", &*with);
        assert_eq!(door.knock(&[authorization], None), refused);
        assert_eq!(door.knock(&[authorization, ("DPoP", &good), ("DPoP", &good)], None), refused);
        assert_eq!(door.knock(&[authorization, ("DPoP", &good)], None).0, 200);
        assert_eq!(door.knock(&[authorization, ("DPoP", &good)], None), refused, "it serves once");
        let elsewhere = proof("https://git.example.com/other", "2");
        assert_eq!(door.knock(&[authorization, ("DPoP", &elsewhere)], None), refused);
        let bearer = format!("Bearer {token}");
        assert_eq!(door.knock(&[("Authorization", &bearer)], None).0, 401);
        door.service.layer = door.service.layer.clone().at("https://proxy.example.com/git/");
        let outside = proof("https://proxy.example.com/git/notes", "3");
        assert_eq!(door.knock(&[authorization, ("DPoP", &outside)], None).0, 200);
    }

    #[test]
    fn what_is_bound_to_a_certificate_comes_over_its_connection() {
        let mut door = Door::open();
        let token = door.stand.token(Some(json!({"x5t#S256": Thumbprint::of_certificate(b"one")})));
        let bearer = format!("Bearer {token}");
        assert_eq!(door.knock(&[("Authorization", &bearer)], Some(b"one")).0, 200);
        assert_eq!(door.knock(&[("Authorization", &bearer)], Some(b"two")).0, 401);
        assert_eq!(door.knock(&[("Authorization", &bearer)], None).0, 401);
        let unbound = format!("Bearer {}", door.stand.token(None));
        assert_eq!(door.knock(&[("Authorization", &unbound)], Some(b"one")).0, 200);
    }

    #[cfg(feature = "broker")]
    #[tokio::test]
    async fn axum_takes_it_and_gives_handlers_the_task() {
        use axum::{Extension, Router, body::Body, routing::get};
        let mut door = Door::open();
        let layer = door.service.layer.clone();
        let handler = |Extension(verified): Extension<Verified>| async move { verified.claims().task.id.to_string() };
        let mut app = Router::<()>::new().route("/notes", get(handler)).layer(layer);
        let bearer = format!("Bearer {}", door.stand.token(None));
        for (headers, status) in [(vec![("Authorization", &*bearer)], 200), (vec![], 401)] {
            assert_eq!(door.knock(&headers, None).0, status);
            let mut request = Request::get("/notes").body(Body::empty()).unwrap();
            for (name, value) in headers {
                request
                    .headers_mut()
                    .append(name.to_ascii_lowercase().parse::<http::HeaderName>().unwrap(), value.parse().unwrap());
            }
            let response = Service::<Request<Body>>::call(&mut app, request).await.unwrap();
            assert_eq!(response.status().as_u16(), status);
            if status == 200 {
                assert_eq!(axum::body::to_bytes(response.into_body(), 1024).await.unwrap(), TASK);
            }
        }
    }

    /// A service of tonic's with one method, which answers with the task that it was told, and what its caller makes of a refusal.
    #[cfg(feature = "grpc")]
    #[tokio::test]
    async fn tonic_takes_it_and_its_callers_are_told_in_their_words() {
        use tonic::{Code, body::Body};
        use tonic_prost::ProstCodec;

        #[derive(Clone)]
        struct Notes;

        impl tonic::server::UnaryService<()> for Notes {
            type Response = String;
            type Future = Ready<Result<tonic::Response<String>, tonic::Status>>;

            fn call(&mut self, request: tonic::Request<()>) -> Self::Future {
                let verified: &Verified = request.extensions().get().unwrap();
                ready(Ok(tonic::Response::new(verified.claims().task.id.to_string())))
            }
        }

        impl Service<Request<Body>> for Notes {
            type Response = Response<Body>;
            type Error = Infallible;
            type Future = futures_util::future::BoxFuture<'static, Result<Response<Body>, Infallible>>;

            fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
                Poll::Ready(Ok(()))
            }

            fn call(&mut self, request: Request<Body>) -> Self::Future {
                let notes = self.clone();
                Box::pin(async move {
                    let mut grpc = tonic::server::Grpc::new(ProstCodec::<String, ()>::default());
                    Ok(grpc.unary(notes, request).await)
                })
            }
        }

        let ask = async |door: &Door, authorization: Option<&str>| {
            let mut client = tonic::client::Grpc::new(door.service.layer.layer(Notes));
            let mut request = tonic::Request::new(());
            if let Some(authorization) = authorization {
                request.metadata_mut().insert("authorization", authorization.parse().unwrap());
            }
            client.ready().await.unwrap();
            let method = http::uri::PathAndQuery::from_static("/notes.v1.Notes/Read");
            let answer = client.unary(request, method, ProstCodec::<(), String>::default()).await;
            answer.map(tonic::Response::into_inner).map_err(|status| status.code())
        };
        let door = Door::open();
        let bearer = format!("Bearer {}", door.stand.token(None));
        assert_eq!(ask(&door, Some(&bearer)).await, Ok(TASK.to_owned()));
        assert_eq!(ask(&door, None).await, Err(Code::Unauthenticated));
        assert_eq!(ask(&door, Some("Bearer x")).await, Err(Code::Unauthenticated));
        let closed = Door::new();
        let bearer = format!("Bearer {}", closed.stand.token(None));
        assert_eq!(ask(&closed, Some(&bearer)).await, Err(Code::Unavailable), "it cannot tell");
    }
}
