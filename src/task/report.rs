//! Reports: what somebody says was done for a task (a tool was called, a prompt was sent), as digests with a size and a label.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use crate::{
    clock::Time,
    error::Error,
    id::{LeaseId, sha256_base64url},
};

/// How many reports one call brings at most.
const MAX_REPORTS: usize = 100;
/// How many reports there are of a task by one reporter at most: so far their numbers go.
const MAX_SEQUENCE: u32 = 10_000;
/// How many reports of a task one reporter may send in a minute.
const MAX_A_MINUTE: u32 = 600;
/// How far past a gap reports may go, and how many before it can be told from others.
const WINDOW: u32 = 256;
/// The longest label, in octets.
const MAX_LABEL: usize = 128;
/// The largest size that every JSON reader knows exactly.
const MAX_SIZE: u64 = (1 << 53) - 1;
/// How a digest starts: the name of the algorithm.
const DIGEST: &str = "sha-256:";

/// The body of `POST /v1/tasks/{id}/reports`.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(feature = "broker", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Reporting {
    /// What was done, in any order: all of it is taken, or nothing.
    #[cfg_attr(feature = "broker", schema(min_items = 1, max_items = 100))]
    pub reports: Vec<Report>,
    /// From a service, and from nobody else: the `jti` of a credential of the task that was shown to it.
    #[serde(default)]
    pub lease: Option<LeaseId>,
}

/// One thing that was done for a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "broker", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// What kind of thing.
    pub kind: ReportKind,
    /// What it is called: `git.clone`. Printable ASCII.
    #[cfg_attr(feature = "broker", schema(min_length = 1, max_length = 128, pattern = "^[!-~]([ -~]*[!-~])?$"))]
    pub label: String,
    /// `sha-256:` and the SHA-256 of the content in base64url without padding.
    #[cfg_attr(feature = "broker", schema(pattern = "^sha-256:[A-Za-z0-9_-]{43}$"))]
    pub digest: String,
    /// The size of the content, in octets.
    #[cfg_attr(feature = "broker", schema(maximum = 9_007_199_254_740_991_u64))]
    pub size: u64,
    /// The reporter's own count of its reports of this task, from 1 on, so that a gap shows.
    #[cfg_attr(feature = "broker", schema(minimum = 1, maximum = 10_000))]
    pub sequence: u32,
    /// When it was done, in the reporter's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "broker", schema(value_type = String, format = DateTime, required = false))]
    pub at: Option<Time>,
    /// The content itself, where the configuration keeps it (`[reports] bodies = true`): text without control characters but tabs
    /// and ends of lines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "broker", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum ReportKind {
    /// A tool was called.
    ToolCall,
    /// A tool answered.
    ToolResult,
    /// A model was asked.
    Prompt,
    /// A model answered.
    Completion,
}

/// Whose word a report is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "broker", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// That of the workload that holds the task.
    SelfReported,
    /// That of a service that saw it.
    Observed,
}

/// Who reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reporter {
    /// The instance that holds the task.
    Holder,
    /// A service, by name.
    Service(String),
}

impl Reporter {
    /// Whose word it is.
    #[must_use]
    pub fn origin(&self) -> Origin {
        match self {
            Self::Holder => Origin::SelfReported,
            Self::Service(_) => Origin::Observed,
        }
    }
}

/// The `[reports]` section.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReportTerms {
    /// Whether contents may come with reports, to be kept in the audit log.
    pub bodies: bool,
    /// The longest content, in octets.
    pub max_body: u32,
}

impl Default for ReportTerms {
    fn default() -> Self {
        Self { bodies: false, max_body: 8192 }
    }
}

impl ReportTerms {
    /// What is wrong with it, in a sentence.
    #[must_use]
    pub fn mistake(&self) -> Option<String> {
        let fits = (1..=32_768).contains(&self.max_body);
        (!fits).then(|| "`reports.max_body` is 1 to 32768 octets; a whole request has 65536 at most".to_owned())
    }
}

impl Reporting {
    /// Checks the sizes and forms that the types alone do not.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`], naming the member; [`Error::QuotaExceeded`] for more reports than a task has.
    pub fn check(&self, terms: ReportTerms) -> Result<(), Error> {
        if self.reports.is_empty() || self.reports.len() > MAX_REPORTS {
            return Err(Error::invalid("`reports` lists 1 to 100 objects"));
        }
        for (at, report) in self.reports.iter().enumerate() {
            report.check(terms).map_err(|why| Error::invalid(format!("`reports[{at}].{why}")))?;
        }
        let mut sequences: Vec<_> = self.reports.iter().map(|report| report.sequence).collect();
        sequences.sort_unstable();
        sequences.dedup();
        if sequences.len() < self.reports.len() {
            return Err(Error::invalid("two of the reports have the same `sequence`"));
        }
        if sequences.last().is_some_and(|last| *last > MAX_SEQUENCE) {
            return Err(Error::QuotaExceeded("a task has at most 10000 reports of one reporter"));
        }
        Ok(())
    }
}

impl Report {
    fn check(&self, terms: ReportTerms) -> Result<(), String> {
        let label = self.label.as_bytes();
        let printable = label.iter().all(|octet| matches!(octet, b' '..=b'~'));
        if label.is_empty() || label.len() > MAX_LABEL || !printable || self.label.trim() != self.label {
            return Err("label` is 1 to 128 printable ASCII characters, the first and the last no space".to_owned());
        }
        if !is_digest(&self.digest) {
            return Err("digest` is `sha-256:` and a SHA-256 in base64url without padding".to_owned());
        }
        if self.size > MAX_SIZE {
            return Err(format!("size` is at most {MAX_SIZE}"));
        }
        if self.sequence == 0 {
            return Err("sequence` counts from 1".to_owned());
        }
        let Some(body) = &self.body else { return Ok(()) };
        if !terms.bodies {
            return Err("body` is not kept here: the configuration has no `[reports] bodies = true`".to_owned());
        }
        if body.len() > terms.max_body as usize {
            return Err(format!("body` is at most {} octets", terms.max_body));
        }
        if body.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t')) {
            return Err("body` is text without control characters but tabs and ends of lines".to_owned());
        }
        if self.size != body.len() as u64 || self.digest != digest(body.as_bytes()) {
            return Err("body` is not what `digest` and `size` say".to_owned());
        }
        Ok(())
    }
}

/// The digest of a content, as a report has it.
#[must_use]
pub fn digest(content: &[u8]) -> String {
    format!("{DIGEST}{}", sha256_base64url(content))
}

/// Of all texts that decode to 32 octets, only the one that encodes them: what is compared is text.
fn is_digest(text: &str) -> bool {
    use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
    let encoded = text.strip_prefix(DIGEST);
    encoded.and_then(|encoded| BASE64_URL_SAFE_NO_PAD.decode(encoded).ok()).is_some_and(|octets| octets.len() == 32)
}

/// What one reporter has reported of one task. It stays small, whatever it was.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Account {
    /// Everything from 1 up to this was reported.
    whole: u32,
    /// Which report it was, for those past a gap and the last before it.
    known: BTreeMap<u32, String>,
    /// When the last one came.
    last_at: Option<Time>,
    /// How many came in this minute (Unix minutes).
    minute: (i64, u32),
}

/// Reports that are missing, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "broker", derive(utoipa::ToSchema), schema(as = ReportGap))]
pub struct Gap {
    /// The first.
    pub from: u32,
    /// The last.
    pub to: u32,
}

impl Account {
    /// Whether this report is new: a number, and what tells the report from others.
    ///
    /// # Errors
    /// [`Error::SequenceReused`] where another report has the number, or one that is too long ago to be compared.
    pub fn is_new(&self, sequence: u32, which: &str) -> Result<bool, Error> {
        match self.known.get(&sequence) {
            Some(known) if known == which => Ok(false),
            None if sequence > self.whole => Ok(true),
            Some(_) | None => Err(Error::SequenceReused(sequence)),
        }
    }

    /// The same with these new reports.
    ///
    /// # Errors
    /// [`Error::QuotaExceeded`] for too many in a minute, [`Error::InvalidRequest`] for one that is far past a gap.
    pub fn with(mut self, new: impl IntoIterator<Item = (u32, String)>, now: Time) -> Result<Self, Error> {
        let minute = now.timestamp() / 60;
        if self.minute.0 != minute {
            self.minute = (minute, 0);
        }
        for (sequence, which) in new {
            self.minute.1 += 1;
            self.known.insert(sequence, which);
        }
        if self.minute.1 > MAX_A_MINUTE {
            return Err(Error::QuotaExceeded("a reporter sends at most 600 reports of a task in a minute"));
        }
        while self.known.contains_key(&(self.whole + 1)) {
            self.whole += 1;
        }
        let whole = self.whole;
        if let Some(last) = self.known.keys().next_back().filter(|last| **last > whole + WINDOW) {
            return Err(Error::invalid(format!(
                "report {last} is more than {WINDOW} past report {}, which is missing: send that first",
                whole + 1
            )));
        }
        self.known.retain(|sequence, _| sequence + WINDOW > whole);
        self.last_at = Some(now);
        Ok(self)
    }

    /// The highest number; 0 where nothing was reported.
    #[must_use]
    pub fn last_sequence(&self) -> u32 {
        self.known.keys().next_back().map_or(self.whole, |last| self.whole.max(*last))
    }

    /// When the last one came.
    #[must_use]
    pub fn last_at(&self) -> Option<Time> {
        self.last_at
    }

    /// What is missing below the highest number.
    #[must_use]
    pub fn gaps(&self) -> Vec<Gap> {
        let (mut gaps, mut next) = (Vec::new(), self.whole + 1);
        for sequence in self.known.range(next..).map(|(sequence, _)| *sequence) {
            if sequence > next {
                gaps.push(Gap { from: next, to: sequence - 1 });
            }
            next = sequence + 1;
        }
        gaps
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::TimeDelta;

    fn noon() -> Time {
        "2026-11-20T12:00:00Z".parse().unwrap()
    }

    fn numbered(sequences: impl IntoIterator<Item = u32>) -> Vec<(u32, String)> {
        sequences.into_iter().map(|sequence| (sequence, format!("report {sequence}"))).collect()
    }

    #[test]
    fn gaps_show_and_close() {
        let account = Account::default().with(numbered([1, 2, 5, 8]), noon()).unwrap();
        assert_eq!(account.last_sequence(), 8);
        assert_eq!(account.gaps(), [Gap { from: 3, to: 4 }, Gap { from: 6, to: 7 }]);
        let account = account.with(numbered([3, 4, 6, 7]), noon()).unwrap();
        assert_eq!((account.whole, account.last_sequence(), account.gaps()), (8, 8, Vec::new()));
        assert!(Account::default().gaps().is_empty() && Account::default().last_sequence() == 0);
    }

    #[test]
    fn a_number_is_one_report() {
        let account = Account::default().with(numbered([1, 3]), noon()).unwrap();
        assert!(account.is_new(2, "report 2").unwrap() && account.is_new(4, "x").unwrap());
        assert!(!account.is_new(1, "report 1").unwrap() && !account.is_new(3, "report 3").unwrap());
        for sequence in [1, 3] {
            assert!(matches!(account.is_new(sequence, "other"), Err(Error::SequenceReused(at)) if at == sequence));
        }
    }

    /// However many, and whatever is missing.
    #[test]
    fn it_stays_small() {
        let (mut account, mut now) = (Account::default(), noon());
        for call in 0..100 {
            let first = call * 100 + 1;
            account = account.with(numbered(first..first + 100), now).unwrap();
            assert!(account.known.len() <= 256);
            now += TimeDelta::minutes(1);
        }
        assert_eq!((account.last_sequence(), account.gaps()), (MAX_SEQUENCE, Vec::new()));
        assert!(!account.is_new(9_745, "report 9745").unwrap());
        // Too long ago to be compared, and no report is passed over unseen.
        assert!(matches!(account.is_new(9_744, "report 9744"), Err(Error::SequenceReused(9_744))));
        let ahead = Account::default().with(numbered((2..=256).step_by(2)), now).unwrap();
        assert!(ahead.clone().with(numbered([257]), now).is_err());
        assert!(ahead.with(numbered([256]), now).is_ok());
        assert!(serde_json::to_string(&account).unwrap().len() < 8192);
    }

    #[test]
    fn a_minute_has_its_number() {
        let account = Account::default().with(numbered(1..=300), noon()).unwrap();
        let account = account.with(numbered(301..=600), noon() + TimeDelta::seconds(59)).unwrap();
        assert!(matches!(account.clone().with(numbered([601]), noon()), Err(Error::QuotaExceeded(_))));
        account.with(numbered([601]), noon() + TimeDelta::seconds(60)).unwrap();
    }

    #[test]
    fn a_digest_has_one_form() {
        let right = digest(b"content");
        assert!(is_digest(&right));
        // The last character holds two bits that say nothing.
        let end = right.chars().next_back().unwrap();
        let other = char::from(u8::try_from(end).unwrap() + 1);
        let twin = format!("{}{other}", &right[..right.len() - 1]);
        for wrong in ["", "sha-256:", &right[8..], &right.to_uppercase(), &format!("{right}="), &twin, "sha-512:AAAA"] {
            assert!(!is_digest(wrong), "{wrong}");
        }
    }
}
