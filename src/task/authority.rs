//! Authority: RFC 9396 `authorization_details` of type `remit:access`, and how it narrows. Comparison is byte equality;
//! there is no wildcard.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

use crate::id::{Location, Malformed};

/// What may be done with a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "broker", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Privilege {
    /// Look.
    Read,
    /// Change.
    Write,
    /// Obtain secrets.
    Secret,
}

impl Privilege {
    /// The word on the wire: the value of `scope` in a token.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Privilege::Read => "read",
            Privilege::Write => "write",
            Privilege::Secret => "secret",
        }
    }
}

impl std::fmt::Display for Privilege {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Privilege {
    type Err = Malformed;
    fn from_str(text: &str) -> Result<Self, Malformed> {
        match text {
            "read" => Ok(Privilege::Read),
            "write" => Ok(Privilege::Write),
            "secret" => Ok(Privilege::Secret),
            _ => Err(Malformed("a privilege is `read`, `write` or `secret`")),
        }
    }
}

/// The one `type` of an access detail.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "broker", derive(utoipa::ToSchema))]
enum DetailType {
    #[default]
    #[serde(rename = "remit:access")]
    Access,
}

/// One `authorization_details` object of type `remit:access`. An absent optional member is unrestricted within its
/// locations and privileges.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "broker", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct AccessDetail {
    #[serde(rename = "type")]
    #[cfg_attr(feature = "broker", schema(inline))]
    kind: DetailType,
    /// Which services.
    #[cfg_attr(feature = "broker", schema(min_items = 1, max_items = 32))]
    pub locations: Vec<Location>,
    /// What may be done there.
    #[cfg_attr(feature = "broker", schema(min_items = 1))]
    pub privileges: Vec<Privilege>,
    /// Only these operations or tools.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "broker", schema(min_items = 1, max_items = 32))]
    pub actions: Option<Vec<String>>,
    /// Only these kinds of data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "broker", schema(min_items = 1, max_items = 32))]
    pub datatypes: Option<Vec<String>>,
    /// Only this object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "broker", schema(min_length = 1, max_length = 256))]
    pub identifier: Option<String>,
}

/// Bounds on one detail, so that a declaration is always cheap to decide on.
const MAX_VALUES: usize = 32;
const MAX_VALUE_LENGTH: usize = 256;

impl AccessDetail {
    /// The detail that names one location and one privilege and restricts nothing else.
    #[must_use]
    pub fn of(location: Location, privilege: Privilege) -> Self {
        let (locations, privileges) = (vec![location], vec![privilege]);
        Self { kind: DetailType::Access, locations, privileges, actions: None, datatypes: None, identifier: None }
    }

    /// The detail cut down to one location and one privilege, or `None` where it does not reach them.
    #[must_use]
    pub fn slice(&self, location: &Location, privilege: Privilege) -> Option<AccessDetail> {
        let reaches = self.locations.contains(location) && self.privileges.contains(&privilege);
        reaches.then(|| AccessDetail { locations: vec![location.clone()], privileges: vec![privilege], ..self.clone() })
    }

    /// Whether the two say the same but for their locations.
    #[must_use]
    pub fn differs_in_locations(&self, other: &AccessDetail) -> bool {
        self.privileges == other.privileges
            && self.actions == other.actions
            && self.datatypes == other.datatypes
            && self.identifier == other.identifier
    }

    /// Every (location, privilege) that the detail names: each is decided on its own.
    pub fn pairs(&self) -> impl Iterator<Item = (&Location, Privilege)> {
        self.locations.iter().flat_map(|location| self.privileges.iter().map(move |privilege| (location, *privilege)))
    }

    fn validate(&self) -> Result<(), Malformed> {
        let lists = [self.actions.as_ref(), self.datatypes.as_ref()];
        let texts = lists.iter().flatten().flat_map(|list| list.iter()).chain(&self.identifier);
        if self.locations.is_empty() || self.privileges.is_empty() || lists.iter().flatten().any(|list| list.is_empty())
        {
            return Err(Malformed("a detail has at least one location and one privilege, and no empty list"));
        }
        if self.locations.len() > MAX_VALUES || lists.iter().flatten().any(|list| list.len() > MAX_VALUES) {
            return Err(Malformed("a list in a detail has at most 32 values"));
        }
        if texts
            .into_iter()
            .any(|text| text.is_empty() || text.len() > MAX_VALUE_LENGTH || text.chars().any(char::is_control))
        {
            return Err(Malformed("a value in a detail is 1 to 256 octets without control characters"));
        }
        if repeats(&self.locations) || repeats(&self.privileges) || lists.iter().flatten().any(|list| repeats(list)) {
            return Err(Malformed("a detail repeats a value"));
        }
        Ok(())
    }
}

fn repeats<T: PartialEq>(values: &[T]) -> bool {
    values.iter().enumerate().any(|(at, value)| values[..at].contains(value))
}

/// Everything a task may do: a list of details.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "broker", derive(utoipa::ToSchema))]
#[serde(transparent)]
pub struct Authority(Vec<AccessDetail>);

impl Authority {
    /// How many details a declaration may have.
    pub const MAX_DETAILS: usize = 16;
    /// How many (location, privilege) pairs it may name in all: each is a policy decision of its own.
    pub const MAX_PAIRS: usize = 128;

    /// Checks and wraps the details of a declaration.
    ///
    /// # Errors
    /// When there is none or there are too many, or one is empty, too long or repeats a value.
    pub fn new(details: Vec<AccessDetail>) -> Result<Self, Malformed> {
        if details.is_empty() || details.len() > Self::MAX_DETAILS {
            return Err(Malformed("authorization_details has 1 to 16 objects"));
        }
        details.iter().try_for_each(AccessDetail::validate)?;
        if details.iter().map(|detail| detail.pairs().count()).sum::<usize>() > Self::MAX_PAIRS {
            return Err(Malformed("authorization_details names at most 128 pairs of location and privilege"));
        }
        Ok(Self(details))
    }

    /// What is left of `self` when only the pairs that `keep` accepts are granted. `None` where that is nothing. Locations
    /// of one detail that keep the same privileges stay together.
    #[must_use]
    pub fn filter(&self, mut keep: impl FnMut(&AccessDetail, &Location, Privilege) -> bool) -> Option<Self> {
        let mut kept: Vec<AccessDetail> = Vec::new();
        for detail in &self.0 {
            let first = kept.len();
            for location in &detail.locations {
                let privileges: Vec<_> =
                    detail.privileges.iter().copied().filter(|p| keep(detail, location, *p)).collect();
                if privileges.is_empty() {
                    continue;
                }
                match kept[first..].iter_mut().find(|other| other.privileges == privileges) {
                    Some(other) => other.locations.push(location.clone()),
                    None => kept.push(AccessDetail { locations: vec![location.clone()], privileges, ..detail.clone() }),
                }
            }
        }
        (!kept.is_empty()).then_some(Self(kept))
    }

    /// The details, cut down to one location and one privilege: what a token for them says. Empty where there is none.
    #[must_use]
    pub fn slice(&self, location: &Location, privilege: Privilege) -> Vec<AccessDetail> {
        self.0.iter().filter_map(|detail| detail.slice(location, privilege)).collect()
    }

    /// Whether any detail names the location.
    #[must_use]
    pub fn reaches(&self, location: &Location) -> bool {
        self.0.iter().any(|detail| detail.locations.contains(location))
    }

    /// The details, as they were asked or granted.
    #[must_use]
    pub fn details(&self) -> &[AccessDetail] {
        &self.0
    }

    /// `sha-256:` and the base64url of the SHA-256 of the canonical JSON (RFC 8785) of what was granted.
    ///
    /// # Errors
    /// Never, for values that were read from JSON; the canonicaliser's signature allows for others.
    pub fn hash(&self) -> Result<String, serde_json::Error> {
        let canonical = serde_json_canonicalizer::to_vec(self)?;
        let digest = ring::digest::digest(&ring::digest::SHA256, &canonical);
        Ok(format!("sha-256:{}", BASE64_URL_SAFE_NO_PAD.encode(digest)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authority(json: serde_json::Value) -> Authority {
        Authority::new(serde_json::from_value(json).unwrap()).unwrap()
    }

    #[test]
    fn a_slice_is_one_location_and_one_privilege() {
        let all = authority(serde_json::json!([
            {"type": "remit:access", "locations": ["https://a", "https://b"], "privileges": ["read", "write"], "actions": ["clone"]},
            {"type": "remit:access", "locations": ["https://b"], "privileges": ["read"]}]));
        let slice = all.slice(&"https://b".parse().unwrap(), Privilege::Read);
        assert_eq!(slice.len(), 2);
        assert!(slice.iter().all(|d| d.locations.len() == 1 && d.privileges == [Privilege::Read]));
        assert!(all.slice(&"https://c".parse().unwrap(), Privilege::Read).is_empty());
        assert!(all.slice(&"https://a".parse().unwrap(), Privilege::Secret).is_empty());
    }

    #[test]
    fn what_is_kept_is_grouped_and_never_widened() {
        let all = authority(serde_json::json!([
            {"type": "remit:access", "locations": ["https://a", "https://b", "https://c"], "privileges": ["read", "write"]}]));
        let a: Location = "https://a".parse().unwrap();
        let kept = all.filter(|_, location, privilege| *location != a || privilege == Privilege::Read).unwrap();
        assert_eq!(kept.details().len(), 2);
        assert!(kept.slice(&a, Privilege::Write).is_empty());
        assert_eq!(all.filter(|_, _, _| true), Some(all.clone()));
        assert_eq!(all.filter(|_, _, _| false), None);
    }

    use proptest::prelude::*;

    const LOCATIONS: [&str; 4] = ["https://a", "https://b", "https://c", "https://d"];
    const PRIVILEGES: [Privilege; 3] = [Privilege::Read, Privilege::Write, Privilege::Secret];

    fn some_detail() -> impl Strategy<Value = AccessDetail> {
        let locations = proptest::sample::subsequence(LOCATIONS.to_vec(), 1..=4);
        let privileges = proptest::sample::subsequence(PRIVILEGES.to_vec(), 1..=3);
        (locations, privileges, proptest::option::of("[a-z]{1,3}")).prop_map(|(locations, privileges, identifier)| {
            let locations = locations.into_iter().map(|location| location.parse().unwrap()).collect();
            AccessDetail {
                locations,
                privileges,
                identifier,
                ..AccessDetail::of("https://a".parse().unwrap(), Privilege::Read)
            }
        })
    }

    proptest! {
        /// Whatever is kept: exactly the pairs that were to be kept, with the restrictions they had, and nothing else.
        #[test]
        fn a_filter_keeps_exactly_what_it_is_told(details in proptest::collection::vec(some_detail(), 1..6), keep in any::<[[bool; 3]; 4]>()) {
            let all = Authority::new(details).unwrap();
            let kept = all.filter(|_, location, privilege| {
                keep[LOCATIONS.iter().position(|l| *l == location.as_str()).unwrap()][privilege as usize]
            });
            for (row, location) in LOCATIONS.iter().enumerate() {
                for privilege in PRIVILEGES {
                    let location = location.parse().unwrap();
                    let expected = if keep[row][privilege as usize] { all.slice(&location, privilege) } else { Vec::new() };
                    prop_assert_eq!(kept.as_ref().map_or(Vec::new(), |kept| kept.slice(&location, privilege)), expected);
                }
            }
        }
    }

    #[test]
    fn the_hash_does_not_depend_on_the_order_of_members() {
        let a = authority(
            serde_json::json!([{"type": "remit:access", "locations": ["https://a"], "privileges": ["read"]}]),
        );
        let b: Vec<AccessDetail> =
            serde_json::from_str(r#"[{"privileges":["read"],"type":"remit:access","locations":["https://a"]}]"#)
                .unwrap();
        assert_eq!(a.hash().unwrap(), Authority::new(b).unwrap().hash().unwrap());
        assert!(a.hash().unwrap().starts_with("sha-256:"));
    }
}
