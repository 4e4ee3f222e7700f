//! `issuer add|list|remove|grant`.
//!
//! Owns: how issuers are ordered and shown. Must not know: what makes one. Driven by: `cli`.

use super::args::Issuer;
use super::failure::Failure;
use super::output;
use crate::api::Client;
use crate::api::messages::{AddIssuer, GrantNumbers, IssuerRow, OrderDone, RemoveIssuer};
use crate::clock;

pub(super) async fn run(client: &Client, issuer: Issuer) -> Result<(), Failure> {
    match issuer {
        Issuer::Add { node, group } => {
            let done: OrderDone = client.post("/v1/issuer/add", &AddIssuer { node, groups: group }).await?;
            let ends = days_left(done.ends.unwrap_or(0), clock::wall());
            output::note(format_args!("{} admits nodes and renews certificates now, for {ends}", done.name));
        }
        Issuer::Remove { node, stolen } => {
            let done: OrderDone = client.post("/v1/issuer/remove", &RemoveIssuer { node, stolen }).await?;
            let rest = if stolen {
                "nothing that its key signed counts any more"
            } else {
                "the nodes it admitted renew elsewhere"
            };
            output::note(format_args!("{} admits nobody any more; {rest}", done.name));
        }
        Issuer::Grant { node, numbers } => {
            let done: OrderDone = client.post("/v1/issuer/grant", &GrantNumbers { node, numbers }).await?;
            output::note(format_args!("the issuer of {} may make {numbers} statements in all", done.name));
        }
        Issuer::List(shape) => {
            let rows: Vec<IssuerRow> = client.get("/v1/issuers").await?;
            let now = clock::wall();
            let head = ["ISSUER", "GROUPS", "STATE", "ENDS", "STATEMENTS"];
            return output::listing(shape, &rows, &head, |row| vec![cells(row, now)]);
        }
    }
    Ok(())
}

fn cells(row: &IssuerRow, now: u64) -> Vec<String> {
    let groups: Vec<_> = row.groups.iter().map(ToString::to_string).collect();
    let conflict = if row.conflicted { ", conflicted" } else { "" };
    vec![
        row.name.clone(),
        if groups.is_empty() { "all".to_owned() } else { groups.join(",") },
        row.state.clone(),
        format!("in {}", days_left(row.certificate_ends, now)),
        format!("{} of {}{conflict}", row.statements, row.budget),
    ]
}

/// Says how long until a moment, in the unit that fits.
fn days_left(ends: u64, now: u64) -> String {
    match ends.saturating_sub(now) {
        seconds @ 0..600 => format!("{seconds} s"),
        seconds @ 600..172_800 => format!("{} h", seconds / 3_600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_who_for_whom_and_for_how_long() {
        let row = IssuerRow {
            name: "vm-a".to_owned(),
            id: "id".to_owned(),
            groups: Vec::new(),
            state: "alive".to_owned(),
            certificate_ends: 10 * 86_400,
            statements: 3,
            budget: 64,
            conflicted: false,
        };
        assert_eq!(cells(&row, 86_400), ["vm-a", "all", "alive", "in 9 days", "3 of 64"]);
        let groups = vec!["east".parse().expect("name"), "west".parse().expect("name")];
        let scoped = IssuerRow { groups, conflicted: true, ..row };
        assert_eq!(
            cells(&scoped, 10 * 86_400 - 7)[1..],
            ["east,west", "alive", "in 7 s", "3 of 64, conflicted"]
        );
    }
}
