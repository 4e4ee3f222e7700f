//! Users of one machine at the local API of its daemon.
//!
//! Owns: the users, who exist as numbers only, and what each tries. Must not know: how the daemon tells them apart.
//! Driven by: `evidence`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;

use anyhow::{Context as _, Result, ensure};

use super::{Ci, Needs, Row, Run};
use crate::process::{COMMAND, Finished, Lab, Node};
use crate::promise;

pub(super) const ROW: Row = Row {
    name: "4.7-callers",
    promise: "Of the users who can open the local socket one who is no operator looks, registers and withdraws its own, also after a restart; 10 kinds of orders and 3 ways to change what is another user's are refused with exit 5, and an operator does all of it",
    sabotage: "the user is named in api.operators",
    // To be several users.
    needs: Needs::Root,
    ci: Ci::Runs,
    check: callers,
};

/// The group of the socket, and three users in it.
const GROUP: u32 = 42_420;
const ANN: u32 = 42_421;
const BOB: u32 = 42_422;
const OPERATOR: u32 = 42_423;

/// What only operators may do. Each would do something for one, or fail for another reason than who asks.
const ORDERS: [&[&str]; 10] = [
    &["token", "create"],
    &["token", "list"],
    &["token", "renew", "aaaaaaaa"],
    &["token", "revoke", "aaaaaaaa"],
    &["issuer", "add", "second"],
    &["issuer", "remove", "first"],
    &["issuer", "remove", "first", "--stolen"],
    &["issuer", "grant", "first", "100"],
    &["node", "evict", "second"],
    &["leave"],
];

fn callers(run: &Run) -> Result<String> {
    run.scenario(|lab| {
        let mut first = lab.node("first")?;
        // The socket takes the group of its directory over.
        nix::unistd::chown(&first.dir(), None, Some(GROUP.into()))?;
        fs::set_permissions(first.dir(), fs::Permissions::from_mode(0o2755))?;
        let extra = if run.sabotaged { format!(", \"{BOB}\"") } else { String::new() };
        fs::write(first.config_file(), format!("[api]\noperators = [\"{OPERATOR}\"{extra}]\n"))?;
        first.init("default")?;
        let mut second = lab.node("second")?;
        second.join(&first.token(&[])?)?;

        let stranger = by(lab, &first, ANN, ANN, &["status"])?;
        promise!(stranger.code == Some(3), "who is not in the group opens the socket: {:?}", stranger.code);
        for look in [&["status"][..], &["nodes"], &["services"], &["issuer", "list"], &["events"]] {
            as_user(lab, &first, BOB, look, 0)?;
        }
        as_user(lab, &first, ANN, &["expose", "web:8080"], 0)?;
        as_user(lab, &first, BOB, &["expose", "other:8081"], 0)?;
        as_user(lab, &first, BOB, &["withdraw", "other"], 0)?;
        first.stop()?;
        first.run()?;
        let steals = [
            &["withdraw", "web"][..],
            &["expose", "web:9090"],
            &["expose", "web:8080", "--instance", "mine"],
        ];
        for refused in steals.into_iter().chain(ORDERS) {
            as_user(lab, &first, BOB, refused, 5)?;
        }
        let counters = first.status()?["counters"].clone();
        for (reason, number) in [("operator", ORDERS.len()), ("owner", steals.len())] {
            let name = format!("gossamer_api_refused_total{{reason=\"{reason}\"}}");
            promise!(counters[&name] == number, "{name} is {} instead of {number}", counters[&name]);
        }
        as_user(lab, &first, ANN, &["expose", "web:8082"], 0)?;
        as_user(lab, &first, OPERATOR, &["token", "list"], 0)?;
        as_user(lab, &first, OPERATOR, &["withdraw", "web"], 0)?;
        as_user(lab, &first, OPERATOR, &["node", "evict", "second"], 0)?;
        as_user(lab, &first, OPERATOR, &["leave"], 0)?;
        Ok(format!(
            "{} orders and {} changes of another user's service refused and counted",
            ORDERS.len(),
            steals.len()
        ))
    })
}

/// Runs a command as a user of the socket's group, and wants an exit code.
fn as_user(lab: &Lab, node: &Node, user: u32, arguments: &[&str], code: i32) -> Result<()> {
    let done = by(lab, node, user, GROUP, arguments)?;
    let line = arguments.join(" ");
    promise!(
        done.code == Some(code),
        "`{line}` of user {user}: exit {:?} instead of {code}: {}",
        done.code,
        done.stderr.trim()
    );
    if code == 5 {
        ensure!(done.stderr.contains("user "), "`{line}` does not say whose it is: {}", done.stderr);
    }
    Ok(())
}

fn by(lab: &Lab, node: &Node, user: u32, group: u32, arguments: &[&str]) -> Result<Finished> {
    let mut command = node.command(arguments);
    // A state directory of its own, as every user has.
    let home = lab.dir().join(format!("home-{user}"));
    command.env("GOSSAMER_STATE_DIR", &home).env("HOME", &home).uid(user).gid(group);
    lab.finish(command, COMMAND).context("running a command as another user")
}
