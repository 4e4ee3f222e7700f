//! `root add|list|retire|export|import|remove`.
//!
//! Owns: how roots are ordered and shown, the file a key leaves in, passphrases. Must not know: what makes a root.
//! Driven by: `cli`.

use std::fs::{self, OpenOptions};
use std::io::{self, IsTerminal as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde_json::json;
use zeroize::Zeroizing;

use super::args::Root;
use super::failure::Failure;
use super::output;
use crate::api::Client;
use crate::api::messages::{
    ExportRoot, ExportedRoot, ImportRoot, RemoveRoot, RetireRoot, RootRow, RootsDone, Secret,
};

/// Longest file or passphrase that is read, bytes.
const MAX_READ: u64 = 65_536;

pub(super) async fn run(client: &Client, root: Root) -> Result<(), Failure> {
    match root {
        Root::Add => {
            let done: RootsDone = client.post("/v1/root/add", &json!({})).await?;
            output::note(format_args!("root {} was added; it names all issuers", done.roots.join(", ")));
            output::note(
                "tokens that are made now need it; those made before work until the old root is retired",
            );
            output::note("when all nodes know: gossamer root list, then gossamer root retire OLD");
        }
        Root::List(shape) => {
            let rows: Vec<RootRow> = client.get("/v1/roots").await?;
            return output::listing(shape, &rows, &["ROOT", "STATE", "KEY"], |row| vec![cells(row)]);
        }
        Root::Retire { root, force } => {
            let done: RootsDone = client.post("/v1/root/retire", &RetireRoot { root, force }).await?;
            output::note(format_args!(
                "root {} is one no more; tokens made before the other root was added are useless now",
                done.roots.join(", ")
            ));
        }
        Root::Export { file, passphrase_file } => return export(client, &file, passphrase_file).await,
        Root::Import { file, passphrase_file } => {
            let pem = Secret::from(Zeroizing::new(read(&file)?));
            let passphrase = passphrase(passphrase_file, false)?;
            let done: RootsDone = client.post("/v1/root/import", &ImportRoot { pem, passphrase }).await?;
            output::note(format_args!("the key of root {} is on this machine", done.roots.join(", ")));
        }
        Root::Remove { force } => {
            let _: RootsDone = client.post("/v1/root/remove", &RemoveRoot { force }).await?;
            output::note(
                "the root key is not on this machine any more; to use it: gossamer root import FILE",
            );
        }
    }
    Ok(())
}

/// Asks for the keys and writes them to a file that must not be there yet.
async fn export(client: &Client, file: &Path, passphrase_file: Option<PathBuf>) -> Result<(), Failure> {
    let passphrase = passphrase(passphrase_file, true)?;
    let at = |error: io::Error| Failure::failed(format_args!("{}: {error}", file.display()));
    // Before the key is asked for: it counts as exported from then on.
    let mut target = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file).map_err(at)?;
    let asked = client.post("/v1/root/export", &ExportRoot { passphrase }).await;
    let exported: ExportedRoot = match asked {
        Ok(exported) => exported,
        Err(error) => {
            let _ = fs::remove_file(file);
            return Err(error.into());
        }
    };
    target.write_all(exported.pem.reveal().as_bytes()).and_then(|()| target.sync_all()).map_err(at)?;
    output::note(format_args!(
        "the root key is in {}; move it to a safe place, then take it off this machine: gossamer root remove",
        file.display()
    ));
    Ok(())
}

/// Reads a passphrase from a file, without the end of its line, or from the terminal; twice when it is a new one.
fn passphrase(file: Option<PathBuf>, is_new: bool) -> Result<Secret, Failure> {
    if let Some(file) = file {
        let text = Zeroizing::new(read(&file)?);
        return Ok(Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned()).into());
    }
    if !io::stdin().is_terminal() {
        return Err(Failure::usage(
            "there is no terminal to type a passphrase at; give --passphrase-file FILE",
        ));
    }
    let ask = |prompt| rpassword::prompt_password(prompt).map(Zeroizing::new).map_err(Failure::failed);
    let typed = ask("passphrase: ")?;
    if is_new && *ask("again: ")? != *typed {
        return Err(Failure::usage("the two passphrases differ; try again"));
    }
    Ok(typed.into())
}

fn read(file: &Path) -> Result<String, Failure> {
    let at = |error: io::Error| Failure::failed(format_args!("{}: {error}", file.display()));
    if fs::metadata(file).map_err(at)?.len() > MAX_READ {
        return Err(Failure::failed(format_args!("{} is longer than any key or passphrase", file.display())));
    }
    fs::read_to_string(file).map_err(at)
}

fn cells(row: &RootRow) -> Vec<String> {
    let place = if row.here { "here" } else { "elsewhere" };
    let place = if row.state == "retired" { "-" } else { place };
    vec![row.id.clone(), row.state.clone(), place.to_owned()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_where_the_key_is() {
        let row = RootRow { id: "r".to_owned(), state: "active".to_owned(), here: true, certificate_ends: 9 };
        assert_eq!(cells(&row), ["r", "active", "here"]);
        assert_eq!(cells(&RootRow { here: false, ..row.clone() })[2], "elsewhere");
        assert_eq!(
            cells(&RootRow { state: "retired".to_owned(), here: false, ..row })[1..],
            ["retired", "-"]
        );
    }

    #[test]
    fn the_end_of_a_line_is_no_part_of_a_passphrase() {
        let dir = tempfile::tempdir().expect("scratch");
        let file = dir.path().join("pass");
        fs::write(&file, "correct horse \r\n").expect("writes");
        assert_eq!(passphrase(Some(file), false).expect("reads").reveal(), "correct horse ");
        assert!(passphrase(Some(dir.path().join("none")), false).expect_err("missing").text.contains("none"));
    }
}
