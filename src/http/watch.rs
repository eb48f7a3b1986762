//! `GET /v1/tasks/{id}` as a stream of server-sent events (WHATWG HTML, section 9.2): how the task stands, again at every
//! change, and the end of the stream with the end of the task.

use axum::{
    Extension,
    http::{HeaderMap, header},
    response::{
        IntoResponse as _, Response, Sse,
        sse::{Event, KeepAlive},
    },
};
use futures_util::{StreamExt as _, stream};
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

use super::{error::Problem, extract::Called, listen::Apart, tasks::bodies::Shown};
use crate::{
    broker::{Broker, Turn},
    error::Error,
    id::TaskId,
};

/// How often something is sent, so that both ends notice a connection that is gone.
const ALIVE: Duration = Duration::from_secs(5);
/// How soon a client that lost the stream should ask for it again.
const RETRY: Duration = Duration::from_secs(1);

/// Whether an answer in events is asked for.
pub(super) fn wanted(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    accepted
        .flat_map(|value| value.split(','))
        .any(|kind| kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("text/event-stream")))
}

pub(super) async fn watch(
    broker: Arc<Broker>,
    id: &TaskId,
    called: Called,
    stop: CancellationToken,
) -> Result<Response, Problem> {
    let following = broker.follow(called.request, id).await?;
    let apart = Apart::new(following.room());
    let turns = stream::unfold(following, async |mut following| Some((event(&following.next().await?), following)));
    let events = Sse::new(turns.take_until(stop.cancelled_owned())).keep_alive(KeepAlive::new().interval(ALIVE));
    Ok((Extension(apart), events).into_response())
}

fn event(Turn { held, now }: &Turn) -> Result<Event, axum::Error> {
    let body = Shown::of(held, *now).map_err(|error: Error| axum::Error::new(error))?;
    Event::default().event("task").retry(RETRY).json_data(body)
}
