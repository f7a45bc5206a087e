//! Charts as inline SVG: a few hundred lines instead of a plotting crate with fonts, and the same bytes every time.
//!
//! One drawing serves a desktop and a phone. It scales with the page, so the style sheet sets larger letters on narrow
//! screens, and margins, ticks and labels here leave room for those.

mod heat;
mod hover;

pub(crate) use heat::{Heat, HeatPart, HeatRow, LEVELS};
pub(crate) use hover::AxisFormat;

use std::fmt::Write as _;

/// One line of a chart.
#[derive(Debug, Clone, Default)]
pub(crate) struct Series {
    pub name: String,
    /// CSS classes that set colour and dash.
    pub class: String,
    pub points: Vec<(f64, f64)>,
    /// Also draw each point as a dot: for series with few points.
    pub dots: bool,
}

/// A horizontal line with a name, such as a limit.
#[derive(Debug, Clone)]
pub(crate) struct Mark {
    pub name: String,
    pub class: &'static str,
    pub y: f64,
}

/// A named range of the x axis, such as a phase.
#[derive(Debug, Clone)]
pub(crate) struct Band {
    pub name: String,
    pub from: f64,
    pub to: f64,
    pub class: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Scale {
    #[default]
    Linear,
    Log10,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Chart {
    /// Text alternative for screen readers.
    pub title: String,
    /// Unit of the y ticks.
    pub unit: String,
    pub x: (f64, f64),
    pub y: (f64, f64),
    pub y_scale: Scale,
    /// Position and label.
    pub x_ticks: Vec<(f64, String)>,
    pub y_ticks: Vec<(f64, String)>,
    /// Draw grid lines at the x ticks too.
    pub x_grid: bool,
    pub bands: Vec<Band>,
    pub marks: Vec<Mark>,
    pub series: Vec<Series>,
    /// Formats of the x and y values in tooltips.
    pub show: (AxisFormat, AxisFormat),
}

const W: f64 = 560.0;
const H: f64 = 250.0;
const LEFT: f64 = 68.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 30.0;
/// Approximate width of a letter and height of a line on a phone, in units of the drawing.
const LETTER: f64 = 9.5;
const LINE: f64 = 18.0;
/// Maximum points of a line. Beyond it, each bucket keeps its minimum and maximum, so that spikes survive.
const POINTS_MAX: usize = 400;

impl Chart {
    fn px(&self, x: f64) -> f64 {
        let part = (x - self.x.0) / (self.x.1 - self.x.0).max(1e-12);
        LEFT + part.clamp(0.0, 1.0) * (W - LEFT - RIGHT)
    }
    fn py(&self, y: f64) -> f64 {
        let f = |v: f64| match self.y_scale {
            Scale::Linear => v,
            // Zero has no logarithm.
            Scale::Log10 => v.max(1e-12).log10(),
        };
        let (low, high) = (f(self.y.0), f(self.y.1));
        let part = (f(y) - low) / (high - low).max(1e-12);
        H - BOTTOM - part.clamp(0.0, 1.0) * (H - TOP - BOTTOM)
    }

    pub(crate) fn render(&self) -> String {
        let mut s = open(&self.title, H);
        self.bands(&mut s);
        self.axes(&mut s);
        for line in &self.series {
            self.line(&mut s, line);
        }
        self.marks(&mut s);
        self.hover(&mut s);
        s.push_str("</svg>");
        s
    }

    fn bands(&self, s: &mut String) {
        for b in &self.bands {
            let (from, to) = (self.px(b.from), self.px(b.to));
            let (width, height) = (to - from, H - BOTTOM - TOP);
            let (name, class) = (escape(&b.name), b.class);
            let _ = write!(
                s,
                "<rect class=\"band {class}\" x=\"{from:.1}\" y=\"{TOP}\" width=\"{width:.1}\" height=\"{height}\">\
                 <title>{name}</title></rect>",
            );
            // A name wider than its band would overlap the next one.
            if b.name.chars().count() as f64 * LETTER <= width + LETTER {
                let middle = f64::midpoint(from, to);
                text(s, "bandname", (middle, TOP - 9.0), "middle", &b.name);
            }
        }
    }

    fn axes(&self, s: &mut String) {
        let (x0, x1, y0) = (LEFT, W - RIGHT, H - BOTTOM);
        for (y, name) in &self.y_ticks {
            let at = self.py(*y);
            let _ = write!(s, "<path class=\"grid\" d=\"M{x0} {at:.1}H{x1}\"/>",);
            text(s, "", (x0 - 7.0, at + 4.5), "end", name);
        }
        // Right end of the previous label.
        let mut free = f64::MIN;
        for (x, name) in &self.x_ticks {
            let at = self.px(*x);
            if self.x_grid {
                let _ = write!(s, "<path class=\"grid\" d=\"M{at:.1} {TOP}V{y0}\"/>");
            }
            let half = name.chars().count() as f64 * LETTER / 2.0;
            // Keep the outermost labels inside the drawing.
            let (anchor, from, to) = if at + half > W {
                ("end", W - 2.0 - 2.0 * half, W - 2.0)
            } else {
                ("middle", at - half, at + half)
            };
            // Leave out a label that would overlap the previous one.
            if from < free {
                continue;
            }
            free = to + LETTER;
            let at = if anchor == "end" { W - 2.0 } else { at };
            text(s, "", (at, y0 + 19.0), anchor, name);
        }
        let _ = write!(s, "<path class=\"axis\" d=\"M{x0} {y0}H{x1}\"/>");
        text(s, "unit", (2.0, TOP - 13.0), "start", &self.unit);
    }

    /// Draws names above their lines, or lower if the name above leaves no room.
    fn marks(&self, s: &mut String) {
        let mut marks: Vec<&Mark> = self.marks.iter().collect();
        // From top to bottom: a name can only be moved downwards.
        marks.sort_by(|a, b| b.y.total_cmp(&a.y));
        let mut free = TOP + LINE - 6.0;
        for m in marks {
            let at = self.py(m.y);
            let class = m.class;
            let _ =
                write!(s, "<path class=\"mark {class}\" d=\"M{LEFT} {at:.1}H{:.1}\"/>", W - RIGHT);
            let y = (at - 5.0).max(free);
            free = y + LINE;
            text(s, "markname", (LEFT + 4.0, y), "start", &m.name);
        }
    }

    fn line(&self, s: &mut String, series: &Series) {
        if series.points.is_empty() {
            return;
        }
        let _ = write!(s, "<path class=\"line {}\" d=\"", series.class);
        for (i, (x, y)) in thin(&series.points).iter().enumerate() {
            let command = if i == 0 { 'M' } else { 'L' };
            let _ = write!(s, "{command}{:.1} {:.1}", self.px(*x), self.py(*y));
        }
        let _ = write!(s, "\"><title>{}</title></path>", escape(&series.name));
        for (x, y) in series.points.iter().filter(|_| series.dots) {
            let (x, y, class) = (self.px(*x), self.py(*y), &series.class);
            let _ =
                write!(s, "<circle class=\"dot {class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\"/>");
        }
    }
}

fn open(title: &str, height: f64) -> String {
    let title = escape(title);
    format!(
        "<svg viewBox=\"0 0 {W} {height}\" role=\"img\" aria-label=\"{title}\"><title>{title}</title>"
    )
}

fn text(s: &mut String, class: &str, (x, y): (f64, f64), anchor: &str, text: &str) {
    let text = escape(text);
    let _ = write!(
        s,
        "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"
    );
}

fn thin(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= POINTS_MAX {
        return points.to_vec();
    }
    // Each bucket yields two points.
    let bucket = points.len().div_ceil(POINTS_MAX / 2);
    points
        .chunks(bucket)
        .flat_map(|c| {
            let low = c.iter().min_by(|a, b| a.1.total_cmp(&b.1)).copied();
            let high = c.iter().max_by(|a, b| a.1.total_cmp(&b.1)).copied();
            let mut both: Vec<_> = low.into_iter().chain(high).collect();
            // Minimum and maximum in the order in which they occurred.
            both.sort_by(|a, b| a.0.total_cmp(&b.0));
            both
        })
        .collect()
}

pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// About four round steps from 0 to at least `top`.
pub(crate) fn steps(top: f64) -> Vec<f64> {
    let top = top.max(1e-9);
    let raw = top / 4.0;
    let power = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].iter().map(|m| m * power).find(|s| *s >= raw);
    let step = step.unwrap_or(raw);
    (0..=(top / step).ceil() as usize).map(|i| i as f64 * step).collect()
}

/// Ticks of a logarithmic axis within `low..=high`: powers of ten, with 2 and 5 between them when those are few.
pub(crate) fn log_steps(low: f64, high: f64) -> Vec<f64> {
    let (low, high) = (low.max(1e-9), high.max(low * 1.01));
    let between: &[f64] = if (high / low).log10() < 2.2 { &[1.0, 2.0, 5.0] } else { &[1.0] };
    let decades = low.log10().floor() as i32..=high.log10().ceil() as i32;
    let all = decades.flat_map(|d| between.iter().map(move |m| m * 10f64.powi(d)));
    let ticks: Vec<f64> = all.filter(|t| (low * 0.999..=high * 1.001).contains(t)).collect();
    if ticks.is_empty() { vec![low] } else { ticks }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spikes_survive_thinning() {
        let mut points: Vec<(f64, f64)> = (0..5000).map(|i| (f64::from(i), 1.0)).collect();
        points[3333].1 = 99.0;
        let thin = thin(&points);
        assert!(thin.len() <= POINTS_MAX);
        assert!(thin.contains(&(3333.0, 99.0)));
        assert!(thin.windows(2).all(|w| w[0].0 <= w[1].0));
    }

    #[test]
    fn steps_are_round_and_reach_the_top() {
        assert_eq!(steps(938.0), [0.0, 250.0, 500.0, 750.0, 1000.0]);
        assert_eq!(steps(4.0), [0.0, 1.0, 2.0, 3.0, 4.0]);
    }

    #[test]
    fn a_logarithmic_axis_always_has_ticks() {
        assert_eq!(log_steps(1.4, 60.0), [2.0, 5.0, 10.0, 20.0, 50.0]);
        assert_eq!(log_steps(0.9, 1200.0), [1.0, 10.0, 100.0, 1000.0]);
        assert!(!log_steps(0.0, 0.0).is_empty());
    }

    #[test]
    fn escaped_names_stay_text() {
        assert_eq!(escape("<a \"b\" & c>"), "&lt;a &quot;b&quot; &amp; c&gt;");
    }

    /// Nothing is drawn outside the drawing area, whatever the data.
    #[test]
    fn points_outside_the_axes_stay_on_their_edge() {
        let chart = Chart {
            x: (0.0, 1.0),
            y: (0.0, 1.0),
            series: vec![Series { points: vec![(-5.0, 9.0), (7.0, -3.0)], ..Series::default() }],
            ..Chart::default()
        };
        // From LEFT, TOP to W - RIGHT, H - BOTTOM.
        assert!(chart.render().contains("M68.0 30.0L546.0 220.0"));
    }

    #[test]
    fn limits_close_together_keep_their_names_apart() {
        let mark = |y: f64| Mark { name: format!("limit {y}"), class: "soft", y };
        let chart = Chart {
            y: (0.0, 100.0),
            marks: vec![mark(50.0), mark(51.0), mark(52.0)],
            ..Chart::default()
        };
        let svg = chart.render();
        let mut ys: Vec<f64> = svg
            .match_indices("markname\"")
            .map(|(at, _)| {
                svg[at..].split("y=\"").nth(1).unwrap().split('"').next().unwrap().parse().unwrap()
            })
            .collect();
        ys.sort_by(f64::total_cmp);
        assert!(ys.len() == 3 && ys.windows(2).all(|w| w[1] - w[0] > LINE - 0.1), "{ys:?}");
    }
}
