//! How fast a node may send and receive, as its user says it: rates as text, and which of them holds at which time of
//! the week. How a limit is kept is the business of the node; where they are written, of [`crate::config`].

use std::fmt;
use std::str::FromStr;

use consort_node::{Limits, Rate};
use jiff::Zoned;
use jiff::civil::Weekday;

/// The units of a rate, in bytes a second, times 8: bits are what some are counted in.
const UNITS: [(&str, u64); 11] = [
    ("B/s", 8),
    ("kB/s", 8_000),
    ("KiB/s", 8 << 10),
    ("MB/s", 8_000_000),
    ("MiB/s", 8 << 20),
    ("GB/s", 8_000_000_000),
    ("GiB/s", 8 << 30),
    ("bit/s", 1),
    ("kbit/s", 1_000),
    ("Mbit/s", 1_000_000),
    ("Gbit/s", 1_000_000_000),
];

/// How the days are called.
const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

/// What is told of a rate that is none.
const FORM: &str = "a rate is a number with a unit, such as 10MB/s, 10MiB/s or 80Mbit/s, or unlimited (B is a byte, bit a bit; k, M and G are thousands, Ki, Mi and Gi powers of 1,024)";

/// How fast it may go in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ceiling {
    /// As fast as this.
    Rate(Rate),
    /// As fast as it can.
    Unlimited,
}

impl Ceiling {
    fn rate(self) -> Option<Rate> {
        match self {
            Self::Rate(rate) => Some(rate),
            Self::Unlimited => None,
        }
    }
}

impl FromStr for Ceiling {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "unlimited" {
            return Ok(Self::Unlimited);
        }
        let number = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(number);
        let unit = unit.strip_prefix(' ').unwrap_or(unit);
        let (_, unit_bits) = UNITS.iter().find(|(name, _)| *name == unit).ok_or(FORM)?;
        let bytes =
            thousandths(number).and_then(|number| number.checked_mul(*unit_bits)).ok_or(FORM)?
                / 8000;
        Rate::new(bytes).map(Self::Rate).ok_or_else(|| {
            format!("less than {} kB/s is not enough for links to work", Rate::MIN_BYTES / 1000)
        })
    }
}

/// A decimal number with up to three digits after the point, times 1,000.
fn thousandths(text: &str) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    if whole.is_empty() || fraction.is_empty() || 3 < fraction.len() {
        return None;
    }
    let fraction: u64 = format!("{fraction:0<3}").parse().ok()?;
    whole.parse::<u64>().ok()?.checked_mul(1000)?.checked_add(fraction)
}

/// A rate in decimal units of bytes, which is what networks are sold in, to three digits after the point.
pub(crate) fn rate(bytes_per_second: u64) -> String {
    let (unit, name) = match bytes_per_second {
        0..1_000_000 => (1_000, "kB/s"),
        1_000_000..1_000_000_000 => (1_000_000, "MB/s"),
        _ => (1_000_000_000, "GB/s"),
    };
    let (whole, fraction) = (bytes_per_second / unit, bytes_per_second % unit / (unit / 1000));
    let number = format!("{whole}.{fraction:03}");
    format!("{} {name}", number.trim_end_matches('0').trim_end_matches('.'))
}

/// What somebody says of both directions: none is to leave one to others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ceilings {
    pub(crate) up: Option<Ceiling>,
    pub(crate) down: Option<Ceiling>,
}

impl Ceilings {
    /// These where they say something, the others where they do not.
    fn or(self, others: Self) -> Self {
        Self { up: self.up.or(others.up), down: self.down.or(others.down) }
    }

    /// What comes of it if nobody else says anything.
    fn limits(self) -> Limits {
        let rate = |ceiling: Option<Ceiling>| ceiling.and_then(Ceiling::rate);
        Limits { up: rate(self.up), down: rate(self.down) }
    }
}

/// What holds when.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Timetable {
    /// What holds when no window says anything else.
    pub(crate) always: Ceilings,
    /// Of two that overlap, the first one wins.
    pub(crate) windows: Vec<Window>,
}

/// A time of some days of the week, and what holds then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    /// The days on which it begins.
    pub(crate) days: Days,
    pub(crate) from: TimeOfDay,
    /// Where it ends, and is over; on the next day if that is not after `from`.
    pub(crate) to: TimeOfDay,
    pub(crate) ceilings: Ceilings,
}

impl Timetable {
    /// What holds at a moment, unless `first` says something else.
    pub(crate) fn limits(&self, moment: Moment, first: Ceilings) -> Limits {
        let open = self.windows.iter().filter(|window| window.is_open(moment));
        open.fold(first, |said, window| said.or(window.ceilings)).or(self.always).limits()
    }
}

impl Window {
    fn is_open(&self, Moment { day, time }: Moment) -> bool {
        let today = self.days.has(day);
        if self.from < self.to {
            today && (self.from..self.to).contains(&time)
        } else {
            (today && self.from <= time) || (self.days.has(day.previous()) && time < self.to)
        }
    }
}

/// A moment of the week, by the clock on the wall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment {
    pub(crate) day: Weekday,
    pub(crate) time: TimeOfDay,
}

impl Moment {
    /// Of this machine's time zone.
    pub(crate) fn of(now: &Zoned) -> Self {
        let minutes = i16::from(now.hour()) * 60 + i16::from(now.minute());
        Self { day: now.weekday(), time: TimeOfDay(minutes.unsigned_abs()) }
    }
}

/// Minutes since midnight, up to those of the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TimeOfDay(u16);

impl FromStr for TimeOfDay {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| {
            let is_number = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|_| is_number)
        };
        let time: Option<(u16, u16)> =
            text.split_once(':').and_then(|(hour, minute)| Some((number(hour)?, number(minute)?)));
        match time {
            Some((hour @ 0..24, minute @ 0..60)) => Ok(Self(hour * 60 + minute)),
            Some((24, 0)) => Ok(Self(24 * 60)),
            _ => Err("a time is written HH:MM, from 00:00 to 24:00".to_owned()),
        }
    }
}

impl fmt::Display for TimeOfDay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}:{:02}", self.0 / 60, self.0 % 60)
    }
}

/// Some days of the week, the first bit for Monday.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Days(u8);

impl Days {
    pub(crate) const ALL: Self = Self(0x7f);

    /// The days with these names.
    pub(crate) fn named(names: &[String]) -> Result<Self, String> {
        let mut days = Self(0);
        for name in names {
            let day = DAYS.iter().position(|day| day == name);
            let day = day.ok_or_else(|| format!("a day is one of {}", DAYS.join(", ")))?;
            days.0 |= 1 << day;
        }
        if days.0 == 0 {
            return Err("without a day it never holds; leave it out for every day".to_owned());
        }
        Ok(days)
    }

    fn has(self, day: Weekday) -> bool {
        self.0 & (1 << day.to_monday_zero_offset()) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &str) -> Option<u64> {
        match text.parse() {
            Ok(Ceiling::Rate(rate)) => Some(rate.bytes()),
            _ => None,
        }
    }

    fn ceiling(text: &str) -> Option<Ceiling> {
        Some(text.parse().expect("a rate"))
    }

    fn window(days: &[&str], from: &str, to: &str, ceilings: Ceilings) -> Window {
        let days: Vec<String> = days.iter().map(|day| (*day).to_owned()).collect();
        Window {
            days: Days::named(&days).expect("days"),
            from: from.parse().expect("a time"),
            to: to.parse().expect("a time"),
            ceilings,
        }
    }

    fn moment(day: Weekday, time: &str) -> Moment {
        Moment { day, time: time.parse().expect("a time") }
    }

    #[test]
    fn rates_are_bytes_or_bits_a_second() {
        for (text, expected) in [
            ("10MB/s", 10_000_000),
            ("10 MB/s", 10_000_000),
            ("10MiB/s", 10 << 20),
            ("80Mbit/s", 10_000_000),
            ("2.5MB/s", 2_500_000),
            ("0.064MB/s", 64_000),
            ("64000B/s", 64_000),
            ("512kbit/s", 64_000),
            ("1.125GiB/s", (1 << 30) + (1 << 27)),
            ("1Gbit/s", 125_000_000),
        ] {
            assert_eq!(bytes(text), Some(expected), "{text}");
        }
        assert_eq!("unlimited".parse(), Ok(Ceiling::Unlimited));
    }

    #[test]
    fn what_could_mean_something_else_is_no_rate_and_the_form_is_told() {
        for text in [
            "",
            "10",
            "10MB",
            "10Mb/s",
            "10mb/s",
            "10M",
            "MB/s",
            "-1MB/s",
            "1,5MB/s",
            ".5MB/s",
            "1.MB/s",
            "1.2345MB/s",
            "1.2.3MB/s",
            "10  MB/s",
            "10MB/s ",
            "Unlimited",
            "none",
            "99999999999999999999GB/s",
            "9999999999999GiB/s",
        ] {
            assert_eq!(text.parse::<Ceiling>(), Err(FORM.to_owned()), "{text:?}");
        }
        for text in ["0MB/s", "63kB/s", "1bit/s"] {
            let error = text.parse::<Ceiling>().expect_err(text);
            assert!(error.contains("64 kB/s"), "{error}");
        }
    }

    #[test]
    fn a_rate_is_shown_as_it_was_written() {
        let shown = [64_000, 10_000_000, 2_500_000, 10 << 20, 125_000_000, 1_500_000_000].map(rate);
        let expected = ["64 kB/s", "10 MB/s", "2.5 MB/s", "10.485 MB/s", "125 MB/s", "1.5 GB/s"];
        assert_eq!(shown, expected);
    }

    #[test]
    fn times_are_those_of_a_day_with_both_its_ends() {
        for text in ["00:00", "08:00", "23:59", "24:00"] {
            assert_eq!(text.parse::<TimeOfDay>().map(|time| time.to_string()), Ok(text.to_owned()));
        }
        for text in ["", "8:00", "08", "24:01", "12:60", "12:5", "+1:00", "12:00:00", "noon"] {
            assert!(text.parse::<TimeOfDay>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_window_holds_from_its_beginning_until_its_end_on_its_days() {
        let ceilings = Ceilings { up: ceiling("1MB/s"), down: None };
        let window = window(&["mon", "fri"], "08:00", "18:00", ceilings);
        for (day, time, is_open) in [
            (Weekday::Monday, "07:59", false),
            (Weekday::Monday, "08:00", true),
            (Weekday::Monday, "17:59", true),
            (Weekday::Monday, "18:00", false),
            (Weekday::Tuesday, "12:00", false),
            (Weekday::Friday, "12:00", true),
        ] {
            assert_eq!(window.is_open(moment(day, time)), is_open, "{day:?} {time}");
        }
    }

    #[test]
    fn a_window_that_passes_midnight_belongs_to_the_day_on_which_it_begins() {
        let window = window(&["sun"], "22:00", "06:00", Ceilings::default());
        for (day, time, is_open) in [
            (Weekday::Saturday, "23:00", false),
            (Weekday::Sunday, "05:00", false),
            (Weekday::Sunday, "22:00", true),
            (Weekday::Monday, "05:59", true),
            (Weekday::Monday, "06:00", false),
            (Weekday::Monday, "22:00", false),
        ] {
            assert_eq!(window.is_open(moment(day, time)), is_open, "{day:?} {time}");
        }
        let all_day = self::window(&["wed"], "00:00", "24:00", Ceilings::default());
        assert!(all_day.is_open(moment(Weekday::Wednesday, "23:59")));
        assert!(!all_day.is_open(moment(Weekday::Thursday, "00:00")));
    }

    #[test]
    fn each_direction_is_decided_by_the_first_that_says_something_of_it() {
        let first = Ceilings { up: ceiling("1MB/s"), down: None };
        let second = Ceilings { up: ceiling("2MB/s"), down: ceiling("unlimited") };
        let always = Ceilings { up: ceiling("3MB/s"), down: ceiling("4MB/s") };
        let timetable = Timetable {
            always,
            windows: vec![
                window(&["mon"], "08:00", "12:00", first),
                window(&["mon"], "10:00", "14:00", second),
            ],
        };
        let at = |time, command_line| {
            let limits = timetable.limits(moment(Weekday::Monday, time), command_line);
            (limits.up.map(Rate::bytes), limits.down.map(Rate::bytes))
        };
        let nothing = Ceilings::default();
        assert_eq!(at("07:00", nothing), (Some(3_000_000), Some(4_000_000)));
        assert_eq!(at("09:00", nothing), (Some(1_000_000), Some(4_000_000)));
        assert_eq!(at("11:00", nothing), (Some(1_000_000), None));
        assert_eq!(at("13:00", nothing), (Some(2_000_000), None));
        let command_line = Ceilings { up: ceiling("unlimited"), down: None };
        assert_eq!(at("11:00", command_line), (None, None));
        assert_eq!(at("07:00", command_line), (None, Some(4_000_000)));
        let none = Timetable::default();
        assert_eq!(none.limits(moment(Weekday::Monday, "07:00"), nothing), Limits::default());
    }

    #[test]
    fn a_moment_is_that_of_the_time_zone() {
        let moment_in = |text: &str| Moment::of(&text.parse().expect("a time with its zone"));
        assert_eq!(
            moment_in("2026-11-22T23:30:59+01:00[+01:00]"),
            moment(Weekday::Sunday, "23:30")
        );
        assert_eq!(
            moment_in("2026-11-23T00:30:00+02:00[+02:00]"),
            moment(Weekday::Monday, "00:30")
        );
    }
}
