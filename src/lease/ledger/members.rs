//! The roll of brokers on a store: what each says of itself to the others, every second or two.

use chrono::TimeDelta;
use serde::{Deserialize, Serialize};
use std::time::Duration;

use super::{
    super::{Called, Calling, InDoubt, Key},
    Ledger, kept,
    numbers::Span,
    short,
};
use crate::{clock::Time, id::BrokerName, notice::Notice};

/// How long an answer to another broker is kept.
const ANSWERED: TimeDelta = TimeDelta::minutes(2);
/// How many notices a page of it has: less than a record may hold, however long their reasons are.
const PAGE: usize = 128;
/// How many pages are written or read at a time.
const PAGES: usize = 16;

/// What a broker says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// When, by its own clock: it never says the same twice.
    pub at: Time,
    /// The run of the store that it has told of all that it knows to be dead; `None`: there may be something left to tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub told: Option<String>,
    /// The run of the store that everybody has told who was there, as far as it knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settled: Option<String>,
    /// Whether it has ended in order, with nothing left to tell.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub left: bool,
    /// A nonce, where it knows nothing of what is dead and asks the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asks: Option<String>,
    /// Whom it asks, where it lacks something of what they have logged; nobody by name, where it knows nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub asks_of: Vec<BrokerName>,
    /// What it has logged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logged: Option<Span>,
}

/// The first page of an answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Heading {
    /// The run of the store that it is about.
    run: String,
    /// How many pages follow.
    pages: usize,
    /// What was logged of which they have all.
    covers: Vec<Span>,
}

/// All that a broker knows to be dead.
#[derive(Debug)]
pub struct Account {
    /// What it is.
    pub notices: Vec<Notice>,
    /// What was logged of which that is all.
    pub covers: Vec<Span>,
}

/// What all say.
#[derive(Debug)]
pub struct Roll {
    /// Which run of the store this is the roll of.
    pub incarnation: String,
    /// Who is on it, with what they said before this was asked. What no broker wrote is left out.
    pub members: Vec<(BrokerName, Member)>,
    /// Whether others can be.
    pub is_shared: bool,
}

impl Ledger {
    /// Says something of this broker, strikes off those that are `gone`, and yields what all say. With `patience`, only once what was
    /// written is on another machine as well, where the store has copies there.
    ///
    /// # Errors
    /// When the store is in doubt, or that cannot be told within `patience`.
    pub async fn call(
        &self,
        broker: &BrokerName,
        member: &Member,
        gone: Vec<BrokerName>,
        patience: Option<Duration>,
    ) -> Result<Roll, InDoubt> {
        let record = self.0.sealer.seal(&Key::Member(broker.clone()), member)?;
        let hint = member.asks.is_some();
        let calling = Calling { broker: broker.clone(), record, gone, patience, hint };
        let Called { incarnation, roll } = self.0.store.call(&calling).await?;
        let read = |(name, record): &(String, String)| {
            let name: BrokerName = name.parse().ok()?;
            let member = self.0.sealer.open_of_any_generation(&Key::Member(name.clone()), record);
            let member =
                member.inspect_err(|why| tracing::error!(%why, broker = %name, "left out of the roll of brokers"));
            Some((name, member.ok()?))
        };
        let is_shared = roll.is_some();
        Ok(Roll { incarnation, members: roll.iter().flatten().filter_map(read).collect(), is_shared })
    }

    /// Answers the nonce of another broker with all that this one knows to be dead, on that run of the store.
    ///
    /// # Errors
    /// When the store is in doubt.
    pub async fn answer(
        &self,
        (nonce, broker): (&str, &BrokerName),
        run: &str,
        Account { notices, covers }: Account,
        now: Time,
    ) -> Result<(), InDoubt> {
        let (until, pages) = (kept(now, ANSWERED), notices.chunks(PAGE));
        let key = |page| Key::Answer(nonce.to_owned(), broker.clone(), page);
        let heading = Heading { run: run.to_owned(), pages: pages.len(), covers };
        let pages: Vec<_> = pages.enumerate().collect();
        for some in pages.chunks(PAGES) {
            let record = |(at, page): &(usize, &[Notice])| {
                let key = key(at + 1);
                let record = self.0.sealer.seal(&key, page)?;
                Ok((key, record, until))
            };
            self.0.store.post(&some.iter().map(record).collect::<Result<Vec<_>, InDoubt>>()?).await?;
        }
        // Last: where it stands, so do they.
        let record = self.0.sealer.seal(&key(0), &heading)?;
        self.0.store.post(&[(key(0), record, until)]).await
    }

    /// What one of these brokers answered to a nonce on that run of the store; `None`: none did so far.
    ///
    /// # Errors
    /// When the store is in doubt, or an answer is not whole.
    pub async fn answer_to(&self, nonce: &str, brokers: &[BrokerName], run: &str) -> Result<Option<Account>, InDoubt> {
        let key = |broker: &BrokerName, page| Key::Answer(nonce.to_owned(), broker.clone(), page);
        let headings: Vec<_> = brokers.iter().map(|broker| key(broker, 0)).collect();
        for ((broker, key_of), record) in brokers.iter().zip(&headings).zip(self.0.store.read(&headings).await?) {
            let Some(record) = record else { continue };
            let heading: Heading = self.0.sealer.open_of_any_generation(key_of, &record)?;
            if heading.run != run {
                continue;
            }
            let pages: Vec<_> = (1..=heading.pages).map(|page| key(broker, page)).collect();
            let mut notices = Vec::new();
            for some in pages.chunks(PAGES) {
                for (key, record) in some.iter().zip(self.0.store.read(some).await?) {
                    let record = record.ok_or_else(short)?;
                    notices.extend(self.0.sealer.open_of_any_generation::<Vec<Notice>>(key, &record)?);
                }
            }
            return Ok(Some(Account { notices, covers: heading.covers }));
        }
        Ok(None)
    }
}
