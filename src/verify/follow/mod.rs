//! The client of the feed: fetches keys, asks for a snapshot, reads the stream, and begins again when anything is wrong. What is wrong
//! never makes a verifier accept more: it goes stale, and denies.

mod connection;
mod events;
#[cfg(test)]
pub(crate) mod tests;

use std::{error::Error, fmt, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep, timeout};

use super::{Asked, Feed, Keys};
use crate::{clock::Moment, id::random};
use connection::{Connection, Session};

/// The first wait before another try, and the longest.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// A connection that held as long as this was a good one.
const HELD: Duration = Duration::from_secs(5);
/// Keys are fetched no sooner after they were, however many tokens come with unknown ones.
const BETWEEN_FETCHES: Duration = Duration::from_secs(10);
/// Keys that cannot be fetched again are believed no longer than this.
const BELIEVED: Duration = Duration::from_secs(24 * 3600);

/// Whose feed is followed, and as whom.
#[derive(Clone)]
pub struct FollowTerms {
    /// The issuer, as it stands in `iss`: where its brokers are reached.
    pub issuer: String,
    /// The token by which the brokers know this service, if they do: then they are told how far it is, and a revoke is reported effective as
    /// soon as every service has heard of it.
    pub service_token: Option<String>,
    /// The authorities, in PEM, that may vouch for the brokers' server certificates; without them, those of the machine.
    pub roots: Option<Vec<u8>>,
}

impl FollowTerms {
    /// The feed of an issuer, followed by nobody in particular.
    #[must_use]
    pub fn of(issuer: &str) -> Self {
        Self { issuer: issuer.to_owned(), service_token: None, roots: None }
    }
}

impl fmt::Debug for FollowTerms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FollowTerms").field("issuer", &self.issuer).finish_non_exhaustive()
    }
}

/// What is wrong with the connection, for logs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Trouble(String);

impl Trouble {
    fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }

    /// What a library says, down to its cause.
    fn of(error: &dyn Error) -> Self {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        Self(text)
    }
}

/// Keeps a [`Feed`] up to date, for as long as [`Follower::run`] runs.
///
/// ```no_run
/// use remit::{clock::Moment, verify::{FollowTerms, Follower, Verifier}};
/// # async fn serve() -> Result<(), Box<dyn std::error::Error>> {
/// let follower = Follower::new(&FollowTerms::of("https://broker.example.com"))?;
/// let feed = follower.feed();
/// let following = tokio::spawn(follower.run());
/// feed.ready().await;
///
/// let verifier = Verifier::following(feed, "https://git.example.com".parse()?);
/// # let token = "";
/// let verified = verifier.verify(token, &Moment::now())?;
/// println!("{} for {}", verified.claims().client_id, verified.claims().task.id);
/// # Ok(()) }
/// ```
pub struct Follower {
    feed: Arc<Feed>,
    connection: Connection,
    between_fetches: Duration,
}

impl Follower {
    /// One that follows nobody yet.
    ///
    /// # Errors
    /// When the issuer is no `https://` URL and not on this machine, or no HTTPS client can be made of the terms.
    pub fn new(terms: &FollowTerms) -> Result<Self, Trouble> {
        let feed = Arc::new(Feed::new(&terms.issuer));
        Ok(Self { feed, connection: Connection::new(terms)?, between_fetches: BETWEEN_FETCHES })
    }

    /// What it keeps up to date.
    #[must_use]
    pub fn feed(&self) -> Arc<Feed> {
        self.feed.clone()
    }

    /// Learns what is revoked now, and follows no further: for who has one credential to check. What is learnt is good for the feed's window.
    ///
    /// # Errors
    /// When keys or set are out of reach, or are none that can be believed.
    pub async fn learn(&self) -> Result<(), Trouble> {
        let (keys, _) = self.connection.keys().await?;
        self.feed.believe(keys);
        self.catch_up(&self.connection.session()?).await
    }

    /// Follows, and never ends. Dropped, it leaves verifiers that go stale and deny.
    pub async fn run(self) {
        let kept = self.fetch_keys().await;
        tokio::join!(self.keep_keys(kept), self.keep_states(), self.acknowledge());
    }

    async fn keep_keys(&self, mut kept: Duration) {
        loop {
            sleep(self.between_fetches).await;
            // Whoever asked meanwhile is served now.
            let _ = timeout(kept.saturating_sub(self.between_fetches), self.feed.keys_wanted()).await;
            kept = self.fetch_keys().await;
        }
    }

    /// Fetches the keys, as often as it takes. Answers how long they may be kept.
    async fn fetch_keys(&self) -> Duration {
        let (begun, mut wait) = (Instant::now(), FIRST_WAIT);
        loop {
            match self.connection.keys().await {
                Ok((keys, kept)) => {
                    self.feed.believe(keys);
                    return kept;
                }
                Err(why) => {
                    tracing::warn!(%why, "the broker's keys cannot be fetched");
                    if begun.elapsed() > BELIEVED {
                        self.feed.believe(Keys::default());
                    }
                    sleep(jittered(wait)).await;
                    wait = (wait * 2).min(LONGEST_WAIT);
                }
            }
        }
    }

    async fn keep_states(&self) {
        let mut wait = FIRST_WAIT;
        loop {
            let begun = Instant::now();
            let why = match self.follow().await {
                Ok(never) => match never {},
                Err(why) => why,
            };
            self.feed.disconnected();
            if begun.elapsed() >= HELD {
                wait = FIRST_WAIT;
            }
            tracing::warn!(%why, "the revocation feed is interrupted");
            sleep(jittered(wait)).await;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    /// One connection, to its end.
    async fn follow(&self) -> Result<std::convert::Infallible, Trouble> {
        let session = self.connection.session()?;
        self.catch_up(&session).await?;
        let mut stream = session.stream(self.feed.last_event_id().as_deref()).await?;
        tracing::info!("the revocation feed is followed");
        loop {
            // What says nothing new in time is as good as dead, even where it says something.
            let left = self.feed.fresh_for(&Moment::now());
            let state = tokio::select! {
                state = timeout(left, stream.next()) => state.map_err(|_| Trouble::new("the feed has fallen silent"))??,
                () = self.feed.snapshot_wanted() => return Err(Trouble::new("a token is of a later generation")),
            };
            self.feed.pushed(&state, &Moment::now()).map_err(|why| {
                self.feed.want_keys();
                Trouble::of(&why)
            })?;
        }
    }

    /// Asks for all that is revoked.
    async fn catch_up(&self, session: &Session<'_>) -> Result<(), Trouble> {
        let asked = Asked::new(Moment::now()).map_err(|why| Trouble::of(&why))?;
        let snapshot = session.snapshot(&asked, self.feed.witness().as_deref()).await?;
        self.feed.answered(&snapshot, &asked, &Moment::now()).map_err(|why| {
            // The broker may have a new key.
            self.feed.want_keys();
            Trouble::of(&why)
        })
    }

    async fn acknowledge(&self) {
        if !self.connection.is_known() {
            return;
        }
        let (mut taken, mut told, mut wait) = (self.feed.taken(), None, FIRST_WAIT);
        loop {
            let position = self.feed.position();
            if position == told {
                // The feed lives as long as we do.
                let _ = taken.changed().await;
                continue;
            }
            taken.mark_unchanged();
            let Some(reached) = position.clone() else { continue };
            match self.connection.acknowledge(reached).await {
                Ok(()) => (told, wait) = (position, FIRST_WAIT),
                Err(why) => {
                    tracing::warn!(%why, "the broker cannot be told how far the revocation feed was followed");
                    sleep(jittered(wait)).await;
                    wait = (wait * 2).min(LONGEST_WAIT);
                }
            }
        }
    }
}

/// Half of it to all of it: who was cut off with thousands of others does not come back with them.
fn jittered(wait: Duration) -> Duration {
    let share = random::<2>().map_or(u16::MAX, u16::from_be_bytes);
    wait / 2 + wait / 2 * u32::from(share) / u32::from(u16::MAX)
}
