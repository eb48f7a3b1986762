//! What makes the log evidence: every record names what came before it. Pure; the files are others' business.
//!
//! A **record** is one JSON object on one line. Its writing is canonical: members in the order of their names, no white space, RFC 8785
//! but for control characters and those that turn text around, which are escaped. `sequence` counts from 1 without gaps; `previous` is the digest of the record before, of no record
//! 32 zero octets. The **content** of a record is the SHA-256 of its line without the member `previous`, and its **digest** is
//!
//! ```text
//! SHA-256( digest of the record before ‖ content )
//! ```
//!
//! so a record that is nobody's business can stand in a chain by its content alone, and the others are proven all the same.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::{collections::BTreeMap, fmt, str::FromStr};

use super::{Class, Entry};
use crate::id::TaskId;

/// The member that the digest of the record before stands in.
const PREVIOUS: &str = "previous";
/// The member that the number stands in.
const SEQUENCE: &str = "sequence";

/// A SHA-256, written `sha-256:` and base64url.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    fn of(octets: &[u8]) -> Self {
        let mut digest = [0; 32];
        digest.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, octets).as_ref());
        Self(digest)
    }

    /// The digest of a record with this content that follows one with this digest.
    #[must_use]
    pub fn followed_by(self, content: Digest) -> Self {
        let mut both = [0; 64];
        both[..32].copy_from_slice(&self.0);
        both[32..].copy_from_slice(&content.0);
        Self::of(&both)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha-256:{}", BASE64_URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl FromStr for Digest {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, &'static str> {
        let digits = text.strip_prefix("sha-256:").ok_or("not a digest")?;
        let octets = BASE64_URL_SAFE_NO_PAD.decode(digits).map_err(|_| "not a digest")?;
        octets.try_into().map(Self).map_err(|_| "not a digest")
    }
}

impl TryFrom<String> for Digest {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, &'static str> {
        text.parse()
    }
}

/// The last record of a chain, as far as the next one needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Its number.
    pub sequence: u64,
    /// Its digest.
    #[serde(rename = "head")]
    pub digest: Digest,
}

impl Head {
    /// Of a chain that has no record yet.
    pub const NONE: Self = Self { sequence: 0, digest: Digest([0; 32]) };

    /// The head once a record with this content has followed.
    #[must_use]
    pub fn then(self, content: Digest) -> Self {
        Self { sequence: self.sequence + 1, digest: self.digest.followed_by(content) }
    }

    /// The head once `record` has followed.
    ///
    /// # Errors
    /// When it does not follow.
    pub fn followed_by(self, record: &Record) -> Result<Self, Break> {
        let expected = self.sequence + 1;
        match record.sequence {
            found if found > expected => Err(Break::Missing { expected, found }),
            found if found < expected => Err(Break::OutOfPlace { expected, found }),
            _ if record.previous != self.digest => Err(Break::Altered(self.sequence.max(1))),
            _ => Ok(self.then(record.content)),
        }
    }
}

/// Where a chain breaks: the first record that is not what was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Break {
    /// A record, or several, are gone.
    #[error("record {expected} is missing: record {found} stands in its place")]
    Missing {
        /// The first that is gone.
        expected: u64,
        /// What stands there.
        found: u64,
    },
    /// A record stands where it does not belong.
    #[error("record {found} stands where record {expected} belongs")]
    OutOfPlace {
        /// What belongs there.
        expected: u64,
        /// What stands there.
        found: u64,
    },
    /// A record is not the one that the next one follows.
    #[error("record {0} is not the one that the next record was written after")]
    Altered(u64),
}

impl Break {
    /// The first bad record.
    #[must_use]
    pub fn sequence(self) -> u64 {
        match self {
            Break::Missing { expected, .. } | Break::OutOfPlace { expected, .. } | Break::Altered(expected) => expected,
        }
    }
}

/// A record as it was read: well-formed, and not yet known to follow anything.
#[derive(Debug, Clone)]
pub struct Record {
    /// Its number.
    pub sequence: u64,
    /// All that it says.
    pub members: Map<String, Value>,
    previous: Digest,
    content: Digest,
}

impl Record {
    /// Reads a line, without its line feed.
    ///
    /// # Errors
    /// When it is not what a broker writes, to the octet.
    pub fn read(line: &[u8]) -> Result<Self, &'static str> {
        let members: Map<String, Value> = serde_json::from_slice(line).map_err(|_| "it is not a JSON object")?;
        if canonical(&members).map_err(|_| "it is not JSON that can be written")?.as_bytes() != line {
            return Err("it is not written as a broker writes");
        }
        Self::of(members)
    }

    /// Takes a record out of other JSON.
    ///
    /// # Errors
    /// When it has no place.
    pub fn of(mut members: Map<String, Value>) -> Result<Self, &'static str> {
        let sequence = members.get(SEQUENCE).and_then(Value::as_u64).ok_or("it has no number")?;
        let previous = members.remove(PREVIOUS).ok_or("it does not say what it follows")?;
        let content = canonical(&members).map_err(|_| "it is not JSON that can be written")?;
        let digest = previous.as_str().and_then(|text| text.parse().ok()).ok_or("it does not say what it follows")?;
        members.insert(PREVIOUS.to_owned(), previous);
        Ok(Self { sequence, members, previous: digest, content: Digest::of(content.as_bytes()) })
    }

    /// The head of a chain that ends before this record, as the record says.
    #[must_use]
    pub fn before(&self) -> Head {
        Head { sequence: self.sequence.saturating_sub(1), digest: self.previous }
    }

    /// Its content.
    #[must_use]
    pub fn content(&self) -> Digest {
        self.content
    }

    /// A member that is text.
    #[must_use]
    pub fn text(&self, member: &str) -> Option<&str> {
        self.members.get(member).and_then(Value::as_str)
    }
}

/// A record whose place in the log is not known yet: everything but its number and what it follows, in JSON.
pub(super) struct Unplaced {
    /// Members before `previous`, each with a comma behind it.
    before: String,
    /// Members between `previous` and `sequence`.
    between: String,
    /// Members after `sequence`.
    after: String,
    /// The task it is about, if any.
    pub(super) task: Option<TaskId>,
    /// What it is to others.
    pub(super) class: Class,
}

impl Unplaced {
    /// Puts an entry into JSON.
    pub(super) fn of(entry: &Entry) -> Result<Self, serde_json::Error> {
        let (task, class) = (entry.task.clone(), entry.event.class());
        let mut placed = Self { before: String::new(), between: String::new(), after: String::new(), task, class };
        let Value::Object(mut members) = serde_json::to_value(entry)? else {
            return Err(serde::ser::Error::custom("an entry is an object"));
        };
        if entry.event.is_intent() {
            members.insert("intent".to_owned(), true.into());
        }
        let members: BTreeMap<_, _> = members.into_iter().collect();
        for (name, value) in members {
            let part = match name.as_str() {
                name if name < PREVIOUS => &mut placed.before,
                name if name < SEQUENCE => &mut placed.between,
                _ => &mut placed.after,
            };
            part.extend(["\"", &name, "\":", &canonical(&value)?, ","]);
        }
        Ok(placed)
    }

    /// About how long its line will be.
    pub(super) fn len(&self) -> usize {
        self.before.len() + self.between.len() + self.after.len() + 100
    }

    /// Gives it the place after `head`, which becomes the head after it: the line, without its line feed.
    pub(super) fn place(&self, head: &mut Head) -> String {
        let Self { before, between, after, .. } = self;
        let sequence = head.sequence + 1;
        let after = after.trim_end_matches(',');
        let comma = if after.is_empty() { "" } else { "," };
        let rest = format!("{between}\"{SEQUENCE}\":{sequence}{comma}{after}}}");
        let line = format!("{{{before}\"{PREVIOUS}\":\"{}\",{rest}", head.digest);
        *head = head.then(Digest::of(format!("{{{before}{rest}").as_bytes()));
        line
    }
}

/// RFC 8785, in which nothing can end a line, move a cursor or turn text around: what JSON lets through of that is escaped too, for
/// readers that split at any Unicode line end and for terminals.
fn canonical(value: &impl Serialize) -> Result<String, serde_json::Error> {
    let json = serde_json_canonicalizer::to_string(value)?;
    if !json.contains(is_active) {
        return Ok(json);
    }
    // All of it that is not ASCII stands in strings.
    let mut escaped = String::with_capacity(json.len() + 64);
    for c in json.chars() {
        if is_active(c) {
            let mut units = [0; 2];
            escaped.extend(c.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")));
        } else {
            escaped.push(c);
        }
    }
    Ok(escaped)
}

pub(super) fn is_active(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{Actor, Event};
    use chrono::DateTime;
    use proptest::prelude::*;

    fn entry(at: &str) -> Entry {
        Entry {
            time: DateTime::from_timestamp(1_770_000_000, 0).unwrap(),
            request: "req-1".to_owned(),
            actor: Actor::Operator { name: "ada".into() },
            task: None,
            event: Event::Looked { at: at.to_owned() },
        }
    }

    fn log(length: usize) -> Vec<String> {
        let mut head = Head::NONE;
        (1..=length).map(|at| Unplaced::of(&entry(&format!("thing {at}"))).unwrap().place(&mut head)).collect()
    }

    /// The first bad record, if the chain breaks.
    fn check(lines: &[String]) -> Option<u64> {
        let mut head = Head::NONE;
        for line in lines {
            let Ok(record) = Record::read(line.as_bytes()) else { return Some(head.sequence + 1) };
            match head.followed_by(&record) {
                Ok(next) => head = next,
                Err(broken) => return Some(broken.sequence()),
            }
        }
        None
    }

    #[test]
    fn a_line_is_canonical_and_says_what_it_follows() {
        let lines = log(2);
        assert_eq!(
            lines[0],
            concat!(
                r#"{"actor":{"as":"operator","name":"ada"},"at":"thing 1","event":"looked","#,
                r#""previous":"sha-256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA","request":"req-1","sequence":1,"#,
                r#""time":"2026-02-02T02:40:00Z"}"#
            )
        );
        let content = lines[0].replace(r#""previous":"sha-256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA","#, "");
        let digest = Digest::NONE_FOR_TEST.followed_by(Digest::of(content.as_bytes()));
        assert!(lines[1].contains(&format!(r#""previous":"{digest}""#)), "{}", lines[1]);
        assert_eq!(check(&lines), None);
        // What another library calls canonical is the same, where nothing is escaped.
        let value: Value = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!(serde_json_canonicalizer::to_string(&value).unwrap(), lines[0]);
    }

    impl Digest {
        const NONE_FOR_TEST: Self = Head::NONE.digest;
    }

    #[test]
    fn another_writing_of_the_same_is_refused() {
        let line = &log(1)[0];
        let twice = line.replacen('{', r#"{"actor":1,"#, 1);
        let spaced = line.replacen(',', ", ", 1);
        let escaped = line.replacen("thing", r"\u0074hing", 1);
        for other in [&twice, &spaced, &escaped, &format!(" {line}"), "[]", "", "{}", "{\"sequence\":1}"] {
            assert!(Record::read(other.as_bytes()).is_err(), "{other}");
        }
    }

    proptest! {
        #[test]
        fn any_change_names_the_first_bad_record(length in 3..30usize, at in 0..1000usize, other in 0..1000usize, kind in 0..6) {
            let whole = log(length);
            // The last record is vouched for by a signature alone.
            let at = at % (length - 1);
            let mut lines = whole.clone();
            match kind {
                0 => lines[at] = lines[at].replacen("thing", "thong", 1),
                1 => drop(lines.remove(at)),
                2 => lines.insert(at, whole[at].clone()),
                3 => lines.swap(at, at + 1),
                4 => lines.insert(at, Unplaced::of(&entry("new")).unwrap().place(&mut Head { sequence: at as u64, ..Head::NONE })),
                _ => { let other = other % length; lines.swap(at, other); }
            }
            let expected = lines.iter().zip(&whole).position(|(a, b)| a != b).map(|at| at as u64 + 1);
            let found = check(&lines);
            prop_assert_eq!(found.is_none(), lines == whole);
            if let (Some(found), Some(expected)) = (found, expected) {
                // A forged record that claims the right place and the right past cannot be told from one that was altered before it.
                prop_assert!(found == expected || kind == 4 && found.abs_diff(expected) == 1, "{} for {}", found, expected);
            }
        }
    }
}
