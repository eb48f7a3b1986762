//! `GET /v1/workloads`: the inventory.

use axum::{
    Extension, Json as Answer,
    extract::{Query, State, rejection::QueryRejection},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, sync::Arc};
use utoipa::{IntoParams, ToSchema};

use super::{
    HungUp,
    error::Problem,
    extract::Called,
    openapi::{Refusals, callers, refused},
};
use crate::{
    broker::{self, Broker},
    clock::Time,
    error::Error,
    id::SpiffeId,
    party::Act,
    task::Kind,
};

/// Workloads on a page where nobody asks for another number, and at most.
const PAGE: (usize, usize) = (50, 200);

/// Which page.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct InventoryQuery {
    /// `next_cursor` of the page before.
    cursor: Option<SpiffeId>,
    /// How many workloads a page holds.
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<usize>,
}

/// A page of the inventory.
#[derive(Serialize, ToSchema)]
#[schema(as = WorkloadList)]
pub(super) struct Inventory {
    /// By SPIFFE ID, in order.
    workloads: Vec<Listed>,
    /// What the inventory is made of.
    covers: Covers,
    /// What the next page comes after; null at the end.
    #[schema(required)]
    next_cursor: Option<String>,
}

/// A workload.
#[derive(Serialize, ToSchema)]
#[schema(as = Workload)]
struct Listed {
    /// Its SPIFFE ID.
    workload: String,
    /// Of which kinds it is, by the configuration of the attestors that vouched for it; none is known of one that was only turned away.
    kinds: BTreeSet<Kind>,
    /// For whom its tasks were declared; 32 at most.
    owners: BTreeSet<String>,
    /// Whether there are more owners.
    more_owners: bool,
    /// When it was seen first.
    #[schema(value_type = String, format = DateTime)]
    first_seen: Time,
    /// When it was seen last.
    #[schema(value_type = String, format = DateTime)]
    last_seen: Time,
    /// How many of its tasks are active, on all brokers.
    live_tasks: u64,
    /// How often policy refused it a task, a credential or a renewal, at this broker.
    denials: u64,
}

/// What the inventory is made of.
#[derive(Serialize, ToSchema)]
#[schema(as = WorkloadListCovers)]
struct Covers {
    /// How many tasks of the store, of all brokers, were looked at.
    tasks: usize,
    /// Whether those were all. Tasks are kept for a day after their deadline.
    all_tasks: bool,
    /// The log of the broker that answers. Of what other brokers saw, only tasks are in the inventory.
    log: String,
    /// The first of its records that was read, and the last; null where there was none.
    #[schema(required)]
    records: Option<(u64, u64)>,
    /// When the first of those records was written: nothing is known of before, but by tasks.
    #[schema(required, value_type = Option<String>, format = DateTime)]
    since: Option<Time>,
    /// Whether the log was read to its end: where it was not, ask again.
    all_records: bool,
    /// How many records are of workloads that there was no room for.
    left_out: u64,
}

/// List the workloads that there are.
///
/// Since when each is known, when it was seen last, for whom it works, what it is doing now, and how often it was refused something.
/// Made of the tasks of all brokers that the store holds and of the log of the broker that answers, as far back as that is kept.
#[utoipa::path(
    get, path = "/v1/workloads", operation_id = "listWorkloads", tag = "investigate",
    params(InventoryQuery),
    responses(
        (status = 200, description = "A page", body = Inventory),
        Refusals<{ refused::MALFORMED | refused::EVIDENCE | refused::ROLE | refused::QUOTA }>,
    ),
    security(("operator" = [])),
    extensions(("x-remit-callers" = json!(callers([], Act::ListWorkloads)))),
)]
pub(super) async fn list(
    State(broker): State<Arc<Broker>>,
    asked: Result<Query<InventoryQuery>, QueryRejection>,
    Extension(HungUp(gone)): Extension<HungUp>,
    called: Called,
) -> Result<Answer<Inventory>, Problem> {
    let Query(InventoryQuery { cursor, limit }) =
        asked.map_err(|_| Error::invalid("the query knows `cursor` (as it was answered) and `limit` (a number)"))?;
    let limit = limit.unwrap_or(PAGE.0);
    if !(1..=PAGE.1).contains(&limit) {
        return Err(Error::invalid("`limit` is 1 to 200").into());
    }
    let inventory = broker.workloads((called.request, gone), cursor.as_ref().map(SpiffeId::as_str), limit).await?;
    Ok(Answer(inventory.into()))
}

impl From<broker::Inventory> for Inventory {
    fn from(inventory: broker::Inventory) -> Self {
        let broker::Inventory { workloads, next, tasks, all_tasks, log, records, all_records, since, left_out } =
            inventory;
        let covers = Covers { tasks, all_tasks, log, records, since, all_records, left_out };
        Self { workloads: workloads.into_iter().map(Listed::from).collect(), covers, next_cursor: next }
    }
}

impl From<(String, broker::Workload)> for Listed {
    fn from((workload, known): (String, broker::Workload)) -> Self {
        let broker::Workload { kinds, owners, more_owners, first_seen, last_seen, live_tasks, denials } = known;
        Self { workload, kinds, owners, more_owners, first_seen, last_seen, live_tasks, denials }
    }
}
