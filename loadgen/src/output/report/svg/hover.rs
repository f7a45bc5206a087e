//! Tooltips without a script: invisible strips over the x axis, each with the values of all lines as its title.

use std::fmt::Write as _;

use super::{BOTTOM, Chart, H, LEFT, RIGHT, Series, TOP, W, escape};
use crate::units;

/// The format of a value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum AxisFormat {
    #[default]
    Plain,
    Seconds,
    Nanos,
    BitsPerSecond,
    Bytes,
    Times,
    /// A share as 0 to 100 percent.
    Part,
    /// A percentile by its nines: log10(1/(1-p)).
    Nines,
}

impl AxisFormat {
    fn text(self, v: f64) -> String {
        match self {
            Self::Plain => format!("{v:.3}"),
            Self::Seconds => format!("{v:.2} s"),
            Self::Nanos => units::time(v as u64),
            Self::BitsPerSecond => units::rate(v as u64),
            Self::Bytes => units::bytes(v as u64),
            Self::Times => format!("{v:.2}x"),
            Self::Part => format!("{v:.0} %"),
            Self::Nines => {
                let percent = (1.0 - 10f64.powf(-v)) * 100.0;
                let text = format!("{percent:.3}");
                format!("p{}", text.trim_end_matches('0').trim_end_matches('.'))
            }
        }
    }
}

/// Number of strips.
const STRETCHES: usize = 48;

impl Chart {
    pub(super) fn hover(&self, s: &mut String) {
        let step = (self.x.1 - self.x.0) / STRETCHES as f64;
        if !self.series.iter().any(|s| !s.points.is_empty()) || step <= 0.0 {
            return;
        }
        let wide = (W - LEFT - RIGHT) / STRETCHES as f64;
        let high = H - TOP - BOTTOM;
        for i in 0..STRETCHES {
            let (from, to) = (self.x.0 + i as f64 * step, self.x.0 + (i + 1) as f64 * step);
            let lines: Vec<String> =
                self.series.iter().filter_map(|s| self.value(s, from, to)).collect();
            if lines.is_empty() {
                continue;
            }
            let title =
                format!("{}\n{}", self.show.0.text(f64::midpoint(from, to)), lines.join("\n"));
            let x = LEFT + i as f64 * wide;
            let _ = write!(
                s,
                "<rect class=\"over\" x=\"{x:.1}\" y=\"{TOP}\" width=\"{wide:.1}\" height=\"{high}\">\
                 <title>{}</title></rect>",
                escape(&title)
            );
        }
    }

    /// The value of one line in a strip: minimum and maximum, or the interpolated value if it has no point there.
    /// `None` beyond its ends.
    fn value(&self, series: &Series, from: f64, to: f64) -> Option<String> {
        let points = &series.points;
        let here = points.iter().filter(|p| (from..to).contains(&p.0)).map(|p| p.1);
        let (least, most) = here.fold((f64::MAX, f64::MIN), |(a, b), y| (a.min(y), b.max(y)));
        let show = |y: f64| self.show.1.text(y);
        // No point in this strip: interpolate between its neighbours.
        let text = if least > most {
            let next = points.iter().position(|p| p.0 >= to).filter(|i| *i > 0)?;
            let ((x0, y0), (x1, y1)) = (points[next - 1], points[next]);
            let part = (f64::midpoint(from, to) - x0) / (x1 - x0).max(1e-12);
            show(y0 + (y1 - y0) * part)
        } else if most - least > most.abs() / 100.0 {
            format!("{} to {}", show(least), show(most))
        } else {
            show(most)
        };
        Some(format!("{}: {text}", series.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stretch_of_a_line_has_its_values() {
        let line = |points: &[(f64, f64)]| Series {
            name: "a<b".to_owned(),
            points: points.to_vec(),
            ..Series::default()
        };
        let chart = Chart {
            x: (0.0, 48.0),
            y: (0.0, 1e9),
            // Two points in the first strip, then none until the last.
            series: vec![line(&[(0.5, 1e6), (0.6, 5e6), (10.5, 5e6)])],
            show: (AxisFormat::Seconds, AxisFormat::BitsPerSecond),
            ..Chart::default()
        };
        let svg = chart.render();
        assert!(svg.contains("<title>0.50 s\na&lt;b: 1.00 Mbit/s to 5.00 Mbit/s</title>"), "{svg}");
        assert!(svg.contains("<title>5.50 s\na&lt;b: 5.00 Mbit/s</title>"), "between two points");
        assert_eq!(svg.matches("class=\"over\"").count(), 11, "nothing beyond its end");
        assert_eq!(AxisFormat::Nines.text(3.0), "p99.9");
    }
}
