//! Name constraints of the certificates above an authority (RFC 5280 section 4.2.1.10): whether they leave room for all that it will
//! certify.

use std::net::IpAddr;
use x509_parser::{
    asn1_rs::Tag,
    extensions::{GeneralName, NameConstraints},
    oid_registry::OID_X509_ORGANIZATION_NAME,
    x509::X509Name,
};

use super::{authority::ORGANIZATION, issuers::Subjects};
use crate::id::Host;

/// Checks that every name of what is to be certified is permitted, and none excluded.
///
/// # Errors
/// What is in the way, as the end of a sentence on the certificate.
pub(super) fn check(constraints: &NameConstraints<'_>, subjects: Subjects<'_>) -> Result<(), String> {
    let bases = |trees: &'_ Option<Vec<_>>| -> Vec<GeneralName<'_>> {
        let trees: &[x509_parser::extensions::GeneralSubtree<'_>] = trees.as_deref().unwrap_or_default();
        trees.iter().map(|tree| tree.base.clone()).collect()
    };
    let (permitted, excluded) = (bases(&constraints.permitted_subtrees), bases(&constraints.excluded_subtrees));
    let hosts = subjects.hosts.iter().map(Certified::Host);
    let names = [Certified::Domain(subjects.domain.as_str()), Certified::Organization].into_iter().chain(hosts);
    for name in names {
        let found =
            |trees: &[GeneralName<'_>]| trees.iter().filter_map(|base| name.is_within(base)).collect::<Vec<_>>();
        let (permitted, excluded) = (found(&permitted), found(&excluded));
        // Where names of this kind are permitted at all, it has to be one of those.
        if excluded.contains(&true) || !permitted.is_empty() && !permitted.contains(&true) {
            return Err(format!("has name constraints that leave out {}", name.told()));
        }
    }
    Ok(())
}

/// A name in what an authority certifies.
#[derive(Clone, Copy)]
enum Certified<'a> {
    /// The trust domain: the host of every URI.
    Domain(&'a str),
    /// The one attribute of every subject.
    Organization,
    /// A name of the broker's own server.
    Host(&'a Host),
}

impl Certified<'_> {
    /// Whether it is below a base; `None` where that is of another kind.
    fn is_within(self, base: &GeneralName<'_>) -> Option<bool> {
        match (self, base) {
            (Self::Domain(domain), GeneralName::URI(base)) => Some(is_host_of(base, domain)),
            (Self::Organization, GeneralName::DirectoryName(base)) => Some(is_above_ours(base)),
            (Self::Host(Host::Dns(host)), GeneralName::DNSName(base)) => Some(is_below(base, host)),
            (Self::Host(Host::Ip(address)), GeneralName::IPAddress(base)) => Some(is_in(base, *address)),
            // What cannot be read constrains something: then it has to be taken for the worst.
            (_, GeneralName::Invalid(Tag(2 | 4 | 6 | 7), _)) => Some(false),
            _ => None,
        }
    }

    fn told(self) -> String {
        match self {
            Self::Domain(domain) => format!("the URIs of `trust_domain`, spiffe://{domain}/…"),
            Self::Organization => format!("the subject of what the broker certifies, O={ORGANIZATION}"),
            Self::Host(Host::Dns(host)) => format!("`{host}` of `listen.tls_names`"),
            Self::Host(Host::Ip(address)) => format!("`{address}` of `listen.tls_names`"),
        }
    }
}

/// Of a URI: a host, or with a dot in front every host below it.
fn is_host_of(base: &str, host: &str) -> bool {
    let base = base.to_ascii_lowercase();
    if base.starts_with('.') { host.len() > base.len() && host.ends_with(&base) } else { host == base }
}

/// Of a DNS name: that name and every one below it.
fn is_below(base: &str, host: &str) -> bool {
    let base = base.to_ascii_lowercase();
    let above = host.strip_suffix(&base);
    above.is_some_and(|above| above.is_empty() || base.is_empty() || base.starts_with('.') || above.ends_with('.'))
}

/// Of an address: a network and its mask.
fn is_in(base: &[u8], address: IpAddr) -> bool {
    let octets = match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let (network, mask) = base.split_at(base.len() / 2);
    mask.len() == octets.len()
        && network.iter().zip(mask).zip(octets).all(|((network, mask), octet)| network & mask == octet & mask)
}

/// Of a subject: nothing at all, or what ours begin with.
fn is_above_ours(base: &X509Name<'_>) -> bool {
    let mut attributes = base.iter_attributes();
    match (attributes.next(), attributes.next()) {
        (None, _) => true,
        (Some(one), None) => {
            *one.attr_type() == OID_X509_ORGANIZATION_NAME
                && one.as_str().is_ok_and(|name| name.eq_ignore_ascii_case(ORGANIZATION))
        }
        (Some(_), Some(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_covers_what_rfc_5280_says() {
        let cases = [
            (is_host_of("example.com", "example.com"), true),
            (is_host_of("Example.com", "example.com"), true),
            (is_host_of("example.com", "a.example.com"), false),
            (is_host_of(".example.com", "a.example.com"), true),
            (is_host_of(".example.com", "example.com"), false),
            (is_host_of(".example.com", "badexample.com"), false),
            (is_below("example.com", "example.com"), true),
            (is_below("example.com", "a.example.com"), true),
            (is_below("example.com", "badexample.com"), false),
            (is_below(".example.com", "a.example.com"), true),
            (is_below("", "example.com"), true),
            (is_in(&[10, 0, 0, 0, 255, 0, 0, 0], "10.1.2.3".parse().unwrap()), true),
            (is_in(&[10, 0, 0, 0, 255, 0, 0, 0], "11.1.2.3".parse().unwrap()), false),
            (is_in(&[0; 8], "::1".parse().unwrap()), false),
            (is_in(&[0; 32], "::1".parse().unwrap()), true),
            (is_in(&[], "10.1.2.3".parse().unwrap()), false),
        ];
        for (at, (found, expected)) in cases.into_iter().enumerate() {
            assert_eq!(found, expected, "{at}");
        }
    }
}
