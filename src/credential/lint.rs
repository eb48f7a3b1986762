//! The last look at a certificate before it is signed: whether the very octets say what an X.509-SVID of a task has to say
//! (SPIFFE X509-SVID sections 2 and 4, RFC 5280 section 4) and what was decided, and nothing else.

use std::net::IpAddr;
use x509_parser::{
    certificate::TbsCertificate,
    extensions::{DistributionPointName, GeneralName, ParsedExtension},
    oid_registry::{OID_SIG_ECDSA_WITH_SHA256, OID_X509_COMMON_NAME, Oid},
    prelude::FromDer as _,
    x509::X509Version,
};

use super::authority::{Authority, Leaf, NO_REV_AVAIL, NULL, Whose};
use crate::id::Host;

/// `digitalSignature` alone, as the parser counts bits.
const DIGITAL_SIGNATURE: u16 = 1;

/// Checks the to-be-signed part of a certificate (DER).
///
/// # Errors
/// What is wrong with it.
pub(super) fn check(tbs: &[u8], leaf: &Leaf<'_>, authority: &Authority) -> Result<(), &'static str> {
    let (rest, certificate) = TbsCertificate::from_der(tbs).map_err(|_| "it cannot be parsed")?;
    let hold = |holds: bool, why: &'static str| if holds { Ok(()) } else { Err(why) };
    hold(rest.is_empty(), "there is something after it")?;
    hold(certificate.version == X509Version::V3, "its version is not 3")?;
    hold(certificate.issuer_uid.is_none() && certificate.subject_uid.is_none(), "it has unique identifiers")?;
    hold(certificate.signature.algorithm == OID_SIG_ECDSA_WITH_SHA256, "it is to be signed in another way")?;

    let serial = certificate.raw_serial();
    let begins = serial.len() == 20 && serial[0] == leaf.holder.first_octet();
    hold(begins, "its serial is not 20 octets that begin as those of its holder do")?;
    hold(serial == leaf.serial, "its serial is another")?;

    let mut names = certificate.issuer().iter_by_oid(&OID_X509_COMMON_NAME).filter_map(|name| name.as_str().ok());
    hold(names.next() == Some(authority.kid()) && names.next().is_none(), "its issuer is another")?;
    let (from, until) = (certificate.validity.not_before.timestamp(), certificate.validity.not_after.timestamp());
    hold(from == leaf.not_before.timestamp() && until == leaf.not_after.timestamp(), "its times are others")?;
    hold(from < until, "it ends before it begins")?;
    let within = from >= authority.not_before().timestamp() && until <= authority.not_after().timestamp();
    hold(within, "it is valid where its authority is not")?;

    let key = certificate.subject_pki.raw;
    hold(key == rcgen::PublicKeyData::subject_public_key_info(leaf.key), "its key is another")?;
    hold(!authority.is_key(leaf.key), "its key is that of its authority")?;
    extensions(&certificate, leaf)
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "what is not known here is refused, in the next version of the parser too"
)]
fn extensions(certificate: &TbsCertificate<'_>, leaf: &Leaf<'_>) -> Result<(), &'static str> {
    certificate.extensions_map().map_err(|_| "an extension is there twice")?;
    let unnamed = certificate.subject().iter().next().is_none();
    let mut found = [false; 7];
    for extension in certificate.extensions() {
        let critical = extension.critical;
        let (at, holds, why) = match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => {
                let fits = match (&names.general_names[..], leaf.holder) {
                    ([GeneralName::URI(name)], Whose::Task) => *name == leaf.subject.as_str(),
                    ([GeneralName::URI(name), others @ ..], Whose::Broker(hosts)) => {
                        *name == leaf.subject.as_str()
                            && others.len() == hosts.len()
                            && others.iter().zip(hosts).all(|(name, host)| names_host(name, host))
                    }
                    _ => false,
                };
                (
                    0,
                    fits && critical == unnamed,
                    "its names are not the one SPIFFE ID, and its hosts where it is a server's",
                )
            }
            ParsedExtension::BasicConstraints(basic) => {
                (1, !basic.ca && basic.path_len_constraint.is_none() && critical, "it is a CA")
            }
            ParsedExtension::KeyUsage(usage) => {
                (2, usage.flags == DIGITAL_SIGNATURE && critical, "its key usage is not digitalSignature, critical")
            }
            ParsedExtension::ExtendedKeyUsage(usage) => {
                let others = usage.any
                    || usage.code_signing
                    || usage.email_protection
                    || usage.time_stamping
                    || usage.ocsp_signing
                    || !usage.other.is_empty();
                let client = matches!(leaf.holder, Whose::Task);
                (
                    3,
                    usage.server_auth && usage.client_auth == client && !others,
                    "its extended key usage is not that of both ends of TLS for a task, and of a server for a broker",
                )
            }
            ParsedExtension::CRLDistributionPoints(points) => {
                let one = match &points.points[..] {
                    [point] if point.reasons.is_none() && point.crl_issuer.is_none() => matches!(
                        &point.distribution_point,
                        Some(DistributionPointName::FullName(names))
                            if matches!(&names[..], [GeneralName::URI(uri)] if Some(*uri) == leaf.crl)
                    ),
                    _ => false,
                };
                (4, one, "its CRL distribution point is not its own")
            }
            ParsedExtension::UnsupportedExtension { oid } if Oid::from(&NO_REV_AVAIL).as_ref() == Ok(oid) => {
                let alone = leaf.crl.is_none() && extension.value == NULL && !critical;
                (4, alone, "it says that there is no list for it")
            }
            ParsedExtension::AuthorityKeyIdentifier(id) => {
                (5, id.key_identifier.is_some() && !critical, "it does not identify the key of its authority")
            }
            ParsedExtension::SubjectKeyIdentifier(_) => (6, !critical, "its key identifier is critical"),
            _ => return Err("it has an extension that none of ours has"),
        };
        if !holds {
            return Err(why);
        }
        found[at] = true;
    }
    if found[..6].iter().all(|found| *found) { Ok(()) } else { Err("an extension is missing") }
}

/// Whether a name is this host, octet for octet.
fn names_host(name: &GeneralName<'_>, host: &Host) -> bool {
    match (name, host) {
        (GeneralName::DNSName(name), Host::Dns(host)) => name == host,
        (GeneralName::IPAddress(octets), Host::Ip(IpAddr::V4(address))) => *octets == address.octets(),
        (GeneralName::IPAddress(octets), Host::Ip(IpAddr::V6(address))) => *octets == address.octets(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::Time,
        credential::RequestedKey,
        id::{LeaseId, SpiffeId, TrustDomain},
    };
    use rcgen::{
        BasicConstraints, CertificateParams, CrlDistributionPoint, CustomExtension, DnType, ExtendedKeyUsagePurpose,
        IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
    };
    use time::OffsetDateTime;
    use x509_parser::certificate::X509Certificate;

    const CRL: &str = "https://broker.example.com/pki/crl/x.0";

    struct Stand {
        authority: Authority,
        serial: Vec<u8>,
        subject: SpiffeId,
        key: RequestedKey,
        pair: KeyPair,
        now: Time,
    }

    impl Stand {
        fn new() -> Self {
            let now = "2026-11-20T10:00:00Z".parse().unwrap();
            let domain: TrustDomain = "example.com".parse().unwrap();
            let pem = Authority::generate(&domain, None, now, 86_400).unwrap();
            let pair = KeyPair::generate().unwrap();
            let csr = CertificateParams::default().serialize_request(&pair).unwrap().pem().unwrap();
            Self {
                authority: Authority::from_pem(&pem, &domain).unwrap(),
                serial: LeaseId::serial(1).unwrap().octets(),
                subject: "spiffe://example.com/ci/task/task_01jd0000000000000000000000".parse().unwrap(),
                key: RequestedKey::prove(&csr).unwrap(),
                pair,
                now,
            }
        }

        fn leaf(&self) -> Leaf<'_> {
            Leaf {
                serial: &self.serial,
                subject: &self.subject,
                key: &self.key,
                not_before: self.now,
                not_after: self.now + chrono::TimeDelta::seconds(300),
                crl: Some(CRL),
                holder: Whose::Task,
            }
        }

        /// What the lint says of a certificate that is as it has to be but for one change.
        fn changed(&self, change: impl FnOnce(&mut CertificateParams)) -> Result<(), &'static str> {
            self.changed_for(&self.leaf(), change)
        }

        fn changed_for(
            &self,
            leaf: &Leaf<'_>,
            change: impl FnOnce(&mut CertificateParams),
        ) -> Result<(), &'static str> {
            let at = |time: Time| OffsetDateTime::from_unix_timestamp(time.timestamp()).unwrap();
            let mut params = CertificateParams::default();
            (params.not_before, params.not_after) = (at(leaf.not_before), at(leaf.not_after));
            params.serial_number = Some(SerialNumber::from_slice(leaf.serial));
            params.subject_alt_names = vec![SanType::URI(leaf.subject.as_str().try_into().unwrap())];
            params.is_ca = IsCa::ExplicitNoCa;
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            params.crl_distribution_points = vec![CrlDistributionPoint { uris: vec![CRL.to_owned()] }];
            params.use_authority_key_identifier_extension = true;
            change(&mut params);
            // Another key under the authority's name: who signs makes no difference to what is to be signed.
            let mut ca = CertificateParams::default();
            ca.distinguished_name.push(DnType::CommonName, self.authority.kid());
            let issuer = Issuer::new(ca, KeyPair::generate().unwrap());
            let made = params.signed_by(&self.pair, &issuer).unwrap();
            let (_, made) = X509Certificate::from_der(made.der()).unwrap();
            check(made.tbs_certificate.as_ref(), leaf, &self.authority)
        }
    }

    #[test]
    fn what_we_sign_passes() {
        let stand = Stand::new();
        assert_eq!(stand.changed(|_| {}), Ok(()));
        assert!(stand.authority.issue(&stand.leaf()).is_ok());
    }

    #[test]
    fn what_spiffe_forbids_is_not_signed() {
        let stand = Stand::new();
        let uri = |text: &str| SanType::URI(text.try_into().unwrap());
        let refused = [
            stand.changed(|p| p.subject_alt_names.push(uri("spiffe://example.com/other"))),
            stand.changed(|p| p.subject_alt_names.push(SanType::DnsName("example.com".try_into().unwrap()))),
            stand.changed(|p| p.subject_alt_names = vec![uri("spiffe://example.com/other")]),
            stand.changed(|p| p.subject_alt_names.clear()),
            stand.changed(|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
            stand.changed(|p| p.is_ca = IsCa::NoCa),
            stand.changed(|p| p.key_usages.push(KeyUsagePurpose::KeyCertSign)),
            stand.changed(|p| p.key_usages.push(KeyUsagePurpose::CrlSign)),
            stand.changed(|p| p.key_usages.clear()),
            stand.changed(|p| p.extended_key_usages.truncate(1)),
            stand.changed(|p| p.extended_key_usages.push(ExtendedKeyUsagePurpose::Any)),
            stand.changed(|p| p.crl_distribution_points.clear()),
            stand.changed(|p| p.crl_distribution_points[0].uris[0].push('1')),
            stand.changed(|p| p.use_authority_key_identifier_extension = false),
            stand.changed(|p| p.serial_number = Some(SerialNumber::from(7))),
            stand.changed(|p| p.serial_number = Some(SerialNumber::from(LeaseId::serial(1).unwrap().octets()))),
            stand.changed(|p| p.not_after += time::Duration::seconds(1)),
            stand.changed(|p| p.not_before -= time::Duration::seconds(1)),
            stand.changed(|p| {
                p.custom_extensions = vec![CustomExtension::from_oid_content(&[2, 5, 29, 56], vec![5, 0])];
            }),
        ];
        for (at, refused) in refused.into_iter().enumerate() {
            assert!(refused.is_err(), "change {at} passed");
        }
    }

    #[test]
    fn either_it_names_a_list_or_says_that_there_is_none() {
        let stand = Stand::new();
        let unlisted = Leaf { crl: None, ..stand.leaf() };
        assert!(stand.authority.issue(&unlisted).is_ok());
        let extension = || CustomExtension::from_oid_content(&NO_REV_AVAIL, NULL.to_vec());
        let check = |change: &dyn Fn(&mut CertificateParams)| stand.changed_for(&unlisted, change);
        assert_eq!(
            check(&|p| (p.crl_distribution_points, p.custom_extensions) = (Vec::new(), vec![extension()])),
            Ok(())
        );
        for refused in [
            check(&|_| {}),
            check(&|p| p.custom_extensions = vec![extension()]),
            check(&|p| p.crl_distribution_points.clear()),
            check(&|p| {
                let other = CustomExtension::from_oid_content(&NO_REV_AVAIL, vec![1, 1, 255]);
                (p.crl_distribution_points, p.custom_extensions) = (Vec::new(), vec![other]);
            }),
        ] {
            assert!(refused.is_err());
        }
    }

    /// What the broker shows itself is no task's, and what a task shows is no server's of the broker.
    #[test]
    fn a_certificate_of_the_broker_names_it_and_its_hosts() {
        let stand = Stand::new();
        let hosts: Vec<Host> =
            ["broker.example.com", "192.0.2.7", "2001:db8::1"].map(|host| host.parse().unwrap()).into();
        let serial = [&[3][..], &[7; 19]].concat();
        let subject = "example.com".parse::<TrustDomain>().unwrap().broker();
        let leaf =
            Leaf { serial: &serial, subject: &subject, crl: None, holder: Whose::Broker(&hosts), ..stand.leaf() };
        assert!(stand.authority.issue(&leaf).is_ok());
        let like = |params: &mut CertificateParams| {
            params.extended_key_usages.truncate(1);
            params.crl_distribution_points.clear();
            params.custom_extensions = vec![CustomExtension::from_oid_content(&NO_REV_AVAIL, NULL.to_vec())];
            params.subject_alt_names.extend([
                SanType::DnsName("broker.example.com".try_into().unwrap()),
                SanType::IpAddress([192, 0, 2, 7].into()),
                SanType::IpAddress("2001:db8::1".parse().unwrap()),
            ]);
        };
        let check = |change: &dyn Fn(&mut CertificateParams)| {
            stand.changed_for(&leaf, |params| {
                like(params);
                change(params);
            })
        };
        assert_eq!(check(&|_| {}), Ok(()));
        let changes: [&dyn Fn(&mut CertificateParams); 8] = [
            &|p| p.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth),
            &|p| p.subject_alt_names.push(SanType::DnsName("other.example.com".try_into().unwrap())),
            &|p| p.subject_alt_names[1] = SanType::DnsName("*.example.com".try_into().unwrap()),
            &|p| p.subject_alt_names.swap(1, 2),
            &|p| drop(p.subject_alt_names.pop()),
            &|p| drop(p.subject_alt_names.remove(0)),
            &|p| p.subject_alt_names[2] = SanType::IpAddress([192, 0, 2, 8].into()),
            &|p| p.serial_number = Some(SerialNumber::from(LeaseId::serial(1).unwrap().octets())),
        ];
        for (at, change) in changes.into_iter().enumerate() {
            assert!(check(change).is_err(), "change {at} passed");
        }
        // Nor does a task get hosts, or a broker the serial of a task.
        assert!(stand.changed_for(&stand.leaf(), like).is_err());
        let of_task = Leaf { serial: &stand.serial, ..leaf };
        assert!(stand.authority.issue(&of_task).is_err());
    }

    #[test]
    fn nothing_outlives_its_authority() {
        let stand = Stand::new();
        let mut leaf = stand.leaf();
        leaf.not_after = stand.authority.not_after() + chrono::TimeDelta::seconds(1);
        assert!(stand.authority.issue(&leaf).is_err());
        let mut leaf = stand.leaf();
        leaf.not_before = stand.authority.not_before() - chrono::TimeDelta::seconds(1);
        assert!(stand.authority.issue(&leaf).is_err());
    }
}
