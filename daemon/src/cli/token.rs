//! `token create|list|renew|revoke`.
//!
//! Owns: how tokens are asked for and shown. Must not know: what is in one. Driven by: `cli`.

use std::collections::BTreeMap;

use gossamer_core::reach::{Span, span};
use gossamer_wire::Address;
use gossamer_wire::token::Claims;

use super::args::{Role, Token, TokenCreate};
use super::failure::{Exit, Failure};
use super::output;
use crate::api::Client;
use crate::api::messages::{CreateToken, CreatedToken, RevokeToken, RevokedToken, TokenRow};
use crate::clock;

pub(super) async fn run(client: &Client, token: Token) -> Result<(), Failure> {
    match token {
        Token::Create(asked) => create(client, asked).await,
        Token::List(shape) => {
            let rows: Vec<TokenRow> = client.get("/v1/tokens").await?;
            let now = clock::wall();
            output::listing(
                shape,
                &rows,
                &["TOKEN", "GROUP", "USED", "STATE", "ENDS", "CLAIMS", "BY"],
                |row| vec![cells(row, now)],
            )
        }
        Token::Renew { id, json } => {
            let created: CreatedToken = client.post("/v1/token/renew", &RevokeToken { id }).await?;
            show(&created, json)
        }
        Token::Revoke { id } => {
            let revoked: RevokedToken = client.post("/v1/token/revoke", &RevokeToken { id }).await?;
            said_of(&revoked).iter().for_each(output::note);
            Ok(())
        }
    }
}

async fn create(client: &Client, asked: TokenCreate) -> Result<(), Failure> {
    let json = asked.json;
    show(&request(client, &body(asked)?).await?, json)
}

/// Says what became of a token, and how those who joined with it are put out.
fn said_of(revoked: &RevokedToken) -> Vec<String> {
    let place = if revoked.everywhere { "at every issuer" } else { "from here on" };
    let names: Vec<_> = revoked.used_by.iter().map(|used| used.name.as_str()).collect();
    let mut said = vec![format!("token {} is useless {place}", revoked.id)];
    if !names.is_empty() {
        said.push(format!("joined with it and stay members: {}", names.join(", ")));
        said.extend(names.iter().map(|name| format!("to put one out: gossamer node evict {name}")).take(1));
    }
    said
}

fn show(created: &CreatedToken, json: bool) -> Result<(), Failure> {
    if json {
        return output::json(created);
    }
    output::data(&created.token);
    output::note(dials(created));
    created.warnings.iter().for_each(|warning| output::note(format_args!("warning: {warning}")));
    // Not the token again: what stands on standard error lands in logs.
    output::note("run on the other machine, and give it the token on standard input: gossamer join -");
    Ok(())
}

/// Says where who has the token will dial, and from where that works.
pub(super) fn dials(created: &CreatedToken) -> String {
    let described = |address: &Address| {
        let port = match address {
            Address::Lane(address) => return address.to_string(),
            Address::Port(port) => port,
        };
        let is_relay = created.relays.contains(port);
        let carrier = if is_relay { "tcp" } else { "udp" };
        let from = match span(port.ip()) {
            Span::Global => None,
            Span::Private => Some("networks around it only"),
            Span::Machine => Some("this machine only"),
        };
        let words: Vec<_> = is_relay.then_some("a relay that leads here").into_iter().chain(from).collect();
        match words.is_empty() {
            true => format!("{carrier} {port}"),
            false => format!("{carrier} {port} ({})", words.join(", ")),
        }
    };
    let list: Vec<_> = created.addresses.iter().map(described).collect();
    format!("joiners try these addresses: {}", list.join(", "))
}

/// Asks the daemon for a token.
pub(super) async fn request(client: &Client, body: &CreateToken) -> Result<CreatedToken, Failure> {
    Ok(client.post("/v1/token", body).await?)
}

fn body(asked: TokenCreate) -> Result<CreateToken, Failure> {
    let mut labels = BTreeMap::new();
    for (key, value) in asked.label {
        if let Some(other) = labels.insert(key.clone(), value) {
            return Err(Failure::new(
                Exit::Usage,
                format_args!("label {key} is given twice, once as {other}"),
            ));
        }
    }
    let claims = Claims {
        services: asked.allow_service,
        fqdn_suffixes: asked.allow_fqdn,
        labels,
        relay: asked.role.contains(&Role::Relay),
        ephemeral_seconds: asked.ephemeral.map_or(0, |time| time.as_secs().try_into().unwrap_or(u32::MAX)),
    };
    Ok(CreateToken {
        ttl_seconds: asked.ttl.as_secs(),
        uses: asked.uses,
        group: asked.group,
        name: asked.name,
        claims,
        addresses: asked.address,
    })
}

/// Says what a certificate allows beyond membership, in the words of the options; empty when it says nothing.
pub(super) fn claims(claims: &Claims) -> String {
    let Claims { services, fqdn_suffixes, labels, relay, ephemeral_seconds } = claims;
    let mut words: Vec<_> = services.iter().map(|pattern| format!("service {pattern}")).collect();
    words.extend(fqdn_suffixes.iter().map(|suffix| format!("fqdn {suffix}")));
    words.extend(labels.iter().map(|(key, value)| format!("label {key}={value}")));
    words.extend(relay.then(|| "role relay".to_owned()));
    words.extend((*ephemeral_seconds > 0).then(|| format!("ephemeral {ephemeral_seconds} s")));
    words.join(", ")
}

fn cells(row: &TokenRow, now: u64) -> Vec<String> {
    let uses = if row.uses == 0 { "any".to_owned() } else { row.uses.to_string() };
    let left = row.not_after.saturating_sub(now);
    let ends = match left {
        0 => "ended".to_owned(),
        1..=119 => format!("in {left} s"),
        120..=7_199 => format!("in {} min", left / 60),
        _ => format!("in {} h", left / 3_600),
    };
    let names: Vec<_> = row.used_by.iter().map(|used| used.name.as_str()).collect();
    let used = format!("{} of {uses}", row.used);
    vec![
        row.id.clone(),
        row.group.to_string(),
        used,
        row.state.clone(),
        ends,
        claims(&row.claims),
        names.join(" "),
    ]
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::super::args::{Cli, Command};
    use super::*;
    use crate::api::messages::TokenUse;

    #[test]
    fn a_token_is_listed_with_its_uses_and_its_end() {
        let mut row = TokenRow {
            id: "abc".to_owned(),
            group: "west".parse().expect("name"),
            uses: 1,
            used: 0,
            not_after: 4_600,
            state: "open".to_owned(),
            used_by: Vec::new(),
            claims: Claims::default(),
        };
        assert_eq!(cells(&row, 1_000), ["abc", "west", "0 of 1", "open", "in 60 min", "", ""]);
        row.uses = 0;
        row.used_by = ["vm-a", "vm-b"].map(used).into();
        assert_eq!(cells(&row, 4_590)[2..], ["0 of any", "open", "in 10 s", "", "vm-a vm-b"]);
        assert_eq!(cells(&row, 5_000)[4], "ended");
    }

    fn created(arguments: &[&str]) -> Result<CreateToken, String> {
        let arguments = [&["gossamer", "token", "create"], arguments].concat();
        let cli = Cli::try_parse_from(arguments).map_err(|error| error.to_string())?;
        let Command::Token(Token::Create(asked)) = cli.command else { panic!("another command") };
        body(asked).map_err(|failure| failure.to_string())
    }

    #[test]
    fn what_the_options_allow_is_asked_for_and_said_in_their_words() {
        let options = [
            "--allow-service=web-*",
            "--allow-service=api",
            "--allow-fqdn=corp.example",
            "--label=zone=a",
            "--label=gpu=h100",
            "--role=relay",
            "--ephemeral=10m",
        ];
        let asked = created(&options).expect("parses").claims;
        let said = claims(&asked);
        assert_eq!(
            said,
            "service web-*, service api, fqdn corp.example, label gpu=h100, label zone=a, role relay, ephemeral 600 s"
        );
        assert_eq!(created(&[]).expect("parses").claims, Claims::default());
        assert_eq!(claims(&Claims::default()), "");
    }

    #[test]
    fn claims_that_cannot_be_are_refused_before_the_daemon_is_asked() {
        for (options, why) in [
            (&["--label=zone=A"][..], "use only a-z"),
            (&["--label=zone"], "must be KEY=VALUE"),
            (&["--label=zone=a", "--label=zone=b"], "label zone is given twice, once as a"),
            (&["--allow-fqdn=.corp"], "without dots at its ends"),
            (&["--role=king"], "possible values: relay"),
        ] {
            let error = created(options).expect_err("refused");
            assert!(error.contains(why), "{options:?}: {error}");
        }
    }

    #[test]
    fn each_address_is_shown_with_who_can_use_it() {
        let addresses = ["203.0.113.9:4677", "10.0.0.1:4677", "127.0.0.1:4677", "tls://gate.example"];
        let mut created = CreatedToken {
            id: "abc".to_owned(),
            token: "gsm1_a".to_owned(),
            group: "west".parse().expect("name"),
            addresses: addresses.map(|text| text.parse().expect("address")).to_vec(),
            relays: Vec::new(),
            warnings: Vec::new(),
        };
        assert_eq!(
            dials(&created),
            "joiners try these addresses: udp 203.0.113.9:4677, udp 10.0.0.1:4677 (networks around it only), udp 127.0.0.1:4677 (this machine only), tls://gate.example:443"
        );
        created.relays = addresses[..2].iter().map(|text| text.parse().expect("address")).collect();
        assert!(
            dials(&created).starts_with("joiners try these addresses: tcp 203.0.113.9:4677 (a relay that leads here), tcp 10.0.0.1:4677 (a relay that leads here, networks around it only), udp "),
            "{}",
            dials(&created)
        );
    }

    fn used(name: &str) -> TokenUse {
        TokenUse { name: name.parse().expect("name"), id: "id".to_owned(), at: 1 }
    }

    #[test]
    fn a_revoked_token_names_who_came_in_by_it_and_how_to_put_them_out() {
        let revoked = RevokedToken {
            id: "abc".to_owned(),
            used_by: ["vm-a", "vm-b"].map(used).into(),
            everywhere: true,
        };
        let said = said_of(&revoked).join("\n");
        assert!(said.contains("abc is useless at every issuer") && said.contains("vm-a, vm-b"), "{said}");
        assert!(said.ends_with("gossamer node evict vm-a"), "{said}");
        let unused = RevokedToken { used_by: Vec::new(), everywhere: false, ..revoked };
        assert_eq!(said_of(&unused), ["token abc is useless from here on"]);
    }
}
