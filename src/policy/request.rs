//! What Cedar is asked. Values go in as values: nothing that a caller sent is ever parsed as Cedar.

use cedar_policy::{
    Context, Entities, Entity, EntityId, EntityTypeName, EntityUid, Request, RestrictedExpression as Value, Schema,
};
use chrono::{Datelike, Timelike};
use std::collections::{BTreeSet, HashMap, HashSet};

use super::{Undecided, Words};
use crate::{
    attest::{Attested, Facts, Kind, Mark},
    clock::Time,
    id::{Location, SpiffeId},
    task::{AccessDetail, Privilege},
};

/// The two moments at which policy is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    Declare,
    Mint,
}

impl Act {
    fn as_str(self) -> &'static str {
        match self {
            Act::Declare => "declare",
            Act::Mint => "mint",
        }
    }
}

/// Who asks, as policies see it. A view: to decide about somebody is not to believe that they are there, so this
/// can be made by hand, where an [`Attested`] cannot.
#[derive(Debug, Clone, Copy)]
pub(super) struct Subject<'a> {
    pub(super) workload: &'a SpiffeId,
    pub(super) instance: &'a str,
    pub(super) kind: Kind,
    pub(super) attestor: &'a str,
    pub(super) issuer: Option<&'a str>,
    pub(super) selectors: &'a BTreeSet<String>,
    pub(super) facts: &'a Facts,
    pub(super) marks: &'a [Mark],
}

impl<'a> From<&'a Attested> for Subject<'a> {
    fn from(attested: &'a Attested) -> Self {
        Self {
            workload: attested.workload(),
            instance: attested.instance(),
            kind: attested.kind(),
            attestor: attested.attestor(),
            issuer: attested.issuer(),
            selectors: attested.selectors(),
            facts: attested.facts(),
            marks: attested.marks(),
        }
    }
}

/// The names of the schema, parsed once.
pub(super) struct Vocabulary {
    schema: Schema,
    /// The actions and their groups, which every evaluation needs.
    actions: Entities,
    action: EntityTypeName,
    workload: EntityTypeName,
    service: EntityTypeName,
}

/// What all requests of one call have in common.
pub(super) struct Scene {
    principal: EntityUid,
    pub(super) entities: Entities,
    facts: [(String, Value); 3],
}

impl Vocabulary {
    /// The error is for a schema that does not fit this file, which the tests exclude.
    pub(super) fn new() -> Result<Self, String> {
        let (schema, warnings) =
            Schema::from_cedarschema_str(include_str!("remit.cedarschema")).map_err(|why| why.to_string())?;
        if let Some(warning) = warnings.into_iter().next() {
            return Err(warning.to_string());
        }
        let name = |text: &str| text.parse::<EntityTypeName>().map_err(|why| why.to_string());
        Ok(Self {
            actions: schema.action_entities().map_err(|why| why.to_string())?,
            schema,
            action: name("Remit::Action")?,
            workload: name("Remit::Workload")?,
            service: name("Remit::Service")?,
        })
    }

    pub(super) fn schema(&self) -> &Schema {
        &self.schema
    }

    /// Whether an entity that a policy names can ever be in a request: a misspelt one would make a `forbid` of no effect.
    pub(super) fn can_exist(&self, uid: &EntityUid) -> bool {
        let id: &str = uid.id().unescaped();
        (*uid.type_name() != self.service || id.parse::<Location>().is_ok())
            && (*uid.type_name() != self.workload || id.parse::<SpiffeId>().is_ok())
    }

    pub(super) fn scene<'a>(
        &self,
        subject: Subject<'_>,
        words: Words<'_>,
        locations: impl IntoIterator<Item = &'a Location>,
        now: Time,
    ) -> Result<Scene, Undecided> {
        let principal = uid(&self.workload, subject.workload.as_str());
        let mut entities = vec![self.workload_entity(subject)?];
        for location in locations.into_iter().collect::<HashSet<_>>() {
            entities.push(self.service_entity(location)?);
        }
        Ok(Scene {
            principal,
            entities: self.actions.clone().add_entities(entities, None).map_err(undecided)?,
            facts: [
                ("attested".to_owned(), record(attested(subject))?),
                ("declared".to_owned(), record(declared(words))?),
                ("time".to_owned(), time(now)?),
            ],
        })
    }

    /// One question: may the principal of `scene` do this, with this detail? It is checked against the schema.
    pub(super) fn request(
        &self,
        scene: &Scene,
        act: Act,
        location: &Location,
        privilege: Privilege,
        detail: &AccessDetail,
    ) -> Result<Request, Undecided> {
        let action = uid(&self.action, &format!("{}:{privilege}", act.as_str()));
        let resource = uid(&self.service, location.as_str());
        let asked = ("request".to_owned(), asked(detail)?);
        let context = Context::from_pairs(scene.facts.iter().cloned().chain([asked])).map_err(undecided)?;
        Request::new(scene.principal.clone(), action, resource, context, Some(&self.schema)).map_err(undecided)
    }

    fn workload_entity(&self, subject: Subject<'_>) -> Result<Entity, Undecided> {
        let path =
            subject.workload.as_str().strip_prefix("spiffe://").and_then(|rest| rest.find('/').map(|at| &rest[at..]));
        let path = path.ok_or_else(|| Undecided("a SPIFFE ID without a path".to_owned()))?;
        let attributes = [
            ("kind", Some(text(subject.kind.as_str()))),
            ("attestor", Some(text(subject.attestor))),
            ("path", Some(text(path))),
            ("issuer", subject.issuer.map(text)),
        ];
        entity(uid(&self.workload, subject.workload.as_str()), attributes)
    }

    fn service_entity(&self, location: &Location) -> Result<Entity, Undecided> {
        let url = location.parts().ok_or_else(|| Undecided(format!("{location} cannot be taken apart")))?;
        let attributes = [
            ("uri", Some(text(location.as_str()))),
            ("scheme", Some(text(url.scheme()))),
            ("host", Some(text(url.host_str().unwrap_or_default()))),
            ("port", Some(Value::new_long(url.port_or_known_default().map_or(0, i64::from)))),
            ("path", Some(text(url.path()))),
        ];
        entity(uid(&self.service, location.as_str()), attributes)
    }
}

/// A value that policies see.
enum Seen<'a> {
    Text(&'a str),
    Set(Vec<&'a str>),
}

impl From<Seen<'_>> for Value {
    fn from(seen: Seen<'_>) -> Self {
        match seen {
            Seen::Text(value) => text(value),
            Seen::Set(values) => set(values),
        }
    }
}

/// How much of what policies saw is told of it: octets of a text, and members of a set.
const TOLD: (usize, usize) = (128, 16);

impl Seen<'_> {
    /// For people: of what is long, the beginning.
    fn told(&self) -> serde_json::Value {
        let begin = |text: &str| {
            let ends = text.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= TOLD.0);
            text[..ends.last().unwrap_or(0)].to_owned()
        };
        match self {
            Seen::Text(value) => begin(value).into(),
            Seen::Set(values) => values.iter().take(TOLD.1).map(|value| begin(value)).collect(),
        }
    }
}

fn attested(subject: Subject<'_>) -> [(&'static str, Option<Seen<'_>>); 11] {
    let Facts { environment, sandbox, repo, branch } = subject.facts;
    let marks = subject.marks.iter().map(|mark| match mark {
        Mark::Unpinned => "unpinned",
        Mark::Unseparated => "unseparated",
    });
    [
        ("workload", Some(Seen::Text(subject.workload.as_str()))),
        ("instance", Some(Seen::Text(subject.instance))),
        ("kind", Some(Seen::Text(subject.kind.as_str()))),
        ("attestor", Some(Seen::Text(subject.attestor))),
        ("issuer", subject.issuer.map(Seen::Text)),
        ("selectors", Some(Seen::Set(subject.selectors.iter().map(String::as_str).collect()))),
        ("environment", environment.as_deref().map(Seen::Text)),
        ("sandbox", sandbox.as_deref().map(Seen::Text)),
        ("repo", repo.as_deref().map(Seen::Text)),
        ("branch", branch.as_deref().map(Seen::Text)),
        ("marks", Some(Seen::Set(marks.collect()))),
    ]
}

fn declared(words: Words<'_>) -> [(&'static str, Option<Seen<'_>>); 8] {
    [
        ("purpose", Some(Seen::Text(words.purpose))),
        ("owner", Some(Seen::Text(words.owner))),
        ("environment", words.environment.map(Seen::Text)),
        ("sandbox", words.sandbox.map(Seen::Text)),
        ("repo", words.context.repo.as_deref().map(Seen::Text)),
        ("branch", words.context.branch.as_deref().map(Seen::Text)),
        ("command", words.context.command.as_deref().map(Seen::Text)),
        ("data_classification", words.data_classification.map(Seen::Text)),
    ]
}

/// What policies see of who asks and of what was declared, for the record of a decision: without what stands elsewhere in it, and of
/// what is long the beginning.
pub(super) fn considered(subject: Subject<'_>, words: Words<'_>) -> serde_json::Value {
    let told = |(name, seen): (&'static str, Option<Seen<'_>>)| {
        let elsewhere = ["workload", "instance", "attestor", "purpose", "owner"].contains(&name);
        let seen = seen.filter(|seen| !elsewhere && !matches!(seen, Seen::Set(values) if values.is_empty()))?;
        Some((name.to_owned(), seen.told()))
    };
    let group = |members: serde_json::Map<_, _>| serde_json::Value::Object(members);
    let attested = group(attested(subject).into_iter().filter_map(told).collect());
    let declared = group(declared(words).into_iter().filter_map(told).collect());
    serde_json::json!({"attested": attested, "declared": declared})
}

fn asked(detail: &AccessDetail) -> Result<Value, Undecided> {
    record([
        ("actions", detail.actions.as_ref().map(set)),
        ("datatypes", detail.datatypes.as_ref().map(set)),
        ("identifier", detail.identifier.as_deref().map(text)),
    ])
}

fn time(now: Time) -> Result<Value, Undecided> {
    record([
        ("unix", Some(Value::new_long(now.timestamp()))),
        ("hour", Some(Value::new_long(now.hour().into()))),
        ("minute", Some(Value::new_long(now.minute().into()))),
        ("weekday", Some(Value::new_long(now.weekday().number_from_monday().into()))),
    ])
}

fn uid(kind: &EntityTypeName, id: &str) -> EntityUid {
    EntityUid::from_type_name_and_id(kind.clone(), EntityId::new(id))
}

fn text(value: &str) -> Value {
    Value::new_string(value.to_owned())
}

fn set<T: AsRef<str>>(values: impl IntoIterator<Item = T>) -> Value {
    Value::new_set(values.into_iter().map(|value| text(value.as_ref())))
}

/// Members that are `None` are absent, which is how a policy sees that nothing was said: `context.declared has repo`.
fn present<V: Into<Value>, const N: usize>(members: [(&str, Option<V>); N]) -> impl Iterator<Item = (String, Value)> {
    members.into_iter().filter_map(|(name, value)| value.map(|value| (name.to_owned(), value.into())))
}

fn record<V: Into<Value>, const N: usize>(members: [(&str, Option<V>); N]) -> Result<Value, Undecided> {
    Value::new_record(present(members)).map_err(undecided)
}

fn entity<const N: usize>(uid: EntityUid, attributes: [(&str, Option<Value>); N]) -> Result<Entity, Undecided> {
    Entity::new(uid, present(attributes).collect::<HashMap<_, _>>(), HashSet::new()).map_err(undecided)
}

fn undecided(why: impl std::fmt::Display) -> Undecided {
    Undecided(why.to_string())
}
