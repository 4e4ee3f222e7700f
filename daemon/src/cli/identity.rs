//! Who this node is to become: what `init` and `join` are told.
//!
//! Owns: where a token comes from. Must not know: how identities are made. Driven by: `start`.

use std::io::Read;
use std::path::Path;

use gossamer_wire::token::Token;

use super::failure::Failure;
use super::{args, output};
use crate::config::{Config, Settings};
use crate::identity::{self, Identity, InitRequest, JoinRequest};
use crate::store::Store;
use crate::supervise::Stage;

/// Longest token text that is read; a token is below 1,000 characters.
const MAX_TOKEN_TEXT_BYTES: u64 = 4 << 10;

/// Makes a mesh in the state directory, or takes the one that is there.
pub(super) fn init(
    config: &Config,
    settings: &Settings,
    store: &Store,
    asked: &args::Init,
) -> Result<Identity, Failure> {
    let known = identity::load(store)?;
    // Without --node the name that was chosen first is kept, also when the host was renamed.
    let node = match (&asked.node, &known) {
        (Some(node), _) => node.clone(),
        (None, Some(known)) => known.name().clone(),
        (None, None) => config.host().node_name(),
    };
    let request = InitRequest {
        mesh_name: asked.mesh.clone(),
        group: asked.group.clone(),
        node,
        zone: settings.zone.clone(),
        region: settings.region.clone(),
        lifetimes: settings.lifetimes,
    };
    let made = identity::init(store, &request)?;
    let verb = if known.is_some() { "already in" } else { "made" };
    output::note(format_args!(
        "{verb} mesh {}: this is node {} of group {}",
        made.mesh_name,
        made.name(),
        made.group()
    ));
    if known.is_none() {
        output::note(format_args!(
            "the root key is {}; take it off this machine: gossamer root export FILE, then gossamer root remove",
            settings.state_dir.join("root.key").display()
        ));
    }
    Ok(made)
}

/// Joins with a token, or takes the identity that is there.
pub(super) async fn join(
    config: &Config,
    settings: &Settings,
    store: &Store,
    token: Option<Token>,
    node: Option<gossamer_wire::NodeName>,
) -> Result<Identity, Failure> {
    let known = identity::load(store)?;
    let joined = match (token, &known) {
        (None, Some(known)) => known.clone(),
        (None, None) => {
            return Err(Failure::usage(
                "there is no token; pass one to gossamer join, or with --token-file, - or GOSSAMER_TOKEN",
            ));
        }
        (Some(token), _) => {
            let request = JoinRequest {
                node: node.unwrap_or_else(|| config.host().node_name()),
                zone: settings.zone.clone(),
                region: settings.region.clone(),
            };
            Box::pin(identity::join(store, &token, &request)).await?
        }
    };
    let verb = if known.is_some() { "already in" } else { "joined" };
    output::note(format_args!(
        "{verb} mesh {}: this is node {} of group {}",
        joined.mesh_name,
        joined.name(),
        joined.group()
    ));
    Ok(joined)
}

/// Reads the token from where the command line says, else from `GOSSAMER_TOKEN`.
pub(super) async fn token(config: &Config, asked: &args::Join) -> Result<Option<Token>, Failure> {
    let text = match (&asked.token, &asked.token_file) {
        (Some(token), _) if token.is_dash() => {
            Some(Stage::blocking(|| read("standard input", std::io::stdin())).await?)
        }
        (Some(token), _) => Some(token.0.clone()),
        (None, Some(path)) if path == Path::new("-") => {
            Some(Stage::blocking(|| read("standard input", std::io::stdin())).await?)
        }
        (None, Some(path)) => Some(from_file(path)?),
        (None, None) => config.host().variable("GOSSAMER_TOKEN").map(str::to_owned),
    };
    text.map(|text| parse(&text)).transpose()
}

/// Reads the token of `GOSSAMER_TOKEN`.
pub(super) fn token_of_environment(config: &Config) -> Result<Option<Token>, Failure> {
    config.host().variable("GOSSAMER_TOKEN").map(parse).transpose()
}

fn from_file(path: &Path) -> Result<String, Failure> {
    let file = std::fs::File::open(path)
        .map_err(|error| Failure::failed(format_args!("{}: {error}; check --token-file", path.display())))?;
    read(&path.display().to_string(), file)
}

fn read(from: &str, source: impl Read) -> Result<String, Failure> {
    let mut text = String::new();
    source
        .take(MAX_TOKEN_TEXT_BYTES)
        .read_to_string(&mut text)
        .map_err(|error| Failure::failed(format_args!("{from}: {error}; it must hold one join token")))?;
    Ok(text)
}

/// Never shows the text: it is a secret even when it is mistyped.
fn parse(text: &str) -> Result<Token, Failure> {
    text.trim().parse().map_err(|error: gossamer_wire::token::TokenError| Failure::usage(error))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::config::{Flags, Host};

    fn config(token: &str) -> Config {
        let variables = [("HOME", "/home/u"), ("GOSSAMER_TOKEN", token)];
        let host = Host {
            variables: variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            ..Host::default()
        };
        Config::load(&Flags::default(), &host).expect("loads")
    }

    fn join_args(line: &str) -> args::Join {
        let args::Command::Join(join) = args::Cli::try_parse_from(line.split(' ')).expect(line).command
        else {
            panic!("join")
        };
        join
    }

    #[tokio::test]
    async fn a_mistyped_token_is_a_usage_error_that_does_not_show_it() {
        let failure =
            token(&config(""), &join_args("gossamer join gsm1_hunter2")).await.expect_err("mistyped");
        assert_eq!(failure.exit, super::super::failure::Exit::Usage);
        assert!(!failure.text.contains("hunter2"), "{failure}");
        let shown = format!("{:?} {:?}", join_args("gossamer join gsm1_hunter2"), config("gsm1_hunter2"));
        assert!(!shown.contains("hunter2") && shown.contains("GOSSAMER_TOKEN"), "{shown}");
    }

    #[tokio::test]
    async fn the_environment_is_asked_last() {
        assert!(token(&config(""), &join_args("gossamer join")).await.expect("none").is_none());
        assert!(token(&config("gsm1_x"), &join_args("gossamer join")).await.is_err());
        let missing = token(&config("gsm1_x"), &join_args("gossamer join --token-file /nonexistent/t")).await;
        assert!(missing.expect_err("missing").text.contains("/nonexistent/t"));
    }
}
