//! What one receiver is still to be told. A receiver of Shared Signals: in order, the next one once the one before is settled. A webhook: of
//! each task in order, and of all tasks side by side, those first that it was not told of yet: one that fails keeps no other sandbox
//! from being taken down. One that has heard and is not done is asked again later.

use std::{
    collections::{HashSet, VecDeque},
    fs::File,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::watch;

use super::{
    Receiver, Sort,
    outbox::{Done, Fate, Outbox},
    token::jti,
};
use crate::{
    clock::{Time, after},
    id::{TaskId, random},
    notice::Notice,
    own_dir,
    task::{End, State as How},
};

/// How long after the first failure it is tried again; twice as long after each that follows, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How often a webhook that has heard is asked whether it is done, at first.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// How many verifications may be under way.
const VERIFICATIONS: usize = 4;

/// A receiver, what it was told, and what it is to be told.
#[derive(Debug)]
pub struct Stream {
    receiver: Receiver,
    outbox: Outbox,
    state: Mutex<State>,
    news: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    /// Up to which number the ends were taken from the set.
    read: u64,
    queue: VecDeque<Item>,
}

/// Something that a receiver is to be told.
#[derive(Debug, Clone)]
pub struct Item {
    /// What.
    pub what: What,
    /// Its `jti`.
    pub jti: String,
    /// When it happened.
    pub since: Time,
    /// How often it was tried.
    pub attempts: u32,
    /// Not before then.
    due: Option<Instant>,
    /// Whether a webhook has heard of it, and is not done.
    pub heard: bool,
}

/// What there is to tell.
#[derive(Debug, Clone)]
pub enum What {
    /// That a task ended.
    End(Box<End>),
    /// That what it is told arrives, with the state that it gave.
    Verify(Option<String>),
}

/// What is to be done next.
#[derive(Debug)]
pub enum Next {
    /// To tell it of this.
    Tell(Item),
    /// To give this up.
    GiveUp(Item),
    /// Nothing for so long; `None`: until there is something new.
    Wait(Option<Duration>),
}

/// Opens the files of receivers in `dir`, which is theirs as long as the lock is kept. `known` has ended already.
///
/// # Errors
/// A sentence that says what to change.
pub fn open(
    receivers: Vec<Receiver>,
    dir: &Path,
    known: &[(TaskId, How)],
    now: Time,
) -> Result<(Option<File>, Vec<Stream>), String> {
    if receivers.is_empty() {
        return Ok((None, Vec::new()));
    }
    let lock = own_dir::take(dir, "what receivers were told")?;
    let stream = |receiver: Receiver| {
        let outbox = Outbox::open(dir, receiver.name(), known, now)?;
        Ok(Stream { receiver, outbox, state: Mutex::default(), news: watch::Sender::default() })
    };
    let streams = receivers.into_iter().map(stream).collect::<std::io::Result<_>>();
    let failed = |error| format!("what receivers were told, in {}, cannot be opened: {error}", dir.display());
    streams.map(|streams| (Some(lock), streams)).map_err(failed)
}

impl State {
    /// What waits for nothing but its time.
    fn in_turn(&self, sort: Sort) -> Vec<&Item> {
        if sort == Sort::Caep {
            return self.queue.front().into_iter().collect();
        }
        let (mut in_turn, mut waited_for) = (Vec::new(), HashSet::new());
        for item in &self.queue {
            let is_first = match &item.what {
                What::End(end) => item.heard || waited_for.insert(&end.task),
                What::Verify(_) => true,
            };
            in_turn.extend(is_first.then_some(item));
        }
        in_turn
    }
}

impl Stream {
    /// Whose it is.
    #[must_use]
    pub fn receiver(&self) -> &Receiver {
        &self.receiver
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Up to which number the ends were taken.
    #[must_use]
    pub fn read(&self) -> u64 {
        self.lock().read
    }

    /// Takes what ended after the number `after`, up to `last`, as the broker `own`. Nothing, where that was taken meanwhile.
    pub fn take(&self, notices: &[Notice], (after, last): (u64, u64), own: &str) {
        let ends =
            |notice| Notice::end(notice).map(|end| (end, &*notice.broker)).into_iter().chain(notice.overruling());
        let news = |(end, broker): (End, &str)| {
            let hears = self.receiver.hears_of(&end, broker == own);
            (hears && self.outbox.get(&end.task, end.state).is_none()).then(|| self.item(end))
        };
        let mut new: Vec<Item> = notices.iter().flat_map(ends).filter_map(news).collect();
        let mut state = self.lock();
        if state.read != after {
            return;
        }
        // Of what was completed, and then revoked, the one may be waiting already.
        let waiting: HashSet<&str> = state.queue.iter().map(|item| &*item.jti).collect();
        new.retain(|item| !waiting.contains(&*item.jti));
        if after == 0 {
            // Out of a journal that was written anew they come in any order.
            new.sort_by_key(|item| item.since);
        }
        state.queue.extend(new);
        state.read = last;
    }

    fn item(&self, end: End) -> Item {
        let since = end.at;
        // What was completed can be revoked, which is something else to hear of.
        let completed = if end.state == How::Completed { " completed" } else { "" };
        let jti = jti(self.receiver.name(), &format!("{}{completed}", end.task));
        Item { what: What::End(Box::new(end)), jti, since, attempts: 0, due: None, heard: false }
    }

    /// Puts a verification behind what is to be told; not where there are several already.
    pub fn verify(&self, state: Option<String>, now: Time) -> bool {
        let Ok(id) = random::<16>() else { return false };
        let mut queue = self.lock();
        if queue.queue.iter().filter(|item| matches!(item.what, What::Verify(_))).count() >= VERIFICATIONS {
            return false;
        }
        let jti = jti(self.receiver.name(), &crate::id::hex(&id));
        queue.queue.push_back(Item {
            what: What::Verify(state),
            jti,
            since: now,
            attempts: 0,
            due: None,
            heard: false,
        });
        drop(queue);
        self.news.send_replace(());
        true
    }

    /// Changes whenever there is a verification to tell of.
    #[must_use]
    pub fn news(&self) -> watch::Receiver<()> {
        self.news.subscribe()
    }

    /// What is to be done next.
    #[must_use]
    pub fn next(&self, now: Time, at: Instant) -> Next {
        let state = self.lock();
        if let Some(item) = state.queue.iter().find(|item| self.is_over(item, now)) {
            return Next::GiveUp(item.clone());
        }
        if self.receiver.polls() {
            return Next::Wait(None);
        }
        let in_turn = state.in_turn(self.receiver.sort());
        let due = in_turn.iter().filter(|item| item.due.is_none_or(|due| due <= at));
        if let Some(item) = due.min_by_key(|item| (item.attempts > 0, item.due)) {
            return Next::Tell((*item).clone());
        }
        let soonest = in_turn.iter().filter_map(|item| item.due).min();
        Next::Wait(soonest.map(|due| due.saturating_duration_since(at)))
    }

    fn is_over(&self, item: &Item, now: Time) -> bool {
        after(item.since, self.receiver.give_up_after()).is_none_or(|end| now >= end)
    }

    /// The first so many of what is to be told, and whether there is more.
    #[must_use]
    pub fn first(&self, most: usize) -> (Vec<Item>, bool) {
        let state = self.lock();
        (state.queue.iter().take(most).cloned().collect(), state.queue.len() > most)
    }

    /// What is to be told under this id.
    #[must_use]
    pub fn find(&self, jti: &str) -> Option<Item> {
        self.lock().queue.iter().find(|item| item.jti == jti).cloned()
    }

    /// It did not work: it is tried again. How often it was tried by now.
    pub fn failed(&self, jti: &str, at: Instant) -> u32 {
        let mut state = self.lock();
        let Some(item) = state.queue.iter_mut().find(|item| item.jti == jti) else { return 0 };
        item.attempts = item.attempts.saturating_add(1);
        item.due = Some(at + pause(FIRST_PAUSE, item.attempts));
        item.attempts
    }

    /// The broker itself was not able to: it is tried again soon.
    pub fn postpone(&self, jti: &str, at: Instant) {
        if let Some(item) = self.lock().queue.iter_mut().find(|item| item.jti == jti) {
            item.due = Some(at + FIRST_PAUSE);
        }
    }

    /// A webhook has heard: it is asked again whether it is done. How often it was asked by now.
    pub fn heard(&self, jti: &str, at: Instant) -> u32 {
        let mut state = self.lock();
        let Some(item) = state.queue.iter_mut().find(|item| item.jti == jti) else { return 0 };
        item.attempts = item.attempts.saturating_add(1);
        (item.heard, item.due) = (true, Some(at + pause(ASK_AGAIN, item.attempts)));
        item.attempts
    }

    /// There is no more to tell of this. Returns once that is on disk, where it is to be; a disk that does not take it is no
    /// reason to tell it again now.
    pub async fn settle(&self, item: &Item, fate: Fate, now: Time) {
        self.lock().queue.retain(|other| other.jti != item.jti);
        if let What::End(end) = &item.what {
            let done = Done { task: end.task.clone(), state: Some(end.state), fate, at: now };
            if let Err(error) = self.outbox.note(done).await {
                tracing::error!(receiver = self.receiver.name(), %error, "what a receiver was told is not on disk: a broker that dies tells it again");
            }
        }
    }

    /// What became of telling it that a task ended like this.
    #[must_use]
    pub fn done(&self, task: &TaskId, how: How) -> Option<Done> {
        self.outbox.get(task, how)
    }

    /// Whether it is still to be told that a task ended like this, and whether it has heard.
    #[must_use]
    pub fn pending(&self, task: &TaskId, how: How) -> Option<bool> {
        let state = self.lock();
        let is = |item: &&Item| matches!(&item.what, What::End(end) if end.task == *task && end.state == how);
        state.queue.iter().find(is).map(|item| item.heard)
    }

    /// How much there is to tell, and since when.
    #[must_use]
    pub fn backlog(&self) -> (usize, Option<Time>) {
        let state = self.lock();
        (state.queue.len(), state.queue.iter().map(|item| item.since).min())
    }

    /// Forgets what it was told of tasks for which `still` says no.
    pub fn forget(&self, still: impl Fn(&TaskId) -> bool) {
        self.outbox.forget(still);
    }
}

/// Twice as long each time, and somewhat more or less than that, so that those who failed together do not come again together.
fn pause(first: Duration, attempts: u32) -> Duration {
    let longest = first.saturating_mul(1 << attempts.saturating_sub(1).min(16)).min(LONGEST_PAUSE);
    let [chance] = random::<1>().unwrap_or_default();
    longest.mul_f64(0.75 + f64::from(chance) / 512.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{signal::ReceiverConfig, task::State as Ended};

    fn now() -> Time {
        "2026-11-20T10:00:00Z".parse().unwrap()
    }

    fn notice(broker: &str, state: Ended, at: Time) -> Notice {
        let end = End { task: TaskId::root(at).unwrap(), state, at, reason: None, by: "rita".into() };
        Notice::of_end(end, (at + chrono::TimeDelta::days(1), None), false, broker.into())
    }

    fn stream(dir: &Path, toml: &str) -> Stream {
        let config: ReceiverConfig = toml::from_str(&format!("name = 'r'\naudience = 'a'\n{toml}")).unwrap();
        let receivers = Receiver::build(&[config], &[]).unwrap();
        open(receivers, dir, &[], now()).unwrap().1.remove(0)
    }

    fn told(next: Next) -> Item {
        let Next::Tell(item) = next else { panic!("{next:?}") };
        item
    }

    #[tokio::test]
    async fn each_is_told_in_order_and_the_next_once_it_is_settled() {
        let dir = tempfile::tempdir().unwrap();
        let stream = stream(dir.path(), "type = 'caep'\nurl = 'https://a/'");
        let (first, second) = (notice("me", Ended::Revoked, now()), notice("me", Ended::Revoked, now()));
        let others = [notice("other", Ended::Revoked, now()), notice("me", Ended::Completed, now())];
        stream.take(&[vec![first.clone()], others.to_vec(), vec![second.clone()]].concat(), (0, 4), "me");
        stream.take(std::slice::from_ref(&first), (0, 4), "me");
        let at = Instant::now();
        let item = told(stream.next(now(), at));
        assert_eq!(stream.failed(&item.jti, at), 1);
        assert!(matches!(stream.next(now(), at), Next::Wait(Some(wait)) if wait < Duration::from_secs(1)));
        let item = told(stream.next(now(), at + Duration::from_secs(1)));
        assert!(matches!(&item.what, What::End(end) if Some(&**end) == first.end().as_ref()) && item.attempts == 1);
        stream.settle(&item, Fate::Delivered, now()).await;
        let item = told(stream.next(now(), at));
        assert!(matches!(&item.what, What::End(end) if Some(&**end) == second.end().as_ref()));
        assert!(matches!(stream.next(now() + chrono::TimeDelta::days(1), at), Next::GiveUp(_)));
        stream.settle(&item, Fate::Expired, now()).await;
        assert!(matches!(stream.next(now(), at), Next::Wait(None)));
        assert_eq!(stream.done(&second.end().unwrap().task, Ended::Revoked).unwrap().fate, Fate::Expired);
    }

    #[tokio::test]
    async fn what_a_webhook_fails_keeps_no_other_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let stream = stream(dir.path(), "type = 'webhook'\nurl = 'https://a/'");
        let notices: Vec<_> = (0..3).map(|_| notice("me", Ended::Completed, now())).collect();
        let end = notices[0].end().unwrap();
        let revoked = End { state: Ended::Revoked, by: "bob".into(), ..end.clone() };
        let revoked = Notice::of_end(revoked, (notices[0].until, None), false, "me".into());
        let both = notices[0].clone().united(revoked);
        stream.take(&[&[both][..], &notices[1..]].concat(), (0, 3), "me");
        let (at, later) = (Instant::now(), Instant::now() + Duration::from_secs(5));
        let is = |item: &Item, notice: &Notice| matches!(&item.what, What::End(end) if Some(&**end) == notice.end().as_ref());
        let failing = told(stream.next(now(), at));
        assert!(is(&failing, &notices[0]));
        stream.failed(&failing.jti, at);
        for notice in &notices[1..] {
            let item = told(stream.next(now(), later));
            assert!(is(&item, notice), "what was not tried yet comes first");
            stream.settle(&item, Fate::Confirmed, now()).await;
        }
        // That it was revoked waits for that it was completed.
        assert!(matches!(stream.next(now(), at), Next::Wait(Some(_))));
        assert_eq!(told(stream.next(now(), later)).jti, failing.jti);
        stream.heard(&failing.jti, at);
        let item = told(stream.next(now(), at));
        assert!(matches!(&item.what, What::End(said) if said.state == Ended::Revoked && said.task == end.task));
    }

    #[tokio::test]
    async fn what_was_completed_and_then_revoked_is_told_as_both_once() {
        let dir = tempfile::tempdir().unwrap();
        let stream = stream(dir.path(), "type = 'webhook'\nurl = 'https://a/'");
        let done = notice("me", Ended::Completed, now());
        let revoked = End { state: Ended::Revoked, by: "bob".into(), ..done.end().unwrap() };
        let both = done.clone().united(Notice::of_end(revoked.clone(), (done.until, None), false, "me".into()));
        stream.take(&[done], (0, 1), "me");
        stream.take(std::slice::from_ref(&both), (1, 2), "me");
        assert_eq!(stream.backlog().0, 2);
        let at = Instant::now();
        let (first, second) = (told(stream.next(now(), at)), stream.first(2).0.remove(1));
        assert!(first.jti != second.jti && matches!(&second.what, What::End(end) if **end == revoked));
        for item in [&first, &second] {
            stream.settle(item, Fate::Confirmed, now()).await;
        }
        stream.take(&[both], (2, 3), "me");
        assert_eq!(stream.backlog().0, 0);
    }

    #[tokio::test]
    async fn a_webhook_that_has_heard_keeps_no_other_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let stream = stream(dir.path(), "type = 'webhook'\nurl = 'https://a/'");
        assert_eq!(stream.receiver().sort(), Sort::Webhook);
        let (first, second) = (notice("me", Ended::Revoked, now()), notice("me", Ended::Completed, now()));
        stream.take(&[first.clone(), second.clone()], (0, 2), "me");
        let at = Instant::now();
        let item = told(stream.next(now(), at));
        stream.heard(&item.jti, at);
        assert_eq!(stream.pending(&first.end().unwrap().task, Ended::Revoked), Some(true));
        let next = told(stream.next(now(), at));
        assert!(matches!(&next.what, What::End(end) if Some(&**end) == second.end().as_ref()));
        // Of what was tried before, that which has waited for longest.
        assert_eq!(stream.failed(&next.jti, at), 1);
        assert_eq!(told(stream.next(now(), at + Duration::from_secs(10))).jti, next.jti);
        assert_eq!(stream.failed(&next.jti, at + Duration::from_secs(10)), 2);
        let again = told(stream.next(now(), at + Duration::from_secs(10)));
        assert_eq!(again.jti, item.jti);
        stream.settle(&again, Fate::Confirmed, now()).await;
        assert_eq!((stream.pending(&first.end().unwrap().task, Ended::Revoked), stream.backlog().0), (None, 1));
    }

    #[test]
    fn pauses_grow_and_have_a_bound() {
        assert!(pause(FIRST_PAUSE, 1) < Duration::from_secs(1));
        assert!((1..100).all(|attempts| pause(FIRST_PAUSE, attempts) <= LONGEST_PAUSE.mul_f64(1.25)));
        assert!(pause(FIRST_PAUSE, 20) >= LONGEST_PAUSE.mul_f64(0.7));
    }
}
