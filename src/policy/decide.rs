//! The decision: one question to Cedar for every (detail, location, privilege).

use cedar_policy::{Authorizer, Decision, PolicySet};
use std::{
    cell::Cell,
    collections::BTreeSet,
    sync::atomic::{AtomicUsize, Ordering},
};

use super::{
    Ask, BadPolicies, Grant, Limits, Permit, Policies, Undecided, Verdict, Words, load,
    request::{Act, Scene, Subject, Vocabulary},
};
use crate::{
    clock::Time,
    error::Denied,
    id::Location,
    task::{AccessDetail, Authority, Privilege},
};

/// One copy of everything that an evaluation touches. Evaluations count references all over the policies, and
/// threads that share a copy slow each other down to the speed of one.
pub(super) struct Engine {
    vocabulary: Vocabulary,
    policies: PolicySet,
    authorizer: Authorizer,
}

enum Ruling {
    /// These permits apply and no forbid does.
    Permitted(Vec<String>),
    /// These forbids apply, or nothing does.
    Refused(Vec<String>),
}

impl Engine {
    pub(super) fn new(sources: &[load::Source], vocabulary: Vocabulary) -> Result<Self, BadPolicies> {
        Ok(Self { vocabulary, policies: load::compile(sources)?, authorizer: Authorizer::new() })
    }

    fn rule(
        &self,
        scene: &Scene,
        act: Act,
        location: &Location,
        privilege: Privilege,
        detail: &AccessDetail,
    ) -> Result<Ruling, Undecided> {
        let request = self.vocabulary.request(scene, act, location, privilege, detail)?;
        let response = self.authorizer.is_authorized(&request, &self.policies, &scene.entities);
        // Cedar skips a policy that errs; a `forbid` that is skipped is a hole.
        if let Some(error) = response.diagnostics().errors().next() {
            return Err(Undecided(error.to_string()));
        }
        let mut policies: Vec<_> = response.diagnostics().reason().map(ToString::to_string).collect();
        policies.sort_unstable();
        Ok(match response.decision() {
            Decision::Allow => Ruling::Permitted(policies),
            Decision::Deny => Ruling::Refused(policies),
        })
    }
}

impl Policies {
    pub(super) fn declare_as(
        &self,
        subject: Subject<'_>,
        words: Words<'_>,
        asked: &Authority,
        now: Time,
    ) -> Result<Grant, Undecided> {
        let engine = self.engine()?;
        let locations = asked.details().iter().flat_map(|detail| &detail.locations);
        let scene = engine.vocabulary.scene(subject, words, locations, now)?;
        let (mut policies, mut denied, mut doubt) = (BTreeSet::new(), Vec::new(), None);
        let authority = asked.filter(|detail, location, privilege| {
            if doubt.is_some() {
                return false;
            }
            match engine.rule(&scene, Act::Declare, location, privilege, detail) {
                Ok(Ruling::Permitted(by)) => {
                    policies.extend(by);
                    true
                }
                Ok(Ruling::Refused(by)) => {
                    denied.extend(detail.slice(location, privilege).map(|detail| Denied { detail, policies: by }));
                    false
                }
                Err(why) => {
                    doubt = Some(why);
                    false
                }
            }
        });
        if let Some(doubt) = doubt {
            return Err(doubt);
        }
        Ok(Grant { authority, denied, limits: self.limits(&policies), policies: policies.into_iter().collect() })
    }

    pub(super) fn mint_as(&self, subject: Subject<'_>, ask: Ask<'_>, now: Time) -> Result<Verdict, Undecided> {
        let Ask { words, location, privilege, details: asked } = ask;
        let engine = self.engine()?;
        let scene = engine.vocabulary.scene(subject, words, [location], now)?;
        let (mut details, mut permitted, mut refused) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
        // Cut again: that a permit is for one location and one privilege does not hang on the caller.
        for detail in asked.iter().filter_map(|detail| detail.slice(location, privilege)) {
            match engine.rule(&scene, Act::Mint, location, privilege, &detail)? {
                Ruling::Permitted(by) => {
                    permitted.extend(by);
                    details.push(detail);
                }
                Ruling::Refused(by) => refused.extend(by),
            }
        }
        if details.is_empty() {
            return Ok(Verdict::Denied(refused.into_iter().collect()));
        }
        Ok(Verdict::Permit(Permit {
            location: location.clone(),
            privilege,
            details,
            max_ttl: self.limits(&permitted).max_ttl,
            policies: permitted.into_iter().collect(),
        }))
    }

    fn limits(&self, policies: &BTreeSet<String>) -> Limits {
        policies.iter().filter_map(|id| self.limits.get(id)).fold(Limits::default(), |all, one| all.and(*one))
    }

    fn engine(&self) -> Result<&Engine, Undecided> {
        let lane = lane() % self.engines.len().max(1);
        self.engines.get(lane).ok_or_else(|| Undecided("no policies are loaded".to_owned()))
    }
}

/// A number for this thread, handed out in order so that the workers of a runtime are spread evenly over the copies.
/// It means nothing else.
fn lane() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static LANE: Cell<Option<usize>> = const { Cell::new(None) });
    LANE.get().unwrap_or_else(|| {
        let lane = NEXT.fetch_add(1, Ordering::Relaxed);
        LANE.set(Some(lane));
        lane
    })
}
