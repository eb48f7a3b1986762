//! How much of the log of notices everybody who reads a broker's feed has said to go by, as each broker tells the others.
//!
//! What was heard once stays heard, so an older record says less and nothing that is wrong; but of another run of the store, which may have
//! lost what was logged, it says nothing.

use chrono::TimeDelta;
use serde::{Deserialize, Serialize};

use super::{
    super::{InDoubt, Key},
    Ledger, Position, kept, short,
};
use crate::clock::Time;

/// How long it is told: with the next notice it is told anew.
const KEPT: TimeDelta = TimeDelta::minutes(10);

/// That all have heard of what was logged up to there, by this run of the store.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Heard {
    run: String,
    upto: Option<String>,
}

impl Ledger {
    /// Tells the other brokers that all who read the feed that is signed with any of these keys have heard of everything up to there.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn post_heard(&self, kids: &[String], run: &str, upto: &Position, now: Time) -> Result<(), InDoubt> {
        let heard = Heard { run: run.to_owned(), upto: upto.0.clone() };
        let seal = |kid: &String| {
            let key = Key::Heard(kid.clone());
            let record = self.0.sealer.seal(&key, &heard)?;
            Ok((key, record, kept(now, KEPT)))
        };
        let records = kids.iter().map(seal).collect::<Result<Vec<_>, InDoubt>>()?;
        self.0.store.post(&records).await
    }

    /// Whether the brokers of all of these keys have told that.
    ///
    /// # Errors
    /// When the store is in doubt, or says what no broker wrote.
    pub async fn have_heard(&self, kids: &[String], run: &str, upto: &Position) -> Result<bool, InDoubt> {
        let keys: Vec<_> = kids.iter().map(|kid| Key::Heard(kid.clone())).collect();
        let records = self.0.store.read(&keys).await?;
        if records.len() != keys.len() {
            return Err(short());
        }
        for (key, record) in keys.iter().zip(records) {
            let heard =
                record.map(|record| self.0.sealer.open_if_current::<Heard>(key, &record)).transpose()?.flatten();
            if !heard.is_some_and(|heard| heard.run == run && Position(heard.upto).reaches(upto)) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Position {
    /// Whether it is this place in the log, or after it. What cannot be told is not.
    fn reaches(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (_, None) => true,
            (None, Some(_)) => false,
            (Some(one), Some(other)) => place(one).zip(place(other)).is_some_and(|(one, other)| one >= other),
        }
    }
}

/// A number, or two as Redis writes them.
fn place(text: &str) -> Option<(u64, u64)> {
    let (first, second) = text.split_once('-').unwrap_or((text, "0"));
    Some((first.parse().ok()?, second.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_compared_as_numbers() {
        let at = |text: &str| Position(Some(text.to_owned()));
        for (one, other, reaches) in [
            ("1700000000000-10", "1700000000000-9", true),
            ("1700000000000-9", "1700000000000-10", false),
            ("1700000000000-0", "999999999999-7", true),
            ("7", "7", true),
            ("10", "9", true),
            ("9", "10", false),
            ("x", "1", false),
            ("1", "x", false),
            ("", "", false),
        ] {
            assert_eq!(at(one).reaches(&at(other)), reaches, "{one} {other}");
        }
        assert!(Position(None).reaches(&Position(None)) && at("1").reaches(&Position(None)));
        assert!(!Position(None).reaches(&at("1")));
    }
}
