//! A result as a picture: one bar for each tool, as long as it took, as an SVG document.

use std::fmt::Write as _;
use std::time::Duration;

use crate::failure::Failure;
use crate::table::{Bar, Table};

/// In pixels.
const WIDTH: f64 = 800.0;
const TOP: f64 = 56.0;
const ROW: f64 = 34.0;
const BAR: f64 = 22.0;
const FOOT: f64 = 44.0;
/// Where bars begin, and where the longest ends: there is room for its number.
const LEFT: f64 = 100.0;
const RIGHT: f64 = WIDTH - 130.0;

/// Ours, and all others.
const COLORS: [&str; 2] = ["#0072b2", "#999"];

pub(crate) fn draw(table: &Table) -> Result<String, Failure> {
    let bars = table.bars();
    let longest = bars.iter().map(|bar| bar.whole).max().unwrap_or_default().as_secs_f64();
    if longest <= 0.0 {
        return Err(Failure::new("this case has no times to draw"));
    }
    let bottom = TOP + ROW * bars.len() as f64;
    let height = bottom + FOOT;
    let mut svg = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12" fill="#222">
<rect width="100%" height="100%" fill="#fff"/>
<text x="20" y="30" font-size="16">{}</text>
"##,
        escaped(table.title())
    );
    for (number, bar) in bars.iter().enumerate() {
        let y = TOP + ROW * number as f64;
        let color = COLORS[number.min(1)];
        let width = |time: Duration| time.as_secs_f64() / longest * (RIGHT - LEFT);
        let _ = write!(
            svg,
            r#"<text x="{}" y="{:.1}" text-anchor="end">{}</text>
<rect x="{LEFT}" y="{y:.1}" width="{:.1}" height="{BAR}" fill="{color}" fill-opacity="0.4"/>
<rect x="{LEFT}" y="{y:.1}" width="{:.1}" height="{BAR}" fill="{color}"/>
<text x="{:.1}" y="{:.1}">{}</text>
"#,
            LEFT - 8.0,
            y + 16.0,
            escaped(bar.name),
            width(bar.whole),
            width(bar.time),
            LEFT + width(bar.whole) + 8.0,
            y + 16.0,
            label(bar),
        );
    }
    let _ = writeln!(svg, r##"<path d="M{LEFT} {}V{bottom}" stroke="#222"/>"##, TOP - 6.0);
    let about = if bars.iter().any(|bar| bar.time < bar.whole) {
        "Median time until the tool is done; pale: until all of it is on the disk. Shorter is better."
    } else {
        "Median time. Shorter is better."
    };
    let _ = writeln!(svg, r##"<text x="20" y="{}" fill="#555">{about}</text>"##, bottom + 24.0);
    svg.push_str("</svg>\n");
    Ok(svg)
}

fn label(bar: &Bar) -> String {
    let (time, whole) = (text(bar.time), text(bar.whole));
    if time == whole { time } else { format!("{time} ({whole})") }
}

fn text(time: Duration) -> String {
    match time.as_secs_f64() {
        seconds if seconds < 1.0 => format!("{:.0} ms", seconds * 1e3),
        seconds => format!("{seconds:.1} s"),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_long_as_their_times() {
        let mut table = Table::new("a < b", &["tool"]);
        assert!(draw(&table).is_err());
        let second = Duration::from_secs(1);
        table.bar(Bar { name: "consort", time: second, whole: second });
        table.bar(Bar { name: "rsync", time: second * 2, whole: second * 4 });
        let svg = draw(&table).unwrap();
        let whole = RIGHT - LEFT;
        for part in [
            "a &lt; b",
            &format!("width=\"{:.1}\"", whole / 4.0),
            &format!("width=\"{:.1}\"", whole / 2.0),
            &format!("width=\"{whole:.1}\""),
            "2.0 s (4.0 s)",
        ] {
            assert!(svg.contains(part), "{part} in {svg}");
        }
    }
}
