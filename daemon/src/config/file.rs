//! The configuration file: TOML in, values with their place out.
//!
//! Owns: which shapes TOML may have. Must not know: what values mean. Driven by: `config`.

use std::io;
use std::path::Path;

use toml::{Table, Value};

use super::fault::{Fault, nearest};
use super::keys::{Given, KEYS, Raw};

/// Largest file that is read, bytes: a full one is below 4 KiB.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Reads the file. A missing one is empty unless it `is_chosen` by flag or variable.
pub(super) fn read(path: &Path, is_chosen: bool, faults: &mut Vec<Fault>) -> Vec<Given> {
    match load(path) {
        Ok(text) => parse(path, &text, faults),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !is_chosen => Vec::new(),
        Err(error) => {
            faults.push(Fault {
                place: path.display().to_string(),
                why: format!("it cannot be read: {error}"),
                fix: "make it readable or choose another --config FILE".to_owned(),
            });
            Vec::new()
        }
    }
}

fn load(path: &Path) -> io::Result<String> {
    if std::fs::metadata(path)?.len() > MAX_FILE_BYTES {
        return Err(io::Error::other("it is larger than 1 MiB"));
    }
    std::fs::read_to_string(path)
}

fn parse(path: &Path, text: &str, faults: &mut Vec<Fault>) -> Vec<Given> {
    let table: Table = match text.parse() {
        Ok(table) => table,
        Err(error) => {
            faults.push(not_toml(path, text, &error));
            return Vec::new();
        }
    };
    let mut given = Vec::new();
    let mut take = |key: String, value: &Value| match entry(path, &key, value) {
        Ok(entry) => given.push(entry),
        Err(fault) => faults.push(fault),
    };
    for (name, value) in &table {
        match value {
            Value::Table(section) if is_section(name) => {
                section.iter().for_each(|(key, value)| take(format!("{name}.{key}"), value));
            }
            value => take(name.clone(), value),
        }
    }
    given
}

fn not_toml(path: &Path, text: &str, error: &toml::de::Error) -> Fault {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    Fault {
        place: format!("{}:{line}", path.display()),
        why: format!("this is not TOML: {}", error.message().replace('\n', ", ")),
        fix: "write lines such as listen = \"0.0.0.0:4677\"".to_owned(),
    }
}

fn is_section(name: &str) -> bool {
    KEYS.iter().any(|key| key.split_once('.').is_some_and(|(section, _)| section == name))
}

fn entry(path: &Path, name: &str, value: &Value) -> Result<Given, Fault> {
    let fault = |why: String, fix: String| Fault { place: format!("{}: {name}", path.display()), why, fix };
    let Some(key) = KEYS.into_iter().find(|key| *key == name) else {
        let fix = nearest(name, KEYS).map_or_else(
            || "remove it; the keys are listed by gossamer config show".to_owned(),
            |near| format!("write {near}"),
        );
        return Err(fault("there is no such key".to_owned(), fix));
    };
    let raw = match value {
        Value::String(text) => Raw::Text(text.clone()),
        Value::Integer(number) => Raw::Number(*number),
        Value::Array(items) => Raw::List(
            items.iter().map(|item| item.as_str().map(str::to_owned)).collect::<Option<_>>().ok_or_else(
                || fault("the list holds something else than text".to_owned(), "quote each item".to_owned()),
            )?,
        ),
        Value::Boolean(flag) => Raw::Flag(*flag),
        Value::Table(pairs) if name == "alias" => {
            let pair = |(name, value): (&String, &Value)| Some((name.clone(), value.as_str()?.to_owned()));
            Raw::Pairs(pairs.iter().map(pair).collect::<Option<_>>().ok_or_else(|| {
                let fix = "quote both sides, for example \"pg.corp.example\" = \"orders-db\"".to_owned();
                fault("a line is no pair of texts".to_owned(), fix)
            })?)
        }
        Value::Table(routes) if name == "route" => Raw::Pairs(wishes(routes).ok_or_else(|| {
            let fix = "write for example [route.\"orders\"] and below it only = \"region\"".to_owned();
            fault("a route is no table of text, numbers and lists of text".to_owned(), fix)
        })?),
        Value::Float(_) | Value::Datetime(_) | Value::Table(_) => {
            return Err(fault(
                format!("a {} stands where text, a number or a list is expected", value.type_str()),
                "quote the value".to_owned(),
            ));
        }
    };
    Ok(Given { key, raw, place: format!("{}: {name}", path.display()) })
}

/// Returns the wishes of all routes, each as `NAME.FIELD` with its value, lists separated by commas.
fn wishes(routes: &Table) -> Option<Vec<(String, String)>> {
    let mut pairs = Vec::new();
    for (name, fields) in routes {
        for (field, value) in fields.as_table()? {
            let text = match value {
                Value::String(text) => text.clone(),
                Value::Integer(number) => number.to_string(),
                Value::Array(items) => items.iter().map(Value::as_str).collect::<Option<Vec<_>>>()?.join(","),
                Value::Float(_) | Value::Boolean(_) | Value::Datetime(_) | Value::Table(_) => return None,
            };
            pairs.push((format!("{name}.{field}"), text));
        }
    }
    Some(pairs)
}
