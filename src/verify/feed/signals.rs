//! What those who check credentials tell those who keep the connection, and the other way round. Without such a client (cargo feature
//! `follow`) there is nobody to tell.

#[cfg(feature = "follow")]
use tokio::sync::{Notify, watch};

#[derive(Debug, Default)]
pub(super) struct Signals {
    #[cfg(feature = "follow")]
    keys: Notify,
    #[cfg(feature = "follow")]
    snapshot: Notify,
    #[cfg(feature = "follow")]
    taken: watch::Sender<()>,
}

#[cfg(feature = "follow")]
impl Signals {
    pub(super) fn want_keys(&self) {
        self.keys.notify_one();
    }

    pub(super) fn want_snapshot(&self) {
        self.snapshot.notify_one();
    }

    pub(super) fn took(&self) {
        self.taken.send_replace(());
    }

    /// Keys are wanted, or were since this was last asked.
    pub(super) async fn keys_wanted(&self) {
        self.keys.notified().await;
    }

    /// A snapshot is.
    pub(super) async fn snapshot_wanted(&self) {
        self.snapshot.notified().await;
    }

    /// Changes whenever a state is taken.
    pub(super) fn taken(&self) -> watch::Receiver<()> {
        self.taken.subscribe()
    }
}

#[cfg(not(feature = "follow"))]
#[expect(clippy::unused_self, reason = "there is nobody to tell")]
impl Signals {
    pub(super) fn want_keys(&self) {}
    pub(super) fn want_snapshot(&self) {}
    pub(super) fn took(&self) {}
}
