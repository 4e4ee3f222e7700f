//! Flags of `init` and `join` that later starts do without.
//!
//! Owns: which ones, and their file in the state directory. Must not know: what they mean.
//! Driven by: `config`, as its weakest source; `cli`, which writes them through the store.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use super::fault::Fault;
use super::keys::{Given, KEYS, Raw};

/// The file, below the state directory.
pub const REMEMBERED_FILE: &str = "flags.json";

/// What a start says about the machine; failure domains are kept with the identity, paths name the directory.
const REMEMBERED: [&str; 4] = ["advertise", "dns.address", "import", "listen"];

/// What the file holds: texts as typed, by key.
pub type Remembered = BTreeMap<String, String>;

/// Adds the flags that are kept to those that were kept before; returns whether anything changed.
pub fn remember(known: &mut Remembered, flags: &[(&'static str, String)]) -> bool {
    let before = known.clone();
    let kept = flags.iter().filter(|(key, _)| REMEMBERED.contains(key));
    known.extend(kept.map(|(key, text)| ((*key).to_owned(), text.clone())));
    *known != before
}

/// Reads what is kept. A directory that is not there, or not this user's, holds nothing.
pub(super) fn read(state_dir: &Path, faults: &mut Vec<Fault>) -> Vec<Given> {
    let path = state_dir.join(REMEMBERED_FILE);
    let fault = |why: String| Fault {
        place: path.display().to_string(),
        why,
        fix: "remove it and pass the flags again".to_owned(),
    };
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) => {
            let is_absent =
                [io::ErrorKind::NotFound, io::ErrorKind::PermissionDenied, io::ErrorKind::NotADirectory];
            if !is_absent.contains(&error.kind()) {
                faults.push(fault(format!("it cannot be read: {error}")));
            }
            return Vec::new();
        }
    };
    let kept: Remembered = match serde_json::from_str(&text) {
        Ok(kept) => kept,
        Err(error) => {
            faults.push(fault(format!("it is damaged: {error}")));
            return Vec::new();
        }
    };
    let given = |(name, text): (String, String)| {
        let key = KEYS.into_iter().find(|key| *key == name && REMEMBERED.contains(key))?;
        Some(Given { key, raw: Raw::Text(text), place: format!("{}: {key}", path.display()) })
    };
    kept.into_iter().filter_map(given).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_flags_about_the_machine_are_kept_and_the_last_one_counts() {
        let mut known = Remembered::new();
        let flags = [("listen", "0.0.0.0:1".to_owned()), ("state_dir", "/x".to_owned())];
        assert!(remember(&mut known, &flags));
        assert!(!remember(&mut known, &flags));
        assert!(remember(&mut known, &[("listen", "0.0.0.0:2".to_owned())]));
        assert_eq!(known, Remembered::from([("listen".to_owned(), "0.0.0.0:2".to_owned())]));
    }

    #[test]
    fn a_damaged_file_is_a_fault_and_a_missing_one_is_not() {
        let dir = tempfile::tempdir().expect("scratch");
        let mut faults = Vec::new();
        assert!(read(dir.path(), &mut faults).is_empty() && faults.is_empty());
        std::fs::write(dir.path().join(REMEMBERED_FILE), "{").expect("writes");
        assert!(read(dir.path(), &mut faults).is_empty());
        assert!(faults[0].to_string().contains("flags.json: it is damaged"), "{faults:?}");
    }
}
