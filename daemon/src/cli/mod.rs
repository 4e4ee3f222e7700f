//! The command line: what people type, and what they see.
//!
//! Owns: commands, exit codes, output. Must not know: how the mesh works; it asks the daemon, or starts one.
//! Driven by: `main`. Start reading at `args`, the grammar; each command has a file of its name.

mod args;
mod claim;
mod config;
mod demo;
mod drain;
mod events;
mod expose;
mod failure;
mod flows;
mod forward;
mod host;
mod identity;
mod issuer;
mod listing;
mod name_port;
mod node;
mod output;
mod ping;
mod policy;
mod resolve;
mod root;
mod run;
mod start;
mod status;
mod token;
mod trace;
mod watch;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::api::Client;
use crate::config::{Config, Flags, Host, Settings, Slot, SlotChoice};
use crate::memory;
use args::{Cli, Command, Global};
use failure::{Exit, Failure};

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    // Before the arguments, which may hold a token, and before any key.
    if let Err(error) = memory::keep_private() {
        output::note(format_args!("warning: the system lets others read this process's memory ({error})"));
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage.into() } else { ExitCode::SUCCESS };
        }
    };
    let runtime = match runtime(&cli.command) {
        Ok(runtime) => runtime,
        Err(error) => {
            output::note(format_args!("error: the system refuses threads ({error}); raise its limits"));
            return Exit::Failed.into();
        }
    };
    let result = runtime.block_on(Box::pin(dispatch(cli)));
    // A blocking read, for example of standard input, must not keep the process.
    runtime.shutdown_background();
    result.unwrap_or_else(|failure| {
        output::note(&failure);
        failure.exit.into()
    })
}

/// A daemon uses all cores; everything else one.
fn runtime(command: &Command) -> std::io::Result<tokio::runtime::Runtime> {
    let mut builder = match command {
        Command::Init(_) | Command::Join(_) | Command::Run(_) => tokio::runtime::Builder::new_multi_thread(),
        _ => tokio::runtime::Builder::new_current_thread(),
    };
    builder.enable_all().build()
}

async fn dispatch(cli: Cli) -> Result<ExitCode, Failure> {
    let Cli { global, command } = cli;
    match command {
        Command::Demo(demo) => demo::run(&demo).await,
        Command::Init(init) => start::init(&global, &init).await,
        Command::Join(join) => start::join(&global, &join).await,
        Command::Run(run) => start::run(&global, run).await,
        Command::Token(token) => done(token::run(&client(&global)?, token).await),
        Command::Issuer(issuer) => done(issuer::run(&client(&global)?, issuer).await),
        Command::Root(root) => done(root::run(&client(&global)?, root).await),
        Command::Node(node) => done(node::run(&client(&global)?, node).await),
        Command::Expose(expose) => done(expose::expose(&client(&global)?, expose).await),
        Command::Withdraw(withdraw) => done(expose::withdraw(&client(&global)?, withdraw).await),
        Command::Drain(asked) => done(drain::run(&client(&global)?, asked).await),
        Command::Nodes(shape) => done(listing::nodes(&client(&global)?, shape).await),
        Command::Services(services) => done(listing::services(&client(&global)?, &services).await),
        Command::Resolve(resolve) => done(resolve::run(&client(&global)?, &resolve).await),
        Command::Status(asked) => done(status::run(&client(&global)?, &asked).await),
        Command::Ping(asked) => done(ping::run(&client(&global)?, &asked).await),
        Command::Doctor { json } => status::doctor(&client(&global)?, json).await,
        Command::Trace(asked) => trace::run(&client(&global)?, &asked).await,
        Command::Forward(forward) => forward::run(client(&global)?, forward).await,
        Command::Events(events) => done(events::run(&client(&global)?, &events).await),
        Command::Watch(watch) => done(watch::run(&client(&global)?, &watch).await),
        Command::Leave => done(start::leave(&client(&global)?).await),
        Command::Host(command) => {
            done(host::run(&load(host::flags(global.flags(), &command))?, command).await)
        }
        Command::Policy(policy) => done(policy::run(&client(&global)?, policy).await),
        Command::Reload { json } => {
            // The file is read here first, to find the daemon: a fault of it is a reload that failed.
            let client = client(&global).map_err(|failure| Failure { exit: Exit::Failed, ..failure })?;
            done(policy::reload(&client, json).await)
        }
        Command::Config(command) => done(config::run(&load(global.flags())?, &command)),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "gossamer", &mut script);
            output::data(String::from_utf8_lossy(&script).trim_end());
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn done(result: Result<(), Failure>) -> Result<ExitCode, Failure> {
    result.map(|()| ExitCode::SUCCESS)
}

fn load(flags: Flags) -> Result<Config, Failure> {
    Ok(Config::load(&flags, &Host::this())?)
}

/// Returns a client of the daemon that the flags mean.
fn client(global: &Global) -> Result<Client, Failure> {
    Ok(Client::new(&settings_of(&load(global.flags())?)?.socket))
}

/// Returns the settings of the slot that is named; commands other than those that start a daemon need one.
fn settings_of(config: &Config) -> Result<Settings, Failure> {
    match config.slot() {
        SlotChoice::Fixed(slot) => Ok(config.settings(slot)),
        SlotChoice::Auto if config.source("socket", Slot::FIRST) != "default" => {
            Ok(config.settings(Slot::FIRST))
        }
        SlotChoice::Auto => {
            Err(Failure::usage("auto names no running daemon; pass its number with --slot N"))
        }
    }
}

#[cfg(test)]
mod tests;
