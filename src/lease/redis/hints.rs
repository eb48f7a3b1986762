//! What other brokers say has changed, over a connection of its own: Redis pub/sub, which promises nothing. So these are
//! hints for those who watch, and the store is the truth.

use ::redis::{
    Client, ProtocolVersion, PushInfo, PushKind, RedisResult,
    aio::{ConnectionManager, ConnectionManagerConfig},
};
use std::{convert::Infallible, time::Duration};
use tokio::sync::broadcast;

use super::{
    super::{HINTS, Hint},
    connect::{self, within},
};

/// Where the scripts publish what changed.
pub(super) const CHANNEL: &str = "remit:changes";

/// The hints, and the connection that they come over, if there is one.
pub(super) struct Hints {
    changes: broadcast::Sender<Hint>,
    /// Subscribes again by itself when Redis comes back.
    _connection: Option<ConnectionManager>,
}

impl Hints {
    /// Listens to a Redis whose URL was found to be good. Without hints, whoever watches learns of changes a little later.
    pub(super) async fn listen(url: &str) -> Self {
        let changes = broadcast::Sender::new(HINTS);
        let connection = within(subscribe(url, changes.clone())).await;
        if let Err(why) = &connection {
            tracing::warn!(%why, "no hints of changes: those who watch a task learn of its end some seconds later");
        }
        Self { changes, _connection: connection.ok() }
    }

    pub(super) fn changes(&self) -> broadcast::Receiver<Hint> {
        self.changes.subscribe()
    }
}

async fn subscribe(url: &str, changes: broadcast::Sender<Hint>) -> RedisResult<ConnectionManager> {
    let heard = move |push: PushInfo| {
        if let (PushKind::Message, Some(text)) = (&push.kind, push.data.into_iter().nth(1)) {
            let hint = redis::from_redis_value::<String>(text).ok().and_then(|text| Hint::read(&text));
            // Nobody may be listening.
            let _ = hint.map(|hint| changes.send(hint));
        }
        Ok::<(), Infallible>(())
    };
    let config = ConnectionManagerConfig::new()
        .set_connection_timeout(Some(Duration::from_secs(1)))
        .set_response_timeout(Some(Duration::from_secs(2)))
        .set_push_sender(heard)
        .set_automatic_resubscription();
    let client = Client::open(connect::info(url, ProtocolVersion::RESP3)?)?;
    let mut connection = ConnectionManager::new_with_config(client, config).await?;
    connection.subscribe(CHANNEL).await?;
    Ok(connection)
}
