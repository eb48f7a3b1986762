//! `remit task reach`: where the end of a task has arrived; and waiting until it has arrived everywhere.

use serde_json::Value;
use std::time::Duration;
use tokio::time::{Instant, sleep};

use super::super::{
    Output,
    client::Answer,
    connection::Connection,
    exit::{Exit, Failure},
    show::{self, say},
};
use crate::{clock::Clock, id::TaskId};

/// How often it is asked while something may arrive at any moment, and for how long that is so.
const OFTEN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(20));
/// How often after that, at least.
const SELDOM: Duration = Duration::from_secs(30);

/// How long to wait.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Waiting {
    /// Wait until no verifier of any kind accepts anything of it any more.
    #[arg(long)]
    wait: bool,
    /// Wait no longer than this, and end with code 4 where something is still open.
    #[arg(long, value_name = "SECONDS", requires = "wait")]
    timeout: Option<u64>,
}

impl Waiting {
    /// Ends well only where every line is done: at once, or within the time to wait.
    pub(super) async fn reach(
        &self,
        task: &TaskId,
        connection: &Connection,
        output: Output,
        clock: &dyn Clock,
    ) -> Result<(), Failure> {
        let begun = Instant::now();
        let mut told = None;
        loop {
            let answer = match ask(task, connection).await {
                // Whoever waits for it to arrive waits for a broker that comes back, too.
                Err(why) if why.exit() == Exit::OutOfReach && self.wait && !self.is_over(begun) => None,
                answer => Some(answer?),
            };
            if let Some(answer) = answer {
                let done = answer.json["done"] == true;
                let lines = progress(&answer.json);
                let ends = done || !self.wait || self.is_over(begun);
                match output {
                    Output::Json if ends => say(&answer.text),
                    Output::Text if ends || told.as_ref() != Some(&lines) => {
                        say(&show::reach(&answer.json, clock.now()));
                    }
                    Output::Json | Output::Text => {}
                }
                if ends {
                    return if done { Ok(()) } else { Err(Failure::Pending) };
                }
                told = Some(lines);
            }
            sleep(self.pause(begun)).await;
        }
    }

    /// Whether there is anything to do after a revoke.
    pub(super) fn is_asked(&self) -> bool {
        self.wait
    }

    fn is_over(&self, begun: Instant) -> bool {
        self.timeout.is_some_and(|timeout| begun.elapsed() >= Duration::from_secs(timeout))
    }

    fn pause(&self, begun: Instant) -> Duration {
        let (often, phase) = OFTEN;
        let pause = if begun.elapsed() < phase { often } else { SELDOM };
        let left = self.timeout.map(|timeout| Duration::from_secs(timeout).saturating_sub(begun.elapsed()));
        left.map_or(pause, |left| pause.min(left.max(Duration::from_millis(50))))
    }
}

async fn ask(task: &TaskId, connection: &Connection) -> Result<Answer, Failure> {
    connection.operator().await?.get(&format!("/v1/tasks/{task}/reach"), &[]).await
}

/// What can change from one answer to the next.
fn progress(answer: &Value) -> (Value, Vec<(Value, Value)>) {
    let lines = answer["reach"].as_array().map(Vec::as_slice).unwrap_or_default();
    let lines = lines.iter().map(|line| (line["done"].clone(), line["acknowledged"].clone())).collect();
    (answer["state"].clone(), lines)
}
