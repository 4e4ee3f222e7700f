//! `resolve`: what DNS answers, as `dig` would show it.
//!
//! Owns: the lines and the exit code of an answer. Must not know: how names are answered. Driven by: `cli`.

use super::args::Resolve;
use super::failure::{Exit, Failure};
use super::output;
use crate::api::Client;
use crate::api::messages::{RecordRow, Resolved};

pub(super) async fn run(client: &Client, asked: &Resolve) -> Result<(), Failure> {
    let record_type = asked.record_type.as_ref().map(|kind| format!("&type={}", escaped(kind)));
    let path = format!("/v1/resolve?name={}{}", escaped(&asked.name), record_type.unwrap_or_default());
    let resolved: Resolved = client.get(&path).await?;
    if asked.shape.json {
        output::json(&resolved)?;
    } else if asked.shape.quiet {
        resolved.answers.iter().for_each(|record| output::data(&record.data));
    } else {
        lines(&resolved).iter().for_each(output::data);
    }
    if resolved.forwarded {
        output::note(format!("{} is no name of this mesh: upstream was asked", resolved.name));
    }
    verdict(&resolved)
}

/// Keeps what may stand in a query as it is; names hold little else.
pub(super) fn escaped(text: &str) -> String {
    let escape = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    text.bytes().map(escape).collect()
}

/// One line per record, as in a zone file.
pub(super) fn lines(resolved: &Resolved) -> Vec<String> {
    let line = |record: &RecordRow| {
        format!("{}\t{}\tIN\t{}\t{}", record.name, record.ttl, record.record_type, record.data)
    };
    let mut lines: Vec<_> = resolved.answers.iter().map(line).collect();
    if !resolved.additionals.is_empty() {
        lines.push(";; additional".to_owned());
        lines.extend(resolved.additionals.iter().map(line));
    }
    lines
}

fn verdict(resolved: &Resolved) -> Result<(), Failure> {
    let reason = resolved.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    let text = format!("{} is {}{reason}", resolved.name, resolved.outcome);
    match resolved.outcome.as_str() {
        "NOERROR" => Ok(()),
        "NODATA" => {
            output::note(text);
            Ok(())
        }
        _ if resolved.hidden => Err(Failure::new(Exit::Denied, text)),
        "NXDOMAIN" if resolved.forwarded => Err(Failure::new(Exit::NotFound, text)),
        "NXDOMAIN" if resolved.reason.is_none() => {
            Err(Failure::new(Exit::NotFound, text + "; gossamer services lists what there is"))
        }
        "NXDOMAIN" => Err(Failure::new(Exit::NotFound, text)),
        "REFUSED" if !resolved.forwarded => Err(Failure::failed(
            text + "; only names of the mesh zone are answered, set dns.upstream to forward others",
        )),
        _ => Err(Failure::failed(text + "; look at gossamer status")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(outcome: &str, reason: Option<&str>, hidden: bool) -> Resolved {
        Resolved {
            name: "db.mesh.internal.".to_owned(),
            outcome: outcome.to_owned(),
            answers: Vec::new(),
            additionals: Vec::new(),
            reason: reason.map(str::to_owned),
            hidden,
            forwarded: false,
        }
    }

    #[test]
    fn absent_names_and_hidden_ones_have_different_exit_codes() {
        let exit =
            |outcome, reason, hidden| verdict(&resolved(outcome, reason, hidden)).expect_err("fails").exit;
        assert_eq!(exit("NXDOMAIN", None, false), Exit::NotFound);
        assert_eq!(exit("NXDOMAIN", Some("not imported"), false), Exit::NotFound);
        assert_eq!(exit("NXDOMAIN", Some("not visible"), true), Exit::Denied);
        assert_eq!(exit("REFUSED", None, false), Exit::Failed);
        assert!(verdict(&resolved("NOERROR", None, false)).is_ok());
        assert!(verdict(&resolved("NODATA", Some("nginx has the port"), false)).is_ok());
    }

    #[test]
    fn records_read_as_in_a_zone_file() {
        let record = RecordRow {
            name: "db.mesh.internal.".to_owned(),
            ttl: 30,
            record_type: "A".to_owned(),
            data: "127.240.7.9".to_owned(),
        };
        let answer = Resolved { answers: vec![record], ..resolved("NOERROR", None, false) };
        assert_eq!(lines(&answer), ["db.mesh.internal.\t30\tIN\tA\t127.240.7.9"]);
    }

    #[test]
    fn what_people_type_cannot_change_the_query() {
        assert_eq!(escaped("_pg._tcp.db"), "_pg._tcp.db");
        assert_eq!(escaped("a&type=x y"), "a%26type%3Dx%20y");
    }
}
