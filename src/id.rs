//! The names of things, parsed once. A value of one of these types is well-formed; comparison is byte equality,
//! and nothing is ever normalised (SPIFFE ID, RFC 3986: what a parser would have to change is refused instead).

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use std::{fmt, net::IpAddr, str::FromStr};

use crate::clock::Time;

/// A name that does not have the form it must have. Carries the rule, never the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub &'static str);

/// How many hops a delegation may have below its root.
pub const MAX_DEPTH: usize = 8;

const CROCKFORD: &[u8] = b"0123456789abcdefghjkmnpqrstvwxyz";
const ALPHANUMERIC: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
const ROOT_LENGTH: usize = 5 + 26;
const HOP_LENGTH: usize = 1 + 10;

/// Bytes from the operating system's generator.
///
/// # Errors
/// When the operating system has none to give.
pub fn random<const N: usize>() -> Result<[u8; N], Malformed> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| Malformed("the operating system gave no random bytes"))?;
    Ok(bytes)
}

/// A new ULID in lower case: `now`, and 80 random bits.
fn ulid(now: Time) -> Result<String, Malformed> {
    let mut random = [0; 16];
    random[6..].copy_from_slice(&self::random::<10>()?);
    let millis = u64::try_from(now.timestamp_millis()).map_err(|_| Malformed("the clock stands before 1970"))?;
    Ok(ulid::Ulid::from_parts(millis, u128::from_be_bytes(random)).to_string().to_ascii_lowercase())
}

fn is_ulid(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() == 26 && bytes[0] <= b'7' && bytes.iter().all(|b| CROCKFORD.contains(b))
}

macro_rules! text {
    ($name:ident) => {
        impl $name {
            /// The text, as it stands in tokens, records and answers.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl TryFrom<String> for $name {
            type Error = Malformed;
            fn try_from(text: String) -> Result<Self, Malformed> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.0
            }
        }
    };
}

/// A task. A root is `task_` and a ULID in lower case; a child is its parent's id, `-`, and ten random characters,
/// so that an id names all its ancestors.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(
    feature = "broker",
    derive(utoipa::ToSchema),
    schema(pattern = "^task_[0-7][0-9a-hjkmnp-tv-z]{25}(-[0-9a-z]{10}){0,8}$")
)]
#[serde(try_from = "String", into = "String")]
pub struct TaskId(String);
text!(TaskId);

impl TaskId {
    /// A new root, unguessable in its 80 random bits, sortable by `now`.
    ///
    /// # Errors
    /// When the operating system gives no random bytes.
    pub fn root(now: Time) -> Result<Self, Malformed> {
        ulid(now).map(|ulid| Self(format!("task_{ulid}")))
    }

    /// A new child of this task.
    ///
    /// # Errors
    /// When this task is as deep as a task may be, or the operating system gives no random bytes.
    pub fn child(&self) -> Result<Self, Malformed> {
        if self.depth() == MAX_DEPTH {
            return Err(Malformed("a task is delegated at most 8 times"));
        }
        let mut id = format!("{}-", self.0);
        while id.len() < self.0.len() + HOP_LENGTH {
            // 252 = 7 × 36: bytes above it would favour the first letters.
            id.extend(
                random::<16>()?.iter().filter(|b| **b < 252).map(|b| char::from(ALPHANUMERIC[usize::from(*b % 36)])),
            );
        }
        id.truncate(self.0.len() + HOP_LENGTH);
        Ok(Self(id))
    }

    /// The last root id of the same millisecond: a place in time that names nobody's task.
    #[must_use]
    pub fn moment(&self) -> Self {
        Self(format!("{}{}", &self.0[..ROOT_LENGTH - 16], "z".repeat(16)))
    }

    /// When the root was declared, as its id says; whoever makes up an id makes that up too.
    #[must_use]
    pub fn declared_at(&self) -> Option<Time> {
        let ulid = ulid::Ulid::from_string(&self.root_str().strip_prefix("task_")?.to_ascii_uppercase()).ok()?;
        Time::from_timestamp_millis(i64::try_from(ulid.timestamp_ms()).ok()?)
    }

    /// Hops below the root; 0 for a root.
    #[must_use]
    pub fn depth(&self) -> usize {
        (self.0.len() - ROOT_LENGTH) / HOP_LENGTH
    }

    /// The root of the tree this task belongs to, as text: the store keeps a tree together by it.
    #[must_use]
    pub fn root_str(&self) -> &str {
        &self.0[..ROOT_LENGTH]
    }

    /// Every prefix that is a task id, from the root down to the task itself. An end of any of them is an end of this task.
    pub fn lineage(&self) -> impl Iterator<Item = TaskId> + '_ {
        self.lineage_strs().map(|id| Self(id.to_owned()))
    }

    /// The same as text, for whoever only looks them up.
    pub fn lineage_strs(&self) -> impl Iterator<Item = &str> {
        (0..=self.depth()).map(|depth| &self.0[..ROOT_LENGTH + depth * HOP_LENGTH])
    }

    /// Whether `other` is this task or a descendant of it.
    #[must_use]
    pub fn covers(&self, other: &TaskId) -> bool {
        other.0.starts_with(&self.0)
    }
}

impl FromStr for TaskId {
    type Err = Malformed;
    fn from_str(text: &str) -> Result<Self, Malformed> {
        const RULE: Malformed = Malformed("a task id is `task_` and 26 characters of a ULID in lower case");
        let bytes = text.as_bytes();
        if !text.starts_with("task_") || !text.get(5..ROOT_LENGTH).is_some_and(is_ulid) {
            return Err(RULE);
        }
        let hops = &bytes[ROOT_LENGTH..];
        let hops_fit = hops.len().is_multiple_of(HOP_LENGTH)
            && hops.chunks(HOP_LENGTH).all(|hop| hop[0] == b'-' && hop[1..].iter().all(|b| ALPHANUMERIC.contains(b)));
        if !hops_fit || hops.len() / HOP_LENGTH > MAX_DEPTH {
            return Err(RULE);
        }
        Ok(Self(text.to_owned()))
    }
}

/// A credential and its lease. The `jti` of a token: 128 random bits in hexadecimal. The serial of a certificate: 20 octets,
/// 01, the generation (big-endian) and 11 random ones.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "broker", derive(utoipa::ToSchema), schema(pattern = "^([0-9a-f]{32}|01[0-9a-f]{38})$"))]
#[serde(try_from = "String", into = "String")]
pub struct LeaseId(String);
text!(LeaseId);

impl LeaseId {
    /// A new, unguessable id.
    ///
    /// # Errors
    /// When the operating system gives no random bytes.
    pub fn random() -> Result<Self, Malformed> {
        Ok(Self(hex(&random::<16>()?)))
    }

    /// The generation that a serial is of; `None` for the id of a token.
    #[must_use]
    pub fn generation(&self) -> Option<u64> {
        let octets = self.0.strip_prefix("01").filter(|_| self.is_serial())?;
        u64::from_str_radix(octets.get(..16)?, 16).ok()
    }

    /// A new serial for a certificate of this generation.
    ///
    /// # Errors
    /// When the operating system gives no random bytes.
    pub fn serial(generation: u64) -> Result<Self, Malformed> {
        Ok(Self(format!("01{}{}", hex(&generation.to_be_bytes()), hex(&random::<11>()?))))
    }

    /// Whether it is the serial of a certificate.
    #[must_use]
    pub fn is_serial(&self) -> bool {
        self.0.len() == 40
    }

    /// The octets that the digits stand for.
    #[must_use]
    pub fn octets(&self) -> Vec<u8> {
        let nibble = |digit: u8| if digit.is_ascii_digit() { digit - b'0' } else { digit - b'a' + 10 };
        self.0.as_bytes().chunks_exact(2).map(|pair| nibble(pair[0]) << 4 | nibble(pair[1])).collect()
    }
}

impl FromStr for LeaseId {
    type Err = Malformed;
    fn from_str(text: &str) -> Result<Self, Malformed> {
        let long = text.len() == 32 || (text.len() == 40 && text.starts_with("01"));
        let fits = long && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        fits.then(|| Self(text.to_owned()))
            .ok_or(Malformed("a lease id is 32 hexadecimal digits in lower case, or the 40 of a serial"))
    }
}

/// A lock: `lock_` and a ULID in lower case.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "broker", derive(utoipa::ToSchema), schema(pattern = "^lock_[0-7][0-9a-hjkmnp-tv-z]{25}$"))]
#[serde(try_from = "String", into = "String")]
pub struct LockId(String);
text!(LockId);

impl LockId {
    /// A new one, sortable by `now`.
    ///
    /// # Errors
    /// When the operating system gives no random bytes.
    pub fn new(now: Time) -> Result<Self, Malformed> {
        ulid(now).map(|ulid| Self(format!("lock_{ulid}")))
    }
}

impl FromStr for LockId {
    type Err = Malformed;
    fn from_str(text: &str) -> Result<Self, Malformed> {
        let fits = text.strip_prefix("lock_").is_some_and(is_ulid);
        fits.then(|| Self(text.to_owned()))
            .ok_or(Malformed("a lock id is `lock_` and 26 characters of a ULID in lower case"))
    }
}

/// The name of one broker among those of an issuer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "broker", derive(utoipa::ToSchema), schema(pattern = "^[0-9A-Za-z_-]{1,64}$"))]
#[serde(try_from = "String", into = "String")]
pub struct BrokerName(String);
text!(BrokerName);

impl FromStr for BrokerName {
    type Err = Malformed;
    fn from_str(text: &str) -> Result<Self, Malformed> {
        let fits =
            (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
        fits.then(|| Self(text.to_owned()))
            .ok_or(Malformed("the name of a broker is 1 to 64 letters, digits, `-` and `_`"))
    }
}

/// A list of revoked certificates: the key id of the authority that signs it and, after a dot, the last digit of the serials that can
/// be on it; or `whole`, for what is complete for all.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CrlId(String);
text!(CrlId);

/// The length of a key id: a digest of 32 octets in base64url.
const KID_LENGTH: usize = 43;
const WHOLE: &str = "whole";
const AUTHORITIES: &str = "authorities";

impl CrlId {
    /// The list of an authority that a certificate belongs to.
    #[must_use]
    pub fn of(authority: &str, serial: &LeaseId) -> Self {
        let serial = serial.as_str();
        Self(format!("{authority}.{}", &serial[serial.len() - 1..]))
    }

    /// The list of an authority that is complete for all its certificates, and for its own.
    #[must_use]
    pub fn whole(authority: &str) -> Self {
        Self(format!("{authority}.{WHOLE}"))
    }

    /// The list of the authorities that the CA with this key certified.
    #[must_use]
    pub fn authorities(upstream: &str) -> Self {
        Self(format!("{upstream}.{AUTHORITIES}"))
    }

    /// Whether it is one of authorities.
    #[must_use]
    pub fn is_of_authorities(&self) -> bool {
        self.0.ends_with(AUTHORITIES)
    }

    /// Whether it is complete for all certificates of an authority, and its own.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.0.ends_with(WHOLE)
    }

    /// All lists of an authority.
    pub fn all(authority: &str) -> impl Iterator<Item = Self> {
        let digits = "0123456789abcdef".chars().map(move |digit| Self(format!("{authority}.{digit}")));
        digits.chain([Self::whole(authority)])
    }

    /// The authority, or the upstream CA: the id of its key.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.0[..KID_LENGTH]
    }

    /// Where it stands.
    #[must_use]
    pub fn uri(&self, issuer: &str) -> String {
        format!("{issuer}/pki/crl/{self}")
    }
}

impl FromStr for CrlId {
    type Err = Malformed;
    fn from_str(text: &str) -> Result<Self, Malformed> {
        const RULE: Malformed =
            Malformed("a list is a key id, a dot and a hexadecimal digit in lower case, `whole` or `authorities`");
        let (authority, digit) = text.split_once('.').ok_or(RULE)?;
        let is_kid =
            authority.len() == KID_LENGTH && authority.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
        let is_list = digit == WHOLE || digit == AUTHORITIES || matches!(digit.as_bytes(), [b'0'..=b'9' | b'a'..=b'f']);
        (is_kid && is_list).then(|| Self(text.to_owned())).ok_or(RULE)
    }
}

/// A SPIFFE trust domain name: `[a-z0-9.-_]`, at most 255 octets.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrustDomain(String);
text!(TrustDomain);

impl TrustDomain {
    /// The SPIFFE ID of the workload at `path` (which starts with `/`).
    ///
    /// # Errors
    /// When `path` is not a SPIFFE path, has a segment `task`, which names tasks alone, or begins with `/remit`, which names brokers.
    pub fn workload(&self, path: &str) -> Result<SpiffeId, Malformed> {
        if path.split('/').any(|segment| segment == "task") {
            return Err(Malformed("a workload path has no segment `task`"));
        }
        if path.split('/').nth(1) == Some("remit") {
            return Err(Malformed(
                "a workload path does not begin with the segment `remit`, which is the broker's own",
            ));
        }
        format!("spiffe://{self}{path}").parse()
    }

    /// The SPIFFE ID of the brokers themselves: no workload's, and no task's.
    #[must_use]
    pub fn broker(&self) -> SpiffeId {
        SpiffeId(format!("spiffe://{self}/remit/broker"))
    }
}

impl FromStr for TrustDomain {
    type Err = Malformed;
    fn from_str(text: &str) -> Result<Self, Malformed> {
        let fits = !text.is_empty()
            && text.len() <= 255
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-_".contains(&b));
        fits.then(|| Self(text.to_owned())).ok_or(Malformed("a trust domain is 1 to 255 of a-z, 0-9, `.`, `-`, `_`"))
    }
}

/// A name by which a server is reached: a DNS name in lower case and without a wildcard, or an IP address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Host {
    /// A DNS name.
    Dns(String),
    /// An address.
    Ip(IpAddr),
}

impl FromStr for Host {
    type Err = Malformed;
    fn from_str(text: &str) -> Result<Self, Malformed> {
        const RULE: Malformed = Malformed("a host is a DNS name in lower case without a wildcard, or an IP address");
        if let Ok(address) = text.parse() {
            return Ok(Self::Ip(address));
        }
        let fits = |label: &str| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        // What ends with a number is taken for an address, and is none.
        let number = |label: &str| label.bytes().all(|b| b.is_ascii_digit());
        let named = text.len() <= 253 && text.split('.').all(fits) && !text.rsplit('.').next().is_some_and(number);
        named.then(|| Self::Dns(text.to_owned())).ok_or(RULE)
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => f.write_str(name),
            Self::Ip(address) => address.fmt(f),
        }
    }
}

impl TryFrom<String> for Host {
    type Error = Malformed;
    fn try_from(text: String) -> Result<Self, Malformed> {
        text.parse()
    }
}

impl From<Host> for String {
    fn from(host: Host) -> String {
        host.to_string()
    }
}

/// A SPIFFE ID with a path (SPIFFE-ID section 2).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "broker", derive(utoipa::ToSchema), schema(pattern = "^spiffe://"))]
#[serde(try_from = "String", into = "String")]
pub struct SpiffeId(String);
text!(SpiffeId);

impl SpiffeId {
    /// The name of its trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        self.split().0
    }

    /// What comes after the trust domain, without the first `/`.
    #[must_use]
    pub fn path(&self) -> &str {
        self.split().1
    }

    fn split(&self) -> (&str, &str) {
        self.0.strip_prefix("spiffe://").and_then(|rest| rest.split_once('/')).unwrap_or_default()
    }

    /// The workload that it names: without the end `/task/<task id>`, if it is a task's.
    #[must_use]
    pub fn workload(&self) -> &str {
        self.task_and_workload().map_or(&self.0, |(_, workload)| workload)
    }

    /// The task that it names, if it is a task's.
    #[must_use]
    pub fn task(&self) -> Option<TaskId> {
        self.task_and_workload().map(|(task, _)| task)
    }

    fn task_and_workload(&self) -> Option<(TaskId, &str)> {
        let (workload, task) = self.0.rsplit_once("/task/")?;
        Some((task.parse().ok()?, workload))
    }

    /// The SPIFFE ID of `task` when this workload holds it: `<workload>/task/<task id>`.
    #[must_use]
    pub fn of_task(&self, task: &TaskId) -> SpiffeId {
        Self(format!("{}/task/{task}", self.0))
    }
}

impl FromStr for SpiffeId {
    type Err = Malformed;
    fn from_str(text: &str) -> Result<Self, Malformed> {
        const RULE: Malformed =
            Malformed("a SPIFFE ID is spiffe://TRUST-DOMAIN/PATH; a path segment is letters, digits, `.`, `-`, `_`");
        let rest = text.strip_prefix("spiffe://").filter(|_| text.len() <= 2048).ok_or(RULE)?;
        let (domain, path) = rest.split_once('/').ok_or(RULE)?;
        domain.parse::<TrustDomain>()?;
        let segment_fits = |segment: &str| {
            !matches!(segment, "" | "." | "..")
                && segment.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b))
        };
        path.split('/').all(segment_fits).then(|| Self(text.to_owned())).ok_or(RULE)
    }
}

/// An absolute URI that names a service: a `resource` (RFC 8707), an audience, a location of an authority. It has no
/// userinfo and no fragment, and is written as a URL parser would write it, so that what is compared byte by byte
/// and what a policy sees parsed can never be two things.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "broker", derive(utoipa::ToSchema), schema(format = "uri", max_length = 2048))]
#[serde(try_from = "String", into = "String")]
pub struct Location(String);
text!(Location);

impl Location {
    /// The parts of the URI, for policies.
    #[must_use]
    pub fn parts(&self) -> Option<url::Url> {
        url::Url::parse(&self.0).ok()
    }
}

/// Whether whoever answers at a URL is on this machine, as its host says.
#[must_use]
pub fn is_loopback(url: &url::Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// Whether what is nobody else's business may be sent to a URL, and the URL itself be shown: https (http on loopback), without user, query
/// and fragment, in which secrets stand.
#[must_use]
pub fn is_safe_target(url: &url::Url) -> bool {
    let plain =
        url.username().is_empty() && url.password().is_none() && url.query().is_none() && url.fragment().is_none();
    plain && (url.scheme() == "https" || url.scheme() == "http" && is_loopback(url))
}

impl FromStr for Location {
    type Err = Malformed;
    fn from_str(text: &str) -> Result<Self, Malformed> {
        const RULE: Malformed =
            Malformed("a location is an absolute URI in normal form, without userinfo and fragment");
        if text.len() > 2048 {
            return Err(Malformed("a location is at most 2048 octets long"));
        }
        let url = url::Url::parse(text).map_err(|_| RULE)?;
        let bare =
            url.username().is_empty() && url.password().is_none() && url.fragment().is_none() && !text.contains('@');
        let normal = url.as_str() == text || url.as_str().strip_suffix('/') == Some(text);
        (bare && normal).then(|| Self(text.to_owned())).ok_or(RULE)
    }
}

/// Lower-case hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from(if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 });
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 0x0f)]).collect()
}

/// Whether it has the form of what [`sha256_hex`] makes.
#[must_use]
pub fn is_sha256_hex(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|octet| octet.is_ascii_digit() || (b'a'..=b'f').contains(&octet))
}

/// SHA-256 in lower-case hexadecimal, the form in which digests stand in configuration and audit.
#[must_use]
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref())
}

/// SHA-256 in base64url without padding, the form in which digests stand in tokens.
#[must_use]
pub fn sha256_base64url(bytes: &[u8]) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(ring::digest::digest(&ring::digest::SHA256, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_id_names_its_ancestors() {
        let root = TaskId::root("2026-11-20T10:00:00Z".parse().unwrap()).unwrap();
        let grandchild = root.child().unwrap().child().unwrap();
        assert_eq!(grandchild.depth(), 2);
        assert_eq!(grandchild.root_str(), root.as_str());
        assert_eq!(grandchild.lineage().next(), Some(root.clone()));
        assert_eq!(grandchild.lineage().last(), Some(grandchild.clone()));
        assert!(root.covers(&grandchild) && !grandchild.covers(&root));
        assert_eq!(grandchild.declared_at(), "2026-11-20T10:00:00Z".parse().ok());
        assert_eq!(grandchild.to_string().parse(), Ok(grandchild));
        assert!(root <= root.moment() && root.moment().to_string().parse() == Ok(root.moment()));
    }

    #[test]
    fn the_spiffe_id_of_a_task_names_task_and_workload() {
        let (workload, task) = ("spiffe://e.org/agents/a", "task_01jd0000000000000000000000-0123456789");
        let workload: SpiffeId = workload.parse().unwrap();
        let id = workload.of_task(&task.parse().unwrap());
        assert_eq!((id.workload(), id.task()), (workload.as_str(), task.parse().ok()));
        assert_eq!((workload.workload(), workload.task()), (workload.as_str(), None));
    }

    #[test]
    fn a_lock_has_a_name_of_its_own() {
        let lock = LockId::new("2026-11-20T10:00:00Z".parse().unwrap()).unwrap();
        assert_eq!(lock.to_string().parse(), Ok(lock));
        for bad in [
            "lock_",
            "lock_81jd0000000000000000000000",
            "lock_01JD0000000000000000000000",
            "task_01jd0000000000000000000000",
        ] {
            assert!(bad.parse::<LockId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_task_is_at_most_eight_hops_deep() {
        let mut id = TaskId::root("2026-11-20T10:00:00Z".parse().unwrap()).unwrap();
        for _ in 0..MAX_DEPTH {
            id = id.child().unwrap();
        }
        assert!(id.child().is_err());
        assert!(format!("{id}-0123456789").parse::<TaskId>().is_err());
    }

    use proptest::prelude::*;

    proptest! {
        /// What is read is written the same, and nothing that is read takes the process down.
        #[test]
        fn names_are_never_normalised(text in "\\PC{0,60}|task_[0-9a-z]{26}(-[0-9a-z]{10}){0,9}|spiffe://[a-zA-Z0-9./%-]{0,40}|https?://[a-zA-Z0-9./:@%#?-]{0,40}") {
            prop_assert!(text.parse::<TaskId>().is_ok_and(|id| id.as_str() == text) || text.parse::<TaskId>().is_err());
            prop_assert!(text.parse::<SpiffeId>().is_ok_and(|id| id.as_str() == text) || text.parse::<SpiffeId>().is_err());
            if let Ok(location) = text.parse::<Location>() {
                prop_assert_eq!(location.as_str(), &text);
                let url = location.parts().unwrap();
                prop_assert!(url.as_str().trim_end_matches('/') == text.trim_end_matches('/'));
                prop_assert!(url.username().is_empty() && url.fragment().is_none());
            }
        }
    }

    #[test]
    fn malformed_names_are_refused() {
        for bad in [
            "",
            "task_",
            "task_01JD0000000000000000000000",
            "task_81jd0000000000000000000000",
            "task_01jd000000000000000000000}",
        ] {
            assert!(bad.parse::<TaskId>().is_err(), "{bad}");
        }
        for bad in [
            "spiffe://Example.org/a",
            "spiffe://e.org",
            "spiffe://e.org/",
            "spiffe://e.org/a/",
            "spiffe://e.org/a/../b",
            "spiffe://e.org/%41",
            "spiffe://u@e.org/a",
            "spiffe://e.org:1/a",
            "spiffe://e.org/a?b",
            "spiffe://e.org/a#b",
            "spiffe://e.org/a%2eb",
            "spiffe://e.org/%2e%2e/b",
            "spiffe://e.org//a",
            "spiffe://e.org/a//b",
            "spiffe://e.org/./a",
            "spiffe://e.org/\u{e4}",
            "spiffe://\u{e4}.org/a",
            "spiffe:///a",
            "SPIFFE://e.org/a",
            " spiffe://e.org/a",
            "http://e.org/a",
            &format!("spiffe://e.org/{}", "a".repeat(2048)),
        ] {
            assert!(bad.parse::<SpiffeId>().is_err(), "{bad}");
        }
        for bad in [
            "",
            "git.example.com",
            "/a",
            "https://a b",
            "https://u@h",
            "https://h#f",
            "https://H",
            "http://127.1",
            "https://h:443",
            "https://h/a/../b",
            "http://localhost:80@evil.example",
        ] {
            assert!(bad.parse::<Location>().is_err(), "{bad}");
        }
        for good in ["https://git.example.com", "https://git.example.com/", "http://127.0.0.1:9000", "urn:example:git"]
        {
            assert!(good.parse::<Location>().is_ok(), "{good}");
        }
    }
}
