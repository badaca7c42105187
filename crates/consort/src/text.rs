//! Numbers, times and names as people read and write them. Nothing here prints.

use std::fmt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Text that came from data or from another machine, made harmless for a terminal: control characters, and those that
/// reorder what is shown, appear as escapes.
pub(crate) fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        if is_dangerous(c) {
            plain.extend(c.escape_unicode());
        } else {
            plain.push(c);
        }
    }
    plain
}

/// Whether a terminal could be misled by `c`.
pub(crate) fn is_dangerous(c: char) -> bool {
    let reorders =
        matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || reorders || matches!(c, '\u{2028}' | '\u{2029}')
}

/// A command for the node with this home, as it is typed into a shell.
pub(crate) fn command(home: &Path, words: &str) -> String {
    let home = plain(&home.display().to_string());
    let bare = home.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+,=:@".contains(c));
    let quoted = if bare { home } else { format!("'{}'", home.replace('\'', r"'\''")) };
    format!("consort --home {quoted} {words}")
}

/// A number of bytes, in powers of 1,024.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut unit = 0;
    let mut rest = bytes;
    // From here on the next unit's 1.0 is nearer than this one's 1023.9.
    while 1024 * 1024 - 51 <= rest {
        rest /= 1024;
        unit += 1;
    }
    let tenths = (rest * 10 + 512) / 1024;
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

/// A count with separators: 25,000.
pub(crate) fn count(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i != 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 entry`, `2 entries`.
pub(crate) fn counted(number: u64, one: &str, many: &str) -> String {
    format!("{} {}", count(number), if number == 1 { one } else { many })
}

/// A length of time that people write as `60s`, `24h`, `7d`, `500ms` or `15m`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let problem =
        || "a duration is a number with a unit, such as 500ms, 60s, 15m, 24h or 7d".to_string();
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(problem)?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| problem())?;
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60 * 1000,
        "h" => 60 * 60 * 1000,
        "d" => 24 * 60 * 60 * 1000,
        _ => return Err(problem()),
    };
    number.checked_mul(unit_ms).map(Duration::from_millis).ok_or_else(problem)
}

/// How long something is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// For so long.
    For(Duration),
    /// For ever.
    Endless,
}

impl Patience {
    /// Its end, if there is one.
    pub(crate) fn limit(self) -> Option<Duration> {
        match self {
            Self::For(limit) => Some(limit),
            Self::Endless => None,
        }
    }
}

/// A length of time that people write as a duration, or as `never` if it has no end.
pub(crate) fn parse_patience(text: &str) -> Result<Patience, String> {
    match text {
        "never" => Ok(Patience::Endless),
        _ => parse_duration(text).and_then(|limit| match limit {
            Duration::ZERO => Err("no time at all makes no sense; write never".to_owned()),
            limit => Ok(Patience::For(limit)),
        }),
    }
}

/// A length of time, short: `340 ms`, `4.2 s`, `3 min`, `24 h`, `7 d`.
pub(crate) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{} ms", duration.as_millis()),
        1..60 => format!("{seconds}.{} s", duration.subsec_millis() / 100),
        60..3600 => format!("{} min", seconds / 60),
        3600..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// How long `left` will take at `rate` a second, which is not 0: `9 s`, `3 min`, `2 h`. Rounded up.
pub(crate) fn time_left(left: u64, rate: u64) -> String {
    match left.div_ceil(rate).max(1) {
        seconds @ ..60 => format!("{seconds} s"),
        seconds @ 60..3600 => format!("{} min", seconds.div_ceil(60)),
        seconds => format!("{} h", seconds.div_ceil(3600)),
    }
}

/// Milliseconds since 1970 as `2026-11-23T02:30:05.123Z`.
pub(crate) fn time(ms: u64) -> String {
    let (days, ms_of_day) = (ms / 86_400_000, ms % 86_400_000);
    // Howard Hinnant's civil_from_days: years begin in March, so that the leap day is the last of its year.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (seconds, ms) = (ms_of_day / 1000, ms_of_day % 1000);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

/// The wall clock, in milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Rows whose columns line up. The last column is not padded.
#[derive(Debug, Default)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Adds a row.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut widths: Vec<usize> = Vec::new();
        for row in &self.rows {
            widths.resize(widths.len().max(row.len()), 0);
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.chars().count().max(*width);
            }
        }
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(cell);
                let padding = width - cell.chars().count() + 2;
                line.extend(std::iter::repeat_n(' ', padding));
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_can_be_copied_into_a_shell() {
        let with = |home: &str| command(Path::new(home), "up");
        assert_eq!(with("/data/node-1"), "consort --home /data/node-1 up");
        assert_eq!(with("/my data/it's"), r"consort --home '/my data/it'\''s' up");
    }

    #[test]
    fn control_characters_and_reordering_never_reach_a_terminal() {
        assert_eq!(plain("a\u{1b}[2Jb\n"), "a\\u{1b}[2Jb\\u{a}");
        assert_eq!(plain("x\u{202e}gpj.exe\u{9b}"), "x\\u{202e}gpj.exe\\u{9b}");
        assert_eq!(plain("päth/日本"), "päth/日本");
    }

    #[test]
    fn sizes_and_counts_are_short() {
        let sizes = [0, 1023, 1024, 1536, 1024 * 1024 - 60, 1024 * 1024 - 1, 5 << 30, u64::MAX];
        assert_eq!(
            sizes.map(bytes),
            ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "1023.9 KiB", "1.0 MiB", "5.0 GiB", "16.0 EiB"]
        );
        // To the nearest, as elsewhere: what was sent as 1.40 GiB does not arrive as 1.3.
        assert_eq!(bytes(1_500_000_000), "1.4 GiB");
        assert_eq!([0, 999, 1000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(parse_duration("60s"), Ok(Duration::from_secs(60)));
        assert_eq!(parse_duration("24h"), Ok(Duration::from_secs(86_400)));
        assert_eq!(parse_duration("7d"), Ok(Duration::from_secs(604_800)));
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        for wrong in
            ["", "60", "s", "-1s", "1.5h", "1w", "99999999999999999999s", "18446744073709551615d"]
        {
            assert!(parse_duration(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn patience_has_an_end_or_none() {
        assert_eq!(
            parse_patience("7d").map(Patience::limit),
            Ok(Some(Duration::from_secs(604_800)))
        );
        assert_eq!(parse_patience("never").map(Patience::limit), Ok(None));
        for wrong in ["", "0s", "Never", "30"] {
            assert!(parse_patience(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn times_are_written_as_in_rfc_3339() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_000_000_000_123, "2001-09-09T01:46:40.123Z"),
            (4_107_542_399_999, "2100-02-28T23:59:59.999Z"),
        ] {
            assert_eq!(time(ms), text);
        }
    }

    #[test]
    fn columns_line_up_and_lines_do_not_end_in_blanks() {
        let mut table = Table::default();
        table.row(["a".into(), "bb".into(), String::new()]);
        table.row(["日本語".into(), "c".into(), "d".into()]);
        assert_eq!(table.to_string(), "a    bb\n日本語  c   d\n");
    }
}
