//! `config.toml` in a node's home: what its user settled once, apart from what commands are told. It is read by
//! `consort up` alone. What its values mean is the business of whoever they are for.

use std::fs;
use std::io;
use std::path::Path;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Deserialize;

use crate::error::Error;
use crate::limits::{Ceilings, Days, TimeOfDay, Timetable, Window};
use crate::text::plain;

/// Where the file is, below the home.
const FILE: &str = "config.toml";

/// What is settled.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) limits: Timetable,
}

impl Config {
    /// What the file in this home says; nothing is settled if there is none.
    pub(crate) fn read(home: &Path) -> Result<Self, Error> {
        let path = home.join(FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(Error::io("read", &path, &error)),
        };
        Self::parse_bytes(&bytes).map_err(|wrong| {
            let path = plain(&path.display().to_string());
            Error::usage(format!("{path}, {}", plain(&wrong)))
                .hint("docs/operating.md has an example; without the file nothing is limited")
        })
    }

    fn parse_bytes(bytes: &[u8]) -> Result<Self, String> {
        let text = str::from_utf8(bytes).map_err(|error| {
            let before = bytes[..error.valid_up_to()].iter();
            let line = before.filter(|byte| **byte == b'\n').count() + 1;
            format!("line {line}: this is no UTF-8; save the file as UTF-8 in your editor")
        })?;
        Self::parse(text)
    }

    /// The error says where it is, and what is allowed there.
    fn parse(text: &str) -> Result<Self, String> {
        let tables: Tables = toml::from_str(text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let line = before.matches('\n').count();
            let content = text.lines().nth(line).unwrap_or_default().trim();
            format!("line {}, `{content}`: {}", line + 1, error.message())
        })?;
        let Some(limits) = tables.limits else { return Ok(Self::default()) };
        let always = ceilings("limits", limits.up.as_deref(), limits.down.as_deref())?;
        let windows = (1..).zip(&limits.schedule).map(|(number, schedule)| schedule.window(number));
        Ok(Self { limits: Timetable { always, windows: windows.collect::<Result<_, _>>()? } })
    }
}

/// What is wrong with the file, where a running node could not take over what it says. Shared by who reads the file and who is
/// asked how the node stands.
#[derive(Clone, Debug, Default)]
pub(crate) struct Mistake(Arc<Mutex<Option<String>>>);

impl Mistake {
    /// The file was read again: with this mistake, or none.
    pub(crate) fn set(&self, mistake: Option<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = mistake;
    }

    /// The one that there was when it was read last.
    pub(crate) fn get(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The file as it is written. Values are texts here: whoever reads them says best what is wrong with them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tables {
    limits: Option<LimitsTable>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LimitsTable {
    up: Option<String>,
    down: Option<String>,
    #[serde(default)]
    schedule: Vec<ScheduleTable>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ScheduleTable {
    days: Option<Vec<String>>,
    from: String,
    to: String,
    up: Option<String>,
    down: Option<String>,
}

impl ScheduleTable {
    /// The window that this describes, the how manyth it is.
    fn window(&self, number: usize) -> Result<Window, String> {
        let table = format!("limits.schedule {number}");
        let days = self.days.as_deref().map_or(Ok(Days::ALL), |days| {
            Days::named(days).map_err(|why| format!("{table}, days: {why}"))
        })?;
        let from: TimeOfDay = value(&table, "from", &self.from)?;
        let to: TimeOfDay = value(&table, "to", &self.to)?;
        if from == to {
            return Err(format!(
                "{table}: from and to are both {from}; a whole day is from 00:00 to 24:00"
            ));
        }
        let ceilings = ceilings(&table, self.up.as_deref(), self.down.as_deref())?;
        if ceilings == Ceilings::default() {
            return Err(format!("{table}: it says neither up nor down, so it would do nothing"));
        }
        Ok(Window { days, from, to, ceilings })
    }
}

fn ceilings(table: &str, up: Option<&str>, down: Option<&str>) -> Result<Ceilings, String> {
    let ceiling = |key, text: Option<&str>| text.map(|text| value(table, key, text)).transpose();
    Ok(Ceilings { up: ceiling("up", up)?, down: ceiling("down", down)? })
}

fn value<T: FromStr<Err = String>>(table: &str, key: &str, text: &str) -> Result<T, String> {
    text.parse().map_err(|why| format!("{table}, {key} = \"{text}\": {why}"))
}

#[cfg(test)]
mod tests {
    use consort_node::Limits;
    use jiff::civil::Weekday;

    use super::*;
    use crate::limits::{Moment, rate};

    /// The example in the documentation.
    fn example() -> &'static str {
        let docs = include_str!("../../../docs/operating.md");
        let (_, example) = docs.split_once("```toml\n").expect("the first example is of this file");
        example.split_once("```").expect("it ends").0
    }

    #[test]
    fn the_example_of_the_documentation_means_what_it_says() {
        let config = Config::parse(example()).expect("it is right");
        let at = |day, time: &str| {
            let moment = Moment { day, time: time.parse().expect("a time") };
            let Limits { up, down } = config.limits.limits(moment, Ceilings::default());
            let shown = |limit: Option<consort_node::Rate>| limit.map(|limit| rate(limit.bytes()));
            (shown(up), shown(down))
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(at(Weekday::Sunday, "12:00"), (some("10 MB/s"), some("50 MB/s")));
        assert_eq!(at(Weekday::Monday, "12:00"), (some("2.5 MB/s"), some("10 MB/s")));
        assert_eq!(at(Weekday::Monday, "23:00"), (None, None));
        assert_eq!(at(Weekday::Tuesday, "05:59"), (None, None));
        assert_eq!(at(Weekday::Tuesday, "06:00"), (some("10 MB/s"), some("50 MB/s")));
    }

    #[test]
    fn nothing_is_limited_by_a_file_that_says_nothing_or_is_not_there() {
        assert_eq!(Config::parse(""), Ok(Config::default()));
        assert_eq!(Config::parse("# a remark\n[limits]\n"), Ok(Config::default()));
        let home = tempfile::tempdir().expect("a temporary place");
        assert_eq!(Config::read(home.path()).expect("none is fine"), Config::default());
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place_and_what_would_be_right() {
        let schedule = |rest: &str| format!("[[limits.schedule]]\n{rest}");
        for (text, told) in [
            ("[limit]\n".to_owned(), &["line 1", "`limit`", "`limits`"][..]),
            ("[limits]\nupp = \"1MB/s\"\n".to_owned(), &["line 2", "upp", "`up`, `down`"]),
            ("[limits]\n\nup = 10\n".to_owned(), &["line 3", "`up = 10`", "a string"]),
            ("[limits\n".to_owned(), &["line 1"]),
            ("[limits]\nup = \"10Mb/s\"\n".to_owned(), &["limits, up", "10Mb/s", "80Mbit/s"]),
            ("[limits]\ndown = \"1kB/s\"\n".to_owned(), &["limits, down", "64 kB/s"]),
            (schedule("to = \"10:00\"\nup = \"1MB/s\"\n"), &["from"]),
            (
                schedule("from = \"8\"\nto = \"10:00\"\nup = \"1MB/s\"\n"),
                &["limits.schedule 1, from", "HH:MM"],
            ),
            (
                schedule("from = \"08:00\"\nto = \"08:00\"\nup = \"1MB/s\"\n"),
                &["limits.schedule 1", "00:00 to 24:00"],
            ),
            (
                schedule("from = \"08:00\"\nto = \"10:00\"\n"),
                &["limits.schedule 1", "neither up nor down"],
            ),
            (
                schedule("days = [\"Monday\"]\nfrom = \"08:00\"\nto = \"10:00\"\nup = \"1MB/s\"\n"),
                &["limits.schedule 1, days", "mon, tue"],
            ),
            (
                schedule("days = []\nfrom = \"08:00\"\nto = \"10:00\"\nup = \"1MB/s\"\n"),
                &["limits.schedule 1, days", "leave it out"],
            ),
        ] {
            let wrong = Config::parse(&text).expect_err(&text);
            assert!(told.iter().all(|told| wrong.contains(told)), "{wrong}");
        }
    }

    #[test]
    fn an_error_names_the_file_and_is_wrong_usage() {
        let home = tempfile::tempdir().expect("a temporary place");
        fs::write(home.path().join(FILE), "speed = 1\n").expect("a file");
        let error = Config::read(home.path()).expect_err("it is wrong");
        assert!(error.to_string().contains("/config.toml, line 1"), "{error}");
        assert_eq!(error.exit_code(), Error::usage("").exit_code());
    }

    #[test]
    fn a_file_that_is_no_utf8_is_told_with_its_line_and_what_to_do() {
        let home = tempfile::tempdir().expect("a temporary place");
        fs::write(home.path().join(FILE), b"[limits]\n# f\xfcr die Nacht\n").expect("a file");
        let error = Config::read(home.path()).expect_err("it is wrong");
        assert!(error.to_string().contains("line 2: this is no UTF-8; save"), "{error}");
        assert_eq!(error.exit_code(), Error::usage("").exit_code());
    }
}
