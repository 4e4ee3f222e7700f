//! `token create|list|revoke`.
//!
//! Owns: how tokens are asked for and shown. Must not know: what is in one. Driven by: `cli`.

use super::args::{Token, TokenCreate};
use super::failure::Failure;
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
            output::listing(shape, &rows, &["TOKEN", "GROUP", "USED", "STATE", "ENDS"], |row| {
                vec![cells(row, now)]
            })
        }
        Token::Revoke { id } => {
            let revoked: RevokedToken = client.post("/v1/token/revoke", &RevokeToken { id }).await?;
            output::note(format_args!(
                "token {} is useless from here on; {} nodes joined with it and stay members",
                revoked.id, revoked.used
            ));
            Ok(())
        }
    }
}

async fn create(client: &Client, asked: TokenCreate) -> Result<(), Failure> {
    let json = asked.json;
    let created = request(client, &body(asked)).await?;
    if json {
        return output::json(&created);
    }
    output::data(&created.token);
    created.warnings.iter().for_each(|warning| output::note(format_args!("warning: {warning}")));
    output::note(format_args!("run on the other machine: gossamer join {}", created.token));
    Ok(())
}

/// Asks the daemon for a token.
pub(super) async fn request(client: &Client, body: &CreateToken) -> Result<CreatedToken, Failure> {
    Ok(client.post("/v1/token", body).await?)
}

fn body(asked: TokenCreate) -> CreateToken {
    CreateToken {
        ttl_seconds: asked.ttl.as_secs(),
        uses: asked.uses,
        group: asked.group,
        name: asked.name,
        services: asked.allow_service,
        ephemeral_seconds: asked.ephemeral.map(|time| time.as_secs()),
        addresses: asked.address,
    }
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
    vec![row.id.clone(), row.group.to_string(), format!("{} of {uses}", row.used), row.state.clone(), ends]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_listed_with_its_uses_and_its_end() {
        let mut row = TokenRow {
            id: "abc".to_owned(),
            group: "west".parse().expect("name"),
            uses: 1,
            used: 0,
            not_after: 4_600,
            state: "open".to_owned(),
        };
        assert_eq!(cells(&row, 1_000), ["abc", "west", "0 of 1", "open", "in 60 min"]);
        row.uses = 0;
        assert_eq!(cells(&row, 4_590)[2..], ["0 of any", "open", "in 10 s"]);
        assert_eq!(cells(&row, 5_000)[4], "ended");
    }
}
