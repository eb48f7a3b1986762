//! Telemetry: what waits is sent to the collector beside everything else, and what still waits at the end as far as time allows.

use std::{sync::Arc, time::Duration};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    broker::Broker,
    clock::Clock,
    config::Config,
    telemetry::{Exporter, Source, Waiting},
};

/// How long what still waits may take at the end.
const FLUSH: Duration = Duration::from_secs(3);

/// What sends.
pub(super) struct Shipping {
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// Reads what the configuration names.
pub(super) fn exporter(config: &Config) -> Result<Option<Exporter>, String> {
    config.telemetry.otlp.as_ref().map(Exporter::new).transpose()
}

/// Sends from now on, if there is somebody to send to.
pub(super) fn begin(to: Option<(Exporter, Waiting)>, broker: &Arc<Broker>, clock: Arc<dyn Clock>) -> Shipping {
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    if let Some((exporter, waiting)) = to {
        let counting = broker.clone();
        let source = Source {
            issuer: broker.issuer().to_owned(),
            instance: broker.audit().log().to_owned(),
            text: Box::new(move || counting.metrics().text(counting.counted()).ok()),
            metrics: broker.metrics().clone(),
            clock,
        };
        tasks.spawn(exporter.run(waiting, source, stop.clone()));
    }
    tasks.close();
    Shipping { stop, tasks }
}

impl Shipping {
    /// Sends what still waits.
    pub(super) async fn end(self) {
        self.stop.cancel();
        if tokio::time::timeout(FLUSH, self.tasks.wait()).await.is_err() {
            tracing::warn!("some telemetry did not get to the collector");
        }
    }
}
