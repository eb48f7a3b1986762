//! The `remit` command.

use clap::Parser as _;
use std::{
    io::{IsTerminal as _, stderr},
    process::ExitCode,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = remit::cli::Cli::parse();
    if let Err(why) = cli.keep_memory() {
        return remit::cli::not_started(&why);
    }
    let log = tracing_subscriber::fmt().with_env_filter(cli.log_filter()).with_writer(stderr);
    if cli.logs_json() {
        log.json().with_span_list(false).init();
    } else {
        log.with_ansi(stderr().is_terminal()).init();
    }
    match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime.block_on(remit::cli::run(cli)),
        Err(error) => remit::cli::not_started(&format!("no runtime: {error}")),
    }
}
