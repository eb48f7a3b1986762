//! X.509-SVIDs of another trust domain, judged (X509-SVID section 5, RFC 5280).

use rustls::{
    crypto::ring,
    pki_types::{CertificateDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime},
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

/// What a path has to be good for.
struct Terms<'a> {
    algorithms: &'a [&'a dyn SignatureVerificationAlgorithm],
    usage: KeyUsage,
    domain: &'a TrustDomain,
    now: Time,
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
        let algorithms = ring::default_provider().signature_verification_algorithms.all;
        self.vouched_under(certificate, bundle, &Terms { algorithms, usage, domain, now })
    }

    fn vouched_under(
        &self,
        certificate: &ClientCertificate,
        bundle: &Bundle,
        terms: &Terms<'_>,
    ) -> Result<Time, String> {
        let &Terms { algorithms, usage, domain, now } = terms;
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
                algorithms,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pem;
    use rcgen::{
        BasicConstraints, Certificate, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
    };
    use rustls::pki_types::{AlgorithmIdentifier, InvalidSignature, alg_id};
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Finds every signature good but that of the workload's certificate, which is the last to be looked at on each path: the most that
    /// somebody can make us check. Counts.
    #[derive(Debug, Default)]
    struct Counting(AtomicUsize);

    impl SignatureVerificationAlgorithm for Counting {
        fn verify_signature(&self, _: &[u8], message: &[u8], _: &[u8]) -> Result<(), InvalidSignature> {
            self.0.fetch_add(1, Ordering::Relaxed);
            let of_leaf = message.windows(AGENT.len()).any(|window| window == AGENT.as_bytes());
            if of_leaf { Err(InvalidSignature) } else { Ok(()) }
        }

        fn public_key_alg_id(&self) -> AlgorithmIdentifier {
            alg_id::ECDSA_P256
        }

        fn signature_alg_id(&self) -> AlgorithmIdentifier {
            alg_id::ECDSA_SHA256
        }
    }

    const AGENT: &str = "spiffe://example.org/agent";
    /// The first is that of the bundle's authorities, the second that of the workload's issuer.
    const NAMES: [&str; 4] = ["root", "issuer", "other", "another"];

    fn params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params
    }

    fn authority(name: &str) -> CertificateParams {
        let mut params = params(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params
    }

    /// Whatever an authority of one name can say of another, and the certificate of a workload.
    struct Forge {
        key: KeyPair,
        leaf: Certificate,
    }

    impl Forge {
        fn new() -> Self {
            let key = KeyPair::generate().unwrap();
            let mut agent = params("agent");
            agent.subject_alt_names = vec![SanType::URI(AGENT.try_into().unwrap())];
            agent.is_ca = IsCa::ExplicitNoCa;
            agent.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            let leaf = agent.signed_by(&key, &Issuer::new(authority(NAMES[1]), &key)).unwrap();
            Self { key, leaf }
        }

        fn says(&self, issuer: &str, subject: &str) -> Certificate {
            authority(subject).signed_by(&self.key, &Issuer::new(authority(issuer), &self.key)).unwrap()
        }

        fn bundle(&self, authorities: usize) -> Bundle {
            let all = (0..authorities).map(|_| pem::write("CERTIFICATE", self.says(NAMES[0], NAMES[0]).der()));
            Bundle::parse(all.collect::<String>().as_bytes()).unwrap()
        }

        /// How many signatures are checked before it is refused.
        fn checks(&self, others: &[&Certificate], bundle: &Bundle) -> usize {
            let chain: Vec<_> =
                [&self.leaf].into_iter().chain(others.iter().copied()).map(|one| one.der().clone()).collect();
            let certificate = ClientCertificate::presented(&chain).unwrap();
            let svid = Svid::read(&certificate).unwrap();
            let (counting, domain) = (Counting::default(), "example.org".parse().unwrap());
            let now = "2026-11-20T10:00:00Z".parse().unwrap();
            let terms = Terms { algorithms: &[&counting], usage: KeyUsage::client_auth(), domain: &domain, now };
            svid.vouched_under(&certificate, bundle, &terms).unwrap_err();
            counting.0.into_inner()
        }
    }

    /// Every set of five certificates that is not refused at sight, whatever they say of each other.
    #[test]
    fn a_chain_costs_few_signatures_whatever_is_in_it() {
        let forge = Forge::new();
        let bundle = forge.bundle(1);
        let made: Vec<Vec<Certificate>> =
            NAMES.iter().map(|subject| NAMES.iter().map(|issuer| forge.says(issuer, subject)).collect()).collect();
        // Of each name none, one or two certificates, by any issuers.
        let choices = |subject: usize| {
            let all = &made[subject];
            let mut sets: Vec<Vec<&Certificate>> = vec![Vec::new()];
            sets.extend(all.iter().map(|one| vec![one]));
            for (at, one) in all.iter().enumerate() {
                sets.extend(all[at..].iter().map(|other| vec![one, other]));
            }
            sets
        };
        let mut chains: Vec<Vec<&Certificate>> = vec![Vec::new()];
        for subject in 0..NAMES.len() {
            let more = choices(subject);
            let joined = chains.iter().flat_map(|chain| more.iter().map(move |set| [&chain[..], set].concat()));
            chains = joined.filter(|chain| chain.len() <= 5).collect();
        }
        let costs: Vec<_> =
            chains.iter().filter(|chain| chain.len() == 5).map(|chain| forge.checks(chain, &bundle)).collect();
        assert!(costs.len() > 1000, "{}", costs.len());
        assert_eq!(costs.iter().max(), Some(&28), "of {} chains", costs.len());
    }

    #[test]
    fn what_is_refused_at_sight_costs_none() {
        let (forge, three) = (Forge::new(), |forge: &Forge| [0; 3].map(|_| forge.says(NAMES[0], NAMES[1])));
        let bundle = forge.bundle(1);
        let alike = three(&forge);
        assert_eq!(forge.checks(&alike.each_ref(), &bundle), 0);
        assert_eq!(forge.checks(&alike.each_ref()[..2], &bundle), 4);
    }

    /// A bundle of many authorities with one name is its trust domain's affair; what they cost is bounded all the same.
    #[test]
    fn many_authorities_of_one_name_are_bounded_too() {
        let forge = Forge::new();
        let chain =
            [(0, 2), (2, 3), (2, 3), (3, 1), (3, 1)].map(|(issuer, subject)| forge.says(NAMES[issuer], NAMES[subject]));
        assert_eq!(forge.checks(&chain.each_ref(), &forge.bundle(1)), 16);
        let most = forge.checks(&chain.each_ref(), &forge.bundle(64));
        assert!((17..=100).contains(&most), "{most}");
    }
}
