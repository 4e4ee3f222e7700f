//! `policy show` and `policy test`, and `reload`.
//!
//! Owns: how they are shown. Must not know: how rules are judged. Driven by: `cli`.

use super::args::{Policy, Shape};
use super::failure::{Exit, Failure};
use super::output;
use crate::api::Client;
use crate::api::messages::{PolicyShown, PolicyTested, Reloaded, ReloadedKey};

pub(super) async fn run(client: &Client, policy: Policy) -> Result<(), Failure> {
    match policy {
        Policy::Show(shape) => show(client, shape).await,
        Policy::Test { who, service, json } => {
            let path = format!("/v1/policy/test?who={who}&service={service}");
            let tested: PolicyTested = client.get(&path).await?;
            if json {
                output::json(&tested)?;
            } else {
                lines(&tested).iter().for_each(output::data);
            }
            if tested.admitted { Ok(()) } else { Err(denied(&tested, service.as_str())) }
        }
    }
}

async fn show(client: &Client, shape: Shape) -> Result<(), Failure> {
    let shown: PolicyShown = client.get("/v1/policy").await?;
    if shape.json {
        return output::json(&shown);
    }
    if !shape.quiet {
        output::note(format_args!("policy.default = {:?}, policy.audit = {}", shown.default, shown.audit));
    }
    output::listing(shape, &shown.services, &["SERVICE", "INSTANCE", "MAY CALL"], |row| {
        vec![vec![row.service.to_string(), row.instance.to_string(), row.admits.clone()]]
    })
}

fn lines(tested: &PolicyTested) -> Vec<String> {
    let line = |row: &crate::api::messages::VerdictRow| {
        format!("{:<8} {}/{}: {}", row.verdict, row.service, row.instance, row.ground)
    };
    tested.verdicts.iter().map(line).collect()
}

fn denied(tested: &PolicyTested, service: &str) -> Failure {
    Failure::new(
        Exit::Denied,
        format_args!(
            "{} may not call {service} of this node; name it, for example gossamer expose {service}:PORT --to {}",
            tested.who, tested.group
        ),
    )
}

pub(super) async fn reload(client: &Client, json: bool) -> Result<(), Failure> {
    let reloaded: Reloaded = client.post("/v1/reload", &()).await?;
    if json {
        return output::json(&reloaded);
    }
    told(&reloaded).iter().for_each(output::note);
    Ok(())
}

fn told(reloaded: &Reloaded) -> Vec<String> {
    let line = |word: &str, row: &ReloadedKey| format!("{word:<15} {} = {}", row.key, row.value);
    let applied = reloaded.applied.iter().map(|row| line("applied", row));
    let restart = reloaded.restart.iter().map(|row| line("needs a restart", row));
    let lines: Vec<_> = applied.chain(restart).collect();
    if lines.is_empty() { vec!["nothing has changed".to_owned()] } else { lines }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_one_line_and_a_denial_names_the_way_out() {
        let json = serde_json::json!({
            "who": "node web-1 of group west", "group": "west", "admitted": false,
            "verdicts": [{"service": "orders", "instance": "vm-b", "verdict": "denied", "ground": "it is late"}],
        });
        let tested: PolicyTested = serde_json::from_value(json).expect("a reply");
        assert_eq!(lines(&tested), ["denied   orders/vm-b: it is late"]);
        let failure = denied(&tested, "orders");
        assert_eq!(failure.exit, Exit::Denied);
        assert!(failure.text.contains("--to west"), "{failure}");
    }

    #[test]
    fn a_reload_names_what_counts_and_what_waits() {
        let key = |key: &str, value: &str| ReloadedKey { key: key.to_owned(), value: value.to_owned() };
        let none = Reloaded { applied: Vec::new(), restart: Vec::new() };
        assert_eq!(told(&none), ["nothing has changed"]);
        let some =
            Reloaded { applied: vec![key("import", "[]")], restart: vec![key("listen", "\"[::]:1\"")] };
        assert_eq!(told(&some), ["applied         import = []", "needs a restart listen = \"[::]:1\""]);
    }
}
