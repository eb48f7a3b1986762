//! `AuthZEN` 1.0: may whoever holds this token do that? What is asked, what the authority of a token says to it, and how several questions
//! are answered in one. Whether the token is good is for others to say.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    claims::Claims,
    clock::Time,
    id::{LeaseId, Malformed, SpiffeId, TaskId},
    jose::Thumbprint,
    task::{AccessDetail, Privilege},
};

/// How many questions there are in one request at most.
pub const MOST: usize = 64;
/// The longest id of a request that is repeated, in octets.
const MAX_REQUEST_ID: usize = 128;
/// The type of a resource that is a whole location.
const LOCATION: &str = "location";

/// Whether this is an id of a request that comes back in the answer: short, and of visible ASCII alone.
#[must_use]
pub fn is_request_id(id: &[u8]) -> bool {
    (1..=MAX_REQUEST_ID).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic)
}

/// What is asked: one question, or several that share what is not said in each. Members that are not known are ignored, as the standard says.
#[derive(Debug, Deserialize, ToSchema)]
pub struct EvaluationRequest {
    /// Who would do it.
    #[schema(required = false)]
    subject: Option<Subject>,
    /// What would be done.
    #[schema(required = false)]
    action: Option<Action>,
    /// With what.
    #[schema(required = false)]
    resource: Option<Resource>,
    /// What came with the token.
    #[schema(required = false)]
    context: Option<Context>,
}

/// Several questions; what one of them does not say stands beside them.
#[derive(Debug, Deserialize, ToSchema)]
pub struct EvaluationsRequest {
    #[serde(flatten)]
    shared: EvaluationRequest,
    /// The questions; without any there is one, which stands beside them.
    #[serde(default)]
    #[schema(max_items = 64)]
    evaluations: Vec<EvaluationRequest>,
    /// How they are answered.
    #[serde(default)]
    options: Options,
}

/// Who would do it.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct Subject {
    /// Whatever the caller calls it.
    #[expect(dead_code, reason = "the standard demands it, and nothing depends on it")]
    #[serde(rename = "type")]
    kind: String,
    /// Where it is a SPIFFE ID or the id of a task, it has to be the token's; otherwise whatever the caller calls it.
    id: String,
    #[serde(default)]
    #[schema(required = true)]
    properties: SubjectProperties,
}

/// What is known of the subject.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub struct SubjectProperties {
    /// The token that was presented.
    #[schema(value_type = String, required = true)]
    token: Option<String>,
}

/// What would be done.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct Action {
    /// A privilege, or one of the `actions` of an authority.
    name: String,
    #[serde(default)]
    #[schema(required = false)]
    properties: ActionProperties,
}

/// What is known of the action.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub struct ActionProperties {
    /// The privilege that the action takes. Without it an action that is no privilege has to be named by the authority.
    #[schema(required = false)]
    privilege: Option<Privilege>,
}

/// With what it would be done.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct Resource {
    /// `location`; any other is a type of data (`datatypes` of an authority).
    #[serde(rename = "type")]
    kind: String,
    /// Of type `location`: the location. Of another: the object (`identifier` of an authority) at the location of the token.
    id: String,
    #[serde(default)]
    #[schema(required = false)]
    properties: ResourceProperties,
}

/// What is known of the resource.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub struct ResourceProperties {
    /// The location, where it is not that of the token.
    #[schema(required = false)]
    location: Option<String>,
    /// Of a location: the object.
    #[schema(required = false)]
    identifier: Option<String>,
    /// Of a location: the type of data.
    #[schema(required = false)]
    datatype: Option<String>,
}

/// What came with the token: one proof, a certificate, or nothing.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub struct Context {
    /// The proof (`DPoP`, RFC 9449). It serves once.
    #[schema(required = false)]
    dpop: Option<String>,
    /// The method of the request that it came with.
    #[schema(required = false)]
    htm: Option<String>,
    /// The URI of that request.
    #[schema(required = false)]
    htu: Option<String>,
    /// The thumbprint of the certificate that the client showed (RFC 8705 section 3.1).
    #[serde(rename = "x5t#S256")]
    #[schema(value_type = String, required = false)]
    certificate: Option<Thumbprint>,
}

/// How several questions are answered.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(as = EvaluationsOptions)]
pub struct Options {
    #[serde(default)]
    #[schema(inline, required = false)]
    evaluations_semantic: Semantic,
}

/// When no more questions are answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Semantic {
    /// When all are.
    #[default]
    ExecuteAll,
    /// After the first that is denied.
    DenyOnFirstDeny,
    /// After the first that is permitted.
    PermitOnFirstPermit,
}

/// A token, and what came with it; none of it believed yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credential<'a> {
    /// The token.
    pub token: &'a str,
    /// What came with it.
    pub shown: Shown<'a>,
}

/// What came with a token to show that its holder presents it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown<'a> {
    /// Nothing.
    Nothing,
    /// A proof, and the request that it came with.
    Proof {
        /// The proof.
        text: &'a str,
        /// The method.
        method: &'a str,
        /// The URI.
        uri: &'a str,
    },
    /// A certificate, by its thumbprint.
    Certificate(&'a Thumbprint),
}

/// Why it is denied. For whoever asks; to those who want to do it, it is not allowed, and nothing more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// `subject.properties.token` is not there.
    TokenMissing,
    /// It is none for this service, or not its holder presents it.
    TokenInvalid,
    /// The broker says that it is not alive: it ended, or that cannot be told.
    Inactive,
    /// It was revoked.
    Revoked,
    /// A lock keeps it out.
    Locked,
    /// It is of another generation.
    Generation,
    /// Nothing was heard of revocations for too long.
    Stale,
    /// Something of revocations was missed.
    Gap,
    /// `subject.id` is of another workload or another task.
    SubjectMismatch,
    /// The authority does not reach the action.
    ActionNotCovered,
    /// The authority does not reach the resource.
    ResourceNotCovered,
}

/// A question in full.
#[derive(Debug)]
struct Question {
    subject: Subject,
    action: Action,
    resource: Resource,
    context: Context,
}

/// What is asked, with every question in full.
#[derive(Debug)]
pub struct Asked {
    questions: Vec<Question>,
    /// `None`: one question, with one answer.
    semantic: Option<Semantic>,
}

/// Whether it may be done.
#[derive(Debug, Serialize, ToSchema)]
pub struct EvaluationResponse {
    /// Whether it may.
    decision: bool,
    /// Whose it is, or why not.
    context: DecisionContext,
}

/// Whose it is, or why not.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum DecisionContext {
    /// It may: on whose account.
    Permitted {
        /// The task.
        task: TaskId,
        /// The workload that holds the token.
        workload: SpiffeId,
        /// Who is accountable.
        owner: String,
        /// The lease of the token.
        lease: LeaseId,
        /// The end of the token.
        #[schema(value_type = String, format = DateTime)]
        expires_at: Time,
    },
    /// It may not.
    Denied {
        /// Why.
        reason: Reason,
    },
}

/// The answers to several questions, in their order, as far as they were answered.
#[derive(Debug, Serialize, ToSchema)]
pub struct EvaluationsResponse {
    evaluations: Vec<EvaluationResponse>,
}

/// One answer, or one to each.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Answered {
    /// To one question.
    One(EvaluationResponse),
    /// To each.
    Each(EvaluationsResponse),
}

impl EvaluationRequest {
    /// The one question that it is.
    ///
    /// # Errors
    /// When something is not said, or proof and certificate are confused.
    pub fn asked(self) -> Result<Asked, Malformed> {
        let nothing = Self { subject: None, action: None, resource: None, context: None };
        Ok(Asked { questions: vec![self.over(&nothing)?], semantic: None })
    }

    /// In full, with what `shared` says where this does not.
    fn over(self, shared: &Self) -> Result<Question, Malformed> {
        let question = Question {
            subject: self.subject.or_else(|| shared.subject.clone()).ok_or(Malformed("`subject` is missing"))?,
            action: self.action.or_else(|| shared.action.clone()).ok_or(Malformed("`action` is missing"))?,
            resource: self.resource.or_else(|| shared.resource.clone()).ok_or(Malformed("`resource` is missing"))?,
            context: self.context.or_else(|| shared.context.clone()).unwrap_or_default(),
        };
        match &question.context {
            Context { dpop: Some(_), htm: Some(_), htu: Some(_), certificate: None }
            | Context { dpop: None, htm: None, htu: None, certificate: _ } => Ok(question),
            Context { certificate: Some(_), .. } => Err(Malformed("`context` has a proof or a certificate, not both")),
            Context { .. } => Err(Malformed("`dpop`, `htm` and `htu` of a `context` come together")),
        }
    }
}

impl EvaluationsRequest {
    /// The questions, each in full.
    ///
    /// # Errors
    /// As for one, or when there are more than [`MOST`].
    pub fn asked(self) -> Result<Asked, Malformed> {
        let Self { shared, evaluations, options } = self;
        if evaluations.is_empty() {
            return shared.asked();
        }
        if evaluations.len() > MOST {
            return Err(Malformed("`evaluations` has at most 64 questions"));
        }
        let questions = evaluations.into_iter().map(|one| one.over(&shared)).collect::<Result<_, _>>()?;
        Ok(Asked { questions, semantic: Some(options.evaluations_semantic) })
    }
}

impl Question {
    fn credential(&self) -> Option<Credential<'_>> {
        let token = self.subject.properties.token.as_deref()?;
        let shown = match &self.context {
            Context { dpop: Some(text), htm: Some(method), htu: Some(uri), .. } => Shown::Proof { text, method, uri },
            Context { certificate: Some(thumbprint), .. } => Shown::Certificate(thumbprint),
            Context { .. } => Shown::Nothing,
        };
        Some(Credential { token, shown })
    }

    /// Whether the authority of a token that is good reaches what is asked. What the question leaves open is not covered by an authority
    /// that says it.
    fn against(&self, claims: &Claims) -> Result<(), Reason> {
        let id = self.subject.id.as_str();
        let names_somebody = id.starts_with("spiffe://") || id.starts_with("task_");
        if names_somebody && ![claims.sub.as_str(), claims.client_id.as_str(), claims.task.id.as_str()].contains(&id) {
            return Err(Reason::SubjectMismatch);
        }
        let reached = |detail: &&AccessDetail| self.resource.is_within(detail, claims);
        let mut reached = claims.authorization_details.iter().filter(reached).peekable();
        reached.peek().ok_or(Reason::ResourceNotCovered)?;
        let covered = reached.any(|detail| self.action.is_within(detail, claims.scope));
        covered.then_some(()).ok_or(Reason::ActionNotCovered)
    }
}

impl Resource {
    fn is_within(&self, detail: &AccessDetail, claims: &Claims) -> bool {
        let ResourceProperties { location, identifier, datatype } = &self.properties;
        let (location, identifier, datatype) = if self.kind == LOCATION {
            (self.id.as_str(), identifier.as_deref(), datatype.as_deref())
        } else {
            (location.as_deref().unwrap_or(claims.aud.as_str()), Some(self.id.as_str()), Some(self.kind.as_str()))
        };
        location == claims.aud.as_str()
            && detail.locations.contains(&claims.aud)
            && detail.identifier.as_deref().is_none_or(|only| identifier == Some(only))
            && is_listed(detail.datatypes.as_deref(), datatype)
    }
}

impl Action {
    fn is_within(&self, detail: &AccessDetail, scope: Privilege) -> bool {
        let named = self.name.parse::<Privilege>().ok();
        let privilege = self.properties.privilege.or(named);
        let agrees = [named, self.properties.privilege].into_iter().flatten().all(|asked| asked == scope);
        // Nobody knows which privilege an action takes that no authority names.
        let known = detail.actions.is_some() || privilege.is_some();
        agrees && known && detail.privileges.contains(&scope) && is_listed(detail.actions.as_deref(), Some(&self.name))
    }
}

/// Where there is a list, it has to be on it.
fn is_listed(list: Option<&[String]>, asked: Option<&str>) -> bool {
    list.is_none_or(|list| list.iter().any(|one| Some(one.as_str()) == asked))
}

impl Asked {
    /// What was presented, each once: a proof serves all questions that it is shown with.
    #[must_use]
    pub fn credentials(&self) -> Vec<Credential<'_>> {
        let mut all = Vec::new();
        for credential in self.questions.iter().filter_map(Question::credential) {
            if !all.contains(&credential) {
                all.push(credential);
            }
        }
        all
    }

    /// The answers, given what was found of each of the credentials.
    #[must_use]
    pub fn answered(&self, found: &[(Credential<'_>, Result<Claims, Reason>)]) -> Answered {
        let decide = |question: &Question| {
            let credential = question.credential().ok_or(Reason::TokenMissing)?;
            let (_, claims) = found.iter().find(|(other, _)| *other == credential).ok_or(Reason::TokenInvalid)?;
            let claims = claims.as_ref().map_err(|why| *why)?;
            question.against(claims).map(|()| claims)
        };
        let mut answers = self.questions.iter().map(|question| EvaluationResponse::of(decide(question)));
        let Some(semantic) = self.semantic else {
            return Answered::One(answers.next().unwrap_or_else(|| EvaluationResponse::of(Err(Reason::TokenMissing))));
        };
        let mut evaluations = Vec::new();
        for answer in answers {
            let decision = answer.decision;
            evaluations.push(answer);
            if semantic == (if decision { Semantic::PermitOnFirstPermit } else { Semantic::DenyOnFirstDeny }) {
                break;
            }
        }
        Answered::Each(EvaluationsResponse { evaluations })
    }
}

impl EvaluationResponse {
    fn of(decided: Result<&Claims, Reason>) -> Self {
        let permitted = decided.and_then(|claims| {
            let expires_at = Time::from_timestamp(claims.exp, 0).ok_or(Reason::TokenInvalid)?;
            let (task, owner, lease) = (claims.task.id.clone(), claims.task.owner.clone(), claims.jti.clone());
            Ok(DecisionContext::Permitted { task, workload: claims.client_id.clone(), owner, lease, expires_at })
        });
        match permitted {
            Ok(context) => Self { decision: true, context },
            Err(reason) => Self { decision: false, context: DecisionContext::Denied { reason } },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const TASK: &str = "task_01jd0000000000000000000000";
    const GIT: &str = "https://git.example.com";

    fn claims(details: &Value) -> Claims {
        let workload = "spiffe://example.com/ci/acme";
        serde_json::from_value(json!({
            "iss": "i", "sub": workload, "client_id": workload, "aud": GIT, "exp": 1_800_000_000, "iat": 1, "nbf": 1,
            "jti": "0".repeat(32), "scope": "read", "authorization_details": details,
            "status": {"status_list": {"idx": 0, "uri": "u"}},
            "urn:remit:task": {"id": TASK, "owner": "o", "kind": "ci", "attestor": "a", "declared_at": 1, "generation": 1,
                "authority_hash": "h", "expires_at": 2}}))
        .unwrap()
    }

    fn detail(more: &Value) -> Value {
        let mut detail = json!({"type": "remit:access", "locations": [GIT], "privileges": ["read"]});
        detail.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        detail
    }

    fn asked(body: &Value) -> Result<Asked, Malformed> {
        serde_json::from_value::<EvaluationsRequest>(body.clone()).unwrap().asked()
    }

    fn answers(body: &Value, details: &Value) -> Value {
        let asked = asked(body).unwrap();
        let claims = claims(details);
        let found: Vec<_> = asked.credentials().into_iter().map(|one| (one, Ok(claims.clone()))).collect();
        serde_json::to_value(asked.answered(&found)).unwrap()
    }

    fn subject(id: &str) -> Value {
        json!({"type": "workload", "id": id, "properties": {"token": "t"}})
    }

    /// `true`, or why not.
    fn decision(detail_more: &Value, action: &Value, resource: &Value) -> Value {
        let body = json!({"subject": subject("it"), "action": action, "resource": resource});
        let answer = answers(&body, &json!([detail(detail_more)]));
        if answer["decision"] == true { json!(true) } else { answer["context"]["reason"].clone() }
    }

    #[test]
    fn what_is_not_said_is_not_covered_by_what_is_restricted() {
        let location = json!({"type": "location", "id": GIT});
        let (read, clone) = (json!({"name": "read"}), json!({"name": "clone"}));
        let repository = json!({"type": "repository", "id": "acme/payments"});
        let reading = |name: &str| json!({"name": name, "properties": {"privilege": "read"}});
        let (action, resource) = (json!("action_not_covered"), json!("resource_not_covered"));
        let one = json!({"identifier": "acme/payments"});
        let code = json!({"datatypes": ["code"]});
        let actions = json!({"actions": ["clone", "fetch"]});
        for (more, act, of, expected) in [
            (&json!({}), &read, &location, &json!(true)),
            (&json!({}), &json!({"name": "write"}), &location, &action),
            (&json!({}), &json!({"name": "READ"}), &location, &action),
            (&json!({}), &read, &repository, &json!(true)),
            (&json!({}), &read, &json!({"type": "location", "id": "https://git.example.com/"}), &resource),
            (
                &json!({}),
                &read,
                &json!({"type": "repository", "id": "x", "properties": {"location": "https://other"}}),
                &resource,
            ),
            // Whether it reads or writes, nobody said.
            (&json!({}), &clone, &location, &action),
            (&json!({}), &reading("clone"), &location, &json!(true)),
            (&json!({}), &json!({"name": "clone", "properties": {"privilege": "write"}}), &location, &action),
            (&json!({}), &json!({"name": "write", "properties": {"privilege": "read"}}), &location, &action),
            (&actions, &clone, &location, &json!(true)),
            (&actions, &json!({"name": "clone", "properties": {"privilege": "write"}}), &location, &action),
            (&actions, &reading("push"), &location, &action),
            (&actions, &read, &location, &action),
            (&json!({"actions": ["read"]}), &read, &location, &json!(true)),
            (&one, &read, &repository, &json!(true)),
            (&one, &read, &json!({"type": "repository", "id": "acme/other"}), &resource),
            (&one, &read, &location, &resource),
            (
                &one,
                &read,
                &json!({"type": "location", "id": GIT, "properties": {"identifier": "acme/payments"}}),
                &json!(true),
            ),
            (&code, &read, &location, &resource),
            (&code, &read, &json!({"type": "code", "id": "x"}), &json!(true)),
            (&code, &read, &json!({"type": "location", "id": GIT, "properties": {"datatype": "code"}}), &json!(true)),
            (&code, &read, &repository, &resource),
        ] {
            assert_eq!(&decision(more, act, of), expected, "{more} {act} {of}");
        }
        // Two halves make no whole.
        let body = json!({"subject": subject("it"), "action": clone, "resource": repository});
        let halves = json!([detail(&json!({"actions": ["clone"], "identifier": "acme/other"})), detail(&one)]);
        assert_eq!(answers(&body, &halves)["context"]["reason"], action);
    }

    #[test]
    fn who_is_named_is_whose_token_it_is() {
        let reason = |id: &str| {
            let body = json!({"subject": subject(id), "action": {"name": "read"}, "resource": {"type": "location", "id": GIT}});
            answers(&body, &json!([detail(&json!({}))]))["context"]["reason"].clone()
        };
        for id in ["spiffe://example.com/ci/acme", TASK, "alice@example.com", ""] {
            assert_eq!(reason(id), Value::Null, "{id}");
        }
        for id in ["spiffe://example.com/ci/other", "task_01jd0000000000000000000001", "spiffe://"] {
            assert_eq!(reason(id), "subject_mismatch", "{id}");
        }
    }

    #[test]
    fn several_questions_share_what_they_do_not_say() {
        let location = json!({"type": "location", "id": GIT});
        let ask = |semantic: &str| {
            let body = json!({"subject": subject("it"), "resource": location, "options": {"evaluations_semantic": semantic},
                "evaluations": [{"action": {"name": "read"}}, {"action": {"name": "write"}}, {"action": {"name": "read"}}]});
            let answer = answers(&body, &json!([detail(&json!({}))]));
            answer["evaluations"].as_array().unwrap().iter().map(|one| one["decision"] == true).collect::<Vec<_>>()
        };
        assert_eq!(ask("execute_all"), [true, false, true]);
        assert_eq!(ask("deny_on_first_deny"), [true, false]);
        assert_eq!(ask("permit_on_first_permit"), [true]);
        let alone =
            json!({"subject": subject("it"), "resource": location, "action": {"name": "read"}, "evaluations": []});
        assert_eq!(answers(&alone, &json!([detail(&json!({}))]))["decision"], true);
        // A token that nobody looked at is none, and so is one that is not there.
        let unknown = asked(&alone).unwrap();
        assert_eq!(serde_json::to_value(unknown.answered(&[])).unwrap()["context"]["reason"], "token_invalid");
        let without = json!({"subject": {"type": "t", "id": "i"}, "resource": location, "action": {"name": "read"}});
        assert_eq!(answers(&without, &json!([]))["context"]["reason"], "token_missing");
    }

    #[test]
    fn what_is_half_said_is_no_question() {
        let whole =
            json!({"subject": subject("it"), "action": {"name": "read"}, "resource": {"type": "location", "id": GIT}});
        let with = |member: &str, value: Value| {
            let mut body = whole.clone();
            body[member] = value;
            asked(&body).map(|_| ())
        };
        for member in ["subject", "action", "resource"] {
            assert!(with(member, Value::Null).is_err(), "{member}");
        }
        let thumbprint = "A".repeat(43);
        for context in [
            json!({"dpop": "p"}),
            json!({"htm": "GET", "htu": "u"}),
            json!({"dpop": "p", "htm": "GET", "htu": "u", "x5t#S256": thumbprint}),
        ] {
            assert!(with("context", context.clone()).is_err(), "{context}");
        }
        for context in [json!({}), json!({"time": "now"}), json!({"x5t#S256": thumbprint})] {
            assert!(with("context", context.clone()).is_ok(), "{context}");
        }
        let many = |count| with("evaluations", json!(vec![json!({}); count]));
        assert!(many(MOST).is_ok() && many(MOST + 1).is_err());
    }

    #[test]
    fn what_is_presented_twice_is_looked_at_once() {
        let proof = json!({"dpop": "p", "htm": "GET", "htu": "u"});
        let body = json!({"subject": subject("it"), "resource": {"type": "location", "id": GIT}, "action": {"name": "read"},
            "context": proof, "evaluations": [{}, {}, {"context": {}}]});
        assert_eq!(asked(&body).unwrap().credentials().len(), 2);
    }
}
