//! A service that checks SVIDs with the crate `spiffe`: the SPIFFE ID, or why it is not accepted.
//!
//! ```text
//! remit-tests-spiffe ISSUER TRUST_DOMAIN AUDIENCE
//! ```
//!
//! One SVID a line on standard input: a JWT, or a file of certificates and a key in PEM. One line each on standard output.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject as _};
use serde_json::{Value, json};
use spiffe::{JwtBundle, JwtBundleSet, JwtSvid, TrustDomain, X509Bundle, X509Svid};
use std::{error::Error, io::BufRead as _};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

/// The bundle of the trust domain, as it is published.
struct Bundle {
    jwt: JwtBundleSet,
    x509: X509Bundle,
}

impl Bundle {
    fn fetch(issuer: &str, domain: &str) -> Result<Self, Box<dyn Error>> {
        let text = ureq::get(format!("{issuer}/spiffe/bundle")).call()?.body_mut().read_to_string()?;
        let bundle: Value = serde_json::from_str(&text)?;
        let of = |purpose: &str| -> Vec<&Value> {
            bundle["keys"].as_array().into_iter().flatten().filter(|key| key["use"] == purpose).collect()
        };
        let domain = TrustDomain::new(domain)?;
        let mut jwt = JwtBundleSet::default();
        let keys = json!({ "keys": of("jwt-svid") }).to_string();
        jwt.add_bundle(JwtBundle::from_jwt_authorities(domain.clone(), keys.as_bytes())?);
        let mut x509 = X509Bundle::new(domain);
        for key in of("x509-svid") {
            let certificate = key["x5c"][0].as_str().ok_or("an authority without a certificate")?;
            x509.add_authority(&BASE64_STANDARD.decode(certificate)?)?;
        }
        Ok(Self { jwt, x509 })
    }

    fn check(&self, svid: &str, audience: &str) -> Result<String, Box<dyn Error>> {
        if svid.matches('.').count() == 2 && !svid.contains('/') {
            return Ok(JwtSvid::parse_and_validate(svid, &self.jwt, &[audience])?.spiffe_id().to_string());
        }
        let pem = std::fs::read(svid)?;
        let chain = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(&pem)?;
        let svid = X509Svid::parse_from_der(
            &chain.iter().map(AsRef::as_ref).collect::<Vec<&[u8]>>().concat(),
            key.secret_der(),
        )?;
        if svid.spiffe_id().trust_domain() != self.x509.trust_domain() {
            return Err("of another trust domain".into());
        }
        // The crate leaves the path to whoever does TLS.
        let authorities: Vec<_> =
            self.x509.authorities().iter().map(|one| CertificateDer::from(one.as_bytes())).collect();
        let anchors = authorities.iter().map(anchor_from_trusted_cert).collect::<Result<Vec<_>, _>>()?;
        EndEntityCert::try_from(&chain[0])?.verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &anchors,
            &chain[1..],
            UnixTime::now(),
            KeyUsage::client_auth(),
            None,
            None,
        )?;
        Ok(svid.spiffe_id().to_string())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args().collect();
    let [_, issuer, domain, audience] = &arguments[..] else { return Err("ISSUER TRUST_DOMAIN AUDIENCE".into()) };
    let bundle = Bundle::fetch(issuer, domain)?;
    for line in std::io::stdin().lock().lines() {
        match bundle.check(line?.trim(), audience) {
            Ok(id) => println!("{id}"),
            Err(why) => println!("no: {why}"),
        }
    }
    Ok(())
}
