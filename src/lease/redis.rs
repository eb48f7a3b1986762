//! Leases in Redis: one multiplexed connection, one script to mint, one to renew, one to amend, and four to end.

mod connect;
mod hints;

use ::redis::{
    Cmd, ErrorKind, FromRedisValue, Pipeline, RedisResult, Script, ServerErrorKind, aio::ConnectionManager, cmd, pipe,
};
use chrono::{DateTime, TimeDelta};
use std::{sync::Arc, time::Duration};
use tokio::sync::broadcast;

use super::{
    Amending, Answer, Called, Calling, Claim, Ended, Ending, Hint, InDoubt, Index, Key, LOGGED_HOURS, Logging, Mint,
    Minted, Renewed, Renewing, Sealed, Standing, Store, TIMELINE, TIMELINE_FIRST, Tally, Telling,
    ledger::{LEASE_KEPT, certificate_ends, placed_of},
    record::tree,
};
use crate::{
    clock::{Clock, Time},
    id::{BrokerName, LeaseId, TaskId},
    task::{STATUS_LIST_ENTRIES, StatusIndex},
};
use connect::within;
use hints::Hints;

/// How long is waited for replicas at most: less than for any answer.
const REPLICAS: Duration = Duration::from_millis(1500);

/// How old the id of a task must be before its name may be dropped from the index, in hours.
const LISTED_HOURS: i64 = 48;
/// How old the id of a task must be before its name is dropped from the index unasked, in hours. An id may be remembered for 24 h
/// before its task is declared, which may live for 24 h and is kept for another 24 h; the rest is for clocks that differ.
const FORGOTTEN_HOURS: i64 = 96;
/// How long what an end took with it is kept where the end did not say so itself, in hours: longer than any end.
const NOTED_HOURS: i64 = 72;

/// The store in a Redis.
pub(super) struct RedisStore {
    connection: ConnectionManager,
    /// Of its own, because waiting for replicas holds up all that comes after it.
    witness: ConnectionManager,
    clock: Arc<dyn Clock>,
    bury: Script,
    mint: Script,
    renew: Script,
    amend: Script,
    amend_urgently: Script,
    end: Script,
    confirm: Script,
    hints: Hints,
    mark: Script,
    tell: Script,
    log: Script,
}

impl RedisStore {
    /// Whether `url` is one that leases can be trusted to, as far as it shows.
    ///
    /// # Errors
    /// A sentence that says what to change.
    pub(super) fn check_url(url: &str) -> Result<(), String> {
        connect::parse(url).map(drop)
    }

    /// Connects to `url`; `strict` where a configuration file asks for it.
    ///
    /// # Errors
    /// A sentence that says what to change about a Redis that could forget or be overheard.
    pub(super) async fn open(url: &str, clock: Arc<dyn Clock>, strict: bool) -> Result<Self, InDoubt> {
        let connection = connect::connect(url, strict).await?;
        let witness = connect::again(url).await?;
        let hints = Hints::listen(url).await;
        let mint = Script::new(include_str!("redis/mint.lua"));
        let renew = Script::new(include_str!("redis/renew.lua"));
        let amend = Script::new(include_str!("redis/amend.lua"));
        let amend_urgently =
            Script::new(&include_str!("redis/amend.lua").replacen("#!lua", "#!lua flags=allow-oom", 1));
        let end = Script::new(include_str!("redis/end.lua"));
        let confirm = Script::new(include_str!("redis/confirm.lua"));
        let mark = Script::new(include_str!("redis/mark.lua"));
        let tell = Script::new(include_str!("redis/tell.lua"));
        let log = Script::new(include_str!("redis/log.lua"));
        let bury = Script::new(include_str!("redis/bury.lua"));
        Ok(Self {
            connection,
            witness,
            clock,
            bury,
            mint,
            renew,
            amend,
            amend_urgently,
            end,
            confirm,
            hints,
            mark,
            tell,
            log,
        })
    }

    /// A root id of `hours` ago, for comparison with others.
    fn hours_ago(&self, hours: i64) -> Option<TaskId> {
        TaskId::root(self.clock.now().checked_sub_signed(TimeDelta::hours(hours))?).ok()
    }

    /// What the name of every certificate starts after that may still be in use somewhere.
    fn unlisted_before(&self) -> String {
        certificate_ends(self.clock.now() - LEASE_KEPT)
    }

    /// What removes from the indexes that are added to what is long over: whoever adds sweeps.
    fn sweeps(&self, listed: &[(Index, String, Time)]) -> Vec<Cmd> {
        let sweep = |index, from: String, to: String| {
            let mut sweep = cmd("ZREMRANGEBYLEX");
            sweep.arg(index_name(index)).arg(from).arg(to);
            sweep
        };
        match listed.first() {
            Some((Index::Placed, name, _)) => {
                let forgotten = self.hours_ago(FORGOTTEN_HOURS).map(|id| ("-".to_owned(), format!("({id}")));
                let of_task = placed_of(name, self.clock.now() - LEASE_KEPT);
                let of_task = of_task.map(|names| (format!("[{}", names.start), format!("({}", names.end)));
                [forgotten, of_task].into_iter().flatten().map(|(from, to)| sweep(Index::Placed, from, to)).collect()
            }
            Some((index, ..)) => vec![sweep(*index, "-".to_owned(), format!("({}", self.unlisted_before()))],
            None => Vec::new(),
        }
    }

    /// As [`RedisStore::run_all`], where one command answers.
    async fn run<T: FromRedisValue>(&self, scripts: &[&Script], pipeline: &Pipeline) -> RedisResult<T> {
        self.run_all::<(T,)>(scripts, pipeline).await.map(|(answer,)| answer)
    }

    /// Sends `pipeline`, in which commands run `scripts`; loads those where Redis has forgotten one, and sends all of it again.
    async fn run_all<T: FromRedisValue>(&self, scripts: &[&Script], pipeline: &Pipeline) -> RedisResult<T> {
        let mut connection = self.connection.clone();
        let answer: RedisResult<T> = pipeline.query_async(&mut connection).await;
        match answer {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                for script in scripts {
                    script.load_async(&mut connection).await?;
                }
                pipeline.query_async::<T>(&mut connection).await
            }
            answer => answer,
        }
    }

    /// Which of `names`, older than [`LISTED_HOURS`] or no task ids at all, stand for nothing any more. A child's name stays as long as
    /// its root's record, because until then it may be about to be declared.
    async fn collected(&self, names: &[String]) -> Result<Vec<String>, InDoubt> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let mut exist = pipe();
        for name in names {
            match name.parse::<TaskId>() {
                Ok(id) => {
                    let root = id.lineage().next().unwrap_or_else(|| id.clone());
                    exist.cmd("EXISTS").arg(Key::Task(id).name()).arg(Key::Task(root).name());
                }
                // Not written by a broker.
                Err(_) => {
                    exist.cmd("EXISTS").arg("");
                }
            }
        }
        let mut connection = self.connection.clone();
        let counts: Vec<u64> = within(exist.query_async(&mut connection)).await?;
        let gone = names.iter().zip(counts).filter(|(_, count)| *count == 0).map(|(name, _)| name.clone());
        Ok(gone.collect())
    }
}

/// Where the timeline of a tree stands: its first records, and the newest.
fn timeline(tree: &TaskId) -> [String; 2] {
    let first = Key::Timeline(tree.clone()).name();
    let newest = format!("{first}:newest");
    [first, newest]
}

impl Store for RedisStore {
    fn read<'a>(&'a self, keys: &'a [Key]) -> Answer<'a, Vec<Option<String>>> {
        Box::pin(async move {
            if keys.is_empty() {
                return Ok(Vec::new());
            }
            let mut get = cmd("MGET");
            for key in keys {
                get.arg(key.name());
            }
            within(get.query_async(&mut self.connection.clone())).await
        })
    }

    fn claim<'a>(&'a self, claim: &'a Claim) -> Answer<'a, String> {
        Box::pin(async move {
            let mut pipeline = pipe();
            if let Some((index, name)) = &claim.index {
                pipeline.add_command(list_in(*index, name)).ignore();
            }
            let set = pipeline.cmd("SET").arg(claim.key.name()).arg(&claim.record.0).arg("NX").arg("GET");
            if let Some(until) = claim.keep_until {
                set.arg("EXAT").arg(until.timestamp());
            }
            // A Redis whose clock is far ahead forgets at once what it was to keep, and says that it was the first.
            pipeline.cmd("EXISTS").arg(claim.key.name());
            let (before, kept): (Option<String>, u64) =
                within(pipeline.query_async(&mut self.connection.clone())).await?;
            if kept == 0 {
                return Err(InDoubt("redis kept nothing of what it was given: its clock is ahead".into()));
            }
            Ok(before.unwrap_or_else(|| claim.record.0.clone()))
        })
    }

    fn bury<'a>(&'a self, key: &'a Key, record: &'a Sealed, keep_until: Time) -> Answer<'a, String> {
        Box::pin(async move {
            let mut command = script_command(&self.bury, &[key.name()]);
            command.arg(&record.0).arg(keep_until.timestamp());
            let mut pipeline = pipe();
            pipeline.add_command(command);
            within(self.run(&[&self.bury], &pipeline)).await
        })
    }

    fn mint<'a>(&'a self, mint: &'a Mint) -> Answer<'a, Minted> {
        Box::pin(async move {
            let mut pipeline = pipe();
            if mint.task.is_some() {
                // Who declares sweeps: nobody else has to come by for the index to stay as small as what it names.
                if let Some(cutoff) = self.hours_ago(FORGOTTEN_HOURS) {
                    let sweep = pipeline.cmd("ZREMRANGEBYLEX").arg(index_name(Index::Tasks));
                    sweep.arg("-").arg(format!("({cutoff}")).ignore();
                }
                // Listed first: a task that a crash left without its listing could not be found, and so not be revoked.
                pipeline.add_command(list_in(Index::Tasks, mint.id.as_str())).ignore();
            }
            // Listed first, too: what a crash left unlisted would be on no list once it is revoked.
            for sweep in self.sweeps(&mint.listed) {
                pipeline.add_command(sweep).ignore();
            }
            for (index, name, _) in &mint.listed {
                pipeline.add_command(list_in(*index, name)).ignore();
            }
            // One after the other on one connection, so Redis looks at the locks when the rest is done.
            pipeline.add_command(mint_command(&self.mint, mint)).cmd("GET").arg(Key::LocksChanged.name());
            let (mut answer, locks): (Vec<String>, _) = within(self.run_all(&[&self.mint], &pipeline)).await?;
            let records = answer.split_off(answer.len().min(1));
            match (answer.first().map(String::as_str), records.len()) {
                (Some("written"), _) => Ok(Minted::Written { lineage: records, locks }),
                (Some("exists"), _) => Ok(Minted::Exists),
                (Some("missing"), _) => Ok(Minted::Missing),
                (Some("ended"), 1) => Ok(Minted::Ended(records.concat())),
                _ => Err(unexpected()),
            }
        })
    }

    fn renew<'a>(&'a self, renewing: &'a Renewing) -> Answer<'a, Renewed> {
        Box::pin(async move {
            let id = &renewing.id;
            let mut keys: Vec<String> = id.lineage().map(|id| Key::End(id).name()).collect();
            keys.extend(id.lineage().map(|id| Key::Task(id).name()));
            keys.push(Key::Renewal(id.clone()).name());
            keys.extend(["tally", "tree"].map(|part| format!("{}:{part}", tree(id))));
            let mut command = script_command(&self.renew, &keys);
            command.arg(id.depth() + 1).arg(renewing.before.as_deref().unwrap_or_default());
            command.arg(&renewing.record.0).arg(renewing.keep_until.timestamp()).arg(hints::CHANNEL).arg(id.as_str());
            let mut pipeline = pipe();
            pipeline.add_command(command).cmd("GET").arg(Key::LocksChanged.name());
            let answer = within(self.run_all(&[&self.renew], &pipeline)).await?;
            let ((word, end), locks): ((String, Option<String>), _) = answer;
            match (word.as_str(), end) {
                ("written", None) => Ok(Renewed::Written(locks)),
                ("changed", None) => Ok(Renewed::Changed),
                ("missing", None) => Ok(Renewed::Missing),
                ("ended", Some(end)) => Ok(Renewed::Ended(end)),
                _ => Err(unexpected()),
            }
        })
    }

    fn amend<'a>(&'a self, amending: &'a Amending) -> Answer<'a, bool> {
        Box::pin(async move {
            let Amending { key, before, record, keep_until, urgent } = amending;
            let script = if *urgent { &self.amend_urgently } else { &self.amend };
            let mut command = script_command(script, &[key.name()]);
            command.arg(before.as_deref().unwrap_or_default()).arg(&record.0);
            command.arg(keep_until.map_or_else(String::new, |until| until.timestamp().to_string()));
            let mut pipeline = pipe();
            pipeline.add_command(command);
            within(self.run(&[script], &pipeline)).await
        })
    }

    fn end<'a>(&'a self, end: &'a Ending) -> Answer<'a, Option<Ended>> {
        Box::pin(async move {
            let lineage: Vec<TaskId> = end.id.lineage().collect();
            let mut keys: Vec<String> = lineage.iter().map(|id| Key::End(id.clone()).name()).collect();
            keys.push(Key::Task(end.id.clone()).name());
            keys.push(Key::Renewal(end.id.clone()).name());
            keys.extend(["tree", "tally", "ended"].map(|part| format!("{}:{part}", tree(&end.id))));
            let mut command = script_command(&self.end, &keys);
            for id in &lineage {
                command.arg(id.as_str());
            }
            command.arg(&end.end.0).arg(end.keep_until.timestamp()).arg(i32::from(end.unseen)).arg(hints::CHANNEL);
            let mut pipeline = pipe();
            let mut scripts = vec![&self.end];
            if let Some(StatusIndex { list, index }) = end.status {
                // First: whatever keeps the rest from happening, no verifier takes an ended task for one that lives.
                let mut mark = script_command(&self.mark, &[status_name(list)]);
                // Redis counts from the highest bit of an octet, status lists from the lowest.
                mark.arg(index ^ 7).arg(end.keep_until.timestamp());
                pipeline.add_command(mark).ignore();
                scripts.insert(0, &self.mark);
            }
            pipeline.add_command(command);
            let answer: Option<(String, String, Option<String>, Option<String>)> =
                within(self.run(&scripts, &pipeline)).await?;
            let Some((end, tally, task, renewal)) = answer else { return Ok(None) };
            // A counter that someone else has written to is no reason to doubt the end.
            Ok(Some(Ended { end, task, renewal, tally: parse_tally(&tally).unwrap_or_default() }))
        })
    }

    fn confirm<'a>(&'a self, id: &'a TaskId, at: Time) -> Answer<'a, Time> {
        Box::pin(async move {
            let mut command = script_command(&self.confirm, &[format!("{}:ended", tree(id))]);
            let keep_until = at.checked_add_signed(TimeDelta::hours(NOTED_HOURS)).unwrap_or(at);
            command.arg(format!("seen:{id}")).arg(at.timestamp_millis()).arg(keep_until.timestamp());
            let mut pipeline = pipe();
            pipeline.add_command(command);
            let noted: i64 = within(self.run(&[&self.confirm], &pipeline)).await?;
            DateTime::from_timestamp_millis(noted).ok_or_else(unexpected)
        })
    }

    fn changes(&self) -> broadcast::Receiver<Hint> {
        self.hints.changes()
    }

    fn count_tasks(&self, more: u64) -> Answer<'_, u64> {
        Box::pin(async move {
            let mut command = cmd("INCRBY");
            command.arg(COUNTED).arg(more);
            let counted: u64 = within(command.query_async(&mut self.connection.clone())).await?;
            counted.checked_sub(more).ok_or_else(unexpected)
        })
    }

    fn status_list(&self, list: u64) -> Answer<'_, Standing> {
        Box::pin(async move {
            // No MGET, which takes what is no string for what is not there; and one octet more than a list has shows that it is too
            // long, however long someone has made it.
            let mut pipeline = pipe();
            pipeline.cmd("GET").arg(COUNTED).cmd("GETRANGE").arg(status_name(list)).arg(0).arg(STATUS_LIST_ENTRIES / 8);
            let read = within(pipeline.query_async(&mut self.connection.clone())).await?;
            let (tasks, octets): (Option<u64>, Vec<u8>) = read;
            Ok(Standing { tasks: tasks.unwrap_or_default(), octets })
        })
    }

    fn call<'a>(&'a self, calling: &'a Calling) -> Answer<'a, Called> {
        Box::pin(async move {
            // What a connection waits for is what it has written itself, and with that all that was written before on any other.
            let connection = &mut self.witness.clone();
            let mut call = pipe();
            if !calling.gone.is_empty() {
                let gone: Vec<&str> = calling.gone.iter().map(BrokerName::as_str).collect();
                call.cmd("HDEL").arg(ROLL).arg(gone).ignore();
            }
            call.cmd("HGETALL").arg(ROLL);
            call.cmd("HSET").arg(ROLL).arg(calling.broker.as_str()).arg(&calling.record.0).ignore();
            call.cmd("INFO").arg("server").cmd("INFO").arg("replication");
            let (roll, server, replication): (Vec<(String, String)>, String, String) =
                within(call.query_async(connection)).await?;
            let called = Called { incarnation: incarnation(&server, &replication)?, roll: Some(roll) };
            if calling.hint {
                let mut publish = cmd("PUBLISH");
                publish.arg(hints::CHANNEL).arg(Hint::Wide.as_str());
                // A user that may not publish goes without, and is answered a little later.
                let _ = within(publish.query_async::<()>(connection)).await;
            }
            let Some(patience) = calling.patience else { return Ok(called) };
            match fact(&replication, "connected_slaves").and_then(|replicas| replicas.parse::<u32>().ok()) {
                None => return Err(InDoubt("redis does not say how many replicas it has".into())),
                Some(0) => return Ok(called),
                Some(_) => {}
            }
            let mut wait = cmd("WAIT");
            wait.arg(1).arg(u64::try_from(patience.min(REPLICAS).as_millis()).unwrap_or(1).max(1));
            let have: u32 = within(wait.query_async(connection)).await?;
            if have > 0 { Ok(called) } else { Err(InDoubt("redis: none of its replicas has what was written".into())) }
        })
    }

    fn post<'a>(&'a self, records: &'a [(Key, Sealed, Time)]) -> Answer<'a, ()> {
        Box::pin(async move {
            let mut pipeline = pipe();
            for (key, record, keep_until) in records {
                let set = pipeline.cmd("SET").arg(key.name()).arg(&record.0);
                set.arg("EXAT").arg(keep_until.timestamp()).ignore();
            }
            within(pipeline.query_async(&mut self.connection.clone())).await
        })
    }

    fn tell<'a>(&'a self, telling: &'a Telling) -> Answer<'a, ()> {
        Box::pin(async move {
            let mut command = script_command(&self.tell, &timeline(&telling.tree));
            command.arg(telling.keep_until.timestamp()).arg(TIMELINE_FIRST).arg(TIMELINE - TIMELINE_FIRST);
            for record in &telling.records {
                command.arg(&record.0);
            }
            let mut pipeline = pipe();
            pipeline.add_command(command);
            within(self.run(&[&self.tell], &pipeline)).await
        })
    }

    fn told<'a>(&'a self, id: &'a TaskId) -> Answer<'a, Vec<String>> {
        Box::pin(async move {
            let mut both = pipe();
            for list in timeline(id) {
                // No more than a timeline has, however many someone has put there.
                both.cmd("LRANGE").arg(list).arg(0).arg(TIMELINE - 1);
            }
            let (mut told, newest): (Vec<String>, Vec<String>) =
                within(both.query_async(&mut self.connection.clone())).await?;
            told.extend(newest);
            Ok(told)
        })
    }

    fn log<'a>(&'a self, logging: &'a Logging) -> Answer<'a, ()> {
        Box::pin(async move {
            let mut command = script_command(&self.log, &[Key::Log.name()]);
            command.arg(&logging.record.0).arg(TimeDelta::hours(LOGGED_HOURS).num_milliseconds());
            command.arg(hints::CHANNEL).arg(logging.hint.as_str());
            let mut pipeline = pipe();
            pipeline.add_command(command);
            within(self.run(&[&self.log], &pipeline)).await
        })
    }

    fn logged<'a>(&'a self, after: Option<&'a str>, limit: usize) -> Answer<'a, Vec<(String, String)>> {
        Box::pin(async move {
            let from = after.map_or_else(|| "-".to_owned(), |after| format!("({after}"));
            let mut range = cmd("XRANGE");
            range.arg(Key::Log.name()).arg(from).arg("+").arg("COUNT").arg(limit);
            let entries: Vec<(String, Vec<String>)> = within(range.query_async(&mut self.connection.clone())).await?;
            Ok(entries.into_iter().map(|(at, fields)| (at, fields.into_iter().nth(1).unwrap_or_default())).collect())
        })
    }

    fn incarnation(&self) -> Answer<'_, String> {
        Box::pin(async move {
            let mut info = pipe();
            info.cmd("INFO").arg("server").cmd("INFO").arg("replication");
            let (server, replication): (String, String) =
                within(info.query_async(&mut self.connection.clone())).await?;
            incarnation(&server, &replication)
        })
    }

    fn list<'a>(&'a self, index: Index, before: Option<&'a str>, limit: usize) -> Answer<'a, Vec<String>> {
        Box::pin(async move {
            let mut connection = self.connection.clone();
            let cutoff = self.hours_ago(LISTED_HOURS);
            let (mut listed, mut before) = (Vec::new(), before.map(str::to_owned));
            while listed.len() < limit {
                let wanted = limit - listed.len();
                let mut page = cmd("ZREVRANGEBYLEX");
                page.arg(index_name(index))
                    .arg(before.as_ref().map_or_else(|| "+".to_owned(), |name| format!("({name}")));
                page.arg("-").arg("LIMIT").arg(0).arg(wanted);
                let names: Vec<String> = within(page.query_async(&mut connection)).await?;
                let last_page = names.len() < wanted;
                before = names.last().cloned();
                let old = |name: &&String| {
                    name.parse::<TaskId>().map_or(true, |id| cutoff.as_ref().is_some_and(|cutoff| id < *cutoff))
                };
                let suspects: Vec<String> = match index {
                    Index::Tasks => names.iter().filter(old).cloned().collect(),
                    Index::Keys | Index::Certificates | Index::Taints | Index::Placed => Vec::new(),
                };
                let gone = self.collected(&suspects).await?;
                if !gone.is_empty() {
                    let mut remove = cmd("ZREM");
                    remove.arg(index_name(index)).arg(&gone);
                    within(remove.query_async::<()>(&mut connection)).await?;
                }
                listed.extend(names.into_iter().filter(|name| !gone.contains(name)));
                if last_page {
                    break;
                }
            }
            Ok(listed)
        })
    }
}

/// What the brokers say of themselves.
const ROLL: &str = "remit:members";
/// How many tasks were counted so far.
const COUNTED: &str = "remit:status-list:tasks";

/// What `INFO` says of something.
fn fact<'a>(info: &'a str, field: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).map(str::trim)
}

fn incarnation(server: &str, replication: &str) -> Result<String, InDoubt> {
    let of = |info, field| fact(info, field).ok_or_else(unexpected);
    Ok(format!("{} {}", of(server, "run_id")?, of(replication, "master_replid")?))
}

fn status_name(list: u64) -> String {
    format!("remit:status-list:{list}")
}

fn index_name(index: Index) -> &'static str {
    match index {
        Index::Tasks => "remit:tasks",
        Index::Keys => "remit:signing-keys",
        Index::Certificates => "remit:certificates",
        Index::Taints => "remit:taints",
        Index::Placed => "remit:placed",
    }
}

/// All have one score, so that Redis sorts them by name.
fn list_in(index: Index, name: &str) -> Cmd {
    let mut add = cmd("ZADD");
    add.arg(index_name(index)).arg(0).arg(name);
    add
}

fn script_command(script: &Script, keys: &[String]) -> Cmd {
    let mut command = cmd("EVALSHA");
    command.arg(script.get_hash()).arg(keys.len()).arg(keys);
    command
}

fn mint_command(script: &Script, mint: &Mint) -> Cmd {
    let lineage: Vec<TaskId> = mint.id.lineage().collect();
    let mut keys: Vec<String> = lineage.iter().map(|id| Key::End(id.clone()).name()).collect();
    keys.extend(lineage.iter().map(|id| Key::Task(id.clone()).name()));
    keys.extend(["tally", "tree"].map(|part| format!("{}:{part}", tree(&mint.id))));
    let lease = |(lease, _, _): &(LeaseId, _, _)| Key::Lease(mint.id.clone(), lease.clone()).name();
    keys.extend(mint.leases.iter().map(lease));
    let mut command = script_command(script, &keys);
    command.arg(lineage.len()).arg(mint.id.as_str()).arg(mint.task.as_ref().map_or("", |task| task.0.as_str()));
    command.arg(mint.keep_task_until.timestamp()).arg(mint.latest_expiry);
    for (_, record, keep_until) in &mint.leases {
        command.arg(&record.0).arg(keep_until.timestamp());
    }
    command
}

fn parse_tally(text: &str) -> Option<Tally> {
    let mut numbers = text.split(' ');
    let ended_tasks = numbers.next()?.parse().ok()?;
    let credentials = numbers.next()?.parse().ok()?;
    let latest_expiry = numbers.next()?.parse().ok()?;
    Some(Tally { ended_tasks, credentials, latest_expiry })
}

fn unexpected() -> InDoubt {
    InDoubt("redis answered something that its script never says".into())
}
