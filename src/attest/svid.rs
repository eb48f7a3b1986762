//! X.509-SVIDs of another trust domain, judged (X509-SVID section 5, RFC 5280).

use rustls::{
    crypto::ring,
    pki_types::{CertificateDer, TrustAnchor, UnixTime},
};
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};
use x509_parser::{asn1_rs::Tag, certificate::X509Certificate, extensions::GeneralName};

use super::{
    bundle::{Anchor, Bundle},
    certificate::{ClientCertificate, parse, time},
};
use crate::{
    clock::Time,
    id::{SpiffeId, TrustDomain},
    jose::Invalid,
};

/// What a certificate says that has the form of an X.509-SVID. Whether anybody vouches for it is another question.
pub(super) struct Svid {
    pub(super) id: SpiffeId,
    pub(super) from: Time,
    pub(super) until: Time,
}

/// How many of the certificates that come with one may have the same subject: two, where an authority was certified by two others.
const MOST_ALIKE: usize = 2;

impl Svid {
    /// Reads a certificate.
    ///
    /// # Errors
    /// When it is no X.509-SVID of a workload: without exactly one URI that is a SPIFFE ID with a path, of an authority, or with a
    /// key that may not authenticate, or may sign certificates.
    pub(super) fn read(certificate: &ClientCertificate) -> Result<Self, Invalid> {
        let leaf = parse(certificate.split().0)?;
        let Some(id) = only(uris(&leaf)?) else {
            return Err(Invalid("an X.509-SVID has exactly one URI among its names"));
        };
        let id = id.parse().map_err(|_| Invalid("the URI of the certificate is no SPIFFE ID with a path"))?;
        let constraints = leaf.basic_constraints().map_err(|_| Invalid("its basic constraints are malformed"))?;
        if constraints.is_some_and(|constraints| constraints.value.ca) {
            return Err(Invalid("it is the certificate of an authority"));
        }
        let usage = leaf.key_usage().map_err(|_| Invalid("its key usage is malformed"))?;
        let usage = usage.filter(|usage| usage.critical).ok_or(Invalid("it has no critical key usage"))?.value;
        if !usage.digital_signature() || usage.key_cert_sign() || usage.crl_sign() {
            return Err(Invalid("its key is not for digital signatures alone"));
        }
        Ok(Self { id, from: time(leaf.validity().not_before)?, until: time(leaf.validity().not_after)? })
    }

    /// Until when the authorities of `bundle` vouch for it, for this usage, if they do `now`: until the first certificate of the path ends.
    ///
    /// # Errors
    /// When no path leads to one of them.
    pub(super) fn vouched(
        &self,
        certificate: &ClientCertificate,
        bundle: &Bundle,
        usage: KeyUsage,
        domain: &TrustDomain,
        now: Time,
    ) -> Result<Time, String> {
        let anchors: Vec<&Anchor> = bundle.anchors(now).collect();
        let trusted: Vec<TrustAnchor<'_>> = anchors.iter().map(|anchor| anchor.trusted.clone()).collect();
        let (leaf, others) = certificate.split();
        refuse_many_paths(others).map_err(|why| why.to_string())?;
        let leaf = CertificateDer::from(leaf);
        let leaf =
            EndEntityCert::try_from(&leaf).map_err(|why| format!("the certificate cannot be verified: {why}"))?;
        let seconds = u64::try_from(now.timestamp()).map_err(|_| "the clock stands before 1970")?;
        let path = leaf
            .verify_for_usage(
                ring::default_provider().signature_verification_algorithms.all,
                &trusted,
                others,
                UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds)),
                usage,
                None,
                Some(&|path| may_sign(path, domain)),
            )
            .map_err(|why| format!("no authority of the trust domain vouches for the certificate: {why}"))?;
        let anchor = anchors.iter().find(|anchor| &anchor.trusted == path.anchor());
        let ends = path.intermediate_certificates().map(|one| time(parse(&one.der())?.validity().not_after));
        let ends: Vec<Time> = ends.collect::<Result<_, Invalid>>().map_err(|why| why.to_string())?;
        Ok(ends.into_iter().chain(anchor.map(|anchor| anchor.until)).fold(self.until, Time::min))
    }
}

/// Certificates that stand behind each other in any order make more paths than there are certificates, each with a signature to
/// check; and whoever sends them need not be anybody.
fn refuse_many_paths(others: &[CertificateDer<'_>]) -> Result<(), Invalid> {
    let subjects = others.iter().map(|one| parse(one).map(|one| one.tbs_certificate.subject.as_raw().to_vec()));
    let subjects: Vec<_> = subjects.collect::<Result<_, _>>()?;
    let alike = |subject| subjects.iter().filter(|other| *other == subject).count();
    if subjects.iter().any(|subject| alike(subject) > MOST_ALIKE) {
        return Err(Invalid("more than two of the certificates that came with it have the same subject"));
    }
    Ok(())
}

/// What the path's own rules leave out (X509-SVID sections 4 and 5.1): authorities on it may sign certificates, and those that have a
/// SPIFFE ID have that of the trust domain.
fn may_sign(path: &VerifiedPath<'_>, domain: &TrustDomain) -> Result<(), webpki::Error> {
    path.intermediate_certificates().try_for_each(|one| {
        let der = one.der();
        let authority = parse(&der).map_err(|_| webpki::Error::BadDer)?;
        let usage = authority.key_usage().map_err(|_| webpki::Error::BadDer)?;
        let own = format!("spiffe://{domain}");
        let names = uris(&authority).map_err(|_| webpki::Error::BadDer)?;
        let fits = usage.is_some_and(|usage| usage.value.key_cert_sign()) && names.iter().all(|name| *name == own);
        fits.then_some(()).ok_or(webpki::Error::EndEntityUsedAsCa)
    })
}

/// The URIs among the names of a certificate.
fn uris<'a>(certificate: &'a X509Certificate<'_>) -> Result<Vec<&'a str>, Invalid> {
    let names =
        certificate.subject_alternative_name().map_err(|_| Invalid("the names of a certificate are malformed"))?;
    let names = names.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
    // By its tag it is one, whatever it says.
    if names.iter().any(|name| matches!(name, GeneralName::Invalid(Tag(6), _))) {
        return Err(Invalid("a URI of a certificate is malformed"));
    }
    let uri = |name: &'a GeneralName<'_>| if let GeneralName::URI(uri) = name { Some(*uri) } else { None };
    Ok(names.iter().filter_map(uri).collect())
}

fn only<T>(all: Vec<T>) -> Option<T> {
    let mut all = all.into_iter();
    all.next().filter(|_| all.next().is_none())
}
