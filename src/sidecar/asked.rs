//! What a proxy asks about: the request that it holds back. Headers that the proxy writes are told from those that it passes on: a client
//! can send any of the others.

use axum::http::{HeaderMap, HeaderName};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};

use crate::{
    task::Privilege,
    verify::{Refusal, only},
};

/// The headers in which nginx says it, as it is configured, and those in which Traefik does.
const ORIGINAL: [&str; 2] = ["x-original-method", "x-original-uri"];
const FORWARDED: [&str; 2] = ["x-forwarded-method", "x-forwarded-uri"];
/// The longest header with a certificate that is read, in octets.
const MAX_CERTIFICATE: usize = 32 * 1024;

/// The request that a proxy holds back.
pub(super) struct Asked<'a> {
    /// Its method.
    pub(super) method: &'a str,
    /// Its path, as it was sent.
    pub(super) path: &'a str,
    /// The certificate that its client has shown, in DER, where the proxy says so.
    pub(super) certificate: Option<Vec<u8>>,
    /// What it takes.
    pub(super) privilege: Option<Privilege>,
}

/// How a proxy says what it asks about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    /// nginx: any answer but 2xx, 401 and 403 is an error of its own.
    Original,
    /// Traefik.
    Forwarded,
    /// Not at all: only a bearer token can be told from anything else.
    Unsaid,
}

impl Manner {
    /// Which of both it is: a proxy writes one of them, so whoever sends the other means to be taken for somebody else.
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, Refusal> {
        let any = |names: [&str; 2]| names.iter().any(|name| headers.contains_key(*name));
        match (any(ORIGINAL), any(FORWARDED)) {
            (true, true) => Err(Refusal::MALFORMED),
            (true, false) => Ok(Self::Original),
            (false, true) => Ok(Self::Forwarded),
            (false, false) => Ok(Self::Unsaid),
        }
    }

    /// Method and target of the request.
    pub(super) fn target(self, headers: &HeaderMap) -> Result<Option<(&str, &str)>, Refusal> {
        let [method, uri] = match self {
            Self::Original => ORIGINAL,
            Self::Forwarded => FORWARDED,
            Self::Unsaid => return Ok(None),
        };
        only(headers, method).zip(only(headers, uri)).map(Some).ok_or(Refusal::MALFORMED)
    }
}

impl<'a> Asked<'a> {
    /// A request for a target: path and query, as they were sent. A token in the query is one too many (RFC 6750 section 2.3).
    pub(super) fn of(method: &'a str, target: &'a str) -> Result<Self, Refusal> {
        let target = target.split('#').next().unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        if method.is_empty() || !path.starts_with('/') || names_token(query) {
            return Err(Refusal::MALFORMED);
        }
        Ok(Self { method, path, certificate: None, privilege: None })
    }

    /// The same, with the certificate that a header names.
    pub(super) fn with_certificate(self, headers: &HeaderMap, name: Option<&HeaderName>) -> Result<Self, Refusal> {
        let Some(name) = name.filter(|name| headers.contains_key(*name)) else { return Ok(self) };
        let text = only(headers, name.as_str()).ok_or(Refusal::MALFORMED)?;
        Ok(Self { certificate: certificate(text)?, ..self })
    }
}

/// Whether a token is in a query: it is in the logs of whoever it went by.
pub(super) fn names_token(query: &str) -> bool {
    form_urlencoded::parse(query.as_bytes()).any(|(name, _)| name == "access_token")
}

/// A certificate as proxies write it into a header: PEM with percent signs (nginx, Envoy), or the base64 in it (Traefik); the first of
/// several. Nothing where there is none.
pub(super) fn certificate(text: &str) -> Result<Option<Vec<u8>>, Refusal> {
    if text.is_empty() {
        return Ok(None);
    }
    if text.len() > MAX_CERTIFICATE {
        return Err(Refusal::MALFORMED);
    }
    let text = unescaped(text).ok_or(Refusal::MALFORMED)?;
    let der = if text.contains("-----BEGIN") {
        CertificateDer::from_pem_slice(text.as_bytes()).map(|der| der.to_vec()).map_err(|_| Refusal::MALFORMED)
    } else {
        BASE64_STANDARD.decode(text.split(',').next().unwrap_or_default()).map_err(|_| Refusal::MALFORMED)
    };
    der.map(Some)
}

/// Without percent signs (RFC 3986 section 2.1). A plus is a plus: it stands for itself in base64.
fn unescaped(text: &str) -> Option<String> {
    let mut octets = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        if *first != b'%' {
            octets.push(*first);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2)?;
        octets.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        rest = after;
    }
    String::from_utf8(octets).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::from_static(name), value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn a_proxy_says_it_in_one_way_and_once() {
        let target = |pairs: &[(&'static str, &str)]| {
            let headers = headers(pairs);
            let manner = Manner::of(&headers).map_err(|_| ())?;
            let target = manner.target(&headers).map_err(|_| ())?;
            Ok::<_, ()>(target.map(|(method, uri)| format!("{method} {uri}")))
        };
        let nginx = [("x-original-method", "GET"), ("x-original-uri", "/a?b")];
        let traefik = [("x-forwarded-method", "PUT"), ("x-forwarded-uri", "/c")];
        assert_eq!(target(&nginx), Ok(Some("GET /a?b".to_owned())));
        assert_eq!(target(&traefik), Ok(Some("PUT /c".to_owned())));
        assert_eq!(target(&[]), Ok(None));
        for bad in [
            &[nginx[0], nginx[1], traefik[1]][..],
            &[nginx[0], traefik[0], traefik[1]],
            &nginx[..1],
            &traefik[1..],
            &[nginx[0], nginx[1], ("x-original-uri", "/other")],
            &[nginx[0], nginx[0], nginx[1]],
        ] {
            assert_eq!(target(bad), Err(()), "{bad:?}");
        }
    }

    #[test]
    fn a_target_is_a_path_and_holds_no_token() {
        let path = |target| Asked::of("GET", target).map(|asked| asked.path.to_owned()).ok();
        assert_eq!(path("/notes?page=1"), Some("/notes".to_owned()));
        assert_eq!(path("/a%2Fb//c#d?e"), Some("/a%2Fb//c".to_owned()));
        for bad in ["", "notes", "http://other/notes", "*", "/x?access_token=t", "/x?a=b&access%5Ftoken=t"] {
            assert_eq!(path(bad), None, "{bad}");
        }
        assert!(Asked::of("", "/").is_err());
    }

    #[test]
    fn a_certificate_is_read_as_proxies_write_it() {
        let read = |text: &str| certificate(text).map_err(|_| ());
        let pem = "-----BEGIN%20CERTIFICATE-----%0AAQID%0A-----END%20CERTIFICATE-----%0A";
        assert_eq!(read(pem), Ok(Some(vec![1, 2, 3])));
        assert_eq!(read("%2B%2B%2B%2B"), Ok(Some(vec![0xfb, 0xef, 0xbe])));
        assert_eq!(read("++++,AQID"), Ok(Some(vec![0xfb, 0xef, 0xbe])));
        assert_eq!(read(""), Ok(None));
        for bad in ["%", "%4", "%zz", "%ff", "x", "-----BEGIN%20CERTIFICATE-----", &"A".repeat(MAX_CERTIFICATE + 4)] {
            assert_eq!(read(bad), Err(()), "{bad}");
        }
    }
}
