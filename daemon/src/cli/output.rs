//! What commands print: data on standard output, words on standard error.
//!
//! Owns: the two streams and the shape of tables. Must not know: what is printed.
//! Driven by: every command.

use std::fmt::Display;
#[cfg(not(test))]
use std::io::{self, Write};

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use super::args::Shape;
use super::failure::Failure;

/// Prints a line of data.
pub(super) fn data(line: impl Display) {
    emit(Stream::Data, &line);
}

/// Prints a line for people.
pub(super) fn note(line: impl Display) {
    emit(Stream::Words, &line);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stream {
    Data,
    Words,
}

#[cfg(not(test))]
fn emit(stream: Stream, line: &dyn Display) {
    match stream {
        Stream::Data => write(io::stdout().lock(), line),
        Stream::Words => write(io::stderr().lock(), line),
    }
}

/// A reader that has gone, as in `gossamer nodes | head -1`, is no failure.
#[cfg(not(test))]
fn write(mut stream: impl Write, line: &dyn Display) {
    let _ = writeln!(stream, "{line}").and_then(|()| stream.flush());
}

#[cfg(test)]
thread_local! {
    static PRINTED: std::cell::RefCell<Vec<(Stream, String)>> = const { std::cell::RefCell::new(Vec::new()) };
}

#[cfg(test)]
fn emit(stream: Stream, line: &dyn Display) {
    PRINTED.with_borrow_mut(|printed| printed.push((stream, line.to_string())));
}

/// Returns what this thread printed since it was asked last: data, then words.
#[cfg(test)]
pub(super) fn take() -> (String, String) {
    let printed = PRINTED.take();
    let of = |wanted| {
        let lines = printed.iter().filter(|(stream, _)| *stream == wanted).map(|(_, line)| line.as_str());
        lines.collect::<Vec<_>>().join("\n")
    };
    (of(Stream::Data), of(Stream::Words))
}

/// Prints a reply as JSON.
pub(super) fn json(value: &impl Serialize) -> Result<(), Failure> {
    data(serde_json::to_string_pretty(value).map_err(Failure::failed)?);
    Ok(())
}

/// Prints rows in the shape that was asked for: JSON, the first column only, or a table.
pub(super) fn listing<T: Serialize>(
    shape: Shape,
    rows: &[T],
    head: &[&str],
    cells: impl Fn(&T) -> Vec<Vec<String>>,
) -> Result<(), Failure> {
    if shape.json {
        return json(&rows);
    }
    let lines: Vec<Vec<String>> = rows.iter().flat_map(cells).collect();
    if shape.quiet {
        let mut names: Vec<_> = lines.iter().filter_map(|line| line.first()).collect();
        names.dedup();
        names.into_iter().for_each(data);
    } else {
        data(table(head, lines));
    }
    Ok(())
}

fn table(head: &[&str], lines: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(head);
    table.add_rows(lines);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let text = table.to_string();
    text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_columns_of_plain_text() {
        let lines =
            vec![vec!["a".to_owned(), "alive".to_owned()], vec!["long-name".to_owned(), "down".to_owned()]];
        assert_eq!(table(&["NODE", "STATE"], lines), "NODE       STATE\na          alive\nlong-name  down");
    }

    #[test]
    fn an_empty_table_still_says_what_would_be_in_it() {
        assert_eq!(table(&["NODE", "STATE"], Vec::new()), "NODE  STATE");
    }
}
