//! Whom this broker waits for, judged by what the roll says and by nothing else: no store, no lock, and time as a parameter.

use chrono::TimeDelta;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use crate::{
    clock::Time,
    id::BrokerName,
    lease::{Member, Roll},
    revocation::Place,
};

/// How long ago a broker may have said something last that is there.
const THERE: Duration = Duration::from_secs(30);
/// How long a broker that joins looks for others at least: two signs of life, and some.
const LOOKED: Duration = Duration::from_secs(5);
/// How long a broker stays on the roll that says nothing any more.
const ON_THE_ROLL: TimeDelta = TimeDelta::days(1);

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) others: BTreeMap<BrokerName, Seen>,
    /// Of which run of the store the roll was that was read last, and when.
    pub(super) read: Option<(String, Instant)>,
    /// The run that everybody has told who was there.
    pub(super) settled: Option<String>,
    pub(super) waiting: Option<Waiting>,
    /// What this broker said last.
    pub(super) said: Option<Time>,
    /// What it asks the others, if it does.
    pub(super) asks: Option<String>,
    /// Of whom the log lacks something, and since when.
    pub(super) lacking: Option<(BTreeSet<BrokerName>, Instant)>,
    /// The nonces of others that it answered.
    pub(super) answered: BTreeSet<String>,
    /// Whether others can be there.
    pub(super) is_shared: bool,
}

/// Another broker.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) member: Member,
    /// When it was found to have said something new; `None`: what it says is of long ago.
    pub(super) heard: Option<Instant>,
    /// Whether that stands on the roll as it was read last.
    pub(super) on_roll: bool,
    /// Whether all that it had told before is known here.
    pub(super) is_known: bool,
    /// Whether it was there in the time of this process.
    pub(super) was_there: bool,
}

/// Waiting for others to tell a run of the store.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) run: String,
    pub(super) since: Instant,
    /// The generation when that was first looked at: in a later one nothing matters any more that is not known.
    pub(super) generation: Option<u64>,
    pub(super) whom: BTreeSet<BrokerName>,
    /// Whether this broker was not there when the store became that run: others who were know better.
    pub(super) came_later: bool,
}

/// How it stands with those who are waited for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// All that can be told is told.
    Settled,
    /// These have not told it yet.
    Waiting(Vec<BrokerName>),
    /// These give no sign of life, and this is the generation that ends with them.
    Gone(Vec<BrokerName>, u64),
}

impl State {
    /// Who was there when the roll was read last.
    pub(super) fn there(&self) -> Vec<BrokerName> {
        let Some((_, read)) = &self.read else { return Vec::new() };
        let is_there = |seen: &Seen| {
            let lately = seen.heard.is_some_and(|heard| read.saturating_duration_since(heard) <= THERE);
            lately && !(seen.member.left && seen.is_known)
        };
        self.others.iter().filter(|(_, seen)| is_there(seen)).map(|(name, _)| name.clone()).collect()
    }

    /// The store is another run of itself, or this broker has just been started.
    pub(super) fn begin(&mut self, run: &str, recalled: Option<&Place>, now: Instant) {
        self.settled = None;
        let before = self.waiting.take();
        let came_later = self.read.is_none() || before.as_ref().is_some_and(|before| before.came_later);
        let mut whom = before.map(|before| before.whom).unwrap_or_default();
        whom.extend(self.there());
        if self.read.is_none()
            && let Some(place) = recalled
        {
            if place.settled.as_deref() == Some(run) {
                self.settled = Some(run.to_owned());
                return;
            }
            whom.extend(place.members.iter().cloned());
        }
        self.waiting = Some(Waiting { run: run.to_owned(), since: now, generation: None, whom, came_later });
    }

    /// Takes in a roll that was read at `now`, when the clock said `time`.
    pub(super) fn hear(
        &mut self,
        Roll { incarnation: run, members, is_shared }: Roll,
        recalled: Option<&Place>,
        (time, now): (Time, Instant),
    ) {
        self.is_shared = is_shared;
        let is_new = self.read.as_ref().is_none_or(|(read, _)| *read != run);
        if is_new {
            self.begin(&run, recalled, now);
        }
        self.others.values_mut().for_each(|seen| seen.on_roll = false);
        for (name, member) in members {
            match self.others.get_mut(&name) {
                Some(seen) if member.at > seen.member.at => {
                    *seen = Seen { member, heard: Some(now), on_roll: true, is_known: false, was_there: true };
                }
                // An older one says nothing: the store has lost the rest, or somebody put it there.
                Some(seen) => seen.on_roll = member == seen.member,
                None => {
                    let lately = (time - member.at).abs().to_std().is_ok_and(|age| age <= THERE);
                    let joins = joins(&member);
                    if let Some(waiting) = self.waiting.as_mut().filter(|_| is_new && lately && !joins) {
                        waiting.whom.insert(name.clone());
                    }
                    let heard = lately.then_some(now);
                    self.others.insert(name, Seen { member, heard, on_roll: true, is_known: false, was_there: false });
                }
            }
        }
        self.read = Some((run, now));
    }

    /// How it stands with a run of the store in this generation, where a broker is gone that gave no sign of life for so long.
    pub(super) fn verdict(&mut self, run: &str, generation: u64, gone_after: Duration, now: Instant) -> Verdict {
        let Some(waiting) = self.waiting.as_mut().filter(|waiting| waiting.run == run) else {
            return Verdict::Settled;
        };
        let began = *waiting.generation.get_or_insert(generation);
        let heard_later = |seen: &&Seen| seen.on_roll && seen.heard.is_some_and(|heard| heard > waiting.since);
        let vouches = |seen: &Seen| seen.member.settled.as_deref() == Some(run);
        if generation > began || waiting.came_later && self.others.values().filter(heard_later).any(vouches) {
            return Verdict::Settled;
        }
        let has_told = |seen: &Seen| seen.on_roll && (seen.member.left || seen.member.told.as_deref() == Some(run));
        waiting.whom.retain(|name| !self.others.get(name).is_some_and(has_told));
        let whom: Vec<_> = waiting.whom.iter().cloned().collect();
        if whom.is_empty() {
            return Verdict::Settled;
        }
        let since = waiting.since;
        let last =
            |name: &BrokerName| self.others.get(name).and_then(|seen| seen.heard).map_or(since, |at| at.max(since));
        let gone: Vec<_> =
            whom.iter().filter(|name| now.saturating_duration_since(last(name)) >= gone_after).cloned().collect();
        if gone.is_empty() { Verdict::Waiting(whom) } else { Verdict::Gone(gone, began) }
    }

    /// Who may be able to tell what is dead.
    pub(super) fn knowing(&self) -> impl Iterator<Item = (&BrokerName, &Seen)> {
        self.others.iter().filter(|(_, seen)| seen.on_roll && !seen.member.left && !joins(&seen.member))
    }

    /// How it stands with those who could answer a broker that joins: settled where it needs no answer any more.
    pub(super) fn joining(&mut self, generation: u64, gone_after: Duration, now: Instant) -> Verdict {
        let Some(waiting) = self.waiting.as_mut() else { return Verdict::Settled };
        let (began, since) = (*waiting.generation.get_or_insert(generation), waiting.since);
        if generation > began {
            return Verdict::Settled;
        }
        let is_alive = |seen: &Seen| seen.heard.is_some_and(|heard| now.saturating_duration_since(heard) < gone_after);
        let whom: Vec<_> = self.knowing().filter(|(_, seen)| is_alive(seen)).map(|(name, _)| name.clone()).collect();
        let has_looked = !self.is_shared || now.saturating_duration_since(since) >= LOOKED;
        if whom.is_empty() && has_looked { Verdict::Gone(whom, began) } else { Verdict::Waiting(whom) }
    }

    /// The nonces of others that are to be answered.
    pub(super) fn unanswered(&mut self, own: &BrokerName, by_name: bool) -> Vec<String> {
        let lately = |heard: Instant| heard.elapsed() <= THERE;
        let asking = self.others.values().filter(|seen| seen.on_roll && seen.heard.is_some_and(lately));
        let asked: BTreeSet<_> = asking.filter_map(|seen| seen.member.asks.clone()).collect();
        self.answered.retain(|nonce| asked.contains(nonce));
        let to_us = |member: &Member| if by_name { member.asks_of.contains(own) } else { joins(member) };
        let ours = self.others.values().filter(|seen| to_us(&seen.member)).filter_map(|seen| seen.member.asks.clone());
        ours.filter(|nonce| asked.contains(nonce) && !self.answered.contains(nonce)).collect()
    }

    /// Who can be struck off the roll: nobody has heard of them for long.
    pub(super) fn gone(&mut self, time: Time) -> Vec<BrokerName> {
        let there: BTreeSet<_> = self.there().into_iter().collect();
        let is_gone = |name: &BrokerName, seen: &Seen| time - seen.member.at > ON_THE_ROLL && !there.contains(name);
        let gone: Vec<_> =
            self.others.iter().filter(|(name, seen)| is_gone(name, seen)).map(|(name, _)| name.clone()).collect();
        self.others.retain(|name, _| !gone.contains(name));
        gone
    }
}

/// Whether a broker knows nothing of what is dead yet.
pub(super) fn joins(member: &Member) -> bool {
    member.asks.is_some() && member.asks_of.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GONE: Duration = Duration::from_secs(60);

    /// Another broker's view, in which time passes by hand.
    struct World {
        state: State,
        begun: Instant,
        seconds: u64,
    }

    impl World {
        fn new() -> Self {
            Self { state: State::default(), begun: Instant::now(), seconds: 0 }
        }

        fn now(&self) -> Instant {
            self.begun + Duration::from_secs(self.seconds)
        }

        fn time(&self) -> Time {
            let begun: Time = "2026-11-21T10:00:00Z".parse().unwrap();
            begun + TimeDelta::seconds(i64::try_from(self.seconds).unwrap())
        }

        /// What a broker says at this moment that has told that run.
        fn says(&self, told: &str) -> Member {
            Member {
                at: self.time(),
                told: Some(told.to_owned()),
                settled: None,
                left: false,
                asks: None,
                asks_of: vec![],
                logged: None,
            }
        }

        fn hear(&mut self, run: &str, members: &[(&str, Member)], recalled: Option<&Place>) {
            let members = members.iter().map(|(name, member)| (name.parse().unwrap(), member.clone())).collect();
            let at = (self.time(), self.now());
            self.state.hear(Roll { incarnation: run.to_owned(), members, is_shared: true }, recalled, at);
        }

        fn verdict(&mut self, run: &str) -> Verdict {
            let now = self.now();
            let verdict = self.state.verdict(run, 7, GONE, now);
            if verdict == Verdict::Settled {
                (self.state.settled, self.state.waiting) = (Some(run.to_owned()), None);
                self.state.others.values_mut().for_each(|seen| seen.is_known = true);
            }
            verdict
        }

        /// A broker that was there with `b` and `c` on the run `x`.
        fn among_three() -> Self {
            let mut world = Self::new();
            let says = world.says("x");
            world.hear("x", &[("b", says.clone()), ("c", says)], None);
            assert_eq!(world.verdict("x"), Verdict::Settled);
            world
        }
    }

    fn brokers(names: &[&str]) -> Vec<BrokerName> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    fn place(settled: &str, members: &[&str]) -> Place {
        Place { store: "s".into(), generation: 7, settled: Some(settled.to_owned()), members: brokers(members) }
    }

    #[test]
    fn all_who_were_there_are_waited_for() {
        let mut world = World::among_three();
        let before = world.says("x");
        world.seconds = 10;
        // What they said before is no word about this run, and a store may have forgotten them.
        world.hear("y", &[("b", before)], None);
        assert_eq!(world.verdict("y"), Verdict::Waiting(brokers(&["b", "c"])));
        world.seconds = 12;
        let says = world.says("y");
        world.hear("y", &[("b", says.clone())], None);
        assert_eq!(world.verdict("y"), Verdict::Waiting(brokers(&["c"])));
        // Nor is this the end of it: the store changes once more.
        world.hear("z", &[("b", says)], None);
        assert_eq!(world.verdict("z"), Verdict::Waiting(brokers(&["b", "c"])));
        world.seconds = 14;
        let says = world.says("z");
        world.hear("z", &[("b", says.clone()), ("c", says)], None);
        assert_eq!(world.verdict("z"), Verdict::Settled);
    }

    #[test]
    fn who_was_long_gone_or_has_left_is_not() {
        let mut world = World::among_three();
        world.seconds = 29;
        let left = Member { left: true, ..world.says("x") };
        world.hear("x", &[("b", left)], None);
        world.state.others.values_mut().for_each(|seen| seen.is_known = true);
        world.seconds = 31;
        world.hear("x", &[], None);
        assert_eq!(world.state.there(), []);
        // However long the store is out of reach after that.
        world.seconds = 400;
        world.hear("y", &[], None);
        assert_eq!(world.verdict("y"), Verdict::Settled);
    }

    #[test]
    fn who_was_there_when_the_store_went_is_waited_for_however_long_it_is_away() {
        let mut world = World::among_three();
        world.seconds = 400;
        world.hear("y", &[], None);
        assert_eq!(world.verdict("y"), Verdict::Waiting(brokers(&["b", "c"])));
    }

    #[test]
    fn what_one_had_said_that_left_has_to_be_known_or_in_the_store() {
        let mut world = World::among_three();
        world.seconds = 2;
        let says = world.says("x");
        let left = Member { left: true, ..says.clone() };
        world.hear("x", &[("b", left.clone()), ("c", says)], None);
        // The log was not read after that. Another store may not have what was in it.
        world.seconds = 3;
        world.hear("y", &[], None);
        assert_eq!(world.verdict("y"), Verdict::Waiting(brokers(&["b", "c"])));
        world.hear("y", &[("b", left)], None);
        assert_eq!(world.verdict("y"), Verdict::Waiting(brokers(&["c"])));
    }

    #[test]
    fn who_gives_no_sign_of_life_is_given_up() {
        let mut world = World::among_three();
        world.seconds = 10;
        world.hear("y", &[], None);
        assert_eq!(world.verdict("y"), Verdict::Waiting(brokers(&["b", "c"])));
        world.seconds = 60;
        let alive = Member { told: None, ..world.says("y") };
        world.hear("y", &[("b", alive.clone())], None);
        world.seconds = 69;
        assert_eq!(world.verdict("y"), Verdict::Waiting(brokers(&["b", "c"])));
        world.seconds = 70;
        assert_eq!(world.verdict("y"), Verdict::Gone(brokers(&["c"]), 7));
        // One that lives and cannot tell is waited for, but not for what somebody puts there.
        world.hear("y", &[("b", alive)], None);
        world.seconds = 120;
        assert_eq!(world.verdict("y"), Verdict::Gone(brokers(&["b", "c"]), 7));
        // Somebody else was faster.
        let now = world.now();
        assert_eq!(world.state.verdict("y", 8, GONE, now), Verdict::Settled);
    }

    #[test]
    fn a_restart_waits_for_nobody_where_the_store_is_as_it_was() {
        let mut world = World::new();
        world.hear("x", &[], Some(&place("x", &["b", "c"])));
        assert_eq!(world.verdict("x"), Verdict::Settled);
    }

    #[test]
    fn a_restart_on_another_run_goes_by_the_journal_or_by_one_who_waited() {
        let mut world = World::new();
        let settled = |world: &World| Member { settled: Some("y".into()), ..world.says("y") };
        // What it says may be of before: it is not known whether it is there.
        let first = settled(&world);
        world.hear("y", &[("d", first)], Some(&place("x", &["b"])));
        assert_eq!(world.verdict("y"), Verdict::Waiting(brokers(&["b"])));
        world.seconds = 2;
        let next = settled(&world);
        world.hear("y", &[("d", next)], Some(&place("x", &["b"])));
        assert_eq!(world.verdict("y"), Verdict::Settled);
    }

    #[test]
    fn whoever_was_there_itself_goes_by_nobody_else() {
        let mut world = World::among_three();
        world.seconds = 2;
        let settled = |world: &World| Member { settled: Some("y".into()), ..world.says("y") };
        let first = settled(&world);
        world.hear("y", &[("d", first)], None);
        world.seconds = 4;
        let next = settled(&world);
        world.hear("y", &[("d", next)], None);
        assert_eq!(world.verdict("y"), Verdict::Waiting(brokers(&["b", "c"])));
    }

    #[test]
    fn one_that_joins_waits_for_whoever_is_alive_and_knows() {
        let joining = |world: &mut World| {
            let now = world.now();
            world.state.joining(7, GONE, now)
        };
        let mut world = World::new();
        let (old, left) = (world.says("x"), Member { left: true, ..world.says("x") });
        let joins = |world: &World| Member { asks: Some("n".into()), ..world.says("x") };
        world.seconds = 3600;
        let asking = joins(&world);
        world.hear("x", &[("b", old.clone()), ("c", left), ("d", asking)], None);
        assert_eq!(joining(&mut world), Verdict::Waiting(vec![]), "somebody may be there whose clock is behind");
        world.seconds += 4;
        let (behind, asking) = (Member { at: old.at + TimeDelta::seconds(1), ..old }, joins(&world));
        world.hear("x", &[("b", behind.clone()), ("d", asking)], None);
        assert_eq!(joining(&mut world), Verdict::Waiting(brokers(&["b"])));
        world.seconds += 60;
        let asking = joins(&world);
        world.hear("x", &[("b", behind), ("d", asking)], None);
        assert_eq!(joining(&mut world), Verdict::Gone(vec![], 7), "nobody waits for those who know as little");
        let now = world.now();
        assert_eq!(world.state.joining(8, GONE, now), Verdict::Settled);
        // Alone on the store there is nobody to look for.
        let mut alone = World::new();
        let at = (alone.time(), alone.now());
        alone.state.hear(Roll { incarnation: String::new(), members: vec![], is_shared: false }, None, at);
        assert_eq!(joining(&mut alone), Verdict::Gone(vec![], 7));
    }

    #[test]
    fn one_who_says_nothing_for_a_day_is_struck_off() {
        let mut world = World::among_three();
        world.seconds = 86_401;
        let says = world.says("x");
        world.hear("x", &[("b", says)], None);
        let time = world.time();
        assert_eq!(world.state.gone(time), brokers(&["c"]));
        assert_eq!(world.state.gone(time), []);
    }
}
