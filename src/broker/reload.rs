//! Other rules for a running broker. Every request that begins afterwards goes by them; what was granted before is decided
//! on again at its next mint or renewal.

use std::sync::{Arc, atomic::Ordering};

use super::{Broker, Rules};
use crate::{
    audit::{Actor, Entry, Event},
    error::Error,
};

impl Broker {
    /// Goes by these rules from now on.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the change cannot be recorded: then the old rules stay.
    pub async fn adopt(&self, rules: Rules) -> Result<(), Error> {
        let policies = rules.policies.digest().to_owned();
        let event = Event::ConfigurationAdopted { policies };
        let request = String::new();
        self.record(vec![Entry { time: self.now(), request, actor: Actor::Broker, task: None, event }]).await?;
        rules.attestors.inherit(&self.rules().attestors);
        rules.parties.inherit(&self.rules().parties);
        self.parts.metrics.policies(rules.policies.digest());
        self.rules.store(Arc::new(rules));
        self.outdated.store(false, Ordering::Release);
        Ok(())
    }

    /// Notes that the configuration as it stands now cannot be adopted, so that an older one stays in force.
    pub fn keep_rules(&self) {
        self.outdated.store(true, Ordering::Release);
    }

    /// Whether an older configuration is in force than the one that stands.
    #[must_use]
    pub fn is_outdated(&self) -> bool {
        self.outdated.load(Ordering::Acquire)
    }
}
