//! A look that many ask for at a time: one after the other, so that an older answer never overtakes a newer one, and one for all who
//! came before it began.

use std::time::Instant;
use tokio::sync::Mutex;

/// When the last look began, and what it saw.
pub(super) struct OneLook<T>(Mutex<Option<(Instant, T)>>);

impl<T> Default for OneLook<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T: Copy> OneLook<T> {
    /// What `look` sees, or what another saw that began after this was asked for.
    pub(super) async fn look(&self, look: impl Future<Output = T>) -> T {
        let came = Instant::now();
        let mut last = self.0.lock().await;
        if let Some((_, seen)) = last.filter(|(begun, _)| *begun >= came) {
            return seen;
        }
        let begun = Instant::now();
        let seen = look.await;
        *last = Some((begun, seen));
        seen
    }
}
