//! `remit completions …`

use clap::{Args, Command, CommandFactory as _, ValueEnum};
use clap_complete::{Shell as Generator, generate};

use super::{Cli, show::say};

/// Print a script by which a shell completes what is typed.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Completions {
    /// The shell that it is for.
    #[arg(value_enum)]
    shell: Shell,
}

const EXAMPLES: &str = "Examples:
  source <(remit completions bash)
  remit completions zsh > \"${fpath[1]}/_remit\"
  remit completions fish > ~/.config/fish/completions/remit.fish";

/// Those that are tested.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

impl Completions {
    pub(super) fn run(&self) {
        let shell = match self.shell {
            Shell::Bash => Generator::Bash,
            Shell::Zsh => Generator::Zsh,
            Shell::Fish => Generator::Fish,
        };
        let whole = Cli::command();
        // What the help does not show is not offered either.
        let shown = whole.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
        let mut offered = Command::new("remit")
            .version(env!("CARGO_PKG_VERSION"))
            .args(whole.get_arguments().cloned())
            .subcommands(shown);
        let mut script = Vec::new();
        generate(shell, &mut offered, "remit", &mut script);
        say(String::from_utf8_lossy(&script).trim_end());
    }
}
