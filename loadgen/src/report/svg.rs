//! Line charts as inline SVG: six hundred lines less than a plotting crate, and the same bytes every time.

use std::fmt::Write as _;

/// One line.
#[derive(Debug, Clone)]
pub struct Series {
    pub name: String,
    /// CSS class that carries the colour.
    pub class: &'static str,
    pub points: Vec<(f64, f64)>,
}

/// A horizontal line with a name, such as a limit.
#[derive(Debug, Clone)]
pub struct Mark {
    pub name: String,
    pub class: &'static str,
    pub y: f64,
}

/// A named stretch of the x axis, such as a phase.
#[derive(Debug, Clone)]
pub struct Band {
    pub name: String,
    pub from: f64,
    pub to: f64,
    pub class: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    Linear,
    Log10,
}

#[derive(Debug, Clone)]
pub struct Chart {
    pub title: String,
    pub y_label: String,
    pub x: (f64, f64),
    pub y: (f64, f64),
    pub y_scale: Scale,
    /// Position and text.
    pub x_ticks: Vec<(f64, String)>,
    pub y_ticks: Vec<(f64, String)>,
    pub bands: Vec<Band>,
    pub marks: Vec<Mark>,
    pub series: Vec<Series>,
}

const W: f64 = 560.0;
const H: f64 = 250.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 24.0;
const BOTTOM: f64 = 26.0;
/// More points than this are thinned by least and greatest of a bucket, so that spikes survive.
const POINTS_MAX: usize = 400;

impl Chart {
    fn px(&self, x: f64) -> f64 {
        LEFT + (x - self.x.0) / (self.x.1 - self.x.0).max(1e-12) * (W - LEFT - RIGHT)
    }
    fn py(&self, y: f64) -> f64 {
        let f = |v: f64| match self.y_scale {
            Scale::Linear => v,
            Scale::Log10 => v.max(1e-12).log10(),
        };
        let (low, high) = (f(self.y.0), f(self.y.1));
        let part = (f(y) - low) / (high - low).max(1e-12);
        H - BOTTOM - part.clamp(0.0, 1.0) * (H - TOP - BOTTOM)
    }

    pub fn render(&self) -> String {
        let mut s = String::new();
        let title = escape(&self.title);
        let _ = write!(
            s,
            "<svg viewBox=\"0 0 {W} {H}\" role=\"img\" aria-label=\"{title}\"><title>{title}</title>"
        );
        self.frame(&mut s);
        for line in &self.series {
            self.line(&mut s, line);
        }
        self.marks(&mut s);
        s.push_str("</svg>");
        s
    }

    fn frame(&self, s: &mut String) {
        let (x0, x1, y0, y1) = (LEFT, W - RIGHT, H - BOTTOM, TOP);
        for b in &self.bands {
            let (from, to) = (self.px(b.from), self.px(b.to));
            let _ = write!(
                s,
                "<rect class=\"band {}\" x=\"{from:.1}\" y=\"{y1}\" width=\"{:.1}\" height=\"{:.1}\"/>\
                 <text class=\"bandname\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                b.class,
                to - from,
                y0 - y1,
                (from + to) / 2.0,
                y1 - 6.0,
                escape(&b.name),
            );
        }
        for (y, text) in &self.y_ticks {
            let at = self.py(*y);
            let _ = write!(
                s,
                "<line class=\"grid\" x1=\"{x0}\" y1=\"{at:.1}\" x2=\"{x1}\" y2=\"{at:.1}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                x0 - 6.0,
                at + 3.5,
                escape(text),
            );
        }
        for (x, text) in &self.x_ticks {
            let _ = write!(
                s,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                self.px(*x),
                y0 + 16.0,
                escape(text),
            );
        }
        let _ = write!(s, "<line class=\"axis\" x1=\"{x0}\" y1=\"{y0}\" x2=\"{x1}\" y2=\"{y0}\"/>");
        let _ = write!(s, "<text class=\"unit\" x=\"2\" y=\"12\">{}</text>", escape(&self.y_label));
    }

    fn marks(&self, s: &mut String) {
        for m in &self.marks {
            let at = self.py(m.y);
            let _ = write!(
                s,
                "<line class=\"mark {}\" x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{:.1}\" y2=\"{at:.1}\"/>\
                 <text class=\"markname\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                m.class,
                W - RIGHT,
                W - RIGHT - 2.0,
                at - 3.0,
                escape(&m.name),
            );
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
    }
}

fn thin(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= POINTS_MAX {
        return points.to_vec();
    }
    let bucket = points.len().div_ceil(POINTS_MAX / 2);
    points
        .chunks(bucket)
        .flat_map(|c| {
            let low = c.iter().min_by(|a, b| a.1.total_cmp(&b.1)).copied();
            let high = c.iter().max_by(|a, b| a.1.total_cmp(&b.1)).copied();
            let mut both: Vec<_> = low.into_iter().chain(high).collect();
            both.sort_by(|a, b| a.0.total_cmp(&b.0));
            both
        })
        .collect()
}

pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// About four round steps from 0 to at least `top`.
pub fn steps(top: f64) -> Vec<f64> {
    let top = top.max(1e-9);
    let raw = top / 4.0;
    let power = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].iter().map(|m| m * power).find(|s| *s >= raw);
    let step = step.unwrap_or(raw);
    (0..=(top / step).ceil() as usize).map(|i| i as f64 * step).collect()
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
    fn names_cannot_break_out() {
        assert_eq!(escape("<a \"b\" & c>"), "&lt;a &quot;b&quot; &amp; c&gt;");
    }
}
