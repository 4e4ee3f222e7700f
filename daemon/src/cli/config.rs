//! `config check` and `config show`.
//!
//! Owns: how settings are shown. Must not know: how they are read. Driven by: `cli`.

use serde::Serialize;

use super::args::{ConfigCommand, Shape};
use super::failure::Failure;
use super::{output, settings_of};
use crate::config::Config;

#[derive(Serialize)]
struct Row {
    key: &'static str,
    value: String,
    source: String,
}

pub(super) fn run(config: &Config, command: &ConfigCommand) -> Result<(), Failure> {
    match command {
        ConfigCommand::Check => {
            let found = if config.file().exists() { "" } else { " (no such file; defaults apply)" };
            output::note(format_args!("the configuration is sound: {}{found}", config.file().display()));
            Ok(())
        }
        ConfigCommand::Show(shape) => show(config, *shape),
    }
}

fn show(config: &Config, shape: Shape) -> Result<(), Failure> {
    let settings = settings_of(config)?;
    let rows: Vec<Row> = settings
        .entries()
        .into_iter()
        .map(|(key, value)| Row { key, value, source: config.source(key, settings.slot).to_owned() })
        .collect();
    if shape.json || shape.quiet {
        return output::listing(shape, &rows, &[], |row| vec![vec![row.key.to_owned()]]);
    }
    rows.iter().for_each(|row| output::data(line(row)));
    Ok(())
}

fn line(row: &Row) -> String {
    format!("{:<44} # {}", format!("{} = {}", row.key, row.value), row.source)
}
