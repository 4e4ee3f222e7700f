//! `drain`: no new flows for services of this machine, and the end of those that live.
//!
//! Owns: what is asked for, the wait, the words. Must not know: how flows end. Driven by: `cli`.

use std::time::Duration;

use clap::Args;
use gossamer_wire::{InstanceName, ServiceName};
use tokio::time::sleep;

use super::failure::Failure;
use super::output;
use crate::api::Client;
use crate::api::messages::{Drain, DrainRow, Draining};
use crate::duration;

#[derive(Debug, Args)]
pub(super) struct Asked {
    /// The service; all of this machine unless given
    name: Option<ServiceName>,
    /// One instance of it; all of this machine unless given
    #[arg(long, requires = "name")]
    instance: Option<InstanceName>,
    /// How long flows may go on; what is left then is reset
    #[arg(long = "for", value_name = "TIME", value_parser = duration::parse, default_value = "15m")]
    within: Duration,
    /// Take new flows again
    #[arg(long, conflicts_with = "within")]
    undo: bool,
    /// Return at once instead of when all flows have ended
    #[arg(long, conflicts_with = "undo")]
    no_wait: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(client: &Client, asked: Asked) -> Result<(), Failure> {
    let Asked { name, instance, within, undo, no_wait, json } = asked;
    let body = Drain { service: name, instance, for_seconds: within.as_secs(), undo };
    let mut done: Draining = client.post("/v1/drain", &body).await?;
    lines(&done).iter().for_each(output::note);
    if !undo && !no_wait {
        let reset = wait(client, &mut done.registrations).await?;
        output::note(match reset {
            0 => "all flows have ended; gossamer drain --undo takes new ones again".to_owned(),
            reset => format!("{reset} flows were reset; gossamer drain --undo takes new ones again"),
        });
    }
    if json { output::json(&done) } else { Ok(()) }
}

/// Waits until the flows have ended; returns how many were reset for that. Rows whose drain was undone meanwhile are
/// waited for no longer.
async fn wait(client: &Client, rows: &mut [DrainRow]) -> Result<usize, Failure> {
    loop {
        let before: usize = rows.iter().map(|row| row.flows).sum();
        let was_over = rows.iter().all(|row| row.left_seconds == 0);
        if before == 0 {
            return Ok(0);
        }
        sleep(LOOK).await;
        let now: Draining = client.get("/v1/drain").await?;
        for row in rows.iter_mut() {
            let is_it = |known: &&DrainRow| known.service == row.service && known.instance == row.instance;
            let known = now.registrations.iter().find(is_it);
            (row.flows, row.left_seconds) =
                known.map_or((0, row.left_seconds), |known| (known.flows, known.left_seconds));
        }
        let left: usize = rows.iter().map(|row| row.flows).sum();
        // The last look before the deadline saw them, and they went with it.
        if left == 0 && (was_over || rows.iter().all(|row| row.left_seconds == 0)) {
            return Ok(before);
        }
    }
}

fn lines(done: &Draining) -> Vec<String> {
    if done.registrations.is_empty() {
        return vec![
            if done.undone { "nothing drains" } else { "nothing is registered that could drain" }.to_owned(),
        ];
    }
    let line = |row: &DrainRow| {
        let what = format!("{} of {}", row.instance, row.service);
        match done.undone {
            true => format!("takes flows again: {what}"),
            false => {
                let within = duration::words(Duration::from_secs(row.left_seconds));
                format!("drains: {what}, {} flows, which are reset after {within}", row.flows)
            }
        }
    };
    done.registrations.iter().map(line).collect()
}

/// Between two looks: below what a person waits for, far above what a look costs.
const LOOK: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::args::{Cli, Command};
    use super::*;

    fn parse(line: &str) -> Result<Asked, clap::Error> {
        let words = ["gossamer", "drain"].into_iter().chain(line.split_whitespace());
        Cli::try_parse_from(words).map(|cli| match cli.command {
            Command::Drain(asked) => asked,
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn everything_drains_for_a_quarter_of_an_hour_unless_said_otherwise() {
        let asked = parse("").expect("parses");
        assert_eq!((asked.name, asked.within, asked.undo), (None, Duration::from_secs(900), false));
        let asked = parse("orders --instance a --for 30s --no-wait").expect("parses");
        assert_eq!((asked.name.is_some(), asked.within), (true, Duration::from_secs(30)));
        assert!(parse("orders --undo").expect("parses").undo);
        for wrong in ["--instance a", "--undo --for 3s", "--undo --no-wait", "--for soon"] {
            assert_eq!(parse(wrong).expect_err(wrong).exit_code(), 2, "{wrong}");
        }
    }

    #[test]
    fn the_words_say_what_drains_and_until_when() {
        let row = DrainRow {
            service: "orders".parse().expect("name"),
            instance: "vm-a".parse().expect("name"),
            flows: 3,
            left_seconds: 900,
        };
        let done = Draining { undone: false, registrations: vec![row.clone()] };
        assert_eq!(lines(&done), ["drains: vm-a of orders, 3 flows, which are reset after 15m"]);
        let undone = Draining { undone: true, registrations: vec![row] };
        assert_eq!(lines(&undone), ["takes flows again: vm-a of orders"]);
        assert_eq!(lines(&Draining { undone: true, registrations: Vec::new() }), ["nothing drains"]);
    }
}
