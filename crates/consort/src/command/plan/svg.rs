//! The picture of a plan: how soon versions arrive, and how hops and traffic grow with the number of nodes.

use std::fmt::Write as _;

use consort_sim::plan::Forecast;

use crate::text::{count, counted, duration};

/// The picture, and one of its three parts, in pixels.
const WIDTH: f64 = 1200.0;
const HEIGHT: f64 = 430.0;
const PART: f64 = WIDTH / 3.0;
/// Where the axes of a part are within it.
const LEFT: f64 = 58.0;
const RIGHT: f64 = PART - 24.0;
const TOP: f64 = 92.0;
const BOTTOM: f64 = HEIGHT - 62.0;

/// Colors that are told apart also by those who see few of them.
const COLORS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"];

/// What an axis shows: from where to where, on what scale, with which marks.
struct Axis {
    from: f64,
    to: f64,
    is_log: bool,
    marks: Vec<(f64, String)>,
}

struct Line {
    name: String,
    points: Vec<(f64, f64)>,
    /// Whether each point is one that was simulated.
    dots: bool,
}

/// Draws it, as an SVG document.
pub(super) fn draw(about: &str, forecasts: &[Forecast]) -> String {
    let mut svg = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12" fill="#222">
<rect width="100%" height="100%" fill="#fff"/>
<text x="20" y="30" font-size="16">{}</text>
"##,
        escaped(about)
    );
    arrivals(&mut svg, forecasts);
    let nodes = nodes_axis(forecasts);
    let each = |value: fn(&Forecast) -> f64| -> Vec<(f64, f64)> {
        forecasts.iter().map(|forecast| (f64::from(forecast.nodes), value(forecast))).collect()
    };
    let line = |name: &str, points| Line { name: name.to_owned(), points, dots: true };
    let hops = [
        line("all but 1 %", each(|forecast| f64::from(forecast.hops.p99))),
        line("mean", each(|forecast| forecast.mean_hops)),
    ];
    part(&mut svg, 1, "Links that a version passes, by nodes", &nodes, &upwards(&hops, 4.0), &hops);
    let times = |bytes: f64, forecast: &Forecast| bytes / forecast.version_bytes as f64;
    let traffic =
        forecasts.iter().map(|f| (f64::from(f.nodes), times(f.sent.most_bytes as f64, f)));
    let received =
        forecasts.iter().map(|f| (f64::from(f.nodes), times(f.received.most_bytes as f64, f)));
    let mean = forecasts.iter().map(|f| (f64::from(f.nodes), times(f.received.mean_bytes, f)));
    let traffic = [
        line("sent, busiest node", traffic.collect()),
        line("received, busiest node", received.collect()),
        line("mean", mean.collect()),
    ];
    let title = "Traffic of a node, times what was written";
    part(&mut svg, 2, title, &nodes, &upwards(&traffic, 2.0), &traffic);
    svg.push_str("</svg>\n");
    svg
}

/// How many versions have arrived on how many nodes, over time.
fn arrivals(svg: &mut String, forecasts: &[Forecast]) {
    let seconds = |forecast: &Forecast| -> Vec<f64> {
        forecast.arrivals.iter().map(|time| time.as_secs_f64().max(1e-4)).collect()
    };
    let all: Vec<f64> = forecasts.iter().flat_map(seconds).collect();
    let least = all.iter().copied().fold(f64::INFINITY, f64::min);
    let most = all.iter().copied().fold(1e-3, f64::max);
    let line = |forecast: &Forecast| Line {
        name: counted(forecast.nodes.into(), "node", "nodes"),
        points: seconds(forecast).into_iter().zip((0..=100).map(f64::from)).collect(),
        dots: false,
    };
    let lines: Vec<Line> = forecasts.iter().map(line).collect();
    let name = |seconds: f64| duration(std::time::Duration::from_secs_f64(seconds));
    let marks = decades(least, most).into_iter().map(|at| (at, name(at).replace(".0 s", " s")));
    let (from, to) = (least.min(most / 10.0), most);
    let x = Axis { from, to, is_log: true, marks: marks.collect() };
    let marks = (0..=4).map(|n| f64::from(n) * 25.0).map(|at| (at, format!("{at} %")));
    let y = Axis { from: 0.0, to: 100.0, is_log: false, marks: marks.collect() };
    part(svg, 0, "Versions that are durable on a node, by time", &x, &y, &lines);
}

fn nodes_axis(forecasts: &[Forecast]) -> Axis {
    let all = || forecasts.iter().map(|forecast| forecast.nodes);
    let (least, most) = (all().min().unwrap_or(2), all().max().unwrap_or(2));
    let (from, to) = (f64::from(least) / 1.5, f64::from(most) * 1.5);
    let marks = all().map(|nodes| (f64::from(nodes), count(nodes.into())));
    Axis { from, to, is_log: true, marks: marks.collect() }
}

/// An axis from zero that has room for all lines, and for so much at least.
fn upwards(lines: &[Line], least: f64) -> Axis {
    let most = lines.iter().flat_map(|line| &line.points).map(|(_, y)| *y).fold(least, f64::max);
    let decade = 10f64.powf(most.log10().floor());
    let steps = [0.2, 0.5, 1.0, 2.0].map(|step| step * decade);
    let step = steps.into_iter().find(|step| most / step <= 6.0).unwrap_or(2.0 * decade);
    let to = (most / step).ceil() * step;
    let marks = (0u32..).map(|n| f64::from(n) * step).take_while(|at| *at <= to * 1.001);
    let marks = marks.map(|at| (at, format!("{}", (at * 100.0).round() / 100.0)));
    Axis { from: 0.0, to, is_log: false, marks: marks.collect() }
}

/// The powers of ten, and their halves if there are few, between two numbers.
fn decades(least: f64, most: f64) -> Vec<f64> {
    let powers = (-4..6).map(|power| 10f64.powi(power));
    let all = powers.flat_map(|power| [power, 3.0 * power]);
    all.filter(|at| least <= *at && *at <= most).collect()
}

fn part(svg: &mut String, place: u32, title: &str, x: &Axis, y: &Axis, lines: &[Line]) {
    let _ = writeln!(svg, r#"<g transform="translate({} 0)">"#, f64::from(place) * PART);
    let _ = writeln!(svg, r#"<text x="{LEFT}" y="{}" font-size="14">{title}</text>"#, TOP - 22.0);
    let across = |value: f64| LEFT + x.place(value) * (RIGHT - LEFT);
    let up = |value: f64| BOTTOM - y.place(value) * (BOTTOM - TOP);
    for (value, name) in &y.marks {
        let at = up(*value);
        let _ = writeln!(
            svg,
            r##"<path d="M{LEFT} {at:.1}H{RIGHT}" stroke="#ddd"/><text x="{}" y="{:.1}" text-anchor="end">{name}</text>"##,
            LEFT - 6.0,
            at + 4.0
        );
    }
    for (value, name) in &x.marks {
        let at = across(*value);
        let _ = writeln!(
            svg,
            r##"<path d="M{at:.1} {BOTTOM}v5" stroke="#222"/><text x="{at:.1}" y="{}" text-anchor="middle">{name}</text>"##,
            BOTTOM + 20.0
        );
    }
    let _ = writeln!(svg, r##"<path d="M{LEFT} {BOTTOM}H{RIGHT}" stroke="#222"/>"##);
    for (number, (line, color)) in lines.iter().zip(COLORS.iter().cycle()).enumerate() {
        let points: Vec<(f64, f64)> =
            line.points.iter().map(|(x, y)| (across(*x), up(*y))).collect();
        let path: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _ = writeln!(
            svg,
            r#"<polyline points="{}" fill="none" stroke="{color}" stroke-width="2"/>"#,
            path.join(" ")
        );
        for (x, y) in points.iter().filter(|_| line.dots) {
            let _ = writeln!(svg, r#"<circle cx="{x:.1}" cy="{y:.1}" r="3.5" fill="{color}"/>"#);
        }
        let (legend_x, legend_y) = (LEFT + 10.0, TOP + 14.0 + 17.0 * number as f64);
        let _ = writeln!(
            svg,
            r#"<path d="M{legend_x} {:.1}h18" stroke="{color}" stroke-width="3"/><text x="{}" y="{legend_y:.1}">{}</text>"#,
            legend_y - 4.0,
            legend_x + 24.0,
            escaped(&line.name)
        );
    }
    svg.push_str("</g>\n");
}

impl Axis {
    /// Where a value is on it, from 0 to 1.
    fn place(&self, value: f64) -> f64 {
        let scale = |value: f64| if self.is_log { value.ln() } else { value };
        let (from, to) = (scale(self.from), scale(self.to));
        if to <= from { 0.5 } else { (scale(value) - from) / (to - from) }
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
