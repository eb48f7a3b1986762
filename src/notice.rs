//! Notices: what is dead or locked out, as brokers keep it in their journals and tell each other through the store's log. A verifier hears of
//! each as one entry of the feed ([`crate::claims::RevocationEntry`]).

use chrono::TimeDelta;
use serde::{Deserialize, Serialize};

use crate::{
    claims::{Lock, NumericDate, RevocationEntry, Revoked},
    clock::Time,
    id::{LeaseId, LockId, TaskId},
    task::{End, State},
};

/// A notice: from this alone the store can be told again of what it has lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct Notice {
    /// What it is about.
    pub subject: Subject,
    /// Since when; of a lock, since when it stands as it does: verifiers go by the later of two, so no change is earlier than what it changes.
    pub at: Time,
    /// Until when this broker goes by it, by when the last credential has expired that it can concern; of a lock, until when it stands.
    pub until: Time,
    /// The words of whoever decided it; of a lock, of whoever set it.
    pub reason: Option<String>,
    /// Who that is.
    pub by: String,
    /// The broker that recorded it.
    pub broker: String,
}

/// What a notice is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// A task has ended, with everything below it.
    Task {
        /// Which one.
        task: TaskId,
        /// How: [`State::Completed`] or [`State::Revoked`].
        state: State,
        /// Whether the store may record it though it has never seen the task.
        unseen: bool,
        /// When all its credentials have expired, where its declaration says so: verifiers need not be told for longer.
        over_by: Option<Time>,
        /// How long each of them lived at most, in seconds, where its declaration says so.
        credentials_live: Option<u32>,
        /// Who revoked it though its own instance had completed it.
        overruled: Option<Box<Overruled>>,
    },
    /// One credential is dead.
    Lease {
        /// Its `jti` or serial.
        lease: LeaseId,
        /// The task it belongs to.
        task: TaskId,
    },
    /// Everything that was signed with the key of this id is dead.
    Key(String),
    /// What a lock keeps out.
    Lock(Box<LockState>),
}

/// A revoke of a task that its own instance had completed. Nothing lives by that any less; but who is told of revokes alone has not heard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Overruled {
    /// When.
    pub at: Time,
    /// The words of whoever revoked it.
    pub reason: Option<String>,
    /// Who that is: not its holder.
    pub by: String,
    /// The broker that recorded it.
    pub broker: String,
}

/// A lock as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockState {
    /// The lock, as verifiers read it.
    pub lock: Lock,
    /// When it was set.
    pub set_at: Time,
    /// Counts what was changed of it: of two states the one with the higher one stands.
    pub revision: u64,
    /// How it was released, if it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<Release>,
}

/// The end of a lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// When.
    pub at: Time,
    /// The words of whoever released it.
    pub reason: Option<String>,
    /// Who released it.
    pub by: String,
}

/// The id of what a notice is about: there is one notice for each.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SubjectId {
    /// A task.
    Task(TaskId),
    /// A credential.
    Lease(LeaseId),
    /// A key.
    Key(String),
    /// A lock.
    Lock(LockId),
}

impl Subject {
    /// What it is about.
    #[must_use]
    pub fn id(&self) -> SubjectId {
        match self {
            Subject::Task { task, .. } => SubjectId::Task(task.clone()),
            Subject::Lease { lease, .. } => SubjectId::Lease(lease.clone()),
            Subject::Key(kid) => SubjectId::Key(kid.clone()),
            Subject::Lock(state) => SubjectId::Lock(state.lock.id.clone()),
        }
    }

    /// The one task that it concerns, if it is one.
    #[must_use]
    pub fn task(&self) -> Option<&TaskId> {
        match self {
            Subject::Task { task, .. } | Subject::Lease { task, .. } => Some(task),
            Subject::Key(_) | Subject::Lock(_) => None,
        }
    }
}

impl LockState {
    /// Whether it stands where the other one did: nothing brings back what was released.
    #[must_use]
    pub fn follows(&self, other: &Self) -> bool {
        !other.lock.released && (self.lock.released || self.revision > other.revision)
    }
}

impl Notice {
    /// That a task has ended, whose credentials have all expired at `until`, and at `over_by` where it is known.
    #[must_use]
    pub fn of_end(end: End, (until, over_by): (Time, Option<Time>), unseen: bool, broker: String) -> Self {
        let End { task, state, at, reason, by } = end;
        let subject = Subject::Task { task, state, unseen, over_by, credentials_live: None, overruled: None };
        Self { subject, at, until, reason, by, broker }
    }

    /// The same of a task whose credentials each live for so many seconds at most, where that is known.
    #[must_use]
    pub fn of_short_lived(mut self, seconds: Option<u32>) -> Self {
        if let Subject::Task { credentials_live, .. } = &mut self.subject {
            *credentials_live = seconds;
        }
        self
    }

    /// The same, of which verifiers have to know no longer than until then.
    #[must_use]
    pub fn mattering_until(mut self, until: Time) -> Self {
        if let Subject::Task { over_by, .. } = &mut self.subject {
            *over_by = Some(over_by.map_or(until, |over_by| over_by.min(until)));
        }
        self
    }

    /// How long each credential that it concerns lived at most, where it is the end of a task and that is known.
    #[must_use]
    pub fn credentials_live(&self) -> Option<TimeDelta> {
        let Subject::Task { credentials_live, .. } = &self.subject else { return None };
        credentials_live.map(|seconds| TimeDelta::seconds(seconds.into()))
    }

    /// Until when verifiers have to know of it, whenever it was that the store took it.
    #[must_use]
    pub fn matters_until(&self) -> Time {
        let over_by = match &self.subject {
            Subject::Task { over_by, .. } => over_by.unwrap_or(self.until).min(self.until),
            Subject::Lease { .. } | Subject::Key(_) | Subject::Lock(_) => self.until,
        };
        over_by.max(self.at)
    }

    /// The end of the task that it is about, if it is about one.
    #[must_use]
    pub fn end(&self) -> Option<End> {
        let Subject::Task { task, state, .. } = &self.subject else { return None };
        let (task, reason, by) = (task.clone(), self.reason.clone(), self.by.clone());
        Some(End { task, state: *state, at: self.at, reason, by })
    }

    /// The revoke of the task that it is about, where its own instance had completed it; and the broker that recorded it.
    #[must_use]
    pub fn overruling(&self) -> Option<(End, &str)> {
        let Subject::Task { task, overruled: Some(overruled), .. } = &self.subject else { return None };
        let Overruled { at, reason, by, broker } = &**overruled;
        let (task, state, reason, by) = (task.clone(), State::Revoked, reason.clone(), by.clone());
        Some((End { task, state, at: *at, reason, by }, broker))
    }

    /// The same revoke, where this is one, and `standing` says that somebody else had completed the task, whose credentials may still live.
    fn overrules(&self, standing: &Self) -> Option<Box<Overruled>> {
        match (&self.subject, &standing.subject) {
            (Subject::Task { state: State::Completed, overruled, .. }, _) => overruled.clone(),
            (Subject::Task { state: State::Revoked, .. }, _)
                if self.by != standing.by && self.at <= standing.matters_until() =>
            {
                let Self { at, reason, by, broker, .. } = self.clone();
                Some(Box::new(Overruled { at, reason, by, broker }))
            }
            _ => None,
        }
    }

    /// Whether it takes the place of the other one, which is about the same: a lock changes, and a task that was completed can be revoked.
    /// Of all else the first notice stands.
    #[must_use]
    pub fn follows(&self, other: &Self) -> bool {
        match (&self.subject, &other.subject) {
            (Subject::Lock(state), Subject::Lock(standing)) => state.follows(standing),
            (
                Subject::Task { state: State::Completed, overruled: Some(_), .. },
                Subject::Task { state: State::Completed, overruled: None, .. },
            ) => true,
            _ => false,
        }
    }

    /// What stands when there comes another one about the same. What does not change matters for as long as either says.
    #[must_use]
    pub fn united(self, other: Self) -> Self {
        if matches!(self.subject, Subject::Lock(_)) && other.follows(&self) {
            return other;
        }
        let revoke = other.overrules(&self);
        let until = if matches!(self.subject, Subject::Lock(_)) { self.until } else { self.until.max(other.until) };
        let subject = match (self.subject, other.subject) {
            // Where one of them does not know, nobody does.
            (
                Subject::Task { task, state, unseen, over_by, credentials_live, overruled },
                Subject::Task { over_by: other, credentials_live: others, .. },
            ) => {
                let over_by = over_by.zip(other).map(|(one, other)| one.max(other));
                let credentials_live = credentials_live.zip(others).map(|(one, other)| one.max(other));
                let overruled = overruled.or(revoke.filter(|_| state == State::Completed));
                Subject::Task { task, state, unseen, over_by, credentials_live, overruled }
            }
            (subject, _) => subject,
        };
        Self { subject, until, ..self }
    }

    /// What verifiers are told; `None` where a time cannot be said to them.
    #[must_use]
    pub fn entry(&self) -> Option<RevocationEntry> {
        let what = match &self.subject {
            Subject::Task { task, .. } => Revoked::Task(task.clone()),
            Subject::Lease { lease, .. } => Revoked::Lease(lease.clone()),
            Subject::Key(kid) => Revoked::Key(kid.clone()),
            Subject::Lock(state) => Revoked::Lock(state.lock.clone()),
        };
        let (at, until) = (NumericDate::of(self.at)?, NumericDate::of(self.matters_until())?);
        Some(RevocationEntry { what, at, until })
    }
}

/// A notice as it is written. That of a task has a form of its own, which is older than the others.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Task(WrittenEnd),
    Other(Box<WrittenOther>),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenEnd {
    end: End,
    until: Time,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    over_by: Option<Time>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    credentials_live: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    overruled: Option<Box<Overruled>>,
    broker: String,
    unseen: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenOther {
    about: WrittenSubject,
    at: Time,
    until: Time,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    by: String,
    broker: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum WrittenSubject {
    Lease { id: LeaseId, task: TaskId },
    Key(String),
    Lock(Box<LockState>),
}

impl From<Notice> for Written {
    fn from(notice: Notice) -> Self {
        let Notice { subject, at, until, reason, by, broker } = notice;
        let about = match subject {
            Subject::Task { task, state, unseen, over_by, credentials_live, overruled } => {
                let end = End { task, state, at, reason, by };
                return Self::Task(WrittenEnd { end, until, over_by, credentials_live, overruled, broker, unseen });
            }
            Subject::Lease { lease, task } => WrittenSubject::Lease { id: lease, task },
            Subject::Key(kid) => WrittenSubject::Key(kid),
            Subject::Lock(state) => WrittenSubject::Lock(state),
        };
        Self::Other(Box::new(WrittenOther { about, at, until, reason, by, broker }))
    }
}

impl TryFrom<Written> for Notice {
    type Error = &'static str;
    fn try_from(written: Written) -> Result<Self, &'static str> {
        let WrittenOther { about, at, until, reason, by, broker } = match written {
            Written::Task(WrittenEnd { overruled: Some(_), end: End { state: State::Revoked, .. }, .. }) => {
                return Err("what was revoked is not revoked again");
            }
            Written::Task(WrittenEnd { end, until, over_by, credentials_live, overruled: by, broker, unseen }) => {
                let mut notice = Self::of_end(end, (until, over_by), unseen, broker).of_short_lived(credentials_live);
                if let Subject::Task { overruled, .. } = &mut notice.subject {
                    *overruled = by;
                }
                return Ok(notice);
            }
            Written::Other(other) => *other,
        };
        let subject = match about {
            WrittenSubject::Lease { id, task } => Subject::Lease { lease: id, task },
            WrittenSubject::Key(kid) if kid.is_empty() => return Err("a key has an id"),
            WrittenSubject::Key(kid) => Subject::Key(kid),
            WrittenSubject::Lock(state) if state.lock.released != state.release.is_some() => {
                return Err("whether a lock was released is said once");
            }
            WrittenSubject::Lock(state) => Subject::Lock(state),
        };
        Ok(Self { subject, at, until, reason, by, broker })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::json;

    /// A lock on everybody.
    pub(crate) fn lock(id: &LockId, revision: u64, released: bool, at: Time, until: Time) -> Notice {
        let mut lock = json!({"id": id, "match": {"all": true}});
        if released {
            lock["released"] = json!(true);
        }
        let lock = serde_json::from_value(lock).unwrap();
        let release = released.then(|| Release { at, reason: None, by: "bob".into() });
        let subject = Subject::Lock(Box::new(LockState { lock, set_at: at, revision, release }));
        Notice { subject, at, until, reason: Some("r".into()), by: "alice".into(), broker: "broker_a".into() }
    }

    fn at(second: u32) -> Time {
        format!("2026-11-20T10:00:{second:02}Z").parse().unwrap()
    }

    #[test]
    fn the_end_of_a_task_is_written_as_it_always_was() {
        let written = json!({"end": {"task": "task_01jd0000000000000000000000", "state": "revoked",
            "at": "2026-11-20T10:00:00Z", "reason": "gone", "by": "alice"},
            "until": "2026-11-20T11:00:00Z", "broker": "broker_a", "unseen": true});
        let notice: Notice = serde_json::from_value(written.clone()).unwrap();
        assert!(matches!(&notice.subject, Subject::Task { state: State::Revoked, unseen: true, .. }));
        assert_eq!(serde_json::to_value(&notice).unwrap(), written);
        assert_eq!(notice.end().unwrap().reason.as_deref(), Some("gone"));
    }

    #[test]
    fn an_end_is_told_until_all_is_over_and_for_longer_where_nobody_knows() {
        let end = |over_by| {
            let task: TaskId = "task_01jd0000000000000000000000".parse().unwrap();
            let end = End { task, state: State::Revoked, at: at(10), reason: None, by: "alice".into() };
            Notice::of_end(end, (at(50), over_by), false, "broker_a".into())
        };
        let told = |notice: Notice| notice.matters_until();
        assert_eq!(
            [None, Some(at(20)), Some(at(55)), Some(at(5))].map(|by| told(end(by))),
            [at(50), at(20), at(50), at(10)]
        );
        assert_eq!(told(end(Some(at(20))).united(end(Some(at(30))))), at(30));
        assert_eq!(told(end(Some(at(20))).united(end(None))), at(50));
        assert_eq!(told(end(None).united(end(Some(at(20))))), at(50));
        let text = serde_json::to_string(&end(Some(at(20)))).unwrap();
        assert_eq!(serde_json::from_str::<Notice>(&text).unwrap(), end(Some(at(20))));
        let short = |seconds| end(None).of_short_lived(seconds);
        let united = |one, other| short(one).united(short(other)).credentials_live().map(|life| life.num_seconds());
        assert_eq!([united(Some(5), Some(7)), united(Some(5), None), united(None, Some(7))], [Some(7), None, None]);
        assert_eq!([at(20), at(55)].map(|until| told(end(Some(at(30))).mattering_until(until))), [at(20), at(30)]);
    }

    #[test]
    fn whoever_completed_a_task_can_be_overruled_once_by_somebody_else() {
        let task: TaskId = "task_01jd0000000000000000000000".parse().unwrap();
        let said = |state, second, by: &str| {
            let end = End { task: task.clone(), state, at: at(second), reason: None, by: by.into() };
            Notice::of_end(end, (at(50), None), false, format!("broker_{by}"))
        };
        let (done, revoked) = (said(State::Completed, 1, "agent"), said(State::Revoked, 2, "rita"));
        let united = done.clone().united(revoked.clone());
        let (end, broker) = united.overruling().unwrap();
        assert_eq!((end.state, end.at, &*end.by, broker), (State::Revoked, at(2), "rita", "broker_rita"));
        // The task stays completed, and whoever comes later adds nothing.
        assert_eq!((united.end(), united.follows(&done)), (done.end(), true));
        let again = united.clone().united(said(State::Revoked, 3, "bob"));
        assert_eq!((&again, again.follows(&united)), (&united, false));
        assert_eq!(
            (united.clone().united(done.clone()), done.clone().united(united.clone())),
            (united.clone(), united)
        );
        // Its holder said nothing new, and of what is long over nobody has to hear.
        for nothing in
            [said(State::Revoked, 2, "agent"), said(State::Revoked, 51, "rita"), said(State::Completed, 2, "rita")]
        {
            assert!(done.clone().united(nothing).overruling().is_none());
        }
        assert!(revoked.united(done).overruling().is_none());
    }

    #[test]
    fn every_kind_is_read_as_it_was_written_and_told_as_one_entry() {
        let lease: LeaseId = "0123456789abcdef0123456789abcdef".parse().unwrap();
        let task: TaskId = "task_01jd0000000000000000000000".parse().unwrap();
        let id = LockId::new(at(0)).unwrap();
        let as_lock = |released| lock(&id, 1, released, at(0), at(9)).subject;
        for (subject, kind) in [
            (
                Subject::Task {
                    task: task.clone(),
                    state: State::Completed,
                    unseen: false,
                    over_by: Some(at(9)),
                    credentials_live: Some(9),
                    overruled: Some(Box::new(Overruled {
                        at: at(3),
                        reason: None,
                        by: "rita".into(),
                        broker: "b".into(),
                    })),
                },
                "task",
            ),
            (Subject::Lease { lease, task }, "lease"),
            (Subject::Key("k".into()), "key"),
            (as_lock(false), "lock"),
            (as_lock(true), "lock"),
        ] {
            let (by, broker) = ("alice".to_owned(), "broker_a".to_owned());
            let notice = Notice { subject, at: at(0), until: at(9), reason: None, by, broker };
            let text = serde_json::to_string(&notice).unwrap();
            assert_eq!(serde_json::from_str::<Notice>(&text).unwrap(), notice, "{text}");
            let entry = serde_json::to_value(notice.entry().unwrap()).unwrap();
            assert!(entry.get(kind).is_some() && entry["at"] == 1_795_168_800 && entry["until"] == 1_795_168_809);
            serde_json::from_value::<RevocationEntry>(entry).unwrap();
        }
    }

    #[test]
    fn what_is_not_understood_is_no_notice() {
        let common = json!({"at": "2026-11-20T10:00:00Z", "until": "2026-11-20T11:00:00Z", "by": "a", "broker": "b"});
        let lock = json!({"id": "lock_01jd0000000000000000000000", "match": {"all": true}, "released": true});
        for about in [
            json!({"key": ""}),
            json!({"lease": {"id": "no", "task": "task_01jd0000000000000000000000"}}),
            json!({"lock": {"lock": lock, "set_at": "2026-11-20T10:00:00Z", "revision": 1}}),
            json!({"lock": {"lock": lock, "revision": 1, "release": null}}),
            json!({"tree": "t"}),
            json!({"key": "k", "tree": "t"}),
        ] {
            let mut written = common.clone();
            written["about"] = about;
            assert!(serde_json::from_value::<Notice>(written.clone()).is_err(), "{written}");
        }
    }

    #[test]
    fn of_two_states_of_a_lock_the_later_stands_and_released_is_for_good() {
        let id = LockId::new(at(0)).unwrap();
        let state = |revision, released| lock(&id, revision, released, at(0), at(9));
        assert!(state(2, false).follows(&state(1, false)));
        assert!(!state(1, false).follows(&state(1, false)) && !state(1, false).follows(&state(2, false)));
        assert!(state(1, true).follows(&state(2, false)) && !state(3, false).follows(&state(1, true)));
        assert!(!state(3, true).follows(&state(1, true)), "how it was released first stands");
    }
}
