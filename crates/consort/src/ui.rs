//! The terminal. This is the only file that writes to it: results go to stdout, everything else to stderr, and with
//! `--json` stdout carries JSON alone.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, BufWriter, IsTerminal as _, Stdout, Write as _};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use tracing_subscriber::EnvFilter;

use crate::args::LogFormat;
use crate::error::Error;
use crate::json;
use crate::pace::Pace;
use crate::text;

/// How long something takes before a progress bar is worth showing.
const PATIENCE: Duration = Duration::from_secs(1);

/// Bytes of output that are gathered before they are written.
const OUTPUT_BUFFER_BYTES: usize = 64 * 1024;

/// Where commands write.
#[derive(Debug)]
pub(crate) struct Ui {
    json: bool,
    output: Mutex<BufWriter<Stdout>>,
    style: Style,
    style_of_messages: Style,
}

/// Whether colors may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// A terminal whose user did not object.
    Colored,
    /// Anything else.
    Plain,
}

/// What a piece of text means. Colors follow from it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Tone {
    /// All is well.
    Good,
    /// Under way, or to be looked at.
    Notice,
    /// Wrong.
    Bad,
    /// A heading or a name.
    Strong,
}

impl Style {
    fn of(is_terminal: bool) -> Self {
        let objected = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        if is_terminal && !objected { Self::Colored } else { Self::Plain }
    }

    /// `text` in the color of its meaning.
    pub(crate) fn paint(self, tone: Tone, text: impl fmt::Display) -> String {
        let code = match tone {
            Tone::Good => "32",
            Tone::Notice => "33",
            Tone::Bad => "31",
            Tone::Strong => "1",
        };
        match self {
            Self::Colored => format!("\x1b[{code}m{text}\x1b[0m"),
            Self::Plain => text.to_string(),
        }
    }
}

impl Ui {
    /// The terminal of this process; `json` as in `--json`.
    pub(crate) fn new(json: bool) -> Self {
        let output = Mutex::new(BufWriter::with_capacity(OUTPUT_BUFFER_BYTES, io::stdout()));
        let style = Style::of(io::stdout().is_terminal());
        let style_of_messages = Style::of(io::stderr().is_terminal());
        Self { json, output, style, style_of_messages }
    }

    /// Whether results are JSON.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// Whether results are seen by a person at once.
    pub(crate) fn is_terminal(&self) -> bool {
        io::stdout().is_terminal()
    }

    /// How results may look.
    pub(crate) fn style(&self) -> Style {
        self.style
    }

    /// A result: as one line of JSON with `--json`, otherwise as text, which brings its own line ends.
    pub(crate) fn result<T: Serialize>(
        &self,
        value: &T,
        text: impl FnOnce(&T, Style) -> String,
    ) -> Result<(), Error> {
        if self.json {
            self.write(json_line(value).as_bytes())?;
        } else {
            self.write(text(value, self.style).as_bytes())?;
        }
        self.flush()
    }

    /// A result that is a message to people and a document to programs.
    pub(crate) fn outcome<T: Serialize>(
        &self,
        value: &T,
        message: impl fmt::Display,
    ) -> Result<(), Error> {
        self.say(message);
        if self.json {
            self.write(json_line(value).as_bytes())?;
            self.flush()?;
        }
        Ok(())
    }

    /// Bytes of the result as they are. They are on their way after [`Self::flush`] at the latest.
    pub(crate) fn write(&self, bytes: &[u8]) -> Result<(), Error> {
        self.lock().write_all(bytes).map_err(output_error)
    }

    /// Sends out what was written.
    pub(crate) fn flush(&self) -> Result<(), Error> {
        self.lock().flush().map_err(output_error)
    }

    /// Replaces what the terminal shows by `text`, or by as much of it as there is room for.
    pub(crate) fn redraw(&self, text: &str) -> Result<(), Error> {
        // A terminal that does not tell its height gets everything.
        let rows = rustix::termios::tcgetwinsize(io::stdout()).map_or(0, |size| size.ws_row);
        let lines = fit(text, rows.into()).replace('\n', "\x1b[K\n");
        // Home, then clear the rest of each line and of the screen: no flicker, as nothing is blanked first. Long lines
        // are cut off meanwhile, so that a line is a row.
        self.write(format!("\x1b[?7l\x1b[H{lines}\x1b[J\x1b[?7h").as_bytes())?;
        self.flush()
    }

    /// A message to a person.
    pub(crate) fn say(&self, message: impl fmt::Display) {
        // A message that nobody can read is no reason to fail.
        let _ = writeln!(io::stderr().lock(), "{message}");
    }

    /// Why the command ends, and what to do.
    pub(crate) fn error(&self, error: &Error) {
        let Error::Told { kind, message, hint } = error else { return };
        let style = self.style_of_messages;
        self.say(format_args!("{} {}", style.paint(Tone::Bad, "error:"), lines(message)));
        if let Some(hint) = hint {
            self.say(format_args!("{} {}", style.paint(Tone::Notice, "hint:"), lines(hint)));
        }
        if self.json {
            let error = json::Failure {
                error: json::Error { kind: *kind, message: message.clone(), hint: hint.clone() },
            };
            // The command has failed already, and says so by its exit code.
            let _ = self.write(json_line(&error).as_bytes()).and_then(|()| self.flush());
        }
    }

    /// What clap has to say: help on stdout, wrong usage on stderr, each in colors where they are welcome.
    pub(crate) fn usage(&self, error: &clap::Error) {
        if self.json && error.use_stderr() {
            let text = error.render().to_string();
            let message = text.trim_start_matches("error: ").lines().next().unwrap_or_default();
            let hint = "`consort help` lists the commands, `consort COMMAND --help` explains one";
            self.error(&Error::usage(message).hint(hint));
        } else {
            // A message that nobody can read is no reason to fail.
            let _ = error.print();
        }
    }

    /// A progress bar that appears when the work turns out to take long, and only on a terminal.
    pub(crate) fn progress(&self, what: &str) -> Progress {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        bar.set_prefix(what.to_string());
        let (began, pace, amount) = (Instant::now(), Pace::default(), Left::default());
        Progress { bar, began, shown: None, pace, entries: amount, bytes: amount }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BufWriter<Stdout>> {
        self.output.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// What a progress bar counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Bytes.
    Bytes,
    /// Anything else.
    Entries,
    /// Nothing yet; the remark says what goes on.
    Nothing,
}

/// Work under way. Gone from the screen when dropped.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
    began: Instant,
    /// What is shown, and whether its end is known.
    shown: Option<(Unit, bool)>,
    pace: Pace,
    entries: Left,
    bytes: Left,
}

/// Work of which is known what is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Left {
    done: u64,
    total: u64,
}

impl Left {
    /// So much is left. What was done stays done when more comes, unless there is more to do than ever before: a bar
    /// that goes to and fro tells nothing.
    fn set(&mut self, left: u64) {
        if self.total < left {
            *self = Self { done: 0, total: left };
        }
        self.done = self.done.max(self.total - left);
    }
}

impl Progress {
    /// `done` of `total`, if that is known, with a remark.
    pub(crate) fn set(&mut self, unit: Unit, done: u64, total: Option<u64>, remark: &str) {
        let look = (unit, total.is_some());
        let before = self.shown.replace(look);
        if before != Some(look) {
            // Another unit has another rate.
            self.pace = Pace::default();
            self.bar.set_style(style_of(look));
        }
        let now = Instant::now();
        let rate = self.pace.watch(now, done);
        if now.saturating_duration_since(self.began) < PATIENCE {
            return;
        }
        if self.bar.is_hidden() {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        if let Some(total) = total {
            self.bar.set_length(total);
        }
        self.bar.set_position(done);
        self.bar.set_message(text::plain(&told(unit, done, total, rate, remark)));
        self.bar.tick();
    }

    /// The same for what is known by what is left of it. How many bytes that is may not be known, and then is zero.
    pub(crate) fn set_left(&mut self, entries: u64, bytes: u64, remark: &str) {
        self.entries.set(entries);
        self.bytes.set(bytes);
        let (unit, Left { done, total }) = match (entries, bytes) {
            (0, 0) => return self.set(Unit::Nothing, 0, None, remark),
            (_, 0) => (Unit::Entries, self.entries),
            _ => (Unit::Bytes, self.bytes),
        };
        let entries = text::counted(entries, "entry", "entries");
        let remark = match unit {
            Unit::Bytes => format!("{entries} to come {remark}"),
            _ => remark.to_string(),
        };
        self.set(unit, done, Some(total), &remark);
    }

    /// A message to a person beside it, which stays when it is gone.
    pub(crate) fn say(&self, message: impl fmt::Display) {
        // One that nobody can read is no reason to fail.
        self.bar.suspend(|| drop(writeln!(io::stderr().lock(), "{message}")));
    }
}

/// How far it is: how much of how much, how fast, how long it will take at that, and a remark.
fn told(unit: Unit, done: u64, total: Option<u64>, rate: Option<u64>, remark: &str) -> String {
    let amount = |number| match unit {
        Unit::Bytes => text::bytes(number),
        Unit::Entries | Unit::Nothing => text::count(number),
    };
    let far = match (unit, total) {
        (Unit::Nothing, _) => return remark.to_string(),
        (_, Some(total)) => format!("{} of {}", amount(done), amount(total)),
        (_, None) => amount(done),
    };
    let (after_number, at_end) = if unit == Unit::Bytes { ("", remark) } else { (remark, "") };
    let mut parts = vec![format!("{far} {after_number}").trim_end().to_string()];
    if let Some(rate) = rate {
        parts.push(format!("{}/s", amount(rate)));
        if let Some(total) = total {
            let left = total.saturating_sub(done);
            parts.push(format!("about {} left", text::time_left(left, rate)));
        }
    }
    parts.extend((!at_end.is_empty()).then(|| at_end.to_string()));
    parts.join(", ")
}

fn style_of((_, bounded): (Unit, bool)) -> ProgressStyle {
    // A line that is wider than the terminal would stay on it, so the end is cut off.
    let template =
        if bounded { "{prefix} [{bar:12}] {wide_msg}" } else { "{prefix} {spinner} {wide_msg}" };
    ProgressStyle::with_template(template).expect("the templates above are well-formed")
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Sends the log to stderr. `filter` as in `--log`.
pub(crate) fn start_log(filter: &str, format: LogFormat) -> Result<(), Error> {
    let filter = EnvFilter::try_new(filter).map_err(|error| {
        Error::usage(format!("`{}` is no log filter: {error}", text::plain(filter)))
            .hint("for example --log debug, or --log warn,consort_node=debug")
    })?;
    let colored = Style::of(io::stderr().is_terminal()) == Style::Colored;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match format {
        LogFormat::Text => log.with_ansi(colored).init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}

/// As many of the lines as fit on a screen with so many rows, the last of which the cursor has; all if that is zero.
fn fit(text: &str, rows: usize) -> Cow<'_, str> {
    let lines: Vec<&str> = text.lines().collect();
    if rows == 0 || lines.len() < rows {
        return text.into();
    }
    let shown = &lines[..rows.saturating_sub(2)];
    let left = lines.len() - shown.len();
    let end = format!("and {}\n", text::counted(left as u64, "more line", "more lines"));
    shown.iter().flat_map(|line| [line, "\n"]).chain([&*end]).collect()
}

/// One line of JSON, its end included, that is harmless on a terminal too.
pub(crate) fn json_line<T: Serialize>(value: &T) -> String {
    let json = serde_json::to_string(value).expect("our types are plain data with text as keys");
    let mut line = String::with_capacity(json.len() + 1);
    for c in json.chars() {
        // Only within strings can such a character be, and there an escape means the same.
        if text::is_dangerous(c) {
            line.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            line.push(c);
        }
    }
    line.push('\n');
    line
}

/// A message of several lines, each made harmless.
fn lines(message: &str) -> String {
    message.lines().map(text::plain).collect::<Vec<_>>().join("\n")
}

fn output_error(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Error::OutputClosed,
        _ => Error::failed(format!("cannot write the output: {error}"))
            .hint("make room where the output goes, or send it elsewhere"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_lines_are_harmless_on_a_terminal_and_mean_the_same() {
        let key = "a\u{9b}2J\u{202e}\u{1b}\n\u{7f}";
        let line = json_line(&key);
        assert!(!line.trim_end().chars().any(text::is_dangerous), "{line:?}");
        assert_eq!(serde_json::from_str::<String>(&line).expect("valid JSON"), key);
    }

    #[test]
    fn a_screen_that_is_too_low_shows_the_beginning_and_says_so() {
        let text = "1\n2\n3\n4\n";
        assert_eq!(fit(text, 0), text);
        assert_eq!(fit(text, 5), text);
        assert_eq!(fit(text, 4), "1\n2\nand 2 more lines\n");
        assert_eq!(fit(text, 1), "and 4 more lines\n");
    }

    #[test]
    fn progress_is_told_with_rate_and_time_only_when_they_are_known() {
        let (kib, total) = (1024, Some(10_240));
        for (unit, done, total, rate, remark, expected) in [
            (Unit::Bytes, kib, total, None, "", "1.0 KiB of 10.0 KiB"),
            (
                Unit::Bytes,
                kib,
                total,
                Some(kib),
                "",
                "1.0 KiB of 10.0 KiB, 1.0 KiB/s, about 9 s left",
            ),
            (
                Unit::Bytes,
                kib,
                total,
                None,
                "3 entries to come (syncing)",
                "1.0 KiB of 10.0 KiB, 3 entries to come (syncing)",
            ),
            (Unit::Bytes, kib, None, Some(kib), "", "1.0 KiB, 1.0 KiB/s"),
            (Unit::Entries, 1200, None, None, "rows", "1,200 rows"),
            (
                Unit::Entries,
                5,
                Some(50),
                Some(45),
                "looked at",
                "5 of 50 looked at, 45/s, about 1 s left",
            ),
            (Unit::Nothing, 0, None, None, "(waiting)", "(waiting)"),
        ] {
            assert_eq!(told(unit, done, total, rate, remark), expected);
        }
    }

    #[test]
    fn what_is_left_never_makes_a_bar_go_back_unless_there_is_more_than_ever() {
        let mut left = Left::default();
        let mut after = |number| {
            left.set(number);
            (left.done, left.total)
        };
        assert_eq!(after(100), (0, 100));
        assert_eq!(after(40), (60, 100));
        assert_eq!(after(70), (60, 100));
        assert_eq!(after(30), (70, 100));
        assert_eq!(after(300), (0, 300));
        assert_eq!(after(0), (300, 300));
    }

    #[test]
    fn plain_style_adds_nothing() {
        assert_eq!(Style::Plain.paint(Tone::Bad, "x"), "x");
        assert_eq!(Style::Colored.paint(Tone::Bad, "x"), "\x1b[31mx\x1b[0m");
    }
}
