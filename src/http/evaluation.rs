//! `AuthZEN` 1.0: a service asks whether whoever holds a token may do something, now.

use axum::{
    Json as Answer,
    extract::{Request, State},
};
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;

use super::{
    REQUEST_ID,
    error::Problem,
    extract::{Called, Json},
    openapi::{Refusals, refused},
};
use crate::{
    broker::Broker,
    error::Error,
    evaluation::{Answered, Asked, EvaluationRequest, EvaluationResponse, EvaluationsRequest, is_request_id},
    id::Malformed,
};

/// Where the decision point is, and what it answers.
#[derive(Serialize, ToSchema)]
#[schema(as = AuthzenConfiguration)]
pub(super) struct Configuration {
    /// The broker.
    policy_decision_point: String,
    access_evaluation_endpoint: String,
    access_evaluations_endpoint: String,
}

/// Where the decision point is, and what it answers (`AuthZEN` 1.0).
#[utoipa::path(
    get, path = "/.well-known/authzen-configuration", operation_id = "authzenConfiguration", tag = "evaluation",
    responses((status = 200, description = "The configuration", body = Configuration), Refusals<0>),
    security(),
    extensions(("x-remit-callers" = json!(["anyone"]))),
)]
pub(super) async fn configuration(State(broker): State<Arc<Broker>>) -> Answer<Configuration> {
    let issuer = broker.issuer();
    Answer(Configuration {
        policy_decision_point: issuer.to_owned(),
        access_evaluation_endpoint: format!("{issuer}/access/v1/evaluation"),
        access_evaluations_endpoint: format!("{issuer}/access/v1/evaluations"),
    })
}

/// Ask whether whoever holds a token may do something, now (`AuthZEN` 1.0).
///
/// The token is in `subject.properties.token` and has to be for the service that asks; what shows that its holder presents it is in
/// `context`. It may, if it is alive at this moment and its authority covers the action on the resource; all else is denied.
#[utoipa::path(
    post, path = "/access/v1/evaluation", operation_id = "evaluate", tag = "evaluation",
    params(("X-Request-ID" = Option<String>, Header, description = "Comes back in the answer")),
    request_body = EvaluationRequest,
    responses(
        (status = 200, description = "Whether it may", body = EvaluationResponse),
        Refusals<{ refused::MALFORMED | refused::EVIDENCE | refused::ROLE | refused::BODY }>,
    ),
    security(("service" = [])),
    extensions(("x-remit-callers" = json!(["service"]))),
)]
pub(super) async fn evaluate(
    State(broker): State<Arc<Broker>>,
    called: Called,
    Json { value, .. }: Json<EvaluationRequest>,
) -> Result<Answer<Answered>, Problem> {
    Ok(Answer(broker.evaluate(called.request, &said(value.asked())?).await?))
}

/// Ask several such questions at once (`AuthZEN` 1.0).
///
/// What a question does not say itself stands beside them; without any there is one question, which stands there alone. A proof serves
/// all questions of a request.
#[utoipa::path(
    post, path = "/access/v1/evaluations", operation_id = "evaluateSeveral", tag = "evaluation",
    params(("X-Request-ID" = Option<String>, Header, description = "Comes back in the answer")),
    request_body = EvaluationsRequest,
    responses(
        (status = 200, description = "Whether each may, as far as was asked", body = Answered),
        Refusals<{ refused::MALFORMED | refused::EVIDENCE | refused::ROLE | refused::BODY }>,
    ),
    security(("service" = [])),
    extensions(("x-remit-callers" = json!(["service"]))),
)]
pub(super) async fn evaluate_several(
    State(broker): State<Arc<Broker>>,
    called: Called,
    Json { value, .. }: Json<EvaluationsRequest>,
) -> Result<Answer<Answered>, Problem> {
    Ok(Answer(broker.evaluate(called.request, &said(value.asked())?).await?))
}

/// The id that a caller has given its question, which has to come back (`AuthZEN` 1.0 section 10.1.3); what is none is not repeated. What is on
/// record of the request goes by an id of our own.
pub(super) fn request_id(request: &Request) -> Option<String> {
    let id = request.headers().get(&REQUEST_ID).filter(|_| request.uri().path().starts_with("/access/"))?;
    id.to_str().ok().filter(|_| is_request_id(id.as_bytes())).map(str::to_owned)
}

fn said(asked: Result<Asked, Malformed>) -> Result<Asked, Error> {
    asked.map_err(|why| Error::invalid(why.to_string()))
}
