//! Finding what an id or a name belongs to, for whoever has nothing else: a `jti` out of a service's log, the serial of a certificate,
//! a task, a SPIFFE ID, the uid of a pod, the id of a request.
//!
//! Tasks and leases come from the store, and so from all brokers: the newest [`MOST_TASKS`] tasks at least, as long as the store keeps
//! them. What this broker's log says comes beside it, newest first, and is all there is about what is over and about requests. The
//! answer says how far both were looked at.

use std::{collections::HashMap, ops::ControlFlow};

use super::{
    Broker, Request, in_doubt,
    sight::{Gone, Look, Patience, Place, Sight},
    whose::{Facts, Said, Whose, actor, parsed, task_of, text},
};
use crate::{
    audit::{Chapter, Reader},
    clock::Time,
    error::Error,
    id::{LeaseId, SpiffeId, TaskId},
    lease::{AnyLease, Held},
    party::Act,
    task::State,
};

/// How many tasks of the store are looked at, and in how large steps.
const MOST_TASKS: usize = 5_000;
const STEP: usize = 200;
/// How many octets of the log are looked at in one call, if there is time; the segment that is begun is looked at whole.
const MOST_OCTETS: usize = 256 << 20;
/// The longest query: a SPIFFE ID of 2048 octets.
const LONGEST: usize = 2048;

/// What is looked for, by what its form can be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    text: String,
    names: Vec<Name>,
}

/// Something that can be looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Name {
    /// A task; where it was named by its SPIFFE ID, of this workload.
    Task(TaskId, Option<SpiffeId>),
    Workload(SpiffeId),
    Lease(LeaseId),
    Request,
    Instance,
}

/// As what something was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// By the id or the SPIFFE ID of the task.
    Task,
    /// By the SPIFFE ID of the workload.
    Workload,
    /// By the `jti` or the serial.
    Lease,
    /// By the id of a request.
    Request,
    /// By the instance of a workload, or a part of it.
    Instance,
}

/// Something that was found: a task, as far as there is one.
#[derive(Debug)]
pub struct Match {
    /// As what.
    pub kind: Kind,
    /// The task.
    pub task: Option<TaskId>,
    /// Whose it is; of what is about no task, who did it.
    pub workload: Option<String>,
    /// Which one of it.
    pub instance: Option<String>,
    /// Who is accountable.
    pub owner: Option<String>,
    /// How the task stands; `None` where the store holds it no more.
    pub state: Option<State>,
    /// The credential, where one was looked for.
    pub lease: Option<FoundLease>,
    /// What this broker's log says of it.
    pub records: Option<Mentions>,
}

/// A credential that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundLease {
    /// Its id.
    pub id: LeaseId,
    /// Its audience.
    pub resource: Option<String>,
    /// Its privilege.
    pub privilege: Option<String>,
    /// Its expiry.
    pub expires_at: Option<Time>,
    /// Since when it is revoked by itself, if it is.
    pub revoked_at: Option<Time>,
}

/// Records that say something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mentions {
    /// How many, as far as was looked.
    pub count: u64,
    /// The first of them.
    pub first: Mention,
    /// The last of them.
    pub last: Mention,
}

/// A record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mention {
    /// Its number.
    pub sequence: u64,
    /// When.
    pub time: Time,
    /// What.
    pub event: String,
}

/// What was found, and where it was looked for.
#[derive(Debug)]
pub struct Found {
    /// What was found.
    pub matches: Vec<Match>,
    /// How many tasks of the store were looked at that the caller sees; `None` where none had to be.
    pub tasks: Option<usize>,
    /// Whether those were all.
    pub all_tasks: bool,
    /// Which log was looked at.
    pub log: String,
    /// The first of its records that was looked at, and the last; `None` where there was none.
    pub records: Option<(u64, u64)>,
    /// Where to go on with what is older; `None` where the log was looked at to its beginning.
    pub next: Option<Place>,
}

impl Query {
    /// Reads a query.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] for what can be none, and for a token: nobody sends one to be found.
    pub fn parse(query: &str) -> Result<Self, Error> {
        let whole = |names| Self { text: query.to_owned(), names };
        if query.is_empty() || query.len() > LONGEST || query.chars().any(char::is_control) {
            return Err(Error::invalid("`q` is 1 to 2048 octets without control characters"));
        }
        if looks_like_a_token(query) {
            return Err(Error::invalid("`q` looks like a token, which is a secret: look for its `jti`"));
        }
        let unfit = |why: crate::id::Malformed| Error::invalid(why.to_string());
        if query.starts_with("task_") {
            return Ok(whole(vec![Name::Task(query.parse().map_err(unfit)?, None)]));
        }
        if query.starts_with("spiffe://") {
            let id: SpiffeId = query.parse().map_err(unfit)?;
            let of_task = query
                .rsplit_once("/task/")
                .and_then(|(workload, task)| Some(Name::Task(task.parse().ok()?, Some(workload.parse().ok()?))));
            return Ok(whole(vec![of_task.unwrap_or(Name::Workload(id))]));
        }
        // As it is shown by most programs.
        let serial = query.replace(':', "").to_ascii_lowercase();
        let mut names: Vec<_> = serial.parse().ok().map(Name::Lease).into_iter().collect();
        if query.len() == 32 && query.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase()) {
            names.push(Name::Request);
        }
        names.push(Name::Instance);
        Ok(whole(names))
    }

    /// The task that is looked for, if it is one.
    fn task(&self) -> Option<&TaskId> {
        self.names.iter().find_map(|name| if let Name::Task(task, _) = name { Some(task) } else { None })
    }

    /// The workload that the SPIFFE ID of a task names.
    fn named_workload(&self) -> Option<&SpiffeId> {
        self.names.iter().find_map(|name| if let Name::Task(_, workload) = name { workload.as_ref() } else { None })
    }

    /// What every record holds that can fit, as it stands in a line; none where that is not plain.
    fn needles(&self) -> Vec<String> {
        let written = |name: &Name| match name {
            Name::Task(task, _) => task.to_string(),
            Name::Lease(lease) => lease.to_string(),
            Name::Workload(_) | Name::Request | Name::Instance => {
                serde_json::to_string(&self.text).unwrap_or_default().trim_matches('"').to_owned()
            }
        };
        if self.text.is_ascii() { self.names.iter().map(written).collect() } else { Vec::new() }
    }

    /// As what a record fits.
    fn fits(&self, said: &Said) -> Option<Kind> {
        self.names.iter().find_map(|name| match name {
            // That somebody looked for it before says nothing of it.
            Name::Task(task, _) => {
                let found = text(said, "task") == Some(task.as_str()) && text(said, "at") != Some("search");
                found.then_some(Kind::Task)
            }
            Name::Workload(workload) => (actor(said, "workload") == Some(workload.as_str())).then_some(Kind::Workload),
            Name::Lease(lease) => ["lease", "serial"]
                .iter()
                .any(|member| text(said, member) == Some(lease.as_str()))
                .then_some(Kind::Lease),
            Name::Request => (text(said, "request") == Some(&self.text)).then_some(Kind::Request),
            Name::Instance => {
                actor(said, "instance").is_some_and(|instance| is_of(&self.text, instance)).then_some(Kind::Instance)
            }
        })
    }

    /// As what a task of the store fits.
    fn fits_task(&self, held: &Held) -> Option<Kind> {
        self.names.iter().find_map(|name| match name {
            Name::Workload(workload) => (held.task.workload == *workload).then_some(Kind::Workload),
            Name::Instance => is_of(&self.text, &held.task.instance).then_some(Kind::Instance),
            Name::Task(..) | Name::Lease(_) | Name::Request => None,
        })
    }
}

/// Three parts in base64url, as in a JWT.
fn looks_like_a_token(text: &str) -> bool {
    let parts: Vec<_> = text.split('.').collect();
    let is_base64url = |part: &&str| part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    parts.len() == 3 && parts[0].starts_with("ey") && parts.iter().all(is_base64url)
}

/// Whether `part` is an instance, or what an instance is composed of: the uid in `pod:UID`, the run in `RUN.ATTEMPT`.
fn is_of(part: &str, instance: &str) -> bool {
    instance == part || instance.split([':', '.', '/']).any(|own| own == part)
}

impl Match {
    fn of(kind: Kind, held: &Held, now: Time) -> Self {
        Self {
            state: Some(held.state(now)),
            ..Self::by(kind, Some(held.task.id.clone()), Some(Facts::from(&*held.task)))
        }
    }

    fn by(kind: Kind, task: Option<TaskId>, facts: Option<Facts>) -> Self {
        let (workload, instance, owner) = facts
            .map(|facts| (facts.workload, facts.instance, facts.owner))
            .map_or_else(Default::default, |(w, i, o)| (Some(w), Some(i), Some(o)));
        Self { kind, task, workload, instance, owner, state: None, lease: None, records: None }
    }
}

impl From<&AnyLease> for FoundLease {
    fn from(lease: &AnyLease) -> Self {
        match lease {
            AnyLease::Token(lease) => Self {
                id: lease.id.clone(),
                resource: Some(lease.resource.to_string()),
                privilege: Some(lease.privilege.to_string()),
                expires_at: Some(lease.expires_at),
                revoked_at: None,
            },
            AnyLease::Certificate(lease) => Self {
                id: lease.id.clone(),
                resource: None,
                privilege: None,
                expires_at: Some(lease.expires_at),
                revoked_at: None,
            },
        }
    }
}

impl Broker {
    /// Finds what an id or a name belongs to: anything for an operator, their owners' tasks for whoever acts for owners. With
    /// `before`, only in the log, before that record. `of`: the task that a credential is said to be of.
    ///
    /// # Errors
    /// [`Error::EvidenceInvalid`], [`Error::PolicyDenied`], [`Error::QuotaExceeded`], [`Error::Unavailable`].
    pub async fn search(
        &self,
        request: (Request, Gone),
        query: &Query,
        of: Option<&TaskId>,
        before: Option<&Place>,
        limit: usize,
    ) -> Result<Found, Error> {
        let before = self.in_own_log(before)?;
        let look = self.look(request, query.task(), (Act::Search, "search")).await?;
        let (mut matches, tasks, all_tasks) = match before {
            None => {
                let found = self.find_in_store(query, of, &look, limit).await?;
                self.still_vouched().await?;
                found
            }
            Some(_) => (Vec::new(), None, true),
        };
        let (reader, ledger, query) = (self.parts.audit.reader(), self.parts.ledger.clone(), query.clone());
        let log = reader.log().to_owned();
        let Look { sight, patience, seat: _seat } = look;
        let read = self.readers.read(&patience, move |patience| {
            let whose = Whose::new(ledger, reader.clone());
            InLog { query, sight, whose, groups: HashMap::new(), limit, dropped: 0 }.look(&reader, before, patience)
        });
        let (from_log, records, next) = read.await?;
        for mut found in from_log {
            patience.still_waits()?;
            let known = matches.iter_mut().find(|other| found.task.is_some() && other.task == found.task);
            if let Some(known) = known {
                known.records = found.records;
                known.lease = known.lease.take().or(found.lease);
                continue;
            }
            if let Some(task) = &found.task
                && let Some(held) = self.parts.ledger.task(task).await.map_err(|why| in_doubt(&why))?
            {
                found.state = Some(held.state(self.now()));
            }
            matches.push(found);
        }
        // As long as it has not expired, every broker knows that.
        for lease in matches.iter_mut().filter_map(|found| found.lease.as_mut()) {
            lease.revoked_at = self.revocations.lease_ended_at(&lease.id);
        }
        let next = next.map(|sequence| Place { log: log.clone(), sequence });
        Ok(Found { matches, tasks, all_tasks, log, records, next })
    }

    async fn find_in_store(
        &self,
        query: &Query,
        of: Option<&TaskId>,
        Look { sight, patience, .. }: &Look,
        limit: usize,
    ) -> Result<(Vec<Match>, Option<usize>, bool), Error> {
        let (ledger, now) = (&self.parts.ledger, self.now());
        let shown = |held: &Held| sight.shows(Some(&held.task.owner));
        let task = async |id: &TaskId| ledger.task(id).await.map_err(|why| in_doubt(&why));
        let lease = query.names.iter().find_map(|name| if let Name::Lease(id) = name { Some(id) } else { None });
        let of_lease = async |lease: &LeaseId, tasks: &[TaskId]| {
            let Some(lease) = ledger.lease_of(lease, tasks).await.map_err(|why| in_doubt(&why))? else {
                return Ok(None);
            };
            let held = task(lease.task()).await?;
            // Another's is looked for to the end, as one that is nowhere.
            if !sight.shows(held.as_ref().map(|held| &*held.task.owner)) {
                return Ok(None);
            }
            let found = held.map(|held| Match { lease: Some((&lease).into()), ..Match::of(Kind::Lease, &held, now) });
            Ok::<_, Error>(Some(found))
        };
        if let Some(Name::Task(id, workload)) = query.names.first() {
            let held = task(id).await?.filter(|held| shown(held));
            let held = held.filter(|held| workload.as_ref().is_none_or(|workload| *workload == held.task.workload));
            return Ok((held.map(|held| Match::of(Kind::Task, &held, now)).into_iter().collect(), None, true));
        }
        if let (Some(lease), Some(of)) = (lease, of)
            && let Some(found) = of_lease(lease, std::slice::from_ref(of)).await?
        {
            return Ok((found.into_iter().collect(), None, true));
        }
        let (mut matches, mut before, mut looked_at, mut gone_through) = (Vec::new(), None, 0, 0);
        while gone_through < MOST_TASKS && (gone_through == 0 || !patience.is_over()) {
            let (page, next) = ledger.tasks(before.as_ref(), STEP).await.map_err(|why| in_doubt(&why))?;
            gone_through += STEP;
            // How many others there are is not told.
            looked_at += page.iter().filter(|held| shown(held)).count();
            if let Some(lease) = lease {
                let ids: Vec<_> = page.iter().map(|held| held.task.id.clone()).collect();
                if let Some(found) = of_lease(lease, &ids).await? {
                    return Ok((found.into_iter().collect(), Some(looked_at), true));
                }
            }
            for held in page.iter().filter(|held| shown(held)) {
                let Some(kind) = query.fits_task(held) else { continue };
                if matches.len() == limit {
                    return Ok((matches, Some(looked_at), false));
                }
                matches.push(Match::of(kind, held, now));
            }
            before = next;
            if before.is_none() {
                return Ok((matches, Some(looked_at), true));
            }
        }
        Ok((matches, Some(looked_at), false))
    }
}

/// The way through the log.
struct InLog {
    query: Query,
    sight: Sight,
    whose: Whose,
    groups: HashMap<(Kind, Option<TaskId>), Match>,
    limit: usize,
    /// The last record of what there was no room for; 0 where there was room for all.
    dropped: u64,
}

/// What was found in the log, which records were looked at, and before which to go on.
type FromLog = (Vec<Match>, Option<(u64, u64)>, Option<u64>);

impl InLog {
    fn look(mut self, reader: &Reader, before: Option<u64>, patience: &Patience) -> std::io::Result<FromLog> {
        let chapters = reader.chapters()?;
        let needles = self.query.needles();
        let mut looked_at = None::<(u64, u64)>;
        let (mut octets, mut next) = (0, None);
        for chapter in chapters.iter().rev().filter(|chapter| before.is_none_or(|before| chapter.first() < before)) {
            // One that is begun is looked at whole: what is found in it is told in its order.
            let is_over = octets > 0 && patience.is_over();
            if octets > MOST_OCTETS || self.dropped > 0 || is_over {
                // Everything from here on is older.
                next = looked_at.map(|(first, _)| first);
                break;
            }
            self.segment((reader, patience), chapter, before, &needles, (&mut octets, &mut looked_at))?;
        }
        self.drop_oldest(self.limit);
        if self.dropped > 0 {
            next = Some(self.dropped + 1);
        }
        let mut matches: Vec<_> = self.groups.into_values().collect();
        matches.sort_by_key(|found| std::cmp::Reverse(last_of(found)));
        Ok((matches, looked_at, next))
    }

    fn segment(
        &mut self,
        (reader, patience): (&Reader, &Patience),
        chapter: &Chapter,
        before: Option<u64>,
        needles: &[String],
        (octets, looked_at): (&mut usize, &mut Option<(u64, u64)>),
    ) -> std::io::Result<()> {
        let done = reader.read(chapter, |sequence, line| {
            if patience.is_gone() || before.is_some_and(|before| sequence >= before) {
                return ControlFlow::Break(());
            }
            *octets += line.len();
            let (first, last) = looked_at.unwrap_or((sequence, sequence));
            *looked_at = Some((first.min(sequence), last.max(sequence)));
            if (needles.is_empty() || needles.iter().any(|needle| line.contains(needle.as_str())))
                && let Some(said) = parsed(line)
            {
                self.take(sequence, &said);
            }
            ControlFlow::Continue(())
        });
        done.map(drop)
    }

    fn take(&mut self, sequence: u64, said: &Said) {
        self.whose.note(said);
        let Some(kind) = self.query.fits(said) else { return };
        let task = task_of(said);
        let facts = task.as_ref().and_then(|task| self.whose.of(task));
        let named = self.query.named_workload().map(SpiffeId::as_str);
        if named.is_some_and(|named| facts.as_ref().is_some_and(|facts| facts.workload != named)) {
            return;
        }
        if !self.sight.shows(facts.as_ref().map(|facts| facts.owner.as_str())) {
            return;
        }
        let time = text(said, "time").and_then(|time| time.parse().ok());
        let (Some(time), Some(event)) = (time, text(said, "event")) else { return };
        let mention = Mention { sequence, time, event: event.to_owned() };
        let found = self.groups.entry((kind, task.clone())).or_insert_with(|| {
            let mut found = Match::by(kind, task, facts);
            // Who did it, where no declaration says whose it is.
            found.workload = found.workload.take().or_else(|| actor(said, "workload").map(str::to_owned));
            found.instance = found.instance.take().or_else(|| actor(said, "instance").map(str::to_owned));
            found
        });
        if kind == Kind::Lease && (found.lease.is_none() || event.ends_with("_minted")) {
            found.lease = lease_of(said).or(found.lease.take());
        }
        match &mut found.records {
            // Segments are looked at from the newest on, each in order.
            Some(Mentions { count, first, last }) => {
                *count += 1;
                if sequence < first.sequence {
                    *first = mention;
                } else if sequence > last.sequence {
                    *last = mention;
                }
            }
            None => found.records = Some(Mentions { count: 1, first: mention.clone(), last: mention }),
        }
        if self.groups.len() > 4 * self.limit {
            self.drop_oldest(self.limit);
        }
    }

    /// Makes room: what was last told of longest ago goes, and can be asked for next.
    fn drop_oldest(&mut self, most: usize) {
        if self.groups.len() <= most {
            return;
        }
        let mut lasts: Vec<_> = self.groups.values().map(last_of).collect();
        lasts.sort_unstable_by_key(|last| std::cmp::Reverse(*last));
        let newest = lasts.get(most).copied().unwrap_or_default();
        self.dropped = self.dropped.max(newest);
        self.groups.retain(|_, found| last_of(found) > newest);
    }
}

fn last_of(found: &Match) -> u64 {
    found.records.as_ref().map_or(0, |records| records.last.sequence)
}

/// The credential that a record is about.
fn lease_of(said: &Said) -> Option<FoundLease> {
    let id = text(said, "lease").or_else(|| text(said, "serial"))?.parse().ok()?;
    let owned = |member| text(said, member).map(str::to_owned);
    let minted = text(said, "event").is_some_and(|event| event.ends_with("_minted") || event == "task_token_issued");
    let expires_at = text(said, "expires_at").filter(|_| minted).and_then(|time| time.parse().ok());
    Some(FoundLease { id, resource: owned("resource"), privilege: owned("privilege"), expires_at, revoked_at: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TASK: &str = "task_01jd0000000000000000000000";

    fn names(query: &str) -> Vec<Name> {
        Query::parse(query).unwrap().names
    }

    #[test]
    fn a_query_is_what_its_form_says() {
        let (task, hex) = (TASK.parse::<TaskId>().unwrap(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(names(TASK), [Name::Task(task.clone(), None)]);
        let workload: SpiffeId = "spiffe://example.com/ci/acme".parse().unwrap();
        assert_eq!(names(workload.as_str()), [Name::Workload(workload.clone())]);
        assert_eq!(names(workload.of_task(&task).as_str()), [Name::Task(task, Some(workload))]);
        assert_eq!(names(hex), [Name::Lease(hex.parse().unwrap()), Name::Request, Name::Instance]);
        let serial = format!("01{}", "0a".repeat(19));
        let shown = serial
            .to_ascii_uppercase()
            .as_bytes()
            .chunks(2)
            .map(|pair| str::from_utf8(pair).unwrap())
            .collect::<Vec<_>>()
            .join(":");
        for serial_as_shown in [&serial, &shown, &serial.to_ascii_uppercase()] {
            assert_eq!(names(serial_as_shown)[0], Name::Lease(serial.parse().unwrap()));
        }
        assert_eq!(names("3b241101-e2bb-4255-8caf-4136c566a962"), [Name::Instance]);
    }

    #[test]
    fn what_can_be_nothing_is_refused_and_a_token_above_all() {
        let long = "x".repeat(2049);
        for bad in [
            "",
            "task_1",
            "spiffe://",
            "spiffe://e.org/a/../b",
            "a\nb",
            "\u{1b}[2J",
            &long,
            "eyJhbGciOiJFUzI1NiJ9.eyJqdGkiOiIxIn0.c2ln",
        ] {
            assert!(matches!(Query::parse(bad), Err(Error::InvalidRequest { .. })), "{bad}");
        }
    }

    #[test]
    fn an_instance_is_found_by_its_parts() {
        assert!(
            is_of("u-1", "pod:u-1")
                && is_of("1234", "1234.2")
                && is_of("1234.2", "1234.2")
                && is_of("b", "container:a/b")
        );
        assert!(!is_of("123", "1234.2") && !is_of("", "pod:u-1"));
    }
}
